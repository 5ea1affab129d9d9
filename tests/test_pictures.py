"""The pictures of the documentation are what the code beside them draws, and some page shows each of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from guide import GUIDE, ROOT
from support import DEADLINE

FOLDER = ROOT / "docs/pictures"
PICTURES = sorted(FOLDER.glob("*.svg"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures as they are drawn now."""
    folder = tmp_path_factory.mktemp("pictures")
    subprocess.run([sys.executable, FOLDER / "draw.py", folder], check=True, timeout=DEADLINE)
    return folder


def test_no_other_pictures_are_drawn(drawn: Path) -> None:
    assert {file.name for file in drawn.iterdir()} == {file.name for file in PICTURES}


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.stem)
def test_a_picture_is_what_the_code_draws(picture: Path, drawn: Path) -> None:
    assert picture.read_text("utf-8") == (drawn / picture.name).read_text("utf-8"), "run: python docs/pictures/draw.py"


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.stem)
def test_a_page_shows_it(picture: Path) -> None:
    assert f"pictures/{picture.name}" in GUIDE


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.stem)
def test_it_is_made_for_light_and_dark_pages(picture: Path) -> None:
    text = picture.read_text("utf-8")

    assert "prefers-color-scheme: dark" in text
    assert 'class="card"' in text, "its own background"
