"""Bad arguments raise at once, in the caller's thread, and say which argument it was and what it was."""

from __future__ import annotations

import inspect
import itertools
import logging
import math
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from support import DEADLINE, FakeResource, Gate, Ledger, MakePool
from tasker_executor import BacklogPolicy, LoadSample, Observer, ResourceExecutor
from tasker_executor.testing import InlineExecutor

NAN = math.nan
HOOKS = ("on_create", "on_destroy", "check_health", "check_resource", "on_abort")


def make_badly(**arguments: Any) -> pytest.ExceptionInfo[Exception]:
    """Make an executor with bad arguments; return what it raised."""
    with pytest.raises((TypeError, ValueError)) as raised:
        ResourceExecutor(**arguments)
    return raised


# -- the constructor --


@pytest.mark.parametrize("max_workers", [0, -1])
def test_max_workers_below_one_is_refused_in_the_words_of_the_standard_library(max_workers: int) -> None:
    with pytest.raises(ValueError, match=r"^max_workers must be greater than 0$"):
        ResourceExecutor(max_workers)


@pytest.mark.parametrize("max_workers", ["4", 2.0, math.inf, True])
def test_max_workers_that_is_no_whole_number_is_refused(max_workers: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"max_workers must be an int, not {max_workers!r}")):
        ResourceExecutor(max_workers)


def test_initializer_that_is_not_callable_is_refused_in_the_words_of_the_standard_library() -> None:
    with pytest.raises(TypeError, match=r"^initializer must be a callable$"):
        ResourceExecutor(1, initializer=42)  # type: ignore[arg-type]  # bad on purpose


def test_more_base_workers_than_workers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"min_workers=3 .*max_workers=2"):
        ResourceExecutor(2, min_workers=3)


@pytest.mark.parametrize("name", ["min_workers", "max_retries", "max_queued"])
@pytest.mark.parametrize("value, error", [(-1, ValueError), (1.5, TypeError), ("1", TypeError)])
def test_number_of_something_is_whole_and_not_negative(name: str, value: object, error: type[Exception]) -> None:
    raised = make_badly(**{name: value})

    assert raised.type is error
    assert name in str(raised.value)
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("resource_pool_size", -1, ValueError),
        ("resource_pool_size", 1.5, TypeError),
        ("resource_pool_size", None, TypeError),
        ("max_uses", 0, ValueError),
        ("max_uses", -1, ValueError),
        ("max_uses", 1.5, TypeError),
    ],
)
def test_number_of_resources_or_uses_is_whole_and_makes_sense(
    ledger: Ledger, name: str, value: object, error: type[Exception]
) -> None:
    raised = make_badly(on_create=ledger.create, **{name: value})

    assert raised.type is error
    assert name in str(raised.value)
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize("name", ["create_timeout", "idle_timeout", "max_age", "check_after_idle"])
@pytest.mark.parametrize("value, error", [(-0.1, ValueError), (NAN, ValueError), ("1", TypeError)])
def test_duration_is_a_number_and_not_negative(ledger: Ledger, name: str, value: object, error: type[Exception]) -> None:
    raised = make_badly(on_create=ledger.create, **{name: value})

    assert raised.type is error
    assert name in str(raised.value)
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize("value", [0, 0.0, -1])
def test_limit_of_no_time_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"run_within must be above 0, not {value!r}"):
        ResourceExecutor(run_within=value)


def test_age_of_nothing_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match=r"max_age must be above 0, not 0\.0"):
        ResourceExecutor(on_create=ledger.create, max_age=0.0)


@pytest.mark.parametrize("name", HOOKS)
def test_hook_that_is_not_callable_is_refused(ledger: Ledger, name: str) -> None:
    raised = make_badly(**{"on_create": ledger.create, name: "no hook"})

    assert raised.type is TypeError
    assert str(raised.value) == f"{name} must be callable, not 'no hook'"


@pytest.mark.parametrize("name", [*HOOKS[1:], "max_age", "max_uses", "resource_pool_size"])
def test_what_concerns_resources_is_refused_without_on_create(name: str) -> None:
    value: Any = print if name in HOOKS else 7
    raised = make_badly(**{name: value})

    assert raised.type is ValueError
    assert str(raised.value) == f"{name}={value!r} is of no use without on_create or resource"


