"""Would the tests notice? Breaks the package in one place at a time, in a copy, and runs the tests that should see it.

    python tests/mutations.py              all of them
    python tests/mutations.py retry lane   those that have one of these words in claim, file or tests

Each mutation is one text of one file and what to put in its place. The table says which test noticed; a run that hangs counts
as noticed, too. The exit status is 1 if a mutation survived, if a text is not to be found (exactly once) any more, or if a test
fails without any mutation.

Not here: what only a build without the GIL could notice, such as the order of a store and a load of two fields.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tasker_executor import ResourceExecutor

ROOT = Path(__file__).resolve().parent.parent
HANGS_AFTER = 12  # seconds, for a test
GIVEN_UP_AFTER = 120.0  # seconds, for a run
# What tests wait for, in seconds: many a mutation is a test that waits in vain.
SHORTER = {"../tasker_executor/testing/fakes.py": ("DEADLINE", 5.0), "conftest.py": ("THREADS_END_WITHIN", 2.0)}
JOBS = 2  # at once, each in a copy of its own
COPIED = ("tasker_executor", "tests", "pyproject.toml", "README.rst")


class Mutation(NamedTuple):
    """`file` without the damage, and with it."""

    claim: str  # what the code does no longer
    file: str
    old: str
    new: str
    tests: str  # the files most likely to notice, best first: "kill shutdown" are test_kill.py and test_shutdown.py

    @property
    def paths(self) -> list[str]:
        return [f"tests/test_{name}.py" for name in self.tests.split()]


MUTATIONS = [
    # -- the worker
    Mutation(
        "a worker that ends destroys its resource",
        "_engine/worker.py",
        "source.destroy(holding, self.name)",
        "source.can_break",
        "resources",
    ),
    Mutation("the priority lane goes first", "_engine/worker.py", "if high:", "if high and not low:", "lanes"),
    Mutation(
        "a worker that registers as idle looks at the lanes again",
        "_engine/worker.py",
        "            if lanes.look():",
        "            if False:",
        "idle",
    ),
    Mutation(
        "a worker that was popped though it needs no wake-up takes the permit",
        "_engine/idle.py",
        "            self.take_permit()\n            self._idle.pass_on()",
        "            self._idle.pass_on()",
        "idle",
    ),
    Mutation(
        "a worker that was popped though it needs no wake-up passes it on",
        "_engine/idle.py",
        "            self._idle.pass_on()",
        "            pass",
        "idle",
    ),
    Mutation(
        "a worker that found a task of its own leaves if it was chosen to retire",
        "_engine/worker.py",
        "                break\n            if draining:",
        "                seat.told_to_leave = False\n                break\n            if draining:",
        "worker",
    ),
    Mutation(
        "a worker is idle before its result can be seen",
        "_engine/worker.py",
        "if idle := not (low or high or last or busy):",
        "if idle := False:",
        "idle",
    ),
    Mutation("a retry gets a fresh context", "_engine/worker.py", "context = context.copy()", "context.copy()", "context"),
    Mutation(
        "a retried task is queued again",
        "_engine/worker.py",
        "                        (lane.parked.append if self.yields else lane.appendleft)(put_back)",
        "                        id(put_back)",
        "retries",
    ),
    Mutation(
        "retries have a limit",
        "_engine/attempt.py",
        "if sidecar.retries < limit and",
        "if",
        "retries",
    ),
    Mutation(
        "a task may raise what is no Exception",
        "_engine/worker.py",
        "except BaseException as raised:",
        "except Exception as raised:",
        "worker",
    ),
    Mutation(
        "a finished task lets go of its context",
        "_engine/worker.py",
        "                task._context = None\n",
        "",
        "drop context",
    ),
    Mutation(
        "a traceback begins in the task",
        "_engine/worker.py",
        "error = drop_frame(raised)",
        "error = raised",
        "task",
    ),
    Mutation(
        "a killed task is not retried",
        "_engine/attempt.py",
        "limit and place.life.state < State.KILLED",
        "limit",
        "kill retries ending",
    ),
    Mutation(
        "a worker that was popped in the moment before it sleeps takes the permit",
        "_engine/worker.py",
        "                    seat.take_permit()",
        "                    pass",
        "idle",
    ),
    Mutation(
        "a worker that finds the task that it was woken for wakes no other worker",
        "_engine/worker.py",
        "                    seat.take_permit()",
        "                    seat.take_permit(); idle.pass_on()",
        "idle",
    ),
    Mutation(
        "a woken worker that finds more than one task wakes another",
        "_engine/worker.py",
        "if len(lanes.normal) + len(lanes.priority) > 1 and idle.stack:",
        "if False:",
        "idle",
    ),
    Mutation(
        "few workers are woken at a time",
        "_engine/idle.py",
        "return len(woken) == WAKES_AT_ONCE and not any(seat.park.locked() or not seat.occupied for seat in woken)",
        "return False",
        "idle",
    ),
    Mutation(
        "a worker that died is not waited for as one that is on its way",
        "_engine/core.py",
        "        self.idle.note_arrival()",
        "        pass",
        "idle",
    ),
    Mutation(
        "a submitter that counts on a worker looks whether it has come since",
        "_engine/idle.py",
        "            return True\n        self.note_arrival()",
        "            return True\n        pass",
        "idle",
    ),
    Mutation(
        "a worker that has left the books is not on its way",
        "_engine/crew.py",
        "        worker.seat.occupied = False\n",
        "",
        "idle",
    ),
    Mutation(
        "a worker of the books that was woken is on its way",
        "_engine/crew.py",
        "worker.seat.occupied = True",
        "worker.seat.occupied = False",
        "idle",
    ),
    Mutation(
        "submitters that hold back are told when a woken worker takes its permit",
        "_engine/idle.py",
        "            if self.line is ENOUGH:\n                self.line = self.stack",
        "            pass",
        "idle",
    ),
    Mutation(
        "a submission that an error is thrown into takes its sign down",
        "_engine/core.py",
        "                if idle.line is ENOUGH:\n                    idle.line = idle.stack",
        "                pass",
        "idle interrupts",
    ),
    Mutation(
        "a submission that an error is thrown into looks after tasks that relied on it",
        "_engine/core.py",
        "            finally:\n                self.scaler.resume()",
        "            except ArithmeticError:\n                self.scaler.resume()",
        "idle interrupts scaler",
    ),
    Mutation(
        "the frame of the loop keeps no finished task",
        "_engine/worker.py",
        "                    log.until, task = start, None",
        "                    log.until = start",
        "drop",
    ),
    Mutation(
        "a worker knows since when it is idle",
        "_engine/worker.py",
        "                    log.until, task = start, None",
        "                    task = None",
        "crew",
    ),
    # -- kill against a worker that is about to start a task
    Mutation(
        "once kill has set its state no task starts",
        "_engine/ending.py",
        "                self._crew.leave[:] = [None]",
        "                pass",
        "ending",
    ),
    Mutation(
        "whether a task may start is asked with the task in hand",
        "_engine/worker.py",
        "if leave and (last := self.employer.dismisses(self)) is not None:",
        "if False:",
        "ending",
    ),
    Mutation(
        "a worker that is dismissed with a task in hand puts it back",
        "_engine/worker.py",
        "lane.appendleft(put_back)\n                    put_back = None\n"
        "                    self.employer.task_came_back(self)\n                    return last",
        "return last",
        "ending",
    ),
    Mutation(
        "a worker that may not start its task sees that another takes it, or cancels it",
        "_engine/worker.py",
        "                    self.employer.task_came_back(self)\n                    return last",
        "                    return last",
        "ending",
    ),
    # -- errors thrown into a worker
    Mutation(
        "a life that ends in any way walks the exit path",
        "_engine/life.py",
        "        if worker.over:",
        "        if worker:",
        "thrown",
    ),
    Mutation(
        "a worker that is hit in its first step is born after all",
        "_engine/life.py",
        "        if worker.birth.locked() or (worker",
        "        if worker.birth.locked() and (worker",
        "thrown",
    ),
    Mutation(
        "a task in hand reaches its end",
        "_engine/worker.py",
        "                attempts.salvage(task,",
        "                str.format('', task,",
        "thrown",
    ),
    Mutation(
        "a value that was returned stands",
        "_engine/attempt.py",
        "        elif value is not NOTHING and error is None:",
        "        elif False:",
        "thrown",
    ),
    Mutation(
        "an attempt that was noted is counted once",
        "_engine/attempt.py",
        "            if noted is None:",
        "            if True:",
        "thrown",
    ),
    Mutation(
        "an attempt is known by its start",
        "_engine/attempt.py",
        "log.noted((id(task), began))",
        "log.noted((id(task), start))",
        "thrown",
    ),
    Mutation(
        "a task that was to be retried goes back",
        "_engine/attempt.py",
        "        elif noted is Outcome.RETRIED:",
        "        elif False:",
        "thrown",
    ),
    Mutation(
        "a task that was settled, or failed without being run, is not counted again",
        "_engine/attempt.py",
        "(sidecar.verdict is not None or sidecar.counted)",
        "(sidecar.verdict is not None)",
        "thrown",
    ),
    Mutation(
        "a failed task is counted once",
        "_engine/lanes.py",
        "            if not sidecar.counted:\n                self.settled",
        "            if True:\n                self.settled",
        "thrown",
    ),
    Mutation(
        "a tombstone is dropped once",
        "_engine/lanes.py",
        "            if not sidecar.dropped:",
        "            if True:",
        "thrown",
    ),
    Mutation(
        "a task that was popped to be failed is failed",
        "_engine/ending.py",
        "                task._fail_popped(thrown)\n",
        "                pass\n",
        "thrown",
    ),
    Mutation(
        "a task that was taken out to get its error gets it",
        "_engine/ending.py",
        "                    if taken and last is not None:\n                        task._fail_popped(last)\n",
        "",
        "thrown",
    ),
    Mutation(
        "a worker leaves the books last of all",
        "_engine/crew.py",
        "        self.supply.note_served()\n        self._recorder.close_log(worker.log)",
        "        roster.workers.discard(worker)\n        self.supply.note_served()\n"
        "        self._recorder.close_log(worker.log)",
        "thrown",
    ),
    Mutation(
        "what is folded is counted in the step in which it leaves the list",
        "_engine/recorder.py",
        "                    tally.count += count\n",
        "                    tally.count += count\n                    clock()\n",
        "thrown",
    ),
    Mutation(
        "a log is in the books when its worker is",
        "_engine/crew.py",
        "                    hired.append(worker)\n                    self._recorder.add_log(worker.log)\n",
        "                    self._recorder.add_log(worker.log)\n                    hired.append(worker)\n",
        "thrown",
    ),
    # -- workers that are hired under the lock and started outside of it
    Mutation(
        "a worker starts under no lock",
        "_engine/crew.py",
        "                self._hire(hired)\n                lost =",
        "                self._hire(hired)\n                while hired:\n"
        "                    start_thread(hired.pop().thread)\n                lost =",
        "threads crew",
    ),
    Mutation(
        "workers that were hired and cannot start leave the books",
        "_engine/crew.py",
        "            for worker in hired:\n                self._disown(worker)\n",
        "            hired and self._disown(hired[-1])\n",
        "threads",
    ),
    Mutation(
        "a signal handler disowns what its thread was about to start",
        "_engine/crew.py",
        "        if self._unborn:\n",
        "        if False:\n",
        "ending interrupts",
    ),
    Mutation(
        "Room is popped and put back in one step",
        "_engine/idle.py",
        "        self.release = partial(stack.__iadd__, (self,))",
        "        self.release = lambda: True",
        "idle",
    ),
    Mutation(
        "a timer that could not be started is started by the next submission",
        "_engine/crew.py",
        "            elif not hired:\n",
        "            elif False:\n",
        "threads",
    ),
    Mutation(
        "there is room while the timer is missing",
        "_engine/crew.py",
        "(self._may_start() or self._timer.wanted or outage)",
        "(self._may_start() or outage)",
        "threads",
    ),
    Mutation(
        "workers that are starting are counted again",
        "_engine/crew.py",
        "while (waiting := self._lanes.waiting()) and starting != (now := self.roster.starting()):",
        "while (waiting := self._lanes.waiting()) and (now := starting) < 0:",
        "crew threads",
    ),
    Mutation(
        "a list that changes while it is copied is no list of those on their way",
        "_engine/idle.py",
        "except (IndexError, RuntimeError):",
        "except IndexError:",
        "idle",
    ),
    Mutation(
        "a thread that waits for the end looks for workers whose thread has died",
        "_engine/ending.py",
        "                self._crew.bury()\n",
        "",
        "thrown",
    ),
    Mutation(
        "a worker whose thread has died walks its exit path",
        "_engine/crew.py",
        "                    worker.end(End.CRASHED, None)",
        "                    pass",
        "thrown",
    ),
    # -- waiting inside
    Mutation(
        "a wait inside makes another worker start",
        "_engine/roster.py",
        "min(waiting + 1, self.max_workers))",
        "min(1, self.max_workers))",
        "deadlock",
    ),
    Mutation(
        "a wait inside with a timeout does, too",
        "_engine/waiting.py",
        "owner is task._lane.owner and (timeout is None or timeout > 0)",
        "owner is task._lane.owner and timeout is None",
        "deadlock",
    ),
    Mutation("a timeout of 0 is no wait", "_engine/waiting.py", "(timeout is None or timeout > 0)", "True", "deadlock"),
    Mutation(
        "a wait with a timeout is not hopeless",
        "_engine/deadlock.py",
        "if wait.timed or task.done()",
        "if task.done()",
        "deadlock",
    ),
    Mutation(
        "a task that expires is waited for",
        "_engine/deadlock.py",
        "or task.may_expire() or wait.hopeless",
        "or wait.hopeless",
        "deadlock",
    ),
    Mutation(
        "a task in a caller's thread is waited for",
        "_engine/deadlock.py",
        "                if task.running() and id(task) not in hands:",
        "                if False:",
        "deadlock",
    ),
    Mutation(
        "the wait that began last is the one that ends",
        "_engine/deadlock.py",
        "last = next(reversed([",
        "last = next(iter([",
        "deadlock",
    ),
    Mutation(
        "a wait is looked at again when a worker has ended",
        "_engine/core.py",
        "        self.deadlock.end_a_hopeless_wait()\n        self.ending.check_terminated()\n        worker.over",
        "        self.ending.check_terminated()\n        worker.over",
        "deadlock",
    ),
    # -- fork
    Mutation("a child tells no observer of its parent's", "_engine/core.py", "        self.hub.silence()\n", "", "fork"),
    Mutation(
        "a child calls no callback of its parent's",
        "_engine/task.py",
        "        sidecar, self._sidecar = self._sidecar, None\n",
        "        sidecar = self._sidecar\n",
        "fork",
    ),
    # -- the herald
    Mutation(
        "a handler that interrupted its thread under a task's lock waits for no place in the queue",
        "_engine/sidecar.py",
        "if isinstance(value, Sidecar) and value._is_owned():",
        "if False:",
        "admission task",
    ),
    Mutation(
        "a handler does not wait for a thread that its own is about to tell",
        "_engine/sidecar.py",
        "        if frame.f_code in _locking:\n            return True",
        "        if False:\n            return True",
        "interrupts_futures shutdown",
    ),
    Mutation(
        "a done-callback may shut down and wait",
        "_engine/sidecar.py",
        "        if frame.f_code in _calling:\n            return False",
        "        if False:\n            return False",
        "shutdown task",
    ),
    Mutation("a pop and a store are one step", "_sync.py", "next(map(store, iter(pop, None)))", "store(pop())", "sync"),
    Mutation(
        "a call and the store of its result are one step",
        "_sync.py",
        "results.extend(starmap(function, (args,)))",
        "results.append(function(*args))",
        "sync",
    ),
    Mutation(
        "a worker leaves the callbacks of a settled task to the thread that settled it",
        "_engine/task.py",
        "sidecar.concluding = mine = True  # callbacks run",
        "mine = True  # callbacks run",
        "interrupts_futures",
    ),
    # -- population
    Mutation(
        "a base worker that ended gets a successor",
        "_engine/core.py",
        "        self.crew.populate_or_retry()\n        self.life.changed.ring()",
        "        self.life.changed.ring()",
        "resources go_regressions",
    ),
    Mutation(
        "there are no more workers than wanted",
        "_engine/roster.py",
        "return len(self.workers) < self.max_workers and self.present() < self.limit()",
        "return len(self.workers) <= self.max_workers and self.present() <= self.limit()",
        "contract crew",
    ),
    Mutation(
        "a worker that is starting counts for a task that waits",
        "_engine/crew.py",
        "if waiting > starting:",
        "if waiting:",
        "creation crew",
    ),
    Mutation(
        "a task that found no thread is withdrawn",
        "_engine/core.py",
        "if not self.roster.workers and task._settle(WITHDRAWN):",
        "if not self.roster.workers:",
        "threads",
    ),
    Mutation(
        "the set of leaving workers changes under the lock",
        "_engine/crew.py",
        "with self._life.lock:\n            if self._life.state >= State.KILLED:\n                return End.DRAINED",
        "if True:\n            if self._life.state >= State.KILLED:\n                return End.DRAINED",
        "crew",
    ),
    Mutation(
        "the set of workers changes under the lock",
        "_engine/crew.py",
        "with self._life.lock:\n                self._hire(hired)",
        "if True:\n                self._hire(hired)",
        "crew",
    ),
    Mutation(
        "base workers do not retire",
        "_engine/crew.py",
        "self.roster.present() <= self.roster.least():",
        "self.roster.present() < self.roster.least():",
        "crew",
    ),
    Mutation(
        "the worker that was idle for the longest retires first",
        "_engine/crew.py",
        "for seat in self._idle.seats() if surplus > 0 else ():",
        "for seat in self._idle.seats()[::-1] if surplus > 0 else ():",
        "crew",
    ),
    Mutation(
        "a retried task goes to the front of its lane",
        "_engine/worker.py",
        "                        (lane.parked.append if self.yields else lane.appendleft)(put_back)",
        "                        (lane.parked.append if self.yields else lane.append)(put_back)",
        "retries lanes",
    ),
    # -- the factory
    Mutation(
        "the pause after a failure is bounded",
        "_engine/outage.py",
        "draw(0.0, self.longest_pause())",
        "draw(0.0, 10 * self.longest_pause())",
        "outage creation",
    ),
    Mutation(
        "the pause after a failure is jittered",
        "_engine/outage.py",
        "draw(0.0, self.longest_pause())",
        "self.longest_pause()",
        "outage creation",
    ),
    Mutation(
        "the pause after a failure doubles", "_engine/outage.py", "BACKOFF_FIRST * 2.0 **", "BACKOFF_FIRST * 1.0 **", "outage"
    ),
    Mutation(
        "a resource that was made ends the row of failures",
        "_engine/outage.py",
        "        self.failures, self.error = 0, None\n",
        "",
        "outage creation",
    ),
    Mutation(
        "create_timeout counts from when the last resource went",
        "_engine/supply.py",
        "            outage.bare(clock())",
        "            pass",
        "creation resources",
    ),
    # -- an outage
    Mutation(
        "a new resource that fails its check is a failed creation",
        "_engine/resources.py",
        "return End.BROKEN if holding.uses else End.CREATION_FAILED",
        "return End.BROKEN",
        "creation",
    ),
    Mutation(
        "only a resource that passes its check ends an outage",
        "_engine/crew.py",
        "if in_doubt and self.outage.failures:",
        "if in_doubt and self.outage.failures > 1_000:",
        "creation",
    ),
    Mutation(
        "a failed check is counted before another worker is woken",
        "_engine/core.py",
        "        if self.crew.note_unfit(worker, fault):",
        "        self.wake_if_waiting()\n        if self.crew.note_unfit(worker, fault):",
        "creation",
    ),
    Mutation(
        "the pause is bounded by create_timeout",
        "_engine/outage.py",
        "max(BACKOFF_FIRST, self.create_timeout / ATTEMPTS)",
        "BACKOFF_LIMIT",
        "outage",
    ),
    Mutation(
        "the row of failures goes on until a resource has served",
        "_engine/outage.py",
        "max(self.failures, self._row) + 1",
        "self.failures + 1",
        "outage creation",
    ),
    Mutation(
        "the wait goes on until a resource has served",
        "_engine/outage.py",
        "now if self._waited_since is None else self._waited_since",
        "now",
        "outage creation",
    ),
    Mutation(
        "a resource that has served ends the row",
        "_engine/outage.py",
        "if begun > self.failed_at:\n            self._row = 0",
        "if begun > self.failed_at:\n            pass",
        "outage",
    ),
    Mutation(
        "the outage learns of what has served",
        "_engine/supply.py",
        "                if worker.log.attempts():\n                    self.outage.served(worker.started_at)",
        "                pass",
        "creation",
    ),
    Mutation(
        "in an old outage a task fails at once during a pause",
        "_engine/outage.py",
        "            if hope is None:\n                return now\n",
        "",
        "outage recovery",
    ),
    Mutation(
        "in an old outage a task fails when the attempt fails that it has waited for",
        "_engine/outage.py",
        "if self.is_old(self.failed_at):",
        "if False:",
        "outage recovery",
    ),
    Mutation(
        "a submitter has the timer look at a task that must fail at once",
        "_engine/crew.py",
        "lost = not hired and self._has_lost_tasks()",
        "lost = False",
        "recovery",
    ),
    Mutation(
        "a submitter comes by during an outage",
        "_engine/crew.py",
        "or self._timer.wanted or outage)",
        "or self._timer.wanted)",
        "recovery",
    ),
    Mutation(
        "an attempt is hope for a task that waits",
        "_engine/supply.py",
        "for moment in begun if moment > since",
        "for moment in begun if moment > now",
        "recovery",
    ),
    Mutation(
        "a worker that destroys an unfit resource is no attempt",
        "_engine/roster.py",
        "or worker in ending)",
        "or worker is ending)",
        "recovery",
    ),
    Mutation(
        "a worker that destroys its resource has a successor at once, if there is room",
        "_engine/crew.py",
        "        if worker.log.attempts():\n            self.populate_or_retry()",
        "",
        "crew",
    ),
    Mutation(
        "a worker that becomes ready in a row of failures wakes the timer",
        "_engine/crew.py",
        "            if self.outage.failures:  # the timer",
        "            if False:  # the timer",
        "recovery",
    ),
    Mutation(
        "a worker that begins to destroy its resource in a row of failures wakes the timer",
        "_engine/supply.py",
        "is not None or self.outage.failures:",
        "is not None:",
        "recovery",
    ),
    Mutation(
        "an unfit resource may make room in an old outage",
        "_engine/supply.py",
        "max((moment for moment in ending.values() if moment > since), default=None)",
        "None",
        "recovery",
    ),
    Mutation(
        "a caller of wait_ready wants a worker",
        "_engine/roster.py",
        "max(self.min_workers, bool(self.awaited))",
        "self.min_workers",
        "crew",
    ),
    Mutation(
        "an attempt that hangs is not waited for",
        "_engine/roster.py",
        "sum(not (worker.ready or worker.late or",
        "sum(not (worker.ready or",
        "creation",
    ),
    Mutation(
        "an attempt that hangs takes no place of those wanted",
        "_engine/roster.py",
        "sum(not (worker.late or self.ends(worker))",
        "sum(not self.ends(worker)",
        "creation",
    ),
    Mutation(
        "an attempt that hangs is seen while another worker is busy",
        "_engine/crew.py",
        "if hired and self._owns_resources:\n",
        "if hired and self.outage.bare_since is not None:\n",
        "creation",
    ),
    Mutation(
        "a worker that comes late leaves if it is one too many",
        "_engine/crew.py",
        "                    self.leave[:] = [None]",
        "                    pass",
        "creation",
    ),
    Mutation(
        "a worker that is destroying its resource owns none",
        "_engine/worker.py",
        "                self.employer.resource_given_up(self)\n",
        "",
        "creation",
    ),
    Mutation(
        "what is thrown in before a resource is given up loses it not",
        "_engine/worker.py",
        "for _ in _TRIES:",
        "for _ in _TRIES[:1]:",
        "thrown",
    ),
    Mutation(
        "a worker that crashes before its first task has no successor at once",
        "_engine/supply.py",
        "if end is End.CRASHED and not worker.log.attempts():",
        "if worker.employer is None:",
        "creation",
    ),
    Mutation(
        "an idle resource that has not served is kept for a second",
        "_engine/holding.py",
        "max(expires, self.born + LEAST_REST)",
        "expires",
        "creation",
    ),
    Mutation(
        "the factory is tried again when the pause is over",
        "_engine/recovery.py",
        "if tended and paused_until is None:",
        "if False:",
        "creation",
    ),
    Mutation(
        "a task that came later waits longer",
        "_engine/outage.py",
        "until = now - self.create_timeout if",
        "until = now if",
        "outage creation",
    ),
    Mutation(
        "a task that came back too late for the killer is settled",
        "_engine/core.py",
        "        elif self.life.state >= State.KILLED:\n            self.ending.cancel_queue()  # a task may",
        "        elif False:\n            pass  # a task may",
        "thrown",
    ),
    # -- the end
    Mutation(
        "shutdown refuses new tasks",
        "_engine/ending.py",
        "                idle.line = CLOSED",
        "                pass",
        "shutdown",
    ),
    Mutation(
        "a submitter that is refused is told",
        "_engine/core.py",
        "            raise self.refuse()",
        "            pass",
        "shutdown",
    ),
    Mutation(
        "shutdown wakes idle workers",
        "_engine/ending.py",
        "        idle.wake_all()\n",
        "",
        "shutdown",
    ),
    Mutation(
        "shutdown(cancel_futures=True) cancels",
        "_engine/ending.py",
        "if cancel or kill:",
        "if kill:",
        "shutdown",
    ),
    Mutation(
        "kill cancels what waits",
        "_engine/ending.py",
        "if cancel or kill:",
        "if cancel:",
        "kill",
    ),
    Mutation(
        "kill sets the tokens",
        "_engine/ending.py",
        "            self._stop_running()",
        "            pass",
        "kill",
    ),
    Mutation(
        "kill aborts what hangs",
        "_engine/ending.py",
        "            self._reserve.abort(hook, targets)",
        "            pass",
        "kill",
    ),
    Mutation(
        "a task that comes back after kill is settled",
        "_engine/core.py",
        "cancel_queue()  # the killer may have looked at the lane before\n        else:",
        "lanes  # the killer may have looked at the lane before\n        else:",
        "ending",
    ),
    Mutation(
        "shutdown ends each wait for a place in the queue",
        "_engine/ending.py",
        "        self._place.admission.close()",
        "        pass",
        "admission",
    ),
    Mutation(
        "an executor is not closed while tasks wait",
        "_engine/ending.py",
        "if lanes.parked() or (lanes.look() and lanes.waiting()):",
        "if False:",
        "creation shutdown ending",
    ),
    Mutation(
        "a dropped executor ends",
        "_engine/core.py",
        "            self.ending.close_dropped()",
        "            pass",
        "drop",
    ),
    Mutation(
        "the interpreter waits for the drain",
        "_engine/process.py",
        "        executor.join_at_exit()",
        "        pass",
        "exit",
    ),
    Mutation(
        "what is registered last for the exit is called first",
        "_engine/process.py",
        "for call in reversed(_first):",
        "for call in _first:",
        "process",
    ),
    Mutation(
        "the interpreter waits for threads that are about to end",
        "_engine/process.py",
        "        thread.join()\n",
        "        pass\n",
        "process",
    ),
    Mutation(
        "the interpreter waits for workers that are about to end",
        "_engine/crew.py",
        "                process.ending.add(worker.thread)\n",
        "",
        "process",
    ),
    Mutation(
        "an executor that refuses says what it said before at exit, too",
        "_engine/ending.py",
        "        if self._life.state is State.RUNNING:\n            message =",
        "        if True:\n            message =",
        "process",
    ),
    # -- lanes and futures
    Mutation("a tombstone counts once", "_engine/lanes.py", "self.tombstones += 1", "self.tombstones += 2", "task stats"),
    Mutation("a popped tombstone counts no more", "_engine/lanes.py", "self.tombstones -= 1", "pass", "lanes"),
    Mutation(
        "a canceller that comes too late takes its verdict back",
        "_engine/task.py",
        "if self._status is not PENDING:\n                    sidecar.verdict = None",
        "if False:\n                    sidecar.verdict = None",
        "task",
    ),
    Mutation(
        "two cancellers take turns",
        "_engine/task.py",
        "with sidecar:\n                if sidecar.verdict is not None or sidecar.started",
        "if True:\n                if sidecar.verdict is not None or sidecar.started",
        "task sidecar",
    ),
    Mutation(
        "a listener looks again whether the task has finished",
        "_engine/task.py",
        "(self._status is FINISHED or sidecar.verdict is not None)",
        "sidecar.verdict is not None",
        "sidecar task",
    ),
    Mutation("wait() is told", "_engine/task.py", "if sidecar.waiters:", "if False:", "task"),
    Mutation(
        "a task that has started once does not expire",
        "_engine/task.py",
        "and not sidecar.started and clock()",
        "and clock()",
        "deadlines",
    ),
    # -- waiting for a result
    Mutation(
        "one sidecar for a future",
        "_engine/task.py",
        "                winner = _firsts.setdefault(self, made)",
        "                winner = made",
        "task",
    ),
    Mutation(
        "each thread that waits for a task has the permit",
        "_engine/sidecar.py",
        "            if self.permits is None:\n",
        "            if True:\n",
        "task handoff",
    ),
    Mutation(
        "a thread that waits by a handoff is woken",
        "_engine/task.py",
        "                handoff.give()\n            except",
        "                pass\n            except",
        "handoff",
    ),
    Mutation(
        "a handoff has one waiter",
        "_engine/sidecar.py",
        "            if self.handoff is None:\n",
        "            if True:\n",
        "handoff",
    ),
    Mutation(
        "a wake-up may be for nothing",
        "_engine/waiting.py",
        "        while not sidecar.published:  # a wake-up",
        "        if not sidecar.published:  # a wake-up",
        "handoff",
    ),
    Mutation(
        "a final future has one condition for life",
        "_engine/task.py",
        "sidecar = adopt(self, FINAL)",
        "sidecar = FINAL",
        "task",
    ),
    Mutation(
        "a thread that adds a waiter publishes no end",
        "_engine/task.py",
        "sidecar = self._sidecar or self._observe() or self._seal()",
        "sidecar = self._observe() or self._seal()",
        "task",
    ),
    Mutation(
        "a task that was settled and not told of is concluded by the next thread that meets it",
        "_engine/task.py",
        "(self._status is FINISHED or sidecar.verdict is not None)",
        "self._status is FINISHED",
        "interrupts_futures",
    ),
    Mutation(
        "a tombstone that was not told of is concluded by the worker that pops it",
        "_engine/task.py",
        "                self._conclude()  # the thread",
        "                pass  # the thread",
        "interrupts_futures",
    ),
    Mutation(
        "a tombstone is counted once",
        "_engine/lanes.py",
        "if not sidecar.counted:\n                self.tomb",
        "if True:\n                self.tomb",
        "interrupts_futures task",
    ),
    Mutation(
        "a snapshot is a retrieval",
        "_engine/task.py",
        "            self._note_retrieved()\n        return True, False",
        "            pass\n        return True, False",
        "task",
    ),
    Mutation(
        "a closed executor lets go of its lanes",
        "_engine/lanes.py",
        "        self.owner = _Closed(self.owner.name)",
        "        pass",
        "task",
    ),
    Mutation(
        "a file of other code is not written to",
        "_engine/handoff.py",
        "            self._check()\n            write",
        "            write",
        "handoff",
    ),
    Mutation(
        "a file of other code is not read",
        "_engine/handoff.py",
        "if not inheritable(self._eventfd):",
        "if True:",
        "handoff",
    ),
    Mutation(
        "a file of other code is not closed",
        "_engine/handoff.py",
        "                    return\n                close(",
        "                    pass\n                close(",
        "handoff",
    ),
    Mutation("a handoff is given back", "_engine/waiting.py", "        give_back(loan)", "        pass", "handoff"),
    Mutation(
        "a handoff leaves its future",
        "_engine/waiting.py",
        "sidecar.handoff = None\n        give",
        "pass\n        give",
        "handoff",
    ),
    Mutation("not in a burst", "_engine/waiting.py", "len(task._lane) < 2 and not inside", "not inside", "handoff"),
    Mutation(
        "a deadlock is seen", "_engine/waiting.py", "len(task._lane) < 2 and not inside", "len(task._lane) < 2", "deadlock"
    ),
    Mutation(
        "a child's wait ends",
        "_engine/task.py",
        "            sidecar.published = True\n            if sidecar.handoff",
        "            if sidecar.handoff",
        "handoff",
    ),
    Mutation(
        "a child's wait reads no other file",
        "_engine/handoff.py",
        "        handoff.renew()",
        "        os.close(handoff._eventfd)",
        "handoff",
    ),
    Mutation(
        "a lost file ends no worker",
        "_engine/task.py",
        "except HandoffLost:\n                note",
        "except KeyError:\n                note",
        "handoff",
    ),
    Mutation("a child has its own", "_engine/handoff.py", "    _free.clear()\n", "", "handoff"),
    Mutation(
        "the time of a handoff is no task's",
        "_engine/worker.py",
        "                        callbacks = None\n                    start = clock()",
        "                        callbacks = None\n                    pass",
        "handoff",
    ),
    # -- resources
    Mutation(
        "a resource is destroyed once",
        "_engine/holding.py",
        "pop_into(self._claim.pop, claimed.append)",
        "claimed.extend([self.arguments])",
        "kill_destroy interrupts",
    ),
    Mutation(
        "a break puts all other resources under suspicion", "_engine/resources.py", "self.breaks += 1", "pass", "resources"
    ),
    Mutation("max_age has a bounded jitter", "_engine/resources.py", "AGE_JITTER = 0.1", "AGE_JITTER = 0.5", "resources"),
    Mutation(
        "an async function is no task",
        "_engine/invoke.py",
        "    if iscoroutinefunction(innermost(call)):",
        "    if False:",
        "hooks",
    ),
    Mutation(
        "a function that makes a coroutine is a task",
        "_engine/invoke.py",
        "    if iscoroutinefunction(innermost(call)):",
        "    if True:",
        "hooks",
    ),
    Mutation(
        "None is no resource", "_engine/resources.py", "if cure := not_a_resource(made[0]):", "if cure := '':", "creation"
    ),
    Mutation(
        "a check that raises says no",
        "_engine/resources.py",
        "            passed = False",
        "            passed = True",
        "resources",
    ),
    Mutation(
        "run_now does not keep a broken resource",
        "_engine/stock.py",
        "            if holding.kept and not broken and not holding.gone:",
        "            if holding.kept and not holding.gone:",
        "run_now",
    ),
    Mutation(
        "a resource that Ctrl-C left behind is destroyed when the pool is closed",
        "_engine/reserve.py",
        "                self._destroy_all(place)\n                swept = True",
        "                swept = True",
        "run_now",
    ),
    Mutation(
        "Ctrl-C before on_destroy leaves the resource to be destroyed",
        "_engine/holding.py",
        "            self._claim.extend(claimed)  # Ctrl-C came before the hook was called",
        "            pass",
        "interrupts",
    ),
    Mutation(
        "temporary resources of run_now do not pile up",
        "_engine/stock.py",
        "                holding.kept = False",
        "                pass",
        "run_now",
    ),
    Mutation(
        "a constructor that fails leaves no resource behind",
        "_engine/core.py",
        "        except BaseException:\n            self.close()\n            raise",
        "        except BaseException:\n            raise",
        "threads",
    ),
    Mutation(
        "no resource is destroyed while it is aborted",
        "_engine/holding.py",
        "            if not latch.wait(patience):",
        "            if False:",
        "kill",
    ),
    Mutation(
        "run_now is counted out whatever comes",
        "_engine/reserve.py",
        "            place.calls -= 1\n            if self._closed:\n                self._leave(place)\n\n    def _create",
        "            if self._closed:\n                self._leave(place)\n\n    def _create",
        "run_now",
    ),
    Mutation(
        "what is thrown in is no failure of on_create",
        "_engine/resources.py",
        "if blame is not None and not made:",
        "if blame is not None:",
        "interrupts_run_now",
    ),
    Mutation(
        "what is thrown in is no failure of on_destroy",
        "_engine/resources.py",
        "            if not (holding.gone and holding.gone[0] is error) or must_escape(error):",
        "            if must_escape(error):",
        "interrupts_run_now",
    ),
    Mutation(
        "two calls that shut down do not wait for each other",
        "_engine/places.py",
        " or (inside and place.waiting):",
        ":",
        "run_now",
    ),
    Mutation(
        "shutdown outside waits for calls that wait",
        "_engine/places.py",
        " or (inside and place.waiting):",
        " or place.waiting:",
        "run_now",
    ),
    Mutation(
        "a child destroys nothing of its parent's",
        "_engine/holding.py",
        "        return self.process != getpid()",
        "        return False",
        "fork",
    ),
    Mutation(
        "exit does not wait for daemons in run_now",
        "_engine/core.py",
        "self.ending.join(None, daemons=False)",
        "self.ending.join(None)",
        "exit",
    ),
    Mutation(
        "one vacancy is filled once",
        "_engine/stock.py",
        "        with self._source.lock:  # or two",
        "        if True:  # or two",
        "run_now",
    ),
    Mutation("a hook that hangs is not called again", "_engine/reserve.py", " if not holding.being_aborted]", "]", "kill"),
    Mutation(
        "kill(destroy=True) does not wait for ever for on_abort",
        "_engine/reserve.py",
        "worker, patience=0.0)",
        "worker)",
        "kill_destroy",
    ),
    Mutation(
        "a resource that was idle for long is checked",
        "_engine/resources.py",
        "or now - holding.last_used > self.hooks.check_after_idle",
        "",
        "resources",
    ),
    # -- places in the queue, the clock, the books
    Mutation(
        "a submitter that waits for a place in the queue looks once more",
        "_engine/admission.py",
        "            self.refill()  # a worker may have",
        "            pass  # a worker may have",
        "admission",
    ),
    Mutation(
        "no submitter overtakes another that waits for a place in the queue",
        "_engine/admission.py",
        "if not self.blocked and self",
        "if self",
        "admission",
    ),
    Mutation(
        "a place is reserved until its task is queued",
        "_engine/admission.py",
        "self.limit:\n                self._reserved.add(ticket)\n",
        "self.limit:\n",
        "admission",
    ),
    Mutation(
        "a task that submits does not wait for a place in the queue",
        "_engine/submission.py",
        "if admission.limit is None or current.owner is core:",
        "if admission.limit is None:",
        "admission",
    ),
    Mutation(
        "deadlines are kept in their own order",
        "_engine/deadlines.py",
        "heapq.heappush(self._heap, (deadline",
        "self._heap.append((deadline",
        "deadlines",
    ),
    Mutation(
        "a submitter that wakes a worker above the alarm ends the pause of the policy",
        "_engine/core.py",
        "elif self.scaler.paused:",
        "elif False:",
        "scaler",
    ),
    Mutation(
        "a policy that pauses is woken by the next task",
        "_engine/scaler.py",
        "            stack.append(self._alarm)",
        "            pass",
        "scaler",
    ),
    Mutation(
        "a callback of a task that expired runs on a thread of its own",
        "_engine/task.py",
        "            if callbacks and aside.post is not None:  # this thread",
        "            if False:  # this thread",
        "herald",
    ),
    Mutation(
        "an observer hears nothing on the timer's thread",
        "observers.py",
        "if aside.post is not None:",
        "if False:",
        "herald",
    ),
    Mutation(
        "a log handler hears nothing on the timer's thread",
        "_report.py",
        "if aside.post is not None:",
        "if False:",
        "herald",
    ),
    Mutation(
        "what cannot be told on another thread is told all the same",
        "_engine/herald.py",
        "            self._run()  # late",
        "            pass  # late",
        "herald",
    ),
    Mutation(
        "an executor closes when all is told",
        "_engine/ending.py",
        "            if self._failing or timer.herald.busy:",
        "            if self._failing:",
        "herald",
    ),
    Mutation(
        "a thread that waits for the end waits for what is told, too",
        "_engine/timer.py",
        "        threads = self.thread, self.herald.thread",
        "        threads = (self.thread,)",
        "herald",
    ),
    Mutation(
        "a kick that comes before the timer sleeps is kept",
        "_engine/timer.py",
        "            self._park.release()\n",
        "            pass\n",
        "timer",
    ),
    Mutation(
        "a timer sleeps on what cannot sleep for ever",
        "_engine/timer.py",
        "lock_timeout(None if due is None else due - clock())",
        "-1 if due is None or due < clock() else due - clock()",
        "timer",
    ),
    Mutation(
        "an overdue deadline wakes the timer",
        "_engine/deadlines.py",
        " or first < task._submitted",
        "",
        "deadlines",
    ),
    Mutation(
        "a kick under the lock of the core starts no thread that is waited for",
        "_engine/timer.py",
        "if start and lock._is_owned():",
        "if False:",
        "timer",
    ),
    Mutation(
        "a starter that is interrupted disowns the timer",
        "_engine/timer.py",
        "if birth.acquire(False) and self.birth is birth:",
        "if False:",
        "timer",
    ),
    Mutation(
        "a deadline that comes while other deadlines are forgotten is kept",
        "_engine/deadlines.py",
        "            if entry[1] > number:",
        "            if False:",
        "deadlines",
    ),
    Mutation(
        "an error thrown into the start of a thread is no refusal",
        "_engine/threads.py",
        "        if _is_refusal(error):",
        "        if True:",
        "threads timer",
    ),
    Mutation(
        "a refusal is told by its class", "_engine/threads.py", "if type(error) not in _REFUSALS:", "if False:", "threads"
    ),
    Mutation(
        "a place in the queue that comes free when a worker ends is not missed",
        "_engine/core.py",
        "self.recovery.fail_queue(error)\n        if self.admission.blocked:",
        "self.recovery.fail_queue(error)\n        if False:",
        "admission",
    ),
    Mutation(
        "a promise of a place in the queue binds other threads only",
        "_engine/admission.py",
        "not promised or ticket.thread in promised)",
        "not promised)",
        "admission",
    ),
    Mutation(
        "a promise of a place in the queue binds other threads",
        "_engine/admission.py",
        "or not promised or ticket.thread in promised)",
        "or True)",
        "admission",
    ),
    Mutation(
        "a handler that interrupted its thread under a lock waits for no place in the queue",
        "_engine/nesting.py",
        "return not self.holds_a_lock() if nested else None",
        "return True if nested else None",
        "admission",
    ),
    Mutation(
        "a handler that interrupted the start of a thread waits for no place in the queue",
        "_engine/nesting.py",
        "            if frame.f_code is start_thread.__code__:",
        "            if False:",
        "admission",
    ),
    Mutation(
        "a handler wakes the worker that its thread was about to wake",
        "_engine/core.py",
        "            self.wake_if_waiting()\n        return may_block",
        "        return may_block",
        "admission interrupts_admission",
    ),
    Mutation(
        "a place that is given up while an error is thrown in is given up",
        "_engine/submission.py",
        "                admission.leave(ticket)\n                raise",
        "                raise",
        "interrupts_admission",
    ),
    Mutation(
        "what a task raises in a caller is its result",
        "_engine/submission.py",
        "    except BaseException as raised:\n        error = drop_frames",
        "    except Exception as raised:\n        error = drop_frames",
        "admission",
    ),
    Mutation(
        "an error of a task that ran in a caller keeps nothing of ours",
        "_engine/calls.py",
        "            frame.clear()",
        "            pass",
        "admission",
    ),
    Mutation(
        "a lost error of a caller is logged",
        "_engine/submission.py",
        "            future._arm(executor, name, error)",
        "            pass",
        "admission",
    ),
    Mutation("what is folded is listed no more", "_engine/recorder.py", "                    del runs[:count]", "", "stats"),
    Mutation(
        "what a worker did counts when it is gone",
        "_engine/recorder.py",
        "            self.fold(log)\n            self._logs.discard(log)",
        "            self._logs.discard(log)",
        "stats",
    ),
    Mutation(
        "a policy's answer is cut to the bounds",
        "policies.py",
        "return min(max(load.min_workers, answer(policy, load)), load.max_workers)",
        "return answer(policy, load)",
        "policies",
    ),
    # -- arguments
    Mutation(
        "a bool is no count",
        "_checks.py",
        "return None if isinstance(value, bool) else operator.index(value)",
        "return operator.index(value)",
        "numbers",
    ),
    Mutation(
        "a count is what has an index",
        "_checks.py",
        "else operator.index(value)",
        "else value if isinstance(value, int) else None",
        "numbers",
    ),
    Mutation(
        "a duration may be longer than a float",
        "_checks.py",
        "number = math.inf if real > 0 else -math.inf",
        "raise",
        "numbers",
    ),
    Mutation("a string is no number of seconds", "_checks.py", "value if isinstance(value, Number) and", "value if", "numbers"),
    Mutation(
        "a policy's interval is a plain number",
        "_engine/scaler.py",
        "self._interval = interval_of(policy)\n            self._pause()",
        "self._interval = policy.interval\n            self._pause()",
        "numbers",
    ),
    Mutation(
        "what cannot be called is the task's error",
        "_engine/calls.py",
        "        return lambda *args: fn(*args, **kwargs)",
        "        raise",
        "arguments",
    ),
    # -- threads
    Mutation(
        "a thread is a daemon only where it may be",
        "_engine/threads.py",
        "daemon=DAEMON, **own",
        "daemon=True, **own",
        "thread_contexts",
    ),
    Mutation(
        "a dropped executor ends on a thread of its own making",
        "_engine/ending.py",
        "make_thread(self.close,",
        '__import__("threading").Thread(None, self.close,',
        "thread_contexts",
    ),
    # -- the inline executor
    Mutation(
        "no task starts after kill",
        "testing/inline.py",
        "if self._state is State.KILLED or not lane:",
        "if not lane:",
        "inline_interrupts",
    ),
    Mutation(
        "a task thrown out of its steps is ended",
        "testing/inline.py",
        "if task is not None and task.in_hand:",
        "if False:",
        "inline_interrupts",
    ),
    Mutation(
        "a call that is interrupted is let go",
        "testing/inline.py",
        "            return work()\n        finally:\n            try:\n                self._let_go(call)",
        "            return work()\n        finally:\n            try:\n                pass",
        "inline_interrupts",
    ),
    Mutation(
        "a resource in no place is destroyed in the end",
        "testing/inline.py",
        "            self._reserve.wait_until_returned(clock())",
        "            pass",
        "inline_interrupts",
    ),
    Mutation(
        "a call of wait_ready holds the end back",
        "testing/inline.py",
        "                call.in_hand = True\n            return work()",
        "                self._in_hand -= 1\n            return work()",
        "inline_interrupts",
    ),
    # -- stacks, slow tasks, and what is told of stops
    Mutation(
        "a stack is cut where the worker's own loop ends",
        "_engine/stacks.py",
        "    while calls and _is_ours(calls[-1][0]):\n        del calls[-1]\n",
        "",
        "stacks",
    ),
    Mutation(
        "a stack begins with the outermost call",
        "_engine/stacks.py",
        "StackSummary.from_list(shown[::-1])",
        "StackSummary.from_list(shown)",
        "stacks",
    ),
    Mutation(
        "a long stack says that it is cut",
        "_engine/stacks.py",
        '"  ...\\n" if len(calls) > len(shown) else ""',
        '""',
        "stacks",
    ),
    Mutation(
        "a reader of stacks leaves no frames behind",
        "_engine/stacks.py",
        "    everything.clear()  # it has",
        "    # it has",
        "stacks",
    ),
    Mutation(
        "the stack of another thread that has the same number is not shown",
        "_engine/stacks.py",
        'if thread.is_alive() else ""',
        'if True else ""',
        "stacks",
    ),
    Mutation(
        "an error while a stack is read is told in its place",
        "_engine/stacks.py",
        "        if must_escape(error):\n            raise\n",
        "        raise\n",
        "stacks",
    ),
    Mutation(
        "Ctrl-C while a stack is read is for the program",
        "_engine/stacks.py",
        "        if must_escape(error):\n            raise\n",
        "",
        "stacks",
    ),
    Mutation(
        "no frame of a running thread is read without the GIL",
        "_engine/stacks.py",
        'if getattr(sys, "_is_gil_enabled", lambda: True)():',
        "if True:",
        "stacks",
    ),
    Mutation(
        "an early Python without the GIL reads no stacks",
        "_engine/stacks.py",
        "elif sys.version_info >= STOPS_THE_WORLD:",
        "elif True:",
        "stacks",
    ),
    Mutation(
        "a worker that has gone on has no stack of what it does now",
        "_engine/gauges.py",
        "if before[number] == (worker.task, worker.ready, worker in ending):",
        "if True:",
        "stacks",
    ),
    Mutation(
        "a worker that was written off is listed",
        "_engine/gauges.py",
        "sorted(roster.workers.copy() | gone,",
        "sorted(roster.workers.copy(),",
        "stacks",
    ),
    Mutation(
        "a task that was given up has kept its name",
        "_engine/gauges.py",
        "return None if sidecar.stop is None else sidecar.stop.function",
        "return None",
        "stacks",
    ),
    Mutation(
        "a slow task is told again at each doubling, and not each time",
        "_engine/slow.py",
        "                limit *= 2\n",
        "                limit += self._after\n",
        "slow",
    ),
    Mutation(
        "the next task of a worker has a time of its own",
        "_engine/slow.py",
        "        if known != attempt:",
        "        if known is None:",
        "slow",
    ),
    Mutation(
        "a later attempt at a task has a time of its own",
        "_engine/slow.py",
        "        attempt = id(task), since\n",
        "        attempt = id(task), 0.0\n",
        "slow",
    ),
    Mutation(
        "the timer leaves the record of a slow task to the herald",
        "_engine/slow.py",
        "        if aside.post is None:\n",
        "        if True:\n",
        "slow",
    ),
    Mutation(
        "a task that has ended while its stack was read is not told",
        "_engine/slow.py",
        "        if worker.task is not task or task.done():",
        "        if task.done():",
        "slow",
    ),
    Mutation(
        "a task that was given up is not told as slow",
        "_engine/slow.py",
        "        if worker.task is not task or task.done():",
        "        if worker.task is not task:",
        "slow",
    ),
    Mutation(
        "a task that was given up is none that runs",
        "_engine/roster.py",
        "if task._sidecar is None or task._sidecar.verdict is None]",
        "]",
        "stats",
    ),
    Mutation(
        "the stop of a task is told with its reason",
        "_engine/notices.py",
        "self._event(task, worker, reason.value), task)",
        'self._event(task, worker, "stopped"), task)',
        "observers",
    ),
    Mutation(
        "a task is kept until observers are told of it",
        "observers.py",
        "aside.post(partial(self.tell, event, what, task))",
        "aside.post(partial(self.tell, event, what))",
        "observers",
    ),
    Mutation(
        "a stop is an event of the span",
        "opentelemetry.py",
        '            span.add_event("tasker_executor.task.stopped"',
        '            str("tasker_executor.task.stopped"',
        "opentelemetry",
    ),
    Mutation(
        "stops are exported by their reason",
        "_telemetry.py",
        '("timed out",): reading.stats.timed_out}',
        '("timed out",): reading.stats.stopped * 0}',
        "prometheus",
    ),
    # -- the extras
    Mutation(
        "a span that was left is not another task's", "opentelemetry.py", "if event.attempt > 1:", "if True:", "opentelemetry"
    ),
    Mutation(
        "a span ends before it is forgotten",
        "opentelemetry.py",
        "            try:\n                span.end()\n            finally:\n                self._spans.pop(task, None)",
        "            self._spans.pop(task, None)\n            repr(task)\n            _type_of(None)\n            span.end()",
        "opentelemetry",
    ),
    Mutation(
        "a name is spelled so that it can be encoded",
        "_telemetry.py",
        'text.encode("utf-8", "backslashreplace").decode("utf-8")',
        "text",
        "prometheus opentelemetry",
    ),
    Mutation(
        "a destructor may register", "prometheus.py", "_lock = threading.RLock()", "_lock = threading.Lock()", "prometheus"
    ),
    Mutation(
        "a console that fails ends the view only",
        "monitor.py",
        "            self._working = False\n",
        "            raise\n",
        "monitor",
    ),
    Mutation(
        "an interrupted write keeps no thread from closing",
        "recording.py",
        "self._writing = threading.RLock()",
        "self._writing = threading.Lock()",
        "recording",
    ),
    Mutation(
        "a row that was left is not another task's",
        "recording.py",
        "if before is not None and event.attempt != 1:",
        "if before is not None:",
        "recording",
    ),
    # -- map, and what stops its tasks
    Mutation(
        "a time-out of map stops what runs, in order",
        "_map.py",
        "        if stop:\n            stop_all(futures)\n",
        "",
        "map_stop",
    ),
    Mutation(
        "a time-out of map stops what runs, as results come",
        "_arrivals.py",
        "                        stop_all(deque(self.futures.values()))\n",
        "",
        "map_stop",
    ),
    Mutation(
        "a worker that is let go finds no task to be cancelled",
        "_results.py",
        "        future = futures[-1]\n",
        "        futures.rotate(-1)\n        future = futures[-1]\n",
        "map_stop",
    ),
    Mutation(
        "a future without stop is cancelled",
        "_results.py",
        "isinstance(future, TaskFuture)",
        "future",
        "map_stop",
    ),
    Mutation(
        "a chunk that is stopped makes no more calls",
        "_chunks.py",
        "            elif task._sidecar is not None:",
        "            elif False:",
        "map_stop",
    ),
    # -- Dask
    Mutation(
        "an error that refuses attributes travels", "dask/wire.py", "[_with_traceback, _Bare]", "[_with_traceback]", "dask_wire"
    ),
    Mutation(
        "an error that cannot be shown is told of",
        "dask/wire.py",
        "{safe_str(error)} (stands in",
        "{error} (stands in",
        "dask_wire",
    ),
    Mutation(
        "a task's SystemExit ends no event loop",
        "dask/worker_side.py",
        "    except BaseException as error:\n        return dumps_error(error, call.results)",
        "    except Exception as error:\n        return dumps_error(error, call.results)",
        "dask_wire",
    ),
    Mutation(
        "an interrupted submit leaves nothing to wait for",
        "dask/client_side.py",
        "            self._books.give_up(future)\n",
        "",
        "dask_end",
    ),
    Mutation(
        "an interrupted kill closes all the same",
        "dask/client_side.py",
        "            self._cancel_waiting(kill=True, destroy=destroy)\n        finally:",
        "            self._cancel_waiting(kill=True, destroy=destroy)\n        except LookupError:",
        "dask_end",
    ),
    Mutation(
        "a kill that is asked to destroys resources in use",
        "dask/client_side.py",
        "            if destroy:\n                await self._deployment.tell(destroy_here)\n",
        "",
        "dask_end",
    ),
    Mutation(
        "a stopped task is bound to its worker",
        "dask/scheduler_side.py",
        "                task.worker_restrictions = {address}\n",
        "",
        "dask_stop dask_chaos",
    ),
    Mutation(
        "a stopped task whose worker is gone is given up",
        "dask/scheduler_side.py",
        "            self._scheduler.loop.add_callback(self._drop, key)",
        "            pass",
        "dask_stop",
    ),
    Mutation(
        "a task that waits at the scheduler is forgotten before it can start",
        "dask/scheduler_side.py",
        '        self._release([key for key, place in places.items() if place == "waits"])\n',
        "",
        "dask_stop",
    ),
    Mutation(
        "a task that is stopped before it comes to its worker does not run there",
        "dask/worker_side.py",
        "        if job.key in self._stopped:\n            return self._refuse(job.key)\n",
        "",
        "dask_stop",
    ),
    Mutation(
        "a stopped task does not go elsewhere when its worker ends",
        "dask/worker_side.py",
        "if self._end is not None and not stopped:",
        "if self._end is not None:",
        "dask_stop",
    ),
    Mutation(
        "a worker that does not answer is asked again",
        "dask/stops.py",
        "            await self._ask_again(futures, pause)\n            return\n",
        "            return\n",
        "dask_stop",
    ),
    Mutation(
        "a task that is not known yet is asked about again",
        "dask/stops.py",
        "            self._start(self._ask_again(unknown, pause))",
        "            pass",
        "dask_stop",
    ),
    Mutation(
        "the loss of a stopped task is a stop",
        "dask/futures.py",
        "    if not future._asked_to_stop:\n        return lost\n",
        "    return lost\n",
        "dask_stop",
    ),
    Mutation(
        "a dropped executor on a cluster lives until its tasks are done",
        "dask/books.py",
        "self._futures[future] = executor",
        "self._futures[future] = None",
        "dask_futures",
    ),
    # -- what a resource is: factories, scopes, resets, refresh
    Mutation(
        "a method that a factory does not override is not called",
        "_engine/hooks.py",
        "methods[name] = None if inherited else method",
        "methods[name] = method",
        "factory",
    ),
    Mutation(
        "an instance may override a method for itself",
        "_engine/hooks.py",
        "        method = getattr(factory, name)",
        "        method = getattr(type(factory), name).__get__(factory)",
        "factory",
    ),
    Mutation(
        "a factory without create is refused",
        "_engine/hooks.py",
        '            if name == "create":\n                raise',
        '            if name == "created":\n                raise',
        "factory",
    ),
    Mutation(
        "a factory and a hook exclude each other",
        "_engine/hooks.py",
        "            if value is not None:\n                raise ValueError(\n",
        "            if value is hooks:\n                raise ValueError(\n",
        "factory",
    ),
    Mutation(
        "the class of a factory is no factory",
        "_engine/hooks.py",
        "    if _is_subclass(resource, ResourceFactory):",
        "    if _is_subclass(resource, int):",
        "factory",
    ),
    Mutation(
        "an instance of a context manager is no factory",
        "_engine/hooks.py",
        "    if not_a_resource(resource) or not callable(resource):",
        "    if not callable(resource):",
        "factory",
    ),
    Mutation(
        "a function with contextmanager around it passes its arguments on",
        "_engine/hooks.py",
        "follow_wrapped=passes_on",
        "follow_wrapped=False",
        "factory",
    ),
    Mutation(
        "the arguments of a wrapper count, not those of the function inside",
        "_engine/hooks.py",
        "follow_wrapped=passes_on",
        "follow_wrapped=True",
        "hooks",
    ),
    Mutation(
        "a hook that does not fit its arguments is refused",
        "_engine/hooks.py",
        "        signature.bind(*[None] * count)",
        "        signature.bind_partial()",
        "hooks",
    ),
    Mutation(
        "a judge gets two arguments",
        "_engine/hooks.py",
        '{"create": 0, "judge": 2}',
        '{"create": 0}',
        "hooks factory",
    ),
    Mutation(
        "an exception is no hook",
        "_engine/hooks.py",
        "    if _is_subclass(hook, BaseException):",
        "    if _is_subclass(hook, ResourceFactory):",
        "hooks",
    ),
    Mutation(
        "an async generator is no hook",
        "_engine/hooks.py",
        "_is_function(hook, iscoroutinefunction, isasyncgenfunction)",
        "_is_function(hook, iscoroutinefunction)",
        "hooks",
    ),
    Mutation(
        "an object whose call is async is no hook",
        "_engine/hooks.py",
        "    functions = hook, getattr(",
        "    functions = hook, hook or getattr(",
        "hooks",
    ),
    Mutation(
        "a generator function is no hook",
        "_engine/hooks.py",
        "    if _is_function(hook, isgeneratorfunction):",
        "    if _is_function(hook):",
        "hooks",
    ),
    Mutation(
        "a mock of a function is a hook",
        "_engine/hooks.py",
        "    except TypeError:  # a mock",
        "    except LookupError:  # a mock",
        "hooks",
    ),
    Mutation(
        "a generator is no resource",
        "_engine/hooks.py",
        "    if isinstance(made, Generator):",
        "    if isinstance(made, type(None)):",
        "hooks",
    ),
    Mutation(
        "a coroutine is no resource",
        "_engine/hooks.py",
        "    if isinstance(made, Coroutine | AsyncGenerator):",
        "    if isinstance(made, AsyncGenerator):",
        "hooks",
    ),
    Mutation(
        "a context manager of contextlib is no resource, an open stack is one",
        "_engine/hooks.py",
        "and not isinstance(made, ExitStack)",
        "",
        "hooks",
    ),
    Mutation(
        "a coroutine that is refused is closed",
        "_engine/resources.py",
        "            made.close()  # it has not begun",
        "            made.send  # it has not begun",
        "hooks",
    ),
    Mutation(
        "a function cannot be the prefix of names",
        "_engine/settings.py",
        "        if callable(thread_name_prefix):",
        "        if thread_name_prefix is cls:",
        "hooks",
    ),
    Mutation(
        "on_full needs a bound",
        "_engine/settings.py",
        """        if on_full != "block" and max_queued is None:""",
        """        if on_full == "never" and max_queued is None:""",
        "hooks",
    ),
    Mutation(
        "a thread leaves the context manager that it has entered",
        "factory.py",
        "if thread == get_ident()), -1)",
        "if not thread), -1)",
        "factory",
    ),
    Mutation(
        "any thread may leave a context manager in the end",
        "factory.py",
        "if thread == get_ident()), -1)",
        "if thread == get_ident()))",
        "factory",
    ),
    Mutation(
        "a context manager is forgotten when it is left",
        "factory.py",
        "                del self._entered[id(resource)]",
        "                pass",
        "factory",
    ),
    Mutation(
        "a context manager that returns no resource is left",
        "factory.py",
        "            if resource is None:",
        "            if resource is self:",
        "factory",
    ),
    Mutation(
        "a function that returns no context manager is a mistake, and no outage",
        "factory.py",
        """            raise NoResource(
                f"resource={self._make!r} returned""",
        """            raise TypeError(
                f"resource={self._make!r} returned""",
        "factory",
    ),
    Mutation(
        "what check_health answers is a verdict",
        "_engine/resources.py",
        "            verdict = Verdict.OWN if verdict else Verdict.BROKEN",
        "            verdict = Verdict.BROKEN if verdict else Verdict.OWN",
        "factory",
    ),
    Mutation(
        "a judge of a factory answers with verdicts alone",
        "_engine/resources.py",
        "        if alone and isinstance(verdict, bool):",
        "        if isinstance(verdict, bool):",
        "factory",
    ),
    Mutation(
        "each mistake of a hook is logged once",
        "_engine/resources.py",
        "            self._mistakes.add(hook)",
        "            self._mistakes.discard(hook)",
        "hooks",
    ),
    Mutation(
        "a check that returns None says yes",
        "_engine/resources.py",
        "passed = answer is None or bool(answer)",
        "passed = bool(answer)",
        "hooks",
    ),
    Mutation(
        "a scope is entered for a task of run_now, too",
        "_engine/reserve.py",
        "                            if around is not None:",
        "                            if around is self:",
        "scope",
    ),
    Mutation(
        "what a scope yields takes the place of the resource",
        "_engine/holding.py",
        "return self.resource if self.scope is None else self.scope",
        "return self.resource",
        "scope",
    ),
    Mutation(
        "what a scope yields may be false",
        "_engine/holding.py",
        "return self.resource if self.scope is None else self.scope",
        "return self.scope or self.resource",
        "scope",
    ),
    Mutation(
        "what a scope yielded ends with its task",
        "_engine/invoke.py",
        "        holding.scope = scope = None",
        "        scope = None",
        "scope",
    ),
    Mutation(
        "the frame of a scope lets go of the call",
        "_engine/invoke.py",
        "        del call, args\n\n\n#: The functions",
        "        pass\n\n\n#: The functions",
        "scope",
    ),
    Mutation(
        "the frame of a scope lets go of what it yielded",
        "_engine/invoke.py",
        "        holding.scope = scope = None",
        "        holding.scope = None",
        "scope",
    ),
    Mutation(
        "a scope runs in the context of its task",
        "_engine/worker.py",
        "scoped = call if task._context is None else task._context.copy().run",
        "scoped = call",
        "scope",
    ),
    Mutation(
        "each attempt in a scope has a fresh context",
        "_engine/worker.py",
        "scoped = call if task._context is None else task._context.copy().run",
        "scoped = call if task._context is None else task._context.run",
        "scope",
    ),
    Mutation(
        "the worker lets go of the context of a scope",
        "_engine/worker.py",
        "                    context = scoped = None",
        "                    context = None",
        "scope",
    ),
    Mutation(
        "the traceback of a task in a scope shows no frame of ours",
        "_engine/worker.py",
        "error = drop_frame(raised) if around is None else drop_scope(raised)",
        "error = drop_frame(raised)",
        "scope",
    ),
    Mutation(
        "the note of a missing argument sees through a scope",
        "_engine/invoke.py",
        "    while trace is not None and trace.tb_frame.f_code in CALLERS:",
        "    while False:",
        "hooks",
    ),
    Mutation(
        "the error of a scope has no note of a missing argument",
        "_engine/invoke.py",
        "    if trace is None and called and type",
        "    if trace is None and type",
        "scope",
    ),
    Mutation(
        "an error from inside of a task has no note of a missing argument",
        "_engine/invoke.py",
        "    if trace is None and called and type",
        "    if called and type",
        "hooks",
    ),
    Mutation(
        "a worker cleans its resource after a task",
        "_engine/attempt.py",
        "        holding.used = source.hooks.reset is not None",
        "        holding.used = False",
        "scope",
    ),
    Mutation(
        "a worker cleans its resource before it rests",
        "_engine/attempt.py",
        "        return holding.used or",
        "        return",
        "scope",
    ),
    Mutation(
        "a worker cleans its resource before it rests, at the end of a shift, too",
        "_engine/worker.py",
        "                if careful and (unfit := care.unfit(self.holding, ())) is not None:",
        "                if False and (unfit := care.unfit(self.holding, ())) is not None:",
        "scope",
    ),
    Mutation(
        "a resource is cleaned once after a task",
        "_engine/resources.py",
        "        holding.used = False\n        return None",
        "        return None",
        "scope",
    ),
    Mutation(
        "a resource that is used up is not cleaned",
        "_engine/care.py",
        "        if holding.used and not source.used_up(holding):",
        "        if holding.used:",
        "scope",
    ),
    Mutation(
        "a resource of the reserve that is used up is not cleaned",
        "_engine/stock.py",
        "        if source.used_up(holding) or holding.epoch != source.epoch:",
        "        if holding.epoch != source.epoch:",
        "scope",
    ),
    Mutation(
        "a temporary resource is not cleaned",
        "_engine/reserve.py",
        "broken = broken or (holding.kept and not self._stock.is_good(holding))",
        "broken = broken or not self._stock.is_good(holding)",
        "scope",
    ),
    Mutation(
        "a resource that cannot be cleaned is replaced",
        "_engine/care.py",
        "                self.broken_by = error\n                return End.BROKEN\n            waiting",
        "                self.broken_by = error\n            waiting",
        "scope",
    ),
    Mutation(
        "the end of a worker whose resource cannot be cleaned tells the error",
        "_engine/care.py",
        "                self.broken_by = error\n                return End.BROKEN\n            waiting",
        "                return End.BROKEN\n            waiting",
        "scope",
    ),
    Mutation(
        "a resource that cannot be cleaned puts the others in doubt",
        "_engine/resources.py",
        "            self.note_broken(holding)\n            return drop_frame(error)",
        "            return drop_frame(error)",
        "scope",
    ),
    Mutation(
        "the time of a reset is no time of the next task",
        "_engine/worker.py",
        "                        return unfit\n                    start = clock()",
        "                        return unfit",
        "scope",
    ),
    Mutation(
        "what a killer destroys, or a parent owns, is not cleaned",
        "_engine/resources.py",
        "not holding.used or holding.out_of_reach",
        "not holding.used",
        "scope",
    ),
    Mutation(
        "what a killer destroys, or a parent owns, is not checked",
        "_engine/resources.py",
        "        if check is None or holding.out_of_reach:",
        "        if check is None:",
        "scope",
    ),
    Mutation(
        "hooks of the reserve are called outside of a task: reset and check",
        "_engine/stock.py",
        "        before, here.holder = here.holder, self._outside\n        try:\n            return self.is_clean",
        "        before = here.holder\n        try:\n            return self.is_clean",
        "scope",
    ),
    Mutation(
        "hooks of the reserve are called outside of a task: destroy",
        "_engine/stock.py",
        "        before, here.holder = here.holder, self._outside\n        try:\n            self._source.destroy",
        "        before = here.holder\n        try:\n            self._source.destroy",
        "refresh scope",
    ),
    Mutation(
        "hooks of the reserve are called outside of a task: check before a call",
        "_engine/stock.py",
        "        before, here.holder = here.holder, self._outside\n        try:\n            while True:",
        "        before = here.holder\n        try:\n            while True:",
        "scope",
    ),
    Mutation(
        "hooks of the reserve are called outside of a task: create",
        "_engine/stock.py",
        "        before, here.holder = here.holder, self._outside\n        try:\n            self._source.create",
        "        before = here.holder\n        try:\n            self._source.create",
        "refresh",
    ),
    Mutation(
        "the epoch of a resource is that of the beginning of its making",
        "_engine/resources.py",
        "holding = Holding(made[0], self._expiry(), good_at, epoch)",
        "holding = Holding(made[0], self._expiry(), good_at, self.epoch)",
        "refresh",
    ),
    Mutation(
        "idle workers are woken for a refresh",
        "_engine/crew.py",
        "            self.leave[:] = [None]\n            self._idle.wake_all()\n\n    def want",
        "            self.leave[:] = [None]\n\n    def want",
        "refresh",
    ),
    Mutation(
        "workers ask whether they are to leave after a refresh",
        "_engine/crew.py",
        "            self.leave[:] = [None]\n            self._idle.wake_all()\n\n    def want",
        "            self._idle.wake_all()\n\n    def want",
        "refresh",
    ),
    Mutation(
        "a worker whose resource is stale leaves",
        "_engine/crew.py",
        "            if self._is_stale(worker):",
        "            if self._is_stale(worker) and not worker.holding:",
        "refresh",
    ),
    Mutation(
        "the flag stays up while a resource is stale",
        "_engine/crew.py",
        "                if not any(map(self._is_stale, self.roster.workers.copy())):",
        "                if True:",
        "refresh",
    ),
    Mutation(
        "the flag comes down when all resources are new",
        "_engine/crew.py",
        "                    self.leave.clear()",
        "                    pass",
        "refresh",
    ),
    Mutation(
        "a careful worker looks at the epoch, too",
        "_engine/resources.py",
        "        if holding.epoch != self.epoch:\n            return End.REFRESHED",
        "        if False:\n            return End.REFRESHED",
        "refresh",
    ),
    Mutation(
        "the free resources of the reserve are replaced at once",
        "_engine/reserve.py",
        "                    stale = holding.epoch != self._source.epoch",
        "                    stale = False",
        "refresh",
    ),
    Mutation(
        "the reserve is full after a refresh",
        "_engine/reserve.py",
        "            while not (failing or self._closed) and self._stock.is_short():",
        "            while False:",
        "refresh",
    ),
    Mutation(
        "each free resource of the reserve is replaced before the next is destroyed",
        "_engine/reserve.py",
        "                    failing = failing or self._closed or not self._stock.refill()",
        "                    pass",
        "refresh",
    ),
    Mutation(
        "a refresh during an outage tries the factory once",
        "_engine/reserve.py",
        "                    failing = failing or self._closed or not self._stock.refill()",
        "                    failing = self._closed or not self._stock.refill()",
        "refresh",
    ),
    Mutation(
        "calls fill a reserve of which one call has found several unfit",
        "_engine/stock.py",
        "                        self.short = True  # this call",
        "                        pass  # this call",
        "refresh",
    ),
    Mutation(
        "a call fills a reserve that could not be filled",
        "_engine/stock.py",
        "            self.short = True\n            return False",
        "            return False",
        "refresh",
    ),
    Mutation(
        "a call that is under way during a refresh leaves no stale resource",
        "_engine/reserve.py",
        "                        if self._care:  # refreshed",
        "                        if False:  # refreshed",
        "refresh",
    ),
    Mutation(
        "a call under care looks at the epoch",
        "_engine/stock.py",
        "        if source.used_up(holding) or holding.epoch != source.epoch:",
        "        if source.used_up(holding):",
        "refresh",
    ),
    Mutation(
        "a slot is free once the resource of its worker is destroyed",
        "_engine/roster.py",
        "worker.index for worker in self.workers.copy() | self.written_off.copy()}",
        "worker.index for worker in self.workers.copy() if worker.holding}",
        "refresh",
    ),
    Mutation(
        "the lowest free slot is taken",
        "_engine/roster.py",
        "min(set(range(len(used) + 1)) - used)",
        "max(used, default=-1) + 1",
        "refresh",
    ),
    # -- drivers: what a stop must not leave behind
    Mutation(
        "a cancel request that may come late costs the connection",
        "resources/psycopg.py",
        "        except driver.Error:\n            break",
        "        except driver.Error:\n            return",
        "resources_psycopg",
    ),
    Mutation(
        "a cancel request that came too early is sent again",
        "resources/psycopg.py",
        "        if clock() >= deadline:\n            break\n        patience",
        "        break\n        patience",
        "resources_psycopg",
    ),
    Mutation(
        "a KILL QUERY that came too early is sent again",
        "resources/pymysql.py",
        "            if clock() >= deadline:\n                break",
        "            break",
        "resources_pymysql",
    ),
    Mutation(
        "a call of PyMySQL is over with its first packet",
        "resources/pymysql.py",
        "        finally:\n            self.is_waiting = False",
        "        finally:\n            pass",
        "resources_pymysql",
    ),
    Mutation(
        "a connection is lost though libpq has not looked at it",
        "resources/psycopg.py",
        "            connection.pgconn.consume_input()",
        "            pass",
        "resources_psycopg",
    ),
    Mutation(
        "SQLAlchemy's connection is lost though libpq has not looked at it",
        "resources/sqlalchemy.py",
        "        if _is_lost(connection):\n            return Verdict.BROKEN",
        "",
        "resources_sqlalchemy",
    ),
    Mutation(
        "a KILL QUERY that may come late costs the connection",
        "resources/sqlalchemy.py",
        "            connection.info[_IN_DOUBT] = True",
        "            pass",
        "resources_sqlalchemy",
    ),
    Mutation(
        "a client of Redis makes no connection after an abort",
        "resources/redis.py",
        "    if refuses.is_set():  # looked at after",
        "    if False:  # looked at after",
        "resources_redis",
    ),
    Mutation(
        "a channel that was aborted is replaced",
        "resources/pika.py",
        'vars(resource)["is_cut"] = True',
        "pass",
        "resources_pika",
    ),
    Mutation(
        "an abort finds the socket while it connects",
        "resources/http.py",
        "            sock = self._last = socket.socket(",
        "            sock = socket.socket(",
        "resources_http",
    ),
    Mutation(
        "an abort finds the socket of a TLS handshake",
        "resources/http.py",
        "do_handshake_on_connect=False",
        "do_handshake_on_connect=True",
        "resources_http",
    ),
    # -- stories in which two parts meet
    Mutation(
        "a worker that is late makes no other one too many",
        "_engine/roster.py",
        "self.limit() + sum(worker.late for worker in staying)",
        "self.limit()",
        "crew",
    ),
    Mutation(
        "a submitter whose thread is refused looks after tasks that relied on it",
        "_engine/core.py",
        "task._settle(WITHDRAWN):\n                self.wake_if_waiting()",
        "task._settle(WITHDRAWN):\n                pass",
        "threads",
    ),
    Mutation(
        "a thread that cannot start a worker has the timer try again",
        "_engine/crew.py",
        "        self._timer.start_if_wanted()\n        logger.error(",
        "        logger.error(",
        "threads",
    ),
    Mutation(
        "the timer watches an initializer, too",
        "_engine/worker.py",
        "            place.timer.start_if_wanted()",
        "            pass",
        "recovery",
    ),
    Mutation(
        "no executor closes while it fails tasks",
        "_engine/ending.py",
        "if self._failing or timer",
        "if timer",
        "ending",
    ),
    Mutation(
        "observers hear of a task whose callback outlasts the executor",
        "_engine/task.py",
        "(tell or self._lane.on_settled)(self)",
        "self._lane.on_settled(self)",
        "ending",
    ),
    Mutation(
        "the error of an attempt is in no cycle with the frame of the loop",
        "_engine/worker.py",
        "                    value, error = NOTHING, None\n                    if",
        "                    value = NOTHING\n                    if",
        "drop",
    ),
    Mutation(
        "the error of an attempt is in no cycle with the frame of a worker's life",
        "_engine/worker.py",
        "            del cause",
        "            pass",
        "drop",
    ),
    Mutation(
        "the error of on_create is in no cycle with the frame of a worker's life",
        "_engine/worker.py",
        "                del error",
        "                pass",
        "drop",
    ),
    Mutation(
        "what a settled task held goes under no lock",
        "_engine/task.py",
        "dropped = self._result, self._exception, self._context",
        "dropped = None",
        "drop",
    ),
]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def make_copy() -> Path:
    place = Path(tempfile.mkdtemp(prefix="mutations-"))
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)
    for file, (name, seconds) in SHORTER.items():
        path = place / "tests" / file
        path.write_text(re.sub(rf"^{name} = [\d.]+", f"{name} = {seconds}", path.read_text(), count=1, flags=re.MULTILINE))
    return place


