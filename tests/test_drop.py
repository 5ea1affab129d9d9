"""What is forgotten leaves nothing behind: executors dropped without shutdown, and tasks that are done."""

from __future__ import annotations

import contextvars
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from engine import (
    CannotStart,
    End,
    UnfitResource,
    Worker,
    core_of,
    engine_lock,
    idle_workers,
    pretend_outage,
    report_end,
    report_ready,
    report_unfit,
    retry_later,
    stranger,
    workers_of,
)
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, ResourceBroken, collected, eventually, join_all, needs_gil
from tasker_executor import Observer, ResourceExecutor, StateEvent


class Thing:
    """Something that can be watched by a weak reference."""


class WatchedError(Exception):
    """As a class of ours, it can be watched, too."""


def swallow(_: FakeResource, argument: Thing) -> None:
    """A task with an argument."""


def worker_threads(pool: ResourceExecutor[Any]) -> list[threading.Thread]:
    return [worker.thread for worker in workers_of(pool)]


def make(ledger: Ledger, workers: int = 1, **options: Any) -> ResourceExecutor[FakeResource]:
    """Return a pool that only the test holds."""
    return ResourceExecutor(workers, on_create=ledger.create, on_destroy=ledger.destroy, **options)


# -- executors --


def test_a_dropped_pool_is_collected_and_its_idle_worker_ends(ledger: Ledger) -> None:
    pool = make(ledger)
    pool.submit(FakeResource.use).result(DEADLINE)
    threads, reference = worker_threads(pool), weakref.ref(pool)

    del pool

    assert reference() is None
    assert join_all(threads) == []
    assert ledger.alive == []


def test_a_dropped_pool_finishes_its_queue(ledger: Ledger, gate: Gate) -> None:
    pool = make(ledger)
    pool.submit(gate.hold)
    gate.wait_until_held()
    futures = [pool.submit(FakeResource.use) for _ in range(10)]
    threads = worker_threads(pool)

    del pool
    gate.release()

    assert [future.result(DEADLINE) for future in futures] == [0] * 10
    assert join_all(threads) == []


def test_a_dropped_pool_destroys_the_resources_of_run_now_on_a_thread_of_its_own(ledger: Ledger) -> None:
    # Hooks have no business inside of the garbage collector.
    ledger.any_thread = True
    pool = make(ledger, resource_pool_size=2)
    reference = weakref.ref(pool)

    del pool

    assert reference() is None
    ledger.wait_until_destroyed(2)
    assert threading.current_thread() not in [resource.destroyers[0] for resource in ledger.created]


