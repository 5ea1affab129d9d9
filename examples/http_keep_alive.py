"""Tasks on HTTP connections that are kept alive: the server drops one, refuses a page, and is too slow.

    python examples/http_keep_alive.py

The server is part of this program. It counts connections, and hangs up when it is asked to.
"""

from __future__ import annotations

import http.client
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from typing_extensions import override

from tasker_executor import ResourceExecutor, TaskTimeout
from tasker_executor.resources.http import Connections


class Status(Exception):
    """The server has answered, and not with 200."""


def make_pool(host: str, port: int) -> ResourceExecutor[http.client.HTTPConnection]:
    factory = Connections(host, port, timeout=10)  # tls=True for HTTPS
    return ResourceExecutor(1, resource=factory, run_within=30, name="crawler")


def ask(connection: http.client.HTTPConnection, method: str, path: str) -> str:
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()  # to the end, or the connection cannot be used again
    if response.status != 200:
        raise Status(response.status)
    return body.decode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    connections = hangups = 0
    ended = threading.Event()

    @override
    def setup(self) -> None:
        super().setup()
        Handler.connections += 1

    def do_GET(self) -> None:
        if self.path == "/slow":
            self.ended.wait()
        if self.path == "/slow" or (self.path == "/hang-up" and Handler.hangups < 2):
            Handler.hangups += 1
            self.close_connection = True
            return
        body = f"{self.command} {self.path}".encode()
        self.send_response(404 if self.path == "/nothing" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    @override
    def log_message(self, format: str, *args: object) -> None:
        pass


def main(port: int) -> None:
    with make_pool("127.0.0.1", port) as pool:
        for _ in range(10):
            pool.submit(ask, "GET", "/page").result()
        print("10 pages by", Handler.connections, "connection")
        print("a page that is not there:", repr(pool.submit(ask, "GET", "/nothing").exception()))
        print("the server hangs up on a POST:", type(pool.submit(ask, "POST", "/hang-up").exception()).__name__)
        print(
            "the server hangs up on a GET:",
            pool.submit(ask, "GET", "/hang-up").result(),
            "after",
            pool.stats().retried,
            "retry",
        )
        try:
            pool.with_options(run_within=0.3).submit(ask, "GET", "/slow").result()
        except TaskTimeout as error:
            print("the server is too slow:", type(error).__name__, "from", type(error.__cause__).__name__)
        print("the next page:", pool.submit(ask, "GET", "/page").result())


if __name__ == "__main__":
    logging.getLogger("tasker_executor").setLevel(logging.ERROR)  # it warns of each connection that it replaces
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=[0.02])
        serving.start()
        try:
            main(server.server_port)
        finally:
            Handler.ended.set()
            server.shutdown()
            serving.join()
