"""What counts as a number: the same for every argument, and whatever `ThreadPoolExecutor` takes. A bool is no number."""

from __future__ import annotations

import io
import math
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from engine import bounds_of, name_of
from support import DEADLINE, Gate, eventually, is_waited_for
from tasker_executor import (
    BacklogPolicy,
    Hysteresis,
    LoadSample,
    QueueWaitPolicy,
    RatePolicy,
    ResourceExecutor,
    TaskStopped,
    current_task,
)
from tasker_executor.policies import ask, interval_of
from tasker_executor.simulation import simulate
from tasker_executor.testing import InlineExecutor, assert_no_leaks


class Int64:
    """What NumPy's integers are, where there is no NumPy: whole, and no int."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value

    def __repr__(self) -> str:
        return f"Int64({self._value})"


WHOLE: list[Callable[[int], Any]] = [Int64]
REAL: list[Callable[[int], Any]] = [Int64, Decimal, Fraction, float, int]
BOOLS: list[Any] = [True]
try:
    import numpy
except ImportError:  # as in CI, here and there
    pass
else:
    WHOLE.extend([numpy.int64, numpy.uint8])
    REAL.extend([numpy.int64, numpy.float32, numpy.float64])
    BOOLS.append(numpy.bool_(True))
#: No limit: these are longer than any lock can wait.
ENDLESS = [math.inf, 1e300, 10**400, Decimal("Infinity"), Decimal("1e400"), Fraction(10**400)]
NO_NUMBERS = ["1", b"1", 1j, [1], math.nan, Decimal("NaN"), Decimal("sNaN"), *BOOLS]


def made(pool: ResourceExecutor[Any], expected: object = 7) -> None:
    """It works."""
    with pool:
        assert pool.submit(lambda *_: expected).result(DEADLINE) == expected


def mapped(**options: Any) -> None:
    with ResourceExecutor(2) as pool:
        assert list(pool.map(str, range(5), **options)) == ["0", "1", "2", "3", "4"]


def resized(**bounds: Any) -> None:
    with ResourceExecutor(3) as pool:
        pool.resize(**bounds)
        assert all(type(value) is int for value in bounds_of(pool))


class Want:
    """A policy that wants so many workers, so often."""

    def __init__(self, answer: Any = 1, interval: Any = 0.01) -> None:
        self.answer, self.interval = answer, interval

    def target(self, load: LoadSample, /) -> int:
        return self.answer  # type: ignore[no-any-return]  # or what the test wants


LOAD = LoadSample(0.0, 1, 1, 0, 1, 0, 0.0, 1.0, 1.0, 1.0, 0.0, 0, 0, 4, 1)


def progressed(total: Any) -> None:
    pytest.importorskip("rich")
    monitor: Any = pytest.importorskip("tasker_executor.monitor")
    assert list(monitor.progress(iter("ab"), total=total, console=quiet())) == ["a", "b"]


def monitored(interval: Any) -> None:
    pytest.importorskip("rich")
    monitor: Any = pytest.importorskip("tasker_executor.monitor")
    with ResourceExecutor(1) as pool, monitor.monitor(pool, console=quiet(), interval=interval):
        pool.submit(int).result(DEADLINE)


def quiet() -> Any:
    console: Any = pytest.importorskip("rich.console")
    return console.Console(file=io.StringIO())


def recorded(interval: Any) -> None:
    pytest.importorskip("matplotlib")
    plot: Any = pytest.importorskip("tasker_executor.plot")
    with ResourceExecutor(1) as pool, plot.record(pool, interval=interval) as timeline:
        pool.submit(int).result(DEADLINE)
    assert len(timeline.points) >= 2


#: Each takes a number that counts something; 2 is a good one.
COUNTS: dict[str, Callable[[Any], object]] = {
    "max_workers": lambda n: made(ResourceExecutor(n)),
    "min_workers": lambda n: made(ResourceExecutor(4, min_workers=n)),
    "max_retries": lambda n: made(ResourceExecutor(1, max_retries=n)),
    "max_queued": lambda n: made(ResourceExecutor(1, max_queued=n)),
    "max_uses": lambda n: made(ResourceExecutor(1, on_create=list[int], max_uses=n)),
    "resource_pool_size": lambda n: made(ResourceExecutor(1, on_create=list[int], resource_pool_size=n)),
    "chunksize": lambda n: mapped(chunksize=n),
    "buffersize": lambda n: mapped(buffersize=n),
    "resize(max_workers)": lambda n: resized(max_workers=n),
    "resize(min_workers)": lambda n: resized(min_workers=n),
    "with_options(max_retries)": lambda n: InlineExecutor().with_options(max_retries=n).submit(int).result(),
    "InlineExecutor(max_retries)": lambda n: InlineExecutor(max_retries=n).shutdown(),
    "InlineExecutor.map(chunksize)": lambda n: list(InlineExecutor().map(str, range(5), chunksize=n)),
    "BacklogPolicy(threshold)": lambda n: repr(BacklogPolicy(threshold=n)),
    "BacklogPolicy(step)": lambda n: repr(BacklogPolicy(step=n)),
    "Hysteresis(shrink_after)": lambda n: repr(Hysteresis(BacklogPolicy(), shrink_after=n)),
    "simulate(max_workers)": lambda n: simulate(None, [0.0], 1.0, max_workers=n),
    "simulate(min_workers)": lambda n: simulate(None, [0.0], 1.0, max_workers=4, min_workers=n),
    "simulate: target": lambda n: simulate(Want(n), [0.0], 5.0, max_workers=4),
    "ask: target": lambda n: ask(Want(n), LOAD),
    "Hysteresis: target": lambda n: ask(Hysteresis(Want(n)), LOAD),
    "Maximum: target": lambda n: ask(Want(n) | BacklogPolicy(), LOAD),
    "Minimum: target": lambda n: ask(Want(n) & BacklogPolicy(), LOAD),
    "progress(total)": lambda n: progressed(n),
}


def waited(timeout: Any) -> None:
    with ResourceExecutor(1) as pool:
        pool.submit(time.sleep, 0.01)
        pool.wait_ready(timeout)
        view = pool.with_options(start_within=timeout)
        assert view.submit(int).result(DEADLINE) == 0
        view.shutdown(timeout=timeout)
        pool.shutdown(timeout=timeout)


def inline(timeout: Any) -> None:
    pool = InlineExecutor(deferred=True)
    assert pool.with_options(start_within=timeout).submit(int).result(timeout) == 0
    assert pool.submit(int).exception(timeout) is None
    pool.wait_ready(timeout)
    pool.shutdown(timeout=timeout)


def killed(timeout: Any) -> None:
    pool = ResourceExecutor(1)

    def wait() -> bool:
        pool.kill()
        return current_task().wait(timeout)

    try:
        assert pool.submit(wait).result(DEADLINE)
    except TaskStopped as stopped:  # and what it has raised is the cause
        raise stopped.__cause__ or stopped from None
    finally:
        pool.shutdown()


def limited(pool: ResourceExecutor[None], *run_within: Any) -> None:
    """Run a task, and a call, that keep their limits."""
    with pool:
        view = pool.with_options(run_within=run_within[0]) if run_within else pool
        assert view.submit(int).result(DEADLINE) == view.run_now(int) == 0


def watched_for_leaks(timeout: Any) -> None:
    with assert_no_leaks(timeout):
        ResourceExecutor(1).submit(int).result(DEADLINE)


def release_once_waited_for(gate: Gate, future: Future[None]) -> None:
    """Let the task go when a thread waits for it: `result` of a task that is through does not look at its timeout."""

    def release() -> None:
        eventually(lambda: is_waited_for(future) or future.done(), "a thread that waits for the task")
        gate.release()

    threading.Thread(target=release).start()


def asked(timeout: Any) -> None:
    with ResourceExecutor(2) as pool, Gate() as gate:
        futures = [pool.submit(gate.hold), pool.with_options(priority=True).submit(gate.hold)]
        gate.wait_until_held()
        release_once_waited_for(gate, futures[0])
        assert [futures[0].result(timeout), futures[1].exception(timeout)] == [None, None]


def asked_inside(timeout: Any) -> None:
    with ResourceExecutor(2) as pool, Gate() as gate:

        def ask() -> None:
            future = pool.submit(gate.hold)
            release_once_waited_for(gate, future)
            future.result(timeout)

        pool.submit(ask).result(DEADLINE)


#: Each takes a number of seconds; 20 is a good one, and so is infinity.
SECONDS: dict[str, Callable[[Any], object]] = {
    "result(timeout)": asked,
    "result(timeout) inside": asked_inside,
    "timeout": waited,
    "map(timeout)": lambda s: mapped(timeout=s),
    "inline": inline,
    "current_task().wait": killed,
    "assert_no_leaks": watched_for_leaks,
    "idle_timeout": lambda s: made(ResourceExecutor(1, idle_timeout=s)),
    "create_timeout": lambda s: made(ResourceExecutor(1, on_create=list[int], create_timeout=s)),
    "run_within": lambda s: limited(ResourceExecutor(1, run_within=s)),
    "abort_grace": lambda s: limited(ResourceExecutor(1, abort_grace=s, run_within=20)),
    "warn_after": lambda s: limited(ResourceExecutor(1, warn_after=s)),
    "with_options(run_within)": lambda s: limited(ResourceExecutor(1), s),
    "InlineExecutor(run_within)": lambda s: InlineExecutor(run_within=s).submit(int).result(),
    "max_age": lambda s: made(ResourceExecutor(1, on_create=list[int], max_age=s)),
    "check_after_idle": lambda s: made(ResourceExecutor(1, on_create=list[int], check_after_idle=s)),
    "policy.interval": lambda s: made(ResourceExecutor(1, policy=Want(1, s))),
    "BacklogPolicy(interval)": lambda s: made(ResourceExecutor(1, policy=BacklogPolicy(interval=s))),
    "RatePolicy(interval)": lambda s: simulate(RatePolicy(interval=s), [0.0, 0.1], 1.0, max_workers=2),
    "QueueWaitPolicy(interval)": lambda s: simulate(QueueWaitPolicy(interval=s), [0.0, 0.1], 1.0, max_workers=2),
    "Maximum: interval": lambda s: simulate(Want(1, s) | BacklogPolicy(), [0.0, 0.1], 1.0, max_workers=2),
    "Hysteresis: interval": lambda s: interval_of(Hysteresis(Want(1, s))),
    "interval_of": lambda s: interval_of(Want(1, s)),
    "monitor(interval)": monitored,
    "record(interval)": recorded,
    "RatePolicy(window)": lambda s: simulate(RatePolicy(window=s), [0.0, 0.1], 1.0, max_workers=2),
    "QueueWaitPolicy(target_wait)": lambda s: simulate(QueueWaitPolicy(target_wait=s), [0.0, 0.1], 1.0, max_workers=2),
    "simulate: interval": lambda s: simulate(Want(1, s), [0.0, 0.1], 1.0, max_workers=2),
    "simulate(flap_window)": lambda s: simulate(Want(1), [0.0, 0.1], 1.0, max_workers=2, flap_window=s),
}
#: Each takes a finite number of seconds.
MOMENTS: dict[str, Callable[[Any], object]] = {
    "simulate(arrivals)": lambda s: simulate(None, [s], 1.0, max_workers=1),
    "simulate(service_time)": lambda s: simulate(None, [0.0], s, max_workers=1),
    "simulate(create_time)": lambda s: simulate(None, [0.0], 1.0, max_workers=1, create_time=s),
    "simulate(start)": lambda s: simulate(None, [1e6], 1.0, max_workers=1, start=s),
    "simulate(until)": lambda s: simulate(None, [0.0], 1.0, max_workers=1, until=s),
    "QueueWaitPolicy(growth)": lambda s: repr(QueueWaitPolicy(growth=s)),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("door", list(COUNTS.values()), ids=list(COUNTS))
def test_a_count_is_whatever_has_an_index(door: Callable[[Any], object], kind: Callable[[int], Any]) -> None:
    door(kind(2))


@pytest.mark.parametrize("value", [2.0, math.inf, "2", Decimal(2), Fraction(2), *BOOLS], ids=repr)
@pytest.mark.parametrize("name, door", list(COUNTS.items()), ids=list(COUNTS))
def test_a_bool_and_what_is_not_whole_count_nothing(name: str, door: Callable[[Any], object], value: Any) -> None:
    with pytest.raises(TypeError, match=r"must be an int|is no number of workers") as raised:
        door(value)
    assert "buffersize must be an integer or None" in str(raised.value) or repr(value) in str(raised.value)
    assert re.split(r"[(:)]+", name)[-2 if "(" in name else -1].strip() in str(raised.value) or "target" in name


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("door", list((SECONDS | MOMENTS).values()), ids=list(SECONDS | MOMENTS))
def test_seconds_are_any_real_number(door: Callable[[Any], object], kind: Callable[[int], Any]) -> None:
    door(kind(20))


@pytest.mark.parametrize("value", ENDLESS, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("door", list(SECONDS.values()), ids=list(SECONDS))
def test_what_no_lock_can_wait_is_no_limit(door: Callable[[Any], object], value: Any) -> None:
    door(value)


@pytest.mark.parametrize("value", [math.inf, 10**400, Decimal("1e400"), Fraction(10**400)], ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("door", list(MOMENTS.values()), ids=list(MOMENTS))
def test_a_moment_is_finite(door: Callable[[Any], object], value: Any) -> None:
    with pytest.raises(ValueError, match="finite"):
        door(value)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("door", list((SECONDS | MOMENTS).values()), ids=list(SECONDS | MOMENTS))
def test_what_is_no_number_is_no_number_of_seconds(door: Callable[[Any], object], value: Any) -> None:
    if value == [1] and door is MOMENTS["simulate(service_time)"]:
        pytest.skip("one for each arrival")
    with pytest.raises((TypeError, ValueError), match=re.escape(f"not {value!r}")):
        door(value)


def test_what_refuses_to_be_shown_is_refused_all_the_same() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise LookupError

    with pytest.raises(TypeError, match=r"max_workers must be an int, not <.*Shy"):
        ResourceExecutor(Shy())  # type: ignore[arg-type]  # bad on purpose
    with pytest.raises(TypeError, match=r"idle_timeout must be a number of seconds, not <.*Shy"):
        ResourceExecutor(idle_timeout=Shy())  # type: ignore[arg-type]  # bad on purpose
    with pytest.raises(TypeError, match=r"observers must be Observer instances, not <.*Shy"):
        ResourceExecutor(observers=[Shy()])  # type: ignore[list-item]  # bad on purpose
    with pytest.raises(ValueError, match=r"on_full must be .*, not <.*Shy"):
        ResourceExecutor(on_full=Shy())  # type: ignore[arg-type]  # bad on purpose


def test_sizes_beyond_the_machine_are_sizes() -> None:
    mapped(chunksize=10**30, buffersize=10**30)
    made(ResourceExecutor(10**30))


def test_a_time_that_has_run_out_is_one_for_map_as_in_the_standard_library() -> None:
    with ResourceExecutor(1) as pool, Gate() as gate:
        results = pool.map(gate.hold, [0], timeout=-1.0)

        with pytest.raises(TimeoutError):
            next(results)


@pytest.mark.parametrize("kind", WHOLE)
def test_a_policy_may_answer_with_any_whole_number(kind: Callable[[int], Any], caplog: pytest.LogCaptureFixture) -> None:
    with ResourceExecutor(4, policy=Want(kind(3))) as pool:
        list(pool.map(time.sleep, [0.02] * 8))

    assert caplog.records == []


@pytest.mark.parametrize("on, off", [(True, False), (1, 0), ("yes", ""), ([0], None)])
def test_a_flag_is_whatever_is_true_as_in_the_standard_library(on: Any, off: Any) -> None:
    ran: list[str] = []
    with ResourceExecutor(1, on_create=list[int], propagate_context=off) as pool, Gate() as gate:
        view = pool.with_options(pass_resource=off)
        held = view.submit(gate.hold)
        gate.wait_until_held()
        futures = [view.submit(ran.append, "later"), view.with_options(priority=on).submit(ran.append, "sooner")]
        futures.append(view.with_options(priority=off).submit(ran.append, "last"))
        gate.release()
        wait([held, *futures], DEADLINE)
        pool.metrics(reset=on)
        assert pool.metrics(reset=off).run.count == 0
        pool.shutdown(wait=on, cancel_futures=off)
    assert ran == ["sooner", "later", "last"]

    inline = InlineExecutor(deferred=on)
    assert inline.deferred is True
    inline.submit(int)
    assert inline.step()
    inline.shutdown()


def test_a_name_is_a_text_whatever_it_was(tmp_path: Path) -> None:
    for pool in (ResourceExecutor(1, name=tmp_path), ResourceExecutor(1, tmp_path)):  # type: ignore[arg-type]  # bad on purpose
        with pool:
            assert name_of(pool) == str(tmp_path)
    with InlineExecutor(name=tmp_path) as executor:  # type: ignore[arg-type]  # bad on purpose
        assert executor.name == str(tmp_path)
