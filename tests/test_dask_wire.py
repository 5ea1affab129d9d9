"""`tasker_executor.dask`: calls, results and errors that do not pickle, or that do harm when they do."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest

pytest.importorskip("distributed", reason="tasker_executor.dask needs dask.distributed")


import dask_cluster
from dask_cluster import MakePool, everything, fail
from dask_support import FOREIGN_THREADS, Ref
from support import DEADLINE, Gate, Ledger

pytestmark = pytest.mark.foreign_threads(*FOREIGN_THREADS)

client = dask_cluster.client
make_dask = dask_cluster.make_dask
gate = dask_cluster.gate


def test_error_reaches_the_future_untouched(make_dask: MakePool) -> None:
    error = make_dask().submit(fail_with_cause).exception(DEADLINE)

    assert type(error) is KeyError
    assert error.args == ("key",)
    assert isinstance(error.__cause__, ValueError)
    assert error.__notes__ == ["noted"]


def fail_with_cause() -> None:
    error = KeyError("key")
    error.add_note("noted")
    raise error from ValueError("value")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_worker_survives_whatever_a_task_raises(make_dask: MakePool, error: BaseException) -> None:
    pool = make_dask()

    assert type(pool.submit(fail, error).exception(DEADLINE)) is type(error)
    assert pool.submit(abs, -1).result(DEADLINE) == 1


def test_error_reaches_the_future_though_its_class_takes_other_arguments(make_dask: MakePool) -> None:
    error = make_dask().submit(fail_stubbornly).exception(DEADLINE)

    assert type(error) is Stubborn
    assert str(error) == "no 7"


class Stubborn(Exception):
    def __init__(self, number: int, *, why: object) -> None:
        super().__init__(f"no {number}")
        self.why = why


def fail_stubbornly(why: object = "because") -> None:
    raise Stubborn(7, why=why)


def test_error_that_cannot_be_pickled_has_a_stand_in(make_dask: MakePool) -> None:
    error = make_dask().submit(fail_stubbornly_over_a_lock).exception(DEADLINE)

    assert type(error) is RuntimeError
    assert "Stubborn: no 7" in str(error)
    assert "fail_stubbornly" in str(error.__cause__)


def fail_stubbornly_over_a_lock() -> None:
    fail_stubbornly(why=threading.Lock())


def test_call_that_cannot_be_pickled_is_refused_by_submit(make_dask: MakePool) -> None:
    pool = make_dask()

    with pytest.raises(TypeError, match="pickle"):
        pool.submit(everything, threading.Lock())
    assert pool.stats().submitted == 0


def test_call_that_cannot_be_unpickled_fails_and_no_resource_is_blamed(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(on_create=Ref(ledger.create), on_destroy=Ref(ledger.destroy), check_health=never_healthy)

    error = pool.submit(everything, FailsToUnpickle()).exception(DEADLINE)

    assert isinstance(error, ImportError)
    assert pool.stats().workers_replaced == 0


class FailsToUnpickle:
    def __reduce__(self) -> tuple[Callable[[BaseException], None], tuple[BaseException]]:
        return fail, (ImportError("not here"),)


def never_healthy(error: BaseException) -> bool:
    return False


@pytest.mark.parametrize("when", ["submit", "run_now"])
def test_result_that_cannot_be_pickled_is_an_error(make_dask: MakePool, when: str) -> None:
    pool = make_dask(max_retries=0)

    with pytest.raises(TypeError, match="pickle"):
        _ = pool.run_now(threading.Lock) if when == "run_now" else pool.submit(threading.Lock).result(DEADLINE)


def test_result_that_cannot_be_pickled_is_not_the_fault_of_the_resource(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(on_create=Ref(ledger.create), on_destroy=Ref(ledger.destroy), check_health=never_healthy)

    assert isinstance(pool.submit(identity).exception(DEADLINE), TypeError)
    assert pool.stats().workers_replaced == 0


def identity(resource: object) -> object:
    return threading.Lock()


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """An error that refuses all attributes, also its traceback and the state that a pickle brings."""

    code: int


class FrozenWithSlots(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        object.__setattr__(self, "code", code)
        super().__init__(code)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class FrozenKey(KeyError):
    def __init__(self, code: int, *, also: str) -> None:
        super().__init__(code)
        vars(self).update(code=code, also=also)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class Shy(Exception):
    """Neither pickles nor can be shown."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def __str__(self) -> str:
        raise LookupError

    __repr__ = __str__


class Deadly(Exception):
    """Ends the thread that pickles it."""

    def __reduce__(self) -> Any:
        raise SystemExit


