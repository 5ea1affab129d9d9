"""The resource of examples/django_views.py, which people will copy, on a server that ends connections.

Each test is a process of its own: Django is set up once in a process.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from support import run_python

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

SETUP = """
import sys
from psycopg.conninfo import conninfo_to_dict
from django.conf import settings

given = conninfo_to_dict({conninfo!r})
names = {{"HOST": "host", "PORT": "port", "USER": "user", "PASSWORD": "password", "NAME": "dbname"}}
known = {{key: given[name] for key, name in names.items() if name in given}}
settings.configure(DATABASES={{"default": {{"ENGINE": "django.db.backends.postgresql", **known}}}})
sys.path.insert(0, {examples!r})
import logging
import threading
logging.disable()
from django.db import connection, transaction
from django_views import pool, tasks

def process():
    with connection.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        return cursor.fetchone()[0]

def end(number):
    with connection.cursor() as cursor:
        cursor.execute("select pg_terminate_backend(%s, 10000)", [number])
"""


def run_django(conninfo: str, source: str) -> str:
    for package in ("django", "psycopg"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    result = run_python(SETUP.format(conninfo=conninfo, examples=str(EXAMPLES)) + source)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.services
def test_a_task_that_met_a_lost_connection_runs_again(postgres: str) -> None:
    said = run_django(
        postgres,
        """
first = tasks().submit(process).result()
end(first)
print(tasks().submit(process).result() != first)
pool().shutdown()
stats = pool().stats()
made = stats.resources_created
print(made in (2, 3), made - stats.resources_destroyed, stats.failed)  # 3: see `Crew._needed`
""",
    )

    assert said == "True\nTrue 0 0\n"


@pytest.mark.services
def test_a_connection_lost_in_a_transaction_is_noticed_though_django_connects_again(postgres: str) -> None:
    said = run_django(
        postgres,
        """
attempts = []
def task():
    with transaction.atomic():
        attempts.append(process())
        if len(attempts) == 1:
            killer = threading.Thread(target=lambda: (end(attempts[0]), connection.close()))
            killer.start()
            killer.join()
        return process()

print(tasks().submit(task).result() == attempts[1])
pool().shutdown()
print(pool().stats().retried, pool().stats().failed)
""",
    )

    assert said == "True\n1 0\n"


@pytest.mark.services
def test_a_query_that_hangs_is_stopped_and_its_connection_serves_on(postgres: str) -> None:
    said = run_django(
        postgres,
        """
pool().resize(max_workers=1)  # the last task waits for the worker of the one that is stopped

def sleep():
    with connection.cursor() as cursor:
        cursor.execute("select pg_sleep(600)")

first = tasks().submit(process).result()
print(type(tasks().with_options(run_within=0.2).submit(sleep).exception()).__name__)
print(tasks().submit(process).result() == first)
pool().shutdown()
""",
    )

    assert said == "TaskTimeout\nTrue\n"
