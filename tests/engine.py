"""The doors through which tests reach into the engine: the one test module that knows how the engine is laid out.

Tests import the classes of the engine from here, read its parts by the functions below, and put their own parts in by the
functions `use_...`, `patch_...` and `replace_step`. When the engine moves a class or an attribute, only this file changes.

Each function takes an executor. It also takes the core, for a test that has dropped the executor.
"""

from __future__ import annotations

import random
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from copy import copy
from enum import Enum
from math import inf
from threading import Thread
from typing import Any, TypeAlias, TypeVar

import pytest

from tasker_executor import ExecutorStats, ResourceExecutor
from tasker_executor._arrivals import note_fork
from tasker_executor._chunks import ChunkRunner as ChunkRunner
from tasker_executor._engine import aborts as _aborts
from tasker_executor._engine import handoff as handoff_module
from tasker_executor._engine import idle as idle_module
from tasker_executor._engine import outage as _outage
from tasker_executor._engine import stacks as stacks_module
from tasker_executor._engine import threads as _threads
from tasker_executor._engine.aborts import join_aborts
from tasker_executor._engine.admission import Admission, Ticket
from tasker_executor._engine.care import Care
from tasker_executor._engine.core import Core
from tasker_executor._engine.crew import Crew
from tasker_executor._engine.current import current_holder
from tasker_executor._engine.deadlines import Deadlines
from tasker_executor._engine.deadlock import WaitInside
from tasker_executor._engine.handoff import LIMIT, Handoff, HandoffLost, give_back
from tasker_executor._engine.herald import Herald
from tasker_executor._engine.histogram import Histogram
from tasker_executor._engine.holding import Holding
from tasker_executor._engine.idle import ENOUGH, Idle, Room, Seat
from tasker_executor._engine.lanes import Lane, Lanes
from tasker_executor._engine.life import Life as WorkerLife
from tasker_executor._engine.outage import Outage
from tasker_executor._engine.recorder import KEPT_LOGS, LONG_LOG, SHORT_LOG, Outcome, Recorder, TaskLog
from tasker_executor._engine.reserve import Reserve
from tasker_executor._engine.resources import End, ResourceSource, UnfitResource
from tasker_executor._engine.run import Grip, Run
from tasker_executor._engine.runs import Runs
from tasker_executor._engine.scaler import Alarm
from tasker_executor._engine.settings import Settings
from tasker_executor._engine.sidecar import adopt, holds_task_lock, must_go_on
from tasker_executor._engine.sidecar import firsts as first_of
from tasker_executor._engine.slow import Slow
from tasker_executor._engine.stacks import _parsed as parsed_dump
from tasker_executor._engine.stacks import stack_of
from tasker_executor._engine.state import State
from tasker_executor._engine.stock import Stock
from tasker_executor._engine.stopping import Reason, Stop, Token
from tasker_executor._engine.supply import DESTROY_PATIENCE
from tasker_executor._engine.task import FINISHED, PENDING, RUNNING, WITHDRAWN, Sidecar, Task
from tasker_executor._engine.threads import CannotStart, make_thread, start_thread
from tasker_executor._engine.timer import Timer
from tasker_executor._engine.waiting import await_handoff
from tasker_executor._engine.worker import Worker
from tasker_executor._report import aside
from tasker_executor._sync import _QueuedPermit, clock, releases

