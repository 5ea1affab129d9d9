"""What is done around each task (`around`), and between two (`reset`)."""

from __future__ import annotations

import contextvars
import gc
import threading
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import pytest

from doors import Door, door, hooks_of, pool_of
from engine import idle_workers, living_holdings, workers_of
from races import Thrown, wait_until_idle
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, ResourceBroken, eventually, needs_gil, run_python
from tasker_executor import (
    NoCurrentTask,
    Observer,
    ResourceExecutor,
    TaskEvent,
    Verdict,
    WorkerEvent,
    current_slot,
    current_task,
)
from tasker_executor._engine.worker import _SHIFT

__all__ = ["door"]


class Scope:
    """An `around` hook that notes what happens, and in which order."""

    def __init__(self, gives: Callable[[FakeResource], object] = lambda _: None) -> None:
        self.story: list[Any] = []
        self.threads: list[threading.Thread] = []
        self._gives = gives

    @contextmanager
    def __call__(self, resource: FakeResource) -> Generator[Any]:
        self.threads.append(threading.current_thread())
        self.story.append("begin")
        try:
            yield self._gives(resource)
        except BaseException as error:
            self.story.append(type(error))
            raise
        else:
            self.story.append("commit")


def answering(verdict: Verdict) -> Callable[[Exception], Verdict]:
    """Return a `check_health` with that answer."""

    def check_health(error: Exception) -> Verdict:
        return verdict

    return check_health


class OwnError(Exception):
    """An error of the task's own."""


def fail(*_: object) -> None:
    raise OwnError


def number_of(resource: FakeResource) -> int:
    return resource.use()


def number_with(resource: FakeResource, _: int) -> int:
    return resource.number


def double(_: FakeResource, number: int) -> int:
    return 2 * number


def identity(resource: Any) -> Any:
    return resource


def held_at(gate: Gate) -> Callable[[FakeResource], int]:
    """Return a task that is held at the gate, and then returns the number of its resource."""

    def hold(resource: FakeResource) -> int:
        gate.hold()
        return resource.number

    return hold


# -- around --


def test_the_scope_is_entered_before_each_task_and_left_after_it(door: Door, ledger: Ledger) -> None:
    scope = Scope()
    door.open(**hooks_of(ledger), around=scope)

    def work(resource: FakeResource, name: str, *, suffix: str = "") -> str:
        scope.story.append(name + suffix)
        return name

    assert door.call(work, "first") == "first"
    assert door.call(work, "second", suffix="!") == "second"
    assert scope.story == ["begin", "first", "commit", "begin", "second!", "commit"]


def test_the_scope_sees_the_error_of_its_task(door: Door, ledger: Ledger) -> None:
    scope = Scope()
    door.open(**hooks_of(ledger), around=scope)

    assert isinstance(door.error_of(fail), OwnError)
    assert scope.story == ["begin", OwnError]


def test_the_scope_sees_a_system_exit_too(make_pool: MakePool, ledger: Ledger) -> None:
    def leave(_: FakeResource) -> None:
        raise SystemExit(3)

    scope = Scope()
    pool = pool_of(make_pool, ledger, 1, around=scope)

    assert isinstance(pool.submit(leave).exception(DEADLINE), SystemExit)
    assert scope.story == ["begin", SystemExit]


def test_a_scope_is_entered_and_left_on_the_thread_of_its_task(make_pool: MakePool, ledger: Ledger) -> None:
    scope = Scope()
    pool = pool_of(make_pool, ledger, 1, around=scope, resource_pool_size=1)
    worker = pool.submit(lambda _: threading.current_thread()).result(DEADLINE)
    pool.run_now(number_of)

    assert scope.threads == [worker, threading.current_thread()]


def test_a_transaction_commits_what_its_task_did_or_rolls_it_back(door: Door) -> None:
    import sqlite3

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        connection.execute("create table numbers (number)")
        return connection

    @contextmanager
    def transaction(connection: sqlite3.Connection) -> Generator[None]:
        connection.execute("begin")
        with connection:
            yield

    def insert(connection: sqlite3.Connection, number: int, error: Exception | None = None) -> list[int]:
        connection.execute("insert into numbers values (?)", [number])
        if error is not None:
            raise error
        return [row[0] for row in connection.execute("select number from numbers")]

    door.open(on_create=connect, on_destroy=sqlite3.Connection.close, around=transaction)
    first = door.call(insert, 1)
    error = door.error_of(insert, 2, OwnError())
    last = door.call(insert, 3)

    assert isinstance(error, OwnError)
    assert first == [1]
    assert last == ([3] if door.kind == "run_now" else [1, 3])  # there each call has a database of its own


def test_a_scope_that_swallows_the_error_makes_its_task_return_none(door: Door, ledger: Ledger) -> None:
    def around(_: FakeResource) -> AbstractContextManager[None]:
        return suppress(OwnError, ResourceBroken)

    pool = door.open(**hooks_of(ledger), around=around)

    assert door.call(fail) is None
    assert door.call(FakeResource.break_down) is None  # no error: nothing is judged
    assert pool.stats().resources_destroyed == (2 if door.kind == "run_now" else 0)
    if not door.runs_now:
        assert (pool.stats().completed, pool.stats().failed) == (2, 0)


