"""`tasker_executor.resources.redis` against a real Redis."""

from __future__ import annotations

import pickle
import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, assert_type, cast
from urllib.parse import urlsplit, urlunsplit

import pytest

from proxy import Proxy
from support import DEADLINE, eventually, run_python
from tasker_executor import ResourceExecutor
from tasker_executor.factory import Verdict
from trouble import HANGS, MAX_RETRIES, OUTAGE, WORKERS, again_and_again, cause_of_stop, in_thread

if not TYPE_CHECKING:
    pytest.importorskip("redis")
import redis
from redis.exceptions import InvalidResponse, ReadOnlyError

from tasker_executor.resources.redis import Connections

Pool: TypeAlias = ResourceExecutor[redis.Redis]
Made: TypeAlias = tuple[Connections, redis.Redis]
Connect: TypeAlias = Callable[..., Made]


class Server:
    """A Redis with an administrator; our clients, and the keys of a test, are known by a name of our own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.admin = redis.Redis.from_url(url, decode_responses=True)
        self.name = f"tasker_{uuid.uuid4().hex[:12]}"

    def ids(self) -> list[str]:
        """Return the numbers of our connections."""
        clients: list[dict[str, str]] = cast(Any, self.admin.client_list())
        return [client["id"] for client in clients if client["name"] == self.name]

    def kill(self) -> int:
        """End all our connections; return how many it were."""
        return sum(int(cast(Any, self.admin.client_kill_filter(_id=number))) for number in self.ids())

    def waits(self) -> None:
        """Wait until one of our clients is blocked."""

        def blocked() -> bool:
            clients: list[dict[str, str]] = cast(Any, self.admin.client_list())
            return any(client["name"] == self.name and "b" in client["flags"] for client in clients)

        eventually(blocked, "a command to block")

    def close(self) -> None:
        self.admin.delete(self.name, f"{self.name}_2")
        self.admin.close()


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    server = Server(redis_url)
    yield server

    server.close()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    url = urlsplit(server.url)
    with Proxy(url.hostname or "127.0.0.1", url.port or 6379) as proxy:
        server.url = urlunsplit(url._replace(netloc=f"{url.netloc.rpartition('@')[0]}{proxy.host}:{proxy.port}"))
        yield proxy


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    """Makes a factory and a client of it, which is destroyed when the test is over."""
    made: list[Made] = []

    def make(**options: Any) -> Made:
        factory = Connections(server.url, client_name=server.name, **options)
        pair = (factory, factory.create())
        made.append(pair)
        return pair

    yield make

    for factory, client in made:
        factory.destroy(client)
    eventually(lambda: not server.ids(), "all connections to end")


def error_of(command: Callable[..., object], *arguments: Any) -> Exception:
    with pytest.raises(redis.RedisError) as caught:
        command(*arguments)
    return caught.value


def watch_key(pipeline: Any, key: str) -> None:
    pipeline.watch(key)  # its stub has no types


def is_replaced(factory: Connections, client: redis.Redis) -> bool:
    """Does reset say no, so that the executor replaces this client?"""
    try:
        factory.reset(client)
    except redis.ConnectionError:
        return True
    return False


# -- what is broken, and what is run again --

RETRIES = pytest.mark.parametrize("retry, verdict", [(False, Verdict.OWN), (True, Verdict.BROKEN)])


@pytest.mark.services
def test_each_client_has_one_connection(server: Server, connect: Connect) -> None:
    _, client = connect()
    with client.pipeline() as pipeline:
        pipeline.set(server.name, 1)
        pipeline.get(server.name)
        pipeline.execute()
    client.lock(f"{server.name}_2", timeout=DEADLINE).acquire()

    assert len(server.ids()) == 1


@pytest.mark.services
@pytest.mark.parametrize("retry", [False, True])
def test_an_error_of_the_task_breaks_nothing(server: Server, connect: Connect, retry: bool) -> None:
    factory, client = connect(retry_broken=retry)
    client.set(server.name, "no number")
    error = error_of(client.incr, server.name)

    assert isinstance(error, redis.ResponseError)
    assert factory.judge(error, client) is Verdict.OWN
    assert not is_replaced(factory, client)
    assert factory.check(client)


@pytest.mark.services
@RETRIES
def test_a_connection_that_is_killed_during_a_command_is_broken(
    server: Server, connect: Connect, retry: bool, verdict: Verdict
) -> None:
    factory, client = connect(retry_broken=retry, socket_timeout=None)
    with in_thread(lambda: client.blpop(server.name)) as errors:
        server.waits()
        server.kill()

    [error] = errors
    assert isinstance(error, redis.ConnectionError)
    assert factory.judge(error, client) is verdict
    assert is_replaced(factory, client)


@pytest.mark.services
@RETRIES
def test_a_command_that_was_not_answered_in_time_breaks_the_connection(
    server: Server, connect: Connect, retry: bool, verdict: Verdict
) -> None:
    factory, client = connect(retry_broken=retry, socket_timeout=0.05)
    error = error_of(client.blpop, server.name)

    assert isinstance(error, redis.TimeoutError)
    assert factory.judge(error, client) is verdict
    assert is_replaced(factory, client)


@pytest.mark.services
@RETRIES
def test_a_connection_that_is_lost_in_a_pipeline_is_broken(
    server: Server, connect: Connect, retry: bool, verdict: Verdict
) -> None:
    factory, client = connect(retry_broken=retry, socket_timeout=None)
    pipeline = client.pipeline(transaction=False)
    pipeline.blpop(server.name)
    with in_thread(pipeline.execute) as errors:
        server.waits()
        server.kill()

    [error] = errors
    assert isinstance(error, redis.ConnectionError)
    assert factory.judge(error, client) is verdict
    assert is_replaced(factory, client)


@pytest.mark.services
@RETRIES
def test_a_connection_that_is_lost_while_a_pipeline_watches_is_no_conflict(
    server: Server, connect: Connect, retry: bool, verdict: Verdict
) -> None:
    factory, client = connect(retry_broken=retry, retry_conflicts=True)
    with client.pipeline() as pipeline:
        watch_key(pipeline, server.name)
        pipeline.multi()
        pipeline.incr(server.name)
        server.kill()
        error = error_of(pipeline.execute)

    assert isinstance(error, redis.WatchError)
    assert factory.judge(error, client) is verdict
    assert is_replaced(factory, client)


@pytest.mark.services
def test_no_command_is_repeated_behind_our_back(server: Server, connect: Connect, proxy: Proxy) -> None:
    _, client = connect(socket_timeout=0.2)
    proxy.stall()
    error = error_of(client.incr, server.name)
    proxy.resume()

    assert isinstance(error, redis.TimeoutError)
    eventually(lambda: server.admin.get(server.name) == "1", "the command to arrive")
    eventually(lambda: not server.ids(), "the connection to end")
    assert server.admin.get(server.name) == "1"


@pytest.mark.services
@RETRIES
def test_a_server_that_became_a_replica_is_broken(server: Server, connect: Connect, retry: bool, verdict: Verdict) -> None:
    factory, client = connect(retry_broken=retry)

    assert factory.judge(ReadOnlyError("You can't write against a read only replica."), client) is verdict
    assert is_replaced(factory, client)


@pytest.mark.services
@pytest.mark.parametrize(
    "error", [redis.ConnectionError(), redis.TimeoutError(), InvalidResponse(), ConnectionError(), ValueError()]
)
def test_an_error_that_came_from_elsewhere_is_the_tasks_own(server: Server, connect: Connect, error: Exception) -> None:
    factory, client = connect(retry_broken=True)

    assert factory.judge(error, client) is Verdict.OWN
    assert not is_replaced(factory, client)


@pytest.mark.services
def test_an_idle_connection_that_is_killed_is_made_anew_before_a_command_is_sent(server: Server, connect: Connect) -> None:
    factory, client = connect()
    server.kill()
    eventually(lambda: not server.ids(), "the connection to end")

    assert factory.check(client)
    assert client.incr(server.name) == 1


@pytest.mark.services
@pytest.mark.parametrize("retry, verdict", [(False, Verdict.OWN), (True, Verdict.AGAIN)])
def test_a_conflict_is_run_again_if_that_is_asked_for(server: Server, connect: Connect, retry: bool, verdict: Verdict) -> None:
    factory, client = connect(retry_conflicts=retry)
    with client.pipeline() as pipeline:
        watch_key(pipeline, server.name)
        server.admin.set(server.name, "changed")
        pipeline.multi()
        pipeline.set(server.name, "mine")
        error = error_of(pipeline.execute)

    assert factory.judge(error, client) is verdict
    assert not is_replaced(factory, client)


# -- what is clean --


@pytest.mark.services
@pytest.mark.parametrize("left", ["pipeline", "subscription"])
def test_a_client_with_something_left_open_is_not_kept(server: Server, connect: Connect, left: str) -> None:
    factory, client = connect()
    if left == "pipeline":
        pipeline = client.pipeline()
        watch_key(pipeline, server.name)
        close = pipeline.reset
    else:
        subscription: Any = cast(Any, client).pubsub()
        subscription.subscribe(server.name)
        close = subscription.close
    before = is_replaced(factory, client)
    close()

    assert before
    assert not is_replaced(factory, client)
    assert factory.check(client)


@pytest.mark.services
def test_a_second_connection_is_the_tasks_own_error_unless_it_is_allowed(server: Server, connect: Connect) -> None:
    for most in (1, 2):
        factory, client = connect(max_connections=most, retry_broken=True)
        with client.pipeline() as pipeline:
            watch_key(pipeline, server.name)
            if most == 1:
                error = error_of(client.get, server.name)
                assert factory.judge(error, client) is Verdict.OWN
            else:
                assert client.ping()
        assert not is_replaced(factory, client)


# -- what unblocks a call --


@pytest.mark.services
def test_abort_ends_a_command_that_blocks_and_all_that_come_after(server: Server, connect: Connect) -> None:
    factory, client = connect(socket_timeout=None)
    with in_thread(lambda: client.blpop(server.name)) as errors:
        server.waits()
        factory.abort(client)

    [error] = errors
    assert isinstance(error, redis.ConnectionError)
    assert isinstance(error_of(client.get, server.name), redis.ConnectionError)
    assert is_replaced(factory, client)


@pytest.mark.services
def test_after_an_abort_a_subscription_does_not_connect_anew(server: Server, connect: Connect) -> None:
    factory, client = connect(socket_timeout=None)
    subscription: Any = client.pubsub()  # type: ignore[no-untyped-call]  # its stub has no types
    subscription.subscribe(server.name)
    assert subscription.get_message(timeout=DEADLINE)["type"] == "subscribe"
    with in_thread(lambda: next(subscription.listen())) as errors:
        factory.abort(client)

    assert isinstance(errors[0], redis.ConnectionError)
    assert isinstance(error_of(lambda: next(subscription.listen())), redis.ConnectionError)
    assert is_replaced(factory, client)
    subscription.close()


@pytest.mark.services
def test_a_function_of_the_user_still_sets_connections_up(server: Server, connect: Connect) -> None:
    seen: list[Any] = []

    def set_up(connection: Any) -> None:
        seen.append(connection)
        connection.on_connect()

    _, client = connect(redis_connect_func=set_up)

    assert client.ping()
    assert len(seen) == 1
    assert len(server.ids()) == 1


@pytest.mark.services
def test_abort_ends_a_command_in_a_stalled_network(server: Server, connect: Connect, proxy: Proxy) -> None:
    factory, client = connect(socket_timeout=None)
    proxy.stall()
    with in_thread(lambda: client.get(server.name)) as errors:
        eventually(lambda: bool(client.connection_pool.lent), "the command to begin")  # type: ignore[attr-defined]  # of ours
        factory.abort(client)

    proxy.resume()
    [error] = errors
    assert isinstance(error, redis.ConnectionError)


@pytest.mark.services
def test_abort_of_a_closed_client_does_nothing(connect: Connect) -> None:
    factory, client = connect()
    client.close()

    factory.abort(client)


# -- in an executor --


@contextmanager
def pool_of(server: Server, workers: int = WORKERS, max_retries: int = 3, **options: Any) -> Generator[Pool]:
    """An executor that has all its workers, looks at no client because it was idle, and leaves nothing behind."""
    pool = ResourceExecutor(
        workers,
        resource=Connections(server.url, client_name=server.name, **options),
        min_workers=workers,
        check_after_idle=HANGS,
        create_timeout=HANGS,
        max_retries=max_retries,
    )
    assert_type(pool, "ResourceExecutor[redis.Redis]")
    with pool:
        pool.wait_ready()
        assert len(server.ids()) == workers
        yield pool

    eventually(lambda: pool.stats().resources_created == pool.stats().resources_destroyed, "all clients to be destroyed")
    eventually(lambda: not server.ids(), "all connections to end")


#: A command that may be done twice: it does nothing the second time.
ONCE = "if redis.call('hsetnx', KEYS[1], ARGV[1], 1) == 1 then redis.call('incr', KEYS[2]) end return tonumber(ARGV[1])"


@pytest.mark.services
def test_connections_are_killed_all_the_time_and_all_is_done_once(server: Server) -> None:
    def once(client: redis.Redis, number: int) -> int:
        begin()
        return int(client.eval(ONCE, 2, server.name, f"{server.name}_2", number))

    numbers = range(5_000)
    with (
        pool_of(server, retry_broken=True, max_retries=MAX_RETRIES) as pool,
        again_and_again(server.kill, 100) as begin,
    ):
        results = list(pool.map(once, numbers))

    assert results == list(numbers)
    assert server.admin.get(f"{server.name}_2") == str(len(numbers))


@pytest.mark.services
def test_a_connection_that_is_lost_as_it_is_handed_out_is_broken(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def ping(client: Any) -> bool:
        return bool(client.ping())

    # redis-py has just connected anew, and finds that connection lost, too. Then it does not close it.
    with pool_of(server, 1, retry_broken=True) as pool:
        pool.submit(ping).result(DEADLINE)
        ready, losses = redis.Connection.can_read, [1, 2]

        def lost(connection: redis.Connection, timeout: float = 0) -> bool:
            if losses:
                losses.pop()
                raise redis.ConnectionError("Connection closed by server.")
            return bool(ready(connection, timeout))

        monkeypatch.setattr(redis.Connection, "can_read", lost)
        assert pool.submit(ping).result(DEADLINE) is True
        assert pool.stats().retried == 1


@pytest.mark.services
def test_what_may_be_done_already_is_not_done_again(server: Server) -> None:
    def add(client: redis.Redis) -> None:
        client.incr(server.name)
        client.blpop(f"{server.name}_2")

    with pool_of(server, 1, socket_timeout=None) as pool:
        future = pool.submit(add)
        server.waits()
        server.kill()
        error = future.exception(DEADLINE)
        assert pool.submit(redis.Redis.get, server.name).result(DEADLINE) == b"1"  # by another client

    assert isinstance(error, redis.ConnectionError)
    assert pool.stats().retried == 0
    assert pool.stats().workers_replaced == 1


@pytest.mark.services
@pytest.mark.parametrize("retry", [False, True])
def test_after_a_restart_every_task_succeeds(server: Server, retry: bool) -> None:
    # A client looks whether its connection has ended before it sends anything.
    with pool_of(server, retry_broken=retry, max_retries=1) as pool:
        assert server.kill() == WORKERS
        eventually(lambda: not server.ids(), "all connections to end")
        futures = [pool.submit(redis.Redis.incr, server.name) for _ in range(WORKERS)]
        results = [future.result(DEADLINE) for future in futures]

    assert sorted(results) == list(range(1, WORKERS + 1))


@pytest.mark.services
def test_the_tasks_own_error_is_its_own_and_costs_nothing(server: Server) -> None:
    def fails(client: redis.Redis) -> None:
        client.rpush(server.name, "one")
        client.incr(server.name)

    with pool_of(server, 1, retry_broken=True) as pool:
        error = pool.submit(fails).exception(DEADLINE)
        length = pool.submit(redis.Redis.llen, server.name).result(DEADLINE)

    assert isinstance(error, redis.ResponseError)
    assert length == 1
    assert pool.stats().workers_replaced == 0


@pytest.mark.services
def test_what_a_task_left_open_does_not_meet_the_next_task(server: Server) -> None:
    def leave(client: redis.Redis) -> None:
        pipeline = client.pipeline()
        watch_key(pipeline, server.name)
        left.append(pipeline)

    left: list[Any] = []
    with pool_of(server, 1) as pool:
        pool.submit(leave).result(DEADLINE)
        assert pool.submit(redis.Redis.set, server.name, 1).result(DEADLINE)

    assert pool.stats().workers_replaced == 1


@pytest.mark.services
def test_kill_ends_a_command_that_blocks(server: Server) -> None:
    with pool_of(server, 1, socket_timeout=None) as pool:
        future = pool.submit(redis.Redis.blpop, server.name)
        server.waits()
        pool.kill()

        assert isinstance(cause_of_stop(future), redis.ConnectionError)


@pytest.mark.services
def test_no_addition_is_lost_to_a_conflict(server: Server) -> None:
    def add(client: redis.Redis) -> None:
        with client.pipeline() as pipeline:
            watch_key(pipeline, server.name)
            before = int(cast(Any, pipeline.get(server.name)) or 0)
            pipeline.multi()
            pipeline.set(server.name, before + 1)
            pipeline.execute()

    with pool_of(server, retry_conflicts=True, max_retries=1_000) as pool:
        for future in [pool.submit(add) for _ in range(200)]:
            future.result(DEADLINE)

    assert server.admin.get(server.name) == "200"
    assert pool.stats().retried > 0
    assert pool.stats().workers_replaced == 0


@pytest.mark.services
def test_tasks_wait_for_the_end_of_an_outage(server: Server, proxy: Proxy) -> None:
    numbers = range(100)
    with pool_of(server, retry_broken=True) as pool:
        proxy.refuse()
        futures = [pool.submit(redis.Redis.sadd, server.name, number) for number in numbers]
        threading.Event().wait(OUTAGE)
        during = pool.stats()
        proxy.accept()
        for future in futures:
            future.result(DEADLINE)

    assert server.admin.scard(server.name) == len(numbers)
    assert during.completed == 0
    assert during.create_failures > 0


# -- the factory --


@pytest.mark.services
def test_a_factory_that_was_pickled_is_the_same(server: Server, connect: Connect) -> None:
    factory, _ = connect(decode_responses=True)
    copy: Connections = pickle.loads(pickle.dumps(factory))
    client = copy.create()
    client.set(server.name, "value")
    value = client.get(server.name)
    copy.destroy(client)

    assert value == "value"


@pytest.mark.services
def test_create_leaves_nothing_behind_when_it_fails(server: Server) -> None:
    factory = Connections(server.url, client_name=server.name, db=1_000_000)
    if urlsplit(server.url).path.strip("/"):
        factory = Connections(server.url.rpartition("/")[0] + "/1000000", client_name=server.name)

    with pytest.raises(redis.RedisError):
        factory.create()

    eventually(lambda: not server.ids(), "the connection to end")


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"url": b"redis://localhost"}, TypeError, "url must be a str"),
        ({"url": "http://localhost"}, ValueError, "Redis URL"),
        ({"max_connections": 0}, ValueError, "max_connections must be at least 1, not 0"),
        ({"retry_conflicts": None}, TypeError, "retry_conflicts must be a bool, not None"),
        ({"retry_broken": "no"}, TypeError, "retry_broken must be a bool, not 'no'"),
        ({"hots": "localhost"}, TypeError, "hots"),
    ],
)
def test_arguments_are_checked_at_once(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Connections(**options)


def test_without_the_package_the_module_says_what_to_install() -> None:
    result = run_python("import sys; sys.modules['redis'] = None; import tasker_executor.resources.redis")

    assert "pip install tasker-executor[redis]" in result.stderr
