"""The same job on the threads of this process, and on a Dask cluster: docs/howto/more-than-one-machine.rst.

    pip install tasker-executor[dask]
    python examples/here_or_on_a_cluster.py

The cluster is a local one: two processes with two threads each. `Client("tls://scheduler:8786")` makes it one
of many machines. examples/cluster.py is a larger job, one of whose processes is killed on the way.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from decimal import Decimal, getcontext
from typing import Any

from distributed import Client, LocalCluster

from tasker_executor import ResourceExecutor
from tasker_executor.dask import DaskResourceExecutor
from tasker_executor.resources.sqlite3 import Connections

SUM = "with recursive n(i) as (values (1) union all select i + 1 from n where i < ?) select sum(i) from n"


def mean(connection: sqlite3.Connection, count: int) -> tuple[Decimal, int]:
    """A task: it knows nothing of machines. If its process is killed, it runs again elsewhere."""
    return Decimal(connection.execute(SUM, (count,)).fetchone()[0]) / 7, os.getpid()


def job(pool: ResourceExecutor[sqlite3.Connection] | DaskResourceExecutor[sqlite3.Connection]) -> tuple[Decimal, set[int]]:
    results = list(pool.map(mean, range(1, 1001), chunksize=50))  # a chunk is one task of Dask's
    return sum((result for result, _ in results), Decimal()), {process for _, process in results}


def precision() -> int:
    return getcontext().prec


def set_precision(digits: int) -> None:
    getcontext().prec = digits


def main() -> None:
    set_precision(50)  # this belongs to the context of this thread, which does not travel by itself
    with ResourceExecutor(4, resource=Connections(":memory:")) as pool:
        here = job(pool)

    cluster: Any = LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=":0", silence_logs=logging.CRITICAL)  # type: ignore[no-untyped-call]  # Dask has few types
    client: Any
    with (
        cluster,
        Client(cluster) as client,  # type: ignore[no-untyped-call]  # Dask has few types
        DaskResourceExecutor(client, resource=Connections(":memory:"), carriers=[(precision, set_precision)]) as remote,
    ):
        there = job(remote)
        stats = remote.stats()

    for place, (total, processes) in {"here": here, "there": there}.items():
        print(f"{place}: {total}, by {len(processes)} process(es)")
    print(f"{stats.completed} tasks completed on the cluster, {stats.failed} failed")
    if here[0] != there[0] or os.getpid() in there[1]:
        sys.exit("FAILED: the cluster did something else")


if __name__ == "__main__":  # the worker processes import this file, too
    main()
