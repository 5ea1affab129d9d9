"""`tasker_executor.resources.pika` against a real RabbitMQ."""

from __future__ import annotations

import os
import pickle
import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, assert_type

import pytest

from proxy import Proxy
from support import DEADLINE, eventually, run_python
from tasker_executor import ResourceExecutor
from tasker_executor.factory import Verdict
from trouble import HANGS, MAX_RETRIES, OUTAGE, WORKERS, again_and_again, cause_of_stop, in_thread

if not TYPE_CHECKING:
    pytest.importorskip("pika")
import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    ChannelClosedByBroker,
    ChannelWrongStateError,
    ConnectionClosedByBroker,
    StreamLostError,
    UnroutableError,
)

from tasker_executor.resources import pika as module
from tasker_executor.resources.pika import Channels

Pool: TypeAlias = ResourceExecutor[BlockingChannel]
Made: TypeAlias = tuple[Channels, BlockingChannel]
Connect: TypeAlias = Callable[..., Made]


class Server:
    """A RabbitMQ with an administrator, and a queue of our own. All else goes through a proxy, which can count and reset."""

    def __init__(self, url: str, proxy: Proxy) -> None:
        self.proxy = proxy
        self.parameters = pika.URLParameters(url)
        self.connection = pika.BlockingConnection(self.parameters)
        self.admin = self.connection.channel()
        self.queue = f"tasker_{uuid.uuid4().hex[:12]}"
        self.admin.queue_declare(self.queue)
        self.parameters.host, self.parameters.port = proxy.host, proxy.port

    def publish(self, *bodies: str) -> None:
        for body in bodies:
            self.admin.basic_publish("", self.queue, body)

    def bodies(self) -> list[int]:
        """Return the messages of the queue, which are numbers, and take them out of it."""
        bodies: list[int] = []
        while (body := self.admin.basic_get(self.queue, auto_ack=True)[2]) is not None:
            bodies.append(int(body))
        return bodies

    def messages(self) -> int:
        """Return how many messages are ready in the queue."""
        count = self.admin.queue_declare(self.queue, passive=True).method.message_count
        assert isinstance(count, int)
        return count

    def close(self) -> None:
        self.admin.queue_delete(self.queue)
        self.connection.close()


@pytest.fixture
def server() -> Iterator[Server]:
    url = os.environ.get("TASKER_TEST_RABBITMQ")
    if not url:
        pytest.skip("TASKER_TEST_RABBITMQ is not set")
    address = pika.URLParameters(url)
    with Proxy(address.host, address.port) as proxy:
        server = Server(url, proxy)
        yield server

        server.close()


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    """Makes a factory and a channel of it, which is destroyed when the test is over."""
    made: list[Made] = []

    def make(**options: Any) -> Made:
        factory = Channels(server.parameters, **options)
        pair = (factory, factory.create())
        made.append(pair)
        return pair

    yield make

    for factory, channel in made:
        factory.destroy(channel)
    eventually(lambda: server.proxy.connections() == 0, "all connections to end")


def error_of(call: Callable[..., object], *arguments: Any, **options: Any) -> Exception:
    with pytest.raises(AMQPError) as caught:
        call(*arguments, **options)
    return caught.value


def ignore(_channel: object, _method: object, _properties: object, _body: object) -> None:
    pass


def is_replaced(factory: Channels, channel: BlockingChannel) -> bool:
    """Does reset say no, so that the executor replaces this channel?"""
    try:
        factory.reset(channel)
    except AMQPError:
        return True
    return False


# -- what is broken, and what is run again --

RETRIES = pytest.mark.parametrize("retry, verdict", [(False, Verdict.OWN), (True, Verdict.BROKEN)])


@pytest.mark.services
@RETRIES
def test_a_connection_that_was_reset_is_broken(server: Server, connect: Connect, retry: bool, verdict: Verdict) -> None:
    factory, channel = connect(retry_broken=retry)
    server.proxy.reset()
    error = error_of(channel.queue_declare, server.queue, passive=True)

    assert isinstance(error, AMQPConnectionError)
    assert factory.judge(error, channel) is verdict
    assert is_replaced(factory, channel)


@pytest.mark.services
@RETRIES
def test_what_is_tried_on_a_channel_without_connection_is_broken_too(
    server: Server, connect: Connect, retry: bool, verdict: Verdict
) -> None:
    factory, channel = connect(retry_broken=retry)
    server.proxy.reset()
    error_of(channel.queue_declare, server.queue, passive=True)
    error = error_of(channel.basic_publish, "", server.queue, b"")  # the error of a channel in the wrong state

    assert factory.judge(error, channel) is verdict


