"""The ways to run work on connections. Each is set up as its own documentation says, with the best options it has."""

from ._subject import SIZE, Line, Subject
from .others import AsyncPool, Dramatiq, Joblib
from .ours import Ours
from .threads import FlexExecutor, MoreExecutors, PersistentDB, PsycopgPool, QueuePool, ThreadLocal

__all__ = ["SIZE", "SUBJECTS", "Line", "Ours", "Subject"]

#: By their names on the command line, in the order of the report.
SUBJECTS: dict[str, type[Subject]] = {
    "ours": Ours,
    "thread_local": ThreadLocal,
    "psycopg_pool": PsycopgPool,
    "sqlalchemy": QueuePool,
    "dbutils": PersistentDB,
    "flexexecutor": FlexExecutor,
    "more_executors": MoreExecutors,
    "asyncio": AsyncPool,
    "joblib": Joblib,
    "dramatiq": Dramatiq,
}
