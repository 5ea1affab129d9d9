"""Tasks on channels of RabbitMQ: publish with confirms, a mistake, work from a queue, a wait that is stopped.

    pip install tasker-executor[pika]
    python examples/rabbitmq.py amqp://guest:guest@127.0.0.1:5672/%2F

It makes the queue "howto", and deletes it in the end.
"""

from __future__ import annotations

import logging
import sys
import threading

from pika.adapters.blocking_connection import BlockingChannel

from tasker_executor import ResourceExecutor, TaskStopped
from tasker_executor.resources.pika import Channels

QUEUE = "howto"


def make_pool(url: str) -> ResourceExecutor[BlockingChannel]:
    factory = Channels(url, confirm_delivery=True)
    return ResourceExecutor(2, resource=factory, name="mail")


def publish(channel: BlockingChannel, body: str) -> None:
    """Return when the broker has the message: `confirm_delivery`. Raise if no queue takes it: `mandatory`."""
    channel.basic_publish("", QUEUE, body.encode(), mandatory=True)


def take_one(channel: BlockingChannel, fail: bool) -> str | None:
    """Take one message. If the task raises before it acknowledges, the message goes back to its queue."""
    method, _, body = channel.basic_get(QUEUE)
    if method is None or body is None:
        return None
    if fail:
        raise RuntimeError("the printer is out of paper")
    channel.basic_ack(method.delivery_tag or 0)
    return body.decode()


def wait_for_one(channel: BlockingChannel, waiting: threading.Event) -> str:
    waiting.set()
    for method, _, body in channel.consume(QUEUE):
        channel.basic_ack(method.delivery_tag or 0)
        return body.decode()
    raise LookupError("the queue was deleted")


def main(url: str) -> None:
    logging.getLogger("tasker_executor").setLevel(logging.ERROR)  # it warns of each channel that it replaces
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    with make_pool(url) as pool:
        pool.submit(lambda channel: channel.queue_delete(QUEUE)).result()
        print("no such queue:", type(pool.submit(publish, "lost").exception()).__name__)
        print("no such queue to read:", type(pool.submit(take_one, False).exception()).__name__)
        pool.submit(lambda channel: channel.queue_declare(QUEUE)).result()
        pool.submit(publish, "a letter").result()
        print("a task that fails:", repr(pool.submit(take_one, True).exception()))
        print("the same message:", pool.submit(take_one, False).result())

        waiting = threading.Event()
        waits = pool.submit(wait_for_one, waiting)
        waiting.wait()
        waits.stop()
        error = waits.exception()
        assert isinstance(error, TaskStopped), error
        print("a wait that is stopped:", type(error).__name__, "from", type(error.__cause__).__name__)
        pool.submit(lambda channel: channel.queue_delete(QUEUE)).result()
    print("channels replaced:", pool.stats().workers_replaced)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@127.0.0.1:5672/%2F")
