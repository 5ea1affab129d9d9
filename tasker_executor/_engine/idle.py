"""The wake-up protocol: how a submitter and an idle worker find each other.

**The idle stack** holds the seats of the workers that have nothing to do. The worker that became idle last is
on top, so it works next: its caches are warm. While more workers may be started, `Room` lies at the bottom. A
policy that pauses puts its alarm on the stack, too. Threads push and pop without a lock: each step is a
single call into C.

**Taking turns.** A submitter appends its task to a lane first and looks at the idle stack afterwards. If the
stack has an entry, the submitter pops the top one and releases it: exactly one wake-up. A worker that runs
out of work registers on the stack first and looks at the lanes afterwards. One of the two sees the other, so
no task is left behind.

**The permit.** So a seat's `park` has one rule: *a seat on the stack has no permit; a seat that was
popped gets exactly one.* A worker that finds a task although it is registered takes its seat off the stack.
If another thread has popped the seat already, the worker takes the permit. Then it either runs a task at
once, or wakes another worker.

**Few at a time.** At most `WAKES_AT_ONCE` workers are waking: they rest, were given a permit and have not taken
it. More waking workers would wait for the interpreter, and most would find no task left. (Without the GIL, a
permit may count as taken once a sleeping worker was given it: see `Permit.locked`.)

1. A submitter queues its task and then counts the waking workers. If there are enough, it wakes none.
2. Submitters then see `ENOUGH`, which is empty, instead of the stack, until a worker takes its permit.
3. A worker takes its permit and then looks at the lanes. If it finds more than one task, it wakes
   another worker.

So all workers that are needed come, one after the other.

**Without the GIL** each call of a method of the stack, of a lane and of a lock is atomic, and no two of them
together are. The two stories in which a thread comes between two steps of another one:

- *Room is off the stack for a moment.* 1. Submitter A pops Room, and has yet to put it back. 2. Submitter B
  finds the stack empty, and wakes none. 3. A puts Room back, and then counts the tasks that wait, B's too.
- *A seat is off the stack, and its permit is yet to come.* Its worker waits for the permit.

In "Taking turns" and "Few at a time" each side makes a store, and then a look. No look overtakes the store
before it. For each side passes through a lock between the two: the submitter through that of the lane, or
through `Idle._lock`; the worker through that of the stack, and of the lanes (`Lanes.look`), or its `park`.

**The end.** A closed executor shows `CLOSED`, which is always true. So the submitter enters its slow path,
takes the task back and refuses it, unless a worker has it already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from threading import RLock
from typing import Any

from .._sync import HAS_GIL, in_one_step, make_permit, rehearsals, releases, spend_stack

__all__ = ["CLOSED", "ENOUGH", "WAKES_AT_ONCE", "Idle", "Room", "Seat"]

#: At most this many workers are waking at a time: see "Few at a time".
WAKES_AT_ONCE = 8 if HAS_GIL else 1

#: What submitters see instead of the idle stack once the executor accepts no more tasks: always true.
CLOSED: list[Any] = ["closed"]
#: What submitters see while enough workers are waking: never true.
ENOUGH: list[Any] = []


class Room:
    """The entry at the bottom of the idle stack while more workers may be started.

    A submitter that pops it has found no idle worker, and starts one. The pop puts it back in the same step
    (see `Idle.wake_top`). So the next submitter finds it, whatever is thrown into this one.
    """

    def __init__(self, stack: list[Any]) -> None:
        #: Puts this back onto the stack, which is then empty, and returns the stack; `Seat.release` does not.
        self.release = partial(stack.__iadd__, (self,))


_REHEARSAL = Room([])
_REHEARSAL.release = partial([None].__iadd__, ())


class Seat:
    """A worker's half of the protocol: its entry on the idle stack, and the lock that it sleeps on."""

    __slots__ = ("_idle", "occupied", "park", "release", "rests", "told_to_leave")

    def __init__(self, idle: Idle) -> None:
        self._idle = idle
        self.park = make_permit()
        #: Gives the permit. The thread that pops the seat off the stack calls this.
        self.release = self.park.release
        #: Set, before the permit, by the thread that has taken the seat off the stack to retire the worker.
        self.told_to_leave = False
        #: The worker is in the crew, and will take its permit. Written under the executor's lock. A submitter
        #: that reads an old value looks again after it has changed `line`: see `hold_back`.
        self.occupied = False
        #: The worker looks at the lanes or sleeps, so it takes its permit soon. Before, it is registered already, but
        #: drops its last task: a destructor may hold it. Written by the worker alone.
        self.rests = False

    def rise(self) -> bool:
        """Take the seat off the stack; return False if another thread has popped it."""
        try:
            self._idle.stack.remove(self)
        except ValueError:
            return False
        return True

    def leave(self) -> bool:
        """Leave the stack instead of going to sleep; return whether the worker was chosen to retire.

        1. A submitter pops the seat for its task.
        2. The worker finds a task by itself, perhaps another one.
        3. So the worker takes the permit, and wakes another worker if tasks wait.
        """
        if not self.rise():
            self.take_permit()
            self._idle.pass_on()
        return self.told_to_leave

    def take_permit(self) -> None:
        """Take the permit, which has come or is about to come: another thread has popped the seat."""
        self.park.acquire()
        idle = self._idle
        if idle.line is not idle.stack:
            idle.note_arrival()

    def sleep(self, timeout: float) -> bool:
        """Sleep until the permit comes, at most `timeout` seconds (-1: no limit); return whether it came."""
        if not self.park.acquire(True, timeout):
            return False
        idle = self._idle
        if idle.line is not idle.stack:
            idle.note_arrival()
        return True


