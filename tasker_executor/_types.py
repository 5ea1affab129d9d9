"""The types of the hooks that users write. `ResourceExecutor` says when each is called."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from .factory import Verdict

__all__ = ["AbortHook", "AroundHook", "CreateHook", "DestroyHook", "HealthHook", "ResetHook", "ResourceHook"]

R = TypeVar("R")

#: Make a resource, on the thread that will own it.
CreateHook = Callable[[], R]
#: Give a resource up, on the thread that owns it. The value it returns is ignored.
DestroyHook = Callable[[R], Any]
#: Return whether the resource is still good after a task raised this error, or a verdict on the error.
HealthHook = Callable[[Exception], bool | Verdict]
#: Return whether the resource is still good.
ResourceHook = Callable[[R], bool]
#: Clean a resource between two tasks. The value it returns is ignored.
ResetHook = Callable[[R], Any]
#: Return the scope of one task. What its ``__enter__`` returns, if not None, replaces the resource.
AroundHook = Callable[[R], AbstractContextManager[Any]]
#: Unblock a call that hangs inside the resource. It is called from another thread than the owner's. The value
#: it returns is ignored.
AbortHook = Callable[[R], Any]
