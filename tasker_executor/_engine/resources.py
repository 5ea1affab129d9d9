"""Making, checking and giving up resources: for workers, which own one each, and for the resource pool of ``run_now``.

**Errors thrown in.** A call of ``run_now`` runs on the caller's thread. There an error may be thrown in by Ctrl-C, by a time
limit (SIGALRM) or by the end of the stack. CPython looks for signals when a function begins, after a call, and on a jump
backwards. It does not look in the middle of a call into C, nor between a load and a store. So what must not come apart is one
such step:

- a resource is made and noted down, or claimed and handed to ``on_destroy``, in one call into C;
- a free resource is taken and stored in a variable by one ``for`` statement, which does not look for signals in between;
- a call of `ResourcePool.run` counts itself in by ``+= 1``. A ``try`` follows, and its ``finally`` begins with ``-= 1``.

**Fork.** A resource belongs to the process that made it. In the child of a fork, `Holding` neither aborts nor destroys those of
the parent.
"""

from __future__ import annotations

import enum
import random
import threading
import weakref
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, repeat, starmap
from os import getpid
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .._report import Logger, add_note, drop_frame, must_escape, safe_repr
from .._sync import Bell, Latch, clock, lock_timeout
from .._types import AbortHook, DestroyHook
from ..exceptions import ResourceCreationError
from ..observers import ObserverHub, ResourceEvent
from .current import current
from .process import at_exit
from .settings import ResourceHooks
from .threads import CannotStart, make_thread, start_thread

if TYPE_CHECKING:
    from .recorder import Recorder

__all__ = [
    "REPLACED",
    "End",
    "Holding",
    "NoResource",
    "ResourcePool",
    "ResourceSource",
    "UnfitResource",
    "is_in_use",
    "join_aborts",
]

R = TypeVar("R")
T = TypeVar("T")

logger = Logger("tasker_executor")

_NEVER = float("inf")
_GLANCE = 1.0  # seconds between two looks at who is inside, when closed: a call that Ctrl-C has thrown out rings no bell
ABORT_PATIENCE = 1.0  # seconds that `abandon`, and the end of the interpreter, wait for `on_abort` hooks, in all

#: Seconds for which an idle resource that has served no task is kept, however short `max_age`. Or an idle pool would make and
#: destroy resources as fast as it can.
LEAST_REST = 1.0

AGE_JITTER = 0.1  # max_age is stretched or shortened by up to this share, so that workers do not recycle in step


class NoResource(TypeError):
    """``on_create`` returned None."""


class UnfitResource(RuntimeError):
    """A new resource failed ``check_resource`` before it had served a task; ``__cause__`` is what the check raised, if any."""


class End(enum.Enum):
    """Why a worker, or a resource of the resource pool, ends. Whatever the reason, it ends in the same way."""

    BROKEN = "its resource was broken"
    AGED = "its resource reached max_age"
    USED_UP = "its resource reached max_uses"
    RETIRED = "there was one worker too many"
    DRAINED = "the executor shut down"
    CREATION_FAILED = "its resource could not be made"  # or failed its check before it had served
    INITIALIZER_FAILED = "the initializer raised"
    CRASHED = "an exception was thrown into its thread"


#: The ends of a worker whose place somebody takes.
REPLACED = frozenset({End.BROKEN, End.AGED, End.USED_UP, End.CRASHED})


