"""`tasker_executor.resources.sqlite3`."""

from __future__ import annotations

import os
import pickle
import sqlite3
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type

import pytest

from support import DEADLINE, MakePool
from tasker_executor import ExecutorStats, ResourceExecutor
from tasker_executor.factory import Verdict
from tasker_executor.resources.sqlite3 import CommitUnknown, Connections
from trouble import cause_of_stop, failure

ENDLESS = "with recursive counter(n) as (select 1 union all select n + 1 from counter) select count(*) from counter"
#: The ways in which Python handles transactions: its old one, none, and, since Python 3.12, two more.
MODES: list[dict[str, Any]] = [
    {},
    {"isolation_level": None},
    {"isolation_level": "IMMEDIATE"},
    *([{"autocommit": True}, {"autocommit": False}] if sys.version_info >= (3, 12) else []),
]
each_mode = pytest.mark.parametrize("mode", MODES, ids=str)


class Database:
    """A file with a table of unique numbers, and connections that a test has made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: list[tuple[Connections, sqlite3.Connection]] = []
        with self.plain() as connection:
            connection.execute("create table numbers (number integer primary key)")

    def factory(self, **options: Any) -> Connections:
        return Connections(self.path, timeout=0.0, **options)

    def make(self, factory: Connections) -> sqlite3.Connection:
        connection = factory.create()
        self._made.append((factory, connection))
        return connection

    def destroy(self) -> None:
        for factory, connection in self._made:
            factory.destroy(connection)

    def plain(self) -> Plain:
        return Plain(self.path)

    def rows(self) -> list[int]:
        with self.plain() as connection:
            return [number for (number,) in connection.execute("select number from numbers order by number")]


class Plain:
    """A connection without a factory, committed and closed at the end of the block."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=0.0)

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *args: object) -> None:
        self._connection.commit()
        self._connection.close()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "numbers.db")
    yield database

    database.destroy()


def insert(connection: sqlite3.Connection, *numbers: int) -> None:
    connection.executemany("insert into numbers values (?)", [(number,) for number in numbers])


def error_with(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("made up")
    error.sqlite_errorcode = code
    return error


# -- arguments --


def test_the_constructor_checks_its_arguments() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        Connections(None)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="transaction must be a bool, not 1"):
        Connections("x", transaction=1)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="retry_conflicts must be a bool, not 'yes'"):
        Connections("x", retry_conflicts="yes")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match="check_same_thread must be False, not True"):
        Connections("x", check_same_thread=True)
    with pytest.raises(TypeError, match="'tiemout'"):
        Connections("x", tiemout=1.0)


@pytest.mark.parametrize("transaction", [False, True])
def test_a_factory_can_be_pickled(database: Database, transaction: bool) -> None:
    twin = pickle.loads(pickle.dumps(database.factory(transaction=transaction, isolation_level=None)))
    connection = database.make(twin)

    assert connection.isolation_level is None
    assert ("around" in vars(twin)) is transaction
    if transaction:
        with twin.around(connection):
            assert connection.in_transaction


def test_each_connection_to_memory_is_a_database_of_its_own() -> None:
    factory = Connections(":memory:")
    one, other = factory.create(), factory.create()
    one.execute("create table numbers (number)")

    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        other.execute("select * from numbers")
    factory.destroy(one)
    factory.destroy(other)


def test_another_thread_may_destroy_a_connection(database: Database) -> None:
    factory = database.factory()
    connection = database.make(factory)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(factory.destroy, connection).result(DEADLINE)

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("select 1")


# -- what is broken, and what is not --


def test_a_file_that_is_no_database_is_broken(database: Database) -> None:
    factory = database.factory()
    connection = database.make(factory)
    database.path.write_bytes(b"no database" * 1000)

    error = failure(lambda: connection.execute("select * from numbers"))

    assert factory.judge(error, connection) is Verdict.BROKEN
    assert factory.check(connection) is False


@pytest.mark.skipif(os.name == "nt", reason="Windows does not move a file that is open")
def test_a_file_that_was_moved_is_broken(database: Database) -> None:
    factory = database.factory(isolation_level=None)
    connection = database.make(factory)
    assert connection.execute("select * from numbers").fetchall() == []
    database.path.rename(database.path.with_suffix(".old"))

    error = failure(lambda: insert(connection, 1))

    assert factory.judge(error, connection) is Verdict.BROKEN


