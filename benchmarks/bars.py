"""The bars: what each figure should be at least, or at most, and whether it is. A column for each Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import lifetimes, parallel, servers, urgent, views
from .measure import OURS, Costs, Spread, Table, times

#: Finds a ratio among all that was measured; None if it is not there.
Take = Callable[[Mapping[str, Any]], Spread | None]

#: The parts that have bars.
PARTS = ("compare", "servers", "views", "lifetimes", "memory", "urgent", "parallel")


def _costs(found: Mapping[str, Any], path: tuple[str, ...]) -> Costs | None:
    for name in path:
        if name not in found:
            return None
        found = found[name]
    return Costs.read(dict(found))


def _gain(*path: str, name: str = OURS.name, against: str | None = None) -> Take:
    """How many times less it costs."""

    def take(found: Mapping[str, Any]) -> Spread | None:
        costs = _costs(found, path)
        return costs.gains(name, against) if costs and costs.by_name.get(name) else None

    return take


def _share(*path: str, name: str = OURS.name) -> Take:
    """How many times as much it costs."""

    def take(found: Mapping[str, Any]) -> Spread | None:
        costs = _costs(found, path)
        return costs.shares(name) if costs and costs.by_name.get(name) else None

    return take


def _urgent(title: str) -> Take:
    return lambda found: urgent.allowed(found["urgent"][title]) if "urgent" in found else None


def _worst_view(way: str) -> Take:
    """The option that costs most."""

    def take(found: Mapping[str, Any]) -> Spread | None:
        spreads = [_share("views", "views", title, name=way)(found) for title in views.VIEWS]
        return max((spread for spread in spreads if spread is not None), key=lambda spread: spread.median, default=None)

    return take


def _growth(title: str) -> Take:
    """How much more a task costs among very many that wait, compared with tasks without a limit."""

    def take(found: Mapping[str, Any]) -> Spread | None:
        costs, usual = (_costs(found, ("views", "pending", name)) for name in (title, views.NO_LIMIT))
        if costs is None or usual is None:
            return None
        many = list(costs.by_name)[-1]
        pairs = zip(costs.by_name[many], costs.by_name[costs.first], strict=True)
        others = zip(usual.by_name[many], usual.by_name[usual.first], strict=True)
        return Spread.of([(most / few) / (theirs / base) for (most, few), (theirs, base) in zip(pairs, others, strict=True)])

    return take


@dataclass(frozen=True)
class Bar:
    title: str
    take: Take
    #: The median must be so much, or more. None: see `most`.
    least: float | None = None
    #: The median must be so much, or less.
    most: float | None = None
    #: No round may be below.
    worst: float | None = None
    #: In place of `least`, without the GIL.
    free: float | None = None

    def limit(self, gil: bool) -> str:
        if self.most is not None:
            return f"<= {self.most:g}"
        least = self.least if gil or self.free is None else self.free
        worst = f", no round < {self.worst:g}" if self.worst is not None and gil else ""
        return f">= {least:g}{worst}"

    def met(self, spread: Spread, gil: bool) -> bool:
        if self.most is not None:
            return spread.median <= self.most
        least = self.least if gil or self.free is None else self.free
        assert least is not None
        return spread.median >= least and not (gil and self.worst is not None and spread.least < self.worst)

    def cell(self, spread: Spread, gil: bool) -> str:
        worst = f", worst {times(spread.least)}" if self.worst is not None else ""
        return f"{spread}{worst}: {'met' if self.met(spread, gil) else 'NOT MET'}"


_BARE = servers.BARE
BARS = (
    Bar("burst, then result() of each", _gain("compare", "result"), least=9, free=3),
    Bar("each with a resource", _gain("compare", "resource"), least=9, free=3),
    Bar("every second one urgent", _gain("compare", "priority"), least=9, free=3),
    Bar("map", _gain("compare", "map"), least=9, free=3),
    Bar("map, chunksize=64", _gain("compare", "map64"), least=40, free=8),
    Bar("four threads submit", _gain("compare", "producers"), least=10, free=5),
    Bar("burst, then wait()", _gain("compare", "wait"), least=5, worst=2, free=2),
    Bar("burst, then as_completed()", _gain("compare", "as_completed"), least=3, worst=2, free=2),
    Bar("add_done_callback() to each", _gain("compare", "callbacks"), least=4, free=2),
    Bar("one by one, 1 worker, pinned", _gain("compare", "latency1"), least=1.8, free=1),
    Bar("one by one, 8 workers, pinned", _gain("compare", "latency8"), least=1.9, free=1),
    Bar("one by one, 8 workers, not pinned", _gain("compare", "unpinned"), least=1),
    Bar("sleep(1 ms), 64 workers", _gain("compare", "sleep"), least=1.1),
    Bar("computes 100 us, of bare threads", _gain("parallel", parallel.JOB), least=0.85, free=0.95),
    Bar("bytes of one that waits", _share("memory", "bytes", "one argument"), most=0.15),
    Bar("PostgreSQL, of psycopg_pool", _gain("servers", "PostgreSQL", name=servers.LIMITED), least=1.7),
    Bar("PostgreSQL, of bare threads", _gain("servers", "PostgreSQL", name=servers.LIMITED, against=_BARE), least=0.9),
    Bar("Redis, of a shared client", _gain("servers", "Redis", name=servers.LIMITED), least=1.7),
    Bar("Redis, of bare threads", _gain("servers", "Redis", name=servers.LIMITED, against=_BARE), least=0.9),
    *(Bar(f"urgent, p99: {title}", _urgent(title), most=1) for title in urgent.CASES),
    Bar("a kept view's submit, of submit", _worst_view(views.KEPT), most=2),
    Bar("a new view and its submit, of submit", _worst_view(views.NEW), most=4),
    Bar("start_within, 100,000 wait, growth", _growth("start_within=60"), most=1.5),
    Bar("run_within, 100,000 wait, growth", _growth("run_within=60"), most=1.5),
    Bar("64 workers: start, use, end", _gain("lifetimes", "workers", "64"), least=1),
    Bar("burst, first extra worker, of its factory", _share("lifetimes", "burst", "burst", name="BacklogPolicy"), most=1.2),
    Bar(f"end a long queue: {lifetimes.CANCEL}", _gain("lifetimes", "endings", "waiting", name=lifetimes.CANCEL), least=1),
    Bar("end a long queue: kill()", _gain("lifetimes", "endings", "waiting", name=lifetimes.KILL), least=1),
    *(Bar(f"``{name}``", _share("lifetimes", "import", "import", name=name), most=1.5) for name in lifetimes.OUR_IMPORTS),
)


def table(by_python: Mapping[str, tuple[Mapping[str, Any], bool]]) -> Table:
    """Make the table of all bars. For each Python: all that it has found, and whether it has a GIL."""
    rows = []
    for bar in BARS:
        spreads = {python: bar.take(found) for python, (found, _) in by_python.items()}
        if not any(spreads.values()):
            continue
        limits = dict.fromkeys(bar.limit(gil) for _, gil in by_python.values())
        cells = [bar.cell(spread, by_python[python][1]) if spread else "" for python, spread in spreads.items()]
        rows.append([bar.title, "; free-threaded ".join(limits), *cells])
    return Table(["", "bar", *by_python], rows)


def unmet(found: Mapping[str, Any], gil: bool) -> list[str]:
    spreads = [(bar, bar.take(found)) for bar in BARS]
    return [bar.title for bar, spread in spreads if spread is not None and not bar.met(spread, gil)]