class Holding(Generic[R]):
    """One resource and what is known of it. Has one owner at a time, who alone may touch it; `abort` excepted."""

    __slots__ = (
        "_aborting",
        "_claim",
        "_given_up",
        "arguments",
        "attempt",
        "born",
        "expires",
        "fault",
        "gone",
        "good_at",
        "item",
        "kept",
        "killed",
        "last_used",
        "owner",
        "process",
        "resource",
        "rests_until",
        "uses",
    )

    def __init__(self, resource: R, expires: float, good_at: int) -> None:
        self.resource = resource
        #: What goes before a task's own arguments.
        self.arguments = (resource,)
        self.born = self.last_used = clock()
        self.expires = expires
        #: Until when it may lie idle. Its first task makes that `expires`.
        self.rests_until = max(expires, self.born + LEAST_REST)
        self.uses = 0
        #: Where it was made. In any other process, the child of a fork, it is not ours to touch.
        self.process = getpid()
        #: Does it belong to the resource pool, for the next call of ``run_now``? Or is it temporary, and the caller's alone?
        self.kept = False
        #: The count of breaks, anywhere, up to which this one is known to be good.
        self.good_at = good_at
        #: What its first check said, if that said no.
        self.fault: UnfitResource | None = None
        self._given_up = False
        self._aborting: list[Latch] = []  # one for each killer that is, or was, inside of the hook
        #: Not empty: it has been destroyed.
        self.gone: list[object] = []
        self._claim = deque([self.arguments])  # popped by whoever destroys it: its owner, or `ResourceExecutor.abandon`
        # For the resource pool, where the holding stands for the call of run_now that has it (a `Holder`).
        self.item: Any = None
        self.attempt = 1
        self.owner: object = None
        self.killed: Latch | None = None

    @property
    def name(self) -> str:
        """The thread that uses it."""
        return threading.current_thread().name

    @property
    def busy(self) -> bool:
        return self.item is not None

    @property
    def inherited(self) -> bool:
        """Is this the child of a fork, and the resource the parent's?"""
        return self.process != getpid()

    @property
    def being_aborted(self) -> bool:
        """Is a killer inside of the `on_abort` hook?"""
        return any(not latch.is_open for latch in self._aborting.copy())

    def abort(self, hook: AbortHook[R], executor: str, in_use: Callable[[], bool]) -> None:
        """Call the `on_abort` hook, from a thread that does not own the resource, while the resource is `in_use`.

        1. The killer announces itself, and then looks whether the resource is given up. 2. The owner marks the resource as
        given up, and then looks for a killer. 3. So either the killer stays away, or the owner waits for it. No resource is
        aborted once it is destroyed.
        """
        latch = Latch()
        self._aborting.append(latch)
        try:
            if not self._given_up and not self.inherited and in_use():
                hook(self.resource)
        except BaseException as error:
            if must_escape(error):
                raise
            logger.warning("executor %r: on_abort raised", executor, exc_info=True, executor=executor)
        finally:
            latch.open()

    def give_up(self, hook: DestroyHook[R], patience: float | None = None) -> bool:
        """From here on no thread aborts it. Call `hook`, unless that is done or being done; tell whether this call did.

        The owner waits for an `on_abort` hook that is being called; another thread does for `patience` seconds, and then
        leaves the resource to its owner.

        An error that comes out of `hook` is the first entry of `gone`. Any other error has been thrown in, and `gone` tells
        whether that was before `hook` was called.
        """
        if self.inherited:
            return False
        self._given_up = True
        for latch in self._aborting.copy():
            if not latch.wait(patience):
                return False
        claimed: list[tuple[R]] = []
        calling = False
        try:
            try:
                claimed.extend(islice(iter(self._claim.pop, None), 1))
            except IndexError:  # another thread has claimed it
                return False
            calling = True
            self.gone.extend(islice(starmap(hook, iter(claimed.pop, None)), 1))
            if not self.gone:  # for `extend` that was the end
                raise RuntimeError("on_destroy raised StopIteration")
        except BaseException as error:
            if calling and not claimed:  # it is the hook that raised
                self.gone.append(error)
            raise
        finally:
            self._claim.extend(claimed)  # Ctrl-C came before the hook was called
        return True


#: Threads that call, or are about to call, an `on_abort` hook.
_aborting: set[threading.Thread] = set()


