"""`warn_after`: which tasks are slow, when that is told, and what the record says."""

from __future__ import annotations

import gc
import threading
import weakref
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine import Slow, Task, Worker, new_task, post_aside, settings_of
from support import HOUR, Clock, Gate, MakePool, eventually
from tasker_executor import ResourceExecutor


def crawl(gate: Gate) -> None:
    gate.hold()


class Busy:
    """A worker that runs a task, as far as `Slow` looks at one. Its thread is that of the test."""

    def __init__(self, name: str = "pool_0", born: float | None = None) -> None:
        self.name = name
        self.thread = threading.current_thread()
        self.task: Task[Any] | None = new_task(crawl)
        self.holding = None if born is None else SimpleNamespace(born=born)


class Story:
    """One `Slow` that warns after ten seconds, and the time."""

    def __init__(self, caplog: pytest.LogCaptureFixture, **settings: Any) -> None:
        with ResourceExecutor(1, name="pool", warn_after=10, **settings) as pool:
            self.slow = Slow(settings_of(pool))
        self._caplog = caplog
        caplog.clear()

    def look(self, worker: Busy, now: float, since: float = 0.0) -> float | None:
        task = worker.task
        assert task is not None
        return self.slow.look(cast("Worker", worker), task, since, now)

    def told(self) -> list[float]:
        """How long the tasks had run of which the records tell, since this was asked last."""
        seconds = [vars(record)["tasker_seconds"] for record in self._caplog.records]
        self._caplog.clear()
        return seconds


@pytest.fixture
def story(caplog: pytest.LogCaptureFixture) -> Story:
    return Story(caplog)


# -- when --


def test_a_task_is_told_when_it_has_run_for_so_long_and_at_each_doubling(story: Story) -> None:
    worker = Busy()

    assert (story.look(worker, 9.9), story.told()) == (10.0, [])
    assert (story.look(worker, 10.0), story.told()) == (20.0, [10.0])
    assert (story.look(worker, 10.0), story.told()) == (20.0, [])
    assert (story.look(worker, 19.9), story.told()) == (20.0, [])
    assert (story.look(worker, 20.5), story.told()) == (40.0, [20.5])
    assert (story.look(worker, 40.0), story.told()) == (80.0, [40.0])


def test_a_timer_that_is_late_tells_once(story: Story) -> None:
    worker = Busy()

    assert (story.look(worker, 170.0), story.told()) == (320.0, [170.0])
    assert (story.look(worker, 171.0), story.told()) == (320.0, [])


def test_each_task_has_its_own_time(story: Story) -> None:
    worker = Busy()
    story.look(worker, 10.0)
    worker.task = new_task(crawl)

    assert (story.look(worker, 12.0, since=11.0), story.told()) == (21.0, [10.0])
    assert (story.look(worker, 21.0, since=11.0), story.told()) == (31.0, [10.0])


def test_each_attempt_has_its_own_time(story: Story) -> None:
    worker = Busy()
    story.look(worker, 10.0)

    assert (story.look(worker, 12.0, since=11.0), story.told()) == (21.0, [10.0])


def test_each_worker_has_its_own_time(story: Story) -> None:
    first, second = Busy("pool_0"), Busy("pool_1")

    assert story.look(first, 10.0, since=0.0) == 20.0
    assert story.look(second, 10.0, since=5.0) == 15.0
    assert story.look(second, 15.0, since=5.0) == 25.0
    assert story.told() == [10.0, 10.0]


def test_a_time_too_short_to_be_seen_ends() -> None:
    with ResourceExecutor(1, name="pool", warn_after=5e-324) as pool:
        slow, worker = Slow(settings_of(pool)), Busy()
    task = worker.task
    assert task is not None
    due = slow.look(cast("Worker", worker), task, 1e6, 1e6)

    assert due is not None
    assert due > 1e6


def test_without_warn_after_there_is_nothing_to_look_for(caplog: pytest.LogCaptureFixture) -> None:
    with ResourceExecutor(1) as pool:
        slow, worker = Slow(settings_of(pool)), Busy()
    task = worker.task
    assert task is not None

    assert slow.look(cast("Worker", worker), task, 0.0, HOUR) is None
    assert not caplog.records


def test_neither_the_worker_nor_the_task_is_kept(story: Story) -> None:
    worker = Busy()
    task = worker.task
    story.look(worker, 10.0)
    gone = weakref.ref(worker), weakref.ref(cast("Any", task))
    del task
    gc.disable()
    try:
        del worker
        assert [thing() for thing in gone] == [None, None]
    finally:
        gc.enable()


