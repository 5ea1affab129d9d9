"""Make, judge, check and give up resources.

One resource in hand is in `holding`, the resources of ``run_now`` are in `stock`.

A resource is made and noted down in one step, which no error thrown in can split: see `_sync`.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, Protocol, TypeVar

from .._hub import ObserverHub
from .._report import Logger, drop_frame, must_escape, safe_repr
from .._sync import clock, takes
from ..factory import NoResource, Verdict
from .holding import Holding
from .hooks import ResourceHooks, not_a_resource

__all__ = ["REPLACED", "End", "NoResource", "ResourceSource", "UnfitResource"]

R = TypeVar("R")

logger = Logger("tasker_executor")

_NEVER = float("inf")

#: A resource lives for `max_age`, longer or shorter by up to this share. So workers do not recycle in step.
AGE_JITTER = 0.1


class UnfitResource(RuntimeError):
    """A new resource failed ``check_resource`` before it had served a task.

    ``__cause__`` is what the check raised, if it raised.
    """


class End(enum.Enum):
    """Why a worker, or a resource of the reserve, ends. Whatever the reason, it ends in the same way."""

    BROKEN = "its resource was broken"
    AGED = "its resource reached max_age"
    USED_UP = "its resource reached max_uses"
    REFRESHED = "the resources were refreshed"
    SUSPECT = "its resource may have broken together with another"
    STOPPED = "its task was stopped"  # and nothing tells whether its resource is good
    WRITTEN_OFF = "its task did not end when it was stopped"
    RETIRED = "there was one worker too many"
    DRAINED = "the executor shut down"
    CREATION_FAILED = "its resource could not be made"  # or failed its check before it had served
    INITIALIZER_FAILED = "the initializer raised"
    CRASHED = "an exception was thrown into its thread"


#: The ends of a worker whose place a successor takes.
REPLACED = frozenset({End.BROKEN, End.AGED, End.USED_UP, End.REFRESHED, End.SUSPECT, End.STOPPED, End.CRASHED})


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
        self.needs_care = bool(hooks.check or hooks.reset or hooks.max_age is not None or hooks.max_uses is not None)
        #: Whether a task may be run again: only a verdict about its error says so.
        self.can_retry = hooks.judge is not None
        #: Whether a retry waits for a new resource: none that there is can be proven good.
        self.retries_on_new = self.can_retry and hooks.check is None
        #: How many resources have turned out to be broken.
        self.breaks = 0
        #: The highest number of breaks for which a check has found a resource good.
        self._proven = 0
        #: How many times all resources were to be replaced. A resource of an earlier epoch must go.
        self.epoch = 0
        #: The hooks whose mistake was logged, each with a token of the thread that has logged it. `setdefault` lets in
        #: one thread for each hook, however many come at once.
        self._mistakes: dict[str, object] = {}
        self._recorder = recorder
        self._hub = hub
        #: Guards the counters, also those above, and which resources a reserve keeps. A counter may be read
        #: without it.
        self.lock = threading.RLock()
        self._created = 0
        #: The resources made and not destroyed. One may stay here if Ctrl-C comes while it is destroyed. Each
        #: change is one step; looked at in a copy.
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

        A resource that is made after another one broke is in doubt, too, until a check has passed: the server
        may accept connections and serve none.

        `keep` notes it down for its owner, in case an error that is thrown in keeps this call from returning
        it. Raises what ``on_create`` raises, and NoResource if it returns None. These errors are appended to
        `blame`. An error that a signal handler throws in before or after ``on_create`` is not.
        """
        begun, epoch, good_at = clock(), self.epoch, self.breaks
        if self.hooks.check is not None and good_at > self._proven:
            good_at = -1
        made: list[R] = []
        holding: Holding[R] | None = None
        try:
            call = takes(self.hooks.create, times=1)  # before the `try`: an error here is not `on_create`'s
            try:
                made.extend(call)
                if not made:  # StopIteration is the end of an iterator
                    raise RuntimeError("on_create raised StopIteration")
                if cure := not_a_resource(made[0]):
                    raise self._no_resource(made.pop(), cure)
            except BaseException as error:
                if blame is not None and not made:
                    blame.append(error)
                raise
            seconds = clock() - begun
            holding = Holding(made[0], self._expiry(), good_at, epoch)
            self._count(holding)
            if keep is not None:
                keep(holding)
            self._recorder.add_creation(seconds)
            if self._hub.hears("resource_created"):
                from ..observers import ResourceEvent

                self._hub.tell("resource_created", ResourceEvent(self.name, worker, seconds))
            return holding
        except BaseException:  # the error was thrown in, or comes from `on_create`
            if made and not not_a_resource(made[0]):
                holding = holding or Holding(made[0], _NEVER, good_at, epoch)
                self._count(holding)
                self.destroy(holding, worker)
            raise

    def _no_resource(self, made: Any, cure: str) -> NoResource:
        """Return the error for what ``on_create`` returned instead of a resource."""
        what = "None" if made is None else f"a {type(made).__name__}"
        if isinstance(made, Coroutine | Generator):
            made.close()  # it has not begun, and Python would warn of that
        return NoResource(f"executor {self.name!r}: on_create returned {what}; {cure}")

    def _expiry(self) -> float:
        max_age = self.hooks.max_age
        if max_age is None:
            return _NEVER
        import random  # on use: it takes as long to import as three files of ours

        return clock() + max_age * random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)

    def _count(self, holding: Holding[R]) -> None:
        with self.lock:
            if holding not in self._living:
                self._created += 1
                self._living.add(holding)

    def refresh(self) -> None:
        """Let every resource there is, and every one that is being made, be replaced."""
        with self.lock:
            self.epoch += 1

    def destroy(self, holding: Holding[R], worker: str | None, patience: float | None = None) -> None:
        """Give a resource up, unless that is done.

        An ``on_destroy`` that raises is logged, and has no other effect. `patience`: see `Holding.give_up`.
        """
        begun = clock()
        failure = None
        try:
            if not holding.give_up(self.hooks.destroy or _do_nothing, patience):
                return
        except BaseException as error:
            if not (holding.gone and holding.gone[0] is error) or must_escape(error):  # thrown in, beside the hook
                raise
            failure = error
            if holding.broken:  # it may well object to its end
                logger.debug(
                    "executor %r: on_destroy raised for a broken resource",
                    self.name,
                    exc_info=True,
                    executor=self.name,
                    worker=worker,
                )
            else:
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
            from ..observers import ResourceEvent

            self._hub.tell("resource_destroyed", ResourceEvent(self.name, worker, clock() - begun, failure))

    # -- what a task may have done to a resource

    def judge(self, error: BaseException, holding: Holding[R]) -> tuple[Verdict, bool]:
        """Return the verdict on what a task raised, and whether the task may be run again.

        The judge may make a mistake. If it returns no verdict, the error is the task's own. If it raises, the
        resource is replaced. In no case a mistake is a reason to run the task again.
        """
        judge, alone = self.hooks.judge, self.hooks.judges_error_alone
        verdict: object = Verdict.OWN
        if judge is not None and isinstance(error, Exception):
            try:
                verdict = judge(error) if alone else judge(error, holding.resource)
            except BaseException as raised:
                if must_escape(raised):
                    raise
                logger.warning(
                    "executor %r: check_health raised; the resource is replaced, the task keeps its error",
                    self.name,
                    exc_info=True,
                    executor=self.name,
                )
                self.note_broken(holding)
                return Verdict.BROKEN, False
        if alone and isinstance(verdict, bool):
            verdict = Verdict.OWN if verdict else Verdict.BROKEN
        if verdict is Verdict.BROKEN:
            self.note_broken(holding)
            return verdict, True
        if verdict is Verdict.AGAIN:
            return verdict, True
        if verdict is not Verdict.OWN:
            hook, wanted = ("check_health", "True, False or a Verdict") if alone else ("judge", "a Verdict")
            self._note_mistake(hook, verdict, f"{wanted}; the error counts as the task's own")
        if self.hooks.check is not None:
            holding.good_at = -1  # until it has been checked
        return Verdict.OWN, False

    def note_broken(self, holding: Holding[R]) -> None:
        """Note that a resource is broken. Every other resource is in doubt until it has been checked."""
        holding.broken = True
        if not holding.aborted:  # if it was, we have broken it ourselves
            with self.lock:
                self.breaks += 1

    def suspects(self, holding: Holding[R], breaks: int) -> bool:
        """Return whether the resource may have broken in one event with the one that was break number `breaks`."""
        return holding.good_at < breaks and not (self.hooks.check is not None and self.passes_check(holding))

    def reset(self, holding: Holding[R]) -> BaseException | None:
        """Clean the resource after a task; return the error if it cannot be cleaned."""
        reset = self.hooks.reset
        if reset is None or not holding.used or holding.out_of_reach:
            return None
        try:
            reset(holding.resource)
        except BaseException as error:
            if must_escape(error):
                raise
            self.note_broken(holding)
            return drop_frame(error)
        holding.used = False
        return None

    def passes_check(self, holding: Holding[R]) -> bool:
        """Return the answer of ``check_resource``. A check that raises says no."""
        check = self.hooks.check
        if check is None or holding.out_of_reach:
            return True
        good_at = self.breaks
        raised: BaseException | None = None
        answer: Any = False
        try:
            answer = check(holding.resource)
            passed = answer is None or bool(answer)  # None: such a check raises if the resource is not good
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
        if answer is None:
            self._note_mistake("check_resource", answer, "True or False; None counts as True")
        if passed:
            holding.good_at = good_at
            holding.last_used = clock()
            with self.lock:
                self._proven = max(self._proven, good_at)
        else:
            self.note_broken(holding)
            if not holding.uses:
                holding.fault = self._fault(raised)
            raised = None
        return passed

    def _note_mistake(self, hook: str, answer: object, wanted: str) -> None:
        """Log, once for each hook, that it returned what it should not."""
        token = object()
        if self._mistakes.setdefault(hook, token) is token:
            logger.warning(
                "executor %r: a hook returned what it must not; %s returned %s, and must return %s",
                self.name,
                hook,
                safe_repr(answer),
                wanted,
                executor=self.name,
            )

    def _fault(self, raised: BaseException | None) -> UnfitResource:
        what = "returned no" if raised is None else f"raised {safe_repr(raised)}"
        fault = UnfitResource(f"check_resource {what} for a new resource, which has served no task")
        # Without our own frame: it holds the holding, which holds this error.
        fault.__cause__ = None if raised is None else drop_frame(raised)
        return fault

    def unfit(self, holding: Holding[R], *, doubt: bool = False) -> End | None:
        """Return why the resource must not serve another task; None if it may.

        ``check_resource`` is asked only where there is reason for doubt. A resource that has served no task
        and fails its check is a failed creation: `End.CREATION_FAILED`, and `Holding.fault` says why. As a
        broken resource it would be replaced at once, and so would its successor, without end.
        """
        now = clock()
        if holding.epoch != self.epoch:
            return End.REFRESHED
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
