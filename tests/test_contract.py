"""The contract of `concurrent.futures.Executor`, asked of every executor there is here, the standard library's included.

If `ThreadPoolExecutor` fails one of these tests, the test is wrong. To put another executor to the test, add a `Kind` to
`KINDS`; what it does not promise is said by a flag there, with the reason, and not by an exception in a test.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import pytest

from dask_support import FOREIGN_THREADS
from support import DEADLINE, Gate, MakePool, eventually
from tasker_executor import ResourceExecutor


@dataclass(frozen=True)
class Kind:
    """One kind of executor: how to make one, and what it promises beyond the contract or falls short of."""

    name: str
    #: Makes an executor with so many workers. It is shut down after the test; what is behind it is up to `make_pool`.
    make: Callable[[MakePool, int], Executor]
    #: Tasks start in the order in which they were submitted.
    first_in_first_out: bool = True
    #: It can be told how many tasks to run at once, and keeps to it.
    exact_size: bool = True
    #: `wait` and `as_completed` see the futures that ``shutdown(cancel_futures=True)`` cancelled.
    cancels_visibly: bool = True
    #: `map` takes `buffersize`.
    buffersize: bool = True
    #: An exception that is false in a boolean context is an error all the same.
    falsey_errors: bool = True
    #: It runs tasks in this process, so that they can close over what the test has in hand.
    in_process: bool = True
    #: Results and errors are the objects that the task returned or raised, and not copies.
    same_objects: bool = True
    #: The future knows when its task starts: it says that it runs, and cannot be cancelled any more.
    tells_starts: bool = True
    #: A cancellation has no way to go, on which it could be overtaken.
    cancels_at_once: bool = True

    def __str__(self) -> str:
        return self.name


KINDS = [
    Kind(
        "ThreadPoolExecutor",
        lambda make_pool, workers: ThreadPoolExecutor(workers),
        cancels_visibly=False,  # It cancels and does not notify.
        buffersize=sys.version_info >= (3, 14),
        falsey_errors=sys.version_info >= (3, 14),
    ),
    Kind("ResourceExecutor", lambda make_pool, workers: make_pool(workers)),
    Kind("ResourceExecutor with resources", lambda make_pool, workers: with_resources(make_pool, workers)),
    Kind("view", lambda make_pool, workers: make_pool(workers).with_options(priority=True)),
    Kind("as_thread_pool", lambda make_pool, workers: make_pool(workers).as_thread_pool()),
    pytest.param(
        Kind(
            "DaskResourceExecutor",
            lambda make_pool, workers: on_a_cluster(workers),
            first_in_first_out=False,  # Dask takes tasks that come within 100 ms in any order.
            same_objects=False,  # They are pickled.
            tells_starts=False,  # Dask tells its clients when a task ends, and not when it starts.
            cancels_at_once=False,
            falsey_errors=sys.version_info >= (3, 14),  # Its futures are those of the standard library.
        ),
        marks=[
            pytest.mark.skipif(find_spec("distributed") is None, reason="needs dask.distributed"),
            pytest.mark.foreign_threads(*FOREIGN_THREADS),
        ],
    ),
]


def on_a_cluster(workers: int) -> Executor:
    """An executor on a cluster of its own in this process; what it runs need not be picklable."""
    from dask_support import OnItsOwnCluster

    return OnItsOwnCluster(workers)


def with_resources(make_pool: MakePool, workers: int) -> Executor:
    """A pool with resources, seen through the view that is a strict Executor."""
    return make_pool(workers, on_create=object).with_options(pass_resource=False)


class MakeExecutor(Protocol):
    def __call__(self, workers: int = 1) -> Executor: ...


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture
def make_executor(kind: Kind, make_pool: MakePool) -> Iterator[MakeExecutor]:
    """Makes executors of the kind that is being tested; they are shut down after the test."""
    made: list[Executor] = []

    def make(workers: int = 1) -> Executor:
        executor = kind.make(make_pool, workers)
        made.append(executor)
        return executor

    yield make

    for executor in made:
        executor.shutdown()


@pytest.fixture
def executor(make_executor: MakeExecutor) -> Executor:
    """An executor with one worker."""
    return make_executor(1)


@pytest.fixture
def gate(make_executor: MakeExecutor) -> Iterator[Gate]:
    """A closed gate, which opens before the executors are shut down."""
    with Gate() as closed:
        yield closed


def needs(kind: Kind, capability: str) -> None:
    """Skip the test unless this kind of executor has the capability."""
    if not getattr(kind, capability):
        pytest.skip(f"{kind} does not promise {capability}")


def everything(*args: object, **kwargs: object) -> tuple[tuple[object, ...], dict[str, object]]:
    return args, kwargs


def fail(error: BaseException) -> None:
    raise error


class Falsey(Exception):
    def __bool__(self) -> bool:
        return False


# -- submit --


def test_future_is_that_of_concurrent_futures(executor: Executor) -> None:
    assert isinstance(executor.submit(int), Future)


def test_task_gets_its_arguments(executor: Executor) -> None:
    assert executor.submit(everything, 1, 2, third=3).result() == ((1, 2), {"third": 3})


def test_task_may_have_keywords_called_self_and_fn(executor: Executor) -> None:
    keywords: dict[str, Any] = {"self": 1, "fn": 2, "args": 3, "kwargs": 4}

    assert executor.submit(everything, **keywords).result() == ((), keywords)


@pytest.mark.parametrize("keywords", [{}, {"fn": int}], ids=["nothing", "fn="])
def test_submit_needs_a_function_by_position(executor: Executor, keywords: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        executor.submit(**keywords)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # bad on purpose


def test_task_runs_on_another_thread(kind: Kind, executor: Executor) -> None:
    needs(kind, "in_process")

    assert executor.submit(threading.get_ident).result() != threading.get_ident()


def test_tasks_start_in_the_order_in_which_they_were_submitted(kind: Kind, executor: Executor, gate: Gate) -> None:
    needs(kind, "first_in_first_out")
    ran: list[int] = []
    executor.submit(gate.hold)
    futures = [executor.submit(ran.append, number) for number in range(50)]

    gate.release()
    wait(futures)

    assert ran == list(range(50))


def test_as_many_tasks_run_at_once_as_there_are_workers(kind: Kind, make_executor: MakeExecutor, gate: Gate) -> None:
    needs(kind, "tells_starts")
    needs(kind, "exact_size")
    executor = make_executor(3)
    futures = [executor.submit(gate.hold) for _ in range(5)]
    gate.wait_until_held(3)

    assert sum(future.running() for future in futures) == 3
    gate.release()


def test_task_may_submit_another(kind: Kind, executor: Executor) -> None:
    needs(kind, "same_objects")
    inner = executor.submit(lambda: executor.submit(int, "7")).result()

    assert inner.result() == 7


def test_done_callback_may_submit_a_task(executor: Executor, gate: Gate) -> None:
    submitted: list[Future[int]] = []
    outer = executor.submit(gate.hold)
    outer.add_done_callback(lambda _: submitted.append(executor.submit(int, "7")))
    gate.release()

    eventually(lambda: bool(submitted), "the callback")
    assert submitted[0].result() == 7


# -- results and errors --


def test_result_is_what_the_task_returned(kind: Kind, executor: Executor) -> None:
    needs(kind, "same_objects")
    result = object()

    assert executor.submit(lambda: result).result() is result


def test_error_is_what_the_task_raised(kind: Kind, executor: Executor) -> None:
    needs(kind, "same_objects")
    error = ValueError("mine")
    future = executor.submit(fail, error)

    assert future.exception() is error
    with pytest.raises(ValueError, match=r"^mine$") as raised:
        future.result()
    assert raised.value is error


def test_traceback_leads_to_the_line_in_the_task(executor: Executor) -> None:
    with pytest.raises(ValueError, match="mine") as raised:
        executor.submit(fail, ValueError("mine")).result()

    assert raised.traceback[-1].name == "fail"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=lambda error: type(error).__name__)
def test_worker_survives_whatever_a_task_raises(kind: Kind, executor: Executor, error: BaseException) -> None:
    needs(kind, "same_objects")
    future = executor.submit(fail, error)

    assert future.exception() is error
    assert executor.submit(int).result() == 0


def test_error_that_is_false_is_an_error(kind: Kind, executor: Executor) -> None:
    needs(kind, "falsey_errors")
    future = executor.submit(fail, Falsey())

    with pytest.raises(Falsey):
        future.result()
    with pytest.raises(Falsey):
        list(executor.map(fail, [Falsey()]))


def test_result_that_takes_too_long_is_a_timeout(executor: Executor, gate: Gate) -> None:
    future = executor.submit(gate.hold)

    with pytest.raises(TimeoutError):
        future.result(timeout=0)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0.001)
    gate.release()
    assert future.result() is None


def test_result_may_be_asked_for_again(executor: Executor) -> None:
    future = executor.submit(int, "7")

    assert [future.result(), future.result(), future.exception()] == [7, 7, None]


def test_future_tells_where_its_task_is(kind: Kind, executor: Executor, gate: Gate) -> None:
    needs(kind, "tells_starts")
    first: Future[Any] = executor.submit(gate.hold)
    second: Future[Any] = executor.submit(int)
    gate.wait_until_held()

    assert (first.running(), first.done(), first.cancelled()) == (True, False, False)
    assert (second.running(), second.done(), second.cancelled()) == (False, False, False)
    gate.release()
    wait([first, second])
    assert (first.running(), first.done(), first.cancelled()) == (False, True, False)
    assert (second.running(), second.done(), second.cancelled()) == (False, True, False)


# -- callbacks --


def test_callback_gets_the_future(executor: Executor, gate: Gate) -> None:
    called: list[Future[None]] = []
    future = executor.submit(gate.hold)
    future.add_done_callback(called.append)
    gate.release()

    eventually(lambda: called == [future], "the callback")


def test_callback_added_too_late_is_called_at_once(executor: Executor) -> None:
    called: list[Future[int]] = []
    future = executor.submit(int)
    future.result()
    executor.submit(int).result()  # now the worker has told every waiter of the first one
    future.add_done_callback(called.append)

    assert called == [future]


def test_callback_that_raises_is_logged_and_the_others_are_called(
    executor: Executor, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[Future[None]] = []
    future = executor.submit(gate.hold)
    future.add_done_callback(lambda _: fail(ValueError("mine")))
    future.add_done_callback(called.append)
    gate.release()

    eventually(lambda: called == [future], "the second callback")
    logged = [record for record in caplog.records if record.name == "concurrent.futures"]  # others may log, too
    assert len(logged) == 1
    assert executor.submit(int).result() == 0


# -- cancelling --


def test_task_that_waits_can_be_cancelled_and_never_runs(kind: Kind, executor: Executor, gate: Gate) -> None:
    needs(kind, "cancels_at_once")
    ran: list[int] = []
    executor.submit(gate.hold)
    gate.wait_until_held()
    future = executor.submit(ran.append, 1)

    assert future.cancel()
    assert future.cancel()  # a second time is fine
    assert future.cancelled()
    assert future.done()
    with pytest.raises(CancelledError):
        future.result()
    with pytest.raises(CancelledError):
        future.exception()
    gate.release()
    executor.submit(int).result()
    assert ran == []


def test_task_that_runs_cannot_be_cancelled(kind: Kind, executor: Executor, gate: Gate) -> None:
    needs(kind, "tells_starts")
    future = executor.submit(gate.hold)
    gate.wait_until_held()

    assert not future.cancel()
    assert not future.cancelled()
    gate.release()
    assert future.result() is None


def test_task_that_is_done_cannot_be_cancelled(executor: Executor) -> None:
    future = executor.submit(int)
    future.result()

    assert not future.cancel()
    assert future.result() == 0


def test_callback_is_told_of_a_cancellation(executor: Executor, gate: Gate) -> None:
    called: list[bool] = []
    executor.submit(gate.hold)
    gate.wait_until_held()
    future = executor.submit(int)
    future.add_done_callback(lambda done: called.append(done.cancelled()))
    future.cancel()

    assert called == [True]


# -- waiting for several --


def test_wait_returns_when_the_first_is_done(make_executor: MakeExecutor, gate: Gate) -> None:
    executor = make_executor(2)
    held: Future[Any] = executor.submit(gate.hold)
    quick: Future[Any] = executor.submit(int)
    done, not_done = wait([held, quick], DEADLINE, FIRST_COMPLETED)

    assert done == {quick}
    assert not_done == {held}


def test_wait_returns_when_the_first_fails(make_executor: MakeExecutor, gate: Gate) -> None:
    executor = make_executor(2)
    held, failing = executor.submit(gate.hold), executor.submit(fail, ValueError())
    done, not_done = wait([held, failing], DEADLINE, FIRST_EXCEPTION)

    assert done == {failing}
    assert not_done == {held}


def test_wait_returns_when_all_are_done(make_executor: MakeExecutor) -> None:
    executor = make_executor(2)
    futures = [executor.submit(int) for _ in range(20)]

    assert wait(futures, DEADLINE, ALL_COMPLETED) == (set(futures), set())


def test_wait_gives_up_in_time(executor: Executor, gate: Gate) -> None:
    future = executor.submit(gate.hold)

    assert wait([future], timeout=0) == (set(), {future})


def test_as_completed_yields_each_future_once(make_executor: MakeExecutor) -> None:
    executor = make_executor(2)
    futures = [executor.submit(int, str(number)) for number in range(20)]

    assert sorted(future.result() for future in as_completed(futures + futures, DEADLINE)) == list(range(20))


def test_as_completed_yields_first_what_is_done_first(make_executor: MakeExecutor, gate: Gate) -> None:
    executor = make_executor(2)
    held: Future[Any] = executor.submit(gate.hold)
    quick: Future[Any] = executor.submit(int)
    completed = as_completed([held, quick], DEADLINE)

    assert next(completed) is quick
    gate.release()
    assert next(completed) is held


# -- map --


def test_map_yields_results_in_the_order_of_the_arguments(make_executor: MakeExecutor) -> None:
    assert list(make_executor(4).map(str, range(50))) == [str(number) for number in range(50)]


def test_map_takes_several_iterables_and_the_shortest_decides(executor: Executor) -> None:
    assert list(executor.map(pow, [2, 3, 4], itertools.count(2))) == [4, 27, 256]


def test_map_of_nothing_is_nothing(executor: Executor) -> None:
    assert list(executor.map(str, [])) == []


def test_map_submits_everything_though_nobody_asks_for_results(kind: Kind, executor: Executor) -> None:
    needs(kind, "first_in_first_out")
    needs(kind, "in_process")
    ran: list[int] = []
    executor.map(ran.append, range(5))
    executor.shutdown()

    assert ran == [0, 1, 2, 3, 4]


def test_map_raises_an_error_in_the_place_of_its_result(executor: Executor) -> None:
    results = executor.map((6).__floordiv__, [1, 2, 0, 3])

    assert [next(results), next(results)] == [6, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize("chunksize", [1, 2, 3])
def test_map_does_not_take_a_stop_iteration_of_the_function_for_the_end(executor: Executor, chunksize: int) -> None:
    def give_up_at_two(number: int) -> int:
        if number == 2:
            raise StopIteration
        return number

    results = executor.map(give_up_at_two, range(6), chunksize=chunksize)

    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(RuntimeError, match="generator raised StopIteration"):
        next(results)


def test_map_gives_up_in_time(executor: Executor, gate: Gate) -> None:
    results = executor.map(gate.hold, [1], timeout=0)

    with pytest.raises(TimeoutError):
        next(results)


def test_map_takes_a_chunksize(make_executor: MakeExecutor) -> None:
    assert list(make_executor(2).map(str, range(10), chunksize=4)) == [str(number) for number in range(10)]


def test_map_takes_a_buffersize(kind: Kind, executor: Executor) -> None:
    needs(kind, "buffersize")
    options: dict[str, Any] = {"buffersize": 2}
    results = executor.map(str, itertools.count(), **options)

    assert [next(results) for _ in range(5)] == ["0", "1", "2", "3", "4"]


def test_map_that_is_closed_cancels_what_has_not_started(kind: Kind, executor: Executor, gate: Gate) -> None:
    needs(kind, "first_in_first_out")
    needs(kind, "in_process")
    ran: list[int] = []

    def task(number: int) -> int:
        ran.append(number)
        if number == 1:
            gate.hold()
        return number

    results = executor.map(task, range(10))
    assert next(results) == 0
    gate.wait_until_held()
    results.close()  # type: ignore[attr-defined]  # a generator, in the standard library too

    gate.release()
    executor.shutdown()
    assert ran == [0, 1]


def test_map_goes_through_a_submit_that_was_replaced(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[object] = []
    original = executor.submit

    def submit(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        submitted.append(args)
        return original(fn, *args, **kwargs)

    monkeypatch.setattr(executor, "submit", submit)

    assert list(executor.map(str, [1, 2])) == ["1", "2"]
    assert len(submitted) == 2


# -- the end --


def test_shutdown_waits_for_what_runs_and_what_waits(kind: Kind, executor: Executor, gate: Gate) -> None:
    needs(kind, "in_process")
    first, others = executor.submit(gate.hold), [executor.submit(int) for _ in range(5)]
    gate.wait_until_held()
    threading.Thread(target=gate.release).start()
    executor.shutdown()

    assert first.done()
    assert all(other.done() for other in others)


def test_shutdown_need_not_wait_and_all_is_done_nevertheless(executor: Executor, gate: Gate) -> None:
    first, second = executor.submit(gate.hold), executor.submit(int)
    gate.wait_until_held()
    executor.shutdown(wait=False)

    assert not first.done()
    gate.release()
    assert first.result() is None
    assert second.result() == 0


def test_nothing_is_accepted_after_shutdown(executor: Executor) -> None:
    executor.shutdown()

    with pytest.raises(RuntimeError) as submitted:
        executor.submit(int)
    with pytest.raises(RuntimeError) as mapped:
        executor.map(int, ["1"])
    for caught in (submitted, mapped):
        assert str(caught.value) == "cannot schedule new futures after shutdown"


def test_nothing_is_accepted_while_the_rest_is_done(executor: Executor, gate: Gate) -> None:
    executor.submit(gate.hold)
    executor.shutdown(wait=False)

    with pytest.raises(RuntimeError):
        executor.submit(int)


def test_task_that_submits_during_shutdown_is_refused_and_not_hung(executor: Executor, gate: Gate) -> None:
    def task() -> None:
        gate.hold()
        executor.submit(int)

    future = executor.submit(task)
    gate.wait_until_held()
    executor.shutdown(wait=False)
    gate.release()
    executor.shutdown()

    assert isinstance(future.exception(), RuntimeError)


def test_shutdown_may_be_repeated(executor: Executor) -> None:
    executor.shutdown()
    executor.shutdown(wait=False)
    executor.shutdown(cancel_futures=True)

    with pytest.raises(RuntimeError):
        executor.submit(int)


def test_with_block_ends_when_all_is_done(make_executor: MakeExecutor) -> None:
    with make_executor(2) as executor:
        futures = [executor.submit(int) for _ in range(20)]

    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError):
        executor.submit(int)


def test_shutdown_cancels_what_waits_if_told_so(executor: Executor, gate: Gate) -> None:
    first, others = executor.submit(gate.hold), [executor.submit(int) for _ in range(5)]
    gate.wait_until_held()
    executor.shutdown(wait=False, cancel_futures=True)

    assert all(other.cancelled() for other in others)
    assert not first.cancelled()
    gate.release()
    assert first.result() is None


def test_those_who_wait_learn_what_shutdown_cancelled(kind: Kind, executor: Executor, gate: Gate) -> None:
    needs(kind, "cancels_visibly")
    executor.submit(gate.hold)
    gate.wait_until_held()
    waiting = [executor.submit(int) for _ in range(5)]
    executor.shutdown(wait=False, cancel_futures=True)

    assert wait(waiting, DEADLINE) == (set(waiting), set())
    assert set(as_completed(waiting, DEADLINE)) == set(waiting)


def test_future_cancelled_before_shutdown_does_not_hold_it_up(executor: Executor, gate: Gate) -> None:
    executor.submit(gate.hold)
    gate.wait_until_held()
    future = executor.submit(int)
    future.cancel()
    gate.release()
    executor.shutdown()

    assert future.cancelled()


# -- letting go --


class Thing:
    """Something to refer to weakly."""


def test_nothing_of_a_finished_task_is_kept(kind: Kind, executor: Executor) -> None:
    needs(kind, "same_objects")
    needs(kind, "in_process")
    argument, result, keyword = Thing(), Thing(), Thing()

    def task(_argument: Thing, *, keyword: Thing, box: list[Thing]) -> Thing:
        return box.pop()

    references = [weakref.ref(argument), weakref.ref(result), weakref.ref(keyword)]
    future = executor.submit(task, argument, keyword=keyword, box=[result])
    future.result()
    del argument, result, keyword, future

    eventually(lambda: gc.collect() >= 0 and [reference() for reference in references] == [None] * 3, "all to be forgotten")


def test_error_of_a_finished_task_is_not_kept(kind: Kind, executor: Executor) -> None:
    needs(kind, "same_objects")
    needs(kind, "in_process")

    class Mine(Exception):
        pass

    def task() -> None:
        raise Mine

    future = executor.submit(task)
    reference = weakref.ref(future.exception() or Thing())
    del future

    eventually(lambda: gc.collect() >= 0 and reference() is None, "the error to be let go")


# -- asyncio --


def test_coroutine_can_await_a_task(executor: Executor) -> None:
    async def main() -> int:
        return await asyncio.get_running_loop().run_in_executor(executor, int, "7")

    assert asyncio.run(main()) == 7


def test_coroutine_gets_the_error_of_a_task(executor: Executor) -> None:
    async def main() -> None:
        await asyncio.wrap_future(executor.submit(fail, ValueError("mine")))

    with pytest.raises(ValueError, match="mine"):
        asyncio.run(main())


def test_cancelled_coroutine_cancels_the_task_that_waits(executor: Executor, gate: Gate) -> None:
    executor.submit(gate.hold)
    gate.wait_until_held()
    future = executor.submit(int)

    async def main() -> None:
        asyncio.wrap_future(future).cancel()
        await asyncio.sleep(0)  # the cancellation is passed on by a callback of the loop

    asyncio.run(main())

    assert future.cancelled()


def test_resource_executor_is_an_executor_and_no_thread_pool(make_pool: MakePool) -> None:
    pool = make_pool(1)

    assert isinstance(pool, Executor)
    assert isinstance(pool, ResourceExecutor)
    assert not isinstance(pool, ThreadPoolExecutor)
    assert isinstance(pool.with_options(), Executor)
    assert isinstance(pool.as_thread_pool(), ThreadPoolExecutor)
