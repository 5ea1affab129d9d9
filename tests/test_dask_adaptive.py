"""`tasker_executor.dask`: how many machines, on a cluster in this process."""

from __future__ import annotations

import logging
from concurrent.futures import wait
from typing import Any

import pytest

pytest.importorskip("distributed", reason="tasker_executor.dask needs dask.distributed")


import dask_cluster
from dask_cluster import MakePool, hooks, local_workers, new_cluster, on_scheduler
from dask_support import FOREIGN_THREADS, Ref
from support import DEADLINE, Gate, Ledger, eventually
from tasker_executor import LoadSample
from tasker_executor.dask import PolicyAdaptive
from tasker_executor.dask.adaptive import LoadMeter

pytestmark = pytest.mark.foreign_threads(*FOREIGN_THREADS)

client = dask_cluster.client
make_dask = dask_cluster.make_dask
gate = dask_cluster.gate


class Wanted:
    """A policy that wants what the test wants, and keeps what it was shown."""

    interval = 0.02

    def __init__(self, wanted: int) -> None:
        self.wanted: Any = wanted
        self.shown: list[LoadSample] = []

    def target(self, load: LoadSample, /) -> int:
        self.shown.append(load)
        if isinstance(self.wanted, Exception):
            raise self.wanted
        answer: int = self.wanted
        return answer


def adapt(cluster: Any, policy: Wanted) -> None:
    cluster.adapt(Adaptive=PolicyAdaptive, policy=policy, minimum=1, maximum=3, wait_count=1)


def test_policy_scales_the_cluster_up_and_down(make_dask: MakePool) -> None:
    policy = Wanted(3)
    with new_cluster(1, 1) as own:
        adapt(own.cluster, policy)
        eventually(lambda: len(local_workers(own)) == 3, "three workers")

        policy.wanted = 0
        eventually(lambda: len(local_workers(own)) == 1, "one worker")

    assert {load.target for load in policy.shown} >= {1, 3}
    assert {(load.min_workers, load.max_workers) for load in policy.shown} == {(1, 3)}


def test_policy_is_shown_the_load_of_the_cluster(make_dask: MakePool) -> None:
    policy = Wanted(1)
    with new_cluster(1, 2) as own, Gate() as gate:
        adapt(own.cluster, policy)
        eventually(lambda: bool(policy.shown), "the policy to be asked")
        pool = make_dask(on=own)
        tasks = [pool.submit(Ref(gate.hold)) for _ in range(5)]
        tasks += [pool.submit_priority(Ref(gate.hold)) for _ in range(3)]
        gate.wait_until_held(2)

        eventually(lambda: policy.shown[-1].queued == 6 and policy.shown[-1].oldest_wait > 0, "six tasks to wait")
        load = policy.shown[-1]
        gate.release()
        wait(tasks, DEADLINE)
        eventually(lambda: policy.shown[-1].completion_rate > 0, "tasks to have ended")
        pool.shutdown(timeout=DEADLINE)

    assert (load.workers, load.busy, load.idle) == (1, 1, 0)
    assert load.queued_priority in (2, 3)
    assert load.arrival_rate > 0
    assert policy.shown[0].queued == 0
    assert policy.shown[-1].mean_service_time > 0


def test_scaling_down_takes_no_busy_worker(make_dask: MakePool, ledger: Ledger) -> None:
    policy = Wanted(3)
    with new_cluster(1, 1) as own, Gate() as gate:
        pool = make_dask(on=own, **hooks(ledger))
        adapt(own.cluster, policy)
        eventually(lambda: len(own.nthreads()) == 3, "three workers")
        starts: list[int] = []

        def task(resource: Any) -> int:
            starts.append(resource.use())
            gate.hold()
            return resource.number  # type: ignore[no-any-return]  # a FakeResource

        busy = [pool.submit(Ref(task)) for _ in range(2)]
        gate.wait_until_held(2)
        policy.wanted = 1
        eventually(lambda: len(own.nthreads()) == 2, "the idle worker to leave")
        asked = len(policy.shown)
        eventually(lambda: len(policy.shown) > asked + 3, "the policy to be asked again")

        assert len(own.nthreads()) == 2
        gate.release()
        assert len({future.result(DEADLINE) for future in busy}) == 2
        eventually(lambda: len(own.nthreads()) == 1, "all but one of the busy workers to leave")
        assert len(starts) == 2
        eventually(lambda: len(ledger.alive) <= 1, "their resources to be destroyed")
        pool.shutdown(timeout=DEADLINE)


def test_dask_scales_down_idle_workers_only(make_dask: MakePool, gate: Gate) -> None:
    """This holds for any kind of `adapt`, not for ours alone, as long as there is an executor."""
    with new_cluster(3) as own:
        pool = make_dask(on=own)
        held = [pool.submit(Ref(gate.hold)) for _ in range(2)]
        gate.wait_until_held(2)

        assert len(on_scheduler(own, lambda scheduler: scheduler.workers_to_close(n=3))) == 1

        gate.release()
        wait(held, DEADLINE)
        pool.shutdown(timeout=DEADLINE)


def test_worker_that_got_a_task_after_the_question_is_not_retired(make_dask: MakePool, gate: Gate) -> None:
    """The task comes between the question which workers are idle and the order to retire them."""
    with new_cluster(2) as own:
        own.register_plugin(LoadMeter())
        pool = make_dask(on=own)
        held = pool.submit(Ref(gate.hold))
        gate.wait_until_held()

        async def retire(dask_scheduler: Any) -> Any:
            all_workers = [worker.name for worker in dask_scheduler.workers.values()]
            return await dask_scheduler.handlers["tasker-retire"](names=[*all_workers, "planned only"])

        retired = own.run_on_scheduler(retire)

        assert len(retired) == 2
        assert "planned only" in retired
        assert len(own.nthreads()) == 1
        gate.release()
        wait([held], DEADLINE)
        pool.shutdown(timeout=DEADLINE)


@pytest.mark.parametrize("answer", [ValueError("no idea"), "many"], ids=["raises", "answers nonsense"])
def test_policy_that_fails_is_logged_once_and_its_last_target_stands(
    make_dask: MakePool, caplog: pytest.LogCaptureFixture, answer: object
) -> None:
    policy = Wanted(2)
    with new_cluster(1, 1) as own:
        adapt(own.cluster, policy)
        eventually(lambda: len(own.nthreads()) == 2, "two workers")

        policy.wanted = answer
        asked = len(policy.shown)
        eventually(lambda: len(policy.shown) > asked + 3, "the policy to be asked again")

        assert len(own.nthreads()) == 2
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len([message for message in messages if "the last target stands" in message]) == 1


def test_policy_must_be_one() -> None:
    with pytest.raises(TypeError, match="policy must have an interval"):
        PolicyAdaptive(None, policy=3)  # type: ignore[arg-type]  # that is the point
