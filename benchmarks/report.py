"""README.rst is generated: the text of README.rst.in, and the tables of what was measured, in ``results/``.

``results/`` has a file for each Python, which ``python -m benchmarks --write`` writes: all that it has measured, round by
round. In the template

- ``{{ 3.11 compare.workloads }}`` is a table of what Python 3.11 has measured, and ``{{ bars }}`` the table of all;
- ``{{ 3.11 python }}`` is a fact, see `facts`;
- what is between ``{{ if 3.13t compare }}`` and ``{{ end }}`` is left out until that Python has measured that part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import (
    bars,
    compare,
    coroutines,
    lifetimes,
    memory,
    parallel,
    peers,
    profile_task,
    scale,
    servers,
    stopping,
    urgent,
    views,
)
from .measure import LEGEND, Table, environment

HERE = Path(__file__).parent
RESULTS, TEMPLATE, README = HERE / "results", HERE / "README.rst.in", HERE / "README.rst"

#: In the order in which they are measured.
PARTS: dict[str, Any] = {
    "compare": compare,
    "servers": servers,
    "views": views,
    "lifetimes": lifetimes,
    "memory": memory,
    "urgent": urgent,
    "parallel": parallel,
    "profile": profile_task,
    "scale": scale,
    "coroutines": coroutines,
    "peers": peers,
    "stopping": stopping,
}
HEADINGS = {
    "compare": "A task, compared with ThreadPoolExecutor",
    "servers": "Short calls of a real server",
    "views": "Options",
    "lifetimes": "To begin and to end",
    "memory": "Memory",
    "urgent": "An urgent task under load",
    "parallel": "Tasks that compute, on all CPUs",
    "profile": "One task's life, in percent of that of ThreadPoolExecutor",
    "scale": "Many workers, many tasks, tasks that do something",
    "coroutines": "Awaited by coroutines",
    "peers": "Others",
    "stopping": "From stop() to a worker that is free again",
}

#: All that one Python has measured.
Report = dict[str, Any]


def python_of(report: Report) -> str:
    """Return "3.13", or "3.13t" without the GIL."""
    environment = report["environment"]
    return ".".join(environment["python"].split(".")[:2]) + ("" if environment["gil"] else "t")


def python_now() -> str:
    return python_of({"environment": environment()})


def found_of(report: Report) -> dict[str, Any]:
    return {name: part["found"] for name, part in report["parts"].items()}


def merge(old: Report | None, new: Report) -> Report:
    """Keep what was measured before, and is not measured now. A part of named things is replaced thing by thing."""
    if old is None or python_of(old) != python_of(new):
        return new
    parts = dict(old["parts"])
    for name, part in new["parts"].items():
        before = parts[name]["found"] if name in parts else {}
        parts[name] = {**part, "found": {**before, **part["found"]}}
    return {**new, "parts": {name: parts[name] for name in PARTS if name in parts}}


def add(file: Path, new: Report) -> None:
    """Add what was measured to that file."""
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    file.write_text(json.dumps(merge(old, new), separators=(",", ":")) + "\n", encoding="utf-8")


def load(folder: Path = RESULTS) -> dict[str, Report]:
    """Read all reports, the oldest Python first, those without the GIL last."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    by_python = {python_of(report): report for report in reports}

    def order(python: str) -> tuple[bool, list[int]]:
        return python.endswith("t"), [int(number) for number in python.rstrip("t").split(".")]

    return {python: by_python[python] for python in sorted(by_python, key=order)}


def bars_table(reports: Mapping[str, Report]) -> Table:
    return bars.table({python: (found_of(report), report["environment"]["gil"]) for python, report in reports.items()})


def facts(report: Report) -> dict[str, str]:
    environment = report["environment"]
    made = {"python": environment["python"], "system": environment["system"]}
    for name, part in report["parts"].items():
        made[f"{name}.rounds"] = f"{part['rounds']:,}"
        made[f"{name}.tasks"] = f"{part['tasks']:,}"
    return made


def _loads(reports: Mapping[str, Report]) -> str:
    """Return how busy the machine was during the busiest part: the load of the last minute."""
    found = {python: [part["load"][0] for part in one["parts"].values() if part.get("load")] for python, one in reports.items()}
    return ", ".join(f"{max(loads):g} with Python {python}" for python, loads in found.items() if loads) or "not noted"


def _fill(reports: Mapping[str, Report], python: str, what: str) -> str:
    if python not in reports:
        return "*(not measured)*"
    report = reports[python]
    known = facts(report)
    if what in known:
        return known[what]
    part, _, name = what.partition(".")
    if part not in PARTS:
        raise ValueError(f"the template asks for {what!r}, and there is no such part")
    if part not in report["parts"]:
        return "*(not measured)*"
    return str(PARTS[part].tables(report["parts"][part]["found"]).get(name, "*(not measured)*"))


def render(template: str, reports: Mapping[str, Report]) -> str:
    """Return the template with its tables."""

    def keep(match: re.Match[str]) -> str:
        python, part, text = match.groups()
        return text if python in reports and part in reports[python]["parts"] else ""

    text = re.sub(r"\{\{ if (\S+) (\S+) \}\}\n\n(.*?)\{\{ end \}\}\n\n", keep, template, flags=re.DOTALL)
    text = (
        text.replace("{{ loads }}", _loads(reports))
        .replace("{{ bars }}", str(bars_table(reports)))
        .replace("{{ legend }}", LEGEND)
    )
    return re.sub(r"\{\{ (\S+) (.+?) \}\}", lambda match: _fill(reports, match[1], match[2]), text)


def write() -> None:
    README.write_text(render(TEMPLATE.read_text(encoding="utf-8"), load()), encoding="utf-8")
