"""An error thrown in (Ctrl-C, a time limit, the end of the stack), and signal handlers that use the pool, at every point.

See `interruptions`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import pytest

from interruptions import (
    AFTER_SHUTDOWN,
    ERRORS,
    AtPoint,
    Call,
    Pool,
    TimeLimit,
    at_every_point,
    break_the_first,
    run_one,
    thrower,
)
from support import DEADLINE, FakeResource, MakePool

CALLS: dict[str, Call] = {
    "submit, first": Call(lambda pool: pool.submit(FakeResource.use)),
    "submit, to an idle worker": Call(lambda pool: pool.submit(FakeResource.use), run_one),
    "submit_priority": Call(lambda pool: pool.submit_priority(FakeResource.use)),
    "submit, bounded, with a deadline": Call(
        lambda pool: pool.with_options(start_within=DEADLINE).submit(FakeResource.use), options={"max_queued": 3}
    ),
    "map": Call(lambda pool: list(pool.map(FakeResource.use, range(3)))),
    "map, buffered chunks": Call(lambda pool: list(pool.map(FakeResource.use, range(4), chunksize=2, buffersize=2))),
    "shutdown": Call(lambda pool: pool.shutdown(), run_one),
    "shutdown without wait": Call(lambda pool: pool.shutdown(wait=False), run_one),
    "shutdown, nothing ran": Call(lambda pool: pool.shutdown()),
    "run_now": Call(lambda pool: pool.run_now(FakeResource.use), options={"resource_pool_size": 1}),
    "run_now, temporary resource": Call(lambda pool: pool.run_now(FakeResource.use)),
    "run_now, broken resource": Call(
        lambda pool: pool.run_now(break_the_first),
        options={"resource_pool_size": 1},
    ),
    "run_now, resource in doubt": Call(
        lambda pool: pool.run_now(FakeResource.use), options={"resource_pool_size": 1, "max_age": DEADLINE, "max_uses": 1}
    ),
    "shutdown, reserve": Call(lambda pool: pool.shutdown(), options={"resource_pool_size": 2}),
}


HANDLERS: dict[str, Callable[[Pool], object]] = {
    "submit": lambda pool: pool.submit(FakeResource.use),
    "shutdown without wait": lambda pool: pool.shutdown(wait=False),
    "shutdown": lambda pool: pool.shutdown(),
    "stats": lambda pool: pool._check(),
}


@pytest.mark.long
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("scenario", list(CALLS.values()), ids=list(CALLS))
def test_an_error_thrown_in_anywhere_loses_no_worker_no_task_and_no_resource(
    scenario: Call, error: type[BaseException]
) -> None:
    points = at_every_point(scenario, thrower(error))

    assert points >= 5


@pytest.mark.long
@pytest.mark.parametrize("handler", list(HANDLERS.values()), ids=list(HANDLERS))
@pytest.mark.parametrize("scenario", list(CALLS.values()), ids=list(CALLS))
def test_a_signal_handler_may_use_the_pool_anywhere(scenario: Call, handler: Callable[[Pool], object]) -> None:
    futures: list[Future[int]] = []

    def act(pool: Pool) -> None:
        try:
            answer: Any = handler(pool)
        except RuntimeError as error:
            if str(error) != AFTER_SHUTDOWN:
                raise
        else:
            if isinstance(answer, Future):
                futures.append(answer)  # pyright: ignore[reportUnknownArgumentType]  # of what is unknown

    points = at_every_point(scenario, act)

    assert points >= 5
    assert [future for future in futures if not future.done()] == []


@pytest.mark.parametrize("kill", [False, True], ids=["shutdown", "kill"])
def test_no_task_is_left_behind_after_an_end_that_was_interrupted(make_pool: MakePool, kill: bool) -> None:
    # 1. The state says that the executor drains. 2. An error is thrown in. 3. `submit` must not accept what no worker will run.
    at, where = 0, ""
    while where is not None:
        at += 1
        pool = make_pool(1)
        pool.submit(int).result(DEADLINE)
        point = AtPoint(at, raise_time_limit)
        with point:
            try:
                pool.kill() if kill else pool.shutdown(wait=False)
            except TimeLimit:
                pass
        where = point.where  # type: ignore[assignment]  # None ends the loop
        for _ in range(2):
            try:
                future = pool.submit(int)
            except RuntimeError:
                continue
            assert not wait([future], DEADLINE).not_done, f"interrupted at {where}"
        pool.shutdown()

    assert at >= 5


def raise_time_limit() -> None:
    raise TimeLimit
