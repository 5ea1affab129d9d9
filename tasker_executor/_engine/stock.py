"""The stock: the resources of ``run_now``, kept and temporary.

A *hand* is a list with at most one resource in it: what a call has taken, or made, and has not given back.
For errors that are thrown in, see `reserve`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from .._report import Logger, must_escape
from .._sync import clock, pop_into, takes
from .current import Caller, current
from .holding import Holding
from .resources import ResourceSource

__all__ = ["Stock"]

R = TypeVar("R")

logger = Logger("tasker_executor")

#: Seconds that a call which was stopped waits for `on_abort` to return, so that its resource can be kept. Most
#: hooks end the call in their first step, and have a last step to do.
ABORT_LINGER = 0.01


class Stock(Generic[R]):
    """The resources of ``run_now``, kept and temporary.

    Any thread that calls may use a resource that is kept. The free ones lie on a stack: the one used last is
    used next. `pop` and `append` are atomic, so a resource belongs to the call that takes it, without a lock.
    A temporary resource never lies there: its caller makes, uses and destroys it.

    Args:
        size: A resource that is lost is made again while fewer than this number are kept.
        most: At most this number of resources are kept.
        outside: The holder of the current task while a hook is called: not that of a task that causes the
            call. A resource that is made gets its owner, its latch and its slot.
        replaced: Called when a resource that was free is found unfit, and has been given up.
        abandoned: Called when a resource that was left to its abort has been destroyed.
    """

    def __init__(
        self,
        source: ResourceSource[R],
        size: int,
        most: float,
        outside: Caller,
        replaced: Callable[[], None],
        abandoned: Callable[[], None],
    ) -> None:
        self._source = source
        self._size = size
        self._most = most
        self._outside = outside
        self._replaced = replaced
        self._abandoned = abandoned
        #: All resources there are: free, in use, temporary. Not those that are left to their aborts. Each
        #: change is one step, and so it is with `_left`. Both are looked at in a copy.
        self.all: set[Holding[R]] = set()
        #: Resources whose `on_abort` had not returned when they were given up. The aborts destroy them.
        self._left: set[Holding[R]] = set()
        #: Whether resources may be missing: later calls, each of which makes one, see to that. Stored under
        #: the source's lock; a look without it may come late, and then the next call refills.
        self.short = False
        self._set_free(deque())

    def _set_free(self, free: deque[Holding[R]]) -> None:
        self.free = free
        # ``for holding in takes: break`` pops the top into the variable, or raises IndexError. `drops` pops
        # the bottom.
        self.takes = takes(free.pop)
        self.drops = takes(free.popleft)

    def take(self, hand: list[Holding[R]], breaks: int = 0) -> None:
        """Take in hand a free resource that is fit to use, if there is one.

        A retry must not meet a resource that may have broken in one event with another: see `Sidecar.breaks`.
        """
        here = current.here
        before, here.holder = here.holder, self._outside
        try:
            while True:
                holding: Holding[R] | None = None
                try:
                    for holding in self.takes:  # noqa: B007  # as in `Reserve.run`
                        break
                except IndexError:
                    return
                assert holding is not None
                hand.append(holding)
                # Unlike a worker's resource, one that has not served may be too old: it may have been free
                # for hours.
                if clock() < holding.expires and self._source.unfit(holding) is None:
                    if not self._source.suspects(holding, breaks):
                        return
                    if self._source.retries_on_new:  # leave it to other calls, and make a resource for this one
                        self.put_down(hand, False)
                        return
                try:
                    self.destroy(holding)
                finally:
                    with self._source.lock:
                        self.short = True  # this call makes one, and may lose several
                hand.clear()
                self._replaced()
        finally:
            here.holder = before

    def make(self, hand: list[Holding[R]], blame: list[BaseException]) -> None:
        """Make a resource and take it in hand. Appends the errors of ``on_create`` to `blame`."""
        here = current.here
        before, here.holder = here.holder, self._outside
        try:
            self._source.create(None, partial(self._keep, hand), blame)
        finally:
            here.holder = before

    def _keep(self, hand: list[Holding[R]], holding: Holding[R]) -> None:
        outside = self._outside
        holding.owner, holding.killed, holding.slot = outside.owner, outside.token(), outside.slot
        with self._source.lock:  # or two calls would see the same vacancy
            # First in, then counted. So a signal handler that interrupts this thread here, and makes a
            # resource, too, counts this one.
            holding.kept = self._most > 0
            self.all.add(holding)
            if self._count_kept() > self._most:
                holding.kept = False
        hand.append(holding)

    def is_short(self) -> bool:
        """Return whether fewer resources are kept than are made ahead, and note it down for later calls."""
        with self._source.lock:  # a call that loses one notes that under the lock, too
            self.short = self._count_kept() < self._size
            return self.short

    def _count_kept(self) -> int:
        return sum(holding.kept and not holding.gone for holding in self.all.copy())

    def destroy(self, holding: Holding[R]) -> None:
        """Give a resource up, outside of any task. If it is being aborted, leave it to the thread that does that."""
        if holding.leave_to_abort(partial(self._destroy_abandoned, holding)):
            self._left.add(holding)
            self.all.discard(holding)  # last: an error may be thrown in before this, and the caller tries again
            return
        here = current.here
        before, here.holder = here.holder, self._outside
        try:
            self._source.destroy(holding, None)
        finally:
            here.holder = before
            if holding.gone:
                self.all.discard(holding)

    def _destroy_abandoned(self, holding: Holding[R]) -> None:
        """Destroy a resource on the thread of its abort, whose hook has returned."""
        try:
            self.destroy(holding)
        finally:
            self.left()
            self._abandoned()

    def left(self) -> bool:
        """Return whether resources wait for the end of their aborts, to be destroyed."""
        for holding in self._left.copy():
            if holding.gone:
                self._left.discard(holding)
        return bool(self._left)

    def survives_abort(self, holding: Holding[R]) -> bool:
        """Return whether a resource that was aborted may be kept, if then its reset and its check say so."""
        holding.aborted = True
        if self._source.hooks.check is None or not holding.kept or not holding.wait_for_aborts(ABORT_LINGER):
            holding.broken = True
            return False
        holding.good_at = -1  # until it has been checked
        return True

    def is_good(self, holding: Holding[R]) -> bool:
        """Clean a resource after a call; return whether it may serve another one."""
        source = self._source
        if source.used_up(holding) or holding.epoch != source.epoch:
            return False
        if source.hooks.reset is None and holding.good_at >= 0:  # no hook is to be called
            return True
        here = current.here
        before, here.holder = here.holder, self._outside
        try:
            return self.is_clean(holding) and (holding.good_at >= 0 or source.passes_check(holding))
        finally:
            here.holder = before

    def is_clean(self, holding: Holding[R]) -> bool:
        """Clean a resource after an attempt; return False if that cannot be done."""
        source = self._source
        holding.used = True
        if (error := source.reset(holding)) is None:
            return True
        logger.warning(
            "executor %r: a resource cannot be cleaned, and is replaced",
            source.name,
            exc_info=error,
            executor=source.name,
        )
        return False

    def put_down(self, hand: list[Holding[R]], broken: bool) -> None:
        """Put what is in hand on the stack, or destroy it. Called once more after an error is thrown in."""
        for holding in hand:
            if holding.kept and not broken and not holding.gone:
                pop_into(hand.pop, self.free.append)
            else:
                self.destroy(holding)
                hand.clear()

    def refill(self) -> bool:
        """Replace a resource of the reserve. If `on_create` fails, return False; a later call tries again."""
        hand: list[Holding[R]] = []
        blame: list[BaseException] = []
        try:
            self.make(hand, blame)
            return True
        except BaseException as error:
            if not any(error is one for one in blame) or must_escape(error):
                raise
            logger.warning(
                "executor %r: cannot replace a resource of the reserve yet",
                self._source.name,
                exc_info=True,
                executor=self._source.name,
            )
            self.short = True
            return False
        finally:
            try:
                self.put_down(hand, False)  # destroys it if another call was quicker
            finally:
                if hand:
                    self.put_down(hand, False)

    def reinit_after_fork(self) -> None:
        """Forget all resources, in the child of a fork: they are the parent's."""
        self._set_free(deque())
        self.all.clear()
        self._left.clear()
