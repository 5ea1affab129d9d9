"""What the user asked for: every argument of the constructor, checked once, in the caller's thread.

`Settings.checked` takes the arguments as the user gave them. It returns plain, frozen values, so no other
module checks them again. An error names the argument and its value. Where the standard library refuses the
same argument, the error has its words.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from .._checks import check_bounds, check_callable, check_count, check_max_workers, check_seconds
from .._report import safe_repr
from .._types import AbortHook, CreateHook, DestroyHook, HealthHook, ResourceHook
from ..observers import Observer
from ..policies import ScalingPolicy, check_policy, interval_of

__all__ = ["OnFull", "ResourceHooks", "Settings"]

R = TypeVar("R")

#: What `submit` does when the queue is full.
OnFull = Literal["block", "raise", "caller"]

_numbers = itertools.count()


@dataclass(frozen=True)
class ResourceHooks(Generic[R]):
    """What the user said about resources."""

    on_create: CreateHook[R]
    on_destroy: DestroyHook[R] | None
    check_health: HealthHook | None
    check_resource: ResourceHook[R] | None
    check_after_idle: float
    max_age: float | None
    max_uses: int | None
    on_abort: AbortHook[R] | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of an executor. `ResourceExecutor` documents each; all durations are seconds."""

    name: str
    thread_name_prefix: str
    min_workers: int
    max_workers: int
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    #: None: tasks get no resource.
    hooks: ResourceHooks[Any] | None
    create_timeout: float
    max_retries: int
    max_queued: int | None
    on_full: OnFull
    propagate_context: bool
    policy: ScalingPolicy | None
    idle_timeout: float | None
    resource_pool_size: int
    observers: tuple[Observer, ...]

    @classmethod
    def checked(
        cls,
        kind: str,
        *,
        max_workers: Any,
        thread_name_prefix: Any,
        initializer: Any,
        initargs: Any,
        on_create: Any,
        on_destroy: Any,
        check_health: Any,
        check_resource: Any,
        check_after_idle: Any,
        max_age: Any,
        max_uses: Any,
        create_timeout: Any,
        on_abort: Any,
        max_retries: Any,
        max_queued: Any,
        on_full: Any,
        propagate_context: Any,
        min_workers: Any,
        policy: Any,
        idle_timeout: Any,
        resource_pool_size: Any,
        observers: Any,
        name: Any,
    ) -> Settings:
        """Check the arguments of `ResourceExecutor`, as the user gave them, and return them as settings.

        `kind` is the class of the executor: one without a name is called ``<kind>-<number>``.

        Raises:
            ValueError, TypeError: An argument is no good; the message names it and its value.
        """
        if max_workers is None:
            max_workers = min(32, (getattr(os, "process_cpu_count", os.cpu_count)() or 1) + 4)
        max_workers = check_max_workers(max_workers)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")  # the standard library's words
        min_workers = check_bounds(min_workers, max_workers)
        resource_pool_size = check_count("resource_pool_size", resource_pool_size, 0)
        hooks = _check_hooks(
            on_create=on_create,
            on_destroy=on_destroy,
            check_health=check_health,
            check_resource=check_resource,
            check_after_idle=check_after_idle,
            max_age=max_age,
            max_uses=max_uses,
            on_abort=on_abort,
            resource_pool_size=resource_pool_size,
        )
        if on_full not in ("block", "raise", "caller"):
            raise ValueError(f"on_full must be 'block', 'raise' or 'caller', not {safe_repr(on_full)}")
        settings: dict[str, Any] = {
            "min_workers": min_workers,
            "max_workers": max_workers,
            "initializer": initializer,
            "initargs": initargs,
            "hooks": hooks,
            "create_timeout": check_seconds("create_timeout", create_timeout),
            "max_retries": check_count("max_retries", max_retries, 0),
            "max_queued": None if max_queued is None else check_count("max_queued", max_queued, 0),
            "on_full": on_full,
            "propagate_context": bool(propagate_context),
            "policy": _check_policy(policy),
            "idle_timeout": None if idle_timeout is None else check_seconds("idle_timeout", idle_timeout),
            "resource_pool_size": resource_pool_size,
            "observers": _check_observers(observers),
        }
        name = str(name or thread_name_prefix or f"{kind}-{next(_numbers)}")  # no number for an executor that is refused
        return cls(name=name, thread_name_prefix=str(thread_name_prefix or name), **settings)


def _check_hooks(
    *,
    on_create: Any,
    on_destroy: Any,
    check_health: Any,
    check_resource: Any,
    check_after_idle: Any,
    max_age: Any,
    max_uses: Any,
    on_abort: Any,
    resource_pool_size: int,
) -> ResourceHooks[Any] | None:
    """Return what the user said about resources; None without `on_create`.

    Raises the error of an argument that does not fit.
    """
    hooks = {
        "on_create": on_create,
        "on_destroy": on_destroy,
        "check_health": check_health,
        "check_resource": check_resource,
        "on_abort": on_abort,
    }
    for argument, value in hooks.items():
        check_callable(argument, value)
    if on_create is None:
        needing = {**hooks, "max_age": max_age, "max_uses": max_uses, "resource_pool_size": resource_pool_size or None}
        for argument, value in needing.items():
            if value is not None:
                raise ValueError(f"{argument}={safe_repr(value)} is of no use without on_create")
    # Checked without `on_create`, too. Its default is not None, so the loop above cannot tell whether the
    # user gave it.
    check_after_idle = check_seconds("check_after_idle", check_after_idle)
    if on_create is None:
        return None
    return ResourceHooks(
        **hooks,
        check_after_idle=check_after_idle,
        max_age=None if max_age is None else check_seconds("max_age", max_age, above_zero=True),
        max_uses=None if max_uses is None else check_count("max_uses", max_uses, 1),
    )


def _check_policy(policy: Any) -> ScalingPolicy | None:
    """Return the policy, or raise unless it has what the scaler asks for."""
    if policy is None:
        return None
    checked = check_policy("policy", policy)
    interval_of(checked)
    return checked


def _check_observers(observers: Iterable[Any]) -> tuple[Observer, ...]:
    """Return the observers of any iterable, or raise unless each is one."""
    if not isinstance(observers, Iterable):
        raise TypeError(f"observers must be an iterable of Observer instances, not {safe_repr(observers)}")
    members = tuple(observers)
    for member in members:
        if not isinstance(member, Observer):
            raise TypeError(f"observers must be Observer instances, not {safe_repr(member)}")
    return members
