"""The gauges of an executor. This room reads the other rooms and changes none of them.

All readers come here: `stats`, `metrics` and `workers` of the executor, exporters, the monitor, Dask, and the
scaler, which shows the load to the policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from .._frozen import frozen
from .._sync import clock
from .attempt import describe
from .histogram import Histogram
from .outage import Outage
from .recorder import Outcome, Period
from .reserve import Reserve
from .roster import Roster
from .stacks import stacks_of
from .state import State
from .stops import Stops
from .task import FINISHED, Task
from .worker import Worker
from .workplace import Workplace

if TYPE_CHECKING:  # imported on use: to make its data classes takes as long as to import ten modules
    from ..stats import ExecutorMetrics, ExecutorStats, LoadSample, WorkerInfo

__all__ = ["Gauges", "Reading", "worker_info"]


@frozen
class Reading:
    """The numbers of one executor at one moment.

    Attributes:
        name: The name of the executor.
        oldest_wait: The longest wait of a queued task so far, in seconds; 0.0 if none is queued.
        failures_in_a_row: How often ``on_create`` has failed since a resource was last made.
        last_failure: The error of the last of these failures.
        retry_in: Seconds until the factory may be tried again.
        tasks: Tasks that are final, by lane and outcome.
        retries: Attempts after which a task was queued again, by lane.
    """

    name: str
    stats: ExecutorStats
    min_workers: int
    max_workers: int
    wanted_workers: int
    oldest_wait: float
    failures_in_a_row: int
    last_failure: BaseException | None
    retry_in: float
    tasks: Mapping[tuple[str, ...], int]
    retries: Mapping[tuple[str, ...], int]


class Gauges:
    """Reads the rooms of one engine. What other threads change is read in a copy, or by one step."""

    def __init__(self, place: Workplace, roster: Roster, outage: Outage, reserve: Reserve[Any] | None, stops: Stops) -> None:
        self.name = place.settings.name
        self._life = place.life
        self._roster = roster
        self._outage = outage
        self._lanes = place.lanes
        self._recorder = place.recorder
        self._source = place.source
        self._reserve = reserve
        self._stops = stops
        self._seen = 0  # the tasks that `stats` has seen, withdrawn ones included; guarded by the executor's lock

    @property
    def state(self) -> State:
        """The state of the executor."""
        return self._life.state

    def wait_until_closed(self, timeout: float | None = None) -> bool:
        """Block until the executor has closed, for `timeout` seconds at most; return whether it has."""
        return self._life.terminated.wait(timeout)

    def stats(self) -> ExecutorStats:
        """Return the gauges and counters of one consistent moment.

        They are read against the direction in which a task moves: its end first, its beginning last. So a
        task that moves at the same time may be missed, but is never counted twice. `submitted` never
        decreases, so a task that is missed counts as running. Only a retry moves backwards, and a task that a
        worker puts back: after one, the reading is repeated.
        """
        from ..stats import ExecutorStats

        with self._life.lock:
            normal, priority = self._lanes.normal, self._lanes.priority
            while True:
                returned = normal.returned + priority.returned
                counts = self._recorder.counts()
                retried = counts[False, Outcome.RETRIED] + counts[True, Outcome.RETRIED]
                settled = normal.settled_failed + priority.settled_failed
                cancelled = normal.cancelled + priority.cancelled
                withdrawn = normal.withdrawn + priority.withdrawn
                workers = len(self._roster.workers)
                busy, running = self._roster.busy(), self._roster.running()
                queued, urgent = normal.waiting(), priority.waiting()
                counts_again = self._recorder.counts()
                if (
                    retried == counts_again[False, Outcome.RETRIED] + counts_again[True, Outcome.RETRIED]
                    and returned == normal.returned + priority.returned
                ):
                    break
            completed = counts[False, Outcome.COMPLETED] + counts[True, Outcome.COMPLETED]
            failed = counts[False, Outcome.FAILED] + counts[True, Outcome.FAILED] + settled
            elsewhere = completed + failed + cancelled + queued + urgent
            # A task may have been seen in its lane and refused afterwards.
            self._seen = max(self._seen, elsewhere + running + withdrawn)
            submitted = self._seen - withdrawn
            base = min(workers, self._roster.min_workers)
            created, destroyed = (0, 0) if self._source is None else self._source.counts()
            return ExecutorStats(
                base_workers=base,
                active_workers=workers,
                burst_workers=workers - base,
                idle_workers=workers - busy,
                running_tasks=submitted - elsewhere,
                queued_tasks=queued,
                priority_tasks=urgent,
                available_resources=0 if self._reserve is None else self._reserve.available,
                submitted=submitted,
                completed=completed,
                failed=failed,
                cancelled=cancelled,
                retried=retried,
                resources_created=created,
                resources_destroyed=destroyed,
                workers_replaced=self._roster.replaced,
                create_failures=self._outage.total,
                written_off=len(self._roster.written_off),
                stopped=self._stops.stopped,
                timed_out=self._stops.timed_out,
                state=self._life.state.name.lower(),
            )

    def worker_infos(self, *, stacks: bool = False) -> tuple[WorkerInfo, ...]:
        """Return what each worker is doing, in the order of their numbers; with its stack, if asked for."""
        from dataclasses import replace

        roster = self._roster
        # In this order: a worker enters `written_off` before it leaves the crew, and `ending` until it has left.
        ending, crew = roster.ending, roster.workers.copy()
        gone = roster.written_off.copy()
        workers = sorted(crew | gone, key=attrgetter("index"))
        before = [(worker.task, worker.ready, worker in ending) for worker in workers]
        infos = [worker_info(worker, ending.get(worker), written_off=worker in gone) for worker in workers]
        if stacks:
            texts = stacks_of(worker.thread for worker in workers if not worker.over)
            for number, worker in enumerate(workers):
                # Otherwise the worker has gone on, and this may be the stack of what it does now.
                if before[number] == (worker.task, worker.ready, worker in ending):
                    infos[number] = replace(infos[number], stack=texts.get(worker.thread, ""))
        # What was found of these may be neither "busy" nor "ending" any more, and so "idle".
        left = crew - gone - roster.workers.copy() - roster.written_off.copy()
        return tuple(info for worker, info in zip(workers, infos, strict=True) if worker not in left)

    def metrics(self, *, reset: bool) -> ExecutorMetrics:
        """Return durations and rates of the period; start a new one if `reset`."""
        return self.period(reset=reset).metrics()

    def _rates(self) -> tuple[float, float, float]:
        in_hand = [task._submitted for worker in self._roster.workers.copy() if (task := worker.task) is not None]
        return self._recorder.rates(self._lanes, in_hand)

    def sample(self) -> LoadSample:
        """Return the load sample that a policy is shown."""
        from ..stats import LoadSample

        arrival_rate, completion_rate, service_time = self._rates()
        oldest = self._lanes.oldest()
        now = clock()
        roster = self._roster
        with self._life.lock:
            workers = roster.workers.copy()
            busy = roster.busy()
            return LoadSample(
                time=now,
                workers=len(workers),
                busy=busy,
                idle=max(0, sum(worker.ready for worker in workers) - busy),
                queued_normal=self._lanes.normal.waiting(),
                queued_priority=self._lanes.priority.waiting(),
                oldest_wait=0.0 if oldest is None else max(0.0, now - oldest),
                arrival_rate=arrival_rate,
                completion_rate=completion_rate,
                mean_service_time=service_time,
                mean_create_time=self._recorder.mean_create_time(),
                create_failures=self._outage.failures,
                min_workers=roster.min_workers,
                max_workers=roster.max_workers,
                target=roster.wanted,
            )

    def at_rest(self) -> bool:
        """Return whether no task waits or runs, and no worker above the base lives."""
        with self._life.lock:
            roster = self._roster
            return not roster.busy() and not self._lanes.waiting() and len(roster.workers) <= roster.min_workers

    # -- for exporters, the monitor and Dask

    def read(self) -> Reading:
        """Return the numbers of one moment, for readers outside of the engine."""
        roster, outage, recorder = self._roster, self._outage, self._recorder
        oldest = self._lanes.oldest()
        with self._life.lock:  # so that all numbers are of one moment; reentrant
            counts = recorder.counts()
            tasks: dict[tuple[str, ...], int] = {}
            for lane in self._lanes:
                tasks[lane.name, "completed"] = counts[lane.priority, Outcome.COMPLETED]
                tasks[lane.name, "failed"] = counts[lane.priority, Outcome.FAILED] + lane.settled_failed
                tasks[lane.name, "cancelled"] = lane.cancelled
            now = clock()
            return Reading(
                name=self.name,
                stats=self.stats(),
                min_workers=roster.min_workers,
                max_workers=roster.max_workers,
                wanted_workers=roster.wanted,
                oldest_wait=0.0 if oldest is None else max(0.0, now - oldest),
                failures_in_a_row=outage.failures,
                last_failure=outage.error if outage.failures else None,
                retry_in=max(0.0, outage.retry_at - now) if outage.failures else 0.0,
                tasks=tasks,
                retries={(lane.name,): counts[lane.priority, Outcome.RETRIED] for lane in self._lanes},
            )

    def period(self, *, reset: bool) -> Period:
        """Return what `metrics` summarizes, in a form that adds up with that of other executors."""
        wait, run, create, counts = self._recorder.durations(reset=reset)
        arrival_rate, completion_rate, _ = self._rates()
        return Period(wait, run, create, counts, arrival_rate, completion_rate)

    def urgent(self) -> int:
        """Return how many of the running tasks are of the priority lane."""
        return sum(task._lane.priority for task in self._roster.tasks())

    def histograms(self) -> Iterator[tuple[bool, Outcome, Histogram, Histogram]]:
        """Yield (priority lane?, outcome, wait, run) over the executor's whole life, in spite of resets."""
        return self._recorder.histograms()

    def create_histogram(self) -> Histogram:
        """Return the durations of ``on_create`` over the executor's whole life."""
        return self._recorder.create_histogram()

    # -- for tests

    def check(self) -> None:
        """Assert the invariants that can be asked at any moment."""
        stats = self.stats()
        for name, value in vars(stats).items():
            assert isinstance(value, str) or value >= 0, f"{name} is {value}"
        final = stats.completed + stats.failed + stats.cancelled
        assert stats.submitted == final + stats.queued_tasks + stats.priority_tasks + stats.running_tasks, stats
        roster = self._roster
        with self._life.lock:
            assert roster.leaving <= roster.workers
            # An error thrown into the exit path may split the removals; the worker then walks it once more.
            assert all(worker in roster.workers or not worker.over for worker in roster.ending)
            assert not roster.written_off & roster.workers, "written off, and in the crew"
            assert len({worker.index for worker in roster.workers}) == len(roster.workers), "two workers have one name"
            assert roster.min_workers <= roster.max_workers
            for worker in roster.workers:
                # In this order: the thread may begin to live, which locks `birth`, between the two looks.
                assert not worker.birth.locked() or worker.thread.is_alive() or worker.over, f"{worker} has no thread"
            if self._source is not None:
                created, destroyed = self._source.counts()
                assert created >= destroyed, "destroyed more resources than were made"
            if stats.state == "closed":  # all numbers are of one moment
                assert not roster.workers, "closed, with workers"
                assert stats.queued_tasks == stats.priority_tasks == stats.running_tasks == 0, stats


