"""An error that no thread asks for is logged when its future goes."""

from __future__ import annotations

import gc
import logging
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for

import pytest

from support import DEADLINE, Gate, Ledger, MakePool, eventually, run_python
from tasker_executor import ResourceExecutor, current_task
from tasker_executor._sync import HAS_GIL

Pool = ResourceExecutor[None]


class Lost(Exception):
    """The error of the tasks here."""


def fail() -> None:
    raise Lost


class Records(logging.Handler):
    """Keeps what was logged. (`caplog.records` is another list in a fixture than in its test.)"""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def lost() -> Iterator[list[logging.LogRecord]]:
    """The log records of errors that no caller asked for."""
    logger, handler = logging.getLogger("tasker_executor.lost"), Records()
    logger.addHandler(handler)
    yield handler.records
    logger.removeHandler(handler)


def run_to_its_end(pool: Pool, task: Callable[[], object] = fail) -> Future[object]:
    """Return the future of a task that has ended, of which the worker holds nothing any more."""
    future = pool.submit(task)
    wait_for([future], DEADLINE)
    pool.shutdown()
    return future


def collect(lost: list[logging.LogRecord]) -> None:
    """Collect the garbage. Without the GIL the record of the error may come late: wait for it there."""
    gc.collect()
    if not HAS_GIL:
        eventually(lambda: bool(lost), "the record")


def test_an_error_that_nobody_asked_for_is_logged_when_the_future_goes(
    make_pool: MakePool, lost: list[logging.LogRecord]
) -> None:
    future = run_to_its_end(make_pool(1, name="crawler"))
    assert lost == []

    del future
    collect(lost)

    assert [record.getMessage() for record in lost] == [
        "executor 'crawler': task fail raised, and its exception was never retrieved"
    ]
    assert lost[0].exc_info is not None
    assert lost[0].exc_info[0] is Lost


def test_the_log_record_can_be_searched_by_its_fields(make_pool: MakePool, lost: list[logging.LogRecord]) -> None:
    future = run_to_its_end(make_pool(1, name="crawler"))

    del future
    collect(lost)

    assert (vars(lost[0])["tasker_executor"], vars(lost[0])["tasker_function"]) == ("crawler", "fail")


def test_fire_and_forget_loses_no_error(make_pool: MakePool, lost: list[logging.LogRecord]) -> None:
    pool = make_pool(1)

    pool.submit(fail)
    pool.shutdown()
    collect(lost)

    assert len(lost) == 1


@pytest.mark.parametrize("ask", ["result", "exception"])
def test_an_error_that_somebody_asked_for_is_not_logged(ask: str, make_pool: MakePool, lost: list[logging.LogRecord]) -> None:
    future = run_to_its_end(make_pool(1))

    try:
        getattr(future, ask)()
    except Lost:
        pass
    del future
    gc.collect()

    assert lost == []


def test_an_error_that_was_only_waited_for_is_logged(make_pool: MakePool, lost: list[logging.LogRecord]) -> None:
    future = run_to_its_end(make_pool(1))

    assert future.done()
    wait_for([future])
    del future
    collect(lost)

    assert len(lost) == 1


def test_an_error_that_came_out_of_map_is_not_logged(make_pool: MakePool, lost: list[logging.LogRecord]) -> None:
    pool = make_pool(1)

    with pytest.raises(ValueError, match="invalid literal"):
        list(pool.map(int, ["x"]))
    pool.shutdown()
    gc.collect()

    assert lost == []


def test_a_task_that_returned_logs_nothing(make_pool: MakePool, lost: list[logging.LogRecord]) -> None:
    future = run_to_its_end(make_pool(1), int)

    del future
    gc.collect()

    assert lost == []


def test_a_cancelled_task_logs_nothing(make_pool: MakePool, gate: Gate, lost: list[logging.LogRecord]) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    future = pool.submit(fail)

    future.cancel()
    gate.release()
    pool.shutdown()
    del future
    gc.collect()

    assert lost == []


def test_a_task_that_obeyed_kill_logs_nothing(make_pool: MakePool, gate: Gate, lost: list[logging.LogRecord]) -> None:
    pool = make_pool(1)

    def obey() -> None:
        gate.hold()
        current_task().raise_if_cancelled()

    future = pool.submit(obey)
    gate.wait_until_held()
    pool.kill()
    gate.release()
    wait_for([future], DEADLINE)
    pool.shutdown()
    assert future.done()
    del future
    gc.collect()

    assert lost == []


def test_an_error_after_the_last_retry_is_logged_once(
    make_pool: MakePool, ledger: Ledger, lost: list[logging.LogRecord]
) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=2)

    pool.submit(lambda resource: resource.break_down())
    pool.shutdown()
    collect(lost)

    assert len(lost) == 1


def test_the_logger_of_lost_errors_can_be_disabled(make_pool: MakePool, lost: list[logging.LogRecord]) -> None:
    logger = logging.getLogger("tasker_executor.lost")
    logger.disabled = True
    try:
        pool = make_pool(1)
        pool.submit(fail)
        pool.shutdown()
        gc.collect()
    finally:
        logger.disabled = False

    assert lost == []


def test_the_exit_says_of_an_error_that_nobody_asked_for_at_most_that() -> None:
    # Without the GIL the modules are empty by the time at which the future of a module goes. The record is lost then.
    process = run_python("""
import logging
from tasker_executor import ResourceExecutor

def fail():
    raise ValueError

logging.basicConfig(format="%(message)s")
pool = ResourceExecutor(1, name="crawler")
future = pool.submit(fail)
pool.shutdown()
""")
    record = "executor 'crawler': task fail raised, and its exception was never retrieved\n"

    assert process.returncode == 0
    assert process.stderr in ((record, "") if sysconfig.get_config_var("Py_GIL_DISABLED") else (record,))
