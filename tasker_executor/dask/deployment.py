"""What an executor has on its cluster: a plugin in the scheduler and one on each worker; and the calls to them."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from distributed import TimeoutError as DaskTimeoutError

from .._checks import check_callable
from .._engine.handoff import refuse_late_patching
from .._engine.settings import Settings
from .._report import Logger, safe_repr, safe_str
from .._sync import clock, lock_timeout
from ..exceptions import ResourceCreationError, TaskLost
from .reports import Report
from .scheduler_side import SchedulerSide, clear_up_here
from .stops import ASK_TIMEOUT
from .wire import Answer, Job, dumps_by_value
from .worker_side import WATCH_INTERVAL, WorkerSide, drain_here, refresh_here, report_here, run_now_here

__all__ = ["Carrier", "Deployment", "check_carriers", "check_settings"]

logger: Logger = Logger("tasker_executor.dask")

#: Takes a piece of context to another machine: ``capture()``, called by `submit`, returns a plain value;
#: ``restore(value)`` is called on the worker, in the context that the task will run in.
Carrier = tuple[Callable[[], Any], Callable[[Any], object]]


class Deployment:
    """The plugins of one executor on the cluster, and the calls that reach them past the scheduler's queues."""

    def __init__(self, client: Any, name: str) -> None:
        self._client = client  # whose methods are typed in part
        self._name = name
        self.unique: str = uuid.uuid4().hex
        #: The name of the plugins.
        self.plugin: str = f"tasker-{name}-{self.unique}"
        self._turns = itertools.count()  # of the workers, for `run_now`; `next` of a count is one step

    def register(self, settings: dict[str, Any], restore: list[Callable[[Any], object]], grace: float) -> None:
        """Put the plugins on the cluster. After an error nothing stays there."""
        pickled = _dump_settings(settings, restore)
        try:
            self._client.register_plugin(SchedulerSide(self.plugin, self._client.id), name=self.plugin)
            self._set_up_workers(WorkerSide(self.plugin, pickled, grace))
        except BaseException:
            self.unregister()
            raise

    def _set_up_workers(self, plugin: WorkerSide) -> None:
        """Set up all workers, those that join later included.

        If a worker dies while Dask does so, Dask stops half-way; so this tries again, at most 5 times.
        """
        for attempt in itertools.count(1):
            try:
                self._client.register_plugin(plugin, name=self.plugin)
                return
            except OSError:
                if attempt == 5 or self._client.status != "running":
                    raise
                logger.info("executor %r: a worker died while it was set up", self._name, exc_info=True)

    def unregister(self) -> None:
        """Remove the plugins from the cluster, as far as that is possible."""
        steps: list[Callable[[], Any]] = [
            lambda: self._client.unregister_worker_plugin(self.plugin),
            lambda: self._client.run_on_scheduler(clear_up_here, self.plugin),
        ]
        for step in steps:
            if self._client.status != "running":
                return
            try:
                step()
            except Exception:  # never registered, or a worker has just died: then the scheduler has no plugin left
                logger.debug("executor %r: its plugins could not be removed from the cluster", self._name, exc_info=True)

    def run_now(self, job: Job, create_timeout: float) -> Any:
        """Run a call on a worker, and return its result; each call takes the next worker.

        If the worker dies, the next worker runs the call, unless the task may run only once.
        """
        deadline = clock() + create_timeout
        while True:
            workers = sorted(self._client.scheduler_info(n_workers=-1)["workers"])
            if not workers:
                try:
                    self._client.wait_for_workers(1, timeout=max(0.001, lock_timeout(deadline - clock())))
                except DaskTimeoutError as error:
                    raise ResourceCreationError(f"executor {self._name!r}: the cluster has no worker for run_now") from error
                continue
            worker = workers[next(self._turns) % len(workers)]
            reply = self._client.run(run_now_here, self.plugin, job, workers=[worker], on_error="return")[worker]
            if isinstance(reply, bytes):
                answer: Answer = pickle.loads(reply)
                if answer.error is not None:
                    raise answer.error
                return answer.value
            # The scheduler may not know yet that the worker is gone, and name it again.
            if job.once or not isinstance(reply, OSError) or clock() > deadline:
                raise TaskLost(f"{job.function}: worker {worker} is gone, or cannot be reached") from reply
            time.sleep(WATCH_INTERVAL)

    def refresh(self) -> None:
        """Have every worker replace its resources. Raise what went wrong on one."""
        replies = self._client.run(refresh_here, self.plugin, on_error="return")
        for reply in replies.values():
            if isinstance(reply, BaseException) and not isinstance(reply, OSError):  # a lost worker has no resources
                raise reply

    def drain(self) -> list[Report]:
        """Have every worker's executor shut down, and wait for that. Return their last reports."""
        reports = self._client.run(drain_here, self.plugin, on_error="ignore")
        return [report for report in reports.values() if report is not None]

    def reports(self, *, reset: bool) -> list[Report]:
        """Ask all workers for their reports."""
        reports = self._client.run(report_here, self.plugin, reset, on_error="ignore")
        return [report for report in reports.values() if report is not None]

    async def tell(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function on all workers, and return their answers; None if they do not come in time."""
        try:
            return await asyncio.wait_for(self._client._run(function, self.plugin, *args, on_error="ignore"), ASK_TIMEOUT)
        except Exception:
            logger.debug("executor %r: the workers do not answer", self._name, exc_info=True)
            return None


def check_settings(settings: dict[str, Any]) -> Settings:
    """Return the settings as a worker reads them, or raise in the caller's thread if it would refuse them."""
    refuse_late_patching()
    # Without a limit, a worker has as many threads as Dask gives it. The client does not know that number.
    most = sys.maxsize if settings["max_workers"] is None else settings["max_workers"]
    absent: dict[str, Any] = {"thread_name_prefix": "", "max_queued": None, "on_full": "block", "propagate_context": True}
    return Settings.checked("", **{**settings, **absent, "max_workers": most})


def check_carriers(carriers: Iterable[Carrier]) -> list[Carrier]:
    """Return the carriers as a list, or raise, naming the function that is none."""
    pairs = list(carriers)
    for number, (capture, restore) in enumerate(pairs):
        check_callable(f"carriers[{number}][0]", capture)
        check_callable(f"carriers[{number}][1]", restore)
    return pairs


def _dump_settings(settings: dict[str, Any], restore: list[Callable[[Any], object]]) -> bytes:
    """Return what each worker gets, pickled, or raise, naming the argument that does not pickle."""
    try:
        return dumps_by_value((settings, restore))
    except Exception:
        for argument, value in {**settings, "carriers": restore}.items():
            try:
                dumps_by_value(value)
            except Exception as error:
                raise TypeError(
                    f"{argument}={safe_repr(value)} does not pickle, so the workers cannot have it: {safe_str(error)}; "
                    "what cannot travel must be made on the worker"
                ) from error
        raise
