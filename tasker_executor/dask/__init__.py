"""The same executor on a cluster of machines: `DaskResourceExecutor`. ``pip install tasker-executor[dask]``.

For example::

    with Client("tls://scheduler:8786", security=...) as client:
        with DaskResourceExecutor(client, on_create=connect, on_destroy=Connection.close) as pool:
            rows = pool.submit(fetch, "select 1").result()

Dask does what concerns machines: it places tasks, orders them by priority, and runs the tasks of a dead
worker elsewhere. Inside every Dask worker one `ResourceExecutor` does what concerns resources: it makes them
(on the worker; they are never pickled), checks, replaces and destroys them, and retries tasks. A
`WorkerPlugin` owns it. **Life of a task**:

1. `DaskResourceExecutor._enqueue` (`client_side`) pickles the call to one opaque blob (`wire`). It submits
   `hand_over`, a coroutine, under a key of its own. So Dask cannot take equal calls for one, use a keyword of
   the task as its own, or replace an argument that looks like a key.
2. `hand_over` (`worker_side`) runs on a worker's event loop. It gives the blob to the worker's own executor
   and waits.
3. A thread of that executor unpickles the call, runs it with its resource, and pickles the result
   (`worker_side.Call`). So a result that does not pickle is an error, and the event loop never sees a large
   object.
4. The client (`futures`) settles the `concurrent.futures.Future` and releases Dask's future, and with it the
   worker's copy of the result.

`scheduler_side` runs in the scheduler, `deployment` puts the plugins on the cluster, `books` counts the tasks,
`stops` carries out ``future.stop()``, `adaptive` decides how many machines there are, `reports` adds up the
numbers.

**How often does a task run?** *At least once*: when a worker dies, or is closed while it works, Dask runs its
tasks again, however far they had got. ``with_options(max_retries=0)`` makes that *at most once*, at the price
of one more round trip: the scheduler must grant such a task its start, and does so once. The task fails with
`TaskLost` instead of running twice. **Resources** are destroyed exactly once, except in a process that was
killed: give them a time limit on their server.

**How is a task stopped?** ``future.stop()`` sends a message and returns at once. A task that waits is cancelled,
at the scheduler or on a worker. A task that runs is stopped by its worker's own executor, as everywhere: its
token, ``on_abort``, ``abort_grace``. `run_within` is measured on the worker, and needs no message. From the stop
on, Dask runs the task nowhere else: if its worker is gone, its future has `TaskStopped`, and ``__cause__`` is a
`TaskLost`. What a cluster cannot promise:

- *At once.* The stop is one question to the scheduler and one message to the worker. A task may start, or end,
  before they arrive.
- *If they do not arrive.* While the scheduler or the worker does not answer, the client asks again, once a
  second. A worker does not answer while a call holds its GIL. One that is cut off goes on with its tasks; when
  the scheduler has given it up (``distributed.scheduler.worker-ttl``), their futures are lost or stopped.
- *If Dask moves the task* from one worker to another in this moment (work stealing). Then it is cancelled, and may
  run to its end unseen, as a running task does after ``cancel()``.

Tasks are code: anyone who can reach the scheduler can run code on the cluster. Use TLS
(`distributed.Security`) everywhere but on your own machine. Scheduler and workers need this package
installed, too.
"""

from __future__ import annotations

from importlib import import_module

try:
    for _needed in ("cloudpickle", "distributed", "tblib"):
        import_module(_needed)
except ImportError as _error:
    raise ImportError("tasker_executor.dask needs dask.distributed: pip install tasker-executor[dask]") from _error

from .adaptive import PolicyAdaptive
from .client_side import DaskResourceExecutor
from .deployment import Carrier

__all__ = ["Carrier", "DaskResourceExecutor", "PolicyAdaptive"]
