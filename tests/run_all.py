"""Run the suite, and CPython's own executor tests, on every Python of this machine.

    .venv/bin/python tests/run_all.py

The Python of .venv measures coverage. Each other gets a virtual environment `.venv-X.Y` with only what the
suite needs; its tests of integrations and servers skip. The oldest Python, the newest and that of .venv run the
whole suite; that of .venv runs the tests marked `long` by themselves, without coverage, which makes them slow.
Those between leave them out. The newest then runs some tests once more, with threads that inherit contexts
(INHERITING). A Python without the GIL is told not to take it back for any extension
module, and its suite fails if it has. CPython's tests run where their runner lies beside the project
(CONFORMANCE). Several Pythons are tested at a time; what each printed is shown when it is through.

A summary ends the run, for a reader who sees only the last hundred lines. First it says what is known of each
failure. Then come a line for each Python, for each thing that was skipped, with the reason, and for each failure.
The last line adds up: N passed, N failed.

Pythons are looked for in TASKER_PYTHONS, on PATH, and among those of pyenv. The first of each version is taken.
Others may still be built while these are tested. They are tested last, and are never the oldest or the newest.

Environment:
    TASKER_PYTHONS         paths of Pythons, with a colon between them
    TASKER_PYTHONS_COMING  a pipe, from which the path of each Python that is being built can be read once it is there
    TASKER_TEST_PYTHONS    which Pythons beside that of .venv: all (default), ends (the oldest and the newest), none
    TASKER_TEST_LONG       who runs the tests marked `long`: ends (default), all
    TASKER_TEST_JOBS       how many at a time; default: one per CPU
    TASKER_TEST_MINUTES    no Python begins later than that; the summary names those that were left out
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from time import monotonic

PROJECT = Path(__file__).resolve().parent.parent
CONFORMANCE = PROJECT.parent / "shared" / "conformance" / "cpython_suite.py"
CONFORMANCE_HAS_NO_TESTS = 3  # Exit status: this interpreter came without the `test` package.
STEP_TIMEOUT = 1800.0  # seconds; a suite that hangs ends itself long before
CORE = ["-m", "not stress and not long"]
LONG = ["-m", "long and not stress"]

# The newest Python with the GIL can do what those without it do: a thread begins in the context of its starter, and that
# context holds the filters of warnings. The programs that tests start do so as well. These tests are the ones in which
# each kind of thread starts, a context is handed on, and user code runs that might see another.
INHERITING = {"PYTHON_THREAD_INHERIT_CONTEXT": "1", "PYTHON_CONTEXT_AWARE_WARNINGS": "1"}
INHERITING_SINCE = (3, 14)
INHERITING_NAMES = """
aio aio_full aio_map aio_shutdown context contract drop ending exit herald hooks kill map_stop observers
run_now scope shutdown stop stop_run_now task thread_contexts threads timer unretrieved views worker
"""
INHERITING_TESTS = [f"tests/test_{name}.py" for name in INHERITING_NAMES.split()]

# What the summary shows of the failures of one Python. All of it stands in the output further up.
MOST_NAMES = 40
MOST_DETAILS = 5
MOST_LINES = 60
MOST_COLUMNS = 300

BEGUN = monotonic()
SHOWING = Lock()  # One report is printed at a time.

# How pytest heads a part of what it prints, and a failure in it. Between the frames of a traceback stands "_ _ _ _".
PART = re.compile(r"={3,} (.+) ={3,}")
FAILURE = re.compile(r"_+ (?![_ ]+$)(.+) _+")
FAILED = ("FAILED ", "ERROR ", "ERROR: ", "FAIL ")  # pytest, twice; pip, and pytest's own mistakes; conformance, coverage.

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

    @property
    def environment(self) -> dict[str, str]:
        """Extension modules may ask for the GIL. A Python that can do without it does not listen."""
        return {"PYTHON_GIL": "0"} if self.suffix == "t" else {}


@dataclass
class Report:
    """What one Python has to say: its output, how many tests passed and failed, and a few words about each thing tested."""

    title: str
    path: str | Path = sys.executable
    environment: dict[str, str] = field(default_factory=dict[str, str])
    output: list[str] = field(default_factory=list[str])
    passed: int = 0
    failed: int = 0
    results: list[str] = field(default_factory=list[str])
    skipped: list[str] = field(default_factory=list[str])
    failures: list[str] = field(default_factory=list[str])
    details: list[str] = field(default_factory=list[str])

    def run(
        self, *command: str | Path, counts: bool = False, tolerated: int = 0, environment: dict[str, str] | None = None
    ) -> int:
        """Run a command to its end and return its exit status. One that fails and counts no failures is a failure itself."""
        words = list(map(str, command))
        variables = self.environment | (environment or {})
        with tempfile.TemporaryFile("w+", errors="replace") as log:  # A pipe would lose what a command printed that hangs.
            try:
                status = subprocess.run(
                    words,
                    cwd=PROJECT,
                    env=os.environ | variables,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=STEP_TIMEOUT,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                status = -1
            log.seek(0)
            output = log.read().strip()
        line = " ".join([f"{name}={value}" for name, value in variables.items()] + words)
        self.output += [f"$ {line}", output, *[f"not done after {STEP_TIMEOUT:g} s"] * (status == -1)]

        failed = 0
        if counts:  # pytest ends with "3 failed, 5 passed, 1 error in 2 s", the conformance suite with "5 passed, 3 failed".
            last = counting_line(output)
            self.passed += count("passed", last)
            failed = count("failed", last) + count("error", last)
        if status not in (0, tolerated):
            failures, details = failures_in(output)
            self.failed += failed or 1
            self.failures += failures or [f"{line}: exit status {status}"]
            self.details += details or [shortened(output.splitlines()[-MOST_LINES:])]
        return status

    def suite(self, python: str | Path, *options: str, name: str = "suite", environment: dict[str, str] | None = None) -> None:
        status = self.run(python, "-m", "pytest", "-q", "-rsfE", *options, counts=True, environment=environment)
        self.results.append(self.last_line(name, status))

    def last_line(self, what: str, status: int) -> str:
        """A few words about what the last command has printed."""
        said = counting_line(self.output[-1])
        return f"{what}: {said}" if count("passed", said) else f"{what}: exit status {status}, see above"


def counting_line(output: str) -> str:
    """Return the last line that counts tests. The interpreter may say more as it exits."""
    words = "passed", "failed", "error"
    return next((line for line in reversed(output.splitlines()) if any(count(word, line) for word in words)), "")


def count(word: str, line: str) -> int:
    return sum(int(number) for number in re.findall(rf"(\d+) {word}", line))


def failures_in(output: str) -> tuple[list[str], list[str]]:
    """Return a line for each failure, as the command wrote it, and what pytest says about each: traceback, captured output."""
    part = ""
    names: list[str] = []
    details: list[list[str]] = []
    for line in output.splitlines():
        if heading := PART.fullmatch(line):
            part = heading[1]
        elif part not in ("ERRORS", "FAILURES"):
            if line.startswith(FAILED):
                names.append(shortened([line]))
        elif FAILURE.fullmatch(line):
            details.append([line])
        elif details:
            details[-1].append(line)
    return names, [shortened(lines) for lines in details]


def shortened(lines: list[str]) -> str:
    """Join the lines, without the middle if there are too many: the name of the test is at the top, its error at the end."""
    if len(lines) > MOST_LINES:
        top = MOST_LINES // 4
        left_out = len(lines) - MOST_LINES + 1
        lines = [*lines[:top], f"[... {left_out} lines, see above ...]", *lines[top + left_out :]]
    return "\n".join(line if len(line) <= MOST_COLUMNS else f"{line[:MOST_COLUMNS]} [...]" for line in lines)


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


def interpreters(paths: list[Path], known: set[Interpreter]) -> tuple[list[Interpreter], list[str]]:
    """Return one interpreter per version, none that is known; and the reasons why others that were found are none for us."""
    found = set(known)
    refused: dict[Path, str] = {}
    for python in paths:
        interpreter = probe(python)
        if isinstance(interpreter, Interpreter):
            found.add(interpreter)  # Equal to one that we have: that one stays.
        else:
            refused.setdefault(python.resolve(), f"{python}: {interpreter}")
    # If a version is found, a shim of it that was refused is not reported.
    names = {f"python{interpreter}" for interpreter in found}
    return sorted(found - known), [reason for python, reason in refused.items() if python.name not in names]


def coming() -> list[Path]:
    """Wait until each Python that is being built is there, or its build has failed. Return where they are."""
    pipe = os.environ.get("TASKER_PYTHONS_COMING")
    # The end of the file comes when no program is left that may write: the build can fail in any way.
    return [Path(line) for line in Path(pipe).read_text().splitlines()] if pipe else []


def missing(found: set[Interpreter]) -> list[str]:
    """Return what the package says that it supports and what is not on this machine."""
    claims = (PROJECT / "pyproject.toml").read_text()
    versions = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', claims)
    lacking = [f"Python {version}" for version in versions if version not in set(map(str, found))]
    if "Free Threading" in claims and not any(python.suffix == "t" for python in found):
        lacking.append("a Python without the GIL")
    return lacking


def measure_coverage(report: Report) -> None:
    """Test with the Python of .venv, which has everything. Too little coverage is a failure."""
    report.suite(sys.executable, "--cov", *CORE)
    report.results += re.findall(r"total coverage: .*", report.output[-1], re.IGNORECASE)


def run_suite(interpreter: Interpreter, report: Report, *options: str) -> Path | None:
    """Test with this interpreter; return the Python of its environment."""
    venv = PROJECT / f".venv-{interpreter}"
    python = venv / "bin" / "python"
    stamp = venv / ".installed"
    wanted = f"{interpreter.path}\n{(PROJECT / 'pyproject.toml').read_text()}"
    if not stamp.exists() or stamp.read_text() != wanted:  # Written last: what was interrupted is done again.
        pip: list[str | Path] = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        pip.append("--prefer-binary")  # The newest hypothesis has no wheel for a Python without the GIL, and is not built here.
        if (
            report.run(interpreter.path, "-m", "venv", "--clear", venv)
            or report.run(*pip, "pip>=25.1")  # The first that knows --group; venv brings the one that came with Python.
            or report.run(*pip, "--editable", ".", "--group", "suite")
        ):
            report.results.append("its virtual environment cannot be made, see above")
            return None
        stamp.write_text(wanted)
    report.suite(python, "-p", "no:cacheprovider", *options)
    return python


def run_conformance(python: Path, report: Report) -> None:
    command: list[str | Path] = [python, CONFORMANCE, "--executor", "tasker_executor:ResourceExecutor", "--jobs", "2"]
    status = report.run(*command, counts=True, tolerated=CONFORMANCE_HAS_NO_TESTS)
    if status == CONFORMANCE_HAS_NO_TESTS:
        report.skipped.append(f"CPython's own tests on {report.title}: it came without the `test` package")
        status = report.run(*command, "--suite", "public", counts=True)  # The part that brings its own tests.
    report.results.append(report.last_line("conformance", status))


def check(interpreter: Interpreter, *, is_here: bool = False, is_whole: bool = False, inherits: bool = False) -> Report:
    if report := left_out(interpreter):
        return report
    report = Report(f"Python {interpreter}", interpreter.path, interpreter.environment)
    if is_here:
        measure_coverage(report)
        python: Path | None = Path(sys.executable)
    else:
        python = run_suite(interpreter, report, *[] if is_whole else CORE)
    if python and inherits:
        options = ["-p", "no:cacheprovider", *CORE, *INHERITING_TESTS]
        report.suite(python, *options, name="with threads that inherit contexts", environment=INHERITING)
    if python and CONFORMANCE.exists():
        run_conformance(python, report)
    return shown(report)


def check_long(interpreter: Interpreter) -> Report:
    """Run the long tests with the Python of .venv, beside the rest."""
    if report := left_out(interpreter):
        return report
    report = Report(f"Python {interpreter}", interpreter.path)
    report.suite(sys.executable, "-p", "no:cacheprovider", *LONG, name="long tests")
    return shown(report)


def left_out(interpreter: Interpreter) -> Report | None:
    """Return a report that only says that the time is over, if it is."""
    minutes = os.environ.get("TASKER_TEST_MINUTES")
    if not minutes or monotonic() - BEGUN < 60 * float(minutes):
        return None
    return Report(f"Python {interpreter}", interpreter.path, results=[f"not run: {minutes} minutes have passed"])


def shown(report: Report) -> Report:
    with SHOWING:
        print(f"\n---- {report.title} ----", *report.output, sep="\n", flush=True)
    return report


def summary(reports: list[Report], skipped: list[str]) -> list[str]:
    """Return the lines that end the run. What tells most is last: the end is what one sees of a run in CI."""
    lines: list[str] = []
    for report in reports:
        for details in report.details[:MOST_DETAILS]:
            lines += [f"{report.title}:", details, ""]
    lines += [f"{report.title} ({report.path}): {'; '.join(report.results)}" for report in reports]
    lines += [f"skipped: {what}" for what in skipped]
    for report in reports:
        lines += [f"{report.title}: {failure}" for failure in report.failures[:MOST_NAMES]]
        if len(report.failures) > MOST_NAMES:
            lines.append(f"{report.title}: and {len(report.failures) - MOST_NAMES} more")
    passed, failed = (sum(getattr(report, name) for report in reports) for name in ("passed", "failed"))
    return [*lines, "", f"{passed} passed, {failed} failed"]


def main() -> int:
    here = probe(sys.executable)
    assert isinstance(here, Interpreter), f"run this with the Python of .venv; {sys.executable}: {here}"
    others, refused = interpreters(candidates(), {here})
    ends = others if len(others) < 3 else [others[0], others[-1]]
    selection = os.environ.get("TASKER_TEST_PYTHONS", "all")
    selected = [here, *{"all": others, "ends": ends, "none": []}[selection]]
    long = os.environ.get("TASKER_TEST_LONG", "ends")
    whole = {"all": selected, "ends": [here, min(selected), max(selected)]}[long]
    core = [python for python in selected if python not in whole]
    newest = max((python for python in selected if python.suffix == "-"), default=None)
    jobs = int(os.environ.get("TASKER_TEST_JOBS") or os.cpu_count() or 1)

    names = ", ".join(f"{python}{' without the long tests' * (python in core)}" for python in selected)
    print(f"{names}; {jobs} at a time", flush=True)
    with ThreadPoolExecutor(jobs) as pool:

        def begin(python: Interpreter) -> Future[Report]:
            inherits = python is newest and (python.major, python.minor) >= INHERITING_SINCE
            return pool.submit(check, python, is_here=python is here, is_whole=python in whole, inherits=inherits)

        # Those that take the longest begin first: `here` measures coverage.
        tests = {python: begin(python) for python in [here, *sorted(set(whole) - {here})]}
        long_tests = pool.submit(check_long, here)
        tests |= {python: begin(python) for python in sorted(core)}
        paths = coming() if selection == "all" else []  # While others are tested.
        late, failed = interpreters(paths, {here, *others})
        for python in late:
            tests[python] = pool.submit(check, python, is_whole=long == "all")
    reports = [tests[python].result() for python in sorted(tests)]
    reports.append(long_tests.result())

    core += late if long == "ends" else []
    skipped = [f"Python {python}: TASKER_TEST_PYTHONS={selection}" for python in others if python not in selected]
    skipped += [f"{what}: not on this machine" for what in missing({here, *others, *late})]
    skipped += refused + failed
    skipped += [f"the long tests on Python {python}: TASKER_TEST_LONG=all runs them" for python in core]
    if not CONFORMANCE.exists():
        skipped.append(f"CPython's own tests: there is no {os.path.relpath(CONFORMANCE, PROJECT)}")
    skipped += [what for report in reports for what in report.skipped]
    print("\n---- summary ----", *summary(reports, skipped), sep="\n", flush=True)
    return any(report.failed for report in reports)


if __name__ == "__main__":
    sys.exit(main())
