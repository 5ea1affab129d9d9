"""Log records: what they carry, that the reference explains each of them, and that tasks make none."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support import DEADLINE, FakeResource, Ledger, MakePool, eventually
from tasker_executor import Observer, ScalingPolicy, TaskEvent, TaskTimeout, WorkerEvent, current_task
from tasker_executor.stats import LoadSample

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tasker_executor"
REFERENCE = ROOT / "docs" / "reference" / "logging.rst"

LEVELS = {"debug": "DEBUG", "info": "INFO", "warning": "WARNING", "log": "WARNING", "error": "ERROR", "exception": "ERROR"}
LEVELS["critical"] = "CRITICAL"


# -- the source --


@dataclass(frozen=True)
class Call:
    """A place in the source that logs."""

    place: str
    logger: str
    level: str
    message: str
    arguments: int
    fields: frozenset[str]

    @property
    def summary(self) -> str:
        """What the reference has of the message: the name of the executor and explanations are left out."""
        return re.sub(r"%(\.\d)?[a-z]", "...", re.sub(r"^(executor %r|%s): ", "", self.message)).partition(";")[0].rstrip(":")


def fields_of(call: ast.Call, tree: ast.Module) -> Iterator[str]:
    """The names of its fields; those of ``**ids`` stand in a dict that has this name."""
    for keyword in call.keywords:
        if keyword.arg is not None:
            yield keyword.arg
            continue
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)):
                continue
            if ast.unparse(node.targets[0]) == ast.unparse(keyword.value):
                yield from (str(ast.literal_eval(key)) for key in node.value.keys if key is not None)


def calls_in(module: Path) -> Iterator[Call]:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)):
            continue
        logger, method = node.func.value.id, node.func.attr
        if not logger.lower().endswith("logger") or method not in LEVELS:
            continue
        message, *arguments = node.args[method == "log" :]
        assert isinstance(message, ast.Constant), f"{module.name}:{node.lineno}: write the message where it is logged"
        fields = frozenset(fields_of(node, tree)) - {"exc_info"}
        place = f"{module.relative_to(PACKAGE)}:{node.lineno}"
        yield Call(place, logger, LEVELS[method], str(message.value), len(arguments), fields)


CALLS = [call for module in sorted(PACKAGE.rglob("*.py")) for call in calls_in(module)]


def test_the_reference_explains_every_record_from_warning_upwards() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    rows = re.findall(r"^   \* - ``(.+?)``\n     - (WARNING|ERROR|CRITICAL)$", text, re.MULTILINE)

    assert len(rows) == len(set(rows))
    assert set(rows) == {(call.summary, call.level) for call in CALLS if call.level not in ("DEBUG", "INFO")}


def test_the_reference_explains_every_field() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    names = {field for call in CALLS for field in call.fields}

    assert {"executor", "worker", "event", "failures"} <= names
    assert sorted(name for name in names if f"``tasker_{name}``" not in text) == []


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.place)
def test_a_message_has_as_many_arguments_as_it_names(call: Call) -> None:
    assert len(re.findall(r"%(?:\.\d)?[a-z]", call.message)) == call.arguments


# The records of the standard library's logger are those of the standard library; the modules of extras have their own ways.
OWN_CALLS = [call for call in CALLS if call.logger == "logger" and Path(call.place).parts[0] != "dask"]


@pytest.mark.parametrize("call", OWN_CALLS, ids=lambda call: call.place)
def test_a_record_carries_structured_fields(call: Call) -> None:
    assert call.fields


# -- records --


def records(caplog: pytest.LogCaptureFixture, start: str) -> list[dict[str, Any]]:
    """The attributes of the records whose message begins so, after the name of the executor."""
    return [vars(record) for record in caplog.records if record.getMessage().partition(": ")[2].startswith(start)]


def vars_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records]


def test_tasks_log_nothing_above_debug(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pool = make_pool(2)
    list(pool.map(str, range(100)))
    pool.submit(int, "seven").exception(DEADLINE)
    pool.shutdown()

    assert not caplog.records


def test_a_replaced_worker_is_a_warning_that_names_it_and_the_reason(
    make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        max_retries=0,
        name="db",
    )
    pool.submit(FakeResource.break_down).exception(DEADLINE)
    eventually(lambda: bool(records(caplog, "worker db_0 ends")), "the record")

    (record,) = records(caplog, "worker db_0 ends")
    assert record["levelname"] == "WARNING"
    assert (record["tasker_executor"], record["tasker_worker"], record["tasker_reason"]) == (
        "db",
        "db_0",
        "its resource was broken",
    )
    error = "ResourceBroken(<FakeResource 0>)"
    assert record["message"] == f"executor 'db': worker db_0 ends: its resource was broken: {error}"
    assert record["tasker_error"] == error
    assert record["exc_info"] is None


class Unspeakable(Exception):
    def __repr__(self) -> str:
        raise LookupError("no repr")


def test_the_error_of_a_replaced_worker_may_refuse_to_be_described(
    make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    def work(resource: FakeResource) -> int:
        if resource.number == 0:
            raise Unspeakable
        return resource.number

    def is_healthy(error: BaseException) -> bool:
        return False

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=is_healthy, name="db")
    result = pool.submit(work).result(DEADLINE)
    pool.shutdown()

    record = records(caplog, "worker db_0 ends")[0]
    assert result == 1
    assert record["message"].endswith("its resource was broken: <Unspeakable, whose repr() raised LookupError>")


def test_a_worker_whose_task_was_stopped_names_what_broke_its_resource(
    make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    def work(resource: FakeResource) -> None:
        current_task().wait(DEADLINE)
        resource.break_down()

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, name="db")
    error = pool.with_options(run_within=0.01).submit(work).exception(DEADLINE)
    pool.shutdown()

    assert isinstance(error, TaskTimeout)
    (record,) = records(caplog, "worker db_0 ends")
    assert record["message"] == "executor 'db': worker db_0 ends: its resource was broken: ResourceBroken(<FakeResource 0>)"


def test_at_debug_the_traceback_follows_once(make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    pool = make_pool(
        1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=0, name="db"
    )
    error = pool.submit(FakeResource.break_down).exception(DEADLINE)
    pool.shutdown()

    told = [record for record in vars_of(caplog) if record["exc_info"]]
    assert [(record["levelname"], record["exc_info"][1]) for record in told] == [("DEBUG", error)]
    assert told[0]["message"] == "executor 'db': worker db_0 ended by an error"


def test_a_worker_that_is_replaced_for_its_age_is_no_warning(
    make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_uses=1, name="db")
    pool.submit(FakeResource.use).result(DEADLINE)
    pool.shutdown()

    (record,) = records(caplog, "worker db_0 ends")
    assert record["levelname"] == "DEBUG"
    assert record["message"] == "executor 'db': worker db_0 ends: its resource reached max_uses"
    assert record["tasker_error"] is None


def test_a_failing_factory_is_a_warning_that_says_how_often_and_when_it_is_tried_again(
    make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.outage = ConnectionError("down")
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, name="db")
    future = pool.submit(FakeResource.use)
    eventually(lambda: len(records(caplog, "on_create failed")) >= 2, "two records")
    ledger.outage = None
    future.result(DEADLINE)

    first, second = records(caplog, "on_create failed")[:2]
    assert (first["tasker_executor"], first["tasker_failures"], second["tasker_failures"]) == ("db", 1, 2)
    assert 0.0 <= first["tasker_delay"] <= 0.1
    assert first["exc_info"][0] is ConnectionError


def test_an_observer_that_raises_is_logged_with_the_event(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    class Clumsy(Observer):
        def task_finished(self, event: TaskEvent) -> None:
            raise ValueError(event.function)

        def worker_ended(self, event: WorkerEvent) -> None:
            raise KeyError

    pool = make_pool(1, observers=[Clumsy()], name="db")
    result = pool.submit(str, 1).result(DEADLINE)
    pool.shutdown()

    errors = [vars(record) for record in caplog.records if record.levelname == "ERROR"]
    raised = [(record["tasker_executor"], record["tasker_event"]) for record in errors]
    assert result == "1"
    assert raised == [("db", "task_finished"), ("db", "worker_ended")]


def test_a_decision_to_scale_is_logged_at_debug_with_its_reason(
    make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    class Greedy:
        interval = 0.001

        def target(self, load: LoadSample, /) -> int:
            return 3

        def __repr__(self) -> str:
            return "Greedy()"

    policy: ScalingPolicy = Greedy()
    caplog.set_level(logging.DEBUG, "tasker_executor")
    pool = make_pool(3, policy=policy)
    pool.submit(str).result(DEADLINE)
    eventually(lambda: bool(records(caplog, "3 workers wanted")), "the record")

    (record,) = records(caplog, "3 workers wanted")
    assert record["levelname"] == "DEBUG"
    assert (record["tasker_before"], record["tasker_after"], record["tasker_reason"]) == (0, 3, "Greedy()")


def test_every_logger_is_below_that_of_the_package(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    make_pool(1).submit(str).result(DEADLINE)

    assert caplog.records
    assert all(record.name.partition(".")[0] == "tasker_executor" for record in caplog.records)
