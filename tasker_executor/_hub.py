"""`ObserverHub`: which observers listen to which event.

The events and the base class are in ``observers.py``, which is imported by programs that have an observer. The
engine makes an event only if an observer listens, and imports its class at that point.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ._report import Logger, aside, must_escape, safe_repr

if TYPE_CHECKING:
    from .observers import Observer, ResourceEvent, ScaleEvent, StateEvent, TaskEvent, WorkerEvent

__all__ = ["ObserverHub"]

logger: Logger = Logger("tasker_executor.observers")


class ObserverHub:
    """The methods that listen to each event, found out once."""

    def __init__(self, observers: tuple[Observer, ...]) -> None:
        # Without the events that no observer listens to. Never changed. `silence`, in the child of a fork, puts
        # another one in its place.
        self._listeners: dict[str, tuple[Callable[[Any], object], ...]] = {}
        if observers:
            from .observers import EVENTS, Observer

            for event in EVENTS:
                inherited = getattr(Observer, event)
                methods = [getattr(member, event) for member in observers if getattr(type(member), event) is not inherited]
                if methods:
                    self._listeners[event] = tuple(methods)
        self.hears_tasks: bool = any(event.startswith("task_") for event in self._listeners)
        self.hears_submissions: bool = "task_submitted" in self._listeners

    def silence(self) -> None:
        """Call no observer any more."""
        self._listeners = {}
        self.hears_tasks = self.hears_submissions = False

    def hears(self, event: str) -> bool:
        """Return whether an observer listens to this event."""
        return event in self._listeners

    def tell(
        self, event: str, what: TaskEvent | WorkerEvent | ResourceEvent | ScaleEvent | StateEvent, task: object = None
    ) -> None:
        """Call the observers that listen to this event. Never called under a lock.

        If that is left to another thread, `task` is kept until then. So no other task has its number before.
        """
        if aside.post is not None:
            aside.post(partial(self.tell, event, what, task))
            return
        for listener in self._listeners.get(event, ()):
            try:
                listener(what)
            except BaseException as error:
                if must_escape(error):
                    raise
                ids = {"executor": what.executor, "event": event}
                logger.exception("observer %s raised in %s and was ignored", safe_repr(listener), event, **ids)
