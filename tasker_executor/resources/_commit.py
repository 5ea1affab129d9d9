"""A connection that breaks during COMMIT: has the server committed the transaction, or not?

To run the task again might do its work twice, and not to run it might lose its work. PostgreSQL keeps the
outcome of each transaction under its number, so the factory asks for that on a new connection. Where that is
not possible, the task ends with `CommitUnknown`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .._report import Logger
from .._sync import clock
from ..exceptions import TaskerError

__all__ = ["NOTHING_WRITTEN", "TRANSACTION_NUMBER", "CommitUnknown", "settle_commit"]

logger = Logger("tasker_executor")

#: The question for the number of the current transaction: None if it has written nothing. This name works in
#: all versions since PostgreSQL 10; ``pg_current_xact_id_if_assigned`` does since 13.
TRANSACTION_NUMBER = "select txid_current_if_assigned()"
#: No transaction has this number.
NOTHING_WRITTEN = 0

# A server that restarts needs some seconds. While it does, there is no other work for this worker, either.
PATIENCE = 30.0  # seconds
FIRST_PAUSE = 0.01  # seconds; doubled each time
LONGEST_PAUSE = 1.0  # seconds

# The server may not know yet that the connection is gone, or the COMMIT may still be on its way. So the
# backend that still runs this very transaction is ended; then the outcome is certain. A standby cannot
# tell, since the COMMIT may not have reached it.
OUTCOME = """
select case when not pg_is_in_recovery() then txid_status({number}) end,
       (select count(pg_terminate_backend(pid)) from pg_stat_activity where backend_xid = '{short}'::xid)
"""


class CommitUnknown(TaskerError, RuntimeError):
    """The connection broke during COMMIT. Whether the server has committed is not known.

    The task is not run again, since its work may be done. ``__cause__`` is the error of the driver.
    """


def commit_unknown() -> CommitUnknown:
    """Return the error of a task whose connection broke during COMMIT."""
    return CommitUnknown(
        "the connection broke during COMMIT, and whether the server has committed is not known: the task is "
        "not run again; find out whether its work is done before you submit it again"
    )


def settle_commit(error: Exception, number: int | None, ask: Callable[[str], object]) -> None:
    """Return if the transaction was committed; raise `error` if it was not; raise `CommitUnknown` otherwise.

    Args:
        error: What the driver raised on COMMIT, when the connection broke.
        number: The number of the transaction, `NOTHING_WRITTEN`, or None if the server has no such numbers.
        ask: Makes a new connection, sends it a query, and returns the first column of the only row.
    """
    if number == NOTHING_WRITTEN:  # The task may run again. (A NOTIFY alone is no writing: it may be sent twice.)
        raise error
    committed = None if number is None else _was_committed(number, ask)
    if committed is None:
        raise commit_unknown() from error
    if not committed:
        raise error
    logger.debug(
        "the connection broke during COMMIT, and the server has committed transaction %s",
        number,
        exc_info=error,
        transaction=number,
    )


def _was_committed(number: int, ask: Callable[[str], object]) -> bool | None:
    """Ask the server until it knows, at most `PATIENCE` seconds; None if it never did."""
    query = OUTCOME.format(number=number, short=number & 0xFFFFFFFF)
    deadline = clock() + PATIENCE
    pause = FIRST_PAUSE
    while True:
        try:
            status = ask(query)
        except Exception as error:  # the server is down, and may come back
            logger.debug("cannot ask for the outcome of transaction %s", number, exc_info=error, transaction=number)
            status = None
        if status in {"committed", "aborted"}:
            return status == "committed"
        if clock() >= deadline:
            return None
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
