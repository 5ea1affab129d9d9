"""How many workers? Scaling policies: a frozen sample of the load in, a number out.

A policy is asked every `ScalingPolicy.interval` seconds while there is work, and is shown a `LoadSample`. It has no clock, no
thread and no lock: what it remembers lives in the policy object, and one object serves one executor. So it can be tested with a
table, and tried on a recorded load with `tasker_executor.simulation.simulate` before it is trusted.

What becomes of the answer is not the policy's business. The executor clamps it to its bounds, starts workers only when tasks
wait, retires idle workers only, and holds growth back while ``on_create`` fails.

The policies of this module keep three promises, and so does whatever is combined from them:

- *Never below what is busy*: they give up workers without a task only.
- *Never up at rest*: with nothing queued and nobody busy, the answer is not above the number wanted until now.
- *Monotone*: all else equal, a longer queue never gets a smaller answer.

``a | b`` wants what the greedier of the two wants (`Maximum`), ``a & b`` what the more modest one wants (`Minimum`).

Your own takes ten lines and needs no base class. This one knows the office hours; having no clock, it is handed the hour:

    >>> class OfficeHours:
    ...     interval = 60.0
    ...
    ...     def __init__(self, hour):
    ...         self.hour = hour
    ...
    ...     def target(self, load, /):
    ...         return 12 if 8 <= self.hour() < 18 else 2

    >>> load = LoadSample(time=0.0, workers=2, busy=2, idle=0, queued_normal=1, queued_priority=0, oldest_wait=0.01,
    ...                   arrival_rate=40.0, completion_rate=40.0, mean_service_time=0.1, mean_create_time=0.5,
    ...                   create_failures=0, min_workers=2, max_workers=16, target=2)
    >>> OfficeHours(lambda: 9).target(load)  # in an application: lambda: datetime.now().hour
    12
    >>> OfficeHours(lambda: 20).target(load)
    2
    >>> policy = OfficeHours(lambda: 20) | RatePolicy()  # at night, too, as many as the load needs
    >>> policy.target(load)
    6
"""

from __future__ import annotations

import math
import sys
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from typing_extensions import override

from ._checks import check_count, check_number, check_seconds, whole
from ._report import safe_repr
from .stats import LoadSample

__all__ = [
    "BacklogPolicy",
    "Combinable",
    "Hysteresis",
    "Maximum",
    "Minimum",
    "QueueWaitPolicy",
    "RatePolicy",
    "ScalingPolicy",
]

# So that 3 workers do for a load that floats make a hair more than 3.
_ROUNDING_ERROR = 1e-9


@runtime_checkable
class ScalingPolicy(Protocol):
    """What an executor asks how many workers there should be. The module's description shows how to write one."""

    @property
    def interval(self) -> float:
        """Seconds between two questions."""
        ...

    def target(self, load: LoadSample, /) -> int:
        """Return the number of workers wanted: any number, the executor clamps it to its bounds.

        Only one thread at a time calls it, the one that keeps the executor's time. If it raises, the number wanted until then
        stands. It must not wait: while it does, no task expires and no failing factory is tried again.

        Args:
            load: What is going on. ``load.target`` is the last answer, clamped.
        """
        ...


class Combinable:
    """Gives a policy the operators ``|`` (`Maximum`) and ``&`` (`Minimum`).

    One operand with it is enough: the other may be any policy.
    """

    __slots__ = ()

    def __or__(self: ScalingPolicy, other: ScalingPolicy) -> Maximum:
        return Maximum(self, other)

    def __ror__(self: ScalingPolicy, other: ScalingPolicy) -> Maximum:
        return Maximum(other, self)

    def __and__(self: ScalingPolicy, other: ScalingPolicy) -> Minimum:
        return Minimum(self, other)

    def __rand__(self: ScalingPolicy, other: ScalingPolicy) -> Minimum:
        return Minimum(other, self)


