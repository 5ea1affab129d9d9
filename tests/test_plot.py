"""Pictures of runs: what is in them, and that the same runs give the same picture."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, eventually
from tasker_executor import BacklogPolicy, current_task
from tasker_executor.simulation import simulate

pytest.importorskip("matplotlib")

import matplotlib
from matplotlib.figure import Figure

from tasker_executor import plot
from tasker_executor.plot import Point, Run, Waits, draw, record

EXAMPLES = Path(__file__).parent.parent / "examples"

RUN = Run("made up", 2, (Point(0.0, 2, 0), Point(1.0, 6, 40), Point(3.0, 2, 0), Point(4.0, 2, 0)), ((0.5, 0.1), (1.5, 0.4)))


def texts_of(picture: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture.read_text(encoding="utf-8"))


# -- drawing --


def test_the_same_runs_give_the_same_svg(tmp_path: Path) -> None:
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    draw([RUN, RUN], first, title="twice")
    random.random()
    draw([RUN, RUN], second, title="twice")

    assert first.read_bytes() == second.read_bytes()


def test_a_picture_names_what_it_shows(tmp_path: Path) -> None:
    draw([RUN], tmp_path / "run.svg", title="a burst")

    texts = texts_of(tmp_path / "run.svg")
    assert {"a burst", "made up", "tasks waiting", "workers", "wait [s]", "time [s]", "base", "burst"} <= set(texts)


def test_each_run_has_its_column(tmp_path: Path) -> None:
    draw([RUN, Run("another", 1, RUN.points)], tmp_path / "run.svg")

    texts = texts_of(tmp_path / "run.svg")
    assert texts.count("time [s]") == 2
    assert {"made up", "another"} <= set(texts)


def test_the_suffix_says_what_it_is(tmp_path: Path) -> None:
    draw([RUN], tmp_path / "run.png")

    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_global_is_touched(tmp_path: Path) -> None:
    program = f"""
import sys
from collections.abc import Callable
from pathlib import Path
from tasker_executor.plot import Point, Run, draw
draw([Run("run", 1, (Point(0.0, 1, 0), Point(1.0, 1, 0)))], {str(tmp_path / "run.svg")!r})
print("matplotlib.pyplot" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=4 * DEADLINE, check=False)

    assert result.stdout == "False\n", result.stderr


def test_a_picture_can_be_drawn_in_any_thread(tmp_path: Path) -> None:
    thread = threading.Thread(target=draw, args=([RUN], tmp_path / "run.svg"))
    thread.start()
    thread.join(DEADLINE)

    assert texts_of(tmp_path / "run.svg")


def test_two_threads_that_draw_leave_the_settings_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. A thread has changed the settings. 2. Another one draws. 3. The first thread restores them. 4. So does the other.
    before = matplotlib.rcParams["svg.hashsalt"]
    restore: Callable[..., None] = vars(Figure)["savefig"]
    later = threading.Thread(target=draw, args=([RUN], tmp_path / "later.svg"))
    waits = threading.Event()  # or has come to its own picture, which is the error
    salts: list[object] = []

    class TellingLock:
        def __init__(self) -> None:
            self._lock = threading.Lock()

        def __enter__(self) -> None:
            if not self._lock.acquire(blocking=False):
                waits.set()
                self._lock.acquire()

        def __exit__(self, *exc_info: object) -> None:
            self._lock.release()

    def save(self: Figure, *args: Any, **kwargs: Any) -> None:
        if threading.current_thread() is later:
            waits.set()
            assert first_is_done.wait(DEADLINE)
        else:
            later.start()
            assert waits.wait(DEADLINE)
        salts.append(matplotlib.rcParams["svg.hashsalt"])
        restore(self, *args, **kwargs)

    first_is_done = threading.Event()
    monkeypatch.setattr(plot, "_drawing", TellingLock())
    monkeypatch.setattr(Figure, "savefig", save)
    draw([RUN], tmp_path / "first.svg")
    first_is_done.set()
    later.join(DEADLINE)

    assert salts == ["tasker_executor"] * 2
    assert matplotlib.rcParams["svg.hashsalt"] == before


def test_no_run_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one run"):
        draw([], tmp_path / "run.svg")


def test_worker_seconds_are_the_area_below_the_curve() -> None:
    assert RUN.worker_seconds == 2.0 * 1.0 + 6.0 * 2.0 + 2.0 * 1.0


# -- timelines --


def test_a_timeline_shows_workers_and_backlog(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2)

    with record(pool, interval=0.001) as timeline:
        for _ in range(2):
            pool.submit(gate.hold)
        gate.wait_until_held(2)  # both workers have taken a task, so no look finds those two in the queue as well
        for _ in range(3):
            pool.submit(gate.hold)
        eventually(lambda: timeline.points[-1].queued == 3, "a look at the backlog")
        gate.release()
        pool.shutdown()

    assert (timeline.points[0].workers, timeline.points[0].queued) == (0, 0)
    assert max((point.workers, point.queued) for point in timeline.points) == (2, 3)
    assert (timeline.points[-1].workers, timeline.points[-1].queued) == (0, 0)
    times = [point.time for point in timeline.points]
    assert times == sorted(times)


def test_waits_are_those_of_the_first_attempts(make_pool: MakePool, ledger: Ledger) -> None:
    waits = Waits()
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, observers=[waits])

    def break_once(resource: FakeResource) -> None:
        if current_task().attempt == 1:
            resource.break_down()

    pool.submit(break_once).result(DEADLINE)
    pool.submit(FakeResource.use).result(DEADLINE)

    assert len(waits.heard) == 2


def test_a_recorded_run_is_on_the_clock_of_its_timeline(make_pool: MakePool) -> None:
    waits = Waits()
    pool = make_pool(1, observers=[waits])

    with record(pool) as timeline:
        pool.submit(str).result(DEADLINE)
    run = Run.recorded("real", timeline, base=0, waits=waits)

    ((arrival, wait),) = run.waits
    assert 0.0 <= arrival <= arrival + wait <= run.points[-1].time


def test_a_simulated_run_costs_what_the_simulation_says() -> None:
    arrivals = [number / 50 for number in range(200)]
    result = simulate(BacklogPolicy(), arrivals, 0.1, min_workers=1, max_workers=8)

    run = Run.simulated("simulated", result, base=1, arrivals=arrivals)

    # The timeline has a point per question to the policy. Workers also start between two points.
    assert run.worker_seconds == pytest.approx(result.worker_seconds, rel=0.1)
    assert [wait for _, wait in run.waits] == list(result.waits)
    assert [arrival for arrival, _ in run.waits] == arrivals


# -- the example --


def test_the_example_draws_a_real_burst_and_the_same_simulated(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / "burst_timeline.py"), str(tmp_path / "burst.svg")]

    result = subprocess.run(command, capture_output=True, text=True, timeout=4 * DEADLINE, check=False)

    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert {"real", "simulated"} <= set(texts_of(tmp_path / "burst.svg"))
