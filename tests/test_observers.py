"""Observers: told of every event, on the spot, never under a lock."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import pytest

from engine import Task, name_of, new_task, post_aside
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, ResourceBroken, eventually
from tasker_executor import (
    Observer,
    ResourceEvent,
    ResourceExecutor,
    ScaleEvent,
    StateEvent,
    TaskEvent,
    TaskExpired,
    TaskStopped,
    TaskTimeout,
    WorkerEvent,
    current_task,
)
from tasker_executor._hub import ObserverHub
from tasker_executor.observers import EVENTS

TASK_EVENTS = [event for event in EVENTS if event.startswith("task_")]


def listening(events: list[str], hear: Callable[[str, Any], None]) -> Observer:
    """Return an observer whose class overrides just these methods, to call ``hear(event's name, event)``."""

    def method(event: str) -> Callable[[Observer, Any], None]:
        return lambda self, what: hear(event, what)

    observer: Observer = type("Listener", (Observer,), {event: method(event) for event in events})()
    return observer


class Notebook:
    """Writes down all events."""

    def __init__(self, events: list[str] = EVENTS) -> None:
        self._lock = threading.Lock()
        self.names: list[str] = []
        self.events: dict[str, list[Any]] = defaultdict(list)
        self.threads: dict[str, list[str]] = defaultdict(list)
        self.observer = listening(events, self._hear)

    def _hear(self, name: str, event: Any) -> None:
        with self._lock:
            self.names.append(name)
            self.events[name].append(event)
            self.threads[name].append(threading.current_thread().name)


@pytest.fixture
def notebook() -> Notebook:
    return Notebook()


# -- tasks --


def test_task_is_submitted_started_and_finished(make_pool: MakePool, notebook: Notebook) -> None:
    pool = make_pool(1, name="crawler", observers=[notebook.observer])
    pool.submit(int, "7").result()
    [submitted], [started], [finished] = (notebook.events[f"task_{what}"] for what in ("submitted", "started", "finished"))

    assert submitted == TaskEvent("crawler", submitted.task, "int", "normal")
    assert started == TaskEvent("crawler", submitted.task, "int", "normal", 1, "crawler_0", started.wait)
    assert finished == TaskEvent(
        "crawler", submitted.task, "int", "normal", 1, "crawler_0", finished.wait, finished.run, "completed"
    )
    assert started.wait == finished.wait >= 0.0
    assert finished.run >= 0.0


def test_events_of_a_task_happen_where_the_task_is(make_pool: MakePool, notebook: Notebook) -> None:
    make_pool(1, name="crawler", observers=[notebook.observer]).submit(int).result()

    assert notebook.threads["task_submitted"] == [threading.current_thread().name]
    assert notebook.threads["task_started"] == ["crawler_0"]
    assert notebook.threads["task_finished"] == ["crawler_0"]


def test_function_is_named_as_its_author_named_it(make_pool: MakePool, ledger: Ledger, notebook: Notebook) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, observers=[notebook.observer])
    plain = pool.with_options(pass_resource=False)
    pool.submit(FakeResource.use).result()
    plain.submit(int, "11", base=2).result()
    list(pool.map(FakeResource.use, [1, 2], chunksize=2))
    names = ["FakeResource.use", "int", "FakeResource.use"]

    for event in ("task_submitted", "task_started", "task_finished"):
        assert [told.function for told in notebook.events[event]] == names


def test_callable_that_answers_no_question_is_submitted_all_the_same(make_pool: MakePool, notebook: Notebook) -> None:
    class Sphinx:
        def __call__(self) -> int:
            return 3

        def __getattr__(self, name: str) -> object:
            raise LookupError(name)

    assert make_pool(1, observers=[notebook.observer]).submit(Sphinx()).result() == 3
    assert [event.function for event in notebook.events["task_submitted"]] == ["Sphinx"]


def test_callable_with_any_attribute_is_named_by_its_class(make_pool: MakePool) -> None:
    notebook = Notebook(["task_started"])

    class Mock:
        def __getattr__(self, name: str) -> Mock:
            return self

        def __call__(self) -> None:
            pass

    make_pool(1, observers=[notebook.observer]).submit(Mock()).result()

    assert [event.function for event in notebook.events["task_started"]] == ["Mock"]


