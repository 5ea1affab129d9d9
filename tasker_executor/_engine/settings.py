"""What the user asked for: every argument of the constructor, checked once, in the caller's thread.

`Settings.checked` takes the arguments as the user gave them. It returns plain, frozen values, so no other
module checks them again. An error names the argument and its value. Where the standard library refuses the
same argument, the error has its words.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from .._checks import check_bounds, check_count, check_max_workers, check_seconds
from .._frozen import frozen
from .._report import safe_repr
from .hooks import ResourceHooks, check_hooks

if TYPE_CHECKING:  # imported on use: most executors have no observer and no policy
    from ..observers import Observer
    from ..policies import ScalingPolicy

__all__ = ["OnFull", "Settings"]

#: What `submit` does when the queue is full.
OnFull = Literal["block", "raise", "caller"]

_numbers = itertools.count()  # `next` is one step, without the GIL too


@frozen
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
    run_within: float | None
    abort_grace: float
    warn_after: float | None
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
        resource: Any,
        on_create: Any,
        on_destroy: Any,
        check_health: Any,
        check_resource: Any,
        on_reset: Any,
        around: Any,
        on_abort: Any,
        check_after_idle: Any,
        max_age: Any,
        max_uses: Any,
        create_timeout: Any,
        max_retries: Any,
        max_queued: Any,
        on_full: Any,
        propagate_context: Any,
        run_within: Any,
        abort_grace: Any,
        warn_after: Any,
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
        if callable(thread_name_prefix):
            raise TypeError(
                f"thread_name_prefix must be a str, not {safe_repr(thread_name_prefix)}; "
                "pass a function that makes resources as on_create="
            )
        min_workers = check_bounds(min_workers, max_workers)
        resource_pool_size = check_count("resource_pool_size", resource_pool_size, 0)
        hooks = check_hooks(
            {
                "on_create": on_create,
                "on_destroy": on_destroy,
                "check_health": check_health,
                "check_resource": check_resource,
                "on_reset": on_reset,
                "around": around,
                "on_abort": on_abort,
            },
            resource,
            check_after_idle=check_after_idle,
            max_age=max_age,
            max_uses=max_uses,
            resource_pool_size=resource_pool_size,
        )
        if on_full not in ("block", "raise", "caller"):
            raise ValueError(f"on_full must be 'block', 'raise' or 'caller', not {safe_repr(on_full)}")
        if on_full != "block" and max_queued is None:
            raise ValueError(f"on_full={on_full!r} is of no use without max_queued")
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
            "run_within": None if run_within is None else check_seconds("run_within", run_within, above_zero=True),
            "abort_grace": check_seconds("abort_grace", abort_grace),
            "warn_after": None if warn_after is None else check_seconds("warn_after", warn_after, above_zero=True),
            "policy": _check_policy(policy),
            "idle_timeout": None if idle_timeout is None else check_seconds("idle_timeout", idle_timeout),
            "resource_pool_size": resource_pool_size,
            "observers": _check_observers(observers),
        }
        name = str(name or thread_name_prefix or f"{kind}-{next(_numbers)}")  # no number for an executor that is refused
        return cls(name=name, thread_name_prefix=str(thread_name_prefix or name), **settings)


def _check_policy(policy: Any) -> ScalingPolicy | None:
    """Return the policy, or raise unless it has what the scaler asks for."""
    if policy is None:
        return None
    from ..policies import check_policy, interval_of

    checked = check_policy("policy", policy)
    interval_of(checked)
    return checked


def _check_observers(observers: Iterable[Any]) -> tuple[Observer, ...]:
    """Return the observers of any iterable, or raise unless each is one."""
    if not isinstance(observers, Iterable):
        raise TypeError(f"observers must be an iterable of Observer instances, not {safe_repr(observers)}")
    members = tuple(observers)
    if not members:
        return ()
    from ..observers import Observer

    for member in members:
        if not isinstance(member, Observer):
            raise TypeError(f"observers must be Observer instances, not {safe_repr(member)}")
    return members
