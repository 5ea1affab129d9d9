"""What tests of `tasker_executor.dask` share with workers, which import this module by its name."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from typing_extensions import override

from support import DEADLINE, eventually
from tasker_executor import TaskFuture, current_task
from tasker_executor._options import TaskOptions

__all__ = [
    "FOREIGN_THREADS",
    "FileLedger",
    "FileResource",
    "Ref",
    "UnpickledLate",
    "hogs",
    "note_abort",
    "take_the_worker_along",
    "wait_for_file",
    "work",
    "work_until",
    "work_until_stopped",
]

#: Threads of Dask's own. Some outlive their cluster.
FOREIGN_THREADS = ("IO loop", "Dask-", "Profile", "asyncio_", "AsyncProcess", *(f"{worker}-Dask-" for worker in range(10)))

_objects: dict[int, Any] = {}


def _find(number: int) -> Ref:
    return Ref(_objects[number])


class Ref:
    """An object of this process that pickles as a reference to itself: for clusters whose workers live in this process."""

    def __init__(self, target: Any) -> None:
        self.target = target
        _objects[id(target)] = target

    def __reduce__(self) -> tuple[Callable[[int], Ref], tuple[int]]:
        return _find, (id(self.target),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.target(*args, **kwargs)


if find_spec("distributed") is not None:
    from distributed import Client, LocalCluster

    from engine import ChunkRunner as _ChunkRunner
    from tasker_executor.dask import DaskResourceExecutor

    class OnItsOwnCluster(DaskResourceExecutor[None]):
        """An executor on a cluster of its own in this process, to which it hands calls by reference."""

        def __init__(self, workers: int) -> None:
            self._cluster: Any = LocalCluster(n_workers=1, threads_per_worker=workers, processes=False, dashboard_address=":0")  # type: ignore[no-untyped-call]  # Dask has few types
            super().__init__(Client(self._cluster, set_as_default=False))  # type: ignore[no-untyped-call]  # Dask has few types

        @override
        def _enqueue(
            self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
        ) -> TaskFuture[Any]:
            if isinstance(fn, _ChunkRunner):
                return super()._enqueue(_ChunkRunner(Ref(fn.__wrapped__)), args, kwargs, options)
            return super()._enqueue(Ref(partial(fn, *args, **kwargs)), (), {}, options)

        @override
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
            super().shutdown(wait, cancel_futures=cancel_futures, timeout=timeout)
            if wait:
                self._client.close()
                self._cluster.close()


class FileResource:
    """A resource whose life is written to a file. It stays where it is made."""

    _numbers = itertools.count()

    def __init__(self, ledger: FileLedger) -> None:
        self.ledger = ledger
        self.name = f"{os.getpid()}-{next(self._numbers)}"
        self.broken = False
        ledger.note("created", self.name)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a resource must not be pickled")

    @contextmanager
    def use(self, task: object) -> Generator[None]:
        self.ledger.note("begun", self.name, task)
        try:
            yield
        finally:
            self.ledger.note("ended", self.name, task)


class FileLedger:
    """Books that survive SIGKILL: each line is written by one call, at the end of the file. It pickles, being a path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def note(self, *words: object) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, f"{' '.join(map(str, words))}\n".encode())
        finally:
            os.close(descriptor)

    def create(self) -> FileResource:
        return FileResource(self)

    def destroy(self, resource: FileResource) -> None:
        self.note("destroyed", resource.name)

    def entries(self, verb: str) -> list[list[str]]:
        """Return the notes with that verb, in order."""
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return [words for first, *words in lines if first == verb]

    def wait_until_noted(self, verb: str, times: int = 1) -> list[list[str]]:
        eventually(lambda: len(self.entries(verb)) >= times, f"{times} x {verb} in {self.path}")
        return self.entries(verb)

    def left_over(self) -> set[str]:
        """Return the resources that were created and not destroyed."""
        return {words[0] for words in self.entries("created")} - {words[0] for words in self.entries("destroyed")}

    def check(self, killed: set[int], *, abandoned: bool = False) -> None:
        """Fail unless each resource was destroyed once and after its last use, or was left behind by a killed process."""
        destroyed = Counter(words[0] for words in self.entries("destroyed"))
        twice = [name for name, times in destroyed.items() if times > 1]
        leaked = {name for name in self.left_over() if int(name.partition("-")[0]) not in killed}
        gone: set[str] = set()
        used: Counter[str] = Counter()
        in_use: list[str] = []
        for line in self.path.read_text().splitlines():
            verb, name, *_ = line.split()
            used[name] += (verb == "begun") - (verb == "ended")
            if verb == "destroyed":
                gone.add(name)
                if used[name] and not abandoned:
                    in_use.append(name)
            elif verb == "begun" and name in gone:
                in_use.append(name)

        assert not twice, "destroyed twice"
        assert not leaked, "left over, though its process was not killed"
        assert not in_use, "destroyed while in use, or used after that"


def wait_for_file(path: Path) -> None:
    eventually(path.exists, f"{path} to exist")


@contextmanager
def hogs(count: int) -> Generator[None]:
    """Keep the machine busy with other processes."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


# -- tasks, hooks and settings for workers that are processes


def work(resource: FileResource, number: int, seconds: float = 0.0) -> int:
    """A task that takes a number of seconds."""
    with resource.use(number):
        time.sleep(seconds)
    return number


def work_until(resource: FileResource, number: int, path: Path) -> int:
    """A task that ends when this file exists."""
    with resource.use(number):
        wait_for_file(path)
    return number


def work_until_stopped(resource: FileResource, number: int) -> None:
    """A task that ends when it is stopped."""
    with resource.use(number):
        current_task().wait(DEADLINE)
        current_task().raise_if_cancelled()


def note_abort(resource: FileResource) -> None:
    """An `on_abort` that helps nothing."""
    resource.ledger.note("aborted", resource.name)


def take_the_worker_along(resource: FileResource, number: int) -> NoReturn:
    """A task that kills the process of its worker."""
    resource.ledger.note("begun", resource.name, number)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("alive")


class UnpickledLate:
    """An argument that unpickles only when a file exists. A failure is noted in the ledger."""

    def __init__(self, path: Path, ledger: FileLedger) -> None:
        self.path, self.ledger = path, ledger

    def __reduce__(self) -> tuple[Callable[[Path, FileLedger], UnpickledLate], tuple[Path, FileLedger]]:
        return _unpickle_late, (self.path, self.ledger)


def _unpickle_late(path: Path, ledger: FileLedger) -> UnpickledLate:
    if not path.exists():
        ledger.note("failed", os.getpid())
        path.touch()
        raise ImportError("not yet")
    return UnpickledLate(path, ledger)
