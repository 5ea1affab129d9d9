"""What becomes of a queue that is cancelled: by `shutdown(cancel_futures=True)`, or by `kill`.

Tasks that no thread observes are popped, and need no sidecar of their own. Each race with a thread that observes is forced.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, as_completed, wait
from functools import partial
from typing import Any

import pytest

from engine import Sidecar, Task, core_of, is_terminated, lanes_of, normal_lane, workers_of
from interruptions import ERRORS, AtPoint
from races import Once, RacedLane
from support import DEADLINE, Gate, MakePool, collected, eventually, join_all
from tasker_executor import Observer, ResourceExecutor, TaskEvent

End = Callable[[ResourceExecutor[Any]], object]


def shutdown(pool: ResourceExecutor[Any]) -> None:
    pool.shutdown(wait=False, cancel_futures=True)


def kill(pool: ResourceExecutor[Any]) -> None:
    pool.kill()


ENDS = pytest.mark.parametrize("end", [shutdown, kill])


def hold_the_only_worker(make_pool: MakePool, gate: Gate, **options: Any) -> ResourceExecutor[Any]:
    pool = make_pool(1, **options)
    RacedLane(pool, "normal")
    pool.submit(gate.hold)
    gate.wait_until_held()
    return pool


def check_books(pool: ResourceExecutor[Any], cancelled: int) -> None:
    stats = pool.stats()
    assert stats.cancelled == cancelled
    assert stats.submitted == stats.completed + stats.failed + stats.cancelled
    for lane in lanes_of(pool):
        assert lane.tombstones == len(lane)  # no worker has popped those that a killer left
    pool._check()


# -- as seen from outside

ASKED: dict[str, Callable[[Any], object]] = {
    "cancelled": lambda future: future.cancelled() and future.done() and not future.running(),
    "cancel": lambda future: future.cancel(),
    "stop": lambda future: future.stop(),
    "state": lambda future: future._state == "CANCELLED_AND_NOTIFIED",
    "snapshot": lambda future: future._get_snapshot() == (True, True, None, None),
    "wait": lambda future: wait([future], 0).done == {future},
    "as_completed": lambda future: list(as_completed([future], 0)) == [future],
    "repr": lambda future: "state=cancelled" in repr(future),
    "set_running_or_notify_cancel": lambda future: not future.set_running_or_notify_cancel(),
}


@ENDS
@pytest.mark.parametrize("ask", list(ASKED.values()), ids=list(ASKED))
def test_a_task_that_no_thread_observed_is_a_cancelled_future(
    make_pool: MakePool, gate: Gate, ask: Callable[[Any], object], end: End
) -> None:
    pool = hold_the_only_worker(make_pool, gate)
    futures = [pool.submit(int), pool.submit_priority(int)]

    end(pool)

    for future in futures:
        assert [ask(future), ask(future)] == [True, True]  # the second time it may have what the first one made
        for get in (future.result, future.exception):
            with pytest.raises(CancelledError):
                get(0)
            with pytest.raises(CancelledError):
                get()
        called: list[Future[Any]] = []
        future.add_done_callback(called.append)
        assert called == [future]
    gate.release()
    pool.shutdown(timeout=DEADLINE)
    check_books(pool, 2)


def test_tasks_that_no_thread_observed_share_one_sidecar(make_pool: MakePool, gate: Gate) -> None:
    pool = hold_the_only_worker(make_pool, gate)
    futures: list[Any] = [pool.submit(int) for _ in range(2)]
    observed: Any = pool.submit(int)
    observed.add_done_callback(id)

    shutdown(pool)
    for future in futures:  # these leave nothing in it
        assert wait([future], 0).done == {future}
        assert future.cancel()
        future.add_done_callback(id)

    assert futures[0]._sidecar is futures[1]._sidecar is not observed._sidecar
    assert vars(futures[0]._sidecar) == {}
    assert futures[0]._waiters == []


@ENDS
def test_a_cancelled_task_lets_go_of_its_call_under_no_lock(make_pool: MakePool, gate: Gate, end: End) -> None:
    class Argument:
        def __del__(self) -> None:
            held.append(any(lane._lock._is_owned() for lane in lanes_of(pool)))  # type: ignore[attr-defined]  # an RLock

    held: list[bool] = []
    pool = hold_the_only_worker(make_pool, gate)
    argument = Argument()
    gone = weakref.ref(argument)
    future = pool.submit(id, argument)
    del argument

    end(pool)

    assert collected(gone)
    assert held == [False]
    assert future.cancelled()


def test_an_observer_of_the_executor_hears_once_of_each_task(make_pool: MakePool, gate: Gate) -> None:
    class Ends(Observer):
        def task_finished(self, event: TaskEvent) -> None:
            heard.append(event.outcome)

    heard: list[str] = []
    pool = hold_the_only_worker(make_pool, gate, observers=[Ends()])
    for _ in range(3):
        pool.submit(int)

    shutdown(pool)

    assert heard == ["cancelled"] * 3


# -- against a thread that observes


@ENDS
def test_a_task_that_is_observed_just_after_it_was_popped_is_cancelled_all_the_same(
    make_pool: MakePool, gate: Gate, end: End
) -> None:
    # 1. The canceller pops a task that no thread observes. 2. Another thread adds a callback. 3. The canceller puts it back.
    pool = hold_the_only_worker(make_pool, gate)
    lane: Any = normal_lane(pool)
    first, last = pool.submit(int), pool.submit(int)
    called: list[Future[Any]] = []
    lane.on_popped = Once(lambda: first.add_done_callback(called.append))

    end(pool)

    assert called == [first]
    assert first.cancelled()
    assert last.cancelled()
    gate.release()
    pool.shutdown(timeout=DEADLINE)
    check_books(pool, 2)


ACTS: dict[str, Callable[[Task[Any]], object]] = {
    "cancel": lambda task: task.cancel() or pytest.fail("not cancelled"),
    "add_done_callback": lambda task: task.add_done_callback(id),
    "condition": lambda task: task._condition,
}


@pytest.mark.parametrize("look", [1, 2], ids=["before the sidecars are entered", "before they are stored"])
@pytest.mark.parametrize("act", list(ACTS.values()), ids=list(ACTS))
def test_one_sidecar_for_life_though_a_canceller_and_an_observer_come_at_once(
    make_pool: MakePool, gate: Gate, act: Callable[[Task[Any]], object], look: int
) -> None:
    # 1. The canceller has popped the task, and finds no sidecar. 2. Another thread gives the task one.
    pool = hold_the_only_worker(make_pool, gate)
    future = pool.submit(int)
    task: Any = normal_lane(pool).popleft()

    class Late(Task[Any]):
        __slots__ = ()

        @property
        def _sidecar(self) -> Sidecar | None:  # the slot, and what comes after the look
            found: Sidecar | None = slot.__get__(self)
            looks.append(None)
            if len(looks) == look:
                other = threading.Thread(target=act, args=(task,))
                other.start()
                other.join(DEADLINE)
            return found

        @_sidecar.setter
        def _sidecar(self, sidecar: Sidecar | None) -> None:
            slot.__set__(self, sidecar)

    looks: list[None] = []
    slot: Any = vars(Task)["_sidecar"]
    task.__class__ = Late

    cancelled = task._cancel_popped()

    assert cancelled == (look == 2)
    if not cancelled:
        normal_lane(pool).append(task)
    condition = task._condition
    shutdown(pool)
    assert future.cancelled()
    assert task._condition is condition
    gate.release()
    pool.shutdown(timeout=DEADLINE)
    check_books(pool, 1)


def test_each_task_is_cancelled_once_though_others_cancel_and_observe_it_meanwhile(make_pool: MakePool, gate: Gate) -> None:
    pool = hold_the_only_worker(make_pool, gate)
    futures = [pool.submit(int) for _ in range(3000)]
    called: list[Future[Any]] = []
    acts: list[Callable[[Any], object]] = [
        lambda future: future.cancel(),
        lambda future: future.add_done_callback(called.append),
    ]

    def to_each(act: Callable[[Any], object]) -> None:
        for future in futures:
            act(future)

    others = [threading.Thread(target=to_each, args=(act,)) for act in acts]
    others += [threading.Thread(target=end, args=(pool,)) for end in (shutdown, kill)]

    for other in others:
        other.start()
    assert not join_all(others)
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert all(future.cancelled() for future in futures)
    assert sorted(map(id, called)) == sorted(map(id, futures))
    check_books(pool, len(futures))


# -- against the end of the executor


def fail() -> None:
    raise OSError("no resource")


def without_workers(make_pool: MakePool) -> ResourceExecutor[Any]:
    """A pool whose factory fails, so that a task waits and no worker lives."""
    pool = make_pool(1, on_create=fail)
    RacedLane(pool, "normal")
    pool.submit(id)
    eventually(lambda: not workers_of(pool) and pool._core.crew.outage.failures > 0, "the factory to fail")
    return pool


def test_an_executor_does_not_close_while_a_task_is_in_the_hand_of_its_canceller(make_pool: MakePool) -> None:
    pool = without_workers(make_pool)
    lane: Any = normal_lane(pool)
    closed: list[bool] = []

    def look() -> None:
        core_of(pool).ending.check_terminated()
        closed.append(is_terminated(pool))

    lane.on_popped = Once(look)

    shutdown(pool)

    assert closed == [False]
    assert is_terminated(pool, DEADLINE)
    check_books(pool, 1)


def test_an_executor_does_not_close_while_a_task_is_put_back(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. The canceller has popped a task, and it is observed. 2. Another thread looks whether all is done, and finds the lanes
    # empty. 3. The canceller puts the task back. 4. The other thread looks for cancellers, and finds none.
    pool = without_workers(make_pool)
    ending = core_of(pool).ending
    lane: Any = normal_lane(pool)
    told: list[bool] = []
    task: Future[Any] = lane[0]
    task.add_done_callback(lambda _: told.append(is_terminated(pool)))
    with Gate() as in_hand, Gate() as back:

        class Tokens(set[object]):
            def copy(self) -> set[object]:
                if threading.current_thread() is checker:
                    in_hand.release()
                    back.wait_until_held()
                return super().copy()

        def canceller() -> None:
            shutdown(pool)

        cancel_unobserved = ending._cancel_unobserved

        def stop_afterwards() -> None:
            cancel_unobserved()
            back.hold()

        monkeypatch.setattr(ending, "_cancel_unobserved", stop_afterwards)
        ending._failing = Tokens()
        lane.on_popped = Once(in_hand.hold)
        other = threading.Thread(target=canceller)
        checker = threading.Thread(target=ending.check_terminated)
        other.start()
        in_hand.wait_until_held()
        checker.start()
        assert not join_all([checker])
        back.release()
        assert not join_all([other])

    assert told == [False]
    assert is_terminated(pool, DEADLINE)
    check_books(pool, 1)


# -- interrupted


def throw(error: type[BaseException]) -> None:
    raise error


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@ENDS
def test_a_queue_whose_cancelling_is_interrupted_loses_no_task(
    make_pool: MakePool, end: End, error: type[BaseException]
) -> None:
    number, where = 0, ""
    while where is not None:
        number += 1
        with Gate() as gate:
            pool = hold_the_only_worker(make_pool, gate)
            ran: list[int] = []
            called: list[Future[Any]] = []
            futures = [pool.submit(ran.append, which) for which in range(3)] + [pool.submit_priority(ran.append, 3)]
            futures[1].add_done_callback(called.append)
            point = AtPoint(number, partial(throw, error))
            with point:
                try:
                    end(pool)
                except error:
                    pass
            where = point.where  # type: ignore[assignment]  # None ends the loop
            if end is kill:
                pool.kill()
            gate.release()
            pool.shutdown(timeout=DEADLINE)

        cancelled = [future.cancelled() for future in futures]
        assert all(future.done() for future in futures), where
        assert sorted(ran) == [which for which, never in enumerate(cancelled) if not never], where
        assert called == [futures[1]], where
        check_books(pool, sum(cancelled))


@ENDS
def test_a_signal_handler_may_shut_down_and_wait_while_a_queue_is_cancelled(make_pool: MakePool, end: End) -> None:
    number, where = 0, ""
    while where is not None:
        number += 1
        with Gate() as gate:
            pool = hold_the_only_worker(make_pool, gate)
            futures = [pool.submit(int) for _ in range(3)]
            futures[1].add_done_callback(id)

            def act(pool: ResourceExecutor[Any] = pool, gate: Gate = gate) -> None:
                gate.release()
                pool.shutdown(timeout=DEADLINE)

            point = AtPoint(number, act)
            with point:
                end(pool)
            where = point.where  # type: ignore[assignment]  # None ends the loop
            gate.release()
            pool.shutdown(timeout=DEADLINE)
        assert all(future.done() for future in futures), where
        check_books(pool, sum(future.cancelled() for future in futures))
