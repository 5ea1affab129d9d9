"""Tasks on clients of Redis: one fails, one is a transaction, one loses its connection, one waits too long.

    pip install tasker-executor[redis]
    python examples/redis_counters.py redis://127.0.0.1:6379/0

It uses the keys howto:visits and howto:visits:copy, and deletes them in the end.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import redis

from tasker_executor import ResourceExecutor, TaskTimeout, current_task
from tasker_executor.resources.redis import Connections

KEY, COPY = "howto:visits", "howto:visits:copy"


def make_pool(url: str) -> ResourceExecutor[redis.Redis]:
    factory = Connections(url, socket_timeout=None, retry_conflicts=True, client_name="counters")
    return ResourceExecutor(4, resource=factory, run_within=30, name="counters")


def visit(client: redis.Redis) -> int:
    """To add 1 twice is wrong: if the connection breaks here, the error is final."""
    return client.incr(KEY)


def copy_visits(client: redis.Redis) -> int:
    """Optimistic: if another client changes KEY before EXEC, WatchError is raised, and the task runs again."""
    pipeline: Any = client.pipeline()
    with pipeline:
        pipeline.watch(KEY)
        visits = int(pipeline.get(KEY))
        if current_task().attempt == 1:
            pool.submit(visit).result()  # another worker changes it in between
        pipeline.multi()
        pipeline.set(COPY, visits)
        pipeline.execute()
    return visits


def visit_and_break(client: redis.Redis) -> None:
    """The server ends the connection, as a restart would, before the second answer has come."""
    pipeline: Any = client.pipeline(transaction=False)
    pipeline.execute_command("CLIENT", "KILL", "ID", client.client_id(), "SKIPME", "no")
    pipeline.incr(KEY)
    pipeline.execute()


def main() -> None:
    print("visits:", [pool.submit(visit).result() for _ in range(3)])
    print("push to a number:", pool.submit(lambda client: client.lpush(KEY, "x")).exception())
    print("copied:", pool.submit(copy_visits).result())
    print("the connection breaks:", type(pool.submit(visit_and_break).exception()).__name__)
    print("the next visit:", pool.submit(visit).result())
    try:
        pool.with_options(run_within=0.5).submit(lambda client: client.blpop(["howto:nothing"])).result()
    except TaskTimeout as error:
        print("pop from an empty list:", type(error).__name__, "from", type(error.__cause__).__name__)
    pool.submit(lambda client: client.delete(KEY, COPY)).result()


if __name__ == "__main__":
    logging.getLogger("tasker_executor").setLevel(logging.ERROR)  # it warns of each client that it replaces
    with make_pool(sys.argv[1] if len(sys.argv) > 1 else "redis://127.0.0.1:6379/0") as pool:
        pool.submit(lambda client: client.delete(KEY, COPY)).result()
        main()
    print("run again:", pool.stats().retried, "| clients replaced:", pool.stats().workers_replaced)
