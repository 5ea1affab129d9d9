"""Making, checking and giving up resources: for workers, which own one each, and for the resource pool of ``run_now``.

**Ctrl-C.** A call of ``run_now`` runs on the caller's thread, where KeyboardInterrupt may come between any two steps of the
interpreter; in the middle of a call into C it may not. So what must not come apart is one such call: a resource is made and
noted down, or claimed and handed to ``on_destroy``, in one step each.
"""

from __future__ import annotations

import enum
import random
import sys
import threading
from _thread import get_ident
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice, starmap
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._current import current
from ._report import Logger, add_note, drop_frame, safe_repr
from ._types import AbortHook, Bell, CreateHook, DestroyHook, HealthHook, Latch, ResourceHook, clock, must_escape
from .exceptions import ResourceCreationError
from .observers import ObserverHub, ResourceEvent

if TYPE_CHECKING:
    from ._recorder import Recorder

__all__ = ["REPLACED", "End", "Holding", "NoResource", "ResourceHooks", "ResourcePool", "ResourceSource", "UnfitResource"]

R = TypeVar("R")
T = TypeVar("T")

logger = Logger(__name__)

_NEVER = float("inf")
_GLANCE = 1.0  # seconds between two looks at who is inside, when closed: a call that Ctrl-C has thrown out rings no bell

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


@dataclass(frozen=True)
class ResourceHooks(Generic[R]):
    """What the user told us about resources."""

    on_create: CreateHook[R]
    on_destroy: DestroyHook[R] | None
    check_health: HealthHook | None
    check_resource: ResourceHook[R] | None
    check_after_idle: float
    max_age: float | None
    max_uses: int | None
    on_abort: AbortHook[R] | None


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
        "killed",
        "last_used",
        "owner",
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

    def abort(self, hook: AbortHook[R], executor: str) -> None:
        """Call the `on_abort` hook, from a thread that does not own the resource, unless it is given up already.

        The killer announces itself first and looks afterwards; the owner marks the resource as given up first and looks for a
        killer afterwards. So either the killer stays away or the owner waits for it: no resource is aborted once it is
        destroyed.
        """
        latch = Latch()
        self._aborting.append(latch)
        try:
            if not self._given_up:
                hook(self.resource)
        except BaseException as error:
            if must_escape(error):
                raise
            logger.warning("executor %r: on_abort raised", executor, exc_info=True, executor=executor)
        finally:
            latch.open()

    def give_up(self, hook: DestroyHook[R]) -> bool:
        """From here on nobody aborts it. Call `hook`, unless that is done or being done; tell whether."""
        self._given_up = True
        for latch in self._aborting.copy():
            latch.wait()
        claimed: list[tuple[R]] = []
        calling = False
        try:
            try:
                claimed.extend(islice(iter(self._claim.pop, None), 1))
            except IndexError:  # somebody else has claimed it
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

    def create(self, worker: str | None, keep: Callable[[Holding[R]], object] | None = None) -> Holding[R]:
        """Make a resource on this thread. `keep` notes it down for whoever is to destroy it, should we not come to return it.

        Raises what ``on_create`` raises, and NoResource if it returns None.
        """
        begun = clock()
        good_at = self.breaks
        made: list[R] = []
        holding: Holding[R] | None = None
        try:
            made.extend(starmap(self.hooks.on_create, ((),)))
            if not made:  # for `extend` that was the end
                raise RuntimeError("on_create raised StopIteration")
            seconds = clock() - begun
            if made[0] is None:
                raise NoResource(
                    f"executor {self.name!r}: on_create returned None; "
                    "return the resource, or use initializer= for set-up without one"
                )
            holding = Holding(made[0], self._expiry(), good_at)
            self._count(holding)
            if keep is not None:
                keep(holding)
            self._recorder.add_creation(seconds)
            if self._hub.hears("resource_created"):
                self._hub.tell("resource_created", ResourceEvent(self.name, worker, seconds))
            return holding
        except BaseException:
            if made and made[0] is not None:  # Ctrl-C
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

    def destroy(self, holding: Holding[R], worker: str | None) -> None:
        """Give a resource up, unless that is done. An ``on_destroy`` that raises is logged and costs nothing else."""
        begun = clock()
        failure = None
        try:
            if not holding.give_up(self.hooks.on_destroy or _do_nothing):
                return
        except BaseException as error:
            if must_escape(error) or not holding.gone:  # not the hook's: it was thrown into this thread, before the hook ran
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


