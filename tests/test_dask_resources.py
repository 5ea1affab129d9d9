"""`tasker_executor.dask`: a resource in one argument, its verdicts and its refresh. What goes to the workers is pickled."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="tasker_executor.dask needs dask.distributed")

from distributed import Client
from distributed.comm.core import CommClosedError
from typing_extensions import override

import dask_cluster
from dask_cluster import THREADS, WORKERS, AnyClient, MakePool, hooks, new_cluster, on_scheduler, residue, use
from dask_support import FOREIGN_THREADS, FileLedger, FileResource, Ref
from support import DEADLINE, Gate, Ledger
from tasker_executor import Observer, ResourceFactory, Verdict, current_task
from tasker_executor.dask import DaskResourceExecutor
from tasker_executor.factory import ContextManagerFactory

pytestmark = pytest.mark.foreign_threads(*FOREIGN_THREADS)

client = dask_cluster.client
make_dask = dask_cluster.make_dask
gate = dask_cluster.gate


# -- what travels: factories and functions of a module, with a file for their books


class Files(ResourceFactory[FileResource]):
    """Books all that is asked of it in a file. One attribute overrides a method, for this instance only."""

    def __init__(self, books: FileLedger, *, scoped: bool = False) -> None:
        self.books = books
        if scoped:
            vars(self)["around"] = self._scope

    @override
    def create(self) -> FileResource:
        return self.books.create()

    @override
    def destroy(self, resource: FileResource) -> None:
        self.books.destroy(resource)

    @override
    def judge(self, error: Exception, resource: FileResource) -> Verdict:
        if isinstance(error, KeyError):
            return Verdict.AGAIN
        return Verdict.BROKEN if isinstance(error, OSError) else Verdict.OWN

    @override
    def reset(self, resource: FileResource) -> None:
        self.books.note("reset", resource.name)

    @contextmanager
    def _scope(self, resource: FileResource) -> Generator[str]:
        self.books.note("entered", resource.name)
        yield f"session of {resource.name}"
        self.books.note("left", resource.name)


@contextmanager
def opened(path: Path) -> Generator[FileResource]:
    books = FileLedger(path)
    resource = books.create()
    try:
        yield resource
    finally:
        books.destroy(resource)


pages: list[str] = []


@contextmanager
def page() -> Generator[str]:
    """A context manager of a module, which the workers of this process import from it."""
    name = threading.current_thread().name
    pages.append(f"opened by {name}")
    yield name
    pages.append(f"closed by {threading.current_thread().name}")


def get(resource: object) -> object:
    return resource


def name_of(resource: FileResource) -> str:
    return resource.name


def fail_at_first(resource: FileResource, *errors: Exception) -> str:
    """Raise one of the errors in each attempt, then return the name of the resource."""
    attempt = current_task().attempt
    resource.ledger.note("tried", resource.name)
    if attempt <= len(errors):
        raise errors[attempt - 1]
    return resource.name


@pytest.fixture
def books(tmp_path: Path) -> Iterator[FileLedger]:
    """Books in a file; each resource in them must be destroyed once the executors are shut down."""
    books = FileLedger(tmp_path / "books")
    yield books

    books.check(killed=set())


# -- factories


def test_context_manager_of_a_module_is_entered_and_left_on_the_worker(make_dask: MakePool) -> None:
    pages.clear()
    pool = make_dask(resource=page)
    name = pool.submit(get).result(DEADLINE)
    pool.shutdown(timeout=DEADLINE)

    assert pages == [f"opened by {name}", f"closed by {name}"]


@pytest.mark.parametrize("wrapped", [False, True], ids=["function", "ContextManagerFactory"])
def test_context_managers_are_left_at_the_end(books: FileLedger, make_dask: MakePool, wrapped: bool) -> None:
    resource: Any = partial(opened, books.path)
    pool = make_dask(resource=ContextManagerFactory(resource) if wrapped else resource)
    name = pool.submit(name_of).result(DEADLINE)
    pool.shutdown(timeout=DEADLINE)

    assert books.entries("created") == books.entries("destroyed") == [[name]]


def test_context_manager_factory_can_be_pickled_while_its_resources_live() -> None:
    factory = ContextManagerFactory(page)
    resource = factory.create()
    copy = pickle.loads(pickle.dumps(factory))
    factory.destroy(resource)

    assert repr(copy) == repr(factory)
    other = copy.create()
    copy.destroy(other)


@pytest.mark.parametrize("scoped", [False, True], ids=["as its class is", "with an override of its own"])
def test_factory_goes_to_the_workers_as_it_is(books: FileLedger, make_dask: MakePool, scoped: bool) -> None:
    pool = make_dask(resource=Files(books, scoped=scoped))
    seen = pool.submit(str if scoped else name_of).result(DEADLINE)
    pool.shutdown(timeout=DEADLINE)

    [[name]] = books.entries("created")
    assert seen == (f"session of {name}" if scoped else name)
    assert books.entries("reset") == [[name]]
    assert len(books.entries("entered")) == len(books.entries("left")) == scoped


@pytest.mark.parametrize(
    "errors, tried, resources",
    [([KeyError()], 2, 1), ([OSError()], 2, 2), ([KeyError(), OSError(), KeyError()], 4, 2)],
    ids=["AGAIN", "BROKEN", "both"],
)
def test_verdicts_of_a_factory_are_those_of_the_worker(
    books: FileLedger, make_dask: MakePool, errors: list[Exception], tried: int, resources: int
) -> None:
    pool = make_dask(resource=Files(books))
    last = pool.submit(fail_at_first, *errors).result(DEADLINE)

    tries = [name for [name] in books.entries("tried")]
    assert len(tries) == tried
    assert len(set(tries)) == resources
    assert tries[-1] == last
    assert pool.stats().retried == tried - 1


def test_own_error_is_not_run_again(books: FileLedger, make_dask: MakePool) -> None:
    pool = make_dask(resource=Files(books))

    assert isinstance(pool.submit(fail_at_first, ValueError()).exception(DEADLINE), ValueError)
    assert len(books.entries("tried")) == 1


def test_on_reset_and_around_go_to_the_workers_as_they_are(books: FileLedger, make_dask: MakePool) -> None:
    pool = make_dask(on_create=books.create, on_destroy=books.destroy, on_reset=note_reset, around=session)
    seen = pool.submit(str).result(DEADLINE)
    pool.shutdown(timeout=DEADLINE)

    [[name]] = books.entries("created")
    assert seen == f"session of {name}"
    assert books.entries("reset") == [[name]]


def note_reset(resource: FileResource) -> None:
    resource.ledger.note("reset", resource.name)


@contextmanager
def session(resource: FileResource) -> Generator[str]:
    yield f"session of {resource.name}"


# -- what does not pickle


class WithLock(ResourceFactory[object]):
    """Holds what cannot travel."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    @override
    def create(self) -> object:
        return object()


