"""What the hammer strikes: executors of all kinds, and the books of each.

`Life` is one executor from its birth to its end. It knows what threads have done to it, so it can say what must have come of
it. What several threads note at once is noted by `list.append`, which is one step without the GIL, too.
"""

from __future__ import annotations

import gc
import logging
import random
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

from engine import check_books, core_of, is_closing, join, stats_of, written_off_workers
from hammer_tasks import KINDS, REFUSED, Again, Broken, Deliberate, Job, Resource
from support import DEADLINE, eventually, join_all
from tasker_executor import (
    Observer,
    QueueFull,
    ResourceCreationError,
    ResourceExecutor,
    ShutdownTimeout,
    TaskEvent,
    TaskFuture,
    TaskTimeout,
    Verdict,
)
from tasker_executor.policies import BacklogPolicy, Hysteresis, QueueWaitPolicy, RatePolicy

__all__ = ["ENDS", "Errors", "Life"]

ENDS = ["drain", "drain", "cancel", "no wait", "timeout", "kill", "kill", "kill and destroy", "drop", "drop", "with"]


class Events(Observer):
    """Counts tasks, as an observer does."""

    def __init__(self) -> None:
        # Not the events themselves: their errors lead to frames, and these to the executor.
        self.submitted: list[tuple[int, str]] = []
        self.finished: list[tuple[int, str]] = []

    def task_submitted(self, event: TaskEvent) -> None:
        self.submitted.append((event.task, event.function))

    def task_finished(self, event: TaskEvent) -> None:
        self.finished.append((event.task, event.outcome))


