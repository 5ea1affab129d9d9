"""Races, each forced: the steps are numbered, and the other side acts exactly between two of them."""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Any

import pytest

from engine import (
    WAKES_AT_ONCE,
    End,
    Lane,
    Lanes,
    Seat,
    Step,
    TaskFuture,
    Worker,
    engine_lock,
    enough_on_their_way,
    fail_queue,
    hold_back_submitters,
    idle_stack,
    idle_workers,
    install_lane,
    is_killed,
    lane_arguments,
    lanes_of,
    normal_lane,
    patch_new_task,
    patch_pauses,
    replace_step,
    report_end,
    show_idle_stack,
    show_submitters,
    source_of,
    step_of,
    stranger,
    submitters_held_back,
    submitters_see_idle,
    thread_prefix_of,
    unborn_workers,
    use_kill_latch,
    use_lane,
    use_woken,
    wake,
    wake_top,
    woken_workers,
    workers_of,
)
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, eventually, needs_gil
from tasker_executor import ResourceExecutor, current_task
from tasker_executor._sync import Latch

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"


class Interposed:
    """A lane as submitters see it, that acts right before or right after the first append."""

    def __init__(
        self, lane: Lane, *, before: Callable[[], object] | None = None, after: Callable[[], object] | None = None
    ) -> None:
        self._lane, self._before, self._after = lane, before, after

    def append(self, future: TaskFuture[Any]) -> None:
        before, self._before = self._before, None
        after, self._after = self._after, None
        if before is not None:
            before()
        self._lane.append(future)
        if after is not None:
            after()

    def __len__(self) -> int:
        return len(self._lane)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lane, name)


def interpose(pool: ResourceExecutor[Any], **actions: Callable[[], object]) -> None:
    show_submitters(pool, Interposed(normal_lane(pool), **actions))


