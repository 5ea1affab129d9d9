"""Run the suite on every other Python of this machine, and CPython's own executor tests on all of them.

    .venv/bin/python tests/run_all.py

Each Python gets a virtual environment `.venv-X.Y` with only what the suite needs; its tests of integrations and servers skip.
CPython's tests are run where their runner lies beside the project (CONFORMANCE). Several Pythons are tested at a time, since
such tests mostly wait; what each printed is shown when it is through. A summary ends the run: a line for each Python, and one
for each thing that was skipped, with the reason. The last line adds up: N passed, N failed.

Pythons are looked for in TASKER_PYTHONS, on PATH, and among those of pyenv. The first of each version is taken.

Environment:
    TASKER_PYTHONS       paths of Pythons, with a colon between them
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
STEP_TIMEOUT = 1800.0  # seconds; a suite that hangs ends itself long before

# Prints "major minor suffix path" of an interpreter that we can use. Any other exits with a message that says why not.
PROBE = """
import sys
if sys.implementation.name != "cpython":
    sys.exit("not CPython but " + sys.implementation.name)
if sys.version_info < (3, 11):
    sys.exit("%d.%d is too old" % sys.version_info[:2])
try:
    import sysconfig, venv, ensurepip
except ImportError as error:
    sys.exit("it cannot make a virtual environment: %s" % error)
suffix = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else "-"
print(sys.version_info[0], sys.version_info[1], suffix, sys.executable)
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
    """What one Python has to say: its output, how many tests passed and failed, and a few words about each thing tested."""

    title: str
    output: list[str] = field(default_factory=list[str])
    passed: int = 0
    failed: int = 0
    results: list[str] = field(default_factory=list[str])
    skipped: list[str] = field(default_factory=list[str])

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

    def last_line(self, what: str, status: int) -> str:
        """A few words about what the last command has printed."""
        said = self.output[-1].rpartition("\n")[2]
        return f"{what}: {said}" if count("passed", said) else f"{what}: exit status {status}, see above"


def count(word: str, line: str) -> int:
    return sum(int(number) for number in re.findall(rf"(\d+) {word}", line))


def probe(python: Path | str) -> Interpreter | str:
    """Return the interpreter, or why it is none for us."""
    try:
        process = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:  # A broken link; it hangs.
        return str(error)
    try:
        major, minor, suffix, path = process.stdout.strip().split(" ", 3)
    except ValueError:  # A shim without its version, another implementation.
        return process.stderr.strip().partition("\n")[0] or f"exit status {process.returncode}"
    return Interpreter(int(major), int(minor), suffix, Path(path))


def candidates() -> list[Path]:
    """What may be an interpreter, in the order of preference."""
    named = [Path(path) for path in os.environ.get("TASKER_PYTHONS", "").split(os.pathsep) if path]
    folders = [Path(folder) for folder in os.get_exec_path()]
    folders += sorted((Path.home() / ".pyenv" / "versions").glob("3.*/bin"), reverse=True)
    name = re.compile(r"python3(\.\d+t?)?")
    return named + [python for folder in folders for python in sorted(folder.glob("python3*")) if name.fullmatch(python.name)]


def other_interpreters(here: Interpreter) -> tuple[list[Interpreter], list[str]]:
    """Return one interpreter per version, not that of `here`; and the reasons why others that were found are none for us."""
    found = {here}
    refused: dict[Path, str] = {}
    for python in candidates():
        interpreter = probe(python)
        if isinstance(interpreter, Interpreter):
            found.add(interpreter)  # Equal to one that we have: that one stays.
        else:
            refused.setdefault(python.resolve(), f"{python}: {interpreter}")
    # If a version is found, a shim of it that was refused is not reported.
    names = {f"python{interpreter}" for interpreter in found}
    return sorted(found - {here}), [reason for python, reason in refused.items() if python.name not in names]


def supported() -> list[str]:
    """The versions that the package says it supports."""
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (PROJECT / "pyproject.toml").read_text())


def run_suite(interpreter: Interpreter, report: Report) -> Path | None:
    """Test with this interpreter; return the Python of its environment."""
    venv = PROJECT / f".venv-{interpreter}"
    python = venv / "bin" / "python"
    stamp = venv / ".installed"
    wanted = f"{interpreter.path}\n{(PROJECT / 'pyproject.toml').read_text()}"
    if not stamp.exists() or stamp.read_text() != wanted:  # Written last: what was interrupted is done again.
        pip: list[str | Path] = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        if report.run(interpreter.path, "-m", "venv", "--clear", venv) or report.run(*pip, "--editable", ".[suite]"):
            report.results.append("its virtual environment cannot be made, see above")
            return None
        stamp.write_text(wanted)
    status = report.run(python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", counts=True)
    report.results.append(report.last_line("suite", status))
    return python


def run_conformance(python: Path, report: Report) -> None:
    command: list[str | Path] = [python, CONFORMANCE, "--executor", "tasker_executor:ResourceExecutor", "--jobs", "2"]
    status = report.run(*command, counts=True, tolerated=CONFORMANCE_HAS_NO_TESTS)
    if status == CONFORMANCE_HAS_NO_TESTS:
        report.skipped.append(f"CPython's own tests on {report.title}: it came without the `test` package")
        status = report.run(*command, "--suite", "public", counts=True)  # The part that brings its own tests.
    report.results.append(report.last_line("conformance", status))


def check(interpreter: Interpreter, is_here: bool) -> Report:
    report = Report(f"Python {interpreter}")
    if is_here:
        report.results.append("suite: by `make suite`")
    python = Path(sys.executable) if is_here else run_suite(interpreter, report)
    if python and CONFORMANCE.exists():
        run_conformance(python, report)
    return report


def main() -> int:
    here = probe(sys.executable)
    assert isinstance(here, Interpreter), f"run this with the Python of .venv; {sys.executable}: {here}"
    others, refused = other_interpreters(here)
    ends = others if len(others) < 3 else [others[0], others[-1]]
    selection = os.environ.get("TASKER_TEST_PYTHONS", "all")
    selected = {"all": others, "ends": ends, "none": []}[selection]
    jobs = int(os.environ.get("TASKER_TEST_JOBS") or os.cpu_count() or 1)

    print(f"here: {here}; others: {', '.join(map(str, selected)) or 'none'}; {jobs} at a time", flush=True)
    reports: dict[Interpreter, Report] = {}
    with ThreadPoolExecutor(jobs) as pool:
        tests = {pool.submit(check, python, python is here): python for python in [here, *selected]}
        for done in as_completed(tests):
            report = reports[tests[done]] = done.result()
            if report.output:
                print(f"\n---- {report.title} ----", *report.output, sep="\n", flush=True)

    print("\n---- summary ----")
    skipped = [f"Python {python}: TASKER_TEST_PYTHONS={selection}" for python in others if python not in selected]
    versions = set(map(str, [here, *others]))
    skipped += [f"Python {version}: not on this machine" for version in supported() if version not in versions]
    skipped += refused
    if not CONFORMANCE.exists():
        skipped.append(f"CPython's own tests: there is no {os.path.relpath(CONFORMANCE, PROJECT)}")
    for python, report in sorted(reports.items()):
        print(f"{report.title} ({python.path}): {'; '.join(report.results)}")
        skipped += report.skipped
    for what in skipped:
        print(f"skipped: {what}")
    passed, failed = (sum(getattr(report, name) for report in reports.values()) for name in ("passed", "failed"))
    if passed or failed:  # Otherwise there was nothing to run here, and pytest has had the last word about the numbers.
        print(f"\n{passed} passed, {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
