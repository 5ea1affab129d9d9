"""The end of a pool, of a process, of the interpreter."""

from __future__ import annotations

import gc
import os
import signal
import threading

from ..stage import Stage, outcome_of
from ..subjects import SIZE
from ..tasks import BOOK, note, write
from ._fault import After, fault


@fault("shutdown with queued work", topic="shutdown", after=After.REPORT)
def shutdown(stage: Stage) -> None:
    """Forty tasks are submitted, and the pool is shut down at once. All have to be done, and nothing to be left."""
    stage.start()
    stage.submit(write, 0.1, count=10 * SIZE)
    stage.end(8.0)


@fault("shutdown with a hanging task", topic="stop", within=2.0, after=After.REPORT)
def stop_hanging(stage: Stage) -> None:
    """Four queries hang, eight tasks wait. The pool has to end within eight seconds, by the strongest means that it has, and
    each task to have an end.
    """
    stage.start()
    stage.submit(write, 60.0, count=SIZE, wants="cancelled")
    stage.until_busy()
    stage.submit(write, count=2 * SIZE, wants="cancelled")
    stage.end(8.0, "stop")


@fault("interpreter exit with queued work", topic="exit", after=After.EXIT)
def interpreter_exit(stage: Stage) -> None:
    """Twenty tasks are submitted, and the main thread ends without another word. They have to be done, and the process has
    to end within twenty seconds.
    """
    stage.start()
    stage.submit(write, 0.1, count=5 * SIZE)
    stage.promise_all()


@fault("SIGTERM", topic="exit", after=After.EXIT)
def sigterm(stage: Stage) -> None:
    """Twenty tasks are submitted, and SIGTERM comes. Its handler leaves the main program by SystemExit, and on the way out
    the pool is shut down. The tasks have to be done, and the process has to end with status 0, within twenty seconds.
    """
    stage.start()

    def leave(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)
    try:
        stage.submit(write, 0.1, count=5 * SIZE)
        stage.promise_all()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        while True:
            signal.pause()
    finally:
        stage.subject.shutdown()


@fault("a fork", topic="fork")
def fork(stage: Stage) -> None:
    """The process forks while four tasks run and four wait. The child submits a task, which has to be done, or to fail with
    an error, within three seconds. The work of the parent has to be done, too.
    """
    stage.start()
    stage.submit(write, 0.3, count=2 * SIZE)
    stage.until_busy()
    number = stage.promise("unfinished")
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)  # Even submit() may hang.
        try:
            outcome = outcome_of(stage.subject.submit(write, number), 3.0)[0]
        except Exception:
            outcome = "error"
        os._exit(["result", "error", "cancelled", "unfinished"].index(outcome))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    outcomes = {0: "result", 1: "error", 2: "cancelled"}
    stage.works[-1].outcome = outcomes.get(status, "without end")
    stage.works[-1].error = "error in the child"


@fault("a dropped pool", topic="drop", within=6.0, after=After.REPORT)
def dropped(stage: Stage) -> None:
    """Twelve tasks are submitted, and the last reference to the pool is deleted. The tasks have to be done, and then threads
    and connections to be gone.
    """
    stage.start()
    stage.submit(write, 0.2, count=3 * SIZE)
    stage.subject = None
    del BOOK.subject
    gc.collect()
    stage.collect(6.0)
    stage.look_behind()


@fault("100,000 queued tasks, and the end", topic="stop", within=6.0, after=After.REPORT)
def many_killed(stage: Stage) -> None:
    """A hundred thousand tasks wait behind four that take a second. The pool has to end within thirty seconds, dropping what
    waits, and each task to have an end: done or cancelled.
    """
    stage.start()
    stage.submit(write, 1.0, count=SIZE, wants="any")
    stage.until_busy()
    stage.submit(note, count=100_000, wants="any", effect="run")
    stage.end(30.0, "stop")