def raise_error(error: Any) -> None:
    raise error()


@pytest.mark.parametrize(
    "make", [partial(Frozen, 3), partial(FrozenWithSlots, 3), partial(FrozenKey, 3, also="x")], ids=["frozen", "slots", "key"]
)
def test_an_error_that_refuses_attributes_arrives_as_what_it_is(make_dask: MakePool, make: Callable[[], Any]) -> None:
    pool = make_dask()
    error: Any = pool.submit(raise_error, make).exception(DEADLINE)

    assert type(error) is type(make())
    assert error.code == 3
    assert vars(error) == vars(make())
    kind = cast("type[Exception]", type(make()))
    with pytest.raises(kind):
        pool.run_now(raise_error, make)


def test_the_traceback_of_an_error_that_refuses_one_arrives_as_a_text(make_dask: MakePool) -> None:
    error = make_dask().submit(raise_error, partial(Frozen, 3)).exception(DEADLINE)

    assert error is not None
    assert "in raise_error" in str(error.__cause__)


def test_an_error_that_cannot_travel_is_told_of(make_dask: MakePool) -> None:
    pool = make_dask()
    error = pool.submit(raise_error, Shy).exception(DEADLINE)

    assert type(error) is RuntimeError
    assert str(error).startswith("Shy: <Shy, whose str() raised LookupError> (stands in for the error itself")
    assert "raise_error" in str(error.__cause__)
    assert pool.submit(int).result(DEADLINE) == 0


def test_an_error_that_exits_when_it_is_pickled_arrives_by_another_way(make_dask: MakePool) -> None:
    assert isinstance(make_dask().submit(raise_error, Deadly).exception(DEADLINE), Deadly)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopIteration, asyncio.CancelledError, GeneratorExit])
def test_an_error_that_would_end_an_event_loop_ends_none(make_dask: MakePool, kind: type[BaseException]) -> None:
    pool = make_dask()

    assert type(pool.submit(raise_error, kind).exception(DEADLINE)) is kind
    with pytest.raises(kind):
        pool.run_now(raise_error, kind)
    assert pool.run_now(int) == 0


def exit_when_made(*_: object) -> None:
    raise SystemExit("in unpickling")


class DeadlyHere:
    """Pickles well, and ends the thread that unpickles it."""

    def __reduce__(self) -> Any:
        return exit_when_made, ()


def test_a_result_that_ends_the_thread_that_unpickles_it_ends_no_loop(make_dask: MakePool) -> None:
    pool = make_dask()

    assert isinstance(pool.submit(DeadlyHere).exception(DEADLINE), SystemExit)
    assert isinstance(pool.submit(str, DeadlyHere()).exception(DEADLINE), SystemExit)
    assert pool.submit(int).result(DEADLINE) == 0


def test_a_carrier_that_exits_costs_its_task_only(make_dask: MakePool) -> None:
    pool = make_dask(carriers=[(bool, exit_when_made)])

    assert isinstance(pool.submit(int).exception(DEADLINE), SystemExit)
    with pytest.raises(SystemExit):
        pool.run_now(int)


def test_a_resource_pool_whose_factory_exits_is_an_error_of_the_constructor(make_dask: MakePool) -> None:
    with pytest.raises(RuntimeError, match="SystemExit"):
        make_dask(on_create=exit_when_made, resource_pool_size=1)
    assert make_dask().submit(int).result(DEADLINE) == 0  # the workers live


def test_a_done_callback_that_exits_is_logged(make_dask: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_dask(name="crawler")
    future = pool.submit(Ref(gate.hold))
    future.add_done_callback(exit_when_made)
    gate.release()

    assert future.result(DEADLINE) is None
    assert pool.submit(int).result(DEADLINE) == 0
    assert "executor 'crawler': a done-callback raised and was ignored" in caplog.messages


class Unnamed:
    """A callable that has no attribute that it is asked for."""

    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError

    def __reduce__(self) -> Any:
        return Unnamed, ()

    def __call__(self) -> str:
        return "called"


def test_a_callable_that_raises_whatever_it_is_asked_for_is_a_task(make_dask: MakePool) -> None:
    assert make_dask().submit(Unnamed()).result(DEADLINE) == "called"


@pytest.mark.parametrize("kwargs", [{}, {"x": 1}])
def test_what_cannot_be_called_has_a_type_error_in_its_future(make_dask: MakePool, kwargs: dict[str, int]) -> None:
    nothing: Any = None

    assert isinstance(make_dask().submit(nothing, **kwargs).exception(DEADLINE), TypeError)
