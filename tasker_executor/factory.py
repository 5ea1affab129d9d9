"""What a resource is: how one kind of resource is made, judged, cleaned, aborted and destroyed.

A `ResourceFactory` says it all in one object, ``resource=`` of the constructor. The hooks of the constructor
(``on_create``, ``check_health``, ...) say the same one by one. The engine takes from both what there is, so
what a factory does not override costs nothing.

**What happens after a task** is decided here, and nowhere else:

===========================  =================================  ==============================================
the error                    the resource                       the task
===========================  =================================  ==============================================
`OWN`, or there is no judge  reset, then checked; replaced if   has the error as its result, and is **never run
                             either says no                     again**
`AGAIN`                      reset, and kept                    is run again on the same worker, at most
                                                                ``max_retries`` times
`BROKEN`                     destroyed, its worker replaced     is run again on another resource, at most
                                                                ``max_retries`` times
no error                     reset; replaced if that says no    has its result
===========================  =================================  ==============================================

So a task is run again only on a verdict about its error; `check` and `reset` decide about resources alone.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import get_ident
from typing import Any, Generic, TypeVar

from typing_extensions import override

__all__ = ["ContextManagerFactory", "ResourceFactory", "Verdict"]

R = TypeVar("R")


class Verdict(enum.Enum):
    """What the error of a task says about its resource, and about the task."""

    #: The task's own error. It is delivered, and the resource is kept.
    OWN = "own"
    #: Nothing is broken, but the task may well succeed now (a deadlock, a serialization failure). It is run again,
    #: on the same worker.
    AGAIN = "again"
    #: The resource is broken. It is replaced, and the task is run again on another one.
    BROKEN = "broken"


class ResourceFactory(Generic[R]):
    """Makes, judges, cleans, aborts and destroys resources of one kind. Subclass it, and override `create`.

    All other methods may be left as they are; then the executor does not even call them. Each is called on
    the thread that owns the resource (`abort` is not), and never under a lock. One factory serves all workers
    of an executor, so its methods run on several threads at a time.

    Example:
        >>> import sqlite3
        >>> from tasker_executor import ResourceExecutor
        >>> class Database(ResourceFactory[sqlite3.Connection]):
        ...     def create(self):
        ...         return sqlite3.connect(":memory:")
        ...     def destroy(self, resource):
        ...         resource.close()
        ...     def reset(self, resource):
        ...         resource.rollback()
        >>> with ResourceExecutor(2, resource=Database()) as pool:
        ...     pool.submit(lambda connection: connection.execute("select 1").fetchone()).result()
        (1,)
    """

    def create(self) -> R:
        """Return a new resource. If this raises, it is tried again after a pause, while tasks wait."""
        raise NotImplementedError(f"{type(self).__name__} must override create()")

    def destroy(self, resource: R) -> None:
        """Give the resource up. It is called once in the resource's life; an error is logged, no more."""

    def judge(self, error: Exception, resource: R) -> Verdict:
        """Return the verdict on the error that a task has raised.

        It is not asked about an error that is no `Exception` (SystemExit, KeyboardInterrupt): that is the
        task's own. If it raises, the task keeps its error and is not run again, and the resource is replaced.
        """
        return Verdict.OWN

    def check(self, resource: R) -> bool:
        """Return whether the resource is still good. An error means no.

        It is asked only where there is reason for doubt: after a task raised, after the resource was idle for
        ``check_after_idle`` seconds, and after another resource was found broken.
        """
        return True

    def reset(self, resource: R) -> None:
        """Clean the resource between two tasks: roll back what is open, clear what is set.

        It is called after every task, when the task's result is known, and before the next one. An error
        means that the resource cannot be used again: it is replaced.
        """

    def around(self, resource: R) -> AbstractContextManager[Any]:
        """Return the scope of one task: entered before the task, left after it, with its error if it raised.

        A transaction is such a scope. If its ``__enter__`` returns something else than None, the task gets that
        instead of the resource: a session of an engine, for example. An error that it raises is the task's.
        """
        return nullcontext()

    def abort(self, resource: R) -> None:
        """Unblock a call that hangs inside the resource. It is called from another thread than the owner's.

        It is called when a task is stopped, and again, with growing pauses, until that task ends or is given up:
        an abort that comes between two calls of the task may unblock neither.
        """


class NoResource(TypeError):
    """A factory has made what is no resource: a mistake, not an outage, so it is not tried again for the same task."""


class ContextManagerFactory(ResourceFactory[R]):
    """Enters a context manager to make a resource, and leaves it, without an error, to destroy the resource.

    Both on the thread of the worker. ``resource=page`` makes one of a function that is decorated with
    `contextlib.contextmanager`.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[R]]) -> None:
        self._make = make
        # Guards `_entered`: the context managers that are entered, by the identity of what they returned, each
        # with its thread. Two of them may have returned the same object. Reentrant, for signal handlers that
        # make or destroy a resource.
        self._lock = threading.RLock()
        self._entered: dict[int, list[tuple[int, AbstractContextManager[R]]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._make,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._make!r})"

    @override
    def create(self) -> R:
        """Enter a new context manager, and return what it returns."""
        manager = self._make()
        if not hasattr(manager, "__enter__") or not hasattr(manager, "__exit__"):
            raise NoResource(
                f"resource={self._make!r} returned {type(manager).__name__!r}, which is no context manager; "
                "pass a function that returns the resource itself as on_create="
            )
        resource = manager.__enter__()
        try:
            if resource is None:
                raise NoResource(f"the context manager of resource={self._make!r} returned None; let it return the resource")
            with self._lock:
                self._entered.setdefault(id(resource), []).append((get_ident(), manager))
        except BaseException:  # the executor never gets the resource, so it will not destroy it
            manager.__exit__(None, None, None)
            raise
        return resource

    @override
    def destroy(self, resource: R) -> None:
        """Leave the context manager that returned this resource."""
        with self._lock:
            entered = self._entered[id(resource)]
            # The one of this thread. A resource of `run_now` may be destroyed on another thread than it was made.
            mine = next((index for index, (thread, _) in enumerate(entered) if thread == get_ident()), -1)
            _, manager = entered.pop(mine)
            if not entered:
                del self._entered[id(resource)]
        manager.__exit__(None, None, None)
