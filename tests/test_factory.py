"""`ResourceFactory`: one object says what a resource is; context managers and hooks are factories, too."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from typing import Any

import pytest

from doors import EXECUTORS, Door, door
from engine import source_of
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, ResourceBroken, eventually
from tasker_executor import ResourceCreationError, ResourceExecutor, ResourceFactory, Verdict
from tasker_executor._engine.hooks import ResourceHooks, check_hooks
from tasker_executor.factory import ContextManagerFactory

__all__ = ["door"]

NONE = dict.fromkeys(["on_create", "on_destroy", "check_health", "check_resource", "on_reset", "around", "on_abort"])
METHODS = ["create", "destroy", "judge", "check", "reset", "around", "abort"]


def hooks_of(factory: Any) -> ResourceHooks[Any]:
    """Return what the engine takes from a factory."""
    hooks = check_hooks(dict(NONE), factory)
    assert hooks is not None
    return hooks


class OnlyCreate(ResourceFactory[FakeResource]):
    """The least that a factory is."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def create(self) -> FakeResource:
        return self.ledger.create()


class Full(ResourceFactory[FakeResource]):
    """Overrides every method, and counts the calls; on which thread, if that is asked for."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.calls: Counter[str] = Counter()
        self.verdict = Verdict.OWN
        self.in_abort = threading.Event()

    def create(self) -> FakeResource:
        self.calls["create"] += 1
        return self.ledger.create()

    def destroy(self, resource: FakeResource) -> None:
        self.calls["destroy"] += 1
        self.ledger.destroy(resource)

    def judge(self, error: Exception, resource: FakeResource) -> Verdict:
        assert isinstance(resource, FakeResource)
        self.calls["judge"] += 1
        return self.verdict

    def check(self, resource: FakeResource) -> bool:
        self.calls["check"] += 1
        return not resource.broken

    def reset(self, resource: FakeResource) -> None:
        assert resource is self.ledger.created[resource.number]
        self.calls["reset"] += 1

    @contextmanager
    def around(self, resource: FakeResource) -> Generator[None]:
        self.calls["enter"] += 1
        yield
        self.calls["leave"] += 1

    def abort(self, resource: FakeResource) -> None:
        self.calls["abort"] += 1
        self.in_abort.set()


# -- the factory --


def test_a_factory_that_overrides_create_alone_is_enough(door: Door, ledger: Ledger) -> None:
    ledger.any_thread = True
    pool = door.open(resource=OnlyCreate(ledger))
    first, second = door.call(FakeResource.use), door.call(FakeResource.use)
    for resource in ledger.created:
        ledger.destroy(resource)  # for the fixture's books: the factory destroys nothing

    assert (first, second) == ((0, 1) if door.kind == "run_now" else (0, 0))
    assert pool.stats().resources_created == len(ledger.created)


def test_a_factory_that_judges_nothing_calls_every_error_the_tasks_own(door: Door, ledger: Ledger) -> None:
    ledger.any_thread = True
    pool = door.open(resource=OnlyCreate(ledger))
    error = door.error_of(FakeResource.break_down)
    for resource in ledger.created:
        ledger.destroy(resource)

    assert isinstance(error, ResourceBroken)
    assert not hasattr(error, "__notes__")
    assert pool.stats().retried == 0


def test_methods_that_a_factory_does_not_override_are_not_called(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing is paid for what is not used: the engine does not know that there are such methods.
    hooks = hooks_of(OnlyCreate(ledger))
    assert [getattr(hooks, name) for name in METHODS[1:]] == [None] * 6

    def refuse(*_: object) -> None:
        raise AssertionError("called")

    factory = OnlyCreate(ledger)
    with ResourceExecutor(1, resource=factory, resource_pool_size=1) as pool:
        source = source_of(pool)
        for name in METHODS[1:]:
            monkeypatch.setattr(ResourceFactory, name, refuse)
        assert pool.submit(FakeResource.use).result(DEADLINE) == 1
        assert isinstance(pool.submit(FakeResource.break_down).exception(DEADLINE), ResourceBroken)
        ledger.any_thread = True
        assert pool.run_now(FakeResource.use) == 0
    assert (source.needs_care, source.can_retry) == (False, False)
    for resource in ledger.created:
        ledger.destroy(resource)


def test_every_method_of_a_factory_is_called(door: Door, ledger: Ledger) -> None:
    ledger.any_thread = True
    factory = Full(ledger)
    door.open(resource=factory)

    def fail(_: FakeResource) -> None:
        raise LookupError

    assert isinstance(door.call(FakeResource.use), int)
    assert isinstance(door.error_of(fail), LookupError)
    eventually(lambda: factory.calls["reset"] == 2 or door.kind == "run_now", "both resets")
    door.close()

    # `run_now` without a reserve makes a resource for each call, and so cleans none.
    temporary = door.kind == "run_now"
    made = 2 if temporary else 1
    expected = {"create": made, "destroy": made, "judge": 1, "enter": 2, "leave": 1}
    if not temporary:
        expected |= {"reset": 2, "check": 1}
    assert factory.calls == Counter(expected)


def test_every_method_of_a_factory_is_called_for_a_resource_of_the_reserve(ledger: Ledger) -> None:
    ledger.any_thread = True
    factory = Full(ledger)

    def fail(_: FakeResource) -> None:
        raise LookupError

    with ResourceExecutor(1, resource=factory, resource_pool_size=1) as pool:
        assert pool.run_now(FakeResource.use) == 0
        with pytest.raises(LookupError):
            pool.run_now(fail)

    assert factory.calls == Counter(create=1, destroy=1, judge=1, check=1, reset=2, enter=2, leave=1)


def test_a_factory_aborts_what_is_in_use_when_the_executor_is_killed(make_pool: MakePool, ledger: Ledger) -> None:
    factory = Full(ledger)
    pool: Any = make_pool(1, resource=factory)

    def wait(_: FakeResource) -> bool:
        return factory.in_abort.wait(DEADLINE)

    held = pool.submit(wait)
    eventually(lambda: factory.calls["enter"] == 1, "the task to run")
    pool.kill()

    assert held.result(DEADLINE) is True
    assert factory.calls["abort"] == 1


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_method_may_be_overridden_for_one_instance(ledger: Ledger, method: str) -> None:
    # A ready-made factory has `transaction=`, and says so in this way.
    called: list[str] = []

    def instead(*_: object) -> Any:
        called.append(method)
        return nullcontext()

    plain, special = OnlyCreate(ledger), OnlyCreate(ledger)
    vars(special)[method] = instead

    assert getattr(hooks_of(plain), method) is None
    assert getattr(hooks_of(special), method) is instead


def test_an_instance_may_take_a_method_away(ledger: Ledger) -> None:
    factory = Full(ledger)
    vars(factory)["around"] = None
    vars(factory)["reset"] = None

    hooks = hooks_of(factory)

    assert (hooks.around, hooks.reset) == (None, None)
    assert hooks.check == factory.check


def test_an_instance_may_override_create(door: Door, ledger: Ledger) -> None:
    ledger.any_thread = True
    factory: ResourceFactory[FakeResource] = ResourceFactory()
    vars(factory).update(create=ledger.create, destroy=ledger.destroy)
    door.open(resource=factory)

    assert door.call(FakeResource.use) == 0


def test_a_method_that_is_inherited_by_name_is_not_overridden(ledger: Ledger) -> None:
    class Derived(OnlyCreate):
        reset: Any = ResourceFactory[Any].reset

    class Static(OnlyCreate):
        reset: Any = staticmethod(print)

    class Further(Full):
        """Overrides nothing itself."""

    assert hooks_of(Derived(ledger)).reset is None
    assert hooks_of(Static(ledger)).reset is print
    assert hooks_of(Further(ledger)).reset is not None


@pytest.mark.parametrize(
    "verdict, runs, made",
    [(Verdict.OWN, 1, 1), (Verdict.AGAIN, 3, 1), (Verdict.BROKEN, 3, 3)],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_factory_judges_with_the_error_and_the_resource(
    make_pool: MakePool, ledger: Ledger, verdict: Verdict, runs: int, made: int
) -> None:
    asked: list[tuple[BaseException, int]] = []
    raised: list[BaseException] = []

    class Judge(OnlyCreate):
        def destroy(self, resource: FakeResource) -> None:
            self.ledger.destroy(resource)

        def judge(self, error: Exception, resource: FakeResource) -> Verdict:
            asked.append((error, resource.number))
            return verdict

    def fail(_: FakeResource) -> None:
        raised.append(LookupError(len(raised)))
        raise raised[-1]

    pool: Any = make_pool(1, resource=Judge(ledger), max_retries=2)
    error = pool.submit(fail).exception(DEADLINE)

    assert error is raised[-1]
    assert asked == [(one, number if verdict is Verdict.BROKEN else 0) for number, one in enumerate(raised)]
    assert len(raised) == runs
    assert len(ledger.created) == made or verdict is Verdict.BROKEN


def test_one_factory_may_serve_several_executors(make_pool: MakePool, ledger: Ledger) -> None:
    factory = Full(ledger)
    first: Any = make_pool(1, resource=factory)
    second: Any = make_pool(1, resource=factory)

    assert sorted([first.submit(FakeResource.use).result(DEADLINE), second.submit(FakeResource.use).result(DEADLINE)]) == [0, 1]


def test_a_factory_without_create_is_refused() -> None:
    class Empty(ResourceFactory[int]):
        """Overrides nothing."""

    for make in EXECUTORS:
        with pytest.raises(TypeError, match=r"resource=<.*Empty object.*> does not override create\(\)"):
            make(resource=Empty())
    with pytest.raises(NotImplementedError, match=r"Empty must override create\(\)"):
        Empty().create()


def test_the_methods_of_the_base_class_do_nothing() -> None:
    factory: ResourceFactory[int] = ResourceFactory()

    assert factory.judge(ValueError(), 1) is Verdict.OWN
    assert factory.check(1) is True
    factory.destroy(1)
    factory.reset(1)
    factory.abort(1)
    with factory.around(1) as scope:
        assert scope is None


def test_the_class_of_a_factory_is_refused(ledger: Ledger) -> None:
    for make in EXECUTORS:
        with pytest.raises(TypeError, match=r"not its class; call it: resource=OnlyCreate\(\.\.\.\)"):
            make(resource=OnlyCreate)


@pytest.mark.parametrize("hook", list(NONE))
def test_a_factory_and_a_hook_exclude_each_other(ledger: Ledger, hook: str) -> None:
    with pytest.raises(ValueError, match=f"^{hook}=.* and resource=.* exclude each other; override the method"):
        EXECUTORS[0](1, resource=OnlyCreate(ledger), **{hook: print})
    if hook != "on_abort":
        with pytest.raises(ValueError, match=f"^{hook}=.* and resource=.* exclude each other"):
            EXECUTORS[1](resource=OnlyCreate(ledger), **{hook: print})


def test_a_factory_takes_the_limits_of_a_resource(make_pool: MakePool, ledger: Ledger) -> None:
    pool: Any = make_pool(1, resource=Full(ledger), max_uses=1, max_age=3600, resource_pool_size=1)

    assert [pool.submit(FakeResource.use).result(DEADLINE) for _ in range(3)] == [1, 2, 3]


# -- a function that returns a context manager --


class Page:
    """What a context manager of the tests returns."""

    def __init__(self, number: int) -> None:
        self.number = number


class Pages:
    """Makes pages, and notes where each is entered and left, and with which error."""

    def __init__(self) -> None:
        self.entered: list[threading.Thread] = []
        self.left: list[tuple[threading.Thread, BaseException | None]] = []

    @contextmanager
    def page(self) -> Generator[Page]:
        self.entered.append(threading.current_thread())
        error: BaseException | None = None
        try:
            yield Page(len(self.entered) - 1)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.left.append((threading.current_thread(), error))


@pytest.fixture
def pages() -> Pages:
    return Pages()


def number_of(page: Page) -> int:
    return page.number


def thread_of(_: object) -> threading.Thread:
    return threading.current_thread()


def identity(resource: Any) -> Any:
    return resource


def answering(answer: Any) -> Any:
    """Return a `check_health` with that answer."""

    def check_health(error: Exception) -> Any:
        return answer

    return check_health


class Closable:
    def close(self) -> None: ...


def test_a_context_manager_is_entered_to_make_a_resource_and_left_to_destroy_it(door: Door, pages: Pages) -> None:
    door.open(resource=pages.page)
    numbers = [door.call(number_of) for _ in range(3)]
    door.close()

    assert numbers == ([0, 1, 2] if door.kind == "run_now" else [0, 0, 0])
    assert pages.left == [(thread, None) for thread in pages.entered]
    assert len(pages.entered) == len(set(numbers))


def test_a_context_manager_is_entered_and_left_on_the_thread_of_the_worker(make_pool: MakePool, pages: Pages) -> None:
    pool: Any = make_pool(1, resource=pages.page)
    thread = pool.submit(thread_of).result(DEADLINE)
    pool.shutdown()

    assert pages.entered == [thread]
    assert pages.left == [(thread, None)]


def test_a_context_manager_whose_resource_broke_is_left_once_and_without_an_error(make_pool: MakePool, pages: Pages) -> None:
    """It may swallow an error, or raise another one; the error is the task's, and goes to the task."""

    class Broken(ContextManagerFactory[Page]):
        def judge(self, error: Exception, resource: Page) -> Verdict:
            return Verdict.BROKEN

    def fail(page: Page) -> int:
        if page.number == 0:
            raise LookupError
        return page.number

    pool: Any = make_pool(1, resource=Broken(pages.page))
    result = pool.submit(fail).result(DEADLINE)
    pool.shutdown()

    assert result == 1
    assert [error for _, error in pages.left] == [None, None]
    assert [thread for thread, _ in pages.left] == pages.entered


