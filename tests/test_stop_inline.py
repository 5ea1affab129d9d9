"""`InlineExecutor`: tasks are stopped by their future, by `run_within` and by `kill`, without a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support import DEADLINE, HOUR, Clock, FakeResource, Gate, Ledger, ResourceBroken
from tasker_executor import TaskCancelled, TaskExpired, TaskStopped, TaskTimeout, Verdict, current_task
from tasker_executor.testing import InlineExecutor

MakeInline = Callable[..., InlineExecutor[Any]]


@pytest.fixture
def make_inline(ledger: Ledger) -> Iterator[MakeInline]:
    """Makes inline executors on the ledger, which are shut down at the end. With ``bare=True`` they have no resource."""
    made: list[InlineExecutor[Any]] = []
    ledger.any_thread = True

    def make(*, bare: bool = False, **kwargs: Any) -> InlineExecutor[Any]:
        hooks: dict[str, Any] = {} if bare else {"on_create": ledger.create, "on_destroy": ledger.destroy}
        made.append(InlineExecutor(**{**hooks, **kwargs}))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown()
        assert executor.stats().state == "closed"


def always(answer: Any) -> Callable[[object], Any]:
    """Return a hook that gives this answer."""

    def hook(_: object) -> Any:
        return answer

    return hook


def look(*_: object) -> None:
    current_task().raise_if_cancelled()


def stop_on_another_thread(future: Any) -> bool:
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(future.stop()))
    thread.start()
    thread.join(DEADLINE)
    return answers[0]


# -- by the future --


def test_a_task_that_waits_is_cancelled(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)
    future = pool.submit(look)

    assert future.stop()

    assert future.cancelled()
    assert pool.run_all() == 0
    assert pool.stats().cancelled == 1


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("how", ["itself", "another thread"])
def test_a_task_that_runs_raises_at_its_next_look(make_inline: MakeInline, bare: bool, how: str) -> None:
    pool = make_inline(bare=bare, deferred=True, name="crawler")
    seen: list[bool] = []

    def work(*_: object) -> None:
        seen.append(current_task().cancelled)
        seen.append(stop_on_another_thread(future) if how == "another thread" else future.stop())
        seen.append(current_task().cancelled)
        current_task().raise_if_cancelled()
        seen.append(False)

    future = pool.submit(work)
    error = future.exception()

    assert seen == [False, True, True]
    assert type(error) is TaskStopped
    assert str(error) == f"executor 'crawler': task {work.__qualname__} was stopped"
    assert type(error.__cause__) is TaskCancelled
    assert str(error.__cause__) == "this task was stopped"
    stats = pool.stats()
    assert (stats.failed, stats.stopped, stats.timed_out) == (1, 1, 0)


def test_a_task_stops_one_that_submitted_it(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)

    def outer(*_: object) -> None:
        pool.submit(lambda _: future.stop()).result()
        look()

    future = pool.submit(outer)

    assert type(future.exception()) is TaskStopped


def test_a_done_callback_stops_a_task_that_runs(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)

    def outer(*_: object) -> None:
        inner = pool.submit(lambda _: None)
        inner.add_done_callback(lambda _: future.stop())
        inner.result()
        look()

    future = pool.submit(outer)

    assert type(future.exception()) is TaskStopped


def test_what_a_stopped_task_raises_is_the_cause(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)

    def work(*_: object) -> None:
        future.stop()
        raise ValueError("its own")

    future = pool.submit(work)
    error = future.exception()

    assert type(error) is TaskStopped
    assert repr(error.__cause__) == "ValueError('its own')"


def test_a_stopped_task_that_returns_has_its_value(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)

    def work(_: FakeResource) -> str:
        future.stop()
        return "value"

    future = pool.submit(work)

    assert future.result() == "value"


@pytest.mark.parametrize("verdict", [Verdict.BROKEN, Verdict.AGAIN])
def test_a_stopped_task_is_not_repeated(make_inline: MakeInline, ledger: Ledger, verdict: Verdict) -> None:
    pool = make_inline(deferred=True, check_health=always(verdict))
    attempts: list[int] = []

    def work(resource: FakeResource) -> None:
        attempts.append(1)
        future.stop()
        resource.break_down()

    future = pool.submit(work)
    error = future.exception()

    assert type(error) is TaskStopped
    assert type(error.__cause__) is ResourceBroken
    assert attempts == [1]


def test_after_the_end_there_is_nothing_to_stop(make_inline: MakeInline) -> None:
    pool = make_inline()
    answers: list[bool] = []
    value, error = pool.submit(FakeResource.use), pool.submit(FakeResource.break_down)
    value.add_done_callback(lambda _: answers.append(value.stop()))

    assert [value.stop(), error.stop(), *answers] == [False] * 3
    assert value.result() == 0


def test_the_next_task_is_not_stopped(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True, on_abort=always(None))

    def stop(_: FakeResource) -> bool:
        return first.stop()

    first = pool.submit(stop)
    second = pool.submit(look)
    pool.run_all()

    assert (first.result(), second.result()) == (True, None)


# -- on_abort --


@pytest.mark.parametrize("how", ["itself", "another thread"])
def test_the_thread_that_stops_a_task_aborts_its_resource_once(make_inline: MakeInline, ledger: Ledger, how: str) -> None:
    aborts: list[tuple[FakeResource, threading.Thread]] = []

    def abort(resource: FakeResource) -> None:
        aborts.append((resource, threading.current_thread()))

    pool = make_inline(deferred=True, on_abort=abort)

    def work(resource: FakeResource) -> None:
        for _ in range(2):
            stop_on_another_thread(future) if how == "another thread" else future.stop()
        resource.break_down()

    future = pool.submit(work)
    future.exception()
    after = pool.submit(FakeResource.use)

    assert [resource for resource, _ in aborts] == ledger.created[:1]
    assert (aborts[0][1] is threading.current_thread()) == (how == "itself")
    assert after.result() == 1  # without a check, the resource is replaced
    assert ledger.destroyed == ledger.created[:1]
    assert pool.stats().workers_replaced == 1


def test_a_resource_that_was_aborted_is_kept_if_its_check_passes(make_inline: MakeInline, ledger: Ledger) -> None:
    checked: list[FakeResource] = []
    pool = make_inline(deferred=True, on_abort=always(None), check_resource=checked.append)

    def work(_: FakeResource) -> bool:
        return future.stop()

    future = pool.submit(work)
    assert future.result()

    assert pool.submit(FakeResource.use).result() == 0
    assert checked == ledger.created[:1]


def test_a_hook_that_does_not_return_holds_up_the_stopper_alone(make_inline: MakeInline, ledger: Ledger) -> None:
    with Gate() as gate:
        pool = make_inline(deferred=True, on_abort=gate.hold)

        def work(_: FakeResource) -> None:
            stopper.start()
            gate.wait_until_held()
            raise ValueError

        future = pool.submit(work)
        stopper = threading.Thread(target=future.stop)

        assert type(future.exception()) is TaskStopped
        assert pool.submit(FakeResource.use).result() == 1
        assert ledger.destroyed == []
        gate.release()
        stopper.join(DEADLINE)
        assert ledger.destroyed == ledger.created[:1]


# -- run_within --


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("call", ["submit", "run_now"])
def test_a_task_that_is_late_raises_at_its_next_look(make_inline: MakeInline, clock: Clock, bare: bool, call: str) -> None:
    pool = make_inline(bare=bare, run_within=HOUR)

    def work(*_: object) -> None:
        look()
        clock.ahead += 2 * HOUR
        look()

    with pytest.raises(TaskTimeout) as caught:
        pool.run_now(work) if call == "run_now" else pool.submit(work).result()

    assert type(caught.value.__cause__) is TaskCancelled
    assert str(caught.value.__cause__) == "this task has run for longer than run_within (3600 s)"
    assert pool.stats().timed_out == (call == "submit")


@pytest.mark.parametrize("bare", [False, True])
def test_a_late_task_that_has_not_looked_and_raises_is_late(make_inline: MakeInline, clock: Clock, bare: bool) -> None:
    pool = make_inline(bare=bare, run_within=HOUR)

    def work(*_: object) -> None:
        clock.ahead += 2 * HOUR
        raise ValueError

    error = pool.submit(work).exception()

    assert type(error) is TaskTimeout
    assert type(error.__cause__) is ValueError


def test_a_late_task_that_returns_has_its_value(make_inline: MakeInline, clock: Clock) -> None:
    pool = make_inline(run_within=HOUR)

    def work(_: FakeResource) -> str:
        clock.ahead += 2 * HOUR
        return "value"

    assert pool.submit(work).result() == "value"


@pytest.mark.parametrize("limits, is_late", [((None, HOUR), True), ((HOUR, None), False), ((HOUR, 3 * HOUR), False)])
def test_a_view_has_a_limit_of_its_own(
    make_inline: MakeInline, clock: Clock, limits: tuple[float | None, float | None], is_late: bool
) -> None:
    pool = make_inline(run_within=limits[0])

    def work(_: FakeResource) -> bool:
        clock.ahead += 2 * HOUR
        return current_task().cancelled

    assert pool.with_options(run_within=limits[1]).submit(work).result() is is_late


def test_the_time_in_the_queue_does_not_count(make_inline: MakeInline, clock: Clock) -> None:
    pool = make_inline(run_within=HOUR, deferred=True)
    future = pool.submit(look)
    clock.ahead += 2 * HOUR

    assert future.exception() is None


def test_all_attempts_together_have_the_time(make_inline: MakeInline, clock: Clock) -> None:
    pool = make_inline(run_within=HOUR, check_health=always(Verdict.AGAIN))
    attempts: list[int] = []

    def work(_: FakeResource) -> None:
        attempts.append(1)
        clock.ahead += 0.6 * HOUR
        look()
        raise ValueError

    assert type(pool.submit(work).exception()) is TaskTimeout
    assert attempts == [1, 1]


@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_wait_ends_when_the_time_is_over(make_inline: MakeInline, timeout: float | None) -> None:
    pool = make_inline(run_within=0.01)

    assert pool.submit(lambda _: current_task().wait(timeout)).result() is True


def test_wait_ends_before_that_at_its_own_timeout(make_inline: MakeInline) -> None:
    pool = make_inline(run_within=HOUR)

    assert pool.submit(lambda _: current_task().wait(0.001)).result() is False


def test_wait_ends_when_another_thread_stops_the_task(make_inline: MakeInline) -> None:
    pool = make_inline(run_within=HOUR, deferred=True)

    def work(_: FakeResource) -> bool:
        threading.Thread(target=future.stop).start()
        return current_task().wait(DEADLINE)

    future = pool.submit(work)

    assert future.result() is True


def test_a_task_that_has_not_started_in_time_has_expired(make_inline: MakeInline, clock: Clock) -> None:
    pool = make_inline(run_within=HOUR, deferred=True)
    future = pool.with_options(start_within=HOUR).submit(look)
    clock.ahead += 2 * HOUR

    assert type(future.exception()) is TaskExpired
    assert pool.stats().timed_out == 0


@pytest.mark.parametrize("call", ["submit", "run_now"])
def test_a_task_without_any_time_is_never_called(make_inline: MakeInline, call: str) -> None:
    view = make_inline().with_options(run_within=0)
    called: list[object] = []

    with pytest.raises(TaskTimeout):
        view.run_now(called.append) if call == "run_now" else view.submit(called.append).result()

    assert called == []


@pytest.mark.parametrize("limit", [0, -1, "1", True])
def test_a_limit_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="run_within"):
        InlineExecutor(run_within=limit)


# -- kill --


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("call", ["submit", "run_now"])
def test_kill_stops_what_runs(make_inline: MakeInline, bare: bool, call: str) -> None:
    aborts: list[object] = []
    pool = make_inline(bare=bare, **({} if bare else {"on_abort": aborts.append}))

    def work(*_: object) -> None:
        pool.kill()
        look()

    with pytest.raises(TaskStopped) as caught:
        pool.run_now(work) if call == "run_now" else pool.submit(work).result()

    assert str(caught.value.__cause__) == "this task was stopped with its executor, by kill()"
    assert len(aborts) == (0 if bare else 1)
    assert pool.stats().resources_created == pool.stats().resources_destroyed


def test_kill_destroys_after_the_abort(make_inline: MakeInline, ledger: Ledger) -> None:
    aborts: list[int] = []

    def abort(_: FakeResource) -> None:
        aborts.append(len(ledger.destroyed))

    pool = make_inline(on_abort=abort)

    pool.run_now(lambda _: pool.kill(destroy=True))

    assert aborts == [0]
    assert len(ledger.destroyed) == 1
