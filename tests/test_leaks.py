"""A process that has run 100,000 tasks of every kind ends with what it began with.

What one task or one executor leaves behind is asked in `test_drop.py`. Here it is a matter of numbers: those
tests would not notice a leak of one object in a hundred tasks.
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, collected, eventually, run_python
from tasker_executor import QueueFull, ResourceCreationError, ResourceExecutor, TaskExpired

TASKS = 100_000
MIXTURE = 1_000  # tasks of all kinds in one round
POOLS = 200
BLOCKS_AT_MOST = 2_000  # of memory, more than before: one for every fifty tasks. Caches and free lists come to some hundred.
MEBIBYTES_AT_MOST = 8  # grown in all: less than a hundred bytes for each task

# The resource of a worker is a file descriptor, so that one that is lost shows.
PROGRAM = """
import gc, json, logging, os, sys, threading, time
from concurrent.futures import wait

from tasker_executor import ResourceExecutor
from tasker_executor._engine import handoff as _handoff

TASKS, MIXTURE, POOLS = {tasks}, {mixture}, {pools}

logging.disable()  # of resources that broke

class Broken(Exception):
    pass

class Failed(Exception):
    pass

def connect():
    return os.open(os.devnull, os.O_RDONLY)

def disconnect(descriptor):
    # Not os.close itself: inspect makes a class to find the signature of a function in C, and Python 3.13 without the
    # GIL never frees a class.
    os.close(descriptor)

def add(descriptor, number):
    return (descriptor, number)

def fail(descriptor, number):
    raise Failed(number)

def wait_for(descriptor, event):
    event.wait()

def break_once(descriptor, tried):
    tried.append(descriptor)
    if len(tried) == 1:
        raise Broken(tried)

def make(**options):
    return ResourceExecutor(
        4, on_create=connect, on_destroy=disconnect, check_health=lambda error: not isinstance(error, Broken), **options
    )

def run_mixture(pool):
    # 1,000 tasks: 10 that wait, 100 cancelled, 20 expired, 5 broken, 100 that fail, 100 by map, 665 plain.
    event = threading.Event()
    held = [pool.submit(wait_for, event) for _ in range(10)]
    cancelled = [pool.submit_priority(add, number) for number in range(100)]
    for future in cancelled[:90]:
        future.cancel()
    expired = [pool.with_options(start_within=0.0).submit(add, number) for number in range(20)]
    event.set()
    broken = [pool.submit(break_once, []) for _ in range(5)]
    failing = [pool.submit(fail, number) for number in range(100)]
    plain = [(pool.submit_priority if number % 2 else pool.submit)(add, number) for number in range(665)]
    plain[0].add_done_callback(lambda future: future.result())
    assert [number for _, number in pool.map(add, range(100))] == list(range(100))
    for future in failing:
        assert isinstance(future.exception(), Failed)
    for future in expired:
        future.exception()
    wait(held + broken + plain)
    pool.run_now(add, 0)

def run_pools():
    # Dropped while they work, and without a word.
    for number in range(POOLS):
        pool = make(min_workers=number % 2, resource_pool_size=number % 3 // 2)
        for task in range(3):
            future = pool.submit(add, task)
        if number % 5:
            future.result()
        del pool, future

def descriptors():
    directory = "/proc/self/fd"
    if not os.path.isdir(directory):
        return 0
    eventfds = len(_handoff._made)  # a process makes a few, and keeps them
    return len(os.listdir(directory)) - eventfds

def peak():
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)

def settle(threads, open_files):
    # Threads of pools that were dropped end by themselves; the program cannot join them.
    deadline = time.monotonic() + 30.0
    while (threading.active_count() > threads or descriptors() > open_files) and time.monotonic() < deadline:
        time.sleep(0.01)

def measure(threads=1, open_files=10**6):
    settle(threads, open_files)
    gc.collect()
    return dict(threads=threading.active_count(), descriptors=descriptors(), blocks=sys.getallocatedblocks(), peak=peak())

def run(rounds):
    with make(resource_pool_size=1) as pool:
        for _ in range(rounds):
            run_mixture(pool)
    stats = pool.stats()
    return dict(submitted=stats.submitted, created=stats.resources_created, destroyed=stats.resources_destroyed,
        retried=stats.retried, finished=stats.completed + stats.failed + stats.cancelled)

def report(action, warm_up):
    warm_up()
    measure()
    before = measure()
    done = action()
    print(json.dumps([before, measure(1, before["descriptors"]), done]))

