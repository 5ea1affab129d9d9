"""Mistakes are answered: with hooks, with factories and with tasks, at once, and in words that name the cure."""

from __future__ import annotations

import asyncio
import functools
import gc
import sqlite3
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

from doors import EXECUTORS, Door, door
from races import wait_until_idle
from support import DEADLINE, FakeResource, Ledger, MakePool, ResourceBroken
from tasker_executor import ResourceCreationError, ResourceFactory
from tasker_executor._engine.hooks import check_hooks, not_a_resource
from tasker_executor.testing import InlineExecutor

__all__ = ["door"]

HOOKS = ["on_create", "on_destroy", "check_health", "check_resource", "on_reset", "around", "on_abort"]
NONE = dict.fromkeys(HOOKS)
METHODS = dict(zip(HOOKS, ["create", "destroy", "judge", "check", "reset", "around", "abort"], strict=True))

make_executor: Any = EXECUTORS[0]
make_inline: Any = EXECUTORS[1]


def refusal(**arguments: Any) -> str:
    """Return the words with which the executor, and the inline one, refuse these arguments with a TypeError."""
    with pytest.raises(TypeError) as caught:
        make_executor(1, **arguments)
    if "on_abort" not in arguments:
        with pytest.raises(TypeError) as inline:
            make_inline(**arguments)
        assert str(inline.value) == str(caught.value)
    return str(caught.value)


def given(hook: str, value: Any) -> dict[str, Any]:
    """Return arguments that have that hook, and on_create, without which no hook is of any use."""
    return {"on_create": object, hook: value}


def factory_with(method: str, value: Any) -> Any:
    """Return a factory that overrides create, and that method."""
    factory: ResourceFactory[Any] = ResourceFactory()
    vars(factory).update({"create": object, method: value})
    return factory


# -- what a hook may be --


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("value", [7, "connect", object()], ids=["int", "str", "object"])
def test_a_hook_that_cannot_be_called_is_refused(hook: str, value: Any) -> None:
    assert refusal(**given(hook, value)).startswith(f"{hook} must be callable, not {value!r}")
    method = METHODS[hook]
    assert refusal(resource=factory_with(method, value)).startswith(f"resource.{method} must be callable, not {value!r}")


async def asynchronous(*_: object) -> None: ...


async def asynchronous_generator(*_: object) -> AsyncIterator[int]:
    yield 1


class Asynchronous:
    async def __call__(self, *_: object) -> None: ...


class AsynchronousMethod:
    async def method(self, *_: object) -> None: ...


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(
    "value",
    [
        asynchronous,
        asynchronous_generator,
        functools.partial(asynchronous),
        Asynchronous(),
        AsynchronousMethod().method,
        AsyncMock(),
        functools.partial(Asynchronous()),
    ],
    ids=["function", "generator", "partial", "object", "method", "mock", "partial of an object"],
)
def test_an_async_hook_is_refused(hook: str, value: Any) -> None:
    # A worker would take the coroutine for the answer, and nobody would await it.
    assert "is an async function; workers are threads, and await nothing" in refusal(**given(hook, value))
    method = METHODS[hook]
    words = refusal(resource=factory_with(method, value))
    assert words.startswith(f"resource.{method}=")
    assert "is an async function" in words


@pytest.mark.parametrize("value", [asynchronous, asynchronous_generator, Asynchronous()], ids=["def", "generator", "object"])
def test_an_async_function_is_no_resource(value: Any) -> None:
    assert "is an async function" in refusal(resource=value)


def generator_function(*_: object) -> Generator[int]:
    yield 1


@pytest.mark.parametrize("hook", HOOKS)
def test_a_generator_function_is_refused(hook: str) -> None:
    words = refusal(**given(hook, generator_function))
    assert words.startswith(f"{hook}=<function generator_function")
    assert "is a generator function; decorate it with contextlib.contextmanager" in words


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, ResourceBroken])
def test_an_exception_class_is_refused(hook: str, error: type[BaseException]) -> None:
    # ``check_health=OperationalError``: the user means a tuple of errors. Each instance would be true, so "not broken".
    assert refusal(**given(hook, error)) == f"{hook} must be a function, not the exception {error.__name__}"


def needs_no_argument() -> None: ...


def needs_one(one: object) -> object: ...


def needs_two(one: object, two: object) -> None: ...


def needs_a_keyword(*args: object, key: int) -> None: ...


