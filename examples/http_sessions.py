"""Keep-alive connections to a server that drops them at random: every page arrives all the same.

    python examples/http_sessions.py

Each worker owns an `http.client` connection and uses it for one page after the other. The server, a local
one, hangs up at random: before it answers, or in the middle of a page. The client gets an error. The executor
asks `is_healthy`, replaces worker and connection, and fetches the page again. (So tasks must do no harm when
they run twice, as GET does none.)

A page that does not exist is another matter: the connection is fine, and the error is for the caller.
"""

from __future__ import annotations

import http.client
import logging
import random
import socket
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from typing_extensions import override

from tasker_executor import Observer, ResourceExecutor, TaskEvent

PAGES = 300
WORKERS = 4
DROPS = 0.06  # the share of requests at which the server hangs up


# -- the server


class Server(ThreadingHTTPServer):
    """Serves /page/1, /page/2, ... and hangs up at random; with a seed, so each run sees equally many drops."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self._random = random.Random(2026)
        self._lock = threading.Lock()
        self.connections = self.requests = self.drops = 0

    def count_connection(self) -> None:
        with self._lock:
            self.connections += 1

    def count_request(self) -> int:
        """Count a request; return when to hang up on it: 0 for never, 1 for at once, 2 for in mid-page."""
        with self._lock:
            self.requests += 1
            if self._random.random() >= DROPS:
                return 0
            self.drops += 1
            return 1 + self.drops % 2


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open
    disable_nagle_algorithm = True  # or each page would wait 40 ms for the client to acknowledge its headers

    @override
    def setup(self) -> None:
        super().setup()
        self._server().count_connection()

    def do_GET(self) -> None:
        number = int(self.path.rpartition("/")[2])
        body = page(number)
        drop = self._server().count_request()
        if drop:
            if drop == 2:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(200 if number <= PAGES else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _server(self) -> Server:
        assert isinstance(self.server, Server)
        return self.server

    @override
    def log_message(self, format: str, *args: object) -> None:
        pass


def page(number: int) -> bytes:
    return b"This is page %d. " % number * 50


# -- the client


class PageError(Exception):
    """The server has answered, but not with the page."""


def fetch(connection: http.client.HTTPConnection, number: int) -> bytes:
    connection.request("GET", f"/page/{number}")
    response = connection.getresponse()
    body = response.read()  # to the end, or the connection is of no use for the next request
    if response.status != 200:
        raise PageError(f"page {number}: {response.status} {response.reason}")
    return body


def is_healthy(error: BaseException) -> bool:
    """Return whether the connection is still good after this error. An answer shows that it is."""
    return not isinstance(error, (OSError, http.client.HTTPException))


class Causes(Observer):
    """Notes what broke connections. Its methods run on the threads of the workers; `append` is safe there."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    @override
    def task_retried(self, event: TaskEvent) -> None:
        self.errors.append(type(event.error).__name__)


def main() -> None:
    # The library warns each time it replaces a worker. Here that happens all the time.
    logging.getLogger("tasker_executor").setLevel(logging.ERROR)
    server = Server()
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    serving.start()
    try:
        crawl(server)
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def crawl(server: Server) -> None:
    def connect() -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        # By default, http.client opens another connection when the server has dropped this one. A session
        # that logged in, or a database connection, could not do that. So it is turned off.
        connection.auto_open = 0
        connection.connect()
        return connection

    print(f"{PAGES} pages, {WORKERS} workers with a keep-alive connection each")
    causes = Causes()
    begin = time.perf_counter()
    with ResourceExecutor(
        WORKERS,
        on_create=connect,
        on_destroy=http.client.HTTPConnection.close,
        check_health=is_healthy,
        max_retries=10,
        observers=[causes],
        name="crawler",
    ) as pool:
        pages = list(pool.map(fetch, range(1, PAGES + 1)))
        missing = pool.submit(fetch, PAGES + 1).exception()
    took = time.perf_counter() - begin

    right = sum(body == page(number) for number, body in enumerate(pages, 1))
    stats, metrics = pool.stats(), pool.metrics()
    print(f"\n  pages that arrived        {right} of {PAGES}, in {took:.2f} s ({PAGES / took:.0f} pages/s)")
    print(f"  the page that is missing  {type(missing).__name__}: {missing}")
    print(f"  the server                saw {server.connections} connections and {server.requests} requests")
    print(f"  it hung up                {server.drops} times; what the client saw:")
    for error, times in sorted(Counter(causes.errors).items()):
        print(f"                            {times:4} x {error}")
    print(f"  workers replaced          {stats.workers_replaced}")
    print(f"  pages fetched again       {stats.retried}")
    print(f"  connections               {stats.resources_created} opened, {stats.resources_destroyed} closed")
    print(f"  a request took            {metrics.run.p50 * 1000:.1f} ms (median), {metrics.run.p99 * 1000:.1f} ms (p99)")

    if right != PAGES:
        sys.exit("FAILED: pages are missing or wrong")
    if not isinstance(missing, PageError):
        sys.exit(f"FAILED: the page that is missing gave {missing!r}")
    # A connection cannot be asked whether it is still good. So a retry also replaces one that may have broken, too.
    if not server.drops or not server.drops == stats.retried <= stats.workers_replaced:
        sys.exit("FAILED: each time the server hung up, a worker should have been replaced and one page fetched again")
    if stats.resources_created != stats.resources_destroyed:
        sys.exit("FAILED: a connection was left open")


if __name__ == "__main__":
    main()
