"""Real resources and real faults: servers that end our connections, refuse new ones, or hang.

PostgreSQL and Redis are found through TASKER_TEST_POSTGRES and TASKER_TEST_REDIS; without these, their tests skip. The HTTP
server is made here, and SQLite needs none.
"""

from __future__ import annotations

import http.client
import os
import socket
import sqlite3
import struct
import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, LiteralString

import pytest

from support import DEADLINE, MakePool, cause_of_stop, eventually
from tasker_executor import ResourceExecutor

if TYPE_CHECKING or find_spec("psycopg"):  # not there where only the extra "suite" is installed
    import psycopg
    from psycopg import sql
if TYPE_CHECKING or find_spec("redis"):
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    Redis = redis.Redis

if TYPE_CHECKING:
    Connection = psycopg.Connection[tuple[Any, ...]]

WORKERS = 8
MAX_RETRIES = 30  # On a busy machine every task takes its time, and the trouble goes on as ever.
OUTAGE = 2.0  # seconds
HANGS = 60  # seconds


@contextmanager
def repeatedly(action: Callable[[], object], pause: float) -> Generator[None]:
    """Run `action` before the block, and every `pause` seconds during it, in another thread."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(pause):
            action()

    action()
    thread = threading.Thread(target=go_on, name="trouble")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(DEADLINE)


# -- PostgreSQL --


class Postgres:
    """A PostgreSQL with an administrator and, under a name of their own, our connections."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.name = f"tasker_{uuid.uuid4().hex[:12]}"  # of our connections, and of what a test makes
        self.admin: Connection = psycopg.connect(address, autocommit=True)

    def connect(self, **options: Any) -> Connection:
        return psycopg.connect(self.address, application_name=self.name, autocommit=True, **options)

    def ask(self, query: str, *arguments: object) -> tuple[Any, ...]:
        row = self.admin.execute(query.encode(), arguments).fetchone()
        assert row is not None
        return row

    def execute(self, statement: LiteralString) -> None:
        """Run a statement about the things with our name, {name} and {log}."""
        names = {"name": sql.Identifier(self.name), "log": sql.Identifier(f"{self.name}_log")}
        self.admin.execute(sql.SQL(statement).format(**names))

    def connections(self) -> int:
        [count] = self.ask("select count(*) from pg_stat_activity where application_name = %s", self.name)
        assert isinstance(count, int)
        return count

    def terminate(self, most: int) -> int:
        """End so many of our connections, chosen at random; return how many it were."""
        [ended] = self.ask(
            "select count(pg_terminate_backend(pid)) from (select pid from pg_stat_activity "
            "where application_name = %s order by random() limit %s) as victims",
            self.name,
            most,
        )
        assert isinstance(ended, int)
        return ended


@pytest.fixture
def database(postgres: str) -> Iterator[Postgres]:
    pytest.importorskip("psycopg")
    server = Postgres(postgres)
    yield server

    server.terminate(WORKERS)  # after a failure, something may hang there
    server.admin.close()


def is_own(error: Exception) -> bool:
    """Return whether the error says nothing of the connection."""
    return not isinstance(error, psycopg.OperationalError)


def answers(connection: Connection) -> bool:
    connection.execute("")
    return True


@pytest.fixture
def tables(database: Postgres) -> Iterator[Postgres]:
    """With a table of the keys of what was done, and one of all that was done."""
    database.execute("create unlogged table {name} (number integer primary key)")
    database.execute("create unlogged table {log} (number integer)")
    yield database

    database.execute("drop table {name}, {log}")


@pytest.mark.services
def test_postgres_ends_connections_all_the_time_and_every_row_is_written_once(tables: Postgres, make_pool: MakePool) -> None:
    # One statement, so one transaction. A task with a new key writes a line, and each task gets an answer. A
    # task whose connection ends, before the commit or after it, is run again and changes nothing twice.
    statement = sql.SQL(
        "with fresh as (insert into {keys} values (%(number)s) on conflict do nothing returning number), "
        "noted as (insert into {log} select number from fresh) select %(number)s::bigint * %(number)s"
    ).format(keys=sql.Identifier(tables.name), log=sql.Identifier(f"{tables.name}_log"))

    def square(connection: Connection, number: int) -> int:
        row = connection.execute(statement, {"number": number}).fetchone()
        assert row is not None
        return int(row[0])

    before = tables.connections()
    numbers = range(10_000)
    pool = make_pool(
        WORKERS,
        on_create=tables.connect,
        on_destroy=psycopg.Connection.close,
        check_health=is_own,
        check_resource=answers,
        check_after_idle=DEADLINE,
        max_retries=MAX_RETRIES,
        min_workers=WORKERS,
    )
    pool.wait_ready()
    tables.terminate(WORKERS)  # so that some task meets this for certain
    with repeatedly(lambda: tables.terminate(1), 0.02):
        results = list(pool.map(square, numbers))
    pool.shutdown()
    stats = pool.stats()
    written = tables.admin.execute(
        sql.SQL("select count(*), count(distinct number), sum(number) from {}").format(sql.Identifier(f"{tables.name}_log"))
    ).fetchone()

    assert results == [number * number for number in numbers]
    assert written == (len(numbers), len(numbers), sum(numbers))
    assert stats.retried > 0
    assert stats.resources_created == stats.resources_destroyed > WORKERS
    eventually(lambda: tables.connections() == before, "the server to have as many connections as before")


