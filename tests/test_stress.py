"""Everything at once, with threads that switch every microsecond; then the books must balance.

A failure names its seed: ``TASKER_STRESS_SEED=... pytest tests/test_stress.py`` makes the same decisions again. (The threads
are the machine's own choice, so it may take a few runs.)
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, as_completed, wait
from contextlib import contextmanager
from typing import Any

import pytest

from support import DEADLINE, FakeResource, Ledger, MakePool, join_all
from tasker_executor import ResourceExecutor, TaskExpired, TaskFuture, TaskStopped

pytestmark = pytest.mark.usefixtures("fast_switching")

MAX_RETRIES = 2
AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"

Pool = ResourceExecutor[FakeResource]


def new_seed() -> int:
    return int(os.environ.get("TASKER_STRESS_SEED") or random.SystemRandom().randrange(10**9))


# -- the hammer --


class Deliberate(Exception):
    """What a task raises that is meant to fail."""


class Job:
    """One task, and what it has been through."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.runs = 0  # by one worker at a time
        self.told = 0  # how often its done-callback was called
        self.refused = False
        self.future: TaskFuture[int] | None = None

    def run(self, resource: FakeResource) -> int:
        self.runs += 1
        resource.use()
        if self.kind == "fails":
            raise Deliberate
        if self.kind == "breaks once" and self.runs == 1:
            resource.break_down()
        if self.kind == "breaks always":
            resource.break_down()
        return self.runs

    def tell(self, _: Future[int]) -> None:
        self.told += 1

    def check(self) -> None:
        """Assert that its end fits what it has been through."""
        if self.refused:
            assert self.runs == 0, "refused, and yet it ran"
            return
        assert self.future is not None
        assert self.future.done(), "not final"
        assert self.told == 1, f"its callback was called {self.told} times"
        if self.future.cancelled():
            assert self.runs == 0, "cancelled, and yet it ran"
            return
        error = self.future.exception()
        if isinstance(error, TaskExpired):
            assert self.runs == 0, "expired, and yet it ran"
        elif isinstance(error, TaskStopped):
            assert self.runs <= 1 + MAX_RETRIES
            assert (error.__cause__ is None) is (self.runs == 0), "stopped, without what it has raised"
        elif self.kind == "succeeds":
            assert (error, self.runs) == (None, 1)
        elif self.kind == "fails":
            assert isinstance(error, Deliberate)
            assert self.runs == 1
        else:  # killed on its way, it has its last error and fewer runs
            assert 1 <= self.runs <= 1 + MAX_RETRIES


def pass_on(resource: FakeResource, number: int) -> int:
    resource.use()
    return number


class Producer:
    """A thread that does to a pool, at random, what users do."""

    def __init__(self, pool: Pool, seed: str, until: float) -> None:
        self.pool = pool
        self.random = random.Random(seed)
        self.until = until
        self.jobs: list[Job] = []
        self.closed = False
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name=f"producer {seed}")

    def _run(self) -> None:
        actions = (
            [self.submit] * 12 + [self.cancel] * 3 + [self.stop, self.wait, self.resize, self.look, self.run_now, self.map]
        )
        try:
            while not self.closed and time.monotonic() < self.until:
                self.random.choice(actions)()
        except BaseException as error:
            self.error = error

    def submit(self) -> None:
        kinds = ["succeeds"] * 8 + ["fails", "breaks once", "breaks once", "breaks always"]
        for _ in range(self.random.choice([1, 1, 1, 20])):
            job = Job(self.random.choice(kinds))
            self.jobs.append(job)
            with self.closing():
                job.refused = True
                how = self.random.randrange(3)
                if how == 0:
                    job.future = self.pool.submit(job.run)
                elif how == 1:
                    job.future = self.pool.submit_priority(job.run)
                else:
                    limit = self.random.choice([0.0, 0.001, DEADLINE])
                    job.future = self.pool.with_options(start_within=limit).submit(job.run)
                job.refused = False
                job.future.add_done_callback(job.tell)
            if self.closed:
                return

    @contextmanager
    def closing(self) -> Generator[None]:
        """The pool may be shut down at any moment: the block may end with the error that says so, and then so do we."""
        try:
            yield
        except RuntimeError as error:
            if str(error) != AFTER_SHUTDOWN:
                raise
            self.closed = True

    def recent(self) -> list[TaskFuture[int]]:
        return [job.future for job in self.jobs[-30:] if job.future is not None]

    def cancel(self) -> None:
        for future in self.random.sample(self.recent(), min(3, len(self.recent()))):
            if future.cancel():
                assert future.cancelled()

    def stop(self) -> None:
        for future in self.random.sample(self.recent(), min(3, len(self.recent()))):
            if not future.stop():
                assert future.done() or future.running()  # its worker has let go of it

    def wait(self) -> None:
        how = self.random.randrange(4)
        futures = self.recent()
        if how == 0:
            assert not wait(futures, DEADLINE).not_done
        elif how == 1 and futures:
            assert wait(futures, DEADLINE, FIRST_COMPLETED).done
        elif how == 2:
            assert len(list(as_completed(futures, DEADLINE))) == len(futures)
        elif futures:
            try:
                futures[-1].exception(self.random.choice([0.0, 0.0001, DEADLINE]))
            except TimeoutError:
                pass
            except CancelledError:
                if not futures[-1].cancelled():
                    raise

    def resize(self) -> None:
        most = self.random.randint(1, 5)
        self.pool.resize(min_workers=self.random.randint(0, most), max_workers=most)

    def look(self) -> None:
        self.pool._check()
        self.pool.metrics()
        repr(self.pool)

    def run_now(self) -> None:
        with self.closing():
            self.pool.run_now(FakeResource.use)

    def map(self) -> None:
        with self.closing():
            try:
                results = list(self.pool.map(pass_on, range(10), chunksize=self.random.choice([1, 3])))
            except CancelledError:  # by shutdown or kill
                self.closed = True
            else:
                assert results == list(range(10))


