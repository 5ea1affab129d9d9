"""A model for each GPU: the number of a worker's place says which.

    python examples/gpu_model.py

With PyTorch and GPUs, each worker loads the model on a GPU of its own. With PyTorch alone, two workers share the CPU.
Without PyTorch, a stand-in of three weights computes on two devices that are only names: the way from a slot to a
device is the same.
"""

from __future__ import annotations

import importlib
from typing import Any

from tasker_executor import ResourceExecutor, current_slot, current_task

try:
    torch: Any = importlib.import_module("torch")
except ImportError:
    torch = None

WEIGHTS = [0.5, 0.25, 0.125]


def find_devices() -> list[str]:
    if torch is None:
        return ["pretended:0", "pretended:1"]
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu", "cpu"]


class Model:
    """The weighted sum of three numbers, on one device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.weights: Any = WEIGHTS if torch is None else torch.tensor(WEIGHTS, device=device)

    def predict(self, batch: list[list[float]]) -> list[float]:
        if torch is None:
            return [sum(x * weight for x, weight in zip(row, self.weights, strict=True)) for row in batch]
        answer: list[float] = (torch.tensor(batch, device=self.device) @ self.weights).tolist()
        return answer


def make_pool(devices: list[str]) -> ResourceExecutor[Model]:
    def load() -> Model:
        slot = current_slot()  # 0 to max_workers - 1, as long as no worker is written off
        return Model(devices[slot % len(devices)])

    count = len(devices)
    return ResourceExecutor(count, min_workers=count, on_create=load, create_timeout=120, max_queued=100, name="model")


def predict(model: Model, batches: list[list[list[float]]]) -> list[float]:
    answers: list[float] = []
    for batch in batches:
        current_task().raise_if_cancelled()  # nothing unblocks a kernel, so look between two of them
        answers += model.predict(batch)
    return answers


def main() -> None:
    devices = find_devices()
    print("computed by", "a stand-in, since PyTorch is not installed" if torch is None else f"PyTorch on {devices[0]}, ...")
    with make_pool(devices) as pool:
        pool.wait_ready()  # all models are loaded
        answers = pool.map(predict, [[[[number, number, 8.0]]] for number in range(4)])
        print("answers:", [answer for [answer] in answers])
        pool.refresh()  # the weights have changed: each worker loads them again, between two tasks
        print("after new weights:", pool.submit(predict, [[[2.0, 4.0, 8.0]], [[0.0, 0.0, 8.0]]]).result())
        in_use = {pool.submit(lambda model: model.device).result() for _ in range(20)}
        print("devices are the right ones:", in_use <= set(devices))


if __name__ == "__main__":
    main()
