"""The options of a task: frozen. Other options are derived from them, and no options are ever changed."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DEFAULT_OPTIONS", "UNSET", "TaskOptions", "Unset"]


class Unset:
    """The type of `UNSET`, which stands for an option that the caller did not give."""

    def __repr__(self) -> str:
        return "UNSET"

    def __reduce__(self) -> str:
        return "UNSET"  # there is one in each process


UNSET = Unset()


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
        """Return these options with some changed. What is UNSET keeps its value."""
        return TaskOptions(
            self.priority if isinstance(priority, Unset) else priority,
            self.max_retries if isinstance(max_retries, Unset) else max_retries,
            self.pass_resource if isinstance(pass_resource, Unset) else pass_resource,
            self.start_within if isinstance(start_within, Unset) else start_within,
            self.run_within if isinstance(run_within, Unset) else run_within,
        )


DEFAULT_OPTIONS = TaskOptions()
