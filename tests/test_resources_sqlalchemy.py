"""`tasker_executor.resources.sqlalchemy`: SQLite here, and a real PostgreSQL and MariaDB where they are."""

from __future__ import annotations

import os
import pickle
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type

import pytest

from support import DEADLINE, Gate, MakePool, eventually, run_python
from tasker_executor import ExecutorStats, ResourceExecutor
from tasker_executor.factory import Verdict
from trouble import cause_of_stop, failure

if not TYPE_CHECKING:
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("psycopg")
import psycopg
import sqlalchemy
from sqlalchemy import URL, ForeignKey, create_engine, event, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InternalError, InvalidRequestError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from sqlalchemy.pool import NullPool, QueuePool

from postgres import Paced, Server
from proxy import Proxy
from tasker_executor.resources import _commit
from tasker_executor.resources import psycopg as of_psycopg
from tasker_executor.resources import sqlalchemy as of_sqlalchemy
from tasker_executor.resources.sqlalchemy import CommitUnknown, Connections, Sessions

HANGS = 600  # seconds
OUTAGE = 1.0  # seconds
ENDLESS = "with recursive counter(n) as (select 1 union all select n + 1 from counter) select count(*) from counter"


class Base(DeclarativeBase):
    pass


class Number(Base):
    __tablename__ = "numbers"

    number: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None] = mapped_column(unique=True)
    parent_number: Mapped[int | None] = mapped_column(ForeignKey("numbers.number"))
    parent: Mapped[Number | None] = relationship(remote_side=[number])


Factory = Connections | Sessions[Any]


class Made:
    """Resources that factories have made, and which are destroyed when the test is over."""

    def __init__(self) -> None:
        self._all: list[tuple[Any, Any]] = []

    def __call__(self, factory: Factory) -> Any:
        resource = factory.create()
        self._all.append((factory, resource))
        return resource

    def destroy(self) -> None:
        for factory, resource in self._all:
            factory.destroy(resource)


@pytest.fixture
def make() -> Iterator[Made]:
    made = Made()
    yield made

    made.destroy()


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The address of an SQLite database with the tables."""
    url = f"sqlite:///{tmp_path / 'numbers.db'}"
    engine = create_engine(url, poolclass=NullPool)
    Base.metadata.create_all(engine)
    return url


@pytest.fixture
def server(postgres: str, make: Made) -> Iterator[Server]:
    server = Server(postgres)
    yield server

    make.destroy()
    server.wait_until_gone()
    server.close()


@pytest.fixture
def table(server: Server) -> Server:
    """With a table of unique numbers."""
    server.execute("create table {table} (number integer primary key)")
    return server


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with server.proxy() as proxy:
        yield proxy


@pytest.fixture
def mariadb() -> URL:
    """The address of a real MariaDB, from a URL or from ``key=value`` pairs as libpq has them."""
    address = os.environ.get("TASKER_TEST_MARIADB")
    if not address:
        pytest.skip("TASKER_TEST_MARIADB is not set")
    pytest.importorskip("pymysql")
    if "://" in address:
        return sqlalchemy.make_url(address).set(drivername="mysql+pymysql")
    given = dict(pair.split("=", 1) for pair in address.split())
    return URL.create(
        "mysql+pymysql",
        given.get("user", "root"),
        given.get("password"),
        given.get("host", "127.0.0.1"),
        int(given.get("port", 3306)),
        given.get("dbname") or given.get("database") or "test",
    )


def insert(resource: sqlalchemy.Connection | Session, table: str, *numbers: int) -> None:
    for number in numbers:
        resource.execute(text(f'insert into "{table}" (number) values (:number)'), {"number": number})


def rows(url: str) -> list[int]:
    with create_engine(url, poolclass=NullPool).connect() as connection:
        return list(connection.scalars(select(Number.number).order_by(Number.number)))


# -- arguments --


@pytest.mark.parametrize("kind", [Connections, Sessions])
def test_the_constructor_checks_its_arguments(kind: Any) -> None:
    with pytest.raises(TypeError, match="engine must be an Engine, a URL or a str, not 'NoneType'"):
        kind(None)
    with pytest.raises(TypeError, match="transaction must be a bool, not 1"):
        kind("sqlite://", transaction=1)
    with pytest.raises(TypeError, match="retry_conflicts must be a bool, not 'yes'"):
        kind("sqlite://", retry_conflicts="yes")
    with pytest.raises(TypeError, match="poolclass: the executor is the pool"):
        kind("sqlite://", poolclass=QueuePool)
    with pytest.raises(TypeError, match="pool_size"):
        kind("sqlite://", pool_size=3)
    with pytest.raises(TypeError, match="options of an engine that is made already: echo"):
        kind(create_engine("sqlite://", poolclass=NullPool), echo=True)
    with pytest.raises(ValueError, match="the engine has a QueuePool, but the executor is the pool"):
        kind(create_engine("sqlite://", poolclass=QueuePool))
    with pytest.raises(ArgumentError, match="parse"):
        kind("nonsense")
    with pytest.raises(ValueError, match="another isolation_level than 'AUTOCOMMIT'"):
        kind("sqlite://", transaction=True, isolation_level="AUTOCOMMIT")
    with pytest.raises(ValueError, match="another isolation_level than 'AUTOCOMMIT'"):
        kind(create_engine("sqlite://", poolclass=NullPool).execution_options(isolation_level="AUTOCOMMIT"), transaction=True)


def test_the_session_factory_must_be_callable() -> None:
    with pytest.raises(TypeError, match="session_factory must be callable"):
        Sessions("sqlite://", session_factory=7)  # type: ignore[call-overload]  # on purpose


def test_without_sqlalchemy_the_module_says_what_to_install() -> None:
    program = """
