"""The table of what happens after a task, each cell on each kind of executor; and that a retry meets no stale resource.

The table stands in ``tasker_executor/factory.py``. A spy notes down what the engine does, in order: all kinds of executors
must leave the same notes.
"""

from __future__ import annotations

import contextvars
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
from typing_extensions import override

from dask_support import FOREIGN_THREADS, Ref
from engine import Care
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, ResourceBroken, eventually
from tasker_executor import Observer, ResourceExecutor, ResourceFactory, TaskEvent, Verdict, current_task
from tasker_executor._base import BaseExecutor
from tasker_executor.testing import InlineExecutor

Door = BaseExecutor[Any]
Log = list[tuple[str, int]]


# -- errors, and what a judge thinks of them


class Own(Exception):
    """The task's own error."""


class Again(Exception):
    """The task may well succeed now."""


class Broken(Exception):
    """The resource is broken."""


def judge(error: Exception, resource: FakeResource) -> Verdict:
    if isinstance(error, Again):
        return Verdict.AGAIN
    return Verdict.BROKEN if isinstance(error, Broken | ResourceBroken) else Verdict.OWN


def say_yes(resource: FakeResource) -> bool:
    return True


def say_no(resource: FakeResource) -> bool:
    return False


def say_nothing(*_: object) -> Any:
    return None


def refuse(*_: object) -> Any:
    raise LookupError("from a hook")


def _answering(answer: object) -> Callable[..., Any]:
    """A hook that always gives this answer."""

    def hook(*_: object) -> object:
        return answer

    return hook


def is_good(resource: FakeResource) -> bool:
    return not resource.broken


# -- a factory that takes notes


class Spy(ResourceFactory[FakeResource]):
    """Notes what the engine asks of it, and of which resource. It overrides the methods that it is given, and no others.

    It pickles as a reference to itself, so the Dask workers of this process share its notes.
    """

    def __init__(self, ledger: Ledger, **methods: Callable[..., Any]) -> None:
        self.ledger = ledger
        self.log: Log = []
        for name, method in methods.items():
            vars(self)[name] = partial(self._noted, name, method)
        _spies[id(self)] = self

    def __reduce__(self) -> Any:
        return _find_spy, (id(self),)

    def _noted(self, name: str, method: Callable[..., Any], *args: Any) -> Any:
        self.log.append((name, args[-1].number))
        return method(*args)

    @override
    def create(self) -> FakeResource:
        resource = self.ledger.create()
        self.log.append(("create", resource.number))
        return resource

    @override
    def destroy(self, resource: FakeResource) -> None:
        self.log.append(("destroy", resource.number))
        self.ledger.destroy(resource)


_spies: dict[int, Spy] = {}


def _find_spy(number: int) -> Spy:
    return _spies[number]


class Run(NamedTuple):
    """What a task saw in one attempt."""

    resource: int
    attempt: int
    thread: int


class Failing:
    """A task that raises one of these errors in each attempt, and then returns the number of its resource."""

    def __init__(self, spy: Spy, *errors: BaseException) -> None:
        self.spy = spy
        self.errors = list(errors)
        self.runs: list[Run] = []

    def __call__(self, resource: FakeResource) -> int:
        self.spy.log.append(("task", resource.use()))
        self.runs.append(Run(resource.number, current_task().attempt, threading.get_ident()))
        if self.errors:
            raise self.errors.pop(0)
        return resource.number

    @property
    def attempts(self) -> list[int]:
        return [run.attempt for run in self.runs]

    @property
    def resources(self) -> list[int]:
        return [run.resource for run in self.runs]


# -- the kinds


class Outcome(NamedTuple):
    value: Any
    error: BaseException | None

    @property
    def notes(self) -> list[str]:
        return getattr(self.error, "__notes__", [])


class Subject:
    """An executor of some kind, with one worker, and a spy for its factory."""

    def __init__(self, kind: str, pool: Any, door: Door, spy: Spy) -> None:
        self.kind, self.pool, self.door, self.spy = kind, pool, door, spy

    def run(self, task: Callable[..., Any], **options: Any) -> Outcome:
        """Run a task to its end."""
        door = self.door.with_options(**options) if options else self.door
        try:
            if self.kind == "run_now":
                return Outcome(door.run_now(Ref(task)), None)
            future = door.submit(Ref(task))
            error = future.exception(DEADLINE)
            return Outcome(None if error else future.result(), error)
        except BaseException as raised:  # the caller's thread has run the task
            return Outcome(None, raised)

    def log_after(self, task: Callable[..., Any] | None = None) -> Log:
        """Run a task, and return the notes up to its last attempt. What came before that task is over by then."""
        self.run(task or Failing(self.spy))
        log = self.spy.log.copy()
        return log[: len(log) - [name for name, _ in reversed(log)].index("task")]

    def first_check(self, number: int) -> Log:
        """Return the note of the check of a resource that was made after another one broke, before its first task.

        A resource that is made for a call on the caller's thread, and for that call alone, serves it unchecked.
        """
        return [] if self.kind == "inline" else [("check", number)]

    def stats(self) -> Any:
        return self.pool.stats()


