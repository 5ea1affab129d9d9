"""Where a fault takes place: it submits work, makes trouble, and counts what became of the work."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .proxy import Proxy
from .subjects import SIZE, Subject
from .tasks import BOOK, Task, read
from .verdict import Counts

__all__ = ["Stage", "Work", "eventually"]

#: How long new work may fail after the fault is over.
RECOVERY = 8.0
#: How long threads and connections may need to be gone after the shutdown has returned.
GRACE = 1.5


@dataclass
class Work:
    """A task that was submitted, and what became of it."""

    number: int
    future: Any
    #: What the fault wants it to end with: "result"; "error"; "cancelled", whatever the pool calls that; "any" end.
    wants: str = "result"
    #: What is its effect: "row", in the database; "run" of the task, also if the row was rolled back; or "none".
    effect: str = "row"
    retried: bool = False  # Whether it is right to run it more than once.
    outcome: str = "unfinished"
    error: str = ""

    @property
    def as_wanted(self) -> bool:
        if self.wants == "any":
            return self.outcome in ("result", "error", "cancelled")
        return self.outcome == self.wants or (self.wants == "cancelled" and self.outcome == "error")


def eventually(question: Callable[[], bool], seconds: float) -> bool:
    """Ask again and again; return whether the answer was yes in time."""
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@dataclass
class Stage:
    """One cell of the table, in its process."""

    cell: str  # The name of its connections and of its rows.
    table: str  # Of the rows.
    server: str  # A connection string.
    subject_class: type[Subject]
    folder: Path
    counts: Counts = field(default_factory=Counts)
    works: list[Work] = field(default_factory=list)
    subject: Any = None

    def __post_init__(self) -> None:
        self.conninfo = ""
        if self.server:
            self._connect()
        BOOK.open(self.cell, self.table, str(self.folder / f"{self.cell}.runs"))
        self._over: float | None = None
        self._lock = threading.Lock()
        self._threads = set(threading.enumerate())

    def _connect(self) -> None:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict, make_conninfo

        self.admin = psycopg.connect(self.server, autocommit=True)
        address = conninfo_to_dict(self.server)
        self.proxy = Proxy(str(address["host"]), int(str(address.get("port", 5432))))
        self.conninfo = make_conninfo(
            self.server,
            host=self.proxy.host,
            port=self.proxy.port,
            application_name=self.cell,
            connect_timeout=2,
            sslmode="disable",  # The proxy reads along.
            gssencmode="disable",
        )

    # -- what faults do

    def start(self, *, transaction: bool = True, warm: bool = True) -> None:
        """Set the subject up; with `warm`, each of its workers has a connection that works afterwards."""
        self.subject = BOOK.subject = self.subject_class(self.conninfo, transaction)
        if warm and not self._round(10.0):
            raise RuntimeError("the subject does not work before the fault")

    def submit(
        self,
        task: Task,
        *arguments: Any,
        count: int = 1,
        wants: str = "result",
        effect: str = "row",
        retried: bool = False,
    ) -> list[Work]:
        """Submit a task so many times. Each gets its number as first argument."""
        with self._lock:
            works = [Work(len(self.works) + n, None, wants, effect, retried) for n in range(count)]
            self.works += works
        try:
            futures = self.subject.submit_many(task, [(work.number, *arguments) for work in works])
        except Exception as error:
            futures = [error] * count
        for work, future in zip(works, futures, strict=True):
            work.future = future
            if isinstance(future, Exception):
                work.outcome, work.error = "error", type(future).__name__
        return works

    def submit_within(self, seconds: float, task: Task, *arguments: Any, wants: str) -> None:
        """Submit a task that must not run longer."""
        work = Work(len(self.works), None, wants)
        self.works.append(work)
        work.future = self.subject.submit_within(seconds, task, work.number, *arguments)

    def promise(self, outcome: str, wants: str = "result") -> int:
        """Note work that has no future here; return its number."""
        self.works.append(Work(len(self.works), None, wants, outcome=outcome))
        return len(self.works) - 1

    def promise_all(self) -> None:
        """All work was accepted. This process is about to end, and the server will be asked what was done."""
        for work in self.works:
            if work.outcome == "unfinished":
                work.outcome = "promised"
        self.report()

    def until_busy(self, number: int = SIZE) -> None:
        """Wait until so many tasks sleep on the server."""
        query = "select count(*) from pg_stat_activity where application_name = %s and wait_event = 'PgSleep'"
        if not eventually(lambda: self.ask(query, self.cell) >= number, 5.0):
            raise RuntimeError(f"no {number} tasks run")

    def terminate(self) -> None:
        """End all backends of the subject, as a restart of the server does."""
        self.ask("select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = %s", self.cell)

    def count_open_transactions(self) -> None:
        """Count the transactions that no task has open any more, and the server still has."""
        query = "select count(*) from pg_stat_activity where application_name = %s and state like 'idle in transaction%%'"
        eventually(lambda: not self.ask(query, self.cell), GRACE)
        self.counts = replace(self.counts, transactions=self.ask(query, self.cell))

    def make_user(self, name: str) -> None:
        """Make a user of the server, for this cell alone."""
        self.admin.execute(f'create role "{self.cell}_{name}" login')

    def lock_user(self, name: str) -> None:
        """Let a user log in no more."""
        self.admin.execute(f'alter role "{self.cell}_{name}" nologin')

    def use_service(self, name: str) -> None:
        """Take the user from a file, as libpq does for a service, and write one into it."""
        from psycopg.conninfo import conninfo_to_dict, make_conninfo

        file = self.folder / f"{self.cell}.service"
        file.write_text(f"[torture]\nuser={self.cell}_{name}\n", encoding="utf-8")
        os.environ["PGSERVICEFILE"] = str(file)
        parameters = {key: str(value) for key, value in conninfo_to_dict(self.conninfo).items() if key != "user"}
        self.conninfo = make_conninfo(**{**parameters, "service": "torture"})

    def over(self) -> None:
        """The trouble is over: from now on time is taken until every worker has done work."""
        self._over = time.monotonic()

    def ask(self, query: str, *arguments: Any) -> Any:
        """Ask the server, past the proxy."""
        if not self.server:
            return 0
        row = self.admin.execute(query, arguments).fetchone()
        return row and row[0]

    # -- what becomes of it

    def collect(self, within: float) -> None:
        """Wait until all work has ended, or the time is over."""
        deadline = time.monotonic() + within
        for work in self.works:
            if work.outcome == "unfinished":
                work.outcome, work.error = outcome_of(work.future, deadline - time.monotonic())

    def hangs(self) -> bool:
        """Return whether some work has no end, so there is no need to see more."""
        return any(work.outcome == "unfinished" for work in self.works)

    def probe(self) -> None:
        """Submit new work until a whole round of it succeeds; note how long after the fault that was."""
        over = time.monotonic() if self._over is None else self._over
        recovered = eventually(lambda: self._round(RECOVERY), RECOVERY)
        seconds = round(time.monotonic() - over, 2)
        self.counts = replace(
            self.counts, recovered=recovered, recovery=seconds if recovered and self._over is not None else None
        )

    def _round(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        try:
            futures = self.subject.submit_many(read, [(-1,)] * SIZE)
        except Exception:
            return False
        outcomes = [outcome_of(future, deadline - time.monotonic())[0] for future in futures]
        return outcomes == ["result"] * SIZE

    def end(self, within: float, how: str = "shutdown") -> None:
        """Shut the subject down, in a thread of its own since it may hang; then look for what is left behind."""
        self.report(ended=False)
        method = getattr(self.subject, how)
        ending = threading.Thread(target=method, name="ending", daemon=True)
        ending.start()
        ending.join(within)
        self.counts = replace(self.counts, ended=not ending.is_alive())
        self.look_behind()

    def look_behind(self) -> None:
        """Count what is left: threads, connections."""
        for work in self.works:
            if work.outcome != "unfinished":
                work.future = None  # The traceback of its error may hold a connection.
        gc.collect()

        def threads() -> int:
            return len([thread for thread in threading.enumerate() if thread not in self._threads and thread.name != "ending"])

        def connections() -> int:
            found: int = self.ask("select count(*) from pg_stat_activity where application_name = %s", self.cell)
            return found

        eventually(lambda: threads() == 0 and connections() == 0, GRACE)
        self.counts = replace(self.counts, threads=threads(), connections=connections())

    def report(self, **more: Any) -> None:
        """Write down what is known. The referee adds what the server knows."""
        others = [work for work in self.works if not work.as_wanted]
        outcomes = Counter(work.outcome for work in others)
        counts = replace(
            self.counts,
            submitted=len(self.works),
            done=len(self.works) - len(others),
            failed=dict(Counter(work.error for work in others if work.outcome == "error")),
            cancelled=outcomes["cancelled"],
            defied=outcomes["result"],
            unfinished=outcomes["unfinished"] + outcomes["without end"],
            **more,
        )
        works = [[work.number, work.effect, work.outcome, work.retried] for work in self.works]
        path = self.folder / f"{self.cell}.json"
        path.with_suffix(".new").write_text(json.dumps({**asdict(counts), "works": works}), encoding="utf-8")
        os.replace(path.with_suffix(".new"), path)


def outcome_of(future: Any, seconds: float) -> tuple[str, str]:
    """Return what a future ended with, and the name of its error."""
    try:
        future.result(timeout=max(0.0, seconds))
    except CancelledError as error:
        return "cancelled", type(error).__name__
    except TimeoutError as error:
        return ("error", type(error).__name__) if future.done() else ("unfinished", "")
    except BaseException as error:
        return "error", type(error).__name__
    return "result", ""
