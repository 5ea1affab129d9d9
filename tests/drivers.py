"""Six real drivers, each with a call that hangs and one that takes a moment: what the tests of stopping need of them."""

from __future__ import annotations

import http.client
import os
import socket
import sqlite3
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from support import eventually
from tasker_executor.factory import ResourceFactory

__all__ = ["DRIVERS", "TRANSACTIONAL", "Driver"]

HANGS = 600  # seconds


class Driver(ABC):
    """One driver, and what its server says. Each has a name of its own on the server."""

    #: What a call raises that was aborted.
    errors: tuple[type[BaseException], ...]

    def __init__(self) -> None:
        self.name = f"tasker_{uuid.uuid4().hex[:12]}"

    @abstractmethod
    def factory(self, **options: Any) -> ResourceFactory[Any]:
        """Make a factory of resources that the server can tell from others."""

    @abstractmethod
    def hang(self, resource: Any) -> object:
        """Call what does not return."""

    @abstractmethod
    def wait_until_hanging(self) -> None:
        """Wait until the server knows of that call."""

    @abstractmethod
    def ask(self, resource: Any, number: int) -> int:
        """Return the number that the server answers with, after about a millisecond."""

    @abstractmethod
    def left(self) -> int:
        """Return how many connections the server still has."""

    @abstractmethod
    def close(self) -> None:
        """Give up what the test had on the server."""


class Transactional(Driver):
    """A driver of a database with a table of numbers."""

    @abstractmethod
    def insert(self, resource: Any, number: int) -> None:
        """Write a number."""

    @abstractmethod
    def rows(self) -> list[int]:
        """Return the numbers that are committed."""

    @contextmanager
    @abstractmethod
    def holding_commits(self) -> Generator[None]:
        """Let no COMMIT come to its end."""
        yield

    @abstractmethod
    def wait_until_committing(self) -> None:
        """Wait until a COMMIT hangs."""


class Psycopg(Transactional):
    def __init__(self, _: Path) -> None:
        super().__init__()
        psycopg = pytest.importorskip("psycopg")
        from postgres import Server

        self.errors = (psycopg.errors.QueryCanceled,)
        self.server = Server(_service("TASKER_TEST_POSTGRES"))
        self.server.execute("create table {table} (number int)")

    def factory(self, **options: Any) -> ResourceFactory[Any]:
        from tasker_executor.resources.psycopg import Connections

        options = {"autocommit": True, **options}
        return Connections(self.server.address, **options)

    def hang(self, resource: Any) -> object:
        return resource.execute("select pg_sleep(%s)", (HANGS,))

    def wait_until_hanging(self) -> None:
        self.server.wait_until_hanging()

    def ask(self, resource: Any, number: int) -> int:
        return int(resource.execute("select %s::int, pg_sleep(0.001)", (number,)).fetchone()[0])

    def left(self) -> int:
        return self.server.connections()

    def close(self) -> None:
        self.server.close()
        # The function of `holding_commits` goes with its table.

    def insert(self, resource: Any, number: int) -> None:
        resource.execute(self.server.sql("insert into {table} values (%s)"), (number,))

    def rows(self) -> list[int]:
        return self.server.rows()

    @contextmanager
    def holding_commits(self) -> Generator[None]:
        server = self.server
        server.execute(
            "create function pg_temp.hold() returns trigger language plpgsql as "
            "$$begin perform pg_advisory_xact_lock(hashtext(TG_TABLE_NAME)); return null; end$$"
        )
        server.execute(
            "create constraint trigger hold after insert on {table} deferrable initially deferred "
            "for each row execute function pg_temp.hold()"
        )
        server.ask("select pg_advisory_lock(hashtext(%s))", server.name)
        try:
            yield
        finally:
            server.ask("select pg_advisory_unlock(hashtext(%s))", server.name)
            server.execute("drop trigger hold on {table}")
            server.execute("drop function pg_temp.hold")

    def wait_until_committing(self) -> None:
        self.server.wait_until_hanging()