def test_hook_without_a_resource_is_refused_although_on_create_is_mentioned(ledger: Ledger) -> None:
    raised = make_badly(on_create=None, on_destroy=ledger.destroy)

    assert raised.type is ValueError
    assert str(raised.value) == f"on_destroy={ledger.destroy!r} is of no use without on_create or resource"


def test_task_that_wants_a_resource_fails_where_the_pool_has_none() -> None:
    # No type checker rejects this: without `on_create`, nothing contradicts the annotation.
    pool: ResourceExecutor[FakeResource] = ResourceExecutor(1)
    with pool:
        error = pool.submit(FakeResource.use).exception(DEADLINE)

    assert isinstance(error, TypeError)
    assert "missing 1 required positional argument" in str(error)


@pytest.mark.parametrize("name", ["check_after_idle", "create_timeout"])
def test_bad_duration_is_refused_even_where_it_is_of_no_use(name: str) -> None:
    assert name in str(make_badly(**{name: -1.0}).value)


@pytest.mark.parametrize("value", ["wait", None, True, ["block"]])
def test_unknown_way_to_deal_with_a_full_queue_is_refused(value: object) -> None:
    raised = make_badly(max_queued=1, on_full=value)

    assert raised.type is ValueError
    assert str(raised.value) == f"on_full must be 'block', 'raise' or 'caller', not {value!r}"


@pytest.mark.parametrize("value", [Observer, "observer", print])
def test_observer_that_is_none_is_refused(value: object) -> None:
    raised = make_badly(observers=[value])

    assert raised.type is TypeError
    assert "observers" in str(raised.value)
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize("value", [5, None, Observer()])
def test_observers_that_are_no_iterable_are_refused(value: object) -> None:
    raised = make_badly(observers=value)

    assert raised.type is TypeError
    assert "observers" in str(raised.value)
    assert repr(value) in str(raised.value)


class WithoutInterval:
    def target(self, load: LoadSample, /) -> int:
        return load.min_workers


class WithoutTarget:
    interval = 1.0


@pytest.mark.parametrize("value", [WithoutInterval(), WithoutTarget(), "policy", 3])
def test_policy_that_lacks_something_is_refused(value: object) -> None:
    raised = make_badly(policy=value)

    assert raised.type is TypeError
    assert "policy" in str(raised.value)
    assert repr(value) in str(raised.value)


def test_class_of_a_policy_is_no_policy() -> None:
    raised = make_badly(policy=BacklogPolicy)  # the brackets were forgotten

    assert raised.type is TypeError
    assert "policy" in str(raised.value)
    assert repr(BacklogPolicy) in str(raised.value)


@pytest.mark.parametrize("interval, error", [(0.0, ValueError), (-1.0, ValueError), (NAN, ValueError), ("1", TypeError)])
def test_policy_with_a_bad_interval_is_refused(interval: Any, error: type[Exception]) -> None:
    policy = WithoutInterval()
    vars(policy)["interval"] = interval
    raised = make_badly(policy=policy)

    assert raised.type is error
    assert "policy.interval" in str(raised.value)
    assert repr(interval) in str(raised.value)


def test_refused_executor_has_made_nothing(ledger: Ledger) -> None:
    make_badly(max_workers=2, min_workers=2, on_create=ledger.create, resource_pool_size=1, observers=["no observer"])

    assert ledger.attempts == 0


def test_first_four_arguments_are_those_of_the_thread_pool_in_their_order() -> None:
    ours = list(inspect.signature(ResourceExecutor).parameters.values())
    theirs = list(inspect.signature(ThreadPoolExecutor).parameters.values())[:4]

    assert [(one.name, one.kind, one.default) for one in ours[:4]] == [(one.name, one.kind, one.default) for one in theirs]


def test_everything_else_is_keyword_only() -> None:
    others = list(inspect.signature(ResourceExecutor).parameters.values())[4:]

    assert {other.kind for other in others} == {inspect.Parameter.KEYWORD_ONLY}
    assert all(other.default is not inspect.Parameter.empty for other in others)


