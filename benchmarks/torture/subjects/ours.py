from __future__ import annotations

from typing import Any, ClassVar

from ..tasks import Task, perform
from ._subject import SIZE, Line, Subject

__all__ = ["Ours"]


class Ours(Subject):
    """Each worker owns a connection."""

    title = "ResourceExecutor"
    packages = ("tasker_executor",)
    lines: ClassVar[dict[str, Line]] = {
        "setup": Line(
            "https://tasker-executor.readthedocs.io/en/latest/reference/factories.html",
            "pool = ResourceExecutor(8, resource=Connections(..., transaction=True))",
        ),
    }

    def __init__(self, conninfo: str, transaction: bool = True) -> None:
        from tasker_executor import ResourceExecutor

        self.pool: Any = ResourceExecutor(SIZE, resource=self.resource(conninfo, transaction))

    def resource(self, conninfo: str, transaction: bool) -> Any:
        from tasker_executor.resources.psycopg import Connections

        return Connections(conninfo, transaction=transaction)

    @staticmethod
    def run(connection: Any, task: Task, *arguments: Any) -> None:
        perform(connection.execute, task, *arguments)

    def submit(self, task: Task, *arguments: Any) -> Any:
        return self.pool.submit(self.run, task, *arguments)

    def submit_within(self, seconds: float, task: Task, *arguments: Any) -> Any:
        return self.pool.with_options(run_within=seconds).submit(self.run, task, *arguments)

    async def request(self, task: Task, *arguments: Any) -> None:
        await self.pool.as_async().run(self.run, task, *arguments)

    def cancel(self, future: Any) -> None:
        future.stop()

    def shutdown(self) -> None:
        self.pool.shutdown()

    def rotated(self) -> None:
        self.pool.refresh()

    def stop(self) -> None:
        self.pool.kill()
        self.pool.shutdown()
