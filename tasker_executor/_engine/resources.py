"""Make, judge, check and give up resources.

One resource in hand is in `holding`, the resources of ``run_now`` are in `reserve`.

A resource is made and noted down in one step, which no error thrown in can split: see `_sync`.
"""

from __future__ import annotations

import enum
import random
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from .._report import Logger, add_note, drop_frame, must_escape, safe_repr
from .._sync import clock, takes
from ..observers import ObserverHub, ResourceEvent
from .holding import Holding
from .settings import ResourceHooks

__all__ = ["REPLACED", "End", "NoResource", "ResourceSource", "UnfitResource", "note_giving_up"]

R = TypeVar("R")

logger = Logger("tasker_executor")

_NEVER = float("inf")

#: A resource lives for `max_age`, longer or shorter by up to this share. So workers do not recycle in step.
AGE_JITTER = 0.1


class NoResource(TypeError):
    """``on_create`` returned None."""


class UnfitResource(RuntimeError):
    """A new resource failed ``check_resource`` before it had served a task.

    ``__cause__`` is what the check raised, if it raised.
    """


class End(enum.Enum):
    """Why a worker, or a resource of the reserve, ends. Whatever the reason, it ends in the same way."""

    BROKEN = "its resource was broken"
    AGED = "its resource reached max_age"
    USED_UP = "its resource reached max_uses"
    RETIRED = "there was one worker too many"
    DRAINED = "the executor shut down"
    CREATION_FAILED = "its resource could not be made"  # or failed its check before it had served
    INITIALIZER_FAILED = "the initializer raised"
    CRASHED = "an exception was thrown into its thread"


#: The ends of a worker whose place a successor takes.
REPLACED = frozenset({End.BROKEN, End.AGED, End.USED_UP, End.CRASHED})


class CreationLog(Protocol):
    """What a `ResourceSource` needs of the recorder."""

    def add_creation(self, seconds: float) -> None:
        """Note how long the making of a resource took."""
        ...


class ResourceSource(Generic[R]):
    """Makes, judges and gives up resources, and counts them.

    It calls hooks, so no thread may call it under a lock.
    """

    def __init__(self, name: str, hooks: ResourceHooks[R], recorder: CreationLog, hub: ObserverHub) -> None:
        self.name = name
        self.hooks = hooks
        #: Whether a resource must be looked at around each task.
        self.needs_care = bool(hooks.check_resource or hooks.max_age is not None or hooks.max_uses is not None)
        #: Whether a task's error can be the resource's fault.
        self.can_break = bool(hooks.check_health or hooks.check_resource)
        #: How many resources have turned out to be broken.
        self.breaks = 0
        self._recorder = recorder
        self._hub = hub
        #: Guards the counters, and which resources a reserve keeps.
        self.lock = threading.RLock()
        self._created = 0
        #: The resources made and not destroyed. One may stay here if Ctrl-C comes while it is destroyed.
        self._living: set[Holding[R]] = set()

    def counts(self) -> tuple[int, int]:
        """Return how many resources have been made, and how many of these have been destroyed."""
        with self.lock:
            return self._created, self._created - sum(not holding.gone for holding in self._living.copy())

    def create(
        self,
        worker: str | None,
        keep: Callable[[Holding[R]], object] | None = None,
        blame: list[BaseException] | None = None,
    ) -> Holding[R]:
        """Make a resource on this thread.

        `keep` notes it down for its owner, in case an error that is thrown in keeps this call from returning
        it. Raises what ``on_create`` raises, and NoResource if it returns None. These errors are appended to
        `blame`. An error that a signal handler throws in before or after ``on_create`` is not.
        """
        begun = clock()
        good_at = self.breaks
        made: list[R] = []
        holding: Holding[R] | None = None
        try:
            call = takes(self.hooks.on_create, times=1)  # before the `try`: an error here is not `on_create`'s
            try:
                made.extend(call)
                if not made:  # StopIteration is the end of an iterator
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
        except BaseException:  # the error was thrown in, or comes from `on_create`
            if made and made[0] is not None:
                holding = holding or Holding(made[0], _NEVER, good_at)
                self._count(holding)
                self.destroy(holding, worker)
            raise

    def _expiry(self) -> float:
        max_age = self.hooks.max_age
        return _NEVER if max_age is None else clock() + max_age * random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)

    def _count(self, holding: Holding[R]) -> None:
        with self.lock:
            if holding not in self._living:
                self._created += 1
                self._living.add(holding)

    def destroy(self, holding: Holding[R], worker: str | None, patience: float | None = None) -> None:
        """Give a resource up, unless that is done.

        An ``on_destroy`` that raises is logged, and has no other effect. `patience`: see `Holding.give_up`.
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
        """Return whether the resource is broken, after a task raised `error`. It is if a check raises."""
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
        """Return the answer of ``check_resource``. A check that raises says no."""
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
        # Without our own frame: it holds the holding, which holds this error.
        fault.__cause__ = None if raised is None else drop_frame(raised)
        return fault

    def count_break(self) -> None:
        """Count a broken resource. Every other resource is in doubt until it has been checked."""
        with self.lock:
            self.breaks += 1

    def unfit(self, holding: Holding[R], *, doubt: bool = False) -> End | None:
        """Return why the resource must not serve another task; None if it may.

        ``check_resource`` is asked only where there is reason for doubt. A resource that has served no task
        and fails its check is a failed creation: `End.CREATION_FAILED`, and `Holding.fault` says why. As a
        broken resource it would be replaced at once, and so would its successor, without end.
        """
        now = clock()
        if now >= holding.expires and holding.uses:  # it serves one task, even if `max_age` is very short
            return End.AGED
        if self.used_up(holding):
            return End.USED_UP
        in_doubt = doubt or holding.good_at != self.breaks or now - holding.last_used > self.hooks.check_after_idle
        if in_doubt and not self.passes_check(holding):
            return End.BROKEN if holding.uses else End.CREATION_FAILED
        return None

    def used_up(self, holding: Holding[R]) -> bool:
        """Return whether the resource has served ``max_uses`` tasks."""
        return self.hooks.max_uses is not None and holding.uses >= self.hooks.max_uses

    def reinit_after_fork(self) -> None:
        """Take a new lock, in the child of a fork: another thread of the parent may have held the old one."""
        self.lock = threading.RLock()


def _do_nothing(resource: object) -> None:
    """Do nothing: the `on_destroy` of an executor without one."""


def note_giving_up(error: BaseException, retries: int) -> None:
    """Say in the error of a task's last attempt how many retries there were, if there were any."""
    if not retries:
        return
    add_note(error, f"gave up after {retries} retries; the resource was unhealthy each time")
