"""What the library says of an event: log records, notes on errors, names of functions, reprs.

Nothing here may change the event that it reports. A record factory, a filter, a handler, a `__repr__` or a
`__setattr__` is user code and may raise. A worker that died of its own log record would leave its place empty
and its task undone. So no function of this module raises, with one exception: KeyboardInterrupt and
SystemExit on the main thread are meant for the program.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

__all__ = [
    "Logger",
    "add_note",
    "aside",
    "drop_frame",
    "function_name",
    "innermost",
    "must_escape",
    "refusal",
    "safe_repr",
    "safe_str",
    "traceback_of",
]

#: Before the name of each field of our records. So no field has the name of an attribute of
#: `logging.LogRecord`, or of one that an application's record factory or filter adds.
FIELD_PREFIX = "tasker_"

_traceback: Any = vars(BaseException)["__traceback__"]  # the descriptor, whatever a subclass has in its place


def must_escape(error: BaseException) -> bool:
    """Return whether an error that a hook, an observer or a callback raised must be raised again.

    SystemExit and KeyboardInterrupt on the main thread are meant for the program. On a thread of the executor
    they would have no effect.
    """
    return not isinstance(error, Exception) and threading.current_thread() is threading.main_thread()


class _Aside(threading.local):
    post: Callable[[Callable[[], object]], None] | None = None
    """Set on the timer's thread, which must run no user code: takes a call for another thread to make."""


aside = _Aside()


class Logger:
    """A logger whose methods never raise, and whose keyword arguments are the fields of the record."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def hears(self, level: int) -> bool:
        """Return whether records of `level` are wanted, or may be."""
        try:
            return self._logger.isEnabledFor(level)
        except BaseException as error:
            if must_escape(error):
                raise
            return True

    def debug(self, message: str, *args: object, exc_info: object = None, **fields: object) -> None:
        """Log at level DEBUG."""
        self._say(logging.DEBUG, message, args, exc_info, fields)

    def info(self, message: str, *args: object, exc_info: object = None, **fields: object) -> None:
        """Log at level INFO."""
        self._say(logging.INFO, message, args, exc_info, fields)

    def warning(self, message: str, *args: object, exc_info: object = None, **fields: object) -> None:
        """Log at level WARNING."""
        self._say(logging.WARNING, message, args, exc_info, fields)

    def error(self, message: str, *args: object, exc_info: object = None, **fields: object) -> None:
        """Log at level ERROR."""
        self._say(logging.ERROR, message, args, exc_info, fields)

    def exception(self, message: str, *args: object, exc_info: object = True, **fields: object) -> None:
        """Log at level ERROR, with the error being handled."""
        self._say(logging.ERROR, message, args, exc_info, fields)

    def critical(self, message: str, *args: object, exc_info: object = None, **fields: object) -> None:
        """Log at level CRITICAL."""
        self._say(logging.CRITICAL, message, args, exc_info, fields)

    def log(self, level: int, message: str, *args: object, exc_info: object = None, **fields: object) -> None:
        """Log at `level`."""
        self._say(level, message, args, exc_info, fields)

    def _say(self, level: int, message: str, args: tuple[object, ...], exc_info: object, fields: dict[str, object]) -> None:
        try:
            if not self._logger.isEnabledFor(level):
                return
            if exc_info is True:
                exc_info = sys.exc_info()
            if isinstance(exc_info, BaseException):  # `logging` asks for its truth, and an error may be false.
                exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
            if aside.post is not None:
                aside.post(partial(self._say, level, message, args, exc_info, fields))
                return
            extra = {FIELD_PREFIX + name: value for name, value in fields.items()}
            self._logger.log(level, message, *args, exc_info=exc_info, extra=extra, stacklevel=3)  # type: ignore[arg-type]  # what `logging` takes
        except BaseException as error:
            if must_escape(error):
                raise
            _complain(message)


def _complain(message: str) -> None:
    """Write the error being handled to stderr, as `logging.Handler.handleError` does."""
    if not logging.raiseExceptions or not sys.stderr:
        return
    try:
        sys.stderr.write(f"--- Logging error in tasker_executor, at the message {message!r} ---\n")
        traceback.print_exc(file=sys.stderr)
    except BaseException as error:
        if must_escape(error):
            raise


def add_note(error: BaseException, note: str) -> None:
    """Add a note to a user's error, unless the error refuses it.

    A frozen dataclass refuses, and an error whose notes are a tuple.
    """
    try:
        error.add_note(note)
    except BaseException as refused:
        if must_escape(refused):
            raise


def traceback_of(error: BaseException) -> TracebackType | None:
    """Return the traceback of an error, even if its class redefines that attribute."""
    trace: TracebackType | None = _traceback.__get__(error)
    return trace


def refusal(note: str, message: str = "cannot schedule new futures after shutdown") -> RuntimeError:
    """Return the error for a submission that is refused: in the standard library's words, and a note says by whom."""
    error = RuntimeError(message)
    add_note(error, note)
    return error


def drop_frame(error: BaseException) -> BaseException:
    """Drop the outermost frame, the library's own, from an error's traceback; return the error.

    The locals of that frame would keep the task alive, and its lines help no reader. `BaseException` itself
    sets the traceback, so it also works for an error that forbids setting its attributes.
    """
    trace = traceback_of(error)
    if trace is not None:
        _traceback.__set__(error, trace.tb_next)
    return error


def safe_repr(value: object) -> str:
    """Return ``repr(value)``, or its type if that raises."""
    return _tell(repr, value)


def safe_str(value: object) -> str:
    """Return ``str(value)``, or its type if that raises."""
    return _tell(str, value)


def _tell(how: Any, value: object) -> str:
    try:
        return str(how(value))
    except BaseException as error:
        if must_escape(error):
            raise
        return f"<{type(value).__qualname__}, whose {how.__name__}() raised {type(error).__qualname__}>"


def innermost(function: Any) -> Any:
    """Return the function that is called in the end. Raises what the attributes of a wrapper raise."""
    for _ in range(10):  # At most 10: a mock has every attribute that it is asked for.
        inner: Any = getattr(function, "func" if issubclass(type(function), partial) else "__wrapped__", None)
        if inner is None:
            break
        function = inner
    return function


def function_name(function: Any) -> str:
    """Return the name of the function that is called in the end, or of its type."""
    try:
        function = innermost(function)
        name = getattr(function, "__qualname__", None)
    except BaseException as error:  # A callable may also raise for every attribute.
        if must_escape(error):
            raise
        name = None
    return name if isinstance(name, str) else type(function).__name__
