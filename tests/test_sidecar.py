"""The sidecar of a task: listeners and ends that come at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import as_completed, wait
from functools import partial
from typing import Any

import pytest

from engine import FINISHED, PENDING, RUNNING, Task, normal_lane
from support import DEADLINE, Gate, MakePool, eventually, join_all


def test_an_end_that_two_want_to_tell_is_told_once(make_pool: MakePool, gate: Gate) -> None:
    # 1. A worker ends a task. 2. A listener that came at the same time ends it, too. 3. wait() counts what it is told.
    class Waiter:
        def __init__(self) -> None:
            self.add_result = told.append

    told: list[Any] = []
    future: Any = make_pool(1).submit(gate.hold)
    with future._condition:
        future._waiters.append(Waiter())
    gate.release()
    future.result(DEADLINE)

    future._conclude()

    assert told == [future]


class Trapped(Task[Any]):
    """Ends right after a thread has seen that it has not started."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "_status" and value is PENDING:
            self._status = RUNNING
            self._finish("result", None)
        return value


def test_a_task_that_ends_while_somebody_begins_to_listen_is_heard_of(make_pool: MakePool) -> None:
    # 1. A listener finds no sidecar, and PENDING. 2. The worker runs the task, finds no sidecar and tells no
    # listener. 3. The listener stores its sidecar, and must look at the status once more.
    future: Any = Trapped()
    future._sidecar, future._context, future._lane = None, None, normal_lane(make_pool(1))
    future._status = PENDING
    told: list[Any] = []

    future.add_done_callback(told.append)

    assert told == [future]


def test_a_future_that_threads_wait_for_needs_no_dict(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    future: Any = pool.submit(int)
    pool.submit(int)  # so many tasks that `result` waits on a permit
    told: list[Any] = []
    future.add_done_callback(told.append)
    with pytest.raises(TimeoutError):
        future.result(0)
    ways: list[Callable[[], object]] = [partial(wait, [future], DEADLINE), partial(list, as_completed([future], DEADLINE))]
    waits = [threading.Thread(target=way) for way in ways]
    for waiting in waits:
        waiting.start()
    eventually(lambda: len(future._waiters) == 2, "the threads to wait")

    gate.release()

    assert join_all(waits) == []
    assert future.result(DEADLINE) == 0
    eventually(lambda: told == [future], "the callback")
    assert vars(future._sidecar) == {}


def test_a_task_starts_though_foreign_code_holds_its_condition(make_pool: MakePool, gate: Gate) -> None:
    # `wait` and `as_completed` hold those of all their futures until they have looked at each.
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    started = threading.Event()
    future: Any = pool.submit(started.set)

    with future._condition:
        gate.release()
        assert started.wait(DEADLINE)
        assert not future.done() or future._state == RUNNING  # it is told of only afterwards

    assert future.result(DEADLINE) is None


def test_the_condition_of_a_future_that_is_final_and_told_is_only_looked_up(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    future: Any = make_pool(1).submit(int)
    future.result(DEADLINE)
    condition = future._condition
    monkeypatch.setattr(Task, "_observe", None)  # a call would fail

    assert future._condition is condition
    assert future._state == FINISHED