class MakeSubject:
    """Makes the executors of one test."""

    def __init__(self, kind: str, ledger: Ledger, cluster: Callable[[], Any]) -> None:
        self.kind, self._ledger, self._cluster = kind, ledger, cluster
        self._made: list[Any] = []
        ledger.any_thread = kind in {"run_now", "inline"}

    def __call__(self, methods: dict[str, Callable[..., Any]], **options: Any) -> Subject:
        spy = Spy(self._ledger, **methods)
        pool: Any
        if self.kind == "dask":
            from tasker_executor.dask import DaskResourceExecutor

            options = {"check_after_idle": 3600, **options}
            pool = DaskResourceExecutor(self._cluster(), 1, resource=spy, **options)
        elif self.kind == "inline":
            pool = InlineExecutor(resource=spy, **options)
        else:
            options = {"resource_pool_size": int(self.kind == "run_now"), "check_after_idle": 3600, **options}
            pool = ResourceExecutor(1, resource=spy, **options)
        self._made.append(pool)
        return Subject(self.kind, pool, pool.with_options() if self.kind == "view" else pool, spy)

    def end(self) -> None:
        for pool in self._made:
            pool.shutdown(timeout=DEADLINE)
            stats = pool.stats()
            assert stats.resources_created == stats.resources_destroyed
        _spies.clear()


KINDS: dict[str, Any] = {
    "pool": "pool",
    "view": "view",
    "run_now": "run_now",
    "inline": "inline",
    "dask": pytest.param("dask", marks=pytest.mark.foreign_threads(*FOREIGN_THREADS)),
}
#: Those with a thread of their own for a task.
WITH_WORKERS = [KINDS["pool"], KINDS["view"], KINDS["dask"]]


@pytest.fixture(params=KINDS.values())
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str, ledger: Ledger, request: pytest.FixtureRequest) -> Iterator[MakeSubject]:
    made = MakeSubject(kind, ledger, partial(request.getfixturevalue, "cluster"))
    if kind == "dask":
        made._cluster()  # before the test, which may be skipped here
    yield made

    made.end()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """The client of a cluster in this process, with one worker that has one thread."""
    pytest.importorskip("distributed", reason="tasker_executor.dask needs dask.distributed")
    from dask_cluster import new_cluster

    with new_cluster(1) as client:
        yield client


@pytest.fixture
def gate(make: MakeSubject) -> Iterator[Gate]:
    """A closed gate, which opens before the executors are shut down."""
    with Gate() as closed:
        yield closed


only = partial(pytest.mark.parametrize, "kind")


# -- the first row: the error is the task's own


@pytest.mark.parametrize("judged", [True, False], ids=["judge", "no judge"])
def test_own_error_is_delivered_untouched_and_the_resource_is_reset_and_then_checked(make: MakeSubject, judged: bool) -> None:
    methods: dict[str, Callable[..., Any]] = {"reset": say_nothing, "check": say_yes}
    subject = make(methods | {"judge": judge} if judged else methods)
    error = Own("mine")
    task = Failing(subject.spy, error)
    outcome = subject.run(task)

    assert type(outcome.error) is Own
    assert outcome.error.args == ("mine",)
    assert outcome.notes == []
    assert outcome.error is error or subject.kind == "dask"  # there it is a copy
    asked = [("judge", 0)] if judged else []
    assert subject.log_after() == [("create", 0), ("task", 0), *asked, ("reset", 0), ("check", 0), ("task", 0)]
    assert task.attempts == [1]
    assert subject.stats().workers_replaced == 0


@pytest.mark.parametrize("judged", [True, False], ids=["judge", "no judge"])
@pytest.mark.parametrize(
    "hooks, asked",
    [
        ({"reset": refuse, "check": say_yes}, ["reset"]),
        ({"reset": refuse}, ["reset"]),
        ({"reset": say_nothing, "check": say_no}, ["reset", "check"]),
        ({"check": say_no}, ["check"]),
        ({"check": refuse}, ["check"]),
    ],
    ids=["reset raises, check passes", "reset raises", "reset passes, check says no", "check says no", "check raises"],
)
def test_task_is_never_run_again_whatever_reset_and_check_say(
    make: MakeSubject, hooks: dict[str, Callable[..., Any]], asked: list[str], judged: bool
) -> None:
    subject = make(first_only(hooks) | ({"judge": judge} if judged else {}))
    task = Failing(subject.spy, Own("mine"), Own("again"))
    outcome = subject.run(task)

    assert type(outcome.error) is Own
    assert outcome.error.args == ("mine",)
    assert outcome.notes == []
    before = ["judge"] if judged else []
    after = subject.first_check(1) if "check" in hooks else []
    steps = [("create", 0), ("task", 0), *((step, 0) for step in before + asked), ("destroy", 0), ("create", 1), *after]
    assert subject.log_after() == [*steps, ("task", 1)]
    assert task.attempts == [1]
    assert subject.stats().retried == 0
    if subject.kind != "run_now":
        assert subject.stats().workers_replaced == 1


