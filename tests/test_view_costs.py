"""What a view costs: it has no lock of its own, and forgets the futures that are gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from engine import Step, core_of, replace_step
from support import Gate, MakePool
from tasker_executor import _base


def test_a_new_view_and_a_submission_take_no_lock(make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    monkeypatch.setattr(_base, "_pruning", None)  # a with statement would fail
    replace_step(pool, Step.KICK, int, monkeypatch)  # the timer's, for the first deadline
    monkeypatch.setattr(core_of(pool).deadlines, "_lock", None)

    futures = [
        pool.with_options(priority=True).submit(int),
        pool.with_options(start_within=3600, run_within=3600.0, max_retries=1).submit(int),
    ]
    monkeypatch.undo()
    gate.release()

    assert [future.result() for future in futures] == [0, 0]


def test_deadlines_of_tasks_that_wait_are_seldom_looked_through(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    deadlines = core_of(pool).deadlines
    lengths: list[int] = []
    look_through = deadlines._look_through

    def count(*, sort: bool) -> None:
        lengths.append(len(deadlines.news))
        look_through(sort=sort)

    replace_step(pool, Step.KICK, int, monkeypatch)  # the timer stays out of it
    monkeypatch.setattr(deadlines, "_look_through", count)
    view = pool.with_options(start_within=3600)
    futures = [view.submit(int) for _ in range(2000)]
    gate.release()

    assert lengths == [65, 195, 455, 975, 2015][: len(lengths)]  # each time twice as many
    assert len(lengths) == 4
    assert futures[-1].result() == 0


def test_a_view_forgets_futures_that_are_gone(make_pool: MakePool) -> None:
    view = make_pool(1).with_options(priority=True)
    for _ in range(1000):
        view.submit(int).result()

    assert len(view._futures) < 200


def test_a_view_keeps_what_is_submitted_while_it_forgets(make_pool: MakePool, gate: Gate) -> None:
    """By a destructor, or a signal handler, in the middle of it."""
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    view = pool.with_options(priority=True)
    late: list[Any] = []

    class Reference:
        """A reference to a future that is gone."""

        def __call__(self) -> None:
            if not late:
                late.extend(view.submit(int) for _ in range(100))

    view._futures.append(Reference())  # type: ignore[arg-type]  # it is called like one
    early = [view.submit(int) for _ in range(100)]
    known = {reference() for reference in view._futures}
    gate.release()

    assert {*early, *late} <= known
    assert not any(isinstance(reference, Reference) for reference in view._futures)


def test_threads_that_submit_through_one_view_lose_no_future(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    view = pool.with_options(max_retries=0)

    def submit() -> list[Any]:
        return [view.submit(int) for _ in range(2000) if view.submit(int).cancel()]

    with ThreadPoolExecutor(4) as threads:
        futures = [future for done in [threads.submit(submit) for _ in range(4)] for future in done.result()]
    known = {reference() for reference in view._futures}
    gate.release()

    assert {*futures} <= known
