"""`tasker_executor.dask` on worker processes that die: of SIGKILL, of a poisonous task, of being closed while they work.

Resources are booked in a file, which outlives the process that writes to it. The tests marked `stress` are the same, longer,
and with other processes that keep the machine busy.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="tasker_executor.dask needs dask.distributed")
if sys.platform == "win32":
    pytest.skip("there is no SIGKILL", allow_module_level=True)

import dask.config
from distributed import Client, KilledWorker, LocalCluster

from dask_support import (
    FOREIGN_THREADS,
    FileLedger,
    UnpickledLate,
    hogs,
    note_abort,
    take_the_worker_along,
    work,
    work_until,
    work_until_stopped,
)
from support import DEADLINE, eventually
from tasker_executor import BacklogPolicy, TaskStopped
from tasker_executor.dask import DaskResourceExecutor, PolicyAdaptive
from tasker_executor.exceptions import TaskCancelled, TaskLost

Pool = DaskResourceExecutor[Any]

pytestmark = pytest.mark.foreign_threads(*FOREIGN_THREADS)


@pytest.fixture
def books(tmp_path: Path) -> FileLedger:
    """Books in a file."""
    return FileLedger(tmp_path / "ledger")


@contextmanager
def processes(workers: int, threads: int = 2) -> Generator[Any]:
    """The client of a cluster of worker processes, each with a nanny that makes a new one when it dies."""
    cluster: Any = LocalCluster(n_workers=workers, threads_per_worker=threads, processes=True, dashboard_address=":0")  # type: ignore[no-untyped-call]  # Dask has few types
    client: Any
    with cluster, Client(cluster, set_as_default=False) as client:  # type: ignore[no-untyped-call]  # Dask has few types
        yield client


def new_pool(client: Any, books: FileLedger, **kwargs: Any) -> Pool:
    return DaskResourceExecutor(client, on_create=books.create, on_destroy=books.destroy, **kwargs)


def pids(client: Any) -> list[int]:
    return list(client.run(os.getpid, on_error="ignore").values())


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def pid_of(entry: list[str]) -> int:
    return int(entry[0].partition("-")[0])


# -- death --


def chaos(books: FileLedger, seed: int, *, workers: int, tasks: int, kills: int, seconds: float) -> None:
    """Run tasks while workers are killed: no task is lost, and only killed workers leave resources behind."""
    dice = random.Random(seed)
    killed: set[int] = set()
    with processes(workers) as client, new_pool(client, books) as pool:
        futures = [pool.submit(work, number, seconds) for number in range(tasks)]
        for number in range(kills):
            books.wait_until_noted("ended", tasks * (number + 1) // (kills + 2))
            eventually(lambda: bool(set(pids(client)) - killed), "a worker to be alive")
            victim = dice.choice(sorted(set(pids(client)) - killed))
            killed.add(victim)
            kill(victim)

        results = [future.result(5 * DEADLINE) for future in futures]

    assert results == list(range(tasks)), f"seed {seed}"
    books.check(killed)


def test_no_task_is_lost_and_no_resource_leaked_when_workers_are_killed(books: FileLedger) -> None:
    chaos(books, seed=1, workers=3, tasks=60, kills=2, seconds=0.02)


@pytest.mark.stress
@pytest.mark.parametrize("busy", [0, 4], ids=["on an idle machine", "on a busy machine"])
@pytest.mark.parametrize("seed", range(8))
def test_no_task_is_lost_in_a_long_history(books: FileLedger, seed: int, busy: int) -> None:
    with hogs(busy):
        chaos(books, seed, workers=3, tasks=150, kills=3, seconds=0.05)


def test_at_most_once_task_is_lost_with_its_worker_and_not_run_again(books: FileLedger, tmp_path: Path) -> None:
    release = tmp_path / "release"
    with processes(2, threads=1) as client, new_pool(client, books) as pool:
        once = [pool.with_options(max_retries=0).submit(work_until, number, release) for number in range(2)]
        begun = books.wait_until_noted("begun", 2)
        victim = pid_of(begun[0])
        kill(victim)
        lost, kept = (once[int(entry[1])] for entry in begun)

        assert isinstance(lost.exception(DEADLINE), TaskLost)
        release.touch()
        assert kept.exception(DEADLINE) is None

    assert len(books.entries("begun")) == 2
    books.check({victim})


def test_task_that_has_not_started_survives_its_worker_though_it_may_run_once_only(books: FileLedger, tmp_path: Path) -> None:
    release = tmp_path / "release"
    with processes(2, threads=1) as client, new_pool(client, books) as pool:
        blockers = [pool.submit(work_until, number, release) for number in range(2)]
        begun = books.wait_until_noted("begun", 2)
        waiting = [pool.with_options(max_retries=0).submit(work, 10 + number) for number in range(6)]
        kill(pid_of(begun[0]))
        release.touch()

        assert [future.result(DEADLINE) for future in waiting] == list(range(10, 16))
        assert [future.result(DEADLINE) for future in blockers] == [0, 1]


def test_stopped_task_is_not_run_again_when_its_worker_is_killed(books: FileLedger, tmp_path: Path) -> None:
    """Dask would run the task of a killed worker elsewhere."""
    with processes(2, threads=1) as client, new_pool(client, books, on_abort=note_abort, abort_grace=DEADLINE) as pool:
        future: Any = pool.submit(work_until, 0, tmp_path / "never")
        [begun] = books.wait_until_noted("begun")
        assert future.stop()
        books.wait_until_noted("aborted")
        victim = pid_of(begun)
        kill(victim)

        error = future.exception(DEADLINE)
        assert isinstance(error, TaskStopped)
        assert isinstance(error.__cause__, TaskLost)
        assert [pool.submit(work, number).result(DEADLINE) for number in range(1, 5)] == [1, 2, 3, 4]

    assert [entry[1] for entry in books.entries("begun")].count("0") == 1
    books.check({victim})


def test_task_of_another_process_is_stopped(books: FileLedger) -> None:
    with processes(1, threads=1) as client, new_pool(client, books) as pool:
        future: Any = pool.submit(work_until_stopped, 0)
        books.wait_until_noted("begun")

        assert future.stop()

        error = future.exception(DEADLINE)
        assert isinstance(error, TaskStopped)
        assert isinstance(error.__cause__, TaskCancelled)
    books.check(set())


def test_poisonous_task_is_lost_and_named(books: FileLedger) -> None:
    two_deaths_are_enough = dask.config.set({"distributed.scheduler.allowed-failures": 1})
    with two_deaths_are_enough, processes(2, threads=1) as client, new_pool(client, books) as pool:
        error = pool.submit(take_the_worker_along, 0).exception(DEADLINE)

        assert isinstance(error, TaskLost)
        assert isinstance(error.__cause__, KilledWorker)
        assert pool.submit(work, 1).result(DEADLINE) == 1
    assert len(books.entries("begun")) == 3


def test_poisonous_task_that_may_run_once_kills_one_worker(books: FileLedger) -> None:
    with processes(2, threads=1) as client, new_pool(client, books) as pool:
        poison = pool.with_options(max_retries=0).submit(take_the_worker_along, 0)
        innocent = [pool.submit(work, number) for number in range(1, 12)]

        assert isinstance(poison.exception(DEADLINE), TaskLost)
        assert [future.result(DEADLINE) for future in innocent] == list(range(1, 12))
    assert [entry[1] for entry in books.entries("begun")].count("0") == 1


def test_nanny_replaces_a_worker_whose_set_up_failed(books: FileLedger, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.touch()
    with processes(2, threads=1) as client, new_pool(client, books, initargs=(UnpickledLate(ready, books),)) as pool:
        ready.unlink()
        kill(pids(client)[0])
        books.wait_until_noted("failed")  # by the new worker, which makes the file again

        assert [future.result(DEADLINE) for future in submit_all(pool, 20)] == list(range(20))
        eventually(lambda: all_set_up(client), "two good workers")
    assert len(books.entries("failed")) == 1


def submit_all(pool: Pool, count: int) -> list[Future[int]]:
    return [pool.submit(work, number, 0.05) for number in range(count)]


def all_set_up(client: Any) -> bool:
    return sorted(client.run(plugin_states, on_error="ignore").values()) == [[False], [False]]


def plugin_states(dask_worker: Any) -> list[bool]:
    return [plugin.failed for name, plugin in dask_worker.plugins.items() if name.startswith("tasker-")]


def test_resources_are_destroyed_when_their_client_dies(books: FileLedger) -> None:
    """No client is left that could shut the executor down."""
    with processes(2) as client:
        other: Any = Client(client.scheduler.address, set_as_default=False)  # type: ignore[no-untyped-call]  # Dask has few types
        pool = new_pool(other, books)
        wait([pool.submit(work, number) for number in range(4)], DEADLINE)
        other.close()

        eventually(lambda: not books.left_over(), "the resources to be destroyed")
        pool.kill()


# -- being closed --


def close_the_cluster(client: Any) -> None:
    client.cluster.close()


def retire_all(client: Any) -> None:
    client.retire_workers(list(client.nthreads()), close_workers=True, remove=True)


@pytest.mark.parametrize("end", [close_the_cluster, retire_all])
def test_resources_of_a_worker_that_is_closed_while_it_works_are_destroyed(
    books: FileLedger, tmp_path: Path, end: Callable[[Any], None]
) -> None:
    """Idle resources go at once. Those in use go when the grace is over, since the nanny kills the worker after 4 s."""
    with processes(2) as client:
        pool = new_pool(client, books, grace=0.3)
        wait([pool.submit(work, number, 0.1) for number in range(4)], DEADLINE)
        held = [pool.submit(work_until, number, tmp_path / "never") for number in range(2)]
        books.wait_until_noted("begun", 6)

        end(client)
        eventually(lambda: not books.left_over(), "all resources to be destroyed")
        pool.kill()
        client.close()

    assert not wait(held, DEADLINE).not_done
    books.check(set(), abandoned=True)


def grow_and_shrink(books: FileLedger, tasks: int) -> None:
    """Scale from 1 worker to 4 and back: no task runs twice, no resource is leaked or destroyed while in use."""
    policy = BacklogPolicy(threshold=2, step=3, interval=0.1)
    with processes(1) as client, new_pool(client, books) as pool:
        client.cluster.adapt(Adaptive=PolicyAdaptive, policy=policy, minimum=1, maximum=4, wait_count=2)
        futures = [pool.submit(work, number, 0.05) for number in range(tasks)]
        eventually(lambda: len(client.nthreads()) >= 2, "the cluster to grow")
        results = [future.result(5 * DEADLINE) for future in futures]
        eventually(lambda: len(client.nthreads()) == 1, "the cluster to shrink")

    assert results == list(range(tasks))
    assert set(Counter(entry[1] for entry in books.entries("begun")).values()) == {1}
    books.check(set())


def test_scaling_runs_no_task_twice_and_leaks_nothing(books: FileLedger) -> None:
    grow_and_shrink(books, 60)


@pytest.mark.stress
@pytest.mark.parametrize("busy", [0, 4], ids=["on an idle machine", "on a busy machine"])
@pytest.mark.parametrize("number", range(6))
def test_scaling_runs_no_task_twice_in_a_long_history(books: FileLedger, number: int, busy: int) -> None:
    with hogs(busy):
        grow_and_shrink(books, 200)
