"""Handoff: the waiter for a lone task is handed the interpreter. If that fails, no thread waits in vain."""

from __future__ import annotations

import os
import signal
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import pytest

from engine import LIMIT, Handoff, HandoffLost, await_handoff, give_back, patch_borrow, patch_worker_clock
from engine import handoff_module as _handoff
from support import DEADLINE, Gate, MakePool, eventually, run_python, switch_interval
from tasker_executor import ResourceExecutor
from tasker_executor._sync import clock

pytestmark = pytest.mark.skipif(not Handoff.supported, reason="needs Linux, and a GIL")

Ask = Callable[..., threading.Thread]


@pytest.fixture
def answers() -> list[Any]:
    """What the threads of `ask` got."""
    return []


@pytest.fixture
def ask(answers: list[Any]) -> Iterator[Ask]:
    """Have another thread wait for that future."""
    threads: list[threading.Thread] = []

    def start(future: Future[Any], timeout: float | None = DEADLINE) -> threading.Thread:
        def wait() -> None:
            try:
                answers.append(future.result(timeout))
            except BaseException as error:
                answers.append(type(error))

        thread = threading.Thread(target=wait)
        thread.start()
        threads.append(thread)
        return thread

    yield start
    for thread in threads:
        thread.join(DEADLINE)


def handoff_of(future: Any) -> Handoff | None:
    sidecar = future._sidecar
    return None if sidecar is None else sidecar.handoff


def handoff_in_use(future: Any) -> Handoff:
    """Block until a thread waits for the task by a handoff; return that."""
    eventually(lambda: handoff_of(future) is not None, "a wait by handoff")
    handoff = handoff_of(future)
    assert handoff is not None
    return handoff


def permits_of(future: Any) -> object:
    sidecar = future._sidecar
    return None if sidecar is None else sidecar.permits


def borrow() -> Handoff | None:
    """Return what is lent, without the list."""
    loan: list[Handoff] = []
    _handoff.borrow(loan)
    return loan[0] if loan else None


@pytest.fixture
def lent() -> Iterator[list[Handoff]]:
    """All that there may be, borrowed."""
    handoffs = [handoff for _ in range(LIMIT) if (handoff := borrow()) is not None]
    yield handoffs
    give_back(handoffs)


# -- which waiter gets one --


def test_who_waits_for_a_lone_task_is_handed_the_interpreter(
    busy: ResourceExecutor[None], gate: Gate, ask: Ask, answers: list[Any]
) -> None:
    future = busy.submit(int, "7")
    asker = ask(future)
    handoff_in_use(future)
    assert permits_of(future) is None

    gate.release()
    asker.join(DEADLINE)

    assert answers == [7]
    assert handoff_of(future) is None


def test_who_waits_for_a_task_of_many_is_not(busy: ResourceExecutor[None], gate: Gate, ask: Ask, answers: list[Any]) -> None:
    future = busy.submit(int, "7")
    busy.submit(int)
    asker = ask(future)
    eventually(lambda: permits_of(future) is not None, "the asker to wait")
    assert handoff_of(future) is None

    gate.release()
    asker.join(DEADLINE)

    assert answers == [7]


def test_all_who_wait_for_a_task_get_its_result(busy: ResourceExecutor[None], gate: Gate, ask: Ask, answers: list[Any]) -> None:
    future = busy.submit(int, "7")
    future.add_done_callback(lambda _: None)  # there is a sidecar already
    ask(future)
    handoff_in_use(future)
    others = [ask(future) for _ in range(3)]
    eventually(lambda: permits_of(future) is not None, "the other askers to wait")

    gate.release()
    for asker in others:
        asker.join(DEADLINE)

    eventually(lambda: answers == [7, 7, 7, 7], "four answers")