@pytest.mark.parametrize(
    "code, verdict",
    [
        (sqlite3.SQLITE_IOERR_READ, Verdict.BROKEN),
        (sqlite3.SQLITE_READONLY, Verdict.OWN),
        (sqlite3.SQLITE_FULL, Verdict.OWN),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Verdict.AGAIN),
        (sqlite3.SQLITE_LOCKED_SHAREDCACHE, Verdict.AGAIN),
    ],
)
def test_the_code_of_the_error_decides(database: Database, code: int, verdict: Verdict) -> None:
    factory = database.factory(retry_conflicts=True)

    assert factory.judge(error_with(code), database.make(factory)) is verdict


@pytest.mark.parametrize("statement", ["selekt", "select * from nothing", "insert into numbers values (1), (1)"])
def test_an_error_of_the_task_is_its_own(database: Database, statement: str) -> None:
    factory = database.factory(retry_conflicts=True)
    connection = database.make(factory)

    error = failure(lambda: connection.execute(statement))

    assert factory.judge(error, connection) is Verdict.OWN
    assert factory.judge(ValueError(), connection) is Verdict.OWN
    factory.reset(connection)
    assert factory.check(connection)


def test_a_connection_that_the_task_closed_is_not_broken_but_cannot_be_reset(database: Database) -> None:
    factory = database.factory()
    connection = database.make(factory)
    connection.close()

    error = failure(lambda: connection.execute("select 1"))

    assert factory.judge(error, connection) is Verdict.OWN
    assert factory.check(connection) is False
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        factory.reset(connection)


# -- what may be run again --


def test_a_locked_database_may_be_tried_again_if_asked_for(database: Database) -> None:
    factory = database.factory(isolation_level=None)
    holder, waiter = database.make(factory), database.make(factory)
    holder.execute("begin immediate")

    error = failure(lambda: insert(waiter, 1))

    assert factory.judge(error, waiter) is Verdict.OWN
    assert database.factory(retry_conflicts=True).judge(error, waiter) is Verdict.AGAIN


# -- what is clean --


@each_mode
def test_reset_rolls_back_what_is_open(database: Database, mode: dict[str, Any]) -> None:
    factory = database.factory(**mode)
    connection = database.make(factory)
    if not connection.in_transaction:
        connection.execute("begin")
    insert(connection, 1)

    factory.reset(connection)
    factory.reset(connection)

    assert database.rows() == []
    with database.plain() as other:
        insert(other, 2)  # nothing is locked


class Autocommitting(sqlite3.Connection):
    """In every version of Python, says what one with ``autocommit=True`` says."""

    autocommit: Any = True

    def rollback(self) -> None:
        """Do what that method does in autocommit mode."""


def test_reset_rolls_back_where_the_method_does_nothing(database: Database) -> None:
    factory = database.factory(factory=Autocommitting)
    connection = database.make(factory)
    insert(connection, 1)

    factory.reset(connection)

    assert not connection.in_transaction
    assert database.rows() == []


# -- the check --


@each_mode
def test_check_passes_and_holds_no_lock(database: Database, mode: dict[str, Any]) -> None:
    factory = database.factory(**mode)
    connection = database.make(factory)

    assert factory.check(connection)
    with database.plain() as other:
        other.execute("begin exclusive")


def test_a_database_that_is_locked_passes_the_check(database: Database) -> None:
    factory = database.factory()
    connection = database.make(factory)
    with database.plain() as other:
        other.execute("begin exclusive")

        assert factory.check(connection)


# -- what unblocks a call --


def test_abort_interrupts_the_statement(database: Database) -> None:
    factory = database.factory()
    connection = database.make(factory)
    under_way = threading.Event()
    connection.set_progress_handler(under_way.set, 1000)
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(lambda: connection.execute(ENDLESS).fetchone())
        assert under_way.wait(DEADLINE)

        factory.abort(connection)

        error = hanging.exception(DEADLINE)
    assert isinstance(error, sqlite3.OperationalError)
    assert str(error) == "interrupted"
    assert factory.judge(error, connection) is Verdict.OWN
    connection.set_progress_handler(None, 0)
    factory.reset(connection)
    assert factory.check(connection)


