"""Workers that are written off: their task, or the abort of their resource, does not end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from engine import is_terminated, tend_stops, workers_of, written_off_workers
from support import DEADLINE, HOUR, FakeResource, Gate, Ledger, MakePool, cause_of_stop, eventually, run_python
from tasker_executor import Observer, ResourceExecutor, ShutdownTimeout, TaskStopped, WorkerEvent


def write_off(pool: ResourceExecutor[Any], gate: Gate, n: int = 1) -> Any:
    """Have a worker run a task that ignores everything, until it is written off; return the future of the task."""
    with_gate = pool.submit(gate.hold)
    gate.wait_until_held(n)
    assert with_gate.stop()
    eventually(lambda: len(written_off_workers(pool)) == n, "the worker to be written off")
    return with_gate


# -- a task that ignores everything


def test_future_has_its_error_and_the_successor_works(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, abort_grace=0.0, name="pool")

    future = write_off(pool, gate)

    assert cause_of_stop(future) is None
    assert "task Gate.hold was stopped; it had not ended " in str(future.exception())
    assert str(future.exception()).endswith(" s later, and was given up")
    assert pool.submit(FakeResource.use).result(DEADLINE) == 1
    assert [worker.name for worker in workers_of(pool)] == ["pool_1"]  # no two threads of one name
    pool._check()
    stats = pool.stats()
    assert (stats.submitted, stats.failed, stats.completed, stats.running_tasks) == (2, 1, 1, 0)
    assert stats.active_workers == 1


def test_nothing_is_given_up_before_the_grace(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, abort_grace=HOUR)
    future = pool.submit(gate.hold)
    gate.wait_until_held()
    future.stop()

    tend_stops(pool, HOUR / 2)
    assert not future.done()
    tend_stops(pool, 2 * HOUR)

    assert cause_of_stop(future) is None
    assert len(written_off_workers(pool)) == 1


def test_worker_destroys_its_resource_and_ends_when_the_call_returns(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    told: list[str] = []

    class Ear(Observer):
        def worker_written_off(self, event: WorkerEvent) -> None:
            told.append(f"off {event.worker}")

        def worker_ended(self, event: WorkerEvent) -> None:
            told.append(f"ended {event.worker}")

    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        abort_grace=0.0,
        observers=[Ear()],
        name="pool",
        on_reset=ledger.is_usable,
    )
    write_off(pool, gate)
    assert ledger.destroyed == []
    # The watch tells of it after it has written it off; a worker that ends at once may be told of before.
    eventually(lambda: told == ["off pool_0"], "the watch to tell")
    gate.release()

    ledger.wait_until_destroyed(1)
    eventually(lambda: not written_off_workers(pool), "the worker to end")
    eventually(lambda: told == ["off pool_0", "ended pool_0"], "the observer")
    pool._check()


def test_at_most_as_many_as_there_may_be_workers(make_pool: MakePool) -> None:
    # The third worker that hangs keeps its place: its task is given up all the same. When one ends, it is written off.
    pool = make_pool(2, abort_grace=0.0)
    with Gate() as first, Gate() as rest:
        write_off(pool, first)
        future = pool.submit(rest.hold)
        rest.wait_until_held()
        future.stop()
        eventually(lambda: len(written_off_workers(pool)) == 2, "the second to be written off")
        third = pool.submit(rest.hold)
        rest.wait_until_held(2)
        third.stop()
        assert cause_of_stop(third) is None
        tend_stops(pool, HOUR)
        assert len(written_off_workers(pool)) == 2
        assert len(workers_of(pool)) == 1
        pool._check()
        first.release()
        eventually(lambda: not workers_of(pool) and len(written_off_workers(pool)) == 2, "the third to take the place")
        pool._check()


def test_greater_limit_lets_another_one_be_written_off(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, abort_grace=0.0)
    write_off(pool, gate)
    future = pool.submit(gate.hold)
    gate.wait_until_held(2)
    future.stop()
    assert cause_of_stop(future) is None

    pool.resize(max_workers=2)

    eventually(lambda: len(written_off_workers(pool)) == 2, "the second to be written off")


def test_submission_that_waits_for_a_place_goes_on(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0, abort_grace=0.05)
    future = pool.submit(gate.hold)
    gate.wait_until_held()
    future.stop()

    assert pool.submit(int, "7").result(DEADLINE) == 7


def test_task_that_waits_gets_the_successor(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, abort_grace=0.05)
    future = pool.submit(gate.hold)
    gate.wait_until_held()
    later = pool.submit(int, "7")
    future.stop()

    assert later.result(DEADLINE) == 7


def test_worker_that_waits_inside_is_written_off_and_no_deadlock_is_seen(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2, abort_grace=0.0)
    inner = pool.submit(gate.hold)
    gate.wait_until_held()
    outer = pool.submit(lambda: inner.result(DEADLINE))
    eventually(outer.running, "the task to run")

    outer.stop()

    assert cause_of_stop(outer) is None
    assert pool.submit(int, "7").result(DEADLINE) == 7
    gate.release()
    assert inner.result(DEADLINE) is None


def test_idle_successor_retires_and_the_base_is_kept(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2, min_workers=1, idle_timeout=0.0, abort_grace=0.0)
    write_off(pool, gate)

    eventually(lambda: len(workers_of(pool)) == 1, "the base")
    pool._check()


# -- a hook that hangs


def test_worker_whose_abort_hangs_is_written_off(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    freed = threading.Event()

    def abort(_: object) -> None:
        freed.set()
        gate.hold()

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=abort, abort_grace=HOUR)
    future = pool.submit(lambda _: freed.wait(DEADLINE))
    eventually(future.running, "the task to run")
    future.stop()
    gate.wait_until_held()
    assert future.result(DEADLINE) is True
    eventually(lambda: all(worker.stopped is not None for worker in workers_of(pool)), "the worker to wait for the hook")

    tend_stops(pool, 2 * HOUR)

    assert len(written_off_workers(pool)) == 1
    assert pool.submit(FakeResource.use).result(DEADLINE) == 1
    assert ledger.destroyed == []
    gate.release()
    ledger.wait_until_destroyed(1)


# -- the end


@pytest.mark.parametrize("end", [ResourceExecutor.shutdown, ResourceExecutor.kill])
def test_executor_closes_and_the_last_resource_is_destroyed_later(
    make_pool: MakePool, ledger: Ledger, gate: Gate, end: Callable[..., None]
) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, abort_grace=0.0)
    write_off(pool, gate)

    end(pool)

    assert is_terminated(pool, DEADLINE)
    pool._check()
    assert pool.stats().state == "closed"
    gate.release()
    ledger.wait_until_destroyed(1)
    eventually(lambda: not written_off_workers(pool), "the worker to end")
    pool._check()


def test_shutdown_with_a_timeout_names_the_worker(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, abort_grace=0.0, name="pool")
    write_off(pool, gate)

    with pytest.raises(ShutdownTimeout, match="pool_0 was written off: its call has not returned"):
        pool.shutdown(timeout=0.05)


def test_shutdown_without_a_timeout_waits_for_the_grace_and_logs(
    make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(1, abort_grace=0.05, name="pool")
    write_off(pool, gate)

    pool.shutdown()

    assert "but for workers that were written off, and whose calls have not returned: pool_0" in caplog.messages[-1]


def test_shutdown_waits_for_the_thread_of_a_worker_that_was_written_off(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, abort_grace=0.0)
    write_off(pool, gate)
    [worker] = written_off_workers(pool)
    threading.Timer(0.05, gate.release).start()

    pool.shutdown(timeout=DEADLINE)

    assert not worker.thread.is_alive()


def test_kill_with_destroy_takes_the_resource_of_a_worker_that_was_written_off(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    ledger.any_thread = True
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, abort_grace=0.0)
    write_off(pool, gate)

    pool.kill(destroy=True)

    assert len(ledger.destroyed) == 1


def test_task_that_ignores_a_kill_is_given_up_and_the_executor_closes(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, abort_grace=0.05)
    future = pool.submit(gate.hold)
    gate.wait_until_held()

    pool.kill()

    assert type(future.exception(DEADLINE)) is TaskStopped
    assert str(future.exception()).startswith(
        f"executor {pool._core.name!r}: task Gate.hold was stopped with its executor, by kill()"
    )
    assert is_terminated(pool, DEADLINE)


@pytest.mark.parametrize("with_block", [True, False])
def test_interpreter_ends_although_a_call_never_returns(with_block: bool) -> None:
    source = f"""