def test_two_resources_that_are_the_same_object_are_left_once_each_by_the_worker_that_entered_them(
    make_pool: MakePool, gate: Gate
) -> None:
    same = Page(0)
    entered: list[threading.Thread] = []
    left: list[tuple[threading.Thread, threading.Thread]] = []

    @contextmanager
    def page() -> Generator[Page]:
        owner = threading.current_thread()
        entered.append(owner)
        yield same
        left.append((owner, threading.current_thread()))

    factory = ContextManagerFactory(page)
    pool: Any = make_pool(2, resource=factory, idle_timeout=3600)
    held = [pool.submit(gate.hold) for _ in range(2)]
    gate.wait_until_held(2)
    gate.release()
    for future in held:
        future.result(DEADLINE)
    pool.shutdown()

    assert len(entered) == len(left) == 2
    assert sorted(owner.name for owner, _ in left) == sorted(owner.name for owner in entered)
    assert [owner for owner, _ in left] == [by for _, by in left]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_thread_leaves_the_context_manager_that_it_has_entered(order: tuple[int, int]) -> None:
    same = Page(0)
    left: list[tuple[int, int]] = []

    @contextmanager
    def page() -> Generator[Page]:
        owner = threading.get_ident()
        yield same
        left.append((owner, threading.get_ident()))

    factory = ContextManagerFactory(page)
    leave = [threading.Event(), threading.Event()]

    def live(number: int, ready: threading.Event) -> None:
        resource = factory.create()
        ready.set()
        assert leave[number].wait(DEADLINE)
        factory.destroy(resource)

    threads: list[threading.Thread] = []
    for number in range(2):
        ready = threading.Event()
        threads.append(threading.Thread(target=live, args=(number, ready)))
        threads[-1].start()
        assert ready.wait(DEADLINE)
    for number in order:
        leave[number].set()
        threads[number].join(DEADLINE)

    assert [owner for owner, _ in left] == [by for _, by in left]
    assert len(left) == 2
    assert factory._entered == {}


