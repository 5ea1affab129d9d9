"""Bursting: 20 slow tasks for a base of two workers, a priority task among them, and an orderly end.

    python examples/advanced.py

Every 50 ms the executor asks a policy how many workers there should be. While tasks pile up the policy wants
more, up to eight; when the work is done it goes back to the base of two. A line of statistics every 100 ms
shows burst workers come and go.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
import time
from dataclasses import asdict

from tasker_executor import BacklogPolicy, ExecutorStats, ResourceExecutor, current_task

TASKS = 20
SECONDS_EACH = 0.25
DEADLINE = 60.0  # seconds; this example takes two, and gives up if something hangs

numbers = itertools.count(1)


class Session:
    """A session with a slow service. A real one would log in here and log out in close()."""

    def __init__(self) -> None:
        self.number = next(numbers)

    def close(self) -> None:
        pass


def heavy(session: Session, report: int) -> str:
    """Wait for the service, as nearly all slow tasks do, and then work for a moment."""
    current_task().wait(SECONDS_EACH)  # A sleep that kill() would end.
    return hashlib.pbkdf2_hmac("sha256", b"report", b"%d" % report, 20_000).hex()


def urgent(session: Session, submitted: float) -> float:
    return time.monotonic() - submitted


def show(stats: ExecutorStats, since: float) -> None:
    workers = "#" * stats.base_workers + "+" * stats.burst_workers
    print(
        f"  {time.monotonic() - since:4.1f} s   {workers:8}  {stats.base_workers} base, {stats.burst_workers} burst, "
        f"{stats.idle_workers} idle   {stats.queued_tasks:2} waiting, {stats.running_tasks} running, {stats.completed:2} done"
    )


def main() -> None:
    pool = ResourceExecutor(
        8,
        min_workers=2,
        policy=BacklogPolicy(threshold=3, step=2, interval=0.05),
        on_create=Session,
        on_destroy=Session.close,
        name="reports",
    )
    pool.wait_ready()
    begin = time.monotonic()
    print(f"{TASKS} tasks of {SECONDS_EACH} s for two base workers (#); the policy adds burst workers (+):")
    reports = [pool.submit(heavy, number) for number in range(TASKS)]

    most, rush, took = 0, None, 0.0
    while True:
        stats = pool.stats()
        show(stats, begin)
        most = max(most, stats.burst_workers)
        if rush is None and stats.completed >= 2:
            rush = pool.submit_priority(urgent, time.monotonic())
            print(f"          a priority task comes in, behind {stats.queued_tasks} that wait")
        if not took and all(report.done() for report in reports):
            took = time.monotonic() - begin
        if took and rush is not None and rush.done() and not stats.burst_workers:
            break
        if time.monotonic() - begin > DEADLINE:
            pool.kill()
            sys.exit(f"FAILED: not back at the base after {DEADLINE:g} s: {stats}")
        time.sleep(0.1)

    digests = {report.result() for report in reports}
    print(f"\n{TASKS * SECONDS_EACH:g} s of waiting took {took:.1f} s, with up to {most} burst workers.")
    print(f"The priority task started {rush.result() * 1000:.0f} ms after it was submitted.")

    print("\nShutdown, with one task still running: it is waited for.")
    last = pool.submit(heavy, TASKS)
    pool.shutdown()
    digests.add(last.result())

    stats = pool.stats()
    gauges = {name: value for name, value in asdict(stats).items() if name.endswith(("_workers", "_tasks", "_resources"))}
    print("Gauges at the end:", ", ".join(f"{name} {value}" for name, value in gauges.items()))
    print(f"Counters: {stats.submitted} submitted, {stats.completed} completed, {stats.failed} failed; ", end="")
    print(f"{stats.resources_created} sessions opened, {stats.resources_destroyed} closed; state: {stats.state}")

    if any(gauges.values()):
        sys.exit("FAILED: not all gauges are zero")
    if len(digests) != TASKS + 1 or stats.completed != TASKS + 2:
        sys.exit("FAILED: a task is missing")
    if stats.resources_created <= 2:
        sys.exit("FAILED: there was no burst worker")
    if stats.resources_created != stats.resources_destroyed:
        sys.exit("FAILED: a session was left open")


if __name__ == "__main__":
    main()
