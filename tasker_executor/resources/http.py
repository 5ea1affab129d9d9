"""Connections to an HTTP server that are kept alive, by `http.client` of the standard library."""

from __future__ import annotations

import functools
import http.client
import socket
import ssl
from collections.abc import Callable
from typing import Any

from typing_extensions import override

from .._checks import check_bool, check_seconds
from ..factory import ResourceFactory, Verdict
from ._sockets import has_input, shut_down

__all__ = ["Connections"]

#: RFC 9110, 9.2.2: what may be sent again after the connection broke.
_IDEMPOTENT = {"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}
#: Errors of a connection. Another OSError may come from a file; another HTTPException says what the task did
#: wrong.
_BROKEN = (
    ConnectionError,
    TimeoutError,
    http.client.BadStatusLine,
    http.client.IncompleteRead,
    socket.gaierror,
    ssl.SSLError,
)
#: Bytes of an answer that is left unread, and seconds to read them: up to here, the connection is kept.
_LEFTOVER = 65536
_PATIENCE = 1.0


class Connections(ResourceFactory[http.client.HTTPConnection]):
    """A connection for each worker that is kept alive from task to task.

    A server may close a connection after any answer, and while it is idle. That is no error: the next
    request, or a check, connects anew before anything is sent.

    **Broken** is a connection that fails between a request and the end of its answer. The status of an answer
    (404, 503) is not looked at: that is the task's.

    **Run again** is a task whose connection broke, or could not be made, if all it has sent by then are
    requests with idempotent methods: GET, HEAD, OPTIONS, TRACE, PUT, DELETE. After a POST or PATCH the error
    is final, and so is each time-out: a server that is slow does not get the same work again.
    ``retry_broken=True`` has such tasks run again, too: it is for tasks that may be done twice.

    **Clean**: the rest of an answer that the task has not read is read if it is small, and otherwise the
    connection is closed: it would be taken for the next answer.

    **Abort**: the socket is shut down, also while it connects, and the connection is not made again. Only the
    search for the address of a name cannot be ended.

    Args:
        host: The name or address of the server.
        port: Its port, if it is neither 80 nor (with ``tls``) 443.
        tls: Speak HTTPS.
        timeout: Seconds for connecting, and for each wait for something to arrive. `http.client` itself has
            no limit.
        retry_broken: Run a task again if its connection broke, though what it did may be done already.
        options: All other arguments of `http.client.HTTPConnection`, or of `HTTPSConnection` (``context=``).
    """

    def __init__(
        self,
        host: str,
        port: int | None = None,
        *,
        tls: bool = False,
        timeout: float = 30.0,
        retry_broken: bool = False,
        **options: Any,
    ) -> None:
        check_bool("tls", tls)
        check_bool("retry_broken", retry_broken)
        if not isinstance(host, str):
            raise TypeError(f"host must be a str, not {host!r}")
        self._make: Callable[..., _Connection] = _TLSConnection if tls else _Connection
        self._arguments = (host, port)
        self._options: dict[str, Any] = {**options, "timeout": check_seconds("timeout", timeout, above_zero=True)}
        self._retry_broken = retry_broken
        self._new()  # checks the arguments, and connects nowhere

    @override
    def create(self) -> http.client.HTTPConnection:
        connection = self._new()
        connection.connect()
        return connection

    @override
    def destroy(self, resource: http.client.HTTPConnection) -> None:
        resource.close()

    @override
    def judge(self, error: Exception, resource: http.client.HTTPConnection) -> Verdict:
        connection = _ours(resource)
        if not isinstance(error, _BROKEN) or connection.is_at_rest():
            return Verdict.OWN
        harmless = not (connection.has_acted or isinstance(error, TimeoutError))
        return Verdict.BROKEN if harmless or self._retry_broken else Verdict.OWN

    @override
    def check(self, resource: http.client.HTTPConnection) -> bool:
        if _ours(resource).is_stale():
            resource.close()
        if resource.sock is None:
            resource.connect()
        return True

    @override
    def reset(self, resource: http.client.HTTPConnection) -> None:
        connection = _ours(resource)
        if connection.is_cut:
            raise ConnectionAbortedError(_CUT)
        if not (connection.is_at_rest() or connection.read_rest()):
            connection.close()
        connection.forget()

    @override
    def abort(self, resource: http.client.HTTPConnection) -> None:
        _ours(resource).cut()

    def _new(self) -> _Connection:
        options = self._options
        if self._make is _TLSConnection and options.get("context") is None:
            options = {**options, "context": _authorities()}
        return self._make(*self._arguments, **options)


_CUT = "the task was stopped"


@functools.cache
def _authorities() -> ssl.SSLContext:
    """Return what `http.client` makes for each connection: to load all certificates takes 50 ms.

    Each factory calls it in its constructor. Two that are made at once may load it twice, which does no harm.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    context.post_handshake_auth = True
    return context


class _Answer(http.client.HTTPResponse):
    """An answer that knows whether it was closed before it was read."""

    is_cut_short = False

    @override
    def close(self) -> None:
        self.is_cut_short = self.is_cut_short or not self.isclosed()
        super().close()


class _Connection(http.client.HTTPConnection):
    """A connection that knows how far request and answer have come, and what the task has sent."""

    response_class = _Answer
    #: Has something been sent since `forget` that must not be sent twice?
    has_acted = False
    #: The thread that aborts sets it, and then looks for the socket. The owner stores the socket first.
    is_cut = False
    _answer: _Answer | None = None
    _asked = False
    _served = False
    #: The last socket. An answer may be read from it when the connection has let go of it.
    _last: Any = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        vars(self).pop("_create_connection", None)  # the function that our method replaces

    @override
    def connect(self) -> None:
        self._served = False
        if not self.is_cut:
            try:
                self._reach()
            except BaseException:
                self.close()  # TLS that failed leaves a socket that is none any more
                raise
        if self.is_cut:  # looked at last: cut() sets it first, and then looks for the socket
            self.close()
            raise ConnectionAbortedError(_CUT)

    def _reach(self) -> None:
        http.client.HTTPConnection.connect(self)

    def _create_connection(self, address: tuple[str, int], timeout: float, source: Any = None) -> socket.socket:
        """Connect, as `socket.create_connection` does, by a socket that `cut` knows."""
        error = OSError("the host has no address")
        for family, kind, protocol, _, place in socket.getaddrinfo(*address, 0, socket.SOCK_STREAM):
            sock = self._last = socket.socket(family, kind, protocol)
            try:
                if self.is_cut:
                    raise ConnectionAbortedError(_CUT)
                sock.settimeout(timeout)
                if source:
                    sock.bind(source)
                sock.connect(place)
                return sock
            except BaseException as failed:
                sock.close()
                if not isinstance(failed, OSError):
                    raise
                error = failed
        try:
            raise error
        finally:
            del error  # its traceback leads to this frame

    @override
    def putrequest(self, *args: Any, **options: Any) -> None:
        if self.is_at_rest():
            if self.is_stale():
                self.close()
        elif self._answer is not None and self._answer.isclosed():
            self.close()  # the rest is still to come, and would be taken for the next answer
        self._asked = True
        self._answer = None
        super().putrequest(*args, **options)

    @override
    def send(self, data: Any) -> None:
        if self.sock is None and self.auto_open:
            self.connect()
        if getattr(self, "_method", None) not in _IDEMPOTENT:
            self.has_acted = True
        super().send(data)

    @override
    def getresponse(self) -> http.client.HTTPResponse:
        answer = super().getresponse()
        assert isinstance(answer, _Answer)
        self._answer = answer
        self._served = True
        return answer

    @override
    def close(self) -> None:
        super().close()
        # Otherwise a request that was begun, and not sent, would be sent before the next one.
        vars(self)["_buffer"].clear()

    def is_at_rest(self) -> bool:
        """Return whether the last answer has been read to its end, or there was no request."""
        if not self._asked:
            return True
        answer = self._answer
        # An answer that ended too early is closed, too, with something left of its length.
        return answer is not None and answer.isclosed() and not (answer.is_cut_short or answer.length)

    def is_stale(self) -> bool:
        """Return whether the server has closed the connection, if that is at rest: all else has been read."""
        # After a TLS handshake the server sends tickets. They are read with the first answer.
        return self.sock is not None and (self._served or type(self) is _Connection) and has_input(self.sock)

    def read_rest(self) -> bool:
        """Read the rest of the last answer, if it is short; return whether there is nothing more to come."""
        answer = self._answer
        if answer is None or answer.isclosed():
            return False
        if self.sock is None:  # the answer is the last one; the server closes the connection after it
            answer.close()
            return True
        if (answer.length is None and not answer.chunked) or (answer.length or 0) > _LEFTOVER:
            return False
        self.sock.settimeout(_PATIENCE)
        try:
            answer.read(_LEFTOVER + 1)
        except (OSError, http.client.HTTPException):
            return False
        self.sock.settimeout(self.timeout)
        return self.is_at_rest()

    def forget(self) -> None:
        """Forget what the task has done."""
        self.has_acted = self._asked = False
        self._answer = None

    def cut(self) -> None:
        """End what is sent and received, for good."""
        self.is_cut = True
        shut_down(self._last)  # in Linux that ends a connect() that begins right after this, too


class _TLSConnection(_Connection, http.client.HTTPSConnection):
    @override
    def _reach(self) -> None:
        super()._reach()
        state = vars(self)
        # The handshake may hang, so `cut` must know its socket beforehand.
        self.sock = self._last = state["_context"].wrap_socket(
            self.sock, server_hostname=state["_tunnel_host"] or self.host, do_handshake_on_connect=False
        )
        self._last.do_handshake()


def _ours(connection: http.client.HTTPConnection) -> _Connection:
    assert isinstance(connection, _Connection)
    return connection