def hammer(seed: str, seconds: float) -> None:
    """One pool, from birth to end, under four producers."""
    chance = random.Random(seed)
    ledger = Ledger()
    ledger.any_thread = True  # run_now
    pool: Pool = ResourceExecutor(
        chance.randint(1, 4),
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        max_retries=MAX_RETRIES,
        max_uses=chance.choice([None, 7]),
        idle_timeout=chance.choice([None, 0.0, 0.001]),
        resource_pool_size=chance.randint(0, 2),
        max_queued=chance.choice([None, 10]),
    )
    started = time.monotonic()
    producers = [Producer(pool, f"{seed}/{number}", started + seconds) for number in range(4)]
    end = chance.choice(["drain", "cancel", "kill"])
    try:
        for producer in producers:
            producer.thread.start()
        if chance.random() < 0.5:  # the end comes in the midst of it
            threading.Event().wait(seconds / 2)
        else:
            join_all(producer.thread for producer in producers)
        if end == "kill":
            pool.kill()
        pool.shutdown(cancel_futures=end == "cancel", timeout=DEADLINE)
        assert join_all(producer.thread for producer in producers) == []
        pool.shutdown(timeout=DEADLINE)  # run_now may have been under way
        pool._check()
        for producer in producers:
            if producer.error is not None:
                raise producer.error
            for job in producer.jobs:
                job.check()
        ledger.check()
        stats = pool.stats()
        assert stats.resources_created == stats.resources_destroyed == len(ledger.created)
        assert stats.submitted == stats.completed + stats.failed + stats.cancelled
    except BaseException as error:
        pool.kill()
        raise AssertionError(
            f"seed {seed}, end {end!r}, {time.monotonic() - started:.3f} s after its start: {pool!r}"
        ) from error


def test_whatever_users_do_at_once_nothing_is_lost_and_the_books_balance() -> None:
    seed, end = new_seed(), time.monotonic() + 5.0
    for number in range(1000):
        hammer(f"{seed}-{number}", seconds=0.1)
        if time.monotonic() > end:
            break


@pytest.mark.stress
def test_the_same_for_minutes() -> None:
    seed, end = new_seed(), time.monotonic() + 90.0
    number = 0
    while time.monotonic() < end:
        hammer(f"{seed}-{number}", seconds=0.05 + (number % 10) / 10)
        number += 1


# -- the races that a hand-off without locks must win --


@pytest.fixture(params=[1, 4], ids=["1 worker", "4 workers"])
def pool(request: pytest.FixtureRequest, make_pool: MakePool) -> ResourceExecutor[None]:
    return make_pool(request.param)


def for_a_second() -> Iterator[int]:
    end = time.monotonic() + 1.0
    number = 0
    while time.monotonic() < end:
        yield number
        number += 1


def test_cancel_against_start_a_task_runs_once_or_is_cancelled(pool: ResourceExecutor[None]) -> None:
    cancelled = 0
    for _ in for_a_second():
        runs: list[list[None]] = [[] for _ in range(20)]
        futures = [pool.submit(run.append, None) for run in runs]
        answers = [future.cancel() for future in futures]
        wait(futures, DEADLINE)
        for future, answer, run in zip(futures, answers, runs, strict=True):
            assert future.cancelled() is answer
            assert len(run) == (0 if answer else 1)
        cancelled += sum(answers)

    pool.shutdown()
    assert pool.stats().cancelled == cancelled


