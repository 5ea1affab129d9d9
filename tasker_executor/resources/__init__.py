"""Ready-made factories: each knows one kind of resource, and is one argument of the executor.

For example::

    from tasker_executor import ResourceExecutor
    from tasker_executor.resources import psycopg

    with ResourceExecutor(8, resource=psycopg.Connections("dbname=shop")) as pool:
        pool.submit(lambda connection: connection.execute("select 1").fetchone())

========================  ==============================  =======================
factory                   a task gets                     needs
========================  ==============================  =======================
`http.Connections`        `http.client.HTTPConnection`    nothing
`pika.Channels`           a channel of pika               the extra `pika`
`psycopg.Connections`     ``psycopg.Connection``          the extra `psycopg`
`pymysql.Connections`     ``pymysql.Connection``          the extra `pymysql`
`redis.Connections`       ``redis.Redis``                 the extra `redis`
`sqlalchemy.Connections`  ``sqlalchemy.Connection``       the extra `sqlalchemy`
`sqlalchemy.Sessions`     ``sqlalchemy.orm.Session``      the extra `sqlalchemy`
`sqlite3.Connections`     `sqlite3.Connection`            nothing
========================  ==============================  =======================

Each module is imported only by the program that uses it. Each factory knows for its driver which errors mean
that the connection is broken, what a clean connection is, what unblocks a call that hangs, and, if you ask
for that with ``retry_conflicts=True``, which errors may not come again when the task is run again.

**A task whose connection broke** is run again by the factories for databases, so it is done at least once:
exactly once with ``transaction=True``. Redis, RabbitMQ and HTTP know nothing that would undo half a task. Their
factories run a task again only where that does no harm, or with ``retry_broken=True``.

**A task that is stopped** gets an error of its driver, which is the cause of the `TaskStopped` or `TaskTimeout`
of its future. A database cancels the statement and keeps the connection, which is reset and checked before the
next task. Redis, RabbitMQ and HTTP know no such thing. Their connection is shut down, so all that the task tries
on it fails, and the worker makes a new one.

Where the server can commit, ``transaction=True`` makes each task one transaction: it is committed when the
task returns, and rolled back when the task raises. So a task that was stopped has committed nothing, also if it
was stopped in the COMMIT itself. There are two exceptions. The cause of its error is `CommitUnknown`. Or its
error has no cause: then the task may have been given up while it ran, and may commit later.
"""
