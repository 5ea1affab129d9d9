"""The proxy of the tests of drivers does what it says."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from proxy import Proxy
from support import DEADLINE, eventually


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while True:
            try:
                data = self.request.recv(1024)
            except ConnectionResetError:
                return
            if not data:
                return
            self.request.sendall(data)


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = False  # they are joined
    allow_reuse_address = True


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="echo")
        thread.start()
        try:
            with Proxy("127.0.0.1", server.server_address[1]) as proxy:
                yield proxy
        finally:
            server.shutdown()
            thread.join(DEADLINE)


def connect(proxy: Proxy) -> socket.socket:
    connection = socket.create_connection((proxy.host, proxy.port), DEADLINE)
    connection.sendall(b"hello")
    assert connection.recv(1024) == b"hello"
    return connection


def test_all_goes_through_and_the_end_of_a_connection_as_well(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        assert (proxy.connections(), proxy.accepted()) == (1, 1)
        connection.shutdown(socket.SHUT_WR)

        assert connection.recv(1024) == b""

    eventually(lambda: proxy.connections() == 0, "the proxy to let go of the connection")
    assert proxy.accepted() == 1


def test_reset_ends_the_oldest_connections(proxy: Proxy) -> None:
    with connect(proxy) as oldest, connect(proxy) as youngest:
        assert proxy.reset(1) == 1

        with pytest.raises(ConnectionResetError):
            oldest.recv(1024)
        youngest.sendall(b"still here")
        assert youngest.recv(1024) == b"still here"
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            youngest.recv(1024)


def test_what_stalls_arrives_after_resume(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        proxy.stall()
        connection.settimeout(0.1)
        connection.sendall(b"late")
        with pytest.raises(TimeoutError):
            connection.recv(1024)
        with socket.create_connection((proxy.host, proxy.port), DEADLINE) as new:
            new.sendall(b"later")

            proxy.resume()
            connection.settimeout(DEADLINE)

            assert connection.recv(1024) == b"late"
            assert new.recv(1024) == b"later"


def test_refuse_is_an_outage_until_accept(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        proxy.refuse()

        with pytest.raises(ConnectionResetError):
            connection.recv(1024)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((proxy.host, proxy.port), DEADLINE)
        proxy.accept()
        connect(proxy).close()


def test_delay_holds_both_directions(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        proxy.delay(0.05)
        begin = time.monotonic()
        connection.sendall(b"slow")

        assert connection.recv(1024) == b"slow"
        assert time.monotonic() - begin >= 0.1


def test_refuse_resets_connections_that_stall_since_their_birth(proxy: Proxy) -> None:
    proxy.stall()
    with socket.create_connection((proxy.host, proxy.port), DEADLINE) as connection:
        eventually(lambda: proxy.connections() == 1, "the proxy to have the connection")

        proxy.refuse()

        with pytest.raises(ConnectionResetError):
            connection.recv(1024)
    proxy.resume()
    eventually(lambda: proxy.connections() == 0, "the proxy to let go of the connection")


def test_a_server_that_is_gone_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with Proxy("127.0.0.1", port) as proxy:
        connection = socket.create_connection((proxy.host, proxy.port), DEADLINE)
        with connection, pytest.raises(ConnectionResetError):
            connection.recv(1024)
