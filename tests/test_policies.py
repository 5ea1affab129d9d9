"""Scaling policies are pure, so tables and properties say all there is to say about them."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasker_executor.policies import (
    BacklogPolicy,
    Hysteresis,
    Maximum,
    Minimum,
    QueueWaitPolicy,
    RatePolicy,
    ScalingPolicy,
    ask,
    check_policy,
    interval_of,
)
from tasker_executor.stats import LoadSample

AT_REST = LoadSample(
    time=100.0,
    workers=2,
    busy=0,
    idle=2,
    queued_normal=0,
    queued_priority=0,
    oldest_wait=0.0,
    arrival_rate=0.0,
    completion_rate=0.0,
    mean_service_time=0.1,
    mean_create_time=0.01,
    create_failures=0,
    min_workers=2,
    max_workers=16,
    target=2,
)


def sample(
    *, busy: int = 0, queued: int = 0, target: int = 2, wait: float = 0.0, rate: float = 0.0, service: float = 0.1
) -> LoadSample:
    """A load on as many workers as are wanted, at least those that are busy."""
    workers = max(target, busy)
    return replace(
        AT_REST,
        workers=workers,
        busy=busy,
        idle=workers - busy,
        queued_normal=queued,
        oldest_wait=wait,
        arrival_rate=rate,
        mean_service_time=service,
        target=target,
    )


def clamped(answer: int, load: LoadSample) -> int:
    return min(max(load.min_workers, answer), load.max_workers)


NO_POLICY = "must have an interval and a target(load);"


class Index:
    """A whole number that is no int, as NumPy has them."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value


class Script:
    """Gives prepared answers, one after the other."""

    def __init__(self, *answers: Any, interval: Any = 0.1) -> None:
        self._answers: Iterator[int] = iter(answers)
        self._interval: float = interval

    @property
    def interval(self) -> float:
        return self._interval

    def target(self, load: LoadSample, /) -> int:
        return next(self._answers)

    def __repr__(self) -> str:
        return "Script()"


# -- each policy by its table --


@pytest.mark.parametrize(
    "load, expected",
    [
        pytest.param(sample(busy=2, queued=5), 4, id="the threshold is reached: one step up"),
        pytest.param(sample(busy=2, queued=500), 4, id="one step, however long the queue"),
        pytest.param(sample(busy=4, queued=5, target=4), 6, id="and another step"),
        pytest.param(sample(busy=2, queued=5, target=6), 7, id="no more than there are tasks"),
        pytest.param(sample(busy=2, queued=5, target=12), 12, id="enough workers are on their way"),
        pytest.param(sample(busy=4, queued=4, target=4), 4, id="below the threshold, all busy: as before"),
        pytest.param(sample(busy=3, target=9), 7, id="one step down"),
        pytest.param(sample(busy=3, queued=4, target=9), 8, id="waiting tasks will need the idle workers"),
        pytest.param(sample(busy=1, target=3), 2, id="a reserve stays: 1 for 1"),
        pytest.param(sample(busy=4, target=7), 6, id="2 for 4"),
        pytest.param(sample(busy=9, target=12), 12, id="3 for 9"),
        pytest.param(sample(busy=9, target=4), 9, id="nor if busy workers outnumber the target"),
        pytest.param(sample(busy=9, queued=9, target=2), 9, id="nor on the way up"),
        pytest.param(sample(target=9), 7, id="at rest, step by step"),
        pytest.param(sample(target=2), 0, id="the base is the executor's business"),
    ],
)
def test_backlog_policy(load: LoadSample, expected: int) -> None:
    assert BacklogPolicy(threshold=5, step=2).target(load) == expected


