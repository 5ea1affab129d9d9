"""Channels of RabbitMQ, by pika: ``pip install tasker-executor[pika]``."""

from __future__ import annotations

import copy
import threading
from typing import Any

from typing_extensions import override

from .._checks import check_bool
from ..factory import ResourceFactory, Verdict
from ._sockets import shut_down

try:
    import pika
    from pika.adapters.blocking_connection import BlockingChannel
    from pika.connection import Parameters
    from pika.exceptions import AMQPError, ChannelWrongStateError, ConnectionClosedByBroker
except ModuleNotFoundError as _error:
    raise ImportError("tasker_executor.resources.pika needs pika: pip install tasker-executor[pika]") from _error

__all__ = ["Channels"]

#: Seconds, where the parameters say nothing.
_HEARTBEAT = 600
_BLOCKED_FOR = 300.0
#: Seconds for the farewell to a broker that may not answer.
_PATIENCE = 5.0
#: Replies of a broker that closes a connection for reasons of its own: shut down, closed by an operator; and
#: an error inside of it. With all others it says what the task did wrong.
_BROKER_ENDS = {320, 541}


class Channels(ResourceFactory[BlockingChannel]):
    """A channel for each worker, on a connection of its own, by `pika.BlockingConnection`.

    **Broken** is a channel whose connection is closed, unless the broker closed it for an error of the task.
    If the broker closes the channel alone (404 for a queue that is not there, 406), then that is the task's
    own error. A closed channel cannot be opened again, so in both cases the worker gets a new one.

    **Run again**: no task whose connection broke. What it published may have arrived, so the error is final,
    and only the channel is replaced. ``retry_broken=True`` has such tasks run again: it is for tasks that
    may be done twice.

    **Clean**: consumers that the task left are cancelled, and messages that it got and did not acknowledge go
    back to their queues. Prefetch (`basic_qos`) and transactions (`tx_select`) stay as a task leaves them.

    **Abort**: the socket of the connection is shut down.

    **Heartbeats** are sent only while a task or a check calls pika. So a worker that is idle for more than
    about two heartbeats, or a task that computes so long, loses its connection. The idle worker notices
    before its next task, and connects anew. Where the parameters choose no heartbeat, it is 600 seconds, and
    a publisher that the broker blocks (memory, disk) waits for 300 seconds.

    Args:
        parameters: A URL, or parameters of pika.
        confirm_delivery: Have the broker confirm what is published: `basic_publish` waits, and raises
            `pika.exceptions.NackError`, or `UnroutableError` if it is mandatory.
        retry_broken: Run a task again if its connection broke, though what it did may be done already.
    """

    def __init__(self, parameters: str | Parameters, *, confirm_delivery: bool = False, retry_broken: bool = False) -> None:
        check_bool("confirm_delivery", confirm_delivery)
        check_bool("retry_broken", retry_broken)
        if isinstance(parameters, str):
            parameters = pika.URLParameters(parameters)
        elif isinstance(parameters, Parameters):
            parameters = copy.copy(parameters)
        else:
            raise TypeError(f"parameters must be a URL or pika.connection.Parameters, not {parameters!r}")
        if parameters.heartbeat is None:
            parameters.heartbeat = _HEARTBEAT
        if parameters.blocked_connection_timeout is None:
            parameters.blocked_connection_timeout = _BLOCKED_FOR
        self._parameters = parameters  # not changed: pika copies them for each connection
        self._confirm_delivery = confirm_delivery
        self._retry_broken = retry_broken

    @override
    def create(self) -> BlockingChannel:
        connection = pika.BlockingConnection(self._parameters)
        try:
            channel = connection.channel()
            channel.__class__ = _Channel  # pika has no other way to make one of ours
            if self._confirm_delivery:
                channel.confirm_delivery()
        except BaseException:
            try:
                if connection.is_open:
                    connection.close()
            finally:
                _close_loop(connection)
            raise
        return channel

    @override
    def destroy(self, resource: BlockingChannel) -> None:
        connection = resource.connection
        timer = threading.Timer(_PATIENCE, _cut, [resource])
        try:
            if connection.is_open:
                timer.start()
                connection.close()
        except AMQPError:
            if not vars(resource).get("is_cut"):  # nothing else is to be expected then
                raise
        finally:
            timer.cancel()
            _close_loop(connection)

    @override
    def judge(self, error: Exception, resource: BlockingChannel) -> Verdict:
        if not isinstance(error, AMQPError) or resource.connection.is_open or not self._retry_broken:
            return Verdict.OWN  # reset() sees whether channel and connection are open
        if isinstance(error, ConnectionClosedByBroker) and error.reply_code not in _BROKER_ENDS:
            return Verdict.OWN
        return Verdict.BROKEN

    @override
    def check(self, resource: BlockingChannel) -> bool:
        resource.connection.process_data_events(0)  # raises if the connection has ended
        return resource.is_open

    @override
    def reset(self, resource: BlockingChannel) -> None:
        if not resource.is_open:
            raise ChannelWrongStateError("the channel is closed")
        if vars(resource).get("is_cut"):
            raise ChannelWrongStateError("the task was stopped")
        if isinstance(resource, _Channel) and resource.may_hold_messages:
            resource.may_hold_messages = False
            resource.cancel()
            for tag in resource.consumer_tags:
                resource.basic_cancel(tag)
            resource.basic_recover(requeue=True)

    @override
    def abort(self, resource: BlockingChannel) -> None:
        vars(resource)["is_cut"] = True
        _cut(resource)


def _close_loop(connection: pika.BlockingConnection) -> None:
    """Close the sockets by which pika wakes itself. It leaves them open if a connection is lost between two calls."""
    loop = getattr(getattr(connection, "_impl", None), "ioloop", None)
    if loop is not None:
        loop.close()  # may be called twice


def _cut(channel: BlockingChannel) -> None:
    """Shut the socket down."""
    transport = getattr(getattr(channel.connection, "_impl", None), "_transport", None)
    shut_down(getattr(transport, "_sock", None))


class _Channel(BlockingChannel):
    """A channel that knows whether there may be consumers, or messages that are not acknowledged."""

    may_hold_messages = False

    @override
    def basic_get(self, *args: Any, **options: Any) -> Any:
        self.may_hold_messages = True
        return super().basic_get(*args, **options)

    @override
    def basic_consume(self, *args: Any, **options: Any) -> Any:
        self.may_hold_messages = True
        return super().basic_consume(*args, **options)

    @override
    def consume(self, *args: Any, **options: Any) -> Any:
        self.may_hold_messages = True
        return super().consume(*args, **options)
