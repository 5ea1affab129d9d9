"""The server, the network, and the making of connections."""

from __future__ import annotations

import time

from ..stage import Stage
from ..subjects import SIZE
from ..tasks import write
from ._fault import PATIENCE, fault


@fault("backends terminated under tasks")
def terminated_under(stage: Stage) -> None:
    """Four tasks run, four wait. The server ends all four connections, as an administrator or a restart does."""
    stage.start()
    stage.submit(write, 0.5, count=2 * SIZE)
    stage.until_busy()
    stage.terminate()
    stage.over()


@fault("backends terminated between tasks")
def terminated_between(stage: Stage) -> None:
    """The pool is idle. The server ends all four connections, and eight tasks come."""
    stage.start()
    stage.terminate()
    time.sleep(0.2)  # So that no one can say it is a race.
    stage.over()
    stage.submit(write, count=2 * SIZE)


@fault("all backends terminated, three times")
def terminated_thrice(stage: Stage) -> None:
    """Sixty short tasks run through the pool. Three times within them the server ends all connections at once."""
    stage.start()
    for _ in range(3):
        stage.submit(write, 0.1, count=20)
        stage.until_busy(2)
        stage.terminate()
    stage.over()


@fault("connections cut during COMMIT")
def cut_in_commit(stage: Stage) -> None:
    """The server commits, and the connections break before it can say so, twice. Was the task done? It must not be done
    twice, nor be reported as failed.
    """
    stage.start()
    stage.proxy.cut_commits(2)
    stage.submit(write, count=2 * SIZE)
    stage.over()


@fault("half-open connections", within=PATIENCE)
def half_open(stage: Stage) -> None:
    """The server is gone from the other end of all four idle connections, and no packet says so, as after a failover or
    in a network that forgets. Eight tasks come. The server can be reached all the time.
    """
    stage.start()
    stage.proxy.orphan()
    time.sleep(1.0)
    stage.over()
    stage.submit(write, count=2 * SIZE)


@fault("a network that stands still for three seconds")
def stalled(stage: Stage) -> None:
    """Eight tasks are on their way when nothing comes through any more. After three seconds all goes on."""
    stage.start()
    stage.submit(write, 0.5, count=2 * SIZE)
    stage.until_busy()
    stage.proxy.stall()
    time.sleep(3.0)
    stage.proxy.resume()
    stage.over()


@fault("a refused port for five seconds", within=PATIENCE)
def refused(stage: Stage) -> None:
    """The server is down for five seconds: all connections are reset, and new ones refused. Tasks come all the time."""
    stage.start()
    stage.submit(write, 0.3, count=SIZE)
    stage.until_busy()
    stage.proxy.refuse()
    for _ in range(5):
        stage.submit(write, count=4)
        time.sleep(1.0)
    stage.proxy.accept()
    stage.over()


@fault("slow connects")
def slow_connects(stage: Stage) -> None:
    """Each new connection takes a second and a half. Eight tasks come to a pool that has just been made."""
    stage.proxy.delay_connects(1.5)
    stage.start(warm=False)
    stage.submit(write, count=2 * SIZE)


@fault("a server that accepts and fails", within=PATIENCE)
def accepts_and_fails(stage: Stage) -> None:
    """A restart takes three seconds. Meanwhile the server accepts connections, and answers that it is starting up."""
    stage.start()
    stage.proxy.turn_away(True)
    stage.proxy.reset()
    stage.submit(write, count=2 * SIZE)
    time.sleep(3.0)
    stage.proxy.turn_away(False)
    stage.over()


@fault("a connection that fails once")
def connect_fails_once(stage: Stage) -> None:
    """The first attempt to connect fails. Eight tasks come to a pool that has just been made."""
    stage.proxy.fail_next(1)
    stage.start(warm=False)
    stage.submit(write, count=2 * SIZE)


@fault("connections that fail ten times", within=PATIENCE)
def connect_fails_ten_times(stage: Stage) -> None:
    """The first ten attempts to connect fail. Eight tasks come to a pool that has just been made."""
    stage.proxy.fail_next(10)
    stage.start(warm=False)
    stage.submit(write, count=2 * SIZE)


@fault("a connection attempt that hangs")
def connect_hangs(stage: Stage) -> None:
    """The first attempt to connect is accepted and never answered; all subjects have a connect_timeout of two seconds.
    Eight tasks come to a pool that has just been made.
    """
    stage.proxy.swallow_next(1)
    stage.start(warm=False)
    stage.submit(write, count=2 * SIZE)
