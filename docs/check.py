"""Check the built pages: every link inside them leads somewhere, and the search knows our words.

    python docs/check.py build/docs

Sphinx has checked the references. This checks what came out: raw links, pictures, anchors.
"""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

#: Words that somebody may search for: an argument, a method, a class, a metric.
SEARCHED = ["run_within", "submit_prior", "resourcefactori", "oldest_wait_second"]  # as the stemmer leaves them
#: Pages of Sphinx and of the theme that are not ours.
FOREIGN = ("_static/", "_modules/")


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what the tag leads to, and what it can be reached by."""
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.links.add(value)
            elif value and name == "id":
                self.anchors.add(value)


def broken_links(folder: Path) -> list[str]:
    """Return a line for each link that leads nowhere."""
    pages = {path.resolve(): Page(path.read_text("utf-8")) for path in folder.rglob("*.html")}
    broken: list[str] = []
    for path, page in pages.items():
        name = path.relative_to(folder.resolve()).as_posix()
        if name.startswith(FOREIGN):
            continue
        for link in sorted(page.links):
            if "://" in link or link.startswith(("data:", "mailto:")):
                continue
            file, anchor = urldefrag(link)
            target = (path.parent / unquote(file.partition("?")[0])).resolve() if file else path
            if not target.exists():
                broken.append(f"{name}: there is no {link}")
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
                broken.append(f"{name}: there is no anchor {link}")
    return broken


def unknown_words(folder: Path) -> list[str]:
    """Return a line for each word that the search does not find."""
    text = (folder / "searchindex.js").read_text("utf-8")
    index = json.loads(text[text.index("{") : text.rindex("}") + 1])
    return [f"the search does not find {word}" for word in SEARCHED if word not in index["terms"]]


if __name__ == "__main__":
    faults = broken_links(Path(sys.argv[1])) + unknown_words(Path(sys.argv[1]))
    print(*faults, sep="\n", end="\n" * bool(faults))
    sys.exit(bool(faults))
