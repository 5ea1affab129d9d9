"""One cell of the table, in a process of its own: ``python -m benchmarks.torture.patient SETUP``, in JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from .faults import FAULTS, After
from .stage import Stage
from .subjects import SUBJECTS

#: Lives as long as the interpreter.
stage: Stage


def main() -> None:
    global stage
    setup = json.loads(sys.argv[1])
    fault = FAULTS[setup["fault"]]
    stage = Stage(setup["cell"], setup["table"], setup["server"], SUBJECTS[setup["subject"]], Path(setup["folder"]))
    fault.act(stage)
    if fault.after is After.EXIT:
        return
    stage.collect(fault.within)
    if fault.after is After.ALL:
        stage.report(ended=False)
        if not stage.hangs():
            stage.probe()
        stage.end(ENDING)
    stage.report()
    os._exit(0)  # What hangs has been counted.


#: Seconds for the shutdown, when all work has ended.
ENDING = 4.0


if __name__ == "__main__":
    main()
