"""The crew and its roster: which workers live and how many should; idle workers, `resize`, and races of workers."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from engine import (
    DESTROY_PATIENCE,
    End,
    Seat,
    Step,
    Worker,
    ask_to_leave,
    bounds_of,
    core_of,
    count_starting,
    dismisses,
    engine_lock,
    expects_worker,
    idle_stack,
    idle_workers,
    leaving_workers,
    may_retire,
    normal_lane,
    note_may_retire,
    patch_random,
    replace_step,
    show_idle_stack,
    stats_of,
    step_of,
    stranger,
    thread_prefix_of,
    use_leaving_workers,
    use_waiting_inside,
    use_workers,
    waiting_for_a_worker,
    waiting_inside,
    want,
    worker_limit,
    workers_of,
)
from races import Once
from support import DEADLINE, Clock, FakeResource, Gate, Ledger, MakePool, eventually
from tasker_executor import ResourceCreationError, ResourceExecutor
from tasker_executor._sync import clock
from tasker_executor.observers import Observer, WorkerEvent
from timer_support import Script, threads_of


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

    # 2: the one that ended has looked for work after the new one had its resource, and before that took the task.
    assert pool.submit(FakeResource.use).result() in (1, 2)


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
    """The resource used last is the one to keep, whichever worker made it."""
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
    from_the_bottom = [worker.given for worker in idle_workers(pool)]

    assert [resource.number for resource in from_the_bottom] == [2, 0, 1]


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


def test_a_worker_whose_observer_waits_for_a_task_is_not_counted_on_for_it(make_pool: MakePool) -> None:
    answers: list[int] = []

    class Warm(Observer):
        def worker_started(self, event: WorkerEvent) -> None:
            if event.worker.endswith("_0"):
                made.hold()
                answers.append(pool.submit(int, "7").result(DEADLINE))

    with Gate() as made:
        pool = make_pool(2, min_workers=1, observers=[Warm()])

    eventually(lambda: answers == [7], "the observer's task")


def test_a_worker_whose_first_check_hangs_is_not_counted_on(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    def check(resource: FakeResource) -> bool:
        if resource.number == 0:
            checking.hold()
        return True

    with Gate() as checking:
        pool = make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy, check_resource=check, check_after_idle=0.0)
        pool.submit(gate.hold)
        checking.wait_until_held()
        second = pool.submit(FakeResource.use)
        gate.wait_until_held()

        assert second.result(DEADLINE / 2) > 0  # before the gates give up


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


# -- submit against the end of a worker --


def test_a_task_that_comes_while_the_last_worker_retires_is_run(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. The only worker has been idle for long enough, and is off the idle stack. 2. A task is queued; its
    # submitter finds no worker to wake. 3. The worker may retire, and ends. 4. Its exit path finds the task.
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
    # 1. Both workers are busy. 2. resize() wants one to leave, and a task is queued. 3. The worker that comes
    # free first leaves, and takes no task.
    pool = make_pool(2)
    held = [pool.submit(gate.hold) for _ in range(2)]
    gate.wait_until_held(2)
    pool.resize(max_workers=1)
    queued = [pool.submit(int, "7") for _ in range(5)]

    gate.release()

    assert [future.result(DEADLINE) for future in queued] == [7] * 5
    assert all(future.exception(DEADLINE) is None for future in held)
    eventually(lambda: pool.stats().active_workers == 1, "one worker to leave")


class Stale:
    """The idle stack. It calls `change` after copy number `at`, so `resize` acts upon an old copy."""

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


@pytest.mark.parametrize("look, idle_timeout, most", [(1, None, 1), (2, 3600.0, 3)], ids=["to retire", "to look up"])
def test_workers_woken_for_tasks_while_resize_picks_them_are_left_to_their_tasks(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch, look: int, idle_timeout: float | None, most: int
) -> None:
    # 1. resize() looks for idle workers: they shall retire, or look up because of the idle_timeout. 2. Two
    # tasks take both workers off the stack, and keep them off. 3. resize() no longer finds them there.
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
    eventually(lambda: pool.stats().active_workers <= most, "the surplus workers to leave")


def test_a_base_worker_that_is_no_more_wanted_when_its_idle_time_is_up_leaves(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. An idle worker's time is up, so it is off the stack; but as one of the base it stays. 2. resize()
    # finds no idle worker. 3. The worker goes back to the stack, and must look whether it is still wanted.
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


def test_a_base_worker_is_asked_whether_it_may_retire_and_stays(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = note_may_retire(monkeypatch)
    pool = make_pool(4, on_create=ledger.create, on_destroy=ledger.destroy, min_workers=2, idle_timeout=0.001)
    eventually(lambda: len(answers) == 2, "two workers to be idle for long enough")
    stack = idle_stack(pool)  # where they are now for good: a task that comes at no other moment starts no third worker
    eventually(lambda: sum(isinstance(idle, Seat) for idle in stack[:]) == 2, "both workers to be asleep")
    for _ in range(2):
        pool.submit(FakeResource.use).result(DEADLINE)

    eventually(lambda: len(answers) >= 3, "a worker to be idle again for long enough")
    assert not any(answers)
    assert len(ledger.destroyed) == 0


# -- the books --


class GuardedSet(set[Any]):
    """Notes each change by a thread that does not hold the lock."""

    def __init__(self, lock: Any) -> None:
        super().__init__()
        self._lock = lock
        self.changes = 0
        self.unguarded = 0

    def _note(self) -> None:
        self.changes += 1
        self.unguarded += not self._lock._is_owned()

    def add(self, element: Any, /) -> None:
        self._note()
        super().add(element)

    def discard(self, element: Any, /) -> None:
        self._note()
        super().discard(element)


def test_the_workers_there_are_change_only_under_the_lock(make_pool: MakePool) -> None:
    pool = make_pool(4)
    workers = use_workers(pool, GuardedSet(engine_lock(pool)))
    barrier = threading.Barrier(4)

    for future in [pool.submit(barrier.wait, DEADLINE) for _ in range(4)]:
        future.result(DEADLINE)
    pool.shutdown()

    assert workers.changes == 8
    assert workers.unguarded == 0


def test_the_workers_that_leave_change_only_under_the_lock(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(4)
    leaving = use_leaving_workers(pool, GuardedSet(engine_lock(pool)))
    for _ in range(4):
        pool.submit(gate.hold)
    gate.wait_until_held(4)

    pool.resize(max_workers=1)
    gate.release()
    eventually(lambda: pool.stats().active_workers == 1, "three workers to leave")

    assert leaving.changes >= 3
    assert leaving.unguarded == 0


def test_a_worker_that_is_late_makes_no_other_one_too_many(make_pool: MakePool, ledger: Ledger, clock: Clock) -> None:
    attempts = itertools.count()
    with Gate() as hung:

        def create() -> FakeResource:
            if next(attempts) == 1:
                hung.hold()
            return ledger.create()

        pool = make_pool(4, min_workers=2, on_create=create, on_destroy=ledger.destroy, create_timeout=3600.0)
        hung.wait_until_held()
        eventually(lambda: len(idle_workers(pool)) == 1, "the other worker")
        clock.pass_time(3601.0, pool)
        eventually(lambda: len(idle_workers(pool)) == 2, "two idle workers beside the one that hangs")

        want(pool, 2, "as the policy says at each tick")
        assert not leaving_workers(pool)
        ask_to_leave(pool)
        assert dismisses(pool, idle_workers(pool)[0]) is None
        assert not may_retire(pool, idle_workers(pool)[0])

        hung.release()
        eventually(lambda: len(workers_of(pool)) == 2, "the surplus worker to leave")
    assert stats_of(pool).resources_destroyed == 1


def test_the_door_may_count_while_another_thread_hires(make_pool: MakePool) -> None:
    # 1. A submitter that asks for a place in the queue counts the workers that wait inside, without the lock.
    # 2. While it counts, another thread starts a worker.
    pool = make_pool(3, max_queued=5)

    class Hiring(dict[int, Any]):
        def __contains__(self, ident: object) -> bool:
            workers_of(pool).add(stranger(pool, 100 + len(workers_of(pool))))
            return False

    pool.submit(int).result(DEADLINE)
    real, before = workers_of(pool).copy(), waiting_inside(pool)
    use_waiting_inside(pool, Hiring({0: None}))
    try:
        assert worker_limit(pool) == 3
    finally:
        use_waiting_inside(pool, before)
        use_workers(pool, real)


# -- workers that end --


class Held:
    """An `on_destroy` that is held at a gate, for the first resource."""

    def __init__(self, ledger: Ledger, gate: Gate) -> None:
        self._ledger = ledger
        self._gate = gate

    def __call__(self, resource: FakeResource) -> None:
        self._ledger.destroy(resource)
        if resource.number == 0:
            self._gate.hold()


def test_a_base_worker_that_destroys_its_resource_has_a_successor_if_there_is_room(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    pool = make_pool(2, min_workers=1, on_create=ledger.create, on_destroy=Held(ledger, gate), max_uses=1)
    eventually(lambda: len(idle_workers(pool)) == 1, "the base worker to rest")
    pool.submit(FakeResource.use).result(DEADLINE)
    gate.wait_until_held()
    eventually(lambda: len(idle_workers(pool)) == 1, "the successor to be idle")
    pool.wait_ready(timeout=0)

    assert [(worker.index, worker.given) for worker in idle_workers(pool)] == [(1, ledger.created[1])]


def test_threads_that_end_count_for_max_workers(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1, min_workers=1, on_create=ledger.create, on_destroy=Held(ledger, gate), max_uses=1)
    pool.submit(FakeResource.use).result(DEADLINE)
    gate.wait_until_held()
    during = len(ledger.created)
    with pytest.raises(ResourceCreationError, match=r"on_destroy has not returned on .*_0 for .* s \(create_timeout is 30 s\)"):
        pool.wait_ready(0.01)
    gate.release()
    pool.wait_ready(DEADLINE)

    assert during == 1
    assert len(ledger.created) == 2


def test_a_worker_that_leaves_the_crew_is_at_no_moment_ready_again(make_pool: MakePool, ledger: Ledger) -> None:
    class Watched(set[Worker]):
        def discard(self, worker: Any, /) -> None:
            states.append(pool.workers()[0].state)
            super().discard(worker)
            states.append(str(len(pool.workers())))

    states: list[str] = []
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_uses=1)
    use_workers(pool, Watched())
    pool.submit(FakeResource.use).result(DEADLINE)
    eventually(lambda: len(states) == 2, "the worker to leave")

    assert states == ["ending", "0"]


@pytest.mark.parametrize("count", ["ready", "present", "infos"])
def test_a_worker_that_leaves_the_crew_while_it_is_counted_is_not_ready(
    make_pool: MakePool, ledger: Ledger, gate: Gate, count: str
) -> None:
    # 1. A thread, without the lock, copies the set of workers. 2. One of them leaves. 3. The thread looks at each of its copy.
    class LeftBehind(set[Worker]):
        def copy(self) -> set[Worker]:
            found = super().copy()
            if counting and threading.current_thread() is threading.main_thread():
                gate.release()
                eventually(lambda: not self and not core_of(pool).roster.ending, "the worker to leave")
            return found

    counting = list[bool]()
    pool = make_pool(1, on_create=ledger.create, on_destroy=Held(ledger, gate), max_uses=1)
    use_workers(pool, LeftBehind())
    pool.submit(FakeResource.use).result(DEADLINE)
    gate.wait_until_held()
    counting.append(True)
    roster = core_of(pool).roster
    counts: dict[str, Callable[[], int]] = {
        "ready": roster.ready,
        "present": roster.present,
        "infos": lambda: len(pool.workers()),
    }

    assert counts[count]() == 0


def test_a_worker_that_retires_is_at_no_moment_ready_again(make_pool: MakePool) -> None:
    class Watched(set[Worker]):
        def discard(self, worker: Any, /) -> None:
            ready.append(core_of(pool).roster.ready())
            super().discard(worker)
            ready.append(core_of(pool).roster.ready())

    ready: list[int] = []
    pool = make_pool(1, idle_timeout=0.001)
    use_workers(pool, Watched())
    pool.submit(int).result(DEADLINE)
    eventually(lambda: len(ready) == 2, "the worker to leave")

    assert ready == [0, 0]


def test_a_worker_that_ends_takes_no_place_of_those_a_policy_wants(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(2, policy=Script(1), on_create=ledger.create, on_destroy=Held(ledger, gate), max_uses=1)
    pool.submit(FakeResource.use).result(DEADLINE)
    gate.wait_until_held()

    assert pool.submit(FakeResource.use).result(DEADLINE) == 1


def test_a_worker_that_ends_makes_no_other_one_too_many(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(2, on_create=ledger.create, on_destroy=Held(ledger, gate), max_uses=3)
    for _ in range(3):
        pool.submit(FakeResource.use).result(DEADLINE)
    gate.wait_until_held()
    pool.submit(FakeResource.use).result(DEADLINE)
    pool.resize(max_workers=1)
    pool.submit(FakeResource.use).result(DEADLINE)

    assert [resource.number for resource in ledger.alive] == [1]


def test_a_base_worker_does_not_retire_while_another_one_ends(
    make_pool: MakePool, ledger: Ledger, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = note_may_retire(monkeypatch)
    pool = make_pool(2, min_workers=1, on_create=ledger.create, on_destroy=Held(ledger, gate), max_uses=1, idle_timeout=0.01)
    eventually(lambda: len(answers) == 1, "the idle time of the base worker to be over")
    pool.submit(FakeResource.use).result(DEADLINE)
    gate.wait_until_held()
    eventually(lambda: len(answers) == 2, "the idle time of the successor to be over")

    assert not any(answers)


def test_no_successor_is_expected_of_a_worker_that_hangs_in_on_destroy(
    make_pool: MakePool, ledger: Ledger, clock: Clock, gate: Gate
) -> None:
    """A retry that is parked waits for a worker that is expected."""
    pool = make_pool(1, on_create=ledger.create, on_destroy=Held(ledger, gate), max_uses=1, create_timeout=3600.0)
    pool.submit(FakeResource.use).result(DEADLINE)
    gate.wait_until_held()
    at_first = expects_worker(pool)
    clock.pass_time(DESTROY_PATIENCE, pool)

    assert at_first
    assert not expects_worker(pool)


def test_workers_tell_that_one_destroys_its_resource_and_for_how_long(
    make_pool: MakePool, ledger: Ledger, clock: Clock, gate: Gate
) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=Held(ledger, gate), max_uses=1, thread_name_prefix="db")
    pool.submit(FakeResource.use).result(DEADLINE)
    gate.wait_until_held()
    clock.pass_time(60.0, pool)
    [info] = pool.workers()

    assert (info.name, info.state, info.function, info.resource_age) == ("db_0", "ending", None, 0.0)
    assert 60.0 <= info.running_for < 60.0 + DEADLINE


def test_workers_tell_that_one_makes_its_resource_and_for_how_long(make_pool: MakePool, clock: Clock, gate: Gate) -> None:
    def create() -> object:
        gate.hold()
        return object()

    pool = make_pool(1, min_workers=1, on_create=create)
    gate.wait_until_held()
    clock.pass_time(20.0, pool)
    [info] = pool.workers()

    assert info.state == "starting"
    assert 20.0 <= info.running_for < 20.0 + DEADLINE


# -- wait_ready without a base --


@pytest.mark.parametrize("resources", [True, False])
def test_wait_ready_without_a_base_starts_one_worker(make_pool: MakePool, ledger: Ledger, resources: bool) -> None:
    hooks: dict[str, Any] = {"on_create": ledger.create, "on_destroy": ledger.destroy} if resources else {}
    pool: ResourceExecutor[Any] = make_pool(5, **hooks)
    pool.wait_ready(DEADLINE)

    assert pool.stats().active_workers == 1
    assert len(ledger.created) == resources


def test_wait_ready_starts_none_if_there_is_one(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.wait_ready(timeout=0)

    assert pool.stats().active_workers == 1


def test_callers_of_wait_ready_wait_for_the_same_worker(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    def create() -> FakeResource:
        gate.hold()
        return ledger.create()

    def wait() -> None:
        pool.wait_ready(DEADLINE)
        returned.append(len(ledger.created))

    returned: list[int] = []
    pool = make_pool(8, on_create=create, on_destroy=ledger.destroy)
    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    gate.wait_until_held()
    eventually(lambda: waiting_for_a_worker(pool) == 8, "all callers")
    done_early = list(returned)
    gate.release()
    for thread in threads:
        thread.join(DEADLINE)

    assert done_early == []
    assert returned == [1] * 8
    assert waiting_for_a_worker(pool) == 0
    assert pool.stats().active_workers == 1


def test_wait_ready_starts_a_worker_although_the_policy_wants_none(make_pool: MakePool) -> None:
    pool = make_pool(2, policy=Script(0))
    pool.wait_ready(DEADLINE)

    assert pool.stats().active_workers == 1


def test_wait_ready_tries_again_in_an_outage(make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_random(monkeypatch, lambda low, high: 0.0)
    ledger.outage = OSError("connection refused")
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy)

    def wait() -> None:
        pool.wait_ready(DEADLINE)
        returned.append(None)

    returned: list[None] = []
    caller = threading.Thread(target=wait)
    caller.start()
    ledger.wait_until_attempted(3)
    ledger.outage = None
    caller.join(DEADLINE)

    assert returned == [None]
    assert len(ledger.created) == 1


def test_wait_ready_in_an_outage_raises_after_its_time_with_the_last_error(make_pool: MakePool, ledger: Ledger) -> None:
    ledger.outage = OSError("connection refused")
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy)
    with pytest.raises(ResourceCreationError, match="connection refused") as caught:
        pool.wait_ready(timeout=0.2)
    eventually(lambda: pool.stats().active_workers == 0, "the last attempt to end")
    attempts = ledger.attempts
    with pytest.raises(ResourceCreationError) as at_once:
        pool.wait_ready(timeout=0)

    assert caught.value.__cause__ is ledger.outage
    assert at_once.value.__cause__ is ledger.outage
    assert ledger.attempts <= attempts + 1  # no more are made for a caller who is gone


def test_wait_ready_names_create_timeout_if_the_worker_takes_too_long(make_pool: MakePool, gate: Gate) -> None:
    def create() -> object:
        gate.hold()
        return object()

    pool = make_pool(2, on_create=create, create_timeout=7.0, thread_name_prefix="db")
    with pytest.raises(ResourceCreationError, match=r"on_create has not returned on db_0 \(create_timeout is 7 s\)"):
        pool.wait_ready(timeout=0.01)


def test_wait_ready_without_a_base_after_shutdown_is_refused(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy)
    pool.shutdown()

    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.wait_ready()
    assert ledger.attempts == 0


def test_wait_ready_does_not_count_a_worker_that_ends(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(2, on_create=ledger.create, on_destroy=Held(ledger, gate), max_uses=1)
    pool.submit(FakeResource.use).result(DEADLINE)
    gate.wait_until_held()
    pool.wait_ready(DEADLINE)

    assert len(ledger.created) == 2


def test_a_call_that_comes_after_the_last_look_of_a_hiring_has_it_look_again(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. submit() hires a worker, and finds that no other one is needed. 2. A signal handler submits. It leaves the hiring to
    # the interrupted call. 3. That looks again.
    pool = make_pool(2)
    crew = core_of(pool).crew
    needed = crew._needed
    interrupt = Once(lambda: pool.submit(gate.hold))

    def look_and_be_interrupted() -> bool:
        if needed():
            return True
        interrupt()
        return False

    monkeypatch.setattr(crew, "_needed", look_and_be_interrupted)

    pool.submit(gate.hold)

    gate.wait_until_held(2)


@pytest.mark.parametrize("owns", [False, True])
def test_a_worker_that_is_ready_is_forgotten_as_one_that_is_not(make_pool: MakePool, ledger: Ledger, owns: bool) -> None:
    pool: ResourceExecutor[Any] = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy) if owns else make_pool(2)

    pool.submit(lambda *_: None).result(DEADLINE)

    assert core_of(pool).roster.unready == set()
    assert count_starting(pool) == 0
