"""The live view: what a snapshot looks like, when it is shown, and progress."""

from __future__ import annotations

import gc
import io
import random
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace

import pytest

from engine import core_of, pretend_outage
from guide import GUIDE
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, collected, eventually
from tasker_executor import ResourceExecutor, WorkerInfo, current_task
from tasker_executor._sync import Latch

pytest.importorskip("rich")

from rich.console import Console, RenderableType
from rich.errors import LiveError
from rich.progress import Progress

from tasker_executor._progress import duration_text
from tasker_executor.monitor import Point, Snapshot, line, monitor, panel, progress, take_snapshot, watch


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False)


def no_terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def output(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def text_of(renderable: RenderableType, width: int = 80) -> str:
    console = terminal(width)
    console.print(renderable)
    return output(console)


# -- a scripted run --


class FakeTime:
    """The clock of the whole package. It stands still until it is told to go on."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    for name, module in list(sys.modules.items()):
        if name.startswith("tasker_executor.") and hasattr(module, "clock"):
            monkeypatch.setattr(module, "clock", fake)
    monkeypatch.setattr(random, "uniform", max)  # no jitter
    return fake


class Crawler:
    """A made-up program, and what its pool looks like in a bad moment."""

    def __init__(self, make_pool: MakePool, ledger: Ledger, gate: Gate, time: FakeTime) -> None:
        self.ledger, self.gate, self.time = ledger, gate, time
        self.pool = make_pool(
            1,  # at first: in a race, a second worker may start for a task that the first is about to take
            name="crawler",
            on_create=self.connect,
            on_destroy=ledger.destroy,
            check_health=ledger.is_healthy,
            min_workers=1,
        )
        self.history: list[Point] = []
        self.waiting: list[Future[None]] = []

    def connect(self) -> FakeResource:
        resource = self.ledger.create()
        self.time.advance(0.031)
        return resource

    def fetch(self, resource: FakeResource, seconds: float) -> None:
        resource.use()
        self.time.advance(seconds)

    def fetch_and_lose_the_connection(self, resource: FakeResource) -> None:
        self.time.advance(0.25)
        if current_task().attempt == 1:
            resource.break_down()

    def parse(self, resource: FakeResource) -> None:
        raise ValueError(resource)

    def download(self, resource: FakeResource) -> None:
        self.gate.hold()

    def look(self) -> Snapshot:
        snapshot = take_snapshot(self.pool, self.history)
        self.history = list(snapshot.history)
        return snapshot

    def run(self) -> Snapshot:
        pool = self.pool
        pool.wait_ready(DEADLINE)
        for number in range(120):
            pool.submit(self.fetch, 0.012 + 0.001 * (number % 20)).result(DEADLINE)
            if number % 10 == 0:
                self.look()
        for _ in range(2):
            pool.submit(self.parse).exception(DEADLINE)
        pool.submit(self.fetch_and_lose_the_connection).result(DEADLINE)
        eventually(lambda: pool.stats().workers_replaced == 1, "the replacement")
        for number in range(1, 4):
            pool.submit(self.download)
            self.gate.wait_until_held(number)
            pool.resize(max_workers=8)
            self.time.advance(0.7)
            self.look()
        pool.submit_priority(self.download)
        self.gate.wait_until_held(4)
        self.ledger.outage = ConnectionError("connection refused")
        for number in range(40):
            submit = pool.submit_priority if number % 10 == 9 else pool.submit
            self.waiting.append(submit(self.fetch, 0.02))
            if number == 0:
                eventually(lambda: pool.stats().create_failures == 1, "the first failure")
            self.time.advance(0.002)
            self.look()
        self.time.advance(1.4)
        eventually(lambda: pool.stats().create_failures == 2, "the second failure")
        return self.look()

    def end(self) -> None:
        self.gate.release()
        self.ledger.outage = None
        for future in self.waiting:
            future.result(DEADLINE)


@pytest.fixture
def crawler(make_pool: MakePool, ledger: Ledger, gate: Gate, time: FakeTime) -> Crawler:
    return Crawler(make_pool, ledger, gate, time)


def test_the_guide_shows_what_a_scripted_run_looks_like(crawler: Crawler) -> None:
    text = text_of(panel(crawler.run()))
    crawler.end()

    shown = textwrap.indent(text.rstrip(), "    ")
    assert shown in GUIDE, f"the guide should show:\n\n{shown}"


def test_the_panel_answers_the_questions_of_a_bad_night(crawler: Crawler) -> None:
    text = text_of(panel(crawler.run()))
    crawler.end()

    assert "4 of 8: 4 busy, 0 idle" in text  # is the pool full?
    assert "36 normal, 4 priority; the oldest waits for 1.5 s" in text
    assert "run " in text  # is the database slow?
    assert "on_create failed 2 times in a row" in text  # is the factory failing?
    assert "ConnectionError: connection refused" in text


def test_the_line_answers_them_too(crawler: Crawler) -> None:
    text = line(crawler.run())
    crawler.end()

    assert text.startswith("crawler: running, 4 of 8 workers (4 busy), 40 queued (4 priority)")
    assert "on_create failed 2 times in a row, next attempt in 200.0 ms: ConnectionError: connection refused" in text
    assert "\n" not in text


# -- the panel, a pure function --


@pytest.fixture
def snapshot(make_pool: MakePool) -> Snapshot:
    return take_snapshot(make_pool(4, name="quiet"))


def worker(number: int, **changes: object) -> WorkerInfo:
    idle = WorkerInfo(f"w_{number}", "idle", None, None, 0, 0.0, 0, 0.0)
    return replace(idle, **changes)  # type: ignore[arg-type]  # a test names its fields rightly


def test_a_panel_is_as_wide_as_the_console(snapshot: Snapshot) -> None:
    for width in (40, 80, 120):
        widths = {len(row) for row in text_of(panel(snapshot), width).splitlines()}

        assert widths == {width}


def test_a_pool_without_resources_shows_nothing_of_them(snapshot: Snapshot) -> None:
    text = text_of(panel(replace(snapshot, workers=(worker(0, resource_uses=7),))))

    assert "resources" not in text
    assert "7 uses" not in text
    assert "factory" not in text


def test_a_busy_worker_shows_what_it_does_and_how_often_it_tried(snapshot: Snapshot) -> None:
    busy = worker(0, state="busy", function="fetch", lane="priority", attempt=2, running_for=75.0)

    text = text_of(panel(replace(snapshot, workers=(busy,))))

    assert "w_0     busy   1 min 15 s  fetch (priority, attempt 2)" in text


def test_a_worker_that_destroys_its_resource_shows_for_how_long(snapshot: Snapshot) -> None:
    ending = worker(0, state="ending", running_for=75.0)
    stats = replace(snapshot.stats, resources_created=1)

    text = text_of(panel(replace(snapshot, stats=stats, workers=(ending,))))

    assert "w_0     ending  1 min 15 s" in text
    assert "0 uses" not in text


def test_a_worker_that_was_written_off_shows_what_it_hangs_in(snapshot: Snapshot) -> None:
    gone = worker(0, state="written off", function="fetch", lane="normal", attempt=1, running_for=75.0, resource_age=90.0)
    stats = replace(snapshot.stats, resources_created=1, written_off=1)

    text = text_of(panel(replace(snapshot, stats=stats, workers=(gone,))), 100)

    assert "wanted; 1 written off" in text
    assert "w_0     written off  1 min 15 s  fetch  1 min 30 s old, 0 uses" in text


def test_stops_show_once_there_are_any(snapshot: Snapshot) -> None:
    stats = replace(snapshot.stats, stopped=2, timed_out=3)

    assert "stops      2 stopped, 3 timed out" in text_of(panel(replace(snapshot, stats=stats)))
    assert "stop" not in text_of(panel(snapshot))


def test_the_line_tells_of_workers_that_were_written_off(snapshot: Snapshot) -> None:
    assert "1 written off" in line(replace(snapshot, stats=replace(snapshot.stats, written_off=1)))
    assert "written off" not in line(snapshot)


def test_of_many_workers_those_that_are_busy_longest_are_shown(snapshot: Snapshot) -> None:
    workers = tuple(
        worker(number, state="busy", function="f", lane="normal", running_for=float(number)) for number in range(30)
    )

    text = text_of(panel(replace(snapshot, workers=workers)))

    assert [number for number in range(30) if f"w_{number} " in text] == list(range(20, 30))
    assert "and 20 more" in text


def test_names_are_shown_as_they_are_and_not_as_markup(snapshot: Snapshot) -> None:
    odd = replace(
        snapshot, name="[red]pool", workers=(worker(0, name="[bold]w", state="busy", function="f[int]", lane="normal"),)
    )

    text = text_of(panel(odd))

    assert "[red]pool" in text
    assert "[bold]w" in text
    assert "f[int]" in text


def test_a_sparkline_loses_no_peak(snapshot: Snapshot) -> None:
    history = [Point(1, 0)] * 500
    history[250] = Point(16, 464)

    rows = text_of(panel(replace(snapshot, history=tuple(history)))).splitlines()

    assert next(row for row in rows if "workers ▁" in row).count("█") == 1
    assert "16 at most" in "".join(rows)
    assert next(row for row in rows if "backlog" in row).count("█") == 1
    assert "464 at most" in "".join(rows)


def test_an_old_terminal_gets_plain_letters(snapshot: Snapshot) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    history = tuple(Point(number, number) for number in range(9))

    Console(file=file, width=80, force_terminal=True, color_system=None).print(panel(replace(snapshot, history=history)))
    file.seek(0)

    assert "workers  .:-=+*#@ 8 at most" in file.read()


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.0, "0 s"),
        (4e-7, "0 s"),
        (0.000012, "12 us"),
        (0.0123, "12.3 ms"),
        (1.25, "1.2 s"),
        (59.9, "59.9 s"),
        (75.0, "1 min 15 s"),
        (7260.0, "2 h 01 min"),
    ],
)
def test_a_duration_is_shown_in_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


# -- live --


def test_a_terminal_shows_a_live_panel(make_pool: MakePool) -> None:
    console = terminal()
    pool = make_pool(2, name="db")

    with monitor(pool, console=console, interval=0.01):
        pool.submit(str).result(DEADLINE)
        eventually(lambda: "1 completed" in output(console), "the next frame")

    assert "db running" in output(console)


def test_the_last_frame_is_of_the_end_of_the_block(make_pool: MakePool) -> None:
    console = terminal()
    pool = make_pool(2)

    with monitor(pool, console=console, interval=1000.0):
        eventually(lambda: "0 completed" in output(console), "the first frame")
        list(pool.map(str, range(7)))

    assert "7 completed" in output(console)


def test_where_there_is_no_terminal_there_are_plain_lines(make_pool: MakePool) -> None:
    console = no_terminal()
    pool = make_pool(2, name="db")

    with monitor(pool, console=console, interval=1000.0):
        eventually(lambda: "\n" in output(console), "the first line")

    rows = output(console).splitlines()
    assert len(rows) == 2
    assert all(row.startswith("db: running, ") for row in rows)
    assert "\x1b" not in output(console)


def test_watch_returns_when_the_executor_has_closed(make_pool: MakePool, gate: Gate) -> None:
    console = no_terminal()
    pool = make_pool(1, name="db")
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.shutdown(wait=False)
    watching = threading.Thread(target=watch, args=(pool,), kwargs={"console": console, "interval": 1000.0})
    watching.start()
    eventually(lambda: "db: draining" in output(console), "the first line")

    gate.release()
    watching.join(DEADLINE)

    assert not watching.is_alive()
    assert output(console).splitlines()[-1].startswith("db: closed, 0 of 1 workers")


def test_ctrl_c_ends_the_view_and_not_the_executor(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(1)

    def interrupted(latch: object, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Latch, "wait", interrupted)
        watch(pool, console=no_terminal())

    assert pool.submit(str, 1).result(DEADLINE) == "1"


def test_the_view_keeps_no_executor_alive() -> None:
    pool = ResourceExecutor(1)
    core, reference = weakref.ref(core_of(pool)), weakref.ref(pool)

    with monitor(pool, console=no_terminal(), interval=0.001):
        del pool

        assert collected(reference)
        eventually(lambda: gc.collect() >= 0 and core() is None, "the end of the core")


def test_an_interval_that_cannot_be_is_refused(make_pool: MakePool) -> None:
    with pytest.raises(ValueError, match="interval"):
        monitor(make_pool(1), interval=0.0)


# -- progress --


def test_progress_hands_on_the_results_in_order(make_pool: MakePool) -> None:
    pool = make_pool(4)

    for console in (terminal(), no_terminal()):
        results = list(progress(pool.map(str, range(100)), total=100, console=console))

        assert results == [str(number) for number in range(100)]


def test_progress_hands_out_futures_as_they_complete(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2)
    slow, quick = pool.submit(gate.hold), pool.submit(str)

    order: list[Future[object]] = []
    for future in progress([slow, quick], console=no_terminal()):
        order.append(future)  # type: ignore[arg-type]  # list is invariant
        gate.release()

    assert order == [quick, slow]


def test_a_bar_shows_count_and_rate(make_pool: MakePool) -> None:
    console = terminal()

    list(progress(make_pool(2).map(str, range(50)), total=50, description="pages", console=console))

    last = output(console).splitlines()[-2]
    assert "pages" in last
    assert "50/50" in last
    assert "/s" in last


def test_lines_show_rate_and_remaining_time(time: FakeTime) -> None:
    console = no_terminal()

    def work() -> Iterator[int]:
        for number in range(4):
            time.advance(6.0)
            yield number

    list(progress(work(), total=4, description="pages", console=console))

    assert output(console).splitlines() == [
        "pages: 2 of 4 done, 0.2/s, 12.0 s to go",
        "pages: 4 of 4 done, 0.2/s, in 24.0 s",
        "pages: 4 of 4 done, 0.2/s, in 24.0 s",
    ]


def test_without_a_total_no_remaining_time_is_made_up(time: FakeTime) -> None:
    console = no_terminal()

    def work() -> Iterator[int]:
        time.advance(20.0)
        yield 1

    list(progress(work(), console=console))

    assert output(console).splitlines()[0] == "1 done, 0.1/s, in 20.0 s"


def test_the_total_of_a_collection_is_its_length() -> None:
    console = no_terminal()

    list(progress(["a", "b"], console=console))
    list(progress(list[str](), console=console))

    assert [row.split(",")[0] for row in output(console).splitlines()] == ["2 of 2 done", "0 of 0 done"]


@pytest.mark.parametrize("make_console", [terminal, no_terminal])
def test_leaving_the_loop_early_cancels_the_rest_of_a_map(
    make_pool: MakePool, gate: Gate, make_console: Callable[[], Console]
) -> None:
    pool = make_pool(1)

    def pass_first(number: int) -> None:
        if number:
            gate.hold()

    for _ in progress(pool.map(pass_first, range(100)), console=make_console()):
        break
    gc.collect()  # a loop that is left closes its iterator when that is collected

    assert pool.stats().cancelled >= 98


@pytest.mark.parametrize("make_console", [terminal, no_terminal])
def test_leaving_the_loop_early_closes_what_it_iterates_over(make_console: Callable[[], Console]) -> None:
    closed: list[bool] = []

    def work() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.append(True)

    held = work()  # kept, so that it is not collected
    for _ in progress(held, console=make_console()):
        break
    gc.collect()

    assert closed == [True]


def test_a_failing_task_ends_the_progress_with_its_error(make_pool: MakePool) -> None:
    console = terminal()

    with pytest.raises(ValueError, match="seven"):
        list(progress(make_pool(1).map(int, ["1", "seven"]), total=2, console=console))

    assert output(console).endswith("\x1b[?25h")  # the cursor is back


def test_progress_under_a_panel_on_one_console(make_pool: MakePool) -> None:
    console = terminal()
    pool = make_pool(2)

    with monitor(pool, console=console, interval=0.01):
        results = list(progress(pool.map(str, range(50)), console=console))

    assert len(results) == 50


def test_where_two_live_displays_cannot_be_progress_is_lines(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with old versions of rich, when the panel is live already."""

    def refuse(bar: object) -> None:
        raise LiveError("only one live display may be active at once")

    monkeypatch.setattr(Progress, "start", refuse)
    console = terminal()

    results = list(progress(make_pool(1).map(str, range(3)), total=3, console=console))

    assert len(results) == 3
    assert "3 of 3 done" in output(console)


class BrokenPipe(io.StringIO):
    """The pipe to a program that has ended."""

    def write(self, text: str, /) -> int:
        raise BrokenPipeError("nobody reads")


@pytest.mark.parametrize("force_terminal", [True, False])
def test_a_console_that_fails_ends_the_view_and_not_the_block(
    make_pool: MakePool, force_terminal: bool, caplog: pytest.LogCaptureFixture
) -> None:
    console = Console(file=io.StringIO(), force_terminal=force_terminal)
    with monitor(make_pool(1, name="watched"), console=console) as view:
        console.file = BrokenPipe()
        view._thread.join(0)
        done = "the block"

    assert done == "the block"
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert messages == ["executor 'watched': the console of its monitor fails; the view ends"]


def test_the_error_of_the_block_is_not_replaced_by_that_of_the_console(make_pool: MakePool) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)

    def block() -> None:
        with monitor(make_pool(1), console=console):
            console.file = BrokenPipe()
            raise LookupError("of the block")

    with pytest.raises(LookupError, match="of the block"):
        block()


