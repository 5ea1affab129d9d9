"""A machine does to an executor whatever it can think of, and a model in plain Python knows what must come of it.

Every task is held at a gate until the machine says how it ends, so the interleaving is the machine's choice. After each step it
waits until the executor has come to rest, and then the tasks that run, those that wait, every future, every counter and the
invariants of `_check()` must be as the model says. At the end the books balance and no thread is left.

The rules draw the same things whatever the state, and do nothing where there is nothing to do: so a failure can be replayed.
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from engine import (
    check_books,
    close,
    core_of,
    count_starting,
    current_holder,
    free_resources,
    is_closing,
    join,
    lanes_of,
    outage_of,
    shorten_pauses,
    stats_of,
)
from support import DEADLINE, FakeResource, Ledger, ResourceBroken, join_all
from tasker_executor import QueueFull, ResourceCreationError, ResourceExecutor, TaskExpired, TaskFuture, TaskStopped

PATIENCE = 15.0  # seconds for the executor to come to rest
STEPS = 50
NUMBERS = itertools.count()

ANY = st.integers(0, 1000)  # picks one of however many there are


# -- one task, and what it is told to do --


class Deliberate(Exception):
    """The task's own error."""


class Job:
    """A task that stays where it is until the machine says how it ends."""

    def __init__(self, number: int, max_retries: int) -> None:
        self.number = number
        self.max_retries = max_retries
        self.future: TaskFuture[int] | None = None
        self.told = 0  # how often its done-callback was called
        self.runs = 0
        self.at_gate = False
        self.resource: FakeResource | None = None
        self._verdicts: SimpleQueue[str] = SimpleQueue()
        # What the model expects.
        self.expected_runs = 0
        self.end: str | None = None
        self.stopped = False

    def __repr__(self) -> str:
        return f"<Job {self.number}: {self.runs} of {self.expected_runs} runs, {self.end or 'not ended'}>"

    def run(self, *_: object) -> int:
        resource: FakeResource = current_holder().given
        resource.use()
        self.resource = resource
        self.runs += 1
        self.at_gate = True
        verdict = self._verdicts.get(timeout=2 * DEADLINE)
        if verdict == "fail":
            raise Deliberate
        if verdict == "exit":
            raise SystemExit(self.number)
        if verdict == "break":
            resource.break_down()
        return self.number

    def release(self, verdict: str) -> None:
        self.at_gate = False
        self._verdicts.put(verdict)

    def tell(self, _: Future[int]) -> None:
        self.told += 1

    def check(self) -> None:
        """Assert that its future ended as the model says."""
        assert self.future is not None
        assert self.future.done(), self
        assert self.told == 1, f"{self}: its callback was called {self.told} times"
        assert self.runs == self.expected_runs, self
        assert self.future.cancelled() is (self.end == "cancelled"), self
        ends = {"failed": Deliberate, "exited": SystemExit, "broken": ResourceBroken, "expired": TaskExpired}
        if self.end == "cancelled":
            with pytest.raises(CancelledError):
                self.future.result(0)
        elif self.end == "returned":
            assert self.future.result(0) == self.number
        else:
            assert self.end is not None
            error = self.future.exception(0)
            if self.stopped:
                assert type(error) is TaskStopped, self
                error = error.__cause__
            assert type(error) is ends[self.end], self


def second(_: FakeResource, value: int) -> int:
    return value


# -- what must come of it --


@dataclass(frozen=True)
class Config:
    """The arguments of an executor."""

    bounds: tuple[int, int]  # of the number of workers
    max_retries: int
    max_uses: int | None
    max_queued: int | None
    idle_timeout: float | None
    resource_pool_size: int


