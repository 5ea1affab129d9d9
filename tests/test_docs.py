"""The reference is complete: what is new in the code and missing there fails here, by its name.

That the pages have no error and no dead link: ``make docs``. That their examples work: ``pytest docs``.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import tasker_executor
from guide import PAGES
from tasker_executor import Observer, ResourceExecutor, TaskFuture, Verdict, exceptions, observers
from tasker_executor._base import BaseExecutor
from tasker_executor._options import DEFAULT_OPTIONS, UNSET
from tasker_executor._telemetry import DISTRIBUTIONS, MEASURES
from tasker_executor.aio import AsyncView
from tasker_executor.resources._commit import CommitUnknown

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tasker_executor"
REFERENCE = ROOT / "docs" / "reference"


# -- the tables --


def rows_of(page: str, table: str) -> list[list[str]]:
    """Return the rows of a list-table, below its head, as they are written."""
    text = (REFERENCE / page).read_text("utf-8")
    _, found, after = text.partition(f"   :name: {table}\n")
    assert found, f"{page} has no {table}"
    lines = re.match(r"(?:   .*\n|\n)*", after)
    assert lines is not None
    _, *rows = re.split(r"^   \* - ", lines[0], flags=re.MULTILINE)
    return [[" ".join(cell.split()) for cell in re.split(r"^     -(?: |$)", row, flags=re.MULTILINE)] for row in rows][1:]


def words_in(cell: str) -> list[str]:
    """Return what a cell has in literals and in references, without the path before a name."""
    return [word.rpartition(".")[2] for word in re.findall(r"`+~?([^`]+)`+", cell)]


def test_a_table_is_read_as_it_is_written() -> None:
    first, *others = rows_of("arguments.rst", "arguments-table")

    assert first[:4] == ["``max_workers``", "``int | None``", "``None``", "workers"]
    assert first[4].startswith("At most this number of workers. None: ``min(32,")
    assert all(len(row) == 5 for row in others)


#: What annotations abbreviate.
ALIASES = dict(re.findall(r"^(\w+Hook) = (.+)$", (PACKAGE / "_types.py").read_text("utf-8"), re.MULTILINE))
ALIASES["OnFull"] = "Literal['block', 'raise', 'caller']"


def type_of(parameter: inspect.Parameter) -> str:
    """Return the annotation of a parameter, with aliases written out, and without what stands for "not given"."""
    annotation = re.sub(r"(\w+)(?:\[R\])?", lambda match: ALIASES.get(match[1], match[0]), str(parameter.annotation))
    return annotation.replace(" | Unset", "")


def test_the_table_of_arguments_is_the_signature() -> None:
    table = [tuple(cell.strip("`") for cell in row[:3]) for row in rows_of("arguments.rst", "arguments-table")]

    signature = inspect.signature(ResourceExecutor)
    assert table == [(name, type_of(one), repr(one.default)) for name, one in signature.parameters.items()]


def test_a_duration_and_a_number_have_a_unit() -> None:
    rows = rows_of("arguments.rst", "arguments-table") + rows_of("arguments.rst", "options-table")

    assert [name for name, kind, _, unit, _ in rows if ("int" in kind or "float" in kind) != bool(unit)] == []
    assert [name for name, kind, _, unit, _ in rows if ("float" in kind) != (unit == "seconds")] == []


def test_the_table_of_options_is_the_signature() -> None:
    table = [tuple(cell.strip("`") for cell in row[:3]) for row in rows_of("arguments.rst", "options-table")]

    def at_first(name: str) -> str:
        value = getattr(DEFAULT_OPTIONS, name)
        return "the executor's" if value is UNSET or name == "max_retries" else repr(value)

    _, *parameters = inspect.signature(vars(BaseExecutor)["with_options"]).parameters.values()
    assert table == [(one.name, type_of(one), at_first(one.name)) for one in parameters]


def test_as_async_has_the_options_of_with_options() -> None:
    names = [[*inspect.signature(vars(BaseExecutor)[method]).parameters] for method in ("with_options", "as_async")]

    assert names[0] == names[1]


def test_the_table_of_verdicts_has_each() -> None:
    named = [word for row in rows_of("factories.rst", "verdicts-table") for word in words_in(row[0])]

    assert named == [verdict.name for verdict in Verdict]


def test_the_table_of_exceptions_has_each_and_its_standard_class() -> None:
    table = [(words_in(row[0]), row[1].strip("`")) for row in rows_of("exceptions.rst", "exceptions-table")]

    ours = {name: getattr(exceptions, name) for name in exceptions.__all__ if name != "TaskerError"}
    ours["CommitUnknown"] = CommitUnknown
    assert sorted(name for names, _ in table for name in names) == sorted(ours)
    for [name], standard in table:
        assert standard.rpartition(".")[2] in [base.__name__ for base in ours[name].__mro__], name


def test_the_table_of_events_has_each_and_what_it_gets() -> None:
    table = [(*words_in(row[0]), *words_in(row[1])) for row in rows_of("observers.rst", "events-table")]

    events = [
        (name, str(inspect.signature(getattr(Observer, name)).parameters["event"].annotation)) for name in observers.EVENTS
    ]
    assert table == events


def test_the_table_of_metrics_has_each_in_both_languages() -> None:
    table = [tuple(cell.strip("`") for cell in row) for row in rows_of("numbers.rst", "metrics-table")]

    def in_prometheus(name: str, labels: tuple[str, ...]) -> str:
        return f"{name}{{{','.join(labels)}}}" if labels else name

    expected = [
        (in_prometheus(one.name + "_total" * (one.kind == "counter"), one.labels), one.otel_name, one.help) for one in MEASURES
    ]
    expected += [(in_prometheus(one.name, one.labels), one.otel_name, f"{one.help} A histogram.") for one in DISTRIBUTIONS]
    assert table == expected


# -- every public name --


def public_names() -> list[str]:
    """Return what ``__all__`` of each public module lists. The source is read: extras may be absent."""
    names: list[str] = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        elif len(parts) > 1 and parts[0] != "resources":
            continue  # the package lists what is public of it
        if any(part.startswith("_") for part in parts):
            continue
        module = ".".join(["tasker_executor", *parts])
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names += [f"{module}.{name}" for name in ast.literal_eval(node.value)]
    return names


PUBLIC_NAMES = public_names()
DIRECTIVE = re.compile(r"^( *)\.\. (currentmodule|auto\w+):: ([\w.]+)(?:.*)\n((?:\1   :.*\n)*)", re.MULTILINE)


def documented_names() -> list[str]:
    """Return the full names that the directives of the reference document."""
    found: list[str] = []
    for page in sorted(REFERENCE.glob("*.rst")):
        module = owner = ""
        for indent, directive, name, options in DIRECTIVE.findall(page.read_text("utf-8")):
            if directive in ("currentmodule", "automodule"):
                module = name
                if members := re.search(r":members:(.*)", options):
                    listed = [part.strip() for part in members[1].split(",") if part.strip()]
                    everything = [one.rpartition(".")[2] for one in PUBLIC_NAMES if one.rpartition(".")[0] == name]
                    found += [f"{name}.{member}" for member in listed or everything]
            else:
                before = f"{owner}." if indent else f"{module}."
                full = name if name.startswith("tasker_executor.") else before + name
                found.append(full)
                owner = owner if indent else full
    return found


DOCUMENTED_NAMES = documented_names()


def test_no_name_has_two_places() -> None:
    assert [name for name in {*DOCUMENTED_NAMES} if DOCUMENTED_NAMES.count(name) > 1] == []


def test_every_public_name_is_in_the_reference() -> None:
    def place(name: str) -> str:
        """The full name that the reference has it under. Modules list what the package, or another module, has, too."""
        _, _, last = name.rpartition(".")
        if last == "CommitUnknown":
            return f"tasker_executor.resources.psycopg.{last}"
        return f"tasker_executor.{last}" if last in tasker_executor.__all__ else name

    assert [name for name in PUBLIC_NAMES if place(name) not in DOCUMENTED_NAMES] == []


@pytest.mark.parametrize("owner", [ResourceExecutor, TaskFuture, AsyncView])
def test_every_method_is_in_the_reference(owner: type[Any]) -> None:
    inherited = dir(owner.__base__) if owner is TaskFuture else []
    methods = [name for name in dir(owner) if not name.startswith("_") and name not in inherited]
    module = "tasker_executor.aio" if owner is AsyncView else "tasker_executor"

    assert [name for name in methods if f"{module}.{owner.__name__}.{name}" not in DOCUMENTED_NAMES] == []


def test_every_page_of_the_reference_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.rst").read_text("utf-8")

    assert sorted(re.findall(r"^   reference/(\w+)$", index, re.MULTILINE)) == sorted(
        page.stem for page in REFERENCE.glob("*.rst")
    )


# -- the examples --

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def test_the_index_of_examples_names_each_and_is_a_page_of_the_documentation() -> None:
    index = (ROOT / "examples" / "README.rst").read_text("utf-8")

    assert sorted(re.findall(r"^   \* - ``(\w+\.py)``$", index, re.MULTILINE)) == EXAMPLES
    assert ".. include:: ../../examples/README.rst" in (REFERENCE / "examples.rst").read_text("utf-8")


def test_another_page_speaks_of_each_example() -> None:
    texts = [text for name, text in PAGES.items() if not name.startswith("reference/")]

    assert [name for name in EXAMPLES if not any(f"examples/{name}" in text for text in texts)] == []
