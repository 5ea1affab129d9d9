"""Measure what a task costs, and print tables. See README.rst beside this file.

python -m benchmarks                            everything: ten minutes
python -m benchmarks --quick                    the same, small: about a minute, and rough
python -m benchmarks compare --only result,map  some workloads
python -m benchmarks profile --json profile.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from . import compare, coroutines, parallel, peers, profile_task, scale, stopping
from .measure import environment, heading, use_cpu_time

PARTS = ("compare", "profile", "scale", "parallel", "coroutines", "peers", "stopping")
#: Measured in ways of their own.
EXTRA = ("pool", "run_now")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all of them by default")
    parser.add_argument("--quick", action="store_true", help="few rounds, few tasks")
    parser.add_argument("--only", metavar="A,B", help=f"workloads, of {', '.join([*compare.WORKLOADS, *EXTRA])}")
    parser.add_argument("--rounds", type=int, help="how often everything is measured (7)")
    parser.add_argument("--tasks", type=int, help="in a burst (100,000)")
    parser.add_argument("--cpu", action="store_true", help="measure CPU time, on a machine that is busy with other things")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every single measurement there, too")
    options = parser.parse_args()
    parts: list[str] = options.parts or (["compare"] if options.only else list(PARTS))
    for part in parts:
        if part not in PARTS:
            parser.error(f"no such part: {part!r}")
    names = options.only.split(",") if options.only else [*compare.WORKLOADS, *EXTRA]
    for name in names:
        if name not in compare.WORKLOADS and name not in EXTRA:
            parser.error(f"no such workload: {name!r}")
    if options.cpu:
        use_cpu_time()
    quick: bool = options.quick
    rounds: int = options.rounds or (3 if quick else 7)
    tasks: int = options.tasks or (6_000 if quick else 100_000)

    found: dict[str, Any] = {"environment": environment(), "rounds": rounds, "tasks": tasks, "cpu time": options.cpu}
    print(", ".join(f"{what} {value}" for what, value in found["environment"].items()))
    begun = time.monotonic()
    if "compare" in parts:
        heading(f"A task, compared: {tasks:,} tasks, {rounds} rounds")
        costs = compare.compare(names, rounds, tasks)
        if costs:
            compare.show(costs)
        found["compare"] = {name: cost.as_json() for name, cost in costs.items()}
        if "run_now" in names:
            print()
            calls = compare.run_now(rounds, tasks)
            compare.show_run_now(calls)
            found["compare"]["run_now"] = calls.as_json()
    if "profile" in parts:
        heading("One task's life")
        found["profile"] = profile_task.profile(5 if quick else 20, tasks)
        profile_task.show(found["profile"])
    if "scale" in parts:
        few = min(rounds, 3)
        heading("How many workers")
        workers = scale.by_workers(few, tasks // 5, 32 if quick else 512)
        scale.show_by_workers(workers)
        heading("How many tasks wait")
        waiting = scale.by_waiting(few, 10_000 if quick else 1_000_000)
        scale.show_by_waiting(waiting)
        heading("How much a task does")
        durations = scale.by_duration(rounds, 0.1 if quick else 1.0)
        scale.show_by_duration(durations)
        found["scale"] = {
            "workers": {kind: {n: c.as_json() for n, c in costs.items()} for kind, costs in workers.items()},
            "waiting": waiting,
            "durations": {title: cost.as_json() for title, cost in durations.items()},
        }
    if "parallel" in parts:
        heading("Tasks that compute, on all CPUs")
        computed = parallel.compare(rounds, tasks // 20)
        parallel.show(computed)
        found["parallel"] = {name: cost.as_json() for name, cost in computed.items()}
    if "coroutines" in parts:
        heading("Awaited by coroutines")
        awaited = coroutines.compare(rounds, tasks // 20)
        coroutines.show(awaited)
        found["coroutines"] = {name: cost.as_json() for name, cost in awaited.items()}
    if "peers" in parts:
        heading("Others")
        usable = [name for name in names if name in peers.NAMES]
        others = peers.compare(min(rounds, 5), tasks // 5, usable or None)
        peers.show(others)
        found["peers"] = {name: cost.as_json() for name, cost in others.items()}
    if "stopping" in parts:
        heading("From stop() to a worker that is free again")
        stopped = stopping.free_again(20 if quick else 200)
        stopping.show_free_again(stopped)
        heading("The price of a limit")
        limits = stopping.price(rounds, tasks)
        stopping.show_price(limits)
        found["stopping"] = {
            "free again": {name: one.as_json() for name, one in stopped.items()},
            "limits": limits.as_json(),
        }
    found["seconds"] = round(time.monotonic() - begun, 1)
    found["load afterwards"] = environment()["load"]
    print(f"\n{found['seconds']:.0f} s, load afterwards {found['load afterwards']}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