class Model:
    """An executor in plain Python: no threads, no time."""

    def __init__(self, config: Config) -> None:
        self.base, self.limit = config.bounds
        self.state = "running"
        self.high: deque[Job] = deque()
        self.low: deque[Job] = deque()
        self.lane_of: dict[Job, deque[Job]] = {}
        self.running: list[Job] = []
        self.ended: list[Job] = []
        self.submitted = self.completed = self.failed = self.cancelled = self.retried = 0

    @property
    def queued(self) -> list[Job]:
        return [*self.high, *self.low]

    def submit(self, job: Job, *, priority: bool, expires: bool) -> None:
        self.submitted += 1
        lane = self.lane_of[job] = self.high if priority else self.low
        if expires:
            self._end(job, "expired")
        else:
            lane.append(job)

    def dispatch(self, workers: int) -> None:
        """Let that many tasks run: strict priority, first in first out."""
        while len(self.running) < workers and self.queued:
            job = (self.high or self.low).popleft()
            job.expected_runs += 1
            self.running.append(job)

    def release(self, job: Job, verdict: str) -> None:
        assert job.resource is not None
        self.running.remove(job)
        if verdict != "break":  # "fail" on a broken resource, too: only a verdict on the error is a reason for a retry
            self._end(job, {"return": "returned", "fail": "failed", "exit": "exited"}[verdict])
        elif job.expected_runs <= job.max_retries and not job.stopped:
            self.retried += 1
            self.lane_of[job].appendleft(job)
        else:
            self._end(job, "broken" if verdict == "break" else "failed")

    def cancel(self, job: Job) -> bool:
        """A task can be cancelled until it has started; one that waits for its retry has."""
        if job in self.lane_of[job] and not job.expected_runs:
            self.lane_of[job].remove(job)
            self._end(job, "cancelled")
        return job.end == "cancelled"

    def stop(self, job: Job, last_error: dict[Job, str]) -> bool:
        """A task that runs is asked to end; one that waits for its retry has ended."""
        if job in self.running:
            job.stopped = True
        elif job in self.lane_of[job]:
            self.lane_of[job].remove(job)
            job.stopped = job.expected_runs > 0
            self._end(job, last_error[job] if job.stopped else "cancelled")
        else:
            return job.end == "cancelled"
        return True

    def cancel_queue(self, last_error: dict[Job, str]) -> None:
        for job in self.queued:
            self.lane_of[job].remove(job)
            self._end(job, last_error[job] if job.expected_runs else "cancelled")

    def _end(self, job: Job, end: str) -> None:
        job.end = end
        self.ended.append(job)
        self.completed += end == "returned"
        self.cancelled += end == "cancelled"
        self.failed += end not in ("returned", "cancelled")


# -- the machine --

VERDICTS = st.sampled_from(["return", "return", "return", "fail", "exit", "break", "break"])
BOUNDS = st.sampled_from([(base, max(1, base + burst)) for base in range(3) for burst in range(3)])
CONFIGS = st.builds(
    Config,
    bounds=BOUNDS,
    max_retries=st.integers(0, 2),
    max_uses=st.sampled_from([None, None, 2]),
    max_queued=st.sampled_from([None, None, None, 0, 2]),
    idle_timeout=st.sampled_from([None, 0.0]),
    resource_pool_size=st.integers(0, 1),
)


