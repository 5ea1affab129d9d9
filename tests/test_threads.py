"""How threads of our own are started: what is a refusal of the system, and what is somebody else's error."""

from __future__ import annotations

import contextvars
import sys
import threading

import pytest

from engine import CannotStart, make_thread, start_thread
from support import DEADLINE, join_all

#: What `Thread.start` calls to make a thread.
STARTER = "_start_joinable_thread" if sys.version_info >= (3, 13) else "_start_new_thread"
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


class Limit(TimeoutError):
    """A time limit of the user's."""


def raise_from_c(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have the function in C that makes threads raise `error`: with no frame of its own in the traceback."""

    def starter(*_: object, **__: object) -> None:
        raise error

    start = threading.Thread.start

    def start_and_forget_the_frame(thread: threading.Thread) -> None:
        try:
            start(thread)
        except Exception as refused:
            trace = refused.__traceback__
            while trace is not None and trace.tb_next is not None and trace.tb_next.tb_frame.f_code is not starter.__code__:
                trace = trace.tb_next
            assert trace is not None
            trace.tb_next = None
            raise

    monkeypatch.setattr(threading, STARTER, starter)
    monkeypatch.setattr(threading.Thread, "start", start_and_forget_the_frame)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        MemoryError(),
        RuntimeError("daemon thread are not supported in this interpreter"),
    ],
    ids=repr,
)
def test_a_refusal_of_the_system_is_one_class(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    raise_from_c(monkeypatch, error)

    with pytest.raises(CannotStart) as caught:
        start_thread(make_thread(int, "never"))

    assert caught.value.__cause__ is error
    assert isinstance(caught.value, RuntimeError)
    assert str(caught.value) == (str(error) or "can't start new thread")


@pytest.mark.parametrize(
    "error",
    [
        Limit(),
        TimeoutError("time limit"),
        RecursionError("deep"),
        RuntimeError("of a handler"),
        MemoryError(),
        OSError(5, "EIO"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("where", ["before", "after"])
def test_an_error_of_a_signal_handler_is_no_refusal(monkeypatch: pytest.MonkeyPatch, error: Exception, where: str) -> None:
    thread = make_thread(int, "interrupted")
    begun: threading.Event = vars(thread)["_started"]  # what `Thread.start` waits for
    wait = begun.wait

    def handler(*_: object, **__: object) -> None:
        if where == "after":
            wait(DEADLINE)
        raise error

    patched: tuple[object, str] = (threading, STARTER) if where == "before" else (begun, "wait")
    monkeypatch.setattr(*patched, handler)

    with pytest.raises(type(error)) as caught:
        start_thread(thread)
    monkeypatch.undo()

    assert caught.value is error
    if where == "after":
        eventually_ends(thread)


def test_recursion_error_from_the_call_itself_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    raise_from_c(monkeypatch, RecursionError("maximum recursion depth exceeded"))

    with pytest.raises(RecursionError):
        start_thread(make_thread(int, "never"))


def test_a_thread_of_ours_has_an_empty_context_and_its_name() -> None:
    seen: list[str] = []
    VARIABLE.set("the starter's")
    thread = make_thread(lambda: seen.append(VARIABLE.get() + " in " + threading.current_thread().name), "ours")
    start_thread(thread)
    eventually_ends(thread)

    assert seen == ["unset in ours"]


def eventually_ends(thread: threading.Thread) -> None:
    assert join_all([thread], DEADLINE) == []
