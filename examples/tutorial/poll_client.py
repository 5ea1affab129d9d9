"""The client of poll_database.py, and what the executor has to know about it: a factory."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from typing_extensions import override

from tasker_executor import ResourceFactory, Verdict


class SQLError(Exception):
    """The database refuses a statement. The connection is fine."""


class Client:
    """A connection to the database. It raises OSError if the connection is broken."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.answers = self.socket.makefile(encoding="utf-8")

    def execute(self, sql: str, *parameters: object) -> list[list[Any]]:
        self.socket.sendall(json.dumps([sql, parameters]).encode() + b"\n")
        line = self.answers.readline()
        if not line.endswith("\n"):
            raise ConnectionError("the database has hung up")
        answer = json.loads(line)
        if "error" in answer:
            raise SQLError(answer["error"])
        rows: list[list[Any]] = answer["rows"]
        return rows

    def close(self) -> None:
        self.answers.close()
        self.socket.close()


class Clients(ResourceFactory[Client]):
    def __init__(self, port: int) -> None:
        self.port = port

    @override
    def create(self) -> Client:
        return Client(self.port)

    @override
    def destroy(self, resource: Client) -> None:
        resource.close()

    @override
    def judge(self, error: Exception, resource: Client) -> Verdict:
        return Verdict.BROKEN if isinstance(error, OSError) else Verdict.OWN

    @override
    def check(self, resource: Client) -> bool:
        try:
            return resource.execute("select 1") == [[1]]
        except OSError:
            return False

    @override
    @contextmanager
    def around(self, resource: Client) -> Generator[None]:
        resource.execute("begin immediate")
        try:
            yield
        except BaseException:
            with suppress(OSError):  # a connection that is broken by now has nothing to roll back
                resource.execute("rollback")
            raise
        resource.execute("commit")

    @override
    def abort(self, resource: Client) -> None:
        with suppress(OSError):  # broken by now
            resource.socket.shutdown(socket.SHUT_RDWR)