def test_a_dropped_pool_that_can_start_no_thread_is_closed_on_the_spot(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    class Ear(Observer):
        def state_changed(self, event: StateEvent) -> None:
            heard.append(event.state)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = ResourceExecutor(1, observers=[Ear()])
    monkeypatch.setattr(threading.Thread, "start", refuse)

    del pool

    assert heard == ["draining", "closed"]


def test_a_pool_dropped_in_a_cycle_is_ended_by_the_garbage_collector(ledger: Ledger) -> None:
    holder: Any = Thing()
    pool: Any = make(ledger)
    holder.pool, pool.holder = pool, holder
    pool.submit(FakeResource.use).result(DEADLINE)
    threads, reference = worker_threads(pool), weakref.ref(pool)

    del holder, pool

    assert collected(reference)
    assert join_all(threads) == []
    ledger.wait_until_destroyed(1)


def test_a_pool_with_base_workers_and_a_policy_can_be_dropped(ledger: Ledger) -> None:
    from tasker_executor import BacklogPolicy

    pool = make(ledger, 3, min_workers=2, policy=BacklogPolicy(), idle_timeout=60.0)
    pool.wait_ready()
    pool.submit(FakeResource.use).result(DEADLINE)
    threads, reference = worker_threads(pool), weakref.ref(pool)

    del pool

    assert collected(reference)
    assert join_all(threads) == []


def test_a_pool_dropped_while_its_factory_fails_ends_and_fails_its_tasks(ledger: Ledger) -> None:
    ledger.outage = OSError("down")
    pool = make(ledger, create_timeout=0.01)
    future = pool.submit(FakeResource.use)
    reference = weakref.ref(pool)

    del pool

    assert reference() is None
    assert future.exception(DEADLINE) is not None


def test_a_pool_dropped_by_its_last_task_ends(ledger: Ledger, gate: Gate) -> None:
    pools = [make(ledger)]

    def work(_: FakeResource) -> None:
        gate.hold()
        pools.clear()

    future = pools[0].submit(work)
    gate.wait_until_held()
    threads = worker_threads(pools[0])

    gate.release()

    assert future.exception(DEADLINE) is None
    assert join_all(threads) == []


def test_a_view_keeps_its_pool(ledger: Ledger) -> None:
    view = make(ledger).with_options(priority=True)
    gc.collect()

    assert view.submit(FakeResource.use).result(DEADLINE) == 0

    reference = weakref.ref(view._root)
    del view
    assert collected(reference)
    ledger.wait_until_destroyed(1)


@pytest.mark.parametrize("door", ["submit", "submit_priority"])
def test_the_error_of_a_task_that_ran_in_its_caller_keeps_no_view(gate: Gate, door: str) -> None:
    pool = ResourceExecutor[None](1, max_queued=0, on_full="caller")
    pool.submit(gate.hold)
    gate.wait_until_held()
    view = pool.with_options(pass_resource=False)
    reference = weakref.ref(view)

    def fail(_: object) -> None:
        raise LookupError

    error = getattr(view, door)(fail, 1).exception(0)
    del view
    gate.release()
    pool.shutdown()
    alive = reference() is not None

    assert isinstance(error, LookupError)
    assert not alive


def test_two_hundred_dropped_pools_leave_no_thread_and_no_resource(ledger: Ledger) -> None:
    ledger.any_thread = True
    before = set(threading.enumerate())
    references: list[weakref.ref[Any]] = []

    for number in range(200):
        pool = make(ledger, 2, resource_pool_size=number % 2)
        future = pool.submit(FakeResource.use)
        if number % 3:
            future.result(DEADLINE)
        references += [weakref.ref(pool), weakref.ref(core_of(pool))]
        del pool, future

    assert join_all(set(threading.enumerate()) - before) == []
    eventually(lambda: ledger.alive == [], "every resource to be destroyed")
    assert collected(*references)


def test_a_kept_future_pins_neither_its_pool_nor_threads(ledger: Ledger) -> None:
    pool = make(ledger)
    future = pool.submit(FakeResource.use)
    failed = pool.submit(FakeResource.break_down)
    future.result(DEADLINE)
    failed.exception(DEADLINE)
    threads, reference = worker_threads(pool), weakref.ref(pool)

    del pool

    assert collected(reference)
    assert join_all(threads) == []
    assert future.result() == 0


def test_a_shut_down_pool_is_collected_with_all_that_it_shared(ledger: Ledger) -> None:
    pool = make(ledger, 2)
    pool.submit(FakeResource.use).result(DEADLINE)
    references: list[weakref.ref[Any]] = [weakref.ref(pool), weakref.ref(core_of(pool))]
    pool.shutdown()

    del pool

    assert collected(*references)


# -- tasks. The pool lives and its worker is idle, which is when a stale reference would last longest. --


class WatchedBreak(ResourceBroken):
    """As above."""


class Watch:
    """Weak references to all that a task touched, and a pool of one worker."""

    def __init__(self, ledger: Ledger) -> None:
        self.pool = make(ledger, check_health=ledger.is_healthy)
        self.references: dict[str, weakref.ref[Any]] = {}

    def see(self, name: str, thing: Any) -> Any:
        self.references[name] = weakref.ref(thing)
        return thing

    def left(self) -> list[str]:
        """What is still alive."""
        return [name for name, reference in self.references.items() if reference() is not None]

    def wait_until_left(self, *names: str) -> None:
        """Block until nothing else is alive. No further task comes, so what an idle worker keeps, it keeps for ever."""

        def nothing_else() -> bool:
            gc.collect()
            return self.left() == list(names)

        eventually(nothing_else, f"nothing to be left but {names}")


@pytest.fixture
def watch(ledger: Ledger) -> Any:
    watch = Watch(ledger)
    yield watch

    watch.pool.shutdown()


def test_nothing_of_a_finished_task_stays(watch: Watch) -> None:
    def submit() -> Any:
        def function(_: FakeResource, argument: Thing, *, keyword: Thing) -> Any:
            return watch.see("result", Thing())

        future = watch.pool.submit(
            watch.see("function", function), watch.see("argument", Thing()), keyword=watch.see("keyword", Thing())
        )
        future.result(DEADLINE)
        return watch.see("future", future)

    submit()

    watch.wait_until_left()


def test_a_kept_future_keeps_its_result_and_nothing_else(watch: Watch) -> None:
    def submit() -> Future[Any]:
        variable: contextvars.ContextVar[Thing] = contextvars.ContextVar("variable")
        variable.set(watch.see("context", Thing()))

        def function(_: FakeResource, argument: Thing) -> Any:
            return watch.see("result", Thing())

        return watch.pool.submit(watch.see("function", function), watch.see("argument", Thing()))

    future = contextvars.Context().run(submit)
    future.result(DEADLINE)

    watch.wait_until_left("result")


def test_an_exception_does_not_outlive_its_future(watch: Watch) -> None:
    def submit() -> None:
        def function(_: FakeResource, argument: Thing) -> None:
            raise watch.see("exception", WatchedError())

        future = watch.pool.submit(function, watch.see("argument", Thing()))
        assert isinstance(future.exception(DEADLINE), WatchedError)

    submit()

    watch.wait_until_left()


@needs_gil
def test_a_raised_exception_leaves_no_cycle_behind(watch: Watch) -> None:
    # Without the garbage collector: the frame of result() must not keep the future that keeps the exception.
    def fail(_: FakeResource) -> None:
        raise watch.see("exception", WatchedError())

    def submit() -> None:
        try:
            watch.see("future", watch.pool.submit(fail)).result(DEADLINE)
        except WatchedError:
            pass

    gc.disable()
    try:
        submit()
        eventually(lambda: watch.left() == [], "nothing to be left")
    finally:
        gc.enable()


def test_nothing_of_a_task_that_was_retried_stays(watch: Watch) -> None:
    def submit() -> None:
        def function(resource: FakeResource, argument: Thing) -> Any:
            if resource.number == 0:
                raise watch.see("exception", WatchedBreak())
            return watch.see("result", Thing())

        watch.pool.submit(function, watch.see("argument", Thing())).result(DEADLINE)

    submit()

    watch.wait_until_left()


def test_nothing_of_a_cancelled_task_stays_in_its_kept_future(watch: Watch, gate: Gate) -> None:
    watch.pool.submit(gate.hold)
    gate.wait_until_held()

    def submit() -> Future[Any]:
        return watch.pool.submit(swallow, watch.see("argument", Thing()))

    future = submit()
    future.cancel()

    assert collected(watch.references["argument"])
    gate.release()


def test_a_callback_does_not_outlive_its_call(watch: Watch) -> None:
    def submit() -> Future[Any]:
        def callback(_: Future[Any]) -> None:
            pass

        future = watch.pool.submit(FakeResource.use)
        future.add_done_callback(watch.see("callback", callback))
        return future

    future = submit()
    future.result(DEADLINE)

    watch.wait_until_left()


def test_nothing_of_a_call_of_run_now_stays(ledger: Ledger, gate: Gate) -> None:
    ledger.any_thread = True
    pool = make(ledger, resource_pool_size=1)

    def call() -> list[weakref.ref[Any]]:
        argument, result = Thing(), Thing()

        def work(_: FakeResource, argument: Thing) -> Thing:
            return result

        assert pool.run_now(work, argument) is result
        return [weakref.ref(argument), weakref.ref(result)]

    references = call()

    assert collected(*references)
    pool.shutdown()


def test_a_worker_does_not_keep_the_context_of_who_started_it(ledger: Ledger) -> None:
    variable: contextvars.ContextVar[Thing] = contextvars.ContextVar("variable")

    def start() -> tuple[ResourceExecutor[FakeResource], weakref.ref[Thing]]:
        thing = Thing()
        variable.set(thing)
        pool = make(ledger, propagate_context=False)
        pool.submit(FakeResource.use).result(DEADLINE)
        return pool, weakref.ref(thing)

    pool, reference = contextvars.Context().run(start)

    assert collected(reference)
    pool.shutdown()


# -- an error that the user keeps: its frames lead to those of the worker (`f_back`) --


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only reference counts free anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def fail() -> None:
    raise WatchedError


def rest(pool: ResourceExecutor[Any]) -> None:
    """Wait until the worker sleeps: so it has left the function that runs tasks."""
    (worker,) = workers_of(pool)
    eventually(lambda: worker.log.until is not None and idle_workers(pool) == [worker], "the worker to rest")
    pool._check()


@needs_gil
@pytest.mark.usefixtures("no_collector")
def test_a_task_that_failed_last_is_freed_without_the_garbage_collector() -> None:
    with ResourceExecutor(1) as pool:
        future = pool.submit(fail)
        error = future.exception(DEADLINE)
        rest(pool)
        kept_future, kept_error = weakref.ref(future), weakref.ref(error)
        del future
        eventually(lambda: kept_future() is None, "the future to be freed, though its error is kept")
        del error
        eventually(lambda: kept_error() is None, "the error to be freed")


@needs_gil
@pytest.mark.usefixtures("no_collector")
def test_an_error_that_is_kept_does_not_keep_the_result_of_a_later_task(gate: Gate) -> None:
    with ResourceExecutor(1) as pool:
        pool.submit(gate.hold)
        failing, later = pool.submit(fail), pool.submit(Thing)  # run in one go
        gate.release()
        error = failing.exception(DEADLINE)
        result = weakref.ref(later.result(DEADLINE))
        del failing, later
        rest(pool)
        eventually(lambda: result() is None, "the result to be freed")

    assert isinstance(error, WatchedError)


# -- destructors run under no lock, and errors go in time --


class Told:
    """Calls `ask` when it goes, and notes the answer."""

    def __init__(self, ask: Callable[[], bool], answers: list[bool]) -> None:
        self._ask = ask
        self._answers = answers

    def __call__(self) -> None:
        """To be submitted."""

    def __del__(self) -> None:
        self._answers.append(self._ask())


def test_what_a_cancelled_task_was_given_goes_under_no_lock(busy: ResourceExecutor[None]) -> None:
    held: list[bool] = []
    futures: list[Future[Any]] = []

    def lock_is_held() -> bool:
        return futures[0]._condition._is_owned()  # type: ignore[attr-defined, no-any-return]  # not in typeshed

    futures.append(busy.submit(id, Told(lock_is_held, held)))
    futures[0].cancel()
    eventually(lambda: len(held) == 1, "the argument to go")
    assert held == [False]


def says_no(error: BaseException) -> bool:
    return False


class ErrorWithLuggage(Exception):
    """Has a `Told` among its arguments."""


def test_the_error_of_the_attempt_before_goes_under_no_lock(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    held: list[bool] = []

    def fail_once(resource: FakeResource) -> None:
        if not resource.number:
            raise LookupError

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=says_no)
    pool.submit(gate.hold)
    future = pool.submit(fail_once)
    sidecar: Any = future._condition
    sidecar.error = ErrorWithLuggage(Told(sidecar._is_owned, held))  # with no traceback, which would make a cycle
    gate.release()
    assert future.result(DEADLINE) is None
    assert held == [False]


def check_failed(pool: ResourceExecutor[Any], worker: Worker) -> None:
    report_unfit(pool, worker, UnfitResource("a second one"))


def worker_ready(pool: ResourceExecutor[Any], worker: Worker) -> None:
    report_ready(pool, worker)


def worker_ended(pool: ResourceExecutor[Any], worker: Worker) -> None:
    workers_of(pool).add(another := stranger(pool, 8))
    report_end(pool, another, End.CREATION_FAILED, LookupError("no"))


def cannot_start(pool: ResourceExecutor[Any], worker: Worker) -> None:
    retry_later(pool, CannotStart("no"))


@pytest.mark.parametrize("event", [check_failed, worker_ready, worker_ended, cannot_start])
def test_the_error_of_a_failing_factory_goes_under_no_lock(
    event: Callable[[ResourceExecutor[Any], Worker], None], make_pool: MakePool, ledger: Ledger
) -> None:
    held: list[bool] = []
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)
    pool.submit(FakeResource.use).result(DEADLINE)
    [worker] = workers_of(pool)
    pretend_outage(pool, ErrorWithLuggage(Told(engine_lock(pool)._is_owned, held)))
    event(pool, worker)
    assert held == [False]


def never_healthy(_: BaseException) -> bool:
    return False


class Failed(Exception):
    """Can be referred to weakly."""


@pytest.mark.parametrize("where", ["in a task", "in on_create"])
def test_the_error_of_an_attempt_goes_with_the_next(
    where: str, make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    # Without the garbage collector: the traceback of an error leads to the frames of the worker, which had the error in hand.
    caplog.set_level(logging.CRITICAL, "tasker_executor")  # or its records would keep the errors
    errors: list[weakref.ref[Failed]] = []

    def fail_twice(place: str) -> None:
        if place == where and len(errors) < 2:
            error = [Failed()]
            errors.append(weakref.ref(error[0]))
            raise error.pop()

    def create() -> FakeResource:
        fail_twice("in on_create")
        return ledger.create()

    pool = make_pool(1, on_create=create, on_destroy=ledger.destroy, check_health=never_healthy)
    gc.disable()
    try:
        pool.submit(lambda resource: fail_twice("in a task")).result(DEADLINE)
        eventually(lambda: [error() for error in errors] == [None, None], "both errors to go")
    finally:
        gc.enable()