@pytest.mark.parametrize(
    "hook, value, missing",
    [
        ("on_create", needs_one, "with no arguments: missing a required argument: 'one'"),
        ("on_create", needs_a_keyword, "with no arguments: missing a required argument: 'key'"),
        ("on_create", functools.partial(needs_two, 1), "with no arguments: missing a required argument: 'two'"),
        ("on_create", FakeResource, "with no arguments: missing a required argument: 'ledger'"),
        ("on_create", FakeResource.use, "with no arguments: missing a required argument: 'self'"),
        ("on_destroy", needs_no_argument, "with one argument: too many positional arguments"),
        ("on_destroy", needs_two, "with one argument: missing a required argument: 'two'"),
        ("check_health", needs_two, "with one argument: missing a required argument: 'two'"),
        ("check_resource", needs_no_argument, "with one argument: too many positional arguments"),
        ("on_reset", needs_a_keyword, "with one argument: missing a required argument: 'key'"),
        ("around", needs_two, "with one argument: missing a required argument: 'two'"),
        ("on_abort", needs_no_argument, "with one argument: too many positional arguments"),
    ],
)
def test_a_hook_that_does_not_fit_its_arguments_is_refused(hook: str, value: Any, missing: str) -> None:
    words = refusal(**given(hook, value))

    assert words.startswith(f"{hook}=")
    assert words.endswith(f" cannot be called {missing}")


def test_a_judge_has_two_arguments() -> None:
    assert "resource.judge=" in (words := refusal(resource=factory_with("judge", needs_one)))
    assert words.endswith("cannot be called with two arguments: too many positional arguments")
    assert make_executor(1, resource=factory_with("judge", needs_two)) is not None


class Callable_:
    def __call__(self) -> object:
        return object()


def supplies_arguments(function: Callable[..., Any]) -> Callable[[], Any]:
    """A decorator, like those of configuration libraries."""

    @functools.wraps(function)
    def wrapper() -> Any:
        return function("one", "two")

    return wrapper


class Static:
    @staticmethod
    def make() -> object:
        return object()

    @classmethod
    def make_one(cls) -> Any:
        return cls()

    def make_another(self) -> object:
        return object()


def with_defaults(host: str = "localhost", *args: Any, port: int = 5432, **kwargs: Any) -> object:
    return object()


@contextmanager
def undecorated() -> Generator[object]:
    yield object()


ACCEPTED: dict[str, Any] = {
    "a class": Static,
    "a C class": object,
    "a C function": threading.Lock,
    "a C function without a signature": dict,
    "a partial": functools.partial(sqlite3.connect, ":memory:"),
    "a partial of a partial": functools.partial(functools.partial(needs_two, 1), 2),
    "a lambda": lambda: object(),
    "a callable object": Callable_(),
    "a static method": Static.make,
    "a class method": Static.make_one,
    "a method": Static().make_another,
    "defaults": with_defaults,
    "functools.wraps around one that needs arguments": supplies_arguments(needs_two),
    "Mock": Mock(),
    "MagicMock": MagicMock(),
    "Mock of a function": Mock(spec=needs_no_argument),
}


@pytest.mark.parametrize("value", list(ACCEPTED.values()), ids=list(ACCEPTED))
def test_whatever_can_be_called_without_arguments_makes_resources(value: Any) -> None:
    hooks = check_hooks({**NONE, "on_create": value})

    assert hooks is not None
    assert hooks.create is value


@functools.wraps(needs_two)
def wraps_more(one: object) -> None: ...


ACCEPTED_HOOKS: dict[str, Any] = {
    "a C function": id,
    "a C method": sqlite3.Connection.close,
    "print": print,
    "Mock": Mock(return_value=True),
    "MagicMock": MagicMock(),
    "a bound method": [].append,
    "a partial": functools.partial(needs_two, 1),
    "functools.wraps around one that needs more": wraps_more,
    "defaults": with_defaults,
    "a class": bool,
    "a method": FakeResource.use,
}


@pytest.mark.parametrize("hook", HOOKS[1:])
@pytest.mark.parametrize("value", list(ACCEPTED_HOOKS.values()), ids=list(ACCEPTED_HOOKS))
def test_whatever_can_be_called_with_a_resource_is_a_hook(hook: str, value: Any) -> None:
    hooks = check_hooks({**NONE, "on_create": object, hook: value})

    assert hooks is not None
    assert hook == "check_health" or getattr(hooks, METHODS[hook]) is value
    check_hooks(dict(NONE), factory_with(METHODS[hook], value if hook != "check_health" else with_defaults))


def ping(resource: Any) -> None:
    resource.ping()


