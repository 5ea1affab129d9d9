# pyright: reportUnnecessaryTypeIgnoreComment=true
"""Uses of the library that a type checker must reject.

Each ends in a ``type: ignore`` that says why. If mypy accepted the line, it would call the comment unused. So would pyright,
which is told to in the first line. Nothing here is ever run.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from tasker_executor import ExecutorView, LoadSample, Observer, RatePolicy, ResourceExecutor, current_task
from tasker_executor.simulation import simulate
from typing_accepted import Connection, Database, fetch, word_count


class Socket:
    """Another resource."""

    def close(self) -> None:
        pass


def keep(*values: object) -> None:
    """Use what has been assigned."""


def close_socket(socket: Socket) -> None:
    socket.close()


# -- the constructor


def hooks_of_the_wrong_type() -> None:
    ResourceExecutor(2, on_create=Connection())  # type: ignore[arg-type]  # a resource where its maker belongs
    ResourceExecutor(2, on_create=fetch)  # type: ignore[arg-type]  # a maker gets no arguments
    ResourceExecutor(2, on_create=Connection, on_destroy=close_socket)  # type: ignore[misc]  # not its resource
    ResourceExecutor(2, on_create=Connection, on_abort=close_socket)  # type: ignore[misc]  # nor here
    ResourceExecutor(2, on_create=Connection, check_resource=Connection.close)  # type: ignore[arg-type]  # no answer
    ResourceExecutor(2, on_create=Connection, check_health=Connection.ping)  # type: ignore[arg-type]  # asked of an error


def arguments_of_the_wrong_type() -> None:
    ResourceExecutor("2")  # type: ignore[arg-type]  # a number of workers is a number
    ResourceExecutor(2, on_full="drop")  # type: ignore[arg-type]  # "block", "raise" or "caller"
    ResourceExecutor(2, "name", None, (), 1)  # type: ignore[call-arg, arg-type]  # what is new is keyword-only
    ResourceExecutor(2, max_retry=1)  # type: ignore[call-arg]  # max_retries
    ResourceExecutor(2, idle_timeout="1 s")  # type: ignore[arg-type]  # seconds


def a_pool_of_another_resource() -> None:
    pool: ResourceExecutor[None] = ResourceExecutor(2, on_create=Connection)  # type: ignore[arg-type]  # has a resource
    # Invariant, for this: a task of such a pool gets an object, and this pool has none to hand out.
    any_resource: ResourceExecutor[object] = ResourceExecutor[None](2)  # type: ignore[assignment]  # no object there
    keep(pool, any_resource)


# -- tasks


def tasks_without_a_resource(pool: ResourceExecutor[None]) -> None:
    pool.submit(word_count)  # type: ignore[call-overload]  # what text?
    pool.submit(word_count, 3)  # type: ignore[call-overload]  # no text
    pool.submit(word_count, "to be", most=3)  # type: ignore[call-arg]  # least
    pool.submit(fetch, "why?")  # type: ignore[call-overload]  # there is no connection to fetch it from
    pool.submit("to be")  # type: ignore[call-overload]  # nothing to call
    pool.submit_priority(word_count)  # type: ignore[call-overload]  # the same in the other lane
    pool.run_now(word_count, 3)  # type: ignore[call-overload]  # and here


def tasks_with_a_resource(pool: ResourceExecutor[Connection]) -> None:
    pool.submit(fetch)  # type: ignore[call-arg]  # what question?
    pool.submit(fetch, 3)  # type: ignore[arg-type]  # no question
    pool.submit(fetch, "why?", 3)  # type: ignore[call-arg]  # times is keyword-only
    pool.submit(fetch, Connection(), "why?")  # type: ignore[call-arg, arg-type]  # the connection is not for the caller to give
    pool.submit(word_count, "to be")  # type: ignore[arg-type]  # wants no connection
    pool.submit(close_socket)  # type: ignore[arg-type]  # another resource
    pool.submit_priority(fetch, 3)  # type: ignore[arg-type]  # the same in the other lane
    pool.run_now(fetch)  # type: ignore[call-arg]  # and here


def results_of_another_type(pool: ResourceExecutor[Connection]) -> None:
    future: Future[str] = pool.submit(fetch, "why?")  # type: ignore[arg-type]  # a list of strings
    answer: str = pool.run_now(fetch, "why?")  # type: ignore[assignment]  # again
    for length in pool.map(fetch, ["why?"]):
        length + 1  # type: ignore[operator]  # and again
    pool.current_resource().send()  # type: ignore[attr-defined]  # a Connection does not
    keep(future, answer)


async def coroutines(pool: ResourceExecutor[Connection], plain: ResourceExecutor) -> None:
    await plain.as_async().run(word_count, 3)  # type: ignore[call-overload]  # no text
    await pool.as_async().run(fetch, 3)  # type: ignore[arg-type]  # no question
    await pool.as_async(pass_resource=False).run(fetch, "why?")  # type: ignore[call-overload]  # no connection
    pool.as_async().map(fetch, [1, 2])  # type: ignore[arg-type]  # no questions
    pool.as_async(priorty=True)  # type: ignore[call-overload]  # priority
    for _ in pool.as_async().map(fetch, ["why?"]):  # type: ignore[attr-defined]  # async for
        pass


def maps(pool: ResourceExecutor[Connection], plain: ResourceExecutor) -> None:
    pool.map(fetch)  # type: ignore[call-overload]  # no iterable
    pool.map(fetch, "why?", [1])  # type: ignore[arg-type]  # times is keyword-only
    pool.map(fetch, [1, 2])  # type: ignore[arg-type]  # no questions
    pool.map(fetch, 3)  # type: ignore[call-overload]  # nothing to iterate over
    pool.map(word_count, ["to be"])  # type: ignore[arg-type]  # wants no connection
    pool.map(close_socket, [1])  # type: ignore[arg-type]  # another resource
    pool.map(lambda question: question, ["why?"])  # type: ignore[arg-type, misc]  # a lambda gets the connection, too
    pool.map(lambda connection, question: connection.tell(question), ["why?"])  # type: ignore[attr-defined]  # it asks
    plain.map(word_count, [1, 2])  # type: ignore[arg-type]  # no texts
    plain.map(word_count, ["to be"], ["one"])  # type: ignore[arg-type]  # the least number is a number
    plain.map(fetch, ["why?"])  # type: ignore[arg-type]  # there is no connection to fetch it from
    plain.map(lambda text: text + 1, ["to be"])  # type: ignore[operator]  # a text
    plain.with_options(priority=True).map(word_count, [1])  # type: ignore[arg-type]  # the same of a view
    pool.with_options(pass_resource=False).map(fetch, ["why?"])  # type: ignore[arg-type]  # fetch gets no connection
    for length in pool.map(lambda connection, question: connection.ask(question), ["why?"], ordered=False):
        length + 1  # type: ignore[operator]  # a list of strings


def options(pool: ResourceExecutor[Connection]) -> None:
    pool.map(fetch, ["why?"], chunks=2)  # type: ignore[call-overload]  # chunksize
    pool.map(fetch, ["why?"], timeout="1 s")  # type: ignore[call-overload]  # seconds
    pool.map(fetch, ["why?"], stop_on_timeout=1.5)  # type: ignore[call-overload]  # yes or no; the seconds are `timeout`
    pool.with_options(priority="high")  # type: ignore[call-overload]  # there are two lanes: True or False
    pool.with_options(retries=0)  # type: ignore[call-overload]  # max_retries
    pool.with_options(pass_resource=True)  # type: ignore[call-overload]  # no view knows which resource it has left out
    pool.with_options(pass_resource=False).submit(fetch, "why?")  # type: ignore[call-overload]  # fetch gets no connection
    pool.with_options(priority=True).submit(word_count, "to be")  # type: ignore[arg-type]  # it gets the connection
    pool.shutdown(True, True)  # type: ignore[call-arg]  # cancel_futures is keyword-only
    pool.resize(4)  # type: ignore[call-arg]  # which bound?
    plain: ExecutorView[None] = pool.with_options(priority=True)  # type: ignore[assignment]  # has the resource
    keep(plain)


def subclasses(database: Database) -> None:
    database.submit(close_socket)  # type: ignore[arg-type]  # another resource
    database.ask(1)  # type: ignore[arg-type]  # no question


# -- policies and observers


class NoInterval:
    """Asked how often?"""

    def target(self, load: LoadSample) -> int:
        return load.target


@dataclass
class Slow:
    """The interval is no number."""

    interval: str = "1 s"

    def target(self, load: LoadSample) -> int:
        return load.target


class Guess:
    """Looks at no load."""

    interval = 1.0

    def target(self) -> int:
        return 1


class Listener:
    """Not an observer, although it listens."""

    def task_finished(self, event: object) -> None: ...


class Deaf(Observer):
    """Overrides with something that no event fits."""

    def task_finished(self, event: str) -> None: ...  # type: ignore[override]  # it gets a TaskEvent


def policies_and_observers() -> None:
    ResourceExecutor(2, policy=NoInterval())  # type: ignore[arg-type]  # no interval
    ResourceExecutor(2, policy=Slow())  # type: ignore[arg-type]  # seconds, as a number
    ResourceExecutor(2, policy=Guess())  # type: ignore[arg-type]  # target() gets a sample
    ResourceExecutor(2, policy=RatePolicy)  # type: ignore[arg-type]  # the class, not one of it
    ResourceExecutor(2, observers=[Listener()])  # type: ignore[list-item]  # no Observer
    ResourceExecutor(2, observers=Observer())  # type: ignore[arg-type]  # several, even if it is one
    simulate(NoInterval(), [0.0], 1.0, max_workers=2)  # type: ignore[arg-type]  # no interval here either
    RatePolicy().interval = 2.0  # type: ignore[misc]  # policies are frozen
    current_task().cancelled = True  # type: ignore[misc]  # kill() does that
