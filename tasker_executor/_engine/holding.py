"""One resource in hand: what is known of it, and how it is claimed, aborted and given up.

**Errors thrown in.** An error may be thrown into the thread that gives a resource up: see `_sync`. So it
takes the claim on the resource in one step. In another it lets go of the claim and calls ``on_destroy``.

**Fork.** A resource belongs to the process that made it. In the child of a fork, `Holding` neither aborts nor
destroys the resources of the parent.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from os import getpid
from typing import Any, Generic, TypeVar

from .._report import Logger, must_escape
from .._sync import Latch, clock, pop_call_into, pop_into
from .._types import AbortHook, DestroyHook
from .run import Run
from .stopping import Token

__all__ = ["LEAST_REST", "Holding"]

R = TypeVar("R")

logger = Logger("tasker_executor")

#: Seconds for which an idle resource that has served no task is kept, however short `max_age` is. Without
#: this limit an idle executor would make and destroy resources as fast as it can.
LEAST_REST = 1.0


class Holding(Generic[R]):
    """One resource and what is known of it.

    It has one owner at a time. Only the owner may touch it; `abort` is the exception.
    """

    __slots__ = (
        "_aborting",
        "aborted",
        "_claim",
        "_given_up",
        "_heirs",
        "_in_hook",
        "arguments",
        "attempt",
        "born",
        "broken",
        "call",
        "called",
        "epoch",
        "expires",
        "fault",
        "gone",
        "good_at",
        "kept",
        "killed",
        "last_used",
        "owner",
        "process",
        "resource",
        "rests_until",
        "scope",
        "slot",
        "used",
        "uses",
    )

    def __init__(self, resource: R, expires: float, good_at: int, epoch: int) -> None:
        self.resource = resource
        #: What the task in hand got instead of the resource: see `ResourceFactory.around`.
        self.scope: Any = None
        #: False: the task in hand has not been called, because its scope could not be entered.
        self.called = True
        #: What goes before a task's own arguments.
        self.arguments = (resource,)
        self.born = self.last_used = clock()
        self.expires = expires
        #: The time until which the resource may lie idle. After its first task this is `expires`.
        self.rests_until = max(expires, self.born + LEAST_REST)
        self.uses = 0
        #: Whether it was aborted since it was last known to be good.
        self.aborted = False
        #: Whether it is known to be broken.
        self.broken = False
        #: Whether it has served a task since it was last reset. Set only where there is a reset.
        self.used = False
        #: The number of refreshes before its making began: see `ResourceSource.epoch`.
        self.epoch = epoch
        #: The process that made the resource. Any other process, the child of a fork, must not touch it.
        self.process = getpid()
        #: Whether it belongs to the reserve, for the next call of ``run_now``. If not, it is temporary.
        self.kept = False
        #: The resource is known to be good up to this number of breaks; see `ResourceSource.breaks`. -1: it is
        #: in doubt in any case.
        self.good_at = good_at
        #: The error of its first check, if that check failed.
        self.fault: Exception | None = None
        # The next four are shared with aborters. Each change is one step, and each look is at a copy or at
        # one step. Stored before the look at `_aborting`; an aborter appends there before it looks at this.
        self._given_up = False
        #: Calls that destroy the resource once it is not being aborted any more: see `leave_to_abort`.
        self._heirs: deque[Callable[[], object]] = deque()
        self._aborting: list[Latch] = []  # one for each thread that is inside of the hook, or about to look
        self._in_hook: set[Latch] = set()  # those of `_aborting` whose thread has found the resource in use
        #: Not empty: the resource has been destroyed.
        self.gone: list[object] = []
        # The thread that destroys the resource pops this: its owner, or a killer.
        self._claim = deque([self.arguments])
        #: None: what has the resource in hand is no worker, and so has no slot.
        self.slot: int | None = None
        #: The call of `run_now` that has the resource in hand, whose `Holder` this is: its function, or its
        #: `Run` if it has one. Stored by that call alone.
        self.call: Any = None
        self.attempt = 1
        self.owner: object = None
        self.killed: Token | None = None

    @property
    def given(self) -> Any:
        """What the task in hand was given: the resource, or what `around` returned in its place."""
        return self.resource if self.scope is None else self.scope

    @property
    def name(self) -> str:
        """The name of the thread that uses the resource."""
        return threading.current_thread().name

    @property
    def busy(self) -> bool:
        """Whether a call of `run_now` has the resource in hand."""
        return self.call is not None

    def token(self) -> Token:
        """Return the cancel token of the call of `run_now` in hand. Made when it is first asked for."""
        call = self.call
        if isinstance(call, Run):
            return call
        run = Run()
        if self.call is call:  # a signal handler may have made one; none comes between this look and the store
            self.call = run
        token: Run = self.call
        if self.killed is not None and self.killed.is_open:  # the killer may have looked before
            token.cancel(self.killed.why)
        return token

    def claim(self) -> bool:
        """Claim the resource for an abort by `kill`, if a call of `run_now` has it in hand.

        A call without a `Grip` may end at this moment, and the next call may begin. Then that call is aborted,
        which does no harm: its executor is killed, too.
        """
        call = self.call
        grip = call.grip if isinstance(call, Run) else None
        if grip is None:
            return call is not None
        claimed = grip.claim()
        if claimed:
            grip.give_back()  # at once: another kill may abort the resource again, but while its hook hangs
        return claimed

    @property
    def inherited(self) -> bool:
        """Whether this process is the child of a fork, and the resource belongs to the parent."""
        return self.process != getpid()

    @property
    def out_of_reach(self) -> bool:
        """Whether its owner must not use it any more: a killer destroys it, or it belongs to another process."""
        return self._given_up or self.inherited

    @property
    def being_aborted(self) -> bool:
        """Whether a thread is inside of the `on_abort` hook, or is about to look whether it may call it."""
        return any(not latch.is_open for latch in self._aborting.copy())

    @property
    def in_abort_hook(self) -> bool:
        """Whether a thread is inside of the `on_abort` hook, not only about to look."""
        return bool(self._in_hook)

    def abort(self, hook: AbortHook[R], executor: str, in_use: Callable[[], bool]) -> None:
        """Call the `on_abort` hook if the resource is `in_use`, from a thread that does not own the resource.

        1. The aborter announces itself, and then looks whether the resource is given up. 2. The owner marks
        the resource as given up, and then looks for aborters. 3. So either the aborter stays away, or the
        owner waits for it. No resource is aborted after it is destroyed.
        """
        latch = Latch()
        self._aborting.append(latch)
        try:
            if not self._given_up and not self.inherited and in_use():
                self._in_hook.add(latch)
                hook(self.resource)
        except BaseException as error:
            if must_escape(error):
                raise
            logger.warning("executor %r: on_abort raised", executor, exc_info=True, executor=executor)
        finally:
            self._in_hook.discard(latch)
            latch.open()
            self._aborting.remove(latch)
            if self._heirs and not self.being_aborted:
                try:
                    heir = self._heirs.pop()
                except IndexError:  # the owner, or another abort that ends, was quicker
                    pass
                else:
                    heir()

    def wait_for_aborts(self, patience: float | None = None) -> bool:
        """Block until no thread is inside of the `on_abort` hook; return False after `patience` seconds.

        Without a limit, a hook that hangs blocks this for as long. In the child of a fork there is nothing to
        wait for: the threads are the parent's.
        """
        return self.inherited or all(latch.wait(patience) for latch in self._aborting.copy())

    def leave_to_abort(self, destroy: Callable[[], object]) -> bool:
        """Have the thread that aborts the resource call `destroy`, as soon as `on_abort` has returned.

        Return False, and leave it to the caller, if no thread is inside of the hook. From the first step on,
        no other thread aborts the resource.

        1. The owner adds the heir, and then looks for an abort. 2. An abort ends, and then looks for heirs.
        3. So one of the two finds the other. If both do, one of them pops the heir. After an error that was
        thrown in, this may be called again: then `destroy` may be called twice.
        """
        if self.inherited or not self._aborting:
            return False
        self._given_up = True
        self._heirs.append(destroy)
        if self.being_aborted:
            return True
        try:
            self._heirs.pop()
        except IndexError:  # an abort that has just ended took it
            return True
        return False

    def give_up(self, hook: DestroyHook[R], patience: float | None = None) -> bool:
        """Call `hook` with the resource, once in its life; return whether this call did it.

        From the first step on, no other thread aborts the resource. If another thread has claimed the
        resource, this call returns False.

        While a killer is inside of the `on_abort` hook, the owner waits. Any other thread waits for
        `patience` seconds, and then leaves the resource to its owner.

        An error that comes out of `hook` is the first entry of `gone`. Any other error has been thrown in;
        `gone` tells whether that was before `hook` was called.
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
                pop_into(self._claim.pop, claimed.append)
            except IndexError:  # another thread has claimed it
                return False
            calling = True
            pop_call_into(self.gone, hook, claimed.pop)
            if not self.gone:
                raise RuntimeError("on_destroy raised StopIteration")
        except BaseException as error:
            if calling and not claimed:  # the hook raised this error
                self.gone.append(error)
            raise
        finally:
            self._claim.extend(claimed)  # Ctrl-C came before the hook was called
        return True
