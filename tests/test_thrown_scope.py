"""An error thrown into a worker's thread, at every point of the life of one that has scopes and cleans its resource."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest

import test_thrown
from support import FakeResource, Ledger, ResourceBroken
from tasker_executor import Verdict
from test_thrown import KINDS, Books, Life, Pool, fail, live_once, returns

pytestmark = [*test_thrown.pytestmark, pytest.mark.long]
_short_pauses = test_thrown._short_pauses


@contextmanager
def scope(_: FakeResource) -> Generator[None]:
    yield


def clean(_: FakeResource) -> None:
    """Clean a resource."""


def scoped(_: Ledger) -> dict[str, Any]:
    return {"around": scope}


def cleaned(_: Ledger) -> dict[str, Any]:
    return {"on_reset": clean}


def both(ledger: Ledger) -> dict[str, Any]:
    return {"around": scope, "on_reset": clean, "check_resource": ledger.is_usable, "max_uses": 2}


def again_once() -> Callable[[FakeResource], None]:
    runs: list[int] = []

    def work(_: FakeResource) -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ResourceBroken

    return work


def is_run_again(pool: Pool, books: Books) -> None:
    books.submit(pool, "only", again_once())


def says_again(_: Exception) -> Verdict:
    return Verdict.AGAIN


def again(ledger: Ledger) -> dict[str, Any]:
    return {**both(ledger), "check_health": says_again}


def raises_once(pool: Pool, books: Books) -> None:
    books.submit(pool, "only", fail)


def is_refreshed(pool: Pool, books: Books) -> None:
    books.submit(pool, "before")
    pool.refresh()
    books.submit(pool, "after")


LIVES: dict[str, Life] = {
    "in a scope": Life(returns, scoped),
    "in a scope, with an error": Life(raises_once, scoped, expected=LookupError),
    "with a reset": Life(returns, cleaned),
    "with a reset, with an error": Life(raises_once, cleaned, expected=LookupError),
    "with all": Life(raises_once, both, expected=LookupError),
    "refreshed": Life(is_refreshed),
    "refreshed, with all": Life(is_refreshed, both),
}


@pytest.mark.parametrize("life", list(LIVES.values()), ids=list(LIVES))
def test_an_error_thrown_into_a_worker_anywhere_costs_its_task_at_most(life: Life) -> None:
    number = 1
    while live_once(life, KINDS[number % len(KINDS)], number):
        number += 1

    assert number > 100


def test_an_error_thrown_in_between_two_attempts_costs_the_task_at_most() -> None:
    number = 1
    while live_once(Life(is_run_again, again, expected=ResourceBroken), KINDS[0], number):
        number += 1

    assert number > 100
