"""Step 3: each vote is a transaction, and an error of the voter stays the voter's."""

from __future__ import annotations

import sqlite3

from poll import BALLOTS, FILE, count_votes, new_poll

from tasker_executor import ResourceExecutor
from tasker_executor.resources.sqlite3 import Connections


def vote(connection: sqlite3.Connection, ballot: int, choice: str) -> None:
    connection.execute("update totals set votes = votes + 1 where choice = ?", (choice,))
    connection.execute("insert into votes values (?, ?)", (ballot, choice))  # raises if the ballot was used before


def totals(connection: sqlite3.Connection) -> dict[str, int]:
    return dict(connection.execute("select choice, votes from totals order by choice"))


new_poll()
polls = Connections(FILE, transaction=True, isolation_level="IMMEDIATE")
with ResourceExecutor(4, min_workers=4, resource=polls) as pool:
    for future in [pool.submit(vote, ballot, choice) for ballot, choice in BALLOTS]:
        future.result()

    again = pool.submit(vote, 7, "coffee")
    print("ballot 7 again:", repr(again.exception()))
    print(pool.submit(totals).result(), "of", count_votes(), "votes")

stats = pool.stats()
print(stats.retried, "tasks run again,", stats.resources_created, "connections")
