"""The end of `make test`: which Python runs what; and the last hundred lines must say which tests failed, and why."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import run_all
from run_all import MOST_DETAILS, MOST_LINES, MOST_NAMES, Interpreter, Report, summary
from support import DEADLINE

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


def test_what_the_interpreter_says_as_it_exits_hides_no_counts() -> None:
    report = run_program(
        "print('5 passed, 1 skipped in 2 s'); print('Exception ignored in __del__'); print('TypeError: ...')", counts=True
    )
    report.results.append(report.last_line("suite", 0))

    assert (report.passed, report.failed) == (5, 0)
    assert report.results == ["suite: 5 passed, 1 skipped in 2 s"]


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
    """Five Pythons, of which 3.12 is that of .venv. Returns what was run on which: coverage, whole, core, inheriting."""
    found = {f"/python3.{minor}": Interpreter(3, minor, "-", Path(f"/python3.{minor}")) for minor in range(11, 16)}
    here = found["/python3.12"]
    seen: list[tuple[str, str]] = []

    def probe(path: Path | str) -> Interpreter | str:
        if str(path) == sys.executable:
            return here
        if str(path).endswith("t"):
            return Interpreter(3, 13, "t", Path(path))
        return found.get(str(path), "3.10 is too old")

    def measure_coverage(report: Report) -> None:
        seen.append((str(here), "coverage"))

    def run_suite(interpreter: Interpreter, report: Report, *options: str) -> Path:
        seen.append((str(interpreter), "core" if options else "whole"))
        return interpreter.path

    def suite(report: Report, python: Path, *options: str, name: str, environment: dict[str, str] | None = None) -> None:
        if environment is None:
            assert set(run_all.LONG) <= set(options)
            seen.append((report.title.removeprefix("Python "), "long"))
            return
        assert environment == run_all.INHERITING
        assert set(run_all.CORE + run_all.INHERITING_TESTS) <= set(options)
        seen.append((report.title.removeprefix("Python "), "inheriting"))

    monkeypatch.setattr(run_all, "probe", probe)
    monkeypatch.setattr(run_all, "candidates", lambda: [Path("/python3.10"), *map(Path, found)])
    monkeypatch.setattr(run_all, "measure_coverage", measure_coverage)
    monkeypatch.setattr(run_all, "run_suite", run_suite)
    monkeypatch.setattr(Report, "suite", suite)
    monkeypatch.setattr(run_all, "CONFORMANCE", Path("/nowhere"))
    monkeypatch.setenv("TASKER_TEST_JOBS", "1")  # One after the other: the order is the order of the start.
    monkeypatch.delenv("TASKER_TEST_PYTHONS", raising=False)
    monkeypatch.delenv("TASKER_TEST_LONG", raising=False)
    monkeypatch.delenv("TASKER_TEST_MINUTES", raising=False)
    monkeypatch.delenv("TASKER_PYTHONS_COMING", raising=False)
    return seen


def test_the_long_tests_run_here_and_on_the_oldest_and_the_newest_and_the_longest_run_begins_first(
    runs: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not run_all.main()

    ends = [("3.12", "coverage"), ("3.11", "whole"), ("3.15", "whole"), ("3.15", "inheriting")]
    assert runs == [*ends, ("3.12", "long"), ("3.13", "core"), ("3.14", "core")]
    printed = capsys.readouterr().out.splitlines()
    assert "skipped: the long tests on Python 3.13: TASKER_TEST_LONG=all runs them" in printed
    assert "skipped: /python3.10: 3.10 is too old" in printed
    assert printed[-1] == "0 passed, 0 failed"


def test_all_tests_can_be_run_on_all_pythons(runs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKER_TEST_LONG", "all")
    assert not run_all.main()

    assert [kind for _, kind in runs if kind not in ("inheriting", "long")] == ["coverage"] + ["whole"] * 4


@pytest.mark.parametrize("selection, pythons", [("ends", ["3.12", "3.11", "3.15"]), ("none", ["3.12"])])
def test_fewer_pythons_can_be_asked_for(
    runs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, selection: str, pythons: list[str]
) -> None:
    monkeypatch.setenv("TASKER_TEST_PYTHONS", selection)
    assert not run_all.main()

    assert [python for python, kind in runs if kind not in ("inheriting", "long")] == pythons


def test_no_python_begins_when_the_time_is_over(
    runs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([run_all.BEGUN + 59.0] * 3 + [run_all.BEGUN + 60.0] * 9)
    monkeypatch.setattr(run_all, "monotonic", lambda: next(clock))
    monkeypatch.setenv("TASKER_TEST_MINUTES", "1")

    assert not run_all.main()

    assert {python for python, _ in runs} == {"3.12", "3.11", "3.15"}
    printed = capsys.readouterr().out.splitlines()
    assert "Python 3.13 (/python3.13): not run: 1 minutes have passed" in printed
    assert "Python 3.12 (/python3.12): not run: 1 minutes have passed" in printed


def test_a_failure_on_any_python_is_one_of_the_run(runs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def run_suite(interpreter: Interpreter, report: Report, *_: str) -> None:
        report.failed += interpreter.minor == 13

    monkeypatch.setattr(run_all, "run_suite", run_suite)

    assert run_all.main()


def test_threads_inherit_contexts_where_the_newest_python_can_do_that(
    runs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_all, "candidates", lambda: [Path("/python3.13"), Path("/python3.13t")])
    assert not run_all.main()

    assert runs == [("3.12", "coverage"), ("3.13t", "whole"), ("3.12", "long"), ("3.13", "core")]


def test_the_tests_with_inherited_contexts_exist() -> None:
    assert [name for name in run_all.INHERITING_TESTS if not (run_all.PROJECT / name).exists()] == []


# -- a Python that is still being built --


class Build:
    """Writes to the pipe that TASKER_PYTHONS_COMING names, and ends when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reader, self.writer = os.pipe()
        monkeypatch.setenv("TASKER_PYTHONS_COMING", f"/dev/fd/{reader}")

    def end(self, *lines: str) -> None:
        os.write(self.writer, "".join(f"{line}\n" for line in lines).encode())
        os.close(self.writer)


