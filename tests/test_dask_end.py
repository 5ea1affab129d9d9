"""`tasker_executor.dask`: shutdown, kill, exit, and errors thrown into them, on a cluster in this process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="tasker_executor.dask needs dask.distributed")

from distributed.comm.core import CommClosedError

import dask_cluster
from dask_cluster import (
    THREADS,
    WORKERS,
    AnyClient,
    MakePool,
    fail,
    handed,
    hooks,
    local_workers,
    new_client,
    on_scheduler,
    residue,
    use,
)
from dask_support import FOREIGN_THREADS, Ref
from engine import State
from interruptions import AtPoint, TimeLimit
from support import DEADLINE, Gate, Ledger, eventually, run_python
from tasker_executor import ShutdownTimeout, current_task
from tasker_executor.dask import DaskResourceExecutor, client_side
from tasker_executor.dask.client_side import _at_exit
from tasker_executor.exceptions import TaskLost

pytestmark = pytest.mark.foreign_threads(*FOREIGN_THREADS)

client = dask_cluster.client
make_dask = dask_cluster.make_dask
gate = dask_cluster.gate

DASK = Path(client_side.__file__).parent


def test_shutdown_runs_what_was_accepted(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask()
    futures = [pool.submit(Ref(gate.hold)) for _ in range(10)]
    pool.shutdown(wait=False)

    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert all(future.result(0) is None for future in futures)


def test_nothing_is_accepted_after_shutdown(make_dask: MakePool) -> None:
    pool = make_dask()
    pool.shutdown(timeout=DEADLINE)

    for call in (partial(pool.submit, abs, -1), partial(pool.map, abs, [1]), partial(pool.run_now, abs, -1)):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            call()


def test_shutdown_cancels_what_no_worker_has_started(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask()
    futures = [pool.submit(Ref(gate.hold)) for _ in range(10)]
    gate.wait_until_held(WORKERS * THREADS)

    pool.shutdown(wait=False, cancel_futures=True)
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert sum(future.cancelled() for future in futures) == 10 - WORKERS * THREADS
    assert pool.stats().completed == WORKERS * THREADS


def test_shutdown_gives_up_in_time_and_goes_on(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask()
    future = pool.submit(Ref(gate.hold))
    gate.wait_until_held()

    with pytest.raises(ShutdownTimeout, match="1 tasks are not done"):
        pool.shutdown(timeout=0.01)
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert future.result(0) is None


def test_kill_cancels_what_waits_and_tells_what_runs(make_dask: MakePool) -> None:
    pool = make_dask()
    started = threading.Barrier(WORKERS * THREADS + 1)

    def wait_for_cancellation() -> bool:
        started.wait(DEADLINE)
        return current_task().wait(DEADLINE)

    futures = [pool.submit(Ref(wait_for_cancellation)) for _ in range(10)]
    started.wait(DEADLINE)
    pool.kill()
    pool.shutdown(timeout=DEADLINE)

    assert sorted("cancelled" if future.cancelled() else str(future.result(0)) for future in futures) == [
        *["True"] * (WORKERS * THREADS),
        *["cancelled"] * (10 - WORKERS * THREADS),
    ]


def test_kill_leaves_resources_in_use_alone(make_dask: MakePool, gate: Gate, ledger: Ledger) -> None:
    pool = make_dask(**hooks(ledger))
    held = [pool.submit(Ref(gate.hold)) for _ in range(WORKERS * THREADS)]
    gate.wait_until_held(WORKERS * THREADS)

    pool.kill()

    assert len(ledger.alive) == WORKERS * THREADS
    gate.release()
    wait(held, DEADLINE)


def test_kill_can_destroy_resources_in_use(make_dask: MakePool, gate: Gate, ledger: Ledger) -> None:
    ledger.any_thread = True
    pool = make_dask(**hooks(ledger))
    held = [pool.submit(Ref(gate.hold)) for _ in range(WORKERS * THREADS)]
    gate.wait_until_held(WORKERS * THREADS)
    pool.kill()

    pool.kill(destroy=True)

    assert len(ledger.destroyed) == WORKERS * THREADS
    assert not any(future.done() for future in held)
    gate.release()
    wait(held, DEADLINE)


@pytest.mark.parametrize("destroy", [None, 1, "yes"])
def test_destroy_must_be_a_bool(make_dask: MakePool, destroy: Any) -> None:
    pool = make_dask()

    with pytest.raises(TypeError, match=f"destroy must be a bool, not {destroy!r}"):
        pool.kill(destroy=destroy)
    assert pool.stats().state == "running"


def test_kill_in_a_done_callback_does_not_wait(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask()
    held = [pool.submit(Ref(gate.hold)) for _ in range(WORKERS * THREADS)]
    waiting = [pool.submit(Ref(gate.hold)) for _ in range(4)]
    pool.submit_priority(fail, ValueError()).add_done_callback(lambda _: pool.kill())

    wait_until_held_or_done(gate, held)
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert all(future.done() for future in held + waiting)


def wait_until_held_or_done(gate: Gate, futures: Sequence[Future[Any]]) -> None:
    eventually(lambda: gate._held > 0 or any(future.done() for future in futures), "a task to run or to end")


def test_kill_cancels_everything_when_the_cluster_cannot_be_asked(
    make_dask: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_dask()
    futures = [pool.submit(Ref(gate.hold)) for _ in range(6)]
    gate.wait_until_held(WORKERS * THREADS)

    async def run(*args: Any, **kwargs: Any) -> None:
        raise CommClosedError

    with monkeypatch.context() as patch:
        patch.setattr(pool._client, "_run", run)
        pool.kill()

        assert all(future.cancelled() for future in futures)
    gate.release()


def test_executor_that_is_killed_on_a_worker_cancels_what_waits_there(
    client: AnyClient, make_dask: MakePool, gate: Gate
) -> None:
    pool = make_dask(max_workers=1)
    held = [pool.submit(Ref(gate.hold)) for _ in range(WORKERS)]
    gate.wait_until_held(WORKERS)
    waits = pool.submit(abs, -1)
    eventually(lambda: handed(client, pool) == WORKERS + 1, "the task to be handed over")

    for worker in local_workers(client):
        worker.plugins[pool._plugin].executor.kill()

    with pytest.raises(CancelledError):
        waits.result(DEADLINE)
    gate.release()
    wait(held, DEADLINE)


def test_submit_that_fails_leaves_nothing_behind(make_dask: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_dask()

    def submit(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(pool._client, "submit", submit)
        with pytest.raises(MemoryError):
            pool.submit(abs, -1)

    assert pool.stats().submitted == 0
    pool.shutdown(timeout=DEADLINE)


def test_task_that_is_submitted_while_another_thread_shuts_down_is_cancelled_or_run(
    make_dask: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_dask()
    original = pool._client.submit

    def submit(*args: Any, **kwargs: Any) -> Any:
        shutting_down = threading.Thread(target=pool.shutdown, kwargs={"wait": False, "cancel_futures": True})
        shutting_down.start()
        shutting_down.join(DEADLINE)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pool._client, "submit", submit)
        future = pool.submit(abs, -1)

    assert future.cancelled()
    pool.shutdown(timeout=DEADLINE)


def test_exit_shuts_down_what_is_left(make_dask: MakePool) -> None:
    pool = make_dask()
    future = pool.submit(abs, -1)

    _at_exit()

    assert future.done()
    assert pool.stats().state == "closed"


def test_with_block_ends_when_all_is_done(client: AnyClient, ledger: Ledger) -> None:
    with DaskResourceExecutor(client, **hooks(ledger)) as pool:
        future = pool.submit(Ref(use))

    assert future.done()
    assert not ledger.alive


def test_view_shuts_down_and_the_executor_goes_on(make_dask: MakePool) -> None:
    pool = make_dask()
    view = pool.with_options(priority=True)
    future = view.submit(abs, -1)
    view.shutdown(timeout=DEADLINE)

    assert future.done()
    with pytest.raises(RuntimeError):
        view.submit(abs, -1)
    assert pool.submit(abs, -2).result(DEADLINE) == 2


def test_nothing_stays_on_the_cluster(client: AnyClient, make_dask: MakePool) -> None:
    before = on_scheduler(client, residue)
    pool = make_dask()
    pool.submit(abs, -1).result(DEADLINE)
    pool.shutdown(timeout=DEADLINE)

    assert on_scheduler(client, residue) == before
    assert not [name for worker in local_workers(client) for name in worker.plugins if name.startswith("tasker-")]


def test_client_that_is_closed_first_settles_every_future(client: AnyClient, gate: Gate, ledger: Ledger) -> None:
    own = new_client(client.scheduler.address)
    pool: DaskResourceExecutor[Any] = DaskResourceExecutor(own, **hooks(ledger))
    futures = [pool.submit(Ref(gate.hold)) for _ in range(10)]
    gate.wait_until_held(WORKERS * THREADS)
    plugins = [worker.plugins[pool._plugin] for worker in local_workers(client)]

    own.close()

    assert {type(future.exception(DEADLINE)) for future in futures} == {TaskLost}
    pool.shutdown(timeout=DEADLINE)
    gate.release()
    eventually(lambda: all(plugin._end and plugin._end.done() for plugin in plugins), "the workers to clear up")
    assert not ledger.alive


def test_interpreter_exit_finishes_what_was_accepted() -> None:
    done = run_python(EXITING)

    assert done.stdout.split() == ["created", "ran", "ran", "ran", "destroyed"], done.stderr
    assert done.returncode == 0


EXITING = """
import sys
from distributed import Client, LocalCluster
from tasker_executor.dask import DaskResourceExecutor