def test_a_context_manager_may_be_left_by_another_thread_than_entered_it() -> None:
    # The reserve: any thread that calls `run_now`, or `shutdown`, destroys.
    pages = Pages()
    factory = ContextManagerFactory(pages.page)
    resource = factory.create()
    thread = threading.Thread(target=factory.destroy, args=(resource,))
    thread.start()
    thread.join(DEADLINE)

    assert pages.left == [(thread, None)]
    assert factory._entered == {}


def test_an_enter_that_raises_is_a_failed_creation(door: Door) -> None:
    attempts: list[int] = []
    left: list[int] = []

    @contextmanager
    def page() -> Generator[Page]:
        attempts.append(len(attempts))
        if len(attempts) == 1:
            raise OSError("no page")
        yield Page(1)
        left.append(1)

    pool = door.open(resource=page)
    if not door.has_worker:
        error = door.error_of(number_of)
        assert isinstance(error, ResourceCreationError)
        assert isinstance(error.__cause__, OSError)
    assert door.call(number_of) == 1
    door.close()

    assert left == [1]
    assert pool.stats().create_failures == (0 if door.kind == "run_now" else 1)


def test_an_exit_that_raises_is_logged_and_costs_nothing_else(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    @contextmanager
    def page() -> Generator[Page]:
        yield Page(0)
        raise OSError("no end")

    door.open(resource=page)
    assert door.call(number_of) == 0
    door.close()

    [record] = [record for record in caplog.records if "on_destroy raised" in record.message]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], OSError)


