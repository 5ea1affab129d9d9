"""Connections to MySQL and MariaDB, by PyMySQL: ``pip install tasker-executor[pymysql]``."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar, override

from .._checks import check_bool
from ..factory import ResourceFactory, Verdict
from ._commit import CommitUnknown, commit_unknown
from ._sockets import cancel_until_it_returns, shut_down

try:
    import pymysql
    from pymysql.connections import Connection
    from pymysql.constants import CR, ER, SERVER_STATUS
    from pymysql.cursors import Cursor
except ModuleNotFoundError as _error:
    raise ImportError("tasker_executor.resources.pymysql needs PyMySQL: pip install tasker-executor[pymysql]") from _error

__all__ = ["CommitUnknown", "Connections"]

C = TypeVar("C", bound=Cursor, default=Cursor)

#: With these the server, or the driver, says that the connection has ended. The class of the errors says
#: nothing: a deadlock and a statement that took too long are OperationalErrors, too.
_BROKEN = {
    CR.CR_SERVER_GONE_ERROR,
    CR.CR_SERVER_LOST,
    CR.CR_COMMANDS_OUT_OF_SYNC,
    CR.CR_SERVER_LOST_EXTENDED,
    ER.SERVER_SHUTDOWN,
    1927,  # MariaDB: the connection was killed
    4031,  # MySQL: the connection was idle for too long
}
#: A deadlock, a lock that was not granted in time, and (MariaDB) a row that has changed since it was read.
_CONFLICTS = {ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, ER.CHECKREAD}
#: Seconds for what waits for an answer without a task: a ping, a rollback between two tasks.
_PATIENCE = 10.0
#: Seconds for each step of an abort.
_HURRY = 2.0
_RETURN_TIMEOUT = 1.0


class Connections(ResourceFactory["Connection[C]"], Generic[C]):
    """A connection for each worker, by ``pymysql.connect(**connect)``.

    **Broken** is a connection that the driver has closed because it lost the server. A deadlock, a lock wait
    time-out, a statement that took too long or was killed break nothing.

    **Run again** is a task whose connection broke. So **a task is done at least once**: what it had committed
    before stands. With ``transaction=True`` nothing of it stands until COMMIT is sent. If the connection breaks
    during COMMIT, the task ends with `CommitUnknown`, and is not run again. Without ``transaction=True``,
    ``retry_broken=False`` is for tasks that must not be done twice: the error is final then, and only the
    connection is replaced.

    **Clean**: between two tasks what is not committed is rolled back, and autocommit is set as it was; a
    connection with rows left unread (`SSCursor`) is replaced. Session variables, temporary tables, table
    locks and the chosen database stay as a task leaves them.

    **Abort**: ``KILL QUERY`` on a second connection, again and again, since a server that has not read the
    statement yet ignores it; if that does not work within seconds, the socket is shut down. Do not abort
    through a proxy that spreads connections over several servers: each of them has its own numbers for
    connections.

    PyMySQL connects within 10 seconds and waits for answers without end. Pass ``read_timeout=``, which then
    breaks the connection, to limit that; the ping and the rollback between tasks have 10 seconds.

    Args:
        transaction: Each task is one transaction: committed when it returns, rolled back when it raises. The
            task must not commit, and run no statement that commits by itself (CREATE TABLE).
        retry_conflicts: Run a task again if it lost a deadlock, waited too long for a lock, or (MariaDB) met
            a row that changed since it was read.
        retry_broken: False: without ``transaction=True``, do not run a task again whose connection broke.
        cursorclass: As in `pymysql.connect`.
        connect: All other arguments of `pymysql.connect`.
    """

    def __init__(
        self,
        *,
        transaction: bool = False,
        retry_conflicts: bool = False,
        retry_broken: bool = True,
        cursorclass: type[C] = Cursor,  # type: ignore[assignment]  # the default of C
        **connect: Any,
    ) -> None:
        check_bool("transaction", transaction)
        check_bool("retry_conflicts", retry_conflicts)
        check_bool("retry_broken", retry_broken)
        self._connect: dict[str, Any] = {**connect, "cursorclass": cursorclass}
        self._transaction = transaction
        self._retry_conflicts = retry_conflicts
        self._retry_broken = retry_broken
        self._autocommit: bool | None = connect.get("autocommit", False)
        if "defer_connect" in connect:
            raise ValueError("defer_connect must be left out: a resource is connected")
        _Connection(**self._connect, defer_connect=True)  # checks the arguments, and connects nowhere
        if transaction:
            vars(self)["around"] = self._one_transaction

    @override
    def create(self) -> Connection[C]:
        return _Connection(**self._connect)

    @override
    def destroy(self, resource: Connection[C]) -> None:
        result = _result_of(resource)
        if result is not None:
            result.unbuffered_active = False  # or its destructor reads the rest, from a socket that is closed
        if resource.open:
            resource.close()

    @override
    def judge(self, error: Exception, resource: Connection[C]) -> Verdict:
        if isinstance(error, CommitUnknown):
            return Verdict.OWN
        if not isinstance(error, pymysql.Error):
            return Verdict.OWN
        code = _code_of(error)
        if code in _BROKEN and resource.open and not self._answers(resource):
            resource.close()  # for reset() to see
        if resource.open:
            return Verdict.AGAIN if self._retry_conflicts and code in _CONFLICTS else Verdict.OWN
        return Verdict.BROKEN if self._transaction or self._retry_broken else Verdict.OWN

    @override
    def check(self, resource: Connection[C]) -> bool:
        return self._answers(resource)

    @override
    def reset(self, resource: Connection[C]) -> None:
        if not resource.open:
            raise pymysql.InterfaceError(0, "the connection is closed")
        result = _result_of(resource)
        if result is not None and result.unbuffered_active:
            raise pymysql.InterfaceError(0, "the task left rows unread")
        with _patience(resource):
            # The driver hears of a transaction when a statement changes something, and on BEGIN. With autocommit
            # off a SELECT begins one, too, and no flag says so. What _one_transaction() began, it has ended.
            untold = not (self._transaction or resource.get_autocommit())
            in_transaction = vars(resource)["server_status"] & SERVER_STATUS.SERVER_STATUS_IN_TRANS
            more_results = result is not None and result.has_next  # of a procedure; any command reads them
            if untold or in_transaction or more_results:
                resource.rollback()
            if self._autocommit is not None and resource.get_autocommit() != self._autocommit:
                resource.autocommit(self._autocommit)

    @override
    def abort(self, resource: Connection[C]) -> None:
        if not resource.open:
            return
        hurry: dict[str, Any] = {
            "connect_timeout": _HURRY,
            "read_timeout": _HURRY,
            "write_timeout": _HURRY,
            "init_command": None,
        }
        number: int = resource.thread_id()  # type: ignore[no-untyped-call]  # its stub has no types

        def kill() -> bool:
            try:
                with _Connection(**self._connect | hurry) as second:
                    second.query(f"KILL QUERY {number}")
            except Exception:  # no connection is left, no network: the server cannot be told, or hears of it later
                return False
            return True

        if not cancel_until_it_returns(kill, lambda: getattr(resource, "is_waiting", False), _RETURN_TIMEOUT):
            shut_down(getattr(resource, "_sock", None))

    @contextmanager
    def _one_transaction(self, connection: Connection[C]) -> Generator[None]:
        if connection.get_autocommit():
            connection.begin()
        try:
            yield
        except BaseException:
            _roll_back(connection)
            raise
        connected = connection.open
        try:
            connection.commit()
        except Exception as error:
            # What could not be sent, the server does not do.
            code = _code_of(error)
            unknown = connected and code != CR.CR_SERVER_GONE_ERROR and (not connection.open or code in _BROKEN)
            _roll_back(connection)
            if not unknown:
                raise
            raise commit_unknown() from error

    def _answers(self, connection: Connection[C]) -> bool:
        try:
            with _patience(connection):
                connection.ping(reconnect=False)  # older versions connect anew by default
        except pymysql.Error:
            return False
        return True


if TYPE_CHECKING:
    _AnyConnection = Connection[Any]
else:
    _AnyConnection = Connection  # it is generic in its stub alone


class _Connection(_AnyConnection):
    """A connection that is made 10 times as fast.

    PyMySQL speaks TLS if the server can, and by default trusts any server. For each connection it loads the
    certificates of all authorities, which takes 50 ms. Our connections share what is loaded.
    """

    #: Never None again. If two threads load it at once, the last one stays, and both are good.
    _shared: Any = None
    #: Whether a command is being sent, or its first answer has not come. The owner's thread sets it; the
    #: thread that aborts reads it, again and again.
    is_waiting = False

    def _execute_command(self, command: Any, sql: Any) -> None:
        self.is_waiting = True
        try:
            getattr(super(), "_execute_command")(command, sql)  # noqa: B009  # its stub does not have it
        except BaseException:
            self.is_waiting = False
            raise
        vars(self)["_read_packet"] = self._read_first  # only once: there is a packet for each row

    def _read_first(self, *arguments: Any) -> Any:
        del vars(self)["_read_packet"]
        try:
            return getattr(self, "_read_packet")(*arguments)  # noqa: B009  # see above
        finally:
            self.is_waiting = False

    def _create_ssl_ctx(self, options: Any) -> Any:
        create = getattr(super(), "_create_ssl_ctx")  # noqa: B009  # its stub does not have it
        if options:
            return create(options)
        if _Connection._shared is None:
            _Connection._shared = create(options)
        return _Connection._shared


def _roll_back(connection: Connection[Any]) -> None:
    """Roll back, or close the connection: then the server does it."""
    result = _result_of(connection)
    try:
        if result is not None and result.unbuffered_active:
            result.unbuffered_active = False
            raise pymysql.InterfaceError(0, "the task left rows unread")
        connection.rollback()
    except Exception:
        if connection.open:
            connection.close()


@contextmanager
def _patience(connection: Connection[Any]) -> Generator[None]:
    """Limit the time for each answer of the server. PyMySQL looks at its time-out before each."""
    state = vars(connection)
    limit: float | None = state["_read_timeout"]
    state["_read_timeout"] = _PATIENCE if limit is None else min(limit, _PATIENCE)
    try:
        yield
    finally:
        state["_read_timeout"] = limit


def _result_of(connection: Connection[Any]) -> Any:
    """Return what the last statement returned, which there may be more to read of; None if there was none."""
    return getattr(connection, "_result", None)


def _code_of(error: BaseException) -> Any:
    return error.args[0] if error.args else None