def first_only(hooks: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Let these hooks answer for the first resource, and have none complain of another."""

    def answer(hook: Callable[..., Any], resource: FakeResource) -> Any:
        return hook(resource) if resource.number == 0 else True

    return {name: partial(answer, hook) for name, hook in hooks.items()}


def test_own_error_without_reset_and_check_costs_nothing(make: MakeSubject) -> None:
    subject = make({"judge": judge})

    assert type(subject.run(Failing(subject.spy, Own())).error) is Own
    assert subject.log_after() == [("create", 0), ("task", 0), ("judge", 0), ("task", 0)]


# -- the second row: again


def test_again_runs_the_task_on_the_same_worker_with_a_reset_in_between(make: MakeSubject) -> None:
    subject = make({"judge": judge, "reset": say_nothing, "check": say_yes})
    task = Failing(subject.spy, Again(), Again())

    assert subject.run(task) == (0, None)
    once = [("task", 0), ("judge", 0), ("reset", 0)]
    assert subject.log_after() == [("create", 0), *once, *once, ("task", 0), ("reset", 0), ("task", 0)]
    assert task.attempts == [1, 2, 3]
    assert len({run.thread for run in task.runs}) == 1
    assert subject.stats().workers_replaced == 0
    if subject.kind != "run_now":  # such a call is no submission
        assert subject.stats().retried == 2


def test_again_without_a_reset_runs_the_task_on_the_same_worker(make: MakeSubject) -> None:
    subject = make({"judge": judge})
    task = Failing(subject.spy, Again())

    assert subject.run(task) == (0, None)
    assert subject.spy.log == [("create", 0), ("task", 0), ("judge", 0), ("task", 0)]


@only(["run_now"])
def test_again_in_run_now_keeps_a_temporary_resource(make: MakeSubject) -> None:
    """With nothing in reserve, the call makes a resource for itself."""
    subject = make({"judge": judge, "reset": say_nothing}, resource_pool_size=0)

    assert subject.run(Failing(subject.spy, Again())) == (0, None)
    assert subject.spy.log[:5] == [("create", 0), ("task", 0), ("judge", 0), ("reset", 0), ("task", 0)]


@pytest.mark.parametrize("limit", [0, 1, 2])
@pytest.mark.parametrize("of", ["executor", "view"])
def test_again_is_delivered_after_max_retries_untouched(make: MakeSubject, limit: int, of: str) -> None:
    subject = make({"judge": judge, "reset": say_nothing}, **({"max_retries": limit} if of == "executor" else {}))
    errors = [Again(number) for number in range(5)]
    task = Failing(subject.spy, *errors)
    outcome = subject.run(task, **({"max_retries": limit} if of == "view" else {}))

    assert type(outcome.error) is Again
    assert outcome.error.args == (limit,)
    assert outcome.notes == []
    assert task.attempts == list(range(1, limit + 2))
    once = [("task", 0), ("judge", 0), ("reset", 0)]
    assert subject.log_after() == [("create", 0), *once * (limit + 1), ("task", 0)]
    assert subject.stats().workers_replaced == 0


def test_again_whose_reset_raises_runs_the_task_on_another_resource(make: MakeSubject) -> None:
    subject = make({"judge": judge} | first_only({"reset": refuse}))
    task = Failing(subject.spy, Again())

    assert subject.run(task) == (1, None)
    assert subject.spy.log[:7] == [
        ("create", 0),
        ("task", 0),
        ("judge", 0),
        ("reset", 0),
        ("destroy", 0),
        ("create", 1),
        ("task", 1),
    ]
    assert task.attempts == [1, 2]


@only([KINDS["pool"], KINDS["view"]])
@pytest.mark.parametrize("urgent", [False, True], ids=["normal", "priority"])
def test_again_comes_before_all_others_of_its_lane(make: MakeSubject, gate: Gate, urgent: bool) -> None:
    subject = make({"judge": judge, "reset": say_nothing})
    door = subject.door.with_options(priority=urgent)
    task, others = Failing(subject.spy, Again(), Again()), [Failing(subject.spy) for _ in range(3)]
    order: list[int] = []
    subject.door.submit(gate.hold)
    gate.wait_until_held()
    futures = [door.submit(noting(order, number, work)) for number, work in enumerate([task, *others])]
    gate.release()
    wait(futures, DEADLINE)

    assert order == [0, 0, 0, 1, 2, 3]


def noting(order: list[int], number: int, work: Callable[[FakeResource], int]) -> Callable[[FakeResource], int]:
    def task(resource: FakeResource) -> int:
        order.append(number)
        return work(resource)

    return task


counting: contextvars.ContextVar[int] = contextvars.ContextVar("counting", default=0)


@only([KINDS["pool"], KINDS["view"], KINDS["inline"], KINDS["dask"]])
@pytest.mark.parametrize("error", [Again, Broken])
def test_each_attempt_has_a_fresh_copy_of_the_submitters_context(make: MakeSubject, error: type[Exception]) -> None:
    subject = make({"judge": judge})
    inner, seen = Failing(subject.spy, error(), error()), list[int]()

    def task(resource: FakeResource) -> int:
        seen.append(counting.get())
        counting.set(99)
        return inner(resource)

    token = counting.set(7)
    try:
        outcome = subject.run(task)
        after = counting.get()
    finally:
        counting.reset(token)

    assert outcome.error is None
    assert seen == [0 if subject.kind == "dask" else 7] * 3  # a context does not travel
    assert after == 7


@pytest.mark.parametrize("error", [Again, Broken])
def test_around_is_entered_and_left_once_for_each_attempt(make: MakeSubject, error: type[Exception]) -> None:
    steps: list[str] = []

    @contextmanager
    def around(resource: FakeResource) -> Generator[None]:
        steps.append("enter")
        try:
            yield
        except Exception as raised:
            steps.append(type(raised).__name__)
            raise
        steps.append("leave")

    methods: dict[str, Callable[..., Any]] = {"judge": judge, "around": around}
    subject = make(methods)

    assert subject.run(Failing(subject.spy, error())).error is None
    assert steps == ["enter", error.__name__, "enter", "leave"]


# -- the third row: broken


@pytest.mark.parametrize("checked", [True, False], ids=["check", "no check"])
def test_broken_resource_is_destroyed_and_the_task_runs_on_another(make: MakeSubject, checked: bool) -> None:
    methods: dict[str, Callable[..., Any]] = {"judge": judge, "reset": say_nothing}
    subject = make(methods | {"check": say_yes} if checked else methods)
    task = Failing(subject.spy, Broken())

    assert subject.run(task) == (1, None)
    check = subject.first_check(1) if checked else []
    first, second = [("create", 0), ("task", 0), ("judge", 0), ("destroy", 0)], [("create", 1), *check, ("task", 1)]
    late = [("check", 1)] if checked and subject.kind == "inline" else []
    assert subject.log_after() == [*first, *second, ("reset", 1), *late, ("task", 1)]
    assert task.attempts == [1, 2]
    if subject.kind != "run_now":
        stats = subject.stats()
        assert (stats.retried, stats.workers_replaced) == (1, 1)


@pytest.mark.parametrize("limit", [0, 1, 2])
@pytest.mark.parametrize("of", ["executor", "view"])
def test_broken_is_delivered_after_max_retries_with_a_note(make: MakeSubject, limit: int, of: str) -> None:
    subject = make({"judge": judge}, **({"max_retries": limit} if of == "executor" else {}))
    task = Failing(subject.spy, *(Broken(number) for number in range(5)))
    outcome = subject.run(task, **({"max_retries": limit} if of == "view" else {}))

    assert type(outcome.error) is Broken
    assert outcome.error.args == (limit,)
    assert [note.partition(";")[0] for note in outcome.notes] == ([f"gave up after {limit} retries"] if limit else [])
    assert task.attempts == list(range(1, limit + 2))
    assert task.resources == list(range(limit + 1))
    subject.log_after()
    assert [number for step, number in subject.spy.log if step == "destroy"] == list(range(limit + 1))


@pytest.mark.parametrize(
    "errors, resources, noted",
    [
        ([Again, Broken], [0, 0, 1], None),
        ([Broken, Again], [0, 1, 1], None),
        ([Again, Broken, Again], [0, 0, 1, 1], None),
        ([Again, Again, Broken, Broken], [0, 0, 0, 1], True),
        ([Broken, Again, Broken, Again], [0, 1, 1, 2], False),
        ([Broken, Again, Own], [0, 1, 1], False),
    ],
    ids=["AB", "BA", "ABA", "AABB", "BABA", "BAO"],
)
def test_both_verdicts_share_the_retries(
    make: MakeSubject, errors: list[type[Exception]], resources: list[int], noted: bool | None
) -> None:
    """`noted`: whether the error that is delivered has a note; None: the task succeeds."""
    subject = make({"judge": judge, "reset": say_nothing, "check": say_yes}, max_retries=3)
    task = Failing(subject.spy, *(error() for error in errors))
    outcome = subject.run(task)

    assert type(outcome.error) is (type(None) if noted is None else errors[-1])
    assert bool(outcome.notes) is bool(noted)
    assert task.resources == resources
    assert task.attempts == list(range(1, len(resources) + 1))


# -- the fourth row: no error


@pytest.mark.parametrize(
    "hooks",
    [{"reset": refuse}, {"reset": refuse, "check": say_yes}],
    ids=["reset raises", "reset raises, and check would say yes"],
)
def test_result_stands_though_its_resource_is_replaced(make: MakeSubject, hooks: dict[str, Callable[..., Any]]) -> None:
    subject = make(first_only(hooks) | {"judge": judge})
    task = Failing(subject.spy)

    assert subject.run(task) == (0, None)
    after = subject.first_check(1) if "check" in hooks else []
    first = [("create", 0), ("task", 0), ("reset", 0), ("destroy", 0)]
    assert subject.log_after() == [*first, ("create", 1), *after, ("task", 1)]
    assert task.attempts == [1]


@only([KINDS["pool"], KINDS["view"], KINDS["run_now"], KINDS["dask"]])  # an inline executor has no `check_after_idle`
def test_result_stands_though_the_check_before_the_next_task_says_no(make: MakeSubject) -> None:
    subject = make({"judge": judge, "check": is_good}, check_after_idle=0)
    first, second = Failing(subject.spy), Failing(subject.spy)

    assert subject.run(first) == (0, None)
    subject.spy.ledger.created[0].broken = True
    assert subject.run(second) == (1, None)
    assert (first.attempts, second.attempts) == ([1], [1])
    steps = [step for step in subject.spy.log if step != ("check", 1)]
    assert steps[steps.index(("task", 0)) :][:5] == [("task", 0), ("check", 0), ("destroy", 0), ("create", 1), ("task", 1)]


# -- judges that make mistakes, and errors that are not judged


@pytest.mark.parametrize("checked", [True, False], ids=["check", "no check"])
def test_judge_that_raises_costs_the_resource_and_the_task_keeps_its_error(
    make: MakeSubject, checked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    subject = make({"judge": refuse, "reset": say_nothing} | ({"check": say_yes} if checked else {}))
    task = Failing(subject.spy, Broken("mine"))
    outcome = subject.run(task)

    assert type(outcome.error) is Broken
    assert (outcome.error.args, outcome.notes) == (("mine",), [])
    check = subject.first_check(1) if checked else []
    first = [("create", 0), ("task", 0), ("judge", 0), ("destroy", 0), ("create", 1)]
    assert subject.log_after() == [*first, *check, ("task", 1)]
    assert task.attempts == [1]
    assert len([message for message in caplog.messages if "check_health raised" in message]) == 1


@pytest.mark.parametrize("answer", [None, True, False, "broken"])
def test_judge_that_returns_no_verdict_is_told_of_once_and_the_error_is_the_tasks_own(
    make: MakeSubject, answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    subject = make({"judge": _answering(answer), "reset": say_nothing, "check": say_yes})
    tasks = [Failing(subject.spy, Broken("mine")) for _ in range(2)]
    outcomes = [subject.run(task) for task in tasks]

    assert [type(outcome.error) for outcome in outcomes] == [Broken, Broken]
    assert [outcome.notes for outcome in outcomes] == [[], []]
    assert [task.attempts for task in tasks] == [[1], [1]]
    once = [("task", 0), ("judge", 0), ("reset", 0), ("check", 0)]
    assert subject.log_after() == [("create", 0), *once, *once, ("task", 0)]
    assert len([message for message in caplog.messages if "a hook returned what it must not" in message]) == 1


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_error_that_is_no_exception_is_not_judged(make: MakeSubject, error: type[BaseException]) -> None:
    subject = make({"judge": _answering(Verdict.BROKEN), "reset": say_nothing, "check": say_yes})
    task = Failing(subject.spy, error())
    outcome = subject.run(task)

    assert type(outcome.error) is error
    assert subject.log_after() == [("create", 0), ("task", 0), ("reset", 0), ("check", 0), ("task", 0)]
    assert task.attempts == [1]


# -- check_health, which is a judge that sees the error alone


@pytest.mark.parametrize(
    "answer, resources",
    [
        (True, [0]),
        (Verdict.OWN, [0]),
        (False, [0, 1]),
        (Verdict.BROKEN, [0, 1]),
        (Verdict.AGAIN, [0, 0]),
        (None, [0]),
        (1, [0]),
    ],
    ids=str,
)
def test_check_health_may_return_a_bool_or_a_verdict(
    kind: str, ledger: Ledger, request: pytest.FixtureRequest, answer: Any, resources: list[int]
) -> None:
    cluster: Any = request.getfixturevalue("cluster") if kind == "dask" else None
    ledger.any_thread = kind in {"run_now", "inline"}
    asked: list[BaseException] = []

    def check_health(error: Exception) -> Any:
        asked.append(error)
        return answer

    spy = Spy(ledger)
    hooks: dict[str, Any] = {
        "on_create": Ref(spy.create),
        "on_destroy": Ref(spy.destroy),
        "check_health": Ref(check_health),
    }
    pool: Any
    if kind == "dask":
        from tasker_executor.dask import DaskResourceExecutor

        pool = DaskResourceExecutor(cluster, 1, **hooks)
    elif kind == "inline":
        pool = InlineExecutor(**hooks)
    else:
        pool = ResourceExecutor(1, resource_pool_size=int(kind == "run_now"), **hooks)
    with pool:
        subject = Subject(kind, pool, pool.with_options() if kind == "view" else pool, spy)
        task = Failing(spy, Own("mine"))
        outcome = subject.run(task)

    assert task.resources == resources
    assert (outcome.error is None) is (len(resources) == 2)
    assert [type(error) for error in asked] == [Own]


# -- when: the result comes first


@only(WITH_WORKERS)
@pytest.mark.parametrize("error", [None, Own("mine")], ids=["result", "error"])
@pytest.mark.parametrize("hook", ["reset", "check"])
def test_result_does_not_wait_for_reset_and_check(make: MakeSubject, gate: Gate, error: Exception | None, hook: str) -> None:
    def hold(resource: FakeResource) -> bool:
        if resource.uses:
            gate.hold()
        return True

    subject = make({"judge": judge, hook: hold})
    outcome = subject.run(Failing(subject.spy, *([error] if error else [])))

    assert type(outcome.error) is type(error)
    if hook == "check" and error is None:
        return  # no reason for a check
    gate.wait_until_held()
    late = subject.door.submit(Ref(Failing(subject.spy)))
    assert not late.done()
    gate.release()
    assert late.result(DEADLINE) == 0


@only(["run_now", "inline"])
def test_call_on_the_callers_thread_returns_with_its_resource_clean(make: MakeSubject) -> None:
    subject = make({"judge": judge, "reset": say_nothing, "check": say_yes})
    subject.run(Failing(subject.spy, Own()))

    assert subject.spy.log == [("create", 0), ("task", 0), ("judge", 0), ("reset", 0), ("check", 0)]


# -- what observers hear


class Listener(Observer):
    """Notes down the attempts that observers hear of. It pickles as a reference to itself."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, str]] = []
        _listeners[id(self)] = self

    def __reduce__(self) -> Any:
        return _find_listener, (id(self),)

    def _note(self, step: str, event: TaskEvent) -> None:
        self.heard.append((step, event.attempt, type(event.error).__name__ if event.error else ""))

    @override
    def task_started(self, event: TaskEvent) -> None:
        self._note("started", event)

    @override
    def task_retried(self, event: TaskEvent) -> None:
        self._note("retried", event)

    @override
    def task_finished(self, event: TaskEvent) -> None:
        self._note("finished", event)


_listeners: dict[int, Listener] = {}


def _find_listener(number: int) -> Listener:
    return _listeners[number]


@only(WITH_WORKERS)
def test_observers_hear_of_each_attempt(make: MakeSubject) -> None:
    listener = Listener()
    subject = make({"judge": judge, "reset": say_nothing}, observers=[listener])

    assert subject.run(Failing(subject.spy, Again(), Broken(), Own())).error is not None
    assert listener.heard == [
        ("started", 1, ""),
        ("retried", 1, "Again"),
        ("started", 2, ""),
        ("retried", 2, "Broken"),
        ("started", 3, ""),
        ("finished", 3, "Own"),
    ]


# -- a retry never meets a resource that may have broken in the same event


@pytest.mark.parametrize("checked", [True, False], ids=["check", "no check"])
@pytest.mark.parametrize("workers", [8, 32])
@pytest.mark.parametrize("tasks", ["one", "as many", "as many at once", "three times as many"])
def test_resources_that_broke_together_cost_each_task_at_most_one_retry(
    make_pool: MakePool, ledger: Ledger, checked: bool, workers: int, tasks: str
) -> None:
    pool, breaking = idle_pool(make_pool, ledger, workers, checked)
    breaking()
    attempts: Counter[int] = Counter()
    number = {"one": 1, "three times as many": 3 * workers}.get(tasks, workers)
    all_here = threading.Barrier(workers)

    def work(resource: FakeResource, task: int) -> int:
        attempts[task] += 1
        if tasks == "as many at once" and attempts[task] == 1:
            all_here.wait(DEADLINE)
        return resource.use()

    futures = [pool.submit(work, task) for task in range(number)]
    results = [future.result(DEADLINE) for future in futures]
    pool.shutdown(timeout=DEADLINE)
    stats = pool.stats()

    assert all(result >= workers for result in results)  # none ran to its end on a broken resource
    assert max(attempts.values()) <= 2
    assert (stats.completed, stats.failed) == (number + workers, 0)
    assert stats.resources_created == stats.resources_destroyed == len(ledger.created)
    if tasks == "as many at once":
        assert stats.retried == workers
    if checked:  # without a check, a new one that was made while others were still found broken may go, too
        assert len(ledger.created) <= 2 * workers


def idle_pool(
    make_pool: MakePool, ledger: Ledger, workers: int, checked: bool, **options: Any
) -> tuple[ResourceExecutor[FakeResource], Callable[[], None]]:
    """A pool all of whose workers have served and are idle, and what breaks all their resources."""
    hooks: dict[str, Any] = {"check_resource": ledger.is_usable} if checked else {}
    pool = make_pool(
        workers,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        check_after_idle=3600,
        **hooks,
        **options,
    )
    with Gate() as gate:
        held = [pool.submit(gate.hold) for _ in range(workers)]
        gate.wait_until_held(workers)
    wait(held, DEADLINE)
    eventually(lambda: pool.stats().idle_workers == workers, "all workers to be idle")

    def break_all() -> None:
        for resource in ledger.alive:
            resource.broken = True

    return pool, break_all


@pytest.mark.parametrize("checked", [True, False], ids=["check", "no check"])
@pytest.mark.parametrize("calls", [1, 8])
def test_reserve_that_broke_together_costs_each_call_at_most_one_retry(
    make_pool: MakePool, ledger: Ledger, checked: bool, calls: int
) -> None:
    ledger.any_thread = True
    size = 8
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        check_resource=ledger.is_usable if checked else None,
        check_after_idle=3600,
        resource_pool_size=size,
    )
    for resource in ledger.alive:
        resource.broken = True
    attempts: Counter[int] = Counter()
    start = threading.Barrier(calls)

    def work(resource: FakeResource, call: int) -> int:
        attempts[call] += 1
        return resource.use()

    def call(number: int) -> int:
        start.wait(DEADLINE)
        return pool.run_now(work, number)

    with ResourceExecutor(calls) as callers:
        results = list(callers.map(call, range(calls)))

    assert all(result >= size for result in results)
    assert max(attempts.values()) <= 2
    # A call that finds a free resource broken makes none in its place: a later call does that.
    assert 1 <= pool.stats().available_resources <= size


