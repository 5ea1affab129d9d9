"""Step 1: a thread pool, and a connection for each vote."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from poll import BALLOTS, FILE, count_votes, new_poll

opened: list[str] = []


def connect() -> sqlite3.Connection:
    opened.append(FILE)
    return sqlite3.connect(FILE)


def vote(ballot: int, choice: str) -> None:
    with closing(connect()) as connection:
        connection.execute("insert into votes values (?, ?)", (ballot, choice))
        connection.commit()


new_poll()
with ThreadPoolExecutor(4) as pool:
    futures = [pool.submit(vote, ballot, choice) for ballot, choice in BALLOTS]
    for future in futures:
        future.result()

print(count_votes(), "votes,", len(opened), "connections")