class Machine(RuleBasedStateMachine):
    """Steps are what users and the world do."""

    pool: ResourceExecutor[FakeResource] | None = None

    @initialize(config=CONFIGS)
    def begin(self, config: Config) -> None:
        self.config = config
        self.name = f"machine-{next(NUMBERS)}"
        self.ledger = ledger = Ledger()
        self.jobs: list[Job] = []
        self.last_error: dict[Job, str] = {}
        self.model = Model(config)
        self.pool = ResourceExecutor(
            self.model.limit,
            on_create=ledger.create,
            on_destroy=ledger.destroy,
            check_health=ledger.is_healthy,
            check_resource=ledger.is_usable,
            check_after_idle=0.0,
            max_retries=config.max_retries,
            max_uses=config.max_uses,
            max_queued=config.max_queued,
            on_full="block" if config.max_queued is None else "raise",
            min_workers=self.model.base,
            idle_timeout=config.idle_timeout,
            resource_pool_size=config.resource_pool_size,
            create_timeout=1000.0,
            name=self.name,
        )
        self.core = core_of(self.pool)
        self.settle()

    # -- tasks

    @rule(priorities=st.lists(st.booleans(), min_size=1, max_size=5))
    def submit_some(self, priorities: list[bool]) -> None:
        for priority in priorities:
            self.submit(priority, "")

    @rule(priority=st.booleans(), option=st.sampled_from(["once", "twice", "bare", "in time", "too late"]))
    def submit_with_options(self, priority: bool, option: str) -> None:
        self.submit(priority, option)

    def submit(self, priority: bool, option: str) -> None:
        if self.pool is None:
            return
        retries = {"once": 0, "twice": 1}.get(option, self.config.max_retries)
        job = Job(len(self.jobs), retries)
        view: Any = self.pool  # Any, for the types of submit say more than is known here
        if option in ("once", "twice"):
            view = view.with_options(max_retries=retries)
        elif option == "bare":
            view = view.with_options(pass_resource=False)
        elif option:
            view = view.with_options(start_within=1000.0 if option == "in time" else 0.0)
        if not priority:
            submit: Callable[..., TaskFuture[int]] = view.submit
        else:
            submit = view.submit_priority if option in ("", "once") else view.with_options(priority=True).submit
        model = self.model
        must_be_full: bool | None = False
        if self.config.max_queued is not None:
            must_be_full = len(model.queued) - max(0, model.limit - len(model.running)) >= self.config.max_queued
            if self.ledger.outage or outage_of(self.core).failures:
                must_be_full = None  # it depends on how many have a resource
        try:
            job.future = future = submit(job.run)
        except QueueFull:
            assert must_be_full is not False
            return
        except RuntimeError:
            assert model.state != "running"
            return
        assert model.state == "running"
        assert must_be_full is not True
        future.add_done_callback(job.tell)
        self.jobs.append(job)
        model.submit(job, priority=priority, expires=option == "too late")
        self.settle()

    @rule(which=ANY, verdicts=st.lists(VERDICTS, min_size=1, max_size=5))
    def release_some(self, which: int, verdicts: list[str]) -> None:
        for verdict in verdicts:
            self.release(which, verdict)

    @rule(which=ANY)
    def poison(self, which: int) -> None:
        """A task that breaks every resource that it gets."""
        if self.model.running and not self.ledger.outage:
            job = self.model.running[which % len(self.model.running)]
            while job in self.model.running:
                self.release(self.model.running.index(job), "break")

    def release(self, which: int, verdict: str) -> None:
        if not self.model.running:
            return
        job = self.model.running[which % len(self.model.running)]
        self.last_error[job] = "broken" if verdict == "break" else "failed"
        self.model.release(job, verdict)
        job.release(verdict)
        self.settle()

    @rule(which=ANY)
    def cancel(self, which: int) -> None:
        candidates = [*self.model.queued, *self.jobs[-5:]]
        if not candidates:
            return
        job = candidates[which % len(candidates)]
        assert job.future is not None
        assert job.future.cancel() is self.model.cancel(job)
        self.settle()

    @rule(which=ANY)
    def stop(self, which: int) -> None:
        candidates = [*self.model.running, *self.model.queued, *self.jobs[-5:]]
        if not candidates:
            return
        job = candidates[which % len(candidates)]
        assert job.future is not None
        assert job.future.stop() is self.model.stop(job, self.last_error)
        self.settle()

    @rule(verdict=st.sampled_from(["return", "fail", "break"]))
    def run_now(self, verdict: str) -> None:
        free = free_resources(self.core)
        if self.pool is None or free is None:
            return
        fresh = sum(not holding.resource.broken for holding in free)

        def task(resource: FakeResource) -> int:
            resource.use()
            if verdict == "break":
                resource.break_down()
            if verdict == "fail":
                raise Deliberate
            return resource.number

        expected: type[BaseException] | None = {"return": None, "fail": Deliberate, "break": ResourceBroken}[verdict]
        if self.ledger.outage and (not fresh or (verdict == "break" and self.config.max_retries)):
            expected = ResourceCreationError
        if self.model.state != "running":
            expected = RuntimeError
        if expected is None:
            self.pool.run_now(task)
        else:
            with pytest.raises(expected) as caught:
                self.pool.run_now(task)
            assert caught.type is expected
        self.settle()

    @rule(n=st.integers(0, 5), chunksize=st.integers(1, 3), buffersize=st.sampled_from([None, 1, 2]))
    def map(self, n: int, chunksize: int, buffersize: int | None) -> None:
        model = self.model
        free = not self.ledger.outage and not model.queued and len(model.running) < model.limit
        if self.pool is None or model.state != "running" or not free or self.config.max_queued is not None:
            return

        results = list(self.pool.map(second, range(n), chunksize=chunksize, buffersize=buffersize))

        assert results == list(range(n))
        size = chunksize if buffersize is None else min(chunksize, buffersize)
        model.submitted += -(-n // size)
        model.completed += -(-n // size)
        self.settle()

    # -- the world

    @rule(which=ANY)
    def break_resource(self, which: int) -> None:
        alive = self.ledger.alive
        if alive:
            alive[which % len(alive)].broken = True

    @rule()
    def factory_fails(self) -> None:
        self.ledger.outage = OSError  # not an instance: its traceback would hold frames, and they a dropped executor
        self.settle()

    @rule()
    def factory_works(self) -> None:
        self.ledger.outage = None
        self.settle()

    # -- workers

    @rule(bounds=BOUNDS)
    def resize(self, bounds: tuple[int, int]) -> None:
        if self.pool is not None:
            self.model.base, self.model.limit = bounds
            self.pool.resize(min_workers=self.model.base, max_workers=self.model.limit)
            self.settle()

    @rule()
    def idle(self) -> None:
        """Workers above the base go, if they do not stay for ever."""
        if self.config.idle_timeout is not None and not self.ledger.outage:
            busy = len(self.model.running)
            self.wait(lambda: stats_of(self.core).active_workers <= max(self.model.base, busy), "idle workers to go")

    @rule()
    def look(self) -> None:
        if self.pool is not None:
            self.pool.metrics()
            infos = self.pool.workers
            # A worker may have a task in hand that was cancelled as it waited, and be about to drop it.
            self.wait(lambda: [info.state for info in infos()].count("busy") == len(self.model.running), "the workers")
            assert self.name in repr(self.pool)

    # -- the end

    @rule(how=st.sampled_from(["drain", "drain and cancel", "kill", "drop"]), chance=st.integers(0, 3))
    def end(self, how: str, chance: int) -> None:
        if self.pool is None or chance:
            return
        if how == "drop":
            if self._free_for_run_now():
                self.ledger.any_thread = True  # its resources are destroyed by a thread made for that
            self.pool = None
            gc.collect()  # pytest.raises() leaves cycles behind, by way of frames
            self.wait(lambda: is_closing(self.core) and not self._free_for_run_now(), "the dropped executor to notice")
        elif how == "kill":
            self.pool.kill()
            self.model.state = "killed"
            for job in self.model.running:
                job.stopped = True
        else:
            self.pool.shutdown(wait=False, cancel_futures=how == "drain and cancel")
        if self.model.state == "running":
            self.model.state = "draining"
        if how in ("kill", "drain and cancel"):
            self.model.cancel_queue(self.last_error)
        self.settle()

    @rule(config=CONFIGS)
    def begin_anew(self, config: Config) -> None:
        if self.model.state != "running" and not self.model.running and not self.model.queued:
            self.finish()
            self.begin(config)

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        try:
            if sys.exc_info()[1] is None:  # or else the failure is the news
                self.finish()
        finally:
            self.ledger.outage = None
            for job in self.jobs:
                for _ in range(4):
                    job.release("return")
            close(self.core, kill=True)

    def finish(self) -> None:
        """Let everything end, and balance the books."""
        self.ledger.outage = None
        self.settle()
        while self.model.running:
            job = self.model.running[0]
            self.model.release(job, "return")
            job.release("return")
            self.settle()
        pool, self.pool = self.pool, None
        if pool is not None:
            pool.shutdown(timeout=DEADLINE)
            del pool
        join(self.core, DEADLINE)

        self.check()
        for job in self.jobs:
            job.check()
        stats = stats_of(self.core)
        assert stats.resources_created == stats.resources_destroyed == len(self.ledger.created)
        self.ledger.check()
        assert join_all(thread for thread in threading.enumerate() if thread.name.startswith(f"{self.name}_")) == []

    # -- at rest

    def wait(self, predicate: Callable[[], object], claim: str) -> None:
        deadline = time.monotonic() + PATIENCE
        pause = threading.Event()
        while not predicate():
            assert time.monotonic() < deadline, f"waited in vain for {claim}: {self.jobs}, {stats_of(self.core)}"
            pause.wait(0.0002)

    def settle(self) -> None:
        """Wait until the executor has come to rest, and let the model do the same."""
        model = self.model
        if not self.ledger.outage:
            model.dispatch(model.limit)
            self.wait(lambda: all(job.at_gate for job in model.running), "the tasks whose turn it is")
        else:
            self.wait(self._nobody_can_take_more, "workers with a resource to take a task")
            model.dispatch(len(self._at_gate()))
        self.wait(lambda: all(job.future is not None and job.future.done() for job in model.ended), "futures to be final")
        self.wait(
            lambda: lanes_of(self.core).waiting() == len(model.queued), "tasks that are to be retried to be back in their lanes"
        )
        self.wait(lambda: self.ledger.outage or not count_starting(self.core), "workers to start")

    def _at_gate(self) -> list[Job]:
        return [job for job in self.jobs if job.at_gate]

    def _free_for_run_now(self) -> int:
        return len(free_resources(self.core) or ())

    def _nobody_can_take_more(self) -> bool:
        """During an outage, only the workers that have a resource can work."""
        busy = len(self._at_gate())
        all_run = busy >= len(self.model.running) + len(self.model.queued)
        return all_run or busy >= self.model.limit or busy >= len(self.ledger.alive) - self._free_for_run_now()

    @invariant()
    def check(self) -> None:
        if not hasattr(self, "core"):
            return
        check_books(self.core)
        assert set(self._at_gate()) == set(self.model.running)
        for job in self.jobs:
            assert job.runs == job.expected_runs, job
            assert job.future is not None
            assert job.future.done() is (job.end is not None), job
        # A worker that comes by the remains of a cancelled task may be about to drop them, and shift a number for a moment.
        self.wait(lambda: self._counters() == self._expected_counters(), f"the counters to be {self._expected_counters()}")

    def _counters(self) -> dict[str, object]:
        stats = stats_of(self.core)
        return {name: getattr(stats, name) for name in self._expected_counters()}

    def _expected_counters(self) -> dict[str, object]:
        model = self.model
        return {
            "queued_tasks": len(model.low),
            "priority_tasks": len(model.high),
            "running_tasks": len(model.running),
            "submitted": model.submitted,
            "completed": model.completed,
            "failed": model.failed,
            "cancelled": model.cancelled,
            "retried": model.retried,
        }


# -- let it run --


@pytest.fixture(autouse=True)
def _impatient_and_quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A factory that failed is tried again at once; thousands of outages make no log."""
    shorten_pauses(monkeypatch, 0.001, limit=0.002)
    logger = logging.getLogger("tasker_executor")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(before)


def test_whatever_happens_to_an_executor_everything_ends_as_the_model_says() -> None:
    run_state_machine_as_test(Machine, settings=settings(max_examples=100, stateful_step_count=STEPS))


@pytest.mark.stress
def test_the_same_for_minutes() -> None:
    faulthandler.cancel_dump_traceback_later()  # longer than pytest allows; whatever waits here has a time limit of its own
    run_state_machine_as_test(Machine, settings=settings(max_examples=1500, stateful_step_count=2 * STEPS))
