"""The half of a `Task` that stops use: how it is asked to stop, and given up. The story is told in ``stops.py``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures._base import FINISHED
from typing import TYPE_CHECKING, Any, TypeVar

from .foreign import Foreign
from .sidecar import locks_task
from .stopping import Stop
from .unretrieved import Unretrieved

__all__ = ["Stoppable"]

T = TypeVar("T")


class Stoppable(Foreign[T]):
    """A task that runs, and may be stopped. For "Which thread goes first" see ``task.py``."""

    __slots__ = ()

    _submitted: float
    _unretrieved: Unretrieved | None

    if TYPE_CHECKING:

        def _conclude(self, *, mine: bool = False, tell: Callable[[Any], object] | None = None) -> None: ...

    @locks_task
    def _ask_to_stop(self, asked: Stop) -> Stop | None:
        """Note that the task, which runs, shall stop; return the stop in force, or None if the task is over."""
        sidecar = self._observe()
        if sidecar is None:
            return None
        with sidecar:
            if sidecar.published or sidecar.verdict is not None:
                return None
            stop = sidecar.stop = sidecar.stop or asked
            self._sidecar = sidecar  # once more: see "Which thread goes first"
            token = sidecar.token
            over = self._status is FINISHED and not stop.seen  # now: a task whose token is set may end at once
        if token is not None:
            token.cancel(stop.why())
        return None if over else stop

    @locks_task
    def _stop_at_work(self) -> Stop | None:
        """Return the stop of the task, once no thread is about to use it. Called when the task is out of hand."""
        self._submitted = self._submitted  # a store, and then the look: see "Which thread goes first"
        sidecar = self._sidecar
        stop = None if sidecar is None else sidecar.stop
        if sidecar is None or stop is None:  # no lock then: foreign code may hold it, and never let go
            return None
        with sidecar:
            stop.seen = True
        return stop

    @locks_task
    def _claim(self, stop: Stop, in_hand: Callable[[Any], bool], *, again: bool = False) -> bool:
        """Return whether the resource of the task may be aborted: the task is still in its worker's hand.

        True once for each stop, unless `again`.
        """
        sidecar = self._sidecar
        assert sidecar is not None
        with sidecar:
            if in_hand(self) and (again or not stop.aborted):
                stop.aborted = True
                return True
            return False

    @locks_task
    def _give_up(self, error: BaseException, in_hand: Callable[[Any], bool], lost: Unretrieved | None = None) -> bool:
        """End the task with `error` although it is in its worker's hand; return whether this call did it.

        Then the caller tells observers. `lost` logs the error unless it is retrieved.
        """
        sidecar = self._observe()
        if sidecar is None:
            return False
        mine = False
        try:
            with sidecar:
                if sidecar.verdict is not None or sidecar.published or not in_hand(self):
                    return False
                sidecar.started = sidecar.dropped = True  # it is in no lane, and so is no tombstone
                sidecar.heard = True
                if lost is not None:
                    self._unretrieved = lost
                sidecar.verdict = error
                sidecar.concluding = mine = True
            self._conclude(mine=True)
        finally:
            if mine:
                sidecar.concluding = False
        return True
