"""Every example runs, to its end, and shows what it promises. A new file in examples/ is run, too, without a word here."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import tasker_executor
from pages import DOCS, Shown, difference, shown_on
from support import DEADLINE, run_python

PACKAGE = Path(tasker_executor.__file__).parent
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

# What each says that shows that it has done its job. The checks inside the examples do the rest.
TELLING = {
    "advanced.py": ["a priority task comes in", "at the end: base_workers 0, active_workers 0", "22 completed, 0 failed"],
    "asyncio_bridge.py": [
        "[25, 168, 669, 4, 8, 10] primes",
        "the query was interrupted",
        "a worker of ours",
        "The pool outlives",
    ],
    "basic.py": ["19 + 23 = 42", "2 tasks submitted, 2 completed, 0 failed", "2 calculators made, 2 given up"],
    "cluster.py": ["killed process", "0 failed", "The books balance."],
    "coming_from_threading_local.py": ["closed: 0 of 1", "closed: 2 of 2"],
    "django_views.py": ["report: {'new': 0, 'confirmed': 3}", "0 tasks failed"],
    "fastapi_service.py": ["a client went away; its query is stopped", "the request under way is answered: 3000000"],
    "here_or_on_a_cluster.py": ["here: 23880999.9", "there: 23880999.9", "0 failed"],
    "http_sessions.py": ["300 of 300", "PageError: page 301: 404 Not Found", "7 x RemoteDisconnected"],
    "index_sources.py": [
        "Its batch will be run again.",
        "A new worker takes its place.",
        "search, from question to answer",
        "workers replaced: 1, tasks retried: 1, tasks failed: 0",
        "ok      every file found is in the index",
        "ok      every connection opened was closed",
    ],
    "intermediate.py": [
        "the processor crashed at picture-3.ppm; it goes back to the front of its lane",
        "ended: its resource was broken",
        "ProcessorError: broken.ppm is no PPM file",
        "Workers replaced: 1; tasks retried: 1",
    ],
    "metrics_service.py": ["serving http://127.0.0.1:"],
    "request_tracing.py": ["request B asks connection 2", "Connection.get completed resource.replaced task.retried attempt"],
    "service_load.py": ["8 stopped, 8 served, exit status 0"],
    "testing_your_code.py": ["passed: a broken connection costs nobody a reminder", "passed: the policy keeps up"],
}

# Without them they could go on for ever.
ARGUMENTS = {
    "metrics_service.py": ["--address", "127.0.0.1:0", "--seconds", "1"],
    "service_load.py": ["--within", f"{1.5 * DEADLINE:g}"],  # it ends the service then
}
# These are started with the address of a server. Where the variable is not set, there is none.
SERVERS = {
    "mariadb.py": "TASKER_TEST_MARIADB",
    "postgresql.py": "TASKER_TEST_POSTGRES",
    "rabbitmq.py": "TASKER_TEST_RABBITMQ",
    "redis_counters.py": "TASKER_TEST_REDIS",
}
# These need a program that pip does not install.
PROGRAMS = {"playwright_pages.py": "chromium"}
# These start another example, which would go on for ever if it were run alone.
STARTS = {"service_load.py": "service.py"}
# A service logs to stderr, and this one has outages. The others have nothing to say there.
LOGS_TO_STDERR = {"metrics_service.py"}
# What pages of the documentation say that examples print.
SHOWN: list[Shown] = [shown for page in (DOCS / "howto").glob("*.rst") for shown in shown_on(page)]


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, by their full names; relative imports aside."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def requirements_of(path: Path) -> set[str]:
    """The packages beyond the standard library and ours that a file needs; those of our extras included."""
    needed: set[str] = set()
    for name in imports_of(path):
        package, _, module = name.partition(".")
        if package == PACKAGE.name:
            extra = PACKAGE / f"{module}.py"
            if extra.exists():
                needed |= requirements_of(extra)
        elif package not in sys.stdlib_module_names and package != "_typeshed":  # that one is for type checkers alone
            needed.add(package)
    return needed


def skip_without_requirements(name: str) -> None:
    needed = requirements_of(EXAMPLES / name) | requirements_of(EXAMPLES / STARTS.get(name, name))
    missing = sorted(package for package in needed if importlib.util.find_spec(package) is None)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    if name in SERVERS and not os.environ.get(SERVERS[name]):
        pytest.skip(f"{SERVERS[name]} is not set")
    if name in PROGRAMS and not shutil.which(PROGRAMS[name]):
        pytest.skip(f"needs {PROGRAMS[name]}")


def run_example(name: str, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run an example somewhere else, with this very package and warnings as errors. Should it hang, show where."""
    search_path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-W", "error", EXAMPLES / name, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": search_path, "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=2 * DEADLINE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler prints the stacks of all threads
            stdout, stderr = process.communicate()
            pytest.fail(f"{name} did not end within {2 * DEADLINE:g} s:\n{stdout}\n{stderr}")
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def arguments_of(name: str, folder: Path) -> list[str | Path]:
    """What the example is to be started with. It may look at files that are put into the folder."""
    library = Path(sysconfig.get_path("stdlib"))
    if name == "index_sources.py" and any(path.is_symlink() and not path.exists() for path in library.glob("*.py")):
        # Debian links to files of /etc, which are elsewhere if this Python is not the system's own. The example tells of each
        # file that it cannot read, and is right; so it gets a library without.
        skipped = shutil.ignore_patterns("__pycache__", "*-packages", "*.so", "*.a")
        shutil.copytree(library, folder / "library", ignore=skipped, ignore_dangling_symlinks=True)
        return [folder / "library"]
    if name in SERVERS:
        return [os.environ[SERVERS[name]]]
    return list(ARGUMENTS.get(name, []))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with ten Python files, for index_sources.py."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for number in range(10):
        (folder / f"module_{number}.py").write_text(f"def f{number}():\n    return 'deadlock'\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", sorted({path.name for path in EXAMPLES.glob("*.py")} - set(STARTS.values())))
