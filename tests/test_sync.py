"""Steps that Ctrl-C must not split, and latches and bells between two of their steps. See `tasker_executor._sync`.

An error comes before such a step or after it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from interruptions import AtPoint
from support import DEADLINE
from tasker_executor._sync import (
    Bell,
    Latch,
    Permit,
    _QueuedPermit,
    call_into,
    exhaust,
    in_one_step,
    make_permit,
    pop_call_into,
    pop_into,
    rehearsals,
    releases,
    spend_stack,
    takes,
)


class Thing:
    """Can be released."""

    def __init__(self, name: str, released: list[str]) -> None:
        self.release = partial(released.append, name)


def interrupt() -> None:
    raise KeyboardInterrupt


def at_every_point(step: Callable[[], object], check: Callable[[], object]) -> int:
    """Interrupt the step at each point of its code; `check` after each. Return how many points there are."""
    for number in range(1, 100):
        point = AtPoint(number, interrupt)
        with point:
            try:
                step()
            except KeyboardInterrupt:
                pass
        check()
        if point.where is None:
            return number - 1
    raise AssertionError("no end of points")


# -- iterators


def test_takes_pops_into_a_variable_and_goes_on_after_it_was_empty() -> None:
    things = [1, 2]
    take = takes(things.pop)
    got: list[int] = []
    for thing in take:
        got.append(thing)
        break
    things.clear()
    with pytest.raises(IndexError):
        next(take)
    things.append(3)

    assert [*got, next(take)] == [2, 3]


def test_takes_passes_arguments_and_ends_after_so_many_times() -> None:
    things = [1, 2, 3]

    assert list(takes(things.pop, 0, times=2)) == [1, 2]
    assert things == [3]


def test_releases_pops_and_releases() -> None:
    released: list[str] = []
    stack = [Thing("a", released), Thing("b", released)]
    each = releases(stack.pop)

    next(each)
    assert released == ["b"]
    with pytest.raises(IndexError):
        exhaust(each)

    assert released == ["b", "a"]
    assert stack == []


def test_rehearsals_release_the_same_thing_for_ever() -> None:
    released: list[str] = []
    rehearsal = rehearsals(Thing("a", released))

    next(rehearsal)
    next(rehearsal)

    assert released == ["a", "a"]


# -- functions


def test_pop_into_moves_a_thing_or_raises() -> None:
    source, target = [1], list[int]()

    pop_into(source.pop, target.append)
    with pytest.raises(IndexError):
        pop_into(source.pop, target.append)

    assert (source, target) == ([], [1])


def test_pop_into_is_not_split() -> None:
    source, target = [1] * 100, list[int]()

    def check() -> None:
        assert len(source) + len(target) == 100

    assert at_every_point(lambda: pop_into(source.pop, target.append), check) >= 2


def test_call_into_keeps_what_was_returned() -> None:
    made: list[int] = []

    call_into(made, int, "7")
    with pytest.raises(ValueError, match="invalid literal"):
        call_into(made, int, "x")

    assert made == [7]


def test_call_into_is_not_split() -> None:
    made: list[object] = []
    calls: list[int] = []

    def check() -> None:
        assert len(made) == len(calls)

    def make() -> object:
        calls.append(1)
        return object()

    assert at_every_point(lambda: call_into(made, make), check) >= 2


def test_pop_call_into_calls_with_what_it_pops() -> None:
    results: list[int] = []
    arguments: list[tuple[str, int]] = [("7", 10), ("11", 2)]

    pop_call_into(results, int, arguments.pop)

    assert results == [3]
    assert arguments == [("7", 10)]


def test_pop_call_into_is_not_split() -> None:
    results: list[int] = []
    arguments: list[tuple[str]] = [("7",)] * 100

    def check() -> None:
        assert len(results) + len(arguments) == 100

    assert at_every_point(lambda: pop_call_into(results, int, arguments.pop), check) >= 2


def test_in_one_step_makes_the_calls_in_their_order_until_one_raises() -> None:
    made: list[int] = []

    with pytest.raises(IndexError):
        in_one_step(partial(made.append, 1), partial(made.append, 2), list[int]().pop, partial(made.append, 3))

    assert made == [1, 2]


def test_spend_stack_raises_if_so_many_frames_are_not_left() -> None:
    def descend(depth: int) -> None:
        if depth:
            descend(depth - 1)
        else:
            spend_stack(40)

    answers: list[str] = []

    def look() -> None:
        for depth in (sys.getrecursionlimit() - 60, sys.getrecursionlimit() - 20):
            try:
                descend(depth)
                answers.append("enough")
            except RecursionError:
                answers.append("too little")

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()

    assert answers == ["enough", "too little"]


# -- latches and bells --


class Raced(deque[Any]):
    """A deque that acts once right before `append` or `remove`, as another thread might."""

    def __init__(self, *, appending: Callable[[], object] | None = None, removing: Callable[[], object] | None = None) -> None:
        super().__init__()
        self._appending, self._removing = appending, removing

    def append(self, item: Any) -> None:
        appending, self._appending = self._appending, None
        if appending is not None:
            appending()
        super().append(item)

    def remove(self, item: Any) -> None:
        removing, self._removing = self._removing, None
        if removing is not None:
            removing()
        super().remove(item)


def test_a_latch_opened_while_somebody_comes_to_wait_lets_him_through() -> None:
    # 1. The waiter finds the latch closed. 2. Another thread opens it, and finds no waiter. 3. The waiter
    # queues up, and looks again.
    latch = Latch()
    latch._waiting = Raced(appending=latch.open)
    begun = time.monotonic()

    assert latch.wait(DEADLINE)
    assert time.monotonic() - begun < DEADLINE


def test_a_latch_opened_in_the_moment_of_a_timeout_is_open() -> None:
    # 1. The time of a waiter is up. 2. The latch is opened, and forgets its waiters. 3. The waiter wants to be forgotten.
    latch = Latch()
    latch._waiting = Raced(removing=latch.open)

    assert latch.wait(0.001)


def test_a_wait_that_timed_out_is_forgotten() -> None:
    latch = Latch()

    assert not latch.wait(0.001)
    assert not latch._waiting


def test_a_bell_rung_twice_at_once_tells_everybody() -> None:
    # 1. Ringer A has told the first listener. 2. Ringer B tells it, too, and removes it. 3. A does the same.
    bell = Bell()
    bell._listening = Raced(removing=bell.ring)
    latches = [bell.listen() for _ in range(3)]

    bell.ring()

    assert all(latch.is_open for latch in latches)
    assert not bell._listening


# -- permits --


@pytest.fixture(params=[make_permit, _QueuedPermit], ids=["a lock", "a queue"])
def permit(request: pytest.FixtureRequest) -> Permit:
    """A permit that was not given, of each kind."""
    made: Permit = request.param()
    return made


def test_a_permit_is_taken_once(permit: Permit) -> None:
    assert permit.locked()
    assert not permit.acquire(False)
    assert not permit.acquire(True, 0.0)
    assert not permit.acquire(True, 0.001)

    permit.release()

    assert not permit.locked()
    assert permit.acquire(True, -1)
    assert permit.locked()
    assert not permit.acquire(False)


@pytest.mark.parametrize("timeout", [-1, DEADLINE, threading.TIMEOUT_MAX])
def test_a_thread_sleeps_until_its_permit_is_given(permit: Permit, timeout: float) -> None:
    taken: list[bool] = []
    thread = threading.Thread(target=lambda: taken.append(permit.acquire(True, timeout)))
    thread.start()

    permit.release()
    thread.join(DEADLINE)

    assert taken == [True]
    assert permit.locked()


def test_the_release_of_a_permit_does_not_change(permit: Permit) -> None:
    # A seat keeps it, and `releases` looks it up each time.
    release = permit.release
    for give in (release, release, partial(next, releases(iter([permit]).__next__))):
        give()
        assert permit.acquire(False)


def test_no_error_comes_between_the_pop_of_a_permit_and_its_release(permit: Permit) -> None:
    stack = [permit]
    each = releases(stack.pop)

    assert at_every_point(lambda: next(each), list) == 0
    assert not permit.locked()
