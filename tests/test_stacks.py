"""`workers(stacks=True)`: what each thread does, as a traceback shows it."""

from __future__ import annotations

import faulthandler
import gc
import linecache
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from engine import parsed_dump, patch_stacks, stack_of, stacks_module
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, eventually, join_all, needs_gil, run_python
from tasker_executor import ResourceExecutor, WorkerInfo


def names_in(stack: str) -> list[str]:
    """The functions of a stack, the outermost first."""
    return [line.rpartition(" in ")[2] for line in stack.splitlines() if line.startswith("  File ")]


def outermost(stack: str) -> str:
    return names_in(stack)[0]


def stack_in(pool: ResourceExecutor[Any]) -> str:
    """The stack of the only worker."""
    (info,) = pool.workers(stacks=True)
    return info.stack


def held(gate: Gate) -> None:
    wait_at(gate)


def wait_at(gate: Gate) -> None:
    gate.hold()


# -- what is seen --


def test_the_stack_of_a_task_begins_with_the_task_and_ends_where_it_is(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(held, gate)
    gate.wait_until_held()
    stack = stack_in(pool)

    assert names_in(stack)[:3] == ["held", "wait_at", "hold"]
    assert f'  File "{__file__}", line {wait_at.__code__.co_firstlineno + 1}, in wait_at\n    gate.hold()\n' in stack


def test_no_stack_is_read_unless_it_is_asked_for(make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(1)
    pool.submit(held, gate)
    gate.wait_until_held()
    patch_stacks(monkeypatch, lambda threads: pytest.fail("a stack was read"))

    assert [info.stack for info in pool.workers()] == [""]


def test_whether_there_shall_be_stacks_is_a_bool(make_pool: MakePool) -> None:
    with pytest.raises(TypeError, match="stacks must be a bool, not 'yes'"):
        make_pool(1).workers(stacks="yes")  # type: ignore[arg-type]  # the mistake


def test_a_worker_that_rests_has_no_stack(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.submit(int).result(DEADLINE)
    eventually(lambda: [info.state for info in pool.workers()] == ["idle"], "the worker to rest")

    eventually(lambda: stack_in(pool) == "", "a stack of its own loop alone")


def test_a_call_of_map_in_chunks_begins_with_the_function(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    results = pool.map(held, [gate, gate], chunksize=2)
    gate.wait_until_held()
    stack = stack_in(pool)
    gate.release()

    assert list(results) == [None, None]
    assert outermost(stack) == "held"


def test_a_task_that_waits_inside_shows_the_wait(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2)

    def outer() -> None:
        pool.submit(held, gate).result()

    pool.submit(outer)
    gate.wait_until_held()
    eventually(lambda: names_in(pool.workers(stacks=True)[0].stack)[:2] == ["outer", "result"], "the wait")


def test_a_worker_shows_in_which_hook_it_is(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    def connect() -> FakeResource:
        gate.hold()
        return ledger.create()

    def close(resource: FakeResource) -> None:
        leaving.hold()
        ledger.destroy(resource)

    with Gate() as leaving:
        pool = make_pool(1, on_create=connect, on_destroy=close, max_uses=1)
        future = pool.submit(FakeResource.use)
        gate.wait_until_held()
        (starting,) = pool.workers(stacks=True)
        gate.release()
        future.result(DEADLINE)
        leaving.wait_until_held()
        ending = next(info for info in pool.workers(stacks=True) if info.state == "ending")
        leaving.release()

    assert (starting.state, outermost(starting.stack)) == ("starting", "connect")
    assert outermost(ending.stack) == "close"


def test_a_deep_stack_is_cut_at_its_beginning(make_pool: MakePool, gate: Gate) -> None:
    def descend(left: int) -> None:
        if left:
            descend_again(left - 1)
        else:
            gate.hold()

    def descend_again(left: int) -> None:
        descend(left)

    pool = make_pool(1)
    pool.submit(descend, 200)
    gate.wait_until_held()
    first, second = stack_in(pool).splitlines()[:2]

    assert first == "  ..."
    assert "in descend" in second
    assert len(names_in(stack_in(pool))) == stacks_module.MOST_CALLS


def test_a_source_that_has_changed_is_read_again(make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str | None] = []
    monkeypatch.setattr(linecache, "checkcache", checked.append)
    pool = make_pool(1)
    pool.submit(held, gate)
    gate.wait_until_held()
    stack_in(pool)

    assert __file__ in checked


# -- of which moment it is --


def test_a_worker_that_has_gone_on_has_no_stack(make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(1)
    first = pool.submit(held, gate)
    gate.wait_until_held()
    read = stacks_module.stacks_of

    def read_late(threads: Iterator[threading.Thread]) -> dict[threading.Thread, str]:
        gate.release()
        first.result(DEADLINE)
        pool.submit(held, other)
        other.wait_until_held()
        return read(threads)

    patch_stacks(monkeypatch, read_late)
    with Gate() as other:
        (info,) = pool.workers(stacks=True)
        monkeypatch.undo()
        (later,) = pool.workers(stacks=True)

    assert (info.state, info.stack) == ("busy", "")
    assert outermost(later.stack) == "held"


def test_the_number_of_a_thread_that_has_ended_may_be_that_of_another() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    assert join_all([thread]) == []
    thread._ident = threading.get_ident()  # type: ignore[attr-defined]  # as if this thread had got its number

    assert stack_of(thread) == ""


def test_a_thread_that_has_not_been_started_has_no_stack() -> None:
    assert stack_of(threading.Thread(target=int)) == ""


class Thing:
    pass


@needs_gil
def test_nothing_of_a_task_that_has_ended_is_kept(make_pool: MakePool, gate: Gate) -> None:
    seen: list[weakref.ref[Thing]] = []

    def task() -> None:
        thing = Thing()
        seen.append(weakref.ref(thing))
        gate.hold()
        del thing

    pool = make_pool(1)
    gc.disable()
    try:
        future = pool.submit(task)
        gate.wait_until_held()
        local = Thing()
        seen.append(weakref.ref(local))
        infos = pool.workers(stacks=True)
        gate.release()
        future.result(DEADLINE)
        del future, local
        eventually(lambda: [thing() for thing in seen] == [None, None], "the locals to go, those of this thread, too")
    finally:
        gc.enable()

    assert outermost(infos[0].stack) == "task"


def test_reading_leaves_no_frame_of_the_reader_behind() -> None:
    def read() -> weakref.ref[Thing]:
        thing = Thing()
        stack_of(threading.current_thread())
        return weakref.ref(thing)

    gc.disable()
    try:
        assert read()() is None
    finally:
        gc.enable()


COLLECT_WHILE_FRAMES_ARE_READ = """
import faulthandler, gc, sys, threading
sys.path.insert(0, {tests!r})
from engine import stack_of

faulthandler.dump_traceback_later({deadline}, exit=True)

class Garbage:
    pass

def descend(left):
    if left:
        return descend(left - 1)
    ready.set()
    go.wait()

read = sys._current_frames

def read_with_garbage_about():
    garbage = Garbage()
    garbage.itself, garbage.local = garbage, threading.local()
    garbage.local.value = 1
    del garbage
    gc.set_threshold(5, 1, 1)
    try:
        return read()
    finally:
        gc.set_threshold(100000)

sys._current_frames = read_with_garbage_about
gc.set_threshold(100000)
for _ in range(50):
    ready, go = threading.Event(), threading.Event()
    thread = threading.Thread(target=descend, args=(60,))
    thread.start()
    ready.wait()
    gc.enable()
    stack_of(thread)
    assert gc.isenabled()
    gc.disable()
    stack_of(thread)
    assert not gc.isenabled()
    go.set()
    thread.join()
"""


def test_a_garbage_collection_hangs_no_reader_of_frames() -> None:
    tests = str(Path(__file__).parent)
    run = run_python(COLLECT_WHILE_FRAMES_ARE_READ.format(tests=tests, deadline=DEADLINE))

    assert (run.returncode, run.stderr) == (0, "")


# -- where it cannot be had --


def test_an_error_is_told_in_the_place_of_the_stack(make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no file")

    pool = make_pool(1)
    pool.submit(held, gate)
    gate.wait_until_held()
    with monkeypatch.context() as patch:
        patch.setattr(linecache, "checkcache", fail)
        stack = stack_in(pool)

    assert stack == "  (the stack cannot be shown: OSError('no file'))\n"


def test_ctrl_c_is_for_the_program(make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    pool = make_pool(1)
    pool.submit(held, gate)
    gate.wait_until_held()
    with monkeypatch.context() as patch:
        patch.setattr(linecache, "checkcache", interrupt)
        with pytest.raises(KeyboardInterrupt):
            stack_in(pool)


# -- without the GIL --


def refuse(*_: object, **__: object) -> None:
    pytest.fail("a frame was read")


def dump_nothing(file: IO[bytes], *, all_threads: bool) -> None:
    file.write(b"...\n")


def without_the_gil(patch: pytest.MonkeyPatch, since: tuple[int, ...]) -> None:
    patch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    patch.setattr(stacks_module, "STOPS_THE_WORLD", since)


def test_without_the_gil_all_threads_stop_for_the_stacks(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1)
    pool.submit(held, gate)
    gate.wait_until_held()
    eventually(lambda: names_in(stack_in(pool))[-1] == "wait", "the task to sleep")
    usual = stack_in(pool)
    with monkeypatch.context() as patch:
        without_the_gil(patch, (3, 0))
        patch.setattr(sys, "_current_frames", refuse)
        safe = stack_in(pool)

    assert safe == usual
    assert outermost(safe) == "held"


def test_an_early_python_without_the_gil_says_that_it_cannot(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1)
    pool.submit(held, gate)
    gate.wait_until_held()
    with monkeypatch.context() as patch:
        without_the_gil(patch, (9, 0))
        patch.setattr(sys, "_current_frames", refuse)
        patch.setattr(faulthandler, "dump_traceback", refuse)
        stack = stack_in(pool)

    assert "without the GIL cannot show the stack of a running thread" in stack


DUMP = """\
Thread 0x00007f8660000010 (most recent call first):
  File "a.py", line 7 in inner
  File "a "b".py", line ??? in <module>

Thread 0x00007f8660000020 [pool_0] (most recent call first):
  <no Python frame>

Current thread 0x00007f8660000030 [a (b)] (most recent call first):
  Garbage-collecting
  File "c.py", line 1 in here
...
"""


def test_a_dump_of_all_threads_is_understood() -> None:
    assert parsed_dump(DUMP) == {
        0x7F8660000010: [("a.py", 7, "inner"), ('a "b".py', None, "<module>")],
        0x7F8660000020: [],
        0x7F8660000030: [("c.py", 1, "here")],
    }


def test_a_thread_that_the_dump_leaves_out_has_a_stack_that_is_not_known(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1)
    pool.submit(held, gate)
    gate.wait_until_held()
    with monkeypatch.context() as patch:
        without_the_gil(patch, (3, 0))
        patch.setattr(faulthandler, "dump_traceback", dump_nothing)
        stack = stack_in(pool)

    assert stack == "  (the stack is not known)\n"


@pytest.mark.usefixtures("fast_switching")
def test_stacks_can_be_read_while_all_workers_run(make_pool: MakePool) -> None:
    def descend(left: int) -> int:
        return descend(left - 1) + 1 if left else 0

    pool = make_pool(4)
    results = pool.map(descend, [30] * 2000)
    seen: list[WorkerInfo] = []
    while pool.stats().completed < 2000:
        seen += pool.workers(stacks=True)
    list(results)

    assert {outermost(info.stack) for info in seen if "  File" in info.stack and info.state == "busy"} <= {"descend", "result"}
    assert not [info.stack for info in seen if "cannot be shown" in info.stack]


# -- a worker that was written off --


def test_a_worker_that_was_written_off_is_listed_until_its_call_returns(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, abort_grace=0)
    future = pool.submit(held, gate)
    gate.wait_until_held()
    future.stop()
    eventually(lambda: pool.stats().written_off == 1, "the worker to be written off")
    pool.submit(int).result(DEADLINE)
    infos = {info.state: info for info in pool.workers(stacks=True) if info.state != "idle"}
    gate.release()
    eventually(lambda: pool.stats().written_off == 0, "its call to return")

    assert set(infos) == {"written off"}
    assert infos["written off"].function == "held"
    assert outermost(infos["written off"].stack) == "held"
    assert "written off" not in [info.state for info in pool.workers()]
