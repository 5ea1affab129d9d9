"""The client's futures: what a caller holds, and how the client's event loop sees each task to its end."""

from __future__ import annotations

import asyncio
import pickle
from collections import deque
from concurrent.futures._base import CANCELLED
from typing import Any, Protocol, TypeVar

from distributed import KilledWorker
from typing_extensions import override

from .._checks import wait_seconds
from ..exceptions import TaskLost, TaskStopped
from ..futures import TaskFuture
from .wire import Answer

__all__ = ["Following", "Owner", "RemoteFuture"]

T = TypeVar("T")


class Owner(Protocol):
    """What a future needs: the books of its executor."""

    def settle(self, future: RemoteFuture[Any], answer: Answer, /) -> None:
        """Give the future its result, and forget it."""

    def forget(self, future: RemoteFuture[Any], outcome: str | None, /) -> None:
        """Count the outcome of the future, and release its result on the cluster."""

    def stop(self, future: RemoteFuture[Any], /) -> None:
        """Have the task of the future stopped, wherever it is. Never blocks.

        Raises:
            RuntimeError: The client's event loop is closed.
        """


class RemoteFuture(TaskFuture[T]):
    """A `concurrent.futures.Future` whose task may be on another machine."""

    def __init__(self, owner: Owner, *, urgent: bool = False, chunk: Any = None) -> None:
        super().__init__()
        self._owner = owner
        self._urgent = urgent
        self._chunk = chunk  # of `map`: where the results go
        self._remote: Any = None  # Dask's future, as long as its result is wanted
        self._asked_to_stop = False  # two threads may both ask: the second question changes nothing

    @override
    def result(self, timeout: float | None = None) -> T:
        return super().result(wait_seconds(timeout))

    @override
    def exception(self, timeout: float | None = None) -> BaseException | None:
        return super().exception(wait_seconds(timeout))

    @override
    def cancel(self) -> bool:
        """Cancel the future. Its task does not run, unless a worker has started it.

        A task that a worker has started runs on, and its result is dropped. The standard library does not
        cancel such a task; here only the worker knows that it has started.
        """
        if not super().cancel():
            return False
        with self._condition:
            first = self._state == CANCELLED
            if first:
                self.set_running_or_notify_cancel()  # or `wait` and `as_completed` would not see it
        if first:
            self._owner.forget(self, "cancelled")
        return True

    @override
    def stop(self) -> bool:
        """Cancel the task if no worker has started it; if it runs, ask its worker to stop it.

        Only the cluster knows which of the two it is. So this sends a message, and returns at once. The
        future is final when the answer has come: cancelled, or with `TaskStopped`, or with the result of a
        task that returned in spite of the stop. A task that is stopped is run nowhere again. If its worker
        dies, the future has `TaskStopped`, and its ``__cause__`` is a `TaskLost`.

        Returns:
            True: the task is being cancelled or stopped. False: it was over before.
        """
        if self.done():
            return False
        if not self._asked_to_stop:
            self._asked_to_stop = True
            try:
                self._owner.stop(self)
            except RuntimeError:  # the event loop is closed: no answer will come
                return self.cancel()
        return True


class Following:
    """Sees tasks to their ends, on the client's event loop. One wake-up of the loop serves many tasks.

    A wake-up costs as much as the rest of `submit`.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._loop: Any = client.loop
        # Any thread appends, in one step; the loop takes. See `_follow_all` for the flag. If two threads find
        # it unset, the loop is woken twice, and finds nothing the second time.
        self._to_follow: deque[tuple[Any, RemoteFuture[Any]]] = deque()
        self._loop_woken = False
        self._followers: set[asyncio.Task[None]] = set()  # asyncio itself holds its tasks by weak references

    def follow(self, remote: Any, future: RemoteFuture[Any]) -> None:
        """Have the event loop settle this future when Dask's future, `remote`, is done."""
        self._to_follow.append((remote, future))
        if not self._loop_woken:
            self._loop_woken = True
            self._loop.add_callback(self._follow_all)

    def wake(self) -> None:
        """Wake the event loop in any case.

        Called after an error was thrown into `follow`: other submitters may rely on the wake-up that it did
        not send.
        """
        try:
            self._loop.add_callback(self._follow_all)
        except RuntimeError:  # the loop is closed
            pass

    def _follow_all(self) -> None:
        """Start to follow the tasks that have been submitted. Runs on the event loop."""
        # The flag falls before the loop looks, and a submitter appends before it reads the flag: so one of
        # the two sees the other.
        self._loop_woken = False
        while self._to_follow:
            task = asyncio.create_task(self._follow(*self._to_follow.popleft()))
            self._followers.add(task)
            task.add_done_callback(self._followers.discard)

    async def _follow(self, remote: Any, future: RemoteFuture[Any]) -> None:
        """See one task to its end."""
        try:
            # Dask's ClientExecutor calls `_result`, too: it returns an error instead of raising it.
            result: bytes | tuple[Any, ...] | BaseException = await remote._result(raiseit=False)
            # Not `remote.status`: a worker that dies right after it has sent a result makes that "lost".
            if isinstance(result, bytes):
                answer: Answer = pickle.loads(result)
            elif isinstance(result, tuple):  # as of sys.exc_info()
                answer = Answer(error=_translate(result[1].with_traceback(result[2]), future))
            elif future._asked_to_stop and self._client.status == "running":
                answer = Answer(error=_lost("its worker is gone, and a task that was stopped is not run again", result, future))
            else:
                answer = Answer(error=_lost("the connection to the scheduler is lost or closed", result, future))
        except asyncio.CancelledError as error:  # the loop ends
            future._owner.settle(future, Answer(error=_lost("the client's event loop ends", error, future)))
            raise
        except BaseException as error:  # of the user's, in unpickling; SystemExit would end the loop
            answer = Answer(error=error)
        future._owner.settle(future, answer)


def _translate(error: BaseException, future: RemoteFuture[Any]) -> BaseException:
    """Return Dask's own error about a task as the error that callers of this package expect."""
    if isinstance(error, KilledWorker):
        return _lost("the workers that had it died one after the other; perhaps it kills them", error, future)
    return error


def _lost(why: str, cause: Any, future: RemoteFuture[Any]) -> TaskLost | TaskStopped:
    """Return the error of a task that is lost. If it was asked to stop, the loss is what it ended with."""
    lost = TaskLost(f"the task is lost: {why}")
    lost.__cause__ = cause if isinstance(cause, BaseException) else None
    if not future._asked_to_stop:
        return lost
    stopped = TaskStopped("the task was asked to stop, and is lost")
    stopped.__cause__ = lost
    return stopped
