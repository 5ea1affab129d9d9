"""`shutdown`: nothing new, everything old, and the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, as_completed, wait
from typing import Any

import pytest

from engine import Lane, Sidecar, Task, admission_of, name_of, use_lane
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, ResourceBroken, eventually, is_waited_for
from tasker_executor import ResourceExecutor, ShutdownTimeout, current_task

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"

Submit = Callable[[ResourceExecutor[None]], object]

SUBMITS: dict[str, Submit] = {
    "submit": lambda pool: pool.submit(int),
    "submit_priority": lambda pool: pool.submit_priority(int),
    "map": lambda pool: pool.map(int, ["1"]),
    "map in chunks": lambda pool: pool.map(int, ["1"], chunksize=2),
    "run_now": lambda pool: pool.run_now(int),
    "a view": lambda pool: pool.with_options(max_retries=0).submit(int),
    "as_thread_pool": lambda pool: pool.as_thread_pool().submit(int),
}


class FlakyFactory:
    """Makes fake resources; from the second on, at the gate."""

    def __init__(self, ledger: Ledger, gate: Gate) -> None:
        self.ledger, self.gate = ledger, gate

    def __call__(self) -> FakeResource:
        if self.ledger.created:
            self.gate.hold()
        return self.ledger.create()


# -- draining --


def test_everything_queued_in_both_lanes_is_run(busy: ResourceExecutor[None], gate: Gate) -> None:
    futures = [submit(int, str(n)) for n in range(50) for submit in (busy.submit, busy.submit_priority)]
    busy.shutdown(wait=False)

    gate.release()
    busy.shutdown()

    assert [future.result(0) for future in futures] == [n for n in range(50) for _ in range(2)]


def test_tasks_queued_where_no_worker_lives_yet_are_run(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1, on_create=FlakyFactory(ledger, gate), on_destroy=ledger.destroy, check_health=ledger.is_healthy)
    broken = pool.submit(lambda resource: resource.break_down() if resource.number == 0 else "on another")
    gate.wait_until_held()
    queued = pool.submit(FakeResource.use)

    pool.shutdown(wait=False)
    gate.release()
    pool.shutdown()

    assert broken.result(0) == "on another"
    assert queued.result(0) == 1


def test_a_task_that_breaks_its_resource_during_the_drain_is_retried(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)

    def work(resource: FakeResource) -> int:
        gate.hold()
        if resource.number < 2:
            resource.break_down()
        return resource.number

    future = pool.submit(work)
    gate.wait_until_held()
    pool.shutdown(wait=False)
    gate.release()
    pool.shutdown()

    assert future.result(0) == 2
    assert pool.stats().retried == 2


def test_every_resource_is_destroyed_and_every_thread_ends_before_shutdown_returns(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy, min_workers=3)
    pool.wait_ready()
    threads = [resource.maker for resource in ledger.created]

    pool.shutdown()

    assert ledger.alive == []
    assert [thread for thread in threads if thread.is_alive()] == []
    assert pool.stats().state == "closed"
    assert pool.stats().active_workers == 0


def test_a_pool_that_never_ran_a_task_shuts_down(make_pool: MakePool) -> None:
    pool = make_pool(1)

    pool.shutdown()

    assert pool.stats().state == "closed"


def test_shutdown_without_wait_returns_while_tasks_run(busy: ResourceExecutor[None], gate: Gate) -> None:
    queued = busy.submit(int, "7")

    busy.shutdown(wait=False)

    assert busy.stats().state == "draining"
    assert not queued.done()
    gate.release()
    assert queued.result(DEADLINE) == 7


def test_leaving_the_with_block_waits(make_pool: MakePool) -> None:
    with make_pool(2) as pool:
        futures = [pool.submit(int) for _ in range(20)]

    assert all(future.done() for future in futures)


def test_a_drain_never_sets_a_cancel_token(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)

    def work() -> bool:
        gate.hold()
        current_task().raise_if_cancelled()
        return current_task().cancelled

    running = pool.submit(work)
    gate.wait_until_held()
    pool.shutdown(wait=False, cancel_futures=True)
    gate.release()
    pool.shutdown()

    assert running.result(0) is False


# -- cancel_futures --


def test_cancel_futures_cancels_what_has_not_started(busy: ResourceExecutor[None], gate: Gate) -> None:
    ran: list[int] = []
    queued = [busy.submit(ran.append, n) for n in range(5)] + [busy.submit_priority(ran.append, n) for n in range(5)]

    busy.shutdown(wait=False, cancel_futures=True)

    assert all(future.cancelled() for future in queued)
    gate.release()
    busy.shutdown()
    assert ran == []
    assert busy.stats().cancelled == 10


def test_cancel_futures_lets_finish_what_runs(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)

    def work() -> str:
        gate.hold()
        return "finished"

    running = pool.submit(work)
    gate.wait_until_held()
    pool.shutdown(wait=False, cancel_futures=True)

    gate.release()

    assert running.result(DEADLINE) == "finished"


@pytest.mark.parametrize("when", ["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"])
def test_wait_sees_what_cancel_futures_cancelled(busy: ResourceExecutor[None], when: str) -> None:
    queued: Any = busy.submit(int)
    results: list[Any] = []
    waiter = threading.Thread(target=lambda: results.append(wait([queued], DEADLINE, when)))
    waiter.start()
    eventually(lambda: bool(queued._waiters), "the waiter to register")

    busy.shutdown(wait=False, cancel_futures=True)
    waiter.join(DEADLINE)

    assert results[0].done == {queued}


def test_as_completed_sees_what_cancel_futures_cancelled(busy: ResourceExecutor[None]) -> None:
    queued = [busy.submit(int) for _ in range(5)]
    results = as_completed(queued, DEADLINE)

    busy.shutdown(wait=False, cancel_futures=True)

    assert set(results) == set(queued)


def test_done_callbacks_are_told_of_what_cancel_futures_cancelled(busy: ResourceExecutor[None]) -> None:
    told: list[bool] = []
    busy.submit(int).add_done_callback(lambda future: told.append(future.cancelled()))

    busy.shutdown(wait=False, cancel_futures=True)

    assert told == [True]


@pytest.mark.parametrize("end", ["cancel_futures", "kill"])
def test_ctrl_c_in_a_done_callback_comes_out_when_all_is_cancelled_and_the_pool_ends(
    busy: ResourceExecutor[None], gate: Gate, end: str
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    queued = [busy.submit(int) for _ in range(3)]
    queued[0].add_done_callback(interrupt)

    with pytest.raises(KeyboardInterrupt):
        busy.kill() if end == "kill" else busy.shutdown(wait=False, cancel_futures=True)
    gate.release()

    assert [future.cancelled() for future in queued] == [True] * 3
    eventually(lambda: busy.stats().state == "closed", "the pool to close")


def test_a_blocked_result_raises_cancelled_error(busy: ResourceExecutor[None]) -> None:
    queued: Any = busy.submit(int)
    errors: list[type[BaseException]] = []

    def ask() -> None:
        try:
            queued.result(DEADLINE)
        except BaseException as error:
            errors.append(type(error))

    asker = threading.Thread(target=ask)
    asker.start()
    eventually(lambda: is_waited_for(queued), "the asker to block")

    busy.shutdown(wait=False, cancel_futures=True)
    asker.join(DEADLINE)

    assert errors == [CancelledError]


def test_a_later_shutdown_may_still_cancel(busy: ResourceExecutor[None]) -> None:
    queued = busy.submit(int)
    busy.shutdown(wait=False)

    busy.shutdown(wait=False, cancel_futures=True)

    assert queued.cancelled()


def test_a_task_that_waits_for_its_retry_gets_its_last_error(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    # It is running, by its future; so it cannot be cancelled, and must not be left behind either.
    pool = make_pool(1, on_create=FlakyFactory(ledger, gate), on_destroy=ledger.destroy, check_health=ledger.is_healthy)
    future = pool.submit(FakeResource.break_down)
    gate.wait_until_held()

    pool.shutdown(wait=False, cancel_futures=True)

    assert isinstance(future.exception(DEADLINE), ResourceBroken)
    assert not future.cancelled()
    assert pool.stats().failed == 1


def test_a_task_whose_retry_begins_as_it_is_about_to_be_given_up_is_run(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    # 1. shutdown() sees a task between two attempts. 2. A worker takes it. 3. shutdown() withdraws it
    # too late.
    pool = make_pool(1, on_create=FlakyFactory(ledger, gate), on_destroy=ledger.destroy, check_health=ledger.is_healthy)

    class Raced(Lane):
        def withdraw(self, task: Task[Any], taken: list[object]) -> None:
            gate.release()
            task.result(DEADLINE)
            super().withdraw(task, taken)

    use_lane(pool, Raced)

    def work(resource: FakeResource) -> int:
        if resource.number == 0:
            resource.break_down()
        return resource.use()

    future = pool.submit(work)
    gate.wait_until_held()

    pool.shutdown(wait=False, cancel_futures=True)

    assert future.result(0) == 1


# -- again, and from anywhere --


def test_shutdown_may_be_called_any_number_of_times(make_pool: MakePool) -> None:
    pool = make_pool(2)
    pool.submit(int)

    for wait_for_it in (False, True, True, False):
        pool.shutdown(wait_for_it)

    assert pool.stats().state == "closed"


def test_many_threads_may_shut_down_at_once(make_pool: MakePool) -> None:
    pool = make_pool(4)
    futures = [pool.submit(int) for _ in range(100)]
    threads = [threading.Thread(target=pool.shutdown) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)

    assert not any(thread.is_alive() for thread in threads)
    assert all(future.done() for future in futures)


def test_a_task_may_shut_its_pool_down(make_pool: MakePool) -> None:
    pool = make_pool(1)

    first = pool.submit(pool.shutdown)

    assert first.result(DEADLINE) is None
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        pool.submit(int)


def test_a_done_callback_may_shut_the_pool_down(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    future = pool.submit(gate.hold)
    future.add_done_callback(lambda _: pool.shutdown())
    queued = pool.submit(int, "7")

    gate.release()

    assert queued.result(DEADLINE) == 7
    eventually(lambda: pool.stats().state == "closed", "the pool to close")


def test_a_done_callback_on_the_callers_own_thread_that_shuts_down_waits(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)
    future = pool.submit(FakeResource.use)
    wait([future], DEADLINE)
    alive: list[int] = []

    def shut_down(_: object) -> None:
        pool.shutdown()
        alive.append(len(ledger.alive))

    future.add_done_callback(shut_down)

    assert alive == [0]


def test_a_signal_handler_that_shuts_down_while_its_thread_holds_a_future_does_not_wait(
    make_pool: MakePool, gate: Gate
) -> None:
    # 1. cancel() holds the lock of a future. 2. The handler comes, on this very thread. If it waited for the pool to end, that
    # might wait for the future.
    states: list[str] = []
    pool = make_pool(1)

    class Interrupted(Lane):
        def count_tombstone(self, sidecar: Sidecar, *, cancelled: bool, withdrawn: bool) -> None:
            super().count_tombstone(sidecar, cancelled=cancelled, withdrawn=withdrawn)
            pool.shutdown()
            states.append(pool.stats().state)

    use_lane(pool, Interrupted)
    pool.submit(gate.hold)
    gate.wait_until_held()

    assert pool.submit(int).cancel()

    assert states == ["draining"]


def test_on_destroy_may_shut_the_pool_down(make_pool: MakePool, ledger: Ledger) -> None:
    def destroy(resource: FakeResource) -> None:
        ledger.destroy(resource)
        pool.shutdown()

    pool = make_pool(1, on_create=ledger.create, on_destroy=destroy)
    pool.submit(FakeResource.use).result(DEADLINE)

    pool.shutdown()

    assert pool.stats().state == "closed"


def test_another_thread_may_shut_the_pool_down_while_one_waits_for_a_result(busy: ResourceExecutor[None], gate: Gate) -> None:
    queued = busy.submit(int, "7")
    closer = threading.Thread(target=busy.shutdown)
    closer.start()
    eventually(lambda: busy.stats().state == "draining", "the drain")

    gate.release()

    assert queued.result(DEADLINE) == 7
    closer.join(DEADLINE)


@pytest.mark.parametrize("wait_for_it", [False, True])
def test_a_signal_handler_may_shut_the_pool_down(make_pool: MakePool, wait_for_it: bool) -> None:
    pool = make_pool(2)
    futures = [pool.submit(int) for _ in range(20)]

    def handle(_signal: int, _frame: object) -> None:
        pool.shutdown(wait_for_it)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
            pool.submit(int)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert [future.result(DEADLINE) for future in futures] == [0] * 20


# -- a limit --


def test_a_shutdown_that_takes_too_long_says_what_still_runs(busy: ResourceExecutor[None]) -> None:
    busy.submit(int)

    with pytest.raises(ShutdownTimeout, match=r"Gate\.hold on .*_0 for .* s; 1 tasks are queued") as caught:
        busy.shutdown(timeout=0.001)

    assert name_of(busy) in str(caught.value)


def test_the_drain_goes_on_after_the_timeout(busy: ResourceExecutor[None], gate: Gate) -> None:
    queued = busy.submit(int, "7")
    with pytest.raises(ShutdownTimeout):
        busy.shutdown(timeout=0)

    gate.release()

    assert queued.result(DEADLINE) == 7
    busy.shutdown(timeout=DEADLINE)


def test_a_shutdown_timeout_is_a_timeout_error(busy: ResourceExecutor[None]) -> None:
    with pytest.raises(TimeoutError):
        busy.shutdown(timeout=0)


def test_shutdown_waits_for_run_now_in_other_threads_and_names_it(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    ledger.any_thread = True
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)
    caller = threading.Thread(target=pool.run_now, args=(gate.hold,))
    caller.start()
    gate.wait_until_held()

    with pytest.raises(ShutdownTimeout, match="run_now in thread"):
        pool.shutdown(timeout=0.001)
    gate.release()
    pool.shutdown()
    caller.join(DEADLINE)

    assert ledger.alive == []


def test_a_negative_timeout_is_refused_and_nothing_is_shut_down(make_pool: MakePool) -> None:
    pool = make_pool(1)

    with pytest.raises(ValueError, match="timeout must not be negative, not -1"):
        pool.shutdown(timeout=-1)

    assert pool.submit(int).result(DEADLINE) == 0


# -- submitting after it --


@pytest.mark.parametrize("submit", list(SUBMITS.values()), ids=list(SUBMITS))
def test_nothing_is_accepted_after_shutdown(make_pool: MakePool, submit: Submit) -> None:
    pool = make_pool(1)
    pool.shutdown()

    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        submit(pool)


@pytest.mark.parametrize("submit", list(SUBMITS.values()), ids=list(SUBMITS))
def test_nothing_is_accepted_during_the_drain(busy: ResourceExecutor[None], submit: Submit) -> None:
    busy.shutdown(wait=False)

    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        submit(busy)


@pytest.mark.parametrize("submit", list(SUBMITS.values()), ids=list(SUBMITS))
def test_nothing_is_accepted_during_the_drain_even_if_a_worker_would_take_it(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, submit: Submit
) -> None:
    # 1. shutdown() has returned; a worker is still on its way out. 2. A task is submitted, and refused. Were it queued first
    # and taken back afterwards, the worker could be quicker, and whether submit() raises would be luck.
    pool = make_pool(1)
    appended: list[object] = []

    def append(_: Lane, future: object) -> None:
        appended.append(future)

    pool.shutdown(wait=False)
    monkeypatch.setattr(Lane, "append", append, raising=False)

    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        submit(pool)

    assert appended == []


def test_a_refused_task_leaves_no_trace_in_the_numbers(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.shutdown()

    with pytest.raises(RuntimeError):
        pool.submit(int)

    stats = pool.stats()
    assert (stats.submitted, stats.cancelled, stats.queued_tasks) == (0, 0, 0)


def test_a_task_that_submits_during_the_drain_gets_the_error(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)

    def work() -> Future[int]:
        gate.hold()
        return pool.submit(int)

    future = pool.submit(work)
    gate.wait_until_held()
    closer = threading.Thread(target=pool.shutdown)
    closer.start()
    eventually(lambda: pool.stats().state == "draining", "the drain")

    gate.release()
    closer.join(DEADLINE)

    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        future.result(0)


def test_a_submit_that_waits_at_a_full_queue_is_refused_by_shutdown(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.submit(int)
    errors: list[BaseException] = []

    def submit() -> None:
        try:
            pool.submit(int)
        except BaseException as error:
            errors.append(error)

    submitter = threading.Thread(target=submit)
    submitter.start()
    eventually(lambda: bool(admission_of(pool).blocked), "the submitter to wait for a place")

    pool.shutdown(wait=False)
    submitter.join(DEADLINE)

    assert [str(error) for error in errors] == [AFTER_SHUTDOWN]
    assert pool.stats().queued_tasks == 1


def test_a_shutdown_timeout_names_the_worker_that_hangs_in_on_destroy(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    def destroy(resource: FakeResource) -> None:
        ledger.destroy(resource)
        gate.hold()

    pool = make_pool(1, on_create=ledger.create, on_destroy=destroy, thread_name_prefix="db")
    pool.submit(FakeResource.use).result(DEADLINE)
    pool.shutdown(wait=False)
    gate.wait_until_held()

    with pytest.raises(ShutdownTimeout, match=r"still running: db_0 has been in on_destroy for .* s; 0 tasks"):
        pool.shutdown(timeout=0.001)


# -- the refusal --


def test_a_refusal_keeps_the_words_of_the_standard_library_and_names_the_executor_in_a_note(make_pool: MakePool) -> None:
    pool = make_pool(1, name="db")
    pool.shutdown()
    errors: list[RuntimeError] = []
    for _ in range(2):
        with pytest.raises(RuntimeError) as caught:
            pool.submit(int)
        errors.append(caught.value)

    assert [str(error) for error in errors] == [AFTER_SHUTDOWN] * 2
    assert [error.__notes__ for error in errors] == [["executor 'db' has been shut down"]] * 2