def test_callable_that_raises_whatever_it_is_asked_for_is_named_by_its_class(make_pool: MakePool) -> None:
    notebook = Notebook(["task_started"])

    class Proxy:
        def __getattribute__(self, name: str) -> object:
            raise LookupError(f"not connected: {name}")

        def __call__(self) -> int:
            return 7

    assert make_pool(1, observers=[notebook.observer]).submit(Proxy()).result() == 7
    assert [event.function for event in notebook.events["task_started"]] == ["Proxy"]


def test_lane_is_told(make_pool: MakePool, notebook: Notebook) -> None:
    make_pool(1, observers=[notebook.observer]).submit_priority(int).result()

    assert {notebook.events[name][0].lane for name in ("task_submitted", "task_started", "task_finished")} == {"priority"}


def test_error_of_a_task_is_told(make_pool: MakePool, notebook: Notebook) -> None:
    future = make_pool(1, observers=[notebook.observer]).submit(int, "no number")
    error = future.exception()
    [finished] = notebook.events["task_finished"]

    assert finished.outcome == "failed"
    assert finished.error is error


def test_retry_is_told(make_pool: MakePool, ledger: Ledger, notebook: Notebook) -> None:
    pool = make_pool(
        1,
        name="crawler",
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        max_retries=1,
        observers=[notebook.observer],
    )
    error = pool.submit(FakeResource.break_down).exception()
    pool.shutdown()
    [retried], [finished] = notebook.events["task_retried"], notebook.events["task_finished"]

    assert (retried.executor, retried.function, retried.attempt) == ("crawler", "FakeResource.break_down", 1)
    assert isinstance(retried.error, ResourceBroken)
    assert (finished.attempt, finished.outcome) == (2, "failed")
    assert finished.error is error
    assert [event.attempt for event in notebook.events["task_started"]] == [1, 2]
    assert len({event.task for name in TASK_EVENTS for event in notebook.events[name]}) == 1


def test_cancellation_is_told(make_pool: MakePool, gate: Gate, notebook: Notebook) -> None:
    pool = make_pool(1, name="crawler", observers=[notebook.observer])
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.submit_priority(int).cancel()
    [finished] = notebook.events["task_finished"]

    assert (finished.executor, finished.lane, finished.outcome) == ("crawler", "priority", "cancelled")
    assert finished.task == notebook.events["task_submitted"][1].task
    assert (finished.attempt, finished.worker, finished.error) == (0, None, None)


def test_expiry_is_told(make_pool: MakePool, gate: Gate, notebook: Notebook) -> None:
    pool = make_pool(1, observers=[notebook.observer])
    pool.submit(gate.hold)
    gate.wait_until_held()
    error = pool.with_options(start_within=0.0).submit(int).exception(DEADLINE)
    eventually(lambda: bool(notebook.events["task_finished"]), "the event")
    [finished] = notebook.events["task_finished"]

    assert isinstance(error, TaskExpired)
    assert (finished.outcome, finished.attempt, finished.worker) == ("failed", 0, None)
    assert finished.error is error


def until_told() -> None:
    """A task that ends as soon as it is asked to stop."""
    current_task().wait(DEADLINE)
    current_task().raise_if_cancelled()


def told_of_stops(notebook: Notebook) -> list[str | None]:
    return [event.outcome for event in notebook.events["task_stopped"]]


def test_stop_is_told_with_its_reason(make_pool: MakePool, notebook: Notebook) -> None:
    pool = make_pool(1, observers=[notebook.observer])
    for reason in ("stopped", "timed out", "killed"):
        future = pool.with_options(run_within=0.001 if reason == "timed out" else None).submit(until_told)
        if reason == "killed":
            eventually(future.running, "the task to run")
            pool.kill()
        elif reason == "stopped":
            eventually(future.running, "the task to run")
            future.stop()
            future.stop()
        future.exception(DEADLINE)
        # The watch tells of a time-out after it has stopped the task, and perhaps after the task has ended.
        eventually(lambda reason=reason: told_of_stops(notebook)[-1:] == [reason], "the event")  # type: ignore[misc]  # mypy knows no default of a lambda
    pool.shutdown()
    stops, finishes = notebook.events["task_stopped"], notebook.events["task_finished"]

    assert told_of_stops(notebook) == ["stopped", "timed out", "killed"]
    assert {(event.function, event.worker, event.attempt) for event in stops} == {("until_told", f"{name_of(pool)}_0", 1)}
    assert [event.task for event in stops] == [event.task for event in finishes]
    assert [type(event.error) for event in finishes] == [TaskStopped, TaskTimeout, TaskStopped]


