"""The machinery of an executor: the life of a task, and the rooms.

**Life of a task.** What happens to ``pool.submit(fetch, "select 1")``, and which file of ``_engine/`` tells
more. The constructor has checked its arguments (``settings.py``) and wired the engine (``core.py``).

1. *Submit.* `ResourceExecutor.submit` makes a `Task`, which carries its call (``task.py``). All
   other doors make it in ``calls.py``.
2. *Lane.* The submitter appends the task to a lane (``lanes.py``). Then it wakes the top of the idle stack,
   if there is one (``idle.py``): an idle worker, or `Room`. Room means that another worker may be started,
   and the crew starts it (``crew.py``).
3. *Worker.* A worker takes the task, from the priority lane first (``worker.py``).
4. *Resource.* The worker calls ``fetch(resource, "select 1")`` in the submitter's context. It made the
   resource when it started (``resources.py``).
5. *Future.* ``fetch`` returned: the worker notes three moments in its log (``recorder.py``) and publishes the
   result (``task.py``), which wakes the threads that wait for it.
6. *Or a retry.* ``fetch`` raised: is the resource broken (``resources.py``)? If not, the error is the result.
   If it is, the worker puts the task back to the front of its lane, destroys the resource and ends.
   `Core.worker_ended` (``core.py``) decides on a successor.
7. *Or a stop.* ``future.stop()`` sets the token of the task and has its resource aborted (``stops.py``). The
   worker lets go of the task, and finds that out (``hand.py``); one that does not end is written off.
8. *Or time is up.* One thread runs what is due (``timer.py``): tasks that have not started in time fail
   (``deadlines.py``), tasks that have run for too long are stopped (``watch.py``), and the policy says how
   many workers are wanted (``scaler.py``).

===============================  ===============================================================
the room                         the question that it answers
===============================  ===============================================================
``settings.py``, ``hooks.py``    what did the user ask for, and what did the user say about resources?
``state.py``                     which states does an executor go through, and which lock guards them?
``task.py``, ``sidecar.py``      what happens to a task, from submission to result?
``stoppable.py``, ``foreign.py`` what do stops use of a task, and what does foreign code?
``waiting.py``, ``handoff.py``   how does a thread wait for a task?
``lanes.py``, ``admission.py``   where do tasks wait, and which may come in while the queue is full?
``parked.py``                    what is a task that waits for a place itself, as its thread may not?
``idle.py``                      how do a submitter and an idle worker find each other?
``roster.py``, ``crew.py``       which workers live; which ones are started, and which ones leave?
``worker.py``, ``life.py``       what does a worker do, and what if an error is thrown into its end?
``hand.py``                      what does a worker have in hand, and what follows if that was stopped?
``invoke.py``, ``attempt.py``    how is a task called, and how does an attempt at it end?
``care.py``                      may a worker's resource serve the next task, or a retry?
``resources.py``, ``holding.py`` how is a resource made, judged, aborted and given up?
``reserve.py``, ``places.py``    how does a call of ``run_now`` run, and which calls run now?
``run.py``, ``runs.py``          how is a call of ``run_now`` stopped, and which one has run for too long?
``stock.py``                     which resource does a call of ``run_now`` get, and which are kept?
``supply.py``, ``outage.py``     what do the resources tell of the factory; when may it be tried again?
``recovery.py``, ``notices.py``  what follows for the tasks that wait; what is told of workers?
``deadlock.py``                  which tasks wait for a task of their own executor?
``timer.py``, ``herald.py``      which duty is due, and which thread tells of its results?
``deadlines.py``, ``scaler.py``  which task is too late; how many workers does the policy want?
``stops.py``, ``stopping.py``    how is a task that runs stopped, and what if it does not end?
``limits.py``, ``watch.py``      how long may a task run, and which one has run for too long?
``slow.py``, ``stacks.py``       which task is slow, and what does a thread do at this moment?
``ending.py``, ``nesting.py``    how does an executor end, and when must a caller not wait for that?
``process.py``                   what happens at the exit of the interpreter, and in the child of a fork?
``gauges.py``, ``recorder.py``   what does the executor do now, and how often and how long did it?
===============================  ===============================================================
"""
