"""A gate, fake resources and their books."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

__all__ = ["DEADLINE", "FakeResource", "Gate", "Ledger", "ResourceBroken", "Watched"]

#: Seconds after which a wait gives up. Only a bug uses them up, however busy the machine is.
DEADLINE = 30.0


class Watched:
    """Something whose state changes under `_changed`, and for whose state a thread can wait."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def _wait_until(self, predicate: Callable[[], bool], claim: str) -> None:
        with self._changed:
            if not self._changed.wait_for(predicate, DEADLINE):
                raise AssertionError(f"waited {DEADLINE:g} s in vain for {claim}: {self!r}")


class Gate(Watched):
    """Holds tasks until it is opened, and lets the test know that they are held.

    As a context manager it opens at the end of the block, so a test that fails leaves no tasks behind.

    Example:
        >>> from tasker_executor import ResourceExecutor
        >>> ran = []
        >>> with ResourceExecutor(1) as pool, Gate() as gate:
        ...     held = pool.submit(gate.hold)
        ...     gate.wait_until_held()  # the only worker is now busy, and we know it
        ...     late = pool.submit(ran.append, "normal")
        ...     early = pool.submit_priority(ran.append, "priority")
        >>> ran
        ['priority', 'normal']
    """

    def __init__(self) -> None:
        super().__init__()
        self._held = 0
        self._open = False

    def __repr__(self) -> str:
        return f"<Gate {'open' if self._open else 'closed'}: {self._held} held>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def hold(self, *args: object) -> None:
        """Block the task until `release`. This takes any arguments, so it is a task for every executor."""
        with self._changed:
            self._held += 1
            try:
                self._changed.notify_all()
                self._wait_until(lambda: self._open, "the gate to open")
            finally:
                self._held -= 1
                self._changed.notify_all()

    def release(self) -> None:
        """Let every task pass, now and from now on."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def wait_until_held(self, n: int = 1) -> None:
        """Block until `n` tasks are held at the same time."""
        self._wait_until(lambda: self._held >= n, f"{n} held tasks")


class ResourceBroken(Exception):
    """What a broken `FakeResource` raises when it is used."""


class FakeResource:
    """What a task gets from a pool made with `Ledger.create`.

    Attributes:
        number: 0 for the first resource that its ledger made, and so on.
        broken: If True, the next use raises `ResourceBroken`.
        uses: How often it was used.
        maker: The thread that made it.
        destroyers: The threads that destroyed it: one, and the maker, if all is well.
    """

    def __init__(self, ledger: Ledger, number: int) -> None:
        self._ledger = ledger
        self.number = number
        self.broken: bool = False
        self.uses = 0
        self.maker: threading.Thread = threading.current_thread()
        self.destroyers: list[threading.Thread] = []

    def __repr__(self) -> str:
        return f"<FakeResource {self.number}>"

    def use(self, *args: object) -> int:
        """Use it, and return its number.

        It takes any arguments, so it is a task for every executor on a ledger.
        """
        self._ledger.note_use(self)
        if self.broken:
            raise ResourceBroken(self)
        return self.number

    def break_down(self, *args: object) -> None:
        """Break, and raise `ResourceBroken`: the task that meets the outage."""
        self.broken = True
        self.use()


class Ledger(Watched):
    """Books which thread made, used and destroyed each `FakeResource`.

    Its methods are the hooks of an executor.

    Attributes:
        outage: An exception, or its class, that `create` raises; None for no outage.
        any_thread: May any thread use and destroy a resource? Set this to True for tests of `run_now`.
        attempts: How often `create` was called, in vain or not.
        created: All resources made, in that order.
        destroyed: All resources destroyed, in that order.

    Example:
        >>> from tasker_executor import ResourceExecutor
        >>> ledger = Ledger()
        >>> with ResourceExecutor(
        ...     1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=1
        ... ) as pool:
        ...     pool.submit(FakeResource.break_down).exception()  # breaks two: the first, and that of the retry
        ...     pool.submit(FakeResource.use).result()
        ResourceBroken(<FakeResource 1>)
        2
        >>> ledger.check()  # each destroyed once, by the thread that made it
    """

    def __init__(self) -> None:
        super().__init__()
        self.any_thread = False
        self.outage: BaseException | type[BaseException] | None = None
        self.attempts: int = 0
        self.created: list[FakeResource] = []
        self.destroyed: list[FakeResource] = []
        self._complaints: list[str] = []

    def __repr__(self) -> str:
        return f"<Ledger: {self.attempts} attempts, {len(self.created)} created, {len(self.destroyed)} destroyed>"

    @property
    def alive(self) -> list[FakeResource]:
        """The resources not destroyed, in the order in which they were made."""
        with self._changed:
            return [resource for resource in self.created if not resource.destroyers]

    # -- hooks

    def create(self) -> FakeResource:
        """Make a resource, or raise the outage: for ``on_create``."""
        with self._changed:
            self.attempts += 1
            self._changed.notify_all()
            if self.outage is not None:
                raise self.outage
            resource = FakeResource(self, len(self.created))
            self.created.append(resource)
            return resource

    def destroy(self, resource: FakeResource) -> None:
        """Destroy a resource: for ``on_destroy``."""
        with self._changed:
            resource.destroyers.append(threading.current_thread())
            self.destroyed.append(resource)
            self._changed.notify_all()

    def is_healthy(self, error: BaseException) -> bool:
        """Return whether the error is the task's own, any but `ResourceBroken`: for ``check_health``."""
        return not isinstance(error, ResourceBroken)

    def is_usable(self, resource: FakeResource) -> bool:
        """Return whether the resource is not broken: for ``check_resource``."""
        return not resource.broken

    # -- waiting

    def wait_until_attempted(self, n: int) -> None:
        """Block until `create` has been called `n` times, in vain or not."""
        self._wait_until(lambda: self.attempts >= n, f"{n} attempts")

    def wait_until_created(self, n: int) -> None:
        """Block until `n` resources have been made in all."""
        self._wait_until(lambda: len(self.created) >= n, f"{n} creations")

    def wait_until_destroyed(self, n: int) -> None:
        """Block until `n` resources have been destroyed in all."""
        self._wait_until(lambda: len(self.destroyed) >= n, f"{n} destructions")

    # -- the books

    def note_use(self, resource: FakeResource) -> None:
        """Book a use by the calling thread."""
        user = threading.current_thread()
        with self._changed:
            resource.uses += 1
            if resource.destroyers:
                self._complaints.append(f"{resource} was used by {user.name} after it was destroyed")
            if user is not resource.maker and not self.any_thread:
                self._complaints.append(f"{resource} was made by {resource.maker.name} and used by {user.name}")

    def check(self) -> None:
        """Fail unless each resource was used, and destroyed once and last, by the thread that made it."""
        with self._changed:
            complaints = list(self._complaints)
            for resource in self.created:
                names = [thread.name for thread in resource.destroyers]
                if len(names) != 1:
                    complaints.append(f"{resource} was destroyed {len(names)} times, by {names}")
                elif resource.destroyers[0] is not resource.maker and not self.any_thread:
                    complaints.append(f"{resource} was made by {resource.maker.name} and destroyed by {names[0]}")
        if complaints:
            raise AssertionError("\n".join(complaints))