def test_a_class_whose_instances_are_context_managers_is_such_a_function(door: Door) -> None:
    class Client:
        closed = 0

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *exc_info: object) -> None:
            assert exc_info == (None, None, None)
            Client.closed += 1

    door.open(resource=Client)
    client = door.call(identity)
    door.close()

    assert isinstance(client, Client)
    assert Client.closed == 1


@pytest.mark.parametrize(
    "instance",
    [closing(Closable()), nullcontext(1), ExitStack(), Pages().page(), threading.Lock(), "postgres://", 7],
    ids=lambda instance: type(instance).__name__,
)
def test_an_instance_of_a_context_manager_is_refused(instance: Any) -> None:
    # Each worker makes a resource of its own, so one instance is not enough.
    for make in EXECUTORS:
        with pytest.raises(TypeError, match="resource must be a ResourceFactory, or a function that returns a context manager"):
            make(resource=instance)


def test_a_function_that_needs_arguments_is_refused(pages: Pages) -> None:
    @contextmanager
    def page(number: int) -> Generator[Page]:
        yield Page(number)

    with pytest.raises(
        TypeError, match=r"resource=.* cannot be called with no arguments: missing a required argument: 'number'"
    ):
        ResourceExecutor(1, resource=page)  # type: ignore[arg-type]  # refused


