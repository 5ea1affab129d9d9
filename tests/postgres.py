"""A real PostgreSQL under the hands of a test: it ends connections, and says what hangs and what is left."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
from psycopg import conninfo, sql

from proxy import Proxy
from support import DEADLINE, eventually

__all__ = ["Paced", "Server"]


class Paced:
    """Says when it is time: whenever tasks have begun so many times. So a busy machine has no more trouble for each task."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._begun = threading.Semaphore(0)

    def begin(self) -> None:
        """Say that a task begins."""
        self._begun.release()

    def __call__(self) -> bool:
        return all(self._begun.acquire(timeout=0.1) for _ in range(self._count))


class Server:
    """An administrator's connection to the server, and the address of the connections under test.

    `name` is the ``application_name`` of those, and that of the table that a test makes.
    """

    def __init__(self, address: str) -> None:
        self.name = f"tasker_{uuid.uuid4().hex[:12]}"
        self._parameters = {name: str(value) for name, value in conninfo.conninfo_to_dict(address).items()}
        self.address = conninfo.make_conninfo(address, application_name=self.name)
        self.admin: psycopg.Connection[tuple[Any, ...]] = psycopg.connect(address, autocommit=True)
        self.table = sql.Identifier(self.name)

    def close(self) -> None:
        self.terminate()  # after a failure, something may hang there
        self.execute("drop table if exists {table}")
        self.admin.close()

    def proxy(self) -> Proxy:
        """Put a proxy in front of the server."""
        return Proxy(self._parameters["host"], int(self._parameters.get("port", 5432)))

    def address_of(self, proxy: Proxy, **parameters: Any) -> str:
        return conninfo.make_conninfo(self.address, host=proxy.host, port=proxy.port, **parameters)

    def url(self, scheme: str, proxy: Proxy | None = None) -> str:
        """The address as SQLAlchemy takes it."""
        known = self._parameters
        user = ":".join([known["user"], *([known["password"]] if "password" in known else [])])
        host, port = (known["host"], known.get("port", 5432)) if proxy is None else (proxy.host, proxy.port)
        return f"{scheme}://{user}@{host}:{port}/{known['dbname']}?application_name={self.name}"

    def ask(self, query: str, *arguments: object) -> Any:
        """Return the first column of the only row."""
        row = self.admin.execute(query.encode(), arguments).fetchone()
        assert row is not None
        return row[0]

    def execute(self, statement: LiteralString) -> None:
        self.admin.execute(self.sql(statement))

    def sql(self, statement: LiteralString) -> sql.Composed:
        """A statement about the table of the test, {table}."""
        return sql.SQL(statement).format(table=self.table)

    def rows(self) -> list[Any]:
        """The numbers in the table of the test, in order."""
        return [number for (number,) in self.admin.execute(self.sql("select number from {table} order by number"))]

    def connections(self) -> int:
        return int(self.ask("select count(*) from pg_stat_activity where application_name = %s", self.name))

    def terminate(self, most: int = 1000) -> int:
        """End at most so many of the connections under test, chosen at random; return how many it were."""
        ended = self.ask(
            "select count(pg_terminate_backend(pid)) from (select pid from pg_stat_activity "
            "where application_name = %s order by random() limit %s) as victims",
            self.name,
            most,
        )
        return int(ended)

    @contextmanager
    def terminating(self, its_time: Callable[[], bool]) -> Generator[None]:
        """End one of the connections under test, chosen at random, whenever it is time, during the block."""
        over = threading.Event()

        def go_on() -> None:
            while not over.is_set():
                if its_time():
                    self.terminate(1)

        thread = threading.Thread(target=go_on, name="trouble")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(DEADLINE)

    def wait_until_hanging(self, count: int = 1) -> None:
        """Wait until so many connections under test sleep or wait for a lock on the server."""
        query = (
            "select count(*) from pg_stat_activity where application_name = %s and state = 'active' "
            "and (wait_event = 'PgSleep' or wait_event_type = 'Lock')"
        )
        eventually(lambda: self.ask(query, self.name) == count, f"{count} statements to hang")

    def wait_until_gone(self) -> None:
        eventually(lambda: self.connections() == 0, "the server to have no connection of the test")
