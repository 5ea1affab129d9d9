"""What travels: a `Job` to a worker, an `Answer` back, and errors that survive the journey.

Pickles name the classes of this module by reference, so clients, scheduler and workers need the same version
of this package.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # it ships no types
from tblib import pickling_support  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]  # no types

from .._options import TaskOptions
from .._report import must_escape, safe_repr, safe_str

__all__ = ["Answer", "Job", "dumps", "dumps_by_value", "dumps_error"]


@dataclass(frozen=True)
class Job:
    """The argument of a Dask task: one call, and how to run it."""

    plugin: str  # the name of the plugin that has the worker's executor
    key: str  # of the Dask task
    function: str  # its name
    options: TaskOptions
    once: bool
    carried: list[Any]  # what each carrier captured
    call: bytes  # pickled (function, args, kwargs); the thread that runs the call unpickles it


@dataclass(frozen=True)
class Answer:
    """The result of a Dask task: the outcome of the call, or that the worker did not run it."""

    value: Any = None
    error: BaseException | None = None
    cancelled: bool = False
    results: list[Any] | None = None  # of a chunk of `map`, up to its error if it has one


def dumps_by_value(value: Any) -> bytes:
    """Pickle with cloudpickle, which includes the code of functions that the receiver cannot import."""
    pickled: bytes = cloudpickle.dumps(value)
    return pickled


def dumps(value: Any) -> bytes:
    """Pickle a value that the receiver can most often import; use cloudpickle where that fails."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        return dumps_by_value(value)


def dumps_error(error: BaseException, results: list[Any] | None = None) -> bytes:
    """Pickle an answer with this error; if the error does not pickle, with a RuntimeError that says the same."""
    why: BaseException | None = None
    preparations: list[Callable[[BaseException], Any]] = [_with_traceback, _Bare]
    for prepare in preparations:
        try:
            pickled = dumps(Answer(error=prepare(error), results=results))
            pickle.loads(pickled)
            return pickled
        except BaseException as raised:  # by the error's own `__reduce__`, which may raise anything
            if must_escape(raised):
                raise
            why = why or raised
    stand_in = RuntimeError(
        f"{type(error).__name__}: {safe_str(error)} (stands in for the error itself, which does not pickle: {safe_repr(why)})"
    )
    stand_in.__cause__ = RuntimeError(f"\n{_trace_of(error)}")
    return dumps(Answer(error=stand_in))


def _with_traceback(error: BaseException) -> BaseException:
    """Return the error, prepared such that its pickle contains its traceback and its causes."""
    pickling_support.install(error)
    return error


def _trace_of(error: BaseException) -> str:
    """Return the traceback of an error as a text."""
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except BaseException as raised:
        if must_escape(raised):
            raise
        return f"(its traceback cannot be shown: {safe_repr(raised)})"


class _Bare:
    """Pickles in place of an error that refuses attributes when it is made anew, as a frozen dataclass does.

    It unpickles as that error. Its built-in base and `object` make it, so the ``__init__`` and
    ``__setattr__`` of its class do not run.
    """

    def __init__(self, error: BaseException) -> None:
        slots = {name for kind in type(error).__mro__ for name in _slots_of(kind) if hasattr(error, name)}
        self._state: tuple[Any, ...] = (
            type(error),
            error.args,
            dict(vars(error)),
            {name: getattr(error, name) for name in slots},
            [f"{line}\n" for line in _trace_of(error).splitlines()],
        )

    def __reduce__(self) -> Any:
        return _make_bare, self._state


def _slots_of(kind: type) -> Iterable[str]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else slots


def _make_bare(
    kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any], slots: dict[str, Any], trace: list[str]
) -> BaseException:
    base: Any = next(ancestor for ancestor in kind.__mro__ if ancestor.__module__ == "builtins")
    error: BaseException = base.__new__(kind, *args)
    vars(error).update(attributes)
    for name, value in slots.items():
        object.__setattr__(error, name, value)
    # The error refuses a traceback; so a cause carries it, as a text.
    _cause.__set__(error, RuntimeError("\n" + "".join(trace)))
    return error


_cause: Any = vars(BaseException)["__cause__"]
