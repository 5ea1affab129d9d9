"""Step 8: the service. It answers HTTP requests, and its pool owns the connections to the database.

    python step8.py DATABASE_PORT

PUT /votes/7 with a choice as its body is a vote: 201 if it is new, 200 if it was counted before. GET /totals says how
the poll stands. SIGTERM ends the service when all that it has accepted is answered.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from poll_client import Client, Clients
from step7 import totals, vote

from tasker_executor import QueueFull, ResourceCreationError, ResourceExecutor


class Handler(BaseHTTPRequestHandler):
    """Runs on a thread of the HTTP server. It has no connection to the database; it waits for a worker that has one."""

    protocol_version = "HTTP/1.1"  # a client may send its next request on the same connection
    disable_nagle_algorithm = True
    timeout = 5  # seconds that a client may be silent
    pool: ResourceExecutor[Client]

    def do_PUT(self) -> None:
        choice = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.answer(lambda: (201 if self.pool.submit(vote, self.ballot(), choice).result() else 200, "counted"))

    def do_GET(self) -> None:
        self.answer(lambda: (200, self.pool.submit_priority(totals).result()))

    def ballot(self) -> int:
        return int(self.path.removeprefix("/votes/"))

    def answer(self, ask: Callable[[], tuple[int, object]]) -> None:
        try:
            status, answer = ask()
        except ValueError:
            status, answer = 404, "no such ballot"
        except TimeoutError:  # TaskTimeout: the query ran for too long, and was stopped
            status, answer = 504, "this took too long"
        except (ResourceCreationError, QueueFull, OSError):  # the database is away, too much waits, or four attempts broke
            status, answer = 503, "try again later"
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Requests are counted by the pool."""


class Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close() waits until each request has its answer


def main() -> None:
    ended = threading.Event()

    def end(_signal: int, _frame: object) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    resource = Clients(int(sys.argv[1]))
    with ResourceExecutor(
        4, min_workers=4, resource=resource, max_queued=100, on_full="raise", run_within=10, create_timeout=20, name="poll"
    ) as pool:
        pool.wait_ready()  # raises if the database cannot be reached: then there is no service
        Handler.pool = pool
        with Server(("127.0.0.1", 0), Handler) as server:
            serving = threading.Thread(target=server.serve_forever, args=[0.05])
            serving.start()
            print("serving at port", server.server_port, flush=True)
            ended.wait()
            server.shutdown()
            serving.join()
    stats = pool.stats()
    print(stats.submitted, "tasks:", stats.completed, "completed,", stats.failed, "failed")
    print(stats.resources_created - stats.resources_destroyed, "connections left open")


if __name__ == "__main__":
    main()