@pytest.mark.services
def test_a_channel_that_the_broker_closed_is_the_tasks_own_error_and_not_used_again(server: Server, connect: Connect) -> None:
    factory, channel = connect(retry_broken=True)
    error = error_of(channel.queue_declare, "tasker_no_such_queue", passive=True)

    assert isinstance(error, ChannelClosedByBroker)
    assert factory.judge(error, channel) is Verdict.OWN
    assert is_replaced(factory, channel)
    assert not factory.check(channel)


@pytest.mark.services
def test_an_error_that_costs_no_channel_breaks_nothing(server: Server, connect: Connect) -> None:
    factory, channel = connect(retry_broken=True, confirm_delivery=True)
    error = error_of(channel.basic_publish, "", "tasker_no_such_queue", b"", mandatory=True)

    assert isinstance(error, UnroutableError)
    assert factory.judge(error, channel) is Verdict.OWN
    assert not is_replaced(factory, channel)
    assert factory.check(channel)


@pytest.mark.services
@pytest.mark.parametrize(
    "code, verdict",
    [(320, Verdict.BROKEN), (541, Verdict.BROKEN), (501, Verdict.OWN), (530, Verdict.OWN)],
)
def test_a_broker_that_closes_the_connection_for_what_the_task_did_is_no_reason_to_do_it_again(
    server: Server, connect: Connect, code: int, verdict: Verdict
) -> None:
    factory, channel = connect(retry_broken=True)
    channel.connection.close()

    assert factory.judge(ConnectionClosedByBroker(code, "for some reason"), channel) is verdict


@pytest.mark.services
def test_an_error_that_is_not_the_drivers_is_the_tasks_own_though_the_connection_is_closed(
    server: Server, connect: Connect
) -> None:
    factory, channel = connect(retry_broken=True)
    channel.connection.close()

    assert factory.judge(ConnectionResetError(), channel) is Verdict.OWN
    assert is_replaced(factory, channel)


@pytest.mark.services
def test_an_error_of_another_connection_is_the_tasks_own(server: Server, connect: Connect) -> None:
    factory, channel = connect(retry_broken=True)

    assert factory.judge(StreamLostError(), channel) is Verdict.OWN
    assert not is_replaced(factory, channel)


@pytest.mark.services
def test_check_notices_that_the_connection_has_ended(server: Server, connect: Connect) -> None:
    factory, channel = connect()
    assert factory.check(channel)
    server.proxy.reset()

    def ended() -> bool:
        try:
            return not factory.check(channel)
        except AMQPError:
            return True

    eventually(ended, "the check to notice")


# -- what is clean --


@pytest.mark.services
@pytest.mark.parametrize("how", ["get", "consume", "generate"])
def test_what_was_not_acknowledged_goes_back_to_the_queue(server: Server, connect: Connect, how: str) -> None:
    server.publish("one", "two")
    factory, channel = connect()
    heard: list[bytes] = []

    def hear(_channel: object, _method: object, _properties: object, body: bytes) -> None:
        heard.append(body)

    if how == "get":
        _, _, body = channel.basic_get(server.queue)
        assert body is not None
        heard.append(body)
    elif how == "consume":
        channel.basic_consume(server.queue, hear)
        while not heard:
            channel.connection.process_data_events(1)
    else:
        _, _, body = next(channel.consume(server.queue))
        assert body is not None
        heard.append(body)
    factory.reset(channel)

    assert heard[0] == b"one"
    assert not channel.consumer_tags
    eventually(lambda: server.messages() == 2, "both messages to be ready again")
    assert next(channel.consume(server.queue, auto_ack=True))[2] == b"one"