def test_first_four_arguments_work_by_position() -> None:
    prepared: list[tuple[str, int]] = []

    def prepare(word: str, number: int) -> None:
        prepared.append((word, number))

    with ResourceExecutor(1, "crawler", prepare, ("x", 3)) as pool:
        name = pool.submit(lambda: threading.current_thread().name).result()

    assert name == "crawler_0"
    assert prepared == [("x", 3)]


@pytest.mark.parametrize("name", ["idle_timeout", "create_timeout", "max_age", "check_after_idle"])
def test_endless_duration_is_a_duration(make_pool: MakePool, ledger: Ledger, name: str) -> None:
    options: dict[str, Any] = {name: math.inf}
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, **options)

    assert pool.submit(FakeResource.use).result() == 0


# -- methods --


@pytest.mark.parametrize(
    "options, error",
    [
        ({"max_retries": -1}, ValueError),
        ({"max_retries": 1.0}, TypeError),
        ({"max_retries": None}, TypeError),
        ({"start_within": -0.5}, ValueError),
        ({"start_within": NAN}, ValueError),
        ({"start_within": "soon"}, TypeError),
        ({"run_within": -0.5}, ValueError),
        ({"run_within": NAN}, ValueError),
        ({"run_within": "soon"}, TypeError),
    ],
)
def test_bad_option_of_a_view_is_refused(make_pool: MakePool, options: dict[str, Any], error: type[Exception]) -> None:
    [(name, value)] = options.items()
    pool = make_pool(1)

    with pytest.raises(error) as raised:
        pool.with_options(**options)
    assert name in str(raised.value)
    assert repr(value) in str(raised.value)


def test_unknown_option_of_a_view_is_refused(make_pool: MakePool) -> None:
    options: dict[str, Any] = {"prioritty": True}

    with pytest.raises(TypeError, match="prioritty"):
        make_pool(1).with_options(**options)


@pytest.mark.parametrize(
    "options, error, words",
    [
        # Where the standard library refuses, these are its words.
        ({"chunksize": 0}, ValueError, "chunksize must be >= 1."),
        ({"chunksize": -3}, ValueError, "chunksize must be >= 1."),
        ({"chunksize": 1.0}, TypeError, "chunksize must be an integer, not 1.0"),
        ({"chunksize": True}, TypeError, "chunksize must be an integer, not True"),
        ({"buffersize": 0}, ValueError, "buffersize must be None or > 0"),
        ({"buffersize": -3}, ValueError, "buffersize must be None or > 0"),
        ({"buffersize": "2"}, TypeError, "buffersize must be an integer or None"),
        ({"buffersize": 2.0}, TypeError, "buffersize must be an integer or None"),
        ({"timeout": "1"}, TypeError, "timeout must be a number of seconds, not '1'"),
        ({"timeout": True}, TypeError, "timeout must be a number of seconds, not True"),
        ({"timeout": NAN}, ValueError, "timeout must be a number of seconds, not nan"),
    ],
)
def test_bad_argument_of_map_is_refused_before_anything_is_read(
    make_pool: MakePool, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    pool = make_pool(1)
    source = iter([1, 2, 3])

    with pytest.raises(error) as raised:
        pool.map(str, source, **options)
    assert str(raised.value) == words
    assert list(source) == [1, 2, 3]


@pytest.mark.parametrize(
    "bounds, error, words",
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": 2.5}, TypeError, "max_workers must be an int, not 2.5"),
        ({"max_workers": None}, TypeError, "max_workers must be an int, not None"),
        ({"min_workers": -1}, ValueError, "min_workers must be at least 0, not -1"),
        ({"min_workers": "1"}, TypeError, "min_workers must be an int, not '1'"),
        ({"min_workers": 3}, ValueError, "min_workers=3 is more than max_workers=2"),
        ({"max_workers": 1, "min_workers": 2}, ValueError, "min_workers=2 is more than max_workers=1"),
    ],
)
def test_bad_bound_is_refused_and_the_old_ones_stay(
    make_pool: MakePool, bounds: dict[str, Any], error: type[Exception], words: str
) -> None:
    pool = make_pool(2)

    with pytest.raises(error, match=re.escape(words)):
        pool.resize(**bounds)
    assert pool._max_workers == 2