@dataclass(frozen=True)
class BacklogPolicy(Combinable):
    """Wants ``step`` workers more each time it finds ``threshold`` tasks waiting, else goes back to the base by ``step``.

    The plainest rule, that of the burst manager in the Go library *tasker*, with what that one lacks: a way back. Up, it never
    wants more workers than there are tasks, queued and running: while resources are slow to make, the queue stays long although
    enough workers are on their way. Down, it keeps what the waiting tasks will need, and a reserve.

    It knows the length of the queue and not how long a task takes, so the right threshold differs from load to load. Where
    tasks come in clumps it gives up workers between two of them: wrap it in a `Hysteresis`.

        >>> Hysteresis(BacklogPolicy(threshold=10, step=4), shrink_after=30)
        Hysteresis(BacklogPolicy(threshold=10, step=4, interval=0.1), shrink_after=30)

    Args:
        threshold: So many tasks waiting are too many.
        step: Workers more, or fewer, at a time.
        interval: Seconds between two questions.
    """

    threshold: int = 5
    step: int = 2
    interval: float = 0.1

    def __post_init__(self) -> None:
        _set(self, threshold=check_count("threshold", self.threshold, 1), step=check_count("step", self.step, 1))
        _set(self, interval=check_seconds("interval", self.interval, above_zero=True))

    def target(self, load: LoadSample, /) -> int:
        """Return ``step`` more, ``step`` fewer, or what the tasks at hand need if that lies between."""
        if load.queued >= self.threshold:
            return _grown(load, load.target + self.step)
        return _shrunk(load, load.target - self.step)


@dataclass(frozen=True)
class RatePolicy(Combinable):
    """Wants the workers that the arrivals keep busy for the given share of their time, and more while a backlog lasts.

    By Little's law (J. D. C. Little, 1961) ``arrival rate x mean service time`` tasks are in service on average; divided by
    ``utilization`` that leaves room for the ups and downs of the load. Both are measured over the last few seconds, so that an
    old peak is forgotten. Tasks that raise arrive and finish like any other: a stream of errors is as much load as it keeps
    workers busy, which is next to nothing where tasks fail fast.

    That number would just keep up: a backlog from before (from an outage, or a peak above the maximum) would stay for a long
    time, and at a utilization of 1 for ever. So the backlog counts as arrivals of the next ``window`` seconds, in which it
    should be gone; with one worker for each waiting task at most.

    Until the first task has finished, the service time is unknown. Meanwhile the number doubles at each question while tasks
    wait, as TCP's slow start feels its way up to an unknown capacity (V. Jacobson, 1988).

    One worker fewer must have half a worker to spare, or the answer would go up and down with the noise around each whole
    number.

    Args:
        utilization: The share of their time that workers should be busy, above 0.0 up to 1.0.
        window: Seconds in which a backlog should be gone. By default as many as the executor's rates look back: shorter follows
            every clump of arrivals, longer lets tasks wait.
        interval: Seconds between two questions.
    """

    utilization: float = 0.8
    window: float = 5.0
    interval: float = 0.1

    def __post_init__(self) -> None:
        utilization = check_number("utilization", self.utilization)
        if not 0.0 < utilization <= 1.0:
            raise ValueError(f"utilization must be a number above 0.0 up to 1.0, not {self.utilization!r}")
        _set(self, utilization=utilization, window=check_seconds("window", self.window, above_zero=True))
        _set(self, interval=check_seconds("interval", self.interval, above_zero=True))

    def target(self, load: LoadSample, /) -> int:
        """Return the number by Little's law, with the backlog spread over ``window`` seconds."""
        if load.mean_service_time <= 0.0:  # nothing has finished yet
            return _grown(load, 2 * max(1, load.target)) if load.queued else load.busy
        per_rate = load.mean_service_time / self.utilization
        backlog = min(load.queued, load.queued / self.window * per_rate)
        needed = min(load.arrival_rate * per_rate + backlog, load.max_workers)  # cut, since it may be infinite
        wanted = math.ceil(needed - _ROUNDING_ERROR)
        if wanted < load.target and needed > 0.0:
            wanted = min(load.target, math.ceil(needed + 0.5 - _ROUNDING_ERROR))
        if load.busy + load.queued == 0:  # the window still shows arrivals, but they are over
            wanted = min(wanted, load.target)
        return max(load.busy, wanted)


