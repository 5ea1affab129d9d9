"""`run_now` is stopped: by `run_within`, by `kill`, and by the future of a task that runs in its submitter's thread.

The stories of a race are numbered. C is the call, A the thread of its abort, N the next call that takes the same resource.
"""

from __future__ import annotations

import os
import random
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, cast

import pytest

from engine import (
    Grip,
    Holding,
    Run,
    free_resources,
    join_aborts,
    kick,
    reserve_of,
    runs_of,
    source_of,
    stock_of,
    timer_of,
)
from support import DEADLINE, HOUR, Clock, FakeResource, Gate, Ledger, MakePool, ResourceBroken, eventually, switch_interval
from tasker_executor import (
    ResourceExecutor,
    ShutdownTimeout,
    TaskCancelled,
    TaskContext,
    TaskStopped,
    TaskTimeout,
    Verdict,
    current_task,
)

Pool = ResourceExecutor[FakeResource]


class Cut(Exception):
    """What a driver raises in a call whose connection was aborted."""


class Calling(threading.Thread):
    """Calls a function on a thread of its own."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        super().__init__()
        self._function = function
        self._args = args
        self.value: object = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.value = self._function(*self._args)
        except BaseException as error:
            self.error = error

    def end(self) -> BaseException | None:
        """Return what the call raised."""
        self.join(DEADLINE)
        assert not self.is_alive()
        return self.error


def always(answer: Any) -> Callable[[object], Any]:
    """Return a hook that gives this answer."""

    def hook(_: object) -> Any:
        return answer

    return hook


def is_not_the_first(resource: FakeResource) -> bool:
    return resource.number != 0


class Line:
    """Calls hang on it until it is aborted; then they raise `Cut`. One for each test."""

    def __init__(self) -> None:
        self.hanging = threading.Semaphore(0)
        self.cut = threading.Event()
        self.aborted: list[object] = []
        self.threads: list[threading.Thread] = []

    def hang(self, *_: object) -> None:
        self.hanging.release()
        assert self.cut.wait(DEADLINE)
        raise Cut

    def ignore(self, *_: object) -> str:
        """Hang, and return in spite of it all."""
        self.hanging.release()
        assert self.cut.wait(DEADLINE)
        return "value"

    def abort(self, resource: object) -> None:
        self.aborted.append(resource)
        self.threads.append(threading.current_thread())
        self.cut.set()

    def wait_until_hangs(self) -> None:
        assert self.hanging.acquire(timeout=DEADLINE)


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.cut.set()


@pytest.fixture
def make(make_pool: MakePool, ledger: Ledger, line: Line) -> Callable[..., Pool]:
    """Makes pools whose calls have an hour."""
    ledger.any_thread = True

    def make(**options: Any) -> Pool:
        given: dict[str, Any] = {
            "on_create": ledger.create,
            "on_destroy": ledger.destroy,
            "on_abort": line.abort,
            "resource_pool_size": 1,
            "run_within": HOUR,
        }
        return cast("Pool", make_pool(1, **{**given, **options}))

    return make


Make = Callable[..., Pool]


def late(pool: Pool, clock: Clock) -> None:
    clock.pass_time(2 * HOUR, pool)


# -- the limit --


def test_a_call_that_has_run_for_too_long_is_stopped(make: Make, clock: Clock, line: Line) -> None:
    pool = make(name="crawler")
    call = Calling(pool.run_now, line.hang)
    line.wait_until_hangs()

    late(pool, clock)

    error = call.end()
    assert type(error) is TaskTimeout
    assert str(error) == "executor 'crawler': task Line.hang has run for longer than run_within (3600 s)"
    assert type(error.__cause__) is Cut


def test_before_that_nothing_happens(make: Make, clock: Clock, line: Line) -> None:
    pool = make()
    call = Calling(pool.run_now, line.ignore)
    line.wait_until_hangs()

    clock.pass_time(0.9 * HOUR, pool)
    eventually(lambda: runs_of(pool).expire(clock()) is not None, "the call to be due later")
    line.cut.set()

    assert (call.end(), call.value, line.aborted) == (None, "value", [])


def test_a_value_stands(make: Make, clock: Clock, line: Line) -> None:
    pool = make()
    call = Calling(pool.run_now, line.ignore)
    line.wait_until_hangs()

    late(pool, clock)

    assert (call.end(), call.value) == (None, "value")


@pytest.mark.parametrize("resource_pool_size", [0, 1])
def test_on_abort_is_called_once_and_on_a_thread_of_its_own(
    make: Make, clock: Clock, line: Line, resource_pool_size: int
) -> None:
    pool = make(resource_pool_size=resource_pool_size)
    call = Calling(pool.run_now, line.hang)
    line.wait_until_hangs()

    for _ in range(3):
        late(pool, clock)
    call.end()
    late(pool, clock)

    assert len(line.aborted) == 1
    assert line.threads[0] not in {threading.current_thread(), call, timer_of(pool).thread}


def test_its_token_is_set_and_says_why(make: Make, clock: Clock) -> None:
    pool = make(on_abort=None)
    started = threading.Event()

    def work(_: FakeResource) -> None:
        task = current_task()
        assert not task.cancelled
        started.set()
        assert task.wait(DEADLINE)
        task.raise_if_cancelled()

    call = Calling(pool.run_now, work)
    assert started.wait(DEADLINE)
    late(pool, clock)

    error = call.end()
    assert type(error) is TaskTimeout
    assert type(error.__cause__) is TaskCancelled
    assert str(error.__cause__) == "this task has run for longer than run_within (3600 s)"


def test_each_call_has_a_token_of_its_own(make: Make, clock: Clock) -> None:
    pool = make(on_abort=None)
    tasks: list[TaskContext] = []
    started = threading.Semaphore(0)

    def work(_: FakeResource) -> bool:
        tasks.append(current_task())
        started.release()
        return tasks[-1].wait(DEADLINE)

    first = Calling(pool.with_options(run_within=3 * HOUR).run_now, work)
    started.acquire()
    second = Calling(pool.run_now, work)
    started.acquire()
    late(pool, clock)

    second.end()
    assert [task.cancelled for task in tasks] == [False, True]
    late(pool, clock)
    first.end()
    assert tasks[0].cancelled


def test_a_call_without_a_resource_is_stopped(make_pool: MakePool, clock: Clock) -> None:
    pool = make_pool(1, run_within=HOUR)
    started = threading.Event()

    def work() -> None:
        started.set()
        assert current_task().wait(DEADLINE)
        raise Cut

    call = Calling(pool.run_now, work)
    assert started.wait(DEADLINE)
    clock.pass_time(2 * HOUR, pool)

    error = call.end()
    assert type(error) is TaskTimeout
    assert type(error.__cause__) is Cut


@pytest.mark.parametrize("limits", [(None, HOUR), (9 * HOUR, HOUR)])
def test_a_view_has_a_limit_of_its_own(make: Make, clock: Clock, line: Line, limits: tuple[float | None, float]) -> None:
    pool = make(run_within=limits[0])
    call = Calling(pool.with_options(run_within=limits[1]).run_now, line.hang)
    line.wait_until_hangs()

    late(pool, clock)

    assert type(call.end()) is TaskTimeout


def test_a_view_may_lift_the_limit(make: Make, clock: Clock, line: Line) -> None:
    pool = make()
    call = Calling(pool.with_options(run_within=None).run_now, line.hang)
    line.wait_until_hangs()

    late(pool, clock)
    assert runs_of(pool).expire(clock()) is None
    line.cut.set()

    assert type(call.end()) is Cut
    assert line.aborted == []


def test_a_claim_that_comes_back_after_the_end_is_not_taken_again() -> None:
    grip = Grip(object())
    assert grip.claim()
    assert grip.let_go()

    grip.give_back()

    assert not grip.claim()


def test_a_call_without_any_time_is_never_made(make: Make) -> None:
    pool = make(on_abort=None)
    called: list[object] = []

    with pytest.raises(TaskTimeout) as caught:
        pool.with_options(run_within=0).run_now(called.append)

    assert caught.value.__cause__ is None
    assert called == []


def test_a_limit_passes_without_help(make: Make, line: Line) -> None:
    pool = make(run_within=0.01)

    with pytest.raises(TaskTimeout):
        pool.run_now(line.hang)


def test_a_later_call_with_a_shorter_limit_is_seen(make: Make, clock: Clock) -> None:
    pool = make(on_abort=None)
    ends: list[str] = []
    started = threading.Semaphore(0)

    def work(_: FakeResource, name: str) -> None:
        started.release()
        assert current_task().wait(DEADLINE)
        ends.append(name)

    calls = [Calling(pool.with_options(run_within=limit * HOUR).run_now, work, str(limit)) for limit in (5, 3)]
    for _ in calls:
        assert started.acquire(timeout=DEADLINE)
    clock.pass_time(4 * HOUR, pool)
    calls[1].end()
    clock.pass_time(4 * HOUR, pool)
    calls[0].end()

    assert ends == ["3", "5"]


def test_short_calls_wake_the_timer_once(make: Make, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make()
    call = Calling(pool.run_now, line.ignore)
    eventually(lambda: runs_of(pool)._alarm < inf, "the timer to look")
    line.cut.set()
    call.end()
    kicks: list[int] = []
    monkeypatch.setattr(timer_of(pool), "kick", lambda: kicks.append(1))

    for _ in range(100):
        pool.run_now(FakeResource.use)
        assert runs_of(pool).expire(0.0) is not None  # a duty runs whenever another one has something to do

    assert kicks == []


def test_a_call_that_ctrl_c_ends_in_the_kick_leaves_the_kick_to_the_next_one(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make()
    kicks: list[int] = []

    def interrupt() -> None:
        kicks.append(1)
        if len(kicks) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(timer_of(pool), "kick", interrupt)
    monkeypatch.setattr(timer_of(pool), "birth", object())

    with pytest.raises(KeyboardInterrupt):
        pool.run_now(FakeResource.use)
    pool.run_now(FakeResource.use)
    monkeypatch.undo()

    assert kicks == [1, 1]


def test_a_timer_that_could_not_be_started_is_kicked_by_the_next_call(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make()
    kicks: list[int] = []
    monkeypatch.setattr(timer_of(pool), "kick", lambda: kicks.append(1))
    monkeypatch.setattr(timer_of(pool), "birth", None)

    for _ in range(3):
        pool.run_now(FakeResource.use)

    assert kicks == [1, 1, 1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_is_the_callers(make: Make, clock: Clock, line: Line, error: type[BaseException]) -> None:
    pool = make()
    raised = error()

    def work(_: FakeResource) -> None:
        line.ignore()
        raise raised

    call = Calling(pool.run_now, work)
    line.wait_until_hangs()
    late(pool, clock)

    assert call.end() is raised


def test_nested_calls_are_stopped_each_by_its_own_limit(make: Make, clock: Clock) -> None:
    pool = make(on_abort=None)
    inside = threading.Event()

    def inner(_: FakeResource) -> None:
        inside.set()
        assert current_task().wait(DEADLINE)
        raise Cut

    def outer(_: FakeResource) -> str:
        with pytest.raises(TaskTimeout):
            pool.run_now(inner)
        assert not current_task().cancelled
        return "value"

    call = Calling(pool.with_options(run_within=9 * HOUR).run_now, outer)
    assert inside.wait(DEADLINE)
    late(pool, clock)

    assert (call.end(), call.value) == (None, "value")


# -- attempts --


def test_a_stopped_call_is_not_repeated(make: Make, ledger: Ledger, clock: Clock, line: Line) -> None:
    pool = make(on_abort=None, check_health=ledger.is_healthy, max_retries=3)

    def work(resource: FakeResource) -> None:
        line.ignore()
        resource.break_down()

    call = Calling(pool.run_now, work)
    line.wait_until_hangs()
    clock.pass_time(2 * HOUR, pool)
    eventually(lambda: bool(stopped_runs(pool)), "the call to be stopped")
    line.cut.set()

    error = call.end()
    assert type(error) is TaskTimeout
    assert type(error.__cause__) is ResourceBroken
    assert len(ledger.created) == 2  # the first, and what has taken its place


def stopped_runs(pool: Pool) -> list[Run]:
    return [run for run in runs_of(pool)._runs.copy() if run.stops]


@pytest.mark.parametrize("verdict", [Verdict.BROKEN, Verdict.AGAIN])
def test_all_attempts_together_have_the_time(make: Make, ledger: Ledger, clock: Clock, verdict: Verdict) -> None:
    pool = make(on_abort=None, check_health=always(verdict))
    attempts: list[int] = []
    started = threading.Event()

    def work(_: FakeResource) -> None:
        attempts.append(current_task().attempt)
        if len(attempts) == 1:
            clock.ahead += 0.6 * HOUR
            raise Cut
        started.set()
        assert current_task().wait(DEADLINE)
        raise Cut

    call = Calling(pool.run_now, work)
    assert started.wait(DEADLINE)
    clock.pass_time(0.6 * HOUR, pool)

    assert type(call.end()) is TaskTimeout
    assert attempts == [1, 2]


def test_the_time_between_two_attempts_does_not_count(make: Make, ledger: Ledger, clock: Clock) -> None:
    def create() -> FakeResource:
        clock.ahead += 5 * HOUR
        runs_of(pool).expire(clock())
        return ledger.create()

    pool = make(on_create=create, on_abort=None, check_health=ledger.is_healthy, resource_pool_size=0)

    def work(resource: FakeResource) -> int:
        if current_task().attempt == 1:
            resource.break_down()
        return current_task().attempt

    assert pool.run_now(work) == 2


@pytest.mark.parametrize("verdict", [Verdict.BROKEN, Verdict.AGAIN])
def test_a_call_that_is_stopped_between_two_attempts_has_no_second_one(make: Make, ledger: Ledger, verdict: Verdict) -> None:
    # 1. The verdict: once more. 2. The pool is killed, while a resource is made, or cleaned. 3. The call finds that.
    attempts: list[int] = []

    def work(_: FakeResource) -> None:
        attempts.append(current_task().attempt)
        raise Cut

    def create() -> FakeResource:
        if attempts:
            pool.kill()
        return ledger.create()

    def reset(_: FakeResource) -> None:
        if attempts:
            pool.kill()

    pool = make(on_create=create, on_reset=reset, check_health=always(verdict))

    with pytest.raises(TaskStopped) as caught:
        pool.run_now(work)

    assert attempts == [1]
    assert type(caught.value.__cause__) is Cut


# -- the abort and the resource --


def test_without_a_check_the_resource_is_replaced(make: Make, ledger: Ledger, clock: Clock, line: Line) -> None:
    pool = make()
    call = Calling(pool.run_now, line.hang)
    line.wait_until_hangs()
    late(pool, clock)
    call.end()
    join_aborts()

    assert ledger.destroyed == ledger.created[:1] == line.aborted
    assert pool.run_now(FakeResource.use) == 1
    assert pool.stats().available_resources == 1


def test_with_a_check_it_is_reset_and_checked_and_kept(make: Make, ledger: Ledger, clock: Clock, line: Line) -> None:
    story: list[str] = []

    def reset(_: FakeResource) -> None:
        story.append("reset")

    def check(_: FakeResource) -> bool:
        story.append("check")
        return True

    pool = make(on_reset=reset, check_resource=check)
    keep_waiting_for_aborts(pool)
    call = Calling(pool.run_now, line.hang)
    line.wait_until_hangs()
    late(pool, clock)
    call.end()

    assert story == ["reset", "check"]
    assert pool.run_now(FakeResource.use) == 0
    assert ledger.destroyed == []


def keep_waiting_for_aborts(pool: Pool) -> None:
    """Let a call wait for the hook for as long as that takes: a busy machine is no bug."""
    stock = stock_of(pool)
    survives = stock.survives_abort

    def patient(holding: Holding[FakeResource]) -> bool:
        assert holding.wait_for_aborts(DEADLINE)
        return survives(holding)

    cast("Any", stock).survives_abort = patient


def test_a_check_that_fails_after_an_abort_puts_no_other_resource_in_doubt(
    make: Make, ledger: Ledger, clock: Clock, line: Line
) -> None:
    pool = make(check_resource=is_not_the_first, check_health=always(False))
    keep_waiting_for_aborts(pool)
    call = Calling(pool.run_now, line.hang)
    line.wait_until_hangs()
    late(pool, clock)
    call.end()

    assert pool.run_now(FakeResource.use) == 1
    assert source_of(pool).breaks == 0


def test_the_error_of_an_abort_is_not_judged(make: Make, clock: Clock, line: Line) -> None:
    judged: list[BaseException] = []

    def judge(error: BaseException) -> bool:
        judged.append(error)
        return True

    pool = make(check_health=judge)
    call = Calling(pool.run_now, line.hang)
    line.wait_until_hangs()
    late(pool, clock)
    call.end()

    assert judged == []


def test_a_value_in_spite_of_the_abort_costs_the_resource_too(make: Make, ledger: Ledger, clock: Clock, line: Line) -> None:
    pool = make()
    call = Calling(pool.run_now, line.ignore)
    line.wait_until_hangs()
    late(pool, clock)
    call.end()

    assert call.value == "value"
    assert pool.run_now(FakeResource.use) == 1


def test_a_temporary_resource_is_destroyed(make: Make, ledger: Ledger, clock: Clock, line: Line) -> None:
    pool = make(resource_pool_size=0, check_resource=always(True))
    call = Calling(pool.run_now, line.hang)
    line.wait_until_hangs()
    late(pool, clock)
    call.end()
    ledger.wait_until_destroyed(1)

    assert line.aborted == ledger.created == ledger.destroyed


def test_a_hook_that_raises_is_logged_and_the_call_is_told_all_the_same(
    make: Make, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    aborting = threading.Event()

    def abort(_: FakeResource) -> None:
        aborting.set()
        raise OSError("cannot abort")

    pool = make(on_abort=abort)
    started = threading.Event()

    def work(_: FakeResource) -> None:
        started.set()
        assert current_task().wait(DEADLINE)
        assert aborting.wait(DEADLINE)
        raise Cut

    call = Calling(pool.run_now, work)
    assert started.wait(DEADLINE)
    late(pool, clock)

    assert type(call.end()) is TaskTimeout
    join_aborts()
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["cannot abort"]


# -- an abort never hits another call --


@contextmanager
def held_abort(monkeypatch: pytest.MonkeyPatch, *, claimed: bool) -> Generator[Gate]:
    """Hold each abort before it has claimed its resource, or right after that, and before the hook."""
    claim = Grip.claim

    def hold(grip: Grip) -> bool:
        if not claimed:
            gate.hold()
        answer = claim(grip)
        if claimed and answer:
            gate.hold()
        return answer

    with Gate() as gate:
        monkeypatch.setattr(Grip, "claim", hold)
        yield gate


@pytest.mark.parametrize("end", ["value", "error"])
def test_an_abort_that_comes_after_the_call_hits_nothing(
    make: Make, ledger: Ledger, clock: Clock, line: Line, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A is on its way. 2. C ends. 3. N takes the same resource, for the same function. 4. A claims it.
    pool = make()
    task = line.ignore if end == "value" else line.hang
    with held_abort(monkeypatch, claimed=False) as aborting:
        call = Calling(pool.run_now, task)
        line.wait_until_hangs()
        late(pool, clock)
        aborting.wait_until_held()
        line.cut.set()
        assert type(call.end()) is (type(None) if end == "value" else TaskTimeout)
        line.cut.clear()
        following = Calling(pool.with_options(run_within=None).run_now, task)
        line.wait_until_hangs()

        aborting.release()
        join_aborts()

        assert line.aborted == []
        line.cut.set()
        following.end()
    assert [resource.number for resource in ledger.created] == [0]


@pytest.mark.parametrize("end", ["value", "error"])
@pytest.mark.parametrize("check", [False, True])
def test_while_a_hook_is_inside_the_caller_goes_on_and_no_call_gets_its_resource(
    make: Make, ledger: Ledger, clock: Clock, line: Line, end: str, check: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A has claimed the resource. 2. C ends, and does not wait. 3. N takes another one. 4. The hook is called, and
    # returns. 5. A destroys the resource.
    pool = make(check_resource=always(True) if check else None)
    with held_abort(monkeypatch, claimed=True) as aborting:
        call = Calling(pool.run_now, line.ignore if end == "value" else line.hang)
        line.wait_until_hangs()
        late(pool, clock)
        aborting.wait_until_held()
        line.cut.set()
        call.end()

        assert pool.run_now(FakeResource.use) == 1
        assert ledger.destroyed == []
        assert pool.stats().available_resources == 1
        aborting.release()
        ledger.wait_until_destroyed(1)
        join_aborts()

    assert line.aborted == ledger.destroyed == ledger.created[:1]
    assert ledger.destroyed[0].destroyers == line.threads
    assert stock_of(pool).left() is False


def test_of_two_aborts_the_last_one_destroys_the_resource(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)
    ledger.any_thread = True
    free = free_resources(pool)
    assert free is not None
    holding = free.pop()
    with Gate() as first, Gate() as second:
        threads = [Calling(holding.abort, gate.hold, "pool", lambda: True) for gate in (first, second)]
        first.wait_until_held()
        second.wait_until_held()
        stock_of(pool).destroy(holding)
        first.release()
        threads[0].end()
        assert ledger.destroyed == []
        second.release()
        threads[1].end()

    assert len(ledger.destroyed) == 1
    assert not stock_of(pool).left()


def test_an_abort_that_ends_while_the_resource_is_left_to_it_leaves_it_to_one_of_the_two(
    make_pool: MakePool, ledger: Ledger
) -> None:
    # 1. C sees the abort, and adds the heir. 2. The abort ends at this moment, and takes it. 3. C sees that it has ended.
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)
    ledger.any_thread = True
    free = free_resources(pool)
    assert free is not None
    holding = free.pop()
    gate = Gate()
    abort = Calling(holding.abort, gate.hold, "pool", lambda: True)
    gate.wait_until_held()

    class Heirs(list[Any]):
        def append(self, heir: Any) -> None:
            super().append(heir)
            gate.release()
            abort.end()

    holding._heirs = Heirs()  # type: ignore[assignment]  # it has `append` and `pop`
    stock_of(pool).destroy(holding)

    assert len(ledger.destroyed) == 1
    assert not stock_of(pool).left()


def test_no_abort_begins_once_the_resource_is_left_to_another_one(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)
    ledger.any_thread = True
    free = free_resources(pool)
    assert free is not None
    holding = free.pop()
    called: list[object] = []
    with Gate() as gate:
        abort = Calling(holding.abort, gate.hold, "pool", lambda: True)
        gate.wait_until_held()
        stock_of(pool).destroy(holding)

        holding.abort(called.append, "pool", lambda: True)

    abort.end()
    assert called == []
    assert len(ledger.destroyed) == 1


def test_a_resource_that_is_left_to_its_abort_is_waited_for_by_shutdown(
    make: Make, ledger: Ledger, clock: Clock, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make()
    with held_abort(monkeypatch, claimed=True) as aborting:
        call = Calling(pool.run_now, line.hang)
        line.wait_until_hangs()
        late(pool, clock)
        aborting.wait_until_held()
        line.cut.set()
        call.end()
        with pytest.raises(ShutdownTimeout):
            pool.shutdown(timeout=0.01)
        waiting = Calling(pool.shutdown)

        aborting.release()

        assert waiting.end() is None
    assert ledger.destroyed[-1:] == ledger.created[:1]
    stats = pool.stats()
    assert stats.resources_created == stats.resources_destroyed == 2


@pytest.mark.parametrize("patience", [0.0, 1.0])
def test_kill_and_destroy_leaves_a_resource_whose_hook_hangs_to_the_hook(
    make: Make, ledger: Ledger, clock: Clock, line: Line, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasker_executor._engine.aborts.ABORT_PATIENCE", patience / 100)
    pool = make()
    with held_abort(monkeypatch, claimed=True) as aborting:
        call = Calling(pool.run_now, line.hang)
        line.wait_until_hangs()
        late(pool, clock)
        aborting.wait_until_held()

        pool.kill(destroy=True)

        assert ledger.created[0] not in ledger.destroyed
        line.cut.set()
        assert type(call.end()) is TaskTimeout
        assert ledger.created[0] not in ledger.destroyed
        aborting.release()
        pool.shutdown(timeout=DEADLINE)
    assert ledger.destroyed == ledger.created


def test_a_resource_that_was_refreshed_while_it_is_aborted_is_replaced_once(
    make: Make, ledger: Ledger, clock: Clock, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make(check_resource=always(True))
    keep_waiting_for_aborts(pool)
    with held_abort(monkeypatch, claimed=True) as aborting:
        call = Calling(pool.run_now, line.ignore)
        line.wait_until_hangs()
        late(pool, clock)
        aborting.wait_until_held()
        pool.refresh()
        line.cut.set()
        aborting.release()
        call.end()

    assert pool.run_now(FakeResource.use) == 1
    assert ledger.destroyed == ledger.created[:1]


def test_an_abort_that_the_system_refuses_a_thread_is_tried_again(
    make: Make, clock: Clock, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make()
    call = Calling(pool.run_now, line.hang)
    line.wait_until_hangs()
    refused = threading.Event()

    def refuse(_: threading.Thread) -> None:
        refused.set()
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        late(pool, clock)
        assert refused.wait(DEADLINE)
        eventually(lambda: runs_of(pool)._alarm > clock(), "the next try to be planned")
    assert line.aborted == []
    clock.pass_time(HOUR, pool)

    assert type(call.end()) is TaskTimeout
    assert len(line.aborted) == 1


# -- an abort that comes between two calls inside of the call --


class Calls:
    """A task of two calls. The first abort comes before the second call, which only another abort unblocks."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.aborts = threading.Semaphore(0)
        self.aborted: list[object] = []

    def task(self, *_: object) -> None:
        self.begun.set()
        assert self.aborts.acquire(timeout=DEADLINE)
        assert self.aborts.acquire(timeout=DEADLINE)
        raise Cut

    def abort(self, resource: object) -> None:
        self.aborted.append(resource)
        self.aborts.release()


