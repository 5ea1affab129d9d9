"""What the user asked for: frozen, and checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from .._types import AbortHook, CreateHook, DestroyHook, HealthHook, ResourceHook

__all__ = ["ResourceHooks"]

R = TypeVar("R")


@dataclass(frozen=True)
class ResourceHooks(Generic[R]):
    """What the user told us about resources."""

    on_create: CreateHook[R]
    on_destroy: DestroyHook[R] | None
    check_health: HealthHook | None
    check_resource: ResourceHook[R] | None
    check_after_idle: float
    max_age: float | None
    max_uses: int | None
    on_abort: AbortHook[R] | None
