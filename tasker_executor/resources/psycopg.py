"""Connections to PostgreSQL by psycopg 3: ``pip install tasker-executor[psycopg]``.

One argument of the executor is all::

    from tasker_executor.resources.psycopg import Connections

    pool = ResourceExecutor(8, resource=Connections("host=db dbname=shop", transaction=True))
"""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, overload

from typing_extensions import TypeVar, override

from .._checks import check_bool
from .._sync import clock
from ..factory import ResourceFactory, Verdict
from ._commit import NOTHING_WRITTEN, TRANSACTION_NUMBER, CommitUnknown, settle_commit
from ._sockets import cancel_until_it_returns, has_input

try:
    import psycopg as driver
    from psycopg import errors
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.pq import ExecStatus, TransactionStatus
    from psycopg.rows import RowFactory, TupleRow, tuple_row
except ModuleNotFoundError as _error:
    raise ImportError("tasker_executor.resources.psycopg needs psycopg: pip install tasker-executor[psycopg]") from _error

__all__ = ["CommitUnknown", "Connections", "is_lost", "is_standby", "unblock"]

Row = TypeVar("Row", default=TupleRow)

#: The numbers as plain integers: that is how libpq gives them, and to compare two of these takes 20 ns.
IDLE = int(TransactionStatus.IDLE)
ACTIVE = int(TransactionStatus.ACTIVE)
#: At most so many reads look for the end of a connection: a server that is there may send rows without end.
_LOOKS = 16
INERROR = int(TransactionStatus.INERROR)

CONFLICTS = (errors.SerializationFailure, errors.DeadlockDetected)

#: The options of ``psycopg.connect`` that are none of libpq.
PSYCOPG_OPTIONS = {"autocommit", "prepare_threshold", "context", "cursor_factory"}

# The defaults of psycopg and libpq are two minutes and for ever.
CONNECT_TIMEOUT = 10  # seconds
CHECK_TIMEOUT = 5.0  # seconds
# Both together stay below the grace that an executor gives to a task that it stops.
CANCEL_TIMEOUT = 2.0  # seconds
RETURN_TIMEOUT = 1.0  # seconds


