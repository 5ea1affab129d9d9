"""The timer: how its thread starts, sleeps, stumbles and ends."""

from __future__ import annotations

import threading
from _thread import LockType
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from engine import (
    Step,
    Timer,
    core_of,
    engine_lock,
    is_lock_held,
    kick,
    patch_timer_clock,
    replace_step,
    step_of,
    timer_of,
)
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, eventually, join_all
from tasker_executor import (
    BacklogPolicy,
    TaskExpired,
)
from tasker_executor._sync import clock
from timer_support import Script, Turns, refusing_start, watch_turns


def timers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.endswith("_timer")]


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    return watch_turns(monkeypatch)


def test_plain_pool_has_no_timer(make_pool: MakePool) -> None:
    pool = make_pool(4, min_workers=2, idle_timeout=3600)
    list(pool.map(abs, range(100)))

    assert timers() == []


def test_pool_with_a_policy_has_no_timer_before_the_first_task(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(4, policy=BacklogPolicy())
    before = timers()
    pool.submit(gate.hold)
    eventually(lambda: len(timers()) == 1, "the timer to start")

    assert before == []


def test_pool_has_one_timer(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(4, policy=Script(4), on_create=ledger.create, on_destroy=ledger.destroy, thread_name_prefix="crawler")
    views = [pool.with_options(start_within=3600) for _ in range(3)]
    for view in views:
        view.submit(FakeResource.use).result()

    assert timers() == ["crawler_timer"]


def test_timer_ends_with_the_executor(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(2, policy=Script(2), on_create=ledger.create, on_destroy=ledger.destroy)
    pool.submit(FakeResource.use).result()
    alive = timers()
    pool.shutdown()

    assert len(alive) == 1
    assert timers() == []


def test_shutdown_waits_for_a_timer_that_is_yet_to_live(
    make_pool: MakePool, ledger: Ledger, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, join = Timer._main, threading.Thread.join

    def live_late(timer: Timer, birth: LockType) -> None:
        gate.hold()
        live(timer, birth)

    def join_it(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name.endswith("_timer"):
            gate.release()
        join(thread, timeout)

    monkeypatch.setattr(Timer, "_main", live_late)
    monkeypatch.setattr(threading.Thread, "join", join_it)
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)
    pool.submit(FakeResource.use).result()
    pool.shutdown()

    assert timers() == []


def test_timer_ends_after_kill(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(2, policy=Script(2), on_create=ledger.create, on_destroy=ledger.destroy)
    pool.submit(FakeResource.use).result()
    pool.kill()

    eventually(lambda: timers() == [], "the timer to end")


def test_timer_sleeps_when_nothing_needs_it(
    make_pool: MakePool, ledger: Ledger, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=3600)
    pool.submit(FakeResource.use).result()
    kick(pool)  # or it would look in an hour whether a task waits for a resource
    turns.wait_until_asleep()
    kicks: list[Timer] = []
    monkeypatch.setattr(Timer, "kick", kicks.append)
    for _ in range(50):
        pool.submit(FakeResource.use).result()

    assert kicks == []
    assert turns.dues[-1] is None


def test_timer_that_stumbles_goes_on(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [LookupError("a bug of ours")]
    original = Timer._turn

    def turn(timer: Timer) -> float | None:
        if failures:
            raise failures.pop()
        return original(timer)

    monkeypatch.setattr(Timer, "_turn", turn)
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    hasty = pool.with_options(start_within=0.01)
    first = hasty.submit(int)
    eventually(lambda: not failures, "the timer to fail once")
    second = hasty.submit(int)

    assert isinstance(second.exception(), TaskExpired)
    assert isinstance(first.exception(), TaskExpired)
    eventually(lambda: "stumbled" in caplog.text, "the record, which the herald writes")


@pytest.mark.parametrize("begun", [False, True], ids=["before the thread begins", "after that"])
@pytest.mark.parametrize("lost", [3600, 0.01], ids=["deadline far off", "deadline near"])
def test_ctrl_c_while_the_timer_starts_leaves_one_timer(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch, begun: bool, lost: float
) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    start = threading.Thread.start

    def be_interrupted(thread: threading.Thread) -> None:
        if begun:
            start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.with_options(start_within=lost).submit(int)
    monkeypatch.undo()

    assert isinstance(pool.with_options(start_within=0.01).submit(int).exception(), TaskExpired)
    assert len(timers()) == 1


def test_timer_that_cannot_start_is_tried_again_with_the_next_deadline(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    with monkeypatch.context() as patch:
        refused = refusing_start(patch, "_timer")
        first = pool.with_options(start_within=0.01).submit(int)
    assert len(refused) == 1
    assert "cannot start the timer thread" in caplog.text
    later = pool.with_options(start_within=3600).submit(int)

    assert isinstance(first.exception(DEADLINE), TaskExpired)
    assert not later.done()


def test_timer_that_cannot_start_in_another_thread_is_tried_again_with_the_next_deadline(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A thread starts the timer. 2. Another one stores when it is due, and leaves the kick to it. 3. The start is refused.
    core = core_of(make_pool(1))
    core.deadlines.due = 0.0
    refusing_start(monkeypatch, "_timer")

    core.timer.start()

    assert core.deadlines.due == float("inf")


def test_timer_that_has_not_looked_at_the_limits_in_time_is_kicked_by_the_next_limit(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    limits = core_of(pool).limits
    limits.due = 0.0  # it could not start

    pool.with_options(run_within=3600).submit(gate.hold)

    eventually(lambda: limits.due > clock(), "the timer to look")


class TimeLimit(RuntimeError):
    """What a signal handler raises."""


def test_error_thrown_in_while_the_timer_starts_reaches_the_caller(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()

    def be_interrupted(_: threading.Thread) -> None:
        raise TimeLimit

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", be_interrupted)
        with pytest.raises(TimeLimit):
            pool.with_options(start_within=3600).submit(int)

    assert caplog.text == ""
    assert isinstance(pool.with_options(start_within=0.01).submit(int).exception(DEADLINE), TaskExpired)


def test_starter_that_is_interrupted_before_the_thread_lives_disowns_it(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. The thread exists, and has yet to take its first step. 2. An error is thrown into the starter. 3. Another one starts.
    # 4. The first one begins to live, and ends at once: one timer is enough.
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    unborn: list[threading.Thread] = []
    start = threading.Thread.start

    def be_interrupted(thread: threading.Thread) -> None:
        if not unborn:
            unborn.append(thread)
            raise TimeLimit
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", be_interrupted)
    with pytest.raises(TimeLimit):
        pool.with_options(start_within=3600).submit(int)
    assert isinstance(pool.with_options(start_within=0.01).submit(int).exception(DEADLINE), TaskExpired)
    start(unborn[0])

    assert join_all(unborn) == []
    assert len(timers()) == 1


def collect_in(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], object]) -> None:
    """Call `act` in the first steps of a thread of that name, as a destructor that a garbage collection runs there."""
    bootstrap = threading.Thread._set_ident  # type: ignore[attr-defined]  # before the starter is told

    def set_ident(thread: threading.Thread) -> None:
        bootstrap(thread)
        if thread.name.endswith(name):
            act()

    monkeypatch.setattr(threading.Thread, "_set_ident", set_ident)


@pytest.mark.parametrize("locked", [False, True], ids=["by a submitter", "under the lock of the core"])
def test_destructor_in_the_first_steps_of_the_timer_may_use_the_pool(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    nested: list[Future[int]] = []

    def use_it() -> None:
        pool.stats()
        nested.append(pool.with_options(start_within=0.01).submit(int))

    collect_in(monkeypatch, "_timer", use_it)
    if locked:  # a signal handler submits while its thread is in there
        with engine_lock(pool):
            future = pool.with_options(start_within=0.01).submit(int)
    else:
        future = pool.with_options(start_within=0.01).submit(int)

    assert isinstance(future.exception(DEADLINE), TaskExpired)
    assert isinstance(nested[0].exception(DEADLINE), TaskExpired)
    assert len(timers()) == 1


def test_kick_starts_no_thread_under_the_lock_of_the_core(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []
    start = threading.Thread.start

    def look(thread: threading.Thread) -> None:
        if thread.name.endswith("_timer"):
            held.append(is_lock_held(pool))
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", look)
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)
    pool.submit(FakeResource.use).result()

    assert held == [False]


class SleepyClock:
    """A clock by which time passes after it was read: as if the thread had been preempted there."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        now = clock() + self.ahead
        self.ahead += 0.001
        return now


def test_time_that_runs_out_while_the_timer_goes_to_sleep_is_not_for_ever(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_timer_clock(monkeypatch, SleepyClock())
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()

    for number in range(20):
        future = pool.with_options(start_within=number * 1e-4).submit(int)
        assert isinstance(future.exception(DEADLINE), TaskExpired)
    gate.wait_until_held()  # still: it was not the worker that found the task too late


class Park:
    """Stands in for the lock that a timer sleeps on, and is told how long it may."""

    def __init__(self, lock: LockType) -> None:
        self._lock = lock
        self.timeouts: list[float] = []
        self.before_sleep: Callable[[], object] = int

    def acquire(self, blocking: bool, timeout: float) -> bool:
        self.timeouts.append(timeout)
        self.before_sleep()
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()


def test_timer_whose_next_moment_has_passed_before_it_sleeps_does_not_sleep(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. The timer finds out when to look again. 2. Its thread does not run for so long that this has passed.
    pool = make_pool(1)
    turns: list[float] = []
    turn = step_of(pool, Step.TURN)

    def turn_late() -> float | None:
        due = turn()
        turns.append(0.0)
        return -3600.0 if len(turns) == 2 else due

    replace_step(pool, Step.TURN, turn_late, monkeypatch)
    kick(pool)  # which starts the timer, and has it look twice

    eventually(lambda: len(turns) > 2, "a third look")


def test_kick_that_comes_just_before_the_timer_falls_asleep_is_not_lost(make_pool: MakePool, gate: Gate) -> None:
    # 1. The timer finds nothing to do. 2. A task with a deadline comes, and a second kick right behind. 3. It sleeps.
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    timer = timer_of(pool)
    timer._park = park = Park(timer._park)  # type: ignore[assignment]  # has what it takes
    futures: list[Future[int]] = []

    def submit() -> None:
        park.before_sleep = int
        futures.append(pool.with_options(start_within=0.001).submit(int))
        timer.kick()

    park.before_sleep = submit
    timer.kick()
    eventually(lambda: bool(futures), "a timer about to sleep")

    assert isinstance(futures[0].exception(DEADLINE), TaskExpired)
    gate.wait_until_held()  # still: it was not the worker that found the task too late
    assert park.timeouts[0] == -1
