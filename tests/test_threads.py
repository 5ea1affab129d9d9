"""The executor's own threads: what is a refusal of the system, what is an error of the user, and what a refusal costs."""

from __future__ import annotations

import contextvars
import sys
import threading

import pytest

from engine import CannotStart, make_thread, patch_pauses, patch_thread_start, start_thread, unborn_workers, want
from support import DEADLINE, Gate, Ledger, MakePool, eventually, join_all
from tasker_executor import ResourceExecutor
from tasker_executor.testing.fakes import Watched

#: What `Thread.start` calls to make a thread.
STARTER = "_start_joinable_thread" if sys.version_info >= (3, 13) else "_start_new_thread"
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


class Limit(TimeoutError):
    """A time limit of the user's."""


def raise_from_c(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have the function in C that makes threads raise `error`: with no frame of its own in the traceback."""

    def starter(*_: object, **__: object) -> None:
        raise error

    start = threading.Thread.start

    def start_and_forget_the_frame(thread: threading.Thread) -> None:
        try:
            start(thread)
        except Exception as refused:
            trace = refused.__traceback__
            while trace is not None and trace.tb_next is not None and trace.tb_next.tb_frame.f_code is not starter.__code__:
                trace = trace.tb_next
            assert trace is not None
            trace.tb_next = None
            raise

    monkeypatch.setattr(threading, STARTER, starter)
    monkeypatch.setattr(threading.Thread, "start", start_and_forget_the_frame)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        MemoryError(),
        RuntimeError("daemon thread are not supported in this interpreter"),
    ],
    ids=repr,
)
def test_a_refusal_of_the_system_is_one_class(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    raise_from_c(monkeypatch, error)

    with pytest.raises(CannotStart) as caught:
        start_thread(make_thread(int, "never"))

    assert caught.value.__cause__ is error
    assert isinstance(caught.value, RuntimeError)
    assert str(caught.value) == (str(error) or "can't start new thread")


@pytest.mark.parametrize(
    "error",
    [
        Limit(),
        TimeoutError("time limit"),
        RecursionError("deep"),
        RuntimeError("of a handler"),
        MemoryError(),
        OSError(5, "EIO"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("where", ["before", "after"])
def test_an_error_of_a_signal_handler_is_no_refusal(monkeypatch: pytest.MonkeyPatch, error: Exception, where: str) -> None:
    thread = make_thread(int, "interrupted")
    begun: threading.Event = vars(thread)["_started"]  # what `Thread.start` waits for
    wait = begun.wait

    def handler(*_: object, **__: object) -> None:
        if where == "after":
            wait(DEADLINE)
        raise error

    patched: tuple[object, str] = (threading, STARTER) if where == "before" else (begun, "wait")
    monkeypatch.setattr(*patched, handler)

    with pytest.raises(type(error)) as caught:
        start_thread(thread)
    monkeypatch.undo()

    assert caught.value is error
    if where == "after":
        eventually_ends(thread)


def test_recursion_error_from_the_call_itself_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    raise_from_c(monkeypatch, RecursionError("maximum recursion depth exceeded"))

    with pytest.raises(RecursionError):
        start_thread(make_thread(int, "never"))


def test_a_thread_of_ours_has_an_empty_context_and_its_name() -> None:
    seen: list[str] = []
    VARIABLE.set("the starter's")
    thread = make_thread(lambda: seen.append(VARIABLE.get() + " in " + threading.current_thread().name), "ours")
    start_thread(thread)
    eventually_ends(thread)

    assert seen == ["unset in ours"]


def eventually_ends(thread: threading.Thread) -> None:
    assert join_all([thread], DEADLINE) == []


# -- the system refuses the thread of a worker --


@pytest.fixture
def permits(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """So many threads can still be started."""
    permits: list[None] = []
    start = threading.Thread.start

    def start_if_permitted(thread: threading.Thread) -> None:
        if not permits:
            raise RuntimeError("can't start new thread")
        permits.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_permitted)
    return permits


def test_of_several_workers_hired_those_that_cannot_start_are_not_in_the_books(
    make_pool: MakePool, permits: list[None], caplog: pytest.LogCaptureFixture
) -> None:
    # 1. Three workers are hired. 2. The thread of the first starts, that of the second does not, the third is not tried.
    pool = make_pool(3)
    permits.append(None)
    pool.resize(min_workers=3)
    eventually(lambda: pool.stats().active_workers == 1, "one worker")

    assert "cannot start a worker" in caplog.text
    assert unborn_workers(pool) == {}
    permits.extend([None] * 9)
    barrier = threading.Barrier(3)
    futures = [pool.submit(barrier.wait, DEADLINE) for _ in range(3)]
    assert sorted(future.result(DEADLINE) for future in futures) == [0, 1, 2]


def test_a_task_that_comes_in_the_pause_after_no_thread_could_be_started_is_run(
    make_pool: MakePool, permits: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. No worker can be started, and no timer. 2. There are threads again. 3. A task comes before the pause is over.
    patch_pauses(monkeypatch, 1.0)
    pool = make_pool(1)
    pool.resize(min_workers=1)
    assert pool.stats().active_workers == 0
    permits.extend([None] * 9)

    assert pool.submit(int, "7").result(DEADLINE) == 7


def test_a_task_that_comes_in_the_pause_while_no_thread_can_be_started_is_run_when_one_can(
    make_pool: MakePool, permits: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. No worker can be started, and no timer. 2. A task comes in the pause, and the timer still cannot be started.
    # 3. There are threads again, and another task comes.
    patch_pauses(monkeypatch, 1.0)
    pool = make_pool(1)
    pool.resize(min_workers=1)
    first = pool.submit(int, "7")
    permits.extend([None] * 9)

    assert pool.submit(int, "8").result(DEADLINE) == 8
    assert first.result(DEADLINE) == 7


def test_a_submit_that_can_start_no_thread_raises_and_its_task_never_runs(make_pool: MakePool, permits: list[None]) -> None:
    ran: list[str] = []
    pool = make_pool(1)

    with pytest.raises(RuntimeError, match="can't start new thread"):
        pool.submit(ran.append, "refused")
    permits.append(None)
    pool.submit(ran.append, "accepted").result(DEADLINE)

    assert ran == ["accepted"]
    assert pool.stats().submitted == 1


def test_a_submit_that_can_start_no_further_thread_leaves_its_task_to_those_there_are(
    make_pool: MakePool, permits: list[None], gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(2)
    permits.append(None)
    pool.submit(gate.hold)
    gate.wait_until_held()

    future = pool.submit(int, "7")
    gate.release()

    assert future.result(DEADLINE) == 7
    assert "cannot start another worker" in caplog.text


def test_the_missing_worker_is_started_once_threads_can_be_had_again(
    make_pool: MakePool, permits: list[None], gate: Gate
) -> None:
    pool = make_pool(2)
    permits.append(None)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.submit(int)
    permits.append(None)

    assert pool.submit(int, "7").result(DEADLINE) == 7  # though the first worker is held


def test_a_constructor_that_can_start_no_base_worker_raises_and_leaves_nothing(ledger: Ledger, permits: list[None]) -> None:
    ledger.any_thread = True

    with pytest.raises(RuntimeError, match="can't start new thread"):
        ResourceExecutor(1, on_create=ledger.create, on_destroy=ledger.destroy, min_workers=1, resource_pool_size=2)

    assert len(ledger.created) == len(ledger.destroyed) == 2


@pytest.mark.parametrize("call", ["shutdown", "resize"])
def test_who_would_start_a_worker_for_others_and_can_start_no_thread_leaves_the_tasks_to_those_there_are(
    make_pool: MakePool,
    permits: list[None],
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
) -> None:
    # Tasks wait, and there is room for a worker. The caller submitted none of them, so it need not see
    # the error.
    patch_pauses(monkeypatch, 0.0)
    pool = make_pool(2)
    permits.append(None)
    pool.submit(gate.hold)
    gate.wait_until_held()
    queued = pool.submit(int, "7")

    if call == "shutdown":
        pool.shutdown(wait=False)
    else:
        pool.resize(max_workers=3)
    gate.release()

    assert queued.result(DEADLINE) == 7
    assert "cannot start a worker" in caplog.text
    assert "cannot start the timer thread" in caplog.text


def test_a_constructor_that_can_start_no_worker_has_destroyed_its_resources_when_it_raises(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="new thread") as caught:
        ResourceExecutor(1, on_create=ledger.create, on_destroy=ledger.destroy, min_workers=1, resource_pool_size=2)

    assert len(ledger.created) == 2
    assert ledger.alive == []
    assert caught.tb is not None  # the traceback keeps the executor, so it was not dropped


# -- the system refuses the first threads --


class Refusals(Watched):
    """Takes the place of `start_thread`; the first threads of workers are refused, when the gate opens."""

    def __init__(self, count: int, gate: Gate | None = None) -> None:
        super().__init__()
        self.left = count
        self.gate = gate

    def __call__(self, thread: threading.Thread) -> None:
        if self.left:
            self.left -= 1
            if self.gate is not None:
                self.gate.hold()
            raise CannotStart("can't start new thread")
        start_thread(thread)


def submit_in_vain(pool: ResourceExecutor[None], refused: list[type[Exception]]) -> None:
    try:
        pool.submit(int, "1")
    except RuntimeError as error:
        refused.append(type(error))


def test_a_submitter_whose_thread_is_refused_leaves_no_other_task_behind(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    # 1. A submitter is about to start the one worker that there may be. 2. Another queues its task and relies on that worker.
    # 3. The system refuses the thread. The first task is withdrawn.
    pool = make_pool(1)
    patch_thread_start(monkeypatch, Refusals(1, gate))
    refused: list[type[Exception]] = []
    first = threading.Thread(target=submit_in_vain, args=(pool, refused))
    first.start()
    gate.wait_until_held()
    second = pool.submit(int, "2")
    gate.release()
    assert not join_all([first])
    assert second.result(DEADLINE) == 2
    assert refused == [CannotStart]


def test_a_task_that_nobody_is_left_to_hear_of_waits_until_the_system_has_threads(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    # As above, but the second attempt is refused as well, and no submitter is there any more to be told.
    pool = make_pool(1)
    patch_thread_start(monkeypatch, Refusals(2, gate))
    first = threading.Thread(target=submit_in_vain, args=(pool, []))
    first.start()
    gate.wait_until_held()
    second = pool.submit(int, "2")
    gate.release()
    assert not join_all([first])
    assert second.result(DEADLINE) == 2


def test_a_wait_inside_gets_its_worker_when_the_system_has_threads_again(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(2)
    want(pool, 1, "one worker is wanted")

    def outer() -> int:
        inner = pool.submit(int, "7")
        patch_thread_start(monkeypatch, Refusals(1))
        return inner.result()

    assert pool.submit(outer).result(DEADLINE) == 7
