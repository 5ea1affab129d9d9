"""The sidecar of a task: listeners and ends that come at the same time."""

from __future__ import annotations

from typing import Any

from engine import PENDING, RUNNING, Task, normal_lane
from support import DEADLINE, Gate, MakePool


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
