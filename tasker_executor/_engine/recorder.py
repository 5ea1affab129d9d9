"""Counters and histograms in constant memory.

A worker writes two numbers per task, how long it waited and how long it ran, to lists that are its own.
Every few hundred tasks, or when somebody asks, the list is *folded* into the histograms, in bulk and mostly in C. So a task
costs one `extend`, and exact counts are to be had at any time: what is folded plus what is listed.

**Buckets.** The top 16 bits of a positive double are its sign (0), its exponent and the first four bits of its mantissa. Taken
as a number they grow with the value, in 16 steps per doubling: a ready-made bucket number, at most 6.25 % wide, over all
magnitudes there are. Packed doubles are a string of bytes, and the bytes of a string are counted without a Python instruction
per value.
"""

from __future__ import annotations

import enum
import struct
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING

from .._sync import clock, in_one_step
from ..stats import DurationSummary

if TYPE_CHECKING:
    from .lanes import Lanes

__all__ = ["LULL", "RATE_WINDOW", "Histogram", "Outcome", "Recorder", "TaskLog"]

#: A worker that wakes up after so many seconds without a task folds its log first: no log spans a lull.
LULL = 0.5
#: Rates look back about this many seconds.
RATE_WINDOW = 5

# Where the upper and the lower byte of the top 16 bits are in a double.
_UPPER, _LOWER = (7, 6) if sys.byteorder == "little" else (0, 1)
_NEGATIVE = 0x80  # the sign bit, in the upper
_BYTES = bytes(range(256))
_BYTE = [bytes((value,)) for value in range(256)]
_STRIKES = 10  # after so many kinds, the rest is counted value by value
_INFINITY = float("inf")


def _bucket(value: float) -> int:
    """The bucket that `value` falls into."""
    return int.from_bytes(struct.pack(">d", value)[:2], "big")


class Outcome(enum.IntEnum):
    """How an attempt at a task ended."""

    COMPLETED = 0
    FAILED = 1
    RETRIED = 2


def _bucket_start(bucket: int) -> float:
    """The smallest value that falls into `bucket`."""
    start: float = struct.unpack(">d", struct.pack(">Hxxxxxx", bucket))[0]
    return start


