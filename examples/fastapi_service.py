"""A FastAPI service whose queries run on a pool of database connections: the program of docs/howto/fastapi.rst.

    pip install tasker-executor fastapi uvicorn httpx
    python examples/fastapi_service.py

It serves itself on a free port, is its own client, and ends itself with SIGTERM. In a service of yours, all
above `main` stays, and `uvicorn module:app` takes the place of `main`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from tasker_executor import ExecutorStats, ResourceExecutor
from tasker_executor.aio import AsyncView
from tasker_executor.exceptions import ResourceCreationError
from tasker_executor.resources.sqlite3 import Connections

P = ParamSpec("P")
T = TypeVar("T")
closed: list[ExecutorStats] = []  # what `main` looks at


# [pool]
@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncGenerator[dict[str, object]]:
    resource = Connections("shop.db", transaction=True)
    with ResourceExecutor(4, resource=resource, max_queued=100, run_within=5.0, create_timeout=5.0, name="database") as pool:
        await asyncio.to_thread(pool.wait_ready)  # no start without a database
        async with pool.as_async() as database:
            yield {"database": database, "pool": pool}  # request.state.database, request.state.pool
    closed.append(pool.stats())


app = FastAPI(lifespan=lifespan)


def count(connection: sqlite3.Connection, below: int) -> int:  # a task: a plain function, on a worker's thread
    sql = "with recursive n(i) as (values (1) union all select i + 1 from n where i < ?) select count(*) from n"
    return int(connection.execute(sql, (below,)).fetchone()[0])


@app.get("/count/{below}")
async def get_count(request: Request, below: int) -> int:
    return await run(request, count, below)


# [run]
async def run(request: Request, query: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a query for a client that waits for it. It is stopped after 10 seconds, and when the client goes away."""
    database: AsyncView[sqlite3.Connection] = request.state.database
    async with asyncio.timeout(10.0) as limit:
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


# [errors]
@app.exception_handler(TimeoutError)  # TaskTimeout is one, too
async def say_stopped(_request: Request, _error: Exception) -> PlainTextResponse:
    return PlainTextResponse("this took too long, and was stopped", 504)


@app.exception_handler(ResourceCreationError)
async def say_unavailable(_request: Request, _error: Exception) -> PlainTextResponse:
    return PlainTextResponse("the database is away", 503, headers={"Retry-After": "5"})


# [status]
@app.get("/status")
async def get_status(request: Request) -> dict[str, Any]:
    stats: ExecutorStats = request.state.pool.stats()
    return {"running": stats.running_tasks, "stopped": stats.stopped}


# [end]


async def running(client: httpx.AsyncClient) -> int:
    await asyncio.sleep(0.01)
    return int((await client.get("/status")).json()["running"])


async def main() -> None:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
        print("GET /count/1000:", (await client.get("/count/1000")).json())

        impatient = asyncio.create_task(client.get("/count/10000000000"))
        while not await running(client):
            pass
        impatient.cancel()
        while await running(client):
            pass
        print("a client went away; its query is stopped:", (await client.get("/status")).json())

        last = asyncio.create_task(client.get("/count/3000000"))
        while not await running(client) and not last.done():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        print("SIGTERM; the request under way is answered:", (await last).json())
    await serving
    [end] = closed
    print(f"{end.completed} queries completed; {end.resources_destroyed} of {end.resources_created} connections closed")
    if (end.completed, end.stopped) != (2, 1) or end.resources_destroyed != end.resources_created:
        sys.exit(f"FAILED: {end}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda _signal, _frame: None)  # uvicorn sends it again when all is closed
    asyncio.run(main())
