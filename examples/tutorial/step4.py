"""Step 4: a query that would never end is stopped, and its worker works on."""

from __future__ import annotations

import sqlite3
import threading

from poll import FILE, new_poll

from tasker_executor import ResourceExecutor, TaskStopped, TaskTimeout
from tasker_executor.resources.sqlite3 import Connections

ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
started = threading.Event()


def ask(connection: sqlite3.Connection, query: str) -> int:
    started.set()
    return int(connection.execute(query).fetchone()[0])


new_poll()
with ResourceExecutor(1, resource=Connections(FILE), run_within=30) as pool:
    impatient = pool.with_options(run_within=0.2)
    try:
        impatient.submit(ask, ENDLESS).result()
    except TaskTimeout as error:
        print("after 0.2 s:", type(error).__name__, "from", repr(error.__cause__))

    started.clear()
    future = pool.submit(ask, ENDLESS)
    started.wait()
    print("stop() says", future.stop())  # the one who asked has gone away
    try:
        future.result()
    except TaskStopped as error:
        print("at once:", type(error).__name__, "from", repr(error.__cause__))

    print("the next query:", pool.submit(ask, "select count(*) from votes").result())

print(pool.stats().resources_created, "connection")
