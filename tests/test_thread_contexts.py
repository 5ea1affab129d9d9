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


def test_a_thread_of_ours_neither_sees_nor_keeps_the_context_of_its_starter() -> None:
    options: list[str] = ["-X", "thread_inherit_context=1"] if sys.version_info >= (3, 14) else []
    done = run_python(INHERITS, *options)

    assert (done.stdout.strip(), done.stderr) == ("empty", "")


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


#: These have their own reasons to make a thread in another way.
ELSEWHERE = {"threads.py"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_thread_is_made_in_another_way(path: Path) -> None:
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    made = [call for call in calls if call in {"threading.Thread", "Thread"}]

    assert not made or path.name in ELSEWHERE


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
