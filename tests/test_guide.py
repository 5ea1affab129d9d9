"""What users read names only what exists; so does the changelog. (That all is named: test_docs.py.)"""

from __future__ import annotations

import operator
import re
from itertools import product

import pytest

import tasker_executor
from guide import GUIDE, PAGES, ROOT
from tasker_executor import ExecutorMetrics, ExecutorStats, ResourceExecutor
from tasker_executor.stats import DurationSummary

COMING_FROM_GO = PAGES["howto/coming-from-go"].partition("\nWhat it gets wrong")[0]
UNRELEASED = (ROOT / "CHANGELOG.md").read_text("utf-8").partition("## [Unreleased]")[2].partition("\n## ")[0]


def public(thing: object) -> list[str]:
    return [name for name in dir(thing) if not name.startswith("_")]


def test_the_test_files_that_it_names_exist() -> None:
    files = set(re.findall(r"\btests/\w+\.py", GUIDE))

    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_files_of_the_engine_that_it_names_exist() -> None:
    files = set(re.findall(r"``_engine/(\w+)(?:\.py)?``", GUIDE))

    assert files
    assert [file for file in files if not (ROOT / "tasker_executor/_engine" / f"{file}.py").exists()] == []


# -- coming from Go --


def test_every_method_of_the_go_library_has_its_line() -> None:
    variants = product(["", "WithPriority"], ["", "Once"], ["", "Async", "WithCallback"])
    methods = ["".join(["QueueTask", *variant]) for variant in variants]
    methods += ["NewTaskManager", "RunTask", "Stats", "Metrics", "Stop", "Kill"]

    assert [method for method in methods if f"``{method}(" not in COMING_FROM_GO] == []


@pytest.mark.parametrize(
    "variable, thing", [("pool", ResourceExecutor), ("metrics", ExecutorMetrics), ("stats", ExecutorStats)]
)
def test_what_the_go_tables_name_as_ours_exists(variable: str, thing: type) -> None:
    ours = re.findall(rf"\b{variable}\.(\w+)", COMING_FROM_GO)
    fields = {*public(thing), *getattr(thing, "__dataclass_fields__", ())}

    assert ours
    assert [name for name in ours if name not in fields] == []


def test_the_go_tables_name_fields_of_summaries_that_exist() -> None:
    ours = re.findall(r"(?:\brun|\bwait|``)\.(\w+)", COMING_FROM_GO)

    assert set(ours) == set(DurationSummary.__dataclass_fields__) - {"count", "total", "p50"}


def test_every_name_in_the_changelog_exists() -> None:
    gone = set(re.findall(r"^- `([\w.]+)(?:\(\))?` is now ", UNRELEASED, re.MULTILINE))
    names = set(re.findall(r"`(tasker_executor(?:\.\w+)+)[()`]", UNRELEASED)) - gone - {"tasker_executor.lost"}  # a logger

    assert names
    for name in names:
        module, _, rest = name.removeprefix("tasker_executor.").partition(".")
        inner = f"{module}/{rest.partition('.')[0]}"
        if (ROOT / "tasker_executor" / f"{inner}.py").exists():  # a module of a package
            module, rest = inner, rest.partition(".")[2]
        files = [ROOT / "tasker_executor" / f"{module}.py", *(ROOT / "tasker_executor" / module).glob("*.py")]
        texts = [file.read_text("utf-8") for file in files if file.exists()]
        if texts:  # The class is looked for in the text of its module or package: extras may be absent.
            *_, last = rest.split(".")  # of a method, its own name
            assert not rest or re.search(rf"^ *(?:class|def) {last}\b", "\n".join(texts), re.MULTILINE), name
        else:
            operator.attrgetter(name.removeprefix("tasker_executor."))(tasker_executor)
