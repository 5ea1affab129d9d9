"""`tasker_executor.resources.psycopg` against a real PostgreSQL."""

from __future__ import annotations

import os
import pickle
import select
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, assert_type

import pytest

from proxy import Proxy
from support import DEADLINE, MakePool, eventually, run_python
from tasker_executor import ExecutorStats, ResourceExecutor
from tasker_executor.factory import Verdict
from tasker_executor.resources._sockets import has_input
from trouble import cause_of_stop, failure

if not TYPE_CHECKING:
    pytest.importorskip("psycopg")
import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, dict_row

from postgres import Paced, Server
from tasker_executor.resources import _commit
from tasker_executor.resources import psycopg as resources
from tasker_executor.resources.psycopg import CommitUnknown, Connections

HANGS = 600  # seconds
OUTAGE = 1.0  # seconds

Connection = psycopg.Connection[TupleRow]
Row = TypeVar("Row")


@pytest.fixture
def server(postgres: str) -> Iterator[Server]:
    server = Server(postgres)
    yield server

    server.close()


@pytest.fixture
def table(server: Server) -> Server:
    """With a table of unique numbers."""
    server.execute("create table {table} (number integer primary key, note text)")
    return server


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with server.proxy() as proxy:
        yield proxy


class Made:
    """Connections that a factory has made, and which are destroyed when the test is over."""

    def __init__(self) -> None:
        self._all: list[tuple[Connections[Any], psycopg.Connection[Any]]] = []

    def __call__(self, factory: Connections[Any]) -> psycopg.Connection[Any]:
        connection = factory.create()
        self._all.append((factory, connection))
        return connection

    def destroy(self) -> None:
        for factory, connection in self._all:
            factory.destroy(connection)


@pytest.fixture
def make(server: Server) -> Iterator[Made]:
    made = Made()
    yield made

    made.destroy()
    server.wait_until_gone()


def status_of(connection: psycopg.Connection[Any]) -> TransactionStatus:
    return connection.info.transaction_status


# -- arguments --


def test_the_constructor_checks_its_arguments() -> None:
    with pytest.raises(TypeError, match="conninfo must be a str, not 'dict'"):
        Connections({"host": "db"})  # type: ignore[call-overload]  # on purpose
    with pytest.raises(TypeError, match="transaction must be a bool, not 1"):
        Connections(transaction=1)  # type: ignore[call-overload]  # on purpose
    with pytest.raises(TypeError, match="retry_conflicts must be a bool, not 'yes'"):
        Connections(retry_conflicts="yes")  # type: ignore[call-overload]  # on purpose
    with pytest.raises(psycopg.ProgrammingError, match='missing "="'):
        Connections("shop")
    with pytest.raises(psycopg.ProgrammingError, match='invalid connection option "hots"'):
        Connections(hots="db")


def test_without_psycopg_the_module_says_what_to_install() -> None:
    program = """
import sys
sys.modules["psycopg"] = None
try:
    import tasker_executor.resources.psycopg
except ImportError as error:
    print(error)
"""

    result = run_python(program)

    assert result.stderr == ""
    assert "pip install tasker-executor[psycopg]" in result.stdout


def test_types_follow_the_row_factory() -> None:
    rows = Connections("dbname=x")
    dicts = Connections("dbname=x", row_factory=dict_row)
    if TYPE_CHECKING:
        assert_type(rows.create(), psycopg.Connection[TupleRow])
        assert_type(dicts.create(), psycopg.Connection[dict[str, Any]])

    assert isinstance(rows, Connections)
    assert isinstance(dicts, Connections)


def test_the_scope_of_a_task_is_overridden_only_for_transactions() -> None:
    assert "around" not in vars(Connections())
    assert "around" in vars(Connections(transaction=True))


@pytest.mark.services
def test_options_reach_the_connection(server: Server, make: Made) -> None:
    connection = make(Connections(server.address, row_factory=dict_row, autocommit=True, options="-c statement_timeout=77"))

    assert connection.execute("show statement_timeout").fetchone() == {"statement_timeout": "77ms"}
    assert connection.autocommit


@pytest.mark.services
@pytest.mark.parametrize("transaction", [False, True])
def test_a_factory_can_be_pickled(server: Server, make: Made, transaction: bool) -> None:
    factory = Connections(server.address, transaction=transaction, retry_conflicts=True, row_factory=dict_row, autocommit=True)

    twin = pickle.loads(pickle.dumps(factory))
    connection = make(twin)

    assert connection.execute("select 1 as one").fetchone() == {"one": 1}
    assert ("around" in vars(twin)) is transaction
    if transaction:
        with twin.around(connection):
            assert status_of(connection) == TransactionStatus.INTRANS


