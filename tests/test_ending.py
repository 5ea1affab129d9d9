"""The ending: submissions that meet `shutdown` or `kill`, tasks that kill prevents, and the executor's last step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest

from engine import (
    Lane,
    Step,
    Task,
    Token,
    Worker,
    is_killed,
    is_terminated,
    normal_lane,
    replace_step,
    show_submitters,
    step_of,
    use_kill_latch,
    workers_of,
)
from races import Once, RacedLane
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, ResourceBroken, join_all
from tasker_executor import Observer, ResourceExecutor, StateEvent, TaskEvent, current_task

# -- submit against shutdown --


class Interposed:
    """A lane as submitters see it, that acts right before or right after the first append."""

    def __init__(
        self, lane: Lane, *, before: Callable[[], object] | None = None, after: Callable[[], object] | None = None
    ) -> None:
        self._lane, self._before, self._after = lane, before, after

    def append(self, future: Task[Any]) -> None:
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


def test_a_task_queued_just_before_shutdown_is_run() -> None:
    # 1. A submitter queues its task. 2. shutdown() closes the pool and drains it. 3. The submitter looks for
    # a worker to wake, and finds the pool closed and the task done. So the task is not refused.
    pool = ResourceExecutor(1)
    interpose(pool, after=pool.shutdown)

    future = pool.submit(int, "7")

    assert future.result(0) == 7


AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"


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


def test_a_submit_that_meets_the_shutdown_at_the_door_is_told_of_that(make_pool: MakePool, gate: Gate) -> None:
    # 1. A submitter finds the pool open. 2. shutdown() begins. 3. The submitter asks for a place. The queue
    # is full, but the task is refused because of the shutdown.
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
    # 1. A worker is about to pop a task, or has popped it. 2. kill() comes, and finds all the tasks but that
    # one. 3. The worker looks whether it may start another, and puts the task back. 4. No other thread will
    # take it, so the worker cancels it.
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


class LateLatch(Token):
    """Calls `action` right after it was opened, in the thread that opened it."""

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


def test_a_task_whose_retry_the_killer_prevents_fails_at_once(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    # 1. A resource breaks, and the task may be run again. 2. kill() cancels what waits. 3. The task is queued
    # again, and no worker will take it. So it fails now, and not when its worker has destroyed the resource.
    class Killer(Observer):
        def task_retried(self, event: TaskEvent) -> None:
            pool.kill()

    def destroy(resource: FakeResource) -> None:
        gate.hold()
        ledger.destroy(resource)

    pool = make_pool(1, on_create=ledger.create, on_destroy=destroy, check_health=ledger.is_healthy, observers=[Killer()])
    future = pool.submit(FakeResource.break_down)
    gate.wait_until_held()

    assert isinstance(future.exception(0), ResourceBroken)


# -- a task that is settled, and the end of the executor --


class Ends(Observer):
    """What an observer hears of the ends of tasks and of the executor's states."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def task_finished(self, event: TaskEvent) -> None:
        self.heard.append(event.outcome)

    def state_changed(self, event: StateEvent) -> None:
        self.heard.append(event.state)


def test_an_observer_hears_of_a_task_whose_callback_outlasts_the_executor(make_pool: MakePool, gate: Gate) -> None:
    # 1. A thread cancels a task; the done-callback takes its time. 2. The executor ends. 3. The callback returns.
    ends = Ends()
    with Gate() as late:
        pool = make_pool(1, observers=[ends])
        pool.submit(gate.hold)
        gate.wait_until_held()
        future = pool.submit(int)
        future.add_done_callback(late.hold)
        canceller = threading.Thread(target=future.cancel)
        canceller.start()
        late.wait_until_held()
        gate.release()
        pool.shutdown(timeout=DEADLINE)
        late.release()
        assert not join_all([canceller])
    assert ends.heard.count("cancelled") == 1


def test_the_executor_does_not_close_before_the_tasks_that_it_fails_are_told_of(make_pool: MakePool) -> None:
    # 1. An initializer fails. 2. Its worker is in the books no more; it fails the task queued, whose done-callback takes its
    # time. 3. The executor is shut down: no worker lives, and nothing is queued.
    ends = Ends()
    with Gate() as started, Gate() as called:

        def initializer() -> None:
            started.hold()
            raise LookupError("no")

        pool = make_pool(1, initializer=initializer, observers=[ends])
        future = pool.submit(int)
        future.add_done_callback(called.hold)
        started.release()
        called.wait_until_held()
        pool.shutdown(wait=False)
        assert not is_terminated(pool)
        called.release()
        pool.shutdown(timeout=DEADLINE)
        with pytest.raises(BrokenThreadPool):
            future.result(DEADLINE)
    assert ends.heard == ["draining", "failed", "closed"]
