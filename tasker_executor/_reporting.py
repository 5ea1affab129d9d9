"""What an executor reports of itself: `stats`, `workers`, `metrics`, its repr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._checks import check_bool
from ._engine.core import Core

if TYPE_CHECKING:
    from .stats import ExecutorMetrics, ExecutorStats, WorkerInfo

__all__ = ["Reporting"]


class Reporting:
    """The half of `ResourceExecutor` that reads, and changes nothing."""

    _core: Core

    def stats(self) -> ExecutorStats:
        """Return gauges and counters, all of the same moment."""
        return self._core.gauges.stats()

    def workers(self, *, stacks: bool = False) -> tuple[WorkerInfo, ...]:
        """Return what each worker is doing now, in the order of their names.

        Workers that were written off are among them, until their call returns.

        Args:
            stacks: Fill in `WorkerInfo.stack`, too: which line each thread is at, and from where it was called.
        """
        check_bool("stacks", stacks)
        return self._core.gauges.worker_infos(stacks=stacks)

    def metrics(self, *, reset: bool = False) -> ExecutorMetrics:
        """Return durations and rates. They take constant memory, whatever the number of tasks.

        Args:
            reset: Start a new period: the next call covers the time after this one. (`stats` is never reset.)
        """
        return self._core.gauges.metrics(reset=reset)

    def __repr__(self) -> str:
        stats = self.stats()
        queued = stats.queued_tasks + stats.priority_tasks
        return (
            f"<{type(self).__name__} {self._core.name!r} {stats.state}: {stats.active_workers - stats.idle_workers} busy, "
            f"{stats.idle_workers} idle | {queued} queued ({stats.priority_tasks} high)>"
        )

    def _check(self) -> None:
        """Assert the invariants that can be asked at any moment."""
        self._core.gauges.check()