__all__ = [
    "DESTROY_PATIENCE",
    "FINISHED",
    "KEPT_LOGS",
    "LIMIT",
    "LONG_LOG",
    "PENDING",
    "RUNNING",
    "SHORT_LOG",
    "WITHDRAWN",
    "Admission",
    "CannotStart",
    "Care",
    "ChunkRunner",
    "Core",
    "Deadlines",
    "End",
    "Grip",
    "Handoff",
    "HandoffLost",
    "Herald",
    "Histogram",
    "Holding",
    "Idle",
    "Lane",
    "Lanes",
    "Outage",
    "Outcome",
    "Reason",
    "Recorder",
    "Run",
    "Seat",
    "Sidecar",
    "Slow",
    "State",
    "Step",
    "Stop",
    "Task",
    "TaskLog",
    "Ticket",
    "Timer",
    "Token",
    "UnfitResource",
    "WaitInside",
    "Worker",
    "WorkerLife",
    "abort_again",
    "aborts_under_way",
    "admission_of",
    "adopt",
    "alarm_of",
    "ask_to_leave",
    "await_handoff",
    "bounds_of",
    "busy_workers",
    "check_books",
    "close",
    "core_of",
    "count_starting",
    "current_holder",
    "deadlines_lock",
    "deadlines_of",
    "dismisses",
    "end_a_hopeless_wait",
    "engine_lock",
    "enough_on_their_way",
    "expects_worker",
    "expire",
    "fail_queue",
    "first_of",
    "free_resources",
    "give_back",
    "handoff_module",
    "herald_of",
    "hold_back_submitters",
    "holds_task_lock",
    "idle_stack",
    "idle_workers",
    "innards",
    "install_lane",
    "is_closing",
    "is_killed",
    "is_lock_held",
    "is_terminated",
    "join",
    "join_aborts",
    "kick",
    "lane_arguments",
    "lanes_of",
    "leaving_workers",
    "living_holdings",
    "look_at",
    "make_thread",
    "may_retire",
    "must_go_on",
    "name_of",
    "new_task",
    "normal_lane",
    "note_fork",
    "note_may_retire",
    "note_tasks_that_come_back",
    "on_dismissal",
    "outage_of",
    "parsed_dump",
    "patch_abort_patience",
    "patch_borrow",
    "patch_daemons",
    "patch_door_lock",
    "patch_exiting",
    "patch_map_clock",
    "patch_new_task",
    "patch_pauses",
    "patch_permit_of_wait",
    "patch_random",
    "patch_recorder_clock",
    "patch_reserve_clock",
    "patch_sleep",
    "patch_stacks",
    "patch_thread_making",
    "patch_thread_start",
    "patch_timer_clock",
    "patch_worker_clock",
    "pending_stops",
    "post_aside",
    "pretend_asleep",
    "pretend_awake",
    "pretend_outage",
    "pretend_without_gil",
    "recorder_of",
    "refuse_abort_threads",
    "replace_step",
    "report_end",
    "report_ready",
    "report_unfit",
    "reserve_of",
    "retry_later",
    "running_priority",
    "runs_of",
    "settings_of",
    "shorten_pauses",
    "show_idle_stack",
    "show_submitters",
    "source_of",
    "stack_of",
    "stacks_module",
    "start_thread",
    "stats_of",
    "stats_while_a_task_is_put_back",
    "step_of",
    "stock_of",
    "stops_of",
    "stranger",
    "submitters_held_back",
    "submitters_see_idle",
    "tend_stops",
    "tend_watch",
    "thread_prefix_of",
    "threads_are_daemons",
    "timer_of",
    "unborn_workers",
    "use_engine_lock",
    "use_idle_stack",
    "use_kill_latch",
    "use_lane",
    "use_leaving_workers",
    "use_waiting_inside",
    "use_woken",
    "use_workers",
    "waiting_for_a_worker",
    "waiting_inside",
    "wake",
    "wake_top",
    "wakes_at_once",
    "want",
    "watch_due_in",
    "watch_has_looked",
    "woken_workers",
    "worker_limit",
    "workers_of",
    "written_off_workers",
]

Engine: TypeAlias = "ResourceExecutor[Any] | Core"

L = TypeVar("L", bound=Lane)
S = TypeVar("S", bound=set[Any])


def core_of(pool: Engine) -> Core:
    """Return the core: for a weak reference, and for a test that drops the executor. For all else there is a door below."""
    return pool if isinstance(pool, Core) else pool._core


# -- names and numbers --


def name_of(pool: Engine) -> str:
    """Return the name that log records and events show."""
    return core_of(pool).name


def settings_of(pool: Engine) -> Settings:
    """Return the arguments of the executor, checked."""
    return core_of(pool).settings


def thread_prefix_of(pool: Engine) -> str:
    """Return what the names of all threads of the executor begin with."""
    return core_of(pool).settings.thread_name_prefix


def bounds_of(pool: Engine) -> tuple[int, int]:
    """Return the least and the largest number of workers."""
    core = core_of(pool)
    return core.roster.min_workers, core.roster.max_workers


def stats_of(pool: Engine) -> ExecutorStats:
    """Return the stats, of a dropped executor too."""
    return core_of(pool).gauges.stats()


def running_priority(pool: Engine) -> int:
    """Return how many of the running tasks are of the priority lane, as Dask is told."""
    return core_of(pool).gauges.urgent()


def check_books(pool: Engine) -> None:
    """Check that the books of the engine agree, of a dropped executor too."""
    core_of(pool).gauges.check()