class Connections(ResourceFactory[driver.Connection[Row]]):
    """Makes connections to PostgreSQL, one for each worker.

    - **Broken** is a connection that is lost (``connection.broken``), not one that has raised an
      ``OperationalError``: a statement time-out and a deadlock are such errors, too. The task is run again on
      another connection. Broken as well is a connection to a standby on which a task tries to write: that
      is what a failover leaves behind. A connection that the task itself has closed is not broken: the
      task's error is its own, and the connection is replaced.
    - **Clean** is a connection without an open transaction, with its ``autocommit`` as it was: `reset` rolls
      back what a task has left open, and costs 0.2 µs if there is nothing to do. Other settings of the session
      (``SET``, ``LISTEN``, temporary tables) are kept.
    - **A call that hangs** is cancelled on the server, again and again for a second. If it does not return, the
      socket is shut down.
    - **A check** is an empty query that must be answered within 5 seconds, outside of a transaction.

    **A task is done at least once.** If the connection breaks after a task has committed something, and before
    the task returns, the task is run again. ``max_retries=0``, of the executor or of ``with_options``, turns
    that off. With ``transaction=True`` a task is done exactly once: what it has done before the connection
    broke is rolled back. If the connection breaks during COMMIT, the factory asks the server, on a new
    connection, whether that transaction was committed. If so, the task has its result. If not, it is run
    again. If the server gives no answer within 30 seconds, the task ends with `CommitUnknown`. (After a failover
    to a standby that was behind, that answer is as good as the standby's data.)

    Args:
        conninfo: The connection string of libpq, as for ``psycopg.connect``.
        transaction: True if each task is one transaction, committed when the task returns and rolled back
            when it raises. That costs three round trips: BEGIN, the question for the number of the
            transaction, COMMIT. A task must not commit itself; ``connection.transaction()`` in it is a savepoint.
            A task that returns after a statement failed, without going back to a savepoint, raises
            ``InFailedSqlTransaction``, since nothing of it can be committed.
        retry_conflicts: True if a task is run again after a serialization failure or a deadlock. That is
            right if the task does all its work in one transaction.
        row_factory: As for ``psycopg.connect``.
        **connect: All else for ``psycopg.connect``. Without ``connect_timeout`` (here, in `conninfo`, or in
            PGCONNECT_TIMEOUT), it is 10 seconds. As in psycopg, without ``autocommit=True`` or ``transaction=True`` a
            task must commit, or its work is rolled back. In a network that drops connections silently,
            ``keepalives_idle`` and ``tcp_user_timeout`` help.
    """

    @overload
    def __init__(
        self: Connections[TupleRow],
        conninfo: str = "",
        *,
        transaction: bool = False,
        retry_conflicts: bool = False,
        row_factory: None = None,
        **connect: Any,
    ) -> None: ...

    @overload
    def __init__(
        self,
        conninfo: str = "",
        *,
        transaction: bool = False,
        retry_conflicts: bool = False,
        row_factory: RowFactory[Row],
        **connect: Any,
    ) -> None: ...

    def __init__(
        self,
        conninfo: str = "",
        *,
        transaction: bool = False,
        retry_conflicts: bool = False,
        row_factory: Any = None,
        **connect: Any,
    ) -> None:
        if not isinstance(conninfo, str):
            raise TypeError(f"conninfo must be a str, not {type(conninfo).__name__!r}")
        check_bool("transaction", transaction)
        check_bool("retry_conflicts", retry_conflicts)
        # What is wrong with the connection string, or with an option, psycopg says itself.
        libpq = {name: value for name, value in connect.items() if name not in PSYCOPG_OPTIONS}
        parameters = conninfo_to_dict(make_conninfo(conninfo, **libpq))
        if "connect_timeout" not in parameters and "PGCONNECT_TIMEOUT" not in os.environ:
            connect["connect_timeout"] = CONNECT_TIMEOUT
        self._conninfo = conninfo
        self._connect: dict[str, Any] = {"row_factory": row_factory, **connect}
        self._autocommit = bool(connect.get("autocommit", False))
        self._retry_conflicts = retry_conflicts
        if transaction:
            vars(self)["around"] = self._transaction

    @override
    def create(self) -> driver.Connection[Row]:
        """Connect."""
        connection: driver.Connection[Any] = driver.connect(self._conninfo, **self._connect)
        return connection

    @override
    def destroy(self, resource: driver.Connection[Row]) -> None:
        """Close the connection."""
        resource.close()

    @override
    def judge(self, error: Exception, resource: driver.Connection[Row]) -> Verdict:
        """Look at the connection rather than at the class of the error."""
        if isinstance(error, CommitUnknown):
            return Verdict.OWN
        if is_lost(resource) or (isinstance(error, errors.ReadOnlySqlTransaction) and is_standby(resource)):
            return Verdict.BROKEN
        if self._retry_conflicts and isinstance(error, CONFLICTS):
            return Verdict.AGAIN
        return Verdict.OWN

    @override
    def check(self, resource: driver.Connection[Row]) -> bool:
        """Return whether the server answers an empty query in time."""
        try:
            return _answers(resource, clock() + CHECK_TIMEOUT)
        except driver.Error:  # a "no" that is expected, and needs no traceback in the log
            return False

    @override
    def reset(self, resource: driver.Connection[Row]) -> None:
        """Roll back an open transaction. Raise if the connection is closed, or in the middle of a statement."""
        status = resource.pgconn.transaction_status
        if status != IDLE:
            if status == ACTIVE:  # A COPY or a stream was left in the middle: to wait for its end is to wait for ever.
                raise driver.OperationalError("the task has left a statement that still runs")
            resource.rollback()
        if resource.autocommit is not self._autocommit:
            resource.autocommit = self._autocommit

    @override
    def abort(self, resource: driver.Connection[Row]) -> None:
        """Cancel the statement that runs; shut the socket down if that does not help."""
        unblock(resource)

    @contextmanager
    def _transaction(self, connection: driver.Connection[Row]) -> Generator[None]:
        committing = False
        number: int | None = None
        try:
            with connection.transaction():
                yield
                if connection.pgconn.transaction_status == INERROR:
                    # PostgreSQL answers COMMIT with ROLLBACK then, and nothing raises.
                    raise errors.InFailedSqlTransaction(
                        "the task returned although a statement of its transaction had failed, so there is nothing to commit"
                    )
                number = _transaction_number(connection)
                committing = True
        except Exception as error:
            if not (committing and is_lost(connection)):
                raise
            settle_commit(error, number, self._ask)

    def _ask(self, query: str) -> object:
        options: dict[str, Any] = {**self._connect, "autocommit": True}
        with driver.connect(self._conninfo, **options) as connection:
            [answer, *_] = driver.Cursor(connection, row_factory=tuple_row).execute(query.encode()).fetchone() or [None]
            return answer


