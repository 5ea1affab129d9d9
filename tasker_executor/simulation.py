"""What would this policy do with that load? A simulation of the executor's workers, without threads.

`simulate` asks the same policy object that an executor would ask, at its interval, with the same
`LoadSample`. An hour of load takes about a second. The load is made up, or recorded in production
(`tasker_executor.recording`).

    >>> from tasker_executor.policies import BacklogPolicy
    >>> step = [n / 10 for n in range(100)] + [10 + n / 100 for n in range(1000)]  # 10 tasks a second, then 100
    >>> print(simulate(None, step, 0.1, min_workers=11, max_workers=11))
    1100 tasks by 20.1 s: mean wait 0.000 s, p99 0.000 s | 221 worker-seconds, peak 11, created 11, flaps 0
    >>> print(simulate(BacklogPolicy(), step, 0.1, min_workers=2, max_workers=16))
    1100 tasks by 20.5 s: mean wait 0.008 s, p99 0.170 s | 151 worker-seconds, peak 14, created 14, flaps 1

The simulation has these rules of the executor:

- A task takes an idle worker, or else waits: priority tasks before normal ones, in order of arrival within
  each lane.
- A worker is started when a task waits and no worker is starting for it, up to the number wanted, and at
  least one. It takes tasks once ``create_time`` has passed.
- The policy's answer is clamped to ``min_workers`` and ``max_workers``. Idle workers above it are retired at
  that moment, busy workers never. (The executor retires the least recently used first. Here only the number
  of idle workers counts.)
- The base, ``min_workers``, is started first and kept.
- The questions pause at rest: no task queued, no worker busy, no worker above the base. They begin, and go on
  after a pause, one interval after an arrival; or after a twentieth of it if a task waits then, and the last
  question was an interval ago.

It leaves out: tasks that fail, are retried or cancelled; an ``on_create`` that fails; the time that threads
and locks take; and the processor. Simulated tasks never slow each other down, as real tasks do that compute
or share a database.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

from typing_extensions import override

from ._checks import check_bounds, check_finite, check_max_workers, check_seconds
from ._load import Arrivals, Load, Rates, ServiceTime, make_load
from .policies import ScalingPolicy, ask, check_policy, first_look, interval_of
from .stats import LoadSample

__all__ = ["Arrivals", "Moment", "ServiceTime", "Simulation", "simulate"]

# At most this many seconds after the last task, for a policy to come back to the base.
_SETTLE = 60.0

# Without a policy there are no questions. The timeline then has a point every 0.1 s.
_RESOLUTION = 0.1


class Moment(NamedTuple):
    """One point of a timeline; ``zip(*timeline)`` gives the columns.

    Attributes:
        time: The moment, on the clock of the arrivals.
        workers: Workers that exist, those still making their resource included.
        busy: Workers that run a task.
        queued: Tasks waiting, in both lanes.
        oldest_wait: How long the task that waits longest has waited; 0.0 when none waits.
        target: The number of workers wanted from now on.
    """

    time: float
    workers: int
    busy: int
    queued: int
    oldest_wait: float
    target: int


@dataclass(frozen=True)
class Simulation:
    """What came of a load under a policy.

    Attributes:
        completed: Tasks that ran, which is all of them.
        mean_wait: Seconds from arrival to start, on average; 0.0 when there were no tasks.
        p99_wait: The shortest wait that 99 % of the tasks did not exceed.
        max_wait: The longest wait.
        worker_seconds: The cost: the sum of the times that the workers existed.
        creations: Workers started, and resources made, those of the base included.
        peak_workers: The most workers at one time.
        flaps: How often the number wanted turned round: a change up less than ``flap_window`` seconds after a
            change down, or the reverse, with no other change between the two.
        end: When the simulation ended, on the clock of the arrivals.
        timeline: The state at the start, after each question to the policy (without one, ten times a second),
            when the questions go on after a rest, and at the end. During a rest nothing changes.
        waits: The wait of each task, in order of arrival.
        priority: Whether each task was in the priority lane, in the same order.
    """

    completed: int
    mean_wait: float
    p99_wait: float
    max_wait: float
    worker_seconds: float
    creations: int
    peak_workers: int
    flaps: int
    end: float
    timeline: tuple[Moment, ...] = field(repr=False)
    waits: tuple[float, ...] = field(repr=False)
    priority: tuple[bool, ...] = field(repr=False)

    @override
    def __str__(self) -> str:
        """Return the summary in one line."""
        return (
            f"{self.completed} tasks by {self.end:.1f} s: mean wait {self.mean_wait:.3f} s, p99 {self.p99_wait:.3f} s"
            f" | {self.worker_seconds:.0f} worker-seconds, peak {self.peak_workers}, created {self.creations},"
            f" flaps {self.flaps}"
        )


def simulate(
    policy: ScalingPolicy | None,
    arrivals: Arrivals,
    service_time: ServiceTime = None,
    *,
    max_workers: int,
    min_workers: int = 0,
    create_time: float = 0.0,
    priority_share: float = 0.0,
    start: float | None = 0.0,
    until: float | None = None,
    flap_window: float = 10.0,
    seed: int = 0,
) -> Simulation:
    """Simulate a load under a policy; return the waits of the tasks, the cost and the timeline.

    The same arguments give the same result, every time. The load is drawn before the first task runs, so with
    one seed two policies face the same tasks. A policy may remember what it was asked, so give each
    simulation a new one.

    Args:
        policy: The policy, which is asked at its interval. None for an executor without one: `max_workers`
            are wanted all the time.
        arrivals: When the tasks arrive, in seconds: numbers in any order, or the path of a recording. A
            recording holds one number a line, or is a CSV file with a column ``arrival``: see
            `tasker_executor.recording`.
        service_time: How long a task runs, in seconds: a number; an iterable with one number for each of the
            arrivals, in their order; a function of a random generator, such as ``lambda random:
            random.expovariate(10)``; or None for the ``duration`` in the recording. Rows without a duration
            are tasks that never ran, and are then left out.
        max_workers: The policy's answer is clamped to this.
        min_workers: The base.
        create_time: Seconds that a new worker needs before it can take a task.
        priority_share: The share of the tasks, chosen at random, that goes to the priority lane. If it is
            0.0, the column ``lane`` of a recording decides: tasks with ``priority`` there go to the priority
            lane.
        start: When the executor starts, on the clock of the arrivals. None for the first arrival: for a clock
            that shows the time of day, or that began long before.
        until: When to end, but not before the last task is done. None for the moment when the last task is
            done, or when the policy has come back to the base after it, at most 60 seconds later.
        flap_window: Seconds in which a turn of the number wanted is a flap, see `Simulation`.
        seed: The seed of all that is drawn at random.

    Raises:
        ValueError: A number is negative, not finite or before the start; a file is not a recording.
        TypeError: An argument has the wrong type.
        OSError: A file cannot be read.
    """
    if policy is not None:
        check_policy("policy", policy)
    limit = check_max_workers(max_workers)
    base = check_bounds(min_workers, limit)
    load = make_load(arrivals, service_time, priority_share, seed)
    begin = _check_start(start, load)
    create_time = check_finite("create_time", create_time)
    tally = _Tally(len(load.arrivals), begin, check_seconds("flap_window", flap_window))
    run = _Run(policy, load, base, limit, create_time, begin, tally)
    end = run.run(None if until is None else check_finite("until", until))
    return tally.result(end, load.priority)


def _check_start(start: float | None, load: Load) -> float:
    """Return when the executor starts, or raise if a task arrives before."""
    first = load.arrivals[0] if load.arrivals else 0.0
    begin = first if start is None else check_finite("start", start)
    if load.arrivals and first < begin:
        raise ValueError(f"start must not be later than the first arrival at {first!r}, not {start!r}")
    return begin


class _Tally:
    """What comes of a simulation: the numbers that become a `Simulation`."""

    def __init__(self, tasks: int, start: float, flap_window: float) -> None:
        self.waits = [0.0] * tasks
        self.creations = 0
        self._worker_seconds = 0.0
        self._counted_until = start
        self._peak_workers = 0
        self._flap_window = flap_window
        self._flaps = 0
        self._changed_at = -math.inf
        self._grew = False
        self._timeline: list[Moment] = []

    def count_workers(self, now: float, before: int, after: int) -> None:
        """Count the cost of the workers until now, when their number changes."""
        self._worker_seconds += before * (now - self._counted_until)
        self._counted_until = now
        self._peak_workers = max(self._peak_workers, after)

    def count_turn(self, now: float, grows: bool) -> None:
        """Count a flap if the number wanted, which changes now, has just changed the other way."""
        if grows != self._grew and now - self._changed_at < self._flap_window:
            self._flaps += 1
        self._grew = grows
        self._changed_at = now

    def record(self, moment: Moment) -> None:
        """Add a point to the timeline."""
        if not self._timeline or moment != self._timeline[-1]:
            self._timeline.append(moment)

    def result(self, end: float, priority: list[bool]) -> Simulation:
        """Return the result of a simulation that has ended."""
        waits = self.waits
        ranked = sorted(waits)
        return Simulation(
            completed=len(waits),
            mean_wait=math.fsum(waits) / len(waits) if waits else 0.0,
            p99_wait=ranked[(99 * len(ranked) + 99) // 100 - 1] if ranked else 0.0,
            max_wait=ranked[-1] if ranked else 0.0,
            worker_seconds=self._worker_seconds,
            creations=self.creations,
            peak_workers=self._peak_workers,
            flaps=self._flaps,
            end=end,
            timeline=tuple(self._timeline),
            waits=tuple(waits),
            priority=tuple(priority),
        )


class _Run:
    """The executor that is simulated, and the events that change its state.

    An event is: a task is done, a worker is ready, a task arrives, the policy is asked. Events of one moment
    happen in this order.
    """

    def __init__(
        self,
        policy: ScalingPolicy | None,
        load: Load,
        min_workers: int,
        max_workers: int,
        create_time: float,
        start: float,
        tally: _Tally,
    ) -> None:
        self._policy = policy
        self._arrivals, self._durations, self._priority = load
        self._min_workers = min_workers
        self._max_workers = max_workers
        self._create_time = create_time
        self._start = start
        self._tally = tally
        self._rates = Rates(load.arrivals, start)

        self._target: int = max_workers if policy is None else min_workers
        self._workers = 0
        self._idle = 0
        self._arrived = 0
        # The indices of the tasks that wait.
        self._normal_lane: deque[int] = deque()
        self._priority_lane: deque[int] = deque()
        # For each busy worker, when its task will be done and how long it runs: a heap.
        self._running: list[tuple[float, float]] = []
        # For each worker that makes its resource, when it will be ready. All take equally long, so the deque
        # is sorted.
        self._starting: deque[float] = deque()

    def run(self, until: float | None) -> float:
        """Run from start to end; return the time of the end."""
        end = self._simulate(until)
        self._change_workers(end, 0)
        self._record(end)
        return end

    def _simulate(self, until: float | None) -> float:
        """Let all events happen; return the time of the end."""
        arrivals, running, starting = self._arrivals, self._running, self._starting
        count_finished = self._rates.count_finished
        tasks = len(arrivals)
        undone = tasks
        self._start_workers(self._start, self._min_workers)
        self._record(self._start)
        arrival = arrivals[0] if tasks else math.inf
        question, asked, regular = math.inf, -math.inf, -math.inf  # It begins with a pause, as the executor does.
        end = math.inf if undone else max(self._start, until or 0.0)
        while True:
            # A choice of four, and no common heap: the arrivals are sorted already, and would be most of its
            # entries.
            done = running[0][0] if running else math.inf
            ready = starting[0] if starting else math.inf
            now = min(done, ready, arrival, question)
            if now > end:
                return end
            if now == done:
                task = heappop(running)
                count_finished(task)
                self._take_task(now)
                undone -= 1
                if not undone:
                    end = self._end(now, until)
            elif now == ready:
                starting.popleft()
                self._take_task(now)
            elif now == arrival:
                self._arrive(now)
                arrival = arrivals[self._arrived] if self._arrived < tasks else math.inf
                if question == math.inf:
                    self._record(now)
                    regular = now + self._interval()
                    question = first_look(self._interval(), now, asked)
            elif now < regular and not self._queued():
                question = regular
            else:
                asked = regular = now
                if self._policy is not None:
                    self._ask(self._policy, now)
                self._record(now)
                question = math.inf if self._at_rest() else now + self._interval()
                if question == math.inf and not undone and until is None:
                    return now

    def _end(self, done: float, until: float | None) -> float:
        """Return when to end at the latest, now that all tasks are done."""
        if until is not None:
            return max(done, until)
        return done if self._policy is None else done + _SETTLE

    def _interval(self) -> float:
        if self._policy is None:
            return _RESOLUTION
        return interval_of(self._policy)  # above 0, or time would stand still

    def _at_rest(self) -> bool:
        if self._running or self._queued():
            return False
        return self._policy is None or self._workers <= self._min_workers

    def _queued(self) -> int:
        return len(self._normal_lane) + len(self._priority_lane)

    def _oldest_wait(self, now: float) -> float:
        first = min(lane[0] for lane in (self._normal_lane, self._priority_lane) if lane) if self._queued() else None
        return 0.0 if first is None else now - self._arrivals[first]

    def _arrive(self, now: float) -> None:
        """Let the next task arrive."""
        task = self._arrived
        self._arrived += 1
        if self._idle:
            self._idle -= 1
            duration = self._durations[task]
            heappush(self._running, (now + duration, duration))
        else:
            (self._priority_lane if self._priority[task] else self._normal_lane).append(task)
            self._start_needed(now)

    def _take_task(self, now: float) -> None:
        """Give a free worker a task, or count it as idle if no task waits."""
        if self._priority_lane:
            task = self._priority_lane.popleft()
        elif self._normal_lane:
            task = self._normal_lane.popleft()
        else:
            self._idle += 1
            return
        self._tally.waits[task] = now - self._arrivals[task]
        duration = self._durations[task]
        heappush(self._running, (now + duration, duration))

    def _start_needed(self, now: float) -> None:
        """Start a worker for each waiting task that no starting worker is for, up to the number wanted."""
        limit = max(1, self._min_workers, self._target)
        self._start_workers(now, min(self._queued() - len(self._starting), limit - self._workers))

    def _start_workers(self, now: float, number: int) -> None:
        if number > 0:
            self._change_workers(now, number)
            self._tally.creations += number
            self._starting.extend([now + self._create_time] * number)

    def _change_workers(self, now: float, change: int) -> None:
        before = self._workers
        self._workers += change
        self._tally.count_workers(now, before, self._workers)

    def _ask(self, policy: ScalingPolicy, now: float) -> None:
        """Ask the policy, then retire and start workers, as the executor does."""
        target = ask(policy, self._sample(now))
        if target != self._target:
            self._tally.count_turn(now, target > self._target)
            self._target = target
        retired = min(self._workers - target, self._idle)
        if retired > 0:
            self._idle -= retired
            self._change_workers(now, -retired)
        self._start_needed(now)

    def _sample(self, now: float) -> LoadSample:
        """Return the sample that the executor would show the policy."""
        arrival_rate, completion_rate, mean_service_time = self._rates.measure(now, self._arrived)
        return LoadSample(
            time=now,
            workers=self._workers,
            busy=len(self._running),
            idle=self._idle,
            queued_normal=len(self._normal_lane),
            queued_priority=len(self._priority_lane),
            oldest_wait=self._oldest_wait(now),
            arrival_rate=arrival_rate,
            completion_rate=completion_rate,
            mean_service_time=mean_service_time,
            mean_create_time=self._create_time if self._tally.creations > len(self._starting) else 0.0,
            create_failures=0,
            min_workers=self._min_workers,
            max_workers=self._max_workers,
            target=self._target,
        )

    def _record(self, now: float) -> None:
        wait = self._oldest_wait(now)
        self._tally.record(Moment(now, self._workers, len(self._running), self._queued(), wait, self._target))