def test_a_function_that_returns_no_context_manager_fails_its_task_at_once_with_the_cure(door: Door) -> None:
    """As a mistake, not as an outage: it makes no sense to try it again."""
    door.open(resource=object)

    error = door.error_of(number_of)

    assert isinstance(error, ResourceCreationError)
    assert "resource=<class 'object'> returned 'object', which is no context manager" in str(error.__cause__)
    assert "as on_create=" in str(error.__cause__)


def test_a_generator_function_is_refused_and_the_cure_is_named() -> None:
    def page() -> Generator[Page]:
        yield Page(0)

    for argument in ("resource", "on_create"):
        with pytest.raises(
            TypeError, match=f"^{argument}=.*is a generator function; decorate it with contextlib.contextmanager"
        ):
            ResourceExecutor(1, **{argument: page})  # type: ignore[arg-type]  # refused


def test_a_context_manager_that_returns_none_is_left_again(door: Door) -> None:
    # 1. It is entered. 2. What it returned is refused as a resource. 3. Nobody destroys what is no resource.
    entered: list[int] = []  # perhaps twice: another worker may try before the task has failed
    left: list[BaseException | None] = []

    @contextmanager
    def page() -> Generator[None]:
        entered.append(1)
        try:
            yield  # and forgets the page
        except BaseException as error:
            left.append(error)
            raise
        left.append(None)

    door.open(resource=page)
    error = door.error_of(number_of)
    door.close()

    assert isinstance(error, ResourceCreationError)
    assert left == [None] * len(entered) != []


class ThrownIn(BaseException):
    """What another thread throws into this one."""


def test_a_context_manager_is_left_if_an_error_comes_before_it_is_noted(pages: Pages) -> None:
    class Interrupted:
        """The lock of the factory, at which the error comes."""

        def __enter__(self) -> None:
            raise ThrownIn

        def __exit__(self, *_: object) -> None: ...

    factory = ContextManagerFactory(pages.page)
    vars(factory)["_lock"] = Interrupted()

    with pytest.raises(ThrownIn):
        factory.create()
    assert len(pages.left) == 1


