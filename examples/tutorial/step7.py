"""Step 7: the same restarts, and in the middle of the work. Every vote is counted, and counted once."""

from __future__ import annotations

import logging
import time

from poll import BALLOTS, FILE, count_votes, new_poll
from poll_client import Client, Clients
from poll_database import Database

from tasker_executor import ResourceExecutor


def vote(client: Client, ballot: int, choice: str) -> bool:
    """Return whether the ballot is new. It may run twice: then the first run may have been committed, or not."""
    new = client.execute("insert into votes values (?, ?) on conflict do nothing returning ballot", ballot, choice)
    if new:
        client.execute("update totals set votes = votes + 1 where choice = ?", choice)
    return bool(new)


def totals(client: Client) -> list[list[object]]:
    return client.execute("select choice, votes from totals order by choice")


if __name__ == "__main__":
    logging.getLogger("tasker_executor").setLevel(logging.ERROR)  # it warns of each resource that it replaces
    new_poll()
    with Database(FILE) as database, ResourceExecutor(4, resource=Clients(database.port)) as pool:
        futures = [pool.submit(vote, ballot, choice) for ballot, choice in BALLOTS]
        for some in 50, 150:
            futures[some].result()
            database.kill()
            time.sleep(1)  # the restart takes a second, in which nobody can connect
            database.start()
        failed = [future for future in futures if future.exception()]
        print(len(failed), "of", len(futures), "failed;", count_votes(), "votes")
        print(pool.submit(totals).result())

    stats = pool.stats()
    print(stats.workers_replaced, "connections replaced,", stats.retried, "votes run again")
    print(stats.create_failures, "times it could not connect")
