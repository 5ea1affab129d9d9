"""fork: the child inherits the memory of a pool, but neither its threads nor its resources."""

from __future__ import annotations

import sys
import textwrap

import pytest

from engine import Handoff
from support import run_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")

HEADER = """
import os, sys, threading, warnings
from tasker_executor import ResourceExecutor

# Python 3.12 and later warn of every fork of a process that has threads, and are right to.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())

def in_child(act):
    # Forks, acts in the child, and returns when that has ended well.
    child = os.fork()
    if child == 0:
        status = 1
        try:
            act()
            status = 0
        except BaseException as error:
            say("child failed:", repr(error))
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0, status

class Connection:
    def __init__(self):
        self.process = os.getpid()
    def close(self):
        assert self.process == os.getpid(), "closed in another process"
        say("closed")
"""


def run(program: str) -> list[str]:
    """Run the program; return the lines that it and its children printed. It must end well, and must not complain."""
    process = run_python(HEADER + textwrap.dedent(program))
    assert process.stderr == ""
    assert process.returncode == 0
    return process.stdout.splitlines()


def test_submitting_in_the_child_raises_an_error_that_says_why_and_the_parent_goes_on() -> None:
    output = run("""
        pool = ResourceExecutor(2, name="mine", on_create=Connection, on_destroy=Connection.close)
        pool.submit(lambda connection: None).result()
        def child():
            for submit in (pool.submit, pool.submit_priority, pool.run_now, pool.with_options(max_retries=0).submit):
                try:
                    submit(lambda connection: say("never"))
                except RuntimeError as error:
                    say(error)
        in_child(child)
        say(pool.submit(lambda connection: "parent goes on").result())
        pool.shutdown()
    """)

    assert output[0].startswith("executor 'mine' was inherited through fork()")
    assert "make a new executor" in output[0]
    assert output[:4] == [output[0]] * 4
    assert output[4:] == ["parent goes on", "closed"]


def test_inherited_futures_that_were_not_done_fail_in_the_child_and_succeed_in_the_parent() -> None:
    output = run("""
        gate, held = threading.Event(), threading.Event()
        pool = ResourceExecutor(1)
        running = pool.submit(lambda: (held.set(), gate.wait(), "ran")[-1])
        held.wait()  # or the priority task might be first
        queued = [pool.submit(lambda: "ran"), pool.submit_priority(lambda: "ran")]
        queued[0].add_done_callback(lambda future: None)
        def child():
            for future in (running, *queued):
                say("child:", type(future.exception(10)).__name__)
        in_child(child)
        gate.set()
        for future in (running, *queued):
            say("parent:", future.result())
    """)

    assert output == ["child: RuntimeError"] * 3 + ["parent: ran"] * 3


def test_futures_done_before_the_fork_keep_their_results_in_the_child() -> None:
    output = run("""
        pool = ResourceExecutor(1)
        future = pool.submit(lambda: "result")
        future.result()
        in_child(lambda: say(future.result(0)))
    """)

    assert output == ["result"]


def test_shutting_the_inherited_pool_down_in_the_child_returns_and_touches_no_resource() -> None:
    output = run("""
        pool = ResourceExecutor(2, on_create=Connection, on_destroy=Connection.close, resource_pool_size=1, min_workers=2)
        pool.wait_ready()
        def child():
            pool.shutdown()
            pool.kill()
            say("child:", pool.stats().state, pool.stats().active_workers)
        in_child(child)
        pool.shutdown()
    """)

    assert output == ["child: closed 0", "closed", "closed", "closed"]


def test_the_child_can_use_an_executor_of_its_own() -> None:
    output = run("""
        inherited = ResourceExecutor(1)
        inherited.submit(int).result()
        def child():
            with ResourceExecutor(2, on_create=Connection, on_destroy=Connection.close) as pool:
                say(pool.submit(lambda connection: "child works").result())
        in_child(child)
    """)

    assert output == ["child works", "closed"]


def test_a_task_may_fork() -> None:
    output = run("""
        pool = ResourceExecutor(1)
        def work():
            def child():
                try:
                    pool.submit(int)
                except RuntimeError as error:
                    say("child:", "inherited through fork()" in str(error))
            in_child(child)
            return "parent goes on"
        say(pool.submit(work).result())
        say(pool.submit(lambda: "and on").result())
    """)

    assert output == ["child: True", "parent goes on", "and on"]


def test_a_child_forked_inside_of_run_now_is_refused_the_parents_resource() -> None:
    # 1. A call of run_now forks. 2. In the child it returns, and gives the parent's resource back. 3. The child calls again.
    output = run("""
        pool = ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close, resource_pool_size=1)
        child = pool.run_now(lambda connection: os.fork())
        if child == 0:
            try:
                pool.run_now(lambda connection: say("child has the resource of the parent"))
            except RuntimeError as error:
                say("child:", "inherited through fork()" in str(error))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        say(pool.run_now(lambda connection: "parent goes on"))
        pool.shutdown()
    """)

    assert output == ["child: True", "parent goes on", "closed"]


def test_a_child_that_exits_in_the_ordinary_way_does_not_wait_for_the_parents_threads() -> None:
    output = run("""
        gate, held = threading.Event(), threading.Event()
        pool = ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close)
        pool.submit(lambda connection: (held.set(), gate.wait()))
        held.wait()
        child = os.fork()
        if child == 0:
            sys.exit(7)
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        gate.set()
        pool.shutdown()
    """)

    assert output == ["7", "closed"]