# -- poison


@pytest.mark.parametrize("limit", [0, 1, 3])
@pytest.mark.parametrize("workers", [1, 8])
def test_poison_task_breaks_one_resource_for_each_attempt_and_costs_no_other_if_there_is_a_check(
    make_pool: MakePool, ledger: Ledger, workers: int, limit: int
) -> None:
    pool, _ = idle_pool(make_pool, ledger, workers, True, min_workers=workers, max_retries=limit)
    error = pool.submit(FakeResource.break_down).exception(DEADLINE)
    ledger.wait_until_created(workers + limit + 1)
    pool.shutdown(timeout=DEADLINE)

    assert isinstance(error, ResourceBroken)
    assert sum(resource.broken for resource in ledger.created) == limit + 1
    assert len(ledger.created) == workers + limit + 1
    assert pool.stats().workers_replaced == limit + 1


@pytest.mark.parametrize("limit", [0, 1, 3])
@pytest.mark.parametrize("workers", [1, 8])
def test_poison_task_costs_at_most_one_innocent_resource_an_attempt_without_a_check(
    make_pool: MakePool, ledger: Ledger, workers: int, limit: int
) -> None:
    """A retry that comes back wakes one idle worker, which gives its resource up for it; then it is left to a new one."""
    pool, _ = idle_pool(make_pool, ledger, workers, False, min_workers=workers, max_retries=limit)

    def poison(resource: FakeResource) -> None:
        eventually(lambda: pool.stats().idle_workers == workers - 1, "all other workers to be idle")
        resource.break_down()

    error = pool.submit(poison).exception(DEADLINE)
    eventually(lambda: sum(resource.broken for resource in ledger.destroyed) == limit + 1, "the end of the broken ones")
    eventually(lambda: pool.stats().idle_workers == workers, "the base to be there again")
    pool.shutdown(timeout=DEADLINE)

    assert isinstance(error, ResourceBroken)
    assert sum(resource.broken for resource in ledger.created) == limit + 1
    assert len(ledger.created) - workers <= 2 * (limit + 1)


