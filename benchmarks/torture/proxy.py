"""A TCP proxy between a subject and PostgreSQL, which makes the trouble of a bad network and of a bad server.

It runs in a process of its own, so it works on while the subject computes, runs out of file descriptors or
forks. One line on its standard input is one command; it answers with one number.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys

HOST = "127.0.0.1"
#: Close with a lingering time of zero: the other side gets a reset, and no farewell.
ABRUPTLY = struct.pack("ii", 1, 0)


def _fatal(code: str, message: str) -> bytes:
    """An error of PostgreSQL's protocol that ends the connection."""
    body = b"".join(f"{key}{text}\0".encode() for key, text in (("S", "FATAL"), ("V", "FATAL"), ("C", code), ("M", message)))
    return b"E" + struct.pack("!i", len(body) + 5) + body + b"\0"


STARTING_UP = _fatal("57P03", "the database system is starting up")


class Proxy:
    """The proxy, as seen by a fault. Each method returns when the proxy has done it."""

    def __init__(self, target_host: str, target_port: int) -> None:
        command = [sys.executable, __file__, target_host, str(target_port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.host = HOST
        self.port = self._answer()

    def reset(self) -> None:
        """Reset all connections."""
        self._ask("reset")

    def refuse(self) -> None:
        """Reset all connections and refuse new ones, until `accept`: the server is down."""
        self._ask("refuse")

    def accept(self) -> None:
        """Accept connections again, on the same port."""
        self._ask("accept")

    def orphan(self) -> None:
        """Close all connections on the side of the server alone. The client sees nothing of it: they are half-open."""
        self._ask("orphan")

    def stall(self) -> None:
        """Let nothing through, until `resume`. Connections are accepted all the same."""
        self._ask("stall")

    def resume(self) -> None:
        """Let everything through again, and first what has waited."""
        self._ask("resume")

    def stall_these(self) -> None:
        """Let nothing through the connections there are, for ever. New ones work."""
        self._ask("stall_these")

    def delay_connects(self, seconds: float) -> None:
        """Hold each new connection for some time before its first byte."""
        self._ask(f"delay_connects {seconds}")

    def turn_away(self, yes: bool) -> None:
        """Accept each connection, and answer with an error of the server: it is starting up."""
        self._ask(f"turn_away {int(yes)}")

    def fail_next(self, number: int) -> None:
        """Reset the next so many new connections at their first byte."""
        self._ask(f"fail_next {number}")

    def swallow_next(self, number: int) -> None:
        """Accept the next so many new connections, and never answer."""
        self._ask(f"swallow_next {number}")

    def cut_commits(self, number: int) -> None:
        """Let the next so many COMMITs through, and reset the connection instead of returning the answer."""
        self._ask(f"cut_commits {number}")

    def _ask(self, command: str) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


# -- in the process of the proxy --


class Pair:
    """The two connections of one client: its own, and, once made, the one to the server."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.stalled = False
        self.orphaned = False
        self.cut_next_answer = False

    def reset(self) -> None:
        for writer in filter(None, (self.client, self.server)):
            ours = writer.get_extra_info("socket")
            if ours is not None and ours.fileno() >= 0:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABRUPTLY)
            writer.transport.abort()


class Relay:
    """The proxy itself: all of it runs in one event loop."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener: asyncio.Server | None = None
        self._port = 0  # Any, the first time.
        self._pairs: set[Pair] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._never = asyncio.Event()
        self._delay = 0.0
        self._turns_away = False
        self._fail = self._swallow = self._cut = 0

    async def listen(self) -> int:
        self._listener = await asyncio.start_server(self._serve, HOST, self._port, backlog=512, reuse_address=True)
        self._port = self._listener.sockets[0].getsockname()[1]
        return self._port

    async def obey(self, command: str, argument: str) -> None:
        match command:
            case "reset":
                self._reset()
            case "refuse":
                assert self._listener is not None
                self._listener.close()
                self._reset()
            case "accept":
                await self.listen()
            case "orphan":
                for pair in self._pairs:
                    pair.orphaned = True
                    if pair.server is not None:
                        pair.server.close()
            case "stall":
                self._flowing.clear()
            case "resume":
                self._flowing.set()
            case "stall_these":
                for pair in self._pairs:
                    pair.stalled = True
            case "delay_connects":
                self._delay = float(argument)
            case "turn_away":
                self._turns_away = argument == "1"
            case "fail_next":
                self._fail = int(argument)
            case "swallow_next":
                self._swallow = int(argument)
            case "cut_commits":
                self._cut = int(argument)
            case _:
                raise ValueError(command)

    def _reset(self) -> None:
        for pair in self._pairs:
            pair.reset()
        self._pairs.clear()

    async def _serve(self, requests: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        pair = Pair(client)
        self._pairs.add(pair)
        try:
            if self._fail:
                self._fail -= 1
                pair.reset()
                return
            if self._swallow:
                self._swallow -= 1
                await requests.read()  # Until the client gives up.
                return
            if self._turns_away:
                await requests.read(65536)
                client.write(STARTING_UP)
                await client.drain()
                return
            await asyncio.sleep(self._delay)
            await self._flowing.wait()
            answers, pair.server = await asyncio.open_connection(*self._target)
            await asyncio.gather(self._to_server(pair, requests), self._to_client(pair, answers))
        except OSError:  # One of the two is reset, so the other is, too.
            pair.reset()
        finally:
            self._pairs.discard(pair)
            for writer in filter(None, (pair.client, pair.server)):
                writer.close()

    async def _to_server(self, pair: Pair, requests: asyncio.StreamReader) -> None:
        assert pair.server is not None
        while data := await requests.read(65536):
            if pair.orphaned or pair.stalled:
                continue  # It never arrives. But the end does, so that what is left on the server is not the proxy's.
            await self._flowing.wait()
            if self._cut and b"COMMIT" in data:
                self._cut -= 1
                pair.cut_next_answer = True
            pair.server.write(data)
            await pair.server.drain()
        pair.server.close()

    async def _to_client(self, pair: Pair, answers: asyncio.StreamReader) -> None:
        while data := await answers.read(65536):
            await self._pass(pair)
            if pair.cut_next_answer:
                pair.reset()
                return
            pair.client.write(data)
            await pair.client.drain()
        if not pair.orphaned:
            await self._pass(pair)
            pair.client.close()

    async def _pass(self, pair: Pair) -> None:
        if pair.stalled:
            await self._never.wait()
        await self._flowing.wait()


async def run(host: str, port: int) -> None:
    relay = Relay(host, port)
    loop = asyncio.get_running_loop()
    answer = await relay.listen()
    while True:
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
        line = await loop.run_in_executor(None, sys.stdin.readline)
        if not line:  # The process of the cell is gone.
            return
        command, _, argument = line.strip().partition(" ")
        await relay.obey(command, argument)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2])))
