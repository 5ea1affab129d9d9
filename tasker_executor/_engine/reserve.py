"""The reserve: the calls of ``run_now``, and their end. The resources are in `stock`.

**Errors thrown in.** A call of ``run_now`` runs on the caller's thread, into which an error may be thrown:
see `_sync`. So each of the following is one step:

- a resource is made and noted down, in `resources`, or given up, in `holding`;
- the head of a ``for`` loop takes a free resource and stores it in a variable;
- a call of `Reserve.run` counts itself in by ``+= 1``. A ``try`` follows at once, and its ``finally`` begins
  with ``-= 1``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from os import getpid
from types import TracebackType
from typing import Any, Generic, TypeVar

from .._report import Logger, function_name, traceback_of
from .._sync import Bell, Latch, clock
from .._types import AbortHook
from ..exceptions import ResourceCreationError
from ..factory import Verdict
from .aborts import Target, abort_all, join_aborts
from .current import Caller
from .holding import Holding
from .invoke import note_giving_up, note_missing_argument, run_in_scope
from .places import Place, Places
from .resources import ResourceSource
from .run import Run, stop_of
from .stock import Stock
from .stopping import Token

__all__ = ["Reserve", "ReserveListener"]

R = TypeVar("R")
T = TypeVar("T")

logger = Logger("tasker_executor")

#: Seconds between two looks at the calls that are inside, once the reserve is closed. A call that Ctrl-C has
#: ended may not ring the bell.
_GLANCE = 1.0


class ReserveListener:
    """What a reserve tells its owner, on the thread of the call. This class ignores it."""

    def retried(self, fn: object) -> None:
        """Note that `fn` is about to be called again, by a verdict on its error."""

    def replaced(self) -> None:
        """Note that an unfit resource has been given up."""

    def failed(self, name: str, error: Exception) -> ResourceCreationError:
        """Return the error for a call whose resource could not be made: ``on_create`` raised `error`."""
        return ResourceCreationError(f"executor {name!r}: cannot make a resource for run_now")


class Reserve(Generic[R]):
    """Runs the calls of ``run_now``, each with a resource of its stock.

    Two errors may be thrown into a call, the second while it gives its resource back. Then the resource may
    be left in no place but `Stock.all`. Any thread that sees, after the end, that no thread is inside,
    destroys what is left there.

    Args:
        size: The number of resources that are made ahead, and made again when one is lost.
        most: At most this number of resources are kept. None: `size`.
        slot: What `current_slot` returns in calls, and while a resource is made for one.
        refusal: Makes the error of a call that comes when the reserve is closed.
        in_scope: Does what `run_in_scope` does.
    """

    def __init__(
        self,
        source: ResourceSource[R],
        size: int,
        owner: object,
        killed: Token,
        max_retries: int,
        refusal: Callable[[], Exception],
        *,
        most: float | None = None,
        listener: ReserveListener | None = None,
        slot: int | None = None,
        in_scope: Callable[..., Any] = run_in_scope,
    ) -> None:
        self._source = source
        self._care = source.needs_care
        self._around = source.hooks.around
        self._in_scope = in_scope
        self._size = size
        self._killed = killed
        self._max_retries = max_retries
        self._refusal = refusal
        self._listener = ReserveListener() if listener is None else listener
        outside = Caller(owner, killed, None, slot)
        self._returned = Bell()  # rung, once closed, when a call is over
        most = size if most is None else most
        self._stock = Stock(source, size, most, outside, self._listener.replaced, lambda: self._returned.ring())
        self._bind_stack()
        self._closed = False
        self._process = getpid()
        self._places = Places()
        self._local = self._places.local
        self._aborts: list[threading.Thread] = []

    def _bind_stack(self) -> None:
        # Bound for `run`, which looks up one attribute fewer in every call. All threads share them.
        self._free, self._takes = self._stock.free, self._stock.takes

    def fill(self) -> None:
        """Make the resources, on this thread. If one fails, destroy those made and raise the error."""
        try:
            for _ in range(self._size):
                self.add()
        except BaseException:
            self.close()
            self._destroy_all(self._local.mine or self._places.arrive())  # what is in hand
            raise

    def add(self) -> None:
        """Make a resource on this thread, and put it on the stack."""
        hand: list[Holding[R]] = []
        self._create(hand)
        self._stock.put_down(hand, False)

    @property
    def available(self) -> int:
        """The number of free resources."""
        return len(self._free)

    # -- a call

    # Longer than our functions are: each part taken out of it would cost a call per ``run_now``, or Ctrl-C
    # could come between a resource and the variable that holds it.
    def run(
        self,
        fn: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        max_retries: int | None,
        run: Run | None = None,
    ) -> T:
        """Call `fn` with a resource, as the current task of this thread.

        If the resource broke, call it again with another. After `Verdict.AGAIN`, call it with the same one.
        `run`: what stops the call, if it has a limit.
        """
        if kwargs:
            fn = partial(fn, **kwargs)
        care, around = self._care or run is not None, self._around  # a run lets go in more than one step
        retries = breaks = 0
        place = self._local.mine or self._places.arrive()
        here = place.here
        before = here.holder
        place.calls += 1
        try:
            while True:
                holding: Any = None  # Holding[R] | None, without the tests that a checker would ask for
                hand: list[Holding[R]] | None = None  # has the holding if its return takes more than one step
                broken = care  # until the check has returned: a check that is interrupted says nothing
                try:
                    if care:
                        hand = []
                        self._stock.take(hand, breaks)
                        broken = False
                    else:
                        try:
                            for holding in self._takes:  # noqa: B007  # in one step, see "Errors thrown in"
                                break
                        except IndexError:
                            hand = []
                    if hand is not None:
                        if not hand:
                            if self._closed and not retries:  # asked late: see `places`
                                raise self._refusal()
                            self._create(hand)
                        [holding] = hand
                    here.holder = holding
                    while True:  # once more only after `Verdict.AGAIN`
                        holding.call = fn
                        holding.attempt = 1 + retries
                        if run is not None:
                            run.begin(holding, self._source.name, fn)
                        try:
                            if around is not None:
                                return self._in_scope(around, holding, fn, args)  # type: ignore[no-any-return]  # a T
                            return fn(*(holding.arguments + args))
                        except BaseException as error:
                            holding.call = None
                            if holding.inherited:
                                raise
                            hand, broken = [holding], True  # until the error is judged
                            broken, again = self._judge(error, traceback_of(error), holding, run)
                            if (stop := stop_of(run, self._killed)) is not None and isinstance(error, Exception):
                                raise stop.error(self._source.name, function_name(fn), error) from error
                            if not again:
                                raise
                            limit = self._max_retries if max_retries is None else max_retries
                            if retries >= limit or stop is not None:
                                if broken:
                                    note_giving_up(error, retries)
                                raise
                            retries += 1
                            if run is not None:
                                run.error = error
                            self._listener.retried(fn)
                            if broken or not self._stock.is_clean(holding):
                                broken = True
                                care, breaks = True, self._source.breaks  # `Stock.take` looks for a resource that is good
                                break
                finally:
                    here.holder = before
                    if hand is not None:
                        try:
                            self._give_back(hand, broken, run)
                        finally:
                            if hand:  # an error was thrown in, so do it once more
                                self._give_back(hand, broken, run)
                    elif holding is not None:
                        holding.call = None
                        self._free.append(holding)
                        if self._care:  # refreshed while the call ran
                            self.refresh()
        finally:
            place.calls -= 1
            if self._closed:
                self._leave(place)

    def _create(self, hand: list[Holding[R]]) -> None:
        """Make a resource and take it in hand. Raises ResourceCreationError if `on_create` fails."""
        blame: list[BaseException] = []
        try:
            self._stock.make(hand, blame)
        except Exception as error:
            if not any(error is one for one in blame):  # thrown in
                raise
            raise self._listener.failed(self._source.name, error) from error

    def _is_aborted(self, holding: Holding[R], run: Run | None) -> bool:
        """Let go of a resource; return whether it was aborted. Without a run, only a killer aborts it."""
        return (self._killed.is_open and holding.being_aborted) if run is None else run.let_go()

    def _judge(
        self, error: BaseException, trace: TracebackType | None, holding: Holding[R], run: Run | None
    ) -> tuple[bool, bool]:
        """Return whether the error of a call shows that its resource is broken, and whether to repeat the call."""
        if self._is_aborted(holding, run):
            return False, False  # the error is ours
        verdict, again = self._source.judge(error, holding)
        if trace is not None:
            note_missing_argument(error, trace.tb_next, self._source.name, called=holding.called)
        return verdict is Verdict.BROKEN, again

    def _give_back(self, hand: list[Holding[R]], broken: bool, run: Run | None = None) -> None:
        """Keep what is in hand for the next call. If it is temporary, broken or used up, destroy it.

        Then the hand is empty.
        """
        if not hand:
            return
        [holding] = hand
        holding.call = None
        if self._is_aborted(holding, run):
            broken = broken or not self._stock.survives_abort(holding)
        if self._care:
            holding.uses += 1
            holding.last_used = clock()
            broken = broken or (holding.kept and not self._stock.is_good(holding))
        if not broken:
            holding.aborted = False
        self._stock.put_down(hand, broken)
        lost = holding not in self._stock.all
        if lost and broken:
            self._listener.replaced()
        # One for each call, so that no caller waits for many.
        if ((lost and holding.kept) or self._stock.short) and not self._closed and self._stock.is_short():
            self._stock.refill()

    def refresh(self) -> None:
        """Replace the free resources of an earlier epoch. One that is in use is replaced after its call."""
        self._care = True  # from now on calls look at the epoch
        place = self._local.mine or self._places.arrive()
        place.calls += 1
        try:
            failing = False
            for _ in range(len(self._free)):
                hand: list[Holding[R]] = []
                stale = True
                try:
                    holding: Holding[R] | None = None
                    try:
                        for holding in self._stock.drops:  # noqa: B007  # as in `run`
                            break
                    except IndexError:  # another thread was quicker
                        break
                    assert holding is not None
                    hand.append(holding)
                    stale = holding.epoch != self._source.epoch
                    self._stock.put_down(hand, stale)
                finally:
                    if hand:  # an error was thrown in
                        self._stock.put_down(hand, stale)
                if stale:
                    self._listener.replaced()
                    failing = failing or self._closed or not self._stock.refill()
            while not (failing or self._closed) and self._stock.is_short():
                failing = not self._stock.refill()
        finally:
            place.calls -= 1
            if self._closed:
                self._leave(place)

    # -- the end

    def _destroy_free(self, place: Place) -> None:
        """Empty the stack of a reserve that is closed."""
        place.calls += 1  # another closer waits until the hooks have returned
        try:
            while True:
                holding: Holding[R] | None = None
                try:
                    for holding in self._stock.drops:  # noqa: B007  # as in `run`
                        break
                except IndexError:
                    return
                assert holding is not None
                self._stock.destroy(holding)
        finally:
            place.calls -= 1
            self._returned.ring()

    def _destroy_all(self, place: Place) -> None:
        """Destroy the resources that an interrupted call, or an interrupted end, has left.

        Called when no thread is inside, and the stack is empty.
        """
        place.calls += 1
        try:
            for holding in self._stock.all.copy():
                self._stock.destroy(holding)
        finally:
            place.calls -= 1
            self._returned.ring()

    def _leave(self, place: Place) -> None:
        """Destroy what is left after a call that ends when the reserve is closed."""
        self._destroy_free(place)  # this rings the bell, too
        if not place.calls and self._stock.all and not self._places.others(place):
            self._destroy_all(place)

    def close(self) -> None:
        """Destroy the free resources. A call that has a resource in hand destroys it at its end."""
        self._closed = True
        self._destroy_free(self._local.mine or self._places.arrive())

    def abort(self, hook: AbortHook[R], targets: list[Target]) -> None:
        """Call `on_abort` for `targets` and for what calls of ``run_now`` have in hand. Do not wait."""
        targets = targets + [(holding, holding.claim) for holding in self._stock.all.copy() if holding.call is not None]
        # A second `kill` calls each hook again, unless the hook still hangs.
        targets = [(holding, in_use) for holding, in_use in targets if not holding.in_abort_hook]
        self._aborts += abort_all(targets, hook, self._source.name)

    def runs(self) -> list[Run]:
        """Return the calls in hand that have asked for their token, or that can be stopped."""
        calls = [holding.call for holding in self._stock.all.copy()]
        return [call for call in calls if isinstance(call, Run)]

    def destroy_in_use(self, owned: list[tuple[Holding[R], str]]) -> None:
        """Destroy, after `abort`, what calls of ``run_now`` have in hand, and these resources of workers.

        First, the `on_abort` hooks have `ABORT_PATIENCE` seconds to return. A resource that is still being
        aborted after that is left to its owner. No hook expects its resource to be destroyed while it runs. A
        wait for a hook that hangs would keep all the other resources.
        """
        join_aborts(self._aborts)
        place = self._local.mine or self._places.arrive()
        place.calls += 1  # `shutdown` waits until the hooks have returned
        try:
            in_reserve = [(holding, None) for holding in self._stock.all.copy()]
            for holding, worker in owned + in_reserve:
                self._source.destroy(holding, worker, patience=0.0)
                if not holding.gone and holding.being_aborted:
                    logger.warning(
                        "executor %r: on_abort has not returned: the resource is left to its owner",
                        self._source.name,
                        executor=self._source.name,
                        worker=worker,
                    )
        finally:
            place.calls -= 1
            self._returned.ring()

    # -- waiting

    def callers(self) -> list[str]:
        """Return the names of other threads that are inside."""
        return self._places.names(self._local.mine or self._places.arrive())

    def wait_until_returned(self, deadline: float | None, *, daemons: bool = True) -> bool:
        """Block, after `close`, until no other thread has a resource and none is left.

        Return whether that was by `deadline`.

        Inside of a call of ``run_now``, which goes on afterwards, the call's own resource is left. Without
        `daemons`, the resources of daemon threads are left, too.
        """
        if self._process != getpid():  # the child of a fork: the threads are not here
            return True
        place = self._local.mine or self._places.arrive()
        inside = place.calls > 0
        place.waiting += 1
        try:
            if inside:
                self._returned.ring()  # another call that waits in here need not wait for this one
            return self._wait(place, inside, deadline, daemons)
        finally:
            place.waiting -= 1

    def _wait(self, place: Place, inside: bool, deadline: float | None, daemons: bool) -> bool:
        returned: Latch | None = None
        swept = False
        while True:
            if returned is None or returned.is_open:
                returned = self._returned.listen()  # before the look at the places
            if self._free:  # Ctrl-C has interrupted `close`, or a call that had given its resource back
                self._destroy_free(place)
            if not self._places.others(place, inside=inside, daemons=daemons) and not (daemons and self._stock.left()):
                if inside or swept or not self._stock.all or (not daemons and self._places.others(place)):
                    return True
                self._destroy_all(place)
                swept = True  # look again: another thread may be destroying the same resource
                continue
            swept = False
            remaining = _GLANCE if deadline is None else deadline - clock()
            if remaining <= 0:
                return False
            returned.wait(min(remaining, _GLANCE))

    def reinit_after_fork(self) -> None:
        """Forget all resources, in the child of a fork: they are the parent's."""
        self._closed = True
        self._stock.reinit_after_fork()
        self._bind_stack()
        self._places = Places()
        self._local = self._places.local