def test_a_python_that_comes_late_is_tested_last(
    runs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # 1. All others are tested. 2. The build ends. 3. So it does not matter that the run waits.
    build = Build(monkeypatch)
    tested = threading.Event()
    run_suite: Any = run_all.run_suite

    def run_and_tell(interpreter: Interpreter, report: Report, *options: str) -> Path | None:
        python: Path | None = run_suite(interpreter, report, *options)
        if str(interpreter) == "3.14":
            tested.set()
        return python

    def end() -> None:
        tested.wait(DEADLINE)
        build.end("/late/python3.13t")

    monkeypatch.setattr(run_all, "run_suite", run_and_tell)
    builder = threading.Thread(target=end)
    builder.start()
    assert not run_all.main()
    builder.join(DEADLINE)

    assert runs[-2:] == [("3.14", "core"), ("3.13t", "core")]
    printed = capsys.readouterr().out.splitlines()
    assert "skipped: the long tests on Python 3.13t: TASKER_TEST_LONG=all runs them" in printed
    assert not any("not on this machine" in line for line in printed)


def test_all_tests_can_be_run_on_a_python_that_comes_late(runs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKER_TEST_LONG", "all")
    Build(monkeypatch).end("/late/python3.13t")
    assert not run_all.main()

    assert ("3.13t", "whole") in runs


@pytest.mark.parametrize("lines", [[], ["/late/python3.9"]], ids=["nothing", "no Python for us"])
def test_a_build_that_failed_is_a_line_in_the_summary_and_no_failure(
    runs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: list[str]
) -> None:
    Build(monkeypatch).end(*lines)
    assert not run_all.main()

    printed = capsys.readouterr().out.splitlines()
    assert "skipped: a Python without the GIL: not on this machine" in printed
    assert [line for line in printed if line.startswith("skipped: /late")] == [
        f"skipped: {line}: 3.10 is too old" for line in lines
    ]


def test_a_python_that_comes_and_is_there_already_is_tested_once(
    runs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Build(monkeypatch).end("/python3.13")
    assert not run_all.main()

    assert len(runs) == 7


def test_who_asks_for_fewer_pythons_does_not_wait(runs: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    build = Build(monkeypatch)
    monkeypatch.setenv("TASKER_TEST_PYTHONS", "none")
    assert not run_all.main()
    build.end()

    assert runs == [("3.12", "coverage"), ("3.12", "long")]


# -- a Python without the GIL --


def test_a_python_without_the_gil_gives_it_to_no_extension_module() -> None:
    assert Interpreter(3, 13, "t", Path("/python3.13t")).environment == {"PYTHON_GIL": "0"}
    assert Interpreter(3, 13, "-", Path("/python3.13")).environment == {}  # it would refuse to start


def test_what_a_report_runs_has_the_environment_of_its_python_and_its_own() -> None:
    report = Report("Python 3.99", environment={"TASKER_ONE": "1"})
    program = "import os; print(os.environ['TASKER_ONE'] + os.environ['TASKER_TWO'])"
    report.run(sys.executable, "-c", program, environment={"TASKER_TWO": "2"})

    line, printed = report.output
    assert line.startswith("$ TASKER_ONE=1 TASKER_TWO=2 ")
    assert printed == "12"


@pytest.mark.skipif(getattr(sys.flags, "gil", 1) == 1, reason="needs a Python that began without the GIL")
def test_a_suite_fails_that_ends_with_the_gil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(run_all.PROJECT)]))
    back = "import sys\ndef test_it():\n    sys._is_gil_enabled = lambda: True\n"
    report = run_pytest(tmp_path, back)

    assert (report.passed, report.failed) == (1, 1)
    (failure,) = report.failures
    assert failure.startswith("ERROR: an extension module has turned the GIL on")


# -- the program that CI calls --

CI = run_all.PROJECT / ".ci" / "run"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine on which `make` shows what it gets. Its setup.sh is for the test to write."""
    project = tmp_path / "project"
    script(project / ".ci" / "run", CI.read_text())
    script(
        tmp_path / "bin" / "make",
        """#!/bin/sh
        [ "$1" = test ] || exit 0
        echo "named: $TASKER_PYTHONS"
        echo >"$MACHINE/tests begin"
        [ -z "$TASKER_PYTHONS_COMING" ] || sed "s,^,came: ," "$TASKER_PYTHONS_COMING"
        """,
    )
    return tmp_path


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run_ci(machine: Path) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TASKER_")}
    variables |= {
        "MACHINE": str(machine),
        "PATH": f"{machine / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "TASKER_PYTHONS": "/mine",
    }
    command = [machine / "project" / ".ci" / "run"]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=True, timeout=DEADLINE)


def test_ci_sets_pythons_up_and_tests_them_while_one_is_built(machine: Path) -> None:
    os.mkfifo(machine / "tests begin")
    script(
        machine / "shared" / "pythons" / "setup.sh",
        """case $1 in
            gil) echo /3.14; echo /3.15;;
            nogil) read -r _ <"$MACHINE/tests begin"; echo /3.13t;;
        esac
        """,
    )

    assert run_ci(machine).stdout == "named: /3.14:/3.15:/mine\ncame: /3.13t\n"


@pytest.mark.parametrize("kind, rest", [("gil", "named: /mine\ncame: /nogil\n"), ("nogil", "named: /gil:/mine\n")])
def test_ci_only_says_so_when_a_python_cannot_be_set_up(machine: Path, kind: str, rest: str) -> None:
    script(machine / "shared" / "pythons" / "setup.sh", f'[ "$1" != {kind} ] || exit 7; echo "/$1"')
    done = run_ci(machine)

    assert done.stdout == rest
    assert re.search(rf"setup.sh {kind} failed", done.stderr)


def test_ci_needs_no_script_that_sets_pythons_up(machine: Path) -> None:
    assert run_ci(machine).stdout == "named: /mine\n"


# -- what is claimed is what is tested --


def test_the_classifiers_name_each_python_from_the_oldest_to_the_newest() -> None:
    claims = (run_all.PROJECT / "pyproject.toml").read_text()
    makefile = (run_all.PROJECT / "Makefile").read_text()
    minors = [int(minor) for minor in re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', claims)]
    oldest, newest = f"3.{minors[0]}", f"3.{minors[-1]}"

    assert minors == list(range(minors[0], minors[-1] + 1))
    assert f'requires-python = ">={oldest}"' in claims
    assert claims.count(f'"{oldest}"') == 2, "mypy and pyright check the oldest"
    assert f"--python-version {newest}" in makefile
    for minor in minors:
        assert f"python3.{minor}" in makefile


def test_a_python_that_is_claimed_and_not_found_is_named() -> None:
    claimed = {Interpreter(3, minor, "-", Path("/")) for minor in range(11, 16)}
    free = Interpreter(3, 13, "t", Path("/"))
    oldest = min(claimed)

    assert run_all.missing({*claimed, free}) == []
    assert run_all.missing({*claimed, free} - {oldest}) == ["Python 3.11"]
    assert run_all.missing(claimed) == ["a Python without the GIL"]