@pytest.mark.services
@pytest.mark.parametrize(
    "conninfo, options, environment, expected",
    [
        ("", {}, {}, 10),
        ("connect_timeout=3", {}, {}, 3),
        ("", {"connect_timeout": 4}, {}, 4),
        ("", {}, {"PGCONNECT_TIMEOUT": "5"}, 5),
    ],
)
def test_a_connection_that_hangs_is_given_up(
    monkeypatch: pytest.MonkeyPatch, conninfo: str, options: dict[str, Any], environment: dict[str, str], expected: int
) -> None:
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    factory = Connections(conninfo, **options)

    given = conninfo_to_dict(conninfo).get("connect_timeout") or os.environ.get("PGCONNECT_TIMEOUT")

    assert int(str(factory._connect.get("connect_timeout", given))) == expected


# -- what is broken, and what is not --


@pytest.mark.services
def test_a_connection_that_the_server_ended_is_broken(server: Server, make: Made) -> None:
    factory = Connections(server.address, autocommit=True)
    connection = make(factory)
    server.terminate()

    error = failure(lambda: connection.execute("select 1"))

    assert factory.judge(error, connection) is Verdict.BROKEN
    assert factory.judge(ValueError("the task's words for it"), connection) is Verdict.BROKEN


@pytest.mark.services
def test_a_connection_that_the_network_reset_is_broken(server: Server, proxy: Proxy, make: Made) -> None:
    factory = Connections(server.address_of(proxy), autocommit=True)
    connection = make(factory)
    proxy.reset()

    error = failure(lambda: connection.execute("select 1"))

    assert factory.judge(error, connection) is Verdict.BROKEN


@pytest.mark.services
@pytest.mark.parametrize(
    "statement, kind",
    [
        ("select 1/0", errors.DivisionByZero),
        ("selekt", errors.SyntaxError),
        ("set statement_timeout = 10; select pg_sleep(600)", errors.QueryCanceled),
        ("select pg_cancel_backend(pg_backend_pid())", errors.QueryCanceled),
        ("set default_transaction_read_only = on; commit; create table never (n integer)", errors.ReadOnlySqlTransaction),
        ("do $$ begin raise exception using errcode = '57P01'; end $$", errors.AdminShutdown),
        ("do $$ begin raise exception using errcode = '08006'; end $$", errors.ConnectionFailure),
    ],
)
def test_an_error_of_the_server_on_a_live_connection_is_the_tasks_own(
    server: Server, make: Made, statement: str, kind: type[Exception]
) -> None:
    factory = Connections(server.address, retry_conflicts=True)
    connection = make(factory)

    error = failure(lambda: connection.execute(statement.encode()))

    assert type(error) is kind
    assert factory.judge(error, connection) is Verdict.OWN
    factory.reset(connection)
    assert factory.check(connection)


@pytest.mark.services
def test_a_lock_timeout_is_the_tasks_own(table: Server, make: Made) -> None:
    factory = Connections(table.address, retry_conflicts=True)
    holder, waiter = make(factory), make(factory)
    holder.execute(table.sql("lock table {table}"))
    waiter.execute("set lock_timeout = 10")

    error = failure(lambda: waiter.execute(table.sql("lock table {table}")))

    assert isinstance(error, errors.LockNotAvailable)
    assert factory.judge(error, waiter) is Verdict.OWN


@pytest.mark.services
def test_a_connection_that_the_task_closed_is_not_broken_but_cannot_be_reset(server: Server, make: Made) -> None:
    factory = Connections(server.address)
    connection = make(factory)
    connection.close()

    assert factory.judge(ValueError(), connection) is Verdict.OWN
    with pytest.raises(psycopg.OperationalError, match="closed"):
        factory.reset(connection)


@pytest.mark.services
@pytest.mark.parametrize("standby, verdict", [(b"on", Verdict.BROKEN), (b"off", Verdict.OWN), (None, Verdict.OWN)])
def test_a_write_to_a_standby_means_broken(
    server: Server, make: Made, monkeypatch: pytest.MonkeyPatch, standby: bytes | None, verdict: Verdict
) -> None:
    factory = Connections(server.address)
    connection = make(factory)

    class Standby:
        broken = False

        class pgconn:
            transaction_status = TransactionStatus.IDLE

            @staticmethod
            def parameter_status(name: bytes) -> bytes | None:
                assert name == b"in_hot_standby"
                return standby

    assert connection.pgconn.parameter_status(b"in_hot_standby") == b"off"  # that is how the server calls it
    twin: Any = Standby
    assert factory.judge(errors.ReadOnlySqlTransaction("cannot execute INSERT"), twin) is verdict
    assert factory.judge(ValueError(), twin) is Verdict.OWN


# -- what may be run again --


