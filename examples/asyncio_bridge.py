"""From asyncio: work that needs a resource and would block the event loop, through the front door and beside it.

    python examples/asyncio_bridge.py

The resource is a SQLite connection. `as_async()` is the front door: it awaits a full queue, and a coroutine that is
cancelled stops its task. A future of the executor is a `concurrent.futures.Future`, too. So asyncio treats it like
any other, and all that takes an executor takes this one.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading

from tasker_executor import ResourceExecutor

PRIMES = """
    WITH RECURSIVE number (n) AS (VALUES (2) UNION ALL SELECT n + 1 FROM number WHERE n < ?)
    SELECT count(*) FROM number AS candidate
    WHERE NOT EXISTS (SELECT 1 FROM number WHERE number.n * number.n <= candidate.n AND candidate.n % number.n = 0)
"""


def connect() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", check_same_thread=False)  # another thread interrupts it


def count_primes(connection: sqlite3.Connection, below: int) -> int:
    """Keep the thread of a worker busy for some time: a task."""
    return int(connection.execute(PRIMES, (below,)).fetchone()[0])


def hang(connection: sqlite3.Connection) -> int:
    """Keep the thread of a worker busy for hours, unless its connection is interrupted."""
    return count_primes(connection, 100_000_000)


async def tick(ticks: list[float]) -> None:
    """Count ticks, to show that the event loop is not blocked."""
    while True:
        ticks.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.005)


async def main(pool: ResourceExecutor[sqlite3.Connection]) -> None:
    loop = asyncio.get_running_loop()
    ticks: list[float] = []
    ticking = asyncio.create_task(tick(ticks))

    # 1. The front door. The tasks get their worker's connection; more tasks than the queue has places for wait
    #    in the coroutines.
    async with pool.as_async() as tasks:
        counts = await asyncio.gather(*(tasks.run(count_primes, below) for below in (100, 1000, 5000, 10, 20, 30)))
        print(f"1. await tasks.run(...):              {counts} primes")
        streamed = [count async for count in tasks.map(count_primes, range(10, 60, 10), buffersize=2)]
        print(f"   async for ... in tasks.map(...):   {streamed} primes")

        # A time-out stops the task: its query is interrupted, and the worker is free for the next one.
        try:
            async with asyncio.timeout(0.1):
                await tasks.run(hang)
        except TimeoutError:
            print("   asyncio.timeout(0.1):              the query was interrupted")
    # The end of the block has waited for all tasks, the stopped one included. The pool goes on.

    # 2. Submit the task and await its future.
    urgent = await asyncio.wrap_future(pool.submit_priority(count_primes, 50))
    print(f"2. wrap_future(pool.submit(...)):     {urgent} primes below 50")

    # 3. run_in_executor calls functions as they are; a view of the pool without resources does, too. One that
    #    needs the connection after all, from deep inside, asks the pool for it.
    def version() -> str:
        return str(pool.current_resource().execute("SELECT sqlite_version()").fetchone()[0])

    plain = pool.with_options(pass_resource=False)
    answer = await loop.run_in_executor(plain, version)
    print(f"3. loop.run_in_executor(view, ...):   SQLite {answer}")

    # 4. The same for all code that runs in the loop's default executor, such as asyncio.to_thread. asyncio
    #    insists on a ThreadPoolExecutor there, and as_thread_pool() is one.
    loop.set_default_executor(pool.as_thread_pool())
    worker = await asyncio.to_thread(lambda: threading.current_thread().name)
    print(f"4. asyncio.to_thread(...):            ran on {worker}, a worker of ours")

    ticking.cancel()
    print(f"The event loop went on meanwhile: it ticked {len(ticks)} times.")

    right = counts == [25, 168, 669, 4, 8, 10] and streamed == [4, 8, 10, 12, 15] and urgent == 15
    if not right or answer != sqlite3.sqlite_version:
        sys.exit("FAILED: a result is wrong")
    if not worker.startswith("bridge"):
        sys.exit(f"FAILED: to_thread ran on {worker}")
    # asyncio.run() shuts the default executor down. That ends the view, and not the pool behind it.


if __name__ == "__main__":
    with ResourceExecutor(
        2,
        on_create=connect,
        on_destroy=sqlite3.Connection.close,
        on_abort=sqlite3.Connection.interrupt,
        max_queued=2,
        name="bridge",
    ) as workers:
        asyncio.run(main(workers))
        again = workers.submit(count_primes, 30).result()
        print(f"The pool outlives the event loop: {again} primes below 30.")
    end = workers.stats()
    print(f"Connections: {end.resources_created} opened, {end.resources_destroyed} closed")
    print(f"Tasks: {end.completed} completed, {end.stopped} stopped")
    if again != 10 or end.stopped != 1 or end.resources_created != end.resources_destroyed:
        sys.exit("FAILED: a result is wrong, or a connection was left open")
