"""An error thrown in at every point of a call of a future: the task, and all threads that wait for it, come to their end.

`concurrent.futures.wait` and `as_completed` hold the conditions of all their futures for a moment. An error that is thrown in
while they acquire or release those leaves some of them acquired, with any executor's futures. So these two are asked here for
futures that are final. See `interruptions`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, as_completed, wait
from functools import partial
from typing import Any, cast

import pytest

from engine import Task, lanes_of
from interruptions import ERRORS, AtPoint
from support import DEADLINE, Gate, is_waited_for
from tasker_executor import ResourceExecutor

Step = Callable[[Future[Any]], object]

CALLS: dict[str, Step] = {
    "cancel": lambda future: future.cancel(),
    "result": lambda future: future.result(None if future.done() else 0),
    "result, with a timeout": lambda future: future.result(0.001),
    "exception": lambda future: future.exception(0.001),
    "add_done_callback": lambda future: future.add_done_callback(id),
    "done": lambda future: (future.done(), future.running(), future.cancelled()),
    "wait": lambda future: wait([future], 0.001),
    "as_completed": lambda future: list(as_completed([future], 0.001)),
    "snapshot": lambda future: cast("Any", future)._get_snapshot(),
    "repr": repr,
}


EXPECTED: tuple[type[BaseException], ...] = (*ERRORS, TimeoutError, CancelledError, ValueError)


def boom() -> None:
    raise ValueError("mine")


def thrower(error: type[BaseException]) -> Callable[[], object]:
    def throw() -> None:
        raise error

    return throw


def note(called: list[int], which: int, _: Future[Any]) -> None:
    called.append(which)


class Story:
    """A future in some state, a thread that waits for it, and a callback."""

    def __init__(self, state: str) -> None:
        self.pool: ResourceExecutor[None] = ResourceExecutor(1)
        self.gate = Gate()
        self.called: list[Future[Any]] = []
        self.asker: threading.Thread | None = None
        if state in ("waiting", "waited for", "cancelled"):
            self.pool.submit(self.gate.hold)
            self.gate.wait_until_held()
        self.future: Future[Any] = self.pool.submit({"running": self.gate.hold, "failed": boom}.get(state, int))
        self.future.add_done_callback(self.called.append)
        if state == "waited for":
            self.asker = threading.Thread(target=self.ask)
            self.asker.start()
            while not is_waited_for(self.future):
                threading.Event().wait(0.0001)
        elif state == "running":
            self.gate.wait_until_held()
        elif state == "cancelled":
            self.future.cancel()
        elif state in ("done", "failed"):
            wait([self.future])

    def ask(self) -> None:
        try:
            self.future.exception(DEADLINE)
        except CancelledError:
            pass

    def check(self) -> None:
        """All comes to its end, and nothing is counted twice."""
        self.gate.release()
        self.pool.shutdown(timeout=DEADLINE)
        assert self.future.done()
        if self.asker is not None:
            self.asker.join(DEADLINE)
            assert not self.asker.is_alive()
        assert wait([self.future], DEADLINE).done == {self.future}
        assert self.called == [self.future]
        stats = self.pool.stats()
        assert stats.submitted == stats.completed + stats.failed + stats.cancelled
        assert stats.cancelled == self.future.cancelled()
        for lane in lanes_of(self.pool):
            assert lane.tombstones == len(lane) == 0


def attempt(state: str, call: Step, error: type[BaseException], number: int) -> bool:
    story = Story(state)
    point = AtPoint(number, thrower(error))
    try:
        with point:
            try:
                call(story.future)
            except EXPECTED:
                pass
        story.check()
    except BaseException as failure:
        story.gate.release()
        story.pool.kill()
        raise AssertionError(f"after acting at point {number}, {point.where}") from failure
    return point.where is not None


FINAL_STATES = ["done", "failed", "cancelled"]
CASES = [
    (name, state)
    for name in CALLS
    for state in ["waiting", "waited for", "running", *FINAL_STATES]
    if state in FINAL_STATES or name not in ("wait", "as_completed")
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("name, state", CASES)
def test_an_error_thrown_into_a_call_of_a_future_leaves_nobody_waiting(
    name: str, state: str, error: type[BaseException]
) -> None:
    number = 1
    while attempt(state, CALLS[name], error, number):
        number += 1


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_callback_is_called_once_though_one_is_interrupted(error: type[BaseException]) -> None:
    for number in range(1, 1000):
        story = Story("waiting")
        story.called.clear()
        called: list[int] = []
        for which in range(3):
            story.future.add_done_callback(partial(note, called, which))

        point = AtPoint(number, thrower(error))
        with point:
            try:
                story.future.cancel()
            except error:
                pass
        story.check()
        assert called == [0, 1, 2], point.where
        if point.where is None:
            return


def raises_cancelled(ask: Callable[[float], object]) -> None:
    with pytest.raises(CancelledError):
        ask(0)


INTERRUPTED: dict[str, Step] = {
    "cancel": lambda future: future.cancel(),
    "result": lambda future: raises_cancelled(future.result),
    "exception": lambda future: raises_cancelled(future.exception),
    "wait": lambda future: wait([future], 0).done == {future} or pytest.fail("not done"),
    "as_completed": lambda future: list(as_completed([future], 0)) == [future] or pytest.fail("not done"),
    "done": lambda future: future.done() or pytest.fail("not done"),
    "cancelled": lambda future: future.cancelled() or pytest.fail("not cancelled"),
    "add_done_callback": lambda future: future.add_done_callback(id),
    "snapshot": lambda future: cast("Any", future)._get_snapshot()[:2] == (True, True) or pytest.fail("not done"),
}


@pytest.mark.parametrize("meet", list(INTERRUPTED.values()), ids=list(INTERRUPTED))
def test_a_task_that_was_settled_and_not_told_of_is_concluded_by_the_next_who_meets_it(
    meet: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A canceller has stored its verdict, and is interrupted. 2. The only worker is busy. 3. Another thread meets the task.
    story = Story("waited for")

    def interrupt(_: object, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Task, "_conclude", interrupt)
        with pytest.raises(KeyboardInterrupt):
            story.future.cancel()

    meet(story.future)

    assert story.asker is not None
    story.asker.join(DEADLINE)
    assert not story.asker.is_alive()
    assert story.future.cancelled()
    story.check()


def test_the_worker_that_pops_it_concludes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story("waiting")

    def interrupt(_: object, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Task, "_conclude", interrupt)
        with pytest.raises(KeyboardInterrupt):
            story.future.cancel()

    story.gate.release()
    story.pool.submit(int).result(DEADLINE)

    assert story.called == [story.future]
    story.check()


def test_a_worker_leaves_the_callbacks_of_a_settled_task_to_the_thread_that_settled_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. A canceller has stored its verdict. 2. A worker pops the task. 3. The canceller goes on. On the worker's thread, a
    # callback that waits for a task of the pool would wait for itself.
    story = Story("waiting")
    threads: list[int] = []
    story.future.add_done_callback(lambda _: threads.append(threading.get_ident()))
    conclude = cast("Any", Task)._conclude

    def let_the_worker_pass(future: Task[Any], **options: Any) -> None:
        if options.get("mine"):
            story.gate.release()
            story.pool.submit(int).result(DEADLINE)
        conclude(future, **options)

    monkeypatch.setattr(Task, "_conclude", let_the_worker_pass)
    story.future.cancel()

    assert threads == [threading.get_ident()]
    story.check()


# -- a signal handler that shuts down and waits


@pytest.mark.parametrize("name, state", [(name, state) for name, state in CASES if state != "cancelled"])
def test_a_signal_handler_in_a_call_of_a_future_may_shut_down_and_wait(name: str, state: str) -> None:
    def act(story: Story) -> None:
        story.gate.release()  # or the task that holds it would be waited for, and rightly
        story.pool.shutdown(timeout=DEADLINE)

    number = 1
    where: str | None = ""
    while where is not None:
        story = Story(state)
        point = AtPoint(number, partial(act, story))
        with point:
            try:
                CALLS[name](story.future)
            except EXPECTED:
                pass
        where = point.where
        story.check()
        number += 1
    assert number > 2


def test_a_signal_handler_does_not_wait_for_a_thread_that_its_own_is_about_to_tell() -> None:
    # 1. A task of one executor waits for a task of another. 2. That one is cancelled; the canceller has stored its verdict, and
    # has yet to tell. 3. A signal handler, on the canceller's thread, shuts the first executor down.
    number, settled = 1, 0
    where: str | None = ""
    while where is not None:
        story = Story("waiting")
        other: ResourceExecutor[None] = ResourceExecutor(1)
        asker = other.submit(story.ask)
        while not is_waited_for(story.future):
            threading.Event().wait(0.0001)
        task: Any = story.future
        too_early: list[bool] = []

        def act(other: ResourceExecutor[None] = other, task: Any = task, too_early: list[bool] = too_early) -> None:
            too_early.append(task._sidecar.verdict is None)  # then it would wait for what its own thread has yet to do
            other.shutdown(not too_early[0], timeout=DEADLINE)

        point = AtPoint(number, act)
        with point:
            story.future.cancel()
        settled += too_early == [False]
        where = point.where
        other.shutdown(timeout=DEADLINE)
        assert asker.done()
        story.check()
        number += 1
    assert settled > 10
