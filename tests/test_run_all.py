"""The end of `make test`: the last hundred lines of a run must say which tests failed, and why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import run_all
from run_all import MOST_DETAILS, MOST_LINES, MOST_NAMES, Interpreter, Report, summary

FAILING = """
import pytest

@pytest.fixture
def leaky():
    yield
    raise LookupError("a thread is left")

def test_that_passes():
    pass

@pytest.mark.parametrize("number", [1])
def test_that_fails_under_a_name_so_long_that_pytest_has_no_room_for_a_line_on_both_sides(number):
    print("what the test printed")
    assert number == 2

def test_whose_fixture_fails(leaky):
    pass
"""


def run_pytest(folder: Path, source: str, *options: str) -> Report:
    """Run such a suite in a process of its own, as `run_all` runs ours."""
    (folder / "test_it.py").write_text(source)
    report = Report("Python 3.99")
    report.suite(sys.executable, "-c", "/dev/null", "-p", "no:cacheprovider", *options, str(folder))
    return report


def run_program(source: str, *, counts: bool = False, tolerated: int = 0) -> Report:
    report = Report("Python 3.99")
    report.run(sys.executable, "-c", source, counts=counts, tolerated=tolerated)
    return report


# -- what failed --


def test_the_summary_names_each_failure_of_the_suite_last_and_its_traceback_before(tmp_path: Path) -> None:
    report = run_pytest(tmp_path, FAILING)

    assert (report.passed, report.failed) == (2, 2)
    fails, errs = report.failures
    assert fails.startswith("FAILED ")
    assert "test_that_fails_under" in fails
    assert errs.startswith("ERROR ")
    assert "test_whose_fixture_fails" in errs
    teardown, failure = report.details  # pytest shows errors first
    assert "LookupError: a thread is left" in teardown
    assert "assert 1 == 2" in failure
    assert "what the test printed" in failure
    lines = summary([report], ["something"])
    assert lines[-4:-2] == [f"Python 3.99: {fails}", f"Python 3.99: {errs}"]
    assert lines[-1] == "2 passed, 2 failed"
    assert lines.index(failure) < lines.index("skipped: something") < lines.index(f"Python 3.99: {fails}")


def test_a_suite_that_passes_has_no_failures(tmp_path: Path) -> None:
    report = run_pytest(tmp_path, FAILING, "-k", "test_that_passes")

    assert (report.passed, report.failed, report.failures, report.details) == (1, 0, [], [])
    assert report.results[0].startswith("suite: 1 passed")
    assert summary([report], [])[-1] == "1 passed, 0 failed"


def test_a_failure_of_the_conformance_suite_has_its_name_in_the_summary() -> None:
    report = run_program(
        "print('FAIL test.test_x.T.test_y (1.0 s)'); print('Traceback ...'); print('conformance: 3 passed, 1 failed'); exit(1)",
        counts=True,
    )

    assert (report.passed, report.failed) == (3, 1)
    assert report.failures == ["FAIL test.test_x.T.test_y (1.0 s)"]
    assert "Traceback ..." in report.details[0]


def test_too_little_coverage_is_a_failure_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "FAIL Required test coverage of 98% not reached. Total coverage: 12.00%"
    report = Report("Python 3.99")

    def suite(*_: object) -> None:
        report.run(sys.executable, "-c", f"print('{said}'); print('5 passed in 1 s'); exit(1)", counts=True)

    monkeypatch.setattr(report, "suite", suite)
    run_all.measure_coverage(report)

    assert (report.passed, report.failed) == (5, 1)
    assert report.failures == [said]
    assert report.results == ["Total coverage: 12.00%"]


def test_what_is_no_pytest_shows_the_end_of_its_output() -> None:
    """Such as a suite that hung: `faulthandler` ends it, after the stacks of all threads."""
    report = run_program("for n in range(1000): print('line', n)\nexit(7)")

    assert report.failed == 1
    (failure,) = report.failures
    assert failure.endswith("exit status 7")
    assert report.details[0].splitlines() == [f"line {n}" for n in range(1000 - MOST_LINES, 1000)]


def test_a_status_that_is_tolerated_is_no_failure() -> None:
    report = run_program("exit(3)", tolerated=3)

    assert (report.failed, report.failures, report.details) == (0, [], [])


def test_a_log_record_in_a_report_is_no_failure_of_its_own(tmp_path: Path) -> None:
    report = run_pytest(tmp_path, "import logging\ndef test_it():\n    logging.error('no name of a test')\n    assert 0\n")

    assert len(report.failures) == 1
    assert "no name of a test" in report.details[0]


# -- the summary is short --


def test_a_long_report_loses_its_middle(tmp_path: Path) -> None:
    report = run_pytest(tmp_path, "def test_it():\n" + "    pass\n" * 500 + "    raise ValueError('x' * 10_000)\n")

    (details,) = report.details
    lines = details.splitlines()
    assert len(lines) <= MOST_LINES
    assert "test_it" in lines[0]
    assert any("lines, see above" in line for line in lines)
    assert any("ValueError: xxx" in line for line in lines)
    assert max(map(len, [*lines, *report.failures])) < 400


def test_many_failures_are_counted_not_shown() -> None:
    report = Report("Python 3.99", failed=1000)
    report.failures = [f"FAILED test_{n}" for n in range(1000)]
    report.details = [f"traceback of {n}" for n in range(1000)]

    lines = summary([report], [])

    assert len([line for line in lines if line.startswith("traceback of")]) == MOST_DETAILS
    assert len([line for line in lines if "FAILED" in line]) == MOST_NAMES
    assert f"Python 3.99: and {1000 - MOST_NAMES} more" in lines
    assert lines[-1] == "0 passed, 1000 failed"


# -- which Python runs what --


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Five Pythons, of which 3.12 is that of .venv. Returns what was run on which: coverage, whole, core."""
    found = [Interpreter(3, minor, "-", Path(f"/python3.{minor}")) for minor in range(11, 16)]
    here = found[1]
    seen: list[tuple[str, str]] = []

    def probe(_: object) -> Interpreter:
        return here

    def other_interpreters(_: object) -> tuple[list[Interpreter], list[str]]:
        return [python for python in found if python != here], ["/python3.10: 3.10 is too old"]

    def measure_coverage(report: Report) -> None:
        seen.append((str(here), "coverage"))

    def run_suite(interpreter: Interpreter, report: Report, *options: str) -> None:
        seen.append((str(interpreter), "core" if options else "whole"))

    monkeypatch.setattr(run_all, "probe", probe)
    monkeypatch.setattr(run_all, "other_interpreters", other_interpreters)
    monkeypatch.setattr(run_all, "measure_coverage", measure_coverage)
    monkeypatch.setattr(run_all, "run_suite", run_suite)
    monkeypatch.setattr(run_all, "CONFORMANCE", Path("/nowhere"))
    monkeypatch.setenv("TASKER_TEST_JOBS", "1")  # One after the other: the order is the order of the start.
    monkeypatch.delenv("TASKER_TEST_PYTHONS", raising=False)
    monkeypatch.delenv("TASKER_TEST_LONG", raising=False)
    return seen


