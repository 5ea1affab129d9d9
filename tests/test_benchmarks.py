"""The benchmarks' report is generated, and says what was measured."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import bars, report
from benchmarks.measure import MARK, Costs, Scale, Spread


def _report(python: str, *, gil: bool = True, **found: Any) -> report.Report:
    parts = {name: {"rounds": 3, "tasks": 10, "found": one} for name, one in found.items()}
    return {"environment": {"python": python, "gil": gil, "system": "Linux"}, "parts": parts}


def _memory(ours: float) -> dict[str, Any]:
    costs = Costs("B", {"ThreadPoolExecutor": [1000.0], "ResourceExecutor": [ours], "propagate_context=False": [100.0]})
    return {"bytes": {"one argument": costs.as_json()}, "made of": {}}


def test_the_readme_is_what_the_generator_makes_of_the_template_and_the_results() -> None:
    generated = report.render(report.TEMPLATE.read_text(encoding="utf-8"), report.load())

    assert report.README.read_text(encoding="utf-8") == generated, "run: python -m benchmarks report"


def test_every_placeholder_of_the_template_is_filled() -> None:
    generated = report.render(report.TEMPLATE.read_text(encoding="utf-8"), report.load())

    assert "{{" not in generated


def test_a_ratio_is_taken_inside_of_each_round() -> None:
    costs = Costs("s", {"theirs": [2.0, 20.0, 200.0], "ours": [1.0, 10.0, 100.0]})

    assert costs.gains("ours") == Spread(2, 2, 2, 2, 2)
    assert costs.shares("ours") == Spread(0.5, 0.5, 0.5, 0.5, 0.5)


def test_quartiles_that_are_far_apart_are_marked() -> None:
    quiet, noisy = Spread.of([9.8, 10.0, 10.2]), Spread.of([7.0, 10.0, 13.0])

    assert MARK not in str(quiet)
    assert str(noisy).endswith(MARK)


@pytest.mark.parametrize("ours, verdict", [(150.0, "met"), (170.0, "NOT MET")])
def test_a_bar_says_whether_it_is_met(ours: float, verdict: str) -> None:
    table = report.bars_table({"3.11": _report("3.11.7", memory=_memory(ours))})

    assert [row[2].split(": ")[-1] for row in table.rows] == [verdict]


def test_a_bar_without_the_gil_is_its_own() -> None:
    [bar] = [bar for bar in bars.BARS if bar.title == "map"]

    assert bar.met(Spread.of([4.0]), gil=False)
    assert not bar.met(Spread.of([4.0]), gil=True)


def test_no_round_may_be_below_the_worst() -> None:
    [bar] = [bar for bar in bars.BARS if bar.title == "burst, then wait()"]

    assert not bar.met(Spread.of([1.9, 6.0, 6.0, 6.0]), gil=True)
    assert bar.met(Spread.of([2.1, 6.0, 6.0, 6.0]), gil=True)


def test_a_new_run_replaces_what_it_has_measured_and_keeps_the_rest() -> None:
    old = _report("3.11.7", memory={"a": 1, "b": 1}, views={"c": 1})

    merged = report.merge(old, _report("3.11.9", memory={"b": 2}))

    assert report.found_of(merged) == {"memory": {"a": 1, "b": 2}, "views": {"c": 1}}


def test_pythons_stand_in_order(tmp_path: Any) -> None:
    for python, gil in (("3.13.1", False), ("3.13.1", True), ("3.9.1", True), ("3.11.1", True)):
        one = _report(python, gil=gil)
        report.add(tmp_path / f"{report.python_of(one)}.json", one)

    assert list(report.load(tmp_path)) == ["3.9", "3.11", "3.13", "3.13t"]


@pytest.mark.parametrize("name", ["compare", "memory", "parallel", "profile", "coroutines"])
def test_a_part_measures_and_makes_its_tables(name: str) -> None:
    """They reach into the engine, and nothing else would tell when they do not fit it any more."""
    part = report.PARTS[name]

    found = json.loads(json.dumps(part.run(Scale(rounds=1, tasks=2_000, quick=True))))

    assert all(table.rows for table in part.tables(found).values())