class Idle:
    """The submitters' half: the idle stack, and what submitters see of it."""

    def __init__(self, pass_on: Callable[[], object]) -> None:
        """Call `pass_on` to wake another worker, after one was woken for a task that it does not take."""
        self.pass_on = pass_on
        #: The seats of idle workers; the worker that became idle last is on top. See "The idle stack". Each
        #: change is one call, without a lock; each iteration is over a slice, which is a copy made in one call.
        self.stack: list[Any] = []
        #: What submitters look at, without a lock: the stack, `ENOUGH`, or, in the end, `CLOSED`.
        self.line = self.stack
        # Guards changes of `line`, each of which depends on its value. No lock is taken under it: a waking
        # worker must not wait for another holder.
        self._lock = RLock()
        self._room = Room(self.stack)
        # Pops and releases in one step of the interpreter. If Ctrl-C came between the two, the worker would
        # be off the stack and never be woken. Shared by all submitters: a step changes nothing in the iterator.
        self._wakes = releases(self.stack.pop)
        # The same steps without any effect. If they exhaust the stack of calls, the error comes before
        # the pop.
        self._rehearsals = rehearsals(_REHEARSAL)
        #: The seats that were woken last. Each change is one call; a copy may fail: see `enough_on_their_way`.
        #: A seat that is missing, or here twice, costs one wake-up more.
        self._woken: deque[Seat] = deque(maxlen=WAKES_AT_ONCE)

    # -- what submitters do

    def wake_top(self) -> bool:
        """Wake the top of the stack; return whether that is Room, so that a worker may be started.

        Another thread may change the stack between the look at its top and the pop. Then a seat is remembered
        that another thread has woken, or none has: see `_woken`.
        """
        try:
            top = self.stack[-1]
            next(self._rehearsals)
            released = next(self._wakes)
        except IndexError:  # other submitters woke all workers, and each of these looks at the lanes before it sleeps
            return False
        # Not whether it is true: another submitter may have popped Room by now, and the stack be empty.
        if isinstance(released, list):
            return True
        if isinstance(top, Seat):
            self._woken.append(top)
        return False

    def enough_on_their_way(self) -> bool:
        """Return whether `WAKES_AT_ONCE` workers were woken and have yet to take their permit."""
        if len(self._woken) < WAKES_AT_ONCE:
            return False
        try:
            if self._woken[0].park.locked():
                return False
            woken = set(self._woken.copy())
        # The executor's end has emptied the deque; or, without the GIL, another submitter appends to it.
        except (IndexError, RuntimeError):
            return False
        return len(woken) == WAKES_AT_ONCE and all(seat.rests and seat.occupied and not seat.park.locked() for seat in woken)

    def hold_back(self) -> bool:
        """Show submitters no worker while enough are waking; return whether enough are.

        See "Few at a time" in the module's docstring.
        """
        with self._lock:
            if self.line is self.stack:
                self.line = ENOUGH
        if self.enough_on_their_way():
            return True
        self.note_arrival()  # a worker has taken its permit, and may have done so before `line` was changed
        return False

    def note_arrival(self) -> None:
        """Show submitters the stack again: a worker has taken its permit and looks at the lanes next."""
        with self._lock:
            if self.line is ENOUGH:
                self.line = self.stack

    # -- what the crew does

    def offer_room(self, offered: bool) -> None:
        """Put Room at the bottom of the stack, or take it away. The executor's lock is held.

        Without the GIL, a submitter may have popped Room, and put it back after this: a second one, or one that
        is not offered, or above a worker that has become idle. The submitter then calls this once more.
        """
        room, stack = self._room, self.stack
        if offered and stack[:1] == [room] and stack.count(room) == 1:
            return
        while room in stack:
            try:
                stack.remove(room)
            except ValueError:  # a submitter has popped it, and is putting it back
                pass
        if offered:
            stack.insert(0, room)

    def seats(self) -> list[Seat]:
        """Return the seats of the idle workers, the longest idle first."""
        return [entry for entry in self.stack[:] if isinstance(entry, Seat)]

    def wake(self, seat: Seat, *, to_leave: bool = False) -> bool:
        """Wake this worker, or tell it to leave; return False if it is not idle, or was just woken.

        Its seat leaves the stack if and only if the worker is woken. It is told afterwards: a worker that was
        woken for a task at this moment must not take that for a dismissal.
        """
        spend_stack()
        return self._wake(seat, to_leave)

    def _wake(self, seat: Seat, to_leave: bool) -> bool:
        told = (partial(setattr, seat, "told_to_leave", True),) if to_leave else ()  # a slot: all in C
        try:
            in_one_step(partial(self.stack.remove, seat), *told, seat.release)
        except ValueError:
            return False
        return True

    def wake_all(self) -> None:
        """Wake every idle worker, so that each looks at the state and at its limits again."""
        spend_stack()
        for seat in self.seats()[::-1]:
            self._wake(seat, False)

    # -- the end

    def forget_woken(self) -> None:
        """Drop the references to the seats woken last."""
        self._woken.clear()

    def reinit_after_fork(self) -> None:
        """Close, in the child of a fork, where a thread of the parent may hold the lock."""
        self._lock = RLock()
        self.line = CLOSED