class Broken(AbstractContextManager[None]):
    """A scope that raises in one place."""

    def __init__(self, where: str, error: BaseException) -> None:
        self.where = where
        self.error = error

    def __enter__(self) -> None:
        if self.where == "enter":
            raise self.error

    def __exit__(self, *exc_info: object) -> None:
        if self.where == "exit":
            raise self.error


@pytest.mark.parametrize("where", ["around", "enter", "exit"])
def test_an_error_of_the_scope_is_the_tasks(door: Door, ledger: Ledger, where: str) -> None:
    ran: list[int] = []

    def around(resource: FakeResource) -> Broken:
        if where == "around":
            raise error
        return Broken(where, error)

    def work(_: FakeResource) -> None:
        ran.append(1)

    error = OwnError()
    pool = door.open(**hooks_of(ledger), around=around)

    assert door.error_of(work) is error
    assert not hasattr(error, "__notes__")
    assert ran == ([1] if where == "exit" else [])
    assert pool.stats().retried == 0


@pytest.mark.parametrize("where", ["around", "enter", "exit"])
def test_an_error_of_the_scope_is_judged(door: Door, ledger: Ledger, where: str) -> None:
    # "begin" on a broken connection: the task has not run, and runs on another one.
    ran: list[int] = []

    def around(resource: FakeResource) -> AbstractContextManager[None]:
        if resource.number:
            return nullcontext()
        if where == "around":
            raise ResourceBroken
        return Broken(where, ResourceBroken())

    def work(resource: FakeResource) -> int:
        ran.append(resource.number)
        return resource.number

    pool = door.open(**hooks_of(ledger), around=around)

    assert door.call(work) == 1
    assert ran == ([0, 1] if where == "exit" else [1])
    assert ledger.destroyed[0] is ledger.created[0]
    if not door.runs_now:
        assert pool.stats().retried == 1


def test_a_scope_that_is_no_context_manager_is_an_error_of_the_tasks_and_has_no_note(door: Door, ledger: Ledger) -> None:
    door.open(**hooks_of(ledger), around=number_of)

    error = door.error_of(number_of)

    assert isinstance(error, TypeError)
    assert "context manager" in str(error)
    assert not hasattr(error, "__notes__")  # the task does not lack its argument: it was not called


def test_a_scope_that_fails_in_c_has_no_note_of_a_missing_argument(door: Door, ledger: Ledger) -> None:
    door.open(**hooks_of(ledger), around=iter)

    error = door.error_of(number_of)

    assert isinstance(error, TypeError)
    assert not hasattr(error, "__notes__")


def test_what_the_scope_yields_takes_the_place_of_the_resource(door: Door, ledger: Ledger) -> None:
    scope = Scope(lambda resource: f"session of {resource.number}")
    pool = door.open(**hooks_of(ledger), around=scope)

    def work(session: str, *arguments: int) -> Any:
        return session, arguments, pool.current_resource()

    assert door.call(work, 1, 2) == ("session of 0", (1, 2), "session of 0")
    assert door.call_as_given(pool.current_resource).startswith("session of ")


def test_a_scope_may_yield_what_is_false(door: Door, ledger: Ledger) -> None:
    pool = door.open(**hooks_of(ledger), around=Scope(lambda _: 0))

    def work(session: int) -> tuple[int, int]:
        return session, pool.current_resource()

    assert door.call(work) == (0, 0)


def test_a_scope_that_yields_none_leaves_the_resource(door: Door, ledger: Ledger) -> None:
    pool = door.open(**hooks_of(ledger), around=Scope())

    def work(resource: FakeResource) -> tuple[int, bool]:
        return resource.number, pool.current_resource() is resource

    assert door.call(work) == (0, True)


def test_what_a_scope_yielded_ends_with_its_task(door: Door, ledger: Ledger) -> None:
    # The next task, whose scope yields nothing, must not get the session of the one before.
    sessions = ["session", None]

    def around(_: FakeResource) -> AbstractContextManager[str | None]:
        return nullcontext(sessions.pop(0))

    pool = door.open(**hooks_of(ledger), around=around)

    assert door.call(identity) == "session"
    if not door.inline:
        assert [holding.scope for holding in living_holdings(pool)] in ([], [None])
    assert isinstance(door.call(identity), FakeResource)


def test_a_scope_is_open_for_a_task_that_is_called_as_given(door: Door, ledger: Ledger) -> None:
    scope = Scope()
    door.open(**hooks_of(ledger), around=scope)

    def work(*args: object, **kwargs: object) -> Any:
        scope.story.append("ran")
        return args, kwargs

    assert door.call_as_given(work, 1, key=2) == ((1,), {"key": 2})
    assert scope.story == ["begin", "ran", "commit"]


def test_a_chunk_of_a_map_is_one_scope(make_pool: MakePool, ledger: Ledger) -> None:
    scope = Scope()
    pool = pool_of(make_pool, ledger, 1, around=scope)
    results = list(pool.map(double, range(6), chunksize=3))

    assert results == [0, 2, 4, 6, 8, 10]
    assert scope.story == ["begin", "commit"] * 2


def test_a_map_has_a_scope_for_each_call(make_pool: MakePool, ledger: Ledger) -> None:
    scope = Scope()
    pool = pool_of(make_pool, ledger, 1, around=scope)

    assert list(pool.map(double, range(3))) == [0, 2, 4]
    assert scope.story == ["begin", "commit"] * 3


