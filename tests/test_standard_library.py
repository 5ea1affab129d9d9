"""What we know of `concurrent.futures` and asyncio, compared with what this Python has. A difference fails by its name."""

from __future__ import annotations

import ast
import asyncio
import concurrent.futures
import concurrent.futures._base
import gc
import inspect
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed, wait
from decimal import Decimal
from fractions import Fraction
from types import ModuleType
from typing import Any, cast

import pytest

from engine import Task
from support import Gate, MakePool
from tasker_executor import ResourceExecutor, ShutdownTimeout

#: What every class has, or any may have.
GENERAL = {
    *("__class_getitem__", "__dict__", "__doc__", "__init__", "__module__", "__repr__", "__weakref__"),
    *("__annotate_func__", "__annotations__", "__annotations_cache__", "__firstlineno__", "__static_attributes__"),
}

# -- what there is --


def test_we_know_all_methods_of_the_standard_future() -> None:
    inner = {"_Future__get_result", "_invoke_callbacks"}  # called by what we override
    ours = {name for part in Task.__mro__[: Task.__mro__.index(Future)] for name in vars(part)}

    new = sorted(set(vars(Future)) - ours - inner - GENERAL)

    assert new == [], (
        f"Future.{new[0]} is new. Does it use _state, _condition, _waiters, _done_callbacks, _result or _exception? Ours keeps"
        " them elsewhere: read _engine/foreign.py, override the method there, and see who calls it (grep asyncio)."
    )


def test_we_know_all_methods_of_the_standard_executors() -> None:
    # Of no use to us, since what we override calls them; and these two call `shutdown`.
    inner = {"__enter__", "__exit__", "_adjust_thread_count", "_counter", "_initializer_failed", "prepare_context", "BROKEN"}
    ours = {name for part in ResourceExecutor.__mro__[: ResourceExecutor.__mro__.index(Executor)] for name in vars(part)}

    new = sorted((set(vars(Executor)) | set(vars(ThreadPoolExecutor))) - ours - inner - GENERAL)

    assert new == [], (
        f"{new[0]} is new in Executor or ThreadPoolExecutor. What does it promise? ResourceExecutor takes the place of both:"
        " give it the method, InlineExecutor and the views as well (_base.py), and the view that as_thread_pool() returns."
    )


@pytest.mark.parametrize("name", ["__init__", "submit", "map", "shutdown"])
def test_we_take_every_argument_that_the_standard_executor_takes(name: str) -> None:
    inner = {"ctxkwargs"}  # for subclasses that have other workers
    ours = inspect.signature(getattr(ResourceExecutor, name)).parameters

    new = [argument for argument in inspect.signature(getattr(ThreadPoolExecutor, name)).parameters if argument not in ours]

    assert set(new) <= inner, f"ThreadPoolExecutor.{name} takes {', '.join(new)}: so must ours, and each view"


def test_we_know_what_the_standard_library_exports() -> None:
    known = {"ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION", "as_completed", "wait", "Executor", "Future"}
    known |= {"BrokenExecutor", "CancelledError", "InvalidStateError", "TimeoutError"}
    known |= {"InterpreterPoolExecutor", "ProcessPoolExecutor", "ThreadPoolExecutor"}

    new = sorted(set(concurrent.futures.__all__) - known)

    assert new == [], f"concurrent.futures.{new[0]} is new. Does it work with our futures? Test it in test_contract.py."


