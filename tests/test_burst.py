"""A real burst: few workers at rest, many while it pays, and back again; errors and outages are no load."""

from __future__ import annotations

import threading
import time

import pytest

from support import DEADLINE, FakeResource, Ledger, MakePool, eventually
from tasker_executor import BacklogPolicy, LoadSample, RatePolicy, ResourceExecutor, ScalingPolicy

INTERVAL = 0.02


class Watched:
    """Passes every question on to a policy, and keeps what was asked and answered."""

    interval = INTERVAL

    def __init__(self, policy: ScalingPolicy) -> None:
        self._policy = policy
        self.asked: list[LoadSample] = []
        self.answers: list[int] = []

    def target(self, load: LoadSample, /) -> int:
        self.asked.append(load)
        self.answers.append(self._policy.target(load))
        return self.answers[-1]


def nap(resource: FakeResource) -> int:
    time.sleep(0.02)  # the work
    return resource.use()


def threads_of(pool: ResourceExecutor[FakeResource]) -> int:
    names = [thread.name for thread in threading.enumerate()]
    prefix = f"{pool._core.thread_name_prefix}_"
    return sum(name.startswith(prefix) and not name.endswith("supervisor") for name in names)


def test_a_burst_of_200_tasks_gets_every_worker_within_three_ticks_and_leaves_the_base(
    make_pool: MakePool, ledger: Ledger
) -> None:
    policy = Watched(BacklogPolicy(threshold=5, step=7, interval=INTERVAL))
    pool = make_pool(
        16, min_workers=2, policy=policy, on_create=ledger.create, on_destroy=ledger.destroy, thread_name_prefix="burst"
    )
    pool.wait_ready()

    futures = [pool.submit(nap) for _ in range(200)]
    results = [future.result(DEADLINE) for future in futures]

    assert len(results) == 200
    loaded = next(index for index, load in enumerate(policy.asked) if load.queued >= 5)
    assert max(policy.answers[loaded : loaded + 3]) >= 16
    eventually(lambda: threads_of(pool) == 2, "the burst workers to end")
    assert pool.stats().active_workers == pool.stats().base_workers == 2
    pool.shutdown()
    assert len(ledger.created) == len(ledger.destroyed) <= 200


@pytest.mark.parametrize("policy", [BacklogPolicy(interval=INTERVAL), RatePolicy(interval=INTERVAL)])
def test_errors_one_after_the_other_are_no_load(make_pool: MakePool, ledger: Ledger, policy: ScalingPolicy) -> None:
    pool = make_pool(16, min_workers=1, policy=policy, on_create=ledger.create, on_destroy=ledger.destroy)
    pool.wait_ready()

    for _ in range(20):
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda _: 1 / 0).result(DEADLINE)

    assert len(ledger.created) == 1


def test_an_outage_under_a_burst_is_probed_one_attempt_at_a_time(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasker_executor._core.random.uniform", max)  # the longest pauses: 0.1, 0.2, 0.4 s
    pool = make_pool(
        16,
        policy=Watched(BacklogPolicy(threshold=2, step=8, interval=INTERVAL)),
        on_create=ledger.create,
        on_destroy=ledger.destroy,
    )
    ledger.outage = ConnectionError("down")
    futures = [pool.submit(nap) for _ in range(100)]
    ledger.wait_until_attempted(4)
    pauses = pool._core.outage.failures  # one for each attempt that has failed
    ledger.outage = None

    assert all(future.exception(DEADLINE) is None for future in futures)
    assert pauses <= 4
    assert ledger.attempts - len(ledger.created) <= 5  # 100 tasks and a policy that wants 16: no storm
