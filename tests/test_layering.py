"""Imports point strictly down the layers; the core needs the standard library and typing_extensions, and no extra."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = "tasker_executor"
FOLDER = Path(__file__).parent.parent / PACKAGE

LAYERS = [
    {"exceptions", "_types", "_handoff"},
    {"_report", "_threads"},
    {"stats"},
    {"policies", "observers", "_options", "_current"},
    {"_work_item", "_lanes", "_resources", "_recorder", "_admission"},
    {"_worker", "_supervisor"},
    {"_core", "_base"},
    {"_executor", "_telemetry"},
    {"testing", "simulation", "tracing", "prometheus", "opentelemetry", "monitor", "plot", "dask"},
    {"__init__"},
]
EXTRAS = {"prometheus", "opentelemetry", "monitor", "plot", "dask"}

LAYER_OF = {module: number for number, layer in enumerate(LAYERS) for module in layer}
MODULES = sorted(path.stem for path in FOLDER.glob("*.py"))
CORE = [module for module in MODULES if module not in EXTRAS]


class Imports(ast.NodeVisitor):
    """Collects what a module imports when it is run: in functions too, but not under ``if TYPE_CHECKING``."""

    def __init__(self) -> None:
        self.ours: set[str] = set()
        self.others: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        skipped = node.body if ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"} else []
        for child in ast.iter_child_nodes(node):
            if child not in skipped:
                self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = [PACKAGE] * bool(node.level) + [node.module] * bool(node.module)  # The package is flat: one dot at most.
        source = ".".join(filter(None, base))
        if source != PACKAGE:
            self._add(source)
            return
        for alias in node.names:  # `from . import stats` names a module, `from . import ResourceExecutor` what __init__ has.
            self._add(f"{PACKAGE}.{alias.name}" if alias.name in LAYER_OF else PACKAGE)

    def _add(self, name: str) -> None:
        top, _, rest = name.partition(".")
        if top == PACKAGE:
            self.ours.add(rest.partition(".")[0] or "__init__")
        else:
            self.others.add(top)


def imports_of(source: str) -> Imports:
    imports = Imports()
    imports.visit(ast.parse(source))
    return imports


def imports_of_module(module: str) -> Imports:
    return imports_of((FOLDER / f"{module}.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source, ours, others",
    [
        ("import os.path, queue as q", "", "os queue"),
        ("from . import stats, ResourceExecutor", "__init__ stats", ""),
        ("from ._types import State", "_types", ""),
        ("from tasker_executor import stats, ResourceExecutor", "__init__ stats", ""),
        ("from tasker_executor._types import State", "_types", ""),
        ("import tasker_executor._types", "_types", ""),
        ("import tasker_executor", "__init__", ""),
        ("def lazy():\n    import rich", "", "rich"),
        ("if TYPE_CHECKING:\n    from ._executor import ResourceExecutor\nelse:\n    import os", "", "os"),
    ],
)
def test_every_form_of_import_is_seen(source: str, ours: str, others: str) -> None:
    imports = imports_of(source)

    assert sorted(imports.ours) == ours.split()
    assert sorted(imports.others) == others.split()


@pytest.mark.parametrize("module", MODULES)
def test_module_has_a_layer(module: str) -> None:
    assert module in LAYER_OF


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    not_down = {name for name in imports_of_module(module).ours if LAYER_OF[name] >= LAYER_OF[module]}

    assert not not_down


@pytest.mark.parametrize("module", CORE)
def test_core_imports_no_extra(module: str) -> None:
    assert not imports_of_module(module).ours & EXTRAS


@pytest.mark.parametrize("module", CORE)
def test_core_needs_the_standard_library_and_typing_extensions_alone(module: str) -> None:
    assert not imports_of_module(module).others - sys.stdlib_module_names - {"typing_extensions"}
