"""The idle stack: how a submitter and an idle worker find each other, and how few workers are woken at a time."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from engine import (
    End,
    Lanes,
    Seat,
    Step,
    Worker,
    engine_lock,
    enough_on_their_way,
    hold_back_submitters,
    idle_stack,
    idle_workers,
    lanes_of,
    patch_sleep,
    pretend_without_gil,
    replace_step,
    report_end,
    stranger,
    submitters_held_back,
    submitters_see_idle,
    use_woken,
    wake,
    wake_top,
    wakes_at_once,
    woken_workers,
    workers_of,
)
from races import Once, RacedLane, Thrown, lie, wait_until_idle, when_idle
from support import DEADLINE, Gate, Ledger, MakePool, eventually, needs_gil
from tasker_executor import ResourceExecutor


@pytest.fixture(autouse=True, params=["as built", "without the GIL"])
def wake_up(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test wakes workers as this Python does, and as one without the GIL does."""
    if request.param == "without the GIL":
        pretend_without_gil(monkeypatch)


# -- going idle --


def test_a_task_that_is_queued_while_its_worker_goes_idle_is_run(make_pool: MakePool, gate: Gate) -> None:
    # 1. The only worker has called the callbacks of its task and finds both lanes empty. 2. A task is queued, and no worker is
    # on the stack to be woken. 3. The worker registers as idle, and has to look at the lanes once more.
    pool = make_pool(1)
    stack = lie(pool)
    futures: list[Future[int]] = []
    held = pool.submit(gate.hold)
    held.add_done_callback(lambda _: setattr(stack, "before", lambda: futures.append(pool.submit(int, "7"))))

    gate.release()

    eventually(lambda: bool(futures), "the task to be queued")
    assert futures[0].result(DEADLINE) == 7


def test_a_wake_up_for_a_worker_that_has_callbacks_to_call_is_passed_on(make_pool: MakePool, gate: Gate) -> None:
    # 1. Worker A sleeps. Worker B has a result and registers as idle. 2. A task is queued, and its submitter
    # wakes B, on top of the stack. 3. B has a callback to call, which takes its time. So A must be woken.
    pool = make_pool(2)
    stack = lie(pool)
    barrier = threading.Barrier(2)
    for future in [pool.submit(barrier.wait, DEADLINE) for _ in range(2)]:
        future.result(DEADLINE)
    eventually(lambda: stack.workers == 2, "two idle workers")
    futures: list[Future[int]] = []
    outcomes: list[int] = []
    held = pool.submit(gate.hold)
    held.add_done_callback(lambda _: outcomes.append(futures[0].result(DEADLINE)))
    gate.wait_until_held()
    stack.after = lambda: futures.append(pool.submit(int, "7"))

    gate.release()

    eventually(lambda: outcomes == [7], "the callback to have the result of the other worker")


@pytest.mark.parametrize("lane", ["submit", "submit_priority"])
def test_a_worker_that_is_woken_before_it_sleeps_has_no_permit_left_when_it_works(make_pool: MakePool, lane: str) -> None:
    # 1. A worker has a result and registers as idle. 2. A task is queued, and wakes it. 3. It finds that task without ever
    # having slept, and takes the permit, too; or it would wake for nothing later.
    pool = make_pool(1)
    stack = lie(pool)
    futures: list[Future[bool]] = []

    def submit() -> None:
        [worker] = workers_of(pool)
        futures.append(getattr(pool, lane)(worker.seat.park.locked))

    pool.submit(setattr, stack, "after", submit)

    eventually(lambda: bool(futures), "the task to be queued")
    assert futures[0].result(DEADLINE)