@dataclass(frozen=True)
class QueueWaitPolicy(Combinable):
    """Wants more workers while a task has waited longer than ``target_wait``, and one fewer while none waits.

    The wait of the oldest task is what users feel, and means the same whether tasks take a millisecond or a minute; the length
    of the queue does not. From CoDel (K. Nichols and V. Jacobson, 2012), which judges a queue by the time spent in it, and
    .NET's thread pool, which adds threads when nothing has left the queue for a while.

    Up fast, down slowly: late tasks multiply the number by ``growth``, up to the number of tasks, queued and running. Only
    while nothing waits does it come down, one worker at a time, to what is busy and a reserve. In between, a short wait is what
    was asked for, and nothing changes.

    Args:
        target_wait: Seconds that a task may wait before it starts.
        growth: The factor by which the number grows, by one worker at least; above 1.0.
        interval: Seconds between two questions. A wait may go unnoticed for so long.
    """

    target_wait: float = 0.05
    growth: float = 2.0
    interval: float = 0.1

    def __post_init__(self) -> None:
        growth = check_number("growth", self.growth)
        if not 1.0 < growth < math.inf:
            raise ValueError(f"growth must be a finite number above 1.0, not {self.growth!r}")
        _set(self, growth=growth, target_wait=check_seconds("target_wait", self.target_wait, above_zero=True))
        _set(self, interval=check_seconds("interval", self.interval, above_zero=True))

    def target(self, load: LoadSample, /) -> int:
        """Return more if the oldest task is late, less if none waits, else the same."""
        if load.queued and load.oldest_wait > self.target_wait:
            more = math.ceil(min(load.target * self.growth, load.max_workers))
            return _grown(load, max(load.target + 1, more))
        if load.queued:
            return max(load.busy, load.target)
        return _shrunk(load, load.target - 1)


class Hysteresis(Combinable):
    """Follows another policy up at once, and down only after ``shrink_after`` smaller answers in a row, to the largest of them.

    So a dip shorter than ``shrink_after * interval`` seconds costs no worker, whose resource would be wanted back a moment
    later. The idea is that of the Schmitt trigger; Kubernetes' autoscaler (the stabilization window) and Dask's adaptive
    clusters (``wait_count``) do the same.

    Let it span many times the service time. An hour of 50 tasks a second, which take 0.1 s on average (both at random), with a
    base of 2, simulated:

    =================  ================  =========  ========  ==============  =========  =====
    policy             ``shrink_after``  mean wait  p99 wait  worker-seconds  creations  flaps
    =================  ================  =========  ========  ==============  =========  =====
    `BacklogPolicy`    none              0.034 s    0.154 s   21142           11764      5901
    `BacklogPolicy`    30                0.001 s    0.040 s   34637           188        88
    `RatePolicy`       none              0.017 s    0.175 s   25535           430        560
    `RatePolicy`       30                0.007 s    0.112 s   28312           75         38
    `QueueWaitPolicy`  none              0.014 s    0.104 s   24786           13851      5839
    `QueueWaitPolicy`  30                0.001 s    0.027 s   38381           292        89
    =================  ================  =========  ========  ==============  =========  =====

    Args:
        policy: The policy to follow, at its interval.
        shrink_after: How many smaller answers in a row it takes. 1 changes nothing.
    """

    def __init__(self, policy: ScalingPolicy, shrink_after: int = 3) -> None:
        self._policy = check_policy("policy", policy)
        self._answers: deque[int] = deque(maxlen=min(check_count("shrink_after", shrink_after, 1), sys.maxsize))

    @property
    def interval(self) -> float:
        """Seconds between two questions: those of the policy followed."""
        return interval_of(self._policy)

    def target(self, load: LoadSample, /) -> int:
        """Return the answer of the policy followed, or the number wanted until now if the time to shrink has not come."""
        answers = self._answers
        wanted = _answer(self._policy, load)
        answers.append(wanted)
        if wanted >= load.target:
            return wanted
        # A window rather than a count that starts again once it was reached: the answer stays until it is followed, and so two
        # of these may be nested or combined without waiting for each other for ever.
        return min(load.target, max(answers)) if len(answers) == answers.maxlen else load.target

    @override
    def __repr__(self) -> str:
        return f"Hysteresis({self._policy!r}, shrink_after={self._answers.maxlen})"


