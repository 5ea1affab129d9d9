"""The stacks of threads, as a traceback shows them: what does a worker do at this moment?

**With the GIL**, the frames come from `sys._current_frames`. They are read at once, and only the names of files
and functions and the numbers of lines are kept. A frame that is kept would keep the locals of a task that has
ended.

**Without the GIL**, a frame of a running thread must not be read: the thread may pop it at the same moment, and
the interpreter crashes. `faulthandler` stops all threads while it writes their stacks to a file, from Python
3.13.2 on (gh-128400). So that file is read. It names the newest 100 threads, and of each the innermost 100
calls.

A stack is for a reader, and may be missing; it never changes what it shows. So no function here raises, with
the exception that `_report` names.
"""

from __future__ import annotations

import gc
import linecache
import os
import re
import sys
import threading
from collections.abc import Collection, Iterable
from traceback import FrameSummary, StackSummary
from types import FrameType

from .._chunks import ChunkRunner
from .._report import must_escape, safe_repr
from .._sync import pop_call_into
from .process import after_fork_in_child

__all__ = ["stack_of", "stacks_of"]

#: The number of calls shown of one stack, the innermost ones; that of `faulthandler`.
MOST_CALLS = 100
#: The first Python whose `faulthandler` stops all threads while it reads their frames.
STOPS_THE_WORLD = (3, 13, 2)

#: A call: the file, the line, and the name of the function.
Call = tuple[str, int | None, str]

_THREAD = r"(?:Current thread|Thread) 0x([0-9a-f]+)\b.*"
_CALL = r'  File "(.*)", line (\d+|\?\?\?) in (.*)'


def stack_of(thread: threading.Thread) -> str:
    """Return the stack of `thread` as a text: see `stacks_of`."""
    return stacks_of([thread]).get(thread, "")


def stacks_of(threads: Iterable[threading.Thread]) -> dict[threading.Thread, str]:
    """Return the stack of each thread as a text, the innermost call last, all of one moment.

    The outermost calls are left out as long as they are those of a worker's own loop. So the text is empty for
    a worker that rests, or runs a function of C. If the stack of a thread cannot be shown, the text says why.
    """
    idents = {thread: ident for thread in threads if (ident := thread.ident) is not None}
    try:
        if not idents:
            return {}
        if getattr(sys, "_is_gil_enabled", lambda: True)():
            found = _from_frames(idents.values())
        elif sys.version_info >= STOPS_THE_WORLD:
            found = _from_faulthandler()
        else:
            version = ".".join(map(str, sys.version_info[:3]))
            return dict.fromkeys(idents, f"  (Python {version} without the GIL cannot show the stack of a running thread)\n")
        # A thread that has ended may have left its number to another one, which is in `found`.
        return {thread: _text(found.get(ident)) if thread.is_alive() else "" for thread, ident in idents.items()}
    except BaseException as error:
        if must_escape(error):
            raise
        return dict.fromkeys(idents, f"  (the stack cannot be shown: {safe_repr(error)})\n")


def _from_frames(idents: Collection[int]) -> dict[int, list[Call]]:
    """Return the calls of these threads, the innermost first."""
    everything = _current_frames()
    frames = {ident: everything[ident] for ident in idents if ident in everything}
    everything.clear()  # it has the frame of this call, which refers to it
    calls: dict[int, list[Call]] = {}
    while frames:
        ident, frame = frames.popitem()
        calls[ident] = _calls_of(frame)
        del frame  # at once: if its function has returned, this is the last reference to the locals
    return calls


def _current_frames() -> dict[int, FrameType]:
    """Return the innermost frame of each thread.

    Python 3.11 may collect garbage inside of that call. The end of a `threading.local`, or of a thread, then waits
    for a lock that the call holds, for ever (gh-106883). So the collector is off while it lasts.
    """
    if sys.version_info >= (3, 12):
        return sys._current_frames()
    with _collector:
        enabled = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()
        finally:
            if enabled:
                gc.enable()


# Guards the state of the collector from the look at it until it is restored. A leaf, and no user code runs under
# it but a signal handler: so it is reentrant.
_collector = threading.RLock()


def _forget_the_parent() -> None:
    global _collector  # a thread of the parent may hold it
    _collector = threading.RLock()


after_fork_in_child(_forget_the_parent)


def _calls_of(innermost: FrameType) -> list[Call]:
    calls: list[Call] = []
    frame: FrameType | None = innermost
    while frame is not None:
        calls.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return calls


def _from_faulthandler() -> dict[int, list[Call]]:
    """Return the calls of the newest threads, the innermost first."""
    # Imported on use: together they take as long to import as all of the engine's files.
    import faulthandler
    import tempfile

    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return _parsed(file.read().decode("utf-8", "backslashreplace"))


def _parsed(dump: str) -> dict[int, list[Call]]:
    """Return the calls of each thread in a dump of `faulthandler`."""
    threads: dict[int, list[Call]] = {}
    calls: list[Call] = []
    for line in dump.splitlines():
        if head := re.fullmatch(_THREAD, line):
            calls = threads[int(head[1], 16)] = []
        elif call := re.fullmatch(_CALL, line):
            calls.append((call[1], int(call[2]) if call[2].isdecimal() else None, call[3]))
    for calls in threads.values():
        if len(calls) == MOST_CALLS and not _is_ours(calls[-1][0]):  # the dump does not say that it leaves some out
            calls.append(("", None, ""))
    return threads


def _text(calls: list[Call] | None) -> str:
    """Return calls, the innermost first, as a traceback shows them."""
    if calls is None:
        return "  (the stack is not known)\n"
    while calls and _is_ours(calls[-1][0]):
        del calls[-1]
    for file in {file for file, _, _ in calls[:MOST_CALLS]}:
        linecache.checkcache(file)
    shown = [FrameSummary(file, line, name, lookup_line=False) for file, line, name in calls[:MOST_CALLS]]
    first = "  ...\n" if len(calls) > len(shown) else ""
    return first + "".join(StackSummary.from_list(shown[::-1]).format())


#: The files of a worker's loop: those of the engine, and what calls for it in other places.
_ENGINE = os.path.dirname(stacks_of.__code__.co_filename)
_OTHERS = {function.__code__.co_filename for function in (ChunkRunner.__call__, pop_call_into, threading.Thread.run)}


def _is_ours(file: str) -> bool:
    return file in _OTHERS or os.path.dirname(file) == _ENGINE