# -- the parts --


def timer_of(pool: Engine) -> Timer:
    """Return the timer: the thread that wakes up by time."""
    return core_of(pool).timer


def admission_of(pool: Engine) -> Admission:
    """Return the admission, in which submitters wait for a place in the queue."""
    return core_of(pool).admission


def outage_of(pool: Engine) -> Outage:
    """Return what is known of a factory that fails."""
    return core_of(pool).crew.outage


def recorder_of(pool: Engine) -> Recorder:
    """Return what counts tasks and measures times."""
    return core_of(pool).recorder


def reserve_of(pool: Engine) -> Reserve[Any]:
    """Return what runs the calls of `run_now`; the executor must have resources."""
    reserve = core_of(pool).reserve
    assert reserve is not None
    return reserve


def stock_of(pool: Engine) -> Stock[Any]:
    """Return the resources of `run_now`, free and in use; the executor must have resources."""
    return reserve_of(pool)._stock


def free_resources(pool: Engine) -> deque[Holding[Any]] | None:
    """Return the holdings that `run_now` may take at once; None if the executor has no resources."""
    reserve = core_of(pool).reserve
    return None if reserve is None else reserve._stock.free


def source_of(pool: Engine) -> ResourceSource[Any]:
    """Return what makes and destroys the resources; the executor must have resources."""
    source = core_of(pool).source
    assert source is not None
    return source


def living_holdings(pool: Engine) -> Iterable[Holding[Any]]:
    """Return the holdings of the resources that exist."""
    return source_of(pool)._living


def aborts_under_way() -> set[Any]:
    """Return the threads that call `on_abort` now, of any executor."""
    return set(_aborts._aborting)


def engine_lock(pool: Engine) -> Any:
    """Return the lock that guards the state and the population."""
    return core_of(pool).life.lock


def use_engine_lock(pool: Engine, lock: Any) -> None:
    """Let the engine use that lock, which wraps its own."""
    core_of(pool).life.lock = lock


def is_lock_held(pool: Engine) -> bool:
    """Return whether this thread holds the lock of the engine."""
    return bool(engine_lock(pool)._is_owned())


# -- the lanes --


def lanes_of(pool: Engine) -> Lanes:
    """Return both lanes, as workers see them."""
    return core_of(pool).lanes


def normal_lane(pool: Engine) -> Lane:
    """Return the lane of the tasks that are not urgent."""
    return lanes_of(pool).normal


def lane_arguments(pool: Engine, name: str) -> tuple[Any, ...]:
    """Return the arguments that the engine makes its lane of that name with."""
    core = core_of(pool)
    return name, core, core._task_settled


def install_lane(pool: ResourceExecutor[Any], name: str, lane: Lane) -> None:
    """Put `lane` in the place of the normal or the priority lane, for workers and submitters."""
    setattr(lanes_of(pool), name, lane)
    setattr(pool, f"_{name}", lane)


def use_lane(pool: ResourceExecutor[Any], kind: type[L]) -> L:
    """Make a normal lane of that class, and put it in the place of the present one."""
    lane = kind(*lane_arguments(pool, "normal"))
    install_lane(pool, "normal", lane)
    return lane


def show_submitters(pool: ResourceExecutor[Any], lane: object) -> None:
    """Let submitters append to `lane`, which may be no Lane. Workers see the true one."""
    setattr(pool, "_normal", lane)  # noqa: B010  # it may be no Lane, by type
    core = core_of(pool)
    core.lanes = copy(core.lanes)  # the long way of a submission looks there
    setattr(core.lanes, "normal", lane)  # noqa: B010  # see above


def fail_queue(pool: Engine, error: BaseException) -> None:
    """Fail all tasks that wait, as an outage does."""
    core_of(pool).recovery.fail_queue(error)


# -- the workers --


def workers_of(pool: Engine) -> set[Worker]:
    """Return the set itself, not a copy, of the workers that there are."""
    return core_of(pool).roster.workers


def busy_workers(pool: Engine) -> list[Worker]:
    """Return the workers that have a task in hand."""
    return [worker for worker in workers_of(pool).copy() if worker.task is not None]


def idle_workers(pool: Engine) -> list[Worker]:
    """Return the workers that are registered as idle: from the bottom of the idle stack to its top."""
    seats = {worker.seat: worker for worker in workers_of(pool).copy()}
    return [seats[entry] for entry in idle_stack(pool)[:] if entry in seats]