# -- the races, forced


class Recorded:
    """A task that notes which resource it met in which attempt, and holds at a gate in the first one if it is given one."""

    def __init__(self, gate: Gate | None = None) -> None:
        self.gate = gate
        self.runs: list[tuple[int, int]] = []

    def __call__(self, resource: FakeResource) -> int:
        self.runs.append((resource.number, current_task().attempt))
        if self.gate is not None and len(self.runs) == 1:
            self.gate.hold()
        return resource.use()


@pytest.mark.parametrize(
    "when, other",
    [
        ("in the check", True),  # which is put off while nothing waits
        ("after the check", True),
        ("after the check", False),
        ("without a check", True),
        ("without a check", False),
    ],
)
def test_break_that_is_noted_between_the_check_and_the_pop(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, when: str, other: bool
) -> None:
    """1. Worker 0 has looked at its resource. 2. Both resources break, and worker 1 puts its task back.

    3. Worker 0 takes that task, though it has just found its resource good.
    """
    running, looked, destroying = Gate(), Gate(), Gate()

    def destroy(resource: FakeResource) -> None:
        if resource.number == 1:
            destroying.hold()  # so no new worker takes the retry
        ledger.destroy(resource)

    def reset(resource: FakeResource) -> None:
        """Make the workers careful: they look at their resource before each task."""

    def hold_if_armed(resource: FakeResource) -> None:
        if armed.is_set() and resource.number == 0:
            armed.clear()
            looked.hold()

    def check(resource: FakeResource) -> bool:
        answer = ledger.is_usable(resource)
        if when == "in the check":
            hold_if_armed(resource)
        return answer

    def unfit(care: Care, holding: Any, *args: Any, **kwargs: Any) -> Any:
        end = inner(care, holding, *args, **kwargs)
        hold_if_armed(holding.resource)
        return end

    armed = threading.Event()
    inner = Care.unfit
    if when != "in the check":
        monkeypatch.setattr(Care, "unfit", unfit)
    pool = make_pool(
        2,
        on_create=ledger.create,
        on_destroy=destroy,
        check_health=ledger.is_healthy,
        check_resource=None if when == "without a check" else check,
        on_reset=reset,
        check_after_idle=0 if when == "in the check" else 3600,
    )
    with running, looked, destroying, Gate() as first:
        pool.submit(first.hold)  # has worker 0 make its resource
        first.wait_until_held()
        hit = Recorded(running)
        retried = pool.submit(hit)
        running.wait_until_held()
        assert hit.runs == [(1, 1)]
        armed.set()
        late = Recorded()
        tasks = [pool.submit(late)] if other else []
        first.release()
        looked.wait_until_held()
        for resource in ledger.alive:
            resource.broken = True
        running.release()
        destroying.wait_until_held()
        looked.release()
        ledger.wait_until_destroyed(1)
        assert retried.result(DEADLINE) >= 2
        destroying.release()
        wait(tasks, DEADLINE)

    assert hit.runs[0] == (1, 1)
    assert hit.runs[1][0] >= 2
    assert len(hit.runs) == 2
    assert len(late.runs) <= 2
    assert all(task.result() >= 2 for task in tasks)
    if other and when != "without a check":
        assert [attempt for _, attempt in late.runs] == [1]  # the retry had its resource found out


