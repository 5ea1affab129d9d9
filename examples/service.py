"""A web service over a pool of database connections that works only for clients who are still there.

    pip install tasker-executor[examples]
    python examples/service.py                                     # SQLite, in shop.db
    python examples/service.py --database "host=db dbname=shop"    # PostgreSQL

    curl http://127.0.0.1:8000/products/7
    curl -X PUT -d '{"product": 7, "count": 2}' http://127.0.0.1:8000/orders/an-id-of-your-own
    curl "http://127.0.0.1:8000/bundles?products=40&price=60"
    curl "http://127.0.0.1:8000/bundles?products=2000&price=60"    # never ready: 504, or press Ctrl-C

The shop's queries are plain functions. Each runs on a worker thread that owns a connection, and is one
transaction. Three things stop a query, in the middle of its SQL: it ran for QUERY_SECONDS, its request lasts
for REQUEST_SECONDS (which includes the wait for a worker), or its client has gone. Then the worker is free for
the next request, and what the query had written is rolled back.

/metrics is for Prometheus, /status says what each worker does. SIGTERM (or Ctrl-C) ends the service when the
requests that it has accepted are answered. examples/service_load.py shows all of that under load.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sqlite3
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import asdict
from typing import Any, Concatenate, LiteralString, ParamSpec, Protocol, TypeVar, cast
from urllib.parse import urlsplit

from tasker_executor import ResourceExecutor, ResourceFactory
from tasker_executor.aio import AsyncView

try:
    import uvicorn
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    from tasker_executor.prometheus import register
except ImportError as error:
    sys.exit(f"{error}\nThis example needs Starlette, uvicorn and more: pip install tasker-executor[examples]")

WORKERS = 8  # connections to the database, at most
WAITING = 200  # queries that wait for a worker; further requests wait in the event loop
QUERY_SECONDS = 2.0
REQUEST_SECONDS = 10.0

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger("service")


# -- the queries: plain functions, which know nothing of threads, of asyncio or of HTTP


class Cursor(Protocol):
    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...


class Connection(Protocol):
    """What psycopg and sqlite3 have in common."""

    def execute(self, query: LiteralString, parameters: Sequence[object] = (), /) -> Cursor: ...


class OutOfStock(Exception):
    """There is less of the product than was ordered."""


def create_tables(connection: Connection) -> None:
    connection.execute("create table if not exists product (id integer primary key, name text, price integer, stock integer)")
    connection.execute("create table if not exists orders (id text primary key, product integer, count integer)")
    connection.execute(
        "insert into product (id, name, price, stock)"
        " with recursive ids(id) as (select 1 union all select id + 1 from ids where id < 2000)"
        " select id, 'product ' || id, id, 1000 from ids where true on conflict do nothing"
    )


def find_product(connection: Connection, product: int) -> dict[str, object] | None:
    row = connection.execute("select name, price, stock from product where id = %s", (product,)).fetchone()
    return row and {"id": product, "name": row[0], "price": row[1], "stock": row[2]}


def place_order(connection: Connection, order: str, product: int, count: int) -> bool:
    """Return whether the order is new: a client that lost its connection may send it again."""
    insert = "insert into orders (id, product, count) values (%s, %s, %s) on conflict do nothing"
    if not connection.execute(insert, (order, product, count)).rowcount:
        return False
    take = "update product set stock = stock - %s where id = %s and stock >= %s"
    if not connection.execute(take, (count, product, count)).rowcount:
        raise OutOfStock  # which rolls the order back
    return True


def count_bundles(connection: Connection, products: int, price: int) -> int:
    """Return how many bundles of three have this price. It takes 8 times as long for twice as many products."""
    query: LiteralString = (
        "select count(*) from product a, product b, product c"
        " where a.id <= %s and b.id <= %s and c.id <= %s and a.price + b.price + c.price = %s"
    )
    [count] = connection.execute(query, (products, products, products, price)).fetchone()
    return cast(int, count)


# -- from a request to its query


async def run(request: Request, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a query for a client that waits for it.

    Raises:
        TimeoutError: The query was stopped: by its own time limit, by that of the request, or since the client went away.
    """
    database: AsyncView[Any] = request.state.database
    async with asyncio.timeout(REQUEST_SECONDS) as limit:
        watcher = asyncio.create_task(expire_without_client(request, limit))
        try:
            return await database.run(query, *args, **kwargs)  # the time-out cancels this, and that stops the query
        finally:
            watcher.cancel()