def test_a_mock_may_be_every_hook(make_pool: MakePool) -> None:
    mocks: dict[str, Any] = {hook: MagicMock() for hook in HOOKS}
    mocks["check_health"].return_value = True
    pool: Any = make_pool(1, **mocks)
    pool.submit(ping).result(DEADLINE)
    wait_until_idle(pool)
    pool.shutdown()

    assert [mocks[hook].call_count for hook in ("on_create", "around", "on_reset", "on_destroy")] == [1, 1, 1, 1]


def test_a_mock_may_be_a_factory(make_pool: MakePool) -> None:
    factory = MagicMock(spec=ResourceFactory)
    factory.around.return_value = nullcontext()
    pool: Any = make_pool(1, resource=factory)
    pool.submit(ping).result(DEADLINE)
    wait_until_idle(pool)
    pool.shutdown()

    assert factory.create.call_count == factory.destroy.call_count == factory.reset.call_count == 1


@pytest.mark.parametrize("hook", HOOKS[1:])
def test_a_hook_without_a_factory_is_refused(hook: str) -> None:
    with pytest.raises(ValueError, match=f"^{hook}=.* is of no use without on_create or resource$"):
        make_executor(1, **{hook: print})


@pytest.mark.parametrize("limit", ["max_age", "max_uses", "resource_pool_size"])
def test_a_limit_without_a_factory_is_refused(limit: str) -> None:
    with pytest.raises(ValueError, match=f"^{limit}=1 is of no use without on_create or resource$"):
        make_executor(1, **{limit: 1})


def test_limits_are_checked_with_a_factory_too() -> None:
    factory = factory_with("destroy", print)
    for arguments in ({"max_uses": 0}, {"max_age": 0}, {"check_after_idle": -1}, {"max_uses": True}):
        [name] = arguments
        with pytest.raises((ValueError, TypeError), match=f"^{name} must"):
            make_executor(1, resource=factory, **arguments)
    with pytest.raises(ValueError, match=r"^check_after_idle must"):
        make_executor(1, check_after_idle=-1)


# -- what on_create may return --


async def coroutine_function() -> object:
    return object()


REFUSED_RESOURCES: dict[str, tuple[Callable[[], Any], str, str]] = {
    "None": (lambda: None, "None", "return the resource, or use initializer="),
    "a coroutine": (lambda: coroutine_function(), "a coroutine", "workers are threads, and await nothing"),
    "an async generator": (lambda: asynchronous_generator(), "a async_generator", "workers are threads, and await nothing"),
    "a generator": (lambda: (number for number in [1]), "a generator", "decorate the function with contextlib.contextmanager"),
    "a context manager": (lambda: undecorated(), "a _GeneratorContextManager", "as resource="),
    "closing": (lambda: closing(MagicMock()), "a closing", "as resource="),
    "nullcontext": (lambda: nullcontext(1), "a nullcontext", "as resource="),
    "suppress": (lambda: suppress(OSError), "a suppress", "as resource="),
}


@pytest.mark.parametrize("make, what, cure", list(REFUSED_RESOURCES.values()), ids=list(REFUSED_RESOURCES))
def test_what_is_no_resource_fails_its_task_at_once_with_the_cure(
    door: Door, make: Callable[[], Any], what: str, cure: str
) -> None:
    # At once: a mistake is no outage, for which tasks wait. And no coroutine is left that was never awaited.
    destroyed: list[object] = []
    pool = door.open(on_create=make, on_destroy=destroyed.append, name="mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = door.error_of(print)
        gc.collect()

    assert isinstance(error, ResourceCreationError)
    cause = error.__cause__
    assert isinstance(cause, TypeError)
    assert str(cause).startswith(f"executor 'mine': on_create returned {what}; ")
    assert cure in str(cause)
    assert destroyed == []
    assert pool.stats().resources_created == 0


@pytest.mark.parametrize("make, what, cure", list(REFUSED_RESOURCES.values()), ids=list(REFUSED_RESOURCES))
def test_what_is_no_resource_is_refused_by_the_constructor_that_fills_a_reserve(
    make: Callable[[], Any], what: str, cure: str
) -> None:
    with pytest.raises(ResourceCreationError) as caught:
        make_executor(1, on_create=make, resource_pool_size=1)

    assert f"on_create returned {what}; " in str(caught.value.__cause__)
    assert cure in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "resource",
    [0, "", [], ExitStack(), sqlite3.connect, threading.Lock(), MagicMock(), iter([]), asyncio.Lock],
    ids=lambda resource: type(resource).__name__,
)
def test_anything_else_is_a_resource(resource: Any) -> None:
    assert not_a_resource(resource) == ""
    with InlineExecutor(on_create=lambda: resource) as pool:
        assert pool.submit(lambda got: got is resource).result() is True