# -- what --


def test_the_record_says_who_what_how_long_and_where(story: Story, caplog: pytest.LogCaptureFixture) -> None:
    story.look(Busy(), 12.3)
    (record,) = caplog.records
    first, second, *_ = record.getMessage().splitlines()

    assert (record.levelname, record.name) == ("WARNING", "tasker_executor")
    assert first == "executor 'pool': task crawl has been running for 12.3 s on worker pool_0; it has no resource:"
    assert second.startswith('  File "')
    assert vars(record)["tasker_executor"] == "pool"
    assert vars(record)["tasker_worker"] == "pool_0"
    assert vars(record)["tasker_function"] == "crawl"
    assert "in test_the_record_says_who_what_how_long_and_where" in vars(record)["tasker_stack"]


def test_the_record_says_how_old_the_resource_is(story: Story, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    story.look(Busy(born=clock()), 10.0)
    clock.ahead += 100
    story.look(Busy(born=clock() - 60.04), 10.0)
    young, old = caplog.records

    assert "its resource is 0.0 s old:" in young.getMessage()
    assert "its resource is 60.0 s old:" in old.getMessage()
    assert vars(old)["tasker_age"] == pytest.approx(60, abs=1)


def test_a_task_that_has_ended_before_it_is_told_is_not_told(story: Story) -> None:
    worker = Busy()
    with post_aside() as posted:
        story.look(worker, 10.0)
    worker.task = None
    for news in posted:
        news()

    assert (len(posted), story.told()) == (1, [])


def test_a_task_that_ends_while_its_stack_is_read_is_not_told(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Busy()

    def read(_: object) -> str:
        worker.task = new_task(crawl)
        return "the stack of the next task"

    monkeypatch.setattr("tasker_executor._engine.slow.stack_of", read)
    story.look(worker, 10.0)

    assert story.told() == []


def test_a_task_that_was_given_up_is_not_told(story: Story) -> None:
    class GivenUp(Task[Any]):
        def done(self) -> bool:
            return True

    worker = Busy()
    worker.task = new_task(crawl, kind=GivenUp)
    story.look(worker, 10.0)

    assert story.told() == []


def test_the_timers_thread_leaves_all_to_the_herald(story: Story, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[bool] = []

    class Curious:
        def __call__(self) -> None: ...

        def __getattr__(self, name: str) -> object:
            if name == "__qualname__":
                asked.append(True)
            raise AttributeError(name)

    worker = Busy()
    worker.task = new_task(Curious())
    with post_aside() as posted:
        story.look(worker, 10.0)
        story.look(worker, 20.0)
        assert (asked, caplog.records) == ([], [])
    for news in posted:
        news()

    assert (len(asked), story.told()) == (2, [10.0, 20.0])


def test_what_is_posted_keeps_no_task(story: Story) -> None:
    worker = Busy()
    gone = weakref.ref(cast("Any", worker.task))
    with post_aside() as posted:
        story.look(worker, 10.0)
    worker.task = None
    gc.disable()
    try:
        assert gone() is None
    finally:
        gc.enable()
    assert len(posted) == 1


# -- in an executor --


def test_the_herald_tells_of_a_slow_task(
    make_pool: MakePool, clock: Clock, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(1, on_create=object, name="db", warn_after=HOUR)
    pool.submit(lambda _: gate.hold())
    gate.wait_until_held()
    clock.pass_time(1.5 * HOUR, pool)
    eventually(lambda: len(caplog.records) == 1, "the first record")
    clock.pass_time(HOUR, pool)
    eventually(lambda: len(caplog.records) == 2, "the second record")
    gate.release()
    first, second = caplog.records

    assert (first.threadName, second.threadName) == ("db_herald", "db_herald")
    assert [vars(record)["tasker_seconds"] // HOUR for record in (first, second)] == [1, 2]
    assert "in hold" in vars(second)["tasker_stack"]
    assert "its resource is 9000." in second.getMessage()


def test_a_task_that_is_quick_enough_is_not_told(
    make_pool: MakePool, clock: Clock, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(2, warn_after=HOUR)
    pool.submit(gate.hold)
    gate.wait_until_held()
    clock.pass_time(0.9 * HOUR, pool)
    pool.submit(crawl, gate)
    gate.wait_until_held(2)
    clock.pass_time(0.2 * HOUR, pool)
    eventually(lambda: len(caplog.records) == 1, "the record of the first task")
    gate.release()
    pool.shutdown()

    assert [vars(record)["tasker_function"] for record in caplog.records] == ["Gate.hold"]