class Histogram:
    """A distribution of durations in seconds. Adds up: histograms of threads, processes and machines can be merged."""

    __slots__ = ("_high", "_low", "_pages", "count", "maximum", "minimum", "total")

    def __init__(self) -> None:
        # Counts by the lower byte of the bucket number, for each upper byte. A page spans a factor of 65,536: one or two do.
        self._pages: dict[int, Counter[int]] = {}
        self.count = 0
        self.total = 0.0
        self.minimum = _INFINITY
        self.maximum = 0.0
        self._low, self._high = _bucket(_INFINITY), 0  # the buckets of the extremes

    def add(self, values: list[float]) -> float:
        """Add all values, at least one, and return their sum."""
        raw = struct.pack(f"={len(values)}d", *values)
        upper, lower = raw[_UPPER::8], raw[_LOWER::8]
        page = upper[0]
        if upper.count(page) < len(upper) or page >= _NEGATIVE:
            if max(upper) >= _NEGATIVE:
                # A worker takes the end of a task for the start of the next; this one was submitted between the two.
                return self.add([value if value > 0.0 else 0.0 for value in values])
            return sum(
                self.add([value for value, byte in zip(values, upper, strict=True) if byte == page]) for page in set(upper)
            )
        counts = self._pages.get(page)
        if counts is None:
            counts = self._pages[page] = Counter()
        # The extremes are worth a look only if some value may lie outside of them: bytes.translate deletes those that do not.
        high, low = self._high, self._low
        if page << 8 >= high or (high >> 8 == page and lower.translate(None, _BYTES[: high & 0xFF])):
            self.maximum = max(self.maximum, max(values))
            self._high = _bucket(self.maximum)
        if page << 8 | 0xFF <= low or (low >> 8 == page and lower.translate(None, _BYTES[(low & 0xFF) + 1 :])):
            self.minimum = min(self.minimum, min(values))
            self._low = _bucket(self.minimum)
        # Most values fall into a few buckets: striking those out, one by one, is faster than looking at each value.
        count = len(lower)
        for _ in range(_STRIKES):
            byte = lower[0]
            lower = lower.translate(None, _BYTE[byte])
            counts[byte] += count - len(lower)
            count = len(lower)
            if not count:
                break
        else:
            counts.update(lower)
        total = sum(values)
        self.count += len(values)
        self.total += total
        return total

    @property
    def buckets(self) -> dict[int, int]:
        """Count by bucket number, ascending."""
        return {
            page << 8 | byte: count for page, counts in sorted(self._pages.items()) for byte, count in sorted(counts.items())
        }

    def merge(self, other: Histogram) -> None:
        """Add what `other` has counted."""
        for page, counts in other._pages.items():
            self._pages.setdefault(page, Counter()).update(counts)
        self.count += other.count
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self._low, self._high = _bucket(self.minimum), _bucket(self.maximum)

    def copy(self) -> Histogram:
        """Return an independent copy."""
        twin = Histogram()
        twin.merge(self)
        return twin

    def new_since(self, before: Mapping[int, int]) -> list[tuple[float, int]]:
        """What was added since `buckets` was `before`: ascending values, each to within half a bucket, and how many of them."""
        new: list[tuple[float, int]] = []
        for bucket, count in self.buckets.items():
            if count > before.get(bucket, 0):
                middle = (_bucket_start(bucket) + _bucket_start(bucket + 1)) / 2
                new.append((min(max(middle, self.minimum), self.maximum), count - before.get(bucket, 0)))
        return new

    def _quantiles(self, shares: list[float]) -> list[float]:
        """Return for each of the ascending `shares` the value that so many do not exceed, interpolated inside its bucket."""
        found: list[float] = []
        below = 0
        for bucket, count in self.buckets.items():
            while len(found) < len(shares) and shares[len(found)] * self.count <= below + count:
                start, end = _bucket_start(bucket), _bucket_start(bucket + 1)
                value = start + (end - start) * (shares[len(found)] * self.count - below) / count
                found.append(min(max(value, self.minimum), self.maximum))
            below += count
        return found + [self.maximum] * (len(shares) - len(found))

    def summary(self) -> DurationSummary:
        """Return the distribution in a few numbers."""
        if not self.count:
            return DurationSummary(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        p50, p95, p99 = self._quantiles([0.50, 0.95, 0.99])
        return DurationSummary(self.count, self.total, self.minimum, self.maximum, self.total / self.count, p50, p95, p99)

    def cumulative(self, bounds: Iterable[float]) -> list[int]:
        """Return for each ascending bound how many values do not exceed it; exact to within the bucket the bound falls into."""
        buckets = list(self.buckets.items())
        reached: list[int] = []
        at, below = 0, 0
        for bound in bounds:
            while at < len(buckets) and _bucket_start(buckets[at][0] + 1) <= bound:
                below += buckets[at][1]
                at += 1
            inside = 0.0
            if at < len(buckets):
                start, end = _bucket_start(buckets[at][0]), _bucket_start(buckets[at][0] + 1)
                inside = buckets[at][1] * min(max((bound - start) / (end - start), 0.0), 1.0)
            reached.append(below + round(inside))
        return reached


class TaskLog:
    """What one worker did and nobody has folded yet: how long its tasks waited and ran, by lane and outcome.

    Only its owner appends. When the tasks ended is not noted one by one: between two foldings a worker is never idle for long
    (`LULL`), so they are taken as spread evenly from `since` to `until`. That is as good as the rates need.
    """

    __slots__ = ("_last", "entries", "folded", "since", "until")

    def __init__(self) -> None:
        #: The attempt noted last, by the id of its task and its start, and its outcome.
        self._last: deque[tuple[tuple[int, float] | None, Outcome]] = deque(maxlen=1)
        self.folded = 0  # attempts
        self.since = clock()
        #: When its owner became idle; None while it is busy.
        self.until: float | None = None
        #: For each lane and outcome, (waits, runs). An attempt is counted by its run, which is appended last.
        self.entries: dict[tuple[bool, Outcome], tuple[list[float], list[float]]] = {
            (priority, outcome): ([], []) for priority in (False, True) for outcome in Outcome
        }

    def note(self, priority: bool, outcome: Outcome, wait: float, run: float, attempt: tuple[int, float] | None = None) -> None:
        """An attempt has ended: count it, in one step of the interpreter."""
        waits, runs = self.entries[priority, outcome]
        in_one_step(partial(waits.append, wait), partial(runs.append, run), partial(self._last.append, (attempt, outcome)))

    def noted(self, attempt: tuple[int, float]) -> Outcome | None:
        """As what this attempt, the last, was noted; None if it was not."""
        return next((outcome for last, outcome in self._last if last == attempt), None)

    def attempts(self) -> int:
        """How many attempts its owner has made."""
        return self.folded + sum(len(runs) for _, runs in self.entries.values())


class _Tally:
    """What became of the tasks of one lane, with one outcome."""

    __slots__ = ("count", "run", "wait")

    def __init__(self) -> None:
        self.count = 0
        self.wait = Histogram()
        self.run = Histogram()


_ARRIVED, _FINISHED, _RUN_TIME = range(3)  # columns of a slot


class _Rates:
    """Arrivals, completions and run time of the last seconds, in one slot a second."""

    def __init__(self) -> None:
        self._slots: dict[int, list[float]] = {}

    def add(self, waits: list[float], runs: list[float], run_time: float, since: float, until: float) -> None:
        """Count attempts of one worker and lane, which ended between those moments, the last one at `until`."""
        if len(runs) == 1:
            since = until
        self._spread(_FINISHED, len(runs), since, until)
        self._spread(_RUN_TIME, run_time, since, until)
        # A lane is first in, first out: the others came between the first and the last.
        first, last = since - runs[0] - waits[0], until - runs[-1] - waits[-1]
        self._spread(_ARRIVED, len(runs), min(first, last), last)

    def _spread(self, column: int, amount: float, first: float, last: float) -> None:
        """Spread `amount` evenly over the time from `first` to `last`."""
        end = int(last)
        if int(first) == end:
            self._slot(end)[column] += amount
            return
        share = amount / (last - first)
        for second in range(max(int(first), end - 2 * RATE_WINDOW), end + 1):
            self._slot(second)[column] += share * (min(last, second + 1) - max(first, second))

    def _slot(self, second: int) -> list[float]:
        slot = self._slots.get(second)
        if slot is None:
            slot = self._slots[second] = [0.0, 0.0, 0.0]
            for old in [moment for moment in self._slots if moment < second - 2 * RATE_WINDOW]:
                del self._slots[old]
        return slot

    def since(self, second: int) -> tuple[float, float, float]:
        """(arrivals, completions, run time) since that second began."""
        slots = [slot for moment, slot in self._slots.items() if moment >= second]
        arrived, finished, run_time = (sum(column) for column in zip((0.0, 0.0, 0.0), *slots, strict=True))
        return arrived, finished, run_time


class Recorder:
    """The counters and histograms of one executor."""

    def __init__(self) -> None:
        # Guards all below and the removal of entries from logs: a log entry is either listed or folded, never both, never
        # neither. A leaf. Reentrant, for signal handlers that ask for stats.
        self.lock = RLock()
        self._logs: set[TaskLog] = set()
        self._tallies = {key: _Tally() for key in TaskLog().entries}
        self._create = Histogram()
        self._created: list[float] = []  # not folded yet
        self._rates = _Rates()
        self._born = clock()
        self._last_service_time = 0.0
        # The period of metrics(reset=True): its own histograms, made of what was folded since; None while it is the whole life.
        self._period: tuple[Histogram, Histogram, Histogram] | None = None
        self._period_counts = dict.fromkeys(Outcome, 0)

    # -- writing

    def add_log(self, log: TaskLog) -> None:
        """Count what a new worker lists there."""
        with self.lock:
            self._logs.add(log)

    def close_log(self, log: TaskLog) -> None:
        """Fold what the worker that ends has listed, and forget its log."""
        with self.lock:
            self.fold(log)
            self._logs.discard(log)

    def fold(self, log: TaskLog) -> None:
        """Move what `log` lists into the histograms. Its owner may append meanwhile: that stays for the next time."""
        with self.lock:
            now = clock()
            until = log.until
            for key, (waits, runs) in log.entries.items():
                count = len(runs)
                if count:
                    taken = waits[:count], runs[:count]
                    tally = self._tallies[key]
                    # No call among these: an error thrown into this may cost the histograms these values, and no count.
                    tally.count += count
                    log.folded += count
                    del waits[:count]
                    del runs[:count]
                    self._add(key, *taken, log.since, max(log.since, now if until is None else until))
            log.since = now

    def _add(self, key: tuple[bool, Outcome], waits: list[float], runs: list[float], since: float, until: float) -> None:
        tally = self._tallies[key]
        tally.wait.add(waits)
        run_time = tally.run.add(runs)
        if self._period is not None:
            self._period[0].add(waits)
            self._period[1].add(runs)
        if key[1] is not Outcome.RETRIED:
            self._rates.add(waits, runs, run_time, since, until)

    def add_creation(self, seconds: float) -> None:
        """``on_create`` took so long and succeeded."""
        self._created.append(seconds)
        if len(self._created) > 512:
            with self.lock:
                self._fold_created()

    def _fold_created(self) -> None:
        taken = self._created[:]
        del self._created[: len(taken)]
        if taken:
            self._create.add(taken)
            if self._period is not None:
                self._period[2].add(taken)

    # -- reading

    def counts(self) -> dict[tuple[bool, Outcome], int]:
        """How many attempts ended how, by lane."""
        with self.lock:
            return {
                key: tally.count + sum(len(log.entries[key][1]) for log in self._logs.copy())
                for key, tally in self._tallies.items()
            }

    def _fold_all(self) -> None:
        self._fold_created()
        for log in self._logs.copy():  # a signal handler may add one
            self.fold(log)

    def histograms(self) -> Iterator[tuple[bool, Outcome, Histogram, Histogram]]:
        """Yield (priority lane?, outcome, wait, run) over the executor's whole life, whatever was reset: for exporters."""
        with self.lock:
            self._fold_all()
            copies = [(key[0], key[1], tally.wait.copy(), tally.run.copy()) for key, tally in self._tallies.items()]
        yield from copies

    def create_histogram(self) -> Histogram:
        """Durations of ``on_create`` over the executor's whole life."""
        with self.lock:
            self._fold_created()
            return self._create.copy()

    def durations(self, *, reset: bool) -> tuple[Histogram, Histogram, Histogram, dict[Outcome, int]]:
        """Return the period's (wait, run, create) histograms and counts by outcome; start a new period if `reset`."""
        with self.lock:
            self._fold_all()
            totals = {outcome: sum(t.count for (_, o), t in self._tallies.items() if o is outcome) for outcome in Outcome}
            if self._period is None:
                wait, run, create = Histogram(), Histogram(), self._create.copy()
                for tally in self._tallies.values():
                    wait.merge(tally.wait)
                    run.merge(tally.run)
            else:
                wait, run, create = (histogram.copy() for histogram in self._period)
            counts = {outcome: totals[outcome] - self._period_counts[outcome] for outcome in Outcome}
            if reset:
                self._period = Histogram(), Histogram(), Histogram()
                self._period_counts = totals
        return wait, run, create, counts

    def rates(self, lanes: Lanes, in_hand: list[float]) -> tuple[float, float, float]:
        """Return (arrivals per second, completions per second, mean service time) over the last few seconds.

        The log knows the arrival of a task when it has ended; of those in the lanes and `in_hand`, it is told here.
        """
        with self.lock:
            self._fold_all()
            now = clock()
            second = int(now - RATE_WINDOW) + 1
            arrived, finished, run_time = self._rates.since(second)
            if finished:
                self._last_service_time = run_time / finished
            service_time = self._last_service_time
        arrived += sum(lane.submitted_since(second) for lane in lanes)
        arrived += sum(moment >= second for moment in in_hand)
        span = max(min(now - second, now - self._born), 1.0)  # one second at least, or the first task would be a flood
        return arrived / span, finished / span, service_time

    def mean_create_time(self) -> float:
        """Mean duration of ``on_create``; 0.0 when there was none."""
        with self.lock:
            self._fold_created()
            return self._create.total / self._create.count if self._create.count else 0.0

    def reinit_after_fork(self) -> None:
        self.lock = RLock()
