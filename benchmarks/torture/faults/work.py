"""Tasks that go wrong, and callers that change their minds."""

from __future__ import annotations

import asyncio
import threading
import time

from ..stage import Stage
from ..subjects import SIZE
from ..tasks import fail, forget, parent, poison, refuse, write
from ._fault import PATIENCE, fault


@fault("a poison task", within=10.0)
def poison_task(stage: Stage) -> None:
    """One task breaks every connection that it gets, among twenty innocent ones. It must end with an error, and they with
    their results.
    """
    stage.start()
    stage.submit(write, 0.05, count=10)
    stage.submit(poison, wants="error", effect="run", retried=True)
    stage.submit(write, 0.05, count=10)
    stage.over()


@fault("an error of the task's own")
def own_error(stage: Stage) -> None:
    """Four tasks write a row and then divide by zero. They must end with their error, leave no row, and not be run again:
    nothing is wrong with the connection. Eight others come after them.
    """
    stage.start()
    stage.submit(fail, count=SIZE, wants="error", effect="run")
    stage.submit(write, count=2 * SIZE)


@fault("a transaction left open", topic="open")
def left_open(stage: Stage) -> None:
    """Tasks are trusted to commit by themselves, and four forget it. The server must not be left with open transactions,
    which hold locks and keep it from cleaning up.
    """
    stage.start(transaction=False)
    stage.submit(forget, count=SIZE, effect="run")
    stage.collect(3.0)
    stage.count_open_transactions()


@fault("a hanging query with a deadline", topic="deadline", within=6.0)
def hanging_query(stage: Stage) -> None:
    """Four queries hang, and have a second each. A pool that knows no deadline leaves it to the server's
    statement_timeout. Eight other tasks wait behind them.
    """
    stage.start()
    for _ in range(SIZE):
        stage.submit_within(1.0, write, 60.0, wants="error")
    stage.submit(write, count=2 * SIZE)


@fault("a stalled connection with a deadline", topic="deadline", within=10.0)
def stalled_query(stage: Stage) -> None:
    """Four queries run, and have a second each, when the network forgets their connections: no answer comes any more, and
    no error. New connections work. Eight other tasks wait behind them.
    """
    stage.start()
    for _ in range(SIZE):
        stage.submit_within(1.0, write, 0.5, wants="error")
    stage.until_busy()
    stage.proxy.stall_these()
    stage.over()
    stage.submit(write, count=2 * SIZE)


@fault("clients that go away", topic="cancel", within=5.0)
def client_gone(stage: Stage) -> None:
    """Eight coroutines of a web service await a task each, which takes a minute. Their clients go away after half a second.
    Eight other tasks come: workers must not be busy for clients that are gone.
    """
    stage.start()
    numbers = [stage.promise("cancelled", wants="cancelled") for _ in range(2 * SIZE)]

    async def client(number: int) -> None:
        try:
            async with asyncio.timeout(0.5):
                await stage.subject.request(write, number, 60.0)
        except TimeoutError:
            pass

    async def serve() -> None:
        await asyncio.gather(*map(client, numbers))

    asyncio.run(serve())
    stage.submit(write, count=2 * SIZE)


@fault("queued work is cancelled", topic="cancel")
def cancel_queued(stage: Stage) -> None:
    """All workers are busy, and twenty tasks wait. The twenty are cancelled, and must not run."""
    stage.start()
    stage.submit(write, 1.0, count=SIZE)
    stage.until_busy()
    for work in stage.submit(write, count=20, wants="cancelled"):
        stage.subject.cancel(work.future)


@fault("running work is cancelled", topic="cancel", within=5.0)
def cancel_running(stage: Stage) -> None:
    """Four queries run, each takes a minute, and all are cancelled. Eight other tasks wait behind them."""
    stage.start()
    running = stage.submit(write, 60.0, count=SIZE, wants="cancelled")
    stage.until_busy()
    for work in running:
        stage.subject.cancel(work.future)
    stage.submit(write, count=2 * SIZE)


@fault("nested submits on a full pool", topic="nested", within=PATIENCE)
def nested(stage: Stage) -> None:
    """Each worker runs a task that submits another one to the same pool, and waits for it. No worker is left for those."""
    stage.start()
    stage.submit(parent, count=SIZE, retried=True)


@fault("a burst of ten times the size")
def burst(stage: Stage) -> None:
    """Eight threads submit forty tasks at once to a pool of four that has just been made."""
    stage.start(warm=False)
    producers = [threading.Thread(target=stage.submit, args=(write, 0.1), kwargs={"count": 5}) for _ in range(8)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()


@fault("an exception that refuses attributes")
def refusing_error(stage: Stage) -> None:
    """Four tasks raise an exception that takes no attribute and no note. Eight others come after them."""
    stage.start()
    stage.submit(refuse, count=SIZE, wants="error", effect="run")
    time.sleep(0.2)
    stage.submit(write, count=2 * SIZE)
