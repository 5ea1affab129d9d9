"""The simulation against hand-made schedules, queueing theory, and the rules that it shares with the executor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasker_executor.policies import BacklogPolicy, Hysteresis, QueueWaitPolicy, RatePolicy, ScalingPolicy
from tasker_executor.simulation import Moment, Simulation, simulate
from tasker_executor.stats import LoadSample


class Script:
    """Gives prepared answers, the last one for ever, and remembers what it was shown."""

    def __init__(self, *answers: int, interval: float = 1.0) -> None:
        self.answers = list(answers)
        self.interval = interval
        self.samples: list[LoadSample] = []

    def target(self, load: LoadSample, /) -> int:
        self.samples.append(load)
        return self.answers[min(len(self.samples), len(self.answers)) - 1]


def poisson(rate: float, *, number: int, seed: int = 0) -> list[float]:
    """So many arrivals at random."""
    random = Random(f"arrivals {seed}")
    now = 0.0
    return [now := now + random.expovariate(rate) for _ in range(number)]


def evenly(rate: float, *, number: int, start: float = 0.0) -> list[float]:
    return [start + n / rate for n in range(number)]


def step_load() -> list[float]:
    """A minute of 20 tasks a second, 20 seconds of 200, a minute of 20, at random."""
    quiet, peak = poisson(20.0, number=1200), poisson(200.0, number=4000)
    return quiet + [60.0 + time for time in peak] + [80.0 + time for time in quiet]


# -- by hand --


def test_one_worker_takes_tasks_in_order_of_arrival() -> None:
    result = simulate(None, [0.0, 1.0, 1.5], [2.0, 1.0, 1.0], min_workers=1, max_workers=1)

    assert result.waits == (0.0, 1.0, 1.5)
    assert (result.completed, result.end, result.worker_seconds) == (3, 4.0, 4.0)
    assert result.mean_wait == pytest.approx(2.5 / 3)
    assert (result.p99_wait, result.max_wait) == (1.5, 1.5)
    assert (result.creations, result.peak_workers, result.flaps) == (1, 1, 0)


def test_priority_tasks_overtake_and_keep_their_own_order(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival,duration,lane\n0,10,normal\n1,1,normal\n2,1,priority\n3,1,normal\n4,1,priority\n")

    result = simulate(None, trace, max_workers=1)

    assert result.priority == (False, False, True, False, True)
    assert result.waits == (0.0, 11.0, 8.0, 10.0, 7.0)


def test_workers_start_on_demand_one_for_each_waiting_task() -> None:
    result = simulate(None, [0.0, 0.0, 0.0, 5.0], 1.0, max_workers=2, create_time=0.5)

    assert result.waits == (0.5, 0.5, 1.5, 0.0)
    assert result.creations == 2


def test_a_task_that_comes_while_enough_workers_are_on_their_way_starts_none() -> None:
    result = simulate(None, [0.0, 1.0, 2.0], [1.5, 1.0, 1.0], max_workers=9, min_workers=1, create_time=10.0)

    assert result.creations == 3  # the base, and one each for the tasks at 1 and 2: the first is taken by the base
    assert result.waits == (10.0, 10.0, 9.5)


def test_the_base_is_ready_before_the_first_task_if_there_is_time() -> None:
    result = simulate(None, [1.0], 1.0, min_workers=1, max_workers=1, create_time=0.5)

    assert result.waits == (0.0,)
    assert result.worker_seconds == 2.0


def test_a_worker_that_is_still_starting_costs_and_is_counted() -> None:
    result = simulate(Script(2), [0.0], 1.0, max_workers=2, create_time=3.0, until=4.0)

    assert result.worker_seconds == 4.0
    assert [moment.workers for moment in result.timeline] == [0, 1, 1, 1, 1, 1, 1]


def test_the_timeline_shows_each_question_and_the_rests() -> None:
    policy = Script(2, 2, 1, 1, 1)

    result = simulate(policy, [5.0, 5.0, 5.5, 20.0], 1.0, min_workers=1, max_workers=2)

    assert result.timeline == (  # a task waits at 5.05, and none at 20.05
        Moment(0.0, workers=1, busy=0, queued=0, oldest_wait=0.0, target=1),
        Moment(5.0, workers=1, busy=1, queued=0, oldest_wait=0.0, target=1),
        Moment(5.05, workers=2, busy=1, queued=1, oldest_wait=5.05 - 5.0, target=2),
        Moment(6.05, workers=2, busy=1, queued=0, oldest_wait=0.0, target=2),
        Moment(7.05, workers=1, busy=0, queued=0, oldest_wait=0.0, target=1),
        Moment(20.0, workers=1, busy=1, queued=0, oldest_wait=0.0, target=1),
        Moment(21.0, workers=1, busy=0, queued=0, oldest_wait=0.0, target=1),
    )
    assert result.worker_seconds == 21.0 + 2.0


def test_retires_idle_workers_only_and_never_the_base() -> None:
    """Three long tasks and a short one: one worker can go at once, two when their tasks are done, and two stay."""
    policy = Script(4, 0, interval=1.0)

    result = simulate(policy, [0.0] * 4, [1.5, 5.5, 5.5, 5.5], min_workers=2, max_workers=4, until=10.0)

    assert [moment.workers for moment in result.timeline] == [2, 2, 4, 4, 3, 3, 3, 3, 2, 2]  # at 0.05, 1.05, and so on


def test_zero_workers_wanted_still_runs_the_tasks() -> None:
    result = simulate(Script(0), [0.0, 0.0, 10.0], 1.0, max_workers=4)

    assert result.waits == (0.0, 1.0, 0.0)
    assert result.timeline[-1].workers == 0


@pytest.mark.parametrize(
    "answers, flaps",
    [
        ([1, 3, 5, 7], 0),
        ([3, 5, 3], 1),
        ([3, 1, 3, 1], 3),
        ([3, 3, 3, 3, 3, 1], 0),  # turned round after 5 s
        ([3, 3, 3, 3, 1], 1),  # after 4 s
        ([9, 99, 1], 1),  # 9 is the maximum
    ],
)
def test_flaps_are_turns_of_the_target_within_the_window(answers: list[int], flaps: int) -> None:
    assert simulate(Script(*answers), [0.0], 20.0, min_workers=1, max_workers=9, flap_window=5.0).flaps == flaps


# -- against theory --


def erlang_c_wait(workers: int, rate: float, service_rate: float) -> float:
    """The mean wait in an M/M/c queue (A. K. Erlang, 1917)."""
    load = rate / service_rate
    last = load**workers / math.factorial(workers) * workers / (workers - load)
    probability = last / (sum(load**n / math.factorial(n) for n in range(workers)) + last)
    return probability / (workers * service_rate - rate)


@pytest.mark.parametrize("workers, utilization", [(1, 0.5), (2, 0.7), (5, 0.8)])
def test_mean_wait_of_a_fixed_pool_is_that_of_erlang(workers: int, utilization: float) -> None:
    """Poisson arrivals, exponential service. The theory is asked about the load as drawn, whose rates differ a little."""
    random = Random("service times")
    arrivals = poisson(utilization * workers * 10.0, number=200_000)
    durations = [random.expovariate(10.0) for _ in arrivals]

    result = simulate(None, arrivals, durations, min_workers=workers, max_workers=workers)

    rate, service_rate = len(arrivals) / arrivals[-1], len(durations) / sum(durations)
    assert result.mean_wait == pytest.approx(erlang_c_wait(workers, rate, service_rate), rel=0.05)


def test_mean_wait_with_equal_service_times_is_half_of_that() -> None:
    """By Pollaczek and Khinchine: an M/D/1 queue waits half as long as an M/M/1 queue."""
    result = simulate(None, poisson(5.0, number=100_000), 0.1, max_workers=1)

    assert result.mean_wait == pytest.approx(erlang_c_wait(1, 5.0, 10.0) / 2, rel=0.05)


def test_an_hour_of_load_is_no_trouble() -> None:
    result = simulate(RatePolicy(), poisson(50.0, number=180_000), 0.1, min_workers=2, max_workers=32)

    assert result.completed == 180_000
    assert result.end == pytest.approx(3600, rel=0.02)


# -- what policies make of it --


def calm_backlog() -> ScalingPolicy:
    return Hysteresis(BacklogPolicy(), shrink_after=30)


def rate_or_wait() -> ScalingPolicy:
    return RatePolicy() | QueueWaitPolicy()


POLICIES: list[Callable[[], ScalingPolicy]] = [BacklogPolicy, RatePolicy, QueueWaitPolicy, calm_backlog, rate_or_wait]


@pytest.mark.parametrize("make", POLICIES)
def test_policies_follow_a_step_and_come_back(make: Callable[[], ScalingPolicy]) -> None:
    fixed = simulate(None, step_load(), 0.1, min_workers=32, max_workers=32)

    result = simulate(make(), step_load(), 0.1, min_workers=2, max_workers=32)

    peak = [moment.workers for moment in result.timeline if 70.0 < moment.time < 80.0]
    assert min(peak) >= 15  # 200/s x 0.1 s are 20 on average
    assert result.p99_wait < 2.0
    assert result.timeline[-1].workers == 2
    assert result.worker_seconds < fixed.worker_seconds / 2


@pytest.mark.parametrize("make", POLICIES)
def test_policies_settle_under_even_arrivals(make: Callable[[], ScalingPolicy]) -> None:
    result = simulate(make(), evenly(49.0, number=49 * 60), 0.1, min_workers=1, max_workers=32)

    later = {moment.target for moment in result.timeline if 30.0 < moment.time < 59.0}
    assert max(later) - min(later) <= 1


@pytest.mark.parametrize("policy", [BacklogPolicy(), RatePolicy(), QueueWaitPolicy()])
def test_hysteresis_saves_most_creations_at_a_steady_random_load(policy: ScalingPolicy) -> None:
    arrivals = poisson(50.0, number=30_000)

    plain = simulate(policy, arrivals, 0.1, min_workers=2, max_workers=32)
    calm = simulate(Hysteresis(policy, shrink_after=30), arrivals, 0.1, min_workers=2, max_workers=32)

    assert calm.creations < plain.creations / 4
    assert calm.flaps < plain.flaps / 4
    assert calm.mean_wait <= plain.mean_wait


def test_rate_policy_gets_rid_of_what_an_outage_left() -> None:
    """No worker for 20 seconds, then a target of exactly what keeps up would never catch up."""
    arrivals = evenly(50.0, number=50 * 120)

    result = simulate(RatePolicy(utilization=1.0), arrivals, 0.1, min_workers=1, max_workers=32, create_time=20.0)

    assert max(moment.queued for moment in result.timeline) >= 1000
    assert max(moment.queued for moment in result.timeline if moment.time > 90.0) < 10


# -- what policies are shown --


def test_samples_show_the_load_as_the_executor_would() -> None:
    policy = Script(2, interval=1.0)

    simulate(policy, [0.0, 0.0, 0.0, 0.5], [1.75, 2.0, 3.0, 3.0], min_workers=1, max_workers=3, create_time=0.5)

    assert policy.samples[1] == LoadSample(
        time=1.05,
        workers=2,
        busy=2,
        idle=0,
        queued_normal=2,
        queued_priority=0,
        oldest_wait=1.05,
        arrival_rate=4 / 1.05,
        completion_rate=0.0,
        mean_service_time=0.0,
        mean_create_time=0.5,
        create_failures=0,
        min_workers=1,
        max_workers=3,
        target=2,
    )
    assert policy.samples[3].completion_rate == pytest.approx(2 / 3.05)  # they were done at 2.25 and at 2.55
    assert policy.samples[3].mean_service_time == (1.75 + 2.0) / 2
    assert policy.samples[0].target == 1


def test_rates_are_of_the_last_five_seconds_in_whole_ones() -> None:
    policy = Script(1, interval=0.75)

    simulate(policy, [*evenly(10.0, number=100), 30.0], 0.01, max_workers=1)

    rates = {load.time: load.arrival_rate for load in policy.samples}
    assert rates[0.75] == pytest.approx(8 / 1.0)  # over one second at least
    assert rates[1.5] == pytest.approx(16 / 1.5)  # since the start
    assert rates[9.0] == pytest.approx(41 / 4.0)  # since 5.0
    assert rates[9.75] == pytest.approx(48 / 4.75)  # since 5.0
    assert all(load.mean_service_time == pytest.approx(0.01) for load in policy.samples)


def test_priority_tasks_are_shown_in_their_lane() -> None:
    policy = Script(1, interval=1.0)

    simulate(policy, [0.0, 0.0, 0.0], 1.5, max_workers=1, priority_share=1.0)

    assert (policy.samples[0].queued_normal, policy.samples[0].queued_priority) == (0, 2)


def test_questions_pause_at_rest_and_go_on_one_interval_after_the_next_arrival() -> None:
    policy = Script(1, interval=1.0)

    simulate(policy, [2.5, 100.25], 0.5, min_workers=1, max_workers=1)

    assert [load.time for load in policy.samples] == [3.5, 101.25]


def test_the_first_question_after_a_pause_comes_soon_if_a_task_waits_and_an_interval_after_the_last() -> None:
    policy = Script(1, interval=1.0)

    simulate(policy, [2.5, 2.5, 4.6, 4.6], [0.5, 0.5, 0.1, 1.0], min_workers=1, max_workers=1)

    assert [load.time for load in policy.samples] == pytest.approx([2.55, 3.55, 4.65, 5.65, 6.65])


def test_a_task_that_comes_right_after_the_last_question_of_a_burst_does_not_have_the_policy_asked_at_once() -> None:
    policy = Script(1, interval=1.0)

    simulate(policy, [0.0, 0.0, 1.2, 1.2], [0.4, 0.4, 1.0, 1.0], min_workers=1, max_workers=1)

    assert [load.time for load in policy.samples] == pytest.approx([0.05, 1.05, 2.05, 3.05, 4.05])


def test_questions_go_on_while_workers_above_the_base_are_left() -> None:
    policy = Script(1, 1, 1, 0)

    result = simulate(policy, [0.0], 0.5, max_workers=1)

    assert [load.time for load in policy.samples] == [1.0, 2.0, 3.0, 4.0]
    assert result.end == 4.0


# -- properties --


def no_policy() -> None:
    return None


@given(
    arrivals=st.lists(st.floats(min_value=0.0, max_value=20.0), max_size=60),
    policy=st.sampled_from([*POLICIES, no_policy]),
    bounds=st.tuples(st.integers(0, 5), st.integers(5, 12)),
    create_time=st.sampled_from([0.0, 0.03, 2.0]),
    priority_share=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 100),
)
def test_any_simulation_keeps_the_rules(
    arrivals: list[float],
    policy: Callable[[], ScalingPolicy | None],
    bounds: tuple[int, int],
    create_time: float,
    priority_share: float,
    seed: int,
) -> None:
    minimum, maximum = bounds
    durations = [Random(seed + n).uniform(0.0, 2.0) for n in range(len(arrivals))]

    def run() -> Simulation:
        return simulate(
            policy(),
            arrivals,
            durations,
            min_workers=minimum,
            max_workers=maximum,
            create_time=create_time,
            priority_share=priority_share,
            seed=seed,
        )

    result = run()
    timeline = result.timeline
    assert result == run()
    assert result.completed == len(result.waits) == len(result.priority) == len(arrivals)
    assert all(wait >= 0.0 for wait in result.waits)
    assert result.worker_seconds >= sum(durations) * (1 - 1e-9)
    assert minimum <= result.peak_workers <= min(maximum, result.creations)
    assert [moment.time for moment in timeline] == sorted(moment.time for moment in timeline)
    assert timeline[-1].time == result.end
    for moment in timeline:
        assert minimum <= moment.workers <= maximum
        assert minimum <= moment.target <= maximum
        assert 0 <= moment.busy <= moment.workers
        assert (moment.queued > 0) >= (moment.oldest_wait > 0.0)
        assert moment.queued == 0 or moment.workers > 0
    assert (timeline[-1].busy, timeline[-1].queued) == (0, 0)


def test_another_seed_is_another_load_and_the_priority_share_leaves_it_alone() -> None:
    def waits(seed: int, share: float = 0.0) -> Simulation:
        return simulate(
            None, evenly(9.0, number=500), lambda random: random.expovariate(10), max_workers=1, seed=seed, priority_share=share
        )

    assert waits(1) == waits(1)
    assert waits(1).waits != waits(2).waits
    assert waits(1).end == waits(1, share=0.5).end
    assert 200 < sum(waits(1, share=0.5).priority) < 300


def test_priority_tasks_wait_less() -> None:
    result = simulate(None, poisson(9.0, number=5000), 0.1, max_workers=1, priority_share=0.2)

    waits = {lane: [w for w, p in zip(result.waits, result.priority, strict=True) if p is lane] for lane in (True, False)}
    assert sum(waits[True]) / len(waits[True]) < sum(waits[False]) / len(waits[False]) / 2


def test_a_result_is_frozen_and_short_to_print() -> None:
    result = simulate(None, evenly(10.0, number=100), 0.05, max_workers=1)

    assert str(result) == (
        "100 tasks by 10.0 s: mean wait 0.000 s, p99 0.000 s | 10 worker-seconds, peak 1, created 1, flaps 0"
    )
    assert "timeline" not in repr(result)
    with pytest.raises(FrozenInstanceError):
        result.flaps = 7  # type: ignore[misc]  # that is the test


# -- beginning and end --


@pytest.mark.parametrize("policy", [None, BacklogPolicy()])
def test_no_tasks_are_no_trouble(policy: ScalingPolicy | None) -> None:
    result = simulate(policy, [], 1.0, min_workers=2, max_workers=4)

    assert (result.completed, result.mean_wait, result.p99_wait, result.max_wait, result.end) == (0, 0.0, 0.0, 0.0, 0.0)
    assert simulate(policy, [], 1.0, min_workers=2, max_workers=4, until=10.0).worker_seconds == 20.0


def test_the_base_costs_until_the_end_asked_for() -> None:
    result = simulate(BacklogPolicy(), [0.0], 1.0, min_workers=2, max_workers=4, until=100.0)

    assert (result.end, result.worker_seconds) == (100.0, 200.0)


def test_the_last_task_is_done_whatever_end_was_asked_for() -> None:
    assert simulate(None, [0.0], 5.0, max_workers=1, until=1.0).end == 5.0


def test_a_policy_that_does_not_come_back_to_the_base_is_given_a_minute() -> None:
    assert simulate(Script(3), [0.0, 0.0], 1.0, max_workers=4).end == 61.05


@pytest.mark.parametrize("start, worker_seconds", [(0.0, 1001.0), (900.0, 101.0), (None, 1.0)])
def test_the_executor_starts_when_it_is_told_to(start: float | None, worker_seconds: float) -> None:
    result = simulate(None, [1000.0], 1.0, min_workers=1, max_workers=1, start=start)

    assert (result.end, result.worker_seconds) == (1001.0, worker_seconds)


# -- the load --


def test_arrivals_in_any_order_keep_their_service_times() -> None:
    result = simulate(None, [2.0, 0.0, 1.0], [7.0, 1.5, 0.5], max_workers=1)

    assert result.waits == (0.0, 0.5, 0.0)
    assert result.end == 9.0


def two_seconds(random: Random) -> float:
    return 2.0


@pytest.mark.parametrize(
    "service_time",
    [2, 2.0, [2.0, 2.0, 2.0], iter([2.0] * 99), two_seconds],
    ids=["int", "float", "list", "longer than needed", "function"],
)
def test_service_times_have_many_forms(service_time: Any) -> None:
    assert simulate(None, iter([0.0, 10.0, 20.0]), service_time, max_workers=1).end == 22.0


@pytest.mark.parametrize(
    "text",
    [
        "1.0\n2.5\n0.5\n",
        "# recorded on Monday\n\n1.0\n  \n2.5\n0.5",
        "arrival\n1.0\n2.5\n0.5\n",
        "lane,Arrival\nnormal,1.0\nnormal,2.5\nnormal,0.5\n",
        "\ufeffarrival,wait,duration,lane,outcome\n1.0,0,9,normal,completed\n2.5,0,9,normal,failed\n0.5,0,,normal,cancelled\n",
    ],
    ids=["a number a line", "comments and empty lines", "one column", "two columns", "a recorded trace with a byte order mark"],
)
@pytest.mark.parametrize("form", [str, Path])
def test_arrivals_are_read_from_a_file(tmp_path: Path, text: str, form: Callable[[Path], str | Path]) -> None:
    path = tmp_path / "load"
    path.write_text(text, encoding="utf-8")

    result = simulate(None, form(path), 0.25, min_workers=1, max_workers=1)

    assert result.completed == 3
    assert [moment.time for moment in result.timeline if moment.busy] == pytest.approx(
        [0.5, 0.6, 0.7, 1.0, 1.1, 1.2, 2.5, 2.6, 2.7]
    )


def test_a_recorded_trace_says_how_long_tasks_ran_and_in_which_lane(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "arrival,wait,duration,lane,outcome\n"
        "1.0,0.0,0.5,priority,completed\n"
        "0.0,0.0,3.0,normal,failed\n"
        "0.5,2.0,,normal,cancelled\n"
        "2.0,1.0,0.25,normal,completed\n"
    )

    result = simulate(None, trace, max_workers=1)

    assert result.priority == (False, True, False)
    assert result.waits == (0.0, 2.0, 1.5)
    assert result.end == 3.75
    assert simulate(None, trace, max_workers=1, priority_share=1.0).priority == (True, True, True)


def test_an_empty_file_is_no_load(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()

    assert simulate(None, path, max_workers=1).completed == 0


@pytest.mark.parametrize(
    "text, message",
    [
        ("1.0\ntwo\n", "line 2: arrival must be a number, not 'two'"),
        ("# text\n\n1.0\n-2.0\n", "line 4: arrival must be a finite number, at least 0.0, not -2.0"),
        ("nan\n", "line 1: arrival must be a number, not nan"),
        ("inf\n", "line 1: arrival must be a finite number, at least 0.0, not inf"),
        ("1.0,2.0\n", "line 1: a header with a column 'arrival' is needed, not '1.0,2.0'"),
        ("time,duration\n1.0,2.0\n", "line 1: a header with a column 'arrival' is needed, not 'time,duration'"),
        ("arrival,duration\n1.0\n", "line 2: 2 columns are needed, not '1.0'"),
        ("arrival,duration\n1.0,x\n", "line 2: duration must be a number, not 'x'"),
        ("arrival,duration\n1.0,-1\n", "line 2: duration must be a finite number, at least 0.0, not -1.0"),
        ("arrival,duration\n,1\n", "line 2: arrival must be a number, not ''"),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "load.csv"
    path.write_text(text)

    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole message is compared
        simulate(None, path, max_workers=1)

    assert str(caught.value) == f"{path}, {message}"


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        simulate(None, tmp_path / "nowhere", 1.0, max_workers=1)


@pytest.mark.parametrize("arrivals", [[0.0], "arrivals"])
def test_service_times_must_come_from_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrivals: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("arrivals").write_text("0.0\n")

    with pytest.raises(TypeError, match=r"service_time is needed unless arrivals is .* a column 'duration'"):
        simulate(None, arrivals, max_workers=1)


NAN = float("nan")


def minus_one(random: Random) -> float:
    return -1.0


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"policy": 5}, TypeError, "policy must have an interval and a target(load); 5 has not"),
        (
            {"policy": RatePolicy},
            TypeError,
            "policy must have an interval and a target(load); <class 'tasker_executor.policies.RatePolicy'> has not",
        ),
        ({"arrivals": 5}, TypeError, "arrivals must be numbers or the path of a file, not 5"),
        ({"arrivals": [1.0, "2"]}, TypeError, "arrivals[1] must be a number, not '2'"),
        ({"arrivals": [1.0, -2.0]}, ValueError, "arrivals[1] must be a finite number, at least 0.0, not -2.0"),
        ({"arrivals": [NAN]}, ValueError, "arrivals[0] must be a number, not nan"),
        ({"service_time": -1}, ValueError, "service_time must be a finite number, at least 0.0, not -1"),
        ({"service_time": "1"}, TypeError, "service_time must be a number, not '1'"),
        ({"service_time": True}, TypeError, "service_time must be a number, not True"),
        ({"service_time": [1.0, NAN]}, ValueError, "service_time[1] must be a number, not nan"),
        ({"service_time": [1.0]}, ValueError, "service_time must have a number for each of the 2 arrivals, not 1"),
        ({"service_time": minus_one}, ValueError, "service_time(random) must be a finite number, at least 0.0, not -1.0"),
        ({"min_workers": -1}, ValueError, "min_workers must be at least 0, not -1"),
        ({"min_workers": 1.5}, TypeError, "min_workers must be an int, not 1.5"),
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": 2, "min_workers": 3}, ValueError, "min_workers=3 is more than max_workers=2"),
        ({"max_workers": True}, TypeError, "max_workers must be an int, not True"),
        ({"create_time": -0.1}, ValueError, "create_time must be a finite number, at least 0.0, not -0.1"),
        ({"priority_share": 1.1}, ValueError, "priority_share must be at most 1.0, not 1.1"),
        ({"priority_share": NAN}, ValueError, "priority_share must be a number, not nan"),
        ({"start": 0.5}, ValueError, "start must not be later than the first arrival at 0.0, not 0.5"),
        ({"start": "now"}, TypeError, "start must be a number, not 'now'"),
        ({"until": float("inf")}, ValueError, "until must be a finite number, at least 0.0, not inf"),
        ({"flap_window": -1}, ValueError, "flap_window must not be negative, not -1"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"policy": None, "arrivals": [0.0, 1.0], "service_time": 1.0, "max_workers": 4}

    with pytest.raises(error) as caught:
        simulate(**(arguments | changes))

    assert str(caught.value) == message


def test_a_policy_that_raises_is_not_silenced() -> None:
    class Broken(Script):
        def target(self, load: LoadSample, /) -> int:
            raise RuntimeError("no idea")

    with pytest.raises(RuntimeError, match="no idea"):
        simulate(Broken(), [0.0], 5.0, max_workers=1)


@pytest.mark.parametrize("answer", [None, 2.5, "2"])
def test_an_answer_that_is_no_number_of_workers_is_refused(answer: Any) -> None:
    with pytest.raises(TypeError, match=f"answered {answer!r}, which is no number of workers"):
        simulate(Script(answer), [0.0], 5.0, max_workers=1)


@pytest.mark.parametrize("interval", [0.0, -1.0, NAN])
def test_an_interval_that_would_stop_time_is_refused(interval: float) -> None:
    with pytest.raises(ValueError, match=r"^policy\.interval must be"):
        simulate(Script(1, interval=interval), [0.0], 5.0, max_workers=1)
