"""What belongs to no other file: latches and bells between two of their steps, an executor made when it is too late."""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from support import DEADLINE, MakePool
from tasker_executor._engine import process
from tasker_executor._sync import Bell, Latch


class Raced(deque[Any]):
    """A deque on which somebody else acts right before `append`, or right before `remove`, the first time."""

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


# -- latches --


def test_a_latch_opened_while_somebody_comes_to_wait_lets_him_through() -> None:
    # 1. The waiter finds the latch closed. 2. It is opened, and nobody waits. 3. The waiter queues up, and looks again.
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
    # 1. A ringer has told the first listener. 2. Another one does, too, and crosses him off. 3. So does the first.
    bell = Bell()
    bell._listening = Raced(removing=bell.ring)
    latches = [bell.listen() for _ in range(3)]

    bell.ring()

    assert all(latch.is_open for latch in latches)
    assert not bell._listening


# -- too late --


def test_an_executor_made_while_the_interpreter_exits_refuses_tasks_and_starts_no_worker(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_exiting", True)
    pool = make_pool(2, min_workers=2)

    with pytest.raises(RuntimeError, match="cannot schedule new futures after interpreter shutdown"):
        pool.submit(int)
    assert pool.stats().active_workers == 0


# -- signatures --


def test_options_that_were_not_mentioned_show_as_unset(make_pool: MakePool) -> None:
    signature = inspect.signature(make_pool(1).with_options)

    assert str(signature.parameters["priority"]).endswith(" = UNSET")
