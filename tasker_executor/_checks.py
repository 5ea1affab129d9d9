"""The one set of argument checks: each returns a plain value, or raises and names the argument and its value.

Numbers come from NumPy and `decimal`, too. A count is what `operator.index` takes. A duration is any real
number: what has an ``__index__`` or a ``__float__``, as in Python 3.15. A bool is neither.

Most flags (``wait``, ``priority``, ``reset``) need no check: as in the standard library, any true value
is True.
"""

from __future__ import annotations

import math
import operator
from threading import TIMEOUT_MAX
from typing import Any

from ._report import safe_repr

__all__ = [
    "check_bool",
    "check_bounds",
    "check_buffersize",
    "check_callable",
    "check_count",
    "check_finite",
    "check_max_workers",
    "check_number",
    "check_seconds",
    "wait_seconds",
    "whole",
]


def whole(value: Any) -> int | None:
    """Return `value` as an int; None if it is no whole number."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def check_count(name: str, value: Any, least: int) -> int:
    """Return `value` if it is a whole number of at least `least`, or raise, naming the argument."""
    number = whole(value)
    if number is None:
        raise TypeError(f"{name} must be an int, not {safe_repr(value)}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")
    return number


def check_max_workers(value: Any) -> int:
    """Return a limit on the number of workers, or raise; below 1 in the standard library's words."""
    number = whole(value)
    if number is not None and number <= 0:
        raise ValueError("max_workers must be greater than 0")
    return check_count("max_workers", value, 1)


def check_bounds(min_workers: int, max_workers: int) -> int:
    """Return the lower bound of the number of workers, or raise if it is none or exceeds `max_workers`."""
    least = check_count("min_workers", min_workers, 0)
    if least > max_workers:
        raise ValueError(f"min_workers={least} is more than max_workers={max_workers}")
    return least


def check_buffersize(value: Any) -> int | None:
    """Return how many results may wait, None for no limit, or raise in the standard library's words."""
    if value is None:
        return None
    number = whole(value)
    if number is None:
        raise TypeError("buffersize must be an integer or None")
    if number < 1:
        raise ValueError("buffersize must be None or > 0")
    return number


def check_number(name: str, value: Any, what: str = "a number") -> float:
    """Return `value` if it is a real number, infinity included, or raise, naming the argument."""
    # Nearly always one of these two; and `numbers` need not be imported for them.
    if (type(value) is float and value == value) or (type(value) is int and -1e15 < value < 1e15):
        return float(value)
    from numbers import Number

    # The type decides: float() also takes a string, and NumPy's bool has a __float__.
    if isinstance(value, Number):
        is_real = not isinstance(value, bool)
    else:
        named: Any = value.__class__
        is_real = hasattr(named, "__float__") and not named.__name__.startswith("bool")
    real: Any = value if is_real else whole(value)
    try:
        number = float(real)
    except TypeError:  # None, a complex number, or an array of several
        raise TypeError(f"{name} must be {what}, not {safe_repr(value)}") from None
    except OverflowError:  # 10**400
        number = math.inf if real > 0 else -math.inf
    except ValueError:  # Decimal("sNaN")
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"{name} must be {what}, not {value!r}")
    return number


def check_seconds(name: str, value: Any, *, above_zero: bool = False) -> float:
    """Return `value` as seconds if it is a number and not negative, or raise, naming the argument.

    Infinity means no limit.
    """
    if type(value) is float and value > 0.0:  # the usual cases, once more: it saves a call
        return value
    if type(value) is int and 0 < value < 1_000_000_000:
        return float(value)
    number = check_number(name, value, "a number of seconds")
    if not (number > 0 if above_zero else number >= 0):
        raise ValueError(f"{name} must {'be above 0' if above_zero else 'not be negative'}, not {value!r}")
    return number


def check_finite(name: str, value: Any) -> float:
    """Return `value` if it is a finite number and not negative, or raise, naming the argument."""
    number = check_number(name, value)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite number, at least 0.0, not {value!r}")
    return number


def wait_seconds(timeout: Any) -> float | None:
    """Return the timeout of a future, or raise; below 0 it has run out, and infinity becomes very long."""
    return None if timeout is None else min(check_number("timeout", timeout, "a number of seconds"), TIMEOUT_MAX)


def check_callable(name: str, value: Any) -> None:
    """Raise TypeError, naming the argument, unless `value` is callable or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable, not {safe_repr(value)}")


def check_bool(name: str, value: Any) -> None:
    """Raise TypeError, naming the argument, unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {safe_repr(value)}")