@pytest.fixture
def own_database(database: Postgres) -> Iterator[Postgres]:
    """With a database that only the test uses, of our name."""
    database.execute("create database {name} template template0")
    yield database

    database.execute("drop database {name} with (force)")


@pytest.mark.services
def test_queued_tasks_survive_two_seconds_without_connections(own_database: Postgres, make_pool: MakePool) -> None:
    def connect() -> Connection:
        return own_database.connect(dbname=own_database.name)

    def square(connection: Connection, number: int) -> int:
        row = connection.execute("select %(number)s::bigint * %(number)s", {"number": number}).fetchone()
        assert row is not None
        return int(row[0])

    pool = make_pool(
        4,
        on_create=connect,
        on_destroy=psycopg.Connection.close,
        check_health=is_own,
        check_resource=answers,
        min_workers=4,
        create_timeout=60.0,
    )
    pool.wait_ready()
    own_database.execute("alter database {name} allow_connections false")
    own_database.terminate(4)
    eventually(lambda: own_database.connections() == 0, "the server to have ended our connections")
    numbers = range(200)
    futures = [pool.submit(square, number) for number in numbers]
    threading.Event().wait(OUTAGE)
    during = pool.stats()
    own_database.execute("alter database {name} allow_connections true")

    assert [future.result(DEADLINE) for future in futures] == [number * number for number in numbers]
    assert during.create_failures > 0
    assert during.completed == 0
    assert during.state == "running"


@pytest.mark.services
@pytest.mark.parametrize("method", ["cancel", "cancel_safe"])
def test_kill_ends_a_query_that_hangs_in_postgres(database: Postgres, make_pool: MakePool, method: str) -> None:
    on_abort: Callable[[Connection], None] = getattr(psycopg.Connection, method)
    pool = make_pool(1, on_create=database.connect, on_destroy=psycopg.Connection.close, on_abort=on_abort)
    future = pool.submit(lambda connection: connection.execute("select pg_sleep(%s)", (HANGS,)))
    hanging = "select count(*) from pg_stat_activity where application_name = %s and wait_event = 'PgSleep'"
    eventually(lambda: database.ask(hanging, database.name) == (1,), "the query to hang")

    pool.kill()

    assert isinstance(cause_of_stop(future), psycopg.errors.QueryCanceled)


# -- Redis --

ONCE = """
if redis.call('hsetnx', KEYS[1], ARGV[1], 1) == 1 then
    redis.call('incr', KEYS[2])
end
return ARGV[1] * ARGV[1]
"""