class ResourcePool(Generic[R]):
    """The few resources kept for ``run_now``. They are used from whichever thread calls.

    The free ones lie on a stack: the one used last is used next. `pop` and `append` are atomic, so a resource that is taken
    belongs to the taker, and no lock is needed. A call that Ctrl-C interrupts in between may leave its resource in no place but
    `_all`: who closes the pool looks which threads are inside of `run`, waits for those, and destroys what is left.
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
        self._free: deque[Holding[R]] = deque()
        #: All there are: free, in use, temporary.
        self._all: set[Holding[R]] = set()
        self._closed = False
        #: There are temporary ones, or the pool is closed: who gives one back has to look for what is one too many.
        self._untidy = False
        self._returned = Bell()  # rung, once closed, when a call is over

    def fill(self) -> None:
        """Make the resources, on this thread. If one fails, those made are destroyed and the error is raised."""
        try:
            for _ in range(self._size):
                self._free.append(self._create())
        except BaseException:
            self.close()
            self._destroy_all()
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
        free, care, here, retries = self._free, self._care, current.here, 0
        before = here.holder
        while True:
            holding: Holding[R] | None = None
            broken = False
            try:
                try:
                    holding = self._take() if care else free.pop()
                except IndexError:
                    if self._closed and not retries:  # asked late, but when `shutdown` can see that we are inside
                        raise self._refusal() from None
                    holding = self._create()
                holding.item = fn
                holding.attempt = 1 + retries
                here.holder = holding
                return fn(*(holding.arguments + args))
            except BaseException as error:
                if holding is None:
                    raise
                holding.item = None
                if not isinstance(error, Exception):
                    holding.good_at = -1  # interrupted half-way: look at the resource before it is used again
                    raise
                broken = self._source.can_break and self._source.is_broken_after(error, holding)
                if not broken:
                    raise
                if retries >= (self._max_retries if max_retries is None else max_retries) or self._killed.is_open:
                    note_giving_up(error, retries)
                    raise
                retries += 1
            finally:
                here.holder = before
                if holding is not None:
                    holding.item = None
                    if care or broken:
                        self._give_back(holding, broken)
                    else:
                        free.append(holding)
                        if self._untidy:
                            self._clear_up()
                elif self._closed:
                    self._returned.ring()

    def _take(self) -> Holding[R]:
        """Return a free resource that is fit to use. Raises IndexError if there is none."""
        while True:
            holding = self._free.pop()
            fit = False
            try:
                # Unlike a worker's, one that has not served yet may be too old as well: it may have lain here for hours.
                fit = clock() < holding.expires and self._source.unfit(holding) is None
            finally:  # Ctrl-C in the check
                if not fit:
                    self._destroy(holding)
            if fit:
                return holding

    def _create(self) -> Holding[R]:
        try:
            return self._source.create(None, self._keep)
        except Exception as error:
            raise ResourceCreationError(f"executor {self._source.name!r}: cannot make a resource for run_now") from error

    def _keep(self, holding: Holding[R]) -> None:
        holding.owner, holding.killed = self._owner, self._killed
        self._all.add(holding)
        if len(self._all) > self._size:
            self._untidy = True

    def _destroy(self, holding: Holding[R]) -> None:
        try:
            self._source.destroy(holding, None)
        finally:
            if holding.gone:
                self._all.discard(holding)

    def _give_back(self, holding: Holding[R], broken: bool) -> None:
        """Keep the resource for the next call. Or destroy it: it is broken or used up."""
        if self._care:
            holding.uses += 1
            holding.last_used = clock()
            broken = broken or self._source.used_up(holding)
        if not broken:
            self._free.append(holding)
        else:
            self._destroy(holding)
            if len(self._all) < self._size and not self._closed:
                self._refill()
        self._clear_up()

    def _clear_up(self) -> None:
        """A resource has come back: it may be one too many, or too late. Looked at last: whoever comes last clears up."""
        self._untidy = False  # first: whoever makes one from here on sets it again
        if self._closed or len(self._all) > self._size:
            self._untidy = True
        if self._closed:
            self._destroy_free()
            self._returned.ring()
        else:
            self._destroy_free(keep=self._size)

    def _refill(self) -> None:
        try:
            self._free.append(self._create())
        except ResourceCreationError:
            logger.warning(
                "executor %r: cannot replace a resource of the resource pool yet",
                self._source.name,
                exc_info=True,
                executor=self._source.name,
            )

    def _destroy_free(self, keep: int = 0) -> None:
        while len(self._free) > keep:
            try:
                holding = self._free.popleft()
            except IndexError:
                return
            self._destroy(holding)

    def reinit_after_fork(self) -> None:
        """In the child: they are all the parent's."""
        self._closed = True
        self._free = deque()  # another one: the call that has forked gives its resource back to the old one
        self._all.clear()

    def close(self) -> None:
        """Destroy the free resources; those in use follow when they are given back."""
        self._closed = self._untidy = True
        try:
            self._destroy_free()
        finally:
            self._returned.ring()

    def abandon(self) -> None:
        """Destroy what calls of ``run_now`` have in hand."""
        for holding in self._all.copy():
            self._source.destroy(holding, None)

    def threads_inside(self) -> set[int]:
        """The threads that are inside of `run`, or of `close`."""
        inside: set[int] = set()
        for thread, top in sys._current_frames().items():
            frame: FrameType | None = top
            while frame is not None and not (frame.f_code in _INSIDE and frame.f_locals["self"] is self):
                frame = frame.f_back
            if frame is not None:
                inside.add(thread)
        return inside

    def wait_until_returned(self, deadline: float | None) -> bool:
        """After `close`: block until no other thread has a resource, and none is left; tell whether that was by `deadline`."""
        me = get_ident()
        returned: Latch | None = None
        while True:
            if returned is None or returned.is_open:
                returned = self._returned.listen()  # and look again, before the wait
            inside = self.threads_inside()
            if inside == {me}:  # a call of our own, which goes on afterwards
                return True
            if not inside and not self.in_use:
                self._destroy_all()
                return True
            remaining = _GLANCE if deadline is None else deadline - clock()
            if remaining <= 0:
                return False
            returned.wait(min(remaining, _GLANCE))

    def _destroy_all(self) -> None:
        """Nobody uses one any more: destroy what Ctrl-C has left, and make an end that it has interrupted."""
        self._free.clear()
        for holding in self._all.copy():
            self._destroy(holding)


_INSIDE = {ResourcePool.run.__code__, ResourcePool.close.__code__}


def _do_nothing(resource: object) -> None:
    """The `on_destroy` of those who gave none."""


def note_giving_up(error: BaseException, retries: int) -> None:
    """Say in the error of a task's last attempt how many there were, if there were more."""
    if not retries:
        return
    add_note(error, f"gave up after {retries} retries; the resource was unhealthy each time")
