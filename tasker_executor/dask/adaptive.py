"""How many machines a cluster has: a `ScalingPolicy` decides, on measurements made in the scheduler."""

from __future__ import annotations

import inspect
import math
import sys
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from distributed import Adaptive
from typing_extensions import override

from .._report import Logger, safe_repr
from .._sync import clock
from ..policies import ScalingPolicy, ask, check_policy, interval_of
from ..stats import LoadSample
from .scheduler_side import IdleOnly
from .wire import dumps_by_value

if TYPE_CHECKING:
    from distributed import Scheduler

__all__ = ["LoadMeter", "PolicyAdaptive"]

logger: Logger = Logger("tasker_executor.dask")

#: Rates look back about this many seconds.
_RATE_WINDOW = 10
_UNFINISHED = frozenset({"waiting", "no-worker", "queued", "processing"})


class LoadMeter(IdleOnly):
    """Measures, in the scheduler, the load that a `ScalingPolicy` is shown. The tasks of all clients count."""

    name = "tasker-load-meter"
    idempotent = True

    def __init__(self) -> None:
        self._waiting: dict[Any, float] = {}  # tasks not done, and when they came, the oldest first
        self._arrived: Counter[int] = Counter()  # by second
        self._finished: Counter[int] = Counter()
        self._run_time: dict[int, float] = {}
        self._service_time = 0.0

    async def start(self, scheduler: Scheduler) -> None:
        """Begin to measure. Dask calls this."""
        self._scheduler = scheduler
        self._born = clock()
        self._waiting.update((key, self._born) for key, task in scheduler.tasks.items() if task.state in _UNFINISHED)
        scheduler.handlers["tasker-load"] = self.load
        scheduler.handlers["tasker-retire"] = self.retire

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Note that a task arrived or ended. Dask calls this."""
        if finish in _UNFINISHED:
            if key not in self._waiting:
                now = self._waiting[key] = clock()
                self._arrived[int(now)] += 1
        elif finish in ("memory", "erred"):
            if self._waiting.pop(key, None) is not None:
                second = int(clock())
                self._finished[second] += 1
                spans = kwargs.get("startstops") or ()
                ran = sum(span["stop"] - span["start"] for span in spans if span["action"] == "compute")
                self._run_time[second] = self._run_time.get(second, 0.0) + ran
        elif finish == "forgotten":
            self._waiting.pop(key, None)

    def load(self) -> dict[str, float]:
        """Return the numbers of a `LoadSample`. A handler of the scheduler."""
        workers = list(self._scheduler.workers.values())
        now = clock()
        recent = int(now) - _RATE_WINDOW
        for history in (self._arrived, self._finished, self._run_time):
            for second in [second for second in history if second < recent]:
                del history[second]
        finished = sum(self._finished.values())
        if finished:
            self._service_time = sum(self._run_time.values()) / finished
        span = max(1.0, min(_RATE_WINDOW, now - self._born))

        # Heartbeats tell which tasks run, about a second late. How many can run is known without delay.
        running = {task.key for worker in workers for task in worker.executing}
        started = sum(min(len(worker.processing), worker.nthreads) for worker in workers)
        queued = max(0, len(self._waiting) - started)
        waiting = [key for key in self._waiting if key not in running] if queued else []
        tasks = self._scheduler.tasks
        urgent = sum((task := tasks.get(key)) is not None and (task.priority or (0,))[0] < 0 for key in waiting)
        threads = max(1.0, sum(worker.nthreads for worker in workers) / max(1, len(workers)))
        return {
            "time": now,
            "workers": len(workers),
            "busy": sum(1 for worker in workers if worker.processing),
            "queued_priority": min(urgent, queued),
            "queued_normal": queued - min(urgent, queued),
            "oldest_wait": now - self._waiting[waiting[0]] if waiting else 0.0,
            "arrival_rate": sum(self._arrived.values()) / span,
            "completion_rate": finished / span,
            # A machine with n threads runs n tasks at a time. A policy sees it as one worker that is n times
            # as quick.
            "mean_service_time": self._service_time / threads,
        }

    async def retire(self, names: list[Any]) -> list[Any]:
        """Retire those of the named workers that are idle; return the names of these, and of unknown ones.

        A handler of the scheduler, so that the question and the retirement are one step. With two steps:

        1. the client asks which workers are idle;
        2. a task starts on one of them;
        3. the client retires that worker, and Dask runs the task a second time.
        """
        workers = {worker.name: worker for worker in self._scheduler.workers.values()}
        idle = [worker.address for name in names if (worker := workers.get(name)) is not None and not worker.processing]
        if idle:
            await self._scheduler.retire_workers(workers=idle, close_workers=True, remove=True)
        left = {worker.name for worker in self._scheduler.workers.values()}
        return [name for name in names if name not in left]


class PolicyAdaptive(Adaptive):
    """Lets a `ScalingPolicy` decide how many machines a cluster has, as elsewhere how many threads.

        cluster.adapt(Adaptive=PolicyAdaptive, policy=RatePolicy(), minimum=1, maximum=10)

    The policy is shown a `LoadSample` in which a worker is a worker of Dask: a process, most often one for
    each machine. A worker with n threads runs n tasks at a time, so the service time is divided by n.
    Heartbeats tell which tasks run, about a second late. Only idle workers are retired, because Dask would
    run the tasks of a busy one again; and only when the policy has wanted fewer workers ``wait_count`` times
    in a row (3).

    Args:
        cluster: The cluster; `Cluster.adapt` passes it.
        policy: Decides how many machines.
        interval: Seconds between two questions. None: the policy's own.
        **kwargs: For `distributed.Adaptive`: ``minimum``, ``maximum``, ``wait_count`` and more.

    Raises:
        TypeError: `policy` is no `ScalingPolicy`.
    """

    def __init__(self, cluster: Any, policy: ScalingPolicy, interval: Any = None, **kwargs: Any) -> None:
        # The destructor reads it, if the next lines raise.
        self.state: Literal["starting", "running", "stopped", "inactive"] = "inactive"
        self._policy = check_policy("policy", policy)
        self._policy_failed = False
        self._wanted: int | None = None
        self._metered = False
        if interval is None:
            interval = interval_of(policy)
        super().__init__(cluster, interval=interval, **kwargs)

    @override
    async def target(self) -> int:
        """Return how many workers the policy wants.

        If the policy raises, its last target stands, and the first error of a row is logged.
        """
        scheduler: Any = self.scheduler
        if not self._metered:
            meter = LoadMeter()
            await scheduler.register_scheduler_plugin(plugin=dumps_by_value(meter), name=meter.name, idempotent=True)
            self._metered = True
        measured: dict[str, Any] = await getattr(scheduler, "tasker-load")()
        cluster: Any = self.cluster
        planned, observed = len(cluster.plan), len(cluster.observed)
        most = sys.maxsize if math.isinf(self.maximum) else int(self.maximum)
        if self._wanted is None:
            self._wanted = planned
        measured["workers"] = max(measured["workers"], planned)
        load = LoadSample(
            idle=max(0, observed - measured["busy"]),
            mean_create_time=0.0,
            create_failures=0,
            min_workers=self.minimum,
            max_workers=most,
            target=self._wanted,
            **measured,
        )
        try:
            self._wanted = ask(self._policy, load)
        except Exception:
            if not self._policy_failed:
                logger.exception("%s raised; the last target stands", safe_repr(self._policy))
            self._policy_failed = True
        else:
            self._policy_failed = False
        return self._wanted

    async def scale_down(self, workers: Iterable[Any]) -> None:  # type: ignore[override]  # Adaptive's own: its base says int
        """Retire those of the workers that are idle at this moment."""
        names: list[Any] = await getattr(self.scheduler, "tasker-retire")(names=list(workers))
        cluster: Any = self.cluster
        if names and inspect.isawaitable(closed := cluster.scale_down(names)):
            await closed
