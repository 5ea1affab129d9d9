"""Tasks on connections to MariaDB or MySQL: one fails, one loses its connection, one takes too long.

    pip install tasker-executor[pymysql]
    python examples/mariadb.py mysql://root@127.0.0.1:3306/test

It makes the tables howto_stock and howto_taken, and drops them in the end.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote, urlsplit

import pymysql

from tasker_executor import ResourceExecutor, TaskTimeout, current_task
from tasker_executor.resources.pymysql import Connections

if TYPE_CHECKING:
    Connection: TypeAlias = pymysql.Connection[pymysql.cursors.Cursor]


def make_pool(host: str, port: int, user: str, password: str, database: str) -> ResourceExecutor[Connection]:
    login: dict[str, Any] = {"host": host, "port": port, "user": user, "password": password, "database": database}
    factory = Connections(**login, transaction=True, retry_conflicts=True)
    return ResourceExecutor(4, resource=factory, run_within=30, max_age=3600, name="shop")


def take(connection: Connection, count: int) -> int:
    """One task, one transaction: committed when it returns, rolled back when it raises."""
    with connection.cursor() as cursor:
        if count == 2 and current_task().attempt == 1:  # an operator ends the session, as a restart would
            cursor.execute("kill connection_id()")
        cursor.execute("insert into howto_taken values (%s)", (count,))
        cursor.execute("update howto_stock set rest = rest - %s", (count,))
        cursor.execute("select rest from howto_stock")
        [rest] = cursor.fetchone() or [0]
        return int(rest)


def run(connection: Connection, *statements: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return list(cursor.fetchall())


def main(url: str) -> None:
    logging.getLogger("tasker_executor").setLevel(logging.ERROR)  # it warns of each connection that it replaces
    parts = urlsplit(url)
    with make_pool(
        parts.hostname or "", parts.port or 3306, parts.username or "", unquote(parts.password or ""), parts.path[1:]
    ) as pool:
        pool.submit(
            run,
            "drop table if exists howto_stock, howto_taken",
            "create table howto_stock (rest integer check (rest >= 0)) engine = innodb",
            "create table howto_taken (count integer) engine = innodb",
            "insert into howto_stock values (10)",
        ).result()
        print("take 3:", pool.submit(take, 3).result(), "left")
        print("take 99:", type(pool.submit(take, 99).exception()).__name__)
        print("take 2, and the connection breaks:", pool.submit(take, 2).result(), "left")
        try:
            pool.with_options(run_within=0.5).submit(run, "select sleep(60)").result()
        except TaskTimeout as error:
            print("sleep for a minute:", type(error).__name__, "from", type(error.__cause__).__name__)
        taken = pool.submit(run, "select count from howto_taken").result()
        pool.submit(run, "drop table howto_stock, howto_taken").result()
    stats = pool.stats()
    print("taken:", taken, "| run again:", stats.retried, "| connections replaced:", stats.workers_replaced)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mysql://root@127.0.0.1:3306/test")