def test_the_long_tests_run_here_and_on_the_oldest_and_the_newest_and_the_longest_run_begins_first(
    runs: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not run_all.main()

    assert runs == [("3.12", "coverage"), ("3.11", "whole"), ("3.15", "whole"), ("3.13", "core"), ("3.14", "core")]
    printed = capsys.readouterr().out.splitlines()
    assert "skipped: the long tests on Python 3.13: TASKER_TEST_LONG=all runs them" in printed
    assert "skipped: /python3.10: 3.10 is too old" in printed
    assert printed[-1] == "0 passed, 0 failed"


def test_all_tests_can_be_run_on_all_pythons(runs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKER_TEST_LONG", "all")
    assert not run_all.main()

    assert [kind for _, kind in runs] == ["coverage"] + ["whole"] * 4


@pytest.mark.parametrize("selection, pythons", [("ends", ["3.12", "3.11", "3.15"]), ("none", ["3.12"])])
def test_fewer_pythons_can_be_asked_for(
    runs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, selection: str, pythons: list[str]
) -> None:
    monkeypatch.setenv("TASKER_TEST_PYTHONS", selection)
    assert not run_all.main()

    assert [python for python, _ in runs] == pythons


def test_a_failure_on_any_python_is_one_of_the_run(runs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def run_suite(interpreter: Interpreter, report: Report, *options: str) -> None:
        report.failed += interpreter.minor == 13

    monkeypatch.setattr(run_all, "run_suite", run_suite)

    assert run_all.main()
