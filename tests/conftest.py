"""The fixtures, and what they check at the end of every test.

They are taken down in this order, whatever order a test asks for them in: the gate opens, the pools are checked and shut down,
the clock is the real one again, the ledger is balanced, no thread is left.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import settings

from support import DEADLINE, Clock, Gate, Hook, Ledger, MakePool, Sequencer, join_all, switch_interval
from tasker_executor import ResourceExecutor

THREADS_END_WITHIN = 10.0  # seconds
FAILED = pytest.StashKey[bool]()

# A busy machine is no bug, so no deadline; and CI tries the same examples each time.
settings.register_profile("tasker", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("tasker")


# -- pytest itself --


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--switch-interval", type=float, metavar="SECONDS", help="sys.setswitchinterval() for the whole run")


def pytest_configure(config: pytest.Config) -> None:
    seconds = config.getoption("--switch-interval")
    if seconds is not None:
        sys.setswitchinterval(seconds)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let fixtures know whether their test failed."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if is_gil_back():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if is_gil_back():
        terminalreporter.section("the GIL")
        terminalreporter.write_line(
            "ERROR: an extension module has turned the GIL on, so this run shows nothing; set PYTHON_GIL=0"
        )


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Dump a traceback if the interpreter does not end, in CI: a leaked thread may keep it from ending."""
    if os.environ.get("CI"):
        faulthandler.dump_traceback_later(2 * DEADLINE, exit=True, file=sys.__stderr__ or sys.stderr)


# -- fixtures --


@pytest.fixture(autouse=True)
def _no_extra_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = set(threading.enumerate())
    yield

    marker = request.node.get_closest_marker("foreign_threads")
    foreign: tuple[str, ...] = marker.args if marker else ()
    extra = [thread for thread in threading.enumerate() if thread not in before and not thread.name.startswith(foreign)]
    alive = join_all(extra, THREADS_END_WITHIN)
    if alive:
        pytest.fail(f"still alive {THREADS_END_WITHIN:g} s after the test: {', '.join(thread.name for thread in alive)}")


@pytest.fixture
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """Books for fake resources; when the test has passed they must balance. See `support.Ledger`."""
    books = Ledger()
    yield books

    if not failed(request):  # A failure is the news; books it left open are not.
        books.check()


@pytest.fixture
def hook() -> Hook:
    """An `on_abort` hook. See `support.Hook`."""
    return Hook()


@pytest.fixture
def clock() -> Iterator[Clock]:
    """The clock of the package, to be put forward. See `support.Clock`."""
    clock = Clock()
    with clock.installed():
        yield clock


@pytest.fixture
def make_pool(request: pytest.FixtureRequest, ledger: Ledger) -> Iterator[MakePool]:
    """Makes executors that are checked and shut down when the test is over.

    It holds them until then. A test that is about dropping an executor makes its own.
    """
    if "clock" in request.fixturenames:  # then it is that of the pools from their birth to their end
        request.getfixturevalue("clock")
    with ExitStack() as endings:  # Every pool is ended, whatever the ending of another raises.

        def make(*args: Any, **kwargs: Any) -> ResourceExecutor[Any]:
            pool: ResourceExecutor[Any] = ResourceExecutor(*args, **kwargs)
            endings.callback(end, pool, lambda: failed(request))
            return pool

        yield make


@pytest.fixture
def gate(make_pool: MakePool) -> Iterator[Gate]:
    """A closed gate. See `support.Gate`."""
    with Gate() as closed:
        yield closed


@pytest.fixture
def busy(make_pool: MakePool, gate: Gate) -> ResourceExecutor[None]:
    """A pool of one worker, which is held at the gate."""
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    return pool


@pytest.fixture
def seq() -> Sequencer:
    """Numbered steps. See `support.Sequencer`."""
    return Sequencer()


@pytest.fixture
def fast_switching() -> Iterator[None]:
    """The test runs with threads that switch every microsecond."""
    with switch_interval():
        yield


@pytest.fixture
def postgres() -> str:
    """The connection string of a real PostgreSQL, for tests marked `services`."""
    return service("TASKER_TEST_POSTGRES")


@pytest.fixture
def redis_url() -> str:
    """The URL of a real Redis, for tests marked `services`."""
    return service("TASKER_TEST_REDIS")


# -- helpers --


def end(pool: ResourceExecutor[Any], has_failed: Callable[[], bool]) -> None:
    if has_failed():
        pool.kill()
        pool.shutdown(timeout=THREADS_END_WITHIN)
        return
    try:
        pool._check()
        pool.shutdown(timeout=DEADLINE)
        pool._check()
    except BaseException:
        pool.kill()
        raise


def is_gil_back() -> bool:
    """Return whether a Python that began without the GIL has it now. An import of an extension module may do that."""
    began_without = getattr(sys.flags, "gil", 1) != 1
    return began_without and getattr(sys, "_is_gil_enabled", lambda: True)()


def failed(request: pytest.FixtureRequest) -> bool:
    item: pytest.Item = request.node
    return item.stash.get(FAILED, False)


def service(variable: str) -> str:
    address = os.environ.get(variable)
    if not address:
        pytest.skip(f"{variable} is not set")
    return address
