"""What tests of code that uses an executor need.

- `InlineExecutor` runs tasks in the caller: no threads, no races, the same answers each time.
- `Ledger` makes `FakeResource` objects and books which thread made, used and destroyed them.
- `Gate` holds tasks until the test lets them go: a test forces a race instead of hoping for it.
- `assert_no_leaks` fails if a block leaves threads or unfinished executors behind.

No test framework is needed: what is wrong is an AssertionError. A wait gives up after `DEADLINE` seconds and
says what it waited for: a hang has a name.
"""

from __future__ import annotations

from .fakes import DEADLINE, FakeResource, Gate, Ledger, ResourceBroken
from .inline import InlineExecutor
from .leaks import assert_no_leaks

__all__ = ["DEADLINE", "FakeResource", "Gate", "InlineExecutor", "Ledger", "ResourceBroken", "assert_no_leaks"]
