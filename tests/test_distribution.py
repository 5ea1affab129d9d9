"""What is published: an sdist that has all that the tests need, and a wheel that has the package and no more."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling is not installed")
pytest.importorskip("twine", reason="twine is not installed")

ROOT = Path(__file__).parent.parent
FILES_OF_THE_TESTS = ["Makefile", ".ci/run", "docs/conf.py", "examples/basic.py", "benchmarks/measure.py", "tests/conftest.py"]
#: Some tests of each kind: of the engine, of the files beside the package, and of a program.
SOME_TESTS = ["tests/test_lanes.py", "tests/test_docs.py", "tests/test_readme.py", "tests/test_layering.py"]


def run(*command: str | Path, cwd: Path) -> None:
    process = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


def build(source: Path, folder: Path) -> dict[str, Path]:
    """Build both; return them by the end of their names."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
    return {file.suffix: file for file in folder.iterdir() if file.suffix in (".gz", ".whl")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(ROOT, tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def unpacked(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(built[".gz"]) as archive:
        archive.extractall(folder, filter="data")
    [project] = folder.iterdir()
    return project


def test_the_index_accepts_both(built: dict[str, Path]) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *built.values(), cwd=ROOT)


def test_the_wheel_has_the_package_alone(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = wheel.namelist()

    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"tasker_executor"}
    assert "tasker_executor/py.typed" in names
    assert [name for name in names if name.endswith((".pyc", ".rst", ".md"))] == []


def test_the_metadata_is_small_and_names_no_extra_that_only_developers_need(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        [file] = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        assert wheel.getinfo(file).file_size < 20_000, "an index shows the README on one page, and pip reads it all"
        metadata = Parser().parsestr(wheel.read(file).decode())

    extras = metadata.get_all("Provides-Extra", [])
    assert {"test", "suite", "docs"} & {*extras} == set()
    assert {*extras} >= {"dask", "monitor", "opentelemetry", "plot", "prometheus", "psycopg"}
    assert len(metadata.get_all("Project-URL", [])) >= 3


def test_the_sdist_has_what_the_tests_need_and_they_pass_there(unpacked: Path) -> None:
    assert [name for name in FILES_OF_THE_TESTS if not (unpacked / name).is_file()] == []
    tests = {path.name for path in (ROOT / "tests").glob("*.py")}
    assert tests == {path.name for path in (unpacked / "tests").glob("*.py")}

    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SOME_TESTS, cwd=unpacked)


def test_another_build_of_the_same_files_gives_the_same_bytes(built: dict[str, Path], unpacked: Path, tmp_path: Path) -> None:
    """From the unpacked sdist: another folder, another time, no git."""
    again = build(unpacked, tmp_path)

    assert {file.name: file.read_bytes() for file in built.values()} == {
        file.name: file.read_bytes() for file in again.values()
    }


def test_every_python_that_is_claimed_is_one_that_the_types_are_checked_for() -> None:
    claims = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    makefile = (ROOT / "Makefile").read_text("utf-8")

    assert f"--python-version {claims[-1]}" in makefile
    assert f'python_version = "{claims[0]}"' in (ROOT / "pyproject.toml").read_text("utf-8")
