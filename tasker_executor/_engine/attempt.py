"""An attempt at a task: its outcome, what observers hear of it, and what a thrown error leaves of it.

**An error thrown into a worker.** rq, Celery and debuggers stop a task by an error that they throw into its
thread (`PyThreadState_SetAsyncExc`). Inside of a task it is the task's error. It may come too late, though,
between any two steps of the interpreter. Then the worker ends, its resource is destroyed once, and a
successor takes its place. The task in hand ends once: with its result if it has returned, otherwise with the
error. If it was to be retried, it goes back to its lane. For that:

- What is stored shows how far a task has come (`Attempts.salvage`). Each task is counted in one step.
- The last reference to a worker's life (see ``life.py``) goes with its thread. If the error hit the
  exit path, the path is then walked again.

Not promised: two such errors at the same worker, or one in the first steps of a thread, before `Worker.live`.
Only a `shutdown` that waits finds such a worker: it looks once a second for dead threads. Without the GIL a
life goes late: when the thread that made it next looks for signals. What follows from an error in the first
step or in the exit path, such as a successor, waits for that.
"""

from __future__ import annotations

from contextvars import Context
from typing import TYPE_CHECKING, Any, NamedTuple

from .._report import function_name, traceback_of
from .._sync import clock
from ..exceptions import TaskCancelled, TaskStopped, TaskTimeout
from ..factory import Verdict
from .holding import Holding
from .invoke import note_giving_up, note_missing_argument
from .lanes import Lane
from .recorder import Outcome, TaskLog
from .resources import End
from .state import State
from .stopping import Reason, Stop
from .task import RUNNING, Task
from .workplace import Workplace

if TYPE_CHECKING:
    from ..observers import TaskEvent

__all__ = ["NOTHING", "Attempts", "describe"]

_END_AFTER = {Verdict.OWN: None, Verdict.AGAIN: None, Verdict.BROKEN: End.BROKEN}

#: The value of a task that has not returned yet.
NOTHING: Any = object()


class _NotCalled:
    """Takes the place of the function of a task that was stopped as it began."""

    def __init__(self, function: Any, stop: Stop) -> None:
        self.__wrapped__ = function  # for its name
        self._why = stop.why()

    def __call__(self, *args: object) -> None:
        del args
        raise TaskCancelled(f"this task {self._why}, and was not called")


class Fate(NamedTuple):
    """What becomes of a task, and of its worker, after an attempt that was no plain success."""

    #: What its future gets, if it is final; if not, what it has raised.
    error: BaseException | None
    #: Why the worker ends; `End.STOPPED`: it has to recover from a stop first.
    end: End | None = None
    #: Whether it is run again.
    retry: bool = False
    #: Whether the task had been given up, so its future is final, and what it has come to is dropped.
    given_up: bool = False
    #: The stop that was at work.
    stop: Stop | None = None


