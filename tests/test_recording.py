"""The load recorder: a row for each task, which `read_recording` and `simulate` read."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from support import DEADLINE, FakeResource, Gate, Ledger, MakePool
from tasker_executor import BacklogPolicy, ResourceCreationError, TaskEvent, TaskExpired, current_task, recording
from tasker_executor.recording import LoadRecorder, Recording, read_recording
from tasker_executor.simulation import simulate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "load.csv"


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def read(path: Path) -> list[dict[str, str]]:
    return rows_of(path.read_text(encoding="utf-8"))


def fail() -> None:
    raise ValueError


def break_once(resource: FakeResource) -> None:
    if current_task().attempt == 1:
        resource.break_down()


# -- rows --


def test_each_task_has_a_row(make_pool: MakePool, path: Path) -> None:
    with LoadRecorder(path) as recorder:
        pool = make_pool(1, observers=[recorder])
        pool.submit(str).result(DEADLINE)
        pool.submit_priority(str).result(DEADLINE)
        pool.submit(fail).exception(DEADLINE)
        pool.shutdown()

    assert [(row["lane"], row["outcome"]) for row in read(path)] == [
        ("normal", "completed"),
        ("priority", "completed"),
        ("normal", "failed"),
    ]


def test_times_are_those_that_the_pool_measured(make_pool: MakePool, path: Path) -> None:
    with LoadRecorder(path) as recorder:
        pool = make_pool(1, observers=[recorder])
        list(pool.map(str, range(100)))
        pool.shutdown()

    rows, metrics = read(path), pool.metrics()
    assert sum(float(row["duration"]) for row in rows) == pytest.approx(metrics.run.total, abs=1e-4)
    assert sum(float(row["wait"]) for row in rows) == pytest.approx(metrics.wait.total, abs=1e-4)


def test_arrivals_are_on_one_clock_in_order_of_submission(make_pool: MakePool, path: Path) -> None:
    with LoadRecorder(path) as recorder:
        pool = make_pool(1, observers=[recorder])
        for _ in range(10):
            pool.submit(current_task).result(DEADLINE)
        pool.shutdown()

    arrivals = [float(row["arrival"]) for row in read(path)]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] >= 0.0


def test_a_task_that_never_ran_has_a_blank_duration(make_pool: MakePool, gate: Gate, path: Path) -> None:
    with LoadRecorder(path) as recorder:
        pool = make_pool(1, observers=[recorder])
        pool.submit(gate.hold)
        gate.wait_until_held()
        pool.submit(str).cancel()
        expired = pool.with_options(start_within=0.0).submit(str)
        assert isinstance(expired.exception(DEADLINE), TaskExpired)
        gate.release()
        pool.shutdown()

    rows = {row["outcome"]: row["duration"] for row in read(path)}
    assert rows.pop("completed")
    assert rows == {"cancelled": "", "failed": ""}


def test_a_retried_task_is_one_row_with_all_its_attempts(make_pool: MakePool, ledger: Ledger, path: Path) -> None:
    with LoadRecorder(path) as recorder:
        pool = make_pool(
            1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, observers=[recorder]
        )
        pool.submit(break_once).result(DEADLINE)
        pool.shutdown()

    (row,) = read(path)
    assert row["outcome"] == "completed"
    assert float(row["duration"]) == pytest.approx(pool.metrics().run.total, abs=1e-5)
    assert recorder._retried == {}


def test_a_task_that_starved_after_its_first_attempt_has_run(make_pool: MakePool, ledger: Ledger, path: Path) -> None:
    def cause_an_outage(resource: FakeResource) -> None:
        ledger.outage = ConnectionError("down")
        resource.break_down()

    with LoadRecorder(path) as recorder:
        pool = make_pool(
            1,
            on_create=ledger.create,
            on_destroy=ledger.destroy,
            check_health=ledger.is_healthy,
            create_timeout=0.01,
            min_workers=1,
            observers=[recorder],
        )
        pool.wait_ready(DEADLINE)  # or the task starves before its first attempt
        error = pool.submit(cause_an_outage).exception(DEADLINE)
        ledger.outage = None
        pool.shutdown()

    (row,) = read(path)
    assert isinstance(error, ResourceCreationError)
    assert row["outcome"] == "failed"
    assert row["duration"]


def test_tasks_cancelled_by_a_shutdown_are_recorded_before_it_is_over(make_pool: MakePool, gate: Gate) -> None:
    file = io.StringIO()
    pool = make_pool(1, observers=[LoadRecorder(file)])
    pool.submit(gate.hold)
    gate.wait_until_held()
    for _ in range(5):
        pool.submit(str)

    pool.shutdown(wait=False, cancel_futures=True)
    gate.release()
    pool.shutdown()

    assert [row["outcome"] for row in rows_of(file.getvalue())] == ["cancelled"] * 5 + ["completed"]


def test_a_task_may_be_any_callable(make_pool: MakePool, path: Path) -> None:
    """A mock has every attribute that one looks for in it; so an observed mock, looked through for a name, was a hang."""
    with LoadRecorder(path) as recorder:
        pool = make_pool(1, observers=[recorder])
        pool.submit(MagicMock(return_value=7)).result(DEADLINE)
        pool.shutdown()

    assert len(read(path)) == 1


# -- the file --


def test_simulate_reads_what_was_recorded(make_pool: MakePool, gate: Gate, path: Path) -> None:
    with LoadRecorder(path) as recorder:
        pool = make_pool(2, observers=[recorder])
        pool.submit(gate.hold)
        gate.wait_until_held()
        pool.submit_priority(str).result(DEADLINE)
        pool.submit(fail).exception(DEADLINE)
        gate.release()
        pool.shutdown()

    result = simulate(BacklogPolicy(), path, max_workers=2, start=None)

    assert result.completed == 3
    assert sorted(result.priority) == [False, False, True]
    assert result.worker_seconds >= sum(float(row["duration"]) for row in read(path))


def test_an_open_file_is_written_and_left_open(make_pool: MakePool) -> None:
    file = io.StringIO()

    with LoadRecorder(file) as recorder:
        pool = make_pool(1, observers=[recorder])
        pool.submit(str).result(DEADLINE)
        pool.shutdown()

    assert len(rows_of(file.getvalue())) == 1


def test_rows_are_in_the_file_when_the_executor_has_closed(make_pool: MakePool, path: Path) -> None:
    recorder = LoadRecorder(path)
    pool = make_pool(1, observers=[recorder])
    pool.submit(str).result(DEADLINE)
    pool.shutdown()

    rows = read(path)
    recorder.close()

    assert len(rows) == 1


def test_close_writes_what_is_left_though_the_executor_goes_on(make_pool: MakePool, path: Path) -> None:
    recorder = LoadRecorder(path)
    pool = make_pool(1, observers=[recorder])
    pool.submit(str).result(DEADLINE)

    recorder.close()

    assert len(read(path)) == 1


def test_a_long_run_is_written_bit_by_bit(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(recording, "_BATCH", 10)
    with LoadRecorder(path) as recorder:
        pool = make_pool(1, observers=[recorder])
        list(pool.map(str, range(25)))

        assert len(read(path)) >= 20

        pool.shutdown()
    assert len(read(path)) == 25


def test_many_workers_lose_no_row(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, fast_switching: None) -> None:
    monkeypatch.setattr(recording, "_BATCH", 3)
    file = io.StringIO()
    with LoadRecorder(file) as recorder:
        pool = make_pool(4, observers=[recorder])
        list(pool.map(str, range(2000)))
        pool.shutdown()

    assert len(rows_of(file.getvalue())) == 2000


def test_who_finds_a_write_under_way_leaves_its_row_to_the_writer() -> None:
    class Interrupted(io.StringIO):
        """A file whose writing is interrupted by the end of another task, as by a signal handler."""

        def write(self, text: str, /) -> int:
            while events:
                recorder.task_finished(events.pop())
                recorder.flush()
            return super().write(text)

    events: list[TaskEvent] = []
    file = Interrupted()
    recorder = LoadRecorder(file)
    events.append(TaskEvent("pool", 2, "f", "priority", 1, outcome="completed"))
    recorder.task_finished(TaskEvent("pool", 1, "f", "normal", 1, outcome="completed"))

    recorder.flush()

    assert [row["lane"] for row in rows_of(file.getvalue())] == ["normal", "priority"]


def test_a_closed_recorder_records_nothing_and_hurts_nobody(make_pool: MakePool, path: Path) -> None:
    recorder = LoadRecorder(path)
    pool = make_pool(1, observers=[recorder])
    recorder.close()
    recorder.close()

    pool.submit(str).result(DEADLINE)
    pool.shutdown()

    assert read(path) == []


def test_a_file_that_cannot_be_opened_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LoadRecorder(tmp_path / "missing" / "load.csv")


def test_what_an_interrupted_end_has_left_is_not_taken_for_the_next_task(path: Path) -> None:
    with LoadRecorder(path) as recorder:
        recorder.task_retried(TaskEvent("pool", 7, "f", "normal", 1, wait=5.0, run=9.0))  # its `task_finished` never came
        recorder.task_finished(TaskEvent("pool", 7, "g", "normal", 1, wait=1.0, run=2.0, outcome="completed"))

    (row,) = rows_of(path.read_text())
    assert (row["wait"], row["duration"]) == ("1.000000", "2.000000")


def test_a_write_that_was_interrupted_keeps_nobody_from_closing(path: Path) -> None:
    recorder = LoadRecorder(path)
    recorder.task_finished(TaskEvent("pool", 1, "f", "normal", 1, outcome="completed"))
    recorder._writing.acquire()  # and Ctrl-C came before the `try`
    recorder.close()

    assert len(rows_of(path.read_text())) == 1


# -- reading --


def test_what_was_written_is_read(path: Path) -> None:
    with LoadRecorder(path) as recorder:
        recorder.task_finished(TaskEvent("pool", 1, "f", "priority", 1, run=0.5, outcome="completed"))
        recorder.task_finished(TaskEvent("pool", 2, "f", "normal", outcome="cancelled"))
        recorder.task_finished(TaskEvent("pool", 3, "f", "normal", 1, run=0.25, outcome="failed"))

    ran, arrived = read_recording(path), read_recording(path, use_durations=False)

    assert (ran.durations, ran.priority, len(ran.arrivals)) == ([0.5, 0.25], [True, False], 2)
    assert (arrived.durations, arrived.priority, len(arrived.arrivals)) == (None, [True, False, False], 3)


def test_a_file_of_numbers_is_a_recording_without_durations_and_lanes(path: Path) -> None:
    path.write_text("# by hand\n2.5\n\n1\n")

    assert read_recording(path) == Recording([2.5, 1.0])


def test_an_empty_file_is_a_recording_without_tasks(path: Path) -> None:
    path.write_text("")

    assert read_recording(path) == Recording([], [])