def deadlock(table: Server, one: Connection, other: Connection) -> Exception:
    """Let two connections wait for each other; return the error of the one that the server chose, which is `other`."""
    for connection, timeout in ((one, "10min"), (other, "10ms")):
        connection.execute(f"set deadlock_timeout = '{timeout}'".encode())
        connection.commit()
    one.execute(table.sql("insert into {table} values (1)"))
    other.execute(table.sql("insert into {table} values (2)"))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(one.execute, table.sql("insert into {table} values (2)"))
        table.wait_until_hanging()
        error = failure(lambda: other.execute(table.sql("insert into {table} values (1)")))
        other.rollback()
        waiting.result(DEADLINE)
    return error


def serialization_failure(table: Server, one: Connection, other: Connection) -> Exception:
    table.execute("insert into {table} values (1)")
    for connection in (one, other):
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute(table.sql("select * from {table}"))
    one.execute(table.sql("update {table} set note = 'one'"))
    one.commit()
    return failure(lambda: other.execute(table.sql("update {table} set note = 'other'")))


@pytest.mark.services
@pytest.mark.parametrize(
    "conflict, kind", [(deadlock, errors.DeadlockDetected), (serialization_failure, errors.SerializationFailure)]
)
def test_a_conflict_may_be_run_again_if_asked_for(
    table: Server, make: Made, conflict: Callable[[Server, Connection, Connection], Exception], kind: type[Exception]
) -> None:
    factory = Connections(table.address)
    one, other = make(factory), make(factory)

    error = conflict(table, one, other)

    assert isinstance(error, kind)
    assert factory.judge(error, other) is Verdict.OWN
    assert Connections(table.address, retry_conflicts=True).judge(error, other) is Verdict.AGAIN
    factory.reset(other)
    assert factory.check(other)


# -- what is clean --


@pytest.mark.services
def test_reset_rolls_back_what_is_open(table: Server, make: Made) -> None:
    factory = Connections(table.address)
    connection = make(factory)
    connection.execute(table.sql("insert into {table} values (1)"))

    factory.reset(connection)

    assert status_of(connection) == TransactionStatus.IDLE
    assert table.rows() == []
    failure(lambda: connection.execute("select 1/0"))
    factory.reset(connection)
    assert connection.execute("select 1").fetchone() == (1,)


@pytest.mark.services
def test_reset_of_a_clean_connection_asks_the_server_nothing(server: Server, proxy: Proxy, make: Made) -> None:
    factory = Connections(server.address_of(proxy))
    connection = make(factory)
    proxy.stall()

    factory.reset(connection)

    proxy.resume()


@pytest.mark.services
@pytest.mark.parametrize("autocommit", [False, True])
def test_reset_puts_autocommit_back(server: Server, make: Made, autocommit: bool) -> None:
    factory = Connections(server.address, autocommit=autocommit)
    connection = make(factory)
    connection.autocommit = not autocommit
    connection.execute("select 1")

    factory.reset(connection)

    assert connection.autocommit is autocommit
    assert status_of(connection) == TransactionStatus.IDLE


@pytest.mark.services
def test_a_connection_in_the_middle_of_something_cannot_be_reset(server: Server, make: Made) -> None:
    factory = Connections(server.address)
    connection = make(factory)
    copy = connection.cursor().copy("copy (select generate_series(1, 1000000)) to stdout")
    copy.__enter__()

    with pytest.raises(psycopg.Error):
        factory.reset(connection)


# -- the check --


@pytest.mark.services
@pytest.mark.parametrize("autocommit", [False, True])
def test_check_passes_and_opens_no_transaction(server: Server, make: Made, autocommit: bool) -> None:
    factory = Connections(server.address, autocommit=autocommit)
    connection = make(factory)

    assert factory.check(connection)
    assert status_of(connection) == TransactionStatus.IDLE
    assert connection.execute("select 1").fetchone() == (1,)


@pytest.mark.services
def test_a_connection_that_the_server_ended_fails_the_check(server: Server, make: Made) -> None:
    factory = Connections(server.address)
    connection = make(factory)
    server.terminate()
    server.wait_until_gone()

    assert factory.check(connection) is False
    assert factory.check(connection) is False  # closed by now, and known to be


@pytest.mark.services
def test_check_gives_up_when_no_answer_comes(server: Server, proxy: Proxy, make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "CHECK_TIMEOUT", 0.05)
    factory = Connections(server.address_of(proxy))
    connection = make(factory)
    proxy.stall()

    assert factory.check(connection) is False

    proxy.resume()


# -- what unblocks a call --


def hang(connection: psycopg.Connection[Any]) -> Exception:
    return failure(lambda: connection.execute("select pg_sleep(%s)", (HANGS,)))


def is_active(connection: psycopg.Connection[Any]) -> bool:
    return connection.pgconn.transaction_status == TransactionStatus.ACTIVE


@contextmanager
def a_call_that_hangs(server: Server, connection: psycopg.Connection[Any]) -> Generator[Future[Exception]]:
    """A statement hangs on the connection, in another thread. If the block fails, the server ends it."""
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(hang, connection)
        try:
            server.wait_until_hanging()
            eventually(lambda: is_active(connection), "libpq to know")  # it notes what it has sent afterwards
            yield hanging
        except BaseException:
            server.terminate()
            raise


