"""Stories that a review of the rebuilt engine has found."""

from __future__ import annotations

import gc
import time
import weakref

import pytest

from interruptions import AtPoint
from support import DEADLINE, eventually, run_python
from tasker_executor import ResourceExecutor


class Big:
    pass


class Failed(Exception):
    pass


def boom(*_: object) -> None:
    raise Failed


@pytest.fixture
def no_gc():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def idle_again(pool: ResourceExecutor) -> None:
    core = pool._core
    stack = core.idle.stack if hasattr(core.idle, "stack") else core.idle_stack
    eventually(lambda: any(hasattr(entry, "park") for entry in stack), "the worker is idle")
    time.sleep(0.02)  # and the worker has left the function that registered it


def test_a_failed_task_is_freed_without_the_garbage_collector(no_gc: None) -> None:
    with ResourceExecutor(1) as pool:
        future = pool.submit(boom)
        error = future.exception(DEADLINE)
        idle_again(pool)
        kept = weakref.ref(future)
        del future
        assert kept() is None, "its error refers to its future"
        kept = weakref.ref(error)
        del error
        assert kept() is None, "its error refers to itself"


def test_an_error_that_is_kept_does_not_keep_the_result_of_a_later_task(no_gc: None) -> None:
    import threading

    with ResourceExecutor(1) as pool:
        gate = threading.Event()
        pool.submit(gate.wait)
        failing, later = pool.submit(boom), pool.submit(Big)  # run in one go
        gate.set()
        error = failing.exception(DEADLINE)
        result = weakref.ref(later.result(DEADLINE))
        del failing, later
        idle_again(pool)
        assert result() is None, error


def test_the_exit_waits_for_a_worker_whose_executor_is_closed() -> None:
    program = """
import threading, time
from tasker_executor import Observer, ResourceExecutor

told = threading.Event()

class Last(Observer):
    def state_changed(self, event):
        if event.state == "closed":
            told.set()
            time.sleep(0.3)
            print("told", flush=True)

pool = ResourceExecutor(1, observers=[Last()])
pool.submit(int).result()
pool.shutdown(wait=False)
told.wait()
"""
    assert "told" in run_python(program).stdout


@pytest.mark.parametrize("hook", ["check_health", "check_resource"])
def test_a_hook_that_judges_an_error_may_wait_for_another_executor(hook: str) -> None:
    done: list[str] = []

    def judge(_: object) -> bool:
        with ResourceExecutor(1) as other:
            other.submit(lambda: (time.sleep(0.1), done.append("slept")))
        done.append("shut down")
        return True

    with ResourceExecutor(1, on_create=object, check_after_idle=100, **{hook: judge}) as pool:
        pool.submit(boom).exception(DEADLINE)
    assert done == ["slept", "shut down"]


class Thrown(BaseException):
    pass


def throw() -> None:
    raise Thrown


@pytest.mark.parametrize("end", [lambda pool: pool.shutdown(wait=False), lambda pool: pool.kill()], ids=["shutdown", "kill"])
def test_no_task_is_left_behind_after_an_end_that_was_interrupted(end) -> None:
    at, where = 0, ""
    while where is not None:
        at += 1
        pool = ResourceExecutor(1)
        pool.submit(int).result(DEADLINE)
        point = AtPoint(at, throw)
        with point:
            try:
                end(pool)
            except Thrown:
                pass
        where = point.where
        closing = pool.stats().state != "running"
        for _ in range(2):
            try:
                future = pool.submit(int)
            except RuntimeError:
                continue
            try:
                future.exception(1.0)
            except TimeoutError:
                pytest.fail(f"interrupted at {where}: a task is left behind")
            except BaseException:  # cancelled
                pass
            if closing:
                eventually(lambda: not pool.workers(), "the workers end")
        pool.shutdown()


def test_a_fork_without_descriptors_closes_the_executors_all_the_same() -> None:
    program = """
import os, resource, threading, time
from tasker_executor import ResourceExecutor

pool = ResourceExecutor(1)
gate = threading.Event()
future = pool.submit(gate.wait)
threading.Thread(target=future.result).start()
while future._sidecar is None or future._sidecar.handoff is None:  # it waits by an eventfd, which a child replaces
    time.sleep(0.001)
reading, writing = os.pipe()
free = os.dup(0)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
child = os.fork()
if not child:
    try:
        pool.submit(int)
        os.write(writing, b"accepted")
    except RuntimeError:
        os.write(writing, b"refused")
    os._exit(0)
os.waitpid(child, 0)
gate.set()
print(os.read(reading, 100).decode(), flush=True)
os._exit(0)
"""
    done = run_python(program)
    assert done.stdout.strip() == "refused", done