report({action})
"""


class Report(NamedTuple):
    """What a program measured, after something of everything had been done once, and at the end."""

    before: dict[str, int]
    after: dict[str, int]
    done: dict[str, int]


def run_program(action: str) -> Report:
    program = PROGRAM.format(tasks=TASKS, mixture=MIXTURE, pools=POOLS, action=action)
    process = run_python(program)
    assert process.stderr == ""
    return Report(*json.loads(process.stdout))


@pytest.fixture(scope="module")
def tasks() -> Report:
    """100,000 tasks of every kind, in one pool."""
    return run_program("lambda: run(TASKS // MIXTURE), lambda: run(5)")


@pytest.fixture(scope="module")
def pools() -> Report:
    """200 pools, dropped."""
    return run_program("run_pools, run_pools")


def test_hundred_thousand_tasks_all_end(tasks: Report) -> None:
    assert tasks.done["submitted"] == tasks.done["finished"] == TASKS


def test_hundred_thousand_tasks_leave_no_thread(tasks: Report) -> None:
    assert tasks.after["threads"] == tasks.before["threads"] == 1


def test_hundred_thousand_tasks_leave_no_resource(tasks: Report) -> None:
    assert tasks.done["created"] == tasks.done["destroyed"] > tasks.done["retried"] > 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="nothing tells how many files are open")
def test_hundred_thousand_tasks_leave_no_open_file(tasks: Report) -> None:
    assert tasks.after["descriptors"] == tasks.before["descriptors"]


def test_hundred_thousand_tasks_leave_no_memory_in_use(tasks: Report) -> None:
    assert tasks.after["blocks"] - tasks.before["blocks"] < BLOCKS_AT_MOST


@pytest.mark.skipif(sys.platform == "win32", reason="nothing tells how much memory the process has taken")
def test_hundred_thousand_tasks_need_no_more_memory_than_a_few(tasks: Report) -> None:
    assert tasks.after["peak"] - tasks.before["peak"] < MEBIBYTES_AT_MOST


def test_two_hundred_dropped_pools_leave_no_thread(pools: Report) -> None:
    assert pools.after["threads"] == pools.before["threads"] == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="nothing tells how many files are open")
def test_two_hundred_dropped_pools_leave_no_open_file(pools: Report) -> None:
    assert pools.after["descriptors"] == pools.before["descriptors"]


def test_two_hundred_dropped_pools_leave_no_memory_in_use(pools: Report) -> None:
    assert pools.after["blocks"] - pools.before["blocks"] < BLOCKS_AT_MOST


# -- Ends of a task that `test_drop.py` does not have: those before it was run. The future is kept, the rest must go.


class Thing:
    """Something that can be watched by a weak reference."""


def identity(resource: object, thing: Thing) -> Thing:
    return thing


@pytest.fixture
def blocked(make_pool: MakePool, ledger: Ledger, gate: Gate) -> ResourceExecutor[FakeResource]:
    """A pool whose only worker is held at the gate, and that takes two more tasks."""
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_queued=2, on_full="raise")
    pool.submit(gate.hold)
    gate.wait_until_held()
    return pool


def submitted(submit: Callable[..., Future[Any]]) -> tuple[Future[Any], weakref.ref[Thing]]:
    thing = Thing()
    return submit(identity, thing), weakref.ref(thing)


def test_a_task_that_expired_lets_go_of_its_argument(blocked: ResourceExecutor[FakeResource]) -> None:
    future, reference = submitted(blocked.with_options(start_within=0.001).submit)

    assert isinstance(future.exception(DEADLINE), TaskExpired)
    eventually(lambda: collected(reference), "the argument to go")


def test_a_task_that_was_killed_lets_go_of_its_argument(blocked: ResourceExecutor[FakeResource]) -> None:
    future, reference = submitted(blocked.submit)

    blocked.kill()

    assert collected(reference)
    assert future.cancelled()


def test_a_task_that_got_no_resource_lets_go_of_its_argument(make_pool: MakePool, ledger: Ledger) -> None:
    ledger.outage = OSError("down")
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=0.01)
    future, reference = submitted(pool.submit)

    assert isinstance(future.exception(DEADLINE), ResourceCreationError)
    eventually(lambda: collected(reference), "the argument to go")


def test_a_task_that_was_refused_at_the_door_lets_go_of_its_argument(blocked: ResourceExecutor[FakeResource]) -> None:
    thing = Thing()
    reference = weakref.ref(thing)
    blocked.submit(FakeResource.use)
    blocked.submit(FakeResource.use)
    with pytest.raises(QueueFull):
        blocked.submit(identity, thing)

    del thing

    assert collected(reference)


def test_a_task_that_was_refused_after_shutdown_lets_go_of_its_argument(blocked: ResourceExecutor[FakeResource]) -> None:
    thing = Thing()
    reference = weakref.ref(thing)
    blocked.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        blocked.submit(identity, thing)

    del thing

    assert collected(reference)


def test_map_lets_go_of_what_has_been_taken_from_it(make_pool: MakePool) -> None:
    pool = make_pool(1)
    references: list[weakref.ref[Thing]] = []

    def make_thing(number: int) -> Thing:
        thing = Thing()
        references.append(weakref.ref(thing))
        return thing

    results = pool.map(make_thing, range(100))
    for _ in range(50):
        next(results)

    assert collected(*references[:50])


def test_who_waited_in_vain_leaves_nothing_on_the_future(blocked: ResourceExecutor[FakeResource]) -> None:
    future = blocked.submit(FakeResource.use)

    def peak_of_waiting(times: int) -> int:
        for _ in range(times):
            with pytest.raises(TimeoutError):
                future.result(0)
        gc.collect()
        return sys.getallocatedblocks()

    before = peak_of_waiting(100)

    assert peak_of_waiting(10_000) - before < 5_000
