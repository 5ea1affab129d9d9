"""Ctrl-C, and signal handlers that use the pool, at every point of a call where they can come.

A trace function counts the points in the package's own code on the calling thread, and acts at the k-th; the test repeats the
call for every k. Points are the bytecodes where the interpreter looks for signals: it does when a function begins, after a call
and on a jump backwards. Anywhere else neither can come, least of all between the end of a ``with`` block and the release of its
lock, or in the middle of ``x += 1``.
"""

from __future__ import annotations

import dis
import gc
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import tasker_executor.testing
from support import DEADLINE, FakeResource, Ledger
from tasker_executor import ResourceExecutor

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
PACKAGE = str(Path(tasker_executor.__file__).parent)
LEDGER = tasker_executor.testing.__file__  # the hooks: what is interrupted inside of them is theirs to put right

Pool = ResourceExecutor[FakeResource]

_handlers: dict[CodeType, list[Any]] = {}


def handler_at(code: CodeType, offset: int) -> int | None:
    """Where an exception raised at `offset` goes (None: out of the function; before Python 3.11 it is not known)."""
    if code not in _handlers:
        _handlers[code] = list(getattr(dis.Bytecode(code), "exception_entries", ()))
    targets = [entry.target for entry in _handlers[code] if entry.start <= offset < entry.end]
    return targets[-1] if targets else None