@pytest.mark.services
def test_abort_cancels_the_statement_and_keeps_the_connection(server: Server, make: Made) -> None:
    factory = Connections(server.address, autocommit=True)
    connection = make(factory)
    with a_call_that_hangs(server, connection) as hanging:
        factory.abort(connection)

        error = hanging.result(DEADLINE)
    assert isinstance(error, errors.QueryCanceled)
    assert factory.judge(error, connection) is Verdict.OWN
    factory.reset(connection)
    assert factory.check(connection)


@pytest.mark.services
def test_abort_shuts_the_socket_down_when_the_network_stalls(
    server: Server, proxy: Proxy, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "CANCEL_TIMEOUT", 0.05)
    monkeypatch.setattr(resources, "RETURN_TIMEOUT", 0.05)
    factory = Connections(server.address_of(proxy), autocommit=True)
    connection = make(factory)
    with a_call_that_hangs(server, connection) as hanging:
        proxy.stall()

        factory.abort(connection)

        error = hanging.result(DEADLINE)
    assert factory.judge(error, connection) is Verdict.BROKEN
    with pytest.raises(psycopg.OperationalError):
        factory.reset(connection)
    server.terminate()  # it has not heard of the end of that connection


@pytest.mark.services
def test_a_cancel_request_that_may_come_late_costs_the_connection(
    server: Server, proxy: Proxy, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "CANCEL_TIMEOUT", 0.05)
    factory = Connections(server.address_of(proxy), autocommit=True)
    connection = make(factory)
    proxy.stall()

    factory.abort(connection)  # the request waits in the proxy

    proxy.resume()
    assert not factory.check(connection)
    assert connection.broken


@pytest.mark.services
def test_a_statement_that_the_server_reads_after_the_first_cancel_request_is_cancelled(
    server: Server, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = Connections(server.address, autocommit=True)
    connection = make(factory)
    cancel, requests = connection.cancel_safe, 0

    def cancel_late(**options: Any) -> None:
        nonlocal requests
        requests += 1
        if requests > 1:  # the first one came too early, and the server has ignored it
            cancel(**options)

    monkeypatch.setattr(connection, "cancel_safe", cancel_late)
    with a_call_that_hangs(server, connection) as hanging:
        factory.abort(connection)

        assert isinstance(hanging.result(DEADLINE), errors.QueryCanceled)
    assert requests == 2
    assert factory.check(connection)


@pytest.mark.services
def test_a_cancel_request_has_done_its_work_when_abort_returns(server: Server, proxy: Proxy, make: Made) -> None:
    factory = Connections(server.address_of(proxy), autocommit=True)
    connection = make(factory)
    proxy.delay(0.1)
    factory.abort(connection)  # nothing runs that it could cancel
    proxy.delay(0)

    assert connection.execute("select 1, pg_sleep(0.3)").fetchone() == (1, "")


@pytest.mark.services
def test_abort_in_a_prepared_transaction_does_no_harm(table: Server, make: Made) -> None:
    factory = Connections(table.address)
    connection = make(factory)
    connection.tpc_begin(connection.xid(1, table.name, "a"))

    factory.abort(connection)

    connection.tpc_rollback()
    assert factory.check(connection)


@pytest.mark.services
@pytest.mark.parametrize("answered", [False, True])
def test_a_connection_is_lost_though_libpq_has_not_looked_at_it(
    server: Server, proxy: Proxy, make: Made, answered: bool
) -> None:
    factory = Connections(server.address_of(proxy))
    connection = make(factory)
    if answered:
        connection.pgconn.send_query(b"select 1")
        eventually(lambda: has_input(connection.fileno()), "the answer")
    else:
        proxy.stall()
        connection.pgconn.send_query(b"select 1")
    proxy.reset()
    eventually(lambda: has_ended(connection), "the end of the connection")
    error = psycopg.OperationalError("connection socket closed")  # what psycopg says if it looks at the socket itself

    assert not connection.broken
    assert factory.judge(error, connection) is Verdict.BROKEN


def has_ended(connection: psycopg.Connection[Any]) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), 0)
    return bool(poll.poll(0))


@pytest.mark.services
def test_abort_of_an_idle_connection_does_no_harm(server: Server, make: Made) -> None:
    factory = Connections(server.address)
    connection = make(factory)

    factory.abort(connection)

    assert factory.check(connection)
    connection.close()
    factory.abort(connection)
    resources._shut_down(connection)


# -- a task is a transaction --


def insert(connection: psycopg.Connection[Any], table: Server, number: int) -> None:
    connection.execute(table.sql("insert into {table} values (%s)"), (number,))