def abort_all(
    targets: list[tuple[Holding[Any], Callable[[], bool]]], hook: AbortHook[Any], executor: str
) -> list[threading.Thread]:
    """Call the `on_abort` hook for each of these resources that is in use by then. Do not wait for it.

    Each is called on a thread of its own: one that hangs, in a half-open network for instance, holds up neither the killer nor
    the other hooks. There are at most as many as threads that use resources. If the system refuses a thread, those that run do
    the rest; without any, this thread does.
    """
    todo = deque(targets)

    def work() -> None:
        try:
            while todo:
                try:
                    holding, in_use = todo.popleft()
                except IndexError:  # another thread was quicker
                    break
                holding.abort(hook, executor, in_use)
        finally:
            _aborting.discard(threading.current_thread())

    threads: list[threading.Thread] = []
    for number in range(len(targets)):
        thread = make_thread(work, f"{executor}_abort_{number}")
        _aborting.add(thread)
        try:
            start_thread(thread)
        except BaseException as error:
            if thread.ident is None:
                _aborting.discard(thread)
            if not isinstance(error, CannotStart):
                raise
            if not threads:
                work()
            break
        threads.append(thread)
    return threads


def join_aborts(threads: list[threading.Thread] | None = None) -> None:
    """Wait for `on_abort` hooks, of these threads or of all, for `ABORT_PATIENCE` seconds: some may hang."""
    deadline = clock() + ABORT_PATIENCE
    for thread in list(_aborting.copy()) if threads is None else threads:
        if thread.ident is not None and thread is not threading.current_thread():
            thread.join(lock_timeout(max(0.0, deadline - clock())))


at_exit(join_aborts, last=True)  # or the interpreter stops them in the middle of a hook


