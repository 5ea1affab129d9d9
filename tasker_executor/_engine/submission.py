"""The slow path of a submission, and `run_now` without a reserve.

`ResourceExecutor.submit` queues a plain task in line. All that it leaves out is here: options, the bound of
the queue, observers, a task that runs in its submitter's thread, and refusals.

**Errors lead to frames.** A task that runs in the thread of its submitter has our frames below it. Its error
refers to them for as long as the user keeps it: by the traceback, and by `f_back`. So each of our frames
deletes the executor, the arguments and the future before it ends, or `drop_frames` clears it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

from .._options import UNSET, TaskOptions
from .._report import function_name, must_escape
from .._sync import clock
from ..exceptions import QueueFull, TaskCancelled, TaskStopped, TaskTimeout
from .admission import Ticket
from .calls import WithoutResource, bind, call_bare, drop_frames
from .core import Core
from .current import current
from .parked import ParkedTask, Parking
from .reserve import Reserve
from .run import Run
from .settings import OnFull
from .sidecar import OptionsSidecar
from .state import State
from .task import PENDING, RUNNING, Task

__all__ = ["enqueue", "run_now"]

T = TypeVar("T")

#: The files of the frames between `enqueue` and a task that runs in its submitter's thread.
_OUR_FILES = {__file__, bind.__code__.co_filename, Reserve.run.__code__.co_filename}


def enqueue(
    core: Core,
    on_full: OnFull | Parking,
    fn: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: TaskOptions,
) -> Task[T]:
    """Queue a task with these options and return its future. Raises what `submit` raises.

    With `Parking` for `on_full` it never blocks: a task that finds no place waits for one itself.
    """
    if core.life.state:
        raise core.refuse()
    priority, max_retries, pass_resource, start_within, run_within = options
    call = bind(fn, kwargs) if kwargs else fn
    if not pass_resource and core.source is not None:
        call = WithoutResource(call)
    lane = core.lanes.priority if priority else core.lanes.normal
    admission = core.admission
    future: Task[T]  # made as by `new_task`, in line
    if admission.limit is None or not isinstance(on_full, Parking):
        future = Task()
    else:
        future = ParkedTask()
    future._status = PENDING
    future._sidecar = None
    future._result = call
    future._exception = args
    future._context = copy_context() if core.propagate_context else None
    future._lane = lane
    future._submitted = clock()
    deadline = None
    if max_retries is not None or start_within is not None or run_within is not UNSET:
        if start_within is not None:
            deadline = future._submitted + start_within
        sidecar = future._sidecar = OptionsSidecar()  # without `adopt`: no other thread knows the task yet
        sidecar.max_retries = max_retries
        sidecar.run_within = run_within
        sidecar.deadline = deadline

    if admission.limit is None or current.owner is core:  # a worker must not wait for itself
        lane.append(future)
    else:
        ticket = Ticket()
        try:
            let_in = admission.enter(ticket, block=on_full == "block")
            if let_in:
                lane.append(future)
        finally:
            try:
                admission.leave(ticket)
            except BaseException:  # a signal handler raised: otherwise the place would stay reserved for ever
                admission.leave(ticket)
                raise
        if not let_in and isinstance(on_full, Parking):
            assert isinstance(future, ParkedTask)
            future.park(admission, core.refuse, on_full.on_queued)
        elif not let_in:
            if on_full == "raise":
                raise QueueFull(
                    f"executor {core.name!r}: {admission.limit} tasks wait already, and that is the limit (max_queued)"
                )
            try:
                return _run_in_caller(core, future, fn, args, kwargs, options)
            finally:
                del core, future, fn, call, args, kwargs  # see "Errors lead to frames"
    if core.idle.line:
        core.wake(future)
    if deadline is not None:
        core.deadlines.watch(future, deadline)
    if core.hub.hears_submissions:
        from ..observers import TaskEvent

        core.hub.tell("task_submitted", TaskEvent(core.name, id(future), function_name(fn), lane.name))
    return future


def _run_in_caller(
    core: Core,
    future: Task[T],
    fn: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: TaskOptions,
) -> Task[T]:
    """Run the task in this thread, because the queue is full, and return its future.

    What the task raises is its result, as on a worker. But on the main thread Ctrl-C and SystemExit are the
    program's, and may come from a signal handler. So they end the task and are raised here, too.
    """
    executor = core.name
    future._status = RUNNING
    value: T | None = None
    error: BaseException | None = None
    try:
        value = run_now(core, fn, args, kwargs, options, future)
    except BaseException as raised:
        error = drop_frames(raised, _OUR_FILES)
        if isinstance(error, (TaskStopped, TaskTimeout)) and error.__cause__ is not None:
            drop_frames(error.__cause__, _OUR_FILES)
    finally:  # see "Errors lead to frames"
        name = function_name(fn)
        del core, fn, args, kwargs
    try:
        if error is not None and not isinstance(error, TaskCancelled):
            future._arm(executor, name, error)
        future._finish(value, error)
        if isinstance(error, (KeyboardInterrupt, SystemExit)) and must_escape(error):
            future._note_retrieved()
            raise error
        return future
    finally:
        del future, value, error


def run_now(
    core: Core,
    fn: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: TaskOptions,
    task: Task[T] | None = None,
) -> T:
    """Run a task in this thread, with a resource of the reserve if there is one, and return its result.

    `task`: its future, if it has one: `Runs.stop` finds the call by that.
    """
    if core.life.state is not State.RUNNING:
        raise core.refuse()
    limit = options.run_limit(core.settings.run_within)
    run = None if limit is None and task is None else Run(limit, core.runs.watch, task)
    try:
        if run is not None:
            core.runs.enter(run)
        if core.reserve is None:
            return call_bare(core, core.name, core.life.killed, run, fn, args, kwargs)
        if not options.pass_resource:
            fn = WithoutResource(fn)
        return core.reserve.run(fn, args, kwargs, options.max_retries, run)
    except BaseException as error:  # `Reserve.run` has seen to every Exception
        if task is None or run is None or run.stop is None or isinstance(error, Exception) or must_escape(error):
            raise
        raise run.stop.error(core.name, function_name(fn), error) from error
    finally:
        if run is not None:
            try:
                core.runs.leave(run)
            finally:  # Ctrl-C may interrupt the first
                core.runs.leave(run)
        del task
