"""Step 2: four threads, and each owns a connection."""

from __future__ import annotations

import sqlite3

from poll import BALLOTS, FILE, count_votes, new_poll

from tasker_executor import ResourceExecutor


def connect() -> sqlite3.Connection:
    return sqlite3.connect(FILE)


def vote(connection: sqlite3.Connection, ballot: int, choice: str) -> None:
    connection.execute("insert into votes values (?, ?)", (ballot, choice))
    connection.commit()


new_poll()
with ResourceExecutor(4, min_workers=4, on_create=connect, on_destroy=sqlite3.Connection.close) as pool:
    futures = [pool.submit(vote, ballot, choice) for ballot, choice in BALLOTS]
    for future in futures:
        future.result()

stats = pool.stats()
print(count_votes(), "votes,", stats.resources_created, "connections,", stats.resources_destroyed, "closed")