@pytest.mark.services
@pytest.mark.parametrize("autocommit", [False, True])
def test_a_task_that_returns_is_committed_and_one_that_raises_is_not(table: Server, make: Made, autocommit: bool) -> None:
    factory = Connections(table.address, transaction=True, autocommit=autocommit)
    connection = make(factory)
    with factory.around(connection) as given:
        assert given is None  # so the task gets the connection
        insert(connection, table, 1)
        insert(connection, table, 2)

    def fail() -> None:
        with factory.around(connection):
            insert(connection, table, 3)
            raise ValueError("mine")

    assert isinstance(failure(fail), ValueError)
    with factory.around(connection):
        pass

    assert table.rows() == [1, 2]
    assert status_of(connection) == TransactionStatus.IDLE


@pytest.mark.services
def test_a_task_that_overlooks_a_failed_statement_fails(table: Server, make: Made) -> None:
    factory = Connections(table.address, transaction=True)
    connection = make(factory)

    def overlook() -> None:
        with factory.around(connection):
            insert(connection, table, 1)
            failure(lambda: connection.execute("select 1/0"))

    with pytest.raises(errors.InFailedSqlTransaction, match="nothing to commit"):
        overlook()

    assert table.rows() == []
    factory.reset(connection)
    assert factory.check(connection)


@pytest.mark.services
def test_a_task_may_go_back_to_a_savepoint(table: Server, make: Made) -> None:
    factory = Connections(table.address, transaction=True)
    connection = make(factory)

    with factory.around(connection):
        insert(connection, table, 1)
        with pytest.raises(errors.UniqueViolation), connection.transaction():
            insert(connection, table, 1)

    assert table.rows() == [1]


@pytest.mark.services
def test_a_connection_that_breaks_before_commit_is_broken_and_nothing_is_committed(table: Server, make: Made) -> None:
    factory = Connections(table.address, transaction=True)
    connection = make(factory)

    def lose() -> None:
        with factory.around(connection):
            insert(connection, table, 1)
            table.terminate()

    error = failure(lose)

    assert factory.judge(error, connection) is Verdict.BROKEN
    assert table.rows() == []


@pytest.mark.services
def test_a_conflict_that_comes_out_at_commit_may_be_run_again(table: Server, make: Made) -> None:
    factory = Connections(table.address, transaction=True, retry_conflicts=True, autocommit=True)
    connections = [make(factory), make(factory)]
    for connection in connections:
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    one, other = connections

    def conflict() -> None:
        with factory.around(one):
            one.execute(table.sql("select count(*) from {table}"))
            with factory.around(other):
                other.execute(table.sql("select count(*) from {table}"))
                insert(other, table, 2)
            insert(one, table, 1)

    error = failure(conflict)

    assert isinstance(error, errors.SerializationFailure)
    assert factory.judge(error, one) is Verdict.AGAIN


# -- the connection breaks during COMMIT --


@pytest.fixture
def slow(table: Server) -> Iterator[Server]:
    """With a table of which the COMMIT waits, at its very beginning, until nobody holds the advisory lock."""
    table.execute(
        "create function {table}() returns trigger language plpgsql as "
        "$$ begin perform pg_advisory_xact_lock_shared(hashtext(tg_table_name)); return null; end $$"
    )
    table.execute(
        "create constraint trigger slow after insert on {table} deferrable initially deferred "
        "for each row execute function {table}()"
    )
    yield table

    table.execute("drop table {table}")
    table.execute("drop function {table}")


