"""The supervisor, and what it does about time: policies, deadlines, idle workers; and how many workers there really are."""

from __future__ import annotations

import threading
import weakref
from _thread import LockType
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import pytest

from engine import (
    End,
    Herald,
    Step,
    Timer,
    Worker,
    alarm_of,
    bounds_of,
    core_of,
    deadlines_of,
    engine_lock,
    expire,
    herald_of,
    idle_stack,
    idle_workers,
    is_lock_held,
    kick,
    patch_timer_clock,
    pretend_asleep,
    pretend_awake,
    replace_step,
    step_of,
    thread_prefix_of,
    timer_lock,
    timer_of,
)
from support import DEADLINE, Clock, FakeResource, Gate, Ledger, MakePool, Watched, eventually, join_all
from tasker_executor import (
    BacklogPolicy,
    LoadSample,
    Observer,
    ResourceCreationError,
    ResourceExecutor,
    ShutdownTimeout,
    TaskExpired,
)
from tasker_executor._sync import clock
from tasker_executor.observers import ScaleEvent, StateEvent, TaskEvent


def threads_of(prefix: str) -> list[str]:
    """Names of the threads of a pool that was made with this `thread_name_prefix`; the supervisor's is not among them."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(prefix) and not name.endswith("_timer")]


def supervisors() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.endswith("_timer")]


class Script(Watched):
    """A policy that is told what to answer, and counts how often it was asked."""

    interval = 0.005

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer
        self.error: Exception | None = None
        self.asked = 0
        self.loads: list[LoadSample] = []

    def target(self, load: LoadSample, /) -> int:
        with self._changed:
            self.asked += 1
            self.loads.append(load)
            self._changed.notify_all()
            if self.error is not None:
                raise self.error
            return self.answer

    def wait_until_asked(self, more: int = 1) -> None:
        """Block until it was asked so many times more, counted from now."""
        with self._changed:
            n = self.asked + more
            self._wait_until(lambda: self.asked >= n, f"{n} questions")


class Turns(Watched):
    """Books when the supervisor has something to do next, after each of its turns. None: nothing, until it is woken."""

    def __init__(self) -> None:
        super().__init__()
        self.dues: list[float | None] = []

    def book(self, due: float | None) -> float | None:
        with self._changed:
            self.dues.append(due)
            self._changed.notify_all()
        return due

    def wait_until_asleep(self) -> None:
        self._wait_until(lambda: bool(self.dues) and self.dues[-1] is None, "a supervisor that sleeps until it is woken")


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    turns = Turns()
    original = Timer._turn

    def turn(timer: Timer) -> float | None:
        return turns.book(original(timer))

    monkeypatch.setattr(Timer, "_turn", turn)
    return turns


def work_until_the_policy_is_asked(pool: ResourceExecutor[None], policy: Script) -> None:
    """Queue more than the one base worker can take, until the policy has seen it."""
    with Gate() as gate:
        futures = [pool.submit(gate.hold) for _ in range(3)]
        policy.wait_until_asked()
    for future in futures:
        future.result()


# -- its thread --


def test_plain_pool_has_no_supervisor(make_pool: MakePool) -> None:
    pool = make_pool(4, min_workers=2, idle_timeout=3600)
    list(pool.map(abs, range(100)))

    assert supervisors() == []


def test_pool_with_a_policy_has_no_supervisor_before_the_first_task(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(4, policy=BacklogPolicy())
    before = supervisors()
    pool.submit(gate.hold)
    eventually(lambda: len(supervisors()) == 1, "the supervisor to start")

    assert before == []


def test_pool_has_one_supervisor(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(4, policy=Script(4), on_create=ledger.create, on_destroy=ledger.destroy, thread_name_prefix="crawler")
    views = [pool.with_options(start_within=3600) for _ in range(3)]
    for view in views:
        view.submit(FakeResource.use).result()

    assert supervisors() == ["crawler_timer"]


def test_supervisor_ends_with_the_executor(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(2, policy=Script(2), on_create=ledger.create, on_destroy=ledger.destroy)
    pool.submit(FakeResource.use).result()
    alive = supervisors()
    pool.shutdown()

    assert len(alive) == 1
    assert supervisors() == []


def test_supervisor_ends_after_kill(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(2, policy=Script(2), on_create=ledger.create, on_destroy=ledger.destroy)
    pool.submit(FakeResource.use).result()
    pool.kill()

    eventually(lambda: supervisors() == [], "the supervisor to end")


def test_supervisor_sleeps_when_nothing_needs_it(
    make_pool: MakePool, ledger: Ledger, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=3600)
    pool.submit(FakeResource.use).result()
    kick(pool)  # or it would look in an hour whether somebody waits for a resource
    turns.wait_until_asleep()
    kicks: list[Timer] = []
    monkeypatch.setattr(Timer, "kick", kicks.append)
    for _ in range(50):
        pool.submit(FakeResource.use).result()

    assert kicks == []
    assert turns.dues[-1] is None


def test_supervisor_that_stumbles_goes_on(
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
    eventually(lambda: not failures, "the stumble")
    second = hasty.submit(int)

    assert isinstance(second.exception(), TaskExpired)
    assert isinstance(first.exception(), TaskExpired)
    assert "stumbled" in caplog.text


@pytest.mark.parametrize("begun", [False, True], ids=["before the thread begins", "after that"])
@pytest.mark.parametrize("lost", [3600, 0.01], ids=["deadline far off", "deadline near"])
def test_ctrl_c_while_the_supervisor_starts_leaves_one_supervisor(
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
    assert len(supervisors()) == 1


def refusing_start(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Have the system refuse to start threads of that name; return a list of those refused."""
    refused: list[str] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith(name):
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return refused


