"""The options of a task: frozen, derived, never mutated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

__all__ = ["DEFAULT_OPTIONS", "UNSET", "TaskOptions", "Unset"]


class Unset:
    """The type of `UNSET`: an option that the caller did not mention."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset()


@dataclass(frozen=True)
class TaskOptions:
    """How the tasks of a view are treated; `None` leaves it to the executor."""

    priority: bool = False
    max_retries: int | None = None
    pass_resource: bool = True
    start_within: float | None = None

    def derive(self, **changes: Any) -> TaskOptions:
        """Return these options with `changes`; those that are UNSET keep their value."""
        return replace(self, **{name: value for name, value in changes.items() if value is not UNSET})


DEFAULT_OPTIONS = TaskOptions()
