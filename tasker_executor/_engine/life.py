"""The life of a worker's thread, and the errors that other threads throw into it: see ``attempt.py``."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from .._report import Logger
from .resources import End

__all__ = ["Life", "log_thrown"]

logger = Logger("tasker_executor")


class Life(partial[None]):
    """The life of a worker. Only its thread refers to it, so it is dropped when the thread ends.

    An error thrown into the exit path, or after it, would leave the worker in the crew although its thread is
    dead. So `__del__` walks the path again, on the same thread. A partial, because its call makes no frame: a
    kept traceback (`threading.excepthook`) would keep the frame, and with it the life.
    """

    __slots__ = ()

    def __del__(self) -> None:
        worker: Any = cast("Any", self.func).__self__  # `func` is `Worker.live`, bound
        if worker.over:
            return
        # Not born, but in the crew: the error came before the first step of `Worker.live`.
        if worker.birth.locked() or (worker.seat.occupied and worker.birth.acquire(False)):
            worker.end(End.CRASHED, None)


def log_thrown(thrown: BaseException, executor: str, worker: str) -> None:
    """Log an error that was thrown into the thread of that worker."""
    logger.warning(
        "executor %r: an exception was thrown into worker %s",
        executor,
        worker,
        exc_info=thrown,
        executor=executor,
        worker=worker,
    )
