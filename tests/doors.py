"""The ways to have a call made with a resource: a task of an executor or of a view, `run_now`, and both without threads.

A test that asks for the fixture `door` runs once for each. What a factory, a scope or a reset promises
must hold for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support import DEADLINE, FakeResource, Ledger, MakePool
from tasker_executor import ResourceExecutor
from tasker_executor.testing import InlineExecutor

__all__ = ["DOORS", "EXECUTORS", "Door", "door", "hooks_of", "open_door", "pool_of"]

#: To be called with arguments that a type checker refuses.
EXECUTORS: list[Any] = [ResourceExecutor, InlineExecutor]

DOORS = ["submit", "view", "run_now", "inline", "inline run_now"]


class Door:
    """One way to have a call made. `open` makes its executor, `call` makes the call, and `close` ends the executor."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.inline = kind.startswith("inline")
        self.pool: Any = None

    def __repr__(self) -> str:
        return f"<Door {self.kind!r}>"

    @property
    def runs_now(self) -> bool:
        """Whether calls are made on the calling thread, by `run_now`."""
        return self.kind.endswith("run_now")

    @property
    def has_worker(self) -> bool:
        """Whether calls are made on a worker's thread."""
        return self.kind in {"submit", "view"}

    def open(self, **options: Any) -> Any:
        """Make the executor, which has one worker at most, and return it."""
        assert self.pool is None
        self.pool = InlineExecutor(**options) if self.inline else ResourceExecutor(1, **options)
        return self.pool

    def call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make the call; return what it returns, or raise what it raises."""
        return self._call(self.pool, fn, *args, **kwargs)

    def call_as_given(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make the call without a resource: ``pass_resource=False``."""
        return self._call(self.pool.with_options(pass_resource=False), fn, *args, **kwargs)

    def _call(self, pool: Any, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.kind == "view":
            pool = pool.with_options(priority=True)
        return pool.run_now(fn, *args, **kwargs) if self.runs_now else pool.submit(fn, *args, **kwargs).result(DEADLINE)

    def error_of(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> BaseException:
        """Make the call, which must raise, and return its error."""
        with pytest.raises(BaseException) as caught:  # noqa: PT011  # the test looks at it
            self.call(fn, *args, **kwargs)
        return caught.value

    def close(self) -> None:
        """End the executor, and check its books."""
        if self.pool is None:
            return
        self.pool.shutdown(timeout=DEADLINE)
        stats = self.pool.stats()
        assert stats.state == "closed"
        assert stats.resources_created == stats.resources_destroyed


def hooks_of(ledger: Ledger) -> dict[str, Any]:
    """Return the hooks of a ledger, for `Door.open`. Any thread may use its resources."""
    ledger.any_thread = True
    return {"on_create": ledger.create, "on_destroy": ledger.destroy, "check_health": ledger.is_healthy}


def pool_of(make_pool: MakePool, ledger: Ledger, workers: int = 1, /, **options: Any) -> ResourceExecutor[FakeResource]:
    """Return a pool with the hooks of a ledger, and these options."""
    pool: Any = make_pool(workers, **{**hooks_of(ledger), **options})
    return pool  # type: ignore[no-any-return]  # of fake resources


@contextmanager
def open_door(kind: str) -> Generator[Door]:
    """Yield that door, and close it."""
    door = Door(kind)
    try:
        yield door
    except BaseException:
        if door.pool is not None:
            door.pool.kill()
        raise
    door.close()


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest, ledger: Ledger) -> Iterator[Door]:
    """Each of the ways in turn, closed before the books of the ledger are. A module imports this fixture to have it."""
    with open_door(request.param) as opened:
        yield opened
