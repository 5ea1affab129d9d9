"""`max_queued`: which submissions get a place in the queue, and what becomes of the refused ones."""

from __future__ import annotations

import asyncio
import gc
import os
import queue
import signal
import threading
import traceback
import weakref
from _thread import LockType, allocate_lock, get_ident
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

import pytest

import tasker_executor
from engine import (
    FINISHED,
    Admission,
    Lane,
    Lanes,
    Step,
    Task,
    Ticket,
    admission_of,
    core_of,
    engine_lock,
    is_terminated,
    normal_lane,
    patch_door_lock,
    replace_step,
    show_submitters,
    start_thread,
    step_of,
)
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, eventually, join_all
from tasker_executor import QueueFull, ResourceExecutor


class Submitter(threading.Thread):
    """A thread that submits one task, and keeps what it got: a future or an error."""

    def __init__(self, pool: ResourceExecutor[Any], fn: Callable[..., Any], *args: Any) -> None:
        super().__init__(name="submitter")

        def call() -> Future[Any]:
            return pool.submit(fn, *args)

        self._call = call
        self.future: Future[Any] | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.future = self._call()
        except BaseException as error:
            self.error = error


def wait_until_blocked(pool: ResourceExecutor[Any], count: int) -> None:
    """Block until `count` submitters wait for a place in the queue."""
    eventually(lambda: len(admission_of(pool).blocked) == count, f"{count} blocked submitters")


def fill(pool: ResourceExecutor[None], gate: Gate, waiting: int) -> Future[None]:
    """Occupy the only worker, and queue so many tasks behind. Return the future of the task that occupies it."""
    held = pool.submit(gate.hold)
    gate.wait_until_held()
    for _ in range(waiting):
        pool.submit(int)
    return held


# -- raise --


def test_full_queue_refuses_a_task_that_then_never_runs(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=2, on_full="raise", name="crawler")
    ran: list[int] = []
    fill(pool, gate, 2)

    with pytest.raises(QueueFull, match="executor 'crawler': 2 tasks wait already, and that is the limit"):
        pool.submit(ran.append, 1)
    gate.release()
    pool.shutdown()
    assert ran == []
    assert pool.stats().submitted == 3


def test_refusal_is_the_error_of_a_full_queue(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0, on_full="raise")
    fill(pool, gate, 0)

    with pytest.raises(queue.Full):
        pool.submit(int)


def test_both_lanes_share_the_bound(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=2, on_full="raise")
    fill(pool, gate, 1)
    pool.submit_priority(int)

    with pytest.raises(QueueFull):
        pool.submit_priority(int)
    with pytest.raises(QueueFull):
        pool.submit(int)


