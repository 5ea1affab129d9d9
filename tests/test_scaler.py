"""The scaler: when the policy is asked, when the tick pauses, and what becomes of the answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine import (
    Step,
    alarm_of,
    core_of,
    idle_stack,
    replace_step,
    step_of,
)
from support import DEADLINE, Gate, Ledger, MakePool, eventually
from tasker_executor import (
    BacklogPolicy,
    LoadSample,
    ResourceExecutor,
)
from tasker_executor._sync import clock
from timer_support import Script, Turns, threads_of, watch_turns


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    return watch_turns(monkeypatch)


def work_until_the_policy_is_asked(pool: ResourceExecutor[None], policy: Script) -> None:
    """Queue more than the one base worker can take, until the policy has seen it."""
    with Gate() as gate:
        futures = [pool.submit(gate.hold) for _ in range(3)]
        policy.wait_until_asked()
    for future in futures:
        future.result()


def test_policy_is_asked_while_there_is_work(make_pool: MakePool, gate: Gate) -> None:
    policy = Script(1)
    pool = make_pool(4, policy=policy)
    pool.submit(gate.hold)
    gate.wait_until_held()
    policy.wait_until_asked(3)

    assert policy.loads[-1].busy == 1


def test_tick_pauses_at_rest(make_pool: MakePool, turns: Turns) -> None:
    policy = Script(1)
    pool = make_pool(4, min_workers=1, policy=policy)
    work_until_the_policy_is_asked(pool, policy)
    turns.wait_until_asleep()

    assert policy.loads[-1].queued == policy.loads[-1].busy == 0


def test_tick_resumes_with_the_next_task(make_pool: MakePool, turns: Turns, gate: Gate) -> None:
    policy = Script(1)
    pool = make_pool(4, min_workers=1, policy=policy)
    work_until_the_policy_is_asked(pool, policy)
    turns.wait_until_asleep()
    pool.submit(gate.hold)
    gate.wait_until_held()
    policy.wait_until_asked(2)  # the first of these questions may have begun before the task did

    assert policy.loads[-1].busy == 1


def rare(answer: int) -> Script:
    """Return a policy whose interval does not pass during a test: the test has the scaler look at a time of its own."""
    policy = Script(answer)
    policy.interval = 1000.0
    return policy


def test_a_policy_is_asked_soon_after_a_pause_if_tasks_wait(make_pool: MakePool, gate: Gate) -> None:
    policy = rare(3)
    pool = make_pool(4, min_workers=1, policy=policy)
    begun = clock()
    for _ in range(4):
        pool.submit(gate.hold)
    gate.wait_until_held()

    due = core_of(pool).scaler.tick(begun + 51.0 + DEADLINE)

    gate.wait_until_held(3)
    assert due == begun + 51.0 + DEADLINE + 1000.0


def test_a_policy_is_asked_an_interval_after_a_pause_if_no_task_waits(make_pool: MakePool, gate: Gate) -> None:
    policy = rare(3)
    pool = make_pool(4, min_workers=1, policy=policy)
    begun = clock()
    pool.submit(gate.hold)
    gate.wait_until_held()

    due = core_of(pool).scaler.tick(begun + 51.0 + DEADLINE)

    assert policy.asked == 0
    assert due is not None
    assert begun + 1000.0 <= due <= begun + 1000.0 + DEADLINE
    core_of(pool).scaler.tick(due)
    assert policy.asked == 1


def test_two_questions_are_an_interval_apart_though_a_pause_lies_between(make_pool: MakePool, gate: Gate) -> None:
    policy = rare(1)
    pool = make_pool(1, min_workers=1, policy=policy)
    scaler = core_of(pool).scaler
    pool.submit(int).result(DEADLINE)
    asked = clock() + 1001.0
    scaler.tick(asked)
    assert scaler.paused
    for _ in range(2):
        pool.submit(gate.hold)
    gate.wait_until_held()

    assert scaler.tick(asked + 999.0) == asked + 1000.0
    scaler.tick(asked + 1000.0)

    assert policy.asked == 2


def test_two_threads_that_end_a_pause_do_not_have_the_policy_asked_twice(make_pool: MakePool, gate: Gate) -> None:
    # 1. A thread ends the pause, and is held up before it stores when the policy is asked. 2. Another one ends the pause.
    # 3. The policy is asked. 4. The first thread stores.
    policy = rare(1)
    pool = make_pool(1, min_workers=1, policy=policy)
    scaler = core_of(pool).scaler
    for _ in range(2):
        pool.submit(gate.hold)
    gate.wait_until_held()
    asked = clock() + 1001.0
    scaler.tick(asked)

    scaler._next = asked - 1.0

    assert scaler.tick(asked + 1.0) == asked + 1000.0
    assert policy.asked == 1


def test_task_submitted_while_the_tick_pauses_is_run_at_once(make_pool: MakePool) -> None:
    policy = Script(1)
    pool = make_pool(4, min_workers=1, policy=policy)
    alarm = alarm_of(pool)
    work_until_the_policy_is_asked(pool, policy)
    for _ in range(3):
        eventually(lambda: alarm in idle_stack(pool), "the tick to pause")

        assert pool.submit(abs, -1).result(timeout=DEADLINE) == 1


def test_policy_is_never_asked_when_no_task_ever_comes(make_pool: MakePool) -> None:
    policy = Script(4)
    pool = make_pool(4, min_workers=2, policy=policy)
    pool.shutdown()

    assert policy.asked == 0


def test_policy_that_raises_is_logged_once_and_the_last_target_stands(
    make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Script(3)
    pool = make_pool(8, policy=policy)
    for _ in range(8):
        pool.submit(gate.hold)
    gate.wait_until_held(3)
    policy.error = LookupError("no such load")
    policy.wait_until_asked(5)
    eventually(lambda: "the last target stands" in caplog.text, "the record, which another thread writes than that which asks")

    assert caplog.text.count("the last target stands") == 1
    assert pool.stats().active_workers == 3


def test_policy_that_recovers_is_followed_again(make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    policy = Script(1)
    policy.error = LookupError("no such load")
    pool = make_pool(8, policy=policy)
    for _ in range(8):
        pool.submit(gate.hold)
    policy.wait_until_asked(2)
    policy.answer, policy.error = 5, None
    gate.wait_until_held(5)

    assert pool.stats().active_workers == 5


@pytest.mark.parametrize("answer", [None, 2.5, "many"])
def test_policy_that_answers_no_number_is_logged_and_ignored(
    make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture, answer: object
) -> None:
    class Nonsense(Script):
        def target(self, load: LoadSample, /) -> int:
            super().target(load)
            return answer  # type: ignore[return-value]  # that is the point

    policy = Nonsense(0)
    pool = make_pool(8, min_workers=2, policy=policy)
    for _ in range(4):
        pool.submit(gate.hold)
    policy.wait_until_asked(3)
    eventually(lambda: "the last target stands" in caplog.text, "the record, which another thread writes than that which asks")

    assert pool.stats().active_workers == 2
    assert caplog.text.count("the last target stands") == 1


@pytest.mark.parametrize("answer, workers", [(-5, 2), (0, 2), (3, 3), (1000, 4)])
def test_answer_of_a_policy_is_clamped_to_the_bounds(make_pool: MakePool, gate: Gate, answer: int, workers: int) -> None:
    policy = Script(answer)
    pool = make_pool(4, min_workers=2, policy=policy)
    for _ in range(8):
        pool.submit(gate.hold)
    gate.wait_until_held(workers)
    policy.wait_until_asked(3)

    assert pool.stats().active_workers == workers


def test_idle_workers_that_a_policy_no_longer_wants_leave(make_pool: MakePool, ledger: Ledger) -> None:
    policy = Script(3)
    pool = make_pool(3, policy=policy, on_create=ledger.create, on_destroy=ledger.destroy)
    with Gate() as busy, Gate() as idle:
        futures = [pool.submit(idle.hold) for _ in range(2)]
        idle.wait_until_held(2)
        pool.submit(busy.hold)
        busy.wait_until_held()
        policy.answer = 1
        policy.wait_until_asked(3)
        still_there = pool.stats().active_workers
        idle.release()
        for future in futures:
            future.result()
        ledger.wait_until_destroyed(2)

    assert still_there == 3
    assert len(ledger.alive) <= 1


def test_backlog_policy_grows_with_the_queue_and_shrinks_back_to_the_base(make_pool: MakePool, gate: Gate) -> None:
    policy = BacklogPolicy(threshold=2, step=2, interval=0.005)
    pool = make_pool(5, min_workers=1, policy=policy, thread_name_prefix="elastic")
    at_first = len(threads_of("elastic"))
    futures = [pool.submit(gate.hold) for _ in range(12)]
    gate.wait_until_held(5)
    at_most = len(threads_of("elastic"))
    gate.release()
    for future in futures:
        future.result()
    eventually(lambda: len(threads_of("elastic")) == 1, "the pool to shrink back to its base")

    assert (at_first, at_most) == (1, 5)
    assert pool.stats().active_workers == 1


def test_tick_goes_on_for_a_task_that_comes_as_it_pauses(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. The policy has been asked, and everything is at rest. 2. Tasks are queued, and find no alarm. 3. The tick pauses.
    policy = Script(1)
    pool = make_pool(4, min_workers=1, policy=policy)
    at_rest: Callable[[], bool] = step_of(pool, Step.AT_REST)
    alarm = alarm_of(pool)
    came: list[object] = []

    def be_late() -> bool:
        rests = at_rest()
        if rests and not came:
            came.append(pool.submit(gate.hold))
            gate.wait_until_held()  # the only worker will not look for others to wake
            came.append(pool.submit(gate.hold))
        return rests

    work_until_the_policy_is_asked(pool, policy)
    eventually(lambda: alarm in idle_stack(pool), "the tick to pause")
    replace_step(pool, Step.AT_REST, be_late)
    pool.submit(int).result()  # so the tick goes on, and comes to rest again
    eventually(lambda: len(came) == 2, "the tick to find everything at rest")
    policy.wait_until_asked(2)

    assert policy.loads[-1].queued == 1


def test_tick_resumes_though_ctrl_c_came_between_the_alarm_and_its_ring(make_pool: MakePool, turns: Turns, gate: Gate) -> None:
    # 1. A submitter takes the alarm off the stack. 2. Ctrl-C comes before it rings. 3. The timer is woken for another
    # reason: it looks for itself whether there is work.
    policy = Script(1)
    pool = make_pool(4, min_workers=1, policy=policy)
    work_until_the_policy_is_asked(pool, policy)
    turns.wait_until_asleep()
    idle_stack(pool).remove(alarm_of(pool))
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool._core.timer.kick()
    policy.wait_until_asked(2)

    assert policy.loads[-1].busy == 1


def test_tick_that_resumed_by_itself_sets_no_second_alarm(make_pool: MakePool, turns: Turns) -> None:
    # As after a Ctrl-C, when the engine does not know whether the alarm was taken off the stack.
    policy = Script(1)
    pool = make_pool(4, min_workers=1, policy=policy)
    work_until_the_policy_is_asked(pool, policy)
    turns.wait_until_asleep()
    asked, before = policy.asked, len(turns.dues)
    core_of(pool).scaler.resume()
    eventually(lambda: len(turns.dues) > before and turns.dues[-1] is None, "the tick to go on, and to pause again")

    assert policy.asked > asked
    assert idle_stack(pool).count(alarm_of(pool)) == 1


def test_tasks_that_come_one_at_a_time_resume_the_tick_though_a_worker_lies_above_the_alarm(make_pool: MakePool) -> None:
    policy = Script(1)
    pool = make_pool(4, min_workers=1, policy=policy)
    pool.wait_ready()
    eventually(lambda: len(idle_stack(pool)) == 2, "the base worker on top of the alarm")

    pool.submit(int).result(DEADLINE)

    eventually(lambda: bool(policy.loads), "the policy to be asked")


def test_an_answer_is_clamped_to_the_bounds_that_hold_when_it_comes(make_pool: MakePool, gate: Gate) -> None:
    # 1. The policy is shown a load with at most 1 worker. 2. `resize` allows 3. 3. The policy answers 3.
    asked: list[int] = []

    class Growing:
        interval = 0.01

        def target(self, load: LoadSample, /) -> int:
            if not asked:
                pool.resize(max_workers=3)
            asked.append(load.max_workers)
            return 3 if len(asked) == 1 else load.target

    pool = make_pool(1, policy=Growing())
    for _ in range(3):
        pool.submit(gate.hold)

    gate.wait_until_held(3)
    assert asked[0] == 1
