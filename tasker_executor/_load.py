"""The load of a simulation: its tasks in order of arrival, read from a recording or drawn at random; its rates."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from random import Random
from typing import NamedTuple, TypeAlias

from ._checks import check_finite
from .recording import Recording, read_recording

__all__ = ["Arrivals", "Load", "Rates", "ServiceTime", "make_load"]

# The executor measures rates over this many seconds, in slots of one second.
_WINDOW = 5

#: When tasks arrive, in seconds: numbers, or the path of a recording.
Arrivals: TypeAlias = Iterable[float] | str | os.PathLike[str]

#: How long tasks run, in seconds: all the same, one after the other, drawn from a distribution, or as
#: recorded (None).
ServiceTime: TypeAlias = float | Iterable[float] | Callable[[Random], float] | None


class Load(NamedTuple):
    """The tasks, in order of arrival."""

    arrivals: list[float]
    durations: list[float]
    priority: list[bool]  # is it in the priority lane?


def make_load(arrivals: Arrivals, service_time: ServiceTime, priority_share: float, seed: int) -> Load:
    """Read and draw the tasks, and sort them by arrival."""
    if isinstance(arrivals, (str, os.PathLike)):
        recording = read_recording(arrivals, use_durations=service_time is None)
    elif isinstance(arrivals, Iterable):
        recording = Recording([check_finite(f"arrivals[{n}]", arrival) for n, arrival in enumerate(arrivals)])
    else:
        raise TypeError(f"arrivals must be numbers or the path of a file, not {arrivals!r}")
    number = len(recording.arrivals)

    # Service times and lanes have a generator each, so another share of priority tasks leaves the service
    # times as they are. Neither is ``Random(seed)``: a caller may draw the arrivals from that, and they would
    # keep step with the service times.
    if service_time is not None:
        durations = _draw(service_time, number, Random(f"service times {seed}"))
    elif recording.durations is not None:
        durations = recording.durations
    else:
        raise TypeError("service_time is needed unless arrivals is the path of a file with a column 'duration'")
    if not check_finite("priority_share", priority_share) <= 1.0:
        raise ValueError(f"priority_share must be at most 1.0, not {priority_share!r}")
    if priority_share or recording.priority is None:
        lottery = Random(f"lanes {seed}")
        priority = [lottery.random() < priority_share for _ in range(number)]
    else:
        priority = recording.priority

    # A recorder writes a task when it is done, so a recording need not be sorted by arrival.
    order = sorted(range(number), key=recording.arrivals.__getitem__)
    return Load([recording.arrivals[n] for n in order], [durations[n] for n in order], [priority[n] for n in order])


def _draw(service_time: float | Iterable[float] | Callable[[Random], float], number: int, random: Random) -> list[float]:
    """Return the service times of `number` tasks."""
    if callable(service_time):
        return [check_finite("service_time(random)", service_time(random)) for _ in range(number)]
    if isinstance(service_time, Iterable) and not isinstance(service_time, (str, bytes)):
        durations = [check_finite(f"service_time[{n}]", duration) for n, duration in enumerate(islice(service_time, number))]
        if len(durations) < number:
            raise ValueError(f"service_time must have a number for each of the {number} arrivals, not {len(durations)}")
        return durations
    return [check_finite("service_time", service_time)] * number


class Rates:
    """The rates of a `LoadSample`, measured as the executor measures them: over the last few seconds."""

    def __init__(self, arrivals: list[float], start: float) -> None:
        self._arrivals = arrivals
        self._start = start
        # The tasks that finished within the window, and the index of the first arrival in it.
        self._finished: deque[tuple[float, float]] = deque()
        self._finished_seconds = 0.0
        self._first_in_window = 0
        self._mean_duration = 0.0

    def count_finished(self, task: tuple[float, float]) -> None:
        """Count a task that is done: when, and how long it ran."""
        self._finished.append(task)
        self._finished_seconds += task[1]

    def measure(self, now: float, arrived: int) -> tuple[float, float, float]:
        """Return the rates of arrivals and completions, and the mean service time."""
        window_start = math.floor(now - _WINDOW) + 1  # a whole second: the executor counts in slots
        window = max(min(now - window_start, now - self._start), 1.0)
        arrivals, finished = self._arrivals, self._finished
        while self._first_in_window < arrived and arrivals[self._first_in_window] < window_start:
            self._first_in_window += 1
        while finished and finished[0][0] < window_start:
            self._finished_seconds -= finished.popleft()[1]
        if finished:
            self._mean_duration = self._finished_seconds / len(finished)
        else:
            self._finished_seconds = 0.0  # So rounding errors do not add up for ever.
        return (arrived - self._first_in_window) / window, len(finished) / window, self._mean_duration
