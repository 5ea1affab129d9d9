"""Django views that hand work to threads with connections of their own: the program of docs/howto/django.rst.

    pip install tasker-executor django
    python examples/django_views.py

A whole project in one file, on SQLite, which is its own client. In a project of yours, the pool is a module.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import django
from django.conf import settings

if not settings.configured:  # in a project of yours they are
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}},
        ALLOWED_HOSTS=["testserver"],
        ROOT_URLCONF=__name__,
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    )
django.setup()

# ruff: noqa: E402  # models and views need the settings
from django.db import Error, InterfaceError, connection, connections, models, reset_queries, transaction
from django.http import HttpRequest, JsonResponse
from django.test import Client
from django.urls import path
from typing_extensions import override

from tasker_executor import ExecutorView, ResourceExecutor, ResourceFactory, Verdict


# [pool]
class DjangoConnections(ResourceFactory[Any]):
    """The resource of a worker is the connection that Django keeps for its thread: the driver's own object."""

    @override
    def create(self) -> Any:
        connection.ensure_connection()
        return connection.connection

    @override
    def destroy(self, resource: Any) -> None:
        connections.close_all()  # those of this thread; Django itself closes connections when a request ends

    @override
    def judge(self, error: Exception, resource: Any) -> Verdict:
        return Verdict.BROKEN if isinstance(error, Error) and not self.check(resource) else Verdict.OWN

    @override
    def check(self, resource: Any) -> bool:
        return connection.connection is resource and connection.is_usable()  # at the end of atomic(), Django may reconnect

    @override
    def reset(self, resource: Any) -> None:
        reset_queries()  # with DEBUG = True Django keeps the queries of a thread until a request begins
        if connection.connection is not resource:
            raise InterfaceError("the task, or Django, has closed the connection")  # so the worker is replaced

    @override
    def abort(self, resource: Any) -> None:
        resource.cancel_safe() if connection.vendor == "postgresql" else resource.interrupt()  # SQLite


@cache
def pool() -> ResourceExecutor[Any]:
    return ResourceExecutor(4, resource=DjangoConnections(), max_queued=1000, run_within=60.0, name="background")


@cache
def tasks() -> ExecutorView[None]:
    return pool().with_options(pass_resource=False)  # tasks are plain functions: the ORM finds their connection


# [views]
class Order(models.Model):
    status: models.TextField[str, str] = models.TextField(default="new")

    class Meta:
        app_label = "shop"


def confirm(order: int) -> None:  # a task
    Order.objects.filter(pk=order).update(status="confirmed")


def count(status: str) -> int:  # another one
    return Order.objects.filter(status=status).count()


def place_order(_request: HttpRequest) -> JsonResponse:
    with transaction.atomic():
        order = Order.objects.create()
        transaction.on_commit(lambda: tasks().submit(confirm, order.pk))  # the worker sees the order
    return JsonResponse({"order": order.pk}, status=201)


def get_report(_request: HttpRequest) -> JsonResponse:
    new, confirmed = tasks().map(count, ["new", "confirmed"], timeout=10)  # two queries at a time
    return JsonResponse({"new": new, "confirmed": confirmed})


# [end]
urlpatterns = [path("orders", place_order), path("report", get_report)]


def main() -> None:
    with connection.schema_editor() as editor:
        editor.create_model(Order)
    client = Client()
    print("placed:", [client.post("/orders").json()["order"] for _ in range(3)])
    while (report := client.get("/report").json()) != {"new": 0, "confirmed": 3}:
        pass
    print("report:", report)
    pool().shutdown()  # at the end of a process this is done without a word
    stats = pool().stats()
    print(f"{stats.failed} tasks failed; {stats.resources_destroyed} of {stats.resources_created} connections closed")
    if stats.failed or not stats.resources_created == stats.resources_destroyed > 0:
        sys.exit(f"FAILED: {stats}")


if __name__ == "__main__":
    main()
