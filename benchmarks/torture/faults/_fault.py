"""How a fault is declared."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from ..stage import Stage

__all__ = ["FAULTS", "PATIENCE", "After", "Fault", "fault"]

#: Seconds. A task may wait for a connection for half a minute: that is the default of three of the subjects.
PATIENCE = 32.0


class After(enum.Enum):
    """What happens when the function of a fault has returned."""

    ALL = "all"  #: Work is waited for; new work is submitted until it succeeds; the subject is shut down.
    REPORT = "report"  #: Work is waited for. The fault was about the end of the subject.
    EXIT = "exit"  #: The interpreter exits.


@dataclass(frozen=True)
class Fault:
    """A named fault: a function over a stage, and how long the rest may take."""

    name: str
    title: str
    text: str  # Its paragraph in the report.
    act: Callable[[Stage], None]
    topic: str  # Which line of a subject's documentation is about it.
    within: float  # Seconds for the work to end, after the function has returned.
    after: After


FAULTS: dict[str, Fault] = {}


def fault(
    title: str, *, topic: str = "setup", within: float = 8.0, after: After = After.ALL
) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    """Declare a fault. Its docstring is its paragraph in the report."""

    def declare(act: Callable[[Stage], None]) -> Callable[[Stage], None]:
        text = " ".join(inspect.cleandoc(act.__doc__ or "").split())
        FAULTS[act.__name__] = Fault(act.__name__, title, text, act, topic, within, after)
        return act

    return declare