def test_an_abort_between_two_calls_is_made_again(make: Make, clock: Clock) -> None:
    calls = Calls()
    pool = make(on_abort=calls.abort)
    call = Calling(pool.run_now, calls.task)
    assert calls.begun.wait(DEADLINE)

    late(pool, clock)

    error = call.end()
    assert type(error) is TaskTimeout
    assert type(error.__cause__) is Cut
    assert len(calls.aborted) == 2


def test_the_pause_until_the_next_abort_is_as_long_as_the_time_since_the_stop(
    make: Make, clock: Clock, line: Line, gate: Gate
) -> None:
    pool = make()
    call = Calling(pool.run_now, gate.hold)
    gate.wait_until_held()
    late(pool, clock)
    eventually(lambda: clock() < runs_of(pool)._alarm < clock() + DEADLINE, "the next abort to be planned")

    clock.pass_time(HOUR, pool)

    eventually(lambda: clock() + HOUR / 2 < runs_of(pool)._alarm < inf, "a longer pause")
    gate.release()
    call.end()
    assert len(line.aborted) >= 2


def test_the_abort_of_a_stop_between_two_calls_is_made_again(make: Make, gate: Gate) -> None:
    calls = Calls()
    pool = full_pool(make, gate, on_abort=calls.abort, run_within=None)
    call = Calling(pool.submit, calls.task)
    assert calls.begun.wait(DEADLINE)
    [run] = runs_of(pool)._runs
    future: Any = run.task

    assert future.stop() is True

    assert call.end() is None
    error = future.exception()
    assert type(error) is TaskStopped
    assert type(error.__cause__) is Cut
    assert len(calls.aborted) == 2


