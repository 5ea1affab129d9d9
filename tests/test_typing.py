"""What the types say is true. `typing_accepted` and `typing_rejected` are read by mypy and pyright; here the former is run."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import tasker_executor
import typing_accepted
from tasker_executor._base import BaseExecutor

PACKAGE = Path(tasker_executor.__file__).parent
REJECTED = Path(__file__).with_name("typing_rejected.py")


def claims() -> list[Callable[[], None]]:
    functions = [value for value in vars(typing_accepted).values() if isinstance(value, FunctionType)]
    return [
        function
        for function in functions
        if function.__module__ == "typing_accepted" and function.__annotations__ == {"return": "None"}
    ]


@pytest.mark.parametrize("claim", [pytest.param(claim, id=claim.__name__) for claim in claims()])
def test_accepted_uses_work(claim: Callable[[], None]) -> None:
    claim()


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_every_rejected_use_says_which_error_and_why() -> None:
    functions = [node for node in ast.parse(REJECTED.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)]
    comments = re.findall(r"# type: ignore(.*)", REJECTED.read_text("utf-8"))

    assert len(comments) > len(functions)
    assert [comment for comment in comments if not re.fullmatch(r"\[[a-z, -]+\]  # .+", comment)] == []


def test_only_submit_and_map_do_not_fit_an_executor() -> None:
    """With a resource they call functions that take one argument more. That is the point."""
    lines = [
        line
        for module in ("_typed.py", "_base.py", "_map.py", "_executor.py")
        for line in (PACKAGE / module).read_text("utf-8").splitlines()
    ]
    methods = [after.strip() for line, after in pairwise(lines) if re.search(r"type: ignore\[.*override", line)]

    assert [method.partition("(")[0] for method in methods] == ["def submit", "def map"]


@pytest.mark.parametrize("method", ["submit", "submit_priority", "run_now"])
def test_a_method_written_out_for_speed_has_the_signature_that_checkers_see(method: str) -> None:
    fast = parameters(getattr(tasker_executor.ResourceExecutor, method))

    assert fast == parameters(getattr(BaseExecutor, method))
    assert getattr(tasker_executor.ResourceExecutor, method).__doc__ == getattr(BaseExecutor, method).__doc__


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Return kind and default of each parameter, in their order."""
    return {name: (p.kind, p.default) for name, p in inspect.signature(function).parameters.items()}
