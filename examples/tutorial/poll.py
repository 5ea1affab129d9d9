"""The poll of the tutorial: its file, its tables, and its voters. Each step imports this."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

FILE = "poll.db"
CHOICES = ["coffee", "tea", "water"]
#: The voters: each has a ballot with a number, and a choice.
BALLOTS = [(number, CHOICES[number % 3]) for number in range(300)]


def new_poll() -> None:
    """Make an empty poll, in the current folder."""
    for path in Path().glob(f"{FILE}*"):
        path.unlink()
    with closing(sqlite3.connect(FILE)) as connection:
        connection.execute("pragma journal_mode = wal")  # the file remembers it: readers do not wait for writers
        connection.execute("create table votes (ballot integer primary key, choice text)")
        connection.execute("create table totals (choice text primary key, votes integer)")
        connection.executemany("insert into totals values (?, 0)", [(choice,) for choice in CHOICES])
        connection.commit()


def count_votes() -> int:
    """Count the ballots that are in the file."""
    with closing(sqlite3.connect(FILE)) as connection:
        [count] = connection.execute("select count(*) from votes").fetchone()
        return int(count)
