"""Runs a cell in a process of its own, with a limit, and asks the server what was really done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .faults import After, Fault
from .subjects import SUBJECTS
from .verdict import Counts, Verdict, judge

__all__ = ["LIMIT", "Cell", "NotRun", "Referee", "compare", "count"]

#: Seconds for one cell. A process that still runs then hangs.
LIMIT = {After.ALL: 60.0, After.REPORT: 80.0, After.EXIT: 20.0}
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Cell:
    """One result."""

    fault: str
    subject: str
    counts: Counts
    log: str = ""  # What the process has printed, for debugging.

    @property
    def verdict(self) -> Verdict:
        return judge(self.counts)

    def document(self) -> dict[str, Any]:
        """Return it for JSON, without the counts of which there is nothing to tell."""
        perfect = asdict(Counts())
        told = {name: value for name, value in asdict(self.counts).items() if value != perfect[name]}
        return {"fault": self.fault, "subject": self.subject, "verdict": self.verdict.value, **told}


class NotRun(Exception):
    """A process ended before its fault began."""


class Referee:
    """Runs cells. `server` is a connection string; `folder` is for files that are thrown away."""

    def __init__(self, server: str, folder: Path) -> None:
        self.server = server
        self.folder = folder
        #: The name of the table of effects, and the beginning of all names on the servers.
        self.server_version = ""
        self.name = f"torture_{uuid.uuid4().hex[:6]}"

    def __enter__(self) -> Referee:
        [(self.server_version,)] = self._query("show server_version")
        self._execute(f"create unlogged table {self.name} (cell text not null, number int not null)")
        self._execute(f"grant all on {self.name} to public")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._execute(f"drop table {self.name}")
        for (role,) in self._query("select rolname from pg_roles where starts_with(rolname, %s)", self.name):
            self._execute(f'drop role "{role}"')

    def run(self, fault: Fault, subject: str) -> Cell:
        """Run one cell, and return what was counted."""
        if fault.name in SUBJECTS[subject].absent:
            return Cell(fault.name, subject, Counts(absent=True))
        name = f"{self.name}_{fault.name}_{subject}"
        try:
            return self._run(fault, subject, name)
        except NotRun:  # The machine was too busy, perhaps. It is no verdict.
            return self._run(fault, subject, f"{name}_again")

    def _run(self, fault: Fault, subject: str, name: str) -> Cell:
        setup = {
            "cell": name,
            "table": self.name,
            "server": self.server,
            "fault": fault.name,
            "subject": subject,
            "folder": str(self.folder),
        }
        command = [sys.executable, "-m", f"{__package__}.patient", json.dumps(setup)]
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            try:
                status: int | None = process.wait(LIMIT[fault.after])
            except subprocess.TimeoutExpired:
                status = None
            finally:
                kill_group(process)
        # What the server still does for that process would hold the table, and take connections from the next.
        self._query("select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s", name)
        said = log.read_text(encoding="utf-8", errors="replace")
        rows = dict(self._query(f"select number, count(*) from {self.name} where cell = %s group by number", name))
        counts = count(self.folder, name, rows, SUBJECTS[subject].kept(name))
        if status is None:
            counts = replace(counts or Counts(), ended=False)
        elif counts is None:
            raise NotRun(f"{fault.name}, {subject}: {said}")
        elif status:
            counts = replace(counts, crashed=f"exit status {status}")
        return Cell(fault.name, subject, counts, said)

    def _query(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(self.server, autocommit=True) as connection:
            return connection.execute(query.encode(), arguments).fetchall()

    def _execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(statement.encode())


def count(folder: Path, name: str, rows: Mapping[int, int], kept: int = 0) -> Counts | None:
    """Read what a process has left in a folder, and hold it against the rows in the database; None if it has left nothing."""
    try:
        report = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    file = folder / f"{name}.runs"
    runs = Counter(int(line) for line in file.read_text(encoding="ascii").split())
    return compare(replace(Counts.of(report), kept=kept), report["works"], rows, runs)


def compare(counts: Counts, works: list[list[Any]], rows: Mapping[int, int], runs: Mapping[int, int]) -> Counts:
    """Hold what the futures said against what was done."""
    lost = doubled = misreported = done = 0
    for number, effect, outcome, retried in works:
        times = (rows if effect == "row" else runs).get(number, 0)
        doubled += times > 1 and not retried
        if outcome == "promised":  # The process has ended, and no one could ask the future.
            done += times > 0
        if outcome in ("result", "promised"):
            lost += times == 0
        elif outcome == "error":
            misreported += rows.get(number, 0) == 1
        elif outcome == "cancelled":
            misreported += times == 1
    # What a broker keeps for the next process has no end here, and yet is not lost.
    kept = min(counts.kept, lost + counts.unfinished)
    later = min(kept, counts.unfinished)
    return replace(
        counts,
        lost=lost - (kept - later),
        unfinished=counts.unfinished - later,
        kept=kept,
        doubled=doubled,
        misreported=misreported,
        done=done if done else counts.done,
    )


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the process of a cell, and all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