class ObserverWithLock(Observer):
    def __init__(self) -> None:
        self.lock = threading.Lock()


def needing(lock: object) -> Callable[..., Any]:
    """Return a hook that cannot travel."""

    def hook(*_: object) -> None:
        raise AssertionError(lock)

    return hook


@pytest.mark.parametrize(
    "argument, arguments",
    [
        ("resource", lambda: {"resource": WithLock()}),
        ("resource", lambda: {"resource": needing(threading.Lock())}),
        ("on_create", lambda: {"on_create": needing(threading.Lock())}),
        ("on_reset", lambda: {"on_create": object, "on_reset": needing(threading.Lock())}),
        ("around", lambda: {"on_create": object, "around": needing(threading.Lock())}),
        ("initargs", lambda: {"initializer": print, "initargs": (threading.Lock(),)}),
        ("observers", lambda: {"observers": [ObserverWithLock()]}),
        ("carriers", lambda: {"carriers": [(str, needing(threading.Lock()))]}),
    ],
    ids=["factory", "context manager", "on_create", "on_reset", "around", "initargs", "observers", "carriers"],
)
def test_argument_that_does_not_pickle_is_named(
    client: AnyClient, argument: str, arguments: Callable[[], dict[str, Any]]
) -> None:
    before = on_scheduler(client, residue)

    with pytest.raises(TypeError, match=rf"^{argument}=.* does not pickle, so the workers cannot have it: .*lock"):
        DaskResourceExecutor(client, **arguments())
    assert on_scheduler(client, residue) == before


