"""Connections to SQLite databases, by the standard library.

One argument of the executor is all::

    from tasker_executor.resources.sqlite3 import Connections

    pool = ResourceExecutor(4, resource=Connections("shop.db", transaction=True, isolation_level="IMMEDIATE"))
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from typing_extensions import override

from .._checks import check_bool
from .._report import safe_repr
from ..factory import ResourceFactory, Verdict
from ._commit import CommitUnknown

__all__ = ["CommitUnknown", "Connections"]

# An extended code has the primary code in its lowest 8 bits.
PRIMARY = 0xFF
CONFLICTS = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR}


class Connections(ResourceFactory[sqlite3.Connection]):
    """Makes connections to a database of SQLite, one for each worker.

    Each connection to ``":memory:"`` is a database of its own: so each worker has its own, and it is gone when
    the worker ends.

    - **Broken** is a connection on which SQLite reports that the file is no sound database (any longer), that it
      was moved, or that it cannot be read or written. The task is run again on another connection. A connection
      that the task itself has closed is not broken: the task's error is its own, and the connection is
      replaced.
    - **Clean** is a connection without an open transaction: `reset` rolls back what a task has left open.
      Pragmas, functions and temporary tables are kept.
    - **A call that hangs** is interrupted. SQLite does not interrupt a call that waits for a lock: that ends
      by the ``timeout`` of the connection, of 5 seconds.
    - **A check** reads the head of the file.

    **A task is done at least once.** If the connection breaks after a task has committed something, and before
    the task returns, the task is run again. ``max_retries=0``, of the executor or of ``with_options``, turns
    that off. With ``transaction=True`` a task is done exactly once: what it has done before the connection
    broke is rolled back. If it breaks during COMMIT, the task ends with `CommitUnknown`.

    Args:
        database: The path of the file, as for `sqlite3.connect`.
        transaction: True if each task is one transaction, committed when the task returns and rolled back
            when it raises. It begins as the connection's ``isolation_level`` says: ``"IMMEDIATE"`` takes the lock for
            writing at once, so a task that reads before it writes cannot collide with another in the middle.
        retry_conflicts: True if a task is run again when the database is locked (SQLITE_BUSY, SQLITE_LOCKED).
            That is right if the task does all its work in one transaction.
        **connect: All else for `sqlite3.connect`. ``check_same_thread`` is False, and must be: another thread
            interrupts a call that hangs. Without ``transaction=True``, a task must commit, or its work is rolled
            back, unless the connection is in autocommit mode (``isolation_level=None``).
    """

    def __init__(
        self,
        database: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        transaction: bool = False,
        retry_conflicts: bool = False,
        **connect: Any,
    ) -> None:
        os.fspath(database)  # raises TypeError, which names the type
        check_bool("transaction", transaction)
        check_bool("retry_conflicts", retry_conflicts)
        if connect.setdefault("check_same_thread", False):
            raise ValueError(
                f"check_same_thread must be False, not {safe_repr(connect['check_same_thread'])}: "
                "another thread interrupts a call that hangs"
            )
        sqlite3.connect(":memory:", **connect).close()  # raises for an option that is unknown, or of the wrong type
        self._database = database
        self._connect = connect
        self._retry_conflicts = retry_conflicts
        if transaction:
            vars(self)["around"] = self._transaction

    @override
    def create(self) -> sqlite3.Connection:
        """Open the database."""
        connection: sqlite3.Connection = sqlite3.connect(self._database, **self._connect)
        return connection

    @override
    def destroy(self, resource: sqlite3.Connection) -> None:
        """Close the connection; what is open is rolled back."""
        resource.close()

    @override
    def judge(self, error: Exception, resource: sqlite3.Connection) -> Verdict:
        """Look at the code of the error."""
        if _is_broken(error):
            return Verdict.BROKEN
        if self._retry_conflicts and _code(error) & PRIMARY in CONFLICTS:
            return Verdict.AGAIN
        return Verdict.OWN

    @override
    def check(self, resource: sqlite3.Connection) -> bool:
        """Return whether the file is a database. If another connection has locked it, it is."""
        try:
            resource.execute("pragma schema_version").fetchone()
        except sqlite3.Error as error:
            if _code(error) & PRIMARY not in CONFLICTS:
                return False
        self.reset(resource)  # Without autocommit, a transaction was open, and now has a lock.
        return True

    @override
    def reset(self, resource: sqlite3.Connection) -> None:
        """Roll back an open transaction; raise if the connection is closed."""
        if resource.in_transaction:
            _end(resource, "rollback")

    @override
    def abort(self, resource: sqlite3.Connection) -> None:
        """Interrupt the statement that runs."""
        try:
            resource.interrupt()
        except sqlite3.ProgrammingError:
            pass  # closed by now

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Generator[None]:
        if not connection.in_transaction:  # with autocommit=False, there always is one
            connection.execute(f"begin {connection.isolation_level or ''}")
        try:
            yield
        except BaseException:
            _roll_back(connection)
            raise
        if not connection.in_transaction:  # the task has ended it
            return
        try:
            _end(connection, "commit")
        except sqlite3.Error as error:
            if _is_broken(error):
                raise CommitUnknown(
                    "COMMIT failed, and whether the transaction is in the database is not known: the task is not "
                    "run again; find out whether its work is done before you submit it again"
                ) from error
            _roll_back(connection)
            raise


def _code(error: Exception) -> int:
    """The extended code of SQLite; 0 for an error that is not SQLite's."""
    return getattr(error, "sqlite_errorcode", 0) if isinstance(error, sqlite3.Error) else 0


def _is_broken(error: Exception) -> bool:
    code = _code(error)
    return code & PRIMARY in BROKEN or code == sqlite3.SQLITE_READONLY_DBMOVED


def _end(connection: sqlite3.Connection, command: str) -> None:
    """Commit or roll back. The methods do nothing with autocommit=True, and SQL does too little with autocommit=False."""
    if getattr(connection, "autocommit", None) is True:
        connection.execute(command)
    elif command == "commit":
        connection.commit()
    else:
        connection.rollback()


def _roll_back(connection: sqlite3.Connection) -> None:
    """Roll back, if there is something to roll back; the error that is under way is more important than one of ours."""
    try:
        if connection.in_transaction:
            _end(connection, "rollback")
    except sqlite3.Error:
        pass  # `reset` meets it again
