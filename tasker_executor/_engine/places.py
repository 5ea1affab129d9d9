"""Which threads are inside of a call of the reserve.

The thread that closes the reserve must wait for calls that still have a resource, or are about to take one.

1. A call counts itself in its thread's `Place`, then looks for a free resource, and only then whether the
   reserve is closed.
2. The closer marks the reserve as closed, empties the stack, and then looks at the places.
3. So either the closer sees the call, or the call finds the stack empty and sees that the reserve is closed.
   The lock inside of the deque keeps this order without the GIL, too.

A place that is counted up is counted down: see "Errors thrown in" in `reserve`. If the thread ends before
that (a greenlet that is never resumed), its place ends with it, since `Places` refers to places weakly.
"""

from __future__ import annotations

import threading
import weakref
from _thread import get_ident

from .current import current

__all__ = ["Place", "Places"]


class Place:
    """What a reserve knows of one thread; of one greenlet where `threading.local` is local to greenlets."""

    __slots__ = ("__weakref__", "calls", "here", "ident", "waiting")

    def __init__(self) -> None:
        self.here = current.here
        self.ident = get_ident()
        #: Stored by this thread alone, so ``+= 1`` loses nothing. Another thread sees it before or after.
        #: The number of calls of the reserve's methods that run on this thread, one inside of the other. Each
        #: adds 1 and takes 1 away, and none puts an earlier value back: several greenlets may share the
        #: place, if gevent has patched after our import.
        self.calls = 0
        #: The number of these calls that wait in `Reserve.wait_until_returned`.
        self.waiting = 0

    @property
    def thread(self) -> threading.Thread | None:
        """The thread; None if `threading` does not know it."""
        # Not `threading.enumerate`, which takes a lock: the caller may be a signal handler that has
        # interrupted a function with that lock.
        return threading._active.get(self.ident)  # type: ignore[attr-defined, no-any-return]  # not in typeshed


class _Local(threading.local):
    """The place of each thread. `Places.arrive` makes it: Ctrl-C could interrupt an ``__init__`` here."""

    mine: Place | None = None


class Places:
    """The places of all threads. A call asks for ``local.mine or arrive()``."""

    def __init__(self) -> None:
        self.local = _Local()
        self._places: set[weakref.ref[Place]] = set()  # each change is one step; looked at in a copy

    def arrive(self) -> Place:
        """Make the place of this thread, in its first call."""
        place = Place()
        self._places.add(weakref.ref(place, self._places.discard))
        self.local.mine = place
        return place

    def others(self, mine: Place, *, inside: bool = False, daemons: bool = True) -> list[Place]:
        """Return the places of other threads that are inside of a call.

        Asked `inside` of a call, leave out the threads that wait in `Reserve.wait_until_returned`: two calls
        would wait for each other's end. Without `daemons`, leave out threads that the end of the interpreter
        does not wait for.
        """
        others: list[Place] = []
        for ref in self._places.copy():
            place = ref()
            if place is None or place is mine or not place.calls or (inside and place.waiting):
                continue
            if not daemons and ((thread := place.thread) is None or thread.daemon):  # one look: the thread may just end
                continue
            others.append(place)
        return others

    def names(self, mine: Place) -> list[str]:
        """Return the names of other threads that are inside of a call."""
        return [str(place.ident) if (thread := place.thread) is None else thread.name for place in self.others(mine)]