@pytest.mark.parametrize(
    "load, expected",
    [
        pytest.param(sample(busy=2, rate=40.0), 5, id="40/s x 0.1 s at 80 %"),
        pytest.param(sample(busy=2, rate=40.1), 6, id="rounded up"),
        pytest.param(sample(busy=2, rate=24.0), 3, id="3 is not a hair more than 3"),
        pytest.param(sample(busy=2, queued=200, rate=40.0), 10, id="a backlog of 200, gone in 5 s, is 40/s more"),
        pytest.param(
            sample(busy=2, queued=3, rate=0.0, service=60.0), 5 - 2, id="a waiting task needs one worker, long as it is"
        ),
        pytest.param(sample(busy=1, rate=0.2, service=1e-5), 1, id="a stream of errors that fail fast is next to nothing"),
        pytest.param(sample(busy=1, rate=2.0, target=16), 1, id="down at once when the arrivals are few"),
        pytest.param(sample(busy=1, rate=20.0, target=4), 3, id="down with half a worker to spare"),
        pytest.param(sample(busy=1, rate=20.1, target=4), 4, id="not down with less"),
        pytest.param(sample(busy=9, rate=2.0, target=16), 9, id="but not below what is busy"),
        pytest.param(sample(rate=40.0, target=2), 2, id="at rest never up, though the window still shows arrivals"),
        pytest.param(sample(rate=20.0, target=9), 3, id="at rest down with the window"),
        pytest.param(sample(target=9), 0, id="at rest for longer than the window"),
        pytest.param(sample(busy=16, rate=1e300, service=1e300), 16, id="more than a float can hold"),
        pytest.param(sample(busy=2, queued=50, service=0.0), 4, id="service time unknown: double"),
        pytest.param(sample(queued=50, service=0.0, target=0), 2, id="double what is nothing"),
        pytest.param(sample(busy=2, queued=1, service=0.0), 3, id="but no more than there are tasks"),
        pytest.param(sample(busy=2, service=0.0, target=4), 2, id="service time unknown, nothing waits"),
    ],
)
def test_rate_policy(load: LoadSample, expected: int) -> None:
    assert RatePolicy(utilization=0.8, window=5.0).target(load) == expected


@pytest.mark.parametrize("utilization", [0.5, 0.8, 1.0])
def test_rate_policy_works_off_a_backlog_that_built_up_before(utilization: float) -> None:
    """With a utilization of 1 the workers that keep up with the arrivals would keep the backlog, too."""
    policy = RatePolicy(utilization=utilization, window=5.0)
    backlog, target, rate, service = 1000.0, 5, 50.0, 0.1

    for _ in range(600):
        load = sample(busy=target, queued=int(backlog), target=target, rate=rate, service=service)
        target = min(policy.target(load), 50)
        backlog = max(0.0, backlog + (rate - target / service) * policy.interval)

    assert backlog < 10


@pytest.mark.parametrize(
    "load, expected",
    [
        pytest.param(sample(busy=2, queued=9, wait=0.06), 4, id="late: double"),
        pytest.param(sample(busy=4, queued=9, wait=3.0, target=4), 8, id="double, however late"),
        pytest.param(sample(busy=4, queued=2, wait=3.0, target=4), 6, id="no more than there are tasks"),
        pytest.param(sample(busy=1, queued=1, wait=3.0, target=1), 2, id="one at least"),
        pytest.param(sample(busy=2, queued=9, wait=0.06, target=12), 12, id="enough workers are on their way"),
        pytest.param(sample(busy=2, queued=9, wait=0.05), 2, id="just in time: as before"),
        pytest.param(sample(busy=2, queued=1, wait=0.01, target=5), 5, id="somebody waits: not down either"),
        pytest.param(sample(busy=2, target=5), 4, id="nobody waits: one fewer"),
        pytest.param(sample(busy=4, target=6), 6, id="a reserve stays: 2 for 4"),
        pytest.param(sample(busy=7, target=5), 7, id="nor if busy workers outnumber the target"),
        pytest.param(sample(target=1), 0, id="the base is the executor's business"),
    ],
)
def test_queue_wait_policy(load: LoadSample, expected: int) -> None:
    assert QueueWaitPolicy(target_wait=0.05).target(load) == expected


@pytest.mark.parametrize("target, expected", [(2, 3), (10, 15), (11, 16)])
def test_queue_wait_policy_grows_by_the_factor_given(target: int, expected: int) -> None:
    load = sample(busy=target, queued=50, wait=1.0, target=target)

    assert QueueWaitPolicy(growth=1.5).target(load) == expected


# -- hysteresis --


