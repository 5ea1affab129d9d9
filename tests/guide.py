"""The texts that users read: README.rst, and the pages of docs/."""

from __future__ import annotations

from pathlib import Path

__all__ = ["GUIDE", "PAGES", "README", "ROOT"]

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.rst").read_text("utf-8")
#: The text of each page, by its path below docs/ without the suffix: "howto/stopping".
PAGES = {
    page.relative_to(ROOT / "docs").with_suffix("").as_posix(): page.read_text("utf-8")
    for page in sorted((ROOT / "docs").rglob("*.rst"))
    if "_build" not in page.parts
}
GUIDE = "\n".join([README, *PAGES.values()])
