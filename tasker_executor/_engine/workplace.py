"""The workplace: what the workers of one executor share, and what they ask of the engine."""

from __future__ import annotations

from typing import Any, Protocol

from .._frozen import frozen
from .._hub import ObserverHub
from .admission import Admission
from .idle import Idle
from .lanes import Lanes
from .limits import Limits
from .recorder import Recorder
from .resources import End, ResourceSource, UnfitResource
from .runs import Runs
from .settings import Settings
from .state import Lifecycle
from .timer import Timer

__all__ = ["Employer", "Workplace"]


@frozen
class Workplace:
    """What the workers of one executor share."""

    settings: Settings
    life: Lifecycle
    idle: Idle
    lanes: Lanes
    admission: Admission
    source: ResourceSource[Any] | None
    recorder: Recorder
    hub: ObserverHub
    timer: Timer
    limits: Limits
    runs: Runs
    #: While it is not empty, a worker that is about to start a task asks `Employer.dismisses`.
    leave: list[None]


class Employer(Protocol):
    """The engine of an executor, as its workers see it. `worker` is the worker that calls."""

    def worker_ready(self, worker: Any, *, checked: bool) -> bool:
        """Count a worker that owns its resource; return False if the resource must pass its check first."""
        ...

    def resource_unfit(self, worker: Any, fault: UnfitResource) -> None:
        """Note that a worker's resource failed its check before it had served a task."""

    def resource_given_up(self, worker: Any) -> None:
        """Note that a worker is about to destroy its resource, which may take long."""

    def task_came_back(self, worker: Any) -> None:
        """Make another worker take a task that was put back to the front of its lane, or parked."""

    def retry_parked(self, worker: Any) -> bool:
        """Start a worker for a retry that was parked; return False if this worker must make room for it."""
        ...

    def unpark(self) -> None:
        """Move the parked retries to the heads of their lanes: a worker with a new resource is about to look there."""

    def dismisses(self, worker: Any) -> End | None:
        """Return why a worker must go instead of taking a task; None if it may stay."""
        ...

    def wrote_off(self, worker: Any) -> bool:
        """Return whether a worker whose task was stopped has been written off. If not, it goes on."""
        ...

    def may_retire(self, worker: Any) -> bool:
        """Return whether a worker that has been idle for `idle_timeout` may go."""
        ...

    def worker_ended(self, worker: Any, end: End, error: BaseException | None) -> None:
        """Walk the exit path of a worker, which alone decides whether a successor starts."""
