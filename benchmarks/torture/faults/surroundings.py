"""What a process lives in: its log, its clock, its limits, its credentials."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import threading
import time
from typing import NoReturn

from ..stage import Stage
from ..subjects import SIZE
from ..tasks import fail, write
from ._fault import PATIENCE, fault


class Raising(logging.Handler):
    def emit(self, record: logging.LogRecord) -> NoReturn:
        raise RuntimeError("the log is full")


@fault("a logging handler that raises", within=PATIENCE)
def raising_handler(stage: Stage) -> None:
    """A handler of the root logger, at level INFO, raises at every record, as on a full disk. Four tasks run and four wait
    when the server ends all connections; four more raise an error of their own.
    """
    stage.start()
    logging.getLogger().addHandler(Raising())
    logging.getLogger().setLevel(logging.INFO)
    stage.submit(write, 0.3, count=2 * SIZE)
    stage.until_busy()
    stage.terminate()
    stage.over()
    stage.submit(fail, count=SIZE, wants="error", effect="run")


@fault("credentials rotated", topic="credentials")
def credentials(stage: Stage) -> None:
    """The connection string names a service, whose user stands in a file. The user is replaced by another one, and may no
    longer log in; the server ends its connections. The subject is told, if it can be told. Eight tasks come.
    """
    stage.make_user("old")
    stage.make_user("new")
    stage.use_service("old")
    stage.start()
    stage.use_service("new")
    stage.lock_user("old")
    stage.subject.rotated()
    stage.terminate()
    time.sleep(0.2)
    stage.over()
    stage.submit(write, count=2 * SIZE)


@fault("a clock that jumps")
def clock(stage: Stage) -> None:
    """The wall clock, as time.time() tells it, goes two hours forward while tasks run and wait, and then four hours back.
    Sixteen tasks have to be done as if nothing had happened.
    """
    true_time, offset = time.time, 0.0
    time.time = lambda: true_time() + offset
    stage.start()
    stage.submit(write, 0.3, count=2 * SIZE)
    stage.until_busy()
    offset = 7200.0
    stage.submit(write, 0.1, count=SIZE)
    time.sleep(0.5)
    offset = -7200.0
    stage.submit(write, 0.1, count=SIZE)
    stage.over()


@fault("file descriptors used up", within=PATIENCE)
def descriptors(stage: Stage) -> None:
    """The process has no free file descriptor for two seconds, and the server ends all connections. Eight tasks come."""
    stage.start()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    taken: list[int] = []
    end = time.monotonic() + 2.0
    take_all(taken)
    stage.terminate()
    stage.submit(write, count=2 * SIZE)
    while time.monotonic() < end:  # A connection that is closed frees one.
        take_all(taken)
        time.sleep(0.001)
    for descriptor in taken:
        os.close(descriptor)
    stage.over()


def take_all(taken: list[int]) -> None:
    """Open files until no more can be opened."""
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))


@fault("threads refused", within=PATIENCE)
def threads_refused(stage: Stage) -> None:
    """The system starts no threads for a second, just after the pool was made. Eight tasks come in that time, and eight
    afterwards.
    """
    stage.start(warm=False)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")  # As in the standard library.

    threading.Thread.start = refuse  # type: ignore[assignment, method-assign]  # that is the fault
    stage.submit(write, 0.1, count=2 * SIZE)
    time.sleep(1.0)
    threading.Thread.start = start  # type: ignore[method-assign]  # and its end
    stage.over()
    stage.submit(write, 0.1, count=2 * SIZE)
