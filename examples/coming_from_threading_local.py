"""A thread pool with a thread-local, and the same as a ResourceExecutor: docs/howto/coming-from-threading-local.rst.

    python examples/coming_from_threading_local.py

Both go through the same day: the server is away at first, a task leaves a transaction open, a connection is lost.
"""

from __future__ import annotations

import logging
import sqlite3
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tasker_executor import ResourceExecutor

made: list[Connection] = []
outages: list[Exception] = []


class Connection(sqlite3.Connection):
    """Stands for a connection to a server."""

    lost = closed = False

    def __init__(self) -> None:
        if outages:
            raise outages.pop()
        super().__init__(":memory:", check_same_thread=False, isolation_level=None)
        made.append(self)

    def fetch(self, sql: str) -> Any:
        if self.lost:
            raise ConnectionResetError("by peer")
        return self.execute(sql).fetchone()

    def close(self) -> None:
        super().close()
        self.closed = True


# [before]
local = threading.local()


def connect() -> None:
    local.connection = Connection()


def fetch(sql: str) -> Any:
    return local.connection.fetch(sql)


def with_thread_local() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, initializer=connect)


# [after]
def still_good(error: Exception) -> bool:
    return not isinstance(error, ConnectionError)


def roll_back(connection: Connection) -> None:
    if connection.in_transaction:
        connection.rollback()


def with_resources() -> ResourceExecutor[Connection]:
    return ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close, check_health=still_good, on_reset=roll_back)


# [end]


def say(future: Future[Any]) -> str:
    return repr(future.exception() or future.result())


def live_through(submit: Callable[[str], Future[Any]]) -> list[str]:
    """Return what came of a day."""
    submit("begin").exception()  # a task forgets to commit
    story = [f"the next task: {say(submit('begin'))}"]
    made[-1].lost = True
    story += [f"the connection is lost: {say(submit('select 3'))}", f"later: {say(submit('select 4'))}"]
    return story


def main() -> None:
    logging.disable()  # of both
    outages.append(ConnectionRefusedError("the server starts"))
    with with_thread_local() as threads:
        before = [f"the server is away at first: {say(threads.submit(fetch, 'select 1'))}"]
    with with_thread_local() as threads:
        before += live_through(lambda sql: threads.submit(fetch, sql))
    before.append(f"closed: {sum(connection.closed for connection in made)} of {len(made)}")

    for connection in made:
        connection.close()  # or Python 3.13 warns of each
    made.clear()
    outages.append(ConnectionRefusedError("the server starts"))
    with with_resources() as pool:
        after = [f"the server is away at first: {say(pool.submit(Connection.fetch, 'select 1'))}"]
        after += live_through(lambda sql: pool.submit(Connection.fetch, sql))
    after.append(f"closed: {sum(connection.closed for connection in made)} of {len(made)}")

    print("ThreadPoolExecutor, threading.local", *before, sep="\n  ")
    print("ResourceExecutor", *after, sep="\n  ")
    if after[-1] != "closed: 2 of 2" or "Error" in "".join(after):
        sys.exit("FAILED")


if __name__ == "__main__":
    main()
