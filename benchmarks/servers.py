"""What users would take instead, on a real server: short calls to PostgreSQL and to Redis, through each kind of pool.

A call is one round trip that computes next to nothing, so what is left is the cost of the way to it. All that
are compared run the same function with the same number of threads, and of connections.

- *the driver's pool*: `ThreadPoolExecutor`, and in each task a connection out of the pool that the driver brings
  along: psycopg_pool, the pool in a client of redis-py. This is what the others are compared with.
- *the same, with check*: and that pool asks the server before each use whether the connection is good.
- *thread-local*: `ThreadPoolExecutor`, and a connection in a `threading.local`. Nothing checks it, cleans it or
  closes it.
- *bare threads*: no pool and no futures. Each thread loops over its share of the calls with its connection.
- *ResourceExecutor*: the ready-made factory as it comes: reset after each task, check where there is doubt.
- the rest: the same with a limit for each task, and with a check before each use.

A part is skipped where its driver is not installed, or its server not named: TASKER_TEST_POSTGRES,
TASKER_TEST_REDIS.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tasker_executor import ResourceExecutor
from tasker_executor.factory import ResourceFactory

from .measure import Scale, Table, as_json, in_rounds, now, read, start_all

WORKERS = 8

LOCAL = "thread-local"
BARE = "bare threads"
OURS = "ResourceExecutor"
LIMITED = "ResourceExecutor, run_within=60"
CHECKED = "ResourceExecutor, run_within=60, check at each use"

#: One call: is given a number, and returns it plus 1.
Task = Callable[[int], int]


@dataclass(frozen=True)
class Service:
    """A server, its driver, and one short call."""

    name: str
    call: Callable[[Any, int], int]
    connect: Callable[[], Any]
    factory: ResourceFactory[Any]
    #: Contestants that only this driver has. The first of them is the one that others are compared with.
    pools: dict[str, Callable[[], AbstractContextManager[Task]]]
    #: More ways to connect, for threads without a pool.
    bare: dict[str, Callable[[], Any]] = field(default_factory=dict)


# -- the drivers


def postgres() -> Service:
    """PostgreSQL by psycopg. Prepared statements, autocommit."""
    dsn = os.environ["TASKER_TEST_POSTGRES"]
    import psycopg
    import psycopg_pool

    from tasker_executor.resources.psycopg import Connections

    def call(connection: Any, number: int) -> int:
        return int(connection.execute("select %s::int + 1", (number,)).fetchone()[0])

    @contextmanager
    def pooled(**options: Any) -> Iterator[Task]:
        with psycopg_pool.ConnectionPool(
            dsn, min_size=WORKERS, max_size=WORKERS, kwargs={"autocommit": True}, open=True, **options
        ) as pool:
            pool.wait()

            def task(number: int) -> int:
                with pool.connection() as connection:
                    return call(connection, number)

            yield task

    return Service(
        "PostgreSQL",
        call,
        lambda: psycopg.connect(dsn, autocommit=True),
        Connections(dsn, autocommit=True),
        {
            "psycopg_pool": pooled,
            "psycopg_pool, with check": lambda: pooled(check=psycopg_pool.ConnectionPool.check_connection),
        },
    )


def redis() -> Service:
    """Redis by redis-py: INCRBY of a key that is not there would change it, so it is ECHO."""
    url = os.environ["TASKER_TEST_REDIS"]
    import redis as driver

    from tasker_executor.resources.redis import Connections

    def call(client: Any, number: int) -> int:
        return int(client.echo(number)) + 1

    @contextmanager
    def shared(**options: Any) -> Iterator[Task]:
        with driver.Redis.from_url(url, **options) as client:
            yield lambda number: call(client, number)

    return Service(
        "Redis",
        call,
        lambda: driver.Redis.from_url(url),
        Connections(url),
        {
            "a shared client": shared,
            # It pings a connection that was not used for so long: at each use.
            "a shared client, with check": lambda: shared(health_check_interval=1e-9),
        },
        {"bare threads, single_connection_client": lambda: driver.Redis.from_url(url, single_connection_client=True)},
    )


SERVICES = (postgres, redis)


def installed() -> list[Service]:
    """Return those whose driver is installed, and whose server is named."""
    found: list[Service] = []
    for make in SERVICES:
        try:
            found.append(make())
        except (ImportError, KeyError) as missing:
            print(f"not measured: {make.__name__} ({missing})")
    return found


# -- the contestants


def _calls(pool: Executor, call: Callable[..., int], tasks: int) -> float:
    begun = now()
    futures = [pool.submit(call, number) for number in range(tasks)]
    total = sum(future.result() for future in futures)
    took = now() - begun
    assert total == sum(range(1, tasks + 1)), "the server has answered something else"
    return took / tasks


def _in_driver_pool(make: Callable[[], AbstractContextManager[Task]], tasks: int) -> float:
    with make() as task, ThreadPoolExecutor(WORKERS) as pool:
        start_all(pool, WORKERS)
        _calls(pool, task, WORKERS * 10)  # a pool in a client connects on use; drivers prepare statements
        return _calls(pool, task, tasks)


def _thread_local(service: Service, tasks: int) -> float:
    here = threading.local()

    def set_up() -> None:
        here.connection = ending.enter_context(contextlib.closing(service.connect()))

    def task(number: int) -> int:
        return service.call(here.connection, number)

    with contextlib.ExitStack() as ending, ThreadPoolExecutor(WORKERS, initializer=set_up) as pool:
        start_all(pool, WORKERS)
        _calls(pool, task, WORKERS * 10)
        return _calls(pool, task, tasks)


def _bare(service: Service, connect: Callable[[], Any], tasks: int) -> float:
    share = tasks // WORKERS
    totals = [0] * WORKERS

    def loop(worker: int) -> None:
        connection = connections[worker]
        ready.wait()
        totals[worker] = sum([service.call(connection, number) for number in range(worker * share, (worker + 1) * share)])

    ready = threading.Barrier(WORKERS + 1)
    with contextlib.ExitStack() as ending:
        connections = [ending.enter_context(contextlib.closing(connect())) for _ in range(WORKERS)]
        for connection in connections:
            for number in range(10):
                service.call(connection, number)
        threads = [threading.Thread(target=loop, args=(worker,)) for worker in range(WORKERS)]
        for thread in threads:
            thread.start()
        ready.wait()
        begun = now()
        for thread in threads:
            thread.join()
        took = now() - begun
    assert sum(totals) == sum(range(1, share * WORKERS + 1)), "the server has answered something else"
    return took / (share * WORKERS)


def _ours(service: Service, tasks: int, **options: Any) -> float:
    with ResourceExecutor(WORKERS, min_workers=WORKERS, resource=service.factory, **options) as pool:
        pool.wait_ready()
        _calls(pool, service.call, WORKERS * 10)
        return _calls(pool, service.call, tasks)


def _contestants(service: Service, tasks: int) -> dict[str, Callable[[], float]]:
    runs: dict[str, Callable[[], float]] = {name: partial(_in_driver_pool, make, tasks) for name, make in service.pools.items()}
    runs[LOCAL] = partial(_thread_local, service, tasks)
    for name, connect in {BARE: service.connect, **service.bare}.items():
        runs[name] = partial(_bare, service, connect, tasks)
    runs[OURS] = partial(_ours, service, tasks)
    runs[LIMITED] = partial(_ours, service, tasks, run_within=60)
    runs[CHECKED] = partial(_ours, service, tasks, run_within=60, check_after_idle=0)
    return runs


def run(scale: Scale) -> dict[str, Any]:
    # Short rounds, and many: what else the machine does comes and goes within a second.
    tasks, rounds = max(scale.tasks // 50, 500), scale.rounds * 2
    jobs = {service.name: ("s", _contestants(service, tasks)) for service in installed() if scale.wants(service.name)}
    return as_json(in_rounds(jobs, rounds, "servers"))


def tables(found: dict[str, Any]) -> dict[str, Table]:
    made: dict[str, Table] = {}
    for name, costs in read(found).items():
        rows = [[way, costs.cell(way), costs.cell(way, BARE)] for way in costs.by_name]
        made[name] = Table([f"{name}: calls in the same time", f"of {costs.first} [quartiles]", f"of {BARE} [quartiles]"], rows)
    return made
