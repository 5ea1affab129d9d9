"""A database server: SQLite behind a socket, so that there is something to restart.

    python poll_database.py poll.db 7000

A request is a line, ``[sql, parameters]`` in JSON, and so is its answer: ``{"rows": ...}`` or ``{"error": ...}``. It
listens at 127.0.0.1 only, since it does whatever it is told.
"""

from __future__ import annotations

import json
import socketserver
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import Self

from typing_extensions import override


class Session(socketserver.StreamRequestHandler):
    """Serves one client by a connection of its own to the file. What a client that goes away left open is rolled back."""

    @override
    def handle(self) -> None:
        with closing(sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)) as database:
            for line in self.rfile:
                sql, parameters = json.loads(line)
                try:
                    answer: dict[str, object] = {"rows": database.execute(sql, parameters).fetchall()}
                except sqlite3.Error as error:
                    answer = {"error": str(error)}
                self.wfile.write(json.dumps(answer).encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True  # so that it can be started again at once
    daemon_threads = True
    request_queue_size = 64


class Database:
    """The server in a process of its own, which can be killed, and started again on the same port."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.port = 0  # any, the first time

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    def start(self) -> None:
        command = [sys.executable, __file__, self.path, str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(" ")[2])

    def kill(self) -> None:
        """End it as a power cut does, without a farewell to its clients."""
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


if __name__ == "__main__":
    with Server(("127.0.0.1", int(sys.argv[2])), Session) as server:
        print("listening at port", server.server_address[1], flush=True)
        server.serve_forever()
