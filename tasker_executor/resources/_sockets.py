"""What can be done about a thread that is blocked in a driver: on the server, and to its socket."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from typing import Any

from .._sync import clock

__all__ = ["cancel_until_it_returns", "has_input", "shut_down"]

_CANCEL_AGAIN = 0.05  # seconds; doubled each time
_FIRST_LOOK, _LAST_LOOK = 0.0002, 0.01  # seconds; doubled each time


def cancel_until_it_returns(cancel: Callable[[], bool], is_inside: Callable[[], bool], timeout: float) -> bool:
    """Ask the server to cancel a call, again and again; return whether the call returns within `timeout` seconds.

    A server that has not read the statement yet ignores the first requests. `cancel` makes one, and returns
    whether the server has heard it; if not, this gives up. `is_inside`: whether the call has yet to return.
    """
    deadline = clock() + timeout
    patience = _CANCEL_AGAIN
    while cancel():
        if _returns(is_inside, min(clock() + patience, deadline)):
            return True
        if clock() >= deadline:
            break
        patience *= 2
    return False


def _returns(is_inside: Callable[[], bool], deadline: float) -> bool:
    pause = _FIRST_LOOK
    while is_inside():
        if clock() >= deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, _LAST_LOOK)
    return True


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


def has_input(sock: socket.socket | int) -> bool:
    """Return whether a read would not block: there is input, or its end, or an error.

    `sock` may be a file descriptor.
    """
    if hasattr(select, "poll"):
        poll = select.poll()  # takes any file descriptor; select() none above 1023
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([sock], [], [], 0)[0])  # pragma: no cover (Windows)