def test_supervisor_that_cannot_start_is_tried_again_with_the_next_deadline(
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


class TimeLimit(RuntimeError):
    """What a signal handler raises."""


def test_error_thrown_in_while_the_supervisor_starts_reaches_the_caller(
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
    # 4. The first one begins to live, and ends at once: one supervisor is enough.
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
    assert len(supervisors()) == 1


def collect_in(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], object]) -> None:
    """Call `act` in the first steps of a thread of that name, as a destructor that a garbage collection runs there."""
    bootstrap = threading.Thread._set_ident  # type: ignore[attr-defined]  # before the starter is told

    def set_ident(thread: threading.Thread) -> None:
        bootstrap(thread)
        if thread.name.endswith(name):
            act()

    monkeypatch.setattr(threading.Thread, "_set_ident", set_ident)


@pytest.mark.parametrize("locked", [False, True], ids=["by a submitter", "under the lock of the core"])
def test_destructor_in_the_first_steps_of_the_supervisor_may_use_the_pool(
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
    assert len(supervisors()) == 1


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


# -- its sleep --


class SleepyClock:
    """A clock by which time passes after it was read: as if the thread had been preempted there."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        now = clock() + self.ahead
        self.ahead += 0.001
        return now


def test_time_that_runs_out_while_the_supervisor_goes_to_sleep_is_not_for_ever(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_timer_clock(monkeypatch, SleepyClock())
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()

    for number in range(20):
        future = pool.with_options(start_within=number * 1e-4).submit(int)
        assert isinstance(future.exception(DEADLINE), TaskExpired)


class Park:
    """Stands in for the lock that a supervisor sleeps on, and is told how long it may."""

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


def test_supervisor_whose_next_moment_has_passed_before_it_sleeps_does_not_sleep(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. The supervisor finds out when to look again. 2. Its thread does not run for so long that this has passed.
    pool = make_pool(1)
    turns: list[float] = []
    turn = step_of(pool, Step.TURN)

    def turn_late() -> float | None:
        due = turn()
        turns.append(0.0)
        return -3600.0 if len(turns) == 1 else due

    replace_step(pool, Step.TURN, turn_late, monkeypatch)
    kick(pool)

    eventually(lambda: len(turns) > 1, "a second look")


def test_kick_that_comes_just_before_the_supervisor_falls_asleep_is_not_lost(make_pool: MakePool, gate: Gate) -> None:
    # 1. The supervisor finds nothing to do. 2. A task with a deadline comes, and a second kick right behind. 3. It sleeps.
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    supervisor = timer_of(pool)
    supervisor._park = park = Park(supervisor._park)  # type: ignore[assignment]  # has what it takes
    futures: list[Future[int]] = []

    def submit() -> None:
        park.before_sleep = int
        futures.append(pool.with_options(start_within=0.001).submit(int))
        supervisor.kick()

    park.before_sleep = submit
    supervisor.kick()
    eventually(lambda: bool(futures), "a supervisor about to sleep")

    assert isinstance(futures[0].exception(DEADLINE), TaskExpired)
    assert park.timeouts[0] == -1


def test_later_deadline_wakes_a_supervisor_that_has_overslept(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    with monkeypatch.context() as patch:
        replace_step(pool, Step.KICK, int, patch)
        first = pool.with_options(start_within=0.0).submit(int)  # and nobody is told of it
        pretend_asleep(pool)
    kicks: list[None] = []
    with monkeypatch.context() as patch:
        replace_step(pool, Step.KICK, partial(kicks.append, None), patch)
        pool.with_options(start_within=3600).submit(int)
    pretend_awake(pool)
    kick(pool)

    assert kicks == [None]
    assert isinstance(first.exception(DEADLINE), TaskExpired)


# -- who tells of what it did --


def heralds() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.endswith("_herald")]


def expire_one(pool: ResourceExecutor[None], *callbacks: Callable[[Future[int]], object]) -> Future[int]:
    """Submit a task that expires, with these callbacks."""
    with timer_lock(pool):  # until they are there
        future = pool.with_options(start_within=0.0).submit(int)
        for callback in callbacks:
            future.add_done_callback(callback)
    return future


def test_callback_of_an_expired_task_may_take_its_time(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    names: list[str] = []
    with Gate() as callback:
        expire_one(pool, lambda _: names.append(threading.current_thread().name), lambda _: callback.hold())
        callback.wait_until_held()
        second = expire_one(pool, lambda _: names.append("second"))

        assert isinstance(second.exception(DEADLINE), TaskExpired)
        assert len(names) == 1
    eventually(lambda: len(names) == 2, "the callback of the second task")
    assert names[0].endswith("_herald")
    eventually(lambda: heralds() == [], "the herald to end when there is nothing to tell")


def test_callbacks_of_an_expired_task_are_called_in_their_order(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    called: list[int] = []

    def note(number: int) -> Callable[[Future[int]], None]:
        return lambda _: called.append(number)

    expire_one(pool, *map(note, range(10)))
    eventually(lambda: len(called) == 10, "all callbacks")

    assert called == list(range(10))


def test_callback_of_an_expired_task_may_wait_for_a_task(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    results: list[int] = []

    def fall_back(_: Future[int]) -> None:
        results.append(pool.submit(int, "7").result(DEADLINE))

    expire_one(pool, fall_back).exception(DEADLINE)
    gate.release()
    eventually(lambda: results == [7], "the result that the callback waits for")


def test_a_worker_leaves_the_callbacks_of_an_expired_task_to_the_thread_that_they_are_meant_for(
    make_pool: MakePool, gate: Gate
) -> None:
    # 1. The supervisor ends a task, and is about to have its callbacks called. 2. A worker pops that task.
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    herald = herald_of(pool)
    tell, callers = herald.tell, list[str]()
    with Gate() as telling:

        def tell_late() -> None:
            if herald._news:
                telling.hold()
            tell()

        replace_step(pool, Step.TELL, tell_late)
        expire_one(pool, lambda _: callers.append(threading.current_thread().name))
        telling.wait_until_held()
        gate.release()
        assert pool.submit(int, "7").result(DEADLINE) == 7
        assert callers == []

    eventually(lambda: bool(callers), "the callback")
    assert callers == [f"{thread_prefix_of(pool)}_herald"]


class Witness(Observer):
    """Notes on which thread it is told of what."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def _note(self, event: str) -> None:
        self.told.append((event, threading.current_thread().name.rpartition("_")[2]))

    def task_finished(self, event: TaskEvent) -> None:
        self._note("finished")

    def scaled(self, event: ScaleEvent) -> None:
        self._note("scaled")

    def state_changed(self, event: StateEvent) -> None:
        self._note(event.state)


def test_observers_and_log_handlers_hear_nothing_on_the_thread_that_keeps_time(
    make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Script(3)
    witness = Witness()
    pool = make_pool(4, policy=policy, observers=[witness])
    with caplog.at_level("DEBUG"):
        for _ in range(4):
            pool.submit(gate.hold)
        expire_one(pool).exception(DEADLINE)
        eventually(lambda: {"finished", "scaled"} <= {event for event, _ in witness.told}, "the events")
        policy.error = LookupError("no such load")
        policy.wait_until_asked(2)
        eventually(lambda: "last target stands" in caplog.text, "the record")

    assert {thread for _, thread in witness.told} == {"herald"}
    assert "LookupError: no such load" in caplog.text
    assert [record.threadName for record in caplog.records if (record.threadName or "").endswith("_timer")] == []
    gate.release()


def test_task_that_starved_calls_back_elsewhere(make_pool: MakePool, gate: Gate) -> None:
    names: list[str] = []

    def create() -> FakeResource:
        gate.hold()
        raise OSError("down")

    pool = make_pool(1, on_create=create, create_timeout=0.01)
    future = pool.submit(FakeResource.use)
    future.add_done_callback(lambda _: names.append(threading.current_thread().name))
    assert isinstance(future.exception(DEADLINE), ResourceCreationError)
    eventually(lambda: bool(names), "the callback")

    assert names[0].endswith("_herald")


def test_shutdown_waits_for_callbacks_of_expired_tasks(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    held = pool.submit(gate.hold)
    gate.wait_until_held()
    with Gate() as callback:
        future = expire_one(pool, lambda _: callback.hold())
        callback.wait_until_held()
        gate.release()
        held.result(DEADLINE)

        with pytest.raises(ShutdownTimeout):
            pool.shutdown(timeout=0.05)
        assert future.done()
        assert pool.stats().state == "draining"
    pool.shutdown(timeout=DEADLINE)
    assert heralds() == []


def test_shutdown_waits_for_the_thread_that_called_back(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = Herald._main
    with Gate() as last_steps:

        def end_slowly(herald: Herald, birth: LockType) -> None:
            main(herald, birth)
            last_steps.hold()

        monkeypatch.setattr(Herald, "_main", end_slowly)
        pool = make_pool(1)
        held = pool.submit(gate.hold)
        gate.wait_until_held()
        expire_one(pool, id)
        last_steps.wait_until_held()
        gate.release()
        held.result(DEADLINE)

        with pytest.raises(ShutdownTimeout):
            pool.shutdown(timeout=0.05)
        assert pool.stats().state == "closed"


def test_callback_of_an_expired_task_may_shut_the_pool_down(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    ended: list[bool] = []

    def end(_: Future[int]) -> None:
        pool.shutdown()
        ended.append(True)

    expire_one(pool, end)
    eventually(lambda: ended == [True], "the shutdown to return")


def test_observers_hear_of_the_last_task_before_the_end(make_pool: MakePool) -> None:
    # The only task expires while the pool drains and no worker is left: the end comes right behind it.
    witness = Witness()
    pool = make_pool(1, observers=[witness], initializer=int)
    with timer_lock(pool):  # the supervisor cannot expire it yet
        replace_step(pool, Step.MAY_START, lambda: False)  # nor does a worker take it
        pool.with_options(start_within=0.0).submit(int)
        pool.shutdown(wait=False)
        assert witness.told == [("draining", "MainThread")]
    pool.shutdown()

    assert [event for event, _ in witness.told] == ["draining", "finished", "closed"]
    assert {thread for _, thread in witness.told[1:]} == {"herald"}


def test_callbacks_are_called_though_no_thread_can_be_started_for_them(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    refused = refusing_start(monkeypatch, "_herald")
    names: list[str] = []
    expire_one(pool, lambda _: names.append(threading.current_thread().name))
    eventually(lambda: len(names) == 1, "the callback")
    expire_one(pool, lambda _: names.append(threading.current_thread().name))
    eventually(lambda: len(names) == 2, "the next callback")

    assert len(refused) == 2
    assert [name.rpartition("_")[2] for name in names] == ["timer"] * 2


def test_deadline_that_a_signal_handler_adds_while_others_are_forgotten_is_kept(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    late = [pool.with_options(start_within=3600).submit(int) for _ in range(70)]
    comes: list[bool] = []
    came: list[Future[int]] = []

    def come_in_between() -> bool:
        if not comes:
            comes.append(True)
            came.append(pool.with_options(start_within=0.01).submit(int))
        return False

    late[0].done = come_in_between  # type: ignore[method-assign]  # asked in the middle of it
    for future in late[1:]:
        future.cancel()
    pool.with_options(start_within=3600).submit(int)

    assert len(deadlines_of(pool)) < 10
    assert isinstance(came[0].exception(DEADLINE / 2), TaskExpired)  # not when the gate gives up, and the worker finds it


# -- the policy's tick --


def test_policy_is_asked_while_there_is_work(make_pool: MakePool, gate: Gate) -> None:
    policy = Script(1)
    pool = make_pool(4, policy=policy)
    pool.submit(gate.hold)
    gate.wait_until_held()
    policy.wait_until_asked(3)

    assert policy.loads[-1].busy == 1


def test_tick_pauses_at_rest(make_pool: MakePool, turns: Turns) -> None:
    policy = Script(1)
    pool = make_pool(4, min_workers=1, policy=policy)
    work_until_the_policy_is_asked(pool, policy)
    turns.wait_until_asleep()

    assert policy.loads[-1].queued == policy.loads[-1].busy == 0


def test_tick_resumes_with_the_next_task(make_pool: MakePool, turns: Turns, gate: Gate) -> None:
    policy = Script(1)
    pool = make_pool(4, min_workers=1, policy=policy)
    work_until_the_policy_is_asked(pool, policy)
    turns.wait_until_asleep()
    pool.submit(gate.hold)
    gate.wait_until_held()
    policy.wait_until_asked(2)  # the first of these questions may have begun before the task did

    assert policy.loads[-1].busy == 1


def test_task_submitted_while_the_tick_pauses_is_run_at_once(make_pool: MakePool) -> None:
    policy = Script(1)
    pool = make_pool(4, min_workers=1, policy=policy)
    alarm = alarm_of(pool)
    work_until_the_policy_is_asked(pool, policy)
    for _ in range(3):
        eventually(lambda: alarm in idle_stack(pool), "the tick to pause")

        assert pool.submit(abs, -1).result(timeout=DEADLINE) == 1


def test_policy_is_never_asked_when_no_task_ever_comes(make_pool: MakePool) -> None:
    policy = Script(4)
    pool = make_pool(4, min_workers=2, policy=policy)
    pool.shutdown()

    assert policy.asked == 0


def test_policy_that_raises_is_logged_once_and_the_last_target_stands(
    make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Script(3)
    pool = make_pool(8, policy=policy)
    for _ in range(8):
        pool.submit(gate.hold)
    gate.wait_until_held(3)
    policy.error = LookupError("no such load")
    policy.wait_until_asked(5)

    assert caplog.text.count("the last target stands") == 1
    assert pool.stats().active_workers == 3


def test_policy_that_recovers_is_followed_again(make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    policy = Script(1)
    policy.error = LookupError("no such load")
    pool = make_pool(8, policy=policy)
    for _ in range(8):
        pool.submit(gate.hold)
    policy.wait_until_asked(2)
    policy.answer, policy.error = 5, None
    gate.wait_until_held(5)

    assert pool.stats().active_workers == 5


@pytest.mark.parametrize("answer", [None, 2.5, "many"])
def test_policy_that_answers_no_number_is_logged_and_ignored(
    make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture, answer: object
) -> None:
    class Nonsense(Script):
        def target(self, load: LoadSample, /) -> int:
            super().target(load)
            return answer  # type: ignore[return-value]  # that is the point

    policy = Nonsense(0)
    pool = make_pool(8, min_workers=2, policy=policy)
    for _ in range(4):
        pool.submit(gate.hold)
    policy.wait_until_asked(3)

    assert pool.stats().active_workers == 2
    assert caplog.text.count("the last target stands") == 1


@pytest.mark.parametrize("answer, workers", [(-5, 2), (0, 2), (3, 3), (1000, 4)])
def test_answer_of_a_policy_is_clamped_to_the_bounds(make_pool: MakePool, gate: Gate, answer: int, workers: int) -> None:
    policy = Script(answer)
    pool = make_pool(4, min_workers=2, policy=policy)
    for _ in range(8):
        pool.submit(gate.hold)
    gate.wait_until_held(workers)
    policy.wait_until_asked(3)

    assert pool.stats().active_workers == workers


def test_idle_workers_that_a_policy_no_longer_wants_leave(make_pool: MakePool, ledger: Ledger) -> None:
    policy = Script(3)
    pool = make_pool(3, policy=policy, on_create=ledger.create, on_destroy=ledger.destroy)
    with Gate() as busy, Gate() as idle:
        futures = [pool.submit(idle.hold) for _ in range(2)]
        idle.wait_until_held(2)
        pool.submit(busy.hold)
        busy.wait_until_held()
        policy.answer = 1
        policy.wait_until_asked(3)
        still_there = pool.stats().active_workers
        idle.release()
        for future in futures:
            future.result()
        ledger.wait_until_destroyed(2)

    assert still_there == 3
    assert len(ledger.alive) <= 1


def test_backlog_policy_grows_with_the_queue_and_shrinks_back_to_the_base(make_pool: MakePool, gate: Gate) -> None:
    policy = BacklogPolicy(threshold=2, step=2, interval=0.005)
    pool = make_pool(5, min_workers=1, policy=policy, thread_name_prefix="elastic")
    at_first = len(threads_of("elastic"))
    futures = [pool.submit(gate.hold) for _ in range(12)]
    gate.wait_until_held(5)
    at_most = len(threads_of("elastic"))
    gate.release()
    for future in futures:
        future.result()
    eventually(lambda: len(threads_of("elastic")) == 1, "the pool to shrink back to its base")

    assert (at_first, at_most) == (1, 5)
    assert pool.stats().active_workers == 1


def test_tick_goes_on_for_a_task_that_comes_as_it_pauses(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. The policy has been asked, and everything is at rest. 2. Tasks are queued, and find no alarm. 3. The tick pauses.
    policy = Script(1)
    pool = make_pool(4, min_workers=1, policy=policy)
    at_rest: Callable[[], bool] = step_of(pool, Step.AT_REST)
    alarm = alarm_of(pool)
    came: list[object] = []

    def be_late() -> bool:
        rests = at_rest()
        if rests and not came:
            came.append(pool.submit(gate.hold))
            gate.wait_until_held()  # the only worker will not look for others to wake
            came.append(pool.submit(gate.hold))
        return rests

    work_until_the_policy_is_asked(pool, policy)
    eventually(lambda: alarm in idle_stack(pool), "the tick to pause")
    replace_step(pool, Step.AT_REST, be_late)
    pool.submit(int).result()  # so the tick goes on, and comes to rest again
    eventually(lambda: len(came) == 2, "the tick to find everything at rest")
    policy.wait_until_asked(2)

    assert policy.loads[-1].queued == 1


def test_tick_resumes_though_ctrl_c_came_between_the_alarm_and_its_ring(make_pool: MakePool, turns: Turns, gate: Gate) -> None:
    # 1. A submitter takes the alarm off the stack. 2. Ctrl-C comes before it rings. 3. The supervisor is woken for another
    # reason: it looks for itself whether there is work.
    policy = Script(1)
    pool = make_pool(4, min_workers=1, policy=policy)
    work_until_the_policy_is_asked(pool, policy)
    turns.wait_until_asleep()
    idle_stack(pool).remove(alarm_of(pool))
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool._core.timer.kick()
    policy.wait_until_asked(2)

    assert policy.loads[-1].busy == 1


def test_tick_that_resumed_by_itself_sets_no_second_alarm(make_pool: MakePool, turns: Turns) -> None:
    # As after a Ctrl-C, when nobody knows whether the alarm has been taken off the stack.
    policy = Script(1)
    pool = make_pool(4, min_workers=1, policy=policy)
    work_until_the_policy_is_asked(pool, policy)
    turns.wait_until_asleep()
    asked, before = policy.asked, len(turns.dues)
    core_of(pool).scaler.resume()
    eventually(lambda: len(turns.dues) > before and turns.dues[-1] is None, "the tick to go on, and to pause again")

    assert policy.asked > asked
    assert idle_stack(pool).count(alarm_of(pool)) == 1


# -- deadlines --


def test_task_expires_without_a_free_worker(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    ran: list[int] = []
    future = pool.with_options(start_within=0.01).submit(ran.append, 1)
    error = future.exception()
    gate.release()
    pool.shutdown()

    assert isinstance(error, TaskExpired)
    assert ran == []


def test_task_that_starts_in_time_does_not_expire(make_pool: MakePool, turns: Turns) -> None:
    pool = make_pool(1)

    assert pool.with_options(start_within=3600).submit(int).result() == 0


def test_task_that_runs_for_longer_than_it_may_wait_does_not_expire(make_pool: MakePool, gate: Gate, clock: Clock) -> None:
    pool = make_pool(2)
    running = pool.with_options(start_within=3600).submit(gate.hold)
    gate.wait_until_held()
    others = Gate()
    with others:
        pool.submit(others.hold)
        others.wait_until_held()
        waiting = pool.with_options(start_within=3700).submit(int)
        clock.pass_time(3701, pool)
        expired = waiting.exception()  # so the supervisor has looked at both
        done_early = running.done()
    gate.release()

    assert isinstance(expired, TaskExpired)
    assert not done_early
    assert running.exception() is None


def test_deadlines_are_kept_in_their_own_order(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    late = pool.with_options(start_within=3600).submit(int)
    soon = pool.with_options(start_within=0.01).submit(int)

    assert isinstance(soon.exception(), TaskExpired)
    assert not late.done()


def test_deadlines_of_tasks_that_are_done_are_forgotten(make_pool: MakePool) -> None:
    pool = make_pool(1)
    view = pool.with_options(start_within=3600)
    for _ in range(1000):
        view.submit(int).result()

    assert len(deadlines_of(pool)) < 200


def test_deadline_of_a_future_that_nobody_holds_any_more_is_dropped(make_pool: MakePool) -> None:
    pool = make_pool(1)
    future = pool.with_options(start_within=3600).submit(int)
    reference = weakref.ref(future)
    future.result()
    del future
    eventually(lambda: reference() is None, "the worker to forget the future")

    assert expire(pool, clock() + 3601) is None
    assert deadlines_of(pool) == []


# -- idle workers --


def busy_workers(pool: ResourceExecutor[FakeResource], gates: list[Gate]) -> list[Callable[[], None]]:
    """Make a worker busy with each gate, one after the other. Each function returned makes one of them idle again."""

    def idle_again(gate: Gate, finished: Callable[[], object]) -> Callable[[], None]:
        def release() -> None:
            gate.release()
            finished()

        return release

    releases: list[Callable[[], None]] = []
    for gate in gates:
        future = pool.submit(gate.hold)
        gate.wait_until_held()
        releases.append(idle_again(gate, future.result))
    return releases


def test_idle_timeout_retires_the_workers_above_the_base(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(5, min_workers=2, idle_timeout=0.01, thread_name_prefix="idle")
    futures = [pool.submit(gate.hold) for _ in range(5)]
    gate.wait_until_held(5)
    gate.release()
    for future in futures:
        future.result()
    eventually(lambda: len(threads_of("idle")) == 2, "the burst workers to end")

    assert pool.stats().active_workers == pool.stats().base_workers == 2
    assert pool.stats().burst_workers == 0


def test_without_a_base_idle_timeout_retires_every_worker(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy, idle_timeout=0.01)
    pool.submit(FakeResource.use).result()
    ledger.wait_until_destroyed(1)
    eventually(lambda: pool.stats().active_workers == 0, "the worker to end")

    assert pool.submit(FakeResource.use).result() == 1


def test_busy_worker_is_not_retired(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, idle_timeout=0.01)
    held = pool.submit(gate.hold)
    gate.wait_until_held()
    pool.submit(FakeResource.use).result()
    ledger.wait_until_destroyed(1)
    destroyed = list(ledger.destroyed)
    gate.release()
    held.result()

    assert [resource.number for resource in destroyed] == [1]


def test_time_in_a_done_callback_is_not_idle_time(make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    idle_since: list[float] = []
    called: list[float] = []
    rest = Worker._rest

    def observed(worker: Worker) -> End | None:
        assert worker.log.until is not None
        idle_since.append(worker.log.until)
        return rest(worker)

    monkeypatch.setattr(Worker, "_rest", observed)
    pool = make_pool(1, idle_timeout=3600)
    future = pool.submit(gate.hold)
    future.add_done_callback(lambda _: called.append(clock()))
    gate.release()
    eventually(lambda: bool(idle_since), "the worker to be idle")

    assert idle_since[0] >= called[0]


def test_without_idle_timeout_idle_workers_stay(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy)
    with Gate() as first, Gate() as second:
        for release in busy_workers(pool, [first, second]):
            release()

    assert pool.stats().idle_workers == 2
    assert ledger.destroyed == []


def test_base_worker_that_is_idle_goes_and_a_burst_worker_that_is_busy_takes_its_place(
    make_pool: MakePool, ledger: Ledger
) -> None:
    """The resource used last is the one to keep, whoever made it."""
    pool = make_pool(1, min_workers=1, on_create=ledger.create, on_destroy=ledger.destroy, idle_timeout=0.01)
    with Gate() as base, Gate() as burst:
        [make_base_idle] = busy_workers(pool, [base])
        pool.resize(max_workers=2)  # not before, or a second worker may start for a task that the first is about to take
        [make_burst_idle] = busy_workers(pool, [burst])
        make_base_idle()
        ledger.wait_until_destroyed(1)
        make_burst_idle()

    assert [resource.number for resource in ledger.destroyed] == [0]
    assert [resource.number for resource in ledger.alive] == [1]


@pytest.mark.parametrize("most, stay", [(2, {2, 0}), (1, {0})])
def test_workers_idle_for_the_longest_are_retired_first(make_pool: MakePool, ledger: Ledger, most: int, stay: set[int]) -> None:
    pool = make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy)
    with Gate() as a, Gate() as b, Gate() as c:
        idle_0, idle_1, idle_2 = busy_workers(pool, [a, b, c])
        idle_1()
        idle_2()
        idle_0()
    pool.resize(max_workers=most)
    ledger.wait_until_destroyed(3 - most)

    assert {resource.number for resource in ledger.alive} == stay


def test_worker_that_became_idle_last_is_the_first_to_be_woken(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy)
    with Gate() as a, Gate() as b, Gate() as c:
        idle_0, idle_1, idle_2 = busy_workers(pool, [a, b, c])
        idle_2()
        idle_0()
        idle_1()
    from_the_bottom = [worker.resource for worker in idle_workers(pool)]

    assert [resource.number for resource in from_the_bottom] == [2, 0, 1]


# -- resize --


def test_resize_up_starts_workers_for_the_tasks_that_wait(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    for _ in range(5):
        pool.submit(gate.hold)
    gate.wait_until_held(1)
    pool.resize(max_workers=4)
    gate.wait_until_held(4)

    assert pool.stats().active_workers == 4


def test_resize_of_the_base_starts_workers_at_once(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(4, on_create=ledger.create, on_destroy=ledger.destroy)
    pool.resize(min_workers=3)
    pool.wait_ready()

    assert len(ledger.created) == 3


def test_resize_down_retires_idle_workers_at_once(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(4, min_workers=4, on_create=ledger.create, on_destroy=ledger.destroy)
    pool.wait_ready()
    pool.resize(min_workers=1, max_workers=1)
    ledger.wait_until_destroyed(3)
    eventually(lambda: pool.stats().active_workers == 1, "three workers to end")

    assert len(ledger.alive) == 1


def test_resize_down_lets_busy_workers_finish_their_task_and_then_leave(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(3, thread_name_prefix="smaller")
    futures = [pool.submit(gate.hold) for _ in range(3)]
    gate.wait_until_held(3)
    waiting = [pool.submit(int) for _ in range(10)]
    pool.resize(max_workers=1)
    busy = len(threads_of("smaller"))
    gate.release()
    for future in futures:
        future.result()
    results = [future.result() for future in waiting]
    eventually(lambda: len(threads_of("smaller")) == 1, "two workers to end")

    assert busy == 3
    assert results == [0] * 10
    assert pool.stats().active_workers == 1


def test_resize_down_and_up_again_before_busy_workers_are_through_keeps_them(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    pool = make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy)
    futures = [pool.submit(gate.hold) for _ in range(3)]
    gate.wait_until_held(3)
    pool.resize(max_workers=1)
    pool.resize(max_workers=3)
    gate.release()
    for future in futures:
        future.result()

    assert pool.stats().active_workers == 3
    assert ledger.destroyed == []


def test_lower_base_gives_idle_workers_to_idle_timeout(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(3, min_workers=3, on_create=ledger.create, on_destroy=ledger.destroy, idle_timeout=0.01)
    pool.wait_ready()
    pool.resize(min_workers=1)
    ledger.wait_until_destroyed(2)
    eventually(lambda: pool.stats().active_workers == 1, "two workers to end")

    assert len(ledger.alive) == 1


def test_resize_bounds_what_a_policy_may_want(make_pool: MakePool, gate: Gate) -> None:
    policy = Script(100)
    pool = make_pool(2, policy=policy)
    for _ in range(8):
        pool.submit(gate.hold)
    gate.wait_until_held(2)
    pool.resize(max_workers=4)
    gate.wait_until_held(4)
    policy.wait_until_asked(3)

    assert pool.stats().active_workers == 4


@pytest.mark.parametrize(
    "bounds, message",
    [
        ({"max_workers": 0}, "max_workers must be greater than 0"),
        ({"min_workers": -1}, "min_workers must be at least 0, not -1"),
        ({"min_workers": 5}, "min_workers=5 is more than max_workers=4"),
    ],
)
def test_resize_refuses_bounds_that_make_no_sense_and_changes_nothing(
    make_pool: MakePool, bounds: dict[str, int], message: str
) -> None:
    pool = make_pool(4, min_workers=1)
    with pytest.raises(ValueError, match=message):
        pool.resize(**bounds)

    assert bounds_of(pool) == (1, 4)


def test_tasks_that_come_one_at_a_time_resume_the_tick_though_a_worker_lies_above_the_alarm(make_pool: MakePool) -> None:
    policy = Script(1)
    pool = make_pool(4, min_workers=1, policy=policy)
    pool.wait_ready()
    eventually(lambda: len(idle_stack(pool)) == 2, "the base worker on top of the alarm")

    pool.submit(int).result(DEADLINE)

    eventually(lambda: bool(policy.loads), "the policy to be asked")
