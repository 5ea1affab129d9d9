"""Eight threads do all that users do, to executors that come and go, and are shared between the threads.

``TASKER_HAMMER_SECONDS`` is how long it takes, 20 by default. A failure names its seed, and ``TASKER_STRESS_SEED=... pytest
-m stress tests/test_hammer.py`` makes the same decisions again. (The threads are the machine's own choice, so it may take a
few runs.)
"""

from __future__ import annotations

import asyncio
import faulthandler
import itertools
import logging
import os
import random
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, as_completed, wait
from contextlib import closing
from typing import Any

import pytest

from engine import innards, shorten_pauses
from hammer import ENDS, Errors, Life
from hammer_tasks import CALLER, second
from support import DEADLINE, join_all, switch_interval
from tasker_executor import ResourceCreationError, ShutdownTimeout
from test_stress import new_seed

SECONDS = float(os.environ.get("TASKER_HAMMER_SECONDS", "20"))
THREADS = 8
EXECUTORS = 3  # at a time
NAMES = ["tasker_executor", "tasker_executor.lost", "tasker_executor.observers", "concurrent.futures", "asyncio"]


class Arena:
    """The executors that there are, and those that have ended and have yet to be checked."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.over = threading.Event()
        self.errors: list[BaseException] = []
        self.ended: deque[Life] = deque()
        self.checked: list[str] = []
        self._numbers = itertools.count()
        # Guards the two below, and `users` and `retired` of each life.
        self._lock = threading.Lock()
        self._lives: list[Life] = []
        self._born = 0

    def enter(self, chance: random.Random) -> Life:
        """Return an executor to act on; a new one if there are too few."""
        while True:
            with self._lock:
                if len(self._lives) + self._born >= EXECUTORS and self._lives:
                    life = chance.choice(self._lives)
                    life.users += 1
                    return life
                self._born += 1
                number = next(self._numbers)
            born: list[Life] = []
            try:
                born.append(Life(number, random.Random(f"{self.seed}/{number}")))
            except ResourceCreationError:  # one of the reserve could not be made in time
                pass
            finally:
                with self._lock:
                    self._born -= 1
                    self._lives += born

    def leave(self, life: Life) -> None:
        """Note that a thread does not act on the executor any more. The last one drops it."""
        with self._lock:
            life.users -= 1
            last = life.retired is not None and not life.users
        if last:
            life.drop()
            self.ended.append(life)

    def retire(self, life: Life, how: str) -> bool:
        """Let no more threads act on the executor; return False if another thread was quicker."""
        with self._lock:
            if life.retired is not None:
                return False
            life.retired = how
            self._lives.remove(life)
            return True

    def check_one(self, *, patient: bool = False) -> bool:
        """Check one of those that have ended; return whether there was one. `patient`: wait for the collector."""
        try:
            life = self.ended.popleft()
        except IndexError:
            return False
        if not patient and not life.is_over() and len(self.ended) < 20:  # more would use up the process's memory maps
            self.ended.append(life)
            return False
        try:
            life.check()
        except BaseException as error:
            raise AssertionError(f"seed {self.seed}: {life!r}: {error}") from error
        self.checked.append(life.name)
        return True

    def end(self) -> None:
        """Retire all executors, and check them. Called when no thread acts any more."""
        for life in self._lives.copy():
            life.users += 1
            self.retire(life, "drop")
            self.leave(life)
        while self.ended:
            self.check_one(patient=True)

    def kill(self) -> None:
        """End all executors after a failure."""
        for life in [*self._lives, *self.ended]:
            life.killed = True
            life.core.ending.close(kill=True)


class Player:
    """A thread that does to the executors, at random, what users do."""

    def __init__(self, arena: Arena, number: int) -> None:
        self.arena = arena
        self.name = f"player{number}"
        self.random = random.Random(f"{arena.seed}/{self.name}")
        self.doing = "nothing"
        # While it acts: when it began, and on which executor. What was seen when it had taken half of what a test waits.
        self.acts: tuple[float, Life] | None = None
        self.seen = ""
        self.actions = (
            [self.submit] * 12
            + [self.cancel, self.stop, self.wait, self.result, self.add_callback] * 3
            + [self.map, self.map, self.run_now, self.run_now, self.resize, self.look, self.look, self.view, self.view]
            + [self.refresh, self.break_resource, self.coroutines, self.wait_ready, self.end_early]
        )
        self.thread = threading.Thread(target=self._run, name=self.name)

    def _run(self) -> None:
        CALLER.set(self.name)
        arena = self.arena
        try:
            while not arena.over.is_set():
                life = arena.enter(self.random)
                try:
                    life.left -= 1
                    if life.left > 0:
                        self._act(life)
                    elif arena.retire(life, how := self.random.choice(ENDS)):
                        self.doing = how
                        life.end(how)
                finally:
                    arena.leave(life)
                    del life  # or this frame would keep an executor that was dropped
                self.doing = "check"
                arena.check_one()
        except BaseException as error:
            error.add_note(f"{self.name} did {self.doing}")
            arena.errors.append(error)
            arena.over.set()

    def _act(self, life: Life) -> None:
        action = self.random.choice(self.actions)
        self.doing = f"{action.__name__} with {life.name}"
        self.acts, self.seen = (time.monotonic(), life), ""
        try:
            with life.excused():
                action(life)
        except BaseException as error:
            raise AssertionError(f"seed {self.arena.seed}: {self.doing}: {life!r}\n{self.seen}") from error
        finally:
            self.acts = None

    def look_for_a_hang(self) -> None:
        """Note what there is to see while something takes long: at the end of a wait, it may be gone."""
        acts = self.acts
        if acts is not None and not self.seen and time.monotonic() - acts[0] > DEADLINE / 2:
            self.seen = f"after {DEADLINE / 2:g} s: {acts[1]!r}\n{innards(acts[1].core)}\n{stacks_of_all_threads()}"

    def submit(self, life: Life) -> None:
        for _ in range(self.random.choice([1, 1, 1, 10])):
            life.submit(0, self.random)

    def some(self, life: Life) -> list[Any]:
        recent = [job for job in life.jobs[-25:] if job.future is not None]
        return self.random.sample(recent, min(3, len(recent)))

    def cancel(self, life: Life) -> None:
        for job in self.some(life):
            if job.future.cancel():
                job.cancelled = True
                assert job.future.cancelled()
                assert job.future.done()

    def stop(self, life: Life) -> None:
        for job in self.some(life):
            job.asked = True
            job.future.stop()

    def add_callback(self, life: Life) -> None:
        for job in self.some(life):
            job.when_done(0 if self.random.random() < 0.1 else None)

    def wait(self, life: Life) -> None:
        futures = life.recent()
        limit = self.random.choice([0.0, 0.001, DEADLINE])
        if self.random.random() < 0.5:
            done, not_done = wait(futures, limit, self.random.choice([ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION]))
            assert done | not_done == set(futures)
            assert all(future.done() for future in done)
            assert done or limit < DEADLINE or not futures
        else:
            try:
                assert len(list(as_completed(futures, limit))) == len(set(futures))
            except TimeoutError:
                assert limit < DEADLINE

    def result(self, life: Life) -> None:
        for future in life.recent()[-2:]:
            limit = self.random.choice([0.0, 0.001, DEADLINE])
            try:
                future.exception(limit)
            except CancelledError:
                assert future.cancelled()
            except TimeoutError:
                assert limit < DEADLINE

    def map(self, life: Life) -> None:
        assert life.pool is not None
        ordered = self.random.random() < 0.5
        buffersize = self.random.choice([None, 1, 3])
        view = self.random.choice([life.pool, life.pool.with_options(priority=True)])
        results: Iterator[int] = view.map(
            second, range(10), chunksize=self.random.choice([1, 3]), buffersize=buffersize, ordered=ordered
        )
        if self.random.random() < 0.7:
            all_of_them = list(results)
            assert (all_of_them if ordered else sorted(all_of_them)) == list(range(10))
        else:
            with closing(results):  # type: ignore[type-var]  # it is a generator, or like one
                next(results)

    def run_now(self, life: Life) -> None:
        assert life.pool is not None
        view = self.random.choice([life.pool, life.pool, life.pool.with_options(run_within=DEADLINE)])
        assert view.run_now(second, 5) == 5

    def resize(self, life: Life) -> None:
        assert life.pool is not None
        most = self.random.randint(1, 6)
        life.pool.resize(min_workers=self.random.randint(0, most), max_workers=most)

    def look(self, life: Life) -> None:
        pool = life.pool
        assert pool is not None
        stats = pool.stats()
        assert stats.submitted == (
            stats.completed + stats.failed + stats.cancelled + stats.queued_tasks + stats.priority_tasks + stats.running_tasks
        )
        pool.metrics()
        pool.workers(stacks=self.random.random() < 0.3)
        repr(pool)
        pool._check()

    def view(self, life: Life) -> None:
        """Keep a new view, or shut one down that was kept."""
        assert life.pool is not None
        if self.random.random() < 0.5:
            life.views.append(life.pool.with_options(priority=self.random.random() < 0.5))
            return
        view = self.random.choice(life.views[-5:])
        try:
            view.shutdown(
                self.random.random() < 0.5,
                cancel_futures=self.random.random() < 0.5,
                timeout=self.random.choice([0.001, DEADLINE]),
            )
        except ShutdownTimeout:
            pass

    def refresh(self, life: Life) -> None:
        assert life.pool is not None
        life.pool.refresh()

    def break_resource(self, life: Life) -> None:
        for resource in life.resources[-2:]:
            resource.broken = True

    def wait_ready(self, life: Life) -> None:
        assert life.pool is not None
        try:
            life.pool.wait_ready(self.random.choice([0.0, 0.001, 1.0]))
        except ResourceCreationError:  # it is made too slowly
            pass

    def end_early(self, life: Life) -> None:
        if self.random.random() < 0.2 and self.arena.retire(life, how := self.random.choice(ENDS)):
            self.doing = how
            life.end(how)

    def coroutines(self, life: Life) -> None:
        assert life.pool is not None
        if self.random.random() < 0.5:
            life.parks = "max_queued" in life.settings
            asyncio.run(self._coroutines(life, life.pool.as_async(priority=self.random.random() < 0.5)))

    async def _coroutines(self, life: Life, view: Any) -> None:
        async with asyncio.timeout(DEADLINE):
            tasks = [asyncio.ensure_future(view.run(second, number)) for number in range(5)]
            await asyncio.sleep(0)
            tasks[self.random.randrange(5)].cancel()
            for number, result in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
                if isinstance(result, Exception):
                    assert life.excuses(result), result
                else:
                    assert isinstance(result, asyncio.CancelledError) or result == number
            ordered = self.random.random() < 0.5
            found = [item async for item in view.map(second, range(5), buffersize=2, ordered=ordered)]
            assert sorted(found) == list(range(5))


@pytest.fixture(autouse=True)
def errors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Errors]:
    """A factory that failed is tried again at once; of the log only errors are kept."""
    shorten_pauses(monkeypatch, 0.001, limit=0.002)
    errors = Errors()
    loggers = [logging.getLogger(name) for name in NAMES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
        logger.addFilter(errors)
    with switch_interval():
        yield errors
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
        logger.removeFilter(errors)


def stacks_of_all_threads() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read()


@pytest.mark.stress
def test_whatever_eight_threads_do_everything_ends_and_the_books_balance(errors: Errors) -> None:
    seed = new_seed()
    faulthandler.cancel_dump_traceback_later()  # it may take longer than pytest allows; `join_all` sees a hang
    arena = Arena(f"{seed}")
    players = [Player(arena, number) for number in range(THREADS)]
    end = time.monotonic() + SECONDS
    try:
        for player in players:
            player.thread.start()
        while time.monotonic() < end and not arena.over.wait(0.5) and not errors.messages:
            for player in players:
                player.look_for_a_hang()
        arena.over.set()
        late = join_all((player.thread for player in players), 2.5 * DEADLINE)
        if late and not arena.errors:
            pytest.fail(f"seed {seed}: {[player.doing for player in players]}\n{stacks_of_all_threads()}")
        for error in arena.errors:
            raise error
        arena.end()
        if errors.messages:
            pytest.fail(f"seed {seed}: {errors.messages[0]}")
    except BaseException:
        arena.over.set()
        arena.kill()
        join_all((player.thread for player in players), DEADLINE)
        raise