def test_a_task_inside_of_a_scope_is_a_current_task(door: Door, ledger: Ledger) -> None:
    """And `around`, too: it is a part of the task."""
    attempts: list[int] = []

    @contextmanager
    def around(resource: FakeResource) -> Generator[None]:
        attempts.append(current_task().attempt)
        yield
        attempts.append(current_task().attempt)

    door.open(**hooks_of(ledger), around=around)

    def work(_: FakeResource) -> None:
        attempts.append(current_task().attempt)

    door.call(work)

    assert attempts == [1, 1, 1]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")


@pytest.mark.parametrize("propagate", [True, False])
def test_a_scope_runs_in_the_context_of_its_task(make_pool: MakePool, ledger: Ledger, propagate: bool) -> None:
    # What it sets, the task sees: SQLAlchemy's scoped sessions and the spans of OpenTelemetry live in variables.
    seen: list[str] = []

    @contextmanager
    def around(resource: FakeResource) -> Generator[None]:
        seen.append(variable.get())
        token = variable.set("scope")
        yield
        seen.append(variable.get())
        variable.reset(token)

    def work(_: FakeResource) -> None:
        seen.append(variable.get())
        variable.set("task")

    def submit() -> None:
        variable.set("submitter")
        pool.submit(work).result(DEADLINE)

    pool = pool_of(make_pool, ledger, 1, around=around, propagate_context=propagate)
    contextvars.Context().run(submit)
    contextvars.Context().run(submit)

    first = "submitter" if propagate else "default"
    assert seen == [first, "scope", "task"] * 2


def test_a_scope_of_run_now_runs_in_the_context_of_the_caller(ledger: Ledger, make_pool: MakePool) -> None:
    seen: list[str] = []

    @contextmanager
    def around(resource: FakeResource) -> Generator[None]:
        seen.append(variable.get())
        token = variable.set("scope")
        yield
        variable.reset(token)

    pool = pool_of(make_pool, ledger, 1, around=around)

    def call() -> str:
        variable.set("caller")
        pool.run_now(lambda _: seen.append(variable.get()))
        return variable.get()

    assert contextvars.Context().run(call) == "caller"
    assert seen == ["caller", "scope"]


@pytest.mark.parametrize("verdict", [Verdict.AGAIN, Verdict.BROKEN])
def test_a_task_that_is_run_again_gets_a_new_scope(door: Door, ledger: Ledger, verdict: Verdict) -> None:
    scope = Scope()
    seen: list[str] = []
    options = {**hooks_of(ledger), "check_health": answering(verdict)}
    door.open(**options, around=scope)

    def work(_: FakeResource) -> str:
        seen.append(variable.get())
        variable.set("attempt before")
        if len(seen) < 3:
            raise OwnError
        return "done"

    assert door.call(work) == "done"
    assert scope.story == ["begin", OwnError, "begin", OwnError, "begin", "commit"]
    if not door.runs_now:
        assert seen == ["default"] * 3  # and a fresh copy of the context
    variable.set("default")


def test_the_time_of_a_scope_is_time_of_its_task(make_pool: MakePool, ledger: Ledger, clock: Any) -> None:
    @contextmanager
    def around(resource: FakeResource) -> Generator[None]:
        clock.ahead += 100
        yield
        clock.ahead += 10

    pool = pool_of(make_pool, ledger, 1, around=around)
    pool.submit(number_of).result(DEADLINE)

    assert 110 <= pool.metrics().run.total < 111


# -- what a scope leaves behind: nothing --


