"""How programs end. Each test is a program of its own: what it printed, that it complained of nothing, and its exit status."""

from __future__ import annotations

import signal
import sys
import textwrap

import pytest

from support import run_python

HEADER = """
import atexit, os, signal, sys, threading, time
from tasker_executor import ResourceExecutor, current_task

signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background, the shell has it ignored

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")  # whole lines, though threads write at once
    sys.stdout.flush()

class Connection:
    def close(self):
        say("closed")
"""


def run(program: str) -> str:
    """Run the program; return what it printed. It must end well, and must not complain."""
    process = run_python(HEADER + textwrap.dedent(program))
    assert process.stderr == ""
    assert process.returncode == 0
    return process.stdout


def test_exit_runs_what_is_queued_and_destroys_the_resources() -> None:
    output = run("""
        gate = threading.Event()
        pool = ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close)
        pool.submit(lambda connection: gate.wait())
        for number in range(5):
            pool.submit(lambda connection, number: say(number), number)
        gate.set()
    """)

    assert output.split() == ["0", "1", "2", "3", "4", "closed"]


def test_exit_destroys_the_resources_of_run_now() -> None:
    output = run("""
        pool = ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close, resource_pool_size=2)
        pool.run_now(lambda connection: say("ran"))
    """)

    assert output.split() == ["ran", "closed", "closed"]


def test_exit_finishes_the_drain_after_shutdown_without_wait() -> None:
    output = run("""
        gate = threading.Event()
        pool = ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close)
        pool.submit(lambda connection: gate.wait())
        pool.submit(lambda connection: say("ran"))
        pool.shutdown(wait=False)
        gate.set()
    """)

    assert output.split() == ["ran", "closed"]


def test_exit_finishes_the_drain_of_a_dropped_pool() -> None:
    output = run("""
        gate = threading.Event()
        pool = ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close)
        pool.submit(lambda connection: gate.wait())
        pool.submit(lambda connection: say("ran"))
        del pool
        gate.set()
    """)

    assert output.split() == ["ran", "closed"]


def test_exit_of_an_idle_pool_with_every_kind_of_thread() -> None:
    output = run("""
        from tasker_executor import BacklogPolicy
        pool = ResourceExecutor(2, on_create=Connection, on_destroy=Connection.close, min_workers=2, policy=BacklogPolicy())
        pool.with_options(start_within=60).submit(lambda connection: say("ran")).result()
        pool.wait_ready()
    """)

    assert output.split() == ["ran", "closed", "closed"]


def test_exit_while_the_factory_fails_fails_the_tasks() -> None:
    output = run("""
        import logging
        logging.disable()
        def create():
            raise OSError("down")
        pool = ResourceExecutor(1, on_create=create, create_timeout=0.05)
        future = pool.submit(lambda connection: None)
        future.add_done_callback(lambda future: say(type(future.exception()).__name__))
    """)

    assert output.split() == ["ResourceCreationError"]


def test_a_task_that_hangs_after_kill_does_not_keep_the_interpreter() -> None:
    output = run("""
        started = threading.Event()
        pool = ResourceExecutor(1)
        pool.submit(lambda: (started.set(), threading.Event().wait()))
        queued = pool.submit(say, "never")
        started.wait()
        pool.kill()
        say(queued.cancelled())
    """)

    assert output.split() == ["True"]


def test_a_task_that_hangs_after_kill_in_a_with_block_does_not_keep_the_interpreter() -> None:
    output = run("""
        started = threading.Event()
        with ResourceExecutor(1) as pool:
            pool.submit(lambda: (started.set(), threading.Event().wait()))
            started.wait()
            pool.kill()
        say("left")
    """)

    assert output.split() == ["left"]


def test_exit_ends_the_workers_of_a_killed_pool_that_are_not_stuck() -> None:
    output = run("""
        pool = ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close)
        pool.submit(lambda connection: None).result()
        pool.kill()
        pool.shutdown()
        say(threading.active_count())
    """)

    assert output.split() == ["closed", "1"]


def test_submit_from_a_task_during_exit_is_refused_with_the_words_of_the_standard_library() -> None:
    output = run("""
        pool = ResourceExecutor(1)
        def late():
            while pool.stats().state == "running":
                pass
            try:
                pool.submit(int)
            except RuntimeError as error:
                say(error)
        pool.submit(late)
    """)

    assert output.strip() == "cannot schedule new futures after interpreter shutdown"


def test_submit_in_an_atexit_callback_is_refused() -> None:
    output = run("""
        pool = ResourceExecutor(1)
        pool.submit(int).result()
        @atexit.register
        def late():
            try:
                pool.submit(say, "never")
            except RuntimeError as error:
                say(error)
    """)

    assert output.startswith("cannot schedule new futures")


def test_an_executor_made_in_an_atexit_callback_refuses_tasks_and_holds_nothing() -> None:
    output = run("""
        @atexit.register
        def late():
            pool = ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close, min_workers=1)
            try:
                pool.submit(say, "never")
            except RuntimeError as error:
                say(error)
            pool.shutdown()
            say(pool.stats().resources_created)
    """)

    assert output.splitlines() == ["cannot schedule new futures after interpreter shutdown", "0"]


