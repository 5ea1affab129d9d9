"""The numbers of an executor: frozen snapshots, each of one moment.

`ExecutorStats` says what the executor is doing now, `ExecutorMetrics` how long things take, and a
`LoadSample` is what a scaling policy is shown. All are plain data: they keep no executor alive, and may be
stored, compared, pickled and sent.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DurationSummary", "ExecutorMetrics", "ExecutorStats", "LoadSample", "WorkerInfo"]


@dataclass(frozen=True)
class ExecutorStats:
    """Gauges and counters of an executor at one moment. Counters count since the executor was made.

    At every moment ``submitted == completed + failed + cancelled + queued_tasks + priority_tasks +
    running_tasks``.

    Gauges:
        base_workers: Live workers that belong to the base (at most ``min_workers``).
        active_workers: Live workers: threads that exist, busy or idle.
        burst_workers: Live workers above the base.
        idle_workers: Live workers without a task.
        running_tasks: Tasks that a worker has in hand.
        queued_tasks: Tasks that wait in the normal lane.
        priority_tasks: Tasks that wait in the priority lane.
        written_off: Workers that were written off, whose call has yet to return. They do not count as live workers.
        available_resources: Free resources in the reserve of ``run_now``.
        state: ``"running"``, ``"draining"``, ``"killed"`` or ``"closed"``.

    Counters:
        submitted: Tasks accepted into a lane. Calls of ``run_now`` pass no lane and are not counted.
        completed: Tasks that returned.
        failed: Tasks whose future got an exception.
        cancelled: Tasks cancelled before they started.
        stopped: Tasks that were asked to stop while they ran, by `TaskFuture.stop` or ``kill``.
        timed_out: Tasks that were asked to stop because they had run for ``run_within`` seconds.
        retried: Times that a task was queued again because its resource broke.
        resources_created: Resources that ``on_create`` returned.
        resources_destroyed: Resources given up, whether ``on_destroy`` succeeded or raised.
        workers_replaced: Workers that ended because their resource was broken, too old or used up.
        create_failures: Times that ``on_create`` failed.
    """

    base_workers: int
    active_workers: int
    burst_workers: int
    idle_workers: int
    running_tasks: int
    queued_tasks: int
    priority_tasks: int
    available_resources: int
    submitted: int
    completed: int
    failed: int
    cancelled: int
    retried: int
    resources_created: int
    resources_destroyed: int
    workers_replaced: int
    create_failures: int
    state: str
    written_off: int = 0
    stopped: int = 0
    timed_out: int = 0


@dataclass(frozen=True)
class WorkerInfo:
    """What one worker is doing, at one moment.

    Attributes:
        name: Name of the worker and of its thread.
        state: ``"starting"`` (it makes its resource), ``"idle"``, ``"busy"``, ``"ending"`` (it destroys its
            resource) or ``"written off"`` (its task did not end when it was stopped).
        function: Name of the function it runs; None if it runs none.
        lane: Lane of the task it runs, ``"normal"`` or ``"priority"``; None if it runs none.
        attempt: 1 for the first run of the task, 2 for the first retry; 0 if it runs none.
        running_for: Seconds since it began what it does: the task, or to make or destroy its resource; 0.0 if
            it is idle.
        resource_uses: Tasks that its resource has served.
        resource_age: Seconds since its resource was made; 0.0 without one.
        stack: What its thread does, as a traceback shows it, innermost last; empty unless asked for.
    """

    name: str
    state: str
    function: str | None
    lane: str | None
    attempt: int
    running_for: float
    resource_uses: int
    resource_age: float
    stack: str = ""


@dataclass(frozen=True)
class DurationSummary:
    """The distribution of a duration, in seconds. All zero when nothing was measured.

    ``count``, ``total``, ``minimum``, ``maximum`` and ``mean`` are exact; the percentiles are interpolated
    inside buckets that are at most 6.25 % wide.
    """

    count: int
    total: float
    minimum: float
    maximum: float
    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class ExecutorMetrics:
    """Durations and rates, since the executor was made or since ``metrics(reset=True)``.

    Attributes:
        wait: From submission (for a retry: from the moment it was queued again) to the start.
        run: From start to end of an attempt, whether it returned, raised or was retried.
        create: Duration of ``on_create``, when it succeeded.
        arrival_rate: Tasks submitted per second, over the last few seconds.
        completion_rate: Tasks finished (returned or raised) per second, over the last few seconds.
        success_rate: Share of the finished tasks that returned, 0.0 to 1.0; 0.0 when none finished.
        failure_rate: Share of the finished tasks that raised, 0.0 to 1.0; 0.0 when none finished.
    """

    wait: DurationSummary
    run: DurationSummary
    create: DurationSummary
    arrival_rate: float
    completion_rate: float
    success_rate: float
    failure_rate: float


@dataclass(frozen=True)
class LoadSample:
    """What a scaling policy is shown: the load at one moment. Durations are seconds, rates are per second.

    Attributes:
        time: The moment, on a monotonic clock whose zero means nothing.
        workers: Workers that exist, those still making their resource included.
        busy: Workers that run a task.
        idle: Workers that could take one.
        queued_normal: Tasks waiting in the normal lane.
        queued_priority: Tasks waiting in the priority lane.
        oldest_wait: How long the oldest waiting task has waited; 0.0 when none waits.
        arrival_rate: Tasks submitted per second, over the last few seconds.
        completion_rate: Tasks finished per second, over the last few seconds. A task that raised has
            finished, too.
        mean_service_time: Mean run time of the tasks that finished in the last few seconds; when none did,
            the last such mean.
        mean_create_time: Mean duration of ``on_create``.
        create_failures: How often ``on_create`` has failed in a row; 0 when the last one succeeded.
        min_workers: The base: the policy's answer is raised to this.
        max_workers: The policy's answer is lowered to this.
        target: The number wanted until now.
    """

    time: float
    workers: int
    busy: int
    idle: int
    queued_normal: int
    queued_priority: int
    oldest_wait: float
    arrival_rate: float
    completion_rate: float
    mean_service_time: float
    mean_create_time: float
    create_failures: int
    min_workers: int
    max_workers: int
    target: int

    @property
    def queued(self) -> int:
        """Tasks waiting, in both lanes."""
        return self.queued_normal + self.queued_priority
