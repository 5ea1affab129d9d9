"""Writes the page: the table, the machine, the versions, a paragraph for each fault.

``python -m benchmarks.torture.report`` writes it again from the counts in results.json.
"""

from __future__ import annotations

import json
import os
import platform
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .faults import FAULTS
from .referee import Cell
from .subjects import SIZE, SUBJECTS, Line
from .verdict import Counts, Verdict, figures

__all__ = ["README", "environment", "heading", "load", "merge", "page", "save"]

README = Path(__file__).with_name("README.rst")
RESULTS = README.with_name("results.json")
WIDTH = 110
BAD = (Verdict.LOSES, Verdict.HANGS)

HEAD = """\
The torture report
==================

What becomes of work on database connections when things go wrong? {faults} faults, {subjects} ways to run such work
in Python. Everybody can claim that nothing is lost; this is a table that you can run again::

    export TASKER_TEST_POSTGRES="host=127.0.0.1 user=postgres dbname=test" TASKER_TEST_REDIS=redis://127.0.0.1:6379/0
    make torture                                   # everything, within 15 minutes: writes this page
    .venv/bin/python -m benchmarks.torture --faults half_open,fork --subjects ours,asyncio --verbose  # some cells
    .venv/bin/python -m benchmarks.torture --subjects ours --update  # puts some cells among the others on this page

It needs Linux, a PostgreSQL server on which it may make a table and roles, and Redis for the one subject that has
a broker. Each cell runs in a process of its own, with {size} threads or coroutines and {size} connections, through a
proxy that makes the trouble of networks. No verdict is given by hand. The process counts what the futures say, the
server is asked what was really done, and a function of ``verdict.py`` turns the counts into a word. The counts are in
``results.json``. The words:

- **survives**: all work is done, nothing is doubled, nothing is left behind, all in time;
- **says so**: some work has an error (``4/8`` is 4 of 8). Nothing is left behind, and the pool works afterwards;
- **loses**: work, connections or threads are lost, or work is doubled, or reported as failed though it was done;
- **hangs**: work, the shutdown or the process does not end in its time;
- **n/a**: the subject has no such feature, and does not claim to.

Seconds are the time from the end of the trouble until every worker had done new work, where there is such a moment.
"""

FAIR = """\
Every subject gets the same connection string, with a ``connect_timeout`` of two seconds, and the same tasks. A task is
a transaction that writes one row, so what was done, and how often, can be counted. Each is set up as its own
documentation says, with the best options that we found there: a check at each checkout, retries, a connection that is
made again when it is found closed. For every "loses" and "hangs" of another, the list of faults below has the line that
we followed. If you know a better way to set one up, it is a few lines in ``subjects/``: please show us.
"""


def environment() -> dict[str, str]:
    """Return the machine and the versions."""
    packages = sorted({package for subject in SUBJECTS.values() for package in subject.packages} | {"psycopg"})
    return {
        "when": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{os.cpu_count()} CPUs, {processor()}, {platform.system()} {platform.release()}, {platform.machine()}",
        "Python": platform.python_version(),
    } | {package: installed(package) for package in packages}


def processor() -> str:
    """Return the name of the processor, as Linux tells it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def installed(package: str) -> str:
    if package == "tasker_executor":
        import tasker_executor

        return tasker_executor.__version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def page(cells: Iterable[Cell], about: dict[str, str]) -> str:
    """Return the page as reStructuredText."""
    table = {(cell.fault, cell.subject): cell for cell in cells}
    faults = [name for name in FAULTS if any(fault == name for fault, _ in table)]
    subjects = [name for name in SUBJECTS if any(subject == name for _, subject in table)]
    parts = [
        HEAD.format(faults=len(faults), subjects=len(subjects), size=SIZE),
        title("The table"),
        ".. table-begin\n",
        "TPE is the ``ThreadPoolExecutor`` of the standard library.\n",
        the_table(table, faults, subjects),
        ".. table-end\n",
        title("The subjects"),
        fill(FAIR),
        *(about_subject(name) for name in subjects),
        title("The machine, and the versions"),
        fill(", ".join(f"{what} {value}" if what != "when" else value for what, value in about.items()) + "."),
        title("The faults"),
        *(about_fault(name, table, subjects) for name in faults),
    ]
    return "\n".join(parts).rstrip() + "\n"


def the_table(table: dict[tuple[str, str], Cell], faults: list[str], subjects: list[str]) -> str:
    """Return the table: one line a fault, one column a subject; the last lines count the verdicts."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: auto", "   :class: torture", ""]

    def row(first: str, others: Iterable[str]) -> None:
        lines.append(f"   * - {first}")
        lines.extend(f"     - {other}" for other in others)

    row("fault", (heading(name) for name in subjects))
    for fault in faults:
        row(FAULTS[fault].title, (short(table.get((fault, subject))) for subject in subjects))
    for verdict in (Verdict.SURVIVES, Verdict.SAYS_SO, Verdict.LOSES, Verdict.HANGS):
        counted = Counter(subject for (_, subject), cell in table.items() if cell.verdict is verdict)
        row(f"*{verdict.value}*", (f"*{counted[subject]}*" for subject in subjects))
    return "\n".join(lines) + "\n"


