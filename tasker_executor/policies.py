"""How many workers? Scaling policies: a frozen sample of the load in, a number out.

While there is work, the executor asks its policy every `ScalingPolicy.interval` seconds and shows it a
`LoadSample`. A policy has no clock, no thread and no lock. What it remembers lives in the policy object, and
one object serves one executor. So it can be tested with a table, and tried on a recorded load with
`tasker_executor.simulation.simulate` before it is trusted.

The executor acts on the answer. It clamps it to its bounds, starts workers only when tasks wait, retires idle
workers only, and starts no more workers while ``on_create`` fails.

The policies of this module keep three promises, and so do combinations of them:

- *Never below the busy workers*: they give up only workers without a task.
- *Never up at rest*: with no task queued and no worker busy, the answer is not above the number wanted until
  now.
- *Monotone*: all else equal, a longer queue never gets a smaller answer.

``a | b`` wants the larger of two answers (`Maximum`), ``a & b`` the smaller (`Minimum`).

A policy of your own takes ten lines and needs no base class. This one knows the office hours. It has no
clock, so it is handed the hour:

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

# Rounding errors of floats make a load of 3 a little more than 3. For that, 3 workers must do.
_ROUNDING_ERROR = 1e-9

# The first look after a pause comes after this share of the interval: time for the tasks of a burst to be queued.
SOON = 0.05


@runtime_checkable
class ScalingPolicy(Protocol):
    """Says how many workers there should be. The module's description shows how to write one."""

    @property
    def interval(self) -> float:
        """Seconds between two questions."""
        ...

    def target(self, load: LoadSample, /) -> int:
        """Return the number of workers wanted: any whole number. The executor clamps it to its bounds.

        One thread at a time calls it, the executor's timer. If it raises, the number wanted until then
        stands. It must not wait: while it waits, no task expires and no failing factory is tried again.

        Args:
            load: The load at this moment. ``load.target`` is the last answer, clamped.
        """
        ...


class Combinable:
    """Gives a policy the operators ``|`` (`Maximum`) and ``&`` (`Minimum`).

    One operand must have this base class; the other may be any policy.
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
    """Wants ``step`` workers more while ``threshold`` tasks wait, and otherwise ``step`` fewer, down to the base.

    The plainest rule: that of the burst manager in the Go library *tasker*, which lacks a way back. On the
    way up it never wants more workers than there are tasks, queued and running. For while resources are slow
    to make, the queue stays long although enough workers are starting. On the way down it keeps the workers
    that the waiting tasks will need, and some spare.

    It knows the length of the queue and not how long a task takes, so the right threshold differs from load
    to load. Where tasks come in clumps, it gives up workers between two clumps: wrap it in a `Hysteresis`.

        >>> Hysteresis(BacklogPolicy(threshold=10, step=4), shrink_after=30)
        Hysteresis(BacklogPolicy(threshold=10, step=4, interval=0.1), shrink_after=30)

    Args:
        threshold: The number of waiting tasks that are too many.
        step: How many workers more, or fewer, at a time.
        interval: Seconds between two questions.
    """

    threshold: int = 5
    step: int = 2
    interval: float = 0.1

    def __post_init__(self) -> None:
        _set(self, threshold=check_count("threshold", self.threshold, 1), step=check_count("step", self.step, 1))
        _set(self, interval=check_seconds("interval", self.interval, above_zero=True))

    def target(self, load: LoadSample, /) -> int:
        """Return ``step`` more, ``step`` fewer, or the need of the tasks at hand if it lies between."""
        if load.queued >= self.threshold:
            return _grown(load, load.target + self.step)
        return _shrunk(load, load.target - self.step)


@dataclass(frozen=True)
class RatePolicy(Combinable):
    """Wants the workers that the arrivals keep busy for a share of their time, and more while a backlog lasts.

    By Little's law (J. D. C. Little, 1961) ``arrival rate x mean service time`` tasks are in service on
    average. Divided by ``utilization``, that number leaves room for the ups and downs of the load. Both
    factors are measured over the last few seconds, so an old peak is forgotten. Tasks that raise arrive and
    finish like any other. A stream of errors counts as the load that it is: next to nothing where tasks fail
    fast.

    That number would just keep up. An older backlog (from an outage, or a peak above the maximum) would stay
    for a long time, and at a utilization of 1 for ever. So the backlog counts as arrivals of the next
    ``window`` seconds, in which it should be gone; with at most one worker for each waiting task.

    Until the first task has finished, the service time is unknown. Until then the number doubles at each
    question while tasks wait, as TCP's slow start probes an unknown capacity (V. Jacobson, 1988).

    The answer shrinks only if half a worker remains to spare. Otherwise it would go up and down with the
    noise around each whole number.

    Args:
        utilization: The share of their time that workers should be busy, above 0.0 up to 1.0.
        window: Seconds in which a backlog should be gone. By default as many as the executor's rates look
            back. A shorter window follows every clump of arrivals, a longer one lets tasks wait.
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
        needed = min(load.arrival_rate * per_rate + backlog, load.max_workers)  # since it may be infinite
        wanted = math.ceil(needed - _ROUNDING_ERROR)
        if wanted < load.target and needed > 0.0:
            wanted = min(load.target, math.ceil(needed + 0.5 - _ROUNDING_ERROR))
        if load.busy + load.queued == 0:  # The window still shows arrivals, but they have ended.
            wanted = min(wanted, load.target)
        return max(load.busy, wanted)


