"""What comes between two calls, or two attempts, of one task: an abort, which is made again; and the look of the watch."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from engine import tend_watch, watch_due_in, watch_has_looked
from support import DEADLINE, HOUR, MakePool, eventually
from tasker_executor import TaskStopped, TaskTimeout
from tasker_executor.factory import Verdict


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


def test_a_second_attempt_that_the_watch_has_not_seen_ends_in_time(make_pool: MakePool) -> None:
    """1. The watch looks at the first attempt, which takes half of the time. 2. It looks again, and finds no task: so
    nothing is due any more. 3. The second attempt begins."""
    submitted = threading.Event()
    attempts: list[int] = []

    def between_attempts(_: object) -> None:
        future._sidecar.ran = HOUR / 2
        tend_watch(pool)

    def work(_: object) -> None:
        assert submitted.wait(DEADLINE)
        attempts.append(1)
        if len(attempts) == 1:
            eventually(lambda: watch_has_looked(pool), "the watch to look")
        else:
            eventually(lambda: watch_due_in(pool) < 2 / 3 * HOUR, "the watch to know of this attempt")
        raise ValueError

    def judge(_: BaseException) -> Verdict:
        return Verdict.AGAIN

    pool = make_pool(1, on_create=object, check_health=judge, on_reset=between_attempts, max_retries=1)
    future: Any = pool.with_options(run_within=HOUR).submit(work)
    submitted.set()

    assert type(future.exception(2 * DEADLINE)) is ValueError
    assert len(attempts) == 2
