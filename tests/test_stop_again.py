"""A stop that comes between two calls of its task: the abort unblocks neither, so it is made again."""

from __future__ import annotations

import threading

import pytest

from support import DEADLINE, MakePool
from tasker_executor import TaskStopped, TaskTimeout


class Interrupted(Exception):
    """The call was unblocked by an abort."""


def task(aborts: threading.Semaphore, begun: threading.Event) -> None:
    begun.set()
    assert aborts.acquire(timeout=DEADLINE)  # the first abort comes here, and
    if aborts.acquire(timeout=DEADLINE):  # this call begins after it
        raise Interrupted


@pytest.mark.parametrize("run_within", [None, 0.01])
def test_an_abort_between_two_calls_is_made_again(make_pool: MakePool, run_within: float | None) -> None:
    pool = make_pool(
        1,
        on_create=lambda: threading.Semaphore(0),
        on_abort=threading.Semaphore.release,
        abort_grace=3 * DEADLINE,
        run_within=run_within,
    )
    begun = threading.Event()

    future = pool.submit(task, begun)
    assert begun.wait(DEADLINE)
    if run_within is None:
        future.stop()

    error = future.exception(DEADLINE)
    assert isinstance(error, TaskStopped if run_within is None else TaskTimeout)
    assert isinstance(error.__cause__, Interrupted)
