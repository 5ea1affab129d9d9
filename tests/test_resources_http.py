"""`tasker_executor.resources.http` against a server that keeps connections, drops them, and answers by halves."""

from __future__ import annotations

import http.client
import os
import pickle
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias, assert_type, cast

import pytest

from proxy import Proxy
from support import DEADLINE, eventually
from tasker_executor import ResourceExecutor
from tasker_executor.factory import Verdict
from tasker_executor.resources.http import Connections
from trouble import HANGS, MAX_RETRIES, OUTAGE, WORKERS, again_and_again, cause_of_stop, in_thread

Pool: TypeAlias = ResourceExecutor[http.client.HTTPConnection]
Made: TypeAlias = tuple[Connections, http.client.HTTPConnection]
Connect: TypeAlias = Callable[..., Made]

IDEMPOTENT = ["DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"]


class Handler(BaseHTTPRequestHandler):
    """Does what the path says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are written one by one

    @property
    def ours(self) -> Server:
        assert isinstance(self.server, Server)
        return self.server

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.ours.note(f"{self.command} {self.path}")
        getattr(self, self.path.strip("/"))()

    def ok(self) -> None:
        self._answer(b"ok")

    def empty(self) -> None:
        self.send_response(204)
        self.end_headers()

    def large(self) -> None:
        self._answer(bytes(1_000_000))

    def chunked(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"2\r\nok\r\n0\r\n\r\n")

    def last(self) -> None:
        """Answer, and say that the connection is closed after it."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"ok")

    def leave(self) -> None:
        """Answer, and close the connection without saying so."""
        self._answer(b"ok")
        self.close_connection = True

    def drop(self) -> None:
        self.close_connection = True

    def garbage(self) -> None:
        self.wfile.write(b"220 mail.example ready\r\n")
        self.close_connection = True

    def half(self) -> None:
        self._answer(b"o", length=2)
        self.close_connection = True

    def half_chunk(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"4\r\nok")
        self.close_connection = True

    def half_reset(self) -> None:
        self._answer(b"o", length=2)
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if os.name == "nt" else "ii", 1, 0))
        self.close_connection = True

    def hang(self) -> None:
        self.ours.over.wait(DEADLINE)
        self.close_connection = True

    def half_hang(self) -> None:
        self._answer(b"o", length=2)
        self.hang()

    def large_hang(self) -> None:
        self._answer(b"o", length=1_000_000)
        self.hang()

    def _answer(self, body: bytes, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 512  # with 5, the default, the kernel drops connections of a pool that connects all at once

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.over = threading.Event()
        self.heard: Counter[str] = Counter()
        self.accepted = 0
        self._lock = threading.Lock()

    @property
    def address(self) -> tuple[str, int]:
        host, port, *_ = self.server_address
        return str(host), int(port)

    def note(self, request: str) -> None:
        with self._lock:
            self.heard[request] += 1

    def process_request(self, request: Any, client_address: Any) -> None:
        self.accepted += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # without saying goodbye first

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def serving(server: Server) -> Generator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="server")
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join(DEADLINE)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as server:
        yield server


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    """Makes a factory and a connection of it, which is destroyed when the test is over."""
    made: list[Made] = []

    def make(**options: Any) -> Made:
        factory = Connections(*server.address, **options)
        pair = (factory, factory.create())
        made.append(pair)
        return pair

    yield make

    for factory, connection in made:
        factory.destroy(connection)


def ask(connection: http.client.HTTPConnection, path: str, method: str = "GET") -> bytes:
    connection.request(method, f"/{path}")
    return connection.getresponse().read()


def error_of(connection: http.client.HTTPConnection, path: str, method: str = "GET") -> Exception:
    with pytest.raises((OSError, http.client.HTTPException)) as caught:
        ask(connection, path, method)
    return caught.value


# -- what is broken, and what is run again --


@pytest.mark.parametrize("method", IDEMPOTENT)
@pytest.mark.parametrize("path", ["drop", "garbage"])
def test_a_task_of_idempotent_requests_is_run_again(connect: Connect, method: str, path: str) -> None:
    factory, connection = connect()
    ask(connection, "ok", method)
    error = error_of(connection, path, method)

    assert factory.judge(error, connection) is Verdict.BROKEN


@pytest.mark.parametrize("path", ["half", "half_chunk", "half_reset"])
def test_half_an_answer_is_broken(connect: Connect, path: str) -> None:
    factory, connection = connect()
    error = error_of(connection, path)

    assert factory.judge(error, connection) is Verdict.BROKEN