class ResourceSource(Generic[R]):
    """Makes, judges and gives up resources, and counts them. Calls hooks, and so must never be called under a lock."""

    def __init__(self, name: str, hooks: ResourceHooks[R], recorder: Recorder, hub: ObserverHub) -> None:
        self.name = name
        self.hooks = hooks
        #: Must a resource be looked at around each task?
        self.needs_care = bool(hooks.check_resource or hooks.max_age is not None or hooks.max_uses is not None)
        #: Can a task's error be the resource's fault?
        self.can_break = bool(hooks.check_health or hooks.check_resource)
        self._recorder = recorder
        self._hub = hub
        # Guards the counters.
        self._lock = threading.RLock()
        self._created = 0
        #: Those made and not destroyed. One may stay if Ctrl-C comes when it is destroyed.
        self._living: set[Holding[R]] = set()
        self.breaks = 0

    def counts(self) -> tuple[int, int]:
        """How many resources have been made, and how many of these destroyed."""
        with self._lock:
            return self._created, self._created - sum(not holding.gone for holding in self._living.copy())

    def create(
        self,
        worker: str | None,
        keep: Callable[[Holding[R]], object] | None = None,
        blame: list[BaseException] | None = None,
    ) -> Holding[R]:
        """Make a resource on this thread. `keep` notes it down for whoever is to destroy it, should we not come to return it.

        Raises what ``on_create`` raises, and NoResource if it returns None. These errors, and not what a signal handler throws
        in before or after ``on_create``, are appended to `blame`.
        """
        begun = clock()
        good_at = self.breaks
        made: list[R] = []
        holding: Holding[R] | None = None
        try:
            call = starmap(self.hooks.on_create, ((),))
            try:
                made.extend(call)
                if not made:  # for `extend` that was the end
                    raise RuntimeError("on_create raised StopIteration")
                if made[0] is None:
                    raise NoResource(
                        f"executor {self.name!r}: on_create returned None; "
                        "return the resource, or use initializer= for set-up without one"
                    )
            except BaseException as error:
                if blame is not None and (not made or made[0] is None):
                    blame.append(error)
                raise
            seconds = clock() - begun
            holding = Holding(made[0], self._expiry(), good_at)
            self._count(holding)
            if keep is not None:
                keep(holding)
            self._recorder.add_creation(seconds)
            if self._hub.hears("resource_created"):
                self._hub.tell("resource_created", ResourceEvent(self.name, worker, seconds))
            return holding
        except BaseException:  # thrown in, or of `on_create`
            if made and made[0] is not None:
                holding = holding or Holding(made[0], _NEVER, good_at)
                self._count(holding)
                self.destroy(holding, worker)
            raise

    def _expiry(self) -> float:
        max_age = self.hooks.max_age
        return _NEVER if max_age is None else clock() + max_age * random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)

    def _count(self, holding: Holding[R]) -> None:
        with self._lock:
            if holding not in self._living:
                self._created += 1
                self._living.add(holding)

    def destroy(self, holding: Holding[R], worker: str | None, patience: float | None = None) -> None:
        """Give a resource up, unless that is done. An ``on_destroy`` that raises is logged and costs nothing else.

        `patience`: see `Holding.give_up`.
        """
        begun = clock()
        failure = None
        try:
            if not holding.give_up(self.hooks.on_destroy or _do_nothing, patience):
                return
        except BaseException as error:
            if not (holding.gone and holding.gone[0] is error) or must_escape(error):  # thrown in, beside the hook
                raise
            failure = error
            logger.exception(
                "executor %r: on_destroy raised; the resource counts as destroyed",
                self.name,
                executor=self.name,
                worker=worker,
            )
        finally:
            if holding.gone:
                self._living.discard(holding)
        if self._hub.hears("resource_destroyed"):
            self._hub.tell("resource_destroyed", ResourceEvent(self.name, worker, clock() - begun, failure))

    def is_broken_after(self, error: BaseException, holding: Holding[R]) -> bool:
        """A task raised `error`: is the resource broken? A check that raises says yes."""
        check_health = self.hooks.check_health
        broken = False
        if check_health is not None:
            try:
                broken = not check_health(error)
            except BaseException as raised:
                if must_escape(raised):
                    raise
                logger.warning(
                    "executor %r: check_health raised; the resource counts as broken",
                    self.name,
                    exc_info=True,
                    executor=self.name,
                )
                broken = True
        if broken:
            self.count_break()
            return True
        return self.hooks.check_resource is not None and not self.passes_check(holding)

    def passes_check(self, holding: Holding[R]) -> bool:
        """Ask ``check_resource``. A check that raises says no."""
        check_resource = self.hooks.check_resource
        if check_resource is None:
            return True
        good_at = self.breaks
        raised: BaseException | None = None
        try:
            passed = bool(check_resource(holding.resource))
        except BaseException as error:
            if must_escape(error):
                raise
            raised = error
            logger.warning(
                "executor %r: check_resource raised; the resource counts as broken",
                self.name,
                exc_info=True,
                executor=self.name,
            )
            passed = False
        if passed:
            holding.good_at = good_at
            holding.last_used = clock()
        else:
            self.count_break()
            if not holding.uses:
                holding.fault = self._fault(raised)
            raised = None
        return passed

    def _fault(self, raised: BaseException | None) -> UnfitResource:
        what = "returned no" if raised is None else f"raised {safe_repr(raised)}"
        fault = UnfitResource(f"check_resource {what} for a new resource, which has served no task")
        # Without the frame of ours, which holds what holds this error.
        fault.__cause__ = None if raised is None else drop_frame(raised)
        return fault

    def count_break(self) -> None:
        """A resource is broken: every other one is under suspicion until it has been checked."""
        with self._lock:
            self.breaks += 1

    def unfit(self, holding: Holding[R], *, doubt: bool = False) -> End | None:
        """May the resource serve another task? None if so. Asks ``check_resource`` only where there is reason for doubt.

        A resource that has served no task and fails its check is a failed creation: `End.CREATION_FAILED`, and
        `Holding.fault` says why. As a broken one it would be replaced at once, and so would its successor, without end.
        """
        now = clock()
        if now >= holding.expires and holding.uses:  # however short its age, it serves one task
            return End.AGED
        if self.used_up(holding):
            return End.USED_UP
        in_doubt = doubt or holding.good_at != self.breaks or now - holding.last_used > self.hooks.check_after_idle
        if in_doubt and not self.passes_check(holding):
            return End.BROKEN if holding.uses else End.CREATION_FAILED
        return None

    def used_up(self, holding: Holding[R]) -> bool:
        """Has it served ``max_uses`` tasks?"""
        return self.hooks.max_uses is not None and holding.uses >= self.hooks.max_uses

    def reinit_after_fork(self) -> None:
        self._lock = threading.RLock()


