"""`max_queued`: who may come in, and what becomes of those who may not."""

from __future__ import annotations

import queue
import signal
import threading
from _thread import LockType, allocate_lock
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

import pytest

from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, eventually, join_all
from tasker_executor import QueueFull, ResourceExecutor
from tasker_executor._admission import Admission, Ticket
from tasker_executor._work_item import TaskFuture


class Submitter(threading.Thread):
    """A thread that submits one task, and keeps what it got: a future or an error."""

    def __init__(self, pool: ResourceExecutor[None], fn: Callable[..., Any], *args: Any) -> None:
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


def wait_until_blocked(pool: ResourceExecutor[None], count: int) -> None:
    """Block until so many submitters wait at the door."""
    eventually(lambda: len(pool._core.admission.blocked) == count, f"{count} blocked submitters")


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
    deadlines: list[tuple[TaskFuture[Any], float]] = []

    def watch(future: TaskFuture[Any], deadline: float) -> None:
        deadlines.append((future, deadline))

    with monkeypatch.context() as patch:
        patch.setattr(pool._core.supervisor, "watch", watch)
        pool.with_options(start_within=0.0).submit(int)
    submitter = Submitter(pool, int)
    wait_until_blocked(pool, 1)
    pool._core.supervisor.watch(*deadlines[0])  # only now

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
    admission = pool._core.admission
    enter = admission.enter

    with Gate() as corridor:

        def enter_slowly(ticket: Ticket, *, block: bool) -> bool:
            entered = enter(ticket, block=block)
            corridor.hold()
            return entered

        with monkeypatch.context() as patch:
            patch.setattr(admission, "enter", enter_slowly)
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
    admission = pool._core.admission

    with admission._lock:  # a place becomes free, and before anybody is let in somebody else comes along
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

    assert len(pool._core.admission.blocked) == 0
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
        patch.setattr("tasker_executor._admission.allocate_lock", InterruptedLock)
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
    # 1. A submitter finds the queue full. 2. A worker takes the task that was in its way, and sees nobody at the door. 3. The
    # submitter goes to the door, and looks once more.
    counts = [1, 0]
    door = Admission(1, lambda: counts.pop(0) if counts else 0)
    ticket = Ticket()
    entered: list[bool] = []
    waiter = threading.Thread(target=lambda: entered.append(door.enter(ticket, block=True)), daemon=True)

    waiter.start()
    waiter.join(DEADLINE)

    assert entered == [True]
    assert not door.blocked