def test_a_factory_of_context_managers_says_what_it_is() -> None:
    factory: ContextManagerFactory[Any] = ContextManagerFactory(Client)

    assert repr(factory) == f"ContextManagerFactory({Client!r})"


class Client(AbstractContextManager[str]):
    """At the top of the module, so that it can be pickled."""

    def __enter__(self) -> str:
        return "client"

    def __exit__(self, *_: object) -> None: ...


def test_a_factory_of_context_managers_can_be_pickled() -> None:
    # For Dask. What is entered stays here.
    import pickle

    factory: ContextManagerFactory[str] = ContextManagerFactory(Client)
    factory.create()
    copy = pickle.loads(pickle.dumps(factory))

    assert copy._make is Client
    assert copy._entered == {}
    copy.destroy(copy.create())


# -- hooks, one by one --


def test_the_hooks_are_the_methods_of_a_factory(ledger: Ledger) -> None:
    def scope(resource: FakeResource) -> AbstractContextManager[None]:
        return nullcontext()

    given: dict[str, Any] = {
        "on_create": ledger.create,
        "on_destroy": ledger.destroy,
        "check_health": ledger.is_healthy,
        "check_resource": ledger.is_usable,
        "on_reset": FakeResource.use,
        "around": scope,
        "on_abort": print,
    }
    hooks = check_hooks(given)

    assert hooks is not None
    assert (hooks.create, hooks.destroy, hooks.check) == (ledger.create, ledger.destroy, ledger.is_usable)
    assert (hooks.reset, hooks.around, hooks.abort) == (FakeResource.use, scope, print)
    assert hooks.judge is not None


def test_hooks_that_are_not_given_are_none(ledger: Ledger) -> None:
    hooks = check_hooks({**NONE, "on_create": ledger.create})

    assert hooks is not None
    assert [getattr(hooks, name) for name in METHODS[1:]] == [None] * 6
    assert check_hooks(dict(NONE)) is None


@pytest.mark.parametrize(
    "answer, verdict",
    [(True, Verdict.OWN), (False, Verdict.BROKEN), *((verdict, verdict) for verdict in Verdict)],
    ids=str,
)
def test_check_health_answers_yes_no_or_with_a_verdict(
    make_pool: MakePool, ledger: Ledger, answer: bool | Verdict, verdict: Verdict
) -> None:
    asked: list[Exception] = []

    def check_health(error: Exception) -> bool | Verdict:
        asked.append(error)
        return answer

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=check_health, max_retries=1)
    error = pool.submit(FakeResource.break_down).exception(DEADLINE)
    pool.shutdown()

    runs = sum(resource.uses for resource in ledger.created)
    assert (runs, len(ledger.created)) == {Verdict.OWN: (1, 1), Verdict.AGAIN: (2, 1), Verdict.BROKEN: (2, 2)}[verdict]
    assert len(asked) == runs
    assert asked[-1] is error


@pytest.mark.parametrize("answer", [None, True, False, "broken"], ids=repr)
def test_a_judge_answers_with_a_verdict_and_nothing_else(
    door: Door, ledger: Ledger, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Judge(Full):
        def judge(self, error: Exception, resource: FakeResource) -> Any:
            return answer

    ledger.any_thread = True
    pool = door.open(resource=Judge(ledger))

    assert isinstance(door.error_of(FakeResource.break_down), ResourceBroken)
    assert pool.stats().retried == 0
    [record] = [record for record in caplog.records if "returned what it must not" in record.message]
    assert f"judge returned {answer!r}, and must return a Verdict; the error counts as the task's own" in record.message


@pytest.mark.parametrize("answer", [None, 0, 1, "", LookupError()], ids=repr)
def test_any_other_answer_of_check_health_is_a_mistake(
    door: Door, ledger: Ledger, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.any_thread = True
    pool = door.open(on_create=ledger.create, on_destroy=ledger.destroy, check_health=answering(answer))
    errors = [door.error_of(FakeResource.break_down) for _ in range(2)]

    assert [type(error) for error in errors] == [ResourceBroken] * 2
    assert pool.stats().retried == 0
    [record] = [record for record in caplog.records if "returned what it must not" in record.message]
    assert f"check_health returned {answer!r}, and must return True, False or a Verdict" in record.message