def answers(policy: ScalingPolicy, number: int, target: int) -> list[int]:
    """What the policy answers in a row when it is followed, from `target` on."""
    given_answers: list[int] = []
    for _ in range(number):
        target = policy.target(sample(busy=1, target=target))
        given_answers.append(target)
    return given_answers


@pytest.mark.parametrize(
    "script, expected",
    [
        pytest.param([9, 12], [9, 12], id="up at once"),
        pytest.param([3, 3, 3], [8, 8, 3], id="down at the third"),
        pytest.param([3, 3, 8, 3, 3, 3], [8, 8, 8, 8, 8, 3], id="an equal answer starts the count again"),
        pytest.param([3, 3, 9, 3, 3, 3], [8, 8, 9, 9, 9, 3], id="a larger one, too"),
        pytest.param([3, 6, 4], [8, 8, 6], id="down to the largest of the three"),
        pytest.param([3, 3, 3, 2, 2, 2], [8, 8, 3, 3, 3, 2], id="and three more for the next step"),
    ],
)
def test_hysteresis(script: list[int], expected: list[int]) -> None:
    policy = Hysteresis(Script(*script), shrink_after=3)

    assert answers(policy, len(script), target=8) == expected


def test_hysteresis_of_one_changes_nothing() -> None:
    script = [3, 9, 2, 7]

    assert answers(Hysteresis(Script(*script), shrink_after=1), 4, target=8) == script


def test_hysteresis_does_not_grow_back_after_a_resize() -> None:
    policy = Hysteresis(Script(7, 3), shrink_after=2)
    policy.target(sample(target=8))

    assert policy.target(sample(target=4)) == 4


def test_hysteresis_stands_by_its_answer_until_it_is_followed() -> None:
    policy = Hysteresis(Script(3, 3, 3, 3), shrink_after=3)

    assert [policy.target(sample(target=8)) for _ in range(4)] == [8, 8, 3, 3]


def test_hysteresis_has_the_interval_of_the_policy_it_follows() -> None:
    assert Hysteresis(BacklogPolicy(interval=2.5)).interval == 2.5


# -- combinations --


def test_maximum_and_minimum_choose_among_the_answers() -> None:
    assert Maximum(Script(3), Script(7), Script(5)).target(AT_REST) == 7
    assert Minimum(Script(3), Script(7), Script(5)).target(AT_REST) == 3


def test_operators_combine_with_any_policy_on_either_side() -> None:
    backlog, script = BacklogPolicy(), Script()

    assert (backlog | script).policies == (backlog, script)
    assert (script | backlog).policies == (script, backlog)
    assert (backlog & script).policies == (backlog, script)
    assert (script & backlog).policies == (script, backlog)
    assert isinstance(backlog | script, Maximum)
    assert isinstance(script & backlog, Minimum)


def test_chains_of_one_operator_are_flat() -> None:
    a, b, c = BacklogPolicy(), RatePolicy(), QueueWaitPolicy()

    assert (a | b | c).policies == (a, b, c)
    assert (a | (b | c)).policies == (a, b, c)
    assert (a & b & c).policies == (a, b, c)
    assert len((a | (b & c)).policies) == 2


def test_a_combination_asks_every_member_each_time() -> None:
    policy = Maximum(Script(9, 9, 1, 1), Hysteresis(Script(3, 3, 3, 3), shrink_after=3))

    assert answers(policy, 4, target=8) == [9, 9, 3, 3]


def test_a_combination_has_the_smallest_interval() -> None:
    assert (BacklogPolicy(interval=2.0) | Script(interval=0.5)).interval == 0.5


# -- asking a policy --


@pytest.mark.parametrize(
    "answer, asked", [(4, 4), (1, 2), (-(10**30), 2), (16, 16), (17, 16), (10**30, 16), (Index(7), 7), (Index(1), 2)]
)
def test_an_answer_is_an_int_within_the_bounds(answer: Any, asked: int) -> None:
    wanted = ask(Script(answer), AT_REST)

    assert (wanted, type(wanted)) == (asked, int)


@pytest.mark.parametrize("answer", [True, False, None, 2.0, "2", math.inf, Decimal(2)])
def test_an_answer_that_is_no_whole_number_is_refused(answer: Any) -> None:
    policy = Script(answer)

    with pytest.raises(TypeError) as caught:
        ask(policy, AT_REST)

    assert str(caught.value) == f"{policy!r} answered {answer!r}, which is no number of workers"