def test_a_worker_that_is_woken_while_it_finds_the_task_itself_starts_no_other(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A worker registers as idle. 2. A task is queued and wakes it. 3. The worker looks at the lanes once
    # more and sees that task. It was woken for that task, so no other worker is needed.
    pool = make_pool(8)
    stack = lie(pool)
    pool.submit(int).result(DEADLINE)
    workers = len(workers_of(pool))
    futures: list[Future[int]] = []
    look = Lanes.look

    def look_late(lanes: Lanes) -> bool:
        if lanes is lanes_of(pool) and stack.workers and not futures:
            futures.append(pool.submit(int, "7"))
        return look(lanes)

    monkeypatch.setattr(Lanes, "look", look_late)
    pool.submit(int).result(DEADLINE)

    eventually(lambda: bool(futures), "the worker to look")
    assert futures[0].result(DEADLINE) == 7
    assert pool.stats().active_workers == workers


# -- the idle stack and the permit --


def test_a_worker_that_is_woken_while_it_finds_the_task_itself_keeps_no_permit(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A worker registers as idle. 2. A submitter queues a task, takes the worker off the stack and releases its lock.
    # 3. The worker looks at the lanes again and finds the task. 4. It takes the permit, too, or it would wake for nothing.
    pool = make_pool(1)
    pool.submit(int).result(DEADLINE)
    worker = wait_until_idle(pool)
    futures: list[Future[int]] = []
    submit = Once(lambda: futures.append(pool.submit(int, "2")))
    look = Lanes.look

    def look_late(lanes: Lanes) -> bool:
        if threading.current_thread() is worker.thread and worker.seat in idle_stack(pool):
            submit()
        return look(lanes)

    monkeypatch.setattr(Lanes, "look", look_late)

    assert pool.submit(int, "1").result(DEADLINE) == 1
    eventually(lambda: bool(futures), "the second task")
    assert futures[0].result(DEADLINE) == 2
    assert wait_until_idle(pool) is worker
    assert worker.seat.park.locked()


def test_a_worker_that_is_woken_at_the_moment_of_its_timeout_runs_the_task(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. An idle worker's time is up. 2. A submitter takes it off the stack. 3. The worker finds itself gone from there: a
    # permit is due, and work.
    pool = make_pool(1, idle_timeout=0.001)
    futures: list[Future[int]] = []
    submit = Once(lambda: futures.append(pool.submit(threading.get_ident)))
    rise = Seat.rise

    def late(seat: Seat) -> bool:
        if not lanes_of(pool).look():
            submit()
        return rise(seat)

    monkeypatch.setattr(Seat, "rise", late)

    first = pool.submit(threading.get_ident).result(DEADLINE)
    eventually(lambda: bool(futures), "the timeout")

    assert futures[0].result(DEADLINE) == first


def test_a_wake_up_that_finds_no_task_is_passed_on(make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. The first worker is idle, the second busy. 2. A task wakes the first. 3. It is cancelled before the first gets there.
    # 4. The first goes back to sleep, and the next task wakes it as ever.
    pool = make_pool(2)
    pool.submit(gate.hold)
    gate.wait_until_held()
    way = Gate()
    rest = Worker._rest

    def rest_and_take_long_to_come(worker: Worker) -> Any:
        end = rest(worker)
        way.hold()
        return end

    monkeypatch.setattr(Worker, "_rest", rest_and_take_long_to_come)
    pool.submit(int).result(DEADLINE)
    with way:
        future = pool.submit(int)
        way.wait_until_held()
        assert future.cancel()

    assert pool.submit(int, "7").result(DEADLINE) == 7
    assert pool.stats().cancelled == 1


def test_an_idle_worker_that_loses_the_race_for_an_urgent_task_goes_back_to_sleep(make_pool: MakePool, gate: Gate) -> None:
    # 1. A worker registers as idle. 2. An urgent task is queued, and wakes it. 3. It sees the task at once, but another worker
    # takes that. 4. It has a permit, and nothing to do; and it is off the stack without having been told.
    pool = make_pool(2)
    lane = RacedLane(pool, "priority")

    def hold() -> int:
        gate.hold()
        return threading.get_ident()

    first = pool.submit(hold)
    gate.wait_until_held()
    futures: list[Future[int]] = []

    def let_the_other_take_it() -> None:
        gate.release()
        futures[0].result(DEADLINE)

    def submit() -> None:
        futures.append(pool.submit_priority(threading.get_ident))
        lane.on_pop = Once(let_the_other_take_it)

    lane.on_look = when_idle(pool, submit)

    pool.submit(int).result(DEADLINE)
    eventually(lambda: len(idle_workers(pool)) == 2, "two idle workers")

    assert futures[0].result(0) == first.result(0)
    assert all(worker.seat.park.locked() for worker in idle_workers(pool))
    barrier = threading.Barrier(2)
    assert sorted(future.result(DEADLINE) for future in [pool.submit(barrier.wait, DEADLINE) for _ in range(2)]) == [0, 1]


# -- few wake-ups at a time --


class LyingDeque(deque[Any]):
    """Is changed by another thread whenever it is copied. Without the GIL a deque may be."""

    def copy(self) -> Any:
        raise RuntimeError("deque mutated during iteration")


def test_a_list_of_those_woken_that_changes_while_it_is_copied_is_no_reason_to_wake_nobody(make_pool: MakePool) -> None:
    # 1. A submitter looks whether enough workers are on their way. 2. While it copies the list, another
    # submitter wakes one more worker.
    pool = make_pool(1)
    pool.submit(int).result(DEADLINE)
    worker = wait_until_idle(pool)
    on_its_way = stranger(pool, 1)
    on_its_way.over = True  # it never lives
    on_its_way.seat.park.release()
    use_woken(pool, LyingDeque([on_its_way.seat] * wakes_at_once(), maxlen=wakes_at_once()))

    assert pool.submit(int, "7").result(DEADLINE) == 7
    assert woken_workers(pool)[-1] is worker.seat


class Park:
    """Replaces the lock that a worker sleeps on. Until `may_get_up`, each woken worker is on its way."""

    changed = threading.Condition()
    may_get_up = True
    asleep = 0

    def __init__(self, worker: Worker) -> None:
        self._free = False
        worker.seat.park = self
        worker.seat.release = self.release

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        with Park.changed:
            Park.asleep += 1
            Park.changed.notify_all()
            assert Park.changed.wait_for(lambda: self._free and Park.may_get_up, DEADLINE)
            Park.asleep -= 1
            self._free = False
        return True

    def release(self) -> None:
        with Park.changed:
            self._free = True
            Park.changed.notify_all()

    def locked(self) -> bool:
        return not self._free


@pytest.fixture
def parks(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Park]]:
    """Every worker made from now on sleeps on a `Park`."""
    init = Worker.__init__

    def init_with_park(worker: Worker, *args: Any) -> None:
        init(worker, *args)
        Park(worker)

    monkeypatch.setattr(Worker, "__init__", init_with_park)
    monkeypatch.setattr(Park, "may_get_up", True)
    monkeypatch.setattr(Park, "asleep", 0)
    yield Park
    with Park.changed:
        Park.may_get_up = True
        Park.changed.notify_all()


def test_a_burst_wakes_few_workers_and_those_wake_the_others(make_pool: MakePool, parks: type[Park]) -> None:
    # 1. All workers are idle. 2. As many tasks come in one go, which wait for each other. 3. Some workers are woken. 4. These
    # wake the others, since no more tasks come that could.
    pool = make_pool(20)
    barrier = threading.Barrier(20)
    for future in [pool.submit(barrier.wait, DEADLINE) for _ in range(20)]:
        future.result(DEADLINE)
    with parks.changed:
        assert parks.changed.wait_for(lambda: parks.asleep == 20, DEADLINE)
        parks.may_get_up = False

    futures = [pool.submit(barrier.wait, DEADLINE) for _ in range(20)]
    left = len(idle_workers(pool))
    with parks.changed:
        parks.may_get_up = True
        parks.changed.notify_all()

    assert left >= 20 - 2 * wakes_at_once()  # those woken before them are remembered, too
    assert sorted(future.result(DEADLINE) for future in futures) == list(range(20))
    assert submitters_see_idle(pool)


def test_a_worker_that_comes_while_a_submitter_counts_on_it(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A submitter sees that enough workers are on their way. 2. They come, and see no sign that it counts on them. 3. It puts
    # up the sign, looks again, and takes it down.
    pool = make_pool(1)
    held = pool.submit(gate.hold)
    gate.wait_until_held()
    looks = [True, False]
    replace_step(pool, Step.ENOUGH_ON_THEIR_WAY, lambda: bool(looks) and looks.pop(0), monkeypatch)

    wake(pool, held)  # as a submitter that has seen an idle worker

    assert not looks
    assert submitters_see_idle(pool)


def test_a_worker_that_will_never_come_is_not_counted_on(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. A worker looks at the lanes before it sleeps. 2. A task wakes it, and submitters count on it from now on. 3. It dies of
    # an exception from outside, and never takes its permit.
    pool = make_pool(1)
    lane = RacedLane(pool, "priority")
    futures: list[Future[int]] = []

    def be_counted_on_and_die() -> None:
        [worker] = workers_of(pool)
        futures.append(pool.submit(int, "7"))
        woken_workers(pool).extend([worker.seat] * wakes_at_once())
        futures.append(pool.submit(int, "8"))
        hold_back_submitters(pool)
        raise Thrown

    lane.on_look = when_idle(pool, be_counted_on_and_die)
    pool.submit(int).result(DEADLINE)
    eventually(lambda: len(futures) == 2, "two tasks")

    assert [future.result(DEADLINE) for future in futures] == [7, 8]
    eventually(lambda: submitters_see_idle(pool), "submitters to count on the dead worker no longer")
    assert pool.submit(int, "9").result(DEADLINE) == 9


def test_workers_that_have_left_the_books_are_not_on_their_way(make_pool: MakePool) -> None:
    # 1. Submitters wake as many workers as may be on their way. 2. An error from outside ends each before it takes its permit.
    pool = make_pool(1)
    workers = [stranger(pool, 100 + number) for number in range(wakes_at_once())]
    for worker in workers:
        workers_of(pool).add(worker)
        worker.seat.occupied = worker.seat.rests = True
        worker.seat.release()
    use_woken(pool, deque((worker.seat for worker in workers), maxlen=wakes_at_once()))
    assert enough_on_their_way(pool)

    for worker in workers:
        report_end(pool, worker, End.RETIRED, None)

    assert not enough_on_their_way(pool)
    assert pool.submit(int, "7").result(DEADLINE) == 7


def test_a_worker_that_is_held_up_before_it_looks_is_not_counted_on(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. Worker A, registered as idle, drops its last task. A destructor does not return. 2. A task wakes A, in
    # vain. 3. More tasks come. These must wake the other workers.
    pool = make_pool(4)
    rest_all(pool, 4)
    rest = Worker._rest
    destructor = Gate()
    hold_once = Once(destructor.hold)

    def drop_and_rest(worker: Worker) -> Any:
        hold_once()
        return rest(worker)

    with destructor:
        monkeypatch.setattr(Worker, "_rest", drop_and_rest)
        pool.submit(int).result(DEADLINE)
        destructor.wait_until_held()
        futures = [pool.submit(int, "7") for _ in range(10)]

        assert [future.result(DEADLINE) for future in futures] == [7] * 10


def test_a_worker_that_dies_with_a_permit_is_not_waited_for_while_it_destroys_its_resource(
    make_pool: MakePool, gate: Gate
) -> None:
    # 1. A task wakes worker A, which is about to sleep. 2. An error is thrown into A. 3. A destroys its
    # resource, and that takes long. 4. Worker B takes that task, and the tasks after it.
    pool = make_pool(2, on_create=list[int], on_destroy=lambda _: gate.hold())
    barrier = threading.Barrier(2)
    for future in [pool.submit(lambda _: barrier.wait(DEADLINE)) for _ in range(2)]:
        future.result(DEADLINE)
    eventually(lambda: len(idle_workers(pool)) == 2, "two idle workers")
    lane = RacedLane(pool, "priority")
    futures: list[Future[Any]] = []

    def be_woken_and_die() -> None:
        futures.append(pool.submit(len))
        hold_back_submitters(pool)
        raise Thrown

    lane.on_look = when_idle(pool, be_woken_and_die)
    pool.submit(len).result(DEADLINE)
    gate.wait_until_held()

    assert futures[0].result(DEADLINE) == 0
    assert pool.submit(len).result(DEADLINE) == 0
    gate.release()


class Lingering:
    """Its destructor is held, by whichever thread drops it last."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __del__(self) -> None:
        self._gate.hold()


def rest_all(pool: ResourceExecutor[Any], count: int) -> None:
    """Start so many workers, and block until all are registered as idle."""
    barrier = threading.Barrier(count)
    for future in [pool.submit(barrier.wait, DEADLINE) for _ in range(count)]:
        future.result(DEADLINE)
    eventually(lambda: len(idle_workers(pool)) == count, f"{count} idle workers")


@needs_gil
def test_a_worker_held_in_the_destructor_of_an_argument_is_not_idle(make_pool: MakePool, gate: Gate) -> None:
    # 1. All workers are idle. 2. A task ends, and its argument with it: the destructor does not return. 3. More tasks come:
    # that worker must not be the one to be woken.
    pool = make_pool(16)
    rest_all(pool, 16)
    submitted = threading.Event()

    def work(_: Lingering) -> None:
        assert submitted.wait(DEADLINE)

    pool.submit(work, Lingering(gate))
    submitted.set()  # not before, or the test's thread might drop the argument last
    gate.wait_until_held()

    assert [pool.submit(int, "7").result(DEADLINE) for _ in range(10)] == [7] * 10


@needs_gil
def test_one_worker_that_was_woken_often_is_not_many_on_their_way(make_pool: MakePool, gate: Gate) -> None:
    # 1. Worker A was woken again and again, and the other workers sleep. 2. A, registered as idle, drops a
    # result that no other thread holds. The destructor does not return. 3. A task wakes A, in vain. 4. More
    # tasks come. These must wake the other workers.
    pool = make_pool(16)
    rest_all(pool, 16)
    submitted = threading.Event()
    workers: list[Worker] = []

    def work() -> Lingering:
        workers.extend(worker for worker in workers_of(pool) if worker.thread is threading.current_thread())
        assert submitted.wait(DEADLINE)
        return Lingering(gate)

    pool.submit(work)
    submitted.set()
    gate.wait_until_held()
    woken_workers(pool).extend([worker.seat for worker in workers] * wakes_at_once())
    futures = [pool.submit(int, "7") for _ in range(10)]

    assert [future.result(DEADLINE) for future in futures] == [7] * 10


def test_a_signal_handler_that_waits_for_a_task_under_the_lock_does_not_hang(make_pool: MakePool) -> None:
    # 1. A signal handler comes while its thread holds the lock. 2. It submits a task, and counts on workers on their way.
    # 3. It waits for the result. 4. Such a worker comes, and takes the sign back, without that lock.
    pool = make_pool(1)
    pool.submit(int).result(DEADLINE)
    wait_until_idle(pool)

    with engine_lock(pool):
        hold_back_submitters(pool)
        wake_top(pool)
        future = pool.submit(int, "7")
        result = future.result(DEADLINE)

    assert result == 7
    assert submitters_see_idle(pool)


def test_ctrl_c_in_a_submitter_that_others_have_relied_on_costs_them_nothing(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. Submitter A sees enough workers on their way, and puts up the sign. By then these workers have come.
    # 2. Submitter B sees the sign, and wakes no worker. 3. Ctrl-C comes before A has looked again.
    asleep = threading.Event()
    patch_sleep(monkeypatch, lambda timeout: asleep.set())
    pool = make_pool(1, idle_timeout=3600)
    pool.submit(int).result(DEADLINE)
    assert asleep.wait(DEADLINE)
    ran: list[str] = []
    others: list[Future[None]] = []
    looks = iter([True])

    def look() -> bool:
        if next(looks, False):
            return True
        assert submitters_held_back(pool)
        others.append(pool.submit(ran.append, "other"))
        raise KeyboardInterrupt

    replace_step(pool, Step.ENOUGH_ON_THEIR_WAY, look, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        pool.submit(ran.append, "interrupted")
    monkeypatch.undo()

    others[0].result(DEADLINE)
    assert ran == ["other"]


def test_the_end_may_come_while_a_submitter_looks_who_was_woken(make_pool: MakePool) -> None:
    # 1. A submitter sees that many workers were woken. 2. The executor closes and forgets them. 3. It looks further.
    class Emptied(deque[Any]):
        def __getitem__(self, index: Any) -> Any:
            self.clear()
            return super().__getitem__(index)

    pool = make_pool(1)
    use_woken(pool, Emptied([None] * wakes_at_once()))

    assert not enough_on_their_way(pool)


# -- a submission that ends anywhere --


def depth_of_stack() -> int:
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth


def call_deeply(frames: int, call: Callable[[], Any]) -> Any:
    return call_deeply(frames - 1, call) if frames > 0 else call()


@pytest.mark.parametrize("warm", [False, True], ids=["first", "to an idle worker"])
@pytest.mark.parametrize("own", [False, True], ids=["bare", "with resources"])
def test_a_submit_near_the_end_of_the_stack_leaves_the_pool_whole(own: bool, warm: bool) -> None:
    # At each depth: the submission works or raises RecursionError, and the pool works and ends as ever.
    limit = sys.getrecursionlimit()
    for left in range(1, 71):
        ledger = Ledger()
        options: dict[str, Any] = {"on_create": ledger.create, "on_destroy": ledger.destroy} if own else {}
        pool: ResourceExecutor[Any] = ResourceExecutor(2, **options)
        if warm:
            pool.submit(id if own else int).result(DEADLINE)
            wait_until_idle(pool)
        futures: list[Future[Any]] = []
        task = id if own else int
        sys.setrecursionlimit(depth_of_stack() + 150)
        try:
            call_deeply(150 - left, lambda: futures.append(pool.submit(task)))  # noqa: B023  # called at once
        except RecursionError:
            pass
        finally:
            sys.setrecursionlimit(limit)
        try:
            for future in [*futures, pool.submit(task)]:
                future.result(DEADLINE)
            pool._check()
            pool.shutdown(timeout=DEADLINE)
            ledger.check()
        except BaseException as error:
            pool.kill()
            raise AssertionError(f"with {left} frames left") from error
