"""Without any extra the package works, and each module of an extra says what to install."""

from __future__ import annotations

from pathlib import Path

import pytest

import tasker_executor
from support import run_python

FOLDER = Path(tasker_executor.__file__).parent

#: What each extra needs, by the name of the extra, which is that of its module.
NEEDS = {
    "prometheus": "prometheus_client",
    "opentelemetry": "opentelemetry",
    "monitor": "rich",
    "plot": "matplotlib",
    "dask": "distributed",
}

WITHOUT_EXTRAS = f"""
import sys
for name in {list(NEEDS.values())!r}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError, as if it were not installed
"""


def test_importing_the_package_imports_no_extra() -> None:
    program = f"""
import sys
from tasker_executor import *
print(sorted(set(sys.modules) & set({list(NEEDS.values())!r})))
print(sorted(name for name in sys.modules if name in {[f"tasker_executor.{extra}" for extra in NEEDS]!r}))
"""

    result = run_python(program)

    assert result.stderr == ""
    assert result.stdout == "[]\n[]\n"


def test_the_package_works_without_any_extra() -> None:
    program = f"""{WITHOUT_EXTRAS}
from tasker_executor import ResourceExecutor
import tasker_executor.recording
with ResourceExecutor(2, on_create=dict) as pool:
    print(pool.submit(len).result(), pool.stats().completed, len(pool.workers()))
"""

    result = run_python(program)

    assert result.stderr == ""
    assert result.stdout == "0 1 1\n"


@pytest.mark.parametrize("extra", NEEDS)
def test_a_module_whose_extra_is_absent_says_what_to_install(extra: str) -> None:
    if not (FOLDER / f"{extra}.py").exists() and not (FOLDER / extra).is_dir():
        pytest.skip("there is no such module yet")
    program = f"""{WITHOUT_EXTRAS}
try:
    import tasker_executor.{extra}
except ImportError as error:
    print(error)
"""

    result = run_python(program)

    assert result.stderr == ""
    assert f"pip install tasker-executor[{extra}]" in result.stdout
