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
SHORTER = {"../tasker_executor/testing.py": ("DEADLINE", 5.0), "conftest.py": ("THREADS_END_WITHIN", 2.0)}
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
        "_worker.py",
        "core.source.destroy(holding, self.name)",
        "core.source.can_break",
        "resources",
    ),
    Mutation("the priority lane goes first", "_worker.py", "if high:", "if high and not low:", "lanes"),
    Mutation(
        "a worker that registers as idle looks at the lanes again",
        "_worker.py",
        "if core.lanes.look():  # registered",
        "if False:  # registered",
        "mutants",
    ),
    Mutation(
        "a worker that was popped though it needs no wake-up takes the permit",
        "_worker.py",
        "            self._take_permit()\n            self.core.wake_if_waiting()",
        "            self.core.wake_if_waiting()",
        "mutants",
    ),
    Mutation(
        "a worker that was popped though it needs no wake-up passes it on",
        "_worker.py",
        "            self.core.wake_if_waiting()",
        "            pass",
        "mutants",
    ),
    Mutation(
        "a worker that found a task of its own leaves if it was chosen to retire",
        "_worker.py",
        "        return self.told_to_leave\n",
        "        return False\n",
        "mutants",
    ),
    Mutation(
        "a worker is idle before its result can be seen",
        "_worker.py",
        "if not (low or high or last):",
        "if False:",
        "mutants",
    ),
    Mutation("a retry gets a fresh context", "_worker.py", "context = context.copy()", "context.copy()", "context"),
    Mutation("a retried task is queued again", "_worker.py", "core.requeue(future, lane)", "core.lanes.look()", "retries"),
    Mutation("retries have a limit", "_worker.py", "if sidecar.retries < limit and", "if", "retries"),
    Mutation(
        "a task may raise what is no Exception",
        "_worker.py",
        "except BaseException as raised:",
        "except Exception as raised:",
        "mutants",
    ),
    Mutation(
        "a finished task lets go of its context", "_worker.py", "                    future._context = None", "", "drop context"
    ),
    Mutation(
        "a traceback begins in the task",
        "_worker.py",
        "error.__traceback__ = error.__traceback__.tb_next",
        "pass",
        "work_item",
    ),
    Mutation(
        "a killed task is not retried", "_worker.py", "limit and core.state < State.KILLED", "limit", "kill retries mutants"
    ),
    Mutation(
        "a worker that was popped in the moment before it sleeps takes the permit",
        "_worker.py",
        "self._take_permit()  # not to be passed on",
        "pass  # not to be passed on",
        "races",
    ),
    Mutation(
        "a worker that finds the task that it was woken for wakes nobody else",
        "_worker.py",
        "self._take_permit()  # not to be passed on",
        "self._take_permit(); core.wake_if_waiting()  # not to be passed on",
        "mutants",
    ),
    Mutation(
        "a woken worker that finds more than one task wakes another",
        "_worker.py",
        "if len(low) + len(high) > 1 and core.idle_stack:",
        "if False:",
        "races",
    ),
    Mutation(
        "few workers are woken at a time",
        "_core.py",
        "return len(woken) == WAKES_AT_ONCE and all(not worker.park.locked() and worker in self.workers for worker in woken)",
        "return False",
        "races",
    ),
    Mutation(
        "a worker that died is not waited for as one that is on its way",
        "_core.py",
        "        self.worker_came()  # or will not come any more\n",
        "",
        "races",
    ),
    Mutation(
        "a submitter that counted on a worker looks whether it has come meanwhile",
        "_core.py",
        "                self.worker_came()  # one has come meanwhile, and may have missed the sign\n",
        "",
        "races",
    ),
    # -- population
    Mutation(
        "a base worker that ended gets a successor",
        "_core.py",
        "self.broken = self.broken or end is End.INITIALIZER_FAILED\n            self._populate_or_retry()",
        "self.broken = self.broken or end is End.INITIALIZER_FAILED",
        "resources go_regressions",
    ),
    Mutation(
        "there are no more workers than wanted",
        "_core.py",
        "or len(self.workers) >= self._limit()",
        "or len(self.workers) > self._limit()",
        "contract supervisor",
    ),
    Mutation(
        "a worker that is starting counts for a task that waits",
        "_core.py",
        "and waiting > self._starting():",
        "and waiting:",
        "creation supervisor mutants",
    ),
    Mutation(
        "a task that found no thread is withdrawn",
        "_core.py",
        "if not self.workers and future._settle(WITHDRAWN):",
        "if not self.workers:",
        "races",
    ),
    Mutation(
        "the facts about who leaves change under the lock",
        "_core.py",
        "with self.lock:\n            if len(self.workers) - len(self.leaving) <= self._limit():",
        "if True:\n            if len(self.workers) - len(self.leaving) <= self._limit():",
        "mutants",
    ),
    Mutation(
        "the facts about who lives change under the lock",
        "_core.py",
        "with self.lock:\n            try:\n                self._populate()",
        "if True:\n            try:\n                self._populate()",
        "mutants",
    ),
    Mutation(
        "base workers do not retire",
        "_core.py",
        "if self.state is State.RUNNING and len(self.workers) - len(self.leaving) <= self.min_workers:",
        "if self.state is State.RUNNING and len(self.workers) - len(self.leaving) < self.min_workers:",
        "mutants",
    ),
    Mutation(
        "who was idle for the longest retires first",
        "_core.py",
        "for worker in self.idle_stack[:]:  # from the bottom",
        "for worker in self.idle_stack[::-1]:",
        "supervisor",
    ),
    Mutation(
        "a retried task goes to the front of its lane",
        "_core.py",
        "lane.appendleft(future)\n        if self.state",
        "lane.append(future)\n        if self.state",
        "retries lanes",
    ),
    # -- the factory
    Mutation(
        "the pause after a failure is bounded",
        "_core.py",
        "random.uniform(0.0, longest)",
        "random.uniform(0.0, 10 * longest)",
        "creation",
    ),
    Mutation("the pause after a failure is jittered", "_core.py", "random.uniform(0.0, longest)", "longest", "creation"),
    Mutation("the pause after a failure doubles", "_core.py", "BACKOFF_FIRST * 2.0 **", "BACKOFF_FIRST * 1.0 **", "creation"),
    Mutation(
        "a resource that was made ends the row of failures",
        "_core.py",
        "recovered, self.failures = self.failures > 0, 0",
        "recovered = self.failures > 0",
        "creation",
    ),
    Mutation(
        "create_timeout counts from when the last resource went",
        "_core.py",
        "            self.bare_since = clock()",
        "            pass",
        "creation resources",
    ),
    # -- the end
    Mutation(
        "shutdown refuses new tasks",
        "_core.py",
        "            self.idle = _CLOSED",
        "            pass",
        "shutdown",
    ),
    Mutation("who is refused is told", "_core.py", "            raise self.refusal()", "            pass", "shutdown"),
    Mutation("shutdown wakes idle workers", "_core.py", "        self._wake_all()", "        pass", "shutdown"),
    Mutation("shutdown(cancel_futures=True) cancels", "_core.py", "if cancel or kill:", "if kill:", "shutdown"),
    Mutation("kill cancels what waits", "_core.py", "if cancel or kill:", "if cancel:", "kill"),
    Mutation("kill sets the tokens", "_core.py", "            self.killed.open()", "            pass", "kill"),
    Mutation("kill aborts what hangs", "_core.py", "            self._abort_running()", "            pass", "kill"),
    Mutation(
        "a task that comes back after kill is settled",
        "_core.py",
        "            self._cancel_queue()  # the killer may have looked",
        "            pass  # the killer may have looked",
        "mutants",
    ),
    Mutation("shutdown opens the door", "_core.py", "        self.admission.close()", "        pass", "admission"),
    Mutation(
        "an executor is not closed while tasks wait",
        "_core.py",
        "if self.lanes.look() and self.lanes.waiting():",
        "if False:",
        "creation shutdown mutants",
    ),
    Mutation("a dropped executor ends", "_core.py", "lambda _: self._dropped())", "lambda _: None)", "drop"),
    Mutation("the interpreter waits for the drain", "_core.py", "            core.join(None)", "            pass", "exit"),
    # -- lanes and futures
    Mutation("a tombstone counts once", "_lanes.py", "self.tombstones += 1", "self.tombstones += 2", "work_item stats"),
    Mutation("a popped tombstone counts no more", "_lanes.py", "self.tombstones -= 1", "pass", "mutants"),
    Mutation(
        "a canceller that comes too late takes its verdict back",
        "_work_item.py",
        "if self._status is not PENDING:\n                sidecar.verdict = None",
        "if False:\n                sidecar.verdict = None",
        "work_item",
    ),
    Mutation(
        "two cancellers take turns",
        "_work_item.py",
        "with sidecar:\n            if sidecar.verdict is not None or",
        "if True:\n            if sidecar.verdict is not None or",
        "work_item mutants",
    ),
    Mutation(
        "a listener looks again whether the task has finished",
        "_work_item.py",
        "(self._status is FINISHED or sidecar.verdict is not None)",
        "sidecar.verdict is not None",
        "mutants work_item",
    ),
    Mutation("wait() is told", "_work_item.py", "if sidecar.waiters:", "if False:", "work_item"),
    Mutation(
        "a task that has started once does not expire",
        "_work_item.py",
        "and not sidecar.started and clock()",
        "and clock()",
        "mutants",
    ),
    # -- waiting for a result
    Mutation("one sidecar for a future", "_work_item.py", "_first.setdefault(self, made)", "made", "work_item"),
    Mutation(
        "all who wait have a permit",
        "_work_item.py",
        "                if sidecar.permits is None:\n",
        "                if True:\n",
        "work_item handoff",
    ),
    Mutation(
        "who waits by a handoff is woken",
        "_work_item.py",
        "                handoff.give()\n            except",
        "                pass\n            except",
        "handoff",
    ),
    Mutation(
        "a handoff has one waiter",
        "_work_item.py",
        "                if self.handoff is None:",
        "                if True:",
        "handoff",
    ),
    Mutation(
        "a wake-up may be for nothing",
        "_work_item.py",
        "        while not self.published:",
        "        if not self.published:",
        "handoff",
    ),
    Mutation(
        "a final future has one condition for life",
        "_work_item.py",
        "sidecar = self._adopt(FINAL)",
        "sidecar = FINAL",
        "work_item",
    ),
    Mutation(
        "who adds a waiter publishes no end",
        "_work_item.py",
        "sidecar = self._sidecar or self._observe() or self._seal()",
        "sidecar = self._observe() or self._seal()",
        "work_item",
    ),
    Mutation(
        "a task that was settled and not told of is concluded by the next who meets it",
        "_work_item.py",
        "(self._status is FINISHED or sidecar.verdict is not None)",
        "self._status is FINISHED",
        "interrupts_futures",
    ),
    Mutation(
        "a tombstone that was not told of is concluded by the worker that pops it",
        "_work_item.py",
        "                self._conclude()  # the thread",
        "                pass  # the thread",
        "interrupts_futures",
    ),
    Mutation("a tombstone is counted once", "_lanes.py", "if not sidecar.counted:", "if True:", "interrupts_futures work_item"),
    Mutation(
        "a snapshot is a retrieval",
        "_work_item.py",
        "            self._note_retrieved()\n        return True, False",
        "            pass\n        return True, False",
        "work_item",
    ),
    Mutation(
        "a closed executor lets go of its lanes",
        "_lanes.py",
        "        self.owner = _Closed(self.owner.name)",
        "        pass",
        "work_item",
    ),
    Mutation(
        "a file of another's is not written to",
        "_handoff.py",
        "            self._check()\n            write",
        "            write",
        "handoff",
    ),
    Mutation(
        "a file of another's is not read",
        "_handoff.py",
        "            self._check()\n            read",
        "            read",
        "handoff",
    ),
    Mutation(
        "a file of another's is not closed",
        "_handoff.py",
        "                    return\n                close(",
        "                    pass\n                close(",
        "handoff",
    ),
    Mutation("a handoff is given back", "_work_item.py", "            give_back(loan)", "            pass", "handoff"),
    Mutation("a handoff leaves its future", "_work_item.py", "sidecar.handoff = None\n", "pass\n", "handoff"),
    Mutation("not in a burst", "_work_item.py", "len(self._lane) < 2 and not inside", "not inside", "handoff"),
    Mutation("a deadlock is seen", "_work_item.py", "len(self._lane) < 2 and not inside", "len(self._lane) < 2", "hangs"),
    Mutation(
        "a child's wait ends",
        "_work_item.py",
        "            sidecar.published = True\n            if sidecar.handoff",
        "            if sidecar.handoff",
        "handoff",
    ),
    Mutation(
        "a child's wait reads no other file",
        "_handoff.py",
        "        handoff.renew()",
        "        os.close(handoff._eventfd)",
        "handoff",
    ),
    Mutation(
        "a lost file ends no worker",
        "_work_item.py",
        "except HandoffLost:\n                self",
        "except KeyError:\n                self",
        "handoff",
    ),
    Mutation("a child has its own", "_handoff.py", "    _free.clear()\n", "", "handoff"),
    Mutation(
        "the time of a handoff is no task's", "_worker.py", "start = clock()  # others may", "pass  # others may", "handoff"
    ),
    # -- resources
    Mutation(
        "a resource is destroyed once",
        "_resources.py",
        "claimed.extend(islice(iter(self._claim.pop, None), 1))",
        "claimed.extend([self.arguments])",
        "abandon mutants interrupts",
    ),
    Mutation("a break puts all others under suspicion", "_resources.py", "self.breaks += 1", "pass", "resources"),
    Mutation("max_age has a bounded jitter", "_resources.py", "AGE_JITTER = 0.1", "AGE_JITTER = 0.5", "resources"),
    Mutation("None is no resource", "_resources.py", "if made[0] is None:", "if False:", "creation"),
    Mutation(
        "a check that raises says no", "_resources.py", "            passed = False", "            passed = True", "mutants"
    ),
    Mutation(
        "run_now does not keep a broken resource",
        "_resources.py",
        "        if not broken:\n            self._free.append(holding)",
        "        if True:\n            self._free.append(holding)",
        "run_now",
    ),
    Mutation(
        "a resource that Ctrl-C left behind is destroyed when the pool is closed",
        "_resources.py",
        "                self._destroy_all()\n                return True\n",
        "                return True\n",
        "interrupts",
    ),
    Mutation(
        "Ctrl-C before on_destroy leaves the resource to be destroyed",
        "_resources.py",
        "            self._claim.extend(claimed)  # Ctrl-C came before the hook was called",
        "            pass",
        "interrupts",
    ),
    Mutation(
        "temporary resources of run_now do not pile up",
        "_resources.py",
        "                        if self._untidy:\n",
        "                        if False:\n",
        "run_now",
    ),
    Mutation(
        "a constructor that fails leaves no resource behind",
        "_core.py",
        "        except BaseException:\n            self.close()\n            raise",
        "        except BaseException:\n            raise",
        "mutants",
    ),
    Mutation(
        "no resource is destroyed while it is aborted", "_resources.py", "            latch.wait()", "            pass", "kill"
    ),
    Mutation(
        "a resource that was idle for long is checked",
        "_resources.py",
        "or now - holding.last_used > self.hooks.check_after_idle",
        "",
        "resources",
    ),
    # -- the door, the clock, the books
    Mutation(
        "who waits at the door looks for a place once more",
        "_admission.py",
        "            self.refill()  # a worker may have",
        "            pass  # a worker may have",
        "admission mutants",
    ),
    Mutation("nobody overtakes at the door", "_admission.py", "if not self.blocked and self", "if self", "admission mutants"),
    Mutation(
        "a place is reserved until its task is queued",
        "_admission.py",
        "                self._reserved.add(ticket)\n                return True",
        "                return True",
        "mutants",
    ),
    Mutation(
        "a task that submits does not wait at the door",
        "_executor.py",
        "if admission.limit is None or current.owner is core:",
        "if admission.limit is None:",
        "admission",
    ),
    Mutation(
        "deadlines are kept in their own order",
        "_supervisor.py",
        "heapq.heappush(self._deadlines, (",
        "self._deadlines.append((",
        "supervisor",
    ),
    Mutation(
        "a policy that pauses is woken by the next task",
        "_supervisor.py",
        "            self.core.idle_stack.append(self._alarm)",
        "            pass",
        "supervisor",
    ),
    Mutation("what is folded is listed no more", "_recorder.py", "                    del runs[:count]", "", "stats"),
    Mutation(
        "what a worker did counts when it is gone",
        "_recorder.py",
        "            self.fold(log)\n            self._logs.discard(log)",
        "            self._logs.discard(log)",
        "stats",
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