def test_of_two_who_come_at_once_to_a_watched_task_one_waits_in_another_way(
    busy: ResourceExecutor[None], gate: Gate, ask: Ask, answers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A waiter borrows a handoff. 2. Another one comes, and gives its own to the task. 3. The first must not replace that.
    future = busy.submit(int, "7")
    future.add_done_callback(lambda _: None)
    second: list[threading.Thread] = []

    def borrow_late(loan: list[Handoff]) -> None:
        _handoff.borrow(loan)
        if not second:
            second.append(threading.current_thread())
            second.append(ask(future))
            handoff_in_use(future)

    patch_borrow(monkeypatch, borrow_late)
    ask(future)
    eventually(lambda: permits_of(future) is not None, "the first asker to wait")

    gate.release()

    eventually(lambda: answers == [7, 7], "two answers")


def test_a_waiter_that_is_told_of_a_cancellation_raises_it(busy: ResourceExecutor[None], ask: Ask, answers: list[Any]) -> None:
    future = busy.submit(int)
    asker = ask(future)
    handoff_in_use(future)

    assert future.cancel()
    asker.join(DEADLINE)

    assert answers == [CancelledError]


def test_a_result_that_comes_at_the_moment_of_the_timeout_is_returned(
    busy: ResourceExecutor[None], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    future = busy.submit(int, "7")

    def time_out(*_: object) -> None:  # 1. The wait has timed out. 2. The task ends. 3. The waiter looks again.
        gate.release()
        eventually(future.done, "the task to end")

    monkeypatch.setattr(Handoff, "wait", time_out)

    assert future.result(1e-3) == 7


# -- they are lent --


def test_each_wait_gives_back_what_it_borrowed(busy: ResourceExecutor[None], gate: Gate) -> None:
    future = busy.submit(int, "7")
    give_back_once = borrow()
    assert give_back_once is not None
    give_back([give_back_once])
    before = set(_handoff._free)

    for timeout in (0, 0.001):
        with pytest.raises(FutureTimeoutError):
            future.result(timeout)
    assert handoff_of(future) is None
    assert set(_handoff._free) == before
    gate.release()
    assert future.result(DEADLINE) == 7

    assert set(_handoff._free) == before
    assert future.result() == 7


def test_a_wait_that_is_interrupted_gives_back_what_it_borrowed(
    busy: ResourceExecutor[None], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    future = busy.submit(int, "7")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Handoff, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        future.result()
    monkeypatch.undo()

    assert len(_handoff._free) == len(_handoff._made)
    assert handoff_of(future) is None
    gate.release()
    assert future.result(DEADLINE) == 7


def test_where_all_are_lent_out_a_waiter_waits_in_another_way(
    busy: ResourceExecutor[None], gate: Gate, ask: Ask, answers: list[Any], lent: list[Handoff]
) -> None:
    assert len(lent) == len(_handoff._made) == LIMIT
    assert borrow() is None
    future = busy.submit(int, "7")
    asker = ask(future)
    eventually(lambda: permits_of(future) is not None, "the asker to wait")

    gate.release()
    asker.join(DEADLINE)

    assert answers == [7]


def test_without_a_file_descriptor_a_waiter_waits_in_another_way(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(_handoff, "_free", [])
    monkeypatch.setattr(_handoff, "_made", [])
    monkeypatch.setattr(Handoff.__init__, "__defaults__", (refuse, *(Handoff.__init__.__defaults__ or ())[1:]))

    assert borrow() is None
    assert make_pool(1).submit(int, "7").result(DEADLINE) == 7


def test_where_it_is_not_supported_there_are_none(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_handoff, "_free", [])
    monkeypatch.setattr(Handoff, "supported", False)

    assert borrow() is None
    assert make_pool(1).submit(int, "7").result(DEADLINE) == 7


def test_one_that_nobody_refers_to_is_closed() -> None:
    handoff = Handoff()
    eventfd = handoff._eventfd
    assert os.fstat(eventfd)

    del handoff

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(eventfd)


def test_a_process_of_green_threads_does_without() -> None:
    # As gevent and eventlet do it: all of their threads share one, which must not sleep.
    process = run_python(
        textwrap.dedent("""
            import _thread
            real = _thread.allocate_lock
            def green_lock():
                return real()
            _thread.allocate_lock = green_lock
            from tasker_executor._engine.handoff import Handoff
            print(Handoff.supported)
        """)
    )

    assert (process.stdout, process.stderr) == ("False\n", "")


def test_threads_that_were_patched_after_the_import_are_refused_at_once() -> None:
    process = run_python(
        textwrap.dedent("""
            from tasker_executor import ResourceExecutor
            import _thread
            real = _thread.allocate_lock
            _thread.allocate_lock = lambda: real()
            try:
                ResourceExecutor(1)
            except RuntimeError as error:
                print(error)
        """)
    )

    assert "patch first" in process.stdout, process.stderr


# -- and may be given for nothing --


@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_a_wake_up_that_was_meant_for_the_last_borrower_ends_no_wait(
    busy: ResourceExecutor[None], gate: Gate, ask: Ask, answers: list[Any], lent: list[Handoff], timeout: float | None
) -> None:
    # 1. A waiter sees that its task is done, and gives its handoff back. 2. Another one borrows it. 3. The first task's worker,
    # which is late, wakes the second waiter. 4. Its own task's worker must still be able to wake it.
    late = lent.pop()
    late.give()
    give_back([late])
    future = busy.submit(int, "7")
    waits: list[float | None] = []
    wakes: list[bool] = []
    wait = Handoff.wait

    def count(handoff: Handoff, timeout: float | None) -> bool:
        waits.append(timeout)
        woken = wait(handoff, timeout)
        wakes.append(woken)
        return woken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handoff, "wait", count)
        asker = ask(future, timeout)
        eventually(lambda: len(waits) >= 2, "the asker to wait again")
        assert wakes[0]
        assert handoff_of(future) is late
        assert answers == []
        gate.release()
        asker.join(DEADLINE)

    assert answers == [7]


@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_a_signal_does_not_end_a_wait_unless_its_handler_raises(
    busy: ResourceExecutor[None], gate: Gate, timeout: float | None
) -> None:
    future = busy.submit(int, "7")
    main_thread = threading.get_ident()
    handled = threading.Semaphore(0)

    calls: list[int] = []

    def handle(number: int, _: object) -> None:
        calls.append(number)
        handled.release()
        if len(calls) == 2:
            raise InterruptedError("by the handler")

    def send() -> None:
        handoff_in_use(future)
        for _ in range(2):
            # Once is not enough: a signal that comes right before the system call does not interrupt it.
            signal.pthread_kill(main_thread, signal.SIGUSR1)
            while not handled.acquire(timeout=0.01):
                signal.pthread_kill(main_thread, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    thread = threading.Thread(target=send)
    try:
        thread.start()
        with pytest.raises(InterruptedError, match="by the handler"):
            future.result(timeout)
    finally:
        thread.join(DEADLINE)
        signal.signal(signal.SIGUSR1, before)

    gate.release()
    assert future.result(DEADLINE) == 7


def test_a_file_descriptor_that_somebody_closed_ends_no_worker(
    busy: ResourceExecutor[None], gate: Gate, ask: Ask, answers: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    future = busy.submit(int, "7")
    called: list[Future[Any]] = []
    future.add_done_callback(called.append)
    asker = ask(future)
    handoff = handoff_in_use(future)

    give = handoff.give

    def fail() -> None:
        give()  # or the asker would wait for ever, as it does where this is not staged
        raise HandoffLost

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handoff, "give", fail)
        gate.release()
        asker.join(DEADLINE)
        eventually(lambda: called == [future], "the callback")

    assert answers == [7]
    assert busy.submit(int, "8").result(DEADLINE) == 8
    assert "closed a file descriptor of ours" in caplog.text


@pytest.mark.parametrize("timeout", [1e6, 1e12, float("inf")])
def test_a_very_long_timeout_is_a_timeout(busy: ResourceExecutor[None], gate: Gate, timeout: float) -> None:
    future = busy.submit(int, "7")

    def release() -> None:
        handoff_in_use(future)
        gate.release()

    thread = threading.Thread(target=release)
    thread.start()

    assert future.result(timeout) == 7
    thread.join(DEADLINE)


def test_the_next_task_is_not_charged_with_the_time_that_the_interpreter_was_away(
    busy: ResourceExecutor[None], gate: Gate, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A task ends, its waiter is handed the interpreter, and keeps it for a while. 2. The worker comes back, and runs the
    # next task: for no time at all.
    future = busy.submit(int)
    away = 0.0
    asker = ask(future)
    handoff = handoff_in_use(future)
    give = handoff.give

    def give_for_a_while() -> None:
        nonlocal away
        give()
        away = 1000.0

    patch_worker_clock(monkeypatch, lambda: clock() + away)
    monkeypatch.setattr(handoff, "give", give_for_a_while)
    following = busy.submit(int)
    gate.release()
    asker.join(DEADLINE)
    following.result(DEADLINE)

    assert away == 1000.0
    assert busy.metrics().run.maximum < 1000.0


OTHERS = """
import os, queue, sys, tempfile, threading, time
from tasker_executor import ResourceExecutor
from tasker_executor._engine import handoff as _handoff
pool = ResourceExecutor(1)
pool.submit(time.sleep, 0.01).result()
[handoff] = _handoff._made
number = handoff._eventfd

def take_its_number(flags=os.O_RDWR):
    os.close(number)
    path = tempfile.mktemp()
    with open(path, "wb") as file:
        file.write(b"0123456789abcdef")
    opened = os.open(path, flags)
    assert opened != number, "numbers of ours are out of the way"
    os.dup2(opened, number)
    os.close(opened)
    return path

def is_untouched(path):
    with open(path, "rb") as file:
        return file.read() == b"0123456789abcdef" and os.lseek(number, 0, os.SEEK_CUR) == 0
"""


def run_with_others(program: str) -> None:
    process = run_python(OTHERS + textwrap.dedent(program))
    assert process.stdout == "good\n", process.stderr


def test_a_file_that_got_the_number_is_neither_read_nor_written_nor_closed() -> None:
    run_with_others("""
        path = take_its_number()
        assert pool.submit(int, "7").result() == 7
        assert pool.submit(int, "8").result(10) == 8
        assert handoff not in _handoff._made
        del handoff
        pool.shutdown()
        _handoff._free.clear()
        print("good" if is_untouched(path) else "touched")
    """)


def test_a_file_that_gets_the_number_while_a_thread_waits_is_not_written_to() -> None:
    run_with_others("""
        polls = queue.SimpleQueue()
        poll = handoff._poll
        class Poll:
            def poll(self, timeout):
                polls.put(timeout)
                return poll.poll(timeout)
        handoff._poll = Poll()
        go = threading.Event()
        future = pool.submit(go.wait)
        answers = []
        asker = threading.Thread(target=lambda: answers.append(future.result(20)))
        asker.start()
        polls.get()
        time.sleep(0.05)  # now it sleeps on our file, and looks no more whose the number is
        path = take_its_number()
        go.set()
        asker.join()
        assert answers == [True]
        print("good" if is_untouched(path) else "touched")
    """)


def test_a_clock_that_stands_still_ends_a_timeout_all_the_same(busy: ResourceExecutor[None]) -> None:
    future: Any = busy.submit(int)
    loan: list[Handoff] = []
    _handoff.borrow(loan)
    try:
        with pytest.raises(FutureTimeoutError):
            await_handoff(future._observe(), loan[0], 0.01, lambda: 0.0)
    finally:
        give_back(loan)


FORK = """
import os, signal, sys, threading, time, warnings
from tasker_executor import ResourceExecutor
from tasker_executor._engine import handoff as _handoff
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def wait(times):
    with ResourceExecutor(1) as pool:
        for number in range(times):
            assert pool.submit(int, number).result() == number

def wait_until(predicate):
    while not predicate():
        time.sleep(0.001)
"""


def run_fork(program: str) -> None:
    process = run_python(FORK + textwrap.dedent(program))
    assert (process.stdout, process.stderr) == ("good\n", "")


def test_the_child_of_a_fork_has_its_own() -> None:
    run_fork("""
        wait(100)
        inherited = list(_handoff._made)
        assert inherited
        numbers = [handoff._eventfd for handoff in inherited]
        child = os.fork()
        if child == 0:
            assert not _handoff._made and not _handoff._free
            inherited.clear()
            for number in numbers:
                try:
                    os.fstat(number)
                except OSError:
                    continue
                os._exit(2)  # still open
            wait(100)
            os._exit(0 if _handoff._made else 1)
        wait(100)
        assert os.waitpid(child, 0)[1] == 0
        assert _handoff._made == inherited
        print("good")
    """)


def test_a_signal_handler_that_forks_in_the_midst_of_a_wait() -> None:
    # 1. A thread waits, and a signal handler interrupts it, and forks. 2. The child opens a file, which must not get the number
    # that its thread goes on to read from. 3. Its wait ends with an error, since its worker is in the parent only.
    run_fork("""
        pool = ResourceExecutor(1)
        finish = threading.Event()
        future = pool.submit(finish.wait)
        parent = os.getpid()
        child = None

        def fork(*_):
            global child, pipe
            if child is not None:
                return
            child = os.fork()
            if child == 0:
                pipe = os.pipe()
                os.write(pipe[1], b"precious")
            else:
                finish.set()

        signal.signal(signal.SIGUSR1, fork)
        main_thread = threading.get_ident()

        def send():
            wait_until(lambda: future._sidecar is not None and future._sidecar.handoff is not None)
            while child is None:  # a signal that comes right before the system call does not interrupt it
                signal.pthread_kill(main_thread, signal.SIGUSR1)
                time.sleep(0.01)

        threading.Thread(target=send).start()
        try:
            result = future.result()
        except RuntimeError as error:
            assert os.getpid() != parent, error
            assert "inherited through fork()" in str(error), error
            good = os.read(pipe[0], 100) == b"precious"
            wait(100)
            os._exit(0 if good else 1)
        assert result is True
        assert os.getpid() == parent
        assert os.waitpid(child, 0)[1] == 0
        pool.shutdown()
        print("good")
    """)


def test_a_thousand_waits_need_no_more_than_the_limit(make_pool: MakePool) -> None:
    def wait(pool: ResourceExecutor[None]) -> None:
        for number in range(100):
            assert pool.submit(int, number).result(DEADLINE) == number

    pool = make_pool(2)
    with switch_interval():
        threads = [threading.Thread(target=wait, args=(pool,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)

    assert pool.stats().completed == 1200
    assert len(_handoff._free) == len(_handoff._made) <= LIMIT