class Life:
    """One executor, from its birth to its end."""

    def __init__(self, number: int, chance: random.Random) -> None:
        self.name = f"hammer{number}"
        self.chance = chance
        self.complaints: list[str] = []
        self.jobs: list[Job] = []
        self.resources: list[Resource] = []
        self.users = 0  # threads that act on it; guarded by the lock of the arena
        self.retired: str | None = None  # how it ends
        self.left = chance.randint(20, 300)  # actions until then
        self.killed = self.destroying = False  # set before that is done
        self.flaky = False  # whether the factory fails now and then
        self.unwilling = chance.random() < 0.1
        self.parks = False  # whether coroutines may wait for a place in its queue
        self.reserve = 0
        self.events = Events()
        self.settings = self._choose()
        self.max_retries: int = self.settings["max_retries"]
        self.propagates: bool = self.settings["propagate_context"]
        self.on_full: str = self.settings.get("on_full", "block")
        self.run_within: float | None = self.settings["run_within"]
        self.hasty: bool = self.settings.get("create_timeout", DEADLINE) < DEADLINE  # a busy machine is an outage to it
        self.pool: ResourceExecutor[Any] | None = ResourceExecutor(**self.settings)
        self.core = core_of(self.pool)
        self.views: list[Any] = [self.pool.with_options(priority=True)]
        self.flaky = chance.random() < 0.4

    def __repr__(self) -> str:
        settings = {name: value for name, value in self.settings.items() if not callable(value)}
        ends = f"ended by {self.retired!r}, killed {self.killed}, flaky {self.flaky}"
        stacks = "".join(f"\n{worker}\n{worker.stack}" for worker in self.core.gauges.worker_infos(stacks=True))
        return f"<{self.name}, {ends}: {settings}, {stats_of(self.core)}{stacks}>"

    def _choose(self) -> dict[str, Any]:
        chance = self.chance
        most = chance.randint(1, 5)
        policies: list[Callable[[], Any]] = [
            lambda: BacklogPolicy(1, 1, 0.001),
            lambda: Hysteresis(RatePolicy(interval=0.002) | QueueWaitPolicy(0.001, interval=0.001), 2),
        ]
        settings: dict[str, Any] = {
            "max_workers": most,
            "name": self.name,
            "min_workers": chance.choice([0, 0, most - 1]),
            "propagate_context": chance.random() < 0.5,
            "idle_timeout": chance.choice([None, 0.0, 0.001]),
            "policy": chance.choice([None, None, *policies]),
            "run_within": chance.choice([None, None, None, 0.001, DEADLINE]),
            "abort_grace": chance.choice([0.0, 0.001, DEADLINE, DEADLINE]),
            "warn_after": chance.choice([None, None, 0.0005]),
            "observers": chance.choice([(), (self.events,)]),
            "max_retries": chance.randint(0, 2),
        }
        if settings["policy"] is not None:
            settings["policy"] = settings["policy"]()
        if chance.random() < 0.5:
            settings["max_queued"] = chance.choice([0, 1, 5])
            settings["on_full"] = chance.choice(["block", "raise", "caller"])
        if chance.random() < 0.6:
            settings |= self._choose_hooks()
        return settings

    def _choose_hooks(self) -> dict[str, Any]:
        chance = self.chance
        self.reserve = chance.randint(0, 2)
        hooks: dict[str, Any] = {
            "on_destroy": Resource.destroy,
            "check_health": judge,
            "check_resource": is_good,
            "on_reset": reset,
            "on_abort": Resource.abort,
            "around": around,
        }
        chosen = {name: hook for name, hook in hooks.items() if name == "on_destroy" or chance.random() < 0.5}
        return chosen | {
            "on_create": self._create,
            "resource_pool_size": self.reserve,
            "max_uses": chance.choice([None, 5]),
            "max_age": chance.choice([None, 0.1]),  # a busy machine needs some time to start a worker
            "create_timeout": chance.choice([DEADLINE, 0.01]),
            "check_after_idle": chance.choice([0.0, DEADLINE]),
        }

    def _create(self) -> Resource:
        if self.flaky and random.random() < 0.3:
            raise Deliberate
        resource = Resource(self)
        self.resources.append(resource)
        return resource

    def owns(self, thread: threading.Thread) -> bool:
        return thread.name.startswith(f"{self.name}_")

    def complain(self, complaint: str) -> None:
        self.complaints.append(complaint)

    # -- what threads do to it

    @contextmanager
    def excused(self) -> Generator[None]:
        """The block may end with an error that the end of the executor, a resource or a limit explains."""
        try:
            yield
        except Exception as error:
            if not self.excuses(error):
                raise

    def excuses(self, error: BaseException) -> bool:
        if isinstance(error, RuntimeError) and str(error) == REFUSED:
            return True
        if isinstance(error, TaskTimeout):
            return self.run_within is not None
        if isinstance(error, ResourceCreationError):
            return self.flaky or self.hasty
        if isinstance(error, CancelledError):  # `TaskStopped` is one
            return self.killed or self.retired is not None
        return isinstance(error, QueueFull | Broken | Deliberate)

    def submit(self, depth: int, chance: random.Random | None = None) -> Job | None:
        """Submit one task, in any of the ways; return it, or None if there is no executor any more."""
        chance = chance or random.Random(random.random())
        pool = self.pool
        if pool is None or depth > 3:
            return None
        job = Job(self, chance.choice(KINDS), depth)
        self.jobs.append(job)
        try:
            job.future = self._door(pool, job, chance)(job.run)
        except (QueueFull, RuntimeError) as error:
            if not self.excuses(error):
                raise
            return job
        finally:
            del pool  # or the frame, to which the error of a task may lead, would keep it
        for _ in range(chance.randrange(2)):
            job.when_done(depth + 1 if chance.random() < 0.2 else None)
        return job

    def _door(self, pool: ResourceExecutor[Any], job: Job, chance: random.Random) -> Any:
        how = chance.randrange(9)
        if how == 0:
            return pool.submit_priority
        if how == 1:
            job.hurried = True
            return pool.with_options(start_within=chance.choice([0.0, 0.001, 0.1])).submit
        if how == 2:
            job.limited = job.asked = True
            return pool.with_options(run_within=chance.choice([0.0, 1e-5, 1e-3]), priority=True).submit
        if how == 3:
            job.retries = chance.randint(0, 1)
            return pool.with_options(max_retries=job.retries).submit
        if how == 4:
            return pool.with_options(pass_resource=False).submit
        if how == 5:
            return pool.as_thread_pool().submit
        if how == 6:
            return chance.choice(self.views[-5:] or [pool]).submit  # none: it is being dropped
        return pool.submit

    def recent(self) -> list[TaskFuture[int]]:
        return [job.future for job in self.jobs[-25:] if isinstance(job.future, TaskFuture)]

    def end(self, how: str) -> None:
        """End it, in that way, while other threads may still act on it."""
        pool = self.pool
        if how == "drop" or pool is None:
            return
        try:
            if how in ("kill", "kill and destroy"):
                self.killed = True
                self.destroying = self.destroying or how == "kill and destroy"
                pool.kill(destroy=how == "kill and destroy")
                if self.chance.random() < 0.5:
                    pool.shutdown(timeout=2 * DEADLINE)
            elif how == "with":
                with pool:
                    pass
            elif how == "timeout":
                pool.shutdown(timeout=self.chance.choice([0.0, 0.001]))
            else:
                pool.shutdown(how != "no wait", cancel_futures=how == "cancel", timeout=2 * DEADLINE)
        except ShutdownTimeout:
            if how != "timeout":
                raise

    # -- its end

    def is_over(self) -> bool:
        """Whether `check` need not wait for the collector."""
        return is_closing(self.core)

    def drop(self) -> None:
        self.views.clear()
        self.pool = None

    def _forgotten(self) -> bool:
        """Let go of the frames to which the errors of tasks lead, as they have variables with views; return `is_over()`."""
        done = [job.future for job in self.jobs if job.future is not None and job.future.done() and not job.future.cancelled()]
        errors = [future.exception() for future in done]
        seen: set[int] = set()
        while errors:
            error = errors.pop()
            if error is not None and id(error) not in seen:  # without a traceback, too: its cause may have one
                seen.add(id(error))
                error.__traceback__ = None
                errors += [error.__cause__, error.__context__]
        gc.collect()
        return self.is_over()

    def _await_collector(self) -> None:
        """Block until a dropped executor closes."""
        try:
            eventually(self._forgotten, "the dropped executor to close")
        except AssertionError as error:
            handle = self.core.ending.handle
            error.add_note(f"it is kept by {gc.get_referrers(handle() if handle else None)}")
            raise

    def check(self) -> None:
        """Assert that it has ended as it must. Blocks until it has."""
        if not is_closing(self.core):
            self._await_collector()
        join(self.core, 2 * DEADLINE)
        eventually(lambda: not written_off_workers(self.core), "the workers written off to end")
        check_books(self.core)
        mine = [thread for thread in threading.enumerate() if self.owns(thread)]
        assert join_all(mine) == [], "a thread is left"
        assert self.complaints == []
        for job in self.jobs:
            try:
                job.check()
            except AssertionError as error:
                raise AssertionError(f"{job}: {error}") from error
        stats = stats_of(self.core)
        assert stats.submitted == stats.completed + stats.failed + stats.cancelled
        assert (stats.running_tasks, stats.queued_tasks, stats.priority_tasks, stats.active_workers) == (0, 0, 0, 0)
        assert stats.state == "closed"
        assert stats.resources_created == stats.resources_destroyed == len(self.resources)
        assert [resource for resource in self.resources if len(resource.destroyed) != 1] == []
        if self.settings["observers"]:
            told = len(self.events.submitted), len(self.events.finished)
            # At the end both may miss a task: it is cancelled before its submitter tells of it, and refused; or another
            # thread counts a task that was settled, and the executor closes before the thread that settled it tells.
            assert max(told) <= stats.submitted, f"observers were told of {told}: {self._odd_events()}"
            assert self.retired != "drop" or self.parks or told == (stats.submitted, stats.submitted), self._odd_events()

    def _odd_events(self) -> list[tuple[int, str]]:
        """Return the events of tasks of which observers were told only in part; an address may be used again."""
        events = self.events.submitted + self.events.finished
        many = Counter(task for task, _ in self.events.submitted)
        many.subtract(task for task, _ in self.events.finished)
        return [event for event in events if many[event[0]]]


def judge(error: Exception) -> Verdict | bool:
    return Verdict.AGAIN if isinstance(error, Again) else not isinstance(error, Broken)


def is_good(resource: Resource) -> bool:
    with resource.used("check"):
        return not resource.broken


def reset(resource: Resource) -> None:
    with resource.used("reset"):
        if resource.broken and random.random() < 0.5:
            raise Broken


@contextmanager
def around(resource: Resource) -> Generator[None]:
    yield


class Errors(logging.Filter):
    """Notes the records that tell of an error which no test has asked for. It lets none pass: pytest would keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        # Errors of `map` and of coroutines that nobody fetched are lost by design.
        if record.levelno >= logging.ERROR and not isinstance(error, Deliberate) and record.name != "tasker_executor.lost":
            stack = "".join(traceback.format_exception(error)) if error else ""
            self.messages.append(f"{record.levelname} {record.name}: {message}\n{stack}")
        return False
