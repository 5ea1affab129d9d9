"""One task's life in parts: what `ThreadPoolExecutor` does for it, what `ResourceExecutor` does instead, and what each costs.

Each part is the code as it stands in the pool, or the nearest to it that can run by itself, timed in one
thread by `timeit`, the best of many repeats, less the cost of the empty loop. At the end stands the whole,
with real threads: the tasks are queued while the worker is held, so that the two threads do not fight for the
interpreter and each part can be told from the other. The whole is more than the sum: it includes the garbage
collector, memory that is no longer in the cache, and the loop itself.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import thread as standard
from contextvars import copy_context
from dataclasses import dataclass
from operator import methodcaller
from queue import SimpleQueue
from time import perf_counter
from timeit import repeat
from typing import Any

from tasker_executor import ResourceExecutor
from tasker_executor._engine.recorder import Recorder, TaskLog
from tasker_executor._engine.task import FINISHED, PENDING, RUNNING, Task
from tasker_executor._sync import clock

from .compare import nothing
from .measure import OURS, STANDARD, Scale, Table, one_cpu, times
from .scale import _waiting


@dataclass(frozen=True)
class Part:
    what: str
    statement: str
    setup: str = "pass"
    #: Done so often in one statement.
    times: int = 1


def _work_item(future: Future[Any]) -> Any:
    if sys.version_info >= (3, 14):
        return standard._WorkItem(future, (nothing, (), {}))
    return standard._WorkItem(future, nothing, (), {})


#: Whose tasks these are; it is never run.
_pool = ResourceExecutor(1)
_lane = _pool._core.lanes.normal


class _Callee:
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        pass


def _fresh() -> Task[Any]:
    future: Task[Any] = Task()
    future._status, future._sidecar, future._result, future._exception = PENDING, None, nothing, ()
    future._context, future._submitted, future._lane = None, clock(), _lane
    return future


def _done() -> Task[Any]:
    future = _fresh()
    future._finish(None, None)
    return future


def _done_standard() -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(None)
    return future


_NUMBER = 2000  # of statements in one measurement

_MANY = "futures = iter([Future() for _ in range(N)])"

STANDARD_PARTS = {
    "submit": [
        Part("the call of submit, with any arguments", "call(nothing)", "call = Callee().submit"),
        Part(
            "lock the pool and the module",
            "with one, two: pass",
            "one = Lock(); two = global_lock",
        ),
        Part("make the future", "Future()"),
        Part("  of which its Condition", "Condition()"),
        Part("make the work item", "work_item(future)", "future = Future()"),
        Part("queue it", "put(1)", "put = SimpleQueue().put"),
        Part("ask for an idle worker; there is none", "acquire(timeout=0)", "acquire = Semaphore(0).acquire"),
    ],
    "run": [
        Part("take it from the queue", "get(block=True)", "q = SimpleQueue(); [q.put(1) for _ in range(N)]; get = q.get"),
        Part(
            "mark it as running", "next(futures).set_running_or_notify_cancel()", "futures = iter([Future() for _ in range(N)])"
        ),
        Part("call the function", "fn(*args, **kwargs)", "fn = nothing; args = (); kwargs = {}"),
        Part("store the result, notify", "next(futures).set_result(None)", _MANY),
    ],
    "result": [Part("result() of a future that is done", "result()", "result = done_standard().result")],
}

OUR_PARTS = {
    "submit": [
        Part("the call of submit, with any arguments", "call(nothing)", "call = Callee().submit"),
        Part("make the future, which is the work item", "Task()"),
        Part(
            "fill its seven slots",
            "f._status = PENDING; f._sidecar = None; f._result = nothing; f._exception = (); f._context = None; "
            "f._lane = None; f._submitted = 0.0",
            "f = Task()",
        ),
        Part("copy the context (propagate_context=True)", "copy_context()"),
        Part("note when", "clock()"),
        Part("queue it", "append(1)", "append = deque().append"),
        Part("is a worker idle? there is none", "if executor._core.idle.line: pass", "executor = EXECUTOR"),
    ],
    "run": [
        Part(
            "look into both lanes, take it",
            "if high: pass\nelif low: popped = pop()",
            "high = deque(); low = deque(range(N)); pop = low.popleft",
        ),
        Part(
            "mark it as running; has it been cancelled?",
            "f._status = RUNNING\nif f._sidecar is not None: pass\nw.since = 0.0; w.item = f",
            "f = fresh(); w = Worker()",
        ),
        Part("call the function", "fn(*(prefix + args))", "fn = nothing; prefix = (); args = ()"),
        Part(
            "  more, to call it in its context",
            "run(fn, *(prefix + args))",
            "fn = nothing; prefix = (); args = (); run = copy_context().run",
        ),
        Part("note when it ended", "clock()"),
        Part(
            "log how long it waited and ran",
            "w.item = None; waits(start - f._submitted); runs(end - start)",
            "f = fresh(); w = Worker(); waits = [].append; runs = [].append; start = clock(); end = clock()",
        ),
        Part("its share of folding 512 of them into the histograms", "", times=512),
        Part(
            "does more wait, or shall I call myself idle?",
            "if not (high or low or last): pass",
            "high = (); low = (1,); last = 0",
        ),
        Part(
            "store the result; does anybody wait?",
            "f._result = None; f._exception = None; f._context = None; f._status = FINISHED\nif f._sidecar is not None: pass",
            "f = fresh()",
        ),
    ],
    "result": [Part("result() of a future that is done", "result()", "result = done().result")],
}

#: What most tasks of a burst do not meet.
RARE = {
    "ThreadPoolExecutor": [
        Part(
            "a worker becomes idle, and is found idle",
            "release(); acquire(timeout=0)",
            "s = Semaphore(0); release = s.release; acquire = s.acquire",
        ),
    ],
    "ResourceExecutor": [
        Part(
            "a worker becomes idle, is popped, is woken",
            "push(w); next(wakes); take()",
            "w = Lock(); w.acquire(); stack = []; push = stack.append; take = w.acquire; "
            "wakes = map(methodcaller('release'), iter(stack.pop, None))",
        ),
        Part(
            "a thread listens: make a sidecar, publish through it",
            "f = next(futures); f._observe(); f._finish(None, None)",
            "futures = iter([fresh() for _ in range(N)])",
        ),
    ],
}

#: What the statements speak of.
_NAMES: dict[str, Any] = {
    "Callee": _Callee,
    "Condition": threading.Condition,
    "FINISHED": FINISHED,
    "Future": Future,
    "Lock": threading.Lock,
    "N": _NUMBER,
    "PENDING": PENDING,
    "RUNNING": RUNNING,
    "Semaphore": threading.Semaphore,
    "SimpleQueue": SimpleQueue,
    "Task": Task,
    "Worker": type("Worker", (), {}),
    "clock": clock,
    "copy_context": copy_context,
    "deque": deque,
    "done": _done,
    "done_standard": _done_standard,
    "fresh": _fresh,
    "global_lock": standard._global_shutdown_lock,
    "methodcaller": methodcaller,
    "nothing": nothing,
    "work_item": _work_item,
}


def _time(part: Part, names: dict[str, Any], repeats: int) -> float:
    if part.times > 1:
        return _time_folding(part.times, repeats)
    empty = min(repeat("pass", number=_NUMBER, repeat=repeats))
    spent = min(repeat(part.statement, part.setup, number=_NUMBER, repeat=repeats, globals=names))
    if "next(futures)" in part.statement:
        empty = min(repeat("next(i)", f"i = iter(range({_NUMBER}))", number=_NUMBER, repeat=repeats))
    return max(spent - empty, 0.0) / _NUMBER


def _time_folding(entries: int, repeats: int) -> float:
    recorder = Recorder()
    log = TaskLog()
    recorder.add_log(log)
    waits, runs = next(iter(log.entries.values()))
    best = float("inf")
    for _ in range(repeats * 3):
        waits += [0.001 + number * 1e-6 for number in range(entries)]
        runs += [1e-6 + number * 1e-9 for number in range(entries)]
        begun = perf_counter()
        recorder.fold(log)
        best = min(best, perf_counter() - begun)
    return best / entries


def _switch(rounds: int = 2000) -> float:
    """One thread wakes another, and back: half of that. No pool can do with less."""
    ping, pong = threading.Lock(), threading.Lock()
    ping.acquire()
    pong.acquire()

    def answer() -> None:
        for _ in range(rounds):
            ping.acquire()
            pong.release()

    thread = threading.Thread(target=answer)
    thread.start()
    begun = perf_counter()
    for _ in range(rounds):
        ping.release()
        pong.acquire()
    spent = perf_counter() - begun
    thread.join()
    return spent / rounds / 2


def profile(repeats: int, tasks: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with ResourceExecutor(1) as executor, one_cpu():
        names = {**_NAMES, "EXECUTOR": executor}
        for pool, parts in ((STANDARD, STANDARD_PARTS), (OURS, OUR_PARTS)):
            stages: dict[str, Any] = {
                stage: [(part.what, _time(part, names, repeats)) for part in those] for stage, those in parts.items()
            }
            for number, (what, cost) in enumerate(stages["run"]):
                if what.startswith("  more"):  # in place of the plain call above it
                    stages["run"][number] = (what, max(cost - stages["run"][number - 1][1], 0.0))
            stages["rare"] = [(part.what, _time(part, names, repeats)) for part in RARE[pool.name]]
            whole = [_waiting(pool, min(tasks, 5_000)) for _ in range(repeats)]
            stages["whole"] = min(w[0] for w in whole), min(w[1] for w in whole)
            found[pool.name] = stages
        found["switch"] = min(_switch() for _ in range(5))
    return found


def run(scale: Scale) -> dict[str, Any]:
    return profile(5 if scale.quick else 20, scale.tasks)


def _show(stages: dict[str, Any], name: str, base: float) -> Table:
    """Each part in percent of the whole life of a task in the standard library."""

    def percent(cost: float) -> str:
        return f"{cost / base:.1%}"

    rows: list[list[str]] = []
    total = 0.0
    for stage in ("submit", "run", "result"):
        for what, cost in stages[stage]:
            included = "of which" in what
            total += 0.0 if included else cost
            rows.append([stage, what.strip(), f"({percent(cost)})" if included else percent(cost)])
    submitting, running = stages["whole"]
    rows.append(["sum", "of these parts", percent(total)])
    rows.append(["whole", "submit, with real threads", percent(submitting)])
    rows.append(["whole", "run and result, with real threads", percent(running)])
    rows += [["if", what, percent(cost)] for what, cost in stages["rare"]]
    return Table(["where", f"{name} (a task without arguments)", "cost"], rows)


def tables(found: dict[str, Any]) -> dict[str, Table]:
    base = sum(found[STANDARD.name]["whole"])
    made = {name: _show(found[name], name, base) for name in (STANDARD.name, OURS.name)}
    made["switch"] = Table(
        ["waking another thread on the same CPU", "times as much"],
        [
            [f"as a whole task of {name}", times(found["switch"] / sum(found[name]["whole"]))]
            for name in (STANDARD.name, OURS.name)
        ],
    )
    return made