@pytest.mark.parametrize("retry, verdict", [(False, Verdict.OWN), (True, Verdict.BROKEN)])
@pytest.mark.parametrize("method", ["POST", "PATCH", "LOCK"])
def test_a_task_that_has_sent_another_request_is_not_run_again_unless_that_is_asked_for(
    server: Server, connect: Connect, method: str, retry: bool, verdict: Verdict
) -> None:
    factory, connection = connect(retry_broken=retry)
    error = error_of(connection, "drop", method)

    assert factory.judge(error, connection) is verdict
    factory.reset(connection)
    assert factory.check(connection)
    assert ask(connection, "ok") == b"ok"
    assert server.heard[f"{method} /drop"] == 1


def test_a_post_that_was_answered_counts_if_the_same_task_fails_later(connect: Connect) -> None:
    factory, connection = connect()
    ask(connection, "ok", "POST")
    error = error_of(connection, "drop")

    assert factory.judge(error, connection) is Verdict.OWN


def test_a_post_of_the_task_before_does_not_count(connect: Connect) -> None:
    factory, connection = connect()
    ask(connection, "ok", "POST")
    factory.reset(connection)
    error = error_of(connection, "drop")

    assert factory.judge(error, connection) is Verdict.BROKEN


@pytest.mark.parametrize("retry, verdict", [(False, Verdict.OWN), (True, Verdict.BROKEN)])
@pytest.mark.parametrize("path", ["hang", "half_hang"])
def test_a_timeout_is_final_unless_asked_for(connect: Connect, path: str, retry: bool, verdict: Verdict) -> None:
    factory, connection = connect(timeout=0.05, retry_broken=retry)
    error = error_of(connection, path)

    assert isinstance(error, TimeoutError)
    assert factory.judge(error, connection) is verdict
    factory.reset(connection)
    connection.timeout = DEADLINE
    assert ask(connection, "ok") == b"ok"


def test_a_post_that_was_not_sent_may_be_run_again() -> None:
    with serving(Server()) as server:
        factory = Connections(*server.address)
        connection = factory.create()
        assert ask(connection, "last") == b"ok"
    error = error_of(connection, "ok", "POST")

    assert isinstance(error, ConnectionRefusedError)
    assert factory.judge(error, connection) is Verdict.BROKEN
    with pytest.raises(ConnectionRefusedError):
        factory.check(connection)


@pytest.mark.parametrize("error", [ConnectionError(), TimeoutError(), http.client.BadStatusLine(""), ValueError()])
def test_an_error_that_came_from_elsewhere_is_the_tasks_own(connect: Connect, error: Exception) -> None:
    factory, connection = connect(retry_broken=True)
    ask(connection, "ok")

    assert factory.judge(error, connection) is Verdict.OWN


@pytest.mark.parametrize("error", [PermissionError(), FileNotFoundError(), http.client.ResponseNotReady()])
def test_an_error_of_a_file_or_of_the_task_is_its_own_even_within_an_answer(connect: Connect, error: Exception) -> None:
    factory, connection = connect(retry_broken=True)
    connection.request("GET", "/large")
    connection.getresponse().read(10)

    assert factory.judge(error, connection) is Verdict.OWN


# -- keep-alive --


def test_a_connection_is_kept_from_request_to_request(server: Server, connect: Connect) -> None:
    factory, connection = connect()
    for path in ("ok", "chunked", "empty", "ok"):
        ask(connection, path)
        factory.reset(connection)
        assert factory.check(connection)

    assert server.accepted == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["last", "leave"])
@pytest.mark.parametrize("checked", [False, True])
def test_a_connection_that_the_server_closed_after_an_answer_is_made_anew_before_a_request_is_sent(
    server: Server, connect: Connect, path: str, method: str, checked: bool
) -> None:
    factory, connection = connect()
    ask(connection, path)
    factory.reset(connection)
    if path == "leave":
        wire = connection.sock
        assert isinstance(wire, socket.socket)
        wire.recv(1, socket.MSG_PEEK)  # waits for the end
    if checked:
        assert factory.check(connection)
        eventually(lambda: server.accepted == 2, "the server to have heard of the new connection")

    assert ask(connection, "ok", method) == b"ok"
    assert server.heard[f"{method} /ok"] == 1
    assert server.accepted == 2


# -- what is clean --