class _Combination(Combinable):
    """Several policies that answer as one.

    Each of them is asked each time, at the smallest of their intervals. Asking each at its own interval and letting its last
    answer stand meanwhile lost: an old answer may be below what is busy by now, or above what a rest needs.
    """

    def __init__(self, *policies: ScalingPolicy) -> None:
        if not policies:
            raise ValueError(f"{type(self).__name__} needs at least one policy")
        members: list[ScalingPolicy] = []
        for policy in policies:
            if isinstance(policy, type(self)):  # (a | b) | c is Maximum(a, b, c)
                members += policy.policies
            else:
                members.append(check_policy("policies", policy))
        self._policies = tuple(members)

    @property
    def policies(self) -> tuple[ScalingPolicy, ...]:
        """The policies combined."""
        return self._policies

    @property
    def interval(self) -> float:
        """Seconds between two questions: the smallest of theirs."""
        return min(map(interval_of, self._policies))

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._policies))})"


class Maximum(_Combination):
    """Wants as many workers as the greediest of some policies: ``a | b``.

        >>> BacklogPolicy() | QueueWaitPolicy(target_wait=0.2)
        Maximum(BacklogPolicy(threshold=5, step=2, interval=0.1), QueueWaitPolicy(target_wait=0.2, growth=2.0, interval=0.1))

    Args:
        policies: One or more. All are asked each time, at the smallest of their intervals, so give those that go by steps the
        same.
    """

    def target(self, load: LoadSample, /) -> int:
        """Return the largest of the answers."""
        return max([_answer(policy, load) for policy in self._policies])


class Minimum(_Combination):
    """Wants only as many workers as the most modest of some policies: ``a & b``.

    Args:
        policies: One or more. All are asked each time, at the smallest of their intervals, so give those that go by steps the
        same.
    """

    def target(self, load: LoadSample, /) -> int:
        """Return the smallest of the answers."""
        return min([_answer(policy, load) for policy in self._policies])


def _grown(load: LoadSample, wanted: int) -> int:
    """Return what is wanted, but no more than there are tasks, and no less than was wanted until now, or is busy."""
    return max(load.busy, load.target, min(wanted, load.busy + load.queued))


def _shrunk(load: LoadSample, wanted: int) -> int:
    """Return what is wanted, but no less than the tasks at hand need, and no more than was wanted until now, or is busy.

    Workers that are busy for 90 % of the time are often seen idle, all ten of them hardly ever busy at once. Going down to the
    number that is busy at one moment would make each lull a shortage, and flap even when tasks come like clockwork. So as many
    stay idle as is the square root of the number busy: that much does a random load vary, and that much reserve is what
    queueing theory gives it (square-root staffing; S. Halfin and W. Whitt, 1981). At rest it is none.
    """
    needed = load.busy + load.queued + math.isqrt(load.busy)
    return max(load.busy, min(load.target, max(wanted, needed)))


def _set(policy: object, **numbers: float) -> None:
    """Put plain numbers in the place of what a frozen policy was given."""
    for name, number in numbers.items():
        object.__setattr__(policy, name, number)


def check_policy(name: str, value: Any) -> ScalingPolicy:
    """Return `value` if it is a policy, or raise TypeError, naming the argument."""
    if isinstance(value, type) or not isinstance(value, ScalingPolicy):
        raise TypeError(f"{name} must have an interval and a target(load); {safe_repr(value)} has not")
    return value


def interval_of(policy: ScalingPolicy) -> float:
    """Return the seconds between two questions to `policy`, or raise unless they are a number above 0."""
    return check_seconds("policy.interval", policy.interval, above_zero=True)


def ask(policy: ScalingPolicy, load: LoadSample) -> int:
    """Ask `policy` about `load` and return its answer as an int, clamped to the bounds of `load`.

    All that ask a policy ask here: the executor, the simulation and Dask's adaptive clusters.

    Raises:
        TypeError: The answer is not a whole number. An integer of NumPy is one, a bool or a float is not.
        Exception: Whatever the policy raises.
    """
    return min(max(load.min_workers, _answer(policy, load)), load.max_workers)


def _answer(policy: ScalingPolicy, load: LoadSample) -> int:
    """Return the answer of `policy` as an int, or raise TypeError if it is not a whole number."""
    answer = policy.target(load)
    wanted = whole(answer)
    if wanted is None:
        raise TypeError(f"{safe_repr(policy)} answered {safe_repr(answer)}, which is no number of workers")
    return wanted
