"""Run the torture report: ``python -m benchmarks.torture``. Needs PostgreSQL, in TASKER_TEST_POSTGRES."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import report
from .faults import FAULTS
from .referee import Cell, NotRun, Referee
from .subjects import SUBJECTS
from .verdict import figures


def names(known: dict[str, object], given: str | None, parser: argparse.ArgumentParser) -> list[str]:
    chosen = given.split(",") if given else list(known)
    for name in chosen:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.torture", description=__doc__)
    parser.add_argument("--faults", metavar="A,B", help="some of the faults")
    parser.add_argument("--subjects", metavar="A,B", help="some of the subjects")
    parser.add_argument("--jobs", type=int, default=4, help="cells at a time (4)")
    parser.add_argument("--update", action="store_true", help="put these cells among the results that are there")
    parser.add_argument("--verbose", action="store_true", help="print what the processes print")
    options = parser.parse_args()
    faults = names(dict(FAULTS), options.faults, parser)
    subjects = names(dict(SUBJECTS), options.subjects, parser)
    server = os.environ.get("TASKER_TEST_POSTGRES") or parser.error("name a PostgreSQL server in TASKER_TEST_POSTGRES")

    def run(fault: str, subject: str) -> Cell | None:
        try:
            cell = referee.run(FAULTS[fault], subject)
        except NotRun as error:
            print(f"not run: {error}", flush=True)
            return None
        print(f"{cell.fault:26} {cell.subject:14} {cell.verdict.value:9} {figures(cell.counts)}", flush=True)
        if options.verbose:
            print(cell.log, cell.document())
        return cell

    begun = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        Referee(server, Path(folder)) as referee,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        try:
            futures = [pool.submit(run, fault, subject) for fault in faults for subject in subjects]
            cells = [cell for future in futures if (cell := future.result()) is not None]
        except BaseException:  # Ctrl-C: the cells that run end by themselves.
            pool.shutdown(cancel_futures=True)
            raise
    about = report.environment() | {"PostgreSQL": referee.server_version}
    print(f"{len(cells)} cells in {time.monotonic() - begun:.0f} s")
    if len(cells) < len(futures):
        raise SystemExit("some cells could not be run, so the page was not written")
    if options.update:
        report.save(report.merge(report.load()[0], cells), about)
    elif not options.faults and not options.subjects:
        report.save(cells, about)


if __name__ == "__main__":
    main()