import threading
from tasker_executor import ResourceExecutor

def work():
    started.set()
    threading.Event().wait()

started = threading.Event()
pool = ResourceExecutor(1, abort_grace=0.01)
future = pool.submit(work)
started.wait()
future.stop()
print(type(future.exception(20)).__name__)
if {with_block}:
    with pool:
        print(pool.submit(int, "7").result(20))
"""

    result = run_python(source)

    assert result.stdout.split() == (["TaskStopped", "7"] if with_block else ["TaskStopped"])
    assert result.returncode == 0


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork")
def test_child_of_a_fork_has_no_stops(gate: Gate) -> None:
    source = """
import os, threading, warnings
from tasker_executor import ResourceExecutor
warnings.simplefilter("ignore")

def work():
    started.set()
    done.wait(20)

started, done = threading.Event(), threading.Event()
pool = ResourceExecutor(1, abort_grace=3600)
future = pool.submit(work)
started.wait()
future.stop()
child = os.fork()
if child == 0:
    ok = future.done() and not future.stop() and not pool._core.stops._pending
    os._exit(0 if ok else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
done.set()
print(future.result(20))
"""

    result = run_python(source)

    assert (result.stdout.split(), result.stderr) == (["0", "None"], "")


def test_write_off_is_logged(make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(1, abort_grace=0.0, name="pool")

    with caplog.at_level(logging.WARNING):
        write_off(pool, gate)
        eventually(lambda: bool(caplog.messages), "the record")

    assert "worker pool_0 is written off: task Gate.hold has not ended" in caplog.messages[0]