@pytest.fixture
def server(redis_url: str) -> Iterator[Redis]:
    pytest.importorskip("redis")
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.mark.services
def test_redis_kills_clients_under_load_and_every_result_is_right(server: Redis, redis_url: str, make_pool: MakePool) -> None:
    name = f"tasker-{uuid.uuid4().hex[:12]}"
    keys, total = f"{name}:keys", f"{name}:total"

    def connect() -> Redis:
        # One connection, and no second attempts: this is about ours.
        client = redis.Redis.from_url(redis_url, client_name=name, single_connection_client=True, retry=Retry(NoBackoff(), 0))
        client.ping()
        return client

    def is_no_outage(error: BaseException) -> bool:
        # To ask the client itself is not enough: it has connected anew before it answers.
        return not isinstance(error, (redis.ConnectionError, redis.TimeoutError))

    def square(client: Redis, number: int) -> Any:
        return client.eval(ONCE, 2, keys, total, number)

    def ours() -> list[Any]:
        return [client for client in server.client_list() if client["name"] == name]

    def kill_one() -> None:
        for client in ours()[:1]:
            server.client_kill_filter(_id=client["id"])

    numbers = range(5_000)
    pool = make_pool(
        WORKERS,
        on_create=connect,
        on_destroy=Redis.close,
        check_health=is_no_outage,
        check_resource=Redis.ping,
        check_after_idle=DEADLINE,
        max_retries=MAX_RETRIES,
        min_workers=WORKERS,
    )
    pool.wait_ready()
    try:
        for client in ours():
            server.client_kill_filter(_id=client["id"])  # so that some task meets this for certain
        with repeatedly(kill_one, 0.02):
            results = list(pool.map(square, numbers))
        pool.shutdown()
        counted = server.get(total)
    finally:
        server.delete(keys, total)
    stats = pool.stats()

    assert results == [number * number for number in numbers]
    assert counted == str(len(numbers)).encode()
    assert stats.retried > 0
    assert stats.resources_created == stats.resources_destroyed > WORKERS
    eventually(lambda: ours() == [], "the server to have forgotten our connections")


# -- SQLite --

ENDLESS = "with recursive counter(n) as (select 1 union all select n + 1 from counter) select count(*) from counter"


def test_kill_interrupts_a_query_of_sqlite_on_every_worker(make_pool: MakePool) -> None:
    under_way = threading.Barrier(5)

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(":memory:", check_same_thread=False)  # interrupt() comes from another thread

    def hang(connection: sqlite3.Connection) -> None:
        reported: list[int] = []

        def report() -> None:
            if not reported:
                reported.append(under_way.wait(DEADLINE))

        connection.set_progress_handler(report, 1000)
        connection.execute(ENDLESS).fetchone()

    pool = make_pool(4, on_create=connect, on_destroy=sqlite3.Connection.close, on_abort=sqlite3.Connection.interrupt)
    futures = [pool.submit(hang) for _ in range(4)]
    under_way.wait(DEADLINE)

    pool.kill()

    assert [str(cause_of_stop(future)) for future in futures] == ["interrupted"] * 4


# -- HTTP --


class Moody(BaseHTTPRequestHandler):
    """Squares numbers, and keeps connections; but resets some, before its answer or amidst, when it first hears a number."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet

    def do_GET(self) -> None:
        number = int(self.path.removeprefix("/"))
        body = b"%d" % (number * number)
        assert isinstance(self.server, MoodyServer)
        first = self.server.first_time(number)
        if first and number % 10 == 3:
            self.reset()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if first and number % 10 == 7:
            self.wfile.write(body[:1])
            self.wfile.flush()
            self.reset()
            return
        self.wfile.write(body)

    def reset(self) -> None:
        """Close with a lingering time of zero: the other side gets a reset and no farewell."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if os.name == "nt" else "ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class MoodyServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Moody)
        self._heard: set[int] = set()
        self._lock = threading.Lock()

    def first_time(self, number: int) -> bool:
        with self._lock:
            first = number not in self._heard
            self._heard.add(number)
            return first

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # without saying goodbye first

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@pytest.fixture
def moody() -> Iterator[MoodyServer]:
    with MoodyServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="moody")
        thread.start()
        yield server

        server.shutdown()
        thread.join(DEADLINE)


def test_every_answer_comes_though_the_server_resets_connections(moody: MoodyServer, make_pool: MakePool) -> None:
    host, port = moody.server_address[:2]

    def connect() -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(str(host), port, timeout=DEADLINE)
        connection.connect()
        connection.auto_open = 0  # it does not mend itself: this is about us
        return connection

    def square(connection: http.client.HTTPConnection, number: int) -> int:
        connection.request("GET", f"/{number}")
        return int(connection.getresponse().read())

    def is_no_outage(error: BaseException) -> bool:
        return not isinstance(error, (OSError, http.client.HTTPException))

    numbers = range(1, 1_001)
    pool: ResourceExecutor[http.client.HTTPConnection] = make_pool(
        WORKERS, on_create=connect, on_destroy=http.client.HTTPConnection.close, check_health=is_no_outage
    )
    results = list(pool.map(square, numbers))
    pool.shutdown()
    stats = pool.stats()

    assert results == [number * number for number in numbers]
    assert stats.retried == len(numbers) // 5
    # There is no check. So a connection that is older than a reset makes room before a retried task meets it.
    assert stats.retried <= stats.workers_replaced <= 2 * stats.retried
    assert stats.resources_created == stats.resources_destroyed