def say(word, *args):
    print(word, flush=True)
    return word

def ran(resource):
    say("ran")

if __name__ == "__main__":
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0")
    client = Client(cluster)
    pool = DaskResourceExecutor(client, on_create=lambda: say("created"), on_destroy=lambda resource: say("destroyed"))
    for _ in range(3):
        pool.submit(ran)
"""


class TracedDask(AtPoint):
    """Points of `tasker_executor.dask` itself: what lies below it runs on other threads, or has tests of its own."""

    def _enter_function(self, frame: Any, event: str, _: object) -> Any:
        if Path(frame.f_code.co_filename).parent != DASK:
            return None
        return super()._enter_function(frame, event, _)


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeLimit])
def test_an_error_thrown_into_submit_leaves_nothing_to_wait_for(make_dask: MakePool, error: type[BaseException]) -> None:
    def throw() -> None:
        raise error

    pool = make_dask()
    points = 0
    while True:
        point = TracedDask(points + 1, throw)
        try:
            with point:
                pool.submit(int)
        except (KeyboardInterrupt, TimeLimit):
            pass
        assert pool.submit(int).result(DEADLINE) == 0, point.where  # the loop is awake
        if point.where is None:
            break
        points += 1
    assert points >= 10
    pool.shutdown(timeout=DEADLINE)
    stats = pool.stats()
    assert stats.submitted == stats.completed + stats.failed + stats.cancelled


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeLimit])
@pytest.mark.parametrize("method", ["shutdown", "kill"])
def test_an_error_thrown_into_the_end_does_not_keep_it_from_coming(
    make_dask: MakePool, error: type[BaseException], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def throw(**_: object) -> None:
        raise error

    pool = make_dask()
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_cancel_waiting", throw)
        with pytest.raises(error):
            pool.kill() if method == "kill" else pool.shutdown(cancel_futures=True)

    assert pool._wound_down.wait(DEADLINE)
    assert pool._state is State.CLOSED


def test_a_closer_that_cannot_be_started_is_started_by_the_next_shutdown(
    make_dask: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = make_dask()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            pool.shutdown(wait=False)

    pool.shutdown(timeout=DEADLINE)
    assert pool._state is State.CLOSED
