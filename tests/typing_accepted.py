"""Uses of the library that a type checker must accept, and what it must make of them.

mypy and pyright read this file (``make types``), and ``test_typing.py`` runs each function: what the types say is what happens.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar, assert_type

from typing_extensions import override

from tasker_executor import (
    BacklogPolicy,
    ExecutorMetrics,
    ExecutorStats,
    ExecutorView,
    Hysteresis,
    LoadSample,
    Observer,
    RatePolicy,
    ResourceExecutor,
    ScalingPolicy,
    TaskContext,
    TaskEvent,
    TaskFuture,
    current_task,
)
from tasker_executor.aio import AsyncResults, AsyncView
from tasker_executor.testing import InlineExecutor

if TYPE_CHECKING:  # it needs an extra, and no claim about it is run
    from tasker_executor.dask import DaskResourceExecutor

R = TypeVar("R")
T = TypeVar("T")


class Connection:
    """A resource."""

    def __init__(self, address: str = "here") -> None:
        self.address = address

    def ask(self, question: str, *, times: int = 1) -> list[str]:
        return [question] * times

    def ping(self) -> bool:
        return True

    def close(self) -> None:
        pass


def fetch(connection: Connection, question: str, *, times: int = 1) -> list[str]:
    return connection.ask(question, times=times)


def word_count(text: str, /, least: int = 0) -> int:
    return max(least, len(text.split()))


def pair(left: int, right: str) -> tuple[int, str]:
    return left, right


# -- the executor itself


def a_pool_without_on_create_is_one_of_none() -> None:
    pool = ResourceExecutor(2, "crawler", print, ("a worker starts",))
    assert_type(pool, ResourceExecutor[None])
    pool.shutdown(wait=False, cancel_futures=True)


def a_pool_without_brackets_is_one_of_none() -> None:
    def count(pool: ResourceExecutor, view: ExecutorView, text: str) -> int:
        assert_type(pool, ResourceExecutor[None])
        assert_type(view, ExecutorView[None])
        return pool.submit(word_count, text).result() + view.submit(word_count, text).result()

    with ResourceExecutor(1) as pool:
        assert count(pool, pool.with_options(priority=True), "to be") == 4


def an_inline_executor_without_brackets_is_one_of_none() -> None:
    def count(pool: InlineExecutor, text: str) -> int:
        assert_type(pool, InlineExecutor[None])
        return pool.submit(word_count, text).result()

    with InlineExecutor() as pool:
        assert count(pool, "to be") == 2


def a_dask_executor_without_brackets_is_one_of_none(pool: DaskResourceExecutor) -> None:
    """Not run: it takes an argument."""
    assert_type(pool, DaskResourceExecutor[None])
    assert_type(pool.submit(word_count, "to be"), TaskFuture[int])


def on_create_may_be_none_for_code_that_hands_arguments_on() -> None:
    with ResourceExecutor(2, on_create=None) as pool:
        assert_type(pool, ResourceExecutor[None])


def on_create_says_what_the_resource_is() -> None:
    with ResourceExecutor(2, on_create=Connection) as pool:
        assert_type(pool, ResourceExecutor[Connection])


def every_hook_gets_the_resource() -> None:
    def refused(error: BaseException) -> bool:
        return not isinstance(error, ConnectionError)

    pool = ResourceExecutor(
        2,
        on_create=partial(Connection, "there"),
        on_destroy=Connection.close,
        check_health=refused,
        check_resource=Connection.ping,
        on_abort=lambda connection: connection.close(),
        check_after_idle=1,
        max_age=60,
        max_uses=1000,
        create_timeout=5,
        resource_pool_size=1,
    )
    with pool:
        assert_type(pool, ResourceExecutor[Connection])


def hooks_of_real_libraries_fit() -> None:
    with ResourceExecutor(
        1,
        on_create=lambda: sqlite3.connect(":memory:"),
        on_destroy=sqlite3.Connection.close,
        on_abort=sqlite3.Connection.interrupt,
        check_health=lambda error: not isinstance(error, sqlite3.OperationalError),
    ) as pool:
        assert_type(pool, ResourceExecutor[sqlite3.Connection])
        cursor = pool.submit(sqlite3.Connection.execute, "select 1")
        assert_type(cursor, TaskFuture[sqlite3.Cursor])


def a_destroy_hook_may_return_anything() -> None:
    with ResourceExecutor(1, on_create=lambda: {"answer": 42}, on_destroy=dict[str, int].copy) as pool:
        assert_type(pool.submit(len), TaskFuture[int])


# -- tasks


def without_a_resource_tasks_are_called_as_given() -> None:
    with ResourceExecutor(2) as pool:
        assert_type(pool.submit(word_count, "to be or not"), TaskFuture[int])
        assert_type(pool.submit(word_count, "to be", least=3), TaskFuture[int])
        assert_type(pool.submit_priority(word_count, "to be"), TaskFuture[int])
        assert_type(pool.run_now(word_count, "to be"), int)
        assert_type(pool.submit(print, "to be", end="").result(), None)
        assert_type(pool.submit(threading.get_ident), TaskFuture[int])


def with_a_resource_tasks_are_called_with_it() -> None:
    with ResourceExecutor(2, on_create=Connection) as pool:
        assert_type(pool.submit(fetch, "why?"), TaskFuture[list[str]])
        assert_type(pool.submit(fetch, "why?", times=3), TaskFuture[list[str]])
        assert_type(pool.submit_priority(fetch, "why?"), TaskFuture[list[str]])
        assert_type(pool.run_now(fetch, "why?", times=2), list[str])
        assert_type(pool.submit(Connection.ping), TaskFuture[bool])
        assert_type(pool.submit(Connection.ask, "why?", times=2), TaskFuture[list[str]])
        assert_type(pool.submit(lambda connection: connection.address), TaskFuture[str])
        assert_type(pool.submit(partial(fetch, times=2), "why?").result(), list[str])


def a_task_may_have_keywords_with_the_names_of_ours() -> None:
    def task(connection: Connection, /, fn: str, self: int, timeout: float) -> str:
        return f"{fn}{self}{timeout}"

    with ResourceExecutor(1, on_create=Connection) as pool:
        assert_type(pool.submit(task, fn="f", self=1, timeout=0.5), TaskFuture[str])
        assert_type(pool.run_now(task, "f", self=1, timeout=0.5), str)


def map_says_what_its_results_are() -> None:
    with ResourceExecutor(2, on_create=Connection) as pool:
        answers = pool.map(fetch, ["why?", "how?"], timeout=30, chunksize=2, buffersize=4)
        assert_type(answers, Iterator[list[str]])
        assert list(answers) == [["why?"], ["how?"]]
    with ResourceExecutor(2) as plain:
        assert_type(plain.map(pair, [1, 2], ["a", "b"]), Iterator[tuple[int, str]])
        assert_type(plain.map(word_count, ["to be"]), Iterator[int])


def map_knows_the_arguments_of_a_lambda() -> None:
    with ResourceExecutor(2) as plain:
        assert_type(plain.map(lambda text: text.upper(), ["to be"]), Iterator[str])
        assert_type(plain.map(lambda a, b: (b.upper(), a.bit_length()), [1], ["b"]), Iterator[tuple[str, int]])
        assert_type(plain.map(lambda a, b, c: (c, b, a), [1], "b", [1.0]), Iterator[tuple[float, str, int]])
        assert_type(plain.map(lambda a, b, c, d: a + b + c + d, [1], [2], [3], [4]), Iterator[int])
        assert_type(plain.map(lambda a, b, c, d, e: a + b + c + d + e, "a", "b", "c", "d", "e"), Iterator[str])
        view = plain.with_options(priority=True)
        assert_type(view.map(lambda text: len(text), ["to be"], ordered=False), Iterator[int])
        assert_type(view.map(lambda text: len(text), ["to be"], timeout=30.0, stop_on_timeout=True), Iterator[int])
    with ResourceExecutor(2, on_create=Connection) as pool:
        assert_type(pool.map(lambda connection, text: connection.ask(text), ["why?"]), Iterator[list[str]])
        assert_type(pool.map(lambda connection, a, b: (connection, b, a), [1], ["b"]), Iterator[tuple[Connection, str, int]])
        assert_type(pool.map(lambda r, a, b, c: r.ask(c, times=a + b), [1], [2], ["c"]), Iterator[list[str]])
        assert_type(pool.map(lambda r, a, b, c, d: r.ask(d, times=a + b + c), [1], [2], [3], "d"), Iterator[list[str]])
        assert_type(
            pool.map(lambda r, a, b, c, d, e: r.ask(a + b + c + d, times=e), "a", "b", "c", "d", [5]), Iterator[list[str]]
        )
        view_of_it = pool.with_options(priority=True)
        assert_type(view_of_it.map(lambda connection, text: connection.ask(text), ["why?"]), Iterator[list[str]])
        assert_type(pool.with_options(pass_resource=False).map(lambda text: len(text), ["why?"]), Iterator[int])
    with InlineExecutor(on_create=Connection) as inline:
        assert_type(inline.map(lambda connection, text: connection.ask(text), ["why?"]), Iterator[list[str]])


def a_dask_executor_maps_likewise(plain: DaskResourceExecutor, pool: DaskResourceExecutor[Connection]) -> None:
    """Not run: it takes arguments."""
    assert_type(plain.map(lambda text: len(text), ["to be"]), Iterator[int])
    assert_type(pool.map(lambda connection, text: connection.ask(text), ["why?"], ordered=False), Iterator[list[str]])


def map_takes_what_fits() -> None:
    def any_text(connection: object, text: object, times: float = 1.0) -> bool:
        return True

    with ResourceExecutor(2, on_create=Connection) as pool:
        assert_type(pool.map(any_text, ["why?"]), Iterator[bool])
        assert_type(pool.map(any_text, ["why?"], [1]), Iterator[bool])
        assert_type(pool.map(Connection.ask, ["why?"]), Iterator[list[str]])
        assert_type(pool.map(partial(fetch, times=2), ["why?"]), Iterator[list[str]])
    with ResourceExecutor(2) as plain:
        assert_type(plain.map(str, [1]), Iterator[str])
        assert_type(plain.map(Connection, ["here"]), Iterator[Connection])


def map_knows_less_of_many_iterables() -> None:
    def six(*numbers: int) -> int:
        return sum(numbers)

    def seven(connection: Connection, *numbers: int) -> int:
        return len(connection.address) + sum(numbers)

    one: list[list[int]] = [[1]]
    with ResourceExecutor(2) as plain:
        assert_type(plain.map(six, [1], [2], [3], [4], [5], [6]), Iterator[int])
        assert_type(plain.map(six, [1], [2], [3], [4], [5], [6], [7], ordered=False, stop_on_timeout=True), Iterator[int])
        assert_type(plain.map(six, *one), Iterator[int])
    with ResourceExecutor(2, on_create=Connection) as pool:
        assert_type(pool.map(seven, [1], [2], [3], [4], [5], [6]), Iterator[int])
        assert_type(pool.map(seven, *one, buffersize=2), Iterator[int])


def a_generic_helper_takes_any_pool() -> None:
    def ask_all(pool: ResourceExecutor[R] | ExecutorView[R], task: Callable[[R, str], T], questions: list[str]) -> list[T]:
        return [future.result() for future in [pool.submit(task, question) for question in questions]]

    with ResourceExecutor(2, on_create=Connection) as pool:
        assert_type(ask_all(pool, fetch, ["why?"]), list[list[str]])
        assert_type(ask_all(pool.with_options(priority=True), fetch, ["why?"]), list[list[str]])


def futures_work_with_the_standard_library() -> None:
    with ResourceExecutor(2, on_create=Connection) as pool:
        futures: dict[Future[list[str]], str] = {pool.submit(fetch, question): question for question in ("why?", "how?")}
        for future in as_completed(futures):
            assert_type(future.result(), list[str])
            assert_type(futures[future], str)


# -- views


def a_view_keeps_the_resource() -> None:
    with ResourceExecutor(1, on_create=Connection) as pool:
        view = pool.with_options(priority=True, max_retries=0, start_within=30)
        assert_type(view, ExecutorView[Connection])
        assert_type(view.with_options(start_within=None), ExecutorView[Connection])
        assert_type(view.submit(fetch, "why?"), TaskFuture[list[str]])
        with view as same:
            assert_type(same, ExecutorView[Connection])


def a_view_may_leave_the_resource_out() -> None:
    with ResourceExecutor(1, on_create=Connection) as pool:
        view = pool.with_options(pass_resource=False)
        assert_type(view, ExecutorView[None])
        assert_type(view.submit(word_count, "to be"), TaskFuture[int])
        assert_type(view.with_options(priority=True), ExecutorView[None])
        assert_type(view.run_now(word_count, "to be"), int)


def code_that_takes_an_executor_takes_ours() -> None:
    def count(executor: Executor, texts: list[str]) -> int:
        return sum(executor.map(word_count, texts)) + executor.submit(word_count, "one").result()

    with ResourceExecutor(1) as pool:
        assert count(pool, ["to be"]) == 3
        assert count(pool.with_options(priority=True), ["to be"]) == 3
    with ResourceExecutor(1, on_create=Connection) as pool_of_connections:
        assert count(pool_of_connections.with_options(pass_resource=False), ["to be"]) == 3
        assert count(pool_of_connections.as_thread_pool(), ["to be"]) == 3
        assert_type(pool_of_connections.as_thread_pool(), ThreadPoolExecutor)


def asyncio_takes_ours() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        with ResourceExecutor(1, on_create=Connection) as pool:
            answer = asyncio.wrap_future(pool.submit(fetch, "why?"))
            assert_type(answer, asyncio.Future[list[str]])
            count = await loop.run_in_executor(pool.with_options(pass_resource=False), word_count, "to be")
            return count + len(await answer)

    assert asyncio.run(main()) == 3


def a_view_for_coroutines_is_typed_as_its_executor() -> None:
    async def main() -> None:
        with ResourceExecutor(1) as plain, ResourceExecutor(1, on_create=Connection) as pool:
            assert_type(plain.as_async(), AsyncView[None])
            assert_type(pool.as_async(priority=True), AsyncView[Connection])
            assert_type(pool.as_async(pass_resource=False), AsyncView[None])
            assert_type(pool.with_options(max_retries=0).as_async(run_within=None), AsyncView[Connection])
            async with plain.as_async() as texts, pool.as_async() as questions:
                assert_type(await texts.run(word_count, "to be", least=1), int)
                assert_type(await questions.run(fetch, "why?", times=2), list[str])
                assert_type(await questions.run(lambda connection: connection.address), str)
                assert_type(texts.map(word_count, ["to be"]), AsyncResults[int])
                assert_type(texts.map(pair, [1], ["a"]), AsyncResults[tuple[int, str]])
                assert_type(texts.map(lambda a, b, c, d, e: a + b + c + d + e, "a", "b", "c", "d", "e"), AsyncResults[str])
                assert_type(questions.map(fetch, ["why?"], buffersize=2, ordered=False), AsyncResults[list[str]])
                assert_type(questions.map(lambda r, a, b: (r, b, a), [1], "b"), AsyncResults[tuple[Connection, str, int]])
                assert_type([answer async for answer in questions.map(fetch, ["why?"])], list[list[str]])

    asyncio.run(main())


# -- policies and observers


class OfficeHours:
    """A policy by its shape: it inherits nothing, and its interval is a plain attribute."""

    interval = 60.0

    def target(self, load: LoadSample) -> int:
        return load.max_workers


@dataclass(frozen=True)
class Fixed:
    """A policy whose interval is a field that cannot be assigned to, and a whole number."""

    workers: int
    interval: int = 1

    def target(self, load: LoadSample, /) -> int:
        return self.workers


def a_policy_is_known_by_its_shape() -> None:
    policies: list[ScalingPolicy] = [OfficeHours(), Fixed(2), BacklogPolicy(), Hysteresis(RatePolicy(), shrink_after=30)]
    policies.append(OfficeHours() | RatePolicy())
    policies.append(RatePolicy() & Fixed(3))
    for policy in policies:
        with ResourceExecutor(2, min_workers=1, policy=policy) as pool:
            assert_type(pool, ResourceExecutor[None])


class Failures(Observer):
    """An observer overrides what it wants to hear of."""

    def __init__(self) -> None:
        self.functions: list[str] = []

    @override
    def task_finished(self, event: TaskEvent) -> None:
        if event.error is not None:
            self.functions.append(event.function)


def observers_may_come_in_any_iterable() -> None:
    failures = [Failures()]
    for observers in (failures, tuple(failures), iter(failures)):
        with ResourceExecutor(1, observers=observers) as pool:
            pool.submit(int, "one").exception()
    assert failures[0].functions == ["int", "int", "int"]


# -- subclasses


class Database(ResourceExecutor[Connection]):
    """An executor of one's own, with a method that is a task."""

    def __init__(self, address: str, workers: int = 2) -> None:
        super().__init__(workers, on_create=lambda: Connection(address), on_destroy=Connection.close)

    def ask(self, question: str) -> Future[list[str]]:
        return self.submit(fetch, question)


