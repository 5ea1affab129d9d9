"""`python -X lazy_imports=all` (PEP 810): a module is loaded when one of its names is used, perhaps by a worker."""

from __future__ import annotations

import sys

import pytest

from support import run_python

pytestmark = pytest.mark.skipif(sys.version_info < (3, 15), reason="needs Python 3.15")

#: Each line that it prints is a failure: the name that cannot be loaded, and the error.
IMPORT_ALL = """
import importlib, pkgutil, sys
import tasker_executor

assert sys.get_lazy_imports() == "all"

def is_of_an_extra(error):
    missing = getattr(error, "name", None) or "tasker_executor"
    return "pip install" in str(error) or missing.partition(".")[0] != "tasker_executor"

def attempt(name, function, *args):
    try:
        return function(*args)
    except ImportError as error:
        if not is_of_an_extra(error):
            print(name, repr(error))
    except Exception as error:
        print(name, repr(error))

def touch(module):
    for name in {*vars(module), *getattr(module, "__all__", ())}:
        attempt(f"{module.__name__}.{name}", getattr, module, name)

touch(tasker_executor)
found = pkgutil.walk_packages(tasker_executor.__path__, "tasker_executor.", lambda name: None)
names = [module.name for module in found]
assert len(names) > 90, names
for name in names:
    module = attempt(name, importlib.import_module, name)
    if module is not None:
        touch(module)
"""


def test_every_module_and_every_public_name_can_be_loaded_late() -> None:
    result = run_python(IMPORT_ALL, "-X", "lazy_imports=all")

    assert (result.stdout, result.stderr) == ("", "")


#: What a program does that has imported the package and nothing else, each in an interpreter of its own: so each is the
#: first that needs its modules, on whichever thread that is.
USES = {
    "submit": "with tasker_executor.ResourceExecutor(2, on_create=dict) as pool: assert pool.submit(len).result() == 0",
    "map": "with tasker_executor.ResourceExecutor(2) as pool: assert [*pool.map(abs, [-1, 2], buffersize=1)] == [1, 2]",
    "run_now": "with tasker_executor.ResourceExecutor(1, on_create=dict) as pool: assert pool.run_now(len) == 0",
    "stop": """
import threading
with tasker_executor.ResourceExecutor(1, on_create=threading.Event, on_abort=threading.Event.set) as pool:
    begun = threading.Event()
    future = pool.submit(lambda event: begun.set() or event.wait())
    begun.wait()
    future.stop()
    assert future.exception() is None or type(future.exception()).__name__ == "TaskStopped"
""",
    "a limit and a retry": """
import logging
logging.disable()
def fail(resource):
    if not tries.append(resource) and len(tries) < 2: raise OSError
tries = []
with tasker_executor.ResourceExecutor(1, on_create=dict, check_health=lambda error: False, max_retries=1) as pool:
    view = pool.with_options(run_within=60, start_within=60, priority=True)
    assert view.submit(fail).result() is None and len(tries) == 2
""",
    "asyncio": """
import asyncio
async def main():
    async with tasker_executor.ResourceExecutor(1).as_async() as view:
        return await view.run(abs, -7)
assert asyncio.run(main()) == 7
""",
    "what it tells": """
with tasker_executor.ResourceExecutor(1) as pool:
    pool.submit(int).result()
    repr(pool), pool.stats(), pool.metrics(), pool.workers(stacks=True), pool._check()
""",
    "a dropped executor": "tasker_executor.ResourceExecutor(1, on_create=dict).submit(len).result()",
    "an end with tasks": "import time; tasker_executor.ResourceExecutor(1, on_create=dict).submit(lambda _: time.sleep(0.1))",
    "kill": "import time; p = tasker_executor.ResourceExecutor(1); p.submit(time.sleep, 0.1); p.kill(); p.shutdown()",
    "fork": """
import os, warnings
warnings.simplefilter("ignore")
pool = tasker_executor.ResourceExecutor(1)
pool.submit(int).result()
if not (child := os.fork()):
    os._exit(tasker_executor.ResourceExecutor(1).submit(int, "7").result() != 7)
assert os.waitpid(child, 0)[1] == 0
pool.shutdown()
""",
}


@pytest.mark.parametrize("source", list(USES.values()), ids=list(USES))
def test_what_is_used_first_is_loaded_then(source: str) -> None:
    result = run_python(f"import tasker_executor\n{source}", "-X", "lazy_imports=all")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
