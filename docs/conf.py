"""How Sphinx builds the documentation: ``make docs``. Nothing is downloaded, so it works without a network."""

from __future__ import annotations

import builtins
import importlib
import sys
from typing import TYPE_CHECKING, Any

from sphinx.errors import PycodeError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode

import tasker_executor

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "tasker_executor"
author = "The tasker_executor authors"
copyright = author
version = release = tasker_executor.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
html_show_sphinx = False

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Gauges", "params_style"), ("Counters", "params_style")]

# -- references --

# A name in single backticks is a link if the name is one of ours, and code if not.
default_role = "py:obj"
nitpicky = True

#: Where names are documented that are defined elsewhere: ``tasker_executor._executor.ResourceExecutor`` for example.
PUBLIC_MODULES = ["aio", "dask", "exceptions", "factory", "futures", "monitor", "observers", "opentelemetry", "plot"]
PUBLIC_MODULES += ["policies", "prometheus", "recording", "simulation", "stats", "testing"]
PUBLIC_NAMES: dict[str, str] = {}
for _module in [*(f"tasker_executor.{name}" for name in PUBLIC_MODULES), "tasker_executor"]:
    for _name in importlib.import_module(_module).__all__:
        _thing = getattr(importlib.import_module(_module), _name)
        if hasattr(_thing, "__qualname__"):
            PUBLIC_NAMES[f"{_thing.__module__}.{_thing.__qualname__}"] = f"{_module}.{_name}"

# The standard library and the drivers: their inventories are not here, and a build must not need the network.
DRIVERS = [
    "dask",
    "distributed",
    "opentelemetry",
    "pika",
    "prometheus_client",
    "psycopg",
    "pymysql",
    "redis",
    "rich",
    "sqlalchemy",
]
_elsewhere = "|".join([*sorted(sys.stdlib_module_names), *DRIVERS, *dir(builtins)])
nitpick_ignore_regex = [
    ("py:.*", rf"({_elsewhere})(\..*)?"),
    ("py:class", r"(.*\.)?([CPRT]|T\d|P\.k?w?args|Parameters)"),  # type variables
    ("py:class", r".*\.Unset"),  # an option that was not given
    ("py:class", "AbstractContextManager|Client|Engine|SupportsWrite|URL"),  # imported for type checkers alone
]

#: What a short name may stand for on any page. That of a method or of a field needs the name of its class.
LINKED = {"class", "exception", "function"}


def find_name(app: Sphinx, env: BuildEnvironment, node: Element, content: Element) -> Element | None:
    """Find what a short or a private name stands for; called for references that Sphinx does not find.

    Returns None for a name that should be one of ours and is not, which is a warning.
    """
    if node.get("refdomain") != "py":
        return None
    target = str(node["reftarget"])
    if target.endswith("Hook"):  # the type of a hook, which stands in the table of arguments
        return make_refnode(app.builder, node["refdoc"], "reference/arguments", "arguments", content)
    owner, _, attribute = target.rpartition(".")
    if attribute in getattr(getattr(tasker_executor, owner, None), "__dataclass_fields__", ()):
        target = owner  # the page has a list of the fields below the class
    objects = env.domains.python_domain.objects
    found = PUBLIC_NAMES.get(target)
    if found is None:
        ends = [
            name
            for name, entry in objects.items()
            if name.endswith(f".{target}") and (entry.objtype in LINKED or "." in target)
        ]
        first = [f"tasker_executor.{target}", f"tasker_executor.ResourceExecutor.{target}", *(ends if len(ends) == 1 else [])]
        found = next((name for name in first if name in objects), None)
    if found in objects:
        entry = objects[found]
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, found)
    if node["reftype"] != "obj":
        return None
    return None if target.partition(".")[0] in tasker_executor.__all__ else content


# -- docstrings --


def drop_arguments(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Leave out what the constructor's table says already: one table, one truth."""
    if name == "tasker_executor.ResourceExecutor" and "Args:" in lines:
        start = lines.index("Args:")
        end = next(index for index in range(start, len(lines)) if lines[index] == "Raises:")
        lines[start:end] = ["The arguments are listed in :ref:`arguments`.", ""]


def show_one_signature(app: Sphinx, what: str, name: str, thing: Any, *_: Any) -> None:
    """Show the signature of the implementation: the overloads, of `map` there are twelve, are for type checkers."""
    try:
        analyzer = ModuleAnalyzer.for_module(thing.__module__)
        analyzer.analyze()
    except (AttributeError, PycodeError):
        return
    analyzer.overloads.clear()


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", find_name)
    app.connect("autodoc-process-docstring", drop_arguments, priority=1)  # before napoleon
    app.connect("autodoc-process-signature", show_one_signature)