@dataclass(frozen=True)
class QueueWaitPolicy(Combinable):
    """Wants more workers while a task has waited longer than ``target_wait``, and one fewer while none waits.

    Users feel the wait of the oldest task. It means the same whether tasks take a millisecond or a minute;
    the length of the queue does not. The idea is that of CoDel (K. Nichols and V. Jacobson, 2012), which
    judges a queue by the time spent in it, and of .NET's thread pool, which adds threads when nothing has
    left the queue for a while.

    The number grows fast and shrinks slowly. Late tasks multiply it by ``growth``, up to the number of tasks,
    queued and running. It shrinks only while no task waits, one worker at a time, to the busy workers and
    some spare. While tasks wait for less than ``target_wait``, it stays.

    Args:
        target_wait: Seconds that a task may wait before it starts.
        growth: The factor by which the number grows, by one worker at least; above 1.0.
        interval: Seconds between two questions. A wait may go unnoticed for this long.
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
    """Follows another policy up at once, and down only after ``shrink_after`` smaller answers in a row.

    It then goes down to the largest of these answers.

    So a dip shorter than ``shrink_after * interval`` seconds costs no worker, whose resource would be needed
    again right after the dip. The idea is that of the Schmitt trigger. Kubernetes' autoscaler (the
    stabilization window) and Dask's adaptive clusters (``wait_count``) do the same.

    Let it span many times the service time. A simulation: an hour of 50 tasks a second, which take 0.1 s on
    average (both at random), with a base of 2:

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
        # No lock: one thread at a time asks, the timer of the one executor that has this policy.
        self._answers: deque[int] = deque(maxlen=min(check_count("shrink_after", shrink_after, 1), sys.maxsize))

    @property
    def interval(self) -> float:
        """Seconds between two questions: the interval of the policy followed."""
        return interval_of(self._policy)

    def target(self, load: LoadSample, /) -> int:
        """Return the answer of the policy followed, or the last target if it is too early to shrink."""
        answers = self._answers
        wanted = answer(self._policy, load)
        answers.append(wanted)
        if wanted >= load.target:
            return wanted
        # A window, and not a count that starts again when it is reached: so the answer stays until it is
        # followed. With a count, two of these, nested or combined, could wait for each other for ever.
        return min(load.target, max(answers)) if len(answers) == answers.maxlen else load.target

    @override
    def __repr__(self) -> str:
        return f"Hysteresis({self._policy!r}, shrink_after={self._answers.maxlen})"


