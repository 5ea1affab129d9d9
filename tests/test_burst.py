"""A real burst: few workers at rest, many while it pays, and back again; errors and outages are no load."""

from __future__ import annotations

import itertools
import threading

import pytest

from engine import outage_of, patch_random, thread_prefix_of
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, eventually
from tasker_executor import BacklogPolicy, LoadSample, RatePolicy, ResourceExecutor, ScalingPolicy
from tasker_executor._sync import clock

INTERVAL = 0.02


class Watched:
    """Passes every question on to a policy, and keeps what was asked and answered."""

    interval = INTERVAL

    def __init__(self, policy: ScalingPolicy) -> None:
        self._policy = policy
        self.heeded = True  # if not, everything stays as it is
        self.asked: list[LoadSample] = []
        self.answers: list[int] = []

    def target(self, load: LoadSample, /) -> int:
        self.asked.append(load)
        self.answers.append(self._policy.target(load) if self.heeded else load.target)
        return self.answers[-1]

    def answers_under_load(self, queued: int) -> list[int]:
        """Those from the first question on at which so many tasks were queued."""
        asked = self.asked[: len(self.answers)]
        return [
            answer
            for _, answer in itertools.dropwhile(lambda pair: pair[0].queued < queued, zip(asked, self.answers, strict=False))
        ]


def threads_of(pool: ResourceExecutor[FakeResource]) -> int:
    names = [thread.name for thread in threading.enumerate()]
    prefix = f"{thread_prefix_of(pool)}_"
    return sum(name.startswith(prefix) and not name.endswith("timer") for name in names)


def test_a_burst_of_200_tasks_gets_every_worker_within_three_ticks_and_leaves_the_base(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    def work(resource: FakeResource) -> int:
        gate.hold()  # so the burst lasts, however late the ticks come
        return resource.use()

    policy = Watched(BacklogPolicy(threshold=5, step=7, interval=INTERVAL))
    pool = make_pool(
        16, min_workers=2, policy=policy, on_create=ledger.create, on_destroy=ledger.destroy, thread_name_prefix="burst"
    )
    pool.wait_ready()

    futures = [pool.submit(work) for _ in range(200)]
    eventually(lambda: len(policy.answers_under_load(5)) >= 3, "three ticks")
    gate.wait_until_held(16)
    gate.release()
    results = [future.result(DEADLINE) for future in futures]

    assert len(results) == 200
    assert max(policy.answers_under_load(5)[:3]) >= 16
    eventually(lambda: threads_of(pool) == 2, "the burst workers to end")
    assert pool.stats().active_workers == pool.stats().base_workers == 2
    pool.shutdown()
    assert len(ledger.created) == len(ledger.destroyed) <= 200


@pytest.mark.parametrize("judge", [BacklogPolicy(interval=INTERVAL), RatePolicy(interval=INTERVAL)], ids=repr)
def test_errors_one_after_the_other_are_no_load(make_pool: MakePool, ledger: Ledger, judge: ScalingPolicy) -> None:
    policy = Watched(judge)
    policy.heeded = False  # until a task has ended, no policy can know what a task costs
    pool = make_pool(16, min_workers=1, policy=policy, on_create=ledger.create, on_destroy=ledger.destroy)
    pool.wait_ready()

    while len(policy.answers) < 20:
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda _: 1 / 0).result(DEADLINE)
        policy.heeded = True

    assert len(ledger.created) == 1


def test_an_outage_under_a_burst_is_probed_one_attempt_at_a_time(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[float] = []  # for each attempt
    pauses: list[tuple[float, float]] = []  # since when, and how long: one for each attempt that has failed

    def create() -> FakeResource:
        begun.append(clock())
        if 1 <= len(pauses) < 4:  # the policy is asked while the attempt is under way, and wants more workers
            asked = len(policy.answers)
            eventually(lambda: len(policy.answers) > asked + 1, "a tick")
        return ledger.create()

    def pause(low: float, high: float) -> float:
        pauses.append((outage_of(pool).failed_at, high))  # the longest: 0.1, 0.2, 0.4 s
        if len(pauses) == 4:
            ledger.outage = None
        return high

    patch_random(monkeypatch, pause)
    policy = Watched(BacklogPolicy(threshold=2, step=8, interval=INTERVAL))
    pool = make_pool(
        16,
        policy=policy,
        on_create=create,
        on_destroy=ledger.destroy,
    )
    ledger.outage = ConnectionError("down")
    futures = [pool.submit(FakeResource.use)]
    eventually(lambda: bool(pauses), "the first failure")  # until it is known, more attempts may begin
    futures += [pool.submit(FakeResource.use) for _ in range(99)]

    assert all(future.exception(DEADLINE) is None for future in futures)
    assert [seconds for _, seconds in pauses] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert all(again >= since + seconds for again, (since, seconds) in zip(begun[1:], pauses, strict=False))
    assert ledger.attempts - len(ledger.created) <= 5  # 100 tasks and a policy that wants 16: no storm
