"""The error of a task that no caller asked for: it is logged when the future is collected.

asyncio does this for its futures. Without it, such an error would be lost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from .._report import Logger

__all__ = ["Unretrieved"]

#: Errors of tasks that no caller asked for. A logger of its own, so that an application can silence it.
lost_logger = Logger("tasker_executor.lost")


class Unretrieved:
    """The error of a task that raised. Only the task's future keeps it. Logs the error when the future goes.

    It logs nothing if a caller has asked for the error. An object of its own, because a finalizer on the
    future would add to the cost of every task.
    """

    __slots__ = ("error", "function", "name")

    def __init__(self, name: str, function: str, error: BaseException) -> None:
        self.name = name
        self.function = function
        self.error: BaseException | None = error  # None once a caller has asked; any thread may store that

    def __del__(self, logger: Logger = lost_logger, exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.error is None:
            return
        at_exit = exiting()  # then no traceback can be formatted
        try:
            logger.error(
                "executor %r: task %s raised, and its exception was never retrieved",
                self.name,
                self.function,
                exc_info=None if at_exit else self.error,
                executor=self.name,
                function=self.function,
            )
        except Exception:
            if not at_exit:  # the modules may be empty by then: without the GIL they are
                raise