def test_multiprocessing_can_fork_while_the_pool_works() -> None:
    output = run("""
        import contextlib, multiprocessing
        stop = threading.Event()
        pool = ResourceExecutor(4, on_create=Connection, on_destroy=Connection.close)
        def again(connection):
            with contextlib.suppress(RuntimeError):  # the pool is shut down just now
                if not stop.is_set():
                    pool.submit(again)
        for _ in range(4):
            pool.submit(again)
        context = multiprocessing.get_context("fork")
        for number in range(5):
            process = context.Process(target=say, args=("child", number))
            process.start()
            process.join(30)
            assert process.exitcode == 0, process.exitcode
        stop.set()
        say(pool.submit(lambda connection: "parent goes on").result(30))
        pool.shutdown(timeout=30)
    """)

    assert output[:6] == [f"child {number}" for number in range(5)] + ["parent goes on"]
    assert output[6:] == ["closed"] * 4


@pytest.mark.parametrize("options", ["resource_pool_size=1", "", "resource_pool_size=1, max_uses=1"])
@pytest.mark.parametrize("end", ["return 1", "raise OSError", "pool.shutdown()", "pool.kill()", "pool.kill(destroy=True)"])
def test_fork_inside_of_run_now_leaves_the_parents_resource_alone(options: str, end: str) -> None:
    output = run(f"""
        def never(connection):
            assert connection.process == os.getpid(), "touched in another process"
            return True
        pool = ResourceExecutor(
            2, on_create=Connection, on_destroy=Connection.close, on_abort=Connection.close, check_resource=never, {options}
        )
        def task(connection):
            child = os.fork()
            if child == 0:
                {end}
            return child
        try:
            child = pool.run_now(task)
        except OSError:
            child = 0
        if child in (0, 1):
            pool.shutdown()
            say("child")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        pool.shutdown()
    """)

    assert output.count("child") == 1
    assert set(output) == {"child", "closed"}


def test_fork_inside_of_a_call_that_outlives_its_executor() -> None:
    """1. The executor is closed while the call runs. 2. The call forks. The child is not told of executors that are closed."""
    output = run("""
        pool = ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close, resource_pool_size=1)
        def task(connection):
            pool.shutdown(wait=False)
            return os.fork()
        child = pool.run_now(task)
        if child == 0:
            pool.shutdown()
            say("child")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
    """)

    assert sorted(output) == ["child", "closed"]


@pytest.mark.parametrize("end", ["return 0", "raise OSError", "sys.exit(0)", "os._exit(0)"])
def test_fork_inside_of_a_task_leaves_the_child_nothing_of_the_parents(end: str) -> None:
    # In the child the worker's thread is the only one. Whatever the task does there, the thread ends, and the child with it.
    output = run(f"""
        from tasker_executor import Observer
        parent = os.getpid()
        def in_parent(what):
            say(what if os.getpid() == parent else "child " + what)
        class Watch(Observer):
            def worker_started(self, event):
                in_parent("worker started")
            def task_finished(self, event):
                in_parent("task finished")
            def worker_ended(self, event):
                in_parent("worker ended")
            def resource_destroyed(self, event):
                in_parent("resource destroyed")
            def state_changed(self, event):
                in_parent(event.state)
        pool = ResourceExecutor(
            1, initializer=in_parent, initargs=("initializer",), on_create=Connection, on_destroy=Connection.close,
            observers=[Watch()], max_uses=2
        )
        held, gate = threading.Event(), threading.Event()
        def task(connection):
            held.set()
            gate.wait()
            child = os.fork()
            if child == 0:
                {end}
            return child
        future = pool.submit(task)
        future.add_done_callback(lambda _: in_parent("callback"))
        held.wait()
        pool.submit(lambda connection: in_parent("queued task"))
        gate.set()
        child = future.result(30)
        _, status = os.waitpid(child, 0)
        pool.shutdown(timeout=30)
    """)

    assert [line for line in output if line.startswith("child")] == []
    assert output.count("closed") == 2  # the connection, and the pool
    assert sorted(set(output)) == [
        "callback",
        "closed",
        "draining",
        "initializer",
        "queued task",
        "resource destroyed",
        "task finished",
        "worker ended",
        "worker started",
    ]


@pytest.mark.skipif(not Handoff.supported, reason="needs Linux, and a GIL")
def test_a_fork_without_descriptors_closes_the_executors_all_the_same() -> None:
    # A thread waits by an eventfd, which the child replaces. There is no descriptor left to do so.
    program = """
    import os, resource, threading
    from tasker_executor import ResourceExecutor

    pool = ResourceExecutor(1)
    gate = threading.Event()
    future = pool.submit(gate.wait)
    threading.Thread(target=future.result).start()
    while future._sidecar is None or future._sidecar.handoff is None:
        pass
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

    assert run_python(textwrap.dedent(program), "-W", "ignore").stdout == "refused\n"


def test_tasks_that_stand_in_line_for_a_place_fail_in_the_child_and_run_in_the_parent() -> None:
    output = run("""
        pool = ResourceExecutor(1, name="mine", max_queued=0)
        held, go = threading.Event(), threading.Event()
        pool.submit(lambda: held.set() or go.wait())
        held.wait()
        parked = pool._enqueue_soon(lambda: "parent goes on", (), {}, pool._options)
        assert parked._waits_for_place()
        def child():
            say(parked.exception(0))
            assert not parked._waits_for_place()
        in_child(child)
        go.set()
        say(parked.result())
        pool.shutdown()
    """)

    assert output[0].startswith("executor 'mine' was inherited through fork()")
    assert output[1:] == ["parent goes on"]