class _Place:
    """What a resource pool knows of one thread, or of one greenlet where `threading.local` is that of a greenlet."""

    __slots__ = ("__weakref__", "calls", "here", "ident", "waiting")

    def __init__(self) -> None:
        self.here = current.here
        self.ident = get_ident()
        #: How many calls of the pool's methods are under way on this thread, one inside of the other. By ``+=`` and ``-=``, not
        #: by what was there before: several greenlets may share the place, if gevent has patched after our import.
        self.calls = 0
        #: How many of them wait in `wait_until_returned`.
        self.waiting = 0

    @property
    def thread(self) -> threading.Thread | None:
        """The thread; None if `threading` does not know it."""
        # Not `threading.enumerate`, which takes a lock: a signal handler that shuts down may have interrupted the holder.
        return threading._active.get(self.ident)  # type: ignore[attr-defined, no-any-return]  # not in typeshed


class _Places(threading.local):
    """The place of each thread. Made by `ResourcePool._arrive`: an ``__init__`` here could be met half done by a handler."""

    mine: _Place | None = None


class ResourcePool(Generic[R]):
    """The few resources kept for ``run_now``, and the temporary ones. Those kept are used from whichever thread calls.

    The free ones lie on a stack: the one used last is used next. `pop` and `append` are atomic, so a resource that is taken
    belongs to the taker, and no lock is needed. A temporary resource never lies there: its caller makes, uses and destroys it.

    **Who is inside?** The thread that closes the pool must wait for calls that still have a resource, or are about to.

    1. A call counts itself in its thread's `_Place`, then looks for a free resource, and only then whether the pool is closed.
    2. The closer marks the pool as closed, empties the stack, and then looks at the places.
    3. So either the closer sees the call, or the call finds the stack empty and sees that the pool is closed. The lock inside
       of the deque keeps this order without the GIL, too.

    A place that is counted up is counted down: see "Errors thrown in" above. If a thread ends in between (a greenlet that is
    never resumed), its place ends with it, since `_places` refers to places weakly.

    A call that is thrown out twice, by a second error while it gives its resource back, may leave the resource in no place but
    `_all`. Whoever sees, after the end, that no thread is inside, destroys what is left there.
    """

    def __init__(
        self,
        source: ResourceSource[R],
        size: int,
        owner: object,
        killed: Latch,
        max_retries: int,
        refusal: Callable[[], Exception],
    ) -> None:
        self._source = source
        self._care = source.needs_care
        self._size = size
        self._owner = owner
        self._killed = killed
        self._max_retries = max_retries
        self._refusal = refusal
        self._set_free(deque())
        #: All there are: free, in use, temporary.
        self._all: set[Holding[R]] = set()
        self._closed = False
        self._process = getpid()
        self._local = _Places()
        self._places: set[weakref.ref[_Place]] = set()
        self._returned = Bell()  # rung, once closed, when a call is over
        self._aborts: list[threading.Thread] = []

    def _set_free(self, free: deque[Holding[R]]) -> None:
        self._free = free
        # ``for holding in takes: break`` pops the top into the variable, or raises IndexError; `drops` pops from the bottom.
        self._takes: Iterator[Holding[R]] = map(deque[Holding[R]].pop, repeat(free))
        self._drops: Iterator[Holding[R]] = map(deque[Holding[R]].popleft, repeat(free))

    def _arrive(self) -> _Place:
        """This thread comes here for the first time."""
        place = _Place()
        self._places.add(weakref.ref(place, self._places.discard))
        self._local.mine = place
        return place

    def fill(self) -> None:
        """Make the resources, on this thread. If one fails, those made are destroyed and the error is raised."""
        try:
            for _ in range(self._size):
                hand: list[Holding[R]] = []
                self._create(hand)
                self._put_down(hand, False)
        except BaseException:
            self.close()
            self._destroy_all(self._local.mine or self._arrive())  # what is in hand
            raise

    @property
    def available(self) -> int:
        """How many resources are free."""
        return len(self._free)

    @property
    def in_use(self) -> list[Holding[R]]:
        """Those that a call of ``run_now`` has in hand."""
        return [holding for holding in self._all.copy() if holding.item is not None]

    def run(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], max_retries: int | None) -> T:
        """Call `fn` with a resource, as the current task of this thread; again with another, if the resource broke."""
        if kwargs:
            fn = partial(fn, **kwargs)
        care, retries = self._care, 0
        place = self._local.mine or self._arrive()
        here = place.here
        before = here.holder
        place.calls += 1
        try:
            while True:
                holding: Any = None  # Holding[R] | None, without the tests that a checker would ask for
                hand: list[Holding[R]] | None = None  # holds it where a step more is to do than to put it back
                broken = care  # until it is found fit: a check that is interrupted says nothing
                try:
                    if care:
                        hand = []
                        self._take(hand)
                        broken = False
                    else:
                        try:
                            for holding in self._takes:  # noqa: B007  # in one step, see "Errors thrown in"
                                break
                        except IndexError:
                            hand = []
                    if hand is not None:
                        if not hand:
                            if self._closed and not retries:  # asked late, but when `shutdown` can see that we are inside
                                raise self._refusal()
                            self._create(hand)
                        [holding] = hand
                    holding.item = fn
                    holding.attempt = 1 + retries
                    here.holder = holding
                    try:
                        return fn(*(holding.arguments + args))
                    except BaseException as error:
                        holding.item = None
                        if not isinstance(error, Exception):
                            holding.good_at = -1  # interrupted half-way: look at the resource before it is used again
                            raise
                        if not self._source.can_break or holding.inherited:
                            raise
                        hand, broken = [holding], True  # until it is judged
                        broken = self._source.is_broken_after(error, holding)
                        if not broken:
                            raise
                        if retries >= (self._max_retries if max_retries is None else max_retries) or self._killed.is_open:
                            note_giving_up(error, retries)
                            raise
                        retries += 1
                finally:
                    here.holder = before
                    if hand is not None:
                        try:
                            self._give_back(hand, broken)
                        finally:
                            if hand:  # an error was thrown in: once more
                                self._give_back(hand, broken)
                    elif holding is not None:
                        holding.item = None
                        self._free.append(holding)
        finally:
            place.calls -= 1
            if self._closed:
                self._leave(place)

    def _take(self, hand: list[Holding[R]]) -> None:
        """Take a free resource that is fit to use in hand, if there is one."""
        while True:
            holding: Holding[R] | None = None
            try:
                for holding in self._takes:  # noqa: B007  # as in `run`
                    break
            except IndexError:
                return
            assert holding is not None
            hand.append(holding)
            # Unlike a worker's, one that has not served yet may be too old as well: it may have lain here for hours.
            if clock() < holding.expires and self._source.unfit(holding) is None:
                return
            self._destroy(holding)
            hand.clear()

    def _create(self, hand: list[Holding[R]]) -> None:
        """Make a resource and take it in hand. Raises ResourceCreationError if `on_create` fails."""
        blame: list[BaseException] = []
        try:
            self._source.create(None, partial(self._keep, hand), blame)
        except Exception as error:
            if not any(error is one for one in blame):  # thrown in
                raise
            raise ResourceCreationError(f"executor {self._source.name!r}: cannot make a resource for run_now") from error

    def _keep(self, hand: list[Holding[R]], holding: Holding[R]) -> None:
        holding.owner, holding.killed = self._owner, self._killed
        with self._source._lock:  # or two calls would see the same vacancy
            # First in, then counted: a signal handler that interrupts this thread here, and makes one, too, counts it as well.
            holding.kept = self._size > 0
            self._all.add(holding)
            if self._count_kept() > self._size:
                holding.kept = False
        hand.append(holding)

    def _count_kept(self) -> int:
        return sum(holding.kept and not holding.gone for holding in self._all.copy())

    def _destroy(self, holding: Holding[R]) -> None:
        try:
            self._source.destroy(holding, None)
        finally:
            if holding.gone:
                self._all.discard(holding)

    def _give_back(self, hand: list[Holding[R]], broken: bool) -> None:
        """Keep what is in hand for the next call. Or destroy it: it is temporary, broken or used up. Then the hand is empty."""
        if not hand:
            return
        [holding] = hand
        holding.item = None
        if self._care:
            holding.uses += 1
            holding.last_used = clock()
            broken = broken or self._source.used_up(holding)
        self._put_down(hand, broken)
        if holding.gone and holding.kept and not self._closed:
            with self._source._lock:
                vacant = self._count_kept() < self._size
            if vacant:
                self._refill()

    def _put_down(self, hand: list[Holding[R]], broken: bool) -> None:
        """Put what is in hand on the stack, or destroy it. If an error is thrown in, this may be called once more."""
        for holding in hand:
            if holding.kept and not broken and not holding.gone:
                self._free.extend(islice(iter(hand.pop, None), 1))  # in one step of the interpreter
            else:
                self._destroy(holding)
                hand.clear()

    def _refill(self) -> None:
        """Replace a resource of the pool. If `on_create` fails, a later call tries again."""
        hand: list[Holding[R]] = []
        blame: list[BaseException] = []
        try:
            self._source.create(None, partial(self._keep, hand), blame)
        except BaseException as error:
            if not any(error is one for one in blame) or must_escape(error):
                raise
            logger.warning(
                "executor %r: cannot replace a resource of the resource pool yet",
                self._source.name,
                exc_info=True,
                executor=self._source.name,
            )
        finally:
            try:
                self._put_down(hand, False)  # destroys it if another call was quicker
            finally:
                if hand:
                    self._put_down(hand, False)

    def _destroy_free(self, place: _Place) -> None:
        """Empty the stack, for the pool is closed."""
        place.calls += 1  # another closer waits until the hooks have returned
        try:
            while True:
                holding: Holding[R] | None = None
                try:
                    for holding in self._drops:  # noqa: B007  # as in `run`
                        break
                except IndexError:
                    return
                assert holding is not None
                self._destroy(holding)
        finally:
            place.calls -= 1
            self._returned.ring()

    def _destroy_all(self, place: _Place) -> None:
        """No thread is inside, and the stack is empty: destroy what is left, or an end that was interrupted."""
        place.calls += 1
        try:
            for holding in self._all.copy():
                self._destroy(holding)
        finally:
            place.calls -= 1
            self._returned.ring()

    def _leave(self, place: _Place) -> None:
        """A call is over, and the pool is closed."""
        self._destroy_free(place)  # and ring
        if not place.calls and self._all and not self._others(place):
            self._destroy_all(place)

    def close(self) -> None:
        """Destroy the free resources; those in use follow when they are given back."""
        self._closed = True
        self._destroy_free(self._local.mine or self._arrive())

    def abort(self, hook: AbortHook[R], targets: list[tuple[Holding[R], Callable[[], bool]]]) -> None:
        """Have `on_abort` called for `targets`, and for what calls of ``run_now`` have in hand. Do not wait for it."""
        targets = targets + [(holding, partial(is_in_use, holding, holding.item)) for holding in self.in_use]
        # A second `kill` calls each hook again, unless it still hangs.
        targets = [(holding, in_use) for holding, in_use in targets if not holding.being_aborted]
        self._aborts += abort_all(targets, hook, self._source.name)

    def abandon(self, owned: list[tuple[Holding[R], str]]) -> None:
        """After `abort`: destroy what calls of ``run_now`` have in hand, and these resources that workers own.

        Each hook `on_abort` gets a moment to return first. A resource that is being aborted afterwards is left to its owner: to
        destroy it under the hook is what no hook expects, and to wait for a hook that hangs would keep all the others.
        """
        join_aborts(self._aborts)
        place = self._local.mine or self._arrive()
        place.calls += 1  # `shutdown` waits until the hooks have returned
        try:
            temporary = [(holding, None) for holding in self._all.copy()]
            for holding, worker in owned + temporary:
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

    def callers(self) -> list[str]:
        """The names of other threads that are inside."""
        inside = self._others(self._local.mine or self._arrive())
        return [str(place.ident) if place.thread is None else place.thread.name for place in inside]

    def _others(self, mine: _Place, *, inside: bool = False, daemons: bool = True) -> list[_Place]:
        """Return the places of other threads that are inside.

        Asked `inside` of a call, leave out those that wait in `wait_until_returned`: each of two calls would wait for the
        other's end. Without `daemons`, leave out threads that the end of the interpreter does not wait for.
        """
        others: list[_Place] = []
        for ref in self._places.copy():
            place = ref()
            if place is None or place is mine or not place.calls or (inside and place.waiting):
                continue
            if not daemons and (place.thread is None or place.thread.daemon):
                continue
            others.append(place)
        return others

    def wait_until_returned(self, deadline: float | None, *, daemons: bool = True) -> bool:
        """After `close`: block until no other thread has a resource, and none is left; tell whether that was by `deadline`.

        Inside of a call of ``run_now``, which goes on afterwards, its own resource is left. Without `daemons`, so are those of
        daemon threads.
        """
        if self._process != getpid():  # the child of a fork: the threads are not here
            return True
        place = self._local.mine or self._arrive()
        inside = place.calls > 0
        place.waiting += 1
        try:
            if inside:
                self._returned.ring()  # another call that waits in here need not wait for this one
            return self._wait(place, inside, deadline, daemons)
        finally:
            place.waiting -= 1

    def _wait(self, place: _Place, inside: bool, deadline: float | None, daemons: bool) -> bool:
        returned: Latch | None = None
        swept = False
        while True:
            if returned is None or returned.is_open:
                returned = self._returned.listen()  # and look again, before the wait
            if self._free:  # `close` has been interrupted; or a call, after it had given its resource back
                self._destroy_free(place)
            if not self._others(place, inside=inside, daemons=daemons):
                if inside or swept or not self._all or (not daemons and self._others(place)):
                    return True
                self._destroy_all(place)
                swept = True  # look again: another thread may be destroying the same
                continue
            swept = False
            remaining = _GLANCE if deadline is None else deadline - clock()
            if remaining <= 0:
                return False
            returned.wait(min(remaining, _GLANCE))

    def reinit_after_fork(self) -> None:
        """In the child: they are all the parent's."""
        self._closed = True
        self._set_free(deque())
        self._all.clear()
        self._local = _Places()
        self._places = set()


def is_in_use(holder: Any, item: object) -> bool:
    """Does a worker, or a call of ``run_now``, still run that task?"""
    return (holder.item if isinstance(holder, Holding) else holder.task) is item


def _do_nothing(resource: object) -> None:
    """The `on_destroy` of those who gave none."""


def note_giving_up(error: BaseException, retries: int) -> None:
    """Say in the error of a task's last attempt how many there were, if there were more."""
    if not retries:
        return
    add_note(error, f"gave up after {retries} retries; the resource was unhealthy each time")
