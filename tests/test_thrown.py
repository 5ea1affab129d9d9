"""An error thrown into a worker's thread, at every point of its life: what `_worker.py` promises under that heading.

In real use `PyThreadState_SetAsyncExc` throws it. The interpreter takes such an error where it looks for signals. So the
machinery of `interruptions` raises it there, on the worker's thread: at the first point of one run, at the second of the next,
and so on.
"""

from __future__ import annotations

import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for
from concurrent.futures.thread import BrokenThreadPool
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pytest

from engine import (
    Step,
    Worker,
    WorkerLife,
    idle_workers,
    leaving_workers,
    recorder_of,
    replace_step,
    shorten_pauses,
    unborn_workers,
    waiting_inside,
    workers_of,
)
from interruptions import AtPoint
from races import Thrown
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, ResourceBroken, eventually, is_waited_for, join_all
from tasker_executor import Observer, ResourceCreationError, ResourceExecutor, TaskEvent, TaskExpired

pytestmark = [
    pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="without the GIL a worker's life goes late"),
    pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="CPython 3.12 crashes where a thread is traced by bytecodes"),
    # Errors that no code can handle: out of a thread's last function, and out of a destructor.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Pool = ResourceExecutor[FakeResource]


class ThrownException(Exception):
    """What rq and Celery throw into a thread: see `Thrown`."""


KINDS: list[type[BaseException]] = [Thrown, ThrownException, SystemExit]


class InWorker(AtPoint):
    """Acts at the point number `at` of the life of the first worker that begins to live in the block."""

    def __init__(self, at: int, action: Callable[[], object]) -> None:
        super().__init__(at, action)
        self._thread: int | None = None

    def __enter__(self) -> InWorker:
        threading.settrace(self._enter_function)
        return self

    def __exit__(self, *exc_info: object) -> None:
        threading.settrace(None)
        self._previous.clear()

    def _enter_function(self, frame: FrameType, event: str, _: object) -> Any:
        me = threading.get_ident()
        if self._thread is None and frame.f_code is Worker.live.__code__:
            self._thread = me
        if self._thread != me:
            return None
        if frame.f_code is WorkerLife.__del__.__code__ and frame.f_locals["self"].func.__self__.over:
            return None  # it has ended, and no code would handle an error
        return super()._enter_function(frame, event, _)


@dataclass
class Books:
    """What became of the tasks of one run."""

    ran: Counter[str] = field(default_factory=Counter[str])
    called: Counter[str] = field(default_factory=Counter[str])
    futures: dict[str, Future[Any]] = field(default_factory=dict[str, Future[Any]])

    def task(self, name: str, act: Callable[[FakeResource], object] = FakeResource.use) -> Callable[[FakeResource], str]:
        """Return a task of that name, which counts its runs."""

        def run(resource: FakeResource) -> str:
            self.ran[name] += 1
            act(resource)
            return name

        return run

    def submit(self, pool: Any, name: str, act: Callable[[FakeResource], object] = FakeResource.use) -> Future[Any]:
        future = pool.submit(self.task(name, act))
        self.futures[name] = future
        return future  # type: ignore[no-any-return]  # of any pool


def break_the_first(resource: FakeResource) -> None:
    if resource.number == 0:
        resource.break_down()


def fail(_: FakeResource) -> None:
    raise LookupError


def returns(pool: Pool, books: Books) -> None:
    books.submit(pool, "only")


def raises(pool: Pool, books: Books) -> None:
    books.submit(pool, "only", fail)


def breaks(pool: Pool, books: Books) -> None:
    books.submit(pool, "only", break_the_first)


def breaks_for_good(pool: Pool, books: Books) -> None:
    books.submit(pool.with_options(max_retries=0), "only", FakeResource.break_down)


def urgent(pool: Pool, books: Books) -> None:
    books.submit(pool.with_options(priority=True), "urgent")
    books.submit(pool, "normal")


def held(pool: Pool, books: Books, prepare: Callable[[], object]) -> None:
    """`prepare` acts while the worker is held in a task."""
    with Gate() as gate:
        books.submit(pool, "held", gate.hold)
        eventually(lambda: gate._held > 0 or books.futures["held"].done(), "the task to be held, or the worker to end")
        prepare()


def is_cancelled(pool: Pool, books: Books) -> None:
    def prepare() -> None:
        books.submit(pool, "cancelled").cancel()
        books.submit(pool, "next")

    held(pool, books, prepare)