# -- the other arguments --


def test_a_callable_as_the_second_argument_is_refused() -> None:
    # ``ResourceExecutor(8, connect)``: the second argument is `thread_name_prefix`, as in the standard library.
    with pytest.raises(
        TypeError, match=r"^thread_name_prefix must be a str, not <function needs_no_argument .*; .* as on_create="
    ):
        make_executor(8, needs_no_argument)


@pytest.mark.parametrize("on_full", ["raise", "caller"])
def test_on_full_without_max_queued_is_refused(on_full: str) -> None:
    with pytest.raises(ValueError, match=f"^on_full='{on_full}' is of no use without max_queued$"):
        make_executor(1, on_full=on_full)
    with make_executor(1, on_full=on_full, max_queued=0) as pool:
        assert pool is not None
    with make_executor(1, on_full="block") as pool:
        assert pool is not None


def test_on_full_is_one_of_three_words() -> None:
    with pytest.raises(ValueError, match=r"^on_full must be 'block', 'raise' or 'caller', not 'wait'$"):
        make_executor(1, on_full="wait", max_queued=1)


# -- what check_resource and check_health return --


def test_a_check_that_returns_none_counts_as_good_and_is_logged_once(
    door: Door, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    # In the style of psycopg_pool: it raises when the connection is bad. Taken for False it would condemn all resources.
    ledger.any_thread = True
    asked: list[int] = []

    def check(resource: FakeResource) -> Any:
        asked.append(resource.number)

    def fail(_: FakeResource) -> None:
        raise LookupError

    options: dict[str, Any] = {"on_create": ledger.create, "on_destroy": ledger.destroy, "check_resource": check}
    if not door.inline:
        options |= {"check_after_idle": 0, "resource_pool_size": 1}
    door.open(**options)
    for _ in range(3):
        door.error_of(fail)
        door.call(FakeResource.use)

    assert len(asked) >= 3
    assert len(ledger.created) == (2 if door.has_worker else 1)
    records = [record.message for record in caplog.records if "returned what it must not" in record.message]
    assert len(records) == 1
    assert "check_resource returned None, and must return True or False; None counts as True" in records[0]


def test_a_check_that_raises_when_the_resource_is_bad_is_not_told_off(
    make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    def check(resource: FakeResource) -> bool:
        raise ResourceBroken

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_resource=check)
    pool.submit(FakeResource.break_down).exception(DEADLINE)
    ledger.wait_until_destroyed(1)

    assert [record for record in caplog.records if "returned what it must not" in record.message] == []


@pytest.mark.parametrize("answer, kept", [(True, True), (1, True), ("yes", True), (False, False), (0, False), ("", False)])
def test_any_other_answer_of_a_check_counts_by_its_truth(
    make_pool: MakePool, ledger: Ledger, answer: Any, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: FakeResource) -> None:
        raise LookupError

    def check(_: FakeResource) -> Any:
        return answer

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_resource=check, min_workers=1)
    pool.submit(fail).exception(DEADLINE)
    if kept:
        wait_until_idle(pool)
    else:
        ledger.wait_until_destroyed(1)

    assert (ledger.destroyed == []) is kept
    assert [record for record in caplog.records if "returned what it must not" in record.message] == []


def test_check_health_that_is_an_exception_class_is_refused_before_it_can_condemn_anything() -> None:
    assert refusal(**given("check_health", sqlite3.OperationalError)) == (
        "check_health must be a function, not the exception OperationalError"
    )


def test_each_mistaken_hook_is_logged_once(make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: FakeResource) -> None:
        raise LookupError

    def nothing(_: object) -> Any:
        return None

    hooks: dict[str, Any] = {"check_health": nothing, "check_resource": nothing}
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, **hooks)
    for _ in range(3):
        assert isinstance(pool.submit(fail).exception(DEADLINE), LookupError)
    pool.shutdown()

    records = [record.message for record in caplog.records if "returned what it must not" in record.message]
    assert len(records) == 2
    assert pool.stats().retried == 0


# -- a task that lacks the argument for the resource --


def note_of(error: BaseException) -> str | None:
    notes: list[str] = getattr(error, "__notes__", [])
    assert len(notes) <= 1
    return notes[0] if notes else None


NOTE = (
    "executor 'mine' calls tasks with its resource as the first argument; "
    "with_options(pass_resource=False) calls them as they are submitted"
)


def takes_nothing() -> None: ...


