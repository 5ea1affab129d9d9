"""The steps that Ctrl-C must not split: an error comes before a step or after it. See `tasker_executor._sync`."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

import pytest

from interruptions import AtPoint
from tasker_executor._sync import (
    call_into,
    exhaust,
    in_one_step,
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


@pytest.mark.parametrize("step", ["pop_into", "takes", "releases"])
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_a_signal_does_not_split_a_step(step: str) -> None:
    # A timer interrupts a loop again and again, at any point. Whatever has left the source has arrived.
    released: list[str] = []
    stack = [Thing("a", released) for _ in range(50_000)]
    moved: list[Thing] = []
    taken: Thing | None = None
    over: list[bool] = []
    take, each = takes(stack.pop), releases(stack.pop)

    def move() -> None:
        nonlocal taken
        while stack:
            if step == "pop_into":
                pop_into(stack.pop, moved.append)
            elif step == "releases":
                next(each)
            else:
                for taken in take:  # noqa: B007  # stored in the same step
                    break
                assert taken is not None
                moved.append(taken)
                taken = None

    def handler(_signal: int, frame: FrameType | None) -> None:
        if over:
            return
        signal.setitimer(signal.ITIMER_REAL, 0.0002)
        if frame is not None and move.__code__ in (frame.f_code, frame.f_back and frame.f_back.f_code):
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    interrupted, until = 0, time.monotonic() + 20
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002)
        while stack and time.monotonic() < until:
            try:
                move()
            except KeyboardInterrupt:
                interrupted += 1
                if taken is not None and (not moved or moved[-1] is not taken):
                    moved.append(taken)
                taken = None
    finally:
        over.append(True)  # or the handler would set the timer once more
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert interrupted
    assert len(moved) + len(released) + len(stack) == 50_000


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
