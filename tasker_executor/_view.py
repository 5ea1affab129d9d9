"""`DirectView`: the view of a `ResourceExecutor`, whose `submit` queues a task in line.

A task with options takes the same steps as one without, in the same order: see ``_executor.py``. A task that
needs care takes the path of `ExecutorView`: the queue has a bound, an observer listens, or the executor accepts
no more tasks.

A view is often made for one task. So `with_options` of the executor is written in line, too: with calls of
`TaskOptions.derive` and of an ``__init__`` it would take twice as long.
"""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, Any
from weakref import ref

from typing_extensions import TypeVar, override

from ._base import MANY_FUTURES, BaseExecutor, ExecutorView
from ._checks import check_count, check_seconds
from ._engine.calls import WithoutResource, bind
from ._engine.sidecar import OptionsSidecar
from ._engine.task import PENDING, Task
from ._options import UNSET, TaskOptions, Unset
from ._sync import clock

__all__ = ["DirectView", "WithDirectViews"]

R = TypeVar("R", default=None)


class WithDirectViews(BaseExecutor[R]):
    """The half of a `ResourceExecutor` that makes its views."""

    if not TYPE_CHECKING:

        def with_options(
            self,
            *,
            priority: bool | Unset = UNSET,
            max_retries: int | Unset = UNSET,
            pass_resource: bool | Unset = UNSET,
            start_within: float | Unset | None = UNSET,
            run_within: float | Unset | None = UNSET,
        ) -> ExecutorView[Any]:
            # `TaskOptions.derive` and `_make_view`, in line. An executor's own options are the default ones.
            if max_retries is UNSET:
                max_retries = None
            else:
                max_retries = check_count("max_retries", max_retries, 0)
            if start_within is UNSET:
                start_within = None
            elif start_within is not None:
                start_within = check_seconds("start_within", start_within)
            if run_within is not UNSET and run_within is not None:
                run_within = check_seconds("run_within", run_within)
            view = DirectView()
            view._root = self
            view._values = (
                priority is not UNSET and priority,
                max_retries,
                pass_resource is UNSET or pass_resource,
                start_within,
                run_within,
            )
            view._futures = []
            view._shut_down = False
            view._many = MANY_FUTURES
            return view

        with_options.__doc__ = BaseExecutor.with_options.__doc__

    @override
    def _make_view(self, options: TaskOptions) -> DirectView[Any]:
        view: DirectView[Any] = DirectView()
        view._root, view._values = self, tuple(options)
        view._futures, view._shut_down, view._many = [], False, MANY_FUTURES
        return view


class DirectView(ExecutorView[R]):
    """A view that submits to a `ResourceExecutor`, which stores the attributes."""

    #: The options in the order of `TaskOptions`. To unpack a plain tuple takes a quarter of the time.
    _values: tuple[Any, ...]

    if TYPE_CHECKING:

        def __init__(self) -> None: ...
    else:
        __init__ = object.__init__

        @property
        def _options(self):
            return TaskOptions._make(self._values)

        def submit(self, fn, /, *args, **kwargs):
            root = self._root
            if self._shut_down or root._needs_care:
                try:
                    return self._enqueue(fn, args, kwargs, self._options)
                finally:  # if the task has run in this call, its error leads to this frame
                    del self, root, fn, args, kwargs
            core = root._core
            priority, max_retries, pass_resource, start_within, run_within = self._values
            if kwargs:
                fn = bind(fn, kwargs)
            if not pass_resource and core.source is not None:
                fn = WithoutResource(fn)
            future = Task()
            future._status = PENDING
            future._result = fn
            future._exception = args
            future._context = copy_context() if core.propagate_context else None
            future._lane = lane = root._priority if priority else root._normal
            future._submitted = submitted = clock()
            if start_within is None and run_within is UNSET and max_retries is None:
                future._sidecar = None
            else:
                future._sidecar = sidecar = OptionsSidecar()  # without `adopt`: no other thread knows the task yet
                sidecar.max_retries = max_retries
                sidecar.run_within = run_within
                sidecar.deadline = deadline = None if start_within is None else submitted + start_within
            lane.append(future)
            if core.idle.line:
                core.wake(future)
            noted = ref(future)
            if start_within is not None:  # `Deadlines.watch`, in line
                deadlines = core.deadlines
                news = deadlines.news
                news.append(noted)
                if deadline < (due := deadlines.due) or due < submitted or len(news) > deadlines.many:
                    deadlines.look(submitted, deadline)
            futures = self._futures  # `_note`, in line
            futures.append(noted)
            if self._shut_down or len(futures) > self._many:
                self._look_again(future)
            return future

        submit.__doc__ = BaseExecutor.submit.__doc__
        _submit_as_defined = submit
