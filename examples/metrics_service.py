"""A service for Prometheus to scrape: a pool of SQLite connections under a load that comes in waves.

    pip install tasker-executor[prometheus]
    python examples/metrics_service.py            # then look at http://127.0.0.1:8000/metrics

Its metrics are served over HTTP. Let Prometheus scrape them and import examples/grafana/tasker_executor.json
into Grafana to see the whole picture. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import math
import random
import sqlite3
import threading
import time
from urllib.parse import urlsplit

from prometheus_client import start_http_server

from tasker_executor import BacklogPolicy, Hysteresis, ResourceExecutor
from tasker_executor.prometheus import register


class Outage(Exception):
    """The database lost our connection."""


def connect() -> sqlite3.Connection:
    if random.random() < 0.1:
        raise ConnectionError("the database is busy, try again")
    return sqlite3.connect(":memory:")


def query(connection: sqlite3.Connection, seconds: float) -> int:
    time.sleep(seconds)  # a database that is far away
    if random.random() < 0.01:
        raise Outage
    count: int = connection.execute("select count(*) from sqlite_master").fetchone()[0]
    return count


def is_healthy(error: BaseException) -> bool:
    return not isinstance(error, Outage)


def serve(host: str, port: int, seconds: float) -> None:
    policy = Hysteresis(BacklogPolicy(threshold=5, step=2, interval=0.1), shrink_after=20)
    with ResourceExecutor(
        16,
        min_workers=2,
        policy=policy,
        on_create=connect,
        on_destroy=sqlite3.Connection.close,
        check_health=is_healthy,
        name="database",
    ) as pool:
        register(pool)
        server, thread = start_http_server(port, host)
        print(f"serving http://{host}:{server.server_port}/metrics", flush=True)
        try:
            make_waves(pool, seconds)
        except KeyboardInterrupt:
            pass
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def make_waves(pool: ResourceExecutor[sqlite3.Connection], seconds: float) -> None:
    """Submit tasks: between 0 and 100 a second, up and down every minute."""
    pause = threading.Event()
    begun = time.monotonic()
    while (elapsed := time.monotonic() - begun) < seconds:
        rate = 50.0 * (1.0 - math.cos(2.0 * math.pi * elapsed / 60.0)) + 1.0
        submit = pool.submit_priority if random.random() < 0.1 else pool.submit
        submit(query, random.expovariate(10.0))
        pause.wait(random.expovariate(rate))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1:8000", help="host:port to serve at; port 0 for any free one")
    parser.add_argument("--seconds", type=float, default=math.inf, help="how long to go on")
    arguments = parser.parse_args()
    address = urlsplit(f"//{arguments.address}")
    serve(address.hostname or "127.0.0.1", 8000 if address.port is None else address.port, arguments.seconds)


if __name__ == "__main__":
    main()
