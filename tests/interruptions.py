"""What acts at every point of a call where a signal handler can run: machinery for `test_interrupts.py` and its like.

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
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import tasker_executor.testing.fakes
from support import DEADLINE, FakeResource, Ledger, ResourceBroken
from tasker_executor import ResourceExecutor
from tasker_executor._sync import HAS_GIL


class TimeLimit(Exception):
    """What a time limit of the user's raises, by SIGALRM, as rq, Celery and most time-out decorators do."""


#: What may be thrown into a call by a signal handler; the last also near the limit of the stack.
ERRORS: list[type[BaseException]] = [KeyboardInterrupt, TimeLimit, RecursionError]
EXPECTED: tuple[type[BaseException], ...] = (*ERRORS, ResourceBroken)

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
PACKAGE = str(Path(tasker_executor.__file__).parent)
LEDGER = tasker_executor.testing.fakes.__file__  # the hooks: what is interrupted inside of them is theirs to put right

Pool = ResourceExecutor[FakeResource]

_handlers: dict[CodeType, list[Any]] = {}


def handler_at(code: CodeType, offset: int) -> int | None:
    """Return where an exception raised at `offset` goes; None: out of the function."""
    if code not in _handlers:
        bytecode: Any = dis.Bytecode(code)  # whose table of handlers typeshed does not know
        _handlers[code] = list(bytecode.exception_entries)
    targets = [entry.target for entry in _handlers[code] if entry.start <= offset < entry.end]
    return targets[-1] if targets else None


def is_in_destructor(frame: FrameType | None) -> bool:
    """Return whether a destructor runs. Without the GIL, that of an object that another thread dropped may come anywhere."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


class AtPoint:
    """Calls `action` at the point number `at` of the block."""

    skipped = LEDGER

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
        if not filename.startswith(PACKAGE) or filename == self.skipped or (not HAS_GIL and is_in_destructor(frame)):
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
            except EXPECTED:  # what is thrown into check_health costs the task its retry
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


def thrower(error: type[BaseException]) -> Callable[[Pool], object]:
    """Return an action that raises such an error."""

    def throw(_: Pool) -> None:
        raise error

    return throw


def at_every_point(scenario: Call, action: Callable[[Pool], object]) -> int:
    """Return how many points there are."""
    number = 1
    while attempt(scenario, number, action):
        number += 1
    return number - 1
