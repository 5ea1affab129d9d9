"""A burst of tasks, for real and simulated, in one picture.

    pip install tasker-executor[plot]
    python examples/burst_timeline.py                       # writes burst_timeline.svg
    python examples/burst_timeline.py --policy rate out.svg

An executor with two base workers and at most sixteen gets a load that comes in a burst. An observer records
that load; then the same policy is simulated on it. The picture shows both side by side: the backlog, the
workers and the waits.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tasker_executor import BacklogPolicy, Hysteresis, QueueWaitPolicy, RatePolicy, ResourceExecutor, ScalingPolicy
from tasker_executor.plot import Run, Waits, draw, record
from tasker_executor.recording import LoadRecorder, read_recording
from tasker_executor.simulation import Simulation, simulate

MIN_WORKERS, MAX_WORKERS = 2, 16
SECONDS = 4.0

POLICIES: dict[str, Callable[[], ScalingPolicy]] = {
    "backlog": lambda: Hysteresis(BacklogPolicy(threshold=5, step=2, interval=0.1), shrink_after=5),
    "rate": lambda: Hysteresis(RatePolicy(utilization=0.8, window=5.0), shrink_after=5),
    "wait": lambda: Hysteresis(QueueWaitPolicy(target_wait=0.05), shrink_after=5),
}


def arrivals() -> list[float]:
    """Return when the tasks arrive: 20 a second, and 150 a second from 0.8 s to 1.8 s."""
    chance = random.Random(3)
    moments: list[float] = []
    moment = 0.0
    while moment < SECONDS - 1.0:
        moments.append(moment)
        moment += chance.expovariate(150.0 if 0.8 <= moment < 1.8 else 20.0)
    return moments


def query() -> None:
    time.sleep(0.05)  # a server that takes its time


def run_for_real(policy: ScalingPolicy, load: Path) -> tuple[Run, int]:
    waits = Waits()
    with (
        LoadRecorder(load) as recorder,
        ResourceExecutor(
            MAX_WORKERS, min_workers=MIN_WORKERS, policy=policy, idle_timeout=None, observers=[recorder, waits]
        ) as pool,
        record(pool) as timeline,
    ):
        begun = time.perf_counter()
        for moment in arrivals():
            time.sleep(max(0.0, begun + moment - time.perf_counter()))
            pool.submit(query)
        time.sleep(max(0.0, begun + SECONDS - time.perf_counter()))
    return Run.recorded("real", timeline, base=MIN_WORKERS, waits=waits), len(waits.heard)


def simulate_it(policy: ScalingPolicy, load: Path, end: float) -> tuple[Run, Simulation]:
    moments = read_recording(load).arrivals
    result = simulate(policy, load, min_workers=MIN_WORKERS, max_workers=MAX_WORKERS, until=end)
    return Run.simulated("simulated", result, base=MIN_WORKERS, arrivals=moments), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=Path("burst_timeline.svg"))
    parser.add_argument("--policy", choices=POLICIES, default="backlog")
    options = parser.parse_args()
    make_policy = POLICIES[options.policy]

    with tempfile.TemporaryDirectory() as folder:
        load = Path(folder) / "load.csv"
        real, tasks = run_for_real(make_policy(), load)
        simulated, result = simulate_it(make_policy(), load, real.points[-1].time)

    draw([real, simulated], options.file, title=repr(make_policy()))
    for run in (real, simulated):
        waits = sorted(wait for _, wait in run.waits)
        print(
            f"{run.title:10} {tasks} tasks, {run.worker_seconds:5.1f} worker-seconds, at most "
            f"{max(point.workers for point in run.points)} workers, mean wait {sum(waits) / len(waits):.3f} s, "
            f"the longest {waits[-1]:.3f} s"
        )
    print(f"simulated worker-seconds / real: {result.worker_seconds / real.worker_seconds:.2f}")
    print(f"drawn: {options.file.name}")


if __name__ == "__main__":
    main()
