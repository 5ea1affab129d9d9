"""Run the suite on every other Python of this machine, and CPython's own executor tests on all of them.

    .venv/bin/python tests/run_all.py

Each Python gets a virtual environment `.venv-X.Y` with only what the suite needs; its tests of integrations and servers skip.
CPython's tests are run where their runner lies beside the project (CONFORMANCE). Several Pythons are tested at a time, since
such tests mostly wait; what each printed is shown when it is through. The last line adds up: N passed, N failed.

Environment:
    TASKER_TEST_PYTHONS  all (default), ends (the oldest and the newest), none
    TASKER_TEST_JOBS     how many at a time; default: one per CPU
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
CONFORMANCE = PROJECT.parent / "shared" / "conformance" / "cpython_suite.py"
CONFORMANCE_HAS_NO_TESTS = 3  # Exit status: this interpreter came without the `test` package.
STEP_TIMEOUT = 900.0  # seconds; a suite that hangs ends itself long before

# Prints "major minor suffix path" of an interpreter that we can use; fails in any other.
PROBE = """
import sys, sysconfig, venv, ensurepip
assert sys.version_info >= (3, 10) and sys.implementation.name == "cpython"
suffix = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else "-"
print(*sys.version_info[:2], suffix, sys.executable)
"""


@dataclass(frozen=True, order=True)
class Interpreter:
    """An interpreter, equal to every other of its X.Y (or X.Yt, free-threaded)."""

    major: int
    minor: int
    suffix: str
    path: Path = field(compare=False)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{self.suffix.strip('-')}"


@dataclass
class Report:
    """What one Python has to say: its output, and how many tests passed and failed."""

    title: str
    output: list[str] = field(default_factory=list[str])
    passed: int = 0
    failed: int = 0

    def run(self, *command: str | Path, counts: bool = False, tolerated: int = 0) -> int:
        """Run a command to its end and return its exit status. A failing one that counts no failures is a failure itself."""
        words = list(map(str, command))
        with tempfile.TemporaryFile("w+", errors="replace") as log:  # A pipe would lose what a command printed that hangs.
            try:
                status = subprocess.run(
                    words, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT, timeout=STEP_TIMEOUT, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                status = -1
            log.seek(0)
            output = log.read().strip()
        self.output += [f"$ {' '.join(words)}", output, *[f"not done after {STEP_TIMEOUT:g} s"] * (status == -1)]

        failed = 0
        if counts:  # pytest ends with "3 failed, 5 passed, 1 error in 2 s", the conformance suite with "5 passed, 3 failed".
            last = output.rpartition("\n")[2]
            self.passed += count("passed", last)
            failed = count("failed", last) + count("error", last)
        self.failed += failed or status not in (0, tolerated)
        return status


def count(word: str, line: str) -> int:
    return sum(int(number) for number in re.findall(rf"(\d+) {word}", line))


def probe(python: Path | str) -> Interpreter | None:
    try:
        output = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None  # A broken link, a shim without its version, another implementation.
    major, minor, suffix, path = output.strip().split(" ", 3)
    return Interpreter(int(major), int(minor), suffix, Path(path))


def other_interpreters(here: Interpreter) -> list[Interpreter]:
    """One interpreter per version: the first on PATH, else the first among those of pyenv. Not that of `here`."""
    folders = [Path(folder) for folder in os.get_exec_path()]
    folders += sorted((Path.home() / ".pyenv" / "versions").glob("3.*/bin"), reverse=True)
    names = re.compile(r"python3(\.\d+t?)?")
    found = {here}
    for folder in folders:
        for python in sorted(folder.glob("python3*")):
            interpreter = probe(python) if names.fullmatch(python.name) else None
            if interpreter:
                found.add(interpreter)  # Equal to one that we have: that one stays.
    return sorted(found - {here})


def run_suite(interpreter: Interpreter, report: Report) -> Path | None:
    """Test with this interpreter; return the Python of its environment."""
    venv = PROJECT / f".venv-{interpreter}"
    python = venv / "bin" / "python"
    stamp = venv / ".installed"
    wanted = f"{interpreter.path}\n{(PROJECT / 'pyproject.toml').read_text()}"
    if not stamp.exists() or stamp.read_text() != wanted:  # Written last: what was interrupted is done again.
        pip: list[str | Path] = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        if report.run(interpreter.path, "-m", "venv", "--clear", venv) or report.run(*pip, "--editable", ".[suite]"):
            return None
        stamp.write_text(wanted)
    report.run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", counts=True)
    return python


def run_conformance(python: Path, report: Report) -> None:
    command: list[str | Path] = [python, CONFORMANCE, "--executor", "tasker_executor:ResourceExecutor", "--jobs", "2"]
    if report.run(*command, counts=True, tolerated=CONFORMANCE_HAS_NO_TESTS) == CONFORMANCE_HAS_NO_TESTS:
        report.run(*command, "--suite", "public", counts=True)  # The part that brings its own tests.


def check(interpreter: Interpreter, is_here: bool) -> Report:
    report = Report(f"Python {interpreter}")
    python = Path(sys.executable) if is_here else run_suite(interpreter, report)  # `make suite` has tested this one.
    if python and CONFORMANCE.exists():
        run_conformance(python, report)
    return report


def main() -> int:
    here = probe(sys.executable)
    assert here, "run this with the Python of .venv"
    others = other_interpreters(here)
    ends = others if len(others) < 3 else [others[0], others[-1]]
    selected = {"all": others, "ends": ends, "none": []}[os.environ.get("TASKER_TEST_PYTHONS", "all")]
    jobs = int(os.environ.get("TASKER_TEST_JOBS") or os.cpu_count() or 1)

    print(f"here: {here}; others: {', '.join(map(str, selected)) or 'none'}; {jobs} at a time", flush=True)
    passed = failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(check, here, True), *(pool.submit(check, python, False) for python in selected)]):
            report = done.result()
            print(f"\n---- {report.title} ----", *report.output, sep="\n", flush=True)
            passed += report.passed
            failed += report.failed
    if passed or failed:  # Otherwise there was nothing to run here, and the last word is pytest's.
        print(f"\n{passed} passed, {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
