"""The stops of tasks: the client finds out where each task is, and asks its worker to stop it.

A task that waits is cancelled, whether it waits at the scheduler or on a worker. The worker's own executor
stops a task that runs, and the task's answer comes as every answer does.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Coroutine, Iterable
from typing import Any

from .._report import Logger
from .futures import RemoteFuture
from .worker_side import stop_here

__all__ = ["ASK_TIMEOUT", "Stops"]

logger: Logger = Logger("tasker_executor.dask")

# How long the client waits for a worker to answer.
ASK_TIMEOUT = 5.0
# Pauses between two questions about a task whose place is not known: the first, and the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0


class Stops:
    """Carries out the stops of one executor's futures, on the client's event loop."""

    def __init__(self, client: Any, plugin: str) -> None:
        self._client = client
        self._plugin = plugin
        self._asked: deque[RemoteFuture[Any]] = deque()  # any thread appends, in one step; the loop takes
        self._running: set[asyncio.Task[None]] = set()  # asyncio itself holds its tasks by weak references

    def ask(self, future: RemoteFuture[Any]) -> None:
        """Have the task of `future` stopped. Never blocks.

        Raises:
            RuntimeError: The event loop is closed.
        """
        self._asked.append(future)
        self._client.loop.add_callback(self._take)

    def _take(self) -> None:
        """Begin to carry out the stops that were asked for. Runs on the event loop; the first call takes all."""
        futures = [self._asked.popleft() for _ in range(len(self._asked))]
        if futures:
            self._start(self._carry_out(futures, _FIRST_PAUSE))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _carry_out(self, asked: Iterable[RemoteFuture[Any]], pause: float) -> None:
        """Ask the scheduler where the tasks are, and go there."""
        futures = {remote.key: future for future in asked if not future.done() and (remote := future._remote) is not None}
        if not futures or self._client.status not in ("running", "connecting"):
            return  # with the connection, all futures are lost
        try:
            places: dict[str, str | None] = await getattr(self._client.scheduler, f"stop-{self._plugin}")(keys=list(futures))
        except Exception:
            logger.debug("%s: the scheduler does not answer", self._plugin, exc_info=True)
            places = {}
        unknown: list[RemoteFuture[Any]] = []
        of_worker: defaultdict[str, list[RemoteFuture[Any]]] = defaultdict(list)
        for key, future in futures.items():
            place = places.get(key, "unknown")
            if place == "unknown":  # the submission is on its way
                unknown.append(future)
            elif place == "waits":
                future.cancel()
            elif place is not None:
                of_worker[place].append(future)
        for address, group in of_worker.items():
            self._start(self._tell(address, group, pause))
        if unknown:
            self._start(self._ask_again(unknown, pause))

    async def _tell(self, address: str, futures: list[RemoteFuture[Any]], pause: float) -> None:
        """Ask a worker to stop these tasks, and cancel those that it has not started."""
        keys = [remote.key for future in futures if (remote := future._remote) is not None]
        ask = self._client._run(stop_here, self._plugin, keys, workers=[address], on_error="ignore")
        try:
            waiting: list[str] = (await asyncio.wait_for(ask, ASK_TIMEOUT))[address]
        except Exception:  # if the worker is gone, the scheduler soon notices, and Dask tells the futures
            logger.debug("%s: worker %s does not answer", self._plugin, address, exc_info=True)
            await self._ask_again(futures, pause)
            return
        for future in futures:
            remote = future._remote
            if remote is not None and remote.key in waiting:
                future.cancel()

    async def _ask_again(self, futures: list[RemoteFuture[Any]], pause: float) -> None:
        await asyncio.sleep(pause)
        await self._carry_out(futures, min(2 * pause, _LONGEST_PAUSE))
