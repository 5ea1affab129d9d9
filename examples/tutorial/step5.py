"""Step 5: more work than workers. The queue has a bound, what is urgent goes first, and the pool says how it fares."""

from __future__ import annotations

import sqlite3
import threading

from poll import BALLOTS, FILE, count_votes, new_poll

from tasker_executor import QueueFull, ResourceExecutor
from tasker_executor.resources.sqlite3 import Connections

arrived, gate = threading.Event(), threading.Event()


def vote(connection: sqlite3.Connection, ballot_and_choice: tuple[int, str]) -> None:
    connection.execute("insert into votes values (?, ?)", ballot_and_choice)


def hold(connection: sqlite3.Connection) -> None:
    """Keep the only worker busy, so that the queue fills."""
    arrived.set()
    gate.wait()


new_poll()
order: list[str] = []
polls = Connections(FILE, transaction=True)
with ResourceExecutor(1, resource=polls, max_queued=2, on_full="raise", name="poll") as pool:
    pool.submit(hold)
    arrived.wait()
    pool.submit(lambda connection: order.append("first come"))
    pool.submit_priority(lambda connection: order.append("urgent"))
    try:
        pool.submit(lambda connection: order.append("one too many"))
    except QueueFull as error:
        print(error)
    print(repr(pool))
    gate.set()
print(order)

with ResourceExecutor(4, resource=polls, name="poll") as pool:
    for _ in pool.map(vote, BALLOTS, buffersize=20):  # at most 20 are on their way; the source may be endless
        pass
    stats, metrics = pool.stats(), pool.metrics()

print(count_votes(), "votes;", stats.completed, "completed,", stats.failed, "failed")
print(f"half of them took less than {metrics.run.p50 * 1000:.1f} ms, all but 3 less than {metrics.run.p99 * 1000:.1f} ms")
