"""`kill`: cancel what waits, ask what runs to stop, return."""

from __future__ import annotations

import contextvars
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from typing import Any, cast

import pytest

from engine import Holding, Step, aborts_under_way, join_aborts, replace_step, reserve_of, step_of, stock_of, workers_of
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, ResourceBroken, Watched, cause_of_stop, eventually
from tasker_executor import Observer, ResourceExecutor, ShutdownTimeout, TaskCancelled, TaskEvent, current_task

ENDLESS = "with recursive counter(n) as (select 1 union all select n + 1 from counter) select count(*) from counter"


class Aborts(Watched):
    """An `on_abort` hook that notes whom it was called for, from where, and how alive they were."""

    def __init__(self) -> None:
        super().__init__()
        self.resources: list[FakeResource] = []
        self.threads: list[threading.Thread] = []
        self.too_late: list[FakeResource] = []

    def __call__(self, resource: FakeResource) -> None:
        with self._changed:
            self.resources.append(resource)
            self.threads.append(threading.current_thread())
            if resource.destroyers:
                self.too_late.append(resource)
            self._changed.notify_all()

    def wait_until_called(self, times: int) -> None:
        with self._changed:
            self._wait_until(lambda: len(self.resources) >= times, f"{times} aborts")


@pytest.fixture
def aborts() -> Aborts:
    return Aborts()


@pytest.fixture
def aborting(make_pool: MakePool, ledger: Ledger, aborts: Aborts) -> ResourceExecutor[FakeResource]:
    """A pool of three workers that notes aborts."""
    return make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=aborts)


# -- what waits, what runs --


