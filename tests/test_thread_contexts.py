"""The threads that the library starts: in an empty context, and daemons only where that is allowed."""

from __future__ import annotations

import ast
import contextvars
import sys
import threading
from pathlib import Path

import pytest

import tasker_executor
from engine import make_thread, patch_daemons, patch_thread_making, threads_are_daemons
from support import DEADLINE, run_python

PACKAGE = Path(tasker_executor.__file__).parent

# Where threads inherit contexts, the thread object itself keeps the one of its starter.
INHERITS = """
import contextvars, gc, sys, weakref
from tasker_executor._engine.threads import make_thread

class Request: pass
variable = contextvars.ContextVar("variable")
seen, threads = [], []

def handle():
    request = Request()
    variable.set(request)
    thread = make_thread(lambda: seen.append(variable.get(None)), "ours")
    thread.start()
    threads.append(thread)
    return weakref.ref(request)

reference = contextvars.Context().run(handle)
threads[0].join()
gc.collect()
assert seen == [None], seen
assert reference() is None
print("empty")
"""


OPTIONS: list[str] = ["-X", "thread_inherit_context=1"] if sys.version_info >= (3, 14) else []


def test_a_thread_of_ours_neither_sees_nor_keeps_the_context_of_its_starter() -> None:
    done = run_python(INHERITS, *OPTIONS)

    assert (done.stdout.strip(), done.stderr) == ("empty", "")


#: A request has a thread of ours started, by `start`, and is over while that thread lives. What user code sees there,
#: it notes by `look`. Everything else in the program is none of the request's.
REQUEST = """
import contextvars, gc, sys, threading, weakref
from tasker_executor import ResourceExecutor

class Request: pass
variable = contextvars.ContextVar("variable")
held, opened = threading.Event(), threading.Event()
seen = []

def look(*_):
    seen.append(variable.get(None))

def hold(*_):
    look()
    held.set()
    opened.wait()

def wait_in_task(*_):
    begun.set()
    opened.wait()

begun = threading.Event()

def handle():
    request = Request()
    variable.set(request)
    start()
    return weakref.ref(request)

def check(kind):
    reference = contextvars.Context().run(handle)
    alive = [thread.name for thread in threading.enumerate() if kind in thread.name]
    gc.collect()
    print(len(alive), "kept" if reference() else "gone", *seen)
    opened.set()
"""

#: The name of the thread, what user code on it sees, and the rest of the program.
STARTED: dict[str, tuple[str, str, str]] = {
    "a worker, by submit": (
        "-0_0",
        "None",
        """
pool = ResourceExecutor(1, on_create=lambda: look() or {})
def start(): pool.submit(len).result()
""",
    ),
    "a worker, by the constructor": (
        "-0_0",
        "None",
        """
pools = []
def start():
    pools.append(ResourceExecutor(1, on_create=lambda: look() or {}, min_workers=1))
    pools[0].wait_ready()
""",
    ),
    "the timer": (
        "_timer",
        "",
        """
pool = ResourceExecutor(1)
def start():
    pool.with_options(start_within=60).submit(int).result()
    while not any(thread.name.endswith("_timer") for thread in threading.enumerate()):
        pass
""",
    ),
    "the abort of a stop": (
        "_abort",
        "None",
        """
pool = ResourceExecutor(1, on_create=dict, on_abort=hold)
future = pool.submit(wait_in_task)
begun.wait()
def start(): future.stop() and held.wait()
""",
    ),
    "the abort of a kill": (
        "_abort",
        "None",
        """
pool = ResourceExecutor(1, on_create=dict, on_abort=hold)
pool.submit(wait_in_task)
begun.wait()
def start(): pool.kill() or held.wait()
""",
    ),
    "the herald": (
        "_herald",
        "None",
        """
pool = ResourceExecutor(1)
pool.submit(wait_in_task)
begun.wait()
def start():
    pool.with_options(start_within=0.01).submit(int).add_done_callback(hold)
    held.wait()
""",
    ),
    "the end of a dropped executor": (
        "_closer",
        "None",
        """
pool = ResourceExecutor(1, on_create=dict, on_destroy=hold, resource_pool_size=1)
def start():
    global pool
    del pool
    held.wait()
""",
    ),
}


@pytest.mark.parametrize("kind, sees, program", list(STARTED.values()), ids=list(STARTED))
def test_each_thread_of_ours_lets_the_context_of_its_starter_go(kind: str, sees: str, program: str) -> None:
    done = run_python(f"{REQUEST}{program}check({kind!r})", *OPTIONS)

    assert (done.stdout, done.stderr) == (f"1 gone {sees}".strip() + "\n", "")


def test_a_thread_of_ours_has_an_empty_context() -> None:
    variable = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []
    variable.set("the starter's")
    thread = make_thread(lambda: seen.append(variable.get()), "ours")
    thread.start()
    thread.join(DEADLINE)

    assert seen == ["none"]


def test_a_thread_of_ours_is_a_daemon_where_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_thread(int, "ours").daemon == threads_are_daemons()
    patch_daemons(monkeypatch, False)
    assert not make_thread(int, "ours").daemon


#: What makes a thread, and may hand on a context.
MAKERS = {"Thread", "Timer", "ThreadPoolExecutor", "to_thread", "run_in_executor", "start_new_thread", "start_joinable_thread"}
#: These have their own reasons to make a thread in another way.
ELSEWHERE = {
    "_engine/threads.py": ["threading.Thread"],  # `make_thread` itself
    "_engine/timer.py": ["_thread.start_new_thread"],  # has no context in any Python, and only calls `make_thread`
    "_engine/core.py": ["Timer"],  # ours
    "_base.py": ["ThreadPoolExecutor"],  # a base class in name only: it starts no thread
    "resources/pika.py": ["threading.Timer"],  # it ends before its starter goes on, and calls nothing of the user's
}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_thread_is_made_in_another_way(path: Path) -> None:
    tree = list(ast.walk(ast.parse(path.read_text())))
    calls = [ast.unparse(node.func) for node in tree if isinstance(node, ast.Call)]
    bases = [ast.unparse(base) for node in tree if isinstance(node, ast.ClassDef) for base in node.bases]
    made = [name for name in calls + bases if name.rpartition(".")[2] in MAKERS]

    assert made == ELSEWHERE.get(path.relative_to(PACKAGE).as_posix(), [])


def test_a_dropped_pool_ends_on_a_thread_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[threading.Thread] = []
    make = make_thread

    def note(*args: object) -> threading.Thread:
        thread = make(*args)  # type: ignore[arg-type]  # as they come
        made.append(thread)
        return thread

    patch_thread_making(monkeypatch, note)
    pool = tasker_executor.ResourceExecutor(1, on_create=list[int], resource_pool_size=1, name="dropped")
    del pool

    assert [thread.name for thread in made] == ["dropped_closer"]
    made[0].join(DEADLINE)