async def expire_without_client(request: Request, limit: asyncio.Timeout) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    if not limit.expired():
        limit.reschedule(asyncio.get_running_loop().time())


async def get_product(request: Request) -> Response:
    product = await run(request, find_product, request.path_params["id"])
    if product is None:
        raise HTTPException(404, "there is no such product")
    return JSONResponse(product)


async def put_order(request: Request) -> Response:
    try:
        order = await request.json()
        product, count = int(order["product"]), int(order["count"])
    except (KeyError, TypeError, ValueError):
        raise HTTPException(400, 'an order looks like this: {"product": 7, "count": 2}') from None
    if count < 1:
        raise HTTPException(400, f"count must be positive, not {count}")
    new = await run(request, place_order, request.path_params["id"], product, count)
    return Response(status_code=201 if new else 200)


async def get_bundles(request: Request) -> Response:
    try:
        products, price = int(request.query_params["products"]), int(request.query_params["price"])
    except (KeyError, ValueError):
        raise HTTPException(400, "say how many products, and the price: /bundles?products=40&price=60") from None
    return JSONResponse({"bundles": await run(request, count_bundles, products, price)})


async def get_metrics(_request: Request) -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def get_status(request: Request) -> Response:
    pool: ResourceExecutor[Any] = request.state.pool
    return JSONResponse({"stats": asdict(pool.stats()), "workers": [asdict(worker) for worker in pool.workers()]})


async def say_stopped(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("this took too long, and was stopped", 504)  # to a client that has gone, it is not sent


async def say_out_of_stock(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("there is not so much of this product", 409)


async def say_nothing(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # the client went away before it had sent all of its request


# -- the service


class PortableConnection(sqlite3.Connection):
    """Takes %s for a parameter, as psycopg does."""

    def execute(self, query: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return super().execute(query.replace("%s", "?"), parameters)


def connections_to(database: str) -> ResourceFactory[Any]:
    if "=" in database or "://" in database:
        from tasker_executor.resources import psycopg

        return psycopg.Connections(database, transaction=True, retry_conflicts=True)
    from tasker_executor.resources import sqlite3 as sqlite

    with closing(sqlite3.connect(database)) as connection:
        connection.execute("pragma journal_mode = wal")  # the file remembers it: a long query keeps no order waiting
    return sqlite.Connections(database, transaction=True, retry_conflicts=True, factory=PortableConnection)


@asynccontextmanager
async def opened(database: str) -> AsyncGenerator[dict[str, object]]:
    """The pool, from the start of the service until all accepted requests are answered."""
    resource = connections_to(database)
    with ResourceExecutor(WORKERS, resource=resource, max_queued=WAITING, run_within=QUERY_SECONDS, name="database") as pool:
        register(pool)
        async with pool.as_async() as view:
            await view.run(create_tables)
            yield {"database": view, "pool": pool}
    logger.info("closed: %s", pool.stats())


def make_app(database: str) -> Starlette:
    routes = [
        Route("/products/{id:int}", get_product),
        Route("/orders/{id}", put_order, methods=["PUT"]),
        Route("/bundles", get_bundles),
        Route("/metrics", get_metrics),
        Route("/status", get_status),
    ]
    handlers: dict[Any, Any] = {TimeoutError: say_stopped, OutOfStock: say_out_of_stock, ClientDisconnect: say_nothing}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lambda _app: opened(database))


def succeed(_signal: int, _frame: object) -> None:
    """End: uvicorn sends itself the SIGTERM that it got once more, when all is answered and closed."""
    sys.exit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1:8000", help="host:port to serve at; port 0 for any free one")
    parser.add_argument("--database", default="shop.db", help="a connection string of PostgreSQL, or a file for SQLite")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    signal.signal(signal.SIGTERM, succeed)
    address = urlsplit(f"//{arguments.address}")
    uvicorn.run(
        make_app(arguments.database),
        host=address.hostname or "127.0.0.1",
        port=8000 if address.port is None else address.port,
        access_log=False,
        timeout_graceful_shutdown=int(REQUEST_SECONDS) + 1,  # after that it cancels what is left, and so stops it
    )


if __name__ == "__main__":
    main()
