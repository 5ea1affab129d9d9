"""What every subject can do, and what a fault may ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from ..tasks import Task, limited

__all__ = ["SIZE", "Line", "Subject"]

#: Threads and connections of every subject.
SIZE = 4


class Line(NamedTuple):
    """A line of documentation that we followed."""

    url: str
    text: str


class Subject:
    """A pool that runs tasks on connections to PostgreSQL.

    Args:
        conninfo: The connection string. All subjects get the same.
        transaction: True if each task is one transaction. False if tasks are trusted to commit by themselves.
    """

    title: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()  # Distributions, for the versions.
    #: What was followed, by topic: "setup", and what a fault asks for (see `Fault.topic`).
    lines: ClassVar[dict[str, Line]] = {}
    #: Faults that make no sense here, by name, and why.
    absent: ClassVar[dict[str, str]] = {}

    def __init__(self, conninfo: str, transaction: bool = True) -> None:
        raise NotImplementedError

    def submit(self, task: Task, *arguments: Any) -> Any:
        """Return the future of a task that was submitted."""
        raise NotImplementedError

    def submit_many(self, task: Task, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return the futures of tasks that were submitted, or the error of each that was refused."""

        def submit(one: tuple[Any, ...]) -> Any:
            try:
                return self.submit(task, *one)
            except Exception as error:
                return error

        return [submit(one) for one in arguments]

    def submit_within(self, seconds: float, task: Task, *arguments: Any) -> Any:
        """Submit a task that must not run longer. A pool without such a limit leaves it to the server."""
        return self.submit(limited, task.__name__, seconds, *arguments)

    async def request(self, task: Task, *arguments: Any) -> None:
        """Run a task for a coroutine, as a web service does. If the client goes away, the coroutine is cancelled."""
        await asyncio.wrap_future(self.submit(task, *arguments))

    def cancel(self, future: Any) -> None:
        """Cancel a task, whether it waits or runs, as far as the pool can."""
        future.cancel()

    def shutdown(self) -> None:
        """Do what was submitted, then end."""
        raise NotImplementedError

    def stop(self) -> None:
        """End soon: drop what waits, and stop what runs, as far as the pool can."""
        self.shutdown()

    def rotated(self) -> None:
        """Hear that the credentials are new. A pool that cannot be told makes new connections when the old ones break."""

    @classmethod
    def kept(cls, cell: str) -> int:
        """Return how many tasks of a cell wait in a broker, after its process has ended; and forget them."""
        return 0
