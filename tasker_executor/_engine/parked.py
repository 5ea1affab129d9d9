"""A task that waits for a place in a full queue itself, because the thread that submits it must not block.

`Admission` has the line in which it stands. Until it is let in, it is in no lane.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from typing_extensions import override

from .admission import Admission, Parked
from .sidecar import WITHDRAWN, locks_task
from .task import Task

__all__ = ["PARKING", "ParkedTask", "Parking"]

T = TypeVar("T")


class Parking:
    """What a submission does at a full queue if its thread must not block: its task is parked."""

    __slots__ = ("on_queued",)

    def __init__(self, on_queued: Callable[[], object] | None = None) -> None:
        #: Called, by any thread, when the task has got its place after all.
        self.on_queued = on_queued


PARKING = Parking()


class ParkedTask(Task[T]):
    """A task that may be parked."""

    __slots__ = ("_ticket",)

    _ticket: Parked

    @override
    def _waits_for_place(self) -> bool:
        ticket = getattr(self, "_ticket", None)
        return ticket is not None and ticket.waits

    def park(self, admission: Admission, refusal: Callable[[], Exception], on_queued: Callable[[], object] | None) -> None:
        """Stand in line for a place. If an error is thrown in, the task does not run."""
        self._ticket = ticket = Parked(admission, self, self._lane.append, lambda: self._settle(refusal()), on_queued)
        try:
            admission.park(ticket)
        except BaseException:
            self._settle(WITHDRAWN)
            raise

    @override
    @locks_task
    def _settle(self, verdict: Any) -> bool:
        """End the task with `verdict` unless it has started. If it is parked, it leaves the line."""
        ticket = getattr(self, "_ticket", None)
        if ticket is None:
            return super()._settle(verdict)
        ticket.withdraw()
        try:
            return super()._settle(verdict)
        finally:
            # The task was counted as a tombstone of its lane, in which it never was. Each thread that comes here
            # looks: one may have withdrawn the task, and another have settled it. The second drop does nothing.
            sidecar = self._sidecar
            if ticket.withdrawn and sidecar is not None and sidecar.counted:
                self._lane.drop_tombstone(sidecar)
