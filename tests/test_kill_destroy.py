"""`kill(destroy=True)`: a process that is about to be killed gives up its resources, those in use too, each exactly once."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from engine import patch_abort_patience
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, cause_of_stop
from tasker_executor import ResourceExecutor, ShutdownTimeout, current_task
from tasker_executor.testing import InlineExecutor


@pytest.fixture
def pool(make_pool: MakePool, ledger: Ledger) -> ResourceExecutor[FakeResource]:
    """Two workers, whose resources may be destroyed by any thread: the killer's."""
    ledger.any_thread = True
    return make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)


def test_resources_in_use_are_destroyed_at_once(pool: ResourceExecutor[FakeResource], ledger: Ledger, gate: Gate) -> None:
    pool.submit(gate.hold)
    gate.wait_until_held()

    pool.kill(destroy=True)

    assert not ledger.alive
    gate.release()


def test_owner_does_not_destroy_again(pool: ResourceExecutor[FakeResource], ledger: Ledger, gate: Gate) -> None:
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.kill(destroy=True)

    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert len(ledger.destroyed) == len(ledger.created) == 2
    assert pool.stats().resources_destroyed == 2


def test_resource_that_its_owner_is_destroying_is_left_to_it(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    def destroy(resource: FakeResource) -> None:
        gate.hold()
        ledger.destroy(resource)

    pool = make_pool(1, on_create=ledger.create, on_destroy=destroy)
    pool.submit(FakeResource.use).result(DEADLINE)
    pool.shutdown(wait=False)
    gate.wait_until_held()

    pool.kill(destroy=True)

    assert not ledger.destroyed
    gate.release()
    pool.shutdown(timeout=DEADLINE)
    assert len(ledger.destroyed) == 1


def test_call_of_run_now_loses_its_resource_too(pool: ResourceExecutor[FakeResource], ledger: Ledger, gate: Gate) -> None:
    caller = threading.Thread(target=pool.run_now, args=(gate.hold,))
    caller.start()
    gate.wait_until_held()

    pool.kill(destroy=True)

    assert not ledger.alive
    gate.release()
    caller.join(DEADLINE)
    assert len(ledger.destroyed) == 1


def test_tasks_are_told_and_nothing_is_accepted(pool: ResourceExecutor[FakeResource]) -> None:
    started = threading.Event()

    def task(resource: FakeResource) -> bool:
        started.set()
        return current_task().wait(DEADLINE)

    future = pool.submit(task)
    assert started.wait(DEADLINE)
    pool.kill(destroy=True)

    assert future.result(DEADLINE) is True
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(FakeResource.use)


def is_never_healthy(error: BaseException) -> bool:
    return False


def test_task_that_fails_over_its_lost_resource_is_not_retried(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    ledger.any_thread = True
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=is_never_healthy)

    def task(resource: FakeResource) -> None:
        gate.hold()
        raise ConnectionError("closed")

    future = pool.submit(task)
    gate.wait_until_held()
    pool.kill(destroy=True)
    gate.release()

    assert isinstance(cause_of_stop(future), ConnectionError)
    pool.shutdown(timeout=DEADLINE)
    assert len(ledger.created) == 1


def test_hook_that_unblocks_a_task_is_called_before_its_resource_is_destroyed(make_pool: MakePool, gate: Gate) -> None:
    calls: list[str] = []

    def destroy(resource: object) -> None:
        calls.append("destroyed")

    def abort(resource: object) -> None:
        calls.append("aborted")

    pool = make_pool(1, on_create=object, on_destroy=destroy, on_abort=abort)
    pool.submit(gate.hold)
    gate.wait_until_held()

    pool.kill(destroy=True)

    assert calls == ["aborted", "destroyed"]
    gate.release()


def test_killing_twice_destroys_once(pool: ResourceExecutor[FakeResource], ledger: Ledger) -> None:
    pool.submit(FakeResource.use).result(DEADLINE)

    pool.kill(destroy=True)
    pool.kill(destroy=True)

    pool.shutdown(timeout=DEADLINE)
    assert len(ledger.destroyed) == len(ledger.created)


def test_killing_after_shutdown_is_fine(pool: ResourceExecutor[FakeResource], ledger: Ledger) -> None:
    pool.shutdown(timeout=DEADLINE)

    pool.kill(destroy=True)

    assert len(ledger.destroyed) == len(ledger.created) == 1


def test_executor_without_resources_is_killed(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    waiting = pool.submit(int)

    pool.kill(destroy=True)

    assert waiting.cancelled()
    gate.release()


def test_shutdown_that_did_not_wait_may_be_followed_by_one_that_does(pool: ResourceExecutor[FakeResource], gate: Gate) -> None:
    """First everything idle goes, then what is busy, while there is time: what `tasker_executor.dask` does."""
    running = pool.submit(gate.hold)
    gate.wait_until_held()
    waiting = [pool.submit(gate.hold) for _ in range(3)]

    pool.shutdown(wait=False, cancel_futures=True)
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert running.result(0) is None
    assert sum(future.cancelled() for future in waiting) >= 2


def test_on_abort_hook_that_hangs_holds_up_no_other_resource(
    make_pool: MakePool, ledger: Ledger, gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The resource of that hook is left to its owner, which destroys it when the hook has returned."""
    patch_abort_patience(monkeypatch, 0.01)
    ledger.any_thread = True

    def abort(resource: FakeResource) -> None:
        if resource.number == 0:
            hanging.hold()

    with Gate() as hanging:
        pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=abort)
        for count in (1, 2):
            pool.submit(gate.hold)
            gate.wait_until_held(count)
        pool.kill()
        hanging.wait_until_held()

        pool.kill(destroy=True)  # returns

        assert [resource.number for resource in ledger.destroyed] == [1]
        assert "left to its owner" in caplog.text
        gate.release()
        hanging.release()
        pool.shutdown(timeout=DEADLINE)
    assert len(ledger.destroyed) == 2


def test_shutdown_waits_until_another_threads_kill_has_destroyed_all(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    """1. `kill` is inside of on_destroy. 2. The task ends; its worker need not destroy anything. 3. shutdown comes."""
    ledger.any_thread = True

    def destroy(resource: FakeResource) -> None:
        destroying.hold()
        ledger.destroy(resource)

    with Gate() as destroying:
        pool = make_pool(1, on_create=ledger.create, on_destroy=destroy)
        pool.submit(gate.hold)
        gate.wait_until_held()
        other = threading.Thread(target=pool.kill, kwargs={"destroy": True})
        other.start()
        destroying.wait_until_held()
        gate.release()
        with pytest.raises(ShutdownTimeout):
            pool.shutdown(timeout=0.05)
        destroying.release()
        pool.shutdown(timeout=DEADLINE)
        assert ledger.destroyed == ledger.created
        other.join()


@pytest.mark.parametrize("destroy", [None, 1, "yes"])
def test_destroy_is_a_bool(pool: ResourceExecutor[FakeResource], destroy: Any) -> None:
    with pytest.raises(TypeError, match=f"destroy must be a bool, not {destroy!r}"):
        pool.kill(destroy=destroy)
    with InlineExecutor() as inline, pytest.raises(TypeError, match="destroy must be a bool"):
        inline.kill(destroy=destroy)

    assert pool.stats().state == "running"


# -- the executor without threads --


def test_task_of_an_inline_executor_loses_its_resource() -> None:
    ledger = Ledger()
    with InlineExecutor(on_create=ledger.create, on_destroy=ledger.destroy) as pool:
        pool.wait_ready()

        def task(resource: FakeResource) -> int:
            pool.kill(destroy=True)
            return len(ledger.destroyed)

        assert pool.submit(task).result() == 1
        assert pool.stats().state == "closed"
    assert len(ledger.destroyed) == len(ledger.created) == 1


def test_free_resources_of_an_inline_executor_are_destroyed_while_another_thread_runs_a_task(gate: Gate) -> None:
    ledger = Ledger()
    ledger.any_thread = True
    pool = InlineExecutor(on_create=ledger.create, on_destroy=ledger.destroy, deferred=True)
    future = pool.submit(gate.hold)
    runner = threading.Thread(target=pool.run_all)
    runner.start()
    gate.wait_until_held()
    assert pool.run_now(FakeResource.use) == 1

    pool.kill(destroy=True)

    assert ledger.alive == []
    assert pool.stats().state == "killed"
    gate.release()
    runner.join(DEADLINE)
    assert future.result(0) is None
    assert pool.stats().state == "closed"
    assert len(ledger.destroyed) == 2


def test_inline_executor_without_resources_is_killed() -> None:
    pool = InlineExecutor(deferred=True)
    waiting = pool.submit(int)

    pool.kill(destroy=True)

    assert waiting.cancelled()