@pytest.mark.services
def test_reset_says_nothing_to_the_broker_after_a_task_that_got_nothing(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("sent something")

    factory, channel = connect()
    channel.basic_get(server.queue)
    factory.reset(channel)
    channel.basic_publish("", server.queue, b"one")
    monkeypatch.setattr(channel, "basic_recover", refuse)

    factory.reset(channel)


# -- what unblocks a call --


@pytest.mark.services
def test_abort_ends_a_consumer_that_waits(server: Server, connect: Connect) -> None:
    factory, channel = connect()
    channel.basic_consume(server.queue, ignore)
    with in_thread(channel.start_consuming) as errors:
        factory.abort(channel)

    [error] = errors
    assert isinstance(error, AMQPConnectionError)
    assert is_replaced(factory, channel)


@pytest.mark.services
def test_abort_ends_a_call_in_a_stalled_network(server: Server, connect: Connect) -> None:
    factory, channel = connect(retry_broken=True)
    server.proxy.stall()
    with in_thread(lambda: channel.queue_declare(server.queue, passive=True)) as errors:
        factory.abort(channel)

    server.proxy.resume()
    [error] = errors
    assert isinstance(error, AMQPError)
    assert factory.judge(error, channel) is Verdict.BROKEN


@pytest.mark.services
def test_a_channel_that_was_aborted_between_two_calls_is_replaced(server: Server, connect: Connect) -> None:
    factory, channel = connect()

    factory.abort(channel)

    assert channel.is_open  # nobody has looked at the socket
    with pytest.raises(ChannelWrongStateError):
        factory.reset(channel)


@pytest.mark.services
def test_abort_of_a_closed_channel_does_nothing(server: Server, connect: Connect) -> None:
    factory, channel = connect()
    channel.connection.close()

    factory.abort(channel)


@pytest.mark.services
def test_destroy_does_not_wait_for_a_broker_that_does_not_answer(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    factory, channel = connect()
    server.proxy.stall()

    with pytest.raises(AMQPConnectionError):
        factory.destroy(channel)

    assert channel.connection.is_closed
    server.proxy.resume()


def lose(proxy: Proxy, connection: Any) -> Any:
    """Lose a connection between two calls, as a connection that is reset as it is made; return its loop."""
    loop = connection._impl.ioloop
    proxy.reset()
    while connection.is_open:
        loop.poll()
        loop.process_timeouts()
    assert loop._poller._w_interrupt is not None, "pika has closed it"
    return loop


@pytest.mark.services
def test_nothing_is_left_of_a_connection_that_was_lost_between_two_calls(server: Server, connect: Connect) -> None:
    factory, channel = connect()
    loop = lose(server.proxy, channel.connection)

    factory.destroy(channel)

    assert loop._poller._w_interrupt is None


@pytest.mark.services
def test_nothing_is_left_of_a_connection_that_was_lost_as_it_was_made(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[Any] = []

    def channel(connection: object) -> None:
        loops.append(lose(server.proxy, connection))

    with monkeypatch.context() as patch:
        patch.setattr(pika.BlockingConnection, "channel", channel)
        with pytest.raises(TypeError):  # there is no channel
            Channels(server.parameters).create()

    assert loops[0]._poller._w_interrupt is None


# -- in an executor --


@contextmanager
def pool_of(server: Server, workers: int = WORKERS, max_retries: int = 3, **options: Any) -> Generator[Pool]:
    """An executor that has all its workers, looks at no channel because it was idle, and leaves nothing behind."""
    pool = ResourceExecutor(
        workers,
        resource=Channels(server.parameters, **options),
        min_workers=workers,
        check_after_idle=HANGS,
        create_timeout=HANGS,
        max_retries=max_retries,
    )
    assert_type(pool, "ResourceExecutor[BlockingChannel]")
    with pool:
        pool.wait_ready()
        assert server.proxy.connections() == workers
        yield pool

    eventually(lambda: pool.stats().resources_created == pool.stats().resources_destroyed, "all channels to be destroyed")
    eventually(lambda: server.proxy.connections() == 0, "all connections to end")


def publish(channel: BlockingChannel, queue: str, number: int, begin: Callable[[], object] = int) -> int:
    begin()
    channel.basic_publish("", queue, str(number))
    return number


@pytest.mark.services
def test_all_connections_are_reset_at_once_while_tasks_run_and_nothing_that_was_confirmed_is_lost(server: Server) -> None:
    numbers = range(1_000)
    with (
        pool_of(server, confirm_delivery=True, retry_broken=True, max_retries=MAX_RETRIES) as pool,
        again_and_again(server.proxy.reset, 50) as begin,
    ):
        results = list(pool.map(publish, [server.queue] * len(numbers), numbers, [begin] * len(numbers)))

    assert results == list(numbers)
    assert set(server.bodies()) == set(numbers)
    assert pool.stats().retried > 0


@pytest.mark.services
def test_nothing_is_published_twice_unless_that_is_asked_for(server: Server) -> None:
    numbers = range(1_000)
    with pool_of(server, confirm_delivery=True) as pool, again_and_again(server.proxy.reset, 50) as begin:
        futures = [pool.submit(publish, server.queue, number, begin) for number in numbers]
        errors = [future.exception(DEADLINE) for future in futures]
    done = {number for number, error in zip(numbers, errors, strict=True) if error is None}
    bodies = server.bodies()

    assert len(bodies) == len(set(bodies))
    assert done <= set(bodies)
    assert not [error for error in errors if error is not None and not isinstance(error, AMQPError)]
    assert pool.stats().retried == 0


@pytest.mark.services
def test_after_a_restart_every_task_succeeds_with_one_retry_at_most(server: Server) -> None:
    with pool_of(server, confirm_delivery=True, retry_broken=True, max_retries=1) as pool:
        assert server.proxy.reset() == WORKERS
        results = list(pool.map(publish, [server.queue] * WORKERS, range(WORKERS)))

    assert results == sorted(server.bodies()) == list(range(WORKERS))


@pytest.mark.services
def test_the_tasks_own_error_is_its_own(server: Server) -> None:
    def fails(channel: BlockingChannel) -> None:
        publish(channel, server.queue, 1)
        channel.queue_declare("tasker_no_such_queue", passive=True)

    with pool_of(server, 1, confirm_delivery=True, retry_broken=True) as pool:
        error = pool.submit(fails).exception(DEADLINE)
        pool.submit(publish, server.queue, 2).result(DEADLINE)

    assert isinstance(error, ChannelClosedByBroker)
    assert server.bodies() == [1, 2]


@pytest.mark.services
def test_a_message_that_a_task_failed_to_acknowledge_is_for_the_next_task(server: Server) -> None:
    def get(channel: BlockingChannel, fails: bool) -> bytes | None:
        method, _, body = channel.basic_get(server.queue)
        if fails:
            raise ValueError("my own")
        assert method is not None
        channel.basic_ack(method.delivery_tag or 0)
        return body

    server.publish("one")
    with pool_of(server, 1) as pool:
        error = pool.submit(get, True).exception(DEADLINE)
        body = pool.submit(get, False).result(DEADLINE)

    assert isinstance(error, ValueError)
    assert body == b"one"
    assert pool.stats().workers_replaced == 0


@pytest.mark.services
def test_kill_ends_a_consumer_that_waits(server: Server) -> None:
    def consume(channel: BlockingChannel) -> None:
        channel.basic_consume(server.queue, ignore)
        begun.set()
        channel.start_consuming()

    begun = threading.Event()
    with pool_of(server, 1) as pool:
        future = pool.submit(consume)
        assert begun.wait(DEADLINE)
        pool.kill()

        assert isinstance(cause_of_stop(future), AMQPConnectionError)


@pytest.mark.services
def test_tasks_wait_for_the_end_of_an_outage(server: Server) -> None:
    numbers = range(100)
    with pool_of(server, confirm_delivery=True, retry_broken=True) as pool:
        server.proxy.refuse()
        futures = [pool.submit(publish, server.queue, number) for number in numbers]
        threading.Event().wait(OUTAGE)
        during = pool.stats()
        server.proxy.accept()

        assert [future.result(DEADLINE) for future in futures] == list(numbers)
    assert set(server.bodies()) == set(numbers)
    assert during.completed == 0
    assert during.create_failures > 0


# -- the factory --


@pytest.mark.services
def test_heartbeats_are_rare_unless_the_parameters_say_otherwise(server: Server, connect: Connect) -> None:
    _, default = connect()
    server.parameters.heartbeat = 30
    server.parameters.blocked_connection_timeout = 10
    _, chosen = connect()

    both = [vars(channel.connection)["_impl"].params for channel in (default, chosen)]

    assert [(each.heartbeat, each.blocked_connection_timeout) for each in both] == [(600, 300), (30, 10)]


@pytest.mark.services
def test_a_factory_that_was_pickled_is_the_same(server: Server, connect: Connect) -> None:
    factory, _ = connect(confirm_delivery=True)
    copy: Channels = pickle.loads(pickle.dumps(factory))
    channel = copy.create()
    error = error_of(channel.basic_publish, "", "tasker_no_such_queue", b"", mandatory=True)
    copy.destroy(channel)

    assert isinstance(error, UnroutableError)


@pytest.mark.services
@pytest.mark.parametrize("closed", [False, True])
def test_create_leaves_nothing_behind_when_it_fails(server: Server, closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(channel: BlockingChannel) -> None:
        if closed:
            channel.connection.close()
        raise ValueError("my own")

    monkeypatch.setattr(BlockingChannel, "confirm_delivery", fail)
    with pytest.raises(ValueError, match="my own"):
        Channels(server.parameters, confirm_delivery=True).create()

    eventually(lambda: server.proxy.connections() == 0, "the connection to end")


def test_the_parameters_of_the_caller_stay_as_they_are() -> None:
    parameters = pika.ConnectionParameters()
    Channels(parameters)

    assert parameters.heartbeat is None
    assert parameters.blocked_connection_timeout is None


@pytest.mark.parametrize(
    "parameters, options, error, words",
    [
        (b"amqp://localhost", {}, TypeError, "parameters must be a URL or pika.connection.Parameters, not b'amqp"),
        ("amqp://localhost/?heartbeat=often", {}, ValueError, "heartbeat"),
        ("amqp://localhost", {"confirm_delivery": 1}, TypeError, "confirm_delivery must be a bool, not 1"),
        ("amqp://localhost", {"retry_broken": None}, TypeError, "retry_broken must be a bool, not None"),
    ],
)
def test_arguments_are_checked_at_once(parameters: Any, options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Channels(parameters, **options)


def test_without_the_package_the_module_says_what_to_install() -> None:
    result = run_python("import sys; sys.modules['pika'] = None; import tasker_executor.resources.pika")

    assert "pip install tasker-executor[pika]" in result.stderr