def test_another_abort_that_comes_as_the_call_ends_hits_nothing(
    make: Make, ledger: Ledger, clock: Clock, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A is in the hook. 2. B is about to claim the resource. 3. The call ends. 4. A gives its claim back. 5. B is too late.
    claims: list[bool] = []
    given_back = threading.Event()
    claim, give_back = Grip.claim, Grip.give_back

    def abort(resource: FakeResource) -> None:
        line.aborted.append(resource)
        first.hold()

    def claim_later(grip: Grip) -> bool:
        if line.aborted:
            second.hold()
        claims.append(claim(grip))
        return claims[-1]

    def note(grip: Grip) -> None:
        give_back(grip)
        given_back.set()

    monkeypatch.setattr(Grip, "claim", claim_later)
    monkeypatch.setattr(Grip, "give_back", note)
    pool = make(on_abort=abort)
    with Gate() as first, Gate() as second:
        call = Calling(pool.run_now, line.hang)
        line.wait_until_hangs()
        late(pool, clock)
        first.wait_until_held()
        second.wait_until_held()
        line.cut.set()
        assert type(call.end()) is TaskTimeout
        first.release()
        assert given_back.wait(DEADLINE)
        second.release()
        join_aborts()

    assert claims[0]
    assert not any(claims[1:])
    assert line.aborted == ledger.destroyed == ledger.created[:1]


def test_a_call_that_ends_while_an_abort_claims_its_resource_knows(gate: Gate) -> None:
    # 1. The abort has claimed the resource, and has not noted it. 2. The call ends: it leaves the resource to the abort.
    class Held(deque[bool]):
        def pop(self) -> bool:  # type: ignore[override]  # a deque that holds what pops from it
            value = super().pop()
            gate.hold()
            return value

    grip = Grip(None)
    grip._held = Held([True])
    claiming = Calling(grip.claim)
    gate.wait_until_held()

    assert grip.let_go() is True
    assert grip.let_go() is True

    gate.release()
    assert claiming.end() is None
    assert claiming.value is False


# -- kill --


@pytest.mark.parametrize("run_within", [None, HOUR])
@pytest.mark.parametrize("resource_pool_size", [0, 1])
def test_kill_stops_the_calls_in_hand(
    make: Make, ledger: Ledger, line: Line, run_within: float | None, resource_pool_size: int
) -> None:
    pool = make(name="crawler", run_within=run_within, resource_pool_size=resource_pool_size)
    call = Calling(pool.run_now, line.hang)
    line.wait_until_hangs()

    pool.kill()

    error = call.end()
    assert type(error) is TaskStopped
    assert str(error) == "executor 'crawler': task Line.hang was stopped with its executor, by kill()"
    assert type(error.__cause__) is Cut
    pool.shutdown(timeout=DEADLINE)
    assert len(line.aborted) == 1
    assert ledger.destroyed == ledger.created


@pytest.mark.parametrize("run_within", [None, HOUR])
@pytest.mark.parametrize("with_resource", [True, False])
@pytest.mark.parametrize("asked", ["before", "after"])
def test_kill_sets_the_token(make_pool: MakePool, run_within: float | None, with_resource: bool, asked: str) -> None:
    pool = make_pool(1, on_create=object if with_resource else None, run_within=run_within)
    started, killed = threading.Event(), threading.Event()

    def work(*_: object) -> None:
        task = current_task() if asked == "before" else None
        started.set()
        assert killed.wait(DEADLINE)
        task = task or current_task()
        assert task.wait(DEADLINE)
        task.raise_if_cancelled()

    call = Calling(pool.run_now, work)
    assert started.wait(DEADLINE)
    pool.kill()
    killed.set()

    error = call.end()
    assert type(error) is TaskStopped
    assert str(error.__cause__) == "this task was stopped with its executor, by kill()"


@pytest.mark.parametrize("run_within", [None, HOUR])
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("end", ["value", "error"])
def test_a_hook_that_hangs_holds_up_neither_kill_nor_the_caller(
    make: Make, ledger: Ledger, line: Line, gate: Gate, run_within: float | None, size: int, end: str
) -> None:
    pool = make(run_within=run_within, resource_pool_size=size, on_abort=gate.hold)
    call = Calling(pool.run_now, line.ignore if end == "value" else line.hang)
    line.wait_until_hangs()

    pool.kill()
    gate.wait_until_held()
    line.cut.set()

    assert type(call.end()) is (type(None) if end == "value" else TaskStopped)
    assert ledger.destroyed == []
    with pytest.raises(ShutdownTimeout):
        pool.shutdown(timeout=0.01)
    gate.release()
    pool.shutdown(timeout=DEADLINE)
    assert ledger.destroyed == ledger.created


def test_kill_does_not_wait_for_the_hook_of_a_call_that_has_ended(make: Make, ledger: Ledger, line: Line, gate: Gate) -> None:
    # 1. A is inside of the hook. 2. C ends, and puts the resource on the stack. 3. The killer empties the stack.
    pool = make(run_within=None, on_abort=gate.hold)
    call = Calling(pool.run_now, line.ignore)
    line.wait_until_hangs()
    reserve = reserve_of(pool)
    closing = reserve.close

    def close_late() -> None:
        cast("Any", reserve).close = closing
        gate.wait_until_held()
        line.cut.set()
        call.end()
        closing()

    cast("Any", reserve).close = close_late
    pool.kill()

    assert ledger.destroyed == []
    gate.release()
    pool.shutdown(timeout=DEADLINE)
    assert ledger.destroyed == ledger.created


def test_a_call_that_is_killed_before_it_begins_does_not_begin(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. C looks at the state. 2. The pool is killed. 3. C enters its run, and finds that.
    for with_resource in (True, False):
        pool: Any = make() if with_resource else ResourceExecutor(1, run_within=HOUR)
        enter = runs_of(pool).enter

        def enter_late(run: Run, pool: Any = pool, enter: Any = enter) -> None:
            pool.kill()
            enter(run)

        monkeypatch.setattr(runs_of(pool), "enter", enter_late)
        ran: list[tuple[object, ...]] = []

        def work(*args: object, ran: Any = ran) -> None:
            ran.append(args)

        with pytest.raises((TaskStopped, RuntimeError)):
            pool.run_now(work)

        assert ran == []


def test_a_call_that_has_timed_out_is_aborted_once_more_by_kill(make: Make, clock: Clock, line: Line, gate: Gate) -> None:
    pool = make()
    started = threading.Event()

    def work(_: FakeResource) -> None:
        started.set()
        gate.hold()
        raise Cut

    call = Calling(pool.run_now, work)
    assert started.wait(DEADLINE)
    late(pool, clock)
    eventually(lambda: len(line.aborted) == 1, "the abort")
    join_aborts()
    pool.kill()
    join_aborts()
    gate.release()

    assert type(call.end()) is TaskTimeout
    assert len(line.aborted) == 2


def test_an_abort_of_kill_that_comes_after_the_attempt_hits_nothing(
    make: Make, clock: Clock, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A is on its way. 2. The attempt fails. 3. While its error is judged, A claims the resource.
    def judge(_: FakeResource) -> bool:
        aborting.release()
        join_aborts()
        return True

    pool = make(check_health=judge)
    with held_abort(monkeypatch, claimed=False) as aborting:
        call = Calling(pool.run_now, line.hang)
        line.wait_until_hangs()
        pool.kill()
        aborting.wait_until_held()
        line.cut.set()

        assert type(call.end()) is TaskStopped
    assert line.aborted == []


@pytest.mark.parametrize("run_within", [None, HOUR])
def test_a_second_kill_aborts_once_more(make: Make, line: Line, gate: Gate, run_within: float | None) -> None:
    pool = make(run_within=run_within)
    call = Calling(pool.run_now, gate.hold)
    gate.wait_until_held()

    for _ in range(2):
        pool.kill()
        join_aborts()

    assert len(line.aborted) == 2
    gate.release()
    call.end()


# -- after the timer --


@pytest.mark.parametrize("with_resource", [True, False])
def test_a_limit_is_kept_when_the_executor_has_closed(make_pool: MakePool, with_resource: bool) -> None:
    options: dict[str, Any] = {"on_create": object} if with_resource else {}
    pool: Any = make_pool(1, run_within=0.2, **options)
    started = threading.Event()

    def work(*_: object) -> None:
        started.set()
        assert current_task().wait(DEADLINE)
        raise Cut

    call = Calling(pool.run_now, work)
    assert started.wait(DEADLINE)
    pool.shutdown(wait=False)
    eventually(lambda: pool.stats().state == "closed", "the pool to close")
    timer = timer_of(pool).thread
    if timer is not None:
        timer.join(DEADLINE)

    assert type(call.end()) is TaskTimeout


def test_a_call_that_begins_as_the_executor_closes_has_its_limit(make: Make, line: Line) -> None:
    # 1. C enters its run. 2. The pool closes, and its timer ends. 3. C begins.
    pool = make(run_within=0.05)
    watch = runs_of(pool).watch

    def watch_late(run: Run) -> None:
        pool.shutdown(wait=False)
        eventually(lambda: pool.stats().state == "closed", "the pool to close")
        timer = timer_of(pool).thread
        if timer is not None:
            timer.join(DEADLINE)
        watch(run)

    cast("Any", runs_of(pool)).watch = watch_late

    with pytest.raises(TaskTimeout):
        pool.run_now(line.hang)


def test_the_thread_that_goes_on_ends_with_the_last_call(make: Make, line: Line) -> None:
    pool = make()
    call = Calling(pool.run_now, line.ignore)
    line.wait_until_hangs()
    kick(pool)
    pool.shutdown(wait=False)
    eventually(lambda: "limits" in [thread.name.rpartition("_")[2] for thread in threading.enumerate()], "the thread")

    line.cut.set()
    call.end()

    eventually(lambda: "limits" not in [thread.name.rpartition("_")[2] for thread in threading.enumerate()], "its end")


# -- the future of a call --


def full_pool(make: Make, gate: Gate, **options: Any) -> Pool:
    pool = make(max_queued=0, on_full="caller", **options)
    pool.with_options(run_within=None).submit(gate.hold)
    gate.wait_until_held()
    return pool


def test_a_task_in_its_submitters_thread_has_a_limit(make: Make, clock: Clock, line: Line, gate: Gate) -> None:
    pool = full_pool(make, gate)
    call = Calling(pool.submit, line.hang)
    line.wait_until_hangs()

    late(pool, clock)

    assert call.end() is None
    future: Any = call.value
    error = future.exception()
    assert type(error) is TaskTimeout
    assert type(error.__cause__) is Cut


@pytest.mark.parametrize("run_within", [None, HOUR])
def test_its_future_stops_it(make: Make, line: Line, gate: Gate, run_within: float | None) -> None:
    pool = full_pool(make, gate, run_within=run_within)
    call = Calling(pool.submit, line.hang)
    line.wait_until_hangs()
    [run] = runs_of(pool)._runs
    future: Any = run.task

    assert future.stop() is True

    assert call.end() is None
    error = future.exception()
    assert type(error) is TaskStopped
    assert type(error.__cause__) is Cut
    assert len(line.aborted) == 1
    assert future.stop() is False


def test_a_stop_that_the_system_refuses_a_thread_is_tried_again(
    make: Make, line: Line, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasker_executor._engine.runs.AFTER_A_REFUSAL", 0.001)
    pool = full_pool(make, gate, run_within=None)
    call = Calling(pool.submit, line.hang)
    line.wait_until_hangs()
    [run] = runs_of(pool)._runs

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        future: Any = run.task
        assert future.stop() is True
        assert line.aborted == []

    assert call.end() is None
    error = future.exception()
    assert type(error) is TaskStopped
    assert type(error.__cause__) is Cut


def test_what_is_no_exception_ends_its_task_as_on_a_worker(make: Make, clock: Clock, line: Line, gate: Gate) -> None:
    pool = full_pool(make, gate)

    def work(_: FakeResource) -> None:
        line.ignore()
        raise GeneratorExit

    call = Calling(pool.submit, work)
    line.wait_until_hangs()
    late(pool, clock)

    assert call.end() is None
    future: Any = call.value
    assert type(future.exception()) is TaskTimeout


# -- fork --


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_call_with_a_limit_that_forks_returns_in_the_child(make: Make) -> None:
    pool = make()

    child = pool.run_now(lambda _: os.fork())
    if child == 0:
        os._exit(17 if runs_of(pool)._runs == set() else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17


# -- many --


@pytest.mark.long
@pytest.mark.parametrize("check", [True, False])
def test_random_limits_hit_no_other_call(make: Make, ledger: Ledger, check: bool) -> None:
    """Each abort notes the call that its resource serves. A call that has an hour is never among them."""
    serves: dict[FakeResource, int] = {}
    hit: list[int | None] = []
    wrong: list[str] = []
    numbers = iter(range(10**9))
    unhurried: set[int] = set()
    outcomes = {"value": 0, "late": 0}
    ended = threading.Event()

    def abort(resource: FakeResource) -> None:
        hit.append(serves.get(resource))

    def work(resource: FakeResource, number: int, turns: int) -> int:
        if resource in serves:
            wrong.append(f"{resource} has two calls")
        serves[resource] = number
        resource.use()
        task = current_task()
        for _ in range(turns):
            if task.cancelled:
                break
        del serves[resource]
        task.raise_if_cancelled()
        return number

    def call_on(seed: int) -> None:
        dice = random.Random(seed)
        while not ended.is_set():
            number, limit = next(numbers), dice.choice([0, 1e-4, 1e-3, HOUR])
            if limit == HOUR:
                unhurried.add(number)
            try:
                assert pool.with_options(run_within=limit).run_now(work, number, dice.randrange(200)) == number
                outcomes["value"] += 1
            except TaskTimeout:
                outcomes["late"] += 1

    pool = make(on_abort=abort, resource_pool_size=2, check_resource=always(True) if check else None)
    with switch_interval():
        threads = [Calling(call_on, seed) for seed in range(4)]
        ended.wait(float(os.environ.get("TASKER_HAMMER", "2")))
        ended.set()
        errors = [thread.end() for thread in threads]
    join_aborts()

    assert errors == [None] * 4
    assert wrong == []
    assert unhurried.isdisjoint(hit)
    assert min(outcomes.values()) > 0
    eventually(lambda: not stock_of(pool).left(), "the aborts to end")
    stats = pool.stats()
    assert stats.resources_created - stats.resources_destroyed == len(ledger.alive)
    assert runs_of(pool)._runs == set()