class AtPoint:
    """Calls `action` at the point number `at` of the block."""

    def __init__(self, at: int, action: Callable[[], object]) -> None:
        self._at = at
        self._action = action
        self._previous: dict[FrameType, int | None] = {}
        self._seen = 0
        self.where: str | None = None  # None: there are fewer points than that

    def __enter__(self) -> AtPoint:
        gc.disable()  # or the end of a pool of another test, collected now, would be counted
        self._before = sys.gettrace()
        sys._getframe().f_trace_opcodes = (
            True  # for Python 3.12, which wants to know of any such frame before it begins to trace
        )
        sys.settrace(self._enter_function)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._before)
        gc.enable()
        self._previous.clear()

    def _enter_function(self, frame: FrameType, event: str, _: object) -> Any:
        filename = frame.f_code.co_filename
        if not filename.startswith(PACKAGE) or filename == LEDGER:
            return None
        frame.f_trace = self._step  # Python 3.13 asks for this before the next line
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self._previous[frame] = None
        return self._step

    def _step(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "opcode":
            previous = self._previous.get(frame)
            self._previous[frame] = frame.f_lasti
            if self._looks_for_signals(frame, previous):
                self._seen += 1
                if self._seen == self._at:
                    sys.settrace(None)
                    self.where = self._place(frame)
                    self._action()
        elif event == "return":
            self._previous.pop(frame, None)
        return self._step

    @staticmethod
    def _looks_for_signals(frame: FrameType, previous: int | None) -> bool:
        code, offset = frame.f_code, frame.f_lasti
        if previous is None or offset < previous:  # the function begins; a jump backwards
            return True
        called = dis.opname[code.co_code[previous]].startswith("CALL")
        # What is raised here must go where it would if it were raised by the call.
        return called and handler_at(code, previous) == handler_at(code, offset)

    @staticmethod
    def _place(frame: FrameType) -> str:
        place: list[str] = []
        caller: FrameType | None = frame
        while caller is not None and caller.f_code.co_filename.startswith(PACKAGE):
            place.append(f"{Path(caller.f_code.co_filename).name}:{caller.f_lineno}")
            caller = caller.f_back
        return f"{' < '.join(place)}, offset {frame.f_lasti}"


@dataclass(frozen=True)
class Call:
    """A call that is interrupted, and how the pool comes to where it starts."""

    call: Callable[[Pool], object]
    prepare: Callable[[Pool], object] = repr
    options: dict[str, Any] = field(default_factory=dict[str, Any])


def break_the_first(resource: FakeResource) -> None:
    if resource.number == 0:
        resource.break_down()


def run_one(pool: Pool) -> None:
    pool.submit(FakeResource.use).result(DEADLINE)


CALLS: dict[str, Call] = {
    "submit, first": Call(lambda pool: pool.submit(FakeResource.use)),
    "submit, to an idle worker": Call(lambda pool: pool.submit(FakeResource.use), run_one),
    "submit_priority": Call(lambda pool: pool.submit_priority(FakeResource.use)),
    "submit, bounded, with a deadline": Call(
        lambda pool: pool.with_options(start_within=DEADLINE).submit(FakeResource.use), options={"max_queued": 3}
    ),
    "map": Call(lambda pool: list(pool.map(FakeResource.use, range(3)))),
    "map, buffered chunks": Call(lambda pool: list(pool.map(FakeResource.use, range(4), chunksize=2, buffersize=2))),
    "shutdown": Call(lambda pool: pool.shutdown(), run_one),
    "shutdown without wait": Call(lambda pool: pool.shutdown(wait=False), run_one),
    "shutdown, nothing ran": Call(lambda pool: pool.shutdown()),
    "run_now": Call(lambda pool: pool.run_now(FakeResource.use), options={"resource_pool_size": 1}),
    "run_now, temporary resource": Call(lambda pool: pool.run_now(FakeResource.use)),
    "run_now, broken resource": Call(
        lambda pool: pool.run_now(break_the_first),
        options={"resource_pool_size": 1},
    ),
    "run_now, resource in doubt": Call(
        lambda pool: pool.run_now(FakeResource.use), options={"resource_pool_size": 1, "max_age": DEADLINE, "max_uses": 1}
    ),
    "shutdown, resource pool": Call(lambda pool: pool.shutdown(), options={"resource_pool_size": 2}),
}


HANDLERS: dict[str, Callable[[Pool], object]] = {
    "submit": lambda pool: pool.submit(FakeResource.use),
    "shutdown without wait": lambda pool: pool.shutdown(wait=False),
    "shutdown": lambda pool: pool.shutdown(),
    "stats": lambda pool: pool._check(),
}


def make(ledger: Ledger, options: dict[str, Any]) -> Pool:
    return ResourceExecutor(2, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, **options)


def check_both_workers_run(pool: Pool) -> None:
    """Two tasks that wait for each other: a worker, or a wake-up, that was lost would be missed."""
    barrier = threading.Barrier(2)
    futures = [pool.submit(lambda _: barrier.wait(DEADLINE)) for _ in range(2)]
    assert sorted(future.result(DEADLINE) for future in futures) == [0, 1]


def check_the_end(pool: Pool, ledger: Ledger) -> None:
    pool._check()
    pool.shutdown(timeout=DEADLINE)
    pool._check()
    stats = pool.stats()
    assert stats.submitted == stats.completed + stats.failed + stats.cancelled
    assert stats.resources_created == stats.resources_destroyed
    ledger.check()


def attempt(scenario: Call, number: int, action: Callable[[Pool], object]) -> bool:
    """Act at that point of the call; then everything must work, and everything must end. False: there is no such point."""
    ledger = Ledger()
    ledger.any_thread = True
    pool = make(ledger, scenario.options)
    point = AtPoint(number, lambda: action(pool))
    try:
        scenario.prepare(pool)
        with point:
            try:
                scenario.call(pool)
            except KeyboardInterrupt:
                pass
            except RuntimeError as error:
                if str(error) != AFTER_SHUTDOWN:  # the nested call has shut the pool down
                    raise
        if pool.stats().state == "running":
            check_both_workers_run(pool)
        check_the_end(pool, ledger)
    except BaseException as error:
        pool.kill()
        raise AssertionError(f"after acting at point {number}, {point.where}") from error
    return point.where is not None


def at_every_point(scenario: Call, action: Callable[[Pool], object]) -> int:
    """Return how many points there are."""
    number = 1
    while attempt(scenario, number, action):
        number += 1
    return number - 1


@pytest.mark.parametrize("scenario", list(CALLS.values()), ids=list(CALLS))
def test_ctrl_c_anywhere_loses_no_worker_no_task_and_no_resource(scenario: Call) -> None:
    def interrupt(_: Pool) -> None:
        raise KeyboardInterrupt

    points = at_every_point(scenario, interrupt)

    assert points >= 5


@pytest.mark.parametrize("handler", list(HANDLERS.values()), ids=list(HANDLERS))
@pytest.mark.parametrize("scenario", list(CALLS.values()), ids=list(CALLS))
def test_a_signal_handler_may_use_the_pool_anywhere(scenario: Call, handler: Callable[[Pool], object]) -> None:
    futures: list[Future[int]] = []

    def act(pool: Pool) -> None:
        try:
            answer: Any = handler(pool)
        except RuntimeError as error:
            if str(error) != AFTER_SHUTDOWN:
                raise
        else:
            if isinstance(answer, Future):
                futures.append(answer)  # pyright: ignore[reportUnknownArgumentType]  # of what is unknown

    points = at_every_point(scenario, act)

    assert points >= 5
    assert [future for future in futures if not future.done()] == []
