"""What is counted: the log of each worker, and the counters, histograms and rates made of the logs.

A worker writes two numbers per task, how long it waited and how long it ran, to lists of its own. Every few
hundred tasks, and whenever a caller asks for numbers, these lists are *folded* into the histograms, in bulk
and mostly in C. So a task costs one `extend`. Exact counts are there at any time: what is folded plus what
is listed.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .._sync import clock, in_one_step
from .histogram import Histogram

if TYPE_CHECKING:
    from ..stats import ExecutorMetrics

__all__ = ["LONG_LOG", "LULL", "RATE_WINDOW", "Outcome", "Period", "Recorder", "TaskLog"]

#: A worker that wakes up after this many seconds without a task folds its log first. So no log spans a lull.
LULL = 0.5
#: A worker that has listed this many attempts waits for the thread that folds.
LONG_LOG = 4096
#: A worker that ends leaves its log unfolded if it lists at most `SHORT_LOG` attempts, and at most `KEPT_LOGS` such
#: logs are kept. So an executor that nobody asks for numbers, and that ends soon, folds little.
SHORT_LOG, KEPT_LOGS = 16, 64
#: Rates look back about this many seconds.
RATE_WINDOW = 5


class Outcome(enum.IntEnum):
    """How an attempt at a task ended."""

    COMPLETED = 0
    FAILED = 1
    RETRIED = 2

    __hash__ = int.__hash__  # in C: each worker hashes all outcomes as it starts


class Arrivals(Protocol):
    """What `Recorder.rates` asks a lane."""

    def submitted_since(self, moment: float, /) -> int:
        """Return how many tasks of the lane were submitted at `moment` or later."""
        ...


_KEYS = tuple((priority, outcome) for priority in (False, True) for outcome in Outcome)
_NORMAL, _URGENT = (False, Outcome.COMPLETED), (True, Outcome.COMPLETED)


class TaskLog:
    """What one worker did since the last folding: how long its tasks waited and ran, by lane and outcome.

    Only its owner appends. The log does not say when each task ended. Between two foldings a worker is never
    idle for long (`LULL`), so the ends are taken as spread evenly from `since` to `until`. That is as good as
    the rates need.
    """

    __slots__ = ("_last", "entries", "folded", "others", "since", "until")

    def __init__(self) -> None:
        #: The attempt noted last (the id of its task, and its start), and its outcome.
        self._last: tuple[tuple[int, float] | None, Outcome] | None = None
        self.folded = 0  # attempts
        #: About how many attempts were listed by `note` since the last folding. Two threads may write it at once.
        self.others = 0
        self.since = clock()
        #: The time when its owner became idle; None while it is busy.
        self.until: float | None = None
        #: For each lane and outcome, (waits, runs). An attempt is counted by its run, which is appended last. What few
        #: workers list is added when it is needed, so other threads iterate over a copy.
        self.entries: dict[tuple[bool, Outcome], tuple[list[float], list[float]]] = {_URGENT: ([], []), _NORMAL: ([], [])}

    def note(self, priority: bool, outcome: Outcome, wait: float, run: float, attempt: tuple[int, float] | None = None) -> None:
        """Count an attempt that has ended, in one step of the interpreter."""
        waits, runs = self.entries.setdefault((priority, outcome), ([], []))
        last = partial(setattr, self, "_last", (attempt, outcome))  # a slot: all in C
        in_one_step(partial(waits.append, wait), partial(runs.append, run), last)
        self.others += 1

    def noted(self, attempt: tuple[int, float]) -> Outcome | None:
        """Return the outcome that was noted for this attempt, the last; None if none was noted."""
        last = self._last
        return last[1] if last is not None and last[0] == attempt else None

    def attempts(self) -> int:
        """Return how many attempts its owner has made."""
        while True:
            folded = self.folded
            attempts = folded + self.listed()
            if folded == self.folded:  # else a fold has come between
                return attempts

    def listed(self) -> int:
        """Return how many attempts are listed, and not folded."""
        return sum([len(runs) for _, runs in self.entries.copy().values()])


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
        """Count attempts of one worker and lane. They ended from `since` to `until`, the last at `until`."""
        if len(runs) == 1:
            since = until
        self._spread(_FINISHED, len(runs), since, until)
        self._spread(_RUN_TIME, run_time, since, until)
        # A lane is first in, first out. So the other tasks arrived between the first and the last.
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
        """Return (arrivals, completions, run time) since that second began."""
        slots = [slot for moment, slot in self._slots.items() if moment >= second]
        arrived, finished, run_time = (sum(column) for column in zip((0.0, 0.0, 0.0), *slots, strict=True))
        return arrived, finished, run_time


class Period(NamedTuple):
    """The durations, counts and rates of a period, of one executor or of several."""

    wait: Histogram
    run: Histogram
    create: Histogram
    counts: Mapping[Outcome, int]
    arrival_rate: float
    completion_rate: float

    def metrics(self) -> ExecutorMetrics:
        """Return them as the user sees them."""
        from ..stats import ExecutorMetrics

        finished = self.counts[Outcome.COMPLETED] + self.counts[Outcome.FAILED]
        return ExecutorMetrics(
            wait=self.wait.summary(),
            run=self.run.summary(),
            create=self.create.summary(),
            arrival_rate=self.arrival_rate,
            completion_rate=self.completion_rate,
            success_rate=self.counts[Outcome.COMPLETED] / finished if finished else 0.0,
            failure_rate=self.counts[Outcome.FAILED] / finished if finished else 0.0,
        )


class Recorder:
    """The counters and histograms of one executor."""

    def __init__(self) -> None:
        # Guards all fields below and the removal of entries from logs. An entry of a log is either listed or
        # folded, never both, never neither. No other lock is taken under it. Reentrant, for signal handlers
        # that ask for stats.
        self.lock = RLock()
        self._logs: set[TaskLog] = set()
        #: Those of `_logs` whose workers have ended, the one that ended first at the front.
        self._closed: dict[TaskLog, None] = {}
        self._folded = 0  # how many lists were folded
        self._tallies = {key: _Tally() for key in _KEYS}
        self._create = Histogram()
        self._created: list[float] = []  # not folded yet
        self._rates = _Rates()
        self._born = clock()
        self._last_service_time = 0.0
        # The histograms (wait, run, create) of what was folded since the last metrics(reset=True). None
        # before the first: the period is then the whole life.
        self._period: tuple[Histogram, Histogram, Histogram] | None = None
        self._period_counts = dict.fromkeys(Outcome, 0)
        #: Whether a thread is folding. Read without the lock, as a hint: see `fold_soon`.
        self._folds = False

    # -- writing

    def add_log(self, log: TaskLog) -> None:
        """Count what a new worker lists in `log`."""
        with self.lock:
            self._logs.add(log)

    def close_log(self, log: TaskLog) -> None:
        """Fold what a worker that ends has listed, and forget its log: now, or later if it is short."""
        with self.lock:
            if log.until is None:
                log.until = clock()
            if not 0 < log.listed() <= SHORT_LOG:
                self._forget(log)
                return
            self._closed[log] = None
            if len(self._closed) > KEPT_LOGS:
                self._forget(next(iter(self._closed.copy())))  # a copy: a destructor may fold them in the middle of this

    def _forget(self, log: TaskLog) -> None:
        """Fold the log of a worker that has ended, and forget it. Lock held."""
        self.fold(log)
        self._logs.discard(log)
        self._closed.pop(log, None)

    def fold(self, log: TaskLog) -> None:
        """Move what `log` lists into the histograms. An entry appended while this runs stays in the list."""
        with self.lock:
            try:
                self._folds = True
                now = clock()
                until = log.until
                for key, (waits, runs) in log.entries.copy().items():
                    tally = self._tallies[key]
                    while True:
                        folded, count = self._folded, len(runs)
                        taken = waits[:count], runs[:count]
                        if folded == self._folded:  # else a signal handler, or a destructor, has folded these
                            break
                    if count:
                        # No call since the last look at `_folded`: nobody has folded these, and an error that is
                        # thrown in may cost the histograms these values, and no count.
                        tally.count += count
                        log.folded += count
                        self._folded += 1
                        del waits[:count]
                        del runs[:count]
                        self._add(key, *taken, log.since, max(log.since, now if until is None else until))
                log.since = now
                log.others = 0
            finally:
                self._folds = False

    def fold_soon(self, log: TaskLog) -> None:
        """Fold `log`, on the thread of its worker; or leave it for later while another thread folds.

        Workers that start together fill their logs at the same time. If each waited for the one before, their
        tasks would wait, too.
        """
        if not self._folds or log.listed() >= LONG_LOG:
            self.fold(log)

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
        """Count a call of ``on_create`` that took `seconds` and succeeded."""
        self._created.append(seconds)
        if len(self._created) > 512:
            with self.lock:
                self._fold_created()

    def _fold_created(self) -> None:
        while True:
            folded, taken = self._create.count, self._created[:]
            count = len(taken)
            if folded == self._create.count:  # else a signal handler, or a destructor, has folded these
                break
        del self._created[:count]
        if taken:
            self._create.add(taken)
            if self._period is not None:
                self._period[2].add(taken)

    # -- reading

    def counts(self) -> dict[tuple[bool, Outcome], int]:
        """Return the number of attempts by lane and outcome."""
        with self.lock:
            while True:
                folded = self._folded
                counts = {key: tally.count for key, tally in self._tallies.items()}
                for log in self._logs.copy():
                    for key, (_, runs) in log.entries.copy().items():
                        counts[key] += len(runs)
                if folded == self._folded:  # else a signal handler, or a destructor, has moved some from one to the other
                    return counts

    def _fold_all(self) -> None:
        self._fold_created()
        for log in self._closed.copy():
            self._forget(log)
        for log in self._logs.copy():  # A signal handler may add a log while this runs.
            self.fold(log)

    def histograms(self) -> Iterator[tuple[bool, Outcome, Histogram, Histogram]]:
        """Yield (priority lane?, outcome, wait, run) over the executor's whole life, resets ignored."""
        with self.lock:
            self._fold_all()
            copies = [(key[0], key[1], tally.wait.copy(), tally.run.copy()) for key, tally in self._tallies.items()]
        yield from copies

    def create_histogram(self) -> Histogram:
        """Return the durations of ``on_create`` over the executor's whole life."""
        with self.lock:
            self._fold_created()
            return self._create.copy()

    def durations(self, *, reset: bool) -> tuple[Histogram, Histogram, Histogram, dict[Outcome, int]]:
        """Return the period's (wait, run, create) histograms and counts; start a new period if `reset`."""
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

    def rates(self, lanes: Iterable[Arrivals], in_hand: list[float]) -> tuple[float, float, float]:
        """Return (arrivals per second, completions per second, mean service time) over the last few seconds.

        A log knows the arrival of a task when the task has ended. So the caller tells of the tasks that
        have not.

        Args:
            lanes: The lanes, with the tasks that wait.
            in_hand: When each task that a worker has in hand was submitted.
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
        span = max(min(now - second, now - self._born), 1.0)  # at least 1 s: else the first task would make a very high rate
        return arrived / span, finished / span, service_time

    def mean_create_time(self) -> float:
        """Return the mean duration of ``on_create``; 0.0 when there was none."""
        with self.lock:
            self._fold_created()
            return self._create.total / self._create.count if self._create.count else 0.0

    def reinit_after_fork(self) -> None:
        self.lock = RLock()
