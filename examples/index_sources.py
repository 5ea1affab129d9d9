"""Index Python's standard library in parallel, search it at the same time, and survive a broken connection.

    python examples/index_sources.py              # the standard library of the Python that runs this
    python examples/index_sources.py SOMEWHERE    # any folder with Python files

Each worker owns a connection to one SQLite database (FTS5 for full text, WAL so that readers need not wait
for the writer).

- The files are indexed in batches: a batch is a task, and a transaction.
- At the same time this thread searches. `submit_priority` lets each search overtake all batches that wait.
- Half-way a connection is closed in the middle of a transaction, on purpose. SQLite rolls back; the executor
  finds the connection broken, replaces the worker, and runs the batch again on another one.
- The last query is made with `run_now`: in this thread, on a connection kept for that.

At the end the books must balance, or the exit status is 1: every file found is in the index, once; every
connection opened was closed.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import shutil
import sqlite3
import statistics
import sys
import sysconfig
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from typing_extensions import override

from tasker_executor import DurationSummary, ExecutorMetrics, Observer, ResourceExecutor, TaskEvent, WorkerEvent, current_task

BATCH_BYTES = 150_000  # A search may have to wait for a batch to end, so none should take long.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}  # not of the standard library
WORDS = ("deadlock", "heapq", "WeakKeyDictionary", "semaphore", "timezone", "unraisable", "xmlrpc", "backslashreplace")


# -- tasks, and the hooks that look after the connections


@dataclass(frozen=True)
class Batch:
    """Files to index, each with its number. A sabotaged batch breaks its connection half-way, the first time it is run."""

    files: list[tuple[int, Path]]
    sabotaged: bool


@dataclass
class Tally:
    """What became of one batch, or of all."""

    files: int = 0
    size: int = 0
    problems: list[str] = field(default_factory=list[str])

    def add(self, other: Tally) -> None:
        self.files += other.files
        self.size += other.size
        self.problems += other.problems


class Index:
    """The database: how to connect to it (hooks), fill it and search it (tasks, which get a connection)."""

    def __init__(self, database: Path, folder: Path, full_text: bool) -> None:
        self._database = database
        self._folder = folder
        self._full_text = full_text
        # SQLite lets one connection write at a time; a second one sleeps and asks again and again. A lock wakes
        # them in turn.
        self._writing = threading.Lock()
        connection = self.connect()
        connection.execute("PRAGMA journal_mode = WAL")  # stays with the database
        if full_text:
            tokenizer = "unicode61 tokenchars '_'"  # an identifier is a word
            connection.execute(f'CREATE VIRTUAL TABLE sources USING fts5 (path UNINDEXED, text, tokenize = "{tokenizer}")')
        else:
            connection.execute("CREATE TABLE sources (path, text)")
        connection.close()

    def connect(self) -> sqlite3.Connection:
        """The on_create hook: called on the thread of each worker."""
        return sqlite3.connect(
            self._database,
            timeout=30.0,  # How long to wait for another program that writes to the database.
            isolation_level=None,  # Transactions begin where we say BEGIN.
            check_same_thread=False,  # A worker's connection stays on its thread; but the one for run_now goes to any caller.
        )

    @staticmethod
    def is_own(error: Exception) -> bool:
        """The check_health hook: a task raised this. Is it the task's own error, or is the connection gone?"""
        return not isinstance(error, sqlite3.ProgrammingError)  # "Cannot operate on a closed database."

    @staticmethod
    def is_usable(connection: sqlite3.Connection) -> bool:
        """The check_resource hook: asked where there is reason for doubt. Is the connection still good?"""
        try:
            return bool(connection.execute("SELECT 1").fetchone() == (1,))
        except sqlite3.Error:
            return False

    def add(self, connection: sqlite3.Connection, batch: Batch) -> Tally:
        """Put a batch of files into the index. Whether it is run once or twice, the result is the same."""
        tally = Tally()
        rows: list[tuple[int, str, str]] = []
        for number, path in batch.files:
            try:
                content = path.read_bytes()
            except OSError as error:  # The other files of the batch are none the worse for it.
                tally.problems.append(f"{path}: {error.strerror}")
            else:
                rows.append((number, str(path.relative_to(self._folder)), content.decode("utf-8", "replace")))
                tally.size += len(content)

        with self._writing, connection:  # the latter commits at the end; rolls back after an error
            connection.execute("BEGIN IMMEDIATE")
            for position, row in enumerate(rows):
                if batch.sabotaged and position == len(rows) // 2 and current_task().attempt == 1:
                    connection.close()
                connection.execute("INSERT OR REPLACE INTO sources (rowid, path, text) VALUES (?, ?, ?)", row)
        tally.files = len(rows)
        return tally

    def search(self, connection: sqlite3.Connection, word: str) -> int:
        """How many files have this word?"""
        query = "SELECT count(*) FROM sources WHERE " + self._has_word()
        return int(connection.execute(query, {"word": self._pattern(word)}).fetchone()[0])

    def best(self, connection: sqlite3.Connection, word: str) -> list[str]:
        """Which three files have most to say about this word?"""
        order = "rank" if self._full_text else "length(replace(text, :word, '')) - length(text)"
        query = f"SELECT path FROM sources WHERE {self._has_word()} ORDER BY {order} LIMIT 3"
        return [path for (path,) in connection.execute(query, {"word": self._pattern(word)})]

    def count(self, connection: sqlite3.Connection) -> tuple[int, int]:
        """How many rows are there, and how many different files?"""
        rows, files = connection.execute("SELECT count(*), count(DISTINCT path) FROM sources").fetchone()
        return int(rows), int(files)

    def _has_word(self) -> str:
        return "sources MATCH :word" if self._full_text else "instr(text, :word)"

    def _pattern(self, word: str) -> str:
        return f'"{word}"' if self._full_text else word