class Attempts:
    """The attempts of one worker. Only that worker calls the methods."""

    __slots__ = ("_context", "_log", "_place", "_worker")

    def __init__(self, place: Workplace, log: TaskLog, worker: str) -> None:
        self._place = place
        self._log = log
        self._context: Context | None = None  # of the task in hand, if observers listen to tasks
        self._worker = worker

    def begin(self, task: Task[Any], start: float) -> None:
        """Tell observers that a task starts, and see that it ends in time.

        An observer may take long, and the task may be stopped by then. Its abort has come before the call that it
        should unblock. So the call is not made.
        """
        hub, limits = self._place.hub, self._place.limits
        if limits.for_all:
            limits.begins(task, start)
        if hub.hears_tasks:
            self._context = task._context
            if hub.hears("task_started"):
                hub.tell("task_started", self._event(task, start, start))
                if (sidecar := task._sidecar) is not None and sidecar.stop is not None:
                    task._result = _NotCalled(task._result, sidecar.stop)

    def end(self, task: Task[Any], holding: Holding[Any] | None, error: BaseException | None, start: float, end: float) -> bool:
        """Record the use of the resource, and tell observers.

        Return whether the worker must look at its resource before it takes a task, or rests.
        """
        hub, source = self._place.hub, self._place.source
        if hub.hears_tasks and hub.hears("task_finished"):
            outcome = "completed" if error is None else "failed"
            hub.tell("task_finished", self._event(task, start, end, outcome, error))
        self._context = None
        if holding is None or source is None:
            return False
        self._note_use(holding, end)
        return holding.used or holding.good_at < 0 or source.used_up(holding)

    def _note_use(self, holding: Holding[Any], end: float) -> None:
        """Note that the resource has served a task, which ended at `end`."""
        source = self._place.source
        holding.uses += 1
        holding.last_used = end
        holding.rests_until = holding.expires
        holding.used = source is not None and source.hooks.reset is not None

    def judge(
        self,
        task: Task[Any],
        lane: Lane,
        holding: Holding[Any] | None,
        error: BaseException | None,
        start: float,
        end: float,
    ) -> Fate:
        """Return the fate of a task that has raised, or was stopped. It is out of its worker's hand."""
        place = self._place
        stop = task._stop_at_work()
        if stop is None and place.life.killed.is_open:
            # kill() sets the token first, and looks for tasks in hand afterwards. This one has ended in between.
            stop = Stop(Reason.KILLED)
            stop.unasked = True
        if stop is not None:
            return self._judge_stopped(task, lane, holding, error, stop, start, end, None)
        assert error is not None
        source, settings = place.source, place.settings
        verdict, again = Verdict.OWN, False
        if holding is not None and source is not None:
            verdict, again = source.judge(error, holding)
            note_missing_argument(error, traceback_of(error), settings.name, called=holding.called)
        duration, attempt = (start - task._submitted, end - start), (id(task), start)
        if again and source is not None:
            sidecar = task._observe()
            assert sidecar is not None
            limit = settings.max_retries if sidecar.max_retries is None else sidecar.max_retries
            if sidecar.retries < limit and place.life.state < State.KILLED:
                breaks = source.breaks if verdict is Verdict.BROKEN else sidecar.breaks
                event = self._event(task, start, end, error=error) if place.hub.hears("task_retried") else None
                if not sidecar.begin_retry(error, breaks, end - start):  # stopped in this moment
                    stop = task._stop_at_work()
                    assert stop is not None
                    return self._judge_stopped(task, lane, holding, error, stop, start, end, verdict)
                if event is not None:
                    place.hub.tell("task_retried", event)
                self._log.note(lane.priority, Outcome.RETRIED, *duration, attempt)
                task._submitted, self._context = clock(), None
                return Fate(error, retry=True, end=_END_AFTER[verdict])
            if verdict is Verdict.BROKEN:
                note_giving_up(error, sidecar.retries)
        if not isinstance(error, TaskCancelled):  # a task raises this to obey its token
            task._arm(settings.name, describe(task), error)
        self._log.note(lane.priority, Outcome.FAILED, *duration, attempt)
        return Fate(error, end=_END_AFTER[verdict])

    def _judge_stopped(
        self,
        task: Task[Any],
        lane: Lane,
        holding: Holding[Any] | None,
        error: BaseException | None,
        stop: Stop,
        start: float,
        end: float,
        verdict: Verdict | None,
    ) -> Fate:
        """Return the fate of a task that was stopped. What it has returned stands; it is never run again.

        `verdict`: that on its error, if the judge was asked.
        """
        source, name = self._place.source, self._place.settings.name
        # A resource that was aborted is checked in any case. The error may come from the abort, so it is not judged.
        if verdict is None and error is not None and holding is not None and source is not None and not stop.aborted:
            verdict, _ = source.judge(error, holding)
        next_step = _END_AFTER[verdict or Verdict.OWN] or End.STOPPED
        if task.done():
            if holding is not None:
                self._note_use(holding, end)
            self._context = None
            return Fate(error, end=next_step, stop=stop, given_up=True)
        attempt = (id(task), start)
        if error is None:
            self._log.note(lane.priority, Outcome.COMPLETED, start - task._submitted, end - start, attempt)
            return Fate(None, end=End.STOPPED, stop=stop)
        final = stop.error(name, describe(task), error)
        if stop.reason is Reason.TIMED_OUT:
            task._arm(name, describe(task), final)
        self._log.note(lane.priority, Outcome.FAILED, start - task._submitted, end - start, attempt)
        return Fate(final, end=next_step, stop=stop)

    def salvage(
        self,
        task: Task[Any],
        lane: Lane,
        running: bool,
        outcome: tuple[Any, BaseException | None],
        thrown: BaseException,
        began: float,
        start: float,
        end: float,
    ) -> None:
        """End the task in hand once, and count it once, after `thrown` came into its worker.

        `running`: the worker had not noted the end of the task by itself. `outcome`: what the task had returned
        and raised. `began`: when the worker took it in hand; `start` may be that of the next task already.

        1. If the task is final, or was not to be run, its end is completed: perhaps its waiters are yet to
           be told.
        2. If it has returned a value, the value stands, and the task is counted unless it was. Its two
           durations are listed one after the other, so only the last one can be missing.
        3. If it has raised, its error stands, or that of its stop. If it was counted as retried, it goes back to
           its lane.
        4. Otherwise it fails with the thrown error.
        """
        value, error = outcome
        stop = task._stop_at_work()  # from here on it is not given up: it is out of hand
        log, sidecar = self._log, task._sidecar
        noted = log.noted((id(task), began))
        if task._status is not RUNNING or (sidecar is not None and (sidecar.verdict is not None or sidecar.counted)):
            task._fail_popped(thrown)
        elif value is not NOTHING and error is None:
            with self._place.recorder.lock:
                waits, runs = log.entries[lane.priority, Outcome.COMPLETED]
                if running and noted is None:
                    waits.append(start - task._submitted)
                if len(runs) < len(waits):
                    runs.append(max(end, start) - start)
            task._finish(value, None)
        elif noted is Outcome.RETRIED:
            lane.appendleft(task)
        else:
            if noted is None:
                log.note(lane.priority, Outcome.FAILED, start - task._submitted, clock() - start)
            error = error or thrown
            if stop is not None and not isinstance(error, TaskStopped | TaskTimeout):
                error = stop.error(self._place.settings.name, describe(task), error)
            task._finish(None, error)

    def _event(
        self, task: Task[Any], start: float, end: float, outcome: str = "", error: BaseException | None = None
    ) -> TaskEvent:
        from ..observers import TaskEvent

        sidecar = task._sidecar
        return TaskEvent(
            self._place.settings.name,
            id(task),
            describe(task),
            task._lane.name,
            1 if sidecar is None else 1 + sidecar.retries,
            self._worker,
            max(0.0, start - task._submitted),
            end - start,
            outcome,
            error,
            self._context,
        )


def describe(task: Task[Any]) -> str:
    """Return the name of a task's function."""
    return function_name(task._result)
