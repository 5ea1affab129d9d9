"""What is said of an event does not change the event: log records, notes, names and reprs that raise."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

from support import DEADLINE, Clock, FakeResource, Gate, Ledger, MakePool, eventually
from tasker_executor import Observer, TaskEvent
from tasker_executor._report import Logger, add_note, drop_frame, function_name, safe_repr, safe_str


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Slotted(Exception):
    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(name)


class PropertyTraceback(Exception):
    @property
    def __traceback__(self) -> NoReturn:  # type: ignore[override]  # an error may do so
        raise RuntimeError("no traceback of mine")


TupleNotes: type[Exception] = type("TupleNotes", (Exception,), {"__notes__": ()})


class Unspeakable(Exception):
    def __repr__(self) -> NoReturn:
        raise RuntimeError("no repr")

    __str__ = __repr__


class Falsy(Exception):
    def __bool__(self) -> bool:
        return False


AWKWARD: list[Callable[[], Exception]] = [lambda: Frozen(3), Slotted, PropertyTraceback, TupleNotes, Unspeakable, Falsy]
awkward = pytest.mark.parametrize("make", AWKWARD, ids=lambda make: type(make()).__name__)


def throw(make: Callable[[], Exception]) -> NoReturn:
    raise make()


def throw_with(resource: FakeResource, make: Callable[[], Exception]) -> NoReturn:
    raise make()


def says_no(error: BaseException) -> bool:
    return False


# -- logging that raises


class Grabby(logging.LogRecord):
    """What a record factory makes that claims the obvious names for itself, as structured logging does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ["executor", "worker", "reason", "before", "after", "failures", "delay", "event", "function", "policy"]:
            setattr(self, name, "the application's")


class Refuses(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("no records")


class Explodes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise LookupError("no records")


def _use_factory() -> Callable[[], None]:
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(Grabby)
    return lambda: logging.setLogRecordFactory(before)


def _use_filter() -> Callable[[], None]:
    refuses = Refuses()
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("tasker")]

    def undo() -> None:
        for logger in loggers:
            logger.removeFilter(refuses)

    for logger in loggers:
        logger.addFilter(refuses)
    return undo


def _use_handler() -> Callable[[], None]:
    handler = Explodes()
    logging.root.addHandler(handler)
    return lambda: logging.root.removeHandler(handler)


@pytest.fixture(params=[_use_factory, _use_filter, _use_handler], ids=["factory", "filter", "handler"])
def _hostile_logging(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, "tasker_executor")
    undo = request.param()
    try:
        yield
    finally:
        undo()


class Nosy(Observer):
    def task_finished(self, event: TaskEvent) -> None:
        raise RuntimeError(event.outcome)


@pytest.mark.usefixtures("_hostile_logging")
def test_a_pool_lives_and_ends_as_ever_under_a_logging_that_raises(make_pool: MakePool, ledger: Ledger) -> None:
    """A broken resource, a failing factory, an observer and hooks that raise: each has a record, and each record raises."""

    def clumsy_destroy(resource: FakeResource) -> None:
        ledger.destroy(resource)
        raise RuntimeError("destroyed, but")

    def clumsy_health(error: BaseException) -> bool:
        raise RuntimeError("cannot tell")

    pool = make_pool(
        1, on_create=ledger.create, on_destroy=clumsy_destroy, check_health=clumsy_health, max_retries=1, observers=[Nosy()]
    )
    failed = pool.submit(FakeResource.break_down)
    assert type(failed.exception(DEADLINE)).__name__ == "ResourceBroken"
    ledger.outage = ConnectionError("down")
    late = pool.submit(FakeResource.use)
    ledger.outage = None

    assert late.exception(DEADLINE) is None
    pool.shutdown(timeout=DEADLINE)
    assert pool.stats().active_workers == 0


@pytest.mark.usefixtures("_hostile_logging")
def test_a_callback_that_raises_costs_nothing_under_a_logging_that_raises(make_pool: MakePool) -> None:
    pool = make_pool(1)
    called: list[object] = []
    future = pool.submit(str)
    future.add_done_callback(lambda _: throw(ValueError))
    future.add_done_callback(called.append)
    future.result(DEADLINE)
    pool.shutdown(timeout=DEADLINE)

    assert called == [future]


def test_a_record_that_cannot_be_made_is_told_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    undo = _use_factory()
    try:
        logging.getLogger("tasker_executor.x").addFilter(Refuses())
        Logger("tasker_executor.x").warning("message %d", 7)
    finally:
        undo()
    assert "RuntimeError: no records" in capsys.readouterr().err