def test_every_queued_future_is_cancelled_at_once(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    running: Future[Any] = pool.submit(gate.hold)
    gate.wait_until_held()
    queued: list[Future[Any]] = [*(pool.submit(int) for _ in range(10))]
    queued += [pool.submit_priority(int) for _ in range(10)]

    pool.kill()

    assert all(future.cancelled() for future in queued)
    assert not running.done()
    gate.release()
    assert wait([running, *queued], DEADLINE).not_done == set()
    assert running.exception() is None


def test_those_who_wait_for_a_queued_future_are_told(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    queued: Any = pool.submit(int)
    results: list[Any] = []
    waiter = threading.Thread(target=lambda: results.append(wait([queued], DEADLINE)))
    waiter.start()
    eventually(lambda: bool(queued._waiters), "the waiter to register")

    pool.kill()
    waiter.join(DEADLINE)

    assert results[0].done == {queued}


def test_the_token_of_a_running_task_is_set(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)

    def work() -> bool:
        task = current_task()
        before = task.cancelled
        gate.hold()
        return not before and task.cancelled and task.wait(0)

    future = pool.submit(work)
    gate.wait_until_held()

    pool.kill()
    gate.release()

    assert future.result(DEADLINE) is True


def test_a_task_that_waits_for_its_token_wakes_up(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    started = threading.Event()

    def work() -> bool:
        started.set()
        return current_task().wait(DEADLINE)

    future = pool.submit(work)
    assert started.wait(DEADLINE)

    pool.kill()

    assert future.result(DEADLINE) is True


def test_raise_if_cancelled_ends_a_task_with_task_cancelled(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)

    def work() -> None:
        gate.hold()
        current_task().raise_if_cancelled()

    future = pool.submit(work)
    gate.wait_until_held()

    pool.kill()
    gate.release()

    error = future.exception(DEADLINE)
    assert isinstance(error, TaskCancelled)
    assert isinstance(error, CancelledError)
    assert not future.cancelled()


def obey_by_an_error_of_its_own() -> None:
    if current_task().cancelled:
        raise RuntimeError("as you wish")


@pytest.mark.parametrize("obey", [lambda: current_task().raise_if_cancelled(), obey_by_an_error_of_its_own])
def test_a_task_that_obeys_kill_before_it_is_found_in_hand_has_been_stopped(
    make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture, obey: Callable[[], None]
) -> None:
    """1. The killer sets the token. 2. The task asks for it, and obeys. 3. The killer looks for tasks in hand."""
    pool = make_pool(1)

    def work() -> None:
        gate.hold()
        obey()

    future = pool.submit(work)
    gate.wait_until_held()
    stop_running = step_of(pool, Step.STOP_RUNNING)

    def come_late() -> None:
        gate.release()
        wait([future], DEADLINE)
        stop_running()

    replace_step(pool, Step.STOP_RUNNING, come_late)
    pool.kill()
    pool.shutdown()

    assert isinstance(cause_of_stop(future), TaskCancelled | RuntimeError)
    assert pool.stats().stopped == 1
    assert caplog.records == []  # as of every task that is stopped


def test_a_task_may_ignore_its_token(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)

    def work() -> str:
        gate.hold()
        return "as if nothing had happened"

    future = pool.submit(work)
    gate.wait_until_held()

    pool.kill()
    gate.release()

    assert future.result(DEADLINE) == "as if nothing had happened"


def test_kill_ends_an_idle_pool(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, min_workers=2)
    pool.wait_ready()

    pool.kill()
    pool.shutdown()

    assert ledger.alive == []
    assert pool.stats().state == "closed"


def test_nothing_is_accepted_after_kill(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.kill()

    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(int)


def test_a_task_whose_resource_breaks_after_kill_is_not_retried(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)

    def work(resource: FakeResource) -> None:
        gate.hold()
        resource.break_down()

    future = pool.submit(work)
    gate.wait_until_held()

    pool.kill()
    gate.release()

    assert isinstance(cause_of_stop(future), ResourceBroken)
    assert pool.stats().retried == 0


def test_a_task_put_back_for_its_retry_just_before_kill_gets_its_error(make_pool: MakePool, ledger: Ledger) -> None:
    # 1. The worker decides for a retry. 2. kill() empties the lanes. 3. The worker puts the task back: no other would take it.
    class Killer(Observer):
        def task_retried(self, event: TaskEvent) -> None:
            pool.kill()

    pool = make_pool(
        1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, observers=[Killer()]
    )

    future = pool.submit(FakeResource.break_down)

    assert isinstance(future.exception(DEADLINE), ResourceBroken)


# -- on_abort --


def test_on_abort_is_called_for_the_resources_in_use_and_no_other(
    aborting: ResourceExecutor[FakeResource], aborts: Aborts, gate: Gate
) -> None:
    used: list[FakeResource] = []

    def work(resource: FakeResource) -> None:
        used.append(resource)
        gate.hold()

    def leave(resource: FakeResource) -> FakeResource:
        others.hold()
        return resource

    with Gate() as others:
        idle = aborting.submit(leave)
        others.wait_until_held()
        for count in (1, 2):
            aborting.submit(work)
            gate.wait_until_held(count)
    idle.result(DEADLINE)
    eventually(lambda: aborting.stats().idle_workers == 1, "one idle worker")

    aborting.kill()
    aborts.wait_until_called(2)

    assert sorted(aborts.resources, key=id) == sorted(used, key=id)
    assert idle.result() not in aborts.resources


def test_kill_while_a_worker_gives_its_resource_up(
    make_pool: MakePool, ledger: Ledger, aborts: Aborts, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. The killer finds a task in hand, and the resource of its worker. 2. The worker gives the resource up. 3. Another look
    # would find none.
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=aborts)
    pool.submit(gate.hold)
    queued = pool.submit(FakeResource.use)
    gate.wait_until_held()
    [worker] = workers_of(pool)
    kind: Any = type(worker)
    slot, looks = kind.holding, iter([worker.holding])

    def look(worker: Any) -> object:
        return next(looks, None) if threading.current_thread() is threading.main_thread() else slot.__get__(worker)

    monkeypatch.setattr(kind, "holding", property(look, slot.__set__))
    pool.kill()
    monkeypatch.undo()

    assert queued.cancelled()
    aborts.wait_until_called(1)
    assert aborts.resources == ledger.created


def test_on_abort_hooks_that_hang_hold_up_neither_kill_nor_the_hooks_of_others(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    with Gate() as hanging:
        pool = make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=hanging.hold)
        for count in (1, 2, 3):
            pool.submit(gate.hold)
            gate.wait_until_held(count)
        waiting = pool.submit(FakeResource.use)

        pool.kill()  # returns

        hanging.wait_until_held(3)
        assert waiting.cancelled()
        gate.release()
        with pytest.raises(ShutdownTimeout):
            pool.shutdown(timeout=0.01)  # each owner waits until the hook has returned
        assert ledger.destroyed == []
        hanging.release()
        pool.shutdown(timeout=DEADLINE)
    assert len(ledger.destroyed) == 3


def test_a_second_kill_does_not_call_a_hook_that_hangs_again(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    calls: list[FakeResource] = []

    def abort(resource: FakeResource) -> None:
        calls.append(resource)
        hanging.hold()

    with Gate() as hanging:
        pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=abort)
        pool.submit(gate.hold)
        gate.wait_until_held()
        pool.kill()
        hanging.wait_until_held()
        pool.kill()
        gate.release()
        hanging.release()
        pool.shutdown(timeout=DEADLINE)

    assert len(calls) == 1


def test_on_abort_is_called_in_an_empty_context(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    def abort(_: FakeResource) -> None:
        seen.append(variable.get())
        gate.release()

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=abort)
    pool.submit(gate.hold)
    gate.wait_until_held()
    variable.set("the killer's")
    pool.kill()
    pool.shutdown(timeout=DEADLINE)

    assert seen == ["unset"]


@pytest.mark.parametrize("started", [0, 1])
def test_if_no_more_threads_can_be_started_every_resource_is_aborted_all_the_same(
    aborting: ResourceExecutor[FakeResource],
    aborts: Aborts,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    started: int,
) -> None:
    for count in (1, 2, 3):
        aborting.submit(gate.hold)
        gate.wait_until_held(count)
    start = threading.Thread.start
    starts: list[str] = []

    def refuse(thread: threading.Thread) -> None:
        starts.append(thread.name)
        if len(starts) > started:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    aborting.kill()
    monkeypatch.undo()
    aborts.wait_until_called(3)

    assert len(starts) == started + 1
    assert len(set(aborts.resources)) == 3
    gate.release()


def test_ctrl_c_while_an_abort_is_started_leaves_nothing_that_waits_for_it(
    aborting: ResourceExecutor[FakeResource], ledger: Ledger, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    aborting.submit(gate.hold)
    gate.wait_until_held()

    def interrupt(thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        aborting.kill()
    monkeypatch.undo()
    gate.release()
    aborting.kill()
    aborting.shutdown(timeout=DEADLINE)

    assert aborts_under_way() == set()
    assert ledger.destroyed == ledger.created


def test_on_abort_is_called_for_resources_of_run_now(make_pool: MakePool, ledger: Ledger, aborts: Aborts, gate: Gate) -> None:
    ledger.any_thread = True
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=aborts, resource_pool_size=2)
    caller = threading.Thread(target=pool.run_now, args=(gate.hold,))
    caller.start()
    gate.wait_until_held()

    pool.kill()
    aborts.wait_until_called(1)
    gate.release()
    caller.join(DEADLINE)

    assert len(aborts.resources) == 1
    assert aborts.too_late == []


def test_an_on_abort_that_raises_is_logged_and_the_others_are_aborted(
    make_pool: MakePool, ledger: Ledger, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[FakeResource] = []

    def abort(resource: FakeResource) -> None:
        tried.append(resource)
        raise OSError("cannot abort")

    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=abort)
    for count in (1, 2):
        pool.submit(gate.hold)
        gate.wait_until_held(count)

    pool.kill()
    join_aborts()

    assert len(tried) == 2
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["cannot abort"] * 2


def test_no_lock_is_held_while_on_abort_runs(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    seen: list[str] = []

    def abort(_: FakeResource) -> None:
        asker = threading.Thread(target=lambda: seen.append(pool.stats().state))
        asker.start()
        asker.join(DEADLINE)

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=abort)
    pool.submit(gate.hold)
    gate.wait_until_held()

    pool.kill()
    join_aborts()

    assert seen == ["killed"]


def test_interrupt_of_sqlite_ends_a_query_that_would_never_end(make_pool: MakePool) -> None:
    in_query = threading.Event()

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        connection.create_function("started", 0, in_query.set)
        return connection

    pool = make_pool(1, on_create=connect, on_destroy=sqlite3.Connection.close, on_abort=sqlite3.Connection.interrupt)
    future = pool.submit(lambda connection: connection.execute(f"select started(), ({ENDLESS})").fetchall())
    assert in_query.wait(DEADLINE)

    pool.kill()

    error = cause_of_stop(future)
    assert isinstance(error, sqlite3.OperationalError)
    assert "interrupted" in str(error)


def test_no_resource_is_aborted_once_it_is_destroyed(
    make_pool: MakePool, ledger: Ledger, aborts: Aborts, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. The killer finds the resource in use. 2. The task ends and the worker destroys the resource. 3. The killer comes to it.
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=aborts)
    future = pool.submit(gate.hold)
    gate.wait_until_held()
    abort = cast("Any", Holding).abort

    def abort_late(holding: Holding[Any], *args: Any) -> None:
        gate.release()
        future.result(DEADLINE)
        ledger.wait_until_destroyed(1)
        abort(holding, *args)

    monkeypatch.setattr(Holding, "abort", abort_late)

    pool.kill()
    join_aborts()

    assert aborts.resources == []


def test_a_resource_is_not_destroyed_while_it_is_being_aborted(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    # 1. The killer is inside on_abort. 2. The task ends. 3. The worker must wait with destroying.
    story: list[str] = []

    def abort(resource: FakeResource) -> None:
        gate.release()
        future.result(DEADLINE)
        eventually(lambda: worker.stopped is not None, "the worker to wait for the hook")
        story.append("aborted")

    def destroy(resource: FakeResource) -> None:
        story.append("destroyed")
        ledger.destroy(resource)

    pool = make_pool(1, on_create=ledger.create, on_destroy=destroy, on_abort=abort)
    future = pool.submit(gate.hold)
    gate.wait_until_held()
    [worker] = workers_of(pool)

    pool.kill()
    pool.shutdown()

    assert story == ["aborted", "destroyed"]


# -- when and from where --


def test_kill_during_on_create_destroys_what_was_made_and_runs_nothing(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    ran: list[object] = []

    def create() -> FakeResource:
        gate.hold()
        return ledger.create()

    pool = make_pool(1, on_create=create, on_destroy=ledger.destroy)
    future = pool.submit(ran.append)
    gate.wait_until_held()

    pool.kill()
    gate.release()
    pool.shutdown()

    assert future.cancelled()
    assert ran == []
    assert len(ledger.created) == len(ledger.destroyed) == 1


def test_kill_while_the_factory_fails_ends_the_pool(make_pool: MakePool, ledger: Ledger) -> None:
    ledger.outage = OSError("down")
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)
    future = pool.submit(FakeResource.use)
    ledger.wait_until_attempted(1)

    pool.kill()
    pool.shutdown(timeout=DEADLINE)

    assert future.cancelled()


def test_kill_cuts_a_drain_short(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)

    def work() -> bool:
        gate.hold()
        return current_task().cancelled

    running = pool.submit(work)
    gate.wait_until_held()
    queued = pool.submit(int)
    closer = threading.Thread(target=pool.shutdown)
    closer.start()
    eventually(lambda: pool.stats().state == "draining", "the drain")

    pool.kill()
    gate.release()
    closer.join(DEADLINE)

    assert queued.cancelled()
    assert running.result(0) is True


def test_kill_may_be_called_again_and_after_the_end(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.submit(int).result()

    pool.kill()
    pool.kill()
    pool.shutdown()
    pool.kill()

    assert pool.stats().state == "closed"


def test_a_task_may_kill_its_own_pool(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)

    def work() -> bool:
        gate.hold()
        pool.kill()
        return current_task().cancelled

    future = pool.submit(work)
    gate.wait_until_held()
    queued = pool.submit(int)
    gate.release()

    assert future.result(DEADLINE) is True
    assert queued.cancelled()


def test_a_done_callback_may_kill_the_pool(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    future = pool.submit(gate.hold)
    future.add_done_callback(lambda _: pool.kill())
    queued = pool.submit(int)

    gate.release()

    assert wait([queued], DEADLINE).done == {queued}
    assert queued.cancelled()


def test_leaving_the_with_block_after_kill_does_not_wait(make_pool: MakePool, gate: Gate) -> None:
    with make_pool(1) as pool:
        running = pool.submit(gate.hold)
        gate.wait_until_held()
        pool.kill()

    assert not running.done()


# -- run_now --


def test_run_now_is_refused_while_kill_aborts_what_runs(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    # 1. kill() is inside of on_abort, which takes its time. 2. A call of run_now comes. No thread would abort
    # it, so it is refused.
    ledger.any_thread = True
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=gate.hold, resource_pool_size=1)
    with Gate() as working:
        pool.submit(working.hold)
        working.wait_until_held()
        killer = threading.Thread(target=pool.kill)
        killer.start()
        gate.wait_until_held()

        try:
            with pytest.raises(RuntimeError, match="after shutdown"):
                pool.run_now(FakeResource.use)
        finally:
            gate.release()
            killer.join()


def test_run_now_is_refused_in_a_callback_of_a_task_that_shutdown_cancels(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    # 1. shutdown() cancels what is queued. 2. A done-callback, inside of it, calls run_now.
    ledger.any_thread = True
    refusals: list[RuntimeError] = []

    def call(_: Future[int]) -> None:
        try:
            pool.run_now(FakeResource.use)
        except RuntimeError as error:
            refusals.append(error)

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.submit(FakeResource.use).add_done_callback(call)

    pool.shutdown(wait=False, cancel_futures=True)

    assert len(refusals) == 1


def test_a_resource_is_not_aborted_for_a_call_that_ended_while_the_killer_looked(make_pool: MakePool) -> None:
    # 1. The killer sees a resource of the reserve in use. 2. The call of run_now ends. 3. No call uses it now.
    aborted: list[object] = []

    class Quick:
        """A holding whose call ends as soon as the killer has looked."""

        looks = 0
        in_abort_hook = False

        @property
        def call(self) -> object:
            self.looks += 1
            return int if self.looks == 1 else None

        def claim(self) -> bool:
            return self.call is not None

        def abort(self, hook: Any, executor: str, in_use: Callable[[], bool]) -> None:
            if in_use():
                aborted.append(self)

    pool = make_pool(1, on_create=object, on_abort=aborted.append)
    stock_of(pool).all = {Quick()}  # type: ignore[arg-type]  # has what it takes

    reserve_of(pool).abort(aborted.append, [])
    join_aborts()
    stock_of(pool).all = set()

    assert aborted == []