def environment(place: Path) -> dict[str, str]:
    # No compiled files: they are told from stale ones by the second, and a mutation may be undone within one.
    return {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}


def run_tests(place: Path, paths: list[str], *options: str, timeout: float = GIVEN_UP_AFTER) -> tuple[bool, list[str]]:
    """Run test files in the copy. Returns whether they passed, and the tests that failed (none: it did not start)."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", *options, *paths]
    command += ["-o", f"faulthandler_timeout={HANGS_AFTER}"]
    process = subprocess.Popen(
        command,
        cwd=place,
        env=environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False, ["(the run hangs)"]
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, flags=re.MULTILINE)
    hanging = re.findall(r'tests/(test_\w+\.py)", line \d+ in (test_\w+)$', output, flags=re.MULTILINE)
    return process.returncode == 0, failed + [f"{file}::{test} (hangs)" for file, test in hanging]


def attempt(place: Path, mutation: Mutation, deselect: list[str]) -> str:
    """Which test noticed?"""
    path = place / "tasker_executor" / mutation.file
    intact = path.read_text()
    times = intact.count(mutation.old)
    if times != 1:
        return f"TEXT FOUND {times} TIMES"
    path.write_text(intact.replace(mutation.old, mutation.new))
    try:
        passed, failed = run_tests(place, mutation.paths, "-x", *deselect)
    finally:
        path.write_text(intact)
    if passed:
        return "SURVIVED"
    return failed[0].removeprefix("tests/") if failed else "(the run does not start, or ends at once)"


def check_import(place: Path) -> None:
    """Raise unless the tests would import the copy."""
    command = [sys.executable, "-c", "import tasker_executor; print(tasker_executor.__file__)"]
    imported = subprocess.run(command, cwd=place, env=environment(place), capture_output=True, text=True, check=True).stdout
    if not imported.startswith(str(place)):
        raise RuntimeError(f"the tests would import {imported.strip()} instead of the copy")


def main(words: list[str]) -> int:
    def is_chosen(mutation: Mutation) -> bool:
        return not words or any(word in f"{mutation.claim} {mutation.file} {mutation.tests}" for word in words)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore Ctrl-C
    chosen = [mutation for mutation in MUTATIONS if is_chosen(mutation)]
    begun = time.monotonic()
    with ResourceExecutor(JOBS, on_create=make_copy, on_destroy=shutil.rmtree) as copies:
        copies.submit(check_import).result()
        every_path = sorted({path for mutation in chosen for path in mutation.paths})
        passed, failing = copies.submit(run_tests, every_path, timeout=10 * GIVEN_UP_AFTER).result()
        if not passed:
            say(f"These fail without any mutation, and are left out: {', '.join(failing) or '(no test ran)'}")
            if not failing:
                return 1
        deselect = [f"--deselect={test}" for test in failing]

        say(f"{'file':<16} {'what it does no longer':<80} noticed by")
        verdicts: list[str] = []
        for mutation, verdict in zip(chosen, copies.map(partial(attempt, deselect=deselect), chosen), strict=True):
            say(f"{mutation.file:<16} {mutation.claim:<80} {verdict}")
            verdicts.append(verdict)
    survived = verdicts.count("SURVIVED")
    lost = sum(verdict.startswith("TEXT FOUND") for verdict in verdicts)
    noticed = len(chosen) - survived - lost
    seconds = time.monotonic() - begun
    say(f"{len(chosen)} mutations: {noticed} noticed, {survived} survived, {lost} not found; {seconds:.0f} s")
    return 1 if survived or lost or failing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