def test_worker_that_is_written_off_is_told_and_its_task_is_finished_once(
    make_pool: MakePool, gate: Gate, notebook: Notebook
) -> None:
    pool = make_pool(1, observers=[notebook.observer], abort_grace=0, name="db")
    future = pool.submit(gate.hold)
    gate.wait_until_held()
    future.stop()
    error = future.exception(DEADLINE)
    eventually(lambda: "worker_written_off" in notebook.names, "the event")
    gate.release()
    eventually(lambda: "worker_ended" in notebook.names, "its end")
    (written_off,) = notebook.events["worker_written_off"]
    (finished,) = notebook.events["task_finished"]
    (ended,) = notebook.events["worker_ended"]

    assert (written_off.executor, written_off.worker) == ("db", "db_0")
    assert "hold has not ended" in written_off.reason
    assert (finished.outcome, finished.error, finished.worker) == ("failed", error, "db_0")
    assert ended.worker == "db_0"
    assert notebook.names.index("worker_written_off") < notebook.names.index("worker_ended")


def test_the_end_of_a_task_is_told_though_the_executor_closes_before_its_canceller_goes_on(
    make_pool: MakePool, gate: Gate, notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A thread settles the task. 2. A worker pops it, and ends. 3. The executor closes. 4. The thread goes on."""
    pool = make_pool(1, observers=[notebook.observer])
    pool.submit(gate.hold)
    gate.wait_until_held()
    future = pool.submit(int)
    settled, go = threading.Event(), threading.Event()
    conclude = cast("Callable[..., None]", Task._conclude)

    def pause(task: Task[Any], **options: Any) -> None:
        if options.get("mine"):
            settled.set()
            assert go.wait(DEADLINE)
        conclude(task, **options)

    monkeypatch.setattr(Task, "_conclude", pause)
    canceller = threading.Thread(target=future.cancel)
    canceller.start()
    assert settled.wait(DEADLINE)
    gate.release()
    pool.shutdown()
    go.set()
    canceller.join(DEADLINE)

    assert [event.outcome for event in notebook.events["task_finished"]] == ["completed", "cancelled"]


def test_until_another_thread_has_told_of_a_task_no_other_has_its_number(notebook: Notebook) -> None:
    hub = ObserverHub((notebook.observer,))
    task = new_task(int)
    event, gone = TaskEvent("db", id(task), "int", "normal", outcome="timed out"), weakref.ref(task)
    with post_aside() as posted:
        hub.tell("task_stopped", event, task)
    del task
    kept = gone() is not None
    while posted:
        posted.pop()()

    assert kept
    assert gone() is None
    assert notebook.events["task_stopped"] == [event]


def test_refused_task_is_not_told(make_pool: MakePool, notebook: Notebook) -> None:
    pool = make_pool(1, observers=[notebook.observer])
    pool.shutdown()
    with pytest.raises(RuntimeError):
        pool.submit(int)

    assert [name for name in notebook.names if name.startswith("task_")] == []


def test_every_task_is_finished_exactly_once(make_pool: MakePool, gate: Gate, notebook: Notebook) -> None:
    pool = make_pool(2, observers=[notebook.observer])
    pool.submit(gate.hold)
    futures = [pool.submit(int, "x" if number % 3 == 0 else "7") for number in range(60)]
    for future in futures[::5]:
        future.cancel()
    gate.release()
    pool.shutdown()
    for future in futures:
        assert future.cancelled() or future.exception() is None or isinstance(future.exception(), ValueError)
    outcomes = [event.outcome for event in notebook.events["task_finished"]]
    stats = pool.stats()

    assert len(outcomes) == len(notebook.events["task_submitted"]) == 61
    assert outcomes.count("completed") == stats.completed
    assert outcomes.count("failed") == stats.failed
    assert outcomes.count("cancelled") == stats.cancelled


# -- workers and resources --


def test_worker_and_resource_come_and_go(make_pool: MakePool, ledger: Ledger, notebook: Notebook) -> None:
    pool = make_pool(1, name="crawler", on_create=ledger.create, on_destroy=ledger.destroy, observers=[notebook.observer])
    pool.submit(FakeResource.use).result()
    pool.shutdown()
    [created], [destroyed] = notebook.events["resource_created"], notebook.events["resource_destroyed"]

    assert created == ResourceEvent("crawler", "crawler_0", created.seconds)
    assert destroyed == ResourceEvent("crawler", "crawler_0", destroyed.seconds)
    assert created.seconds >= 0.0
    assert notebook.events["worker_started"] == [WorkerEvent("crawler", "crawler_0")]
    assert notebook.events["worker_ended"] == [WorkerEvent("crawler", "crawler_0", "the executor shut down")]
    names = ["resource_created", "worker_started", "task_started", "task_finished", "resource_destroyed", "worker_ended"]
    assert [name for name in notebook.names if name in names] == names


def test_worker_whose_resource_broke_says_so(make_pool: MakePool, ledger: Ledger, notebook: Notebook) -> None:
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        max_retries=0,
        observers=[notebook.observer],
    )
    pool.submit(FakeResource.break_down).exception()
    pool.shutdown()

    assert notebook.events["worker_ended"][0].reason == "its resource was broken"


def test_resource_for_run_now_belongs_to_no_worker(make_pool: MakePool, ledger: Ledger, notebook: Notebook) -> None:
    ledger.any_thread = True
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1, observers=[notebook.observer])
    pool.shutdown()

    assert [event.worker for event in notebook.events["resource_created"]] == [None]
    assert [event.worker for event in notebook.events["resource_destroyed"]] == [None]


def test_failure_of_the_factory_is_told(make_pool: MakePool, ledger: Ledger, notebook: Notebook) -> None:
    ledger.outage = OSError("down")
    pool = make_pool(
        1, name="crawler", on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=0.0, observers=[notebook.observer]
    )
    pool.submit(FakeResource.use).exception(DEADLINE)
    eventually(lambda: bool(notebook.events["creation_failed"]), "the event")

    assert notebook.events["creation_failed"][0] == ResourceEvent("crawler", "crawler_0", 0.0, ledger.outage)


def test_on_destroy_that_raises_is_told(make_pool: MakePool, ledger: Ledger, notebook: Notebook) -> None:
    error = OSError("cannot close")

    def destroy(resource: FakeResource) -> None:
        ledger.destroy(resource)
        raise error

    pool = make_pool(1, on_create=ledger.create, on_destroy=destroy, observers=[notebook.observer])
    pool.submit(FakeResource.use).result()
    pool.shutdown()

    assert [event.error for event in notebook.events["resource_destroyed"]] == [error]


# -- the executor --


def test_change_of_size_is_told(make_pool: MakePool, notebook: Notebook) -> None:
    pool = make_pool(2, name="crawler", observers=[notebook.observer])
    pool.resize(max_workers=5)
    pool.resize(max_workers=5)  # no change

    assert notebook.events["scaled"] == [ScaleEvent("crawler", 2, 5, "resize to 0..5")]


def test_end_is_told_step_by_step(make_pool: MakePool, gate: Gate, notebook: Notebook) -> None:
    pool = make_pool(1, name="crawler", observers=[notebook.observer])
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.shutdown(wait=False)
    pool.shutdown(wait=False)
    pool.kill()
    gate.release()
    pool.shutdown()
    eventually(lambda: len(notebook.events["state_changed"]) == 3, "the last event")

    assert notebook.events["state_changed"] == [StateEvent("crawler", state) for state in ("draining", "killed", "closed")]


def test_end_is_the_last_that_is_told(make_pool: MakePool, ledger: Ledger, gate: Gate, notebook: Notebook) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, observers=[notebook.observer])
    pool.submit(gate.hold)
    gate.wait_until_held()
    futures = [pool.submit(FakeResource.use) for _ in range(20)]
    gate.release()
    pool.shutdown(cancel_futures=True)
    eventually(lambda: StateEvent(name_of(pool), "closed") in notebook.events["state_changed"], "the last event")

    assert all(future.done() for future in futures)
    assert notebook.names[-1] == "state_changed"


# -- manners --


@pytest.mark.parametrize("event", EVENTS)
def test_observer_that_raises_is_logged_and_ignored(
    make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture, event: str
) -> None:
    def hear(name: str, what: object) -> None:
        raise RuntimeError("the observer's own bug")

    other = Notebook([event])
    live_through_everything(make_pool, ledger, [listening([event], hear), other.observer])
    records = [record for record in caplog.records if record.name == "tasker_executor.observers"]

    assert records
    assert all(record.levelno == logging.ERROR for record in records)
    assert all(f"raised in {event} and was ignored" in record.getMessage() for record in records)
    assert all(record.exc_info is not None and isinstance(record.exc_info[1], RuntimeError) for record in records)
    assert len(other.names) == len(records)  # the next observer is told all the same


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_what_means_the_program_comes_out_of_an_observer_on_the_main_thread(
    make_pool: MakePool, kind: type[BaseException]
) -> None:
    raised: list[str] = []

    def hear(name: str, event: StateEvent) -> None:
        if event.state == "draining":  # A worker may tell of the end meanwhile, on its own thread.
            raised.append(event.state)
            raise kind

    pool = make_pool(1, observers=[listening(["state_changed"], hear)])
    pool.submit(int).result()

    with pytest.raises(kind):
        pool.shutdown()
    pool.shutdown()

    assert raised == ["draining"]
    assert pool.stats().state == "closed"


@pytest.mark.parametrize("event", EVENTS)
def test_observer_is_told_of_what_it_overrides_and_of_nothing_else(make_pool: MakePool, ledger: Ledger, event: str) -> None:
    notebook = Notebook([event])
    live_through_everything(make_pool, ledger, [notebook.observer])

    assert set(notebook.names) == {event}


def test_method_set_on_an_instance_is_not_an_override(make_pool: MakePool) -> None:
    observer = Observer()
    called: list[object] = []
    vars(observer)["task_finished"] = called.append
    make_pool(1, observers=[observer]).submit(int).result()

    assert called == []


def test_observers_are_told_in_their_order(make_pool: MakePool) -> None:
    told: list[int] = []

    def number_of(number: int) -> Callable[[str, Any], None]:
        return lambda name, what: told.append(number)

    observers = [listening(["task_started"], number_of(number)) for number in range(3)]
    make_pool(1, observers=iter(observers)).submit(int).result()

    assert told == [0, 1, 2]


@pytest.mark.parametrize("event", EVENTS)
def test_observer_is_never_called_under_a_lock(make_pool: MakePool, ledger: Ledger, event: str) -> None:
    """Another thread does everything that needs a lock while the observer waits for it."""
    told: list[str] = []
    stuck: list[str] = []
    pools: list[ResourceExecutor[FakeResource]] = []

    def use_the_pool() -> None:
        for pool in pools:
            pool.stats()
            pool.metrics()
            repr(pool)
            pool.resize()
            try:
                pool.submit(FakeResource.use).cancel()
            except RuntimeError:  # shut down
                pass

    def hear(name: str, what: object) -> None:
        if told:
            return  # once is enough, and what the other thread does makes events, too
        told.append(name)
        thread = threading.Thread(target=use_the_pool)
        thread.start()
        thread.join(DEADLINE)
        if thread.is_alive():
            stuck.append(name)

    live_through_everything(make_pool, ledger, [listening([event], hear)], pools)

    assert told == [event]
    assert stuck == []


def live_through_everything(
    make_pool: MakePool,
    ledger: Ledger,
    observers: list[Observer],
    pools: list[ResourceExecutor[FakeResource]] | None = None,
) -> None:
    """Make an executor and have everything happen to it that there is an event for."""
    outage, broke = OSError("down"), threading.Event()
    attempts: list[int] = []

    def create() -> FakeResource:
        attempts.append(1)
        if len(attempts) == 1:
            raise outage
        return ledger.create()

    def task(resource: FakeResource) -> None:
        if not broke.is_set():
            broke.set()
            resource.break_down()

    pool = make_pool(
        1, on_create=create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, observers=observers, abort_grace=0
    )
    if pools is not None:
        pools.append(pool)
    pool.submit(task).result(DEADLINE)
    pool.resize(max_workers=2)
    with Gate() as gate:
        hanging = pool.submit(lambda resource: gate.hold())
        gate.wait_until_held()
        hanging.stop()
        hanging.exception(DEADLINE)
        eventually(lambda: pool.stats().written_off == 1, "the worker to be written off")
    pool.shutdown()


def test_an_observer_that_cannot_even_be_shown_is_ignored(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    class Shy(Observer):
        def __repr__(self) -> str:
            raise LookupError

        def task_finished(self, event: TaskEvent) -> None:
            raise SystemExit

    pool = make_pool(1, observers=[Shy()])

    assert pool.submit(int).result(DEADLINE) == 0
    pool.shutdown()
    assert [record.getMessage().endswith("raised in task_finished and was ignored") for record in caplog.records] == [True]
