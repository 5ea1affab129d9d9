"""A build without the GIL stays without it: nothing of this package, and no extra that allows that, turns it on.

An extension module that does not say that it can do without the GIL turns it on when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

import tasker_executor
from support import DEADLINE

PACKAGE = Path(tasker_executor.__file__).parent

#: What each of these needs. Dask is not here: of tornado, msgpack and PyYAML there are no wheels for 3.13 without the GIL.
NEEDS = {
    "tasker_executor.monitor": "rich",
    "tasker_executor._progress": "rich",
    "tasker_executor.opentelemetry": "opentelemetry",
    "tasker_executor.plot": "matplotlib",
    "tasker_executor.prometheus": "prometheus_client",
    "tasker_executor.resources.pika": "pika",
    "tasker_executor.resources.psycopg": "psycopg",
    "tasker_executor.resources.pymysql": "pymysql",
    "tasker_executor.resources.redis": "redis",
    "tasker_executor.resources.sqlalchemy": "sqlalchemy",
}


def modules() -> list[str]:
    """Return the names of all modules of the package, apart from those for Dask."""
    files = (path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py"))
    names = {".".join(file.parts).removesuffix(".__init__") for file in files}
    return sorted(name for name in names if not name.startswith("tasker_executor.dask"))


def after_import(*names: str) -> str:
    """Import these modules in a new interpreter; return what it says of the GIL and of the import."""
    program = f"import sys\nimport {', '.join(names)}\nprint(sys._is_gil_enabled())"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}  # that would hide it
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * DEADLINE, env=environment)
    return result.stdout + result.stderr


def test_the_package_is_pure_python() -> None:
    kinds = {path.suffix for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}

    assert kinds == {".py", ".typed"}


without_gil = pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this build has the GIL")


@without_gil
def test_the_package_does_not_turn_the_gil_on() -> None:
    assert after_import(*(name for name in modules() if name not in NEEDS)) == "False\n"


@without_gil
@pytest.mark.parametrize("module", NEEDS)
def test_an_extra_does_not_turn_the_gil_on(module: str) -> None:
    if find_spec(NEEDS[module]) is None:
        pytest.skip(f"{NEEDS[module]} is missing")

    assert after_import(module) == "False\n"
