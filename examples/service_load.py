"""Drives examples/service.py: many clients, a third of whom close their connection in the middle of a request.

    pip install tasker-executor[examples]
    python examples/service_load.py
    python examples/service_load.py --clients 200 --requests 20
    python examples/service_load.py --database "host=127.0.0.1 user=postgres dbname=test"

The service runs in a process of its own, and the clients use real sockets. In the end SIGTERM comes while all
workers are busy and orders wait. The books must balance, or the exit status is 1: each client who stayed got the
right answer, no worker went on with a query for a client who had gone, and neither a connection nor half an order is
left. Without --database it takes the PostgreSQL of TASKER_TEST_POSTGRES if that answers, or else SQLite.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import re
import sqlite3
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

from typing_extensions import override

SERVICE = Path(__file__).with_name("service.py")
WORKERS, PRODUCTS, STOCK = 8, 2000, 1000  # of the service
FEW = 15  # products whose bundles are counted at once
ENDLESS = f"/bundles?products={PRODUCTS}&price=60"
PAUSE = 1.0  # seconds, at most, between two requests of a client
PATIENCE = 0.5  # seconds, at most, until a client goes away
GRACE = 4.0  # seconds within which a query has to end after that; it takes a tenth of one, as a rule


# -- the clients


@dataclass
class Customers:
    """Send requests, each on a connection of its own, and compare the answers."""

    port: int
    counts: Counter[str] = field(default_factory=Counter[str])
    placed: dict[str, int] = field(default_factory=dict[str, int])
    wrong: list[str] = field(default_factory=list[str])

    async def visit(self, requests: int) -> None:
        for _ in range(requests):
            await asyncio.sleep(random.uniform(0.0, PAUSE))
            await (self._leave() if random.random() < 1 / 3 else self._stay())

    async def _stay(self) -> None:
        product, price = random.randint(1, PRODUCTS), random.randint(3, 3 * FEW)
        match random.choice(["order", "order", "product", "product", "bundles"]):
            case "order":
                await self._order(uuid.uuid4().hex, product, random.randint(1, 5))
            case "product":
                status, answer = await self._insist("GET", f"/products/{product}")
                self._expect(status == 200 and answer["name"] == f"product {product}", f"{status} {answer}")
            case _:
                status, answer = await self._insist("GET", f"/bundles?products={FEW}&price={price}")
                self._expect((status, answer) == (200, {"bundles": bundles(price)}), f"{status} {answer}")

    async def _leave(self) -> None:
        order, product, count = uuid.uuid4().hex, random.randint(1, PRODUCTS), random.randint(1, 5)
        request = request_of("PUT", f"/orders/{order}", {"product": product, "count": count})
        match random.choice(["endless", "endless", "endless", "part", "order"]):
            case "endless":
                await self._send_and_go(request_of("GET", ENDLESS), random.uniform(0.0, PATIENCE))
            case "part":
                await self._send_and_go(request[:-5], random.uniform(0.0, PATIENCE))
            case _:
                await self._send_and_go(request, random.uniform(0.0, 0.01))
                await self._order(order, product, count)  # Has it been placed? The client cannot know.

    async def _order(self, order: str, product: int, count: int) -> None:
        status, answer = await self._insist("PUT", f"/orders/{order}", {"product": product, "count": count})
        if status in (200, 201):
            self.placed[order] = count
        self._expect(order in self.placed, f"{status} {answer}")

    async def _insist(self, method: str, path: str, content: object = None) -> tuple[int, Any]:
        """Send a request, and after a time-out (the machine may be busy) send it again, at most twice."""
        status, answer = await self.ask(method, path, content)
        for _ in range(2):
            if status == 504:
                self.counts["again"] += 1
                status, answer = await self.ask(method, path, content)
        return status, answer

    async def ask(self, method: str, path: str, content: object = None) -> tuple[int, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request_of(method, path, content))
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        return int(head.split()[1]), json.loads(body) if b"application/json" in head else body.decode()

    async def _send_and_go(self, request: bytes, patience: float) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        await writer.drain()
        await asyncio.sleep(patience)
        if random.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()
        self.counts["gone"] += 1

    def _expect(self, right: bool, answer: str) -> None:
        self.counts["right" if right else "wrong"] += 1
        if not right:
            self.wrong.append(answer)


def request_of(method: str, path: str, content: object = None) -> bytes:
    body = b"" if content is None else json.dumps(content).encode()
    return f"{method} {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def bundles(price: int) -> int:
    """Count the bundles of three products, as the service should."""
    numbers = range(1, FEW + 1)
    return sum(price - a - b in numbers for a in numbers for b in numbers)


@dataclass
class Watch:
    """Looks at what the workers do, all the time."""

    customers: Customers
    stats: dict[str, Any] = field(default_factory=dict[str, Any])
    longest: float = 0.0
    over: bool = False

    async def look(self) -> None:
        _, status = await self.customers.ask("GET", "/status")
        self.stats = status["stats"]
        self.longest = max([self.longest, *(worker["running_for"] for worker in status["workers"] if worker["function"])])

    async def go_on(self) -> None:
        while not self.over:
            await self.look()
            await asyncio.sleep(0.02)

    async def until(self, **wanted: int) -> float:
        """Wait until the service has these numbers, for 10 seconds at most. Return how long that took."""
        begun = time.monotonic()
        await self.look()
        while not wanted.items() <= self.stats.items() and time.monotonic() < begun + 10.0:
            await asyncio.sleep(0.01)
            await self.look()
        return time.monotonic() - begun


# -- the service, and its database


@dataclass
class Service:
    process: asyncio.subprocess.Process
    log: list[str] = field(default_factory=list[str])

    async def find_port(self) -> int:
        async for line in self.lines():
            if found := re.search(r"running on http://[\d.]+:(\d+)", line):
                return int(found[1])
        raise RuntimeError("\n".join(["the service did not start:", *self.log]))

    async def lines(self) -> AsyncGenerator[str]:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(line.decode().rstrip())
            yield self.log[-1]

    async def read_on(self) -> None:
        async for _ in self.lines():
            pass

    def last_stats(self) -> Counter[str]:
        """Return the numbers that the service writes when its pool is closed."""
        text = " ".join(line for line in self.log if "closed: ExecutorStats" in line)
        return Counter({name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", text)})


@asynccontextmanager
async def started(address: str) -> AsyncGenerator[Service]:
    """Start the service. It does not outlive this program."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(f"-W{option}" for option in sys.warnoptions),
        *(str(SERVICE), "--address", "127.0.0.1:0", "--database", address),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Service(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Database:
    """What the service has left in its database, and of its connections. This one is SQLite's."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __str__(self) -> str:
        return "SQLite"

    def rows(self, query: LiteralString) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.address)) as connection:
            return connection.execute(query).fetchall()

    def connections(self) -> int:
        # SQLite leaves this mode for the only connection. Its file `-wal` says nothing: two that close at once may leave it.
        with closing(sqlite3.connect(self.address, timeout=GRACE)) as connection:
            try:
                connection.execute("pragma journal_mode = delete")
            except sqlite3.OperationalError:  # locked
                return 1
        return 0


class Postgres(Database):
    @override
    def __str__(self) -> str:
        return "PostgreSQL"

    @override
    def rows(self, query: LiteralString) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(self.address, application_name="examples/service_load.py") as connection:
            return connection.execute(query).fetchall()

    @override
    def connections(self) -> int:
        deadline = time.monotonic() + GRACE  # a process of the server ends a moment after its connection was closed
        while True:
            [(left,)] = self.rows("select count(*) from pg_stat_activity where application_name = current_schema()")
            if not left or time.monotonic() > deadline:
                return int(left)
            time.sleep(0.02)


@contextmanager
def new_database(address: str | None) -> Generator[Database]:
    """Make an empty database: a schema of PostgreSQL, whose name is also that of the service's connections, or a file."""
    if address is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Database(os.path.join(folder, "shop.db"))
        return
    import psycopg
    from psycopg.conninfo import make_conninfo
    from psycopg.sql import SQL, Identifier

    name = f"service_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(SQL("create schema {}").format(Identifier(name)))
        try:
            # Without JIT: PostgreSQL hears no cancel request while it compiles a query, and here it compiles eight at once.
            options = f"-csearch_path={name} -cjit=off"
            yield Postgres(make_conninfo(address, application_name=name, options=options))
        finally:  # a query of a service that was killed goes on, and has a lock on its tables
            connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s", [name])
            connection.execute(SQL("drop schema {} cascade").format(Identifier(name)))


def postgres_that_answers() -> str | None:
    address = os.environ.get("TASKER_TEST_POSTGRES")
    if not address:
        return None
    import psycopg

    try:
        psycopg.connect(address, connect_timeout=5).close()
    except psycopg.Error as error:
        print(f"PostgreSQL does not answer, so SQLite is taken: {error}")
        return None
    return address


# -- the run


async def run(database: Database, clients: int, requests: int) -> bool:
    """Return whether all is as it should be."""
    async with started(database.address) as service:
        customers = Customers(await service.find_port())
        reader = asyncio.create_task(service.read_on())
        watch = Watch(customers)
        watching = asyncio.create_task(watch.go_on())
        begun = time.monotonic()
        await asyncio.gather(*(customers.visit(requests) for _ in range(clients)))
        seconds = time.monotonic() - begun
        watch.over = True
        await watching
        free = await watch.until(running_tasks=0)
        longest, timed_out, stopped = watch.longest, watch.stats["timed_out"], watch.stats["stopped"]

        endless = [asyncio.create_task(customers.ask("GET", ENDLESS)) for _ in range(WORKERS)]
        await watch.until(running_tasks=WORKERS)
        behind = [asyncio.create_task(customers.ask("GET", "/products/1")) for _ in range(WORKERS)]
        await watch.until(queued_tasks=WORKERS)
        service.process.terminate()
        last = [[status for status, _ in await asyncio.gather(*requests)] for requests in (endless, behind)]
        await reader
        exit_status = await service.process.wait()

    stats, counts = service.last_stats(), customers.counts
    finished = stats["completed"] + stats["failed"] + stats["cancelled"]
    connections = database.connections()
    orders = dict(database.rows("select id, count from orders"))
    [(stock,)] = database.rows("select sum(stock) from product")
    # There may be warnings: on a busy machine a query may not end in time, and its connection is cut.
    trouble = [line for line in service.log if re.match("ERROR|CRITICAL|Traceback", line) or "written off" in line]
    checks = [
        check(
            "each client who stayed is served, rightly",
            not customers.wrong,
            f"{counts['right']} in {seconds:.1f} s ({counts['again']} sent again), wrong: {customers.wrong[:3]}",
        ),
        check(
            "a query for a client who has gone is stopped",
            stopped > timed_out and longest < PATIENCE + GRACE and free < GRACE,
            f"{counts['gone']} went within {PATIENCE} s; {stopped} queries stopped, the longest ran for {longest:.2f} s",
        ),
        check(
            "SIGTERM: what was accepted is answered",
            last == [[504] * WORKERS, [200] * WORKERS] and exit_status == 0,
            f"{last[0].count(504)} stopped, {last[1].count(200)} served, exit status {exit_status}",
        ),
        check(
            "no task and no worker is left",
            finished == stats["submitted"] > 0 == stats["active_workers"] == stats["written_off"],
            f"{stats['submitted']} tasks submitted, {finished} finished",
        ),
        check(
            "no connection is left",
            stats["resources_created"] == stats["resources_destroyed"] and not connections,
            f"{stats['resources_created']} made, {stats['resources_destroyed']} given up, {connections} in the database",
        ),
        check(
            "no order is lost, and none is half there",
            customers.placed.items() <= orders.items() and stock + sum(orders.values()) == PRODUCTS * STOCK,
            f"{len(customers.placed)} confirmed, {len(orders)} there; {stock} in stock + {sum(orders.values())} ordered",
        ),
        check("the service has logged no error", not trouble, "\n".join(trouble[:50])),
    ]
    return all(checks)


def check(claim: str, holds: bool, seen: str) -> bool:
    print(f"  {'ok    ' if holds else 'FAILED'}  {claim:44}  {seen}", flush=True)
    return holds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", help="a connection string of PostgreSQL")
    parser.add_argument("--clients", type=int, default=60, help="how many at the same time")
    parser.add_argument("--requests", type=int, default=6, help="how many each client sends, one after the other")
    parser.add_argument(
        "--within", type=float, default=math.inf, help="seconds; a run that takes longer is ended, and has failed"
    )
    arguments = parser.parse_args()
    with new_database(arguments.database or postgres_that_answers()) as database:
        print(f"{arguments.clients} clients with {arguments.requests} requests each, on {database}", flush=True)
        right = asyncio.run(asyncio.wait_for(run(database, arguments.clients, arguments.requests), arguments.within))
    sys.exit(not right)


if __name__ == "__main__":
    main()