def test_two_cancels_and_a_start_agree(pool: ResourceExecutor[None]) -> None:
    with ResourceExecutor(1) as other:
        for _ in for_a_second():
            run: list[None] = []
            future = pool.submit(run.append, None)
            theirs = other.submit(future.cancel)
            mine = future.cancel()
            wait([future], DEADLINE)
            assert mine is theirs.result(DEADLINE) is future.cancelled()
            assert len(run) == (0 if mine else 1)


def test_callbacks_added_at_any_moment_are_called_exactly_once(pool: ResourceExecutor[None]) -> None:
    called: list[list[None]] = []
    for _ in for_a_second():
        futures = [pool.submit(int) for _ in range(20)]
        for number in range(60):
            calls: list[None] = []
            called.append(calls)
            futures[number % 20].add_done_callback(lambda _, calls=calls: calls.append(None))  # type: ignore[misc]  # a default
        assert not wait(futures, DEADLINE).not_done
        assert len(list(as_completed(futures, DEADLINE))) == 20
    pool.shutdown()  # waiters are told before callbacks are called: these are over now

    assert {len(calls) for calls in called} == {1}


def test_waiters_that_come_at_any_moment_are_told(pool: ResourceExecutor[None]) -> None:
    waits: list[Callable[[Future[int]], object]] = [
        lambda future: future.result(DEADLINE),
        lambda future: wait([future], DEADLINE).done.pop().result(0),
        lambda future: next(as_completed([future], DEADLINE)).result(0),
    ]
    for number in for_a_second():
        assert waits[number % 3](pool.submit(int, "7")) == 7


def test_submit_against_shutdown_what_was_accepted_is_done_and_what_was_refused_never_ran() -> None:
    for number in for_a_second():
        pool = ResourceExecutor(1 + number % 3)
        ran: list[int] = []
        accepted: list[list[tuple[int, Future[Any]]]] = [[] for _ in range(3)]
        go = threading.Barrier(4)

        def produce(
            base: int,
            taken: list[tuple[int, Future[Any]]],
            pool: ResourceExecutor[None] = pool,
            ran: list[int] = ran,
            go: threading.Barrier = go,
        ) -> None:
            go.wait(DEADLINE)
            try:
                for serial in range(base, base + 1000):
                    taken.append((serial, pool.submit(ran.append, serial)))
            except RuntimeError:
                pass

        threads = [threading.Thread(target=produce, args=(n * 1000, taken)) for n, taken in enumerate(accepted)]
        for thread in threads:
            thread.start()
        go.wait(DEADLINE)
        pool.shutdown()
        for thread in threads:
            thread.join(DEADLINE)
        pool.shutdown()

        futures = [entry for taken in accepted for entry in taken]
        assert all(future.done() and not future.cancelled() for _, future in futures)
        assert sorted(ran) == sorted(serial for serial, _ in futures)
        pool._check()


def test_tasks_that_wait_for_each_other_never_hang(make_pool: MakePool) -> None:
    # Each waits for one submitted after it, so a wake-up that is lost leaves them waiting for ever.
    pool = make_pool(4)
    for _ in for_a_second():
        barrier = threading.Barrier(4)
        for future in [pool.submit(barrier.wait, DEADLINE) for _ in range(4)]:
            future.result(DEADLINE)


def test_a_chain_of_tasks_each_submitted_by_the_one_before_never_breaks(pool: ResourceExecutor[None]) -> None:
    done = threading.Event()
    end = time.monotonic() + 1.0

    def link() -> None:
        if time.monotonic() > end:
            done.set()
        else:
            pool.submit(link)

    pool.submit(link)

    assert done.wait(DEADLINE)


def test_many_producers_in_both_lanes_get_their_own_results(pool: ResourceExecutor[None]) -> None:
    wrong: list[tuple[int, int]] = []

    def produce(base: int) -> None:
        for number in for_a_second():
            submit = pool.submit_priority if number % 2 else pool.submit
            result = submit(int, str(base + number)).result(DEADLINE)
            if result != base + number:
                wrong.append((result, base + number))

    threads = [threading.Thread(target=produce, args=(base * 10**9,)) for base in range(4)]
    for thread in threads:
        thread.start()

    assert join_all(threads) == []
    assert wrong == []
