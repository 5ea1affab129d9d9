"""Admission under thrown errors, and signal handlers that submit, at every point: see `interruptions`."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest

from engine import admission_of, busy_workers, idle_workers, normal_lane
from interruptions import ERRORS, Call, Pool, at_every_point, thrower
from support import DEADLINE, FakeResource, eventually
from tasker_executor import QueueFull


class Crowd:
    """Fills a pool of two workers. Both come free once a submitter waits for a place, or its call ends."""

    def __init__(self) -> None:
        self._done = threading.Event()

    def fill(self, pool: Pool) -> None:
        self._done.clear()
        admission = admission_of(pool)

        def hold(_: FakeResource) -> None:
            while not admission.blocked and not self._done.wait(0.0005):
                pass

        for _ in range(2):
            pool.submit(hold)
        eventually(lambda: len(busy_workers(pool)) == 2, "two busy workers")
        for _ in range(admission.limit or 0):
            pool.submit(FakeResource.use)

    def submit(self, pool: Pool) -> None:
        try:
            pool.submit(FakeResource.use)
        except QueueFull:
            pass
        finally:
            self._done.set()

            def are_free() -> bool:
                # A submission that ended between its append and its wake-up leaves the wake-up to the next one.
                return (not normal_lane(pool) or len(idle_workers(pool)) == 2) and not busy_workers(pool)

            eventually(are_free, "two free workers")

    def call(self, **options: Any) -> Call:
        return Call(self.submit, self.fill, options)


CALLS: dict[str, Call] = {
    "blocks": Crowd().call(max_queued=1),
    "blocks, no queue": Crowd().call(max_queued=0),
    "raises": Crowd().call(max_queued=1, on_full="raise"),
    "caller": Crowd().call(max_queued=0, on_full="caller", resource_pool_size=1),
    "room for all": Call(lambda pool: pool.submit(FakeResource.use), options={"max_queued": 1}),
    "room for one": Call(lambda pool: [pool.submit(FakeResource.use) for _ in range(3)], options={"max_queued": 1}),
}


#: Those that do not end in `Core.wake`.
DOOR = [name for name in CALLS if not name.startswith("room")]


@pytest.mark.long
@pytest.mark.parametrize(
    "error, name", [(error, name) for error in ERRORS for name in (CALLS if error is KeyboardInterrupt else DOOR)]
)
def test_an_error_thrown_in_anywhere_leaves_the_door_in_order(name: str, error: type[BaseException]) -> None:
    scenario = CALLS[name]
    doors: list[Any] = []
    prepare = scenario.prepare

    def prepare_and_note(pool: Pool) -> object:
        doors.append(admission_of(pool))
        return prepare(pool)

    at_every_point(Call(scenario.call, prepare_and_note, scenario.options), thrower(error))

    assert [door for door in doors if door._reserved or door.blocked] == []


@pytest.mark.long
@pytest.mark.parametrize("scenario", list(CALLS.values()), ids=list(CALLS))
def test_a_signal_handler_may_submit_to_a_full_pool_anywhere(scenario: Call) -> None:
    futures: list[Future[int]] = []

    def act(pool: Pool) -> None:
        try:
            futures.append(pool.submit(FakeResource.use))
        except QueueFull:
            pass

    at_every_point(scenario, act)

    assert [future for future in futures if future.result(DEADLINE) is None] == []