@pytest.mark.parametrize("transaction", [False, True])
def test_an_interrupt_that_outlives_its_task_costs_the_connection(database: Database, transaction: bool) -> None:
    """SQLite forgets an interrupt when no statement is open: a task may leave a cursor, in a traceback for example."""
    factory = Connections(database.path)
    connection = factory.create()
    if transaction:
        insert(connection, 1)
    cursor = connection.execute("with recursive n(i) as (select 1 union all select i + 1 from n) select i from n")
    assert cursor.fetchone() == (1,)

    factory.abort(connection)

    if transaction:
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            factory.reset(connection)
    else:
        factory.reset(connection)
        assert not factory.check(connection)
    cursor.close()
    factory.destroy(connection)


def test_an_interrupt_between_two_statements_is_forgotten(database: Database) -> None:
    factory = Connections(database.path)
    connection = factory.create()

    factory.abort(connection)

    assert connection.execute("select 1").fetchone() == (1,)
    factory.destroy(connection)


def test_abort_of_a_closed_connection_does_no_harm(database: Database) -> None:
    factory = database.factory()
    connection = database.make(factory)
    connection.close()

    factory.abort(connection)


# -- a task is a transaction --


@each_mode
def test_a_task_that_returns_is_committed_and_one_that_raises_is_not(database: Database, mode: dict[str, Any]) -> None:
    factory = database.factory(transaction=True, **mode)
    connection = database.make(factory)

    def fail() -> None:
        with factory.around(connection):
            insert(connection, 3)
            raise ValueError("mine")

    with factory.around(connection) as given:
        assert given is None  # so the task gets the connection
        insert(connection, 1)
        insert(connection, 2)
    assert isinstance(failure(fail), ValueError)
    with factory.around(connection):
        pass

    assert database.rows() == [1, 2]
    factory.reset(connection)
    with database.plain() as other:
        insert(other, 4)  # nothing is locked


def test_a_transaction_begins_as_the_isolation_level_says(database: Database) -> None:
    factory = database.factory(transaction=True, isolation_level="IMMEDIATE")
    one, other = database.make(factory), database.make(factory)

    def collide() -> None:
        with factory.around(other):
            raise AssertionError("never comes here")

    with factory.around(one):
        error = failure(collide)

    assert isinstance(error, sqlite3.OperationalError)
    assert error.sqlite_errorcode == sqlite3.SQLITE_BUSY
    factory.reset(other)


def test_a_task_may_end_its_transaction_itself(database: Database) -> None:
    factory = database.factory(transaction=True)
    connection = database.make(factory)

    with factory.around(connection):
        insert(connection, 1)
        connection.commit()

    assert database.rows() == [1]


def test_a_task_that_rolls_back_itself_may_raise(database: Database) -> None:
    factory = database.factory(transaction=True)
    connection = database.make(factory)

    def fail() -> None:
        with factory.around(connection):
            insert(connection, 1)
            connection.rollback()
            raise ValueError("mine")

    assert isinstance(failure(fail), ValueError)


def test_a_commit_that_finds_the_database_locked_is_rolled_back(database: Database) -> None:
    factory = database.factory(transaction=True, retry_conflicts=True)
    connection = database.make(factory)

    def collide() -> None:
        with database.plain() as reader, factory.around(connection):
            insert(connection, 1)
            reader.execute("begin")
            reader.execute("select * from numbers").fetchall()  # a reader, so the writer cannot commit

    error = failure(collide)

    assert factory.judge(error, connection) is Verdict.AGAIN
    assert not connection.in_transaction
    assert database.rows() == []


class Fails:
    """A connection that is in a transaction, and whose COMMIT fails like this; its ROLLBACK fails, too."""

    in_transaction = True

    def __init__(self, code: int) -> None:
        self._code = code

    def commit(self) -> None:
        raise error_with(self._code)

    rollback = commit


def test_a_commit_that_meets_a_broken_file_is_unknown(database: Database) -> None:
    factory = database.factory(transaction=True)
    connection: Any = Fails(sqlite3.SQLITE_IOERR_FSYNC)

    def run() -> None:
        with factory.around(connection):
            pass

    error = failure(run)

    assert isinstance(error, CommitUnknown)
    assert isinstance(error.__cause__, sqlite3.OperationalError)
    assert factory.judge(error, connection) is Verdict.OWN  # so it is final


