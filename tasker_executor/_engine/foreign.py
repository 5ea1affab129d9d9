"""The half of a `Task` that foreign code uses: what is known of the insides of `concurrent.futures._base.Future`.

`concurrent.futures.wait`, `concurrent.futures.as_completed`, asyncio and foreign executors read and call this.
"""

from __future__ import annotations

from concurrent.futures import InvalidStateError
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from typing import TYPE_CHECKING, Any, TypeVar

from ..futures import TaskFuture
from .sidecar import FINAL, NO_WAITERS, Callbacks, Sidecar, locks_task

__all__ = ["Foreign"]

T = TypeVar("T")


class Foreign(TaskFuture[T]):
    """A future whose state is in slots, and in a sidecar if it has one."""

    __slots__ = ()

    _exception: Any
    _result: Any
    _sidecar: Sidecar | None
    _status: str

    if TYPE_CHECKING:

        def _observe(self) -> Sidecar | None: ...
        def _seal(self) -> Sidecar: ...
        def _may_start(self) -> bool: ...
        def _finish(self, result: Any, error: BaseException | None) -> None: ...
        def _note_retrieved(self) -> None: ...

    @property
    @locks_task
    def _state(self) -> str:  # type: ignore[override]  # a property: the slots together hold the state
        sidecar = self._sidecar
        if sidecar is None:
            return self._status
        if sidecar is FINAL:  # in most calls
            return FINISHED
        if not sidecar.published:  # perhaps final, but waiters count on being told after this
            return PENDING if self._status is PENDING else RUNNING
        return CANCELLED_AND_NOTIFIED if sidecar.called_off() else FINISHED

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        """Return whether the task is final, whether it was cancelled, its result and its exception.

        From Python 3.15 on asyncio asks for this, not for `result`. So what it returns is retrieved.
        """
        if not self.done():
            return False, False, None, None
        if self.cancelled():
            return True, True, None, None
        if self._exception is not None:
            self._note_retrieved()
        return True, False, self._result, self._exception

    @property
    @locks_task
    def _condition(self) -> Any:  # type: ignore[override]  # a property: made when it is needed
        sidecar = self._sidecar
        if sidecar is not None and sidecar.told:  # in most calls
            return sidecar
        return self._observe() or self._seal()

    @property
    @locks_task
    def _waiters(self) -> list[Any]:  # type: ignore[override]  # a property: made when it is needed
        # The caller holds the sidecar, and has looked at the state. `_observe` might publish an end that the
        # caller has not seen; then the waiter that it adds next would not be told. So only without a sidecar.
        sidecar = self._sidecar or self._observe() or self._seal()
        if sidecar.waiters is None:
            sidecar.waiters = []
        return sidecar.waiters

    @property
    def _done_callbacks(self) -> Callbacks:
        sidecar = self._observe()
        return NO_WAITERS if sidecar is None else sidecar.callbacks or []

    def set_running_or_notify_cancel(self) -> bool:
        if self.cancelled():
            return False
        if self._status is not PENDING:
            raise InvalidStateError(f"{self._state}: {self!r}")
        self._status = RUNNING
        return self._sidecar is None or self._may_start()

    def set_result(self, result: T) -> None:
        if self.done():
            raise InvalidStateError(f"{self._state}: {self!r}")
        self._finish(result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        if self.done():
            raise InvalidStateError(f"{self._state}: {self!r}")
        self._finish(None, exception)