class PyMySQL(Transactional):
    def __init__(self, _: Path) -> None:
        super().__init__()
        self.pymysql = pymysql = pytest.importorskip("pymysql")
        self.errors = (pymysql.OperationalError,)
        url = urlsplit(_service("TASKER_TEST_MARIADB"))
        self.options: dict[str, Any] = {"host": url.hostname, "port": url.port or 3306, "user": unquote(url.username or "root")}
        self.options["password"] = unquote(url.password or "")
        self.admin = pymysql.connect(autocommit=True, **self.options)
        self.options["database"] = self.name
        self._tell(f"create database {self.name}")
        self._tell(f"create table {self.name}.numbers (number int primary key) engine=innodb")

    def _tell(self, statement: str, *arguments: object) -> list[Any]:
        with self.admin.cursor() as cursor:
            cursor.execute(statement, arguments)
            return [first for first, *_ in cursor.fetchall()]

    def factory(self, **options: Any) -> ResourceFactory[Any]:
        from tasker_executor.resources.pymysql import Connections

        return Connections(**self.options, **options)

    def hang(self, resource: Any) -> object:
        return resource.query(f"select sleep({HANGS})")

    def wait_until_hanging(self) -> None:
        self._wait_for("User sleep")

    def _wait_for(self, state: str) -> None:
        query = "select count(*) from information_schema.processlist where db = %s and state like %s"
        eventually(lambda: self._tell(query, self.name, state) == [1], f"a statement to be in the state {state!r}")

    def ask(self, resource: Any, number: int) -> int:
        with resource.cursor() as cursor:
            cursor.execute("select %s, sleep(0.001)", (number,))
            answer, interrupted = cursor.fetchone()
        assert not interrupted
        return int(answer)

    def left(self) -> int:
        return len(self._tell("select id from information_schema.processlist where db = %s", self.name))

    def close(self) -> None:
        self._tell(f"drop database {self.name}")
        self.admin.close()

    def insert(self, resource: Any, number: int) -> None:
        with resource.cursor() as cursor:
            cursor.execute("insert into numbers values (%s)", (number,))

    def rows(self) -> list[int]:
        return self._tell(f"select number from {self.name}.numbers order by number")

    @contextmanager
    def holding_commits(self) -> Generator[None]:
        self._tell("flush tables with read lock")
        try:
            yield
        finally:
            self._tell("unlock tables")

    def wait_until_committing(self) -> None:
        self._wait_for("%lock%")


class SQLite(Transactional):
    errors = (sqlite3.OperationalError,)

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.path = directory / f"{self.name}.db"
        self.begun = threading.Event()
        self._open: list[sqlite3.Connection] = []
        with self._connected() as connection:
            connection.execute("create table numbers (number int primary key)")

    @contextmanager
    def _connected(self) -> Generator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=0)
        try:
            yield connection
        finally:
            connection.close()

    def factory(self, **options: Any) -> ResourceFactory[Any]:
        from tasker_executor.resources.sqlite3 import Connections

        driver = self

        class Counted(Connections):
            def create(self) -> sqlite3.Connection:
                driver._open.append(connection := super().create())
                return connection

            def destroy(self, resource: sqlite3.Connection) -> None:
                super().destroy(resource)
                driver._open.remove(resource)

        return Counted(self.path, **options)

    def hang(self, resource: Any) -> object:
        resource.create_function("begun", 0, self.begun.set)
        query = "with recursive n(i) as (select coalesce(begun(), 0) union all select i + 1 from n) select count(*) from n"
        return resource.execute(query).fetchone()

    def wait_until_hanging(self) -> None:
        eventually(self.begun.is_set, "the statement to run")
        self.begun.clear()

    def ask(self, resource: Any, number: int) -> int:
        query = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 5000) select ? + 0 * count(*) from n"
        return int(resource.execute(query, (number,)).fetchone()[0])

    def left(self) -> int:
        return len(self._open)

    def close(self) -> None:
        assert not self._open

    def insert(self, resource: Any, number: int) -> None:
        resource.execute("insert into numbers values (?)", (number,))

    def rows(self) -> list[int]:
        with self._connected() as connection:
            return [number for (number,) in connection.execute("select number from numbers order by number")]

    @contextmanager
    def holding_commits(self) -> Generator[None]:
        with self._connected() as reader:
            reader.execute("begin")
            reader.execute("select count(*) from numbers").fetchall()
            yield

    def wait_until_committing(self) -> None:
        def refused() -> bool:
            try:
                self.rows()
            except sqlite3.OperationalError:  # the one that commits waits for the last reader
                return True
            return False

        eventually(refused, "COMMIT to wait for its lock")


class Redis(Driver):
    def __init__(self, _: Path) -> None:
        super().__init__()
        redis = pytest.importorskip("redis")
        self.errors = (redis.ConnectionError,)
        self.url = _service("TASKER_TEST_REDIS")
        self.admin: Any = redis.Redis.from_url(self.url, decode_responses=True)

    def factory(self, **options: Any) -> ResourceFactory[Any]:
        from tasker_executor.resources.redis import Connections

        return Connections(self.url, client_name=self.name, socket_timeout=None, **options)

    def _clients(self) -> list[dict[str, str]]:
        return [client for client in self.admin.client_list() if client["name"] == self.name]

    def hang(self, resource: Any) -> object:
        return resource.blpop(self.name)

    def wait_until_hanging(self) -> None:
        eventually(lambda: any("b" in client["flags"] for client in self._clients()), "a command to block")

    def ask(self, resource: Any, number: int) -> int:
        script = "local n = 0; for i = 1, 20000 do n = n + i end; return ARGV[1]"  # Redis runs one script at a time
        return int(resource.eval(script, 0, number))

    def left(self) -> int:
        return len(self._clients())

    def close(self) -> None:
        self.admin.close()


