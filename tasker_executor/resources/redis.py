"""Clients of Redis and Valkey, by redis-py: ``pip install tasker-executor[redis]``."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from typing_extensions import override

from .._checks import check_bool, check_count
from ..factory import ResourceFactory, Verdict
from ._sockets import shut_down

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.exceptions import InvalidResponse, ReadOnlyError
    from redis.retry import Retry
except ModuleNotFoundError as _error:
    raise ImportError("tasker_executor.resources.redis needs redis: pip install tasker-executor[redis]") from _error

__all__ = ["Connections"]

_LOST = (redis.ConnectionError, redis.TimeoutError, InvalidResponse)
#: Seconds, as in redis-py from 8.0 on; older ones wait without end.
_TIMEOUT = 5.0


class Connections(ResourceFactory[redis.Redis]):
    """A client for each worker, with a connection of its own.

    The client repeats no command by itself, unless ``retry=`` says so; redis-py's own default is to repeat 10
    times.

    **Broken** is a client that is without its connection after a ConnectionError or a TimeoutError (the
    answer may still come, and would be taken for that to the next command), or whose server has become a
    replica (ReadOnlyError). What a command itself does wrong (ResponseError) breaks nothing.

    **Run again**: no task whose connection broke. Redis may have done what the task asked for, and to add 1
    twice is wrong. The error is final, and only the client is replaced. ``retry_broken=True`` has such
    tasks run again: it is for tasks that may be done twice.

    **Clean**: a client whose pipeline, lock or subscription is still open after the task is replaced. What
    commands set for the connection (SELECT, CLIENT) stays: pass ``db=``, ``client_name=`` instead.

    **Abort**: the sockets of the client are shut down, and it connects no more.

    Args:
        url: As in `redis.Redis.from_url`.
        max_connections: How many connections each client may have. A task that subscribes, or holds a
            pipeline open after ``watch()``, and sends commands by the client at the same time, needs 2.
        retry_conflicts: Run a task again if a key that it watched has changed (WatchError).
        retry_broken: Run a task again if its connection broke, though what it did may be done already.
        options: As in `redis.Redis.from_url`. A command waits for its answer for 5 seconds: pass a longer
            ``socket_timeout=``, or None, for commands that block (BLPOP).
    """

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        max_connections: int = 1,
        retry_conflicts: bool = False,
        retry_broken: bool = False,
        **options: Any,
    ) -> None:
        check_bool("retry_conflicts", retry_conflicts)
        check_bool("retry_broken", retry_broken)
        if not isinstance(url, str):
            raise TypeError(f"url must be a str, not {url!r}")
        self._url = url
        self._max_connections = check_count("max_connections", max_connections, 1)
        self._retry_conflicts = retry_conflicts
        self._retry_broken = retry_broken
        self._options: dict[str, Any] = {"socket_timeout": _TIMEOUT, "socket_connect_timeout": _TIMEOUT, **options}
        self._pool().make_connection()  # checks the arguments, and connects nowhere

    @override
    def create(self) -> redis.Redis:
        client = redis.Redis.from_pool(self._pool())
        try:
            client.ping()
        except BaseException:
            client.close()
            raise
        return client

    @override
    def destroy(self, resource: redis.Redis) -> None:
        resource.close()

    @override
    def judge(self, error: Exception, resource: redis.Redis) -> Verdict:
        pool = _pool_of(resource)
        if isinstance(error, redis.WatchError):
            # A pipeline that watches raises it, too, if its connection breaks, and then connects anew. The
            # server may have done EXEC.
            lost = isinstance(error.__context__, _LOST)
        else:
            lost = isinstance(error, _LOST) and pool.has_lost_one()
        if not (lost or isinstance(error, ReadOnlyError)):
            return Verdict.AGAIN if self._retry_conflicts and isinstance(error, redis.WatchError) else Verdict.OWN
        pool.cut()  # for reset() to see
        return Verdict.BROKEN if self._retry_broken else Verdict.OWN

    @override
    def check(self, resource: redis.Redis) -> bool:
        return bool(resource.ping())

    @override
    def reset(self, resource: redis.Redis) -> None:
        pool = _pool_of(resource)
        if pool.is_cut:
            raise redis.ConnectionError(_CUT)
        if pool.lent:
            raise redis.ConnectionError("the task left a pipeline, a lock or a subscription open")

    @override
    def abort(self, resource: redis.Redis) -> None:
        _pool_of(resource).cut()

    def _pool(self) -> _Pool:
        return _Pool.from_url(
            self._url, **{"retry": Retry(NoBackoff(), 0), "max_connections": self._max_connections, **self._options}
        )


_CUT = "the connection is broken, or the task was stopped"


class _Pool(redis.ConnectionPool):
    """The connections of one client: which there are, and which are in use."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._refuses = threading.Event()
        # The threads of a task add and discard, in one step each. No thread iterates over the set. The list
        # only grows; the thread that aborts copies it, in one step.
        self.lent: set[Any] = set()
        self._made: list[Any] = []
        self._lost_at_once = False  # lost as it was handed out: redis-py does not close it then
        super().__init__(*args, **options)

    @override
    def make_connection(self) -> Any:
        connection: Any = super().make_connection()
        self._made.append(connection)
        # A pipeline or a subscription keeps its connection, and connects that itself.
        connection.redis_connect_func = functools.partial(_connected, self._refuses, connection.redis_connect_func)
        return connection

    @override
    def get_connection(self, *args: Any, **options: Any) -> Any:
        try:
            connection: Any = super().get_connection(*args, **options)
        except _LOST:
            self._lost_at_once = len(self.lent) < len(self._made)  # if not, there are too many, and none was lost
            raise
        self.lent.add(connection)
        if self.is_cut:  # looked at last: cut() sets it first, and then looks for connections
            self.release(connection)
            raise redis.ConnectionError(_CUT)
        return connection

    @override
    def release(self, connection: Any) -> None:
        super().release(connection)
        self.lent.discard(connection)

    @property
    def is_cut(self) -> bool:
        return self._refuses.is_set()

    def has_lost_one(self) -> bool:
        """Return whether a connection is lost. redis-py closes it after an error, and connects it on use."""
        return self._lost_at_once or any(_socket_of(connection) is None for connection in self._made)

    def cut(self) -> None:
        """End what is sent and received, for good."""
        self._refuses.set()
        for connection in self._made.copy():
            shut_down(_socket_of(connection))


def _connected(refuses: threading.Event, then: Callable[[Any], object] | None, connection: Any) -> None:
    """Set up a connection that has just got its socket."""
    if refuses.is_set():  # looked at after there is a socket: see `_Pool.get_connection`
        raise redis.ConnectionError(_CUT)
    if then is None:
        connection.on_connect()
    else:
        then(connection)


def _pool_of(client: redis.Redis) -> _Pool:
    pool: Any = client.connection_pool
    assert isinstance(pool, _Pool)
    return pool


def _socket_of(connection: Any) -> Any:
    return getattr(connection, "_sock", None)