def test_an_error_at_commit_comes_before_one_of_the_rollback(database: Database) -> None:
    factory = database.factory(transaction=True)
    connection: Any = Fails(sqlite3.SQLITE_FULL)

    def run() -> None:
        with factory.around(connection):
            pass

    error = failure(run)

    assert isinstance(error, sqlite3.OperationalError)
    assert error.__context__ is None


# -- in an executor --


def pool_of(make_pool: MakePool, workers: int, factory: Connections, **options: Any) -> ResourceExecutor[sqlite3.Connection]:
    pool: Any = make_pool(workers, resource=factory, **options)
    return pool  # type: ignore[no-any-return]  # the types of make_pool know no factory


def ended(pool: ResourceExecutor[Any]) -> ExecutorStats:
    """Shut the pool down; return its stats, in which each connection that was made is destroyed."""
    pool.shutdown()
    stats = pool.stats()
    assert stats.resources_created == stats.resources_destroyed
    return stats


def test_the_type_of_the_executor_follows_the_factory(database: Database) -> None:
    with ResourceExecutor(1, resource=database.factory()) as pool:
        if TYPE_CHECKING:
            assert_type(pool, ResourceExecutor[sqlite3.Connection])
        future = pool.submit(lambda connection: connection.execute("select 1").fetchone())

        assert future.result(DEADLINE) == (1,)


def test_a_tasks_own_error_is_final_and_its_row_is_written_once(database: Database, make_pool: MakePool) -> None:
    with database.plain() as connection:
        connection.execute("create table log (number)")  # a second row would not be refused

    def task(connection: sqlite3.Connection) -> None:
        connection.execute("insert into log values (1)")
        connection.commit()
        connection.execute("selekt")

    pool = pool_of(make_pool, 1, database.factory())

    assert isinstance(pool.submit(task).exception(DEADLINE), sqlite3.OperationalError)
    with database.plain() as connection:
        assert connection.execute("select count(*) from log").fetchone() == (1,)
    stats = ended(pool)
    assert (stats.retried, stats.resources_created) == (0, 1)


def test_a_transaction_left_open_does_not_leak_into_the_next_task(database: Database, make_pool: MakePool) -> None:
    pool = pool_of(make_pool, 1, database.factory())
    pool.submit(insert, 1).result(DEADLINE)

    assert pool.submit(lambda connection: connection.in_transaction).result(DEADLINE) is False
    assert database.rows() == []
    assert ended(pool).resources_created == 1


def test_kill_interrupts_a_statement(database: Database, make_pool: MakePool) -> None:
    under_way = threading.Event()

    def task(connection: sqlite3.Connection) -> None:
        connection.set_progress_handler(under_way.set, 1000)
        connection.execute(ENDLESS).fetchone()

    pool = pool_of(make_pool, 1, database.factory())
    future = pool.submit(task)
    assert under_way.wait(DEADLINE)

    pool.kill()

    assert str(cause_of_stop(future)) == "interrupted"
    ended(pool)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not move a file that is open")
def test_a_database_that_is_replaced_by_another_is_opened_anew(database: Database, make_pool: MakePool) -> None:
    pool = pool_of(make_pool, 1, database.factory(isolation_level=None))
    pool.submit(insert, 1).result(DEADLINE)
    database.path.rename(database.path.with_suffix(".old"))
    other = Database(database.path)

    pool.submit(insert, 2).result(DEADLINE)

    assert other.rows() == [2]
    stats = ended(pool)
    assert (stats.retried, stats.resources_created) == (1, 2)


def test_tasks_that_collide_are_run_again_and_each_row_is_written_once(database: Database, make_pool: MakePool) -> None:
    # The key is unique, so a task that was run again although it was committed would fail. Each reads before it
    # writes, so of two that have read, one must begin again.
    def task(connection: sqlite3.Connection, number: int) -> int:
        connection.execute("select max(number) from numbers").fetchone()
        insert(connection, number)
        return number

    with database.plain() as connection:
        connection.execute("pragma journal_mode = wal")
    factory = database.factory(transaction=True, retry_conflicts=True, isolation_level=None)
    pool = pool_of(make_pool, 4, factory, max_retries=100_000)  # there is no pause before an attempt
    numbers = list(range(200))

    assert list(pool.map(task, numbers)) == numbers
    assert database.rows() == numbers
    assert ended(pool).resources_created == 4
