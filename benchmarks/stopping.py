"""How long it takes to stop a call that hangs: from `stop` to a worker that is free again. And what it costs to be ready.

Six real drivers, as far as they are installed and their servers are named by the variables of the tests:
TASKER_TEST_POSTGRES, TASKER_TEST_MARIADB, TASKER_TEST_REDIS, TASKER_TEST_RABBITMQ.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

from tasker_executor import ResourceExecutor
from tasker_executor.factory import ResourceFactory

from .compare import burst_result
from .measure import OURS, Contestant, Costs, Scale, Table, in_rounds, nanoseconds

#: The 99th percentile should be below this many seconds.
BAR = 0.050
#: Seconds until a task that has begun hangs inside of the driver.
INSIDE = 0.02
#: Seconds after which a thread of asyncio is looked at.
PATIENCE = 2.0
HANGS = 600  # seconds


@dataclass(frozen=True)
class Case:
    """A driver, and a call that hangs."""

    name: str
    call: str
    factory: ResourceFactory[Any]
    hang: Callable[[Any], object]


@dataclass(frozen=True)
class Stopped:
    """What was measured with one driver."""

    call: str
    #: Seconds from `stop` to the start of the next task, in order.
    seconds: list[float]
    #: Whether the thread of `asyncio.to_thread` was still busy `PATIENCE` seconds after the time-out.
    still_busy: bool

    def as_json(self) -> dict[str, Any]:
        seconds = [float(f"{value:.4g}") for value in self.seconds]
        return {"call": self.call, "seconds": seconds, "still busy": self.still_busy}


# -- the drivers


def _psycopg(ending: contextlib.ExitStack) -> Case:
    from tasker_executor.resources.psycopg import Connections

    factory = Connections(os.environ["TASKER_TEST_POSTGRES"], autocommit=True)
    return Case("psycopg", "pg_sleep", factory, lambda connection: connection.execute(f"select pg_sleep({HANGS})"))


def _sqlite3(ending: contextlib.ExitStack) -> Case:
    from tasker_executor.resources.sqlite3 import Connections

    query = "with recursive n(i) as (select 0 union all select i + 1 from n) select count(*) from n"
    return Case("sqlite3", "an endless query", Connections(":memory:"), lambda connection: connection.execute(query).fetchone())


def _pymysql(ending: contextlib.ExitStack) -> Case:
    from tasker_executor.resources.pymysql import Connections

    url = urlsplit(os.environ["TASKER_TEST_MARIADB"])
    user, password = unquote(url.username or "root"), unquote(url.password or "")
    factory = Connections(host=url.hostname, port=url.port or 3306, user=user, password=password)
    return Case("pymysql", "SLEEP", factory, lambda connection: connection.query(f"select sleep({HANGS})"))


def _redis(ending: contextlib.ExitStack) -> Case:
    from tasker_executor.resources.redis import Connections

    key = f"tasker_{uuid.uuid4().hex[:12]}"
    factory = Connections(os.environ["TASKER_TEST_REDIS"], socket_timeout=None)
    return Case("redis", "BLPOP", factory, lambda client: client.blpop([key]))


def _pika(ending: contextlib.ExitStack) -> Case:
    from tasker_executor.resources.pika import Channels

    def consume(channel: Any) -> object:
        queue = channel.queue_declare("", exclusive=True).method.queue
        return next(channel.consume(queue))

    return Case("pika", "an empty queue", Channels(os.environ["TASKER_TEST_RABBITMQ"]), consume)


def _http(ending: contextlib.ExitStack) -> Case:
    from tasker_executor.resources.http import Connections

    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        """Accept, and never answer."""
        with contextlib.ExitStack() as clients, contextlib.suppress(OSError):
            while True:
                clients.enter_context(listener.accept()[0])

    def close() -> None:
        listener.shutdown(socket.SHUT_RDWR)
        server.join()
        listener.close()

    server = threading.Thread(target=accept, name="silent server")
    server.start()
    ending.callback(close)

    def get(connection: Any) -> object:
        connection.request("GET", "/")
        return connection.getresponse()

    return Case("http", "no answer", Connections(*listener.getsockname(), timeout=HANGS), get)


MAKE = (_psycopg, _sqlite3, _pymysql, _redis, _pika, _http)


@contextlib.contextmanager
def cases() -> Generator[list[Case]]:
    """Make those whose driver is installed, and whose server is named."""
    made: list[Case] = []
    with contextlib.ExitStack() as ending:
        for make in MAKE:
            try:
                made.append(make(ending))
            except (ImportError, KeyError) as missing:
                print(f"not measured: {make.__name__[1:]} ({missing})")
        yield made


# -- from `stop` to a free worker


def _free_again(case: Case, rounds: int) -> list[float]:
    begun = threading.Event()

    def hang(resource: Any) -> object:
        begun.set()
        return case.hang(resource)

    seconds: list[float] = []
    with ResourceExecutor(1, resource=case.factory) as pool:
        pool.wait_ready()
        for _ in range(rounds):
            begun.clear()
            future = pool.submit(hang)
            after = pool.submit(lambda _: time.perf_counter())
            begun.wait()
            time.sleep(INSIDE)
            asked = time.perf_counter()
            future.stop()
            seconds.append(after.result() - asked)
            assert future.exception() is not None
    return sorted(seconds)


def _still_busy(found: list[Case]) -> dict[str, bool]:
    """Have `asyncio` time all of these calls out; return whether their threads are still busy some seconds later."""
    resources = [case.factory.create() for case in found]
    ended = [threading.Event() for _ in found]

    def hang(case: Case, resource: Any, end: threading.Event) -> None:
        with contextlib.suppress(Exception):
            case.hang(resource)
        end.set()

    async def time_out(*arguments: Any) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(hang, *arguments), 0.1)

    async def run() -> dict[str, bool]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(len(found)))
        await asyncio.gather(*(time_out(*arguments) for arguments in zip(found, resources, ended, strict=True)))
        await asyncio.sleep(PATIENCE)
        busy = {case.name: not end.is_set() for case, end in zip(found, ended, strict=True)}
        for case, resource in zip(found, resources, strict=True):
            case.factory.abort(resource)  # or this program would not end
        return busy

    busy = asyncio.run(run())
    for case, resource, end in zip(found, resources, ended, strict=True):
        end.wait()
        with contextlib.suppress(Exception):
            case.factory.destroy(resource)
    return busy


def free_again(rounds: int) -> dict[str, Stopped]:
    logging.disable(logging.ERROR)  # pika, and a worker whose connection was cut, have much to say
    with cases() as found:
        busy = _still_busy(found)
        return {case.name: Stopped(case.call, _free_again(case, rounds), busy[case.name]) for case in found}


def _show_free_again(found: dict[str, Any]) -> Table:
    rows: list[list[str]] = []
    for name, stopped in found.items():
        cuts = statistics.quantiles(stopped["seconds"], n=100, method="inclusive")
        thread = f"busy {PATIENCE:g} s later" if stopped["still busy"] else "free"
        bar = "yes" if cuts[98] < BAR else "NO"
        shown = [nanoseconds(value) for value in (cuts[49], cuts[98], stopped["seconds"][-1])]
        rows.append([name, stopped["call"], *shown, bar, thread])
    return Table(["driver", "hangs in", "p50", "p99", "worst", f"p99 < {BAR * 1e3:g} ms", "asyncio.to_thread"], rows)


# -- the price of being ready to stop


def _burst(contestant: Contestant, tasks: int) -> float:
    with contestant.make(8) as pool:
        pool.submit(int).result()
        return burst_result(pool, tasks)


READY = [
    OURS,
    Contestant("run_within=60", partial(ResourceExecutor, run_within=60), ours=True),
    Contestant("warn_after=60", partial(ResourceExecutor, warn_after=60), ours=True),
    Contestant("both", partial(ResourceExecutor, run_within=60, warn_after=60), ours=True),
]


def price(rounds: int, tasks: int) -> Costs:
    return in_rounds({"burst": ("s", {c.name: partial(_burst, c, tasks) for c in READY})}, rounds, "stopping")["burst"]


def run(scale: Scale) -> dict[str, Any]:
    limits = price(scale.rounds, scale.tasks)
    return {
        "free again": {name: one.as_json() for name, one in free_again(20 if scale.quick else 200).items()},
        "limits": limits.as_json(),
    }


def tables(found: dict[str, Any]) -> dict[str, Table]:
    limits = Costs.read(found["limits"])
    rows = [[name, limits.cell(name, share=True)] for name in list(limits.by_name)[1:]]
    return {
        "free again": _show_free_again(found["free again"]),
        "limits": Table(["burst, then result() of each", "times as much as without a limit"], rows),
    }