class Workers(ResourceExecutor[None]):
    """One without a resource."""

    def __init__(self) -> None:
        super().__init__(2, thread_name_prefix="workers")


class Noted(ResourceExecutor[R]):
    """One for any resource."""

    def __init__(self, make: Callable[[], R]) -> None:
        self.made: list[R] = []

        def make_and_note() -> R:
            resource = make()
            self.made.append(resource)
            return resource

        super().__init__(1, on_create=make_and_note)


def subclasses_know_their_resource() -> None:
    with Database("here") as database:
        assert_type(database, Database)
        assert_type(database.ask("why?").result(), list[str])
        assert_type(database.with_options(max_retries=0), ExecutorView[Connection])
    with Workers() as workers:
        assert_type(workers.submit(word_count, "to be"), TaskFuture[int])
    with Noted(Connection) as noted:
        assert_type(noted, Noted[Connection])
        assert_type(noted.submit(fetch, "why?").result(), list[str])
    assert_type(noted.made, list[Connection])
    assert len(noted.made) == 1


# -- what it tells of itself


def a_task_may_ask_where_it_is() -> None:
    with ResourceExecutor(1, on_create=Connection) as pool:

        def task(connection: Connection) -> bool:
            assert_type(current_task(), TaskContext)
            assert_type(current_task().cancelled, bool)
            return pool.current_resource() is connection

        assert_type(pool.current_resource, Callable[[], Connection])
        assert pool.submit(task).result()


def snapshots_have_types_of_their_own() -> None:
    with ResourceExecutor(1, on_create=Connection) as pool:
        pool.wait_ready(timeout=30)
        pool.resize(min_workers=1)
        pool.resize(max_workers=2)
        assert_type(pool.stats(), ExecutorStats)
        assert_type(pool.metrics(reset=True), ExecutorMetrics)
        assert_type(pool.metrics().wait.p99, float)
        pool.shutdown(timeout=30)
