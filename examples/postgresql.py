"""Tasks on connections to PostgreSQL: one fails, one loses its connection, one takes too long.

    pip install tasker-executor[psycopg] psycopg[binary]
    python examples/postgresql.py "host=127.0.0.1 user=postgres dbname=test"

It makes the tables howto_stock and howto_taken, and drops them in the end.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TypeAlias

import psycopg

from tasker_executor import ResourceExecutor, TaskTimeout, current_task
from tasker_executor.resources.psycopg import Connections

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]


def make_pool(conninfo: str) -> ResourceExecutor[Connection]:
    factory = Connections(conninfo, transaction=True, retry_conflicts=True, application_name="shop")
    return ResourceExecutor(4, resource=factory, run_within=30, max_age=3600, name="shop")


def take(connection: Connection, count: int) -> int:
    """One task, one transaction: committed when it returns, rolled back when it raises."""
    if count == 2 and current_task().attempt == 1:  # an operator ends the session, as a restart would
        connection.execute("select pg_terminate_backend(pg_backend_pid())")
    connection.execute("insert into howto_taken values (%s)", (count,))
    row = connection.execute("update howto_stock set rest = rest - %s returning rest", (count,)).fetchone()
    assert row is not None
    return int(row[0])


def create_tables(connection: Connection) -> None:
    connection.execute("drop table if exists howto_stock, howto_taken")
    connection.execute("create table howto_stock (rest integer check (rest >= 0))")
    connection.execute("create table howto_taken (count integer)")
    connection.execute("insert into howto_stock values (10)")


def main(conninfo: str) -> None:
    logging.getLogger("tasker_executor").setLevel(logging.ERROR)  # it warns of each connection that it replaces
    with make_pool(conninfo) as pool:
        pool.submit(create_tables).result()
        print("take 3:", pool.submit(take, 3).result(), "left")
        print("take 99:", type(pool.submit(take, 99).exception()).__name__)
        print("take 2, and the connection breaks:", pool.submit(take, 2).result(), "left")
        slow = pool.with_options(run_within=0.5).submit(lambda connection: connection.execute("select pg_sleep(60)"))
        try:
            slow.result()
        except TaskTimeout as error:
            print("sleep for a minute:", type(error).__name__, "from", type(error.__cause__).__name__)
        taken = pool.submit(lambda connection: connection.execute("select count from howto_taken").fetchall()).result()
        pool.submit(lambda connection: connection.execute("drop table howto_stock, howto_taken")).result()
    stats = pool.stats()
    print("taken:", taken, "| run again:", stats.retried, "| connections replaced:", stats.workers_replaced)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "host=127.0.0.1 port=5432 user=postgres dbname=test")