def heading(subject: str) -> str:
    return SUBJECTS[subject].title.replace("ThreadPoolExecutor", "TPE")


def short(cell: Cell | None) -> str:
    """Return what a cell of the table says: a word and a number."""
    if cell is None:
        return ""
    counts, verdict = cell.counts, cell.verdict
    seconds = f", {counts.recovery:.1f}\N{NO-BREAK SPACE}s" if counts.recovery is not None else ""
    match verdict:
        case Verdict.SURVIVES:
            return f"survives{seconds}"
        case Verdict.SAYS_SO:
            return f"says so {sum(counts.failed.values()) + counts.cancelled}/{counts.submitted}{seconds}"
        case Verdict.LOSES | Verdict.HANGS:
            return f"**{verdict.value}**"
        case _:
            return str(verdict.value)


def about_subject(name: str) -> str:
    """Return how a subject was set up."""
    subject = SUBJECTS[name]
    followed = "" if name == "ours" else f" Followed: {quote(subject.lines['setup'])}."
    file = f"subjects/{subject.__module__.rpartition('.')[2]}.py"
    return fill(f"**{subject.title}** (`{file} <{file}>`__). {subject.__doc__}{followed}")


def about_fault(name: str, table: dict[tuple[str, str], Cell], subjects: list[str]) -> str:
    """Return the paragraph of a fault: what happens, and what became of the work of each subject."""
    fault = FAULTS[name]
    cells = [table[name, subject] for subject in subjects if (name, subject) in table]
    parts = [title(capital(fault.title), "~"), fill(fault.text)]

    def told(cell: Cell) -> str:
        # How soon a pool is back stands in the table, unless there is something worse to tell.
        counts = cell.counts if cell.verdict in BAD else replace(cell.counts, recovery=None)
        why = SUBJECTS[cell.subject].absent.get(name) or figures(counts)
        return f"**{cell.verdict.value}**" + (f": {why}" if why else "")

    def followed(cell: Cell) -> str:
        line = SUBJECTS[cell.subject].lines.get(fault.topic)
        return quote(line) if line and fault.topic != "setup" else "its set-up, under `The subjects`_"

    parts += alike(cells, told)
    bad = [cell for cell in cells if cell.verdict in BAD and cell.subject != "ours"]
    if bad:
        parts += ["", "Followed:\n", *alike(bad, followed)]
    return "\n".join(parts) + "\n"


def alike(cells: Iterable[Cell], tell: Callable[[Cell], str]) -> list[str]:
    """Return one item for all cells of which the same is to be told."""
    groups: dict[str, list[str]] = {}
    for cell in cells:
        groups.setdefault(tell(cell), []).append(SUBJECTS[cell.subject].title)
    return [item(f"{'; '.join(titles)}: {text}") for text, titles in groups.items()]


def quote(line: Line) -> str:
    return f'"{line.text}" (`documentation <{line.url}>`__)'


def title(text: str, under: str = "-") -> str:
    return f"{text}\n{under * len(text)}\n"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def fill(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


def item(text: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


# -- the results in a file, from which the page can be written again --


def save(cells: Iterable[Cell], about: dict[str, str]) -> None:
    """Write the results, and the page."""
    lines = [f'"about": {json.dumps(about)}', *(json.dumps(cell.document()) for cell in cells)]
    RESULTS.write_text("{" + lines[0] + ',\n"cells": [\n' + ",\n".join(lines[1:]) + "\n]}\n", encoding="utf-8")
    README.write_text(page(*load()), encoding="utf-8")


def load() -> tuple[list[Cell], dict[str, str]]:
    """Return the cells of the last run, and its machine and versions."""
    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    return [Cell(one["fault"], one["subject"], Counts.of(one)) for one in document["cells"]], document["about"]


def merge(old: Iterable[Cell], new: Iterable[Cell]) -> list[Cell]:
    """Return the old cells, with the new ones in the places of those that were run again."""
    table = {(cell.fault, cell.subject): cell for cells in (old, new) for cell in cells}
    return [table[fault, subject] for fault in FAULTS for subject in SUBJECTS if (fault, subject) in table]


if __name__ == "__main__":
    save(*load())