@pytest.mark.parametrize("path", ["ok", "chunked", "empty"])
def test_the_rest_of_a_short_answer_is_read(server: Server, connect: Connect, path: str) -> None:
    factory, connection = connect()
    connection.request("GET", f"/{path}")
    connection.getresponse()

    factory.reset(connection)

    assert ask(connection, "ok") == b"ok"
    assert server.accepted == 1
    assert connection.sock.gettimeout() == 30.0


@pytest.mark.parametrize("path", ["large", "half_hang", "half_reset", "half_chunk"])
def test_the_connection_is_closed_if_the_rest_of_an_answer_is_long_or_does_not_come(
    server: Server, connect: Connect, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasker_executor.resources.http._PATIENCE", 0.05)
    factory, connection = connect()
    connection.request("GET", f"/{path}")
    connection.getresponse()

    factory.reset(connection)

    assert connection.sock is None
    assert ask(connection, "ok") == b"ok"
    assert server.accepted == 2


@pytest.mark.parametrize("path, patience", [("half_hang", 0.05), ("large_hang", DEADLINE)])
def test_reset_does_not_wait_for_the_rest_of_an_answer(
    connect: Connect, path: str, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasker_executor.resources.http._PATIENCE", patience)
    factory, connection = connect()
    connection.request("GET", f"/{path}")
    connection.getresponse()
    begun = time.monotonic()

    factory.reset(connection)

    assert time.monotonic() - begun < DEADLINE / 2


def test_the_rest_of_a_last_answer_is_let_go(server: Server, connect: Connect) -> None:
    factory, connection = connect()
    connection.request("GET", "/last")
    answer = connection.getresponse()

    factory.reset(connection)

    assert answer.isclosed()
    assert ask(connection, "ok") == b"ok"


def test_an_answer_that_was_not_asked_for_is_not_the_next_ones(server: Server, connect: Connect) -> None:
    factory, connection = connect()
    connection.request("GET", "/large")

    factory.reset(connection)

    assert ask(connection, "ok") == b"ok"


def test_a_request_that_was_begun_is_forgotten(connect: Connect) -> None:
    factory, connection = connect()
    connection.putrequest("GET", "/large")

    factory.reset(connection)

    assert ask(connection, "ok") == b"ok"


@pytest.mark.parametrize("path", ["large", "half_chunk"])
@pytest.mark.parametrize("after_reset", [False, True])
def test_an_answer_that_the_task_closed_unread_costs_the_connection(connect: Connect, path: str, after_reset: bool) -> None:
    factory, connection = connect()
    connection.request("GET", f"/{path}")
    connection.getresponse().close()
    if after_reset:
        factory.reset(connection)

    assert ask(connection, "ok") == b"ok"


# -- what unblocks a call --


@pytest.mark.parametrize("path", ["hang", "half_hang", "last_hang"])
def test_abort_ends_a_call_and_all_that_come_after(server: Server, connect: Connect, path: str) -> None:
    def last_hang(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.hang()

    Handler.last_hang = last_hang  # type: ignore[attr-defined]  # only here
    factory, connection = connect()
    with in_thread(lambda: ask(connection, path)) as errors:
        eventually(lambda: server.heard[f"GET /{path}"] == 1, "the request to arrive")
        if path == "last_hang":
            eventually(lambda: connection.sock is None, "the connection to be left to its last answer")
        factory.abort(connection)

    assert len(errors) == (path != "last_hang")  # the end of the last answer is where it ends
    error_of(connection, "ok")
    with pytest.raises(ConnectionAbortedError):
        factory.reset(connection)


def test_abort_of_a_closed_connection_does_nothing(connect: Connect) -> None:
    factory, connection = connect()
    connection.close()

    factory.abort(connection)


def test_abort_at_the_moment_when_the_connection_is_made_ends_it(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    factory, connection = connect()
    connection.close()
    make = cast(Any, connection)._create_connection
    with ExitStack() as aborting:

        def late(*args: Any, **options: Any) -> socket.socket:
            made: socket.socket = make(*args, **options)
            aborting.enter_context(in_thread(lambda: factory.abort(connection)))
            eventually(lambda: connection.is_cut, "the abort")  # type: ignore[attr-defined]  # of ours
            return made

        monkeypatch.setattr(connection, "_create_connection", late)
        error = error_of(connection, "ok")

    assert isinstance(error, ConnectionAbortedError)
    assert connection.sock is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems treat a full backlog otherwise")
def test_abort_ends_a_connection_that_is_not_accepted(connect: Connect) -> None:
    factory, connection = connect()
    with unreachable() as (connection.host, connection.port):
        connection.close()
        before = cast(Any, connection)._last
        with in_thread(lambda: ask(connection, "ok")) as errors:
            eventually(lambda: cast(Any, connection)._last is not before, "a new socket")
            factory.abort(connection)

    assert isinstance(errors[0], OSError)
    with pytest.raises(ConnectionAbortedError):
        factory.reset(connection)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems treat a full backlog otherwise")
def test_abort_right_before_the_socket_connects_ends_it(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    factory, connection = connect()

    class Late(socket.socket):
        def connect(self, address: Any) -> None:
            aborting.enter_context(in_thread(lambda: factory.abort(connection)))
            eventually(lambda: cast(Any, connection).is_cut, "the abort")
            super().connect(address)

    with unreachable() as (connection.host, connection.port), ExitStack() as aborting:
        connection.close()
        monkeypatch.setattr(socket, "socket", Late)
        error = error_of(connection, "ok")
        monkeypatch.undo()

    assert not isinstance(error, TimeoutError)


def test_abort_ends_a_tls_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as accepted:  # it closes no connection before the end
        factory = Connections(*silent.getsockname(), tls=True, timeout=HANGS)
        connection = factory._new()
        with in_thread(connection.connect) as errors:
            assert accepted.enter_context(silent.accept()[0]).recv(1)  # the handshake has begun
            factory.abort(connection)

    assert isinstance(errors[0], OSError)
    assert connection.sock is None


@contextmanager
def unreachable() -> Generator[tuple[str, int]]:
    """The address of a server that accepts no connection, and does not refuse any."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waits = sockets.enter_context(socket.socket())
            waits.setblocking(False)
            waits.connect_ex(listener.getsockname())
        yield listener.getsockname()


# -- in an executor --


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(*server.address) as proxy:
        yield proxy


@contextmanager
def pool_of(proxy: Proxy, workers: int = WORKERS, max_retries: int = 3, **options: Any) -> Generator[Pool]:
    """An executor that has all its workers, looks at no connection because it was idle, and leaves nothing behind."""
    pool = ResourceExecutor(
        workers,
        resource=Connections(proxy.host, proxy.port, **options),
        min_workers=workers,
        check_after_idle=HANGS,
        create_timeout=HANGS,
        max_retries=max_retries,
    )
    assert_type(pool, "ResourceExecutor[http.client.HTTPConnection]")
    with pool:
        pool.wait_ready()
        eventually(lambda: proxy.connections() == workers, "the proxy to have heard of all connections")
        yield pool

    eventually(lambda: pool.stats().resources_created == pool.stats().resources_destroyed, "all to be destroyed")
    eventually(lambda: proxy.connections() == 0, "all connections to end")


def test_all_connections_are_reset_at_once_while_tasks_run(server: Server, proxy: Proxy) -> None:
    def get(connection: http.client.HTTPConnection, path: str) -> bytes:
        begin()
        return ask(connection, path)

    with pool_of(proxy, max_retries=MAX_RETRIES) as pool, again_and_again(proxy.reset, 100) as begin:
        results = list(pool.map(get, ["ok"] * 2_000))

    assert results == [b"ok"] * 2_000
    assert pool.stats().retried > 0


def test_no_request_is_posted_twice(server: Server, proxy: Proxy) -> None:
    def post(connection: http.client.HTTPConnection) -> bytes:
        begin()
        return ask(connection, "ok", "POST")

    posts = 2_000
    with pool_of(proxy) as pool, again_and_again(proxy.reset, 100) as begin:
        futures = [pool.submit(post) for _ in range(posts)]
        errors = [error for future in futures if (error := future.exception(DEADLINE)) is not None]

    assert posts - len(errors) <= server.heard["POST /ok"] <= posts
    assert not [error for error in errors if not isinstance(error, OSError | http.client.HTTPException)]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_after_a_restart_every_task_succeeds(server: Server, proxy: Proxy, method: str) -> None:
    with pool_of(proxy, max_retries=0) as pool:
        pool.submit(ask, "ok").result(DEADLINE)
        assert proxy.reset() == WORKERS
        eventually(lambda: proxy.connections() == 0, "all connections to end")
        results = list(pool.map(ask, ["ok"] * WORKERS, [method] * WORKERS))

    assert results == [b"ok"] * WORKERS
    assert pool.stats().workers_replaced == 0


def test_what_a_task_left_unread_does_not_meet_the_next_task(server: Server, proxy: Proxy) -> None:
    with pool_of(proxy, 1) as pool:
        pool.submit(http.client.HTTPConnection.request, "GET", "/large").result(DEADLINE)
        body = pool.submit(ask, "ok").result(DEADLINE)

    assert body == b"ok"
    assert pool.stats().workers_replaced == 0


def test_the_tasks_own_error_is_its_own_and_costs_nothing(server: Server, proxy: Proxy) -> None:
    def fails(connection: http.client.HTTPConnection) -> None:
        ask(connection, "ok", "PUT")
        raise ConnectionError("of another service")

    with pool_of(proxy, 1, retry_broken=True) as pool:
        error = pool.submit(fails).exception(DEADLINE)
        pool.submit(ask, "ok").result(DEADLINE)

    assert str(error) == "of another service"
    assert server.heard["PUT /ok"] == 1
    assert server.accepted == 1


def test_kill_ends_a_request_that_hangs(server: Server, proxy: Proxy) -> None:
    with pool_of(proxy, 1) as pool:
        future = pool.submit(ask, "hang")
        eventually(lambda: server.heard["GET /hang"] == 1, "the request to arrive")
        pool.kill()

        assert isinstance(cause_of_stop(future), OSError | http.client.HTTPException)
        server.over.set()


def test_tasks_wait_for_the_end_of_an_outage(server: Server, proxy: Proxy) -> None:
    with pool_of(proxy) as pool:
        proxy.refuse()
        futures = [pool.submit(ask, "ok", "PUT") for _ in range(100)]
        threading.Event().wait(OUTAGE)
        during = pool.stats()
        proxy.accept()

        assert [future.result(DEADLINE) for future in futures] == [b"ok"] * 100
    assert server.heard["PUT /ok"] == 100
    assert during.completed == 0
    assert during.create_failures > 0


# -- TLS, and the factory --


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    both = tmp_path / "both.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    files = ["-addext", names, "-keyout", str(both), "-out", str(tmp_path / "certificate.pem")]
    subprocess.run(["openssl", *command.split(), *files], check=True, capture_output=True)
    both.write_text(both.read_text() + (tmp_path / "certificate.pem").read_text())
    return both


def test_tls_keeps_its_connection_and_can_be_aborted(certificate: Path) -> None:
    ours = ssl.create_default_context(cafile=str(certificate))
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate)
    server = Server()
    server.socket = theirs.wrap_socket(server.socket, server_side=True)
    with serving(server):
        factory = Connections(*server.address, tls=True, context=ours)
        connection = factory.create()
        for _ in range(3):
            assert factory.check(connection)
            assert ask(connection, "ok") == b"ok"
            factory.reset(connection)
        with in_thread(lambda: ask(connection, "hang")) as errors:
            eventually(lambda: server.heard["GET /hang"] == 1, "the request to arrive")
            factory.abort(connection)
        factory.destroy(connection)

    assert server.accepted == 1
    assert isinstance(errors[0], OSError | http.client.HTTPException)


def test_tls_trusts_no_certificate_of_our_own(certificate: Path) -> None:
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate)
    server = Server()
    server.socket = theirs.wrap_socket(server.socket, server_side=True)
    with serving(server), pytest.raises(ssl.SSLCertVerificationError):
        Connections(*server.address, tls=True).create()


def test_a_factory_that_was_pickled_is_the_same(connect: Connect) -> None:
    factory, _ = connect(timeout=5, blocksize=1024)
    copy: Connections = pickle.loads(pickle.dumps(factory))
    connection = copy.create()

    assert ask(connection, "ok") == b"ok"
    assert connection.timeout == 5
    copy.destroy(connection)


@pytest.mark.parametrize(
    "arguments, options, error, words",
    [
        ((None,), {}, TypeError, "host must be a str, not None"),
        (("localhost:none",), {}, http.client.InvalidURL, "nonnumeric port"),
        (("localhost",), {"tls": 1}, TypeError, "tls must be a bool, not 1"),
        (("localhost",), {"retry_broken": None}, TypeError, "retry_broken must be a bool, not None"),
        (("localhost",), {"timeout": 0}, ValueError, "timeout must be above 0, not 0"),
        (("localhost",), {"timeout": None}, TypeError, "timeout must be a number of seconds, not None"),
        (("localhost",), {"context": None}, TypeError, "context"),
        (("localhost",), {"hots": "localhost"}, TypeError, "hots"),
    ],
)
def test_arguments_are_checked_at_once(arguments: Any, options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Connections(*arguments, **options)
