"""A TCP proxy that makes trouble: it resets, stalls, refuses and delays the connections that go through it.

It runs in a process of its own, so it works on while the process under test computes, and its threads are none of ours::

    with Proxy("127.0.0.1", 5432) as proxy:
        connection = connect(proxy.host, proxy.port)
        proxy.reset()

Each method returns when the proxy has done it. What the other side of a socket sees, it sees a little later.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
import threading
from typing import Self

_CHUNK = 65536
#: Close with a lingering time of zero: the other side gets a reset and no farewell.
_ABRUPTLY = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class Proxy:
    """A proxy in front of a server. `host` and `port` are its own address, and stay the same all its life."""

    host = "127.0.0.1"

    def __init__(self, target_host: str, target_port: int) -> None:
        command = [sys.executable, __file__, target_host, str(target_port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lock = threading.Lock()  # one command at a time
        self.port = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def connections(self) -> int:
        """Return how many connections of clients are open."""
        return self._ask("connections")

    def accepted(self) -> int:
        """Return how many connections of clients the proxy has accepted in its life."""
        return self._ask("accepted")

    def reset(self, most: int = 1_000_000) -> int:
        """Reset connections, at most so many, the oldest first; return how many."""
        return self._ask(f"reset {most}")

    def stall(self) -> None:
        """Let nothing through, in either direction, until `resume`. New connections are accepted, and stall as well."""
        self._ask("stall")

    def resume(self) -> None:
        """Let all through again, and what has waited first."""
        self._ask("resume")

    def refuse(self) -> None:
        """Reset all connections and refuse new ones, until `accept`: the server is down."""
        self._ask("refuse")

    def accept(self) -> None:
        """Accept connections again, on the same port."""
        self._ask("accept")

    def delay(self, seconds: float) -> None:
        """Hold all that goes through for so long, in each direction."""
        self._ask(f"delay {seconds}")

    def close(self) -> None:
        """End the proxy, and with it all its connections."""
        with self._lock:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process.kill()  # nothing of it is worth a farewell, and a reader of its input could not be ended otherwise
            self._process.wait()

    def _ask(self, command: str) -> int:
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
            return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


# -- in the process of the proxy --


class _Pair:
    """The connections of one client: from the client, and, when it is made, the one to the server."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.writers = [client]

    def reset(self) -> list[socket.socket]:
        """Have the loop reset both connections; return those of the sockets that it has yet to close."""
        sockets: list[socket.socket] = [ours for writer in self.writers if (ours := writer.get_extra_info("socket"))]
        sockets = [ours for ours in sockets if ours.fileno() >= 0]
        for ours in sockets:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABRUPTLY)
        for writer in self.writers:
            writer.transport.abort()
        return sockets


class _Relay:
    """The proxy itself: all of it runs in one event loop."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener: asyncio.Server | None = None
        self._port = 0  # any, the first time
        self._pairs: dict[_Pair, None] = {}  # in the order of their birth
        self._accepted = 0
        self._delay = 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def listen(self) -> int:
        self._listener = await asyncio.start_server(self._serve, Proxy.host, self._port, backlog=512, reuse_address=True)
        self._port = self._listener.sockets[0].getsockname()[1]
        return self._port

    async def obey(self, command: str, argument: str) -> int:
        if command == "accepted":
            return self._accepted
        if command == "connections":
            return len(self._pairs)
        if command == "delay":
            self._delay = float(argument)
        elif command == "stall":
            self._flowing.clear()
        elif command == "resume":
            self._flowing.set()
        elif command == "reset":
            return await self._reset(int(argument))
        elif command == "refuse":
            if self._listener is not None:
                self._listener.close()
                self._listener = None
            await self._reset(len(self._pairs))
        elif command == "accept":
            if self._listener is None:
                await self.listen()
        else:
            raise ValueError(command)
        return 0

    async def _reset(self, most: int) -> int:
        victims = list(self._pairs)[:most]
        left: list[socket.socket] = []
        for pair in victims:
            del self._pairs[pair]
            left += pair.reset()
        while any(ours.fileno() >= 0 for ours in left):  # the loop closes them in its next round
            await asyncio.sleep(0)
        return len(victims)

    async def _serve(self, requests: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self._accepted += 1
        pair = _Pair(client)
        self._pairs[pair] = None
        try:
            await self._flowing.wait()
            answers, server = await asyncio.open_connection(*self._target)
            pair.writers.append(server)
            if pair in self._pairs:  # not reset while it waited
                await asyncio.gather(self._pump(requests, server), self._pump(answers, client))
        except OSError:  # one of the two is reset, or cannot be made: so reset the other
            pair.reset()
        finally:
            self._pairs.pop(pair, None)
            for writer in pair.writers:
                writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            if self._delay:
                await asyncio.sleep(self._delay)
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
        await self._flowing.wait()
        if writer.can_write_eof():
            writer.write_eof()


async def _run(host: str, port: int) -> None:
    relay = _Relay(host, port)
    loop = asyncio.get_running_loop()
    answer = await relay.listen()
    while True:
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
        line = await loop.run_in_executor(None, sys.stdin.readline)
        if not line:  # our parent is gone
            return
        command, _, argument = line.strip().partition(" ")
        answer = await relay.obey(command, argument)


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], int(sys.argv[2])))
