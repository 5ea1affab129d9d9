"""A real resource, and trouble all the time: connections that break under their tasks."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from support import MakePool
from tasker_executor import current_task

TASKS = 10_000
CONNECTIONS = 8
SHARE_BROKEN = 0.01
SEED = 20261124


def breaks(number: int, attempt: int) -> bool:
    """Does this call break its connection? The same ones in every run, whichever worker gets them."""
    return random.Random(f"{SEED}, {number}, {attempt}").random() < SHARE_BROKEN


def look_up(connection: sqlite3.Connection, number: int) -> int:
    if breaks(number, current_task().attempt):
        connection.close()
    [(square,)] = connection.execute("select square from numbers where number = ?", (number,))
    assert isinstance(square, int)
    return square


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table numbers (number integer primary key, square integer not null)")
        connection.executemany("insert into numbers values (?, ?)", ((number, number * number) for number in range(TASKS)))
    return path


def test_every_result_is_right_though_one_call_in_a_hundred_breaks_its_connection(make_pool: MakePool, database: Path) -> None:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(database)  # check_same_thread: SQLite itself complains if another thread touches it

    def is_healthy(error: BaseException) -> bool:
        return not isinstance(error, sqlite3.ProgrammingError)  # "Cannot operate on a closed database."

    pool = make_pool(CONNECTIONS, on_create=connect, on_destroy=sqlite3.Connection.close, check_health=is_healthy)
    futures = [pool.submit(look_up, number) for number in range(TASKS)]
    results = [future.result() for future in futures]
    pool.shutdown()
    stats = pool.stats()

    assert results == [number * number for number in range(TASKS)]
    assert stats.resources_created == stats.resources_destroyed
    assert stats.retried == broken_in_all() > TASKS * SHARE_BROKEN / 2
    # Without a check, a retry has each resource replaced that may have broken together with its last one.
    assert stats.workers_replaced >= stats.retried
    assert stats.completed == TASKS


def broken_in_all() -> int:
    total = 0
    for number in range(TASKS):
        attempt = 1
        while breaks(number, attempt):
            total += 1
            attempt += 1
    return total
