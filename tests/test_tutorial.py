"""Every step of the tutorial runs, and prints what its page shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tasker_executor
from pages import DOCS, Shown, difference, shown_on
from support import DEADLINE

ROOT = Path(tasker_executor.__file__).parent.parent
STEPS = DOCS.parent / "examples" / "tutorial"
SHOWN = [shown for page in sorted((DOCS / "tutorial").glob("*.rst")) for shown in shown_on(page)]


def test_every_step_has_its_place_in_the_tutorial() -> None:
    steps = sorted((path.name for path in STEPS.glob("step*.py")), key=lambda name: int(name[4:-3]))

    # The service does not end by itself. The last step starts it, and ends it.
    assert [shown.program.name for shown in SHOWN] == [step for step in steps if step != "step8.py"]


def test_every_program_is_on_a_page() -> None:
    text = "".join(page.read_text("utf-8") for page in (DOCS / "tutorial").glob("*.rst"))

    assert [
        path.name for path in STEPS.glob("*.py") if f"literalinclude:: ../../examples/tutorial/{path.name}" not in text
    ] == []


@pytest.mark.parametrize("shown", [pytest.param(shown, id=shown.program.stem) for shown in SHOWN])
def test_step_prints_what_its_page_shows(shown: Shown, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", shown.program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
        capture_output=True,
        encoding="utf-8",
        timeout=2 * DEADLINE,
        check=False,
    )

    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert difference(shown, result.stdout) == ""
