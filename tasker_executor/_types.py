"""The hooks that users write, as documented aliases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["AbortHook", "CreateHook", "DestroyHook", "HealthHook", "ResourceHook"]

R = TypeVar("R")

#: Makes a resource, on the thread that will own it.
CreateHook = Callable[[], R]
#: Gives a resource up, on the thread that owns it. What it returns is ignored.
DestroyHook = Callable[[R], Any]
#: Is the resource still good, after a task raised this error?
HealthHook = Callable[[BaseException], bool]
#: Is the resource still good?
ResourceHook = Callable[[R], bool]
#: Unblocks a call that hangs inside the resource. Called from another thread than the owner's.
AbortHook = Callable[[R], Any]
