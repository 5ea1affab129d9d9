"""The types of the hooks that users write. `ResourceExecutor` says when each is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["AbortHook", "CreateHook", "DestroyHook", "HealthHook", "ResourceHook"]

R = TypeVar("R")

#: Make a resource, on the thread that will own it.
CreateHook = Callable[[], R]
#: Give a resource up, on the thread that owns it. The value it returns is ignored.
DestroyHook = Callable[[R], Any]
#: Return whether the resource is still good after a task raised this error.
HealthHook = Callable[[BaseException], bool]
#: Return whether the resource is still good.
ResourceHook = Callable[[R], bool]
#: Unblock a call that hangs inside the resource. It is called from another thread than the owner's. The value
#: it returns is ignored.
AbortHook = Callable[[R], Any]
