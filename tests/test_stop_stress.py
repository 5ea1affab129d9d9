"""Random stops and time-outs against short tasks, with threads that switch every microsecond: none hits another task.

A failure names its seed, as in ``test_stress.py``.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from concurrent.futures import wait
from typing import Any

import pytest

from engine import stops_of, written_off_workers
from support import DEADLINE, eventually, join_all
from tasker_executor import ResourceExecutor, TaskFuture, TaskStopped, TaskTimeout, current_task
from test_stress import new_seed

pytestmark = pytest.mark.usefixtures("fast_switching")


class Aborted(Exception):
    """What a task raises that finds its resource aborted."""


class Broken(Exception):
    """What a task raises whose resource breaks."""


class Job:
    """A short task, and what has been done to it."""

    def __init__(self, kind: str, limit: float | None, length: int) -> None:
        self.kind = kind
        self.length = length
        self.limit = limit
        self.asked = limit is not None  # whether anything may stop it
        self.aborts = 0
        self.told = 0
        self.wrong: list[str] = []

    def run(self, resource: Resource) -> Job:
        before, resource.job = resource.job, self
        if before is not None:
            self.wrong.append("two tasks have one resource")
        try:
            task = current_task()
            for _ in range(self.length):
                if task.cancelled and not self.asked:
                    self.wrong.append("its token is set")
                if self.aborts and self.kind == "obeys":
                    raise Aborted
            if self.kind == "breaks":
                raise Broken
            return self
        finally:
            resource.job = None

    def tell(self, _: object) -> None:
        self.told += 1

    def check(self, future: TaskFuture[Job]) -> None:
        assert self.wrong == []
        assert self.aborts == 0 or self.asked, "aborted, and nothing has asked for it"
        assert self.told == 1
        if future.cancelled():
            assert self.asked
            return
        error = future.exception(0)
        if error is None:
            assert future.result() is self
        elif isinstance(error, TaskTimeout):
            assert self.limit is not None
        elif isinstance(error, TaskStopped):
            assert self.asked
        else:  # a stop may come too late for its error
            assert isinstance(error, Broken if self.kind == "breaks" else Aborted)


class Resource:
    """Knows which task uses it."""

    complaints: list[str]

    def __init__(self, complaints: list[str]) -> None:
        self.complaints = complaints
        self.job: Job | None = None
        self.destroyed = False

    def abort(self) -> None:
        if self.destroyed:
            self.complaints.append("aborted after its end")
        if (job := self.job) is not None:  # None: the task is in hand, and its function has yet to begin, or has returned
            if not job.asked:
                self.complaints.append("an abort has hit another task")
            job.aborts += 1

    def destroy(self) -> None:
        if self.destroyed:
            self.complaints.append("destroyed twice")
        if self.job is not None:
            self.complaints.append("destroyed in use")
        self.destroyed = True


def hammer(seed: str, stops: int) -> int:
    """Make that many stops and time-outs in one pool, or as many as 10 s allow; return the number."""
    chance = random.Random(seed)
    complaints: list[str] = []
    judged = chance.random() < 0.5
    pool: ResourceExecutor[Resource] = ResourceExecutor(
        chance.randint(1, 4),
        on_create=lambda: Resource(complaints),
        on_destroy=Resource.destroy,
        on_abort=Resource.abort,
        check_health=(lambda error: not isinstance(error, Broken)) if judged else None,
        check_resource=(lambda _: True) if chance.random() < 0.5 else None,
        abort_grace=chance.choice([0.0, 0.0001, DEADLINE]),
        max_queued=chance.choice([0, 2]),
        max_retries=1,
    )
    jobs: list[tuple[Job, TaskFuture[Job]]] = []
    errors: list[BaseException] = []
    until = time.monotonic() + 10.0

    def submit_and_stop(me: int) -> None:
        mine = random.Random(f"{seed}/{me}")
        try:
            while stops_of(pool) < stops and time.monotonic() < until and not errors:
                kind = mine.choice(["obeys", "obeys", "ignores", "untouched", *["breaks"] * judged])
                limit = mine.choice([0.0, 1e-6, 1e-5, 1e-4]) if kind != "untouched" and mine.random() < 0.3 else None
                job = Job(kind, limit, mine.choice([10, 100, 300]))
                future = pool.submit(job.run) if limit is None else pool.with_options(run_within=limit).submit(job.run)
                future.add_done_callback(job.tell)
                jobs.append((job, future))
                if kind != "untouched" and limit is None:
                    for _ in range(mine.randrange(1000)):
                        if future.running():
                            break
                    for _ in range(mine.randrange(30)):
                        future.running()
                    job.asked = True
                    future.stop()
                if len(jobs) % 500 == 0:
                    pool._check()
        except BaseException as error:
            errors.append(error)

    producers = [threading.Thread(target=submit_and_stop, args=(me,), name=f"producer {me}") for me in range(2)]
    try:
        for producer in producers:
            producer.start()
        assert join_all(producers) == []
        assert errors == []
        assert wait([future for _, future in jobs], DEADLINE).not_done == set()
        if chance.random() < 0.5:
            pool.kill()
        pool.shutdown(timeout=DEADLINE)
        eventually(lambda: not written_off_workers(pool), "the workers written off to end")
        pool._check()
        for job, done in jobs:
            eventually(lambda job=job: job.told == 1, "the callback")  # type: ignore[misc]  # mypy knows no default of a lambda
            job.check(done)
        assert complaints == []
        stats: Any = pool.stats()
        assert stats.submitted == stats.completed + stats.failed + stats.cancelled == len(jobs)
        assert stats.resources_created == stats.resources_destroyed
        return stops_of(pool)
    except BaseException as error:
        pool.kill()
        raise AssertionError(f"seed {seed}: {pool!r}, {pool.stats()}") from error
    finally:
        join_all(producers)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep no record of the thousands of workers that end."""
    caplog.set_level(logging.CRITICAL, "tasker_executor")


def hammer_all(stops: int, *, seconds: float = 60.0) -> None:
    """Make that many stops in pools of their own, or as many as that time allows: a single test may not take long."""
    seed, made, number, end = new_seed(), 0, 0, time.monotonic() + seconds
    while made < stops and time.monotonic() < end:
        made += hammer(f"{seed}-{number}", 250)
        number += 1


@pytest.mark.long
def test_random_stops_and_time_outs_hit_no_other_task() -> None:
    hammer_all(5_000)


@pytest.mark.stress
@pytest.mark.parametrize("part", range(20))
def test_a_hundred_thousand_of_them(part: int) -> None:
    hammer_all(5_000)
