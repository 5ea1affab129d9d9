"""The care of a worker for its resource: may it serve the next task, or a retry?

A `ResourceSource` cleans and checks a resource. Its worker's `Care` decides when, and what follows.
"""

from __future__ import annotations

from typing import Any

from .holding import Holding
from .resources import End
from .task import Task
from .workplace import Workplace

__all__ = ["Care"]


class Care:
    """The care of one worker for its resource. Only that worker calls the methods."""

    __slots__ = ("_lanes", "_source", "broken_by")

    def __init__(self, place: Workplace) -> None:
        self._source = place.source
        self._lanes = place.lanes
        #: The error that showed the resource to be broken.
        self.broken_by: BaseException | None = None

    def unfit(self, holding: Holding[Any] | None, waiting: object, *, doubt: bool = False) -> End | None:
        """Clean the resource after a task; return why it may not serve another one, or None if it may.

        A check is postponed until tasks are `waiting`, unless the last one has raised.
        """
        source = self._source
        if holding is None or source is None or not source.needs_care:
            return None
        if holding.used and not source.used_up(holding):
            if (error := source.reset(holding)) is not None:
                self.broken_by = error
                return End.BROKEN
            waiting = self._lanes.look()  # tasks may have come while it was reset
        if not (waiting or (holding.good_at < 0 and holding.uses) or source.used_up(holding)):
            return None
        unfit = source.unfit(holding, doubt=doubt)
        if unfit is End.CREATION_FAILED:
            self.broken_by = holding.fault
        return unfit

    def suspect(self, holding: Holding[Any] | None, breaks: int) -> End | None:
        """Return why the resource may not serve a retry: it may have broken in the event that broke another.

        `breaks`: see `Sidecar.breaks`.
        """
        source = self._source
        if holding is None or source is None or not source.suspects(holding, breaks):
            return None
        if source.retries_on_new:
            return End.SUSPECT
        if holding.uses:
            return End.BROKEN
        self.broken_by = holding.fault
        return End.CREATION_FAILED

    def after_abort(self, holding: Holding[Any] | None) -> End | None:
        """Clean and check a resource that was aborted; return why it may not serve on, or None if it may.

        Without a check nothing tells whether it is good, so it is replaced.
        """
        source = self._source
        assert holding is not None
        assert source is not None
        holding.aborted, holding.used = True, True
        if source.hooks.check is None:
            return End.STOPPED
        if (error := source.reset(holding)) is not None:
            self.broken_by = error
            return End.STOPPED
        if not source.passes_check(holding):
            return End.STOPPED
        holding.aborted = False
        return None

    def clean_for_retry(self, holding: Holding[Any] | None, task: Task[Any]) -> End | None:
        """Clean the resource between two attempts of a task; return why it may not serve the next one."""
        source = self._source
        assert holding is not None
        assert source is not None
        assert task._sidecar is not None
        holding.used = True
        if (error := source.reset(holding)) is not None:
            self.broken_by = error
            task._sidecar.breaks = source.breaks
            return End.BROKEN
        return None