def test_exit_through_sys_exit_keeps_the_status() -> None:
    process = run_python(HEADER + "pool = ResourceExecutor(1)\npool.submit(say, 'ran')\nsys.exit(3)")

    assert (process.stdout, process.stderr, process.returncode) == ("ran\n", "", 3)


def test_an_exception_in_the_main_thread_is_all_that_is_printed() -> None:
    process = run_python(
        HEADER
        + textwrap.dedent("""
        pool = ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close)
        pool.submit(lambda connection: say("ran"))
        raise ValueError("main failed")
        """)
    )

    assert process.stdout.split() == ["ran", "closed"]
    assert process.stderr.startswith("Traceback")
    assert process.stderr.endswith("ValueError: main failed\n")
    assert process.stderr.count("Traceback") == 1
    assert process.returncode == 1


def test_an_exception_in_the_with_block_waits_for_the_tasks_and_is_raised() -> None:
    output = run("""
        try:
            with ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close) as pool:
                pool.submit(lambda connection: say("ran"))
                raise ValueError("mine")
        except ValueError as error:
            say(error)
    """)

    assert output.split() == ["ran", "closed", "mine"]


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill with SIGINT is of POSIX")
@pytest.mark.parametrize(
    "blocked_in",
    ["future.result()", "future.exception(60)", "wait([future])", "next(as_completed([future]))", "next(results)"],
)
def test_ctrl_c_interrupts_whoever_waits_for_a_result(blocked_in: str) -> None:
    # The signal comes when the main thread has registered as a waiter, or is about to: it is delivered either way.
    output = run(f"""
        from concurrent.futures import wait, as_completed
        gate = threading.Event()
        pool = ResourceExecutor(2, on_create=Connection, on_destroy=Connection.close)
        future = pool.submit(lambda connection: gate.wait())
        results = pool.map(lambda connection, n: gate.wait(), [1])
        try:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            {blocked_in}
        except KeyboardInterrupt:
            say("interrupted")
        gate.set()
        say(future.result())
        pool.shutdown()
    """)

    assert output.split()[:2] == ["interrupted", "True"]


def test_ctrl_c_in_a_with_block_drains_and_goes_on() -> None:
    output = run("""
        started = threading.Event()
        gate = threading.Event()
        try:
            with ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close) as pool:
                pool.submit(lambda connection: (started.set(), gate.wait()))
                pool.submit(lambda connection: say("queued ran"))
                started.wait()
                threading.Timer(0.1, gate.set).start()
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            say("interrupted", pool.stats().state)
    """)

    assert output.splitlines() == ["queued ran", "closed", "interrupted closed"]


def test_ctrl_c_during_the_wait_at_the_end_of_a_with_block_can_be_followed_by_kill() -> None:
    output = run("""
        started = threading.Event()
        def work():
            started.set()
            current_task().wait()
            return "told to stop"
        def press_ctrl_c_once_it_drains():
            while pool.stats().state == "running":
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
        try:
            with ResourceExecutor(1) as pool:
                future = pool.submit(work)
                queued = pool.submit(say, "never")
                started.wait()
                threading.Thread(target=press_ctrl_c_once_it_drains).start()
        except KeyboardInterrupt:
            pool.kill()
            say(future.result(), queued.cancelled())
    """)

    assert output.strip() == "told to stop True"


def test_unhandled_ctrl_c_ends_the_program_after_the_drain() -> None:
    process = run_python(
        HEADER
        + textwrap.dedent("""
        pool = ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close)
        gate = threading.Event()
        pool.submit(lambda connection: gate.wait())
        pool.submit(lambda connection: say("queued ran"))
        gate.set()
        signal.raise_signal(signal.SIGINT)
        """)
    )

    assert process.stdout.split() == ["queued", "ran", "closed"]
    assert process.stderr.endswith("KeyboardInterrupt\n")
    assert process.stderr.count("Traceback") == 1
    assert process.returncode in (-signal.SIGINT, 1)


def test_exit_does_not_wait_for_run_now_on_a_daemon_thread() -> None:
    output = run("""
        import threading
        pool = ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close, resource_pool_size=2)
        inside = threading.Event()
        def task(connection):
            inside.set()
            threading.Event().wait()
        threading.Thread(target=pool.run_now, args=(task,), daemon=True).start()
        inside.wait()
    """)

    assert output.split() == ["closed"]  # the free one


def test_exit_waits_a_moment_and_no_longer_for_on_abort() -> None:
    output = run("""
        import threading
        def abort(connection):
            say("aborting")
            threading.Event().wait()
        pool = ResourceExecutor(1, on_create=Connection, on_destroy=Connection.close, on_abort=abort)
        inside = threading.Event()
        def task(connection):
            inside.set()
            threading.Event().wait()
        pool.submit(task)
        inside.wait()
        pool.kill()
    """)

    assert output.split() == ["aborting"]
