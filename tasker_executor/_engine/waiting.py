"""How a thread blocks until a task is final: by a handoff, or on a permit.

If hardly any task waits in the lane, the worker has little else to do. So it can hand the interpreter to the
thread that waits: see `handoff`. Otherwise the thread parks on a permit of its own, that the
publisher releases.

A thread of the executor itself waits in a third way: `Owner.wait_inside`. That starts another worker for the
task, or finds that no worker is left to run it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, Protocol

from .._checks import wait_seconds
from .._report import Logger
from .._sync import clock, lock_timeout, make_sleeping_permit
from .current import current
from .handoff import Handoff, HandoffLost, borrow, discard, give_back
from .lanes import Lane
from .sidecar import Sidecar

__all__ = ["await_handoff", "join", "note_lost"]

logger = Logger("tasker_executor")

#: Seconds that a thread with a timeout waits by a handoff before it looks for itself: see `handoff`.
_LOOK_EVERY = 1.0


class Awaited(Protocol):
    """A task, as far as this file knows one."""

    _lane: Lane
    _sidecar: Sidecar | None

    def _observe(self, handoff: Handoff | None = None) -> Sidecar | None: ...
    def _conclude(self) -> None: ...


def join(task: Awaited, timeout: float | None) -> None:
    """Block until `task` is final. Raises TimeoutError, and CancelledError if it was cancelled."""
    if timeout is not None:
        timeout = wait_seconds(timeout)
    owner = current.owner
    inside = owner is not None and owner is task._lane.owner and (timeout is None or timeout > 0)
    loan: list[Handoff] = []
    try:
        if len(task._lane) < 2 and not inside:
            borrow(loan)
        sidecar = task._observe(loan[0] if loan else None)
        if sidecar is None:
            return
        if sidecar.verdict is not None and not sidecar.concluded:
            task._conclude()
        if loan and (sidecar.handoff is loan[0] or sidecar.takes(loan[0])):
            try:
                await_handoff(sidecar, loan[0], timeout)
            except HandoffLost:
                lost = loan.pop()
                sidecar.handoff = None
                note_lost(lost, task._lane.owner.name)
                _await_permit(task, sidecar, timeout, inside=inside)
        else:
            _await_permit(task, sidecar, timeout, inside=inside)
        if sidecar.verdict is not None and sidecar.called_off():
            raise CancelledError
    finally:
        sidecar = task._sidecar
        if loan and sidecar is not None and sidecar.handoff is loan[0]:
            sidecar.handoff = None
        give_back(loan)  # not a function in Python: no error can be thrown in before it has done its work


def await_handoff(sidecar: Sidecar, handoff: Handoff, timeout: float | None, now: Callable[[], float] = clock) -> None:
    """Block by `handoff` until the task is published. Raises TimeoutError, and HandoffLost.

    The clock is bound here, because tests freeze the clocks that they find in modules.
    """
    if timeout is None:
        while not sidecar.published:  # a wake-up may be for nothing
            handoff.wait(None)
        return
    left = lock_timeout(timeout)
    until = now() + left
    while not sidecar.published:
        if left <= 0:
            raise TimeoutError
        step = min(left, _LOOK_EVERY)
        woken = handoff.wait(step)
        left = min(left if woken else left - step, until - now())  # ends, though the clock stands still


def _await_permit(task: Any, sidecar: Sidecar, timeout: float | None, *, inside: bool) -> None:
    """Block on a permit until the task is published. Raises TimeoutError."""
    permit = make_sleeping_permit()
    try:
        if not sidecar.add_permit(permit):
            return
        if inside:
            come = task._lane.owner.wait_inside(task, permit, timeout)
        else:
            come = permit.acquire(True, lock_timeout(timeout))
        if not come and not sidecar.published:
            raise TimeoutError
    finally:
        sidecar.drop_permit(permit)


def note_lost(handoff: Handoff, executor: str) -> None:
    """Throw away `handoff`, whose file descriptor the program has closed, and log that once."""
    if discard(handoff):
        logger.warning("executor %r: the program has closed a file descriptor of ours", executor, executor=executor)