class _Combination(Combinable):
    """Several policies that answer as one.

    Each policy is asked each time, at the smallest of their intervals. The alternative lost: each policy
    asked at its own interval, its last answer standing until the next. An old answer may be below the busy
    workers, or above the need at rest.
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
        """Seconds between two questions: the smallest interval of the policies."""
        return min(map(interval_of, self._policies))

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._policies))})"


class Maximum(_Combination):
    """Wants the largest answer of some policies: ``a | b``.

        >>> BacklogPolicy() | QueueWaitPolicy(target_wait=0.2)
        Maximum(BacklogPolicy(threshold=5, step=2, interval=0.1), QueueWaitPolicy(target_wait=0.2, growth=2.0, interval=0.1))

    Args:
        policies: One or more. All are asked each time, at the smallest of their intervals. So give policies
            that go by steps the same interval.
    """

    def target(self, load: LoadSample, /) -> int:
        """Return the largest of the answers."""
        return max([answer(policy, load) for policy in self._policies])


class Minimum(_Combination):
    """Wants the smallest answer of some policies: ``a & b``.

    Args:
        policies: One or more. All are asked each time, at the smallest of their intervals. So give policies
            that go by steps the same interval.
    """

    def target(self, load: LoadSample, /) -> int:
        """Return the smallest of the answers."""
        return min([answer(policy, load) for policy in self._policies])


def _grown(load: LoadSample, wanted: int) -> int:
    """Return `wanted`, but at most the number of tasks, and at least the last target and the busy workers."""
    return max(load.busy, load.target, min(wanted, load.busy + load.queued))


def _shrunk(load: LoadSample, wanted: int) -> int:
    """Return `wanted`, but at least the need of the tasks at hand, and at most the last target or the busy workers.

    Ten workers that are busy for 90 % of the time are hardly ever all busy at one moment. A policy that goes
    down to the number busy at one moment makes each lull a shortage, and flaps even when tasks come like
    clockwork. So the square root of the number busy stays idle: a random load varies by that much, and
    queueing theory gives it that much spare (square-root staffing; S. Halfin and W. Whitt, 1981). At rest the
    spare is 0.
    """
    needed = load.busy + load.queued + math.isqrt(load.busy)
    return max(load.busy, min(load.target, max(wanted, needed)))


def _set(policy: object, **numbers: float) -> None:
    """Replace the arguments of a frozen policy by plain numbers."""
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


def first_look(interval: float, now: float, asked: float) -> float:
    """Return when to look for tasks that wait, after a pause that ends `now`; the policy was asked last at `asked`.

    If a task waits then, the policy is asked: a burst should not wait a whole interval for its first extra worker,
    whose resource may be made in less. If none waits, it is asked an interval after the pause. Two questions are at
    least an interval apart all the same. So a policy is asked no more often, and one that counts its answers
    (`Hysteresis`) counts the same time.
    """
    return max(now + SOON * interval, asked + interval)


def ask(policy: ScalingPolicy, load: LoadSample) -> int:
    """Ask `policy` about `load` and return its answer as an int, clamped to the bounds of `load`.

    All that ask a policy ask here or, where the bounds may change in the meantime, by `answer`.

    Raises:
        TypeError: The answer is not a whole number. An integer of NumPy is one, a bool or a float is not.
        Exception: Whatever the policy raises.
    """
    return min(max(load.min_workers, answer(policy, load)), load.max_workers)


def answer(policy: ScalingPolicy, load: LoadSample) -> int:
    """Return the answer of `policy` as an int, or raise TypeError if it is not a whole number."""
    said = policy.target(load)
    wanted = whole(said)
    if wanted is None:
        raise TypeError(f"{safe_repr(policy)} answered {safe_repr(said)}, which is no number of workers")
    return wanted
