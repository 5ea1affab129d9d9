"""Tasks on connections to a file of SQLite: one fails, one meets a lock, one never ends, and the file is replaced.

    python examples/sqlite.py

It makes the file stock.db in the current folder, and deletes it in the end.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from tasker_executor import ResourceExecutor, TaskTimeout
from tasker_executor.resources.sqlite3 import Connections

FILE = Path("stock.db")
ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"


def make_pool() -> ResourceExecutor[sqlite3.Connection]:
    # mode=rw: a file that is not there is an outage. By default, SQLite would make an empty one.
    factory = Connections(
        f"file:{FILE}?mode=rw", uri=True, transaction=True, isolation_level="IMMEDIATE", retry_conflicts=True, timeout=5
    )
    return ResourceExecutor(4, resource=factory, run_within=30, name="stock")


def take(connection: sqlite3.Connection, count: int) -> int:
    """One task, one transaction: committed when it returns, rolled back when it raises."""
    connection.execute("insert into taken values (?)", (count,))
    [rest] = connection.execute("update stock set rest = rest - ? returning rest", (count,)).fetchone()
    return int(rest)


def create_file() -> None:
    FILE.unlink(missing_ok=True)
    with closing(sqlite3.connect(FILE)) as connection:
        connection.execute("create table stock (rest integer check (rest >= 0))")
        connection.execute("create table taken (count integer)")
        connection.execute("insert into stock values (10)")
        connection.commit()


def main() -> None:
    logging.getLogger("tasker_executor").setLevel(logging.ERROR)  # it warns of each connection that it replaces
    create_file()
    with make_pool() as pool:
        print("take 3:", pool.submit(take, 3).result(), "left")
        print("take 99:", repr(pool.submit(take, 99).exception()))
        try:
            pool.with_options(run_within=0.2).submit(lambda connection: connection.execute(ENDLESS).fetchone()).result()
        except TaskTimeout as error:
            print("count for ever:", type(error).__name__, "from", repr(error.__cause__))

        before = FILE.read_bytes()
        os.replace(FILE, "stock.old")  # somebody restores a backup while the connections are open
        FILE.write_bytes(before)
        print("take 2 from the new file:", pool.submit(take, 2).result(), "left")
    stats = pool.stats()
    print("run again:", stats.retried, "| connections replaced:", stats.workers_replaced)
    for path in FILE, Path("stock.old"):
        path.unlink()


if __name__ == "__main__":
    main()
