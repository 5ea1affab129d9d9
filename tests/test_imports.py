"""What an import costs: which modules it loads, and which ones are loaded when they are first used."""

from __future__ import annotations

import pickle

import pytest

import tasker_executor
from support import run_python
from tasker_executor import _MODULES
from tasker_executor._frozen import frozen

#: What only some programs need, and takes long to import.
ON_USE = [
    *("csv", "dataclasses", "ipaddress", "lzma", "numbers", "pathlib", "random", "shutil", "signal", "statistics", "tempfile"),
    *("asyncio", "inspect", "tasker_executor.aio", "tasker_executor.simulation", "tasker_executor.recording"),
    *("tasker_executor.observers", "tasker_executor.policies", "tasker_executor.stats"),
]


def loaded_by(source: str) -> set[str]:
    """The modules that a program has loaded, and an interpreter with typing_extensions and the standard pool has not."""
    before = "import sys, typing_extensions, concurrent.futures.thread; before = set(sys.modules)"
    result = run_python(f"{before}\n{source}\nprint(*sorted(set(sys.modules) - before))")
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_an_import_loads_nothing_else_until_a_name_is_used() -> None:
    assert loaded_by("import tasker_executor") == {"tasker_executor"}


@pytest.mark.parametrize(
    "source",
    [
        "from tasker_executor import ResourceExecutor",
        "from tasker_executor import ResourceExecutor\nwith ResourceExecutor(2) as pool: pool.submit(abs, -1).result()",
    ],
    ids=["the executor", "a task"],
)
def test_what_few_programs_need_is_loaded_when_it_is_used(source: str) -> None:
    loaded = loaded_by(source)

    assert "tasker_executor._engine.core" in loaded
    assert [name for name in ON_USE if name in loaded] == []


def test_no_data_class_is_made_for_the_engine() -> None:
    """To make one takes as long as to import three modules."""
    source = "import dataclasses\nmake, made = dataclasses.dataclass, []\n"
    source += "dataclasses.dataclass = lambda *args, **kwargs: made.append(1) or make(*args, **kwargs)\n"

    loaded_by(f"{source}from tasker_executor import ResourceExecutor; assert not made")


def test_all_names_are_those_that_are_loaded_on_use() -> None:
    assert sorted(name for names in _MODULES.values() for name in names.split()) == sorted(tasker_executor.__all__)
    assert set(dir(tasker_executor)) >= set(tasker_executor.__all__)


@pytest.mark.parametrize("name", tasker_executor.__all__)
def test_every_name_is_there_and_stays_the_same(name: str) -> None:
    value = getattr(tasker_executor, name)

    assert value is getattr(tasker_executor, name) is vars(tasker_executor)[name]
    assert pickle.loads(pickle.dumps(value)) is value


@pytest.mark.parametrize("module", ["exceptions", "factory", "futures", "observers", "policies", "stats"])
def test_a_module_is_an_attribute_although_it_was_not_imported(module: str) -> None:
    loaded_by(f"import tasker_executor; assert tasker_executor.{module}.__all__")


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tasker_executor' has no attribute 'Pool'"):
        getattr(tasker_executor, "Pool")  # noqa: B009  # type checkers know that there is none


def test_all_names_of_the_package_can_be_imported_at_once() -> None:
    assert "tasker_executor.policies" in loaded_by("from tasker_executor import *; assert ResourceExecutor, RatePolicy")


@frozen
class Point:
    x: int
    y: int = 0


def test_a_frozen_class_has_its_names_and_defaults() -> None:
    point = Point(x=3)

    assert (point.x, point.y, Point(x=1, y=2).y) == (3, 0, 2)


@pytest.mark.parametrize("values", [{}, {"y": 1}, {"x": 1, "z": 2}], ids=str)
def test_a_frozen_class_takes_its_names_and_no_others(values: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="Point has x, y, and not "):
        Point(**values)


def test_a_frozen_value_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="a Point is frozen: x cannot be changed"):
        Point(x=3).x = 4  # type: ignore[misc]  # that is the test