import sys
sys.modules["sqlalchemy"] = None
try:
    import tasker_executor.resources.sqlalchemy
except ImportError as error:
    print(error)
"""

    result = run_python(program)

    assert result.stderr == ""
    assert "pip install tasker-executor[sqlalchemy]" in result.stdout


class OwnSession(Session):
    pass


def test_types_follow_the_session_factory(url: str, make: Made) -> None:
    plain = Sessions(url)
    own = Sessions(url, session_factory=OwnSession)
    made = Sessions(url, session_factory=sessionmaker(class_=OwnSession))
    if TYPE_CHECKING:
        assert_type(Connections(url).create(), sqlalchemy.Connection)
        assert_type(plain.create(), Session)
        assert_type(own.create(), OwnSession)
        assert_type(made.create(), OwnSession)

    assert type(make(plain)) is Session
    assert type(make(own)) is OwnSession
    assert isinstance(make(made), OwnSession)


@pytest.mark.parametrize("kind", [Connections, Sessions])
@pytest.mark.parametrize("transaction", [False, True])
def test_a_factory_of_a_url_can_be_pickled(url: str, make: Made, kind: Any, transaction: bool) -> None:
    twin = pickle.loads(pickle.dumps(kind(url, transaction=transaction, echo=False)))
    resource = make(twin)

    with twin.around(resource):
        resource.execute(text("insert into numbers (number) values (1)"))
    twin.reset(resource)

    assert rows(url) == ([1] if transaction else [])


def test_a_factory_of_an_engine_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match="give it the URL instead"):
        pickle.dumps(Connections(create_engine("sqlite://", poolclass=NullPool)))


def test_defaults_give_way_to_what_the_user_says() -> None:
    def arguments(url: str, **options: Any) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        factory = Connections(url, **options)

        @event.listens_for(factory._engine, "do_connect")
        def look(dialect: Any, record: Any, args: Any, kwargs: dict[str, Any]) -> None:
            found.append(kwargs)
            raise InterruptedError

        failure(factory.create)
        return found[0]

    psycopg_url = "postgresql+psycopg://nowhere/x"
    assert arguments(psycopg_url)["connect_timeout"] == 10
    assert arguments(f"{psycopg_url}?connect_timeout=3")["connect_timeout"] == "3"
    assert arguments(psycopg_url, connect_args={"connect_timeout": 4})["connect_timeout"] == 4
    assert arguments("sqlite://")["check_same_thread"] is False


# -- an engine that is given --


@pytest.mark.parametrize("kind", [Connections, Sessions])
def test_a_given_engine_is_used(url: str, make: Made, kind: Any) -> None:
    engine = create_engine(url, poolclass=NullPool)
    opened: list[object] = []

    def opens(connection: object, record: object) -> None:
        opened.append(connection)

    event.listen(engine, "connect", opens)

    make(kind(engine))

    assert len(opened) == 1


def test_a_session_that_cannot_be_made_leaves_no_connection(url: str) -> None:
    made: list[sqlalchemy.Connection] = []

    def refuse(bind: sqlalchemy.Connection) -> Session:
        made.append(bind)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        Sessions(url, session_factory=refuse).create()

    assert made[0].closed


# -- what is broken, and what is not --


def both(make: Made, url: str, **options: Any) -> Iterator[tuple[Any, Any, sqlalchemy.Connection]]:
    """Each kind of factory, with a resource, and the connection of that."""
    connections = Connections(url, **options)
    connection = make(connections)
    yield connections, connection, connection
    sessions = Sessions(url, **options)
    session = make(sessions)
    yield sessions, session, session.bind


@pytest.mark.services
def test_a_connection_that_the_server_ended_is_broken(server: Server, make: Made) -> None:
    for factory, resource, connection in both(make, server.url("postgresql+psycopg")):
        server.terminate()
        server.wait_until_gone()

        error = failure(lambda resource=resource: resource.execute(select(1)))  # type: ignore[misc]  # mypy infers no default

        assert factory.judge(error, resource) is Verdict.BROKEN
        assert factory.judge(ValueError("the task's words for it"), resource) is Verdict.BROKEN
        assert connection.invalidated
        with pytest.raises(InvalidRequestError, match="the connection is closed"):
            factory.reset(resource)


@pytest.mark.services
def test_a_connection_is_broken_though_only_psycopg_has_noticed(server: Server, proxy: Proxy, make: Made) -> None:
    for factory, resource, connection in both(make, server.url("postgresql+psycopg", proxy)):
        driver: Any = connection.connection.dbapi_connection
        driver.pgconn.send_query(b"select 1")
        proxy.reset()
        error = OperationalError("select 1", None, psycopg.OperationalError("connection socket closed"))
        eventually(lambda: factory.judge(error, resource) is Verdict.BROKEN, "the end of the connection")  # noqa: B023  # now

        assert not connection.invalidated
        connection.invalidate()  # for the end of the test


@pytest.mark.services
def test_a_connection_that_the_server_ended_fails_the_check(server: Server, make: Made) -> None:
    for factory, resource, _ in both(make, server.url("postgresql+psycopg")):
        assert factory.check(resource) is True
        server.terminate()
        server.wait_until_gone()

        assert factory.check(resource) is False


@pytest.mark.services
def test_a_connection_that_broke_and_was_closed_by_the_task_is_broken(server: Server, make: Made) -> None:
    factory = Connections(server.url("postgresql+psycopg"))
    connection = make(factory)

    def run() -> None:
        with connection:
            connection.execute(select(1))
            server.terminate()
            connection.execute(select(1))

    error = failure(run)

    assert connection.closed
    assert factory.judge(error, connection) is Verdict.BROKEN


@pytest.mark.services
@pytest.mark.parametrize(
    "statement",
    [
        "select 1/0",
        "set statement_timeout = 10; select pg_sleep(600)",
        "set default_transaction_read_only = on; commit; create table never (n integer)",
        "do $$ begin raise exception using errcode = '57P01'; end $$",
    ],
)
def test_an_error_of_the_server_on_a_live_connection_is_the_tasks_own(server: Server, make: Made, statement: str) -> None:
    for factory, resource, _ in both(make, server.url("postgresql+psycopg"), retry_conflicts=True):
        error = failure(lambda resource=resource: resource.execute(text(statement)))  # type: ignore[misc]  # mypy infers no default

        assert isinstance(error, DBAPIError)
        assert factory.judge(error, resource) is Verdict.OWN
        factory.reset(resource)
        assert factory.check(resource)


@pytest.mark.services
def test_a_write_to_a_standby_means_broken(server: Server, make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = Connections(server.url("postgresql+psycopg"))
    connection = make(factory)
    connection.execute(text("set transaction read only"))
    error = failure(lambda: connection.execute(text("create table never (n integer)")))
    assert factory.judge(error, connection) is Verdict.OWN

    def yes(driver: psycopg.Connection[Any]) -> bool:
        return isinstance(driver, psycopg.Connection)

    monkeypatch.setattr(of_psycopg, "is_standby", yes)

    assert factory.judge(error, connection) is Verdict.BROKEN


def test_an_error_of_the_task_is_its_own(url: str, make: Made) -> None:
    for factory, resource, connection in both(make, url, retry_conflicts=True):
        error = failure(lambda resource=resource: resource.execute(text("selekt")))  # type: ignore[misc]  # mypy infers no default

        assert isinstance(error, OperationalError)
        assert factory.judge(error, resource) is Verdict.OWN
        assert factory.judge(ValueError(), resource) is Verdict.OWN
        factory.reset(resource)
        assert factory.check(resource)
        assert not connection.in_transaction()


def test_a_connection_that_the_task_closed_is_not_broken_but_cannot_be_reset(url: str, make: Made) -> None:
    factory = Connections(url)
    connection = make(factory)
    connection.close()

    error = failure(lambda: connection.execute(select(1)))

    assert factory.judge(error, connection) is Verdict.OWN
    with pytest.raises(InvalidRequestError, match="the connection is closed"):
        factory.reset(connection)
    factory.abort(connection)  # does no harm


# -- what may be run again --


class Coded(Exception):
    """An error of a driver that has its code here or there."""

    def __init__(self, *args: object, **attributes: object) -> None:
        super().__init__(*args)
        vars(self).update(attributes)


@pytest.mark.parametrize(
    "error, verdict",
    [
        (Coded(sqlstate="40001"), Verdict.AGAIN),  # psycopg
        (Coded(pgcode="40P01"), Verdict.AGAIN),  # psycopg2
        (Coded({"C": "40001"}), Verdict.AGAIN),  # pg8000
        (Coded("40001", "[40001] deadlock victim"), Verdict.AGAIN),  # pyodbc
        (Coded(1205, "lock wait time-out"), Verdict.AGAIN),  # PyMySQL, mysqlclient
        (Coded(1213, "deadlock"), Verdict.AGAIN),
        (Coded("database is locked", sqlite_errorcode=sqlite3.SQLITE_BUSY_SNAPSHOT), Verdict.AGAIN),
        (Coded("disk full", sqlite_errorcode=sqlite3.SQLITE_FULL), Verdict.OWN),
        (Coded(1064, "syntax"), Verdict.OWN),
        (Coded(sqlstate="57014"), Verdict.OWN),
        (Coded([1213]), Verdict.OWN),
        (Coded(), Verdict.OWN),
    ],
)
def test_the_code_of_a_conflict_is_found_in_many_drivers(url: str, make: Made, error: Exception, verdict: Verdict) -> None:
    connection = make(Connections(url))
    wrapped = DBAPIError("select 1", None, error)

    assert Connections(url, retry_conflicts=True).judge(wrapped, connection) is verdict
    assert Connections(url).judge(wrapped, connection) is Verdict.OWN


def test_a_locked_database_may_be_tried_again_if_asked_for(url: str, make: Made) -> None:
    factory = Connections(url, retry_conflicts=True, connect_args={"timeout": 0.0})
    holder, waiter = make(factory), make(factory)
    insert(holder, "numbers", 1)

    error = failure(lambda: insert(waiter, "numbers", 2))

    assert factory.judge(error, waiter) is Verdict.AGAIN


@pytest.mark.services
def test_a_serialization_failure_of_postgres_may_be_run_again(table: Server, make: Made) -> None:
    factory = Connections(table.url("postgresql+psycopg"), retry_conflicts=True, isolation_level="REPEATABLE READ")
    one, other = make(factory), make(factory)
    table.execute("insert into {table} values (1)")
    statement = text(f'update "{table.name}" set number = number + 1')
    other.execute(select(1))
    one.execute(statement)
    one.commit()

    error = failure(lambda: other.execute(statement))

    assert factory.judge(error, other) is Verdict.AGAIN


# -- what is clean --


def test_reset_rolls_back_what_is_open(url: str, make: Made) -> None:
    for factory, resource, connection in both(make, url):
        insert(resource, "numbers", 1)

        factory.reset(resource)

        assert not connection.in_transaction()
        assert rows(url) == []


def test_reset_of_a_clean_connection_sends_nothing(url: str, make: Made) -> None:
    for factory, resource, connection in both(make, url):
        sent: list[str] = []

        def rolls_back(connection: object, sent: list[str] = sent) -> None:
            sent.append("rollback")

        event.listen(connection, "rollback", rolls_back)

        factory.reset(resource)

        assert sent == []


def test_a_connection_whose_isolation_level_was_changed_cannot_be_reset(url: str, make: Made) -> None:
    factory = Connections(url)
    connection = make(factory)
    connection.execution_options(stream_results=True)
    factory.reset(connection)
    connection.execution_options(isolation_level="AUTOCOMMIT")

    with pytest.raises(InvalidRequestError, match="isolation level"):
        factory.reset(connection)


# -- what unblocks a call --


def test_abort_interrupts_a_statement_of_sqlite(url: str, make: Made) -> None:
    for factory, resource, connection in both(make, url):
        under_way = threading.Event()
        driver: Any = connection.connection.dbapi_connection
        driver.set_progress_handler(under_way.set, 1000)
        with ThreadPoolExecutor(1) as threads:
            hanging = threads.submit(resource.execute, text(ENDLESS))
            assert under_way.wait(DEADLINE)

            factory.abort(resource)

            error = hanging.exception(DEADLINE)
        assert isinstance(error, OperationalError)
        assert "interrupted" in str(error)
        driver.set_progress_handler(None, 0)
        factory.reset(resource)


@pytest.mark.services
def test_abort_cancels_a_statement_of_postgres(server: Server, make: Made) -> None:
    for factory, resource, _ in both(make, server.url("postgresql+psycopg")):
        with ThreadPoolExecutor(1) as threads:
            hanging = threads.submit(resource.execute, text(f"select pg_sleep({HANGS})"))
            server.wait_until_hanging()

            factory.abort(resource)

            error = hanging.exception(DEADLINE)
        assert isinstance(error, OperationalError)
        assert factory.judge(error, resource) is Verdict.OWN
        factory.reset(resource)
        assert factory.check(resource)


def test_abort_uses_what_the_driver_has(url: str, make: Made) -> None:
    factory = Connections(url)
    connection = make(factory)
    called: list[str] = []

    class Cancels:
        def cancel(self) -> None:
            called.append("cancel")

        def rollback(self) -> None: ...
        def close(self) -> None: ...

    real = connection.connection.dbapi_connection
    connection.connection.dbapi_connection = Cancels()
    factory.abort(connection)
    connection.connection.dbapi_connection = object()
    factory.abort(connection)  # a driver that has nothing: nothing happens
    connection.connection.dbapi_connection = real

    assert called == ["cancel"]


# -- a task is a transaction --


@contextmanager
def task(factory: Any, resource: Any) -> Generator[Any]:
    """The scope of a task, which gives it what it gets."""
    with factory.around(resource) as given:
        yield resource if given is None else given


def test_a_task_that_returns_is_committed_and_one_that_raises_is_not(url: str, make: Made) -> None:
    for number, (factory, resource, connection) in enumerate(both(make, url, transaction=True), 1):

        def fail(factory: Any = factory, resource: Any = resource) -> None:
            with task(factory, resource) as mine:
                insert(mine, "numbers", 77)
                raise ValueError("mine")

        with task(factory, resource) as mine:
            insert(mine, "numbers", number)
        assert isinstance(failure(fail), ValueError)
        with task(factory, resource):
            pass

        assert rows(url) == list(range(1, number + 1))
        assert not connection.in_transaction()


def test_without_transaction_a_connection_has_no_scope(url: str) -> None:
    assert "around" not in vars(Connections(url))


def test_objects_that_a_session_task_returns_can_be_read_elsewhere(url: str, make: Made) -> None:
    factory = Sessions(url, transaction=True)
    session = make(factory)

    with task(factory, session) as mine:
        added = Number(number=1, note="one")
        mine.add(added)

    assert (added.number, added.note) == (1, "one")
    assert added not in session
    with task(factory, session) as mine:
        found = mine.get(Number, 1)
    assert found is not added
    assert found.note == "one"


def test_a_session_task_without_transaction_commits_itself(url: str, make: Made) -> None:
    factory = Sessions(url)
    session = make(factory)
    with task(factory, session) as mine:
        mine.add(Number(number=1))
        mine.commit()
        mine.add(Number(number=2))
    factory.reset(session)

    assert rows(url) == [1]


def test_a_session_that_was_reset_begins_anew(url: str, make: Made) -> None:
    factory = Sessions(url)
    session = make(factory)
    with task(factory, session) as mine:
        insert(mine, "numbers", 1)
    factory.reset(session)

    with task(factory, session) as mine, mine.begin():
        insert(mine, "numbers", 2)

    assert rows(url) == [2]


@pytest.mark.services
def test_a_session_that_was_not_used_has_no_transaction(server: Server, make: Made) -> None:
    factory = Sessions(server.url("postgresql+psycopg"), transaction=True)
    session = make(factory)

    with task(factory, session):
        pass

    assert not session.bind.in_transaction()


def test_an_error_of_the_flush_is_the_tasks_own(url: str, make: Made) -> None:
    factory = Sessions(url, transaction=True, retry_conflicts=True)
    session = make(factory)

    def run() -> None:
        with task(factory, session) as mine:
            mine.add_all([Number(number=1, note="same"), Number(number=2, note="same")])

    error = failure(run)

    assert isinstance(error, IntegrityError)
    assert factory.judge(error, session) is Verdict.OWN
    factory.reset(session)
    assert rows(url) == []


@pytest.mark.services
def test_a_task_that_overlooks_a_failed_statement_of_postgres_fails(table: Server, make: Made) -> None:
    for factory, resource, _ in both(make, table.url("postgresql+psycopg"), transaction=True):

        def overlook(factory: Any = factory, resource: Any = resource) -> None:
            with task(factory, resource) as mine:
                insert(mine, table.name, 1)
                failure(
                    lambda: (
                        mine.connection().execute(text("select 1/0"))
                        if isinstance(mine, Session)
                        else mine.execute(text("select 1/0"))
                    )
                )

        error = failure(overlook)

        assert isinstance(error, InternalError)
        factory.reset(resource)
    assert table.rows() == []


# -- the connection breaks during COMMIT --


def at_commit(connection: sqlalchemy.Connection, act: Callable[[], object]) -> None:
    """Do something at the last moment before COMMIT is sent."""

    def commits(connection: object) -> None:
        act()

    event.listen(connection, "commit", commits)


def run(factory: Any, resource: Any, table: Server, *numbers: int) -> None:
    """Be a task that inserts these numbers."""
    with task(factory, resource) as mine:
        mine.execute(select(1))
        insert(mine, table.name, *numbers)


@pytest.mark.services
def test_a_commit_that_never_arrived_is_none(table: Server, proxy: Proxy, make: Made) -> None:
    for factory, resource, connection in both(make, table.url("postgresql+psycopg", proxy), transaction=True):
        at_commit(connection, proxy.reset)

        error = failure(lambda factory=factory, resource=resource: run(factory, resource, table, 1))  # type: ignore[misc]  # mypy infers no default

        assert isinstance(error, OperationalError)
        assert factory.judge(error, resource) is Verdict.BROKEN
        assert table.rows() == []


@pytest.mark.services
def test_a_commit_whose_answer_is_lost_is_a_commit(
    table: Server, proxy: Proxy, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = both(make, table.url("postgresql+psycopg", proxy), transaction=True)
    for number, (factory, resource, connection) in enumerate(kinds, 1):

        def commit_and_lose(connection: Any) -> None:
            connection.dbapi_connection.commit()
            proxy.reset()
            connection.dbapi_connection.execute("select 1")

        monkeypatch.setattr(connection.dialect, "do_commit", commit_and_lose)

        run(factory, resource, table, number)

        assert table.rows() == list(range(1, number + 1))
        with pytest.raises(InvalidRequestError):
            factory.reset(resource)


@pytest.mark.services
def test_what_a_session_has_not_sent_yet_belongs_to_the_transaction_that_is_asked_for(
    table: Server, proxy: Proxy, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tables(DeclarativeBase):
        pass

    class Row(Tables):
        __tablename__ = table.name
        number: Mapped[int] = mapped_column(primary_key=True)

    factory = Sessions(table.url("postgresql+psycopg", proxy), transaction=True)
    session = make(factory)
    asked: list[str] = []
    ask = factory._ask

    def hear(query: str) -> object:
        asked.append(query)
        return ask(query)

    monkeypatch.setattr(factory, "_ask", hear)
    at_commit(session.bind, proxy.reset)

    def add() -> None:
        with task(factory, session) as mine:
            mine.add(Row(number=1))

    error = failure(add)

    assert factory.judge(error, session) is Verdict.BROKEN
    assert len(asked) >= 1  # that it is known to have written something


@pytest.mark.services
def test_a_transaction_that_wrote_nothing_may_run_again_without_asking(table: Server, proxy: Proxy, make: Made) -> None:
    factory = Connections(table.url("postgresql+psycopg", proxy), transaction=True)
    connection = make(factory)
    at_commit(connection, proxy.refuse)

    error = failure(lambda: run(factory, connection, table))

    assert factory.judge(error, connection) is Verdict.BROKEN


@pytest.mark.services
def test_a_commit_is_unknown_when_the_server_stays_away(
    table: Server, proxy: Proxy, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_commit, "PATIENCE", 0.05)
    for factory, resource, connection in both(make, table.url("postgresql+psycopg", proxy), transaction=True):
        at_commit(connection, proxy.refuse)

        error = failure(lambda factory=factory, resource=resource: run(factory, resource, table, 1))  # type: ignore[misc]  # mypy infers no default

        assert isinstance(error, CommitUnknown)
        assert isinstance(error.__cause__, OperationalError)
        assert factory.judge(error, resource) is Verdict.OWN  # so it is final
        with pytest.raises(InvalidRequestError):
            factory.reset(resource)  # and so the connection is replaced
        proxy.accept()


# -- MariaDB --


@pytest.mark.services
def test_mariadb_ends_connections(mariadb: URL, make: Made) -> None:
    admin = create_engine(mariadb, poolclass=NullPool)
    factory = Connections(mariadb)
    connection = make(factory)
    number = connection.scalar(text("select connection_id()"))
    factory.reset(connection)
    with admin.connect() as other:
        other.execute(text(f"kill {number}"))

    error = failure(lambda: connection.execute(select(1)))

    assert factory.judge(error, connection) is Verdict.BROKEN


@pytest.mark.services
def test_mariadb_cancels_a_statement(mariadb: URL, make: Made) -> None:
    admin = create_engine(mariadb, poolclass=NullPool)
    factory = Connections(mariadb)
    connection = make(factory)
    number = connection.scalar(text("select connection_id()"))
    hanging = text("select count(*) from information_schema.processlist where id = :id and info like 'select sleep%'")
    with ThreadPoolExecutor(1) as threads, admin.connect() as other:
        sleeping = threads.submit(connection.execute, text(f"select sleep({HANGS}) as slept"))
        eventually(lambda: other.scalar(hanging, {"id": number}) == 1, "the statement to hang")

        factory.abort(connection)

        # MariaDB answers 1 for a sleep that was interrupted, or an error, as its version is.
        error = sleeping.exception(DEADLINE)
    assert error is None or factory.judge(error, connection) is Verdict.OWN  # type: ignore[arg-type]  # it is an Exception
    factory.reset(connection)
    assert factory.check(connection)


@pytest.mark.services
def test_the_socket_is_shut_down_when_mariadb_cannot_be_reached(
    mariadb: URL, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_sqlalchemy, "CANCEL_TIMEOUT", 0.05)
    with Proxy(mariadb.host or "", mariadb.port or 3306) as proxy:
        factory = Connections(mariadb.set(host=proxy.host, port=proxy.port))
        connection = make(factory)
        connection.execute(select(1))
        with ThreadPoolExecutor(1) as threads:
            proxy.stall()
            sleeping = threads.submit(connection.execute, text("select 2"))

            factory.abort(connection)

            error = sleeping.exception(DEADLINE)
        assert isinstance(error, Exception)
        assert factory.judge(error, connection) is Verdict.BROKEN


def test_a_kill_query_that_may_come_late_costs_the_connection(
    url: str, make: Made, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_sqlalchemy, "CANCEL_TIMEOUT", 0.05)
    factory = Connections(url)
    connection = make(factory)

    class HasNoSocket:
        """As mysqlclient: it tells nobody its socket."""

        def thread_id(self) -> int:
            return 1

        def rollback(self) -> None: ...
        def close(self) -> None: ...

    def hang() -> None:
        gate.hold()
        raise OperationalError("connect", None, TimeoutError())

    real = connection.connection.dbapi_connection
    connection.connection.dbapi_connection = HasNoSocket()
    monkeypatch.setattr(factory._engine, "connect", hang)
    factory.abort(connection)
    connection.connection.dbapi_connection = real
    monkeypatch.undo()
    gate.release()

    with pytest.raises(InvalidRequestError, match="KILL QUERY"):
        factory.reset(connection)


@pytest.mark.services
def test_a_deadlock_of_mariadb_may_be_run_again(mariadb: URL, make: Made) -> None:
    name = f"tasker_{os.urandom(6).hex()}"
    admin = create_engine(mariadb, poolclass=NullPool)
    with admin.begin() as connection:
        connection.execute(text(f"create table {name} (number integer primary key, note integer) engine = innodb"))
        connection.execute(text(f"insert into {name} values (1, 0), (2, 0)"))
    try:
        factory = Connections(mariadb, retry_conflicts=True)
        one, other = make(factory), make(factory)
        update = text(f"update {name} set note = note + 1 where number = :number")
        one.execute(update, {"number": 1})
        other.execute(update, {"number": 2})
        number = one.scalar(text("select connection_id()"))
        waits = text("select count(*) from information_schema.processlist where id = :id and info like 'update%'")
        errors: list[tuple[Any, Exception]] = []
        with ThreadPoolExecutor(1) as threads, admin.connect() as watcher:
            waiting = threads.submit(one.execute, update, {"number": 2})
            eventually(lambda: watcher.scalar(waits, {"id": number}) == 1, "one to wait for the other")
            try:
                other.execute(update, {"number": 1})
            except OperationalError as refused:
                errors.append((other, refused))
            factory.reset(other)
            if (failed := waiting.exception(DEADLINE)) is not None:  # the server chooses its victim
                assert isinstance(failed, Exception)
                errors.append((one, failed))
        [(loser, error)] = errors

        assert factory.judge(error, loser) is Verdict.AGAIN
        factory.reset(one)
    finally:
        make.destroy()
        with admin.begin() as connection:
            connection.execute(text(f"drop table {name}"))


@pytest.mark.services
def test_a_commit_of_mariadb_whose_connection_breaks_is_unknown(mariadb: URL, make: Made) -> None:
    with Proxy(mariadb.host or "", mariadb.port or 3306) as proxy:
        factory = Connections(mariadb.set(host=proxy.host, port=proxy.port), transaction=True)
        connection = make(factory)
        at_commit(connection, proxy.reset)

        def read() -> None:
            with task(factory, connection) as mine:
                mine.execute(select(1))

        error = failure(read)

        assert isinstance(error, CommitUnknown)
        assert factory.judge(error, connection) is Verdict.OWN


# -- in an executor --

each_kind = pytest.mark.parametrize("kind", [Connections, Sessions])


def ended(pool: ResourceExecutor[Any]) -> ExecutorStats:
    """Shut the pool down; return its stats, in which each resource that was made is destroyed."""
    pool.shutdown()
    stats = pool.stats()
    assert stats.resources_created == stats.resources_destroyed
    return stats


def pool_of(make_pool: MakePool, workers: int, factory: Any, **options: Any) -> ResourceExecutor[Any]:
    return make_pool(workers, resource=factory, **options)


def number_of(resource: sqlalchemy.Connection | Session, number: int) -> int:
    answer = resource.execute(text("select 1 * :number"), {"number": number}).scalar_one()
    return int(answer)


def test_the_type_of_the_executor_follows_the_factory(url: str) -> None:
    with ResourceExecutor(1, resource=Connections(url)) as connections:
        if TYPE_CHECKING:
            assert_type(connections, ResourceExecutor[sqlalchemy.Connection])
        assert connections.submit(number_of, 7).result(DEADLINE) == 7
    with ResourceExecutor(1, resource=Sessions(url)) as sessions:
        if TYPE_CHECKING:
            assert_type(sessions, ResourceExecutor[Session])
        assert sessions.submit(number_of, 7).result(DEADLINE) == 7
    with ResourceExecutor(1, resource=Sessions(url, session_factory=OwnSession)) as own:
        if TYPE_CHECKING:
            assert_type(own, ResourceExecutor[OwnSession])
        assert own.submit(type).result(DEADLINE) is OwnSession


def test_a_result_of_a_session_can_be_read_by_the_caller(url: str, make_pool: MakePool) -> None:
    def add(session: Session, number: int) -> Number:
        added = Number(number=number, note=f"note {number}")
        session.add(added)
        return added

    pool = pool_of(make_pool, 2, Sessions(url, transaction=True, connect_args={"timeout": DEADLINE}))

    assert [added.note for added in pool.map(add, range(20))] == [f"note {number}" for number in range(20)]
    assert pool.submit(lambda session: session.get(Number, 7).note).result(DEADLINE) == "note 7"
    ended(pool)


@each_kind
@pytest.mark.parametrize("transaction", [False, True])
def test_a_transaction_left_open_is_none_of_the_next_task(url: str, make_pool: MakePool, kind: Any, transaction: bool) -> None:
    pool = pool_of(make_pool, 1, kind(url, transaction=transaction))
    pool.submit(insert, "numbers", 1).result(DEADLINE)

    assert pool.submit(number_of, 7).result(DEADLINE) == 7
    assert rows(url) == ([1] if transaction else [])
    assert ended(pool).resources_created == 1


@pytest.mark.services
@each_kind
def test_all_idle_connections_end_at_once_and_every_task_has_its_result(server: Server, make_pool: MakePool, kind: Any) -> None:
    factory = kind(server.url("postgresql+psycopg"))
    pool = pool_of(make_pool, 8, factory, min_workers=8, check_after_idle=DEADLINE)
    pool.wait_ready()
    assert server.terminate() == 8
    server.wait_until_gone()

    assert list(pool.map(number_of, range(16))) == list(range(16))
    stats = ended(pool)
    assert 1 <= stats.retried <= 8


@pytest.mark.services
@each_kind
def test_a_tasks_own_error_is_final_and_its_row_is_written_once(server: Server, make_pool: MakePool, kind: Any) -> None:
    server.execute("create table {table} (number integer)")  # a second row would not be refused

    def task(resource: Any) -> None:
        insert(resource, server.name, 1)
        resource.commit()
        resource.execute(text("select 1/0"))

    pool = pool_of(make_pool, 1, kind(server.url("postgresql+psycopg")))

    assert isinstance(pool.submit(task).exception(DEADLINE), DBAPIError)
    assert pool.submit(number_of, 7).result(DEADLINE) == 7
    assert server.rows() == [1]
    stats = ended(pool)
    assert (stats.retried, stats.resources_created) == (0, 1)


@pytest.mark.services
@each_kind
def test_kill_ends_a_call_that_hangs(server: Server, make_pool: MakePool, kind: Any) -> None:
    pool = pool_of(make_pool, 1, kind(server.url("postgresql+psycopg")))
    future = pool.submit(lambda resource: resource.execute(text(f"select pg_sleep({HANGS})")))
    server.wait_until_hanging()

    pool.kill()

    error = cause_of_stop(future)
    assert isinstance(error, OperationalError)
    assert isinstance(error.orig, psycopg.errors.QueryCanceled)
    ended(pool)


@pytest.mark.services
@each_kind
def test_of_two_tasks_in_a_deadlock_both_succeed_if_asked_for(table: Server, make_pool: MakePool, kind: Any) -> None:
    table.execute("insert into {table} values (10), (20)")
    both_have_one = threading.Barrier(2)
    done: list[int] = []

    def task(resource: Any, mine: int, other: int) -> None:
        lock = text(f'select number from "{table.name}" where number = :number for update')
        resource.execute(lock, {"number": mine})
        if mine not in done:
            done.append(mine)
            both_have_one.wait(DEADLINE)
        resource.execute(lock, {"number": other})
        insert(resource, table.name, mine + 1)

    factory = kind(
        f"{table.url('postgresql+psycopg')}&options=-cdeadlock_timeout%3D20ms", transaction=True, retry_conflicts=True
    )
    pool = pool_of(make_pool, 2, factory, max_retries=30)
    futures = [pool.submit(task, 10, 20), pool.submit(task, 20, 10)]

    assert [future.exception(DEADLINE) for future in futures] == [None, None]
    assert table.rows() == [10, 11, 20, 21]
    stats = ended(pool)
    assert stats.retried > 0
    assert stats.resources_created == 2


@pytest.mark.services
def test_tasks_survive_an_outage(server: Server, proxy: Proxy, make_pool: MakePool) -> None:
    factory = Connections(server.url("postgresql+psycopg", proxy))
    pool = pool_of(make_pool, 4, factory, min_workers=4, create_timeout=DEADLINE)
    pool.wait_ready()
    proxy.refuse()
    futures = [pool.submit(number_of, number) for number in range(100)]
    eventually(lambda: pool.stats().create_failures > 2, "the pool to notice the outage")
    threading.Event().wait(OUTAGE)

    proxy.accept()

    assert [future.result(DEADLINE) for future in futures] == list(range(100))
    ended(pool)


@pytest.mark.services
@each_kind
def test_while_connections_are_ended_all_the_time_each_row_is_written_once(
    table: Server, make_pool: MakePool, kind: Any
) -> None:
    # The key is unique, so a task that was run again although it was committed would fail.
    its_time = Paced(5)

    def task(resource: Any, number: int) -> int:
        its_time.begin()
        insert(resource, table.name, number)
        return number

    factory = kind(table.url("postgresql+psycopg"), transaction=True)
    pool = pool_of(make_pool, 8, factory, max_retries=30, min_workers=8)
    pool.wait_ready()
    with table.terminating(its_time):
        results = list(pool.map(task, range(300)))

    assert results == list(range(300))
    assert table.rows() == list(range(300))
    assert ended(pool).retried > 0


@pytest.mark.services
def test_mariadb_ends_all_idle_connections_and_every_task_has_its_result(mariadb: URL, make_pool: MakePool) -> None:
    with Proxy(mariadb.host or "", mariadb.port or 3306) as proxy:
        factory = Connections(mariadb.set(host=proxy.host, port=proxy.port))
        pool = pool_of(make_pool, 8, factory, min_workers=8, check_after_idle=DEADLINE)
        pool.wait_ready()
        assert proxy.reset() == 8

        assert list(pool.map(number_of, range(16))) == list(range(16))
        assert 1 <= ended(pool).retried <= 8
        eventually(lambda: proxy.connections() == 0, "the proxy to have no connection of the test")
