"""How Sphinx builds the documentation: ``make docs``. Nothing is downloaded, so it works without a network."""

from __future__ import annotations

import builtins
import logging
import sys

import tasker_executor

project = "tasker_executor"
author = "The tasker_executor authors"
copyright = author
version = release = tasker_executor.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = project
html_static_path = ["_static"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# Each reference must have its target (`-n`). Those to the standard library and to the drivers are told apart by
# their first word: their inventories are not here, and a build must not need the network.
nitpicky = True
default_role = "py:obj"
DRIVERS = ["distributed", "opentelemetry", "pika", "prometheus_client", "psycopg", "pymysql", "redis", "rich", "sqlalchemy"]
_elsewhere = "|".join([*sorted(sys.stdlib_module_names), *DRIVERS, *dir(builtins)])
nitpick_ignore_regex = [("py:.*", rf"({_elsewhere})(\..*)?")]

# A folder may be without pages for some time. This warning has no type that `suppress_warnings` could name.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(lambda record: "glob pattern" not in str(record.msg))
