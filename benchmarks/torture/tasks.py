"""What the work does.

A task is a generator of steps: a statement for the connection that the subject provides, or a future to wait for. So the
same task runs on threads and on coroutines, and knows neither the connection nor the driver. Tasks are functions of
this module with arguments that JSON knows, so a subject with a broker can send them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .subjects import Subject

__all__ = ["BOOK", "Sql", "Task", "perform"]


class Sql(NamedTuple):
    statement: str
    parameters: tuple[Any, ...] = ()


#: A future is waited for; of what kind it is, the subject knows.
Task = Callable[..., Generator[Any, None, None]]


class Book:
    """Notes each run of a task, in a file that survives the process."""

    cell = table = ""
    subject: Subject  # For tasks that submit tasks.
    _file = -1

    def open(self, cell: str, table: str, path: str) -> None:
        self.cell = cell
        self.table = table
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note_run(self, number: int) -> None:
        os.write(self._file, f"{number}\n".encode())  # One write, so lines of threads and processes do not mix.


BOOK = Book()


def perform(execute: Callable[[str, tuple[Any, ...]], Any], task: Task, *arguments: Any) -> None:
    """Run a task on a connection that blocks: `execute` is its method."""
    for step in task(*arguments):
        if isinstance(step, Sql):
            execute(*step)
        else:
            step.result()


def effect(number: int) -> Sql:
    """The effect of a task: one row, there once if the task was done once."""
    return Sql(f"insert into {BOOK.table} (cell, number) values (%s, %s)", (BOOK.cell, number))


def sleep(seconds: float) -> Sql:
    return Sql("select pg_sleep(%s)", (seconds,))


def write(number: int, seconds: float = 0.0) -> Generator[Any, None, None]:
    """Write a row, and stay for some time with the transaction open."""
    BOOK.note_run(number)
    yield effect(number)
    if seconds:
        yield sleep(seconds)


def read(number: int) -> Generator[Any, None, None]:
    """Do as little as a task can that needs its connection. Some milliseconds, so that each worker gets one."""
    yield sleep(0.02)


def note(number: int) -> Generator[Any, None, None]:
    """Leave the connection alone."""
    BOOK.note_run(number)
    yield from ()


def limited(name: str, seconds: float, *arguments: Any) -> Generator[Any, None, None]:
    """Run another task with a limit for each of its statements, which the server keeps."""
    yield Sql(f"set local statement_timeout = {int(seconds * 1000)}")
    yield from globals()[name](*arguments)


def poison(number: int) -> Generator[Any, None, None]:
    """Break every connection that it gets."""
    BOOK.note_run(number)
    yield Sql("select pg_terminate_backend(pg_backend_pid())")
    yield Sql("select 1")


def fail(number: int) -> Generator[Any, None, None]:
    """Write a row, then raise an error of the task's own, which is no fault of the connection."""
    BOOK.note_run(number)
    yield effect(number)
    yield Sql("select 1 / 0")


class Refusing(Exception):
    """Refuses every attribute: notes, a cause, a context."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"no attribute {name} here")

    def add_note(self, note: str) -> None:
        raise TypeError("no notes here")


def refuse(number: int) -> Generator[Any, None, None]:
    BOOK.note_run(number)
    yield effect(number)
    raise Refusing("touch me not")


def forget(number: int) -> Generator[Any, None, None]:
    """Begin a transaction, as the driver does for each statement, and forget to end it."""
    BOOK.note_run(number)
    yield Sql(f"select count(*) from {BOOK.table}")


def parent(number: int) -> Generator[Any, None, None]:
    """Submit a task to the same pool, and wait for it."""
    BOOK.note_run(number)
    yield effect(number)
    yield BOOK.subject.submit(write, 1000 + number)
