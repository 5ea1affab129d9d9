"""Measure what a task costs, and print ratios. See README.rst beside this file.

python -m benchmarks                            everything: half an hour
python -m benchmarks --quick                    the same, small: some minutes, and rough
python -m benchmarks bars                       the parts that have bars, and which of these are met
python -m benchmarks compare --only result,map  some workloads
python -m benchmarks bars --json FILE           every single measurement, added to that file
python -m benchmarks --write                    added to results/, and README.rst is generated anew
python -m benchmarks report                     measure nothing, generate README.rst from results/
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from . import bars, report
from .measure import LEGEND, Scale, environment, heading, use_cpu_time


def _measure(names: list[str], scale: Scale, cpu: bool, files: list[Path]) -> None:
    """Measure these parts, print their tables, and add each to the files at once: the next one may fail."""
    made: report.Report = {"environment": environment(), "parts": {}}
    for name in names:
        part = report.PARTS[name]
        heading(report.HEADINGS[name])
        begun = time.monotonic()
        found = part.run(scale)
        seconds = round(time.monotonic() - begun, 1)
        for title, table in part.tables(found).items():
            print(f"{title}:\n\n{table}\n")
        load = environment()["load"]
        print(f"{seconds:g} s, {scale.rounds} rounds, load afterwards {load}", flush=True)
        if found:
            made["parts"][name] = {"rounds": scale.rounds, "tasks": scale.tasks, "seconds": seconds, "load": load, "cpu": cpu}
            made["parts"][name]["found"] = found
            for file in files:
                report.add(file, made)
    table = report.bars_table({report.python_of(made): made})
    if table.rows:
        heading("The bars")
        print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    choices = ", ".join([*report.PARTS, "bars", "report"])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {choices}; by default all")
    parser.add_argument("--quick", action="store_true", help="few rounds, few tasks")
    parser.add_argument("--only", metavar="A,B", help="some of that which a part measures, by name")
    parser.add_argument("--rounds", type=int, help="how often everything is measured (7)")
    parser.add_argument("--tasks", type=int, help="in a burst (100,000)")
    parser.add_argument("--cpu", action="store_true", help="measure CPU time, on a machine that is busy with other things")
    parser.add_argument("--json", metavar="FILE", type=Path, help="add every single measurement to that file")
    parser.add_argument("--write", action="store_true", help="add them to results/, and generate README.rst")
    options = parser.parse_args()
    asked: list[str] = options.parts or (["compare"] if options.only else list(report.PARTS))
    names: list[str] = []
    for name in asked:
        if name not in report.PARTS and name not in ("bars", "report"):
            parser.error(f"no such part: {name!r}")
        names += bars.PARTS if name == "bars" else [name] if name != "report" else []
    if options.cpu:
        use_cpu_time()
    scale = Scale(
        rounds=options.rounds or (3 if options.quick else 7),
        tasks=options.tasks or (6_000 if options.quick else 100_000),
        quick=options.quick,
        only=tuple(options.only.split(",")) if options.only else None,
    )
    if names:
        print(", ".join(f"{what} {value}" for what, value in environment().items()))
        print(f"Ratios. {LEGEND}")
        files = [options.json] if options.json else []
        if options.write:
            report.RESULTS.mkdir(exist_ok=True)
            files.append(report.RESULTS / f"{report.python_now()}.json")
        _measure(list(dict.fromkeys(names)), scale, options.cpu, files)
    if options.write or "report" in asked:
        report.write()


if __name__ == "__main__":
    main()