class Once:
    """An action that happens the first time only."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action

    def __call__(self) -> None:
        action, self._action = self._action, None
        if action is not None:
            action()


class RacedLane(Lane):
    """A lane that acts when somebody looks whether it is empty, and when somebody is about to pop."""

    def __init__(self, pool: ResourceExecutor[Any], name: str) -> None:
        super().__init__(*lane_arguments(pool, name))
        self.on_look: Callable[[], object] | None = None
        self.on_pop: Callable[[], object] | None = None
        self.on_popped: Callable[[], object] | None = None
        install_lane(pool, name, self)

    def __len__(self) -> int:
        if self.on_look is not None:
            self.on_look()
        return super().__len__()

    def popleft(self) -> TaskFuture[Any]:
        if self.on_pop is not None:
            self.on_pop()
        future: TaskFuture[Any] = super().popleft()
        if self.on_popped is not None:
            self.on_popped()
        return future


class Stale:
    """The idle stack as somebody sees it who acts upon an earlier look at all of it: after that number `at`, it changes."""

    def __init__(self, stack: list[Any], at: int, change: Callable[[], object]) -> None:
        self._stack, self._left, self._change = stack, at, change

    def __getitem__(self, index: int | slice) -> Any:
        seen = self._stack[index]
        if isinstance(index, slice):
            self._left -= 1
            if self._left == 0:
                self._change()
        return seen

    def __contains__(self, item: object) -> bool:
        return item in self._stack

    def __len__(self) -> int:
        return len(self._stack)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stack, name)


def when_idle(pool: ResourceExecutor[Any], action: Callable[[], object]) -> Callable[[], None]:
    """Act once, the first time that this is called by a worker which is registered as idle."""
    once = Once(action)

    def act() -> None:
        if any(worker.thread is threading.current_thread() for worker in idle_workers(pool)):
            once()

    return act


def wait_until_idle(pool: ResourceExecutor[Any]) -> Worker:
    """Block until a worker is at rest, registered as idle; return it."""
    eventually(lambda: len(idle_workers(pool)) == 1, "one idle worker")
    return idle_workers(pool)[0]


# -- submit against shutdown --


def test_a_task_queued_just_before_shutdown_is_run() -> None:
    # 1. A submitter queues its task. 2. shutdown() closes the pool and drains it. 3. The submitter looks for somebody to wake,
    # finds the pool closed and the task done: it is not refused.
    pool = ResourceExecutor(1)
    interpose(pool, after=pool.shutdown)

    future = pool.submit(int, "7")

    assert future.result(0) == 7


def test_a_task_queued_just_after_shutdown_is_refused_and_never_runs() -> None:
    # 1. A submitter is about to queue its task. 2. shutdown() finds nothing to do and ends the pool. 3. The task is queued.
    # 4. The submitter finds the pool closed and takes the task back.
    ran: list[str] = []
    pool = ResourceExecutor(1)
    interpose(pool, before=pool.shutdown)

    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        pool.submit(ran.append, "ran")

    assert ran == []
    assert pool.stats().submitted == 0
    pool._check()


def test_a_late_task_that_a_draining_worker_takes_is_not_refused(make_pool: MakePool, gate: Gate) -> None:
    # 1. A submitter is about to queue its task. 2. shutdown() begins; a worker is busy still. 3. The task is queued.
    # 4. The worker comes free and takes it. 5. The submitter comes to take it back, too late: it has run, so it counts.
    ran = threading.Event()
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()

    def let_worker_go_on() -> None:
        gate.release()
        assert ran.wait(DEADLINE)

    interpose(pool, before=lambda: pool.shutdown(wait=False), after=let_worker_go_on)

    future = pool.submit(ran.set)

    assert future.exception(DEADLINE) is None


def test_a_task_queued_just_before_kill_is_refused_and_never_runs() -> None:
    # 1. A submitter queues its task. 2. kill() cancels the queue. 3. The submitter finds the pool closed.
    ran: list[str] = []
    pool = ResourceExecutor(1)
    interpose(pool, after=pool.kill)

    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        pool.submit(ran.append, "ran")

    pool.shutdown()
    assert ran == []
    pool._check()


def test_a_signal_handler_that_shuts_down_inside_of_submit_does_not_block(make_pool: MakePool) -> None:
    # 1. submit() decides to start a worker, under the lock. 2. A signal handler shuts the pool down, on this very thread.
    pool = make_pool(1)
    hire = step_of(pool, Step.HIRE)

    def interrupted(hired: list[Worker]) -> None:
        shut_down()
        hire(hired)

    shut_down = Once(lambda: pool.shutdown())
    replace_step(pool, Step.HIRE, interrupted)

    future = pool.submit(int, "7")

    assert future.result(DEADLINE) == 7


# -- kill against a worker that is about to start a task --


def note(ran: list[bool]) -> None:
    """A task that notes that it ran, and whether its token was set at its start."""
    ran.append(current_task().cancelled)


@pytest.mark.parametrize("lane_name", ["normal", "priority"])
@pytest.mark.parametrize("draining", [False, True], ids=["running", "draining"])
@pytest.mark.parametrize("when", ["on_pop", "on_popped"])
def test_no_task_starts_that_a_worker_pops_while_kill_empties_the_lanes(
    make_pool: MakePool, gate: Gate, when: str, draining: bool, lane_name: str
) -> None:
    # 1. A worker is about to pop a task, or has popped it. 2. kill() comes, and finds all the tasks but that one. 3. The worker
    # looks whether it may start another, and puts the task back. 4. Nobody else comes by it, so the worker cancels it.
    pool = make_pool(1)
    lane = RacedLane(pool, lane_name)
    pool.submit(gate.hold)
    gate.wait_until_held()
    ran: list[bool] = []
    told: list[Future[None]] = []
    queued = pool.with_options(priority=lane_name == "priority").submit(note, ran)
    queued.add_done_callback(told.append)
    if draining:
        pool.shutdown(wait=False)
    setattr(lane, when, Once(pool.kill))

    gate.release()

    assert wait_for([queued], DEADLINE).done == {queued}
    pool.shutdown(timeout=DEADLINE)
    assert queued.cancelled()
    assert (ran, told) == ([], [queued])
    assert (pool.stats().completed, pool.stats().cancelled) == (1, 1)


def test_a_task_that_may_not_start_is_cancelled_before_its_worker_destroys_its_resource(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    # 1. A worker has popped a task. 2. kill() comes. 3. The worker puts the task back, and on_destroy takes its time.
    with Gate() as destroying:

        def destroy(resource: FakeResource) -> None:
            destroying.hold()
            ledger.destroy(resource)

        pool = make_pool(1, on_create=ledger.create, on_destroy=destroy)
        lane = RacedLane(pool, "normal")
        pool.submit(gate.hold)
        gate.wait_until_held()
        queued = pool.submit(FakeResource.use)
        lane.on_popped = Once(pool.kill)

        gate.release()
        destroying.wait_until_held()

        assert queued.cancelled()


def test_a_task_put_back_before_the_killer_looks_is_cancelled_once(make_pool: MakePool, gate: Gate) -> None:
    # 1. A worker has popped a task. 2. kill() sets its state, and no more. 3. The worker puts the task back, and cancels what
    # is queued. 4. The killer comes to do that.
    pool = make_pool(1)
    lane = RacedLane(pool, "normal")
    pool.submit(gate.hold)
    gate.wait_until_held()
    ran: list[bool] = []
    told: list[Future[None]] = []
    queued = [pool.submit(note, ran) for _ in range(2)]
    for future in queued:
        future.add_done_callback(told.append)
    with Gate() as half_way:
        populate = step_of(pool, Step.POPULATE_OR_RETRY)

        def stop_here() -> None:
            if threading.current_thread() is killer:
                half_way.hold()
            populate()

        replace_step(pool, Step.POPULATE_OR_RETRY, stop_here)  # the first step after the state
        killer = threading.Thread(target=pool.kill)

        def kill() -> None:
            killer.start()
            half_way.wait_until_held()

        lane.on_popped = Once(kill)
        gate.release()
        assert wait_for(queued, DEADLINE).not_done == set()
        assert not is_killed(pool)
    killer.join(DEADLINE)
    pool.shutdown(timeout=DEADLINE)

    assert ran == []
    assert sorted(map(id, told)) == sorted(map(id, queued))
    assert pool.stats().cancelled == 2


class LateLatch(Latch):
    """Acts when it has been opened, before the one who opened it goes on."""

    action: Callable[[], object] = int

    def open(self) -> None:
        super().open()
        self.action()


@pytest.mark.parametrize("count", [1, 100, 20_000])
@pytest.mark.parametrize("priority", [False, True], ids=["normal", "priority"])
def test_no_task_starts_once_the_tokens_are_set(make_pool: MakePool, gate: Gate, count: int, priority: bool) -> None:
    # 1. kill() sets the tokens. 2. The task that runs obeys, and its worker is free. 3. kill() comes to empty the lanes.
    pool = make_pool(1)
    latch = LateLatch()
    use_kill_latch(pool, latch)
    ran: list[bool] = []
    running = pool.submit(gate.hold)
    gate.wait_until_held()
    (worker,) = workers_of(pool)
    view = pool.with_options(priority=priority)
    queued = [view.submit(note, ran) for _ in range(count)]

    def let_the_worker_go_on() -> None:
        gate.release()
        worker.thread.join(DEADLINE)

    latch.action = let_the_worker_go_on
    pool.kill()

    assert not worker.thread.is_alive()
    assert ran == []
    assert all(future.cancelled() for future in queued)
    assert running.result(0) is None
    pool._check()
    assert pool.stats().cancelled == count


def test_a_task_that_waits_for_its_retry_when_kill_comes_gets_its_error(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    # 1. A task has broken its resource, and waits in its lane. 2. kill() comes while the next resource is made.
    def create() -> FakeResource:
        if ledger.created:
            gate.hold()
        return ledger.create()

    pool = make_pool(1, on_create=create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)
    retried = pool.submit(FakeResource.break_down)
    gate.wait_until_held()
    queued = pool.submit(FakeResource.use)

    pool.kill()

    assert type(retried.exception(0)).__name__ == "ResourceBroken"
    assert queued.cancelled()
    gate.release()


# -- workers that are hired under the lock and started outside of it --


def test_two_submitters_at_once_start_a_worker_each(make_pool: MakePool) -> None:
    # 1. A submitter finds no idle worker, and decides for one under the lock. 2. Another submitter queues its task, and finds
    # no idle worker either. 3. The tasks wait for each other.
    pool = make_pool(2)
    barrier = threading.Barrier(2)
    hire = step_of(pool, Step.HIRE)
    futures: list[Future[int]] = []
    other = threading.Thread(target=lambda: futures.append(pool.submit(barrier.wait, DEADLINE)))

    def submit_meanwhile() -> None:
        other.start()
        eventually(lambda: len(normal_lane(pool)) == 2, "the task of the other submitter")

    once = Once(submit_meanwhile)

    def hire_late(hired: list[Worker]) -> None:
        once()
        hire(hired)

    replace_step(pool, Step.HIRE, hire_late)
    futures.append(pool.submit(barrier.wait, DEADLINE))
    other.join(DEADLINE)

    assert sorted(future.result(DEADLINE) for future in futures) == [0, 1]


def test_of_several_workers_hired_those_that_cannot_start_are_not_in_the_books(
    make_pool: MakePool, permits: list[None], caplog: pytest.LogCaptureFixture
) -> None:
    # 1. Three workers are hired. 2. The thread of the first starts, that of the second does not, the third is not tried.
    pool = make_pool(3)
    permits.append(None)
    pool.resize(min_workers=3)
    eventually(lambda: pool.stats().active_workers == 1, "one worker")

    assert "cannot start a worker" in caplog.text
    assert unborn_workers(pool) == {}
    permits.extend([None] * 9)
    barrier = threading.Barrier(3)
    futures = [pool.submit(barrier.wait, DEADLINE) for _ in range(3)]
    assert sorted(future.result(DEADLINE) for future in futures) == [0, 1, 2]


def test_a_task_that_comes_in_the_pause_after_no_thread_could_be_started_is_run(
    make_pool: MakePool, permits: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. No worker can be started, and no timer. 2. There are threads again. 3. A task comes before the pause is over.
    patch_pauses(monkeypatch, 1.0)
    pool = make_pool(1)
    pool.resize(min_workers=1)
    assert pool.stats().active_workers == 0
    permits.extend([None] * 9)

    assert pool.submit(int, "7").result(DEADLINE) == 7


def test_a_task_that_comes_in_the_pause_while_no_thread_can_be_started_is_run_when_one_can(
    make_pool: MakePool, permits: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. No worker can be started, and no timer. 2. A task comes in the pause, and the timer still cannot be started.
    # 3. There are threads again, and another task comes.
    patch_pauses(monkeypatch, 1.0)
    pool = make_pool(1)
    pool.resize(min_workers=1)
    first = pool.submit(int, "7")
    permits.extend([None] * 9)

    assert pool.submit(int, "8").result(DEADLINE) == 8
    assert first.result(DEADLINE) == 7


def test_a_signal_handler_that_shuts_down_while_a_worker_is_started_waits_for_the_end(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. submit() has hired a worker, and begins to start its thread. 2. A signal handler shuts the pool down, and waits. 3. The
    # worker cannot begin before the handler has returned; so another one takes its place.
    pool = make_pool(1)
    start = threading.Thread.start
    shut_down = Once(lambda: pool.shutdown(timeout=DEADLINE))

    def start_late(thread: threading.Thread) -> None:
        shut_down()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_late)
    future = pool.submit(int, "7")

    assert future.result(DEADLINE) == 7
    assert pool.stats().state == "closed"


@pytest.mark.parametrize("call", ["stats", "submit"])
def test_a_destructor_may_use_the_pool_while_the_thread_of_a_worker_starts(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    # 1. submit() starts a worker, and waits until its thread runs. 2. The garbage collector runs in that thread before that.
    pool = make_pool(2)
    set_ident: Any = threading.Thread._set_ident  # type: ignore[attr-defined]  # not in typeshed
    used: list[object] = []
    use = Once(lambda: used.append(pool.stats() if call == "stats" else pool.submit(len, "x")))

    def set_ident_and_collect(thread: threading.Thread) -> None:
        set_ident(thread)
        if thread.name.startswith(thread_prefix_of(pool)):
            use()

    monkeypatch.setattr(threading.Thread, "_set_ident", set_ident_and_collect)
    futures: list[Future[int]] = []
    submitter = threading.Thread(target=lambda: futures.append(pool.submit(len, "xx")), daemon=True)
    submitter.start()
    submitter.join(DEADLINE)

    assert futures[0].result(DEADLINE) == 2
    assert len(used) == 1


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


# -- submit against the end of a worker --


def test_a_task_that_comes_while_the_last_worker_retires_is_run(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. The only worker has been idle for long enough, and is off the idle stack. 2. A task is queued: nobody to wake.
    # 3. The worker is allowed to retire, and ends. 4. Its exit path finds the task.
    pool = make_pool(1, idle_timeout=0.001)
    futures: list[Future[int]] = []
    submit = Once(lambda: futures.append(pool.submit(int, "7")))
    may_retire: Callable[[Worker], bool] = step_of(pool, Step.MAY_RETIRE)

    def retire(worker: Worker) -> bool:
        submit()
        return may_retire(worker)

    replace_step(pool, Step.MAY_RETIRE, retire, monkeypatch)

    pool.submit(int).result(DEADLINE)
    eventually(lambda: bool(futures), "the worker to retire")

    assert futures[0].result(DEADLINE) == 7


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_task_that_comes_during_the_exit_of_the_last_worker_is_run(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    # 1. The only worker has looked at the lanes for the last time. 2. A task is queued, before or after 3. the worker leaves
    # the set of workers. Before, its exit path starts a successor; after, the submitter finds that there is room.
    pool = make_pool(1, idle_timeout=0.001)
    futures: list[Future[int]] = []
    submit = Once(lambda: futures.append(pool.submit(int, "7")))
    worker_ended = step_of(pool, Step.WORKER_ENDED)

    def end(*args: Any) -> None:
        if when == "before":
            submit()
        worker_ended(*args)
        submit()

    replace_step(pool, Step.WORKER_ENDED, end, monkeypatch)

    pool.submit(int).result(DEADLINE)
    eventually(lambda: bool(futures), "the worker to end")

    assert futures[0].result(DEADLINE) == 7


def test_a_worker_that_is_told_to_leave_does_not_take_a_wake_up_with_it(make_pool: MakePool) -> None:
    # 1. Two workers are idle. 2. resize() takes one off the stack, and tells it to leave. 3. A task comes before it has woken.
    pool = make_pool(2)
    barrier = threading.Barrier(2)
    for future in [pool.submit(barrier.wait, DEADLINE) for _ in range(2)]:
        future.result(DEADLINE)
    eventually(lambda: len(idle_workers(pool)) == 2, "two idle workers")
    futures: list[Future[int]] = []
    retire_idle = step_of(pool, Step.RETIRE_IDLE)

    def retire() -> None:
        retire_idle()
        futures.append(pool.submit(int, "7"))

    replace_step(pool, Step.RETIRE_IDLE, retire)

    pool.resize(max_workers=1)

    assert futures[0].result(DEADLINE) == 7
    eventually(lambda: pool.stats().active_workers == 1, "one worker to leave")


def test_a_worker_told_to_leave_leaves_its_task_to_others(make_pool: MakePool, gate: Gate) -> None:
    # 1. Both workers are busy. 2. resize() wants one to leave, and a task is queued. 3. Who comes free leaves first.
    pool = make_pool(2)
    held = [pool.submit(gate.hold) for _ in range(2)]
    gate.wait_until_held(2)
    pool.resize(max_workers=1)
    queued = [pool.submit(int, "7") for _ in range(5)]

    gate.release()

    assert [future.result(DEADLINE) for future in queued] == [7] * 5
    assert all(future.exception(DEADLINE) is None for future in held)
    eventually(lambda: pool.stats().active_workers == 1, "one worker to leave")


@pytest.mark.parametrize("look, idle_timeout, most", [(1, None, 1), (2, 3600.0, 3)], ids=["to retire", "to look up"])
def test_workers_woken_for_tasks_while_resize_picks_them_are_left_to_their_tasks(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch, look: int, idle_timeout: float | None, most: int
) -> None:
    # 1. resize() looks who is idle, to have them retire, or look up because of the idle_timeout. 2. Two tasks take them off
    # the stack, and keep them off. 3. resize() finds them gone from there.
    pool = make_pool(2, idle_timeout=idle_timeout)
    barrier = threading.Barrier(2)
    for future in [pool.submit(barrier.wait, DEADLINE) for _ in range(2)]:
        future.result(DEADLINE)
    eventually(lambda: len(idle_workers(pool)) == 2, "two idle workers")
    futures: list[Future[None]] = []

    def take_both() -> None:
        futures.extend(pool.submit(gate.hold) for _ in range(2))

    stack = Stale(idle_stack(pool), look, take_both)
    show_idle_stack(monkeypatch, pool, stack)

    pool.resize(max_workers=most)  # one that has a wake-up, but no task yet, may be the one to leave
    gate.release()

    assert [future.exception(DEADLINE) for future in futures] == [None, None]
    eventually(lambda: pool.stats().active_workers <= most, "those too many to leave")


def test_a_base_worker_that_is_no_more_wanted_when_its_idle_time_is_up_leaves(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. An idle worker's time is up, so it is off the stack; but as one of the base it stays. 2. resize() finds nobody idle.
    # 3. The worker goes back to the stack: it must look whether it is still wanted.
    pool = make_pool(2, min_workers=2, idle_timeout=0.001)
    shrink = Once(lambda: pool.resize(min_workers=1, max_workers=1))
    may_retire: Callable[[Worker], bool] = step_of(pool, Step.MAY_RETIRE)
    worked = threading.Event()

    def stay(worker: Worker) -> bool:
        may = may_retire(worker)
        if worked.is_set():  # not in its first rest, or there is none to work
            shrink()
        return may

    replace_step(pool, Step.MAY_RETIRE, stay, monkeypatch)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.submit(worked.set).result(DEADLINE)

    eventually(lambda: pool.stats().active_workers == 1, "the idle worker to leave")

    assert pool.stats().idle_workers == 0


def test_a_careful_worker_picked_to_retire_as_it_finds_a_task_leaves_that_to_others(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    # 1. One worker is busy, the other registers as idle. 2. resize() picks it to retire. 3. A task is queued. 4. The worker
    # finds it, and would have to check its resource first.
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, check_resource=ledger.is_usable)
    lane = RacedLane(pool, "normal")
    pool.submit(gate.hold)
    gate.wait_until_held()
    futures: list[Future[int]] = []

    def pick_and_submit() -> None:
        pool.resize(max_workers=1)
        futures.append(pool.submit(FakeResource.use))

    lane.on_look = when_idle(pool, pick_and_submit)

    assert pool.submit(FakeResource.use).result(DEADLINE) == 1
    ledger.wait_until_destroyed(1)
    gate.release()

    assert futures[0].result(DEADLINE) == 0


@pytest.mark.parametrize("cancel", [False, True], ids=["runs it", "finds it cancelled"])
def test_a_worker_picked_to_retire_takes_no_other_task_however_urgent(make_pool: MakePool, gate: Gate, cancel: bool) -> None:
    # 1. One worker is busy, the other registers as idle. 2. resize() picks it to retire. 3. An urgent task is queued. 4. The
    # worker finds it, and leaves it to the other.
    pool = make_pool(1)  # at first: a second worker may start for a task that the first is about to take
    lane = RacedLane(pool, "priority")
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.resize(max_workers=2)
    futures: list[Future[int]] = []

    def pick_and_submit() -> None:
        pool.resize(max_workers=1)
        urgent = pool.submit_priority(threading.get_ident)
        if cancel:
            urgent.cancel()
        futures.append(urgent)

    lane.on_look = when_idle(pool, pick_and_submit)

    picked = pool.submit(threading.get_ident).result(DEADLINE)
    eventually(lambda: pool.stats().active_workers == 1, "the worker to retire")

    gate.release()
    assert futures[0].cancelled() if cancel else futures[0].result(DEADLINE) != picked
    assert pool.stats().queued_tasks == pool.stats().priority_tasks == 0


def test_a_worker_picked_to_retire_as_it_publishes_a_result_calls_the_callbacks_first(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A worker has ended a task, and registers as idle. 2. resize() picks it to retire. 3. It has callbacks to call.
    pool = make_pool(2)
    pool.submit(gate.hold)
    gate.wait_until_held()
    publish = TaskFuture[Any]._publish
    pick = when_idle(pool, lambda: pool.resize(max_workers=1))

    def publish_late(future: TaskFuture[Any]) -> Any:
        pick()
        return publish(future)

    monkeypatch.setattr(TaskFuture, "_publish", publish_late)
    called: list[int] = []
    with Gate() as other:
        future = pool.submit(other.hold)
        other.wait_until_held()
        future.add_done_callback(lambda _: called.append(threading.get_ident()))
        (quick,) = [worker for worker in workers_of(pool) if worker.task is future]

    eventually(lambda: pool.stats().active_workers == 1, "the worker to retire")

    assert called == [quick.thread.ident]
    assert quick not in workers_of(pool)


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


def test_a_worker_that_loses_the_race_for_a_task_takes_the_next(make_pool: MakePool) -> None:
    # 1. Two workers see the same task. 2. One takes it. 3. The other finds the lane empty, and goes on as if nothing happened.
    pool = make_pool(1)
    raced: list[str] = []

    class Raced(Lane):
        def popleft(self) -> TaskFuture[Any]:
            if not raced:
                raced.append("lost")
                raise IndexError("pop from an empty deque")
            return super().popleft()  # type: ignore[no-any-return]  # a task

    use_lane(pool, Raced)

    assert pool.submit(int, "7").result(DEADLINE) == 7
    assert raced == ["lost"]


def test_a_cancelled_task_that_a_worker_is_just_popping_is_not_counted_as_waiting(make_pool: MakePool, gate: Gate) -> None:
    # 1. stats() asks how long the lane is. 2. A worker pops a cancelled task and takes it off the count of those. 3. stats()
    # asks for that count. To count the task as cancelled and as waiting would be wrong for ever: `submitted` never decreases.
    pool = make_pool(1)
    pop: list[Callable[[], object]] = []

    class Raced(Lane):
        def __len__(self) -> int:
            length = super().__len__()
            if pop:
                pop.pop()()
                self.tombstones -= 1
            return length

    lane = use_lane(pool, Raced)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.submit(int).cancel()
    pop.append(lane.popleft)

    stats = pool.stats()

    assert (stats.submitted, stats.cancelled, stats.queued_tasks) == (2, 1, 0)


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


def test_a_task_that_a_worker_takes_while_the_queue_is_failed_is_run(make_pool: MakePool, gate: Gate) -> None:
    # 1. The timer counts the tasks that have waited too long for a resource. 2. A worker takes the only one.
    pool = make_pool(1)
    lane = RacedLane(pool, "normal")
    pool.submit(gate.hold)
    gate.wait_until_held()
    queued = pool.submit(int, "7")

    def let_the_worker_take_it() -> None:
        gate.release()
        queued.result(DEADLINE)

    lane.on_pop = Once(let_the_worker_take_it)

    fail_queue(pool, OSError("outage"))

    assert queued.result(0) == 7
    assert pool.stats().failed == 0


def test_a_task_that_a_worker_takes_while_the_pool_breaks_is_run(make_pool: MakePool, gate: Gate) -> None:
    # 1. The initializer of a second worker fails, which breaks the pool. 2. The first worker takes the only task queued.
    threads = itertools.count()

    def initializer() -> None:
        if next(threads):
            raise LookupError("no such setting")

    # At first one worker: a second may start for a task that the first is about to take.
    pool = make_pool(1, initializer=initializer)
    lane = RacedLane(pool, "normal")
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.resize(max_workers=2)
    ran = threading.Event()

    def let_the_worker_take_it() -> None:
        gate.release()
        assert ran.wait(DEADLINE)

    lane.on_pop = Once(let_the_worker_take_it)

    queued = pool.submit(ran.set)

    assert queued.exception(DEADLINE) is None


def test_a_submit_that_meets_the_shutdown_at_the_door_is_told_of_that(make_pool: MakePool, gate: Gate) -> None:
    # 1. A submitter finds the pool open. 2. shutdown() begins. 3. The submitter comes to the door: it is full, but that is not
    # why the task is refused.
    ran: list[str] = []
    pool = make_pool(1, max_queued=0, on_full="raise")
    pool.submit(gate.hold)
    gate.wait_until_held()
    enter: Callable[..., bool] = step_of(pool, Step.ENTER)

    def enter_late(*args: Any, **kwargs: Any) -> bool:
        pool.shutdown(wait=False)
        return enter(*args, **kwargs)

    replace_step(pool, Step.ENTER, enter_late)

    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        pool.submit(ran.append, "ran")

    gate.release()
    pool.shutdown()
    assert ran == []


# -- breaking, callbacks, threads that cannot start --


def test_a_resource_that_breaks_when_all_other_workers_have_drained_is_replaced(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    # 1. One worker is busy, one idle. 2. shutdown() ends the idle one. 3. The busy one's task breaks its resource: nobody is
    # left to take the task, so a successor starts although the pool drains.
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, min_workers=2)
    pool.wait_ready()

    def work(resource: FakeResource) -> int:
        gate.hold()
        if resource.number < 2:
            resource.break_down()
        return resource.number

    future = pool.submit(work)
    gate.wait_until_held()
    pool.shutdown(wait=False)
    ledger.wait_until_destroyed(1)
    eventually(lambda: pool.stats().active_workers == 1, "the idle worker to end")

    gate.release()
    pool.shutdown()

    assert future.result(0) == 2


def test_a_done_callback_that_submits_keeps_a_pool_of_one_going(make_pool: MakePool) -> None:
    pool = make_pool(1)
    done = threading.Event()

    def again(left: int) -> None:
        if not left:
            done.set()
            return
        pool.submit(int).add_done_callback(lambda _: again(left - 1))

    again(200)

    assert done.wait(DEADLINE)


def test_a_done_callback_that_waits_for_another_worker_does_not_hold_that_one_up(make_pool: MakePool, gate: Gate) -> None:
    # The callback runs on the worker that ended the task: it must not be registered as idle meanwhile.
    pool = make_pool(2)
    result: Future[int] = Future()
    future = pool.submit(gate.hold)
    future.add_done_callback(lambda _: result.set_result(pool.submit(int, "7").result(DEADLINE)))
    gate.wait_until_held()

    gate.release()

    assert result.result(DEADLINE) == 7


@pytest.fixture
def permits(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """So many threads can still be started."""
    permits: list[None] = []
    start = threading.Thread.start

    def start_if_permitted(thread: threading.Thread) -> None:
        if not permits:
            raise RuntimeError("can't start new thread")
        permits.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_permitted)
    return permits


def test_a_submit_that_can_start_no_thread_raises_and_its_task_never_runs(make_pool: MakePool, permits: list[None]) -> None:
    ran: list[str] = []
    pool = make_pool(1)

    with pytest.raises(RuntimeError, match="can't start new thread"):
        pool.submit(ran.append, "refused")
    permits.append(None)
    pool.submit(ran.append, "accepted").result(DEADLINE)

    assert ran == ["accepted"]
    assert pool.stats().submitted == 1


def test_a_submit_that_can_start_no_further_thread_leaves_its_task_to_those_there_are(
    make_pool: MakePool, permits: list[None], gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(2)
    permits.append(None)
    pool.submit(gate.hold)
    gate.wait_until_held()

    future = pool.submit(int, "7")
    gate.release()

    assert future.result(DEADLINE) == 7
    assert "cannot start another worker" in caplog.text


def test_the_missing_worker_is_started_once_threads_can_be_had_again(
    make_pool: MakePool, permits: list[None], gate: Gate
) -> None:
    pool = make_pool(2)
    permits.append(None)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.submit(int)
    permits.append(None)

    assert pool.submit(int, "7").result(DEADLINE) == 7  # though the first worker is held


def test_a_constructor_that_can_start_no_base_worker_raises_and_leaves_nothing(ledger: Ledger, permits: list[None]) -> None:
    ledger.any_thread = True

    with pytest.raises(RuntimeError, match="can't start new thread"):
        ResourceExecutor(1, on_create=ledger.create, on_destroy=ledger.destroy, min_workers=1, resource_pool_size=2)

    assert len(ledger.created) == len(ledger.destroyed) == 2


@pytest.mark.parametrize("call", ["shutdown", "resize"])
def test_who_would_start_a_worker_for_others_and_can_start_no_thread_leaves_the_tasks_to_those_there_are(
    make_pool: MakePool,
    permits: list[None],
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
) -> None:
    # Tasks wait, and there is room for a worker; but who calls has not submitted those tasks, and need not hear of it.
    patch_pauses(monkeypatch, 0.0)
    pool = make_pool(2)
    permits.append(None)
    pool.submit(gate.hold)
    gate.wait_until_held()
    queued = pool.submit(int, "7")

    if call == "shutdown":
        pool.shutdown(wait=False)
    else:
        pool.resize(max_workers=3)
    gate.release()

    assert queued.result(DEADLINE) == 7
    assert "cannot start a worker" in caplog.text
    assert "cannot start the timer thread" in caplog.text


def test_ctrl_c_just_after_a_worker_began_to_live_keeps_that_worker(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. submit() starts a worker's thread. 2. That begins to live. 3. Ctrl-C comes before submit() goes on.
    pool = make_pool(1)
    start = threading.Thread.start
    begun: list[Worker] = []

    def start_and_be_interrupted(thread: threading.Thread) -> None:
        begun.extend(workers_of(pool))
        start(thread)
        eventually(begun[0].birth.locked, "the thread to begin")
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.submit(int)
    monkeypatch.undo()

    assert pool.submit(threading.get_ident).result(DEADLINE) == begun[0].thread.ident
    assert workers_of(pool) == set(begun)


def test_a_thread_that_begins_after_ctrl_c_gave_it_up_does_nothing(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. submit() starts a worker's thread. 2. Ctrl-C comes, and the worker is given up. 3. The thread begins.
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)
    late: list[threading.Thread] = []

    def be_interrupted(thread: threading.Thread) -> None:
        late.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.submit(FakeResource.use)
    monkeypatch.undo()
    assert pool.stats().active_workers == 0

    late[0].start()
    late[0].join(DEADLINE)

    assert ledger.attempts == 0
    assert pool.stats().active_workers == 0
    assert pool.submit(FakeResource.use).result(DEADLINE) == 0


# -- exceptions thrown into a worker from outside --


class Thrown(BaseException):
    """What some libraries throw into a thread to stop a task that hangs."""


def throw_into(thread: threading.Thread) -> None:
    assert thread.ident is not None
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Thrown)) == 1


@pytest.mark.parametrize("base", [0, 1])
def test_an_exception_thrown_into_an_idle_worker_costs_no_task(make_pool: MakePool, ledger: Ledger, base: int) -> None:
    # 1. The exception waits for the worker to wake up. 2. A task wakes it. 3. The worker dies with or without the
    # task; in any case the task is run or fails with that exception, and the pool is whole again.
    if sys.gettrace() is not None and sys.version_info[:2] == (3, 11):
        # CPython 3.11 handles pending exceptions at the entry of a traced function, and does so again and again until the
        # thread that it is meant for has taken it. Ours sleeps until the traced thread, here, wakes it up.
        pytest.skip("CPython 3.11 hangs in a traced thread while an exception is pending for a sleeping one")
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, min_workers=base)
    pool.submit(FakeResource.use).result(DEADLINE)
    worker = wait_until_idle(pool)

    throw_into(worker.thread)
    error = pool.submit(FakeResource.use).exception(DEADLINE)

    assert error is None or isinstance(error, Thrown)
    assert pool.submit(FakeResource.use).result(DEADLINE) == 1
    assert pool.stats().workers_replaced == 1


def test_an_exception_thrown_into_a_busy_worker_goes_to_its_task(make_pool: MakePool) -> None:
    pool = make_pool(1)
    started, stop = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        while not stop.is_set():
            pass

    future = pool.submit(work)
    assert started.wait(DEADLINE)
    (worker,) = workers_of(pool)

    throw_into(worker.thread)
    try:
        assert isinstance(future.exception(DEADLINE), Thrown)
    finally:
        stop.set()

    assert pool.submit(int, "7").result(DEADLINE) == 7


def test_an_exception_thrown_into_a_worker_that_has_a_task_in_hand_fails_that_task_and_no_other(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. The worker has popped a task, and has yet to call it. 2. The exception comes. Nobody else has that task any more.
    pool = make_pool(1)
    throw = Once(lambda: (_ for _ in ()).throw(Thrown()))

    class Doomed(TaskFuture[Any]):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "_status" and threading.current_thread() is not threading.main_thread():
                throw()

    def never() -> None:
        raise AssertionError("it has been called")

    patch_new_task(monkeypatch, Doomed)
    doomed = pool.submit(never)
    monkeypatch.undo()
    queued = pool.submit(int, "7")

    assert isinstance(doomed.exception(DEADLINE), Thrown)
    assert queued.result(DEADLINE) == 7


def test_an_exception_thrown_into_a_worker_between_two_tasks_fails_neither(make_pool: MakePool) -> None:
    # 1. The worker has delivered a result, and registered as idle. 2. The exception comes, before it goes to sleep.
    pool = make_pool(1)
    lane = RacedLane(pool, "priority")  # the first that it looks at

    def throw() -> None:
        raise Thrown

    lane.on_look = when_idle(pool, throw)

    assert pool.submit(int, "7").result(DEADLINE) == 7
    eventually(lambda: pool.stats().workers_replaced == 1, "the worker to end")

    assert pool.submit(int, "8").result(DEADLINE) == 8
    assert (pool.stats().completed, pool.stats().failed) == (2, 0)


def test_an_exception_thrown_into_a_worker_as_it_ends_does_not_cost_its_successor(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A worker's resource broke, and has been destroyed. 2. The exception comes when all that is left is to say so.
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)
    source = source_of(pool)
    destroy = source.destroy
    throw = Once(lambda: (_ for _ in ()).throw(Thrown()))

    def destroy_and_be_hit(*args: Any) -> Any:
        result = destroy(*args)
        throw()
        return result

    monkeypatch.setattr(source, "destroy", destroy_and_be_hit)

    def work(resource: FakeResource) -> int:
        if resource.number == 0:
            resource.break_down()
        return resource.use()

    assert pool.submit(work).result(DEADLINE) == 1
    assert pool.stats().workers_replaced == 1


class LyingDeque(deque[Any]):
    """Is changed by another thread whenever it is copied. Without the GIL a deque may be."""

    def copy(self) -> Any:
        raise RuntimeError("deque mutated during iteration")


def test_a_list_of_those_woken_that_changes_while_it_is_copied_is_no_reason_to_wake_nobody(make_pool: MakePool) -> None:
    # 1. A submitter looks whether enough workers are on their way. 2. Another submitter wakes one more meanwhile.
    pool = make_pool(1)
    pool.submit(int).result(DEADLINE)
    worker = wait_until_idle(pool)
    on_its_way = stranger(pool, 1)
    on_its_way.over = True  # it never lives
    on_its_way.seat.park.release()
    use_woken(pool, LyingDeque([on_its_way.seat] * WAKES_AT_ONCE, maxlen=WAKES_AT_ONCE))

    assert pool.submit(int, "7").result(DEADLINE) == 7
    assert woken_workers(pool)[-1] is worker.seat


def test_a_worker_that_is_ready_while_the_tasks_are_counted_is_not_counted_on(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A submitter counts the workers that are starting: two. 2. One is ready, and has a task of its own, and then the other.
    # 3. The submitter counts the tasks that wait: one. It must not leave that to those workers.
    pool = make_pool(2)
    pool.submit(gate.hold)
    gate.wait_until_held()
    counts = iter([2, 1])
    replace_step(pool, Step.COUNT_STARTING, lambda: next(counts, 0), monkeypatch)

    assert pool.submit(int, "7").result(DEADLINE / 2) == 7  # before the gate gives up


# -- few wake-ups at a time


class Park:
    """Takes the place of the lock that a worker sleeps on. While nobody may get up, those woken are on their way."""

    changed = threading.Condition()
    may_get_up = True
    asleep = 0

    def __init__(self, worker: Worker) -> None:
        self._free = False
        worker.seat.park = self  # type: ignore[assignment]  # the part of a lock that is used
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

    assert left >= 20 - 2 * WAKES_AT_ONCE  # those woken before them are remembered, too
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

    wake(pool, held)  # a submitter who has seen somebody idle

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
        woken_workers(pool).extend([worker.seat] * WAKES_AT_ONCE)
        futures.append(pool.submit(int, "8"))
        hold_back_submitters(pool)
        raise Thrown

    lane.on_look = when_idle(pool, be_counted_on_and_die)
    pool.submit(int).result(DEADLINE)
    eventually(lambda: len(futures) == 2, "two tasks")

    assert [future.result(DEADLINE) for future in futures] == [7, 8]
    eventually(lambda: submitters_see_idle(pool), "the worker that died to be counted on no more")
    assert pool.submit(int, "9").result(DEADLINE) == 9


def test_workers_that_have_left_the_books_are_not_on_their_way(make_pool: MakePool) -> None:
    # 1. Submitters wake as many workers as may be on their way. 2. An error from outside ends each before it takes its permit.
    pool = make_pool(1)
    workers = [stranger(pool, 100 + number) for number in range(WAKES_AT_ONCE)]
    for worker in workers:
        workers_of(pool).add(worker)
        worker.seat.occupied = True
        worker.seat.release()
    use_woken(pool, deque((worker.seat for worker in workers), maxlen=WAKES_AT_ONCE))
    assert enough_on_their_way(pool)

    for worker in workers:
        report_end(pool, worker, End.RETIRED, None)

    assert not enough_on_their_way(pool)
    assert pool.submit(int, "7").result(DEADLINE) == 7


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
    submitted.set()  # not before, or it might be us who drops the argument last
    gate.wait_until_held()

    assert [pool.submit(int, "7").result(DEADLINE) for _ in range(10)] == [7] * 10


@needs_gil
def test_one_worker_that_was_woken_often_is_not_many_on_their_way(make_pool: MakePool, gate: Gate) -> None:
    # 1. One worker was woken again and again, the others sleep. 2. It drops a result, which nobody else wants, registered as
    # idle: the destructor does not return. 3. A task wakes it, in vain. 4. More tasks come: these must wake the others.
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
    woken_workers(pool).extend([worker.seat for worker in workers] * WAKES_AT_ONCE)
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
    # 1. A submitter sees enough workers on their way, and puts up the sign; these have come by then. 2. Another submitter sees
    # the sign, and wakes nobody. 3. Ctrl-C comes before the first has looked again.
    asleep = threading.Event()
    patience = Worker._patience

    def last_step_before_sleep(worker: Worker, limit: float | None) -> float:
        asleep.set()  # it looks at no lane any more
        return patience(worker, limit)

    monkeypatch.setattr(Worker, "_patience", last_step_before_sleep)
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
    use_woken(pool, Emptied([None] * WAKES_AT_ONCE))

    assert not enough_on_their_way(pool)