def takes_a_keyword(*, key: int) -> None: ...


@contextmanager
def scope(_: object) -> Generator[None]:
    yield


@pytest.mark.parametrize("around", [None, scope], ids=["", "in a scope"])
@pytest.mark.parametrize(
    "fn, kwargs", [(takes_nothing, {}), (takes_a_keyword, {"key": 1}), (functools.partial(takes_nothing), {}), (len, {})]
)
def test_a_task_that_lacks_the_argument_for_the_resource_gets_a_note(
    door: Door, ledger: Ledger, around: Any, fn: Any, kwargs: dict[str, Any]
) -> None:
    ledger.any_thread = True
    door.open(on_create=ledger.create, on_destroy=ledger.destroy, around=around, name="mine")

    error = door.error_of(fn, *([1] if fn is len else []), **kwargs)

    assert isinstance(error, TypeError)
    assert note_of(error) == NOTE


@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("around", [None, scope], ids=["", "in a scope"])
def test_the_note_is_there_once_however_the_task_is_run(
    make_pool: MakePool, ledger: Ledger, around: Any, retries: int, propagate: bool
) -> None:
    def check_health(error: BaseException) -> bool:
        return True

    pool: Any = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        around=around,
        name="mine",
        check_health=check_health if retries else None,
        max_retries=retries,
        propagate_context=propagate,
    )
    error = pool.submit(takes_nothing).exception(DEADLINE)

    assert note_of(error) == NOTE
    assert error.__traceback__ is None


class Needy:
    """Its call raises a TypeError of its own."""

    def __call__(self, *_: object) -> None:
        raise TypeError("mine")


def calls_badly(*_: object) -> None:
    needs_two(1)  # type: ignore[call-arg]  # on purpose


class SubError(TypeError):
    """A TypeError that only user code raises."""


@pytest.mark.parametrize("around", [None, scope], ids=["", "in a scope"])
@pytest.mark.parametrize("fn", [Needy(), calls_badly], ids=["raises", "calls"])
def test_a_type_error_from_inside_of_a_task_gets_no_note(door: Door, ledger: Ledger, around: Any, fn: Any) -> None:
    ledger.any_thread = True
    door.open(on_create=ledger.create, on_destroy=ledger.destroy, around=around)

    error = door.error_of(fn)

    assert isinstance(error, TypeError)
    assert note_of(error) is None


def test_a_task_that_is_called_as_given_gets_no_note(door: Door, ledger: Ledger) -> None:
    ledger.any_thread = True
    door.open(on_create=ledger.create, on_destroy=ledger.destroy)

    with pytest.raises(TypeError) as caught:
        door.call_as_given(needs_one)
    assert note_of(caught.value) is None


@pytest.mark.parametrize("kind", ["submit", "run_now"])
@pytest.mark.parametrize("make", EXECUTORS, ids=["executor", "inline"])
def test_a_task_of_an_executor_without_resources_gets_no_note(make: Any, kind: str) -> None:
    with make() as pool:
        if kind == "submit":
            error = pool.submit(needs_one).exception(DEADLINE)
        else:
            with pytest.raises(TypeError) as caught:
                pool.run_now(needs_one)
            error = caught.value

    assert note_of(error) is None


# -- tasks that are none --


async def work(*_: object) -> int:
    return 1


def make_coroutine(*_: object) -> Any:
    return work()


@pytest.mark.parametrize("fn", [work, functools.partial(work, 1)], ids=["function", "partial"])
def test_an_async_function_is_no_task(door: Door, ledger: Ledger, fn: Any) -> None:
    if door.kind == "run_now":
        pytest.skip("its caller has the coroutine in hand")
    ledger.any_thread = True
    door.open(on_create=ledger.create, on_destroy=ledger.destroy)

    error = door.error_of(fn)  # and no warning of a coroutine that is never awaited

    assert type(error) is TypeError
    assert str(error).startswith("the task work is an async function;")
    assert note_of(error) is None


def test_a_function_that_makes_a_coroutine_for_its_caller_is_a_task(door: Door, ledger: Ledger) -> None:
    ledger.any_thread = True
    door.open(on_create=ledger.create, on_destroy=ledger.destroy)
    made = door.call(make_coroutine)

    assert asyncio.run(made) == 1


@pytest.mark.parametrize("executor", EXECUTORS)
def test_without_a_resource_an_async_function_returns_its_coroutine_as_in_the_standard_library(executor: Any) -> None:
    with executor() as pool:
        made = pool.submit(work).result(DEADLINE)

    assert asyncio.run(made) == 1