def once_the_number_is_known(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something at the last moment before COMMIT is sent."""
    ask = resources._transaction_number

    def ask_and_act(connection: psycopg.Connection[Any]) -> int | None:
        number = ask(connection)
        act()
        return number

    monkeypatch.setattr(resources, "_transaction_number", ask_and_act)


def run(factory: Connections[Any], connection: psycopg.Connection[Any], table: Server, *numbers: int) -> None:
    """Be a task that inserts these numbers."""
    with factory.around(connection):
        connection.execute("select 1")
        for number in numbers:
            insert(connection, table, number)


@pytest.mark.services
def test_a_commit_whose_answer_is_lost_is_a_commit(slow: Server, proxy: Proxy, make: Made) -> None:
    factory = Connections(slow.address_of(proxy), transaction=True)
    connection = make(factory)
    slow.ask("select count(*) from (select pg_advisory_lock(hashtext(%s))) as held", slow.name)
    with ThreadPoolExecutor(1) as threads:
        task = threads.submit(run, factory, connection, slow, 1)
        slow.wait_until_hanging()
        proxy.stall()
        slow.ask("select pg_advisory_unlock(hashtext(%s))", slow.name)
        eventually(lambda: slow.rows() == [1], "the server to have committed")

        proxy.reset()
        proxy.resume()

        assert task.exception(DEADLINE) is None
    assert connection.broken
    with pytest.raises(psycopg.OperationalError):
        factory.reset(connection)


@pytest.mark.services
def test_a_commit_that_the_server_did_not_finish_is_none(slow: Server, make: Made) -> None:
    factory = Connections(slow.address, transaction=True)
    connection = make(factory)
    slow.ask("select count(*) from (select pg_advisory_lock(hashtext(%s))) as held", slow.name)
    with ThreadPoolExecutor(1) as threads:
        task = threads.submit(run, factory, connection, slow, 1)
        slow.wait_until_hanging()

        slow.terminate()

        error = task.exception(DEADLINE)
    assert isinstance(error, errors.AdminShutdown)
    assert factory.judge(error, connection) is Verdict.BROKEN
    slow.ask("select pg_advisory_unlock(hashtext(%s))", slow.name)
    assert slow.rows() == []


@pytest.mark.services
def test_a_commit_that_never_arrived_is_none(table: Server, proxy: Proxy, make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = Connections(table.address_of(proxy), transaction=True)
    connection = make(factory)
    once_the_number_is_known(monkeypatch, proxy.reset)

    error = failure(lambda: run(factory, connection, table, 1))

    assert factory.judge(error, connection) is Verdict.BROKEN
    assert table.rows() == []


@pytest.mark.services
def test_a_transaction_that_wrote_nothing_may_run_again_without_asking(
    table: Server, proxy: Proxy, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = Connections(table.address_of(proxy), transaction=True)
    connection = make(factory)
    once_the_number_is_known(monkeypatch, proxy.refuse)

    error = failure(lambda: run(factory, connection, table))

    assert factory.judge(error, connection) is Verdict.BROKEN


@pytest.mark.services
def test_a_commit_is_unknown_when_the_server_stays_away(
    table: Server, proxy: Proxy, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_commit, "PATIENCE", 0.05)
    factory = Connections(table.address_of(proxy), transaction=True)
    connection = make(factory)
    once_the_number_is_known(monkeypatch, proxy.refuse)

    error = failure(lambda: run(factory, connection, table, 1))

    assert isinstance(error, CommitUnknown)
    assert isinstance(error.__cause__, psycopg.OperationalError)
    assert factory.judge(error, connection) is Verdict.OWN  # so it is final
    with pytest.raises(psycopg.OperationalError):
        factory.reset(connection)  # and so the connection is replaced


@pytest.mark.services
@pytest.mark.parametrize("option", ["-c server_version_num=90600", "crdb_version"])
def test_a_commit_is_unknown_to_a_server_that_does_not_number_transactions(
    table: Server, proxy: Proxy, make: Made, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    factory = Connections(table.address_of(proxy), transaction=True)
    connection = make(factory)

    class Other:
        """Another server that speaks the protocol of PostgreSQL."""

        class info:
            server_version = 80002 if option != "crdb_version" else 130000

        class pgconn:
            transaction_status = TransactionStatus.IDLE

            @staticmethod
            def parameter_status(name: bytes) -> bytes | None:
                return b"CockroachDB" if name.decode() == option else None

    other: Any = Other

    def ask(connection: psycopg.Connection[Any]) -> int | None:
        proxy.reset()
        return ask_other(other)

    ask_other = resources._transaction_number
    monkeypatch.setattr(resources, "_transaction_number", ask)

    error = failure(lambda: run(factory, connection, table, 1))

    assert isinstance(error, CommitUnknown)


@pytest.mark.services
def test_a_transaction_that_the_server_still_has_open_is_ended_to_be_certain(table: Server, make: Made) -> None:
    connection = make(Connections(table.address))
    insert(connection, table, 1)
    number = resources._transaction_number(connection)
    lost = psycopg.OperationalError("lost")

    def ask(query: str) -> object:
        return table.ask(query)

    with pytest.raises(psycopg.OperationalError, match="lost"):
        _commit.settle_commit(lost, number, ask)

    assert table.connections() == 0


@pytest.mark.services
def test_an_error_at_commit_on_a_live_connection_is_the_tasks_own(table: Server, make: Made) -> None:
    table.execute("alter table {table} add constraint late unique (note) deferrable initially deferred")
    factory = Connections(table.address, transaction=True)
    connection = make(factory)
    asked: list[str] = []
    factory._ask = asked.append  # type: ignore[assignment]  # to see that nobody is asked

    with pytest.raises(errors.UniqueViolation) as caught, factory.around(connection):
        connection.execute(table.sql("insert into {table} values (1, 'same'), (2, 'same')"))

    assert factory.judge(caught.value, connection) is Verdict.OWN
    assert asked == []
    assert table.rows() == []
    factory.reset(connection)


# -- in an executor --


@pytest.fixture
def steady(server: Server) -> Iterator[Server]:
    """The server; when the test is over, no connection of its pool may be left, though the pool was not killed."""
    yield server

    server.wait_until_gone()


class Attempts:
    """Counts how often each task has begun."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.of: Counter[int] = Counter()

    def add(self, number: int) -> None:
        with self._lock:
            self.of[number] += 1


def pool_of(
    make_pool: MakePool, workers: int, factory: Connections[Row], **options: Any
) -> ResourceExecutor[psycopg.Connection[Row]]:
    pool: Any = make_pool(workers, resource=factory, **options)
    return pool  # type: ignore[no-any-return]  # the types of make_pool know no factory


def number_of(connection: Connection, number: int) -> int:
    row = connection.execute("select %s::integer", (number,)).fetchone()
    assert row is not None
    return int(row[0])


def ended(pool: ResourceExecutor[Any]) -> ExecutorStats:
    """Shut the pool down; return its stats, in which each connection that was made is destroyed."""
    pool.shutdown()
    stats = pool.stats()
    assert stats.resources_created == stats.resources_destroyed
    return stats


def test_the_type_of_the_executor_follows_the_factory() -> None:
    with ResourceExecutor(1, resource=Connections("host=nowhere")) as rows:
        if TYPE_CHECKING:
            assert_type(rows, ResourceExecutor[psycopg.Connection[TupleRow]])
    with ResourceExecutor(1, resource=Connections("host=nowhere", row_factory=dict_row)) as dicts:
        if TYPE_CHECKING:
            assert_type(dicts, ResourceExecutor[psycopg.Connection[dict[str, Any]]])

    assert rows.stats().resources_created == dicts.stats().resources_created == 0


@pytest.mark.services
@pytest.mark.parametrize("workers", [1, 8, 32])
@pytest.mark.parametrize("transaction", [False, True])
def test_all_idle_connections_end_at_once_and_every_task_has_its_result(
    steady: Server, make_pool: MakePool, workers: int, transaction: bool
) -> None:
    attempts = Attempts()

    def task(connection: Connection, number: int) -> int:
        attempts.add(number)
        return number_of(connection, number)

    factory = Connections(steady.address, transaction=transaction)
    pool = pool_of(make_pool, workers, factory, min_workers=workers, check_after_idle=DEADLINE)
    pool.wait_ready()
    assert steady.terminate() == workers
    steady.wait_until_gone()

    results = list(pool.map(task, range(2 * workers)))

    assert results == list(range(2 * workers))
    assert set(attempts.of.values()) <= ({1, 2} if not transaction else {1})  # BEGIN failed before a task began
    assert ended(pool).retried >= 1


@pytest.mark.services
def test_all_connections_are_reset_while_tasks_run_and_each_runs_once_more(
    steady: Server, proxy: Proxy, make_pool: MakePool
) -> None:
    under_way = threading.Barrier(9)
    attempts = Attempts()

    def task(connection: Connection, number: int) -> int:
        attempts.add(number)
        if attempts.of[number] == 1:
            under_way.wait(DEADLINE)
            under_way.wait(DEADLINE)  # the reset is over
        return number_of(connection, number)

    pool = pool_of(make_pool, 8, Connections(steady.address_of(proxy)), min_workers=8)
    futures = [pool.submit(task, number) for number in range(8)]
    under_way.wait(DEADLINE)
    assert proxy.reset() == 8
    under_way.wait(DEADLINE)

    assert [future.result(DEADLINE) for future in futures] == list(range(8))
    assert set(attempts.of.values()) == {2}
    assert ended(pool).retried == 8


@pytest.mark.services
def test_a_tasks_own_error_is_final_and_its_row_is_written_once(table: Server, steady: Server, make_pool: MakePool) -> None:
    table.execute("drop table {table}")
    table.execute("create table {table} (number integer)")  # a second row would not be refused

    def task(connection: Connection) -> None:
        insert(connection, table, 1)
        connection.commit()
        connection.execute("select 1/0")

    pool = pool_of(make_pool, 1, Connections(table.address), check_after_idle=0.0)

    assert isinstance(pool.submit(task).exception(DEADLINE), errors.DivisionByZero)
    assert pool.submit(number_of, 7).result(DEADLINE) == 7
    assert table.rows() == [1]
    stats = ended(pool)
    assert (stats.retried, stats.resources_created) == (0, 1)


@pytest.mark.services
def test_a_statement_timeout_costs_no_connection(steady: Server, make_pool: MakePool) -> None:
    pool = pool_of(make_pool, 1, Connections(steady.address, options="-c statement_timeout=10", autocommit=True))
    error = pool.submit(hang).result(DEADLINE)

    assert isinstance(error, errors.QueryCanceled)
    assert pool.submit(number_of, 7).result(DEADLINE) == 7
    assert ended(pool).resources_created == 1


@pytest.mark.services
def test_a_transaction_left_open_does_not_leak_into_the_next_task(table: Server, steady: Server, make_pool: MakePool) -> None:
    pool = pool_of(make_pool, 1, Connections(table.address))
    pool.submit(insert, table, 1).result(DEADLINE)
    pool.submit(lambda connection: connection.execute("set search_path = pg_catalog")).result(DEADLINE)

    path = pool.submit(lambda connection: connection.execute("show search_path").fetchone()).result(DEADLINE)

    assert path == ('"$user", public',)
    assert table.rows() == []
    assert ended(pool).resources_created == 1


@pytest.mark.services
def test_kill_ends_a_call_that_hangs(steady: Server, make_pool: MakePool) -> None:
    pool = pool_of(make_pool, 2, Connections(steady.address, autocommit=True))
    futures = [pool.submit(lambda connection: connection.execute("select pg_sleep(%s)", (HANGS,))) for _ in range(2)]
    steady.wait_until_hanging(2)

    pool.kill()

    assert [type(cause_of_stop(future)) for future in futures] == [errors.QueryCanceled] * 2
    ended(pool)


@pytest.mark.services
def test_kill_ends_a_call_that_hangs_in_the_network(
    server: Server, proxy: Proxy, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "CANCEL_TIMEOUT", 0.05)
    monkeypatch.setattr(resources, "RETURN_TIMEOUT", 0.05)
    pool = pool_of(make_pool, 1, Connections(server.address_of(proxy), autocommit=True))
    future = pool.submit(lambda connection: connection.execute("select pg_sleep(%s)", (HANGS,)))
    server.wait_until_hanging()
    proxy.stall()

    pool.kill()

    assert isinstance(cause_of_stop(future), psycopg.OperationalError)
    ended(pool)


@pytest.mark.services
@pytest.mark.parametrize("asked_for", [False, True])
def test_of_two_tasks_in_a_deadlock_both_succeed_if_asked_for(
    table: Server, steady: Server, make_pool: MakePool, asked_for: bool
) -> None:
    table.execute("insert into {table} values (1, ''), (2, '')")
    both_have_one = threading.Barrier(2)
    attempts = Attempts()

    def task(connection: Connection, mine: int, other: int) -> None:
        attempts.add(mine)
        update = table.sql("update {table} set note = note || %s::text where number = %s")
        connection.execute(update, (mine, mine))
        if attempts.of[mine] == 1:
            both_have_one.wait(DEADLINE)
        connection.execute(update, (mine, other))

    factory = Connections(table.address, transaction=True, retry_conflicts=asked_for, options="-c deadlock_timeout=20ms")
    pool = pool_of(make_pool, 2, factory, max_retries=30)
    failures = [future.exception(DEADLINE) for future in [pool.submit(task, 1, 2), pool.submit(task, 2, 1)]]

    deadlocks = [error for error in failures if isinstance(error, errors.DeadlockDetected)]
    notes = table.admin.execute(table.sql("select note from {table}")).fetchall()
    stats = ended(pool)
    assert len(deadlocks) == (0 if asked_for else 1)
    assert {len(note) for (note,) in notes} == {2 if asked_for else 1}
    assert (stats.retried > 0) is asked_for  # the loser may be quicker with its next attempt than the other is to wake up
    assert stats.resources_created == 2


@pytest.mark.services
def test_tasks_survive_an_outage(steady: Server, proxy: Proxy, make_pool: MakePool) -> None:
    pool = pool_of(make_pool, 4, Connections(steady.address_of(proxy)), min_workers=4, create_timeout=DEADLINE)
    pool.wait_ready()
    proxy.refuse()
    futures = [pool.submit(number_of, number) for number in range(100)]
    eventually(lambda: pool.stats().create_failures > 2, "the pool to notice the outage")
    threading.Event().wait(OUTAGE)
    during = pool.stats()

    proxy.accept()

    assert [future.result(DEADLINE) for future in futures] == list(range(100))
    assert during.completed == 0
    ended(pool)


def write_each_row_once(
    table: Server, make_pool: MakePool, count: int, its_time: Callable[[], bool], begin: Callable[[], object]
) -> None:
    # The key is unique, so a task that was run again although it was committed would fail.
    def task(connection: Connection, number: int) -> int:
        begin()
        insert(connection, table, number)
        return number

    pool = pool_of(make_pool, 8, Connections(table.address, transaction=True), max_retries=30, min_workers=8)
    pool.wait_ready()
    with table.terminating(its_time):
        results = list(pool.map(task, range(count)))

    assert results == list(range(count))
    assert table.rows() == list(range(count))
    assert ended(pool).retried > 0


@pytest.mark.services
def test_while_connections_are_ended_again_and_again_each_row_is_written_once(
    table: Server, steady: Server, make_pool: MakePool
) -> None:
    its_time = Paced(5)

    write_each_row_once(table, make_pool, 300, its_time, its_time.begin)


@pytest.mark.services
@pytest.mark.stress
def test_while_a_connection_is_ended_every_50_ms_each_row_is_written_once(
    table: Server, steady: Server, make_pool: MakePool
) -> None:
    pause = threading.Event()

    write_each_row_once(table, make_pool, 10_000, lambda: not pause.wait(0.05), pause.is_set)
