"""Step 6: the database becomes a server, which is restarted. Its clients do not notice, and fail."""

from __future__ import annotations

from collections import Counter

from poll import BALLOTS, FILE, count_votes, new_poll
from poll_client import Client
from poll_database import Database

from tasker_executor import ResourceExecutor


def vote(client: Client, ballot: int, choice: str) -> None:
    client.execute("insert into votes values (?, ?)", ballot, choice)


new_poll()
with (
    Database(FILE) as database,
    ResourceExecutor(4, min_workers=4, on_create=lambda: Client(database.port), on_destroy=Client.close) as pool,
):
    pool.wait_ready()  # all four are connected
    for half in BALLOTS[:150], BALLOTS[150:]:
        futures = [pool.submit(vote, ballot, choice) for ballot, choice in half]
        outcomes = Counter("failed" if future.exception() else "counted" for future in futures)
        print(dict(outcomes))
        database.kill()
        database.start()

print(count_votes(), "votes")