def test_example_runs_and_shows_what_it_promises(name: str, tmp_path: Path) -> None:
    skip_without_requirements(name)

    result = run_example(name, tmp_path, *arguments_of(name, tmp_path))

    assert result.returncode == 0, result.stdout + result.stderr
    assert name in LOGS_TO_STDERR or result.stderr == ""
    assert [line for line in TELLING.get(name, []) if line not in result.stdout] == []
    shown = [shown for shown in SHOWN if shown.program == EXAMPLES / name]
    assert [text for text in (difference(each, result.stdout) for each in shown) if text] == []


def test_index_sources_takes_any_folder(sources: Path, tmp_path: Path) -> None:
    result = run_example("index_sources.py", tmp_path, sources)

    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert "10 of 10" in result.stdout


def test_index_sources_works_without_full_text_search(sources: Path, tmp_path: Path) -> None:
    result = run_example("index_sources.py", tmp_path, "--no-fts", sources)

    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert "Without FTS5" in result.stdout
    assert "10 of 10" in result.stdout


def test_index_sources_exits_with_1_when_a_file_is_not_indexed(sources: Path, tmp_path: Path) -> None:
    unreadable = sources / "module_3b.py"
    unreadable.symlink_to(sources / "nowhere.py")  # a mode would not keep root from reading

    result = run_example("index_sources.py", tmp_path, sources)

    assert (result.returncode, result.stderr) == (1, ""), result.stdout
    assert f"problem: {unreadable}: No such file or directory" in result.stdout
    assert "FAILED  every file found is in the index" in result.stdout
    assert "10 of 11" in result.stdout


def test_index_sources_exits_with_1_when_there_is_nothing_to_index(tmp_path: Path) -> None:
    result = run_example("index_sources.py", tmp_path, tmp_path)

    assert (result.returncode, result.stderr) == (1, ""), result.stdout
    assert "FAILED: there are no Python files in" in result.stdout


def test_service_works_on_sqlite_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_requirements("service_load.py")
    if "TASKER_TEST_POSTGRES" not in os.environ:
        pytest.skip("without PostgreSQL, the run above was one on SQLite")
    monkeypatch.delenv("TASKER_TEST_POSTGRES")

    result = run_example("service_load.py", tmp_path)

    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert "SQLite" in result.stdout


def test_service_says_what_to_install() -> None:
    service = EXAMPLES / "service.py"

    result = run_python(
        f"import runpy, sys; sys.modules['starlette'] = None; runpy.run_path({str(service)!r}, run_name='__main__')"
    )

    assert result.returncode == 1
    assert "pip install tasker-executor[examples]" in result.stderr