def unblock(connection: driver.Connection[Any]) -> None:
    """Make a call return that hangs inside this connection, in another thread, within 3 seconds.

    The statement is cancelled on the server: again and again, since a server that has not read the statement yet
    ignores the request. If that is not possible, or the call does not return since the network is stalled, the
    socket is shut down, and the connection is broken. libpq notes a statement only after it has sent it. A statement
    between the two is missed, and the executor calls this again.

    No cancel request hits a statement of the next task. 1. The server closes the connection of a cancel request
    after it has signalled the backend. libpq waits for that. 2. A backend that is idle ignores the signal, and
    has seen it before it reads the next statement. 3. A request whose answer did not come may still be on its
    way. So the connection that it should cancel is shut down.
    """

    def cancel() -> bool:
        try:
            connection.cancel_safe(timeout=CANCEL_TIMEOUT)
        except driver.ProgrammingError:
            pass  # psycopg has sent nothing: the transaction is a prepared one
        except driver.Error:
            return False
        return True

    if not cancel_until_it_returns(cancel, lambda: connection.pgconn.transaction_status == ACTIVE, RETURN_TIMEOUT):
        _shut_down(connection)


def _shut_down(connection: driver.Connection[Any]) -> None:
    try:
        with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
            same.shutdown(socket.SHUT_RDWR)
    except (driver.Error, OSError):
        pass  # closed by now


def is_lost(connection: driver.Connection[Any]) -> bool:
    """Return whether the connection has broken.

    psycopg may find the socket closed, and raise, and libpq does not know. Then the connection looks as if the
    statement still ran, until libpq looks at the socket. It first finds what the server has sent before the end.
    """
    pgconn = connection.pgconn
    try:
        for _ in range(_LOOKS):
            if pgconn.transaction_status != ACTIVE or not has_input(pgconn.socket):
                break
            pgconn.consume_input()
    except driver.Error:
        pass  # this has told libpq
    return connection.broken


def is_standby(connection: driver.Connection[Any]) -> bool:
    """Return what the server has last told by itself; PostgreSQL does since version 14."""
    return connection.pgconn.parameter_status(b"in_hot_standby") == b"on"


def _transaction_number(connection: driver.Connection[Any]) -> int | None:
    """Ask for the number of the open transaction; None if the server is another one that speaks the protocol."""
    if connection.info.server_version < 100000 or connection.pgconn.parameter_status(b"crdb_version"):
        return None
    # A cursor of our own: those of the connection may be of any class.
    row = driver.Cursor(connection, row_factory=tuple_row).execute(TRANSACTION_NUMBER).fetchone()
    assert row is not None
    return row[0] or NOTHING_WRITTEN


def _answers(connection: driver.Connection[Any], deadline: float) -> bool:
    """Send an empty query. Return whether the answer comes in time; raise if the connection breaks.

    Neither libpq nor psycopg knows a time limit for an answer. And psycopg begins a transaction first, unless
    the connection is in autocommit mode.
    """
    pgconn = connection.pgconn
    pgconn.send_query(b"")
    pgconn.flush()  # these few bytes fit, since all before was answered
    with selectors.DefaultSelector() as selector:
        selector.register(pgconn.socket, selectors.EVENT_READ)
        while True:
            while pgconn.is_busy():
                if not selector.select(max(0.0, deadline - clock())):
                    return False
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                return True
            if result.status != ExecStatus.EMPTY_QUERY:
                return False
