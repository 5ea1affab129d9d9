"""Connections and sessions of SQLAlchemy: ``pip install tasker-executor[sqlalchemy]``, and a driver.

One argument of the executor is all::

    from tasker_executor.resources.sqlalchemy import Sessions

    pool = ResourceExecutor(8, resource=Sessions("postgresql+psycopg://db/shop", transaction=True))
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, overload

from typing_extensions import TypeVar, override

from .._checks import check_bool, check_callable
from .._engine.threads import make_thread
from ..factory import ResourceFactory, Verdict
from ._commit import NOTHING_WRITTEN, TRANSACTION_NUMBER, CommitUnknown, settle_commit
from ._sockets import shut_down

try:
    from sqlalchemy import Connection, Engine, NullPool, create_engine, make_url, select
    from sqlalchemy.engine import URL
    from sqlalchemy.exc import DBAPIError, InvalidRequestError
    from sqlalchemy.orm import Session
except ModuleNotFoundError as _error:
    raise ImportError(
        "tasker_executor.resources.sqlalchemy needs SQLAlchemy: pip install tasker-executor[sqlalchemy]"
    ) from _error

__all__ = ["CommitUnknown", "Connections", "Sessions"]

R = TypeVar("R", bound=Connection | Session)
S = TypeVar("S", bound=Session, default=Session)

#: PostgreSQL's and ODBC's serialization failure and deadlock, and MySQL's lock wait time-out (a deadlock of SQL
#: Server has the same number) and deadlock.
CONFLICTS = ("40001", "40P01", 1205, 1213)
#: SQLITE_BUSY and SQLITE_LOCKED.
SQLITE_CONFLICTS = {5, 6}

CANCEL_TIMEOUT = 2.0  # seconds
_IN_DOUBT = "tasker_executor: in doubt"

#: What the connections of a driver are made with, unless the URL or ``connect_args`` say something else.
DEFAULTS: dict[str, dict[str, Any]] = {
    "psycopg": {"connect_timeout": 10},  # seconds; its own default is two minutes
    "psycopg2": {"connect_timeout": 10},
    "pysqlite": {"check_same_thread": False},  # a resource of the reserve meets many threads
}


class _Factory(ResourceFactory[R]):
    """What a factory of connections and one of sessions have in common."""

    def __init__(self, engine: str | URL | Engine, transaction: bool, retry_conflicts: bool, options: dict[str, Any]) -> None:
        check_bool("transaction", transaction)
        check_bool("retry_conflicts", retry_conflicts)
        self._transaction = transaction
        self._retry_conflicts = retry_conflicts
        if isinstance(engine, Engine):
            if options:
                raise TypeError(f"options of an engine that is made already: {', '.join(options)}")
            if not isinstance(engine.pool, NullPool):
                raise ValueError(
                    f"the engine has a {type(engine.pool).__name__}, but the executor is the pool: make the engine with "
                    "poolclass=NullPool, or give its URL"
                )
            self._url = None
            self._engine = engine
            level = engine.get_execution_options().get("isolation_level")
        else:
            if not isinstance(engine, (str, URL)):
                raise TypeError(f"engine must be an Engine, a URL or a str, not {type(engine).__name__!r}")
            if refused := options.keys() & {"pool", "poolclass"}:
                raise TypeError(f"{refused.pop()}: the executor is the pool, so the engine has none")
            self._url = make_url(engine)
            self._options = options
            self._engine = self._make_engine()
            level = options.get("isolation_level")
        if transaction and level == "AUTOCOMMIT":
            raise ValueError("transaction=True needs another isolation_level than 'AUTOCOMMIT'")

    def _make_engine(self) -> Engine:
        assert self._url is not None
        given = self._options.get("connect_args", {})
        defaults = DEFAULTS.get(self._url.get_driver_name(), {})
        arguments = {name: value for name, value in defaults.items() if name not in self._url.query} | given
        return create_engine(self._url, poolclass=NullPool, **{**self._options, "connect_args": arguments})

    def __getstate__(self) -> dict[str, Any]:
        if self._url is None:
            raise TypeError(f"{type(self).__name__} of an Engine cannot be pickled; give it the URL instead")
        return {name: value for name, value in vars(self).items() if name != "_engine"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._engine = self._make_engine()

    def _flush(self, resource: R) -> None:
        """Send what the resource holds back, so that nothing but the COMMIT is left."""

    @override
    def destroy(self, resource: R) -> None:
        """Close the connection."""
        _connection_of(resource).close()

    @override
    def judge(self, error: Exception, resource: R) -> Verdict:
        """Look at the connection, which SQLAlchemy has marked if the driver calls it lost."""
        connection = _connection_of(resource)
        if isinstance(error, CommitUnknown):
            return Verdict.OWN
        if connection.invalidated:
            return Verdict.BROKEN
        if not isinstance(error, DBAPIError):
            return Verdict.OWN
        if _is_lost(connection):
            return Verdict.BROKEN
        if error.connection_invalidated if connection.closed else _is_standby(error, connection):
            return Verdict.BROKEN
        if self._retry_conflicts and _is_conflict(error.orig):
            return Verdict.AGAIN
        return Verdict.OWN

    @override
    def check(self, resource: R) -> bool:
        """Return whether the server answers."""
        connection = _connection_of(resource)
        try:
            connection.execute(select(1))
            connection.rollback()
        except DBAPIError:  # a "no" that is expected, and needs no traceback in the log
            return False
        return True

    @override
    def reset(self, resource: R) -> None:
        """Roll back an open transaction; raise if the connection cannot be used again as it was."""
        connection = _connection_of(resource)
        if connection.closed or connection.invalidated:
            raise InvalidRequestError("the connection is closed")
        if connection.info.get(_IN_DOUBT):
            raise InvalidRequestError("a KILL QUERY for this connection may still be on its way")
        if connection.in_transaction():
            connection.rollback()
        level = "isolation_level"
        if connection.get_execution_options().get(level) != self._engine.get_execution_options().get(level):
            raise InvalidRequestError("the task has changed the isolation level of the connection")

    @override
    def abort(self, resource: R) -> None:
        """Cancel the statement that runs, by the means of the driver."""
        connection = _connection_of(resource)
        if connection.closed or connection.invalidated:
            return
        driver: Any = connection.connection.dbapi_connection
        if hasattr(driver, "cancel_safe"):
            from .psycopg import unblock

            unblock(driver)
        elif hasattr(driver, "thread_id"):  # PyMySQL and mysqlclient
            self._kill_query(connection, driver)
        else:
            for name in ("cancel", "interrupt"):  # psycopg2 and oracledb; sqlite3
                if hasattr(driver, name):
                    getattr(driver, name)()
                    return

    def _kill_query(self, connection: Connection, driver: Any) -> None:
        """Have MySQL end the statement; shut the socket down if the server does not hear of it in time.

        PyMySQL may wait for ever when it connects, and SQLAlchemy cannot tell it otherwise for one connection. So
        that is done by a thread of its own.
        """
        number = int(driver.thread_id())
        done = threading.Event()

        def kill() -> None:
            with contextlib.suppress(DBAPIError), self._engine.connect() as other:
                other.exec_driver_sql(f"KILL QUERY {number}")
                done.set()

        thread = make_thread(kill, f"tasker_executor_kill_query_{number}")
        thread.start()
        thread.join(CANCEL_TIMEOUT)
        if not done.is_set():  # the server may hear of it later
            connection.info[_IN_DOUBT] = True
            shut_down(getattr(driver, "_sock", None))

    @contextmanager
    def _scope(self, resource: R) -> Generator[None]:
        """The transaction of one task."""
        connection = _connection_of(resource)
        committing = False
        number: int | None = None
        try:
            with resource.begin():
                yield
                self._flush(resource)
                number = _transaction_number(connection)
                committing = True
        except Exception as error:
            if not (committing and (connection.invalidated or _is_lost(connection))):
                raise
            settle_commit(error, number, self._ask)

    def _ask(self, query: str) -> object:
        with self._engine.connect() as connection:
            return connection.exec_driver_sql(query).scalar()


class Connections(_Factory[Connection]):
    """Makes connections of SQLAlchemy, one for each worker.

    The executor is the pool. So an engine that is made from a URL has a ``NullPool``, and one that is given must
    have it.

    - **Broken** is a connection that SQLAlchemy has invalidated, since its driver calls it lost. The task is run
      again on another connection. With psycopg, broken as well is a connection to a standby on which a
      task tries to write. A connection that the task itself has closed is not broken: the task's error is
      its own, and the connection is replaced.
    - **Clean** is a connection without an open transaction: `reset` rolls back what a task has left open. A
      connection whose isolation level a task has changed is replaced. Other settings of the session are kept.
    - **A call that hangs** is cancelled by the means of the driver: psycopg, psycopg2, PyMySQL, mysqlclient,
      sqlite3, oracledb. With psycopg and PyMySQL the socket is shut down if the server cannot be reached.
    - **A check** is ``SELECT 1``, rolled back. It waits as long as the driver does for an answer.

    **A task is done at least once.** If the connection breaks after a task has committed something, and before
    the task returns, the task is run again. ``max_retries=0``, of the executor or of ``with_options``, turns
    that off. With ``transaction=True`` a task is done exactly once: what it has done before the connection
    broke is rolled back. If the connection breaks during COMMIT, the factory asks PostgreSQL whether the
    transaction was committed; see `tasker_executor.resources.psycopg.Connections`. No other server can tell, so
    the task ends with `CommitUnknown`.

    Args:
        engine: A URL, or an engine with a ``NullPool``. A factory of an engine cannot be pickled.
        transaction: True if each task is one transaction, committed when the task returns and rolled back
            when it raises. A task must not commit itself; ``connection.begin_nested()`` in it is a savepoint.
        retry_conflicts: True if a task is run again after a serialization failure, a deadlock, MySQL's lock
            wait time-out, or a lock of SQLite. That is right if the task does all its work in one transaction.
        **options: For ``create_engine``, with a URL only. The connections of psycopg and psycopg2 give up after
            10 seconds, unless ``connect_timeout`` is in the URL or in ``connect_args``.
    """

    def __init__(
        self, engine: str | URL | Engine, *, transaction: bool = False, retry_conflicts: bool = False, **options: Any
    ) -> None:
        super().__init__(engine, transaction, retry_conflicts, options)
        if transaction:
            vars(self)["around"] = self._scope

    @override
    def create(self) -> Connection:
        """Connect."""
        return self._engine.connect()


class Sessions(_Factory[S]):
    """Makes ORM sessions of SQLAlchemy, one for each worker, each with a connection of its own.

    All that `Connections` says holds for the connection of a session. And each task finds its session empty: when
    a task ends, before its result is delivered, all objects leave the session, so another thread may read what
    a task returns. What was not loaded by then cannot be loaded later.

    Args:
        engine: As for `Connections`.
        transaction: As for `Connections`: the session is flushed and committed when the task returns. A task
            must not commit itself; ``session.begin_nested()`` in it is a savepoint.
        retry_conflicts: As for `Connections`.
        session_factory: Makes a session when it is called with ``bind=``: a class, or a ``sessionmaker``. Without
            it, sessions are made with ``expire_on_commit=False``, so that the objects that a task
            returns keep their values after COMMIT.
        **options: As for `Connections`.
    """

    @overload
    def __init__(
        self: Sessions[Session],
        engine: str | URL | Engine,
        *,
        transaction: bool = False,
        retry_conflicts: bool = False,
        session_factory: None = None,
        **options: Any,
    ) -> None: ...

    @overload
    def __init__(
        self,
        engine: str | URL | Engine,
        *,
        transaction: bool = False,
        retry_conflicts: bool = False,
        session_factory: Callable[..., S],
        **options: Any,
    ) -> None: ...

    def __init__(
        self,
        engine: str | URL | Engine,
        *,
        transaction: bool = False,
        retry_conflicts: bool = False,
        session_factory: Any = None,
        **options: Any,
    ) -> None:
        check_callable("session_factory", session_factory)
        super().__init__(engine, transaction, retry_conflicts, options)
        self._make: Callable[..., Any] = session_factory or functools.partial(Session, expire_on_commit=False)

    @override
    def create(self) -> S:
        """Connect, and make a session of the connection."""
        connection = self._engine.connect()
        try:
            session: S = self._make(bind=connection)
        except BaseException:
            connection.close()
            raise
        return session

    @override
    def _flush(self, resource: S) -> None:
        resource.flush()

    @override
    def reset(self, resource: S) -> None:
        """Close the session, which makes it as new, and then as for `Connections`."""
        resource.close()
        super().reset(resource)

    @override
    def destroy(self, resource: S) -> None:
        """Close the session and the connection."""
        try:
            resource.close()
        finally:
            super().destroy(resource)

    @override
    @contextmanager
    def around(self, resource: S) -> Generator[None]:
        """Let all objects leave the session when the task ends: its result is delivered before `reset`."""
        try:
            with self._scope(resource) if self._transaction else contextlib.nullcontext():
                yield
        finally:
            resource.expunge_all()


def _connection_of(resource: Connection | Session) -> Connection:
    connection = resource.bind if isinstance(resource, Session) else resource
    assert isinstance(connection, Connection)
    return connection


def _is_conflict(error: Any) -> bool:
    """Return whether the driver reports a conflict; each driver has its own place for the code."""
    first: Any = error.args[0] if getattr(error, "args", ()) else None
    if hasattr(first, "get"):  # a dict of pg8000
        first = first.get("C")
    codes = (getattr(error, "sqlstate", None), getattr(error, "pgcode", None), first)
    return any(code in CONFLICTS for code in codes) or getattr(error, "sqlite_errorcode", 0) & 0xFF in SQLITE_CONFLICTS


def _is_lost(connection: Connection) -> bool:
    """Return whether psycopg knows that the connection has broken, and SQLAlchemy does not."""
    if connection.closed or connection.invalidated or not hasattr(connection.connection.dbapi_connection, "pgconn"):
        return False
    from .psycopg import is_lost

    driver: Any = connection.connection.dbapi_connection
    return is_lost(driver)


def _is_standby(error: DBAPIError, connection: Connection) -> bool:
    """Return whether a task has tried to write to a standby, as far as psycopg tells."""
    if getattr(error.orig, "sqlstate", None) != "25006":
        return False
    from .psycopg import is_standby

    driver: Any = connection.connection.dbapi_connection
    return is_standby(driver)


def _transaction_number(connection: Connection) -> int | None:
    """Ask for the number of the open transaction; None if the server is not a PostgreSQL."""
    if not connection.in_transaction():  # a session that was not used; to ask would begin a transaction beside it
        return NOTHING_WRITTEN
    if connection.dialect.name != "postgresql":
        return None
    return connection.exec_driver_sql(TRANSACTION_NUMBER).scalar() or NOTHING_WRITTEN
