"""What a task sees around it: `contextvars`, the current task, the current resource."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, eventually
from tasker_executor import NoCurrentTask, Observer, ResourceExecutor, TaskCancelled, TaskContext, TaskEvent, current_task

request: ContextVar[str] = ContextVar("request", default="none")


def get_request(_: object) -> str:
    return request.get()


@pytest.fixture(autouse=True)
def _request() -> Iterator[None]:
    """Every test begins with no request, and what it sets is gone afterwards."""
    token = request.set("none")
    yield
    request.reset(token)


@pytest.fixture
def resource_pool(make_pool: MakePool, ledger: Ledger) -> ResourceExecutor[FakeResource]:
    """One worker, whose resource is checked, and one resource for run_now."""
    ledger.any_thread = True
    return make_pool(
        1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, resource_pool_size=1
    )


# -- contextvars --


SUBMISSIONS: dict[str, Callable[[ResourceExecutor[None], Callable[[], str]], Future[str]]] = {
    "submit": lambda pool, fn: pool.submit(fn),
    "submit_priority": lambda pool, fn: pool.submit_priority(fn),
    "view": lambda pool, fn: pool.with_options(max_retries=0).submit(fn),
    "as_thread_pool": lambda pool, fn: pool.as_thread_pool().submit(fn),
}


@pytest.mark.parametrize("submit", SUBMISSIONS.values(), ids=SUBMISSIONS)
def test_task_sees_the_context_of_its_submitter(
    make_pool: MakePool, submit: Callable[[ResourceExecutor[None], Callable[[], str]], Future[str]]
) -> None:
    pool = make_pool(1)
    request.set("a")
    first = submit(pool, request.get)
    request.set("b")
    second = submit(pool, request.get)

    assert (first.result(), second.result()) == ("a", "b")


def test_context_is_that_of_the_moment_of_submission(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    request.set("then")
    future = pool.submit(request.get)
    request.set("now")
    gate.release()

    assert future.result() == "then"


@pytest.mark.parametrize("options", [{}, {"chunksize": 2}, {"buffersize": 4}], ids=str)
def test_tasks_of_map_see_the_context_of_its_caller(make_pool: MakePool, options: dict[str, Any]) -> None:
    request.set("a")

    assert list(make_pool(1).map(get_request, range(4), **options)) == ["a"] * 4


def test_what_a_task_sets_is_seen_by_nobody_else(make_pool: MakePool) -> None:
    pool = make_pool(1)
    request.set("mine")
    pool.submit(request.set, "of a task").result()

    assert pool.submit(request.get).result() == "mine"
    assert request.get() == "mine"


def test_tasks_of_one_map_do_not_share_a_context(make_pool: MakePool) -> None:
    def task(number: int) -> str:
        before = request.get()
        request.set(f"set by {number}")
        return before

    assert list(make_pool(1).map(task, range(3))) == ["none"] * 3


def test_retry_does_not_see_what_the_attempt_before_it_set(resource_pool: ResourceExecutor[FakeResource]) -> None:
    def task(resource: FakeResource) -> str:
        seen = request.get()
        request.set("set by the first attempt")
        if current_task().attempt == 1:
            resource.break_down()
        return seen

    request.set("mine")

    assert resource_pool.submit(task).result() == "mine"


def test_context_need_not_be_propagated(make_pool: MakePool) -> None:
    pool = make_pool(1, propagate_context=False)
    request.set("mine")

    assert pool.submit(lambda: list(copy_context())).result() == []
    assert list(pool.map(get_request, [1])) == ["none"]


def test_run_now_runs_in_the_context_of_its_caller(make_pool: MakePool) -> None:
    make_pool(1).run_now(request.set, "set by run_now")

    assert request.get() == "set by run_now"


@pytest.mark.parametrize("propagate", [False, True])
def test_hooks_run_in_an_empty_context_whoever_started_the_worker(make_pool: MakePool, ledger: Ledger, propagate: bool) -> None:
    seen: dict[str, list[Any]] = {}

    def note(hook: str) -> None:
        seen[hook] = [variable.name for variable in copy_context()]

    def initializer() -> None:
        note("initializer")

    def create() -> FakeResource:
        note("on_create")
        return ledger.create()

    def destroy(resource: FakeResource) -> None:
        note("on_destroy")
        ledger.destroy(resource)

    def check_health(error: BaseException) -> bool:
        note("check_health")
        return True

    def check_resource(resource: FakeResource) -> bool:
        note("check_resource")
        return True

    request.set("mine")
    pool = make_pool(
        1,
        initializer=initializer,
        on_create=create,
        on_destroy=destroy,
        check_health=check_health,
        check_resource=check_resource,
        propagate_context=propagate,
    )
    pool.submit(lambda _: 1 // 0).exception()
    pool.shutdown()

    assert seen == {hook: [] for hook in ("initializer", "on_create", "on_destroy", "check_health", "check_resource")}


def test_done_callback_on_a_worker_does_not_see_the_context_of_the_task(make_pool: MakePool, gate: Gate) -> None:
    seen: list[str] = []
    request.set("mine")
    future = make_pool(1).submit(gate.hold)
    future.add_done_callback(lambda _: seen.append(request.get()))
    gate.release()

    eventually(lambda: seen == ["none"], "the callback")


def test_what_an_observer_sets_when_a_task_starts_is_seen_by_the_task(make_pool: MakePool) -> None:
    class Tracer(Observer):
        def task_started(self, event: TaskEvent) -> None:
            assert event.context is not None
            event.context.run(request.set, "set by the observer")

    pool = make_pool(1, observers=[Tracer()])

    assert pool.submit(request.get).result() == "set by the observer"


# -- current_task --


def test_there_is_no_current_task_outside_of_tasks() -> None:
    with pytest.raises(NoCurrentTask, match="not called from inside a task"):
        current_task()


def test_no_current_task_is_a_lookup_error() -> None:
    with pytest.raises(LookupError):
        current_task()


@pytest.mark.parametrize("with_resource", [False, True])
def test_task_knows_its_worker(make_pool: MakePool, ledger: Ledger, with_resource: bool) -> None:
    options: dict[str, Any] = {"on_create": ledger.create, "on_destroy": ledger.destroy} if with_resource else {}
    pool = make_pool(1, thread_name_prefix="crawler", **options).with_options(pass_resource=False)

    assert pool.submit(lambda: current_task().worker_name).result() == "crawler_0"


def test_task_in_run_now_knows_its_thread(make_pool: MakePool, resource_pool: ResourceExecutor[FakeResource]) -> None:
    name = threading.current_thread().name

    assert make_pool(1).run_now(lambda: current_task().worker_name) == name
    assert resource_pool.run_now(lambda _: current_task().worker_name) == name


@pytest.mark.parametrize("with_resource", [False, True])
def test_run_now_leaves_the_current_task_as_it_was(
    make_pool: MakePool, resource_pool: ResourceExecutor[FakeResource], with_resource: bool
) -> None:
    inner = resource_pool.with_options(pass_resource=False) if with_resource else make_pool(1)
    outer = make_pool(1, thread_name_prefix="outer")

    def task() -> str:
        inner.run_now(int)
        return current_task().worker_name

    assert outer.submit(task).result() == "outer_0"
    inner.run_now(int)
    with pytest.raises(NoCurrentTask):
        current_task()


def test_run_now_that_raises_leaves_no_current_task(resource_pool: ResourceExecutor[FakeResource]) -> None:
    with pytest.raises(ZeroDivisionError):
        resource_pool.run_now(lambda _: 1 // 0)

    with pytest.raises(NoCurrentTask):
        current_task()
    with pytest.raises(NoCurrentTask):
        resource_pool.current_resource()


def outcome(call: Callable[[], object]) -> type[BaseException] | None:
    """The type of what `call` raises."""
    try:
        call()
    except Exception as error:
        return type(error)
    return None


def test_hooks_are_outside_of_tasks(make_pool: MakePool, ledger: Ledger) -> None:
    seen: dict[str, object] = {}

    def create() -> FakeResource:
        seen["on_create"] = outcome(current_task)
        return ledger.create()

    def destroy(resource: FakeResource) -> None:
        seen["on_destroy"] = outcome(current_task)
        ledger.destroy(resource)

    def check_health(error: BaseException) -> bool:
        seen["check_health"] = outcome(current_task)
        return True

    def check_resource(resource: FakeResource) -> bool:
        seen["check_resource"] = outcome(current_task)
        return True

    pool = make_pool(1, on_create=create, on_destroy=destroy, check_health=check_health, check_resource=check_resource)
    pool.submit(lambda _: 1 // 0).exception()
    pool.shutdown()

    assert seen == dict.fromkeys(["on_create", "on_destroy", "check_health", "check_resource"], NoCurrentTask)


def test_done_callback_is_outside_of_tasks(resource_pool: ResourceExecutor[FakeResource], gate: Gate) -> None:
    seen: list[object] = []
    future = resource_pool.submit(gate.hold)
    future.add_done_callback(lambda _: seen.append(outcome(current_task)))
    future.add_done_callback(lambda _: seen.append(outcome(resource_pool.current_resource)))
    gate.release()

    eventually(lambda: seen == [NoCurrentTask, NoCurrentTask], "both callbacks to be refused")


def test_first_attempt_is_number_one_and_retries_count_on(resource_pool: ResourceExecutor[FakeResource]) -> None:
    attempts: list[int] = []

    def task(resource: FakeResource) -> None:
        attempts.append(current_task().attempt)
        if len(attempts) < 3:
            resource.break_down()

    resource_pool.submit(task).result()

    assert attempts == [1, 2, 3]


def test_attempts_of_run_now_count_on_too(resource_pool: ResourceExecutor[FakeResource]) -> None:
    attempts: list[int] = []

    def task(resource: FakeResource) -> None:
        attempts.append(current_task().attempt)
        if len(attempts) < 3:
            resource.break_down()

    resource_pool.run_now(task)

    assert attempts == [1, 2, 3]


def test_context_of_a_task_says_what_it_is(make_pool: MakePool) -> None:
    pool = make_pool(1, thread_name_prefix="crawler")

    assert pool.submit(lambda: repr(current_task())).result() == "<TaskContext on crawler_0, attempt 1>"


# -- the cancel token --


@pytest.mark.parametrize("with_resource", [False, True])
def test_kill_sets_the_token_of_a_running_task(make_pool: MakePool, ledger: Ledger, with_resource: bool) -> None:
    options: dict[str, Any] = {"on_create": ledger.create, "on_destroy": ledger.destroy} if with_resource else {}
    pool = make_pool(1, **options).with_options(pass_resource=False)
    tasks: list[TaskContext] = []

    def task() -> tuple[bool, bool]:
        mine = current_task()
        tasks.append(mine)
        return mine.wait(DEADLINE), mine.cancelled

    future = pool.submit(task)
    eventually(lambda: bool(tasks), "the task to start")
    assert not tasks[0].cancelled
    pool._root.kill()  # type: ignore[attr-defined]  # what is behind the view has it

    assert future.result(DEADLINE) == (True, True)


def test_killed_task_can_raise(make_pool: MakePool, gate: Gate) -> None:
    def task() -> None:
        gate.hold()
        current_task().raise_if_cancelled()

    pool = make_pool(1)
    future = pool.submit(task)
    gate.wait_until_held()
    pool.kill()
    gate.release()

    assert isinstance(future.exception(DEADLINE), TaskCancelled)


def test_nothing_is_cancelled_while_the_executor_runs(make_pool: MakePool) -> None:
    def task() -> tuple[bool, bool]:
        mine = current_task()
        mine.raise_if_cancelled()
        return mine.wait(0.001), mine.cancelled

    assert make_pool(1).submit(task).result() == (False, False)


def test_drain_does_not_set_the_token(make_pool: MakePool, gate: Gate) -> None:
    def task() -> bool:
        gate.hold()
        return current_task().cancelled

    pool = make_pool(1)
    future = pool.submit(task)
    gate.wait_until_held()
    pool.shutdown(wait=False, cancel_futures=True)
    gate.release()

    assert future.result() is False


def test_kill_sets_the_token_of_run_now(make_pool: MakePool, resource_pool: ResourceExecutor[FakeResource]) -> None:
    plain = make_pool(1)

    def task(pool: ResourceExecutor[Any]) -> bool:
        pool.kill()
        return current_task().cancelled

    assert plain.run_now(task, plain) is True
    assert resource_pool.run_now(lambda _: task(resource_pool)) is True


# -- current_resource --


def test_task_can_ask_for_its_resource(resource_pool: ResourceExecutor[FakeResource]) -> None:
    assert resource_pool.submit(lambda resource: resource_pool.current_resource() is resource).result()


def test_task_in_run_now_can_ask_for_its_resource(resource_pool: ResourceExecutor[FakeResource]) -> None:
    assert resource_pool.run_now(lambda resource: resource_pool.current_resource() is resource)


def test_there_is_no_resource_outside_of_tasks(resource_pool: ResourceExecutor[FakeResource]) -> None:
    with pytest.raises(NoCurrentTask):
        resource_pool.current_resource()


def test_task_of_one_executor_has_no_resource_of_another(
    make_pool: MakePool, resource_pool: ResourceExecutor[FakeResource]
) -> None:
    error = make_pool(1).submit(resource_pool.current_resource).exception()

    assert isinstance(error, NoCurrentTask)
    assert "not one of executor" in str(error)


def test_task_without_resources_has_none(make_pool: MakePool) -> None:
    pool = make_pool(1)
    error = pool.submit(pool.current_resource).exception()

    assert error is None