def test_a_policy_that_refuses_to_be_shown_is_named_by_its_type() -> None:
    class Shy(Script):
        def __repr__(self) -> str:
            raise LookupError

    policy = Shy(None)

    with pytest.raises(TypeError, match=r"^<.*Shy.*> answered None, which is no number of workers$"):
        ask(policy, AT_REST)


def test_what_a_policy_raises_is_left_as_it_is() -> None:
    with pytest.raises(StopIteration):
        ask(Script(), AT_REST)


@pytest.mark.parametrize("interval", [0.25, Decimal("0.25"), Fraction(1, 4)])
def test_an_interval_is_any_real_number(interval: Any) -> None:
    found = interval_of(Script(interval=interval))

    assert (found, type(found)) == (0.25, float)


@pytest.mark.parametrize(
    "interval, error, message",
    [
        (0.0, ValueError, "policy.interval must be above 0, not 0.0"),
        (-1, ValueError, "policy.interval must be above 0, not -1"),
        (math.nan, ValueError, "policy.interval must be a number of seconds, not nan"),
        (True, TypeError, "policy.interval must be a number of seconds, not True"),
        (None, TypeError, "policy.interval must be a number of seconds, not None"),
    ],
)
def test_a_bad_interval_is_refused(interval: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        interval_of(Script(interval=interval))

    assert str(caught.value) == message


def test_a_policy_is_known_by_what_it_has() -> None:
    policy = Script()

    assert check_policy("policy", policy) is policy
    for value in (5, None, Script, object()):
        with pytest.raises(TypeError) as caught:
            check_policy("policy", value)
        assert str(caught.value) == f"policy {NO_POLICY} {value!r} has not"


# -- arguments, repr --


@pytest.mark.parametrize(
    "make, arguments, error, message",
    [
        (BacklogPolicy, {"threshold": 0}, ValueError, "threshold must be at least 1, not 0"),
        (BacklogPolicy, {"threshold": 2.5}, TypeError, "threshold must be an int, not 2.5"),
        (BacklogPolicy, {"threshold": True}, TypeError, "threshold must be an int, not True"),
        (BacklogPolicy, {"step": -1}, ValueError, "step must be at least 1, not -1"),
        (BacklogPolicy, {"step": "2"}, TypeError, "step must be an int, not '2'"),
        (BacklogPolicy, {"interval": 0}, ValueError, "interval must be above 0, not 0"),
        (BacklogPolicy, {"interval": None}, TypeError, "interval must be a number of seconds, not None"),
        (RatePolicy, {"utilization": 0.0}, ValueError, "utilization must be a number above 0.0 up to 1.0, not 0.0"),
        (RatePolicy, {"utilization": 1.1}, ValueError, "utilization must be a number above 0.0 up to 1.0, not 1.1"),
        (RatePolicy, {"window": 0.0}, ValueError, "window must be above 0, not 0.0"),
        (RatePolicy, {"window": True}, TypeError, "window must be a number of seconds, not True"),
        (RatePolicy, {"interval": -0.1}, ValueError, "interval must be above 0, not -0.1"),
        (QueueWaitPolicy, {"target_wait": -1}, ValueError, "target_wait must be above 0, not -1"),
        (QueueWaitPolicy, {"target_wait": float("nan")}, ValueError, "target_wait must be a number of seconds, not nan"),
        (QueueWaitPolicy, {"growth": 1.0}, ValueError, "growth must be a finite number above 1.0, not 1.0"),
        (QueueWaitPolicy, {"growth": "x"}, TypeError, "growth must be a number, not 'x'"),
        (QueueWaitPolicy, {"interval": "1"}, TypeError, "interval must be a number of seconds, not '1'"),
        (Hysteresis, {"policy": Script(), "shrink_after": 0}, ValueError, "shrink_after must be at least 1, not 0"),
        (Hysteresis, {"policy": Script(), "shrink_after": 1.5}, TypeError, "shrink_after must be an int, not 1.5"),
        (Hysteresis, {"policy": 5}, TypeError, f"policy {NO_POLICY} 5 has not"),
        (
            Hysteresis,
            {"policy": BacklogPolicy},
            TypeError,
            f"policy {NO_POLICY} <class 'tasker_executor.policies.BacklogPolicy'> has not",
        ),
    ],
)
def test_bad_arguments_are_named_at_once(
    make: Callable[..., object], arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        make(**arguments)

    assert str(caught.value) == message


@pytest.mark.parametrize("combination", [Maximum, Minimum])
def test_a_combination_is_of_policies_and_of_one_at_least(combination: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="needs at least one policy"):
        combination()
    with pytest.raises(TypeError, match=f"policies {re.escape(NO_POLICY)} 7"):
        combination(BacklogPolicy(), 7)


@pytest.mark.parametrize("left, right", [(BacklogPolicy(), 3), (3, BacklogPolicy())])
def test_operators_refuse_what_is_no_policy(left: Any, right: Any) -> None:
    with pytest.raises(TypeError, match=f"policies {re.escape(NO_POLICY)} 3"):
        _ = left | right
    with pytest.raises(TypeError, match=f"policies {re.escape(NO_POLICY)} 3"):
        _ = left & right


@pytest.mark.parametrize(
    "policy, expected",
    [
        (BacklogPolicy(), "BacklogPolicy(threshold=5, step=2, interval=0.1)"),
        (RatePolicy(), "RatePolicy(utilization=0.8, window=5.0, interval=0.1)"),
        (QueueWaitPolicy(), "QueueWaitPolicy(target_wait=0.05, growth=2.0, interval=0.1)"),
        (Hysteresis(Script(), shrink_after=7), "Hysteresis(Script(), shrink_after=7)"),
        (Script() | BacklogPolicy(9, 8, 7.0), "Maximum(Script(), BacklogPolicy(threshold=9, step=8, interval=7.0))"),
        (Script() & BacklogPolicy(9, 8, 7.0), "Minimum(Script(), BacklogPolicy(threshold=9, step=8, interval=7.0))"),
    ],
)
def test_repr_shows_the_parameters(policy: ScalingPolicy, expected: str) -> None:
    assert repr(policy) == expected


def test_parameters_cannot_be_changed() -> None:
    policy = BacklogPolicy()

    with pytest.raises(FrozenInstanceError):
        policy.step = 5  # type: ignore[misc]  # that is the test


def test_a_policy_needs_no_base_class() -> None:
    assert isinstance(Script(), ScalingPolicy)
    assert not isinstance(object(), ScalingPolicy)


# -- properties of all policies on any load --

seconds = st.floats(min_value=0.001, max_value=100.0)
whole = st.integers(min_value=1, max_value=50)
simple_policies: st.SearchStrategy[ScalingPolicy] = st.one_of(
    st.builds(BacklogPolicy, whole, whole, seconds),
    st.builds(RatePolicy, st.floats(min_value=0.01, max_value=1.0), seconds, seconds),
    st.builds(QueueWaitPolicy, seconds, st.floats(min_value=1.01, max_value=10.0), seconds),
)
policies = st.recursive(
    simple_policies,
    lambda parts: st.one_of(
        st.builds(Hysteresis, parts, st.integers(min_value=1, max_value=3)),
        st.lists(parts, min_size=1, max_size=3).map(lambda members: Maximum(*members)),
        st.lists(parts, min_size=1, max_size=3).map(lambda members: Minimum(*members)),
    ),
    max_leaves=3,
)


@st.composite
def loads(draw: st.DrawFn) -> LoadSample:
    """Any load that an executor could be under."""
    maximum = draw(whole)
    minimum = draw(st.integers(min_value=0, max_value=maximum))
    workers = draw(st.integers(min_value=0, max_value=60))  # more than the maximum, after a resize
    busy = draw(st.integers(min_value=0, max_value=workers))
    normal, priority = draw(st.integers(min_value=0, max_value=1000)), draw(st.integers(min_value=0, max_value=1000))
    return LoadSample(
        time=draw(st.floats(min_value=0.0, max_value=1e6)),
        workers=workers,
        busy=busy,
        idle=draw(st.integers(min_value=0, max_value=workers - busy)),  # the others make their resource
        queued_normal=normal,
        queued_priority=priority,
        oldest_wait=draw(st.floats(min_value=0.0, max_value=1e4)) if normal + priority else 0.0,
        arrival_rate=draw(st.floats(min_value=0.0, max_value=1e6)),
        completion_rate=draw(st.floats(min_value=0.0, max_value=1e6)),
        mean_service_time=draw(st.floats(min_value=0.0, max_value=1e4)),
        mean_create_time=draw(st.floats(min_value=0.0, max_value=100.0)),
        create_failures=draw(st.integers(min_value=0, max_value=10)),
        min_workers=minimum,
        max_workers=maximum,
        target=draw(st.integers(min_value=minimum, max_value=maximum)),
    )


@given(policies, st.lists(loads(), min_size=1, max_size=8))
def test_never_wants_fewer_than_are_busy(policy: ScalingPolicy, history: list[LoadSample]) -> None:
    for load in history:
        assert policy.target(load) >= load.busy


@given(policies, st.lists(loads(), max_size=5), loads())
def test_never_grows_at_zero_load(policy: ScalingPolicy, history: list[LoadSample], load: LoadSample) -> None:
    for past in history:
        policy.target(past)
    at_rest = replace(load, busy=0, queued_normal=0, queued_priority=0, oldest_wait=0.0)

    assert policy.target(at_rest) <= at_rest.target


@given(policies, st.lists(loads(), max_size=5), loads(), st.integers(min_value=0, max_value=1000))
def test_a_longer_queue_never_gets_a_smaller_answer(
    policy: ScalingPolicy, history: list[LoadSample], load: LoadSample, more: int
) -> None:
    for past in history:
        policy.target(past)
    wait = load.oldest_wait if load.queued else 0.0
    longer = replace(load, queued_normal=load.queued_normal + more, oldest_wait=wait)
    twin = copy.deepcopy(policy)

    assert twin.target(longer) >= policy.target(load)


@given(policies, loads(), st.floats(min_value=0.0, max_value=1e4))
def test_a_longer_wait_never_gets_a_smaller_answer(policy: ScalingPolicy, load: LoadSample, more: float) -> None:
    longer = replace(load, oldest_wait=load.oldest_wait + more if load.queued else 0.0)
    twin = copy.deepcopy(policy)

    assert twin.target(longer) >= policy.target(load)


def follow(policy: ScalingPolicy, tasks: int, minimum: int, maximum: int, service: float, questions: int) -> list[int]:
    """The numbers wanted when there are always so many tasks in the executor, and workers come and go at once."""
    target, workers = minimum, minimum
    history: list[int] = []
    for n in range(questions):
        busy = min(tasks, workers)
        load = LoadSample(
            time=n * policy.interval,
            workers=workers,
            busy=busy,
            idle=workers - busy,
            queued_normal=tasks - busy,
            queued_priority=0,
            oldest_wait=service if tasks > busy else 0.0,
            arrival_rate=busy / service,
            completion_rate=busy / service,
            mean_service_time=service,
            mean_create_time=0.0,
            create_failures=0,
            min_workers=minimum,
            max_workers=maximum,
            target=target,
        )
        target = clamped(policy.target(load), load)
        workers = max(busy, target, 1)
        history.append(target)
    return history


@given(policies, st.integers(0, 40), st.integers(0, 4), st.integers(4, 24), seconds)
@settings(max_examples=50)
def test_settles_within_the_bounds_under_a_constant_load(
    policy: ScalingPolicy, tasks: int, minimum: int, maximum: int, service: float
) -> None:
    history = follow(policy, tasks, minimum, maximum, service, questions=400)

    assert all(minimum <= target <= maximum for target in history)
    assert len(set(history[-100:])) == 1


@given(policies, st.integers(0, 4), st.integers(4, 24), st.integers(1, 24))
@settings(max_examples=50)
def test_comes_back_to_the_base_at_rest(policy: ScalingPolicy, minimum: int, maximum: int, peak: int) -> None:
    target = max(minimum, min(peak, maximum))

    for _ in range(400):
        load = replace(AT_REST, workers=target, idle=target, min_workers=minimum, max_workers=maximum, target=target)
        target = clamped(policy.target(load), load)

    assert target == minimum
