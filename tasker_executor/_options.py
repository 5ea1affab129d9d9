"""The options of a task: frozen. Other options are derived from them, and no options are ever changed."""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from ._checks import check_count, check_seconds

__all__ = ["DEFAULT_OPTIONS", "UNSET", "TaskOptions", "Unset"]


class Unset(enum.Enum):
    """The type of `UNSET`, which stands for an option that the caller did not give."""

    UNSET = enum.auto()

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET


class TaskOptions(NamedTuple):
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

    def derive(
        self,
        priority: bool | Unset = UNSET,
        max_retries: int | Unset = UNSET,
        pass_resource: bool | Unset = UNSET,
        start_within: float | Unset | None = UNSET,
        run_within: float | Unset | None = UNSET,
    ) -> TaskOptions:
        """Return these options with some changed. What is UNSET keeps its value.

        Raises:
            ValueError, TypeError: A change is no good; the message names it and its value.
        """
        if max_retries is not UNSET:
            max_retries = check_count("max_retries", max_retries, 0)
        if start_within is not UNSET and start_within is not None:
            start_within = check_seconds("start_within", start_within)
        if run_within is not UNSET and run_within is not None:
            run_within = check_seconds("run_within", run_within)
        return tuple.__new__(
            TaskOptions,
            (
                self.priority if priority is UNSET else priority,
                self.max_retries if max_retries is UNSET else max_retries,
                self.pass_resource if pass_resource is UNSET else pass_resource,
                self.start_within if start_within is UNSET else start_within,
                self.run_within if run_within is UNSET else run_within,
            ),
        )


DEFAULT_OPTIONS = TaskOptions()
