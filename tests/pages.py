"""What a page of the documentation shows of a program: its output, in a console block, which tests compare with the real one.

A page shows the program by ``literalinclude``, and what it prints in a block that begins with ``$ python NAME``. In that
block, ``...`` stands for anything.
"""

from __future__ import annotations

import doctest
import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"

_INCLUDED = re.compile(r"^\.\. literalinclude:: (\S+)$", re.MULTILINE)
_CONSOLE = re.compile(r"^\.\. code-block:: console\n\n   \$ python (?:\S+/)?(\S+).*\n((?:   .*\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class Shown:
    """A program on a page, and what the page says that it prints."""

    page: Path
    program: Path
    output: str


def shown_on(page: Path) -> list[Shown]:
    """Return the programs whose output the page shows, in its order."""
    text = page.read_text("utf-8")
    included = {path.name: path for path in ((page.parent / name).resolve() for name in _INCLUDED.findall(text))}
    return [
        Shown(page, included[name], re.sub("^   ", "", output, flags=re.MULTILINE))
        for name, output in _CONSOLE.findall(text)
        if name in included
    ]


def difference(shown: Shown, output: str) -> str:
    """Return how the output differs from what the page shows; nothing if it does not."""
    checker = doctest.OutputChecker()
    if checker.check_output(shown.output, output, doctest.ELLIPSIS):
        return ""
    return f"{shown.page.name} shows\n{shown.output}but {shown.program.name} printed\n{output}"