def expires(pool: Pool, books: Books) -> None:
    replace_step(pool, Step.WATCH, lambda *_: None)  # it is left to the worker

    def prepare() -> None:
        books.submit(pool.with_options(start_within=0), "expired")
        books.submit(pool, "next")

    held(pool, books, prepare)


def observed(act: Callable[[FakeResource], object]) -> Callable[[Pool, Books], None]:
    """A task that others wait for, in each of the ways that there are."""

    def story(pool: Pool, books: Books) -> None:
        told: list[str] = []
        waiters: list[threading.Thread] = []

        def prepare() -> None:
            future = books.submit(pool, "observed", act)
            future.add_done_callback(lambda _: books.called.update(["callback 1"]))
            future.add_done_callback(lambda _: books.called.update(["callback 2"]))

            def ask() -> None:
                future.exception(DEADLINE)
                told.append("result")

            def wait() -> None:
                told.extend(["wait"] * len(wait_for([future], DEADLINE).done))

            waiters.extend(threading.Thread(target=target) for target in (ask, ask, wait))
            for waiter in waiters:
                waiter.start()
            future_: Any = future
            eventually(lambda: future.done() or (is_waited_for(future) and bool(future_._waiters)), "the waiters to register")

        held(pool, books, prepare)
        assert join_all(waiters) == []
        assert sorted(told) == ["result", "result", "wait"]
        eventually(lambda: books.called.total() == 2, "the callbacks")
        assert max(books.called.values()) == 1

    return story


def shut_down_while_idle(pool: Pool, books: Books) -> None:
    books.submit(pool, "only")
    wait_for(books.futures.values(), DEADLINE)


def is_killed(pool: Pool, books: Books) -> None:
    def prepare() -> None:
        books.submit(pool, "queued")
        pool.kill()

    held(pool, books, prepare)


def is_killed_before_the_retry(pool: Pool, books: Books) -> None:
    breaks(pool, books)
    assert wait_for(books.futures.values(), DEADLINE).not_done == set()  # before the second kill, which would end them
    pool.kill()


class Killer(Observer):
    """Kills the pool when a task is about to go back to its lane: see `test_kill`."""

    pool: Pool

    def task_retried(self, event: TaskEvent) -> None:
        self.pool.kill()


def two(pool: Pool, books: Books) -> None:
    for name in ("first", "second"):
        try:
            books.submit(pool, name)
        except BrokenThreadPool:
            pass
    wait_for(books.futures.values(), DEADLINE)


def initializer_that_fails() -> None:
    raise LookupError


def fails_once(ledger: Ledger) -> Callable[[], FakeResource]:
    def create() -> FakeResource:
        ledger.outage = None if ledger.attempts else OSError
        return ledger.create()

    return create


@dataclass(frozen=True)
class Life:
    """What a worker meets in its life."""

    story: Callable[[Pool, Books], object]
    options: Callable[[Ledger], dict[str, Any]] = lambda _: {}
    expected: type[BaseException] | None = None  # what tasks may raise by themselves
    goes_on: bool = True  # can the pool run another task then?


LIVES: dict[str, Life] = {
    "a task returns": Life(returns),
    "a task raises": Life(raises, expected=LookupError),
    "a task breaks the resource": Life(breaks, expected=ResourceBroken),
    "a task breaks the resource for good": Life(breaks_for_good, expected=ResourceBroken),
    "an urgent task": Life(urgent),
    "a task is cancelled": Life(is_cancelled, expected=CancelledError),
    "a task expires": Life(expires, expected=TaskExpired),
    "a task that is waited for returns": Life(observed(FakeResource.use)),
    "a task that is waited for raises": Life(observed(fail), expected=LookupError),
    "idle": Life(shut_down_while_idle),
    "a careful worker": Life(returns, lambda ledger: {"check_resource": ledger.is_usable, "max_uses": 1, "max_age": 3600.0}),
    "the last of a burst": Life(shut_down_while_idle, lambda _: {"idle_timeout": 0.0}),
    "a full door": Life(urgent, lambda _: {"max_queued": 1}),
    "on_create fails": Life(returns, lambda ledger: {"on_create": fails_once(ledger)}),
    "on_create returns nothing": Life(two, lambda _: {"on_create": lambda: None}, ResourceCreationError, goes_on=False),
    "the initializer fails": Life(two, lambda _: {"initializer": initializer_that_fails}, BrokenThreadPool, goes_on=False),
    "kill": Life(is_killed, expected=CancelledError, goes_on=False),
    "kill before a retry": Life(
        is_killed_before_the_retry, lambda _: {"observers": [Killer()]}, expected=ResourceBroken, goes_on=False
    ),
}