def test_bound_counts_only_those_that_must_wait(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(3, max_queued=2, on_full="raise")
    for _ in range(3 + 2):
        pool.submit(gate.hold)  # three for free workers, started or not, and two to wait

    with pytest.raises(QueueFull):
        pool.submit(int)


def test_bound_of_zero_takes_a_task_only_for_a_free_worker(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2, max_queued=0, on_full="raise")
    pool.submit(gate.hold)
    pool.submit(gate.hold)

    with pytest.raises(QueueFull):
        pool.submit(int)


def test_bound_applies_to_views_and_map(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=1, on_full="raise")
    fill(pool, gate, 0)

    with pytest.raises(QueueFull):
        pool.map(int, ["1", "2"])
    with pool.with_options(priority=True) as view:
        view.submit(int)  # in the place that map has given back
        with pytest.raises(QueueFull):
            view.submit(int)
        gate.release()


def test_cancelled_task_makes_room(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=1, on_full="raise")
    fill(pool, gate, 0)
    waiting = pool.submit(int)
    waiting.cancel()

    assert not pool.submit(int).done()  # was let in


def test_expired_task_makes_room(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=1, on_full="raise")
    fill(pool, gate, 0)
    pool.with_options(start_within=0.0).submit(int).exception(DEADLINE)

    assert not pool.submit(int).done()  # was let in


def test_no_bound_is_no_bound(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    fill(pool, gate, 1000)

    assert pool.stats().queued_tasks == 1000


# -- caller --


def test_full_queue_makes_the_caller_work(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0, on_full="caller")
    fill(pool, gate, 0)
    future = pool.submit(threading.get_ident)

    assert future.done()
    assert future.result() == threading.get_ident()


def test_a_task_that_is_taken_while_a_submitter_counts_is_counted_once(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A submitter counts a task that waits. 2. A worker takes it. 3. The submitter counts the busy workers."""
    begin = threading.Event()
    pool = make_pool(2, initializer=begin.wait, initargs=(DEADLINE,), max_queued=0, on_full="raise")
    first = pool.submit(gate.hold)
    waiting = Lanes.waiting

    def count(lanes: Lanes) -> int:
        counted = waiting(lanes)
        if not begin.is_set():
            begin.set()
            gate.wait_until_held()
        return counted

    monkeypatch.setattr(Lanes, "waiting", count)
    second = pool.submit(int)
    gate.release()

    assert second.result(DEADLINE) == 0
    assert first.exception(DEADLINE) is None


def test_caller_gets_a_future_for_an_error_too(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0, on_full="caller")
    fill(pool, gate, 0)
    future = pool.submit(int, "no number")

    assert isinstance(future.exception(), ValueError)


def test_caller_works_with_a_resource(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    ledger.any_thread = True
    pool = make_pool(
        1, on_create=ledger.create, on_destroy=ledger.destroy, max_queued=0, on_full="caller", resource_pool_size=1
    )
    pool.submit(gate.hold)
    gate.wait_until_held()
    plain = pool.with_options(pass_resource=False)

    assert pool.submit(FakeResource.use).result() == 0
    assert plain.submit(lambda: pool.current_resource().number).result() == 0


def test_free_worker_is_preferred_to_the_caller(make_pool: MakePool) -> None:
    pool = make_pool(1, max_queued=0, on_full="caller")

    assert pool.submit(threading.get_ident).result() != threading.get_ident()


# -- block --


def test_full_queue_blocks_the_caller_until_there_is_room(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=1)
    fill(pool, gate, 1)
    submitter = Submitter(pool, int, "7")
    wait_until_blocked(pool, 1)

    assert pool.stats().submitted == 2
    gate.release()
    assert join_all([submitter]) == []
    assert submitter.future is not None
    assert submitter.future.result() == 7


def test_cancelled_task_lets_a_blocked_submitter_in(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=1)
    held = fill(pool, gate, 0)
    waiting = pool.submit(int)
    submitter = Submitter(pool, int)
    wait_until_blocked(pool, 1)
    waiting.cancel()

    assert join_all([submitter]) == []
    assert not held.done()
    assert pool.stats().queued_tasks == 1


def test_expired_task_lets_a_blocked_submitter_in(make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(1, max_queued=1)
    held = fill(pool, gate, 0)
    deadlines: list[tuple[Task[Any], float]] = []

    def watch(future: Task[Any], deadline: float) -> None:
        deadlines.append((future, deadline))

    with monkeypatch.context() as patch:
        replace_step(pool, Step.WATCH, watch, patch)
        pool.with_options(start_within=0.0).submit(int)
    submitter = Submitter(pool, int)
    wait_until_blocked(pool, 1)
    step_of(pool, Step.WATCH)(*deadlines[0])  # only now

    assert join_all([submitter]) == []
    assert not held.done()


def test_more_workers_let_a_blocked_submitter_in(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0)
    held = fill(pool, gate, 0)
    submitter = Submitter(pool, int, "7")
    wait_until_blocked(pool, 1)
    pool.resize(max_workers=2)

    assert join_all([submitter]) == []
    assert not held.done()
    assert submitter.future is not None
    assert submitter.future.result() == 7


def test_first_come_is_first_served(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=1)
    ran: list[int] = []
    fill(pool, gate, 1)
    submitters: list[Submitter] = []
    for number in range(10):
        submitters.append(Submitter(pool, ran.append, number))
        wait_until_blocked(pool, number + 1)
    gate.release()

    assert join_all(submitters) == []
    pool.shutdown()
    assert ran == list(range(10))


def test_who_is_let_in_is_not_overtaken_on_the_way_to_the_lane(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1, max_queued=2)
    ran: list[int] = []
    fill(pool, gate, 0)
    waiting = [pool.submit(int), pool.submit(int)]
    admission = admission_of(pool)
    enter: Callable[..., bool] = step_of(pool, Step.ENTER)

    with Gate() as corridor:

        def enter_slowly(ticket: Ticket, *, block: bool) -> bool:
            entered = enter(ticket, block=block)
            corridor.hold()
            return entered

        with monkeypatch.context() as patch:
            replace_step(pool, Step.ENTER, enter_slowly, patch)
            slow = Submitter(pool, ran.append, 1)
            wait_until_blocked(pool, 1)
        fast = Submitter(pool, ran.append, 2)
        wait_until_blocked(pool, 2)
        with admission._lock:  # two places become free at once
            for future in waiting:
                future.cancel()
        corridor.wait_until_held()

        assert len(admission.blocked) == 1
    gate.release()
    assert join_all([slow, fast]) == []
    pool.shutdown()
    assert ran == [1, 2]


def test_one_free_place_lets_one_in_and_no_more(make_pool: MakePool) -> None:
    with Gate() as first, Gate() as second:
        pool = make_pool(1, max_queued=1)
        pool.submit(first.hold)
        first.wait_until_held()
        pool.submit(second.hold)
        submitters: list[Submitter] = []
        for number in range(3):
            submitters.append(Submitter(pool, int))
            wait_until_blocked(pool, number + 1)
        first.release()
        second.wait_until_held()
        join_all(submitters[:1])

        assert [submitter.is_alive() for submitter in submitters] == [False, True, True]
        assert pool.stats().queued_tasks == 1
        second.release()
        assert join_all(submitters) == []


def test_nobody_overtakes_those_at_the_door(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=1)
    fill(pool, gate, 1)
    submitter = Submitter(pool, int)
    wait_until_blocked(pool, 1)
    admission = admission_of(pool)

    with admission._lock:  # A place comes free. Before the waiter gets it, another thread asks.
        admission.limit = 2
        assert not admission.enter(Ticket(), block=False)
        admission.refill()
    assert join_all([submitter]) == []


def test_shutdown_raises_in_a_blocked_caller(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0)
    ran: list[int] = []
    held = fill(pool, gate, 0)
    submitters = [Submitter(pool, ran.append, number) for number in range(3)]
    wait_until_blocked(pool, 3)
    pool.shutdown(wait=False)

    assert join_all(submitters) == []
    assert not held.done()
    for submitter in submitters:
        assert isinstance(submitter.error, RuntimeError)
        assert str(submitter.error) == "cannot schedule new futures after shutdown"
    gate.release()
    pool.shutdown()
    assert ran == []


def test_kill_raises_in_a_blocked_caller(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0)
    held = fill(pool, gate, 0)
    submitter = Submitter(pool, int)
    wait_until_blocked(pool, 1)
    pool.kill()

    assert join_all([submitter]) == []
    assert not held.done()
    assert isinstance(submitter.error, RuntimeError)


# -- workers' own tasks --


@pytest.mark.parametrize("on_full", ["block", "raise", "caller"])
def test_task_of_a_worker_is_always_let_in(make_pool: MakePool, gate: Gate, on_full: str) -> None:
    options: dict[str, Any] = {"on_full": on_full}
    pool = make_pool(1, max_queued=0, **options)
    inner = pool.submit(lambda: [pool.submit(threading.get_ident) for _ in range(5)]).result(DEADLINE)

    assert threading.get_ident() not in [future.result(DEADLINE) for future in inner]


def test_tasks_that_submit_to_a_full_queue_do_not_deadlock(make_pool: MakePool) -> None:
    pool = make_pool(1, max_queued=2)
    outer = [pool.submit(lambda: pool.submit(int, "7")) for _ in range(100)]

    assert [future.result(DEADLINE).result(DEADLINE) for future in outer] == [7] * 100


def test_done_callback_on_a_worker_is_let_in(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0)
    submitted: list[Future[int]] = []
    future = pool.submit(gate.hold)
    future.add_done_callback(lambda _: submitted.extend(pool.submit(int) for _ in range(3)))
    gate.release()
    wait([future], DEADLINE)

    eventually(lambda: len(submitted) == 3, "the callback to be let in")


# -- Ctrl-C --


class Interrupted(KeyboardInterrupt):
    """What Ctrl-C raises in these tests."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Interrupts the main thread, as Ctrl-C does."""

    def handler(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, handler)
    yield lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="sends a signal to a thread")
def test_blocked_caller_that_is_interrupted_leaves_the_door(
    make_pool: MakePool, gate: Gate, interrupt: Callable[[], None]
) -> None:
    pool = make_pool(1, max_queued=1)
    fill(pool, gate, 1)

    def press() -> None:
        wait_until_blocked(pool, 1)
        interrupt()

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(Interrupted):
        pool.submit(int)
    presser.join()

    assert len(admission_of(pool).blocked) == 0
    assert pool.stats().submitted == 2
    submitter = Submitter(pool, int)
    gate.release()
    assert join_all([submitter]) == []


class InterruptedLock:
    """A lock in whose second `acquire`, the one that blocks, Ctrl-C comes just after it has succeeded."""

    def __init__(self) -> None:
        self._lock: LockType = allocate_lock()
        self._acquired = 0

    def acquire(self) -> bool:
        self._lock.acquire()
        self._acquired += 1
        if self._acquired == 2:
            raise Interrupted
        return True

    def release(self) -> None:
        self._lock.release()


def test_caller_that_is_interrupted_when_it_was_just_let_in_gives_the_place_to_the_next(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1, max_queued=1)
    fill(pool, gate, 0)
    waiting = pool.submit(int)
    with monkeypatch.context() as patch:
        patch_door_lock(patch, InterruptedLock)
        interrupted = Submitter(pool, int)
        wait_until_blocked(pool, 1)
    following = Submitter(pool, int, "7")
    wait_until_blocked(pool, 2)
    waiting.cancel()  # one place: the first is let in, and is interrupted

    assert join_all([interrupted, following]) == []
    assert isinstance(interrupted.error, Interrupted)
    assert following.future is not None
    assert pool.stats().queued_tasks == 1
    gate.release()
    assert following.future.result() == 7


# -- a worker that ends --


def is_broken(_: BaseException) -> bool:
    return False


class Broken(Exception):
    """What a task raises when its resource broke."""


@pytest.mark.parametrize("bound", [0, 1])
@pytest.mark.parametrize(
    "options",
    [{"max_uses": 1}, {"check_health": is_broken, "max_retries": 0}, {"max_age": 1e-9}],
    ids=["used up", "broken", "too old"],
)
def test_place_of_a_worker_that_ends_with_its_task_is_filled(
    make_pool: MakePool, ledger: Ledger, gate: Gate, options: dict[str, Any], bound: int
) -> None:
    def end(resource: FakeResource) -> None:
        gate.hold(resource)
        raise Broken

    pool: ResourceExecutor[Any] = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_queued=bound, **options)
    pool.submit(end)
    gate.wait_until_held()
    for _ in range(bound):
        pool.submit(FakeResource.use)
    submitter = Submitter(pool, FakeResource.use)
    wait_until_blocked(pool, 1)
    gate.release()

    assert join_all([submitter]) == []
    assert submitter.future is not None
    assert isinstance(submitter.future.result(DEADLINE), int)


def test_place_of_a_worker_that_crashes_after_its_task_is_filled(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A submitter waits for a place. 2. The only worker ends its task, and an error is thrown into it.
    pool = make_pool(1, max_queued=0)
    future = pool.submit(gate.hold)
    future.add_done_callback(id)
    gate.wait_until_held()
    submitter = Submitter(pool, int)
    wait_until_blocked(pool, 1)
    publish, hits = Task[Any]._publish, [KeyboardInterrupt]

    def be_hit(published: Task[Any]) -> Any:
        if hits and published is future and published._status is FINISHED:
            raise hits.pop()
        return publish(published)

    monkeypatch.setattr(Task, "_publish", be_hit)
    gate.release()

    assert join_all([submitter]) == []
    assert hits == []
    assert submitter.future is not None
    assert submitter.future.result(DEADLINE) == 0


# -- signal handlers --


def call_in_thread(call: Callable[[], Any]) -> list[Any]:
    """Return what `call` returns, in a list; an empty list if it does not within the deadline."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    thread.join(DEADLINE)
    return answers


def test_thread_that_was_promised_a_place_is_let_in_by_its_signal_handler() -> None:
    door = Admission(1, lambda: 0)

    def nest() -> bool:
        outer, inner = Ticket(), Ticket()
        door.enter(outer, block=True)
        entered = door.enter(inner, block=True)  # between that and `leave`
        door.leave(inner)
        door.leave(outer)
        return entered

    assert call_in_thread(nest) == [True]
    assert not door.blocked
    assert not door._reserved


def test_signal_handler_waits_until_there_is_a_place_though_its_thread_was_promised_one() -> None:
    waiting = [0]
    door = Admission(1, lambda: waiting[0])
    asked = threading.Event()
    outer, inner, other = Ticket(), Ticket(), Ticket()

    def nest() -> bool:
        outer.thread = inner.thread = get_ident()
        door.enter(outer, block=True)
        waiting[0] = 1
        asked.set()
        return door.enter(inner, block=True)

    entered: list[bool] = []
    handler = threading.Thread(target=lambda: entered.append(nest()))
    handler.start()
    assert asked.wait(DEADLINE)
    eventually(lambda: len(door.blocked) == 1, "the handler to wait for a place")
    stranger = threading.Thread(target=door.enter, args=(other,), kwargs={"block": True})
    stranger.start()
    eventually(lambda: len(door.blocked) == 2, "another thread to wait behind it")
    door.refill()
    assert entered == []
    waiting[0] = 0
    door.refill()

    assert join_all([handler]) == []
    assert list(door.blocked) == [other]  # a promise binds other threads
    door.leave(inner)
    assert list(door.blocked) == [other]
    door.leave(outer)
    assert join_all([stranger]) == []


def test_handler_overtakes_those_that_wait_for_its_own_thread() -> None:
    door = Admission(1, lambda: 0)
    first, other, inner = Ticket(), Ticket(), Ticket()
    other.thread += 1
    door.enter(first, block=True)
    stranger = threading.Thread(target=door.enter, args=(other,), kwargs={"block": True})
    stranger.start()
    eventually(lambda: len(door.blocked) == 1, "another thread to wait for a place")

    entered = call_in_thread(lambda: door.enter(inner, block=True))

    assert entered == [True]
    door.leave(inner)
    door.leave(first)
    assert join_all([stranger]) == []


@pytest.mark.parametrize("lock", ["core", "door", "future"])
def test_handler_that_interrupted_its_thread_under_a_lock_is_let_in(make_pool: MakePool, gate: Gate, lock: str) -> None:
    pool = make_pool(1, max_queued=0)
    held = fill(pool, gate, 0)
    assert isinstance(held, Task)
    sidecar: Any = held._observe()
    locks: dict[str, Any] = {"core": engine_lock(pool), "door": admission_of(pool)._lock, "future": sidecar}
    nested: list[Future[int]] = []

    def notice(_: object) -> None:
        nested.append(pool.submit(int, "7"))

    def interrupted() -> bool:
        if lock == "future":  # a frame that holds it
            sidecar.waiters = [Waiter(notice)]
            held._status = FINISHED  # a little early
            held._publish()
        else:
            with locks[lock]:
                pool_frame(notice)
        return True

    assert call_in_thread(interrupted) == [True]
    gate.release()
    assert nested[0].result(DEADLINE) == 7


class Waiter:
    """Calls when it is told of a future, which happens under its lock."""

    def __init__(self, call: Callable[[object], None]) -> None:
        self.add_result = self.add_exception = call


def pool_frame(call: Callable[[object], None]) -> None:
    """Call from a frame of the package, as a signal handler is that interrupts one."""

    def waiting() -> int:
        call(None)
        return 0

    Admission(0, waiting).enter(Ticket(), block=False)


def test_handler_that_interrupted_the_start_of_a_thread_is_let_in(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0)
    fill(pool, gate, 0)
    nested: list[Future[int]] = []

    class Interrupted(threading.Thread):
        def start(self) -> None:
            nested.append(pool.submit(int, "7"))

    assert call_in_thread(lambda: start_thread(Interrupted())) == [None]
    gate.release()
    assert nested[0].result(DEADLINE) == 7


def test_handler_that_interrupted_a_submission_wakes_the_worker_for_it(make_pool: MakePool) -> None:
    # 1. A submitter has queued its task for the only worker, and has yet to wake it. 2. A signal handler asks
    # for a place. The queue is full until that worker takes the task.
    pool = make_pool(1, max_queued=0)
    pool.submit(int).result(DEADLINE)
    eventually(lambda: pool.stats().idle_workers == 1, "an idle worker")
    wake = step_of(pool, Step.WAKE)
    nested: list[Future[int]] = []

    def be_interrupted(future: Task[Any]) -> None:
        replace_step(pool, Step.WAKE, wake)
        nested.append(pool.submit(int, "7"))
        wake(future)

    replace_step(pool, Step.WAKE, be_interrupted)
    outer = call_in_thread(lambda: pool.submit(int, "6"))

    assert [future.result(DEADLINE) for future in outer + nested] == [6, 7]


# -- the caller's own task is like a worker's --


class Argument:
    """What weak references can be made to."""


def fail(*_: object) -> None:
    raise ValueError("of the task")


@pytest.fixture
def full(gate: Gate) -> Iterator[list[ResourceExecutor[None]]]:
    """A full pool whose callers work; the only reference to it."""
    pool = ResourceExecutor[None](1, max_queued=0, on_full="caller")
    core = core_of(pool)
    fill(pool, gate, 0)
    pools = [pool]
    del pool
    yield pools
    gate.release()
    pools.clear()
    assert is_terminated(core, DEADLINE)


@pytest.mark.parametrize("error", [GeneratorExit, asyncio.CancelledError, SystemExit, KeyboardInterrupt])
def test_what_a_task_raises_in_a_caller_is_its_result(full: list[ResourceExecutor[None]], error: type[BaseException]) -> None:
    def throw() -> None:
        raise error

    futures = call_in_thread(lambda: full[0].submit(throw))

    assert isinstance(futures[0].exception(), error)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_end_of_the_program_leaves_submit_in_the_main_thread(
    full: list[ResourceExecutor[None]], error: type[BaseException]
) -> None:
    def throw() -> None:
        raise error

    with pytest.raises(error):
        full[0].submit(throw)


def test_cancelled_error_of_a_task_does_not_leave_submit_in_the_main_thread(full: list[ResourceExecutor[None]]) -> None:
    def throw() -> None:
        raise asyncio.CancelledError

    assert isinstance(full[0].submit(throw).exception(), asyncio.CancelledError)


def test_lost_error_of_a_caller_is_logged(full: list[ResourceExecutor[None]], caplog: pytest.LogCaptureFixture) -> None:
    full[0].submit(fail)
    gc.collect()

    assert "task fail raised, and its exception was never retrieved" in caplog.text


def our_locals(error: BaseException) -> list[tuple[str, object]]:
    """Return the variables of our frames to which the frame of a task that raised leads."""
    assert error.__traceback__ is not None
    frame, found = error.__traceback__.tb_frame.f_back, list[tuple[str, object]]()
    while frame is not None:
        if frame.f_code.co_filename.startswith(os.path.dirname(tasker_executor.__file__)):
            found += frame.f_locals.items()
        frame = frame.f_back
    return found


@pytest.mark.parametrize("priority", [False, True])
def test_failed_task_of_a_caller_keeps_nothing(
    full: list[ResourceExecutor[None]], gate: Gate, no_collector: None, priority: bool
) -> None:
    argument = Argument()
    alive = weakref.ref(argument)
    handle = weakref.ref(full[0])
    future = (full[0].submit_priority if priority else full[0].submit)(fail, argument)
    error = future.exception()
    assert error is not None
    assert traceback.extract_tb(error.__traceback__)[0].name == "fail"
    assert [name for name, value in our_locals(error) if value is core_of(full[0]) or value == (argument,)] == []
    del argument
    full.clear()

    assert handle() is None  # though its error is kept
    del future, error
    assert alive() is None


@pytest.mark.parametrize("pass_resource", [False, True])
def test_failed_task_of_a_caller_with_a_resource_keeps_no_argument(
    make_pool: MakePool, ledger: Ledger, gate: Gate, no_collector: None, pass_resource: bool
) -> None:
    ledger.any_thread = True
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_queued=0, on_full="caller")
    pool.submit(gate.hold)
    gate.wait_until_held()
    argument = Argument()
    alive = weakref.ref(argument)
    future = (pool.with_options() if pass_resource else pool.with_options(pass_resource=False)).submit(fail, argument)
    assert isinstance(future.exception(), ValueError)
    del argument, future

    assert alive() is None


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The garbage collector has no part in it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# -- under load --


@pytest.mark.usefixtures("fast_switching")
def test_everybody_gets_in_in_the_end(make_pool: MakePool) -> None:
    pool = make_pool(2, max_queued=1)

    def submit_many() -> None:
        futures.extend([pool.submit(int) for _ in range(100)])

    futures: list[Future[int]] = []
    threads = [threading.Thread(target=submit_many) for _ in range(4)]
    for thread in threads:
        thread.start()

    assert join_all(threads) == []
    assert [future.result(DEADLINE) for future in futures] == [0] * 400


def test_a_place_that_comes_free_before_the_waiter_can_be_seen_is_taken() -> None:
    # 1. A submitter finds the queue full. 2. A worker takes the queued task, and sees no submitter that
    # waits. 3. The submitter begins to wait, and looks once more.
    counts = [1, 0]
    door = Admission(1, lambda: counts.pop(0) if counts else 0)
    ticket = Ticket()
    entered: list[bool] = []
    waiter = threading.Thread(target=lambda: entered.append(door.enter(ticket, block=True)), daemon=True)

    waiter.start()
    waiter.join(DEADLINE)

    assert entered == [True]
    assert not door.blocked


# -- a place between two steps --


def test_a_place_that_comes_free_before_the_caller_at_the_door_can_be_seen_is_taken(make_pool: MakePool) -> None:
    # 1. The queue is full, so a caller finds no place. 2. The worker takes the queued task, and sees no
    # caller that waits. 3. The caller begins to wait, and must look for a place once more.
    pool = make_pool(1, max_queued=1)
    admission = admission_of(pool)
    waiting = admission._waiting
    with Gate() as first, Gate() as second:
        pool.submit(first.hold)
        first.wait_until_held()
        pool.submit(second.hold)

        def look_late() -> int:
            admission._waiting = waiting
            found = waiting()
            first.release()
            second.wait_until_held()
            return found

        admission._waiting = look_late
        caller = threading.Thread(target=pool.submit, args=(int,))
        caller.start()

        assert join_all([caller]) == []
        assert pool.stats().queued_tasks == 1


def test_a_place_is_taken_from_the_moment_when_somebody_is_let_in(make_pool: MakePool, gate: Gate) -> None:
    # 1. A caller finds a place in the queue. 2. Another comes before the first has queued its task: there is none left.
    class LateLane:
        def __init__(self, lane: Lane) -> None:
            self._lane = lane

        def __getattr__(self, name: str) -> Any:
            return getattr(self._lane, name)

        def append(self, future: Any) -> None:
            if not refused:
                refused.append(False)
                with pytest.raises(QueueFull):
                    pool.submit(int)
                refused[0] = True
            self._lane.append(future)

    pool = make_pool(1, max_queued=1, on_full="raise")
    pool.submit(gate.hold)
    gate.wait_until_held()
    refused: list[bool] = []
    show_submitters(pool, LateLane(normal_lane(pool)))

    pool.submit(int)

    assert refused == [True]
    assert pool.stats().queued_tasks == 1
