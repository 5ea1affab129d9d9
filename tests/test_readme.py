"""The README: short, true, and fit for a package index. (That its doctests work: ``pytest README.rst``.)"""

from __future__ import annotations

import importlib
import re
import sqlite3
import subprocess
import sys
import textwrap
import tomllib
import uuid
from pathlib import Path
from typing import Any

import pytest

import tasker_executor
from guide import PAGES, README, ROOT
from support import DEADLINE

LINKS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
PROJECT = LINKS["Repository"]
DOCUMENTATION = LINKS["Documentation"] + "en/latest/"
PICTURES = PROJECT.replace("//github.com", "//raw.githubusercontent.com") + "/main/"
URLS = re.findall(r"https://[^\s>`]+", README)


def block(language: str) -> str:
    """Return the only block of code in this language."""
    [text] = re.findall(rf"^\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)", README, re.MULTILINE)
    return textwrap.dedent(text)


def test_it_is_read_in_a_few_minutes() -> None:
    assert len(README.splitlines()) <= 200


def test_its_commands_exist() -> None:
    commands = re.findall(r"^    make (\w+)", README, re.MULTILINE)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)

    assert commands == ["demo", "test"]
    assert set(commands) <= set(targets)


def test_every_block_of_code_is_tested() -> None:
    blocks = re.findall(r"^\.\. (?:code|code-block|sourcecode):: *(.*)|^(?!\.\. ).*(::)$", README, re.MULTILINE)

    shell = ["::", "::"]
    assert sorted("".join(found) for found in blocks) == [*shell, "diff", "python"], "the tests below run the last two"


def test_it_is_restructuredtext_without_warnings() -> None:
    core: Any = pytest.importorskip("docutils.core", reason="docutils is not installed")

    core.publish_doctree(README, settings_overrides={"report_level": 1, "halt_level": 1})  # raises at the first


# -- what a package index shows --


def test_its_pictures_are_absolute_and_exist() -> None:
    pictures = re.findall(r"\.\. image:: (\S+)", README)

    assert pictures
    for url in pictures:
        assert url.startswith(PICTURES), url
        assert (ROOT / url.removeprefix(PICTURES)).exists(), url


def test_its_links_are_absolute_and_lead_to_what_there_is() -> None:
    for url in URLS:
        if url.startswith(DOCUMENTATION):
            page = url.removeprefix(DOCUMENTATION).removesuffix(".html") or "index"
            assert page in PAGES or page == "index", url
        elif url.startswith(PROJECT):
            assert (ROOT / re.sub("/(tree|blob)/main/", "", url.removeprefix(PROJECT))).exists(), url
        else:
            assert url.startswith(PICTURES), url
    assert not re.search(r"`[^`]*<(?!https://)[^`]*>`__?", README), "a relative link"


# -- before and after --


@pytest.mark.parametrize("side", ["-", "+"])
def test_before_and_after_do_the_same(side: str, tmp_path: Path) -> None:
    lines = [line[1:] for line in block("diff").splitlines() if not line or line[0] in (side, " ")]
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.executescript("create table people (n); create table orders (n); insert into orders values (1)")
    database.close()
    program = "\n".join(["import sqlite3, threading", *lines, "print(counts)"])

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=DEADLINE
    )

    assert done.stdout.decode() == "[(0,), (1,)]\n", done.stderr.decode()


# -- the factories --


@pytest.mark.services
def test_the_job_with_postgresql_does_what_it_says(postgres: str) -> None:
    psycopg: Any = pytest.importorskip("psycopg")
    schema = f"readme_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres, autocommit=True) as server:
        server.execute(f"create schema {schema}")
        try:
            server.execute(f"create table {schema}.people (id integer, name text)")
            server.execute(f"insert into {schema}.people values (0, 'nobody'), (1, 'nobody')")
            address = f"{postgres} options=-csearch_path={schema}"
            exec(block("python").replace("host=db dbname=shop", address), {})
            names = server.execute(f"select name from {schema}.people order by id").fetchall()
        finally:
            server.execute(f"drop schema {schema} cascade")

    assert names == [("Ada",), ("Grace",)]


def test_the_table_of_factories_names_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = dict(re.findall(r"^``\.resources\.(\w+)`` +``(.+?\))``", README, re.MULTILINE))
    modules = {file.stem for file in (ROOT / "tasker_executor/resources").glob("[a-z]*.py")}

    assert set(rows) == modules
    for name, call in rows.items():
        path = f"tasker_executor.resources.{name}"
        if not hasattr(sys.modules.get(path), "__all__"):  # pytest, looking for doctests, leaves half of a module there
            monkeypatch.delitem(sys.modules, path, raising=False)
        try:
            module = importlib.import_module(path)
        except ImportError:
            continue  # an extra that is not installed here
        assert isinstance(eval(call, vars(module)), tasker_executor.ResourceFactory), name  # makes no connection yet
