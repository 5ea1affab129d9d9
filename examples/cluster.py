"""The indexing job of index_sources.py on a cluster of processes, one of which is killed on the way.

    pip install tasker-executor[dask]
    python examples/cluster.py              # the standard library of the Python that runs this
    python examples/cluster.py SOMEWHERE    # any folder with Python files

The cluster is a local one: three worker processes with two threads each. `Client("tls://scheduler:8786")`
makes it a cluster of many machines. Apart from the database, which then has to be on a server, no other line
changes.

- Each thread of each worker process owns a connection. It is made there, since a connection cannot be
  pickled.
- Half-way one of the processes is killed with SIGKILL. Dask starts another one and runs the tasks of the dead
  one again: *at least once* is the promise. So a batch must do no harm when it runs twice (INSERT OR
  REPLACE).
- The connections of the dead process are the only ones that are never closed. SQLite rolls back what they had
  not committed.

At the end every file found must be in the index, once, or the exit status is 1.
"""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

from tasker_executor.dask import DaskResourceExecutor

BATCH = 25  # files: a task costs a millisecond or two on a cluster, so it should be worth more than that
SKIPPED_FOLDERS = {"site-packages", "test"}  # not of the standard library; half of it
WORDS = ("deadlock", "semaphore", "heapq")
Files = list[tuple[int, Path]]


# -- what runs on the workers


def connect(database: Path) -> sqlite3.Connection:
    """Make a connection: the on_create hook."""
    connection = sqlite3.connect(database, timeout=60.0, isolation_level=None)
    connection.execute("PRAGMA synchronous = NORMAL")  # Should the power fail, we index again.
    return connection


@dataclass(frozen=True)
class Indexed:
    """What came of a batch, and which process did it."""

    files: int
    size: int
    process: int


def index(connection: sqlite3.Connection, batch: Files) -> Indexed:
    """Put a batch of files into the index. Run twice, it does the same."""
    rows = [(number, str(path), path.read_bytes().decode("utf-8", "replace")) for number, path in batch]
    with connection:  # commits at the end, rolls back after an error
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT OR REPLACE INTO sources (number, path, text) VALUES (?, ?, ?)", rows)
    return Indexed(len(rows), sum(len(text) for _, _, text in rows), os.getpid())


def count(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return how many rows there are, and how many different files."""
    rows, files = connection.execute("SELECT count(*), count(DISTINCT path) FROM sources").fetchone()
    return int(rows), int(files)


def mentions(connection: sqlite3.Connection, word: str) -> int:
    """Return how many files have this word."""
    return int(connection.execute("SELECT count(*) FROM sources WHERE instr(text, ?)", (word,)).fetchone()[0])


# -- what runs here


def find_batches(folder: Path) -> list[Files]:
    """Find the Python files below a folder, and share them out to batches."""
    paths = sorted(path for path in folder.rglob("*.py") if path.is_file() and SKIPPED_FOLDERS.isdisjoint(path.parts))
    numbered = list(enumerate(paths, 1))
    return [numbered[start : start + BATCH] for start in range(0, len(numbered), BATCH)]


def main(folder: Path, database: Path) -> int:
    batches = find_batches(folder)
    found = sum(map(len, batches))
    print(f"{found} files below {folder}, in {len(batches)} batches")
    first = connect(database)
    first.execute("PRAGMA journal_mode = WAL")
    first.execute("CREATE TABLE sources (number INTEGER PRIMARY KEY, path, text)")
    first.close()

    begun = time.perf_counter()
    cluster: Any = LocalCluster(  # type: ignore[no-untyped-call]  # Dask has few types
        n_workers=3,
        threads_per_worker=2,
        dashboard_address=":0",
        silence_logs=logging.CRITICAL,  # It logs a lot about a dead process.
    )
    client: Any
    pool: DaskResourceExecutor[sqlite3.Connection]
    with (
        cluster,
        Client(cluster) as client,  # type: ignore[no-untyped-call]  # Dask has few types
        DaskResourceExecutor(client, on_create=partial(connect, database), on_destroy=sqlite3.Connection.close) as pool,
    ):
        done: list[Indexed] = []
        victim = 0
        for future in as_completed([pool.submit(index, batch) for batch in batches]):
            done.append(future.result())
            if not victim and len(done) >= len(batches) // 2:
                victim = done[-1].process
                os.kill(victim, signal.SIGKILL)
                print(f"{len(done)} batches are done: killed process {victim}")

        rows, files = pool.run_now(count)
        found_words = list(pool.with_options(priority=True).map(mentions, WORDS))
        stats = pool.stats()

    spent = time.perf_counter() - begun
    size, processes = sum(batch.size for batch in done), {batch.process for batch in done}
    print(f"{files} files, {size / 1e6:.0f} MB in {spent:.1f} s, by processes {sorted(processes)}")
    print("; ".join(f"{word!r} is in {number} files" for word, number in zip(WORDS, found_words, strict=True)))
    print(f"{stats.completed} tasks completed, {stats.failed} failed; {stats.active_workers} workers at the end")
    balanced = rows == files == found and stats.failed == 0
    print("The books balance." if balanced else f"The books do not balance: {rows} rows, {files} files, {found} found.")
    return 0 if balanced else 1


if __name__ == "__main__":  # the worker processes import this file, too
    with tempfile.TemporaryDirectory() as scratch:
        chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(sysconfig.get_path("stdlib"))
        sys.exit(main(chosen.resolve(), Path(scratch, "index.sqlite")))