def leaving_workers(pool: Engine) -> set[Worker]:
    """Return the set itself of the workers that have been told to retire."""
    return core_of(pool).roster.leaving


def unborn_workers(pool: Engine) -> dict[Worker, int]:
    """Return the workers whose thread is yet to be started, and by which thread."""
    return core_of(pool).crew._unborn


def stranger(pool: Engine, index: int) -> Worker:
    """Return a worker that never lives, and that the engine does not know."""
    return core_of(pool).crew._make_worker(index)


def use_workers(pool: Engine, workers: S) -> S:
    """Let the engine keep its workers in that set, and return it."""
    core_of(pool).roster.workers = workers
    return workers


def waiting_for_a_worker(pool: Engine) -> int:
    """Return how many callers are in `wait_ready`."""
    return len(core_of(pool).roster.awaited)


def expects_worker(pool: Engine) -> bool:
    """Return whether the engine expects a worker with a new resource."""
    return core_of(pool).crew.supply.expects_worker()


def use_leaving_workers(pool: Engine, leaving: S) -> S:
    """Let the engine keep the workers that it has told to retire in that set, and return it."""
    core_of(pool).roster.leaving = leaving
    return leaving


def worker_limit(pool: Engine) -> int:
    """Return how many workers there may be now: as many as are wanted, and one for each that waits inside or is late."""
    return core_of(pool).roster.limit()


def count_starting(pool: Engine) -> int:
    """Return how many workers have yet to look at the lanes for the first time."""
    return core_of(pool).roster.starting()


def want(pool: Engine, workers: int, reason: str) -> None:
    """Say how many workers are wanted, as a policy does."""
    core_of(pool).want(workers, reason)


def ask_to_leave(pool: Engine) -> None:
    """Have each worker with its next task in hand ask whether it is dismissed, as if there were too many."""
    core_of(pool).crew.leave[:] = [None]


def stats_while_a_task_is_put_back(
    pool: ResourceExecutor[Any], monkeypatch: pytest.MonkeyPatch, asking: Any, returned: Any
) -> ExecutorStats:
    """Return the stats that are read while a worker, which holds in `asking`, puts the task in its hand back.

    The worker does so right after the reader has counted what is in hand, and then holds in `returned`.
    """
    core = core_of(pool)
    count = core.roster.running

    def dismisses(worker: Worker) -> End:
        asking.hold()
        return End.RETIRED

    def running() -> int:
        tasks = count()
        asking.release()
        returned.wait_until_held()
        return tasks

    def came_back(_: Worker) -> None:
        returned.hold()

    monkeypatch.setattr(core, "dismisses", dismisses)
    monkeypatch.setattr(core, "task_came_back", came_back)
    ask_to_leave(pool)
    pool.submit(int)
    asking.wait_until_held()
    monkeypatch.setattr(core.roster, "running", running)
    return pool.stats()


def dismisses(pool: Engine, worker: Worker) -> End | None:
    """Return why the worker, which is about to start a task, has to end; None if it has not."""
    return core_of(pool).crew.dismisses(worker)


def may_retire(pool: Engine, worker: Worker) -> bool:
    """Return whether the worker, which has been idle for long enough, may end."""
    return core_of(pool).crew.may_retire(worker)