def worker_info(worker: Worker, ending_since: float | None, *, written_off: bool = False) -> WorkerInfo:
    """Return what a worker is doing now; `ending_since`: when it began to destroy its resource."""
    from ..stats import WorkerInfo

    task, holding, now = worker.task, worker.holding, clock()
    function = None if task is None else _name_of(task)
    with worker.place.recorder.lock:  # or what another thread folds at this moment would be counted twice
        uses = worker.log.attempts()
    age = 0.0 if holding is None else now - holding.born
    lane, attempt, running_for = None, 0, 0.0
    if task is not None and worker.task is task:
        state, lane, attempt, running_for = "busy", task._lane.name, worker.attempt, now - worker.since
    else:  # it is done now; so perhaps its result was described instead of its function
        function = None
        if ending_since is not None:
            state, running_for = "ending", now - ending_since
        elif worker.ready:
            state = "idle"
        else:
            state, running_for = "starting", now - worker.started_at
    if written_off:
        state, running_for = "written off", now - worker.since
    return WorkerInfo(worker.name, state, function, lane, attempt, max(0.0, running_for), uses, age)


def _name_of(task: Task[Any]) -> str | None:
    """Return the name of a task's function; None if it is not known any more."""
    name, sidecar = describe(task), task._sidecar
    if sidecar is not None and sidecar.verdict is not None:  # given up: what it runs is no longer there
        return None if sidecar.stop is None else sidecar.stop.function
    return None if task._status is FINISHED else name  # its result is in that place
