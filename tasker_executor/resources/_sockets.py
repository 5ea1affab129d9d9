"""What can be done to the socket of a driver, whose thread may be blocked in it."""

from __future__ import annotations

import select
import socket
from typing import Any

__all__ = ["has_input", "shut_down"]


def shut_down(sock: Any) -> None:
    """End both directions of a socket: a thread that is blocked in it gets an error, or the end of input.

    `sock` may be None, closed, or not connected: then nothing happens.
    """
    if isinstance(sock, socket.socket):
        try:
            # That of the base class: an SSLSocket's own gives up its state, which another thread is using.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            pass


def has_input(sock: socket.socket) -> bool:
    """Return whether a read would not block: there is input, or its end, or an error."""
    if hasattr(select, "poll"):
        poll = select.poll()  # takes any file descriptor; select() none above 1023
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([sock], [], [], 0)[0])  # pragma: no cover (Windows)