def note_may_retire(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that gets each answer that a worker gets when it asks whether it may retire."""
    original = Crew.may_retire
    answers: list[bool] = []

    def noted(crew: Crew, worker: Worker) -> bool:
        answers.append(original(crew, worker))
        return answers[-1]

    monkeypatch.setattr(Crew, "may_retire", noted)
    return answers


def report_unfit(pool: Engine, worker: Worker, fault: UnfitResource) -> None:
    """Tell the engine that the worker's new resource has failed its check."""
    core_of(pool).resource_unfit(worker, fault)


def report_ready(pool: Engine, worker: Worker) -> None:
    """Tell the engine that the worker has a resource, which it has checked."""
    core_of(pool).worker_ready(worker, checked=True)


def report_end(pool: Engine, worker: Worker, end: End, error: BaseException | None) -> None:
    """Tell the engine that the worker has ended."""
    core_of(pool).worker_ended(worker, end, error)


def retry_later(pool: Engine, error: CannotStart) -> None:
    """Tell the engine that no thread could be started."""
    core_of(pool).crew.retry_later(error)


def patch_sleep(monkeypatch: pytest.MonkeyPatch, before: Callable[[float], object]) -> None:
    """Let each worker call `before` with the timeout as its last step before it sleeps: it looks at no lane any more."""
    original = Seat.sleep

    def sleep(seat: Seat, timeout: float) -> bool:
        before(timeout)
        return original(seat, timeout)

    monkeypatch.setattr(Seat, "sleep", sleep)


def pretend_outage(pool: Engine, error: BaseException | None) -> None:
    """Note one failure of the factory, with that error; with None, no failure."""
    outage_now = outage_of(pool)
    outage_now.failures, outage_now.error = (0 if error is None else 1), error


# -- idle workers, and how they are woken --


def idle_stack(pool: Engine) -> list[Any]:
    """Return the idle stack itself: room for workers at the bottom, idle workers and the alarm of the tick above."""
    return core_of(pool).idle.stack


def show_idle_stack(monkeypatch: pytest.MonkeyPatch, pool: Engine, stack: object) -> None:
    """Let every thread that looks at the idle stack see `stack`. Waking a worker pops from the true one."""
    monkeypatch.setattr(core_of(pool).idle, "stack", stack)
    monkeypatch.setattr(core_of(pool).idle, "line", stack)


def use_idle_stack(pool: Engine, stack: list[Any]) -> None:
    """Let the engine, which has no workers yet, use `stack`, which is empty."""
    idle = core_of(pool).idle
    room, idle._room = idle._room, Room(stack)
    stack.extend(idle._room if entry is room else entry for entry in idle.stack)
    idle.line = idle.stack = stack
    idle._wakes = releases(stack.pop)


def wakes_at_once() -> int:
    """Return how many workers may be waking at a time."""
    return idle_module.WAKES_AT_ONCE


def pretend_without_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the threads of new engines sleep, and be woken, as on a Python without the GIL.

    There a lock may be handed to the worker that sleeps, as a queue always does.
    """
    monkeypatch.setattr(idle_module, "WAKES_AT_ONCE", 1)
    monkeypatch.setattr(idle_module, "make_permit", _QueuedPermit)
    patch_permit_of_wait(monkeypatch, _QueuedPermit)


def submitters_see_idle(pool: Engine) -> bool:
    """Return whether submitters look at the idle stack: the engine is open and does not hold them back."""
    return core_of(pool).idle.line is core_of(pool).idle.stack


def submitters_held_back(pool: Engine) -> bool:
    """Return whether submitters see no idle worker, since enough workers have been woken."""
    return core_of(pool).idle.line is ENOUGH


def hold_back_submitters(pool: Engine) -> None:
    """Let submitters see no idle worker, as if enough workers had been woken."""
    core_of(pool).idle.line = ENOUGH


def woken_workers(pool: Engine) -> deque[Seat]:
    """Return the seats of the workers that were woken last, the latest at the end."""
    return core_of(pool).idle._woken


def use_woken(pool: Engine, woken: deque[Any]) -> None:
    """Let the engine note in `woken` which workers it wakes."""
    core_of(pool).idle._woken = woken


def enough_on_their_way(pool: Engine) -> bool:
    """Return whether so many workers have been woken that a submitter need not wake more."""
    return core_of(pool).idle.enough_on_their_way()


def wake(pool: Engine, future: Any) -> None:
    """Do the slow half of a submission: `future` is queued, and the submitter has seen an idle worker."""
    core_of(pool).wake(future)


def wake_top(pool: Engine) -> None:
    """Wake the worker on top of the idle stack; start one if there is none."""
    core_of(pool)._wake_top()


# -- waiting inside --


def waiting_inside(pool: Engine) -> dict[int, WaitInside]:
    """Return, by thread, the waits of the executor's threads for the executor's own tasks."""
    return core_of(pool).deadlock._waits


def innards(pool: Engine) -> str:
    """Describe what decides whether a worker is started or woken; for a hang that is hard to come by again."""
    core = core_of(pool)
    roster, idle = core.roster, core.idle
    lanes = [(lane.name, len(lane), len(lane.parked), lane.tombstones) for lane in core.lanes]
    waits = [(wait.task, wait.timed, wait.hopeless) for wait in core.deadlock._waits.copy().values()]
    return (
        f"workers {roster.workers.copy()} of {roster.min_workers} to {roster.max_workers}, written off "
        f"{roster.written_off.copy()}, wanted {roster.wanted}, limit {roster.limit()}, starting {roster.starting()}, busy "
        f"{roster.busy()}, leaving {len(roster.leaving)}, ending {len(roster.ending)}, unborn {core.crew._unborn.copy()}, "
        f"may start {core.crew._may_start()}, waits inside {waits}, "
        f"lanes {lanes}, idle {idle.stack[:]}, {'open' if idle.line is idle.stack else 'held back or closed'}, woken "
        f"{[(seat.rests, seat.occupied, seat.park.locked()) for seat in idle._woken.copy()]}, policy next "
        f"{core.scaler._next}, paused {core.scaler.paused}, blocked {bool(core.admission.blocked)}"
    )


def use_waiting_inside(pool: Engine, waits: dict[int, Any]) -> None:
    """Let the engine note in `waits` which of its threads wait for its own tasks."""
    core_of(pool).deadlock._waits = core_of(pool).roster._waiting_inside = waits


def end_a_hopeless_wait(pool: Engine) -> None:
    """Look whether a wait is hopeless, and end it then."""
    core_of(pool).deadlock.end_a_hopeless_wait()


# -- the timer --


def kick(pool: Engine) -> None:
    """Have the timer look now at what is due."""
    timer_of(pool).kick()


def alarm_of(pool: Engine) -> Alarm:
    """Return what lies on the idle stack while the tick of the policy pauses."""
    return core_of(pool).scaler._alarm


def herald_of(pool: Engine) -> Herald:
    """Return the thread that calls callbacks and observers for the timer."""
    return timer_of(pool).herald


def deadlines_of(pool: Engine) -> list[Any]:
    """Return the deadlines that the timer watches."""
    deadlines = core_of(pool).deadlines
    return [*deadlines._heap, *deadlines.news]


def deadlines_lock(pool: Engine) -> Any:
    """Return the lock without which the timer expires no task."""
    return core_of(pool).deadlines._lock


def expire(pool: Engine, now: float) -> float | None:
    """Expire the tasks whose deadline is past at `now`. Return the next deadline; None if there is none."""
    return core_of(pool).deadlines.expire(now)


def runs_of(pool: Engine) -> Runs:
    """Return what stops the calls of `run_now`."""
    return core_of(pool).runs


def pretend_asleep(pool: Engine) -> None:
    """Let the timer, which has no thread, seem to sleep."""
    timer_of(pool).birth = allocate_lock()


def pretend_awake(pool: Engine) -> None:
    """Undo `pretend_asleep`."""
    timer_of(pool).birth = None


# -- the end --


def is_closing(pool: Engine) -> bool:
    """Return whether the executor accepts nothing any more."""
    return core_of(pool).life.state >= State.DRAINING


def is_killed(pool: Engine) -> bool:
    """Return whether the tokens of the tasks have been set."""
    return core_of(pool).life.killed.is_open


def is_terminated(pool: Engine, timeout: float = 0.0) -> bool:
    """Return whether the executor has come to its end, or does within `timeout` seconds."""
    return core_of(pool).life.terminated.wait(timeout)


def use_kill_latch(pool: Engine, latch: Any) -> None:
    """Let `kill` set the tokens by opening that latch."""
    core_of(pool).life.killed = latch


def close(pool: Engine, *, kill: bool = False) -> None:
    """Close a dropped executor, or any other."""
    core_of(pool).ending.close(kill=kill)


def join(pool: Engine, timeout: float) -> None:
    """Wait for the end of a dropped executor, or any other."""
    core_of(pool).ending.join(timeout)


# -- stops --


def written_off_workers(pool: Engine) -> set[Worker]:
    """Return the workers that have been written off, and whose call has not returned."""
    return core_of(pool).roster.written_off.copy()


def pending_stops(pool: Engine) -> int:
    """Return how many stops the watch looks after."""
    return len(core_of(pool).stops._pending)


def stops_of(pool: Engine) -> int:
    """Return how many tasks that ran have been stopped, or have timed out."""
    stops = core_of(pool).stops
    return stops.stopped + stops.timed_out


def tend_stops(pool: Engine, later: float = 0.0) -> float | None:
    """Do what the watch does for stops, that many seconds later than now, on this thread."""
    return core_of(pool).stops.tend(clock() + later)


def tend_watch(pool: Engine) -> float | None:
    """Have the watch look now, on this thread; return when it looks next."""
    return core_of(pool).watch.tend(clock())


def watch_due_in(pool: Engine) -> float:
    """Return in how many seconds the watch looks next."""
    return core_of(pool).limits.due - clock()


def watch_has_looked(pool: Engine) -> bool:
    """Return whether the watch has looked since the last task with a limit began."""
    return core_of(pool).limits.shortest == inf


def look_at(pool: Engine, worker: Any, task: Any, now: float) -> float:
    """Have the watch look at what that worker has in hand; return when it looks next."""
    return core_of(pool).watch._look(worker, task, now)


def on_dismissal(pool: Engine, act: Callable[[Worker], End | None]) -> None:
    """Let each worker that has its next task in hand ask `act` whether it is dismissed."""
    core: Any = core_of(pool)
    core.dismisses = act
    core.crew.leave[:] = [None]


def note_tasks_that_come_back(pool: Engine) -> list[Worker]:
    """Return a list that gets each worker which puts a task back."""
    core: Any = core_of(pool)
    original = core.task_came_back
    workers: list[Worker] = []

    def note(worker: Worker) -> None:
        workers.append(worker)
        original(worker)

    core.task_came_back = note
    return workers


def abort_again(pool: Engine, future: Any) -> None:
    """Carry out the stop of a task once more."""
    core_of(pool).stops._carry_out(future, future._sidecar.stop)


def refuse_abort_threads(
    monkeypatch: pytest.MonkeyPatch, times: int, first: Callable[[], object] = lambda: None
) -> list[Thread]:
    """Let the system refuse that many threads for aborts, after `first()`; return the list of those refused."""
    original = start_thread
    refused: list[Thread] = []

    def start(thread: Thread) -> None:
        if not refused:
            first()
        if len(refused) < times:
            refused.append(thread)
            raise CannotStart("can't start new thread")
        original(thread)

    monkeypatch.setattr("tasker_executor._engine.aborts.start_thread", start)
    return refused


# -- steps that a test acts before or after --


class Step(Enum):
    """A step of the engine that a test may replace: where it is, from the core on."""

    AT_REST = "gauges.at_rest"  # the tick finds out whether it may pause
    COUNT_STARTING = "roster.starting"  # the engine counts the workers that are starting
    ENOUGH_ON_THEIR_WAY = "idle.enough_on_their_way"  # a submitter finds out whether it must wake a worker
    HIRE = "crew._hire"  # under the lock: it is decided which workers are started
    MAY_RETIRE = "crew.may_retire"  # a worker that was idle for long enough asks whether it may end
    MAY_START = "crew._may_start"  # may another worker be started?
    POPULATE_OR_RETRY = "crew.populate_or_retry"  # workers are started; the first step of kill() after the state
    STOP_RUNNING = "ending._stop_running"  # kill() stops the tasks in hand, after it has set the token
    RETIRE_IDLE = "crew._retire_idle"  # resize() tells those idle workers to retire that are too many
    WAKE = "wake"  # the slow half of a submission
    WATCH = "deadlines.look"  # a submitter tells the timer of a deadline
    KICK = "timer.kick"  # a thread wakes the timer
    TURN = "timer._turn"  # the timer does what is due
    TELL = "timer.herald.tell"  # the timer's news are told
    ENTER = "admission.enter"  # a submitter asks for a place in the queue
    WORKER_ENDED = "worker_ended"  # a worker says that it has ended


def _find(pool: Engine, which: Step) -> tuple[Any, str]:
    *path, name = which.value.split(".")
    owner: Any = core_of(pool)
    for part in path:
        owner = getattr(owner, part)
    return owner, name


def step_of(pool: Engine, which: Step) -> Callable[..., Any]:
    """Return the step as this executor does it now."""
    owner, name = _find(pool, which)
    found: Callable[..., Any] = getattr(owner, name)
    return found


def replace_step(pool: Engine, which: Step, action: Callable[..., Any], monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Let this executor do `action` instead of the step; if a monkeypatch is given, until that is undone."""
    owner, name = _find(pool, which)
    if monkeypatch is None:
        setattr(owner, name, action)
    else:
        monkeypatch.setattr(owner, name, action)


# -- what all engines share --


def patch_random(monkeypatch: pytest.MonkeyPatch, uniform: Callable[[float, float], float]) -> None:
    """Let `uniform` draw what the engine leaves to chance: pauses after failures, and the ages of resources."""
    monkeypatch.setattr(random, "uniform", uniform)


def patch_pauses(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Let each pause after a failure be that share of the way from its least to its greatest length."""
    patch_random(monkeypatch, lambda low, high: low + share * (high - low))


def shorten_pauses(monkeypatch: pytest.MonkeyPatch, first: float, limit: float | None = None) -> None:
    """Let the first pause after a failure last that many seconds, and none more than `limit`."""
    monkeypatch.setattr(_outage, "BACKOFF_FIRST", first)
    if limit is not None:
        monkeypatch.setattr(_outage, "BACKOFF_LIMIT", limit)


def patch_timer_clock(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
    """Let the timer read that clock."""
    monkeypatch.setattr("tasker_executor._engine.timer.clock", clock)


def patch_reserve_clock(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
    """Let the age of resources be read from that clock."""
    monkeypatch.setattr("tasker_executor._engine.stock.clock", clock)


def patch_recorder_clock(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
    """Let the recorder read that clock."""
    monkeypatch.setattr("tasker_executor._engine.recorder.clock", clock)


def patch_worker_clock(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
    """Let workers read that clock."""
    monkeypatch.setattr("tasker_executor._engine.worker.clock", clock)


def patch_stacks(monkeypatch: pytest.MonkeyPatch, reader: Callable[[Any], dict[Thread, str]]) -> None:
    """Let `workers(stacks=True)` read stacks by that function."""
    monkeypatch.setattr("tasker_executor._engine.gauges.stacks_of", reader)


def patch_map_clock(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
    """Let `map` read that clock."""
    monkeypatch.setattr("tasker_executor._map.clock", clock)
    monkeypatch.setattr("tasker_executor._arrivals.clock", clock)


def patch_thread_start(monkeypatch: pytest.MonkeyPatch, start: Callable[[Thread], object]) -> None:
    """Let `start` start the threads of workers."""
    monkeypatch.setattr("tasker_executor._engine.crew.start_thread", start)


def patch_thread_making(monkeypatch: pytest.MonkeyPatch, make: Callable[..., Thread]) -> None:
    """Let `make` make the thread that ends a dropped executor."""
    monkeypatch.setattr("tasker_executor._engine.ending.make_thread", make)


def threads_are_daemons() -> bool:
    """Return whether the engine makes its threads daemons, which depends on the interpreter."""
    return _threads.DAEMON


def patch_daemons(monkeypatch: pytest.MonkeyPatch, daemons: bool) -> None:
    """Let the engine make its threads daemons, or not."""
    monkeypatch.setattr(_threads, "DAEMON", daemons)


def patch_exiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine believe that the interpreter exits."""
    monkeypatch.setattr("tasker_executor._engine.process._exiting", True)


def patch_abort_patience(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let `abandon` wait that long for each `on_abort`."""
    monkeypatch.setattr("tasker_executor._engine.aborts.ABORT_PATIENCE", seconds)


def new_task(function: Callable[..., Any], *args: Any, kind: type[Task[Any]] = Task) -> Task[Any]:
    """Return a task as `submit` makes it, of no executor and in no lane."""
    task: Task[Any] = kind()
    task._status, task._sidecar, task._context, task._submitted = PENDING, None, None, 0.0
    task._result, task._exception = function, args
    return task


@contextmanager
def post_aside() -> Generator[list[Callable[[], object]]]:
    """Be the timer's thread in the block: what it leaves to the herald is in the list."""
    posted: list[Callable[[], object]] = []
    aside.post = posted.append
    try:
        yield posted
    finally:
        aside.post = None


def patch_new_task(monkeypatch: pytest.MonkeyPatch, kind: type[Task[Any]]) -> None:
    """Let `submit` make tasks of that class."""
    monkeypatch.setattr("tasker_executor._executor.Task", kind)


def patch_permit_of_wait(monkeypatch: pytest.MonkeyPatch, permit: Callable[[], object]) -> None:
    """Let a thread that waits for a task wait for such a permit."""
    monkeypatch.setattr("tasker_executor._engine.waiting.make_sleeping_permit", permit)


def patch_door_lock(monkeypatch: pytest.MonkeyPatch, permit: Callable[[], object]) -> None:
    """Let each submitter wait for a place in the queue with a permit that `permit()` returns."""
    monkeypatch.setattr("tasker_executor._engine.admission.allocate_lock", permit)


def patch_borrow(monkeypatch: pytest.MonkeyPatch, borrow: Callable[..., object]) -> None:
    """Let a thread that waits for a task borrow its handoff by that function."""
    monkeypatch.setattr("tasker_executor._engine.waiting.borrow", borrow)
