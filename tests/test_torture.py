"""The machinery of the torture report: verdicts come from counts alone, and a cell can be run."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.torture.faults import FAULTS
from benchmarks.torture.referee import Cell, Referee, compare, count
from benchmarks.torture.report import README, load, merge, page
from benchmarks.torture.stage import Stage
from benchmarks.torture.subjects import SUBJECTS, Ours
from benchmarks.torture.verdict import Counts, Verdict, figures, judge

PERFECT = Counts(submitted=8, done=8)


@pytest.mark.parametrize(
    "change, verdict",
    [
        ({}, Verdict.SURVIVES),
        ({"recovery": 7.9}, Verdict.SURVIVES),
        ({"kept": 3}, Verdict.SURVIVES),
        ({"failed": {"OperationalError": 1}}, Verdict.SAYS_SO),
        ({"cancelled": 1}, Verdict.SAYS_SO),
        ({"lost": 1}, Verdict.LOSES),
        ({"doubled": 1}, Verdict.LOSES),
        ({"misreported": 1}, Verdict.LOSES),
        ({"connections": 1}, Verdict.LOSES),
        ({"threads": 1}, Verdict.LOSES),
        ({"transactions": 1}, Verdict.LOSES),
        ({"defied": 1}, Verdict.LOSES),
        ({"crashed": "exit status 1"}, Verdict.LOSES),
        ({"recovered": False}, Verdict.LOSES),
        ({"unfinished": 1}, Verdict.HANGS),
        ({"ended": False}, Verdict.HANGS),
        ({"ended": False, "lost": 1, "failed": {"Error": 1}}, Verdict.HANGS),
        ({"lost": 1, "failed": {"Error": 1}}, Verdict.LOSES),
        ({"absent": True, "ended": False}, Verdict.ABSENT),
    ],
)
def test_the_verdict_is_the_worst_that_the_counts_say(change: dict[str, Any], verdict: Verdict) -> None:
    assert judge(replace(PERFECT, **change)) is verdict


@pytest.mark.parametrize(
    "effect, outcome, times, field",
    [
        ("row", "result", 0, "lost"),
        ("row", "result", 2, "doubled"),
        ("row", "error", 1, "misreported"),
        ("row", "cancelled", 1, "misreported"),
        ("run", "cancelled", 1, "misreported"),
        ("run", "error", 2, "doubled"),
        ("row", "error", 2, "doubled"),
        ("row", "promised", 0, "lost"),
        ("row", "promised", 1, "done"),
        ("row", "unfinished", 2, "doubled"),
    ],
)
def test_what_futures_say_is_held_against_what_was_done(effect: str, outcome: str, times: int, field: str) -> None:
    counts = compare(Counts(), [[0, effect, outcome, False]], {0: times} if effect == "row" else {}, {0: times})

    assert counts == Counts.of({field: 1})


@pytest.mark.parametrize("effect, outcome, times", [("row", "result", 1), ("row", "error", 0), ("run", "error", 1)])
def test_the_truth_counts_nothing(effect: str, outcome: str, times: int) -> None:
    assert compare(Counts(), [[0, effect, outcome, False]], {0: times} if effect == "row" else {}, {0: times}) == Counts()


def test_what_a_broker_keeps_is_not_lost() -> None:
    works = [[number, "row", "promised", False] for number in range(3)]

    counts = compare(Counts(submitted=3, kept=5), works, {0: 1}, {})

    assert (counts.done, counts.kept, counts.lost) == (1, 2, 0)


def test_figures_name_what_the_verdict_rests_on() -> None:
    counts = replace(PERFECT, failed={"A": 1, "B": 2}, connections=1, threads=2, recovery=1.25)

    assert figures(PERFECT) == ""
    assert figures(counts) == "1 connection left, 2 threads left, 3 of 8 failed (A, B), back in 1.2 s"


class Rows:
    """A connection to no server, which keeps the rows that it is told to insert."""

    def __init__(self) -> None:
        self.numbers: Counter[int] = Counter()

    def execute(self, statement: str, parameters: tuple[Any, ...] = ()) -> None:
        if "insert" in statement:
            self.numbers[parameters[1]] += 1


ROWS = Rows()


class Offline(Ours):
    """Ours, without a server."""

    def resource(self, conninfo: str, transaction: bool) -> Any:
        return lambda: contextlib.nullcontext(ROWS)


def test_a_cell_runs_without_a_server(tmp_path: Path) -> None:
    fault = FAULTS["burst"]
    stage = Stage("torture_test", "", "", Offline, tmp_path)
    fault.act(stage)
    stage.collect(fault.within)
    stage.probe()
    stage.end(4.0)
    stage.report()

    counts = count(tmp_path, "torture_test", ROWS.numbers)

    assert counts == Counts(submitted=40, done=40)


@pytest.mark.services
def test_a_cell_runs_against_a_server(postgres: str, tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with Referee(postgres, tmp_path) as referee:
        cell = referee.run(FAULTS["terminated_between"], "ours")

    assert cell.verdict is Verdict.SURVIVES, (cell.counts, cell.log)


def test_faults_and_subjects_explain_themselves() -> None:
    for fault in FAULTS.values():
        assert fault.title
        assert fault.text.endswith(".")
    for subject in SUBJECTS.values():
        assert subject.title
        assert not subject.absent.keys() - FAULTS.keys()
        assert "setup" in subject.lines


# -- the page --


def test_the_page_has_a_word_for_each_cell_and_a_paragraph_for_each_fault() -> None:
    cells = [
        Cell("burst", "ours", replace(PERFECT, recovery=1.04)),
        Cell("burst", "asyncio", replace(PERFECT, failed={"PoolTimeout": 3})),
        Cell("dropped", "ours", replace(PERFECT, threads=1)),
        Cell("dropped", "asyncio", Counts(absent=True)),
    ]

    written = page(cells, {"when": "today", "machine": "fast"})

    assert "   * - a burst of ten times the size\n     - survives, 1.0\N{NO-BREAK SPACE}s\n     - says so 3/8\n" in written
    assert "   * - a dropped pool\n     - **loses**\n     - n/a\n" in written
    assert "- asyncio + psycopg_pool: **says so**: 3 of 8 failed (PoolTimeout)\n" in written
    assert "- asyncio + psycopg_pool: **n/a**: a loop that runs is no object that one drops\n" in written
    assert "today, machine fast." in written


def test_a_line_that_was_followed_stands_beside_what_others_lose() -> None:
    written = page([Cell("fork", "sqlalchemy", replace(PERFECT, unfinished=1))], {})

    assert "- ThreadPoolExecutor + SQLAlchemy: **hangs**: 1 without end\n\nFollowed:\n" in written
    assert "os.fork() now raises a" in written


def test_the_page_in_the_repository_is_what_its_results_say() -> None:
    cells, about = load()

    assert README.read_text(encoding="utf-8") == page(cells, about), "run: python -m benchmarks.torture.report"
    assert [(cell.fault, cell.subject) for cell in cells] == [(fault, subject) for fault in FAULTS for subject in SUBJECTS]
    assert [cell for cell in cells if cell.subject == "ours" and cell.verdict in (Verdict.LOSES, Verdict.HANGS)] == []


def test_the_guide_includes_what_is_between_two_comments() -> None:
    written = README.read_text(encoding="utf-8")

    assert written.count(".. table-begin") == written.count(".. table-end") == 1


def test_cells_that_were_run_again_replace_the_old_ones() -> None:
    old = [Cell("burst", "ours", Counts()), Cell("fork", "ours", Counts())]
    new = [Cell("burst", "ours", PERFECT)]

    assert merge(old, new) == [new[0], old[1]]
