"""The options of a task: frozen. Other options are derived from them, and no options are ever changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

__all__ = ["DEFAULT_OPTIONS", "UNSET", "TaskOptions", "Unset"]


class Unset:
    """The type of `UNSET`, which stands for an option that the caller did not give."""

    def __repr__(self) -> str:
        return "UNSET"

    def __reduce__(self) -> str:
        return "UNSET"  # there is one in each process


UNSET = Unset()


@dataclass(frozen=True)
class TaskOptions:
    """What `with_options` may set for the tasks of a view."""

    priority: bool = False
    #: None: the executor's number.
    max_retries: int | None = None
    pass_resource: bool = True
    #: Seconds from the submission on. None: no limit.
    start_within: float | None = None
    #: Seconds that it may run. None: no limit. UNSET: the executor's limit.
    run_within: float | Unset | None = UNSET

    def run_limit(self, usual: float | None) -> float | None:
        """Return for how many seconds a task may run; `usual` is the executor's limit. None: without a limit."""
        return usual if isinstance(self.run_within, Unset) else self.run_within

    def derive(self, **changes: Any) -> TaskOptions:
        """Return these options with `changes`. A change that is UNSET keeps the value."""
        return replace(self, **{name: value for name, value in changes.items() if value is not UNSET})


DEFAULT_OPTIONS = TaskOptions()
