"""`tasker_executor.resources.pymysql` against a real MariaDB."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, assert_type
from urllib.parse import unquote, urlsplit

import pytest

from proxy import Proxy
from support import DEADLINE, eventually, run_python
from tasker_executor import ResourceExecutor
from tasker_executor.factory import Verdict
from trouble import HANGS, MAX_RETRIES, OUTAGE, WORKERS, again_and_again, cause_of_stop, in_thread

if not TYPE_CHECKING:
    pytest.importorskip("pymysql")
import pymysql
from pymysql.connections import Connection
from pymysql.constants import CLIENT, ER
from pymysql.cursors import Cursor, DictCursor, SSCursor

from tasker_executor.resources import pymysql as module
from tasker_executor.resources.pymysql import CommitUnknown, Connections


class Server:
    """A MariaDB with an administrator, and a database of our own: by that the connections of a test are known."""

    def __init__(self, address: str) -> None:
        url = urlsplit(address)
        self.host, self.port = url.hostname or "127.0.0.1", url.port or 3306
        user: dict[str, Any] = {"user": unquote(url.username or "root"), "password": unquote(url.password or "")}
        self.admin: Connection[Any] = pymysql.connect(host=self.host, port=self.port, autocommit=True, **user)
        self.name = f"tasker_{uuid.uuid4().hex[:12]}"
        self.options: dict[str, Any] = {"host": self.host, "port": self.port, "database": self.name, **user}
        self.ask(f"create database {self.name}")
        self.ask(f"create table {self.name}.numbers (number int primary key, note text) engine=innodb")

    def ask(self, statement: str, *arguments: object) -> list[Any]:
        """Return the first column."""
        with self.admin.cursor() as cursor:
            cursor.execute(statement, arguments)
            return [first for first, *_ in cursor.fetchall()]

    def numbers(self) -> list[int]:
        return self.ask(f"select number from {self.name}.numbers order by number")

    def ids(self) -> list[int]:
        """Return the numbers of our connections."""
        return self.ask("select id from information_schema.processlist where db = %s order by id", self.name)

    def kill(self, *ids: int) -> int:
        """End these connections of ours, or all; return how many it were."""
        ended = 0
        for number in ids or self.ids():
            try:
                self.ask(f"kill {number:d}")
                ended += 1
            except pymysql.OperationalError as error:
                if error.args[0] != ER.NO_SUCH_THREAD:  # it has ended by itself
                    raise
        return ended

    def waits_for(self, state: str) -> None:
        query = "select count(*) from information_schema.processlist where db = %s and state = %s"
        eventually(lambda: self.ask(query, self.name, state) == [1], f"a statement to be in the state {state!r}")

    def clean(self) -> None:
        self.kill()  # after a failure, something may hang there
        self.ask(f"delete from {self.name}.numbers")

    def close(self) -> None:
        self.ask(f"drop database {self.name}")
        self.admin.close()


@pytest.fixture(scope="module")
def database() -> Iterator[Server]:
    address = os.environ.get("TASKER_TEST_MARIADB")
    if not address:
        pytest.skip("TASKER_TEST_MARIADB is not set")
    server = Server(address)
    yield server

    server.close()


@pytest.fixture
def server(database: Server) -> Iterator[Server]:
    direct = database.options.copy()
    yield database

    database.options = direct
    database.clean()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.host, server.port) as proxy:
        server.options |= {"host": proxy.host, "port": proxy.port}
        yield proxy


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[..., tuple[Connections[Any], Connection[Any]]]]:
    """Makes a factory and a connection of it, which is destroyed when the test is over."""
    made: list[tuple[Connections[Any], Connection[Any]]] = []

    def make(**options: Any) -> tuple[Connections[Any], Connection[Any]]:
        factory: Connections[Any] = Connections(**server.options | options)
        pair = (factory, factory.create())
        made.append(pair)
        return pair

    yield make

    for factory, connection in made:
        factory.destroy(connection)
    eventually(lambda: not server.ids(), "all connections to end")


Connect: TypeAlias = "Callable[..., tuple[Connections[Any], Connection[Any]]]"


def run(connection: Connection[Any], statement: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def error_of(connection: Connection[Any], statement: str) -> pymysql.Error:
    with pytest.raises(pymysql.Error) as caught:
        run(connection, statement)
    return caught.value


def number_of(connection: Connection[Any]) -> int:
    number: object = connection.thread_id()  # type: ignore[no-untyped-call]  # its stub has no types
    assert isinstance(number, int)
    return number


def perform(factory: Connections[Any], connection: Connection[Any], *steps: str | Callable[[], object]) -> object:
    """Take these steps in a transaction of the factory; return what the task would get in place of the connection."""
    instead: object
    with factory.around(connection) as instead:
        for step in steps:
            if isinstance(step, str):
                run(connection, step)
            else:
                step()
    return instead


def fail() -> None:
    raise ValueError("my own")


# -- what is broken, and what is run again --


@pytest.mark.services
@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize(
    "statement, code",
    [
        ("selct 1", 1064),
        ("insert into numbers values (1, 'twice')", 1062),
        ("select number from numbers where number = 2 for update nowait", 1205),
        ("set statement max_statement_time=0.01 for select sleep(5)", 1969),
        ("kill query connection_id()", 1317),
    ],
)
def test_an_error_of_the_task_breaks_nothing(server: Server, connect: Connect, statement: str, code: int, retry: bool) -> None:
    server.ask(f"insert into {server.name}.numbers values (1, ''), (2, '')")
    _, other = connect()
    run(other, "select number from numbers where number = 2 for update")
    factory, connection = connect(transaction=retry, retry_broken=retry)

    error = error_of(connection, statement)

    assert error.args[0] == code
    assert factory.judge(error, connection) is Verdict.OWN
    factory.reset(connection)
    assert factory.check(connection)


@pytest.mark.services
@pytest.mark.parametrize(
    "options, verdict",
    [
        ({}, Verdict.BROKEN),
        ({"retry_broken": False}, Verdict.OWN),
        ({"retry_broken": False, "transaction": True}, Verdict.BROKEN),
    ],
)
def test_a_killed_connection_is_broken_and_the_task_run_again_if_that_is_known_to_be_right(
    server: Server, connect: Connect, options: Any, verdict: Verdict
) -> None:
    factory, connection = connect(**options)
    server.kill(number_of(connection))
    error = error_of(connection, "select 1")

    assert factory.judge(error, connection) is verdict
    assert not factory.check(connection)
    with pytest.raises(pymysql.InterfaceError):
        factory.reset(connection)


@pytest.mark.services
def test_a_connection_that_is_killed_while_a_statement_runs_is_broken(server: Server, connect: Connect) -> None:
    factory, connection = connect(transaction=True)
    with in_thread(lambda: run(connection, f"select sleep({HANGS})")) as errors:
        server.waits_for("User sleep")
        server.kill(number_of(connection))

    [error] = errors
    assert isinstance(error, pymysql.Error)
    assert factory.judge(error, connection) is Verdict.BROKEN


@pytest.mark.services
def test_a_connection_whose_answer_did_not_come_in_time_is_broken(server: Server, connect: Connect) -> None:
    factory, connection = connect(transaction=True, read_timeout=0.1)
    error = error_of(connection, f"select sleep({HANGS})")
    server.kill()  # it would notice that we are gone after 5 seconds

    assert factory.judge(error, connection) is Verdict.BROKEN


@pytest.mark.services
@pytest.mark.parametrize("code", [1053, 1927, 2006, 4031])
def test_a_code_alone_breaks_no_connection_that_answers(connect: Connect, code: int) -> None:
    factory, connection = connect(transaction=True)

    assert factory.judge(pymysql.OperationalError(code, "of another connection"), connection) is Verdict.OWN
    factory.reset(connection)


@pytest.mark.services
def test_a_connection_that_does_not_answer_after_such_a_code_is_broken(server: Server, connect: Connect) -> None:
    factory, connection = connect(transaction=True)
    server.kill(number_of(connection))
    eventually(lambda: not server.ids(), "the connection to end")

    assert factory.judge(pymysql.OperationalError(1053, "Server shutdown in progress"), connection) is Verdict.BROKEN


@pytest.mark.services
def test_an_error_that_is_not_the_drivers_is_the_tasks_own_though_the_connection_is_closed(connect: Connect) -> None:
    factory, connection = connect(transaction=True)
    connection.close()

    assert factory.judge(ValueError(), connection) is Verdict.OWN
    with pytest.raises(pymysql.InterfaceError):
        factory.reset(connection)


@pytest.mark.services
@pytest.mark.parametrize("retry", [False, True])
def test_a_deadlock_is_run_again_if_that_is_asked_for(server: Server, connect: Connect, retry: bool) -> None:
    server.ask(f"insert into {server.name}.numbers values (1, ''), (2, '')")
    factory, first = connect(transaction=True, retry_conflicts=retry)
    _, second = connect()
    run(first, "update numbers set note = 'first' where number = 1")
    run(second, "update numbers set note = 'second'  where number = 2")
    run(second, "insert into numbers values (3, ''), (4, '')")  # so it weighs more: the first is the victim
    with in_thread(lambda: run(second, "update numbers set note = 'second' where number = 1")) as errors:
        server.waits_for("Updating")
        error = error_of(first, "update numbers set note = 'first' where number = 2")

    assert not errors
    assert error.args[0] == 1213
    assert factory.judge(error, first) is (Verdict.AGAIN if retry else Verdict.OWN)
    factory.reset(first)
    assert factory.check(first)


# -- what is clean --


@pytest.mark.services
@pytest.mark.parametrize("autocommit", [False, True])
def test_reset_rolls_back_what_is_not_committed(server: Server, connect: Connect, autocommit: bool) -> None:
    factory, connection = connect(autocommit=autocommit)
    if autocommit:
        connection.begin()
    run(connection, "insert into numbers values (1, '')")

    factory.reset(connection)
    connection.commit()

    assert not server.numbers()


@pytest.mark.services
def test_reset_ends_a_transaction_that_has_only_read(server: Server, connect: Connect) -> None:
    # The server does not tell the driver about it: no flag is set after a SELECT.
    server.ask(f"insert into {server.name}.numbers values (1, '')")
    factory, connection = connect()
    run(connection, "select * from numbers for update")

    factory.reset(connection)

    assert server.ask(f"select number from {server.name}.numbers for update nowait") == [1]


@pytest.mark.services
def test_reset_sends_nothing_where_nothing_can_be_open(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("sent something")

    for options in ({"autocommit": True}, {"transaction": True}):
        factory, connection = connect(**options)
        perform(factory, connection, "select * from numbers")
        with monkeypatch.context() as patch:
            patch.setattr(connection, "_write_bytes", refuse)

            factory.reset(connection)


@pytest.mark.services
@pytest.mark.parametrize("autocommit", [False, True])
def test_reset_sets_autocommit_as_it_was(connect: Connect, autocommit: bool) -> None:
    factory, connection = connect(autocommit=autocommit)
    connection.autocommit(not autocommit)

    factory.reset(connection)

    assert connection.get_autocommit() is autocommit


@pytest.mark.services
def test_reset_leaves_autocommit_alone_where_the_server_chooses_it(connect: Connect) -> None:
    factory, connection = connect(autocommit=None)
    for wanted in (False, True):
        connection.autocommit(wanted)

        factory.reset(connection)

        assert connection.get_autocommit() is wanted


@pytest.mark.services
def test_a_connection_with_rows_left_unread_is_not_kept_and_makes_no_noise(connect: Connect) -> None:
    factory, connection = connect(cursorclass=SSCursor)
    cursor = connection.cursor()
    cursor.execute("select * from seq_1_to_100000")

    with pytest.raises(pymysql.InterfaceError, match="unread"):
        factory.reset(connection)
    factory.destroy(connection)
    del cursor  # its destructor would read the rest


@pytest.mark.services
def test_reset_reads_the_results_of_a_procedure_that_are_left(connect: Connect) -> None:
    factory, connection = connect(autocommit=True, client_flag=CLIENT.MULTI_STATEMENTS)
    cursor = connection.cursor()
    cursor.execute("select 1; select 2")

    factory.reset(connection)

    assert run(connection, "select 3") == [(3,)]


@pytest.mark.services
def test_an_error_in_the_results_that_are_left_does_not_meet_the_next_task(connect: Connect) -> None:
    factory, connection = connect(autocommit=True, client_flag=CLIENT.MULTI_STATEMENTS)
    cursor = connection.cursor()
    cursor.execute("select 1; select * from no_such_table")

    with pytest.raises(pymysql.ProgrammingError):
        factory.reset(connection)


@pytest.mark.services
def test_check_gives_up_on_a_server_that_does_not_answer(
    connect: Connect, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    factory, connection = connect()
    assert factory.check(connection)
    proxy.stall()

    assert not factory.check(connection)
    proxy.resume()


@pytest.mark.services
def test_the_limit_of_a_check_is_none_of_a_task(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    factory, connection = connect()
    assert factory.check(connection)

    assert run(connection, "select sleep(0.3)") == [(0,)]


# -- transactions --

INSERT_1 = "insert into numbers values (1, '')"


@pytest.mark.services
@pytest.mark.parametrize("autocommit", [False, True])
def test_a_transaction_is_committed_when_the_task_returns_and_rolled_back_when_it_raises(
    server: Server, connect: Connect, autocommit: bool
) -> None:
    factory, connection = connect(transaction=True, autocommit=autocommit)
    instead = perform(factory, connection, INSERT_1)
    with pytest.raises(ValueError, match="my own"):
        perform(factory, connection, "insert into numbers values (2, '')", fail)

    assert instead is None
    assert server.numbers() == [1]


@pytest.mark.services
def test_without_transaction_nothing_is_around(connect: Connect) -> None:
    factory, _ = connect()

    assert "around" not in vars(factory)
    assert "around" not in vars(type(factory))


@pytest.mark.services
@pytest.mark.parametrize("retry", [False, True])
def test_a_connection_that_breaks_during_commit_is_not_run_again(connect: Connect, proxy: Proxy, retry: bool) -> None:
    factory, connection = connect(transaction=True, read_timeout=0.2, retry_broken=retry)
    with pytest.raises(CommitUnknown) as caught:
        perform(factory, connection, INSERT_1, proxy.stall)
    proxy.resume()

    assert isinstance(caught.value.__cause__, pymysql.OperationalError)
    assert factory.judge(caught.value, connection) is Verdict.OWN
    with pytest.raises(pymysql.InterfaceError):
        factory.reset(connection)


@pytest.mark.services
def test_a_connection_that_breaks_before_commit_is_run_again(server: Server, connect: Connect) -> None:
    factory, connection = connect(transaction=True)
    with pytest.raises(pymysql.OperationalError) as caught:
        perform(factory, connection, INSERT_1, lambda: server.kill(number_of(connection)), "select 1")

    assert factory.judge(caught.value, connection) is Verdict.BROKEN
    assert not server.numbers()


@pytest.mark.services
def test_a_commit_that_could_not_be_sent_is_run_again(server: Server, connect: Connect) -> None:
    factory, connection = connect(transaction=True)
    with pytest.raises(pymysql.OperationalError) as caught:
        perform(factory, connection, INSERT_1, lambda: vars(connection)["_sock"].shutdown(socket.SHUT_RDWR))

    assert factory.judge(caught.value, connection) is Verdict.BROKEN
    eventually(lambda: not server.ids(), "the connection to end")
    assert not server.numbers()


@pytest.mark.services
def test_a_task_that_swallows_the_end_of_its_connection_is_run_again(server: Server, connect: Connect) -> None:
    factory, connection = connect(transaction=True)
    with pytest.raises(pymysql.InterfaceError) as caught:
        perform(factory, connection, lambda: server.kill(number_of(connection)), lambda: error_of(connection, "select 1"))

    assert factory.judge(caught.value, connection) is Verdict.BROKEN


@pytest.mark.services
def test_a_commit_that_the_server_refuses_is_rolled_back(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No statement makes a lone server refuse a COMMIT; a cluster does.
    factory, connection = connect(transaction=True, retry_conflicts=True)

    def refuse() -> None:
        raise pymysql.OperationalError(1213, "Deadlock: wsrep aborted transaction")

    monkeypatch.setattr(connection, "commit", refuse)
    with pytest.raises(pymysql.OperationalError) as caught:
        perform(factory, connection, INSERT_1)
    monkeypatch.undo()
    connection.commit()

    assert factory.judge(caught.value, connection) is Verdict.AGAIN
    assert not server.numbers()


@pytest.mark.services
def test_a_task_that_fails_with_rows_unread_costs_its_connection_and_not_the_time_to_read_them(connect: Connect) -> None:
    factory, connection = connect(transaction=True, cursorclass=SSCursor)
    cursor = connection.cursor()
    with pytest.raises(ValueError, match="my own"):
        perform(factory, connection, lambda: cursor.execute("select * from seq_1_to_100000"), fail)

    assert not connection.open


# -- what unblocks a call --


@pytest.mark.services
def test_abort_ends_the_statement_and_not_the_connection(server: Server, connect: Connect) -> None:
    factory, connection = connect()
    with in_thread(lambda: run(connection, f"select sleep({HANGS})")) as errors:
        server.waits_for("User sleep")
        factory.abort(connection)

    [error] = errors
    assert isinstance(error, pymysql.Error)
    assert error.args[0] == 1317
    assert factory.judge(error, connection) is Verdict.OWN
    factory.reset(connection)
    assert run(connection, "select 1") == [(1,)]


@pytest.mark.services
def test_abort_shuts_the_socket_down_where_the_server_cannot_be_told(
    server: Server, connect: Connect, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HURRY", 0.1)
    factory, connection = connect(transaction=True)
    with in_thread(lambda: run(connection, f"select sleep({HANGS})")) as errors:
        server.waits_for("User sleep")
        proxy.stall()
        factory.abort(connection)

    proxy.resume()
    server.kill()
    [error] = errors
    assert isinstance(error, pymysql.Error)
    assert factory.judge(error, connection) is Verdict.BROKEN


@pytest.mark.services
def test_abort_of_an_idle_connection_hits_nothing_that_comes_after(connect: Connect) -> None:
    factory, connection = connect()
    factory.abort(connection)

    assert run(connection, "select 1") == [(1,)]


@pytest.mark.services
def test_a_statement_that_the_server_reads_after_the_first_kill_query_is_ended(
    server: Server, connect: Connect, proxy: Proxy
) -> None:
    factory, connection = connect()
    state = vars(connection)
    state["is_waiting"] = True  # as if it was sent already
    with in_thread(lambda: factory.abort(connection)):
        eventually(lambda: proxy.accepted() == 2, "the first KILL QUERY")
        eventually(lambda: proxy.connections() == 1, "the end of the first KILL QUERY")
        error = error_of(connection, f"select sleep({HANGS})")

    assert error.args[0] == 1317
    factory.reset(connection)
    assert factory.check(connection)


@pytest.mark.services
@pytest.mark.parametrize("statement", ["select 1", "select"])
def test_abort_waits_for_no_call_that_is_over(connect: Connect, proxy: Proxy, statement: str) -> None:
    factory, connection = connect()
    connection.set_character_set("utf8mb4")
    connection.ping()
    with contextlib.suppress(pymysql.Error):
        run(connection, statement)
    factory.abort(connection)

    assert proxy.accepted() == 2
    assert factory.check(connection)


@pytest.mark.services
def test_a_kill_query_has_done_its_work_when_abort_returns(connect: Connect, proxy: Proxy) -> None:
    factory, connection = connect()
    proxy.delay(0.1)
    factory.abort(connection)  # nothing runs that it could end
    proxy.delay(0)

    assert run(connection, "select 1, sleep(0.3)") == [(1, 0)]


@pytest.mark.services
def test_a_kill_query_that_may_come_late_costs_the_connection(
    server: Server, connect: Connect, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HURRY", 0.1)
    factory, connection = connect()
    proxy.stall()
    factory.abort(connection)  # nothing runs; the request waits in the proxy
    proxy.resume()

    assert not factory.check(connection)
    server.kill()


@pytest.mark.services
def test_abort_of_a_closed_connection_does_nothing(connect: Connect) -> None:
    factory, connection = connect()
    connection.close()

    factory.abort(connection)


# -- in an executor --


@contextmanager
def pool_of(server: Server, workers: int = WORKERS, max_retries: int = 3, **options: Any) -> Generator[Pool]:
    """An executor that has all its workers, looks at no connection because it was idle, and leaves nothing behind."""
    pool: Pool = ResourceExecutor(
        workers,
        resource=Connections(**server.options | options),
        min_workers=workers,
        check_after_idle=HANGS,
        create_timeout=HANGS,
        max_retries=max_retries,
    )
    with pool:
        pool.wait_ready()
        assert len(server.ids()) == workers
        yield pool

    eventually(lambda: pool.stats().resources_created == pool.stats().resources_destroyed, "all connections to be destroyed")
    eventually(lambda: not server.ids(), "all connections to end")


Pool: TypeAlias = "ResourceExecutor[Connection[Cursor]]"


def insert(connection: Connection[Cursor], number: int, begin: Callable[[], object] = int) -> int:
    begin()
    run(connection, f"insert into numbers values ({number}, '')")
    return number


@pytest.mark.services
def test_an_executor_knows_what_its_tasks_get(server: Server) -> None:
    factory = Connections(cursorclass=DictCursor, host=server.host, port=server.port, user=server.options["user"])
    with ResourceExecutor(1, resource=factory) as pool:
        future = pool.submit(run, "select 1 as one")

        assert_type(pool, "ResourceExecutor[Connection[DictCursor]]")
        assert future.result(DEADLINE) == [{"one": 1}]


@pytest.mark.services
def test_connections_are_killed_all_the_time_and_every_row_is_written_once(server: Server) -> None:
    numbers = range(2_000)
    with (
        pool_of(server, transaction=True, max_retries=MAX_RETRIES) as pool,
        again_and_again(lambda: server.kill(*server.ids()[:1]), 10) as begin,
    ):
        futures = [pool.submit(insert, number, begin) for number in numbers]
        errors = [future.exception(DEADLINE) for future in futures]
    unknown = {number for number, error in zip(numbers, errors, strict=True) if isinstance(error, CommitUnknown)}

    assert not [error for error in errors if error is not None and not isinstance(error, CommitUnknown)]
    assert set(server.numbers()) | unknown == set(numbers)
    assert pool.stats().retried > 0
    assert pool.stats().workers_replaced > 0


@pytest.mark.services
def test_after_a_restart_every_task_succeeds_with_one_retry_at_most(server: Server) -> None:
    with pool_of(server, transaction=True, max_retries=1) as pool:
        assert server.kill() == WORKERS
        eventually(lambda: not server.ids(), "all connections to end")
        results = list(pool.map(insert, range(WORKERS)))

    assert results == list(range(WORKERS)) == server.numbers()


@pytest.mark.services
def test_a_task_whose_connection_breaks_is_not_run_again_if_that_is_not_wanted(server: Server) -> None:
    def insert_and_break(connection: Connection[Cursor]) -> None:
        insert(connection, server.numbers()[-1] + 1)
        server.kill(number_of(connection))
        run(connection, "select 1")

    server.ask(f"insert into {server.name}.numbers values (0, '')")
    with pool_of(server, 1, autocommit=True, retry_broken=False) as pool:
        error = pool.submit(insert_and_break).exception(DEADLINE)
        pool.submit(run, "select 1").result(DEADLINE)  # on another connection

    assert isinstance(error, pymysql.OperationalError)
    assert server.numbers() == [0, 1]
    assert pool.stats().retried == 0
    assert pool.stats().workers_replaced == 1


@pytest.mark.services
def test_the_tasks_own_error_is_its_own_and_costs_nothing(server: Server) -> None:
    def fails(connection: Connection[Cursor]) -> None:
        insert(connection, 1)
        connection.commit()
        attempts.append(connection)
        insert(connection, 1)

    attempts: list[Any] = []
    with pool_of(server, 1) as pool:
        error = pool.submit(fails).exception(DEADLINE)
        pool.submit(run, "select 1").result(DEADLINE)

    assert isinstance(error, pymysql.IntegrityError)
    assert len(attempts) == 1
    assert pool.stats().workers_replaced == 0


@pytest.mark.services
def test_a_transaction_that_a_task_left_open_does_not_meet_the_next_task(server: Server) -> None:
    with pool_of(server, 1) as pool:
        pool.submit(insert, 1).result(DEADLINE)
        rows = pool.submit(run, "select * from numbers").result(DEADLINE)

    assert not rows
    assert not server.numbers()


@pytest.mark.services
def test_kill_ends_a_statement_that_hangs(server: Server) -> None:
    with pool_of(server, 1) as pool:
        future = pool.submit(run, f"select sleep({HANGS})")
        server.waits_for("User sleep")
        pool.kill()

        assert isinstance(cause_of_stop(future), pymysql.OperationalError)


@pytest.mark.services
def test_both_tasks_of_a_deadlock_succeed(server: Server) -> None:
    def move(connection: Connection[Cursor], first: int, second: int) -> None:
        run(connection, f"update numbers set note = concat(note, '{first}') where number = {first}")
        if attempts.pop():
            both.wait(DEADLINE)
        run(connection, f"update numbers set note = concat(note, '{first}') where number = {second}")

    both = threading.Barrier(2)
    attempts = [False, True, True]  # the one that is run again is alone
    server.ask(f"insert into {server.name}.numbers values (1, ''), (2, '')")
    with pool_of(server, 2, transaction=True, retry_conflicts=True) as pool:
        for future in [pool.submit(move, 1, 2), pool.submit(move, 2, 1)]:
            future.result(DEADLINE)

    assert {"".join(sorted(note)) for note in server.ask(f"select note from {server.name}.numbers")} == {"12"}
    assert pool.stats().retried == 1
    assert pool.stats().workers_replaced == 0


@pytest.mark.services
def test_tasks_wait_for_the_end_of_an_outage(server: Server, proxy: Proxy) -> None:
    numbers = range(100)
    with pool_of(server, transaction=True) as pool:
        proxy.refuse()
        futures = [pool.submit(insert, number) for number in numbers]
        threading.Event().wait(OUTAGE)
        during = pool.stats()
        proxy.accept()

        assert [future.result(DEADLINE) for future in futures] == list(numbers)
    assert server.numbers() == list(numbers)
    assert during.completed == 0
    assert during.create_failures > 0


@pytest.mark.services
def test_all_connections_are_reset_at_once_while_tasks_run(server: Server, proxy: Proxy) -> None:
    numbers = range(1_000)
    with (
        pool_of(server, transaction=True, max_retries=MAX_RETRIES) as pool,
        again_and_again(proxy.reset, 50) as begin,
    ):
        futures = [pool.submit(insert, number, begin) for number in numbers]
        errors = [future.exception(DEADLINE) for future in futures]
    unknown = {number for number, error in zip(numbers, errors, strict=True) if isinstance(error, CommitUnknown)}

    assert not [error for error in errors if error is not None and not isinstance(error, CommitUnknown)]
    assert set(server.numbers()) | unknown == set(numbers)


# -- the factory --


@pytest.mark.services
def test_a_factory_that_was_pickled_is_the_same(server: Server, connect: Connect) -> None:
    factory, _ = connect(transaction=True, cursorclass=DictCursor)
    copy: Connections[DictCursor] = pickle.loads(pickle.dumps(factory))
    connection = copy.create()
    perform(copy, connection, INSERT_1)
    copy.destroy(connection)

    assert server.numbers() == [1]


@pytest.mark.services
def test_destroy_leaves_a_connection_alone_that_is_closed(connect: Connect) -> None:
    factory, connection = connect()
    connection.close()

    factory.destroy(connection)


@pytest.mark.services
def test_connections_share_what_tls_needs_unless_it_is_said_what_to_trust(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = connect()
    _, second = connect()

    if "ctx" not in vars(first):
        pytest.skip("this version of PyMySQL speaks TLS only if it is told to")
    assert vars(first)["ctx"] is vars(second)["ctx"]
    with pytest.raises(FileNotFoundError):
        Connections(ssl_ca="/there/is/no/such/file")


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"transaction": 1}, TypeError, "transaction must be a bool, not 1"),
        ({"retry_conflicts": None}, TypeError, "retry_conflicts must be a bool, not None"),
        ({"retry_broken": "no"}, TypeError, "retry_broken must be a bool, not 'no'"),
        ({"connect_timeout": -1}, ValueError, "connect_timeout"),
        ({"hots": "localhost"}, TypeError, "hots"),
        ({"defer_connect": True}, ValueError, "defer_connect"),
    ],
)
def test_arguments_are_checked_at_once(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Connections(**options)


def test_the_cursor_class_is_part_of_the_type() -> None:
    assert_type(Connections(), Connections[Cursor])
    assert_type(Connections(cursorclass=DictCursor), Connections[DictCursor])


def test_without_the_package_the_module_says_what_to_install() -> None:
    result = run_python("import sys; sys.modules['pymysql'] = None; import tasker_executor.resources.pymysql")

    assert "pip install tasker-executor[pymysql]" in result.stderr