def live_once(life: Life, kind: type[BaseException], number: int) -> bool:
    """Throw at that point of the worker's life; then everything must work, and end. False: there is no such point."""
    ledger, books = Ledger(), Books()

    def throw() -> None:
        raise kind

    hooks = {"on_create": ledger.create, "on_destroy": ledger.destroy, "check_health": ledger.is_healthy}
    options: dict[str, Any] = {**hooks, **life.options(ledger)}
    pool: Any = ResourceExecutor(1, **options)
    for observer in options.get("observers", ()):
        observer.pool = pool
    point = InWorker(number, throw)
    try:
        with point:
            life.story(pool, books)
            if life.goes_on:
                later = [books.submit(pool, name).exception(DEADLINE) for name in ("later", "last")]
                assert None in later  # the error hits one of them at most
            check_tasks(books, kind, life.expected)
            pool._check()
            pool.shutdown(timeout=DEADLINE)
        check_end(pool, books, ledger)
    except BaseException as error:
        pool.kill()
        raise AssertionError(f"after throwing at point {number}, {point.where}") from error
    return point.where is not None


def check_tasks(books: Books, kind: type[BaseException], expected: type[BaseException] | None) -> None:
    """Each task has come to its end, which is its own or the error that was thrown, and it ran once, or as often as retried."""
    assert wait_for(books.futures.values(), DEADLINE).not_done == set()
    for name, future in books.futures.items():
        error = CancelledError() if future.cancelled() else future.exception(0)
        if error is None:
            assert future.result() == name
        else:
            assert isinstance(error, (kind, expected or kind)), repr(error)
        sidecar: Any = future._sidecar  # type: ignore[attr-defined]  # ours
        assert books.ran[name] <= 1 + (0 if sidecar is None else sidecar.retries)


def check_end(pool: Pool, books: Books, ledger: Ledger) -> None:
    pool._check()
    stats = pool.stats()
    futures = books.futures.values()
    cancelled = sum(future.cancelled() for future in futures)
    failed = sum(not future.cancelled() and future.exception() is not None for future in futures)
    assert (stats.submitted, stats.cancelled, stats.failed) == (len(futures), cancelled, failed)
    assert stats.completed == stats.submitted - failed - cancelled
    assert stats.resources_created == stats.resources_destroyed == len(ledger.created)
    ledger.check()
    assert (workers_of(pool), leaving_workers(pool), unborn_workers(pool), waiting_inside(pool)) == (set(), set(), {}, {})
    assert idle_workers(pool) == []
    assert recorder_of(pool)._logs == recorder_of(pool)._closed.keys()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies before its first task makes a pause: a short one here."""
    shorten_pauses(monkeypatch, 0.0001)


@pytest.mark.long
@pytest.mark.parametrize("life", list(LIVES.values()), ids=list(LIVES))
def test_an_error_thrown_into_a_worker_anywhere_costs_its_task_at_most(life: Life) -> None:
    number = 1
    while live_once(life, KINDS[number % len(KINDS)], number):
        number += 1

    assert number > 100


def do_nothing(*args: object) -> None:
    """In the place of a method that an error has cut short."""


def test_a_worker_whose_thread_died_before_it_began_to_live_is_missed_at_the_end(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A worker is started. 2. An error ends its thread in the first steps, inside of `threading`: no code of ours sees it.
    # 3. A thread that waits for the end finds it dead.
    pool = make_pool(1)
    monkeypatch.setattr(threading.Thread, "run", do_nothing)
    future = pool.submit(int, "7")
    eventually(lambda: not any(worker.thread.is_alive() for worker in workers_of(pool)), "the thread to end")
    monkeypatch.undo()

    pool.shutdown(timeout=DEADLINE)

    assert future.result(DEADLINE) == 7


def test_a_worker_that_was_hit_again_and_again_on_its_way_out_is_ended_by_the_thread_that_waits_for_the_end(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1)
    monkeypatch.setattr(Worker, "end", do_nothing)
    assert pool.submit(int, "7").result(DEADLINE) == 7
    pool.shutdown(wait=False)
    eventually(lambda: not any(worker.thread.is_alive() for worker in workers_of(pool)), "the thread to end")
    monkeypatch.undo()

    pool.shutdown(timeout=DEADLINE)

    assert pool.stats().state == "closed"