def frames_of(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("where", ["task", "missing argument", "around", "enter", "exit"])
def test_the_traceback_of_an_error_shows_no_frame_of_ours(
    make_pool: MakePool, ledger: Ledger, where: str, propagate: bool
) -> None:
    def task(_: FakeResource) -> None:
        if where == "task":
            raise OwnError

    class Raising:
        def __enter__(self) -> None:
            if where == "enter":
                raise OwnError

        def __exit__(self, *_: object) -> None:
            if where == "exit":
                raise OwnError

    def around(_: FakeResource) -> Any:
        if where == "around":
            raise OwnError
        return Raising()

    def needs_more(_: FakeResource, more: int) -> None: ...

    pool = pool_of(make_pool, ledger, 1, around=around, propagate_context=propagate)
    call: Any = needs_more if where == "missing argument" else task
    error = pool.submit(call).exception(DEADLINE)

    assert error is not None
    expected = {"task": ["task"], "missing argument": [], "around": ["around"], "enter": ["__enter__"], "exit": ["__exit__"]}
    assert frames_of(error) == expected[where]


class Thing:
    """Something that can be watched by a weak reference."""


class WatchedError(Exception):
    """As a class of ours, it can be watched, too."""


class Watch:
    """Weak references to all that a task touched."""

    def __init__(self) -> None:
        self.references: dict[str, weakref.ref[Any]] = {}

    def see(self, name: str, thing: Any) -> Any:
        self.references[name] = weakref.ref(thing)
        return thing

    def left(self) -> list[str]:
        return [name for name, reference in self.references.items() if reference() is not None]

    def wait_until_left(self, *names: str, collect: bool = True) -> None:
        def nothing_else() -> bool:
            if collect:
                gc.collect()
            return self.left() == list(names)

        eventually(nothing_else, f"nothing to be left but {names}: {self.left()}")


thing_of_context: contextvars.ContextVar[Thing] = contextvars.ContextVar("thing_of_context")


class Scopes:
    """An `around` hook whose scopes, and what they yield, are watched."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def __call__(self, resource: FakeResource) -> Any:
        watch = self.watch

        class One:
            def __enter__(self) -> Thing:
                return watch.see("session", Thing())  # type: ignore[no-any-return]  # a Thing

            def __exit__(self, *_: object) -> None: ...

        return watch.see("scope", One())


@pytest.fixture
def no_collector() -> Generator[None]:
    """Only reference counts free anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def rest(pool: ResourceExecutor[Any]) -> None:
    """Wait until the worker sleeps: so it has left the function that runs tasks."""
    eventually(lambda: [*workers_of(pool)] == idle_workers(pool) != [], "the worker to rest")
    worker = wait_until_idle(pool)
    eventually(lambda: worker.log.until is not None, "the worker to sleep")


@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("reset", [None, id])
def test_nothing_of_a_finished_task_stays(make_pool: MakePool, ledger: Ledger, reset: Any, propagate: bool) -> None:
    watch = Watch()

    def submit() -> None:
        def function(session: Thing, argument: Thing, *, keyword: Thing) -> Any:
            return watch.see("result", Thing())

        watch.see("function", function)
        future = pool.submit(function, watch.see("argument", Thing()), keyword=watch.see("keyword", Thing()))
        watch.see("future", future).result(DEADLINE)

    pool: Any = pool_of(make_pool, ledger, 1, around=Scopes(watch), on_reset=reset, propagate_context=propagate)
    submit()

    assert len(watch.references) == 7
    watch.wait_until_left()


@needs_gil
@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("propagate", [True, False])
def test_an_error_that_is_kept_keeps_nothing_of_its_task_and_its_scope(
    make_pool: MakePool, ledger: Ledger, propagate: bool
) -> None:
    # The frame of the task leads to that of the scope, and that to the worker's (`f_back`).
    watch = Watch()

    class Function:
        """A function in Python, whose frame has nothing in it that is watched, and which itself is."""

        def __call__(self, *_: object) -> None:
            del self, _
            raise WatchedError

    def submit() -> BaseException:
        thing_of_context.set(watch.see("context", Thing()))
        future = pool.submit(watch.see("function", Function()), watch.see("argument", Thing()))
        return watch.see("future", future).exception(DEADLINE)  # type: ignore[no-any-return]  # an error

    pool: Any = pool_of(make_pool, ledger, 1, around=Scopes(watch), propagate_context=propagate)
    error = contextvars.Context().run(submit)
    rest(pool)
    watch.see("error", error)

    watch.wait_until_left("error", collect=False)
    del error
    watch.wait_until_left(collect=False)


@needs_gil
@pytest.mark.usefixtures("no_collector")
def test_an_error_of_a_retried_task_goes_with_the_next_attempt(make_pool: MakePool, ledger: Ledger) -> None:
    watch = Watch()
    runs: list[int] = []

    def fail_once(_: object) -> None:
        runs.append(1)
        if len(runs) == 1:
            raise watch.see("error", WatchedError())

    options = {**hooks_of(ledger), "check_health": answering(Verdict.AGAIN)}
    pool: Any = pool_of(make_pool, ledger, 1, **options, around=Scopes(watch))
    pool.submit(fail_once).result(DEADLINE)
    rest(pool)

    assert len(runs) == 2
    watch.wait_until_left(collect=False)


@needs_gil
@pytest.mark.usefixtures("no_collector")
def test_a_call_of_run_now_leaves_nothing_behind(make_pool: MakePool, ledger: Ledger) -> None:
    watch = Watch()

    def call(fn: Any) -> None:
        try:
            pool.run_now(fn, watch.see("argument", Thing()))
        except WatchedError:
            pass

    def fail_watched(*_: object) -> None:
        raise watch.see("error", WatchedError())

    pool: Any = pool_of(make_pool, ledger, 1, around=Scopes(watch), resource_pool_size=1)
    call(id_of)
    call(fail_watched)

    watch.wait_until_left(collect=False)


def id_of(*_: object) -> int:
    return 1


# -- reset --


class Resets:
    """An `on_reset` hook that notes what happens; it waits at `gate`, if there is one, and raises `error`, if there is one."""

    def __init__(self, gate: Gate | None = None) -> None:
        self.gate = gate
        self.story: list[str] = []
        self.threads: list[threading.Thread] = []
        self.error: BaseException | None = None

    def __call__(self, resource: FakeResource) -> None:
        self.story.append(f"reset {resource.number}")
        self.threads.append(threading.current_thread())
        if self.gate is not None:
            self.gate.hold()
        if self.error is not None:
            raise self.error

    def task(self, resource: FakeResource, name: str = "task") -> int:
        self.story.append(name)
        return resource.use()


def wait_for_rest(pool: Any, door: Door | None = None) -> None:
    """Wait until the worker has cleaned its resource, and rests."""
    if door is None or door.has_worker:
        wait_until_idle(pool)


def test_a_resource_is_cleaned_after_every_task_and_before_the_next(door: Door, ledger: Ledger) -> None:
    resets = Resets()
    options = {} if door.inline else {"resource_pool_size": 1}
    pool = door.open(**hooks_of(ledger), on_reset=resets, **options)
    for name in ("first", "second"):
        door.call(resets.task, name)
    wait_for_rest(pool, door)

    number = door.call(number_of)
    assert resets.story[:4] == ["first", f"reset {number}", "second", f"reset {number}"]


def test_a_resource_is_cleaned_between_two_tasks_that_are_run_in_one_go(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    resets = Resets()
    pool = pool_of(make_pool, ledger, 1, on_reset=resets)
    pool.submit(gate.hold)
    futures = [pool.submit(resets.task, name) for name in ("first", "second")]
    gate.release()
    for future in futures:
        future.result(DEADLINE)
    wait_until_idle(pool)

    assert resets.story == ["reset 0", "first", "reset 0", "second", "reset 0"]


def test_a_resource_is_cleaned_after_a_task_that_failed(door: Door, ledger: Ledger) -> None:
    resets = Resets()
    options = {} if door.inline else {"resource_pool_size": 1}
    pool = door.open(**hooks_of(ledger), on_reset=resets, **options)

    assert isinstance(door.error_of(fail), OwnError)
    wait_for_rest(pool, door)
    assert len(resets.story) == 1
    assert pool.stats().resources_destroyed == 0


def test_a_resource_is_cleaned_after_a_task_that_was_called_as_given(door: Door, ledger: Ledger) -> None:
    resets = Resets()
    options = {} if door.inline else {"resource_pool_size": 1}
    pool = door.open(**hooks_of(ledger), on_reset=resets, **options)
    door.call_as_given(int)
    wait_for_rest(pool, door)

    assert len(resets.story) == 1


def test_a_resource_is_cleaned_on_the_thread_of_its_worker(make_pool: MakePool, ledger: Ledger) -> None:
    resets = Resets()
    pool = pool_of(make_pool, ledger, 1, on_reset=resets)
    thread = pool.submit(lambda _: threading.current_thread()).result(DEADLINE)
    wait_until_idle(pool)

    assert resets.threads == [thread]


def test_a_new_resource_is_not_cleaned(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    resets = Resets()
    pool = pool_of(make_pool, ledger, 1, on_reset=resets, min_workers=1, resource_pool_size=1)
    pool.wait_ready()
    pool.submit(gate.hold)
    gate.wait_until_held()

    assert resets.story == []


def test_the_result_is_known_before_the_resource_is_cleaned(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    resets = Resets(gate)
    pool = pool_of(make_pool, ledger, 1, on_reset=resets)
    future = pool.submit(number_of)
    gate.wait_until_held()

    assert future.result(DEADLINE) == 0
    waiting = pool.submit(resets.task)
    assert not waiting.done()
    assert resets.story == ["reset 0"]
    gate.release()
    assert waiting.result(DEADLINE) == 0


def test_an_error_is_known_before_the_resource_is_cleaned(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    resets = Resets(gate)
    pool = pool_of(make_pool, ledger, 1, on_reset=resets)
    future = pool.submit(fail)
    gate.wait_until_held()

    assert isinstance(future.exception(DEADLINE), OwnError)


def test_a_resource_that_has_reached_max_uses_is_not_cleaned(make_pool: MakePool, ledger: Ledger) -> None:
    resets = Resets()
    pool = pool_of(make_pool, ledger, 1, on_reset=resets, max_uses=2)
    numbers = [pool.submit(number_of).result(DEADLINE) for _ in range(4)]
    pool.shutdown()

    assert numbers == [0, 0, 1, 1]
    assert resets.story == ["reset 0", "reset 1"]


def test_a_resource_of_the_reserve_that_has_reached_max_uses_is_not_cleaned(make_pool: MakePool, ledger: Ledger) -> None:
    resets = Resets()
    pool = pool_of(make_pool, ledger, 1, on_reset=resets, max_uses=2, resource_pool_size=1)

    assert [pool.run_now(number_of) for _ in range(4)] == [0, 0, 1, 1]
    assert resets.story == ["reset 0", "reset 1"]


def test_a_temporary_resource_is_not_cleaned(make_pool: MakePool, ledger: Ledger) -> None:
    resets = Resets()
    pool = pool_of(make_pool, ledger, 1, on_reset=resets)

    assert [pool.run_now(number_of) for _ in range(2)] == [0, 1]
    assert resets.story == []


def test_a_resource_that_broke_is_not_cleaned(door: Door, ledger: Ledger) -> None:
    resets = Resets()
    pool = door.open(**hooks_of(ledger), on_reset=resets, max_retries=0)
    error = door.error_of(FakeResource.break_down)
    eventually(lambda: len(ledger.destroyed) == 1, "the end of the broken resource")

    assert isinstance(error, ResourceBroken)
    assert resets.story == []
    assert pool.stats().retried == 0


def test_a_resource_is_cleaned_before_its_worker_rests(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    # No transaction stays open while a worker is idle, and no worker that cleans counts as idle.
    resets = Resets(gate)
    pool = pool_of(make_pool, ledger, 1, on_reset=resets)
    pool.submit(number_of).result(DEADLINE)
    gate.wait_until_held()

    assert idle_workers(pool) == []
    gate.release()
    wait_until_idle(pool)
    assert resets.story == ["reset 0"]


@pytest.mark.parametrize("tasks", [len(_SHIFT) - 1, len(_SHIFT), len(_SHIFT) + 1, 2 * len(_SHIFT)])
def test_a_resource_is_cleaned_before_its_worker_rests_at_the_end_of_a_shift_too(
    make_pool: MakePool, ledger: Ledger, gate: Gate, tasks: int
) -> None:
    resets = Resets()
    pool = pool_of(make_pool, ledger, 1, on_reset=resets)
    pool.submit(gate.hold)
    futures = [pool.submit(number_of) for _ in range(tasks - 1)]
    gate.release()
    for future in futures:
        future.result(DEADLINE)
    wait_until_idle(pool)

    assert len(resets.story) == tasks


def test_a_reset_that_fails_at_the_end_of_a_shift_ends_the_worker(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    resets = Resets()
    pool = pool_of(make_pool, ledger, 1, on_reset=resets)
    pool.submit(gate.hold)

    def last(resource: FakeResource) -> int:
        resets.error = OwnError()
        return resource.use()

    futures = [pool.submit(number_of) for _ in range(len(_SHIFT) - 2)] + [pool.submit(last)]
    gate.release()
    assert futures[-1].result(DEADLINE) == 0
    ledger.wait_until_destroyed(1)
    resets.error = None

    assert pool.submit(number_of).result(DEADLINE) == 1


class Ear(Observer):
    """Notes why workers ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, BaseException | None]] = []

    def worker_ended(self, event: WorkerEvent) -> None:
        self.ends.append((event.reason, event.error))


def test_a_resource_that_cannot_be_cleaned_is_replaced_and_its_task_keeps_its_result(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    ear, error = Ear(), OwnError("cannot roll back")

    def reset(resource: FakeResource) -> None:
        if resource.number == 0:
            raise error

    pool = pool_of(make_pool, ledger, 1, on_reset=reset, observers=[ear])
    held = pool.submit(gate.hold)
    gate.wait_until_held()
    waiting = [pool.submit(number_of) for _ in range(3)]
    gate.release()

    assert held.result(DEADLINE) is None
    assert [future.result(DEADLINE) for future in waiting] == [1, 1, 1]
    assert ear.ends == [("its resource was broken", error)]
    assert (pool.stats().retried, pool.stats().workers_replaced) == (0, 1)


def test_a_base_worker_whose_resource_cannot_be_cleaned_has_a_successor_at_once(make_pool: MakePool, ledger: Ledger) -> None:
    def reset(resource: FakeResource) -> None:
        if resource.number == 0:
            raise OwnError

    pool = pool_of(make_pool, ledger, 1, on_reset=reset, min_workers=1)
    pool.submit(number_of).result(DEADLINE)
    ledger.wait_until_created(2)

    assert pool.submit(number_of).result(DEADLINE) == 1


def test_a_resource_of_the_reserve_that_cannot_be_cleaned_is_replaced_and_the_error_is_logged(
    door: Door, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    if door.has_worker:
        pytest.skip("no resource of a reserve")

    def reset(resource: FakeResource) -> None:
        if resource.number == 0:
            raise OwnError("cannot roll back")

    options = {} if door.inline else {"resource_pool_size": 1}
    pool = door.open(**hooks_of(ledger), on_reset=reset, **options)

    assert [door.call(number_of) for _ in range(3)] == [0, 1, 1]
    [record] = [record for record in caplog.records if "cannot be cleaned" in record.message]
    assert record.levelname == "WARNING"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], OwnError)
    assert pool.stats().workers_replaced == (1 if door.inline else 0)  # no worker ended


def test_a_reset_that_fails_casts_doubt_on_all_other_resources(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    """A resource that cannot be cleaned is broken, and others may have broken in the same event."""
    asked: list[int] = []

    def reset(resource: FakeResource) -> None:
        if resource.number == 0:
            raise OwnError

    def check(resource: FakeResource) -> bool:
        asked.append(resource.number)
        return True

    pool = pool_of(
        make_pool, ledger, 2, on_reset=reset, check_resource=check, check_after_idle=3600, min_workers=2, max_uses=None
    )
    pool.wait_ready()
    held = [pool.submit(held_at(gate)) for _ in range(2)]
    gate.wait_until_held(2)
    gate.release()
    for future in held:
        future.result(DEADLINE)
    ledger.wait_until_created(3)

    def use_both() -> bool:
        return {pool.submit(number_of).result(DEADLINE) for _ in range(8)} >= {1} or 1 in asked

    eventually(use_both, "the other resource to be used")
    assert 1 in asked


def test_a_resource_is_cleaned_before_an_attempt_on_the_same_worker(door: Door, ledger: Ledger) -> None:
    resets = Resets()
    options = {**hooks_of(ledger), "check_health": answering(Verdict.AGAIN)}
    if not door.inline:
        options["resource_pool_size"] = 1
    pool = door.open(**options, on_reset=resets)
    runs: list[int] = []

    def work(resource: FakeResource) -> int:
        resets.story.append("run")
        runs.append(resource.number)
        if len(runs) < 3:
            raise OwnError
        return resource.number

    number = door.call(work)
    wait_for_rest(pool, door)
    assert resets.story == ["run", f"reset {number}"] * 3
    assert runs == [number] * 3


def test_a_task_that_is_to_run_again_goes_elsewhere_if_its_resource_cannot_be_cleaned(door: Door, ledger: Ledger) -> None:
    def reset(resource: FakeResource) -> None:
        if resource.number == 0:
            raise OwnError

    runs: list[int] = []

    def work(resource: FakeResource) -> int:
        runs.append(resource.number)
        if len(runs) == 1:
            raise OwnError
        return resource.number

    options = {**hooks_of(ledger), "check_health": answering(Verdict.AGAIN), "on_reset": reset}
    pool = door.open(**options)

    assert door.call(work) == 1
    assert runs == [0, 1]
    if not door.runs_now:
        assert pool.stats().retried == 1


# -- the time of a reset --


def test_the_time_of_a_reset_is_no_time_of_a_task(make_pool: MakePool, ledger: Ledger, clock: Any, gate: Gate) -> None:
    def reset(_: FakeResource) -> None:
        clock.ahead += 100

    pool = pool_of(make_pool, ledger, 1, on_reset=reset)
    pool.submit(gate.hold)
    gate.wait_until_held()
    futures = [pool.submit(number_of) for _ in range(3)]
    gate.release()
    for future in futures:
        future.result(DEADLINE)
    for _ in range(3):
        wait_until_idle(pool)
        pool.submit(number_of).result(DEADLINE)

    metrics = pool.metrics()
    assert metrics.run.count == 7
    assert metrics.run.total < 50
    # A task that was queued has waited for the resets before it; one that came afterwards has not.
    assert 600 <= metrics.wait.total < 650


def test_a_worker_that_cleans_its_resource_is_busy_with_no_task(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    resets = Resets(gate)
    pool = pool_of(make_pool, ledger, 1, on_reset=resets)
    pool.submit(number_of).result(DEADLINE)
    gate.wait_until_held()

    stats = pool.stats()
    assert (stats.running_tasks, stats.active_workers, stats.completed) == (0, 1, 1)
    pool._check()


def test_a_reset_that_hangs_holds_up_no_task_that_another_worker_can_run(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    def reset(resource: FakeResource) -> None:
        if resource.number == 0:
            gate.hold()

    # A new worker takes the next task.
    pool = pool_of(make_pool, ledger, 2, on_reset=reset)
    assert pool.submit(number_of).result(DEADLINE) == 0
    gate.wait_until_held()
    assert pool.submit(number_of).result(DEADLINE) == 1
    # An idle worker takes the one after it.
    eventually(lambda: len(idle_workers(pool)) == 1, "the second worker to rest")
    assert pool.submit(number_of).result(DEADLINE) == 1
    assert list(pool.map(number_with, range(20))) == [1] * 20
    pool._check()


def test_a_task_that_comes_while_a_reset_hangs_is_taken_by_the_other_worker(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    # 1. Both workers are busy. 2. One ends its task, and hangs in the reset. 3. A task comes. 4. The other one takes it.
    both = threading.Barrier(2)
    second = Gate()

    def reset(resource: FakeResource) -> None:
        if resource.number == 0:
            gate.hold()

    def work(resource: FakeResource) -> None:
        both.wait(DEADLINE)
        if resource.number == 1:
            second.hold()

    pool = pool_of(make_pool, ledger, 2, on_reset=reset)
    with second:
        for _ in range(2):
            pool.submit(work)
        gate.wait_until_held()
        second.wait_until_held()
        waiting = pool.submit(number_of)
        second.release()
        assert waiting.result(DEADLINE) == 1


# -- the end, while a resource is cleaned --


def test_shutdown_waits_for_a_reset(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    resets = Resets(gate)
    pool = pool_of(make_pool, ledger, 1, on_reset=resets)
    pool.submit(number_of).result(DEADLINE)
    gate.wait_until_held()
    waiting = pool.submit(number_of)
    pool.shutdown(wait=False)

    assert ledger.destroyed == []
    assert pool.stats().state == "draining"
    gate.release()
    pool.shutdown(timeout=DEADLINE)
    assert waiting.result() == 0
    assert len(ledger.destroyed) == 1


def test_shutdown_gives_up_when_a_reset_hangs_for_too_long(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    from tasker_executor import ShutdownTimeout

    pool = pool_of(make_pool, ledger, 1, on_reset=Resets(gate), name="mine")
    pool.submit(number_of).result(DEADLINE)
    gate.wait_until_held()

    with pytest.raises(ShutdownTimeout, match="still running: 1 worker"):
        pool.shutdown(timeout=0.01)


def test_kill_while_a_resource_is_cleaned_cancels_what_waits_and_destroys_the_resource_once(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    resets = Resets(gate)
    pool = pool_of(make_pool, ledger, 1, on_reset=resets)
    pool.submit(number_of).result(DEADLINE)
    gate.wait_until_held()
    waiting = pool.submit(number_of)
    pool.kill()

    assert waiting.cancelled()
    gate.release()
    pool.shutdown(timeout=DEADLINE)
    assert ledger.destroyed == ledger.created
    assert resets.story == ["reset 0"]


def test_kill_that_destroys_while_a_resource_is_cleaned_destroys_it_once(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    ledger.any_thread = True
    pool = pool_of(make_pool, ledger, 1, on_reset=Resets(gate))
    pool.submit(number_of).result(DEADLINE)
    gate.wait_until_held()
    pool.kill(destroy=True)
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert ledger.destroyed == ledger.created


def test_a_resource_that_kill_has_destroyed_is_not_cleaned(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    # 1. A task runs. 2. `kill(destroy=True)` destroys its resource. 3. The task ends: there is nothing to clean.
    resets = Resets()
    pool = pool_of(make_pool, ledger, 1, on_reset=resets)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.kill(destroy=True)
    assert len(ledger.destroyed) == 1
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert resets.story == []


def test_a_resource_that_kill_has_destroyed_is_not_checked(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    asked: list[FakeResource] = []

    def check(resource: FakeResource) -> bool:
        asked.append(resource)
        return True

    def work(_: FakeResource) -> None:
        gate.hold()
        raise OwnError

    pool = pool_of(make_pool, ledger, 1, check_resource=check, check_after_idle=3600)
    pool.submit(work)
    gate.wait_until_held()
    pool.kill(destroy=True)
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert asked == []


@pytest.mark.parametrize("when", ["task", "run_now"])
def test_a_task_of_run_now_whose_resource_kill_has_destroyed_is_not_cleaned(
    make_pool: MakePool, ledger: Ledger, when: str
) -> None:
    resets = Resets()
    pool = pool_of(make_pool, ledger, 1, on_reset=resets, resource_pool_size=1)
    if when == "task":
        pool.submit(lambda _: pool.kill(destroy=True)).exception(DEADLINE)
    else:
        pool.run_now(lambda _: pool.kill(destroy=True))
    pool.shutdown(timeout=DEADLINE)

    assert resets.story == []
    assert Counter(ledger.destroyed) == Counter(ledger.created)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork")
def test_a_child_of_a_fork_does_not_clean_what_belongs_to_its_parent() -> None:
    # A rollback in the child would go out on the parent's connection.
    program = """
import os, warnings
from tasker_executor import ResourceExecutor
from tasker_executor.testing import InlineExecutor

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())

parent = os.getpid()

def reset(resource):
    say("reset by", "parent" if os.getpid() == parent else "child")

def check(resource):
    say("check by", "parent" if os.getpid() == parent else "child")
    return True

def fork(resource):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return child

for make in (lambda: ResourceExecutor(1, on_create=object, on_reset=reset, check_resource=check, resource_pool_size=1),
             lambda: InlineExecutor(on_create=object, on_reset=reset, check_resource=check)):
    pool = make()
    if pool.run_now(fork) == 0:
        say("child went on")
        os._exit(0)
    pool.shutdown()
    say("shut down")
"""
    process = run_python(program)

    assert process.stderr == ""
    assert process.stdout.splitlines() == ["child went on", "reset by parent", "shut down"] * 2


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork")
def test_a_worker_in_the_child_of_a_fork_does_not_clean_what_belongs_to_its_parent() -> None:
    program = """
import os, threading, warnings
from tasker_executor import ResourceExecutor

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())

parent = os.getpid()

def reset(resource):
    say("reset by", "parent" if os.getpid() == parent else "child")

def fork(resource):
    child = os.fork()
    if child == 0:
        # The thread of the worker goes on in the child, and ends there: the child has no other.
        return
    os.waitpid(child, 0)

pool = ResourceExecutor(1, on_create=object, on_reset=reset)
pool.submit(fork).result()
pool.shutdown()
say("shut down")
"""
    process = run_python(program)

    assert process.stdout.splitlines() == ["reset by parent", "shut down"]


def test_an_error_thrown_into_a_reset_is_the_resets(make_pool: MakePool, ledger: Ledger) -> None:
    # By `PyThreadState_SetAsyncExc` it comes up where the hook is: in the hook.
    def reset(resource: FakeResource) -> None:
        if resource.number == 0:
            raise Thrown

    ear = Ear()
    pool = pool_of(make_pool, ledger, 1, on_reset=reset, observers=[ear])

    assert pool.submit(number_of).result(DEADLINE) == 0
    ledger.wait_until_destroyed(1)
    assert pool.submit(number_of).result(DEADLINE) == 1
    [(reason, error)] = ear.ends
    assert reason == "its resource was broken"
    assert isinstance(error, Thrown)


def test_observers_hear_the_end_of_a_task_before_its_resource_is_cleaned(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    heard: list[str] = []

    class Hearer(Observer):
        def task_finished(self, event: TaskEvent) -> None:
            heard.append(event.outcome)

    pool = pool_of(make_pool, ledger, 1, on_reset=Resets(gate), observers=[Hearer()])
    pool.submit(number_of)
    gate.wait_until_held()

    assert heard == ["completed"]


# -- who is the current task, and what is the slot, in these hooks --


def test_a_reset_is_outside_of_a_task_and_has_a_slot(make_pool: MakePool, ledger: Ledger) -> None:
    seen: list[Any] = []

    def reset(resource: FakeResource) -> None:
        try:
            current_task()
        except NoCurrentTask:
            seen.append(current_slot())

    pool = pool_of(make_pool, ledger, 1, on_reset=reset)
    pool.submit(number_of).result(DEADLINE)
    wait_until_idle(pool)

    assert seen == [0]


def test_a_reset_of_the_reserve_is_outside_of_the_task_that_calls_run_now(make_pool: MakePool, ledger: Ledger) -> None:
    # A task of one executor calls `run_now` of another: its hooks must not take that task for theirs.
    seen: list[str] = []

    def hook(_: FakeResource) -> bool:
        for ask in (current_task, current_slot):
            try:
                ask()
            except NoCurrentTask:
                seen.append("outside")
            else:
                seen.append("inside")
        return True

    def destroy(resource: FakeResource) -> None:
        hook(resource)
        ledger.destroy(resource)

    def call_twice(_: FakeResource) -> None:
        for _number in range(2):
            other.run_now(number_of)

    options: dict[str, Any] = {"on_reset": hook, "check_resource": hook, "check_after_idle": 0, "on_destroy": destroy}
    other = pool_of(make_pool, ledger, max_uses=2, resource_pool_size=1, **options)
    pool_of(make_pool, ledger).submit(call_twice).result(DEADLINE)

    assert set(seen) == {"outside"}
    assert len(seen) >= 6