def sqlite_has_full_text() -> bool:
    """Was this SQLite built with FTS5? Most are."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE VIRTUAL TABLE probe USING fts5 (text)")
        return True
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()


# -- the files


def find_sources(folder: Path) -> list[Path]:
    """Return the Python files below a folder, in order."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
        found += [Path(parent, name) for name in sorted(names) if name.endswith(".py")]
    return found


def in_batches(files: list[Path]) -> list[Batch]:
    """Share the files out to batches of about the same size. The one in the middle will fail."""
    groups: list[list[tuple[int, Path]]] = []
    room = 0
    for number, path in enumerate(files, 1):
        if room <= 0:
            groups.append([])
            room = BATCH_BYTES
        groups[-1].append((number, path))
        room -= path.stat().st_size if path.exists() else 0
    return [Batch(group, sabotaged=position == len(groups) // 2) for position, group in enumerate(groups)]


# -- the screen


class Screen:
    """Prints lines. On a terminal there is a progress bar below them; elsewhere progress is lines, too."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._colours = self._terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._bar = ""
        self._next_share = 0.0

    def line(self, text: str = "", colour: int | None = None) -> None:
        if self._bar:
            sys.stdout.write("\r" + " " * len(self._bar) + "\r")
        print(text if colour is None or not self._colours else f"\033[{colour}m{text}\033[0m")
        sys.stdout.write(self._bar)
        sys.stdout.flush()

    def heading(self, text: str) -> None:
        self.line()
        self.line(text, colour=1)

    def progress(self, share: float, text: str) -> None:
        if self._terminal:
            full = round(share * 24)
            bar = f"  [{'#' * full:.<24}] {share:4.0%}  {text}"[: shutil.get_terminal_size().columns - 1]
            sys.stdout.write("\r" + bar.ljust(len(self._bar)))
            sys.stdout.flush()
            self._bar = bar
        elif share >= self._next_share:
            self.line(f"  {share:4.0%}  {text}")
            self._next_share = min(1.0, share + 0.1)

    def end_progress(self) -> None:
        if self._bar:
            print()
        self._bar = ""

    def timing(self, title: str, count: int, *seconds: float) -> None:
        self.line(f"  {title:32} {count:5}  " + "".join(f"{1000 * value:10.1f}" for value in seconds))


class Incidents(Observer):
    """Notes what happens to workers, for the main thread to print: its methods run on the threads of the workers."""

    def __init__(self) -> None:
        self._notes: deque[str] = deque()

    def show(self, screen: Screen) -> None:
        while self._notes:
            screen.line(f"  ! {self._notes.popleft()}", colour=33)

    @override
    def task_retried(self, event: TaskEvent) -> None:
        self._notes.append(f"{event.worker}: {event.error} Its batch will be run again.")

    @override
    def worker_ended(self, event: WorkerEvent) -> None:
        if event.reason != "the executor shut down":
            self._notes.append(f"{event.worker} ended: {event.reason}. A new worker takes its place.")


def show_timing(screen: Screen, metrics: ExecutorMetrics, latencies: list[float]) -> None:
    screen.heading("Timing, in milliseconds")
    screen.line(f"  {'':32} {'count':>5}  {'median':>10}{'p95':>10}{'p99':>10}{'most':>10}")

    def summary(title: str, of: DurationSummary) -> None:
        screen.timing(title, of.count, of.p50, of.p95, of.p99, of.maximum)

    cuts = statistics.quantiles(latencies * 2, n=100, method="inclusive")  # twice, since it wants two values at least
    screen.timing("search, from question to answer", len(latencies), cuts[49], cuts[94], cuts[98], max(latencies))
    summary("any task, waiting in its lane", metrics.wait)
    summary("any task, running", metrics.run)
    summary("opening a connection", metrics.create)


# -- the work


def main() -> None:
    parser = argparse.ArgumentParser(description="Index Python source files with SQLite, in parallel.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(sysconfig.get_path("stdlib")), help="what to index")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="workers, and connections (default: 4)")
    parser.add_argument("--no-fts", action="store_true", help="use a plain table, as where SQLite was built without FTS5")
    options = parser.parse_args()
    full_text = sqlite_has_full_text() and not options.no_fts
    with tempfile.TemporaryDirectory(prefix="tasker-index-") as scratch:
        all_well = run(options.folder, Path(scratch, "sources.db"), options.workers, full_text)
    sys.exit(0 if all_well else 1)


def run(folder: Path, database: Path, workers: int, full_text: bool) -> bool:
    """Do it all, show it, and tell whether all checks passed."""
    # The observer below tells of replaced workers; so the library need not warn of them.
    logging.getLogger("tasker_executor").setLevel(logging.ERROR)
    screen, incidents, total = Screen(), Incidents(), Tally()

    files = find_sources(folder)
    if not files:
        screen.line(f"FAILED: there are no Python files in {folder}", colour=31)
        return False
    batches = in_batches(files)
    index = Index(database, folder, full_text)
    python = f"Python {platform.python_version()}"
    screen.line(f"{len(files)} source files in {folder}", colour=1)
    screen.line(f"{python}, SQLite {sqlite3.sqlite_version}; {len(batches)} batches, {workers} workers with a connection each")
    if not full_text:
        screen.line("Without FTS5: a plain table instead of a full-text index. Searches read all of it, so they are slower.")

    screen.heading("Indexing, and searching meanwhile")
    begin = time.perf_counter()
    latencies: list[float] = []
    with ResourceExecutor(
        workers,
        on_create=index.connect,
        on_destroy=sqlite3.Connection.close,
        check_health=index.is_own,
        check_resource=index.is_usable,
        resource_pool_size=1,  # for run_now
        observers=[incidents],
        name="indexer",
    ) as pool:
        pending: set[Future[Tally]] = {pool.submit(index.add, batch) for batch in batches}
        words = cycle(WORDS)
        while pending:
            word, asked = next(words), time.perf_counter()
            hits = pool.submit_priority(index.search, word).result()
            latencies.append(time.perf_counter() - asked)

            done, pending = wait(pending, timeout=0.05)
            for future in done:
                error = future.exception()
                total.add(future.result() if error is None else Tally(problems=[f"a batch failed: {error!r}"]))
            incidents.show(screen)
            answer = f'"{word}": {hits} hits so far, in {1000 * latencies[-1]:.1f} ms'
            screen.progress(1 - len(pending) / len(batches), f"{total.files:5} files {total.size / 1e6:5.1f} MB  {answer}")
        seconds = time.perf_counter() - begin
        screen.end_progress()

        screen.heading("The last query, with run_now")
        asked = time.perf_counter()
        best = pool.run_now(index.best, "deadlock")
        took = time.perf_counter() - asked
        screen.line(f'  "deadlock" is most at home in these files, it says after {1000 * took:.1f} ms:')
        for path in best:
            screen.line(f"    {path}")
        rows, distinct = pool.run_now(index.count)

    incidents.show(screen)  # A worker may take longer to end than its successor to do its work.
    stats = pool.stats()
    show_timing(screen, pool.metrics(), latencies)

    screen.heading("Result")
    rate = f"{total.files / seconds:.0f} files/s, {total.size / 1e6 / seconds:.1f} MB/s"
    screen.line(f"  {total.files} files, {total.size / 1e6:.1f} MB in {seconds:.2f} s: {rate}")
    screen.line(f"  {len(latencies)} searches answered meanwhile; the index takes {database.stat().st_size / 1e6:.1f} MB")
    screen.line(f"  workers replaced: {stats.workers_replaced}, tasks retried: {stats.retried}, tasks failed: {stats.failed}")

    screen.heading("Checks")
    for problem in total.problems:
        screen.line(f"  problem: {problem}", colour=31)
    checks = [
        ("every file found is in the index", rows == len(files), f"{rows} of {len(files)}"),
        ("no file is in the index twice", rows == distinct, f"{rows} rows, {distinct} files"),
        ("the broken connection was replaced", stats.workers_replaced == 1, f"{stats.workers_replaced} replaced"),
        ("its batch was run again", stats.retried == 1, f"{stats.retried} retried"),
        (
            "every connection opened was closed",
            stats.resources_created == stats.resources_destroyed,
            f"{stats.resources_created} opened, {stats.resources_destroyed} closed",
        ),
    ]
    for claim, holds, detail in checks:
        screen.line(f"  {'ok    ' if holds else 'FAILED'}  {claim:36}  {detail}", colour=32 if holds else 31)
    return all(holds for _, holds, _ in checks)


if __name__ == "__main__":
    main()
