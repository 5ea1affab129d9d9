from typing import Any

from .task import Sidecar

__all__ = ["Sidecar"]


def holds_task_lock(frame: Any) -> bool:
    while frame is not None:
        if any(isinstance(v, Sidecar) and v._is_owned() for v in frame.f_locals.values()):
            return True
        frame = frame.f_back
    return False