@pytest.mark.parametrize("checked", [True, False], ids=["check", "no check"])
@pytest.mark.parametrize("other", [True, False], ids=["another task waits", "nothing else waits"])
def test_retry_that_meets_a_worker_whose_resource_was_being_made_during_the_break(
    make_pool: MakePool, ledger: Ledger, checked: bool, other: bool
) -> None:
    """1. Worker 1 makes its resource. 2. It breaks, together with that of worker 0, which puts its task back.

    3. Worker 1 is ready, and takes that task.
    """
    running, making, destroying = Gate(), Gate(), Gate()

    def create() -> FakeResource:
        resource = ledger.create()
        if resource.number == 1:
            making.hold()
        return resource

    def destroy(resource: FakeResource) -> None:
        if resource.number == 0:
            destroying.hold()  # so no new worker takes the retry
        ledger.destroy(resource)

    pool = make_pool(
        2,
        on_create=create,
        on_destroy=destroy,
        check_health=ledger.is_healthy,
        check_resource=ledger.is_usable if checked else None,
        check_after_idle=3600,
    )
    with running, making, destroying:
        hit, late = Recorded(running), Recorded()
        retried = pool.submit(hit)
        running.wait_until_held()
        second = pool.submit(late)
        making.wait_until_held()
        if not other:
            assert second.cancel()
        for resource in ledger.alive:
            resource.broken = True
        running.release()
        destroying.wait_until_held()
        making.release()
        assert retried.result(DEADLINE) >= 2
        destroying.release()
        wait([second], DEADLINE)

    assert hit.runs[0] == (0, 1)
    assert hit.runs[1][0] >= 2
    assert len(hit.runs) == 2
    assert len(late.runs) <= 2
    assert second.cancelled() or second.result() >= 2