def test_nothing_is_told_where_the_program_wants_no_word_of_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logging.getLogger("tasker_executor.y").addFilter(Refuses())
    Logger("tasker_executor.y").error("message")

    assert capsys.readouterr().err == ""


def test_a_stderr_that_raises_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def write(self, text: str) -> NoReturn:
            raise OSError("gone")

    logging.getLogger("tasker_executor.z").addFilter(Refuses())
    monkeypatch.setattr(sys, "stderr", Broken())

    Logger("tasker_executor.z").critical("message")


def test_the_fields_of_a_record_have_names_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    Logger("tasker_executor.fields").info("hello", executor="db")
    caplog.set_level(logging.INFO, "tasker_executor")
    Logger("tasker_executor.fields").info("hello", executor="db")

    (record,) = caplog.records
    assert vars(record)["tasker_executor"] == "db"
    assert not hasattr(record, "executor")
    assert record.funcName == "test_the_fields_of_a_record_have_names_of_their_own"


def test_an_error_that_is_false_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    Logger("tasker_executor.falsy").error("it failed", exc_info=Falsy("really"))

    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], Falsy)


# -- errors that refuse what is done to them


@awkward
def test_a_task_ends_with_its_own_error_whatever_that_refuses(make_pool: MakePool, make: Callable[[], Exception]) -> None:
    pool = make_pool(1)
    error = pool.submit(throw, make).exception(DEADLINE)

    assert type(error) is type(make())
    assert pool.stats().workers_replaced == 0


@awkward
def test_a_task_that_gives_up_ends_with_its_own_error_whatever_that_refuses(
    make_pool: MakePool, ledger: Ledger, make: Callable[[], Exception]
) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=says_no, max_retries=1)
    error = pool.submit(throw_with, make).exception(DEADLINE)
    with pytest.raises(type(make())):
        pool.run_now(throw_with, make)

    assert type(error) is type(make())
    assert pool.stats().retried == 1


@awkward
def test_a_task_that_its_caller_runs_ends_with_its_own_error_whatever_that_refuses(
    make_pool: MakePool, gate: Gate, make: Callable[[], Exception]
) -> None:
    pool = make_pool(1, max_queued=0, on_full="caller")
    pool.submit(gate.hold)
    gate.wait_until_held()
    error = pool.submit(throw, make).exception(DEADLINE)

    assert type(error) is type(make())


@awkward
def test_a_frame_is_dropped_from_any_error(make: Callable[[], Exception]) -> None:
    try:
        throw(make)
    except Exception as raised:
        error = drop_frame(raised)

    trace = vars(BaseException)["__traceback__"].__get__(error)
    assert trace.tb_frame.f_code is throw.__code__


@awkward
def test_a_note_is_added_or_not_but_raises_nothing(make: Callable[[], Exception]) -> None:
    add_note(make(), "a note")


def test_a_note_is_added_where_it_can_be() -> None:
    error = ValueError()
    add_note(error, "a note")
    add_note(error, "another")

    assert vars(error)["__notes__"] == ["a note", "another"]


# -- what has no repr


def test_what_cannot_be_told_is_told_by_its_type() -> None:
    assert safe_repr([1]) == "[1]"
    assert safe_str(ValueError("text")) == "text"
    assert safe_repr(Unspeakable()) == "<Unspeakable, whose repr() raised RuntimeError>"
    assert safe_str(Unspeakable()) == "<Unspeakable, whose str() raised RuntimeError>"


def test_a_factory_whose_error_has_no_repr_fails_tasks_as_any_other(make_pool: MakePool, clock: Clock) -> None:
    pool = make_pool(1, on_create=lambda: throw(Unspeakable), create_timeout=3600)
    future = pool.submit(id)
    eventually(lambda: pool.stats().create_failures > 0, "a failure")
    clock.pass_time(3601, pool)
    error = future.exception(DEADLINE)

    assert "<Unspeakable, whose repr() raised RuntimeError>" in str(error)


def test_ctrl_c_in_what_is_said_is_still_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def __repr__(self) -> str:
            raise KeyboardInterrupt

        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    def interrupted(*args: object, **kwargs: object) -> NoReturn:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        safe_repr(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        function_name(Interrupted())
    monkeypatch.setattr(Grabby, "__init__", interrupted)
    undo = _use_factory()
    try:
        with pytest.raises(KeyboardInterrupt):
            Logger("tasker_executor.interrupted").error("message")
    finally:
        undo()