class Moody:
    """Does not pickle the first time."""

    def __init__(self) -> None:
        self.asked = 0

    def __reduce__(self) -> Any:
        self.asked += 1
        if self.asked == 1:
            raise LookupError("not now")
        return Moody, ()


def test_error_in_pickling_that_no_argument_repeats_is_raised_as_it_is(client: AnyClient) -> None:
    with pytest.raises(LookupError, match="not now"):
        DaskResourceExecutor(client, initializer=print, initargs=(Moody(),))


# -- refresh


def test_refresh_replaces_every_resource_on_every_worker(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(**hooks(ledger))
    with Gate() as held:
        tasks = [pool.submit(Ref(held.hold)) for _ in range(WORKERS * THREADS)]
        held.wait_until_held(WORKERS * THREADS)
        pool.refresh()
    for task in tasks:
        task.result(DEADLINE)
    numbers = {pool.submit(Ref(use)).result(DEADLINE) for _ in range(20)}

    assert len(ledger.created) > WORKERS * THREADS
    assert min(numbers) >= WORKERS * THREADS
    ledger.wait_until_destroyed(WORKERS * THREADS)


def test_refresh_replaces_the_resources_of_run_now(make_dask: MakePool, ledger: Ledger) -> None:
    ledger.any_thread = True
    pool = make_dask(**hooks(ledger), resource_pool_size=1)
    before = {pool.run_now(Ref(use)) for _ in range(WORKERS)}
    pool.refresh()

    assert before == set(range(WORKERS))
    assert {pool.run_now(Ref(use)) for _ in range(WORKERS)} == set(range(WORKERS, 2 * WORKERS))


def test_refresh_reaches_a_worker_that_is_being_set_up(make_dask: MakePool, ledger: Ledger, gate: Gate) -> None:
    """Its reserve may have been made with what the refresh makes stale. Dask has such a worker answer when it is set up."""
    ledger.any_thread = True

    def create() -> Any:
        resource = ledger.create()
        if resource.number == 1:
            gate.hold()
        return resource

    with new_cluster(1) as own, ThreadPoolExecutor(1) as caller:
        pool = make_dask(on=own, **{**hooks(ledger), "on_create": Ref(create)}, resource_pool_size=1)
        own.cluster.scale(2)
        gate.wait_until_held()
        refreshed = caller.submit(pool.refresh)
        ledger.wait_until_created(3)  # the other worker has been told
        gate.release()
        refreshed.result(DEADLINE)
        numbers = {pool.run_now(Ref(use)) for _ in range(4)}
        pool.shutdown(timeout=DEADLINE)

    assert numbers == {2, 3}


def test_refresh_on_the_event_loop_of_the_client_is_refused(make_dask: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_dask()
    with monkeypatch.context() as patch:
        patch.setattr(Client, "asynchronous", True)
        with pytest.raises(RuntimeError, match="refresh would block the event loop"):
            pool.refresh()


def test_refresh_tells_what_went_wrong_on_a_worker_but_not_that_one_is_lost(
    make_dask: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_dask()
    replies: dict[str, Any] = {"lost": CommClosedError("gone"), "well": None}

    def answer(*_: Any, **__: Any) -> dict[str, Any]:
        return replies

    monkeypatch.setattr(pool._client, "run", answer)
    pool.refresh()
    replies["wrong"] = LookupError("no such thing")

    with pytest.raises(LookupError):
        pool.refresh()
    monkeypatch.undo()


def test_refresh_after_the_end_does_nothing(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(**hooks(ledger))
    pool.submit(Ref(use)).result(DEADLINE)
    pool.shutdown(timeout=DEADLINE)
    pool.refresh()

    assert len(ledger.created) == 1


def test_refresh_without_a_connection_does_nothing(make_dask: MakePool) -> None:
    with new_cluster(1) as own:
        pool = make_dask(on=own)
        pool.shutdown(timeout=DEADLINE)
    pool.refresh()