@pytest.mark.parametrize("timeout, error", [(-1, ValueError), (NAN, ValueError), ("1", TypeError)])
def test_bad_timeout_is_refused_and_nothing_is_shut_down(make_pool: MakePool, timeout: Any, error: type[Exception]) -> None:
    pool = make_pool(1)
    view = pool.with_options(priority=True)
    calls: list[Callable[[], None]] = [
        lambda: pool.shutdown(timeout=timeout),
        lambda: view.shutdown(timeout=timeout),
        lambda: pool.wait_ready(timeout),
    ]

    for call in calls:
        with pytest.raises(error, match=r"^timeout must .*not " + re.escape(repr(timeout))):
            call()
    assert view.submit(int).result() == 0


def test_endless_timeout_is_a_timeout(make_pool: MakePool) -> None:
    pool = make_pool(1)
    view = pool.with_options(start_within=math.inf)

    assert view.submit(int).result(math.inf) == 0
    assert list(pool.map(str, [1], timeout=math.inf)) == ["1"]
    view.submit(int)
    view.shutdown(timeout=math.inf)
    pool.shutdown(timeout=math.inf)


def test_timer_can_wait_for_ever(make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    patient = pool.with_options(start_within=math.inf).submit(int)
    pool.with_options(start_within=0.0).submit(int).exception(DEADLINE)  # the timer is awake, and about to wait again
    gate.release()
    pool.shutdown()

    assert patient.result() == 0
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


# -- our names are not in the way of the task's --


def everything(*args: object, **kwargs: object) -> tuple[tuple[object, ...], dict[str, object]]:
    return args, kwargs


@pytest.mark.parametrize(
    "face, method",
    [
        *itertools.product(["executor", "view"], ["submit", "submit_priority", "run_now"]),
        ("thread pool", "submit"),
    ],
)
def test_task_gets_keywords_that_are_called_like_ours(make_pool: MakePool, face: str, method: str) -> None:
    pool = make_pool(1)
    faces: dict[str, Any] = {"executor": pool, "view": pool.with_options(max_retries=1), "thread pool": pool.as_thread_pool()}
    names = ("self", "fn", "args", "kwargs", "priority", "timeout", "options", "lane", "future")
    outcome = getattr(faces[face], method)(everything, 1, **{name: name for name in names})

    assert (outcome.result() if isinstance(outcome, Future) else outcome) == ((1,), {name: name for name in names})


@pytest.mark.parametrize("method", ["submit", "submit_priority", "run_now"])
def test_function_is_not_passed_by_keyword(make_pool: MakePool, method: str) -> None:
    call: Callable[..., object] = getattr(make_pool(1), method)

    with pytest.raises(TypeError, match="fn"):
        call(fn=int)


# -- a task that is none --


@pytest.mark.parametrize("kwargs", [{}, {"x": 1}], ids=["plain", "keywords"])
@pytest.mark.parametrize("face", ["thread pool", "executor", "priority", "view", "bounded", "inline"])
def test_what_cannot_be_called_has_a_type_error_in_its_future_as_in_the_standard_library(
    make_pool: MakePool, face: str, kwargs: dict[str, int]
) -> None:
    nothing: Any = None
    submits: dict[str, Callable[..., Future[Any]]] = {
        "thread pool": ThreadPoolExecutor(1).submit,
        "executor": make_pool(1).submit,
        "priority": make_pool(1).submit_priority,
        "view": make_pool(1).with_options(max_retries=1).submit,
        "bounded": make_pool(1, max_queued=1).submit,
        "inline": InlineExecutor().submit,
    }
    error = submits[face](nothing, **kwargs).exception(DEADLINE)

    assert isinstance(error, TypeError)
    assert "'NoneType' object is not callable" in str(error)


@pytest.mark.parametrize("kwargs", [{}, {"x": 1}], ids=["plain", "keywords"])
def test_what_cannot_be_called_is_refused_by_run_now(make_pool: MakePool, kwargs: dict[str, int]) -> None:
    nothing: Any = None

    for pool in (make_pool(1), make_pool(1, on_create=list[int])):
        with pytest.raises(TypeError):
            pool.run_now(nothing, **kwargs)
