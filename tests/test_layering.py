"""Imports point strictly down the layers, type imports included; the core needs no library but typing_extensions."""

from __future__ import annotations

import ast
import graphlib
import sys
from pathlib import Path

import pytest

PACKAGE = "tasker_executor"
FOLDER = Path(__file__).parent.parent / PACKAGE

LAYERS = [
    {"exceptions", "stats", "_sync", "_frozen", "factory", "futures", "_engine.__init__"},
    {"_types", "_report", "_results", "_engine.stopping", "_engine.histogram"},
    {"_checks", "_engine.threads", "_engine.state", "_engine.run"},
    {"_options", "policies", "observers", "_engine.process", "_engine.current", "_engine.hooks"},
    {"_chunks", "_hub"},
    {"_arrivals"},
    {"_map"},
    {"_typed", "_async_map", "recording", "_engine.settings", "_engine.handoff", "_engine.unretrieved", "_engine.stacks"},
    {"aio"},
    {"_base", "_load", "_engine.herald", "_engine.sidecar", "_engine.holding"},
    {
        "simulation",
        "_engine.callbacks",
        "_engine.lanes",
        "_engine.invoke",
        "_engine.resources",
        "_engine.aborts",
        "_engine.timer",
        "_engine.outage",
    },
    {
        "_engine.waiting",
        "_engine.recorder",
        "_engine.places",
        "_engine.stock",
        "_engine.runs",
        "_engine.idle",
        "_engine.admission",
    },
    {"_engine.foreign", "_engine.reserve"},
    {"_engine.stoppable"},
    {"_engine.task"},
    {"_engine.calls", "_engine.parked", "_engine.nesting", "_engine.limits", "_engine.deadlines"},
    {"_engine.workplace"},
    {"_engine.attempt", "_engine.care", "_engine.life"},
    {"_engine.hand"},
    {"_engine.worker"},
    {"_engine.roster", "_engine.notices", "_engine.slow"},
    {"_engine.supply"},
    {"_engine.crew"},
    {"_engine.deadlock", "_engine.recovery", "_engine.stops"},
    {"_engine.gauges"},
    {"_engine.scaler", "_engine.ending", "_engine.watch"},
    {"_engine.core"},
    {"_engine.submission", "_reporting"},
    {"_view"},
    {"_executor"},
    {"resources.__init__", "resources._commit", "resources._sockets"},
    {"resources.http", "resources.pika", "resources.psycopg", "resources.pymysql", "resources.redis", "resources.sqlite3"},
    {"resources.sqlalchemy"},
    {"_telemetry", "_progress", "testing.fakes", "testing._runs"},
    {"testing._tasks"},
    {"testing._books"},
    {"testing.inline"},
    {"testing.leaks"},
    {"testing.__init__"},
    {"prometheus", "opentelemetry", "monitor", "plot", "dask.wire", "dask.reports"},
    {"dask.worker_side", "dask.scheduler_side", "dask.futures"},
    {"dask.stops"},
    {"dask.books", "dask.deployment"},
    {"dask.client_side", "dask.adaptive"},
    {"dask.__init__"},
    {"__init__"},
]
EXTRAS = {"prometheus", "opentelemetry", "monitor", "_progress", "plot", "dask", "resources"}

LAYER_OF = {module: number for number, layer in enumerate(LAYERS) for module in layer}
MODULES = sorted(".".join(path.relative_to(FOLDER).with_suffix("").parts) for path in FOLDER.rglob("*.py"))
CORE = [module for module in MODULES if module.partition(".")[0] not in EXTRAS]


class Imports(ast.NodeVisitor):
    """Collects what a module imports: in functions too, and of our own modules under ``if TYPE_CHECKING``, too."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.ours: set[str] = set()
        self.others: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        others = self.others.copy()
        for child in node.body:
            self.visit(child)
        if ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            self.others = others  # they need not be installed; but to know a type of ours is to know its module
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        above = f"{PACKAGE}.{self.module}".split(".")[: -node.level] if node.level else []
        source = ".".join([*above, *filter(None, [node.module])])
        for alias in node.names:  # `from . import stats` names a module, `from . import ResourceExecutor` what __init__ has.
            inner = f"{source}.{alias.name}".removeprefix(f"{PACKAGE}.")
            self._add(f"{PACKAGE}.{inner}" if source.startswith(PACKAGE) and known(inner) else source)

    def _add(self, name: str) -> None:
        top, _, rest = name.partition(".")
        if top == PACKAGE:
            self.ours.add(known(rest) or rest)
        else:
            self.others.add(top)


def known(name: str) -> str:
    """The module of that dotted name, if there is one; the empty string for what is none."""
    inits = f"{name}.__init__".removeprefix(".")
    return name if name in LAYER_OF else inits if inits in LAYER_OF else ""


def imports_of(source: str, module: str = "__init__") -> Imports:
    imports = Imports(module)
    imports.visit(ast.parse(source))
    return imports


def imports_of_module(module: str) -> Imports:
    return imports_of((FOLDER / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"), module)


@pytest.mark.parametrize(
    "source, ours, others",
    [
        ("import os.path, queue as q", "", "os queue"),
        ("from . import stats, ResourceExecutor", "__init__ stats", ""),
        ("from ._types import AbortHook", "_types", ""),
        ("from ._engine.state import State", "_engine.state", ""),
        ("from ._engine import state, lanes", "_engine.lanes _engine.state", ""),
        ("from tasker_executor import stats, ResourceExecutor", "__init__ stats", ""),
        ("from tasker_executor._engine.state import State", "_engine.state", ""),
        ("import tasker_executor._types", "_types", ""),
        ("import tasker_executor", "__init__", ""),
        ("def lazy():\n    import rich", "", "rich"),
        ("if TYPE_CHECKING:\n    from ._executor import ResourceExecutor\nelse:\n    import os", "_executor", "os"),
        ("if TYPE_CHECKING:\n    import rich", "", ""),
    ],
)
def test_every_form_of_import_is_seen(source: str, ours: str, others: str) -> None:
    imports = imports_of(source)

    assert sorted(imports.ours) == ours.split()
    assert sorted(imports.others) == others.split()


def test_imports_of_a_package_inside_are_seen() -> None:
    imports = imports_of(
        "from . import lanes\nfrom .state import State\nfrom .. import stats\nfrom .._sync import clock", "_engine.core"
    )

    assert sorted(imports.ours) == ["_engine.lanes", "_engine.state", "_sync", "stats"]


@pytest.mark.parametrize("module", MODULES)
def test_module_has_a_layer(module: str) -> None:
    assert module in LAYER_OF


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    not_down = {name for name in imports_of_module(module).ours if LAYER_OF[name] >= LAYER_OF[module]}

    assert not not_down


def test_no_imports_go_in_a_circle() -> None:
    sorter = graphlib.TopologicalSorter({module: imports_of_module(module).ours - {module} for module in MODULES})

    sorter.prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", CORE)
def test_core_imports_no_extra(module: str) -> None:
    assert not {name.partition(".")[0] for name in imports_of_module(module).ours} & EXTRAS


@pytest.mark.parametrize("module", CORE)
def test_core_needs_the_standard_library_and_typing_extensions_alone(module: str) -> None:
    assert not imports_of_module(module).others - sys.stdlib_module_names - {"typing_extensions"}
