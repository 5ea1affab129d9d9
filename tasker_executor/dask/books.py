"""The books of an executor on a cluster, kept by its client: which tasks are not done, and how the others ended."""

from __future__ import annotations

import threading
from concurrent.futures import InvalidStateError
from typing import Any

from .._report import Logger
from .futures import RemoteFuture
from .stops import Stops
from .wire import Answer

__all__ = ["Books"]

logger: Logger = Logger("tasker_executor.dask")


class Books:
    """Counts the tasks of one executor, and settles and forgets its futures. It is their `Owner`."""

    def __init__(self, client: Any, name: str, stops: Stops) -> None:
        self._client = client
        self._loop: Any = client.loop
        self._name = name
        self._stops = stops
        # Guards what follows, the state of the executor, and `_remote` of each future, which others read once
        # and without it. Once the state is no longer RUNNING, no task comes.
        self.lock: Any = threading.RLock()
        # Those not done, each with its executor: so the executor lives until its tasks are done, though the
        # caller drops it.
        self._futures: dict[RemoteFuture[Any], object] = {}
        self._counts = {"completed": 0, "failed": 0, "cancelled": 0}
        self._submitted = 0

    def __len__(self) -> int:
        return len(self._futures)

    def open_futures(self) -> list[RemoteFuture[Any]]:
        """Return the futures that are not done."""
        with self.lock:
            return list(self._futures)

    def enter(self, future: RemoteFuture[Any], executor: object) -> None:
        """Count a task that is about to be submitted. The caller holds the lock."""
        self._submitted += 1
        self._futures[future] = executor

    def give_up(self, future: RemoteFuture[Any]) -> None:
        """Undo a submission that failed: the future is cancelled and not counted."""
        keep: object = None  # the executor may go with its last task, and not under the lock
        with self.lock:
            if future in self._futures:
                self._submitted -= 1
                keep = self._futures.pop(future)
        future.cancel()
        self.forget(future, None)
        del keep

    def settle(self, future: RemoteFuture[Any], answer: Answer) -> None:
        """Give a future the answer of its worker. Runs on the client's event loop."""
        if answer.cancelled:
            future.cancel()
            return
        chunk, future._chunk = future._chunk, None
        if chunk is not None and answer.results is not None:
            chunk.results = answer.results
        # The count comes first, so that a caller who has the result finds it in `stats`.
        self.forget(future, "completed" if answer.error is None else "failed")
        try:
            if answer.error is None:
                future.set_result(answer.value)
            else:
                future.set_exception(answer.error)
        except InvalidStateError:  # cancelled, and counted as that
            pass
        except BaseException:  # a done-callback's SystemExit, which would end the event loop
            logger.exception("executor %r: a done-callback raised and was ignored", self._name, executor=self._name)

    def forget(self, future: RemoteFuture[Any], outcome: str | None) -> None:
        """Count a future that is done, or about to be, and forget it, here and on the cluster."""
        keep: object = None  # as in `give_up`
        with self.lock:
            if future in self._futures and outcome is not None:
                keep = self._futures.pop(future)
                self._counts[outcome] += 1
            remote, future._remote = future._remote, None
        del keep
        if remote is None:
            return
        try:
            if outcome == "cancelled" or outcome is None:
                # `Client.cancel` would block here; on the loop it would return a coroutine that nothing
                # awaits.
                self._loop.add_callback(self._client._cancel, [remote])
            else:
                remote.release()
        except RuntimeError:  # the loop is closed
            pass

    def stop(self, future: RemoteFuture[Any]) -> None:
        """Have the task of a future stopped, wherever it is. Never blocks."""
        self._stops.ask(future)

    def numbers(self, running: int, running_priority: int) -> dict[str, Any]:
        """Return what `ExecutorStats` says about tasks. The workers report those that run. The caller holds the lock."""
        futures = list(self._futures)  # a destructor may run on this thread, and cancel one: the lock is reentrant
        urgent = sum(future._urgent for future in futures)
        normal = len(futures) - urgent
        running_priority = min(urgent, running_priority)
        running_normal = min(normal, running - running_priority)
        return {
            **self._counts,
            "submitted": self._submitted,
            "running_tasks": running_priority + running_normal,
            "priority_tasks": urgent - running_priority,
            "queued_tasks": normal - running_normal,
        }
