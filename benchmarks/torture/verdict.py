"""From counts to a verdict. Everything here is pure, so a table can be judged again without running anything."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["Counts", "Verdict", "figures", "judge"]


class Verdict(enum.Enum):
    """What became of the work, from the best to the worst."""

    SURVIVES = "survives"  #: All work is done, nothing is doubled, nothing is left behind, all in time.
    SAYS_SO = "says so"  #: Some work has an error. Nothing is left behind, and the pool works afterwards.
    LOSES = "loses"  #: Work, connections or threads are lost.
    HANGS = "hangs"  #: Something does not end in its time: work, a shutdown, the process.
    ABSENT = "n/a"  #: The subject has no such feature, and no one would expect it.


@dataclass(frozen=True)
class Counts:
    """What was counted in one cell. All zero, and recovered, is a perfect run without work."""

    submitted: int = 0
    #: Work that ended as the fault wants it: nearly always with a result.
    done: int = 0
    #: Work that ended with an error instead, by the class of the error. "refused" is in here, too: submit() raised.
    failed: dict[str, int] = field(default_factory=dict)
    cancelled: int = 0  #: Work that was cancelled, though the fault did not ask for it.
    kept: int = 0  #: Work that waits in a broker for the next process.
    # -- hangs
    unfinished: int = 0  #: Work without an end in its time.
    ended: bool = True  #: Whether the shutdown, and the process, ended in time.
    # -- loses
    lost: int = 0  #: Work without effect, and without an error that says so.
    doubled: int = 0  #: Work whose effect is there more than once.
    misreported: int = 0  #: Work whose effect is there, and whose future says that it failed or was cancelled.
    defied: int = 0  #: Work that was done, though it was cancelled or should have failed.
    recovered: bool = True  #: Whether new work was done again, some time after the fault.
    connections: int = 0  #: Left on the server after the shutdown.
    threads: int = 0  #: Left in the process after the shutdown.
    transactions: int = 0  #: Left open on the server between two tasks.
    crashed: str = ""  #: How the process ended, if it ended badly.
    # -- for the reader
    recovery: float | None = None  #: Seconds from the end of the fault until every worker had done work.
    absent: bool = False

    @classmethod
    def of(cls, document: dict[str, Any]) -> Counts:
        """Read what `dataclasses.asdict` has made, and ignore what else is there."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in document.items() if name in known})


def judge(counts: Counts) -> Verdict:
    """Return the verdict of a cell: the worst that holds."""
    if counts.absent:
        return Verdict.ABSENT
    if counts.unfinished or not counts.ended:
        return Verdict.HANGS
    wrong = counts.lost or counts.doubled or counts.misreported or counts.defied
    left = counts.connections or counts.threads or counts.transactions
    if wrong or left or counts.crashed or not counts.recovered:
        return Verdict.LOSES
    if counts.failed or counts.cancelled:
        return Verdict.SAYS_SO
    return Verdict.SURVIVES


def figures(counts: Counts) -> str:
    """Return the numbers behind a verdict, in a few words; the empty string if there is nothing to tell."""
    parts: list[str] = []

    def tell(number: int, text: str) -> None:
        if number:
            parts.append(text.format(number=number, s="" if number == 1 else "s"))

    tell(counts.unfinished, "{number} without end")
    if not counts.ended:
        parts.append("no end of the pool in time")
    tell(counts.lost, "{number} lost")
    tell(counts.doubled, "{number} doubled")
    tell(counts.misreported, "{number} done, but reported as failed")
    tell(counts.defied, "{number} done in spite of it")
    tell(counts.transactions, "{number} transaction{s} left open")
    if counts.ended:  # If it has not ended, it has a right to them.
        tell(counts.connections, "{number} connection{s} left")
        tell(counts.threads, "{number} thread{s} left")
    if counts.crashed:
        parts.append(counts.crashed)
    tell(sum(counts.failed.values()), f"{{number}} of {counts.submitted} failed ({', '.join(sorted(counts.failed))})")
    tell(counts.cancelled, f"{{number}} of {counts.submitted} cancelled")
    tell(counts.kept, "{number} kept by the broker")
    if not counts.recovered and not counts.unfinished:
        parts.append("no recovery")
    elif counts.recovery is not None:
        parts.append(f"back in {counts.recovery:.1f} s")
    return ", ".join(parts)
