"""`DirectView`: the view of a `ResourceExecutor`, whose `submit` queues a task in line.

A task with options takes the same steps as one without, in the same order: see ``_executor.py``. A task that
needs care takes the path of `ExecutorView`: the queue has a bound, an observer listens, or the executor accepts
no more tasks.
"""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, Any
from weakref import ref

from typing_extensions import TypeVar

from ._base import BaseExecutor, ExecutorView
from ._engine.calls import WithoutResource, bind
from ._engine.sidecar import OptionsSidecar
from ._engine.task import PENDING, Task
from ._options import UNSET, TaskOptions
from ._sync import clock
from .futures import TaskFuture

__all__ = ["DirectView"]

R = TypeVar("R", default=None)


class DirectView(ExecutorView[R]):
    """A view that submits to a `ResourceExecutor`."""

    def __init__(self, root: Any, options: TaskOptions) -> None:
        # `ExecutorView.__init__`, in line
        self._root: BaseExecutor[Any] = root
        self._options = options
        self._futures: list[ref[TaskFuture[Any]]] = []

    if not TYPE_CHECKING:

        def submit(self, fn, /, *args, **kwargs):
            root = self._root
            if root._needs_care or self._shut_down:
                try:
                    return self._enqueue(fn, args, kwargs, self._options)
                finally:  # if the task has run in this call, its error leads to this frame
                    del self, root, fn, args, kwargs
            core = root._core
            priority, max_retries, pass_resource, start_within, run_within = self._options
            if kwargs:
                fn = bind(fn, kwargs)
            if not pass_resource and core.source is not None:
                fn = WithoutResource(fn)
            future = Task()
            future._status = PENDING
            future._sidecar = None
            future._result = fn
            future._exception = args
            future._context = copy_context() if core.propagate_context else None
            future._lane = lane = core.lanes.priority if priority else core.lanes.normal
            future._submitted = submitted = clock()
            if start_within is not None or run_within is not UNSET or max_retries is not None:
                deadline = None if start_within is None else submitted + start_within
                future._sidecar = sidecar = OptionsSidecar()  # without `adopt`: no other thread knows the task yet
                sidecar.max_retries = max_retries
                sidecar.run_within = run_within
                sidecar.deadline = deadline
            lane.append(future)
            if core.idle.line:
                core.wake(future)
            if start_within is not None:
                core.deadlines.watch(future, deadline)
            futures = self._futures  # `_note`, in line
            futures.append(ref(future))
            if self._shut_down or len(futures) > self._many:
                self._look_again(future)
            return future

        submit.__doc__ = BaseExecutor.submit.__doc__
        _submit_as_defined = submit