class Pika(Driver):
    def __init__(self, _: Path) -> None:
        super().__init__()
        self.pika = pika = pytest.importorskip("pika")
        from pika.exceptions import AMQPError

        self.errors = (AMQPError,)
        self.parameters = pika.URLParameters(_service("TASKER_TEST_RABBITMQ"))
        lasting = pika.URLParameters(_service("TASKER_TEST_RABBITMQ"))
        lasting.heartbeat = 0  # none is sent while the test does something else
        self.admin = pika.BlockingConnection(lasting).channel()
        self.admin.queue_declare(self.name)
        self._open: list[Any] = []

    def factory(self, **options: Any) -> ResourceFactory[Any]:
        from tasker_executor.resources.pika import Channels

        driver = self

        class Counted(Channels):
            def create(self) -> Any:
                driver._open.append(channel := super().create())
                return channel

        return Counted(self.parameters, **options)

    def hang(self, resource: Any) -> object:
        return next(resource.consume(self.name))

    def _consumers(self) -> int:
        return int(self.admin.queue_declare(self.name, passive=True).method.consumer_count)

    def wait_until_hanging(self) -> None:
        eventually(lambda: self._consumers() == 1, "a consumer to wait")

    def ask(self, resource: Any, number: int) -> int:
        queue = resource.queue_declare("", exclusive=True).method.queue
        resource.basic_publish("", queue, str(number).encode())
        _, _, body = resource.basic_get(queue, auto_ack=True)
        resource.queue_delete(queue)
        return int(body)

    def left(self) -> int:
        """Return how many sockets are open on our side, or consumers on the other: only a plugin counts connections."""
        transports = [getattr(channel.connection._impl, "_transport", None) for channel in self._open]
        sockets = [getattr(transport, "_sock", None) for transport in transports]
        return self._consumers() + sum(isinstance(sock, socket.socket) and sock.fileno() >= 0 for sock in sockets)

    def close(self) -> None:
        self.admin.queue_delete(self.name)
        self.admin.connection.close()


class HTTP(Driver):
    errors = (OSError, http.client.HTTPException)

    def __init__(self, _: Path) -> None:
        super().__init__()
        driver = self
        self.connections = 0
        self._lock = threading.Lock()
        self._hanging = threading.Semaphore(0)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                driver._count(1)

            def finish(self) -> None:
                super().finish()
                driver._count(-1)

            def do_GET(self) -> None:
                if self.path == "/hang":
                    driver._hanging.release()
                    self.connection.recv(1)  # until the client goes away
                    self.close_connection = True
                    return
                threading.Event().wait(0.001)
                self.send_response(200)
                self.send_header("Content-Length", str(len(self.path) - 1))
                self.end_headers()
                self.wfile.write(self.path[1:].encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass  # the client went away

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=[0.01], name="http server")
        self.thread.start()

    def _count(self, change: int) -> None:
        with self._lock:
            self.connections += change

    def factory(self, **options: Any) -> ResourceFactory[Any]:
        from tasker_executor.resources.http import Connections

        return Connections("127.0.0.1", self.server.server_port, timeout=HANGS, **options)

    def hang(self, resource: Any) -> object:
        return self._get(resource, "hang")

    def _get(self, resource: Any, path: str) -> bytes:
        resource.request("GET", f"/{path}")
        answer: bytes = resource.getresponse().read()
        return answer

    def wait_until_hanging(self) -> None:
        assert self._hanging.acquire(timeout=HANGS)

    def ask(self, resource: Any, number: int) -> int:
        return int(self._get(resource, str(number)))

    def left(self) -> int:
        return self.connections

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def _service(variable: str) -> str:
    address = os.environ.get(variable)
    if not address:
        pytest.skip(f"{variable} is not set")
    return address


TRANSACTIONAL: dict[str, Any] = {"psycopg": Psycopg, "pymysql": PyMySQL, "sqlite3": SQLite}
DRIVERS: dict[str, Any] = {**TRANSACTIONAL, "redis": Redis, "pika": Pika, "http": HTTP}
