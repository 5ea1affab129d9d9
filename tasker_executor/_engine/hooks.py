"""The hooks: what the user said about resources, by a factory or hook by hook, checked once.

The engine sees both in the same way, as `ResourceHooks`: the methods that a factory overrides.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import Signature, isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import Any, Generic, TypeVar, cast

from .._checks import check_callable, check_count, check_seconds
from .._frozen import frozen
from .._report import safe_repr
from .._types import AbortHook, AroundHook, CreateHook, DestroyHook, ResetHook, ResourceHook
from ..factory import ContextManagerFactory, ResourceFactory

__all__ = ["ResourceHooks", "check_hooks", "not_a_resource"]

R = TypeVar("R")


@frozen
class ResourceHooks(Generic[R]):
    """What the user said about resources: the methods of a factory. One that it leaves as it is is None."""

    create: CreateHook[R]
    destroy: DestroyHook[R] | None = None
    #: Returns a `Verdict`; anything else is a mistake of the user's.
    judge: Callable[..., object] | None = None
    #: Whether `judge` is ``check_health``: it is called with the error alone, and may return a bool.
    judges_error_alone: bool = False
    check: ResourceHook[R] | None = None
    reset: ResetHook[R] | None = None
    around: AroundHook[R] | None = None
    abort: AbortHook[R] | None = None
    check_after_idle: float = math.inf
    max_age: float | None = None
    max_uses: int | None = None


_CONTEXT_MANAGER = contextmanager(cast("Any", None)).__code__  # of every function that `contextmanager` decorates

#: The hooks of the constructor, and the methods of a factory that they stand for.
_METHODS = {
    "on_create": "create",
    "on_destroy": "destroy",
    "check_health": "judge",
    "check_resource": "check",
    "on_reset": "reset",
    "around": "around",
    "on_abort": "abort",
}


def check_hooks(
    hooks: dict[str, Any],
    resource: Any = None,
    *,
    check_after_idle: Any = math.inf,
    max_age: Any = None,
    max_uses: Any = None,
    resource_pool_size: int = 0,
) -> ResourceHooks[Any] | None:
    """Return what the user said about resources, by `hooks` or by `resource`; None if neither makes any.

    Raises the error of an argument that does not fit.
    """
    methods: dict[str, Any]
    if resource is not None:
        for argument, value in hooks.items():
            if value is not None:
                raise ValueError(
                    f"{argument}={safe_repr(value)} and resource={safe_repr(resource)} exclude each other; "
                    "override the method of the factory instead"
                )
        methods = _methods_of(_check_factory(resource))
    else:
        for argument, value in hooks.items():
            check_callable(argument, value)
            if value is not None:
                _check_hook(argument, value, 0 if argument == "on_create" else 1)
        if hooks["on_create"] is None:
            needing = {**hooks, "max_age": max_age, "max_uses": max_uses, "resource_pool_size": resource_pool_size or None}
            for argument, value in needing.items():
                if value is not None:
                    raise ValueError(f"{argument}={safe_repr(value)} is of no use without on_create or resource")
        methods = {_METHODS[argument]: value for argument, value in hooks.items()}
        # No function of ours around it: an error thrown into that would count as the hook's.
        methods["judges_error_alone"] = hooks.get("check_health") is not None
    # Checked in any case. Its default is not None, so the loop above cannot tell whether the user gave it.
    check_after_idle = check_seconds("check_after_idle", check_after_idle)
    if methods["create"] is None:
        return None
    return ResourceHooks(
        **methods,
        check_after_idle=check_after_idle,
        max_age=None if max_age is None else check_seconds("max_age", max_age, above_zero=True),
        max_uses=None if max_uses is None else check_count("max_uses", max_uses, 1),
    )


def _check_factory(resource: Any) -> ResourceFactory[Any]:
    """Return the factory that ``resource=`` stands for, or raise if it stands for none."""
    if isinstance(resource, ResourceFactory):
        return resource  # pyright: ignore[reportUnknownVariableType]  # a factory of any kind
    if _is_subclass(resource, ResourceFactory):
        raise TypeError(f"resource must be a factory, not its class; call it: resource={resource.__name__}(...)")
    if not_a_resource(resource) or not callable(resource):
        raise TypeError(
            "resource must be a ResourceFactory, or a function that returns a context manager, "
            f"not {safe_repr(resource)}; each worker makes its own"
        )
    make: Callable[[], Any] = resource
    _check_hook("resource", make, 0)
    return ContextManagerFactory(make)


def _methods_of(factory: ResourceFactory[Any]) -> dict[str, Any]:
    """Return the methods that a factory overrides, and None for each that it does not."""
    methods: dict[str, Any] = {}
    for name in _METHODS.values():
        method = getattr(factory, name)
        inherited = getattr(method, "__func__", None) is getattr(ResourceFactory, name)
        methods[name] = None if inherited else method
        if inherited or method is None:
            if name == "create":
                raise TypeError(f"resource={safe_repr(factory)} does not override create()")
        else:
            check_callable(f"resource.{name}", method)
            _check_hook(f"resource.{name}", method, {"create": 0, "judge": 2}.get(name, 1))
    return methods


def _check_hook(argument: str, hook: Any, count: int) -> None:
    """Raise TypeError if a hook cannot be called with `count` arguments, or would return no plain result."""
    if _is_subclass(hook, BaseException):
        raise TypeError(f"{argument} must be a function, not the exception {hook.__name__}")
    if _is_function(hook, iscoroutinefunction, isasyncgenfunction):
        raise TypeError(f"{argument}={safe_repr(hook)} is an async function; workers are threads, and await nothing")
    if _is_function(hook, isgeneratorfunction):
        raise TypeError(
            f"{argument}={safe_repr(hook)} is a generator function; "
            "decorate it with contextlib.contextmanager, and pass it as resource="
        )
    try:
        # A wrapper may supply arguments that the function inside asks for, so the wrapper's signature counts. That
        # of `contextlib.contextmanager` supplies none.
        passes_on = getattr(hook, "__code__", None) is _CONTEXT_MANAGER
        signature = Signature.from_callable(hook, follow_wrapped=passes_on)
    except (TypeError, ValueError):  # C functions may have none
        return
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        given = ["no arguments", "one argument", "two arguments"][count]
        raise TypeError(f"{argument}={safe_repr(hook)} cannot be called with {given}: {error}") from None


def _is_function(hook: Any, *kinds: Callable[[object], bool]) -> bool:
    """Return whether a call of the hook is a call of a function of one of these kinds."""
    while isinstance(hook, partial):
        hook = hook.func
    functions = hook, getattr(cast("Any", type(hook)), "__call__", None)  # noqa: B004  # an object may have an async one
    try:
        return any(kind(function) for kind in kinds for function in functions)
    except TypeError:  # a mock of a function, which has no flags
        return False


def _is_subclass(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def not_a_resource(made: object) -> str:
    """Return what to do about an object that cannot be meant as a resource; empty if it can."""
    if made is None:
        return "return the resource, or use initializer= for set-up without one"
    if isinstance(made, Coroutine | AsyncGenerator):
        return "workers are threads, and await nothing"
    if isinstance(made, Generator):
        return "decorate the function with contextlib.contextmanager, and pass it as resource="
    if type(made).__module__ == "contextlib" and not isinstance(made, ExitStack):  # an open stack is a resource
        return "pass the function that returns the context manager as resource="
    return ""
