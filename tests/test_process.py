"""The process: the order of what happens at the exit of the interpreter, and in the child of a fork."""

from __future__ import annotations

import sys
import textwrap

import pytest

from engine import patch_exiting
from support import MakePool, run_python

HEADER = """
import os, sys, threading
from tasker_executor import ResourceExecutor
from tasker_executor._engine import process

def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())
"""


def run(program: str) -> list[str]:
    """Run the program; return the lines that it and its children printed. It must end well, and must not complain."""
    ended = run_python(HEADER + textwrap.dedent(program))
    assert ended.stderr == ""
    assert ended.returncode == 0
    return ended.stdout.splitlines()


def test_exit_takes_its_steps_in_their_order() -> None:
    output = run("""
        pool = ResourceExecutor(1, on_create=lambda: "resource", on_destroy=lambda _: say("executor ends"))
        pool.submit(lambda _: None).result()
        for number in 1, 2:
            process.at_exit(lambda number=number: say("before", number, pool.stats().state, process.exiting()))
            process.at_exit(lambda number=number: say("last", number, pool.stats().state, process.exiting()), last=True)
    """)

    assert output == [
        "before 2 running False",
        "before 1 running False",
        "executor ends",
        "last 2 closed True",
        "last 1 closed True",
    ]


def test_what_is_registered_for_the_exit_may_use_an_executor() -> None:
    output = run("""
        pool = ResourceExecutor(1)
        pool.submit(int).result()  # from Python 3.12 on, no thread starts at exit
        process.at_exit(lambda: pool.submit(say, "ran"))
    """)

    assert output == ["ran"]


def test_a_task_that_runs_at_exit_may_use_a_pool_of_the_standard_library() -> None:
    output = run("""
        from concurrent.futures import ThreadPoolExecutor
        pool, other = ResourceExecutor(1), ThreadPoolExecutor(1)
        other.submit(int).result()  # from Python 3.12 on, no thread starts at exit
        def late():
            while pool.stats().state == "running":
                pass
            say(other.submit(int).result(30))
        pool.submit(late)
    """)

    assert output == ["0"]


def test_an_executor_that_was_shut_down_keeps_its_words_at_exit() -> None:
    output = run("""
        pool, second = ResourceExecutor(1), ResourceExecutor(1)
        def late():
            while second.stats().state == "running":  # which is closed after the first
                pass
            say(pool._core.refuse())
        pool.submit(late)
        pool.shutdown(wait=False)
    """)

    assert output == ["cannot schedule new futures after shutdown"]


def test_exit_waits_for_a_thread_that_is_about_to_end() -> None:
    output = run("""
        pool = ResourceExecutor(1)
        gate = threading.Event()
        def end():
            gate.wait()
            say("ended")
        thread = threading.Thread(target=end, daemon=True)
        thread.start()
        process.ending.add(thread)
        join = thread.join
        def let_it_end():
            gate.set()
            join()
        thread.join = let_it_end
    """)

    assert output == ["ended"]


def test_exit_waits_for_a_worker_that_has_left_the_books_and_is_about_to_end() -> None:
    output = run("""
        pool = ResourceExecutor(1)
        pool.submit(int).result()
        [thread] = [thread for thread in threading.enumerate() if thread.name.endswith("_0")]
        gate = threading.Event()
        delete, join = thread._delete, thread.join
        def end():  # what a thread does last
            gate.wait()
            say("ended")
            delete()
        def let_it_end():
            gate.set()
            join()
        thread._delete, thread.join = end, let_it_end
        pool.shutdown(wait=False)
        while pool.stats().state != "closed":
            pass
    """)

    assert output == ["ended"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_in_the_child_of_a_fork_calls_are_made_in_their_order_before_the_executors_are_told() -> None:
    output = run("""
        import warnings
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pool = ResourceExecutor(1)
        pool.submit(int).result()
        for number in 1, 2:
            process.after_fork_in_child(lambda number=number: say(number, pool._core.life.state.name))
        child = os.fork()
        if child == 0:
            say("told", pool._core.life.state.name, process.executors(), process.ending.alive())
            os._exit(0)
        os.waitpid(child, 0)
        say("parent", pool.submit(int).result())
    """)

    assert output == ["1 RUNNING", "2 RUNNING", "told CLOSED [] []", "parent 0"]


# -- too late --


def test_an_executor_made_while_the_interpreter_exits_refuses_tasks_and_starts_no_worker(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_exiting(monkeypatch)
    pool = make_pool(2, min_workers=2)

    with pytest.raises(RuntimeError, match="cannot schedule new futures after interpreter shutdown"):
        pool.submit(int)
    assert pool.stats().active_workers == 0