def private_reads(source: ModuleType | Callable[..., object]) -> set[str]:
    """Return the private names that this code reads of objects that may be futures."""
    tree = ast.walk(ast.parse(inspect.getsource(source)))
    reads = [node for node in tree if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    names = {read.attr for read in reads if read.value.id not in ("self", "events")}  # type: ignore[attr-defined]  # a Name: see above
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_we_know_what_others_read_of_a_future() -> None:
    of_asyncio: Any = asyncio.futures
    chain = [of_asyncio._copy_future_state, of_asyncio._chain_future, of_asyncio._set_concurrent_future_state]
    read = set[str]().union(*map(private_reads, [*chain, asyncio.wrap_future, concurrent.futures._base]))
    known = {"_condition", "_get_snapshot", "_state", "_waiters"}

    new = sorted(read - known)

    assert new == [], (
        f"asyncio, or concurrent.futures, reads {new[0]} of a future. Ours must have it, and it must mean the same while a"
        " task is queued, runs, ends and is cancelled: see _engine/foreign.py."
    )


def test_the_reads_are_found() -> None:
    assert {"_condition", "_state", "_waiters"} <= private_reads(concurrent.futures._base)
    if sys.version_info >= (3, 15):
        of_asyncio: Any = asyncio.futures
        assert "_get_snapshot" in private_reads(of_asyncio._copy_future_state)


# -- asyncio --


def test_an_error_that_asyncio_hands_on_counts_as_retrieved(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(1)

    def fail() -> None:
        raise LookupError

    async def main() -> None:
        with pytest.raises(LookupError):
            await asyncio.wrap_future(pool.submit(fail))
        with pytest.raises(LookupError):
            await asyncio.get_running_loop().run_in_executor(pool, fail)
        assert await asyncio.wrap_future(pool.submit(int, "7")) == 7

    asyncio.run(main())
    pool.shutdown()
    gc.collect()

    assert caplog.records == []


@pytest.mark.skipif(sys.version_info < (3, 15), reason="before Python 3.15 it calls `exception` and `result`")
def test_asyncio_takes_a_snapshot(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[object] = []
    snapshot: Any = cast("Any", Task)._get_snapshot

    def note(future: Task[Any]) -> object:
        taken.append(snapshot(future))
        return taken[-1]

    monkeypatch.setattr(Task, "_get_snapshot", note)

    async def main() -> int:
        return await asyncio.wrap_future(make_pool(1).submit(int, "7"))

    assert asyncio.run(main()) == 7
    assert taken == [(True, False, 7, None)]


# -- errors, word for word --


def refusal(call: Callable[[], object]) -> tuple[type[Exception], str]:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    return caught.type, str(caught.value)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="before Python 3.14 there is no buffersize")
@pytest.mark.parametrize("value", [0, -1, -(10**30), "2", 2.0, 1.5, [1], 2j, Decimal(2), Fraction(2), b"2"], ids=repr)
@pytest.mark.parametrize("chunksize", [1, 3])
def test_a_buffersize_is_refused_in_the_words_of_the_standard_library(make_pool: MakePool, value: Any, chunksize: int) -> None:
    options: dict[str, Any] = {"buffersize": value, "chunksize": chunksize}
    with ThreadPoolExecutor(1) as theirs:
        words = refusal(lambda: theirs.map(abs, [1], **options))
    pool = make_pool(1)
    ours: dict[str, Callable[[], object]] = {
        "map": lambda: pool.map(abs, [1], **options),
        "unordered": lambda: pool.map(abs, [1], ordered=False, **options),
        "a view": lambda: pool.with_options(priority=True).map(abs, [1], **options),
        "as_thread_pool": lambda: pool.as_thread_pool().map(abs, [1], **options),
        "as_async": lambda: pool.as_async().map(abs, [1], buffersize=value),
    }

    assert {name: refusal(call) for name, call in ours.items()} == dict.fromkeys(ours, words)


# -- times --


class Seconds:
    """A number of seconds of another library: it can be compared and added, and be made a float. It is in no tower."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __float__(self) -> float:
        return self._seconds

    def __lt__(self, other: float) -> bool:
        return self._seconds < other

    def __le__(self, other: float) -> bool:
        return self._seconds <= other

    def __gt__(self, other: float) -> bool:
        return self._seconds > other

    def __add__(self, other: float) -> float:
        return self._seconds + other

    __radd__ = __add__


TIMES: list[Any] = [
    *(0.001, 0, -1, -0.5),
    *(Decimal("0.001"), Decimal(-1), Fraction(1, 1000), Fraction(-1), Seconds(0.001), Seconds(-1.0)),
]


def waits(
    executor: Executor, future: Future[Any], running: Callable[[], object]
) -> Iterator[tuple[str, Callable[[Any], object]]]:
    yield "result", lambda timeout: future.result(timeout)
    yield "exception", lambda timeout: future.exception(timeout)
    yield "wait", lambda timeout: wait([future], timeout)
    yield "as_completed", lambda timeout: list(as_completed([future], timeout))
    yield "map", lambda timeout: list(executor.map(lambda *_: running(), [0], timeout=timeout))


def accepted(executor: Executor, timeout: object) -> set[str]:
    """Return which functions take this timeout, for a task that does not end."""
    took: set[str] = set()
    with executor, Gate() as gate:
        future = executor.submit(gate.hold)
        gate.wait_until_held()
        for name, call in waits(executor, future, gate.hold):
            try:
                call(timeout)
            except TimeoutError:
                pass
            except TypeError:
                continue
            took.add(name)
    return took


@pytest.mark.parametrize("timeout", TIMES, ids=lambda time: f"{type(time).__name__} {float(time)}")
def test_a_timeout_that_the_standard_library_takes_we_take(timeout: Any) -> None:
    theirs = accepted(ThreadPoolExecutor(1), timeout)
    ours = accepted(ResourceExecutor(1), timeout)

    assert theirs - ours == set()
    assert {"result", "exception", "map"} <= ours


def test_what_only_we_have_takes_the_same_times() -> None:
    with ResourceExecutor(1, idle_timeout=Seconds(60.0), run_within=Seconds(60.0)) as pool, Gate() as gate:  # type: ignore[arg-type]  # as from C
        pool.submit(gate.hold)
        gate.wait_until_held()

        with pytest.raises(ShutdownTimeout):
            pool.shutdown(timeout=Seconds(0.001))  # type: ignore[arg-type]  # as from C