def test_an_exit_asked_for_while_the_view_is_shown_is_one(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    view = monitor(make_pool(1), console=no_terminal())
    monkeypatch.setattr(view, "_show", sys.exit)  # by the handler of a signal

    with pytest.raises(SystemExit):
        view._show_safely()


def test_no_code_of_the_user_runs_under_the_lock(make_pool: MakePool, gate: Gate) -> None:
    class Shy(Exception):
        def __str__(self) -> str:
            asked.append("error")
            return look()

    class Task:
        @property
        def __wrapped__(self) -> object:
            asked.append("task")
            look()
            return None

        def __call__(self, *_: object) -> None:
            gate.hold()

    def look() -> str:
        """Another thread needs the lock; it gets it, or this is under the lock."""
        other = threading.Thread(target=pool.stats)
        other.start()
        other.join(DEADLINE / 10)
        assert not other.is_alive()
        return "shy"

    asked: list[str] = []
    pool = make_pool(1)
    pool.submit(Task())
    gate.wait_until_held()
    pretend_outage(pool, Shy())
    shown = take_snapshot(pool)
    pretend_outage(pool, None)

    assert shown.last_failure == "Shy: shy"
    assert sorted(set(asked)) == ["error", "task"]


def test_a_thread_that_cannot_be_started_leaves_no_panel(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    console = terminal()
    view = monitor(make_pool(1), console=console)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError), view:
            pass

    with monitor(make_pool(1), console=console):  # no other display is live
        pass
