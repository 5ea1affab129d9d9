"""A canvas for the pictures of the documentation: it writes SVG, in colours for light and dark pages.

An SVG that a page shows as an image does not know the colours of the page. So each picture brings a card of its
own, and asks the reader's system whether that card is to be light or dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["Canvas", "Point"]

Point = tuple[float, float]

# Each kind of thing: its fill and its line, on a light card and on a dark one.
COLOURS = {
    "card": ("#ffffff", "#d0d7de", "#0d1117", "#3d444d"),
    "box": ("#f6f8fa", "#8c959f", "#161b22", "#7d8590"),
    "blue": ("#ddf4ff", "#0969da", "#0f2440", "#4493f8"),
    "green": ("#dafbe1", "#1a7f37", "#0f2d1b", "#3fb950"),
    "amber": ("#fff3c4", "#9a6700", "#332709", "#d29922"),
    "red": ("#ffebe9", "#cf222e", "#3a1517", "#f85149"),
}
TEXT = {"text": ("#1f2328", "#f0f6fc"), "faint": ("#59636e", "#9198a1")}
SANS = "system-ui, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def _style() -> str:
    light, dark = [], []
    for name, (fill, line, dark_fill, dark_line) in COLOURS.items():
        light.append(f".{name}{{fill:{fill};stroke:{line}}} .in-{name}{{fill:{line}}}")
        dark.append(f".{name}{{fill:{dark_fill};stroke:{dark_line}}} .in-{name}{{fill:{dark_line}}}")
    for name, (colour, dark_colour) in TEXT.items():
        light.append(f".{name}{{fill:{colour}}}")
        dark.append(f".{name}{{fill:{dark_colour}}}")
    lines: list[str] = [
        f"text{{font-family:{SANS};font-size:14px}}",
        f".mono{{font-family:{MONO};font-size:13px;white-space:pre}}",
        ".small{font-size:12px}",
        ".bold{font-weight:600}",
        ".line{fill:none;stroke-width:1.5}",
        ".dashed{stroke-dasharray:5 4}",
        *light,
        "@media (prefers-color-scheme: dark) {",
        *dark,
        "}",
    ]
    return "\n".join(lines)


class Canvas:
    """A card on which boxes, texts and arrows are put.

    Args:
        width: In pixels.
        height: In pixels.
        title: What the picture shows, for readers who do not see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self._width, self._height = width, height
        self._title = title
        self._parts: list[str] = []
        self.rect(0.5, 0.5, width - 1, height - 1, "card", radius=10)

    def rect(self, x: float, y: float, width: float, height: float, kind: str, *, radius: float = 6) -> None:
        """Put a rectangle."""
        self._parts.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"/>')

    def text(self, x: float, y: float, text: str, kind: str = "text", *, anchor: str = "middle") -> None:
        """Put a line of text whose base line is at `y`."""
        self._parts.append(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text, quote=False)}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, lines: Sequence[str], kind: str = "box") -> None:
        """Put a rectangle with lines of text in its middle; the first is bold, and code begins with a backtick."""
        self.rect(x, y, width, height, kind)
        top = y + height / 2 - 9 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            style = "text bold" if number == 0 else "faint small"
            if line.startswith("`"):
                line, style = line[1:], "text mono" if number == 0 else "faint mono small"
            self.text(x + width / 2, top + 18 * number, line, style)

    def cylinder(self, x: float, y: float, width: float, height: float, kind: str = "green") -> None:
        """Put a resource."""
        middle, cap = width / 2, 6
        self._parts.append(
            f'<path class="{kind}" d="M{x:g} {y + cap:g} a{middle:g} {cap} 0 0 1 {width:g} 0 v{height - 2 * cap:g} '
            f'a{middle:g} {cap} 0 0 1 {-width:g} 0 z"/>'
        )
        self._parts.append(
            f'<path class="{kind} line" style="fill:none" d="M{x:g} {y + cap:g} a{middle:g} {cap} 0 0 0 {width:g} 0"/>'
        )

    def line(self, points: Sequence[Point], kind: str = "box", *, dashed: bool = False) -> None:
        """Put a line through these points."""
        path = " ".join(f"{'L' if number else 'M'}{x:g} {y:g}" for number, (x, y) in enumerate(points))
        self._parts.append(f'<path class="{kind} line{" dashed" * dashed}" style="fill:none" d="{path}"/>')

    def arrow(self, points: Sequence[Point], kind: str = "box", *, dashed: bool = False) -> None:
        """Put a line through these points, with a head at the last."""
        self.line(points, kind, dashed=dashed)
        (x0, y0), (x, y) = points[-2:]
        length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5
        dx, dy = (x - x0) / length, (y - y0) / length
        wings = [(x - 8 * dx - 4 * side * dy, y - 8 * dy + 4 * side * dx) for side in (1, -1)]
        head = " ".join(f"L{wing_x:.1f} {wing_y:.1f}" for wing_x, wing_y in wings)
        self._parts.append(f'<path class="in-{kind}" d="M{x:g} {y:g} {head} z"/>')

    def area(self, points: Sequence[Point], kind: str) -> None:
        """Fill what is inside of these points."""
        path = " ".join(f"{'L' if number else 'M'}{x:.1f} {y:.1f}" for number, (x, y) in enumerate(points))
        self._parts.append(f'<path class="in-{kind}" d="{path} z"/>')

    def dot(self, x: float, y: float, kind: str, radius: float = 1.6) -> None:
        """Put a dot."""
        self._parts.append(f'<circle class="in-{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>')

    def svg(self) -> str:
        """Return the picture."""
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self._width}" height="{self._height}" '
            f'viewBox="0 0 {self._width} {self._height}" role="img">\n'
            f"<title>{escape(self._title)}</title>\n<style>\n{_style()}\n</style>\n{body}\n</svg>\n"
        )
