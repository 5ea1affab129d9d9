"""A failing factory by tables: no thread, no clock; the draw of a pause is the test's own."""

from __future__ import annotations

import pytest

from engine import Outage

ERROR = OSError("connection refused")


def longest(low: float, high: float) -> float:
    """Draw the longest pause."""
    assert low == 0.0
    return high


def fail(outage: Outage, begun: float, now: float) -> bool:
    return outage.failed(ERROR, begun, now, longest)


def failing(times: int, create_timeout: float = 3600.0) -> Outage:
    """An outage with so many failures, one a second, the first at 1."""
    outage = Outage(create_timeout, 0.0)
    for second in range(1, times + 1):
        assert fail(outage, second, second)
    return outage


@pytest.mark.parametrize(
    "create_timeout, pauses",
    [
        pytest.param(3600.0, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0], id="half a minute at most"),
        pytest.param(30.0, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 7.5, 7.5, 7.5, 7.5], id="a quarter of create_timeout at most"),
        pytest.param(1.0, [0.1, 0.2, 0.25, 0.25], id="of a short one, too"),
        pytest.param(0.05, [0.1, 0.1, 0.1, 0.1], id="but never less than the first"),
        pytest.param(0.0, [0.1, 0.1, 0.1, 0.1], id="even if nobody is to wait"),
    ],
)
def test_pauses_double_up_to_a_bound(create_timeout: float, pauses: list[float]) -> None:
    outage = Outage(create_timeout, 0.0)
    drawn: list[float] = []
    for second in range(1, len(pauses) + 1):
        fail(outage, second, second)
        drawn.append(outage.retry_at - second)

    assert drawn == pytest.approx(pauses)


def test_pause_is_bounded_after_a_year_of_failures() -> None:
    outage = failing(5_000)

    assert outage.longest_pause() == 30.0


@pytest.mark.parametrize(
    "failures, now, starting, may_try, next_attempt",
    [
        pytest.param(0, 5.0, 7, True, None, id="a factory that works: as many at once as are needed"),
        pytest.param(1, 1.05, 0, False, 1.1, id="a pause"),
        pytest.param(1, 1.1, 0, True, None, id="its end"),
        pytest.param(1, 1.1, 1, False, None, id="one attempt at a time"),
        pytest.param(1, 1.05, 1, False, None, id="a straggler in the pause"),
        pytest.param(3, 3.3, 0, False, 3.4, id="a longer pause"),
    ],
)
def test_when_the_factory_may_be_tried(
    failures: int, now: float, starting: int, may_try: bool, next_attempt: float | None
) -> None:
    outage = failing(failures)

    assert outage.may_try(now, starting) is may_try
    assert outage.next_attempt(now, starting) == (None if next_attempt is None else pytest.approx(next_attempt))


def test_attempts_that_were_under_way_are_of_the_same_round() -> None:
    outage = failing(1)
    retry_at = outage.retry_at

    assert not fail(outage, begun=0.9, now=1.05)
    assert (outage.failures, outage.total, outage.retry_at) == (1, 2, retry_at)
    assert fail(outage, begun=1.1, now=1.2)
    assert (outage.failures, outage.total) == (2, 3)


@pytest.mark.parametrize(
    "served, row",
    [
        pytest.param([], 4, id="nothing served: the row goes on"),
        pytest.param([3.5], 1, id="the new resource served: a new row"),
        pytest.param([0.5], 4, id="an old resource says nothing of the factory"),
    ],
)
def test_a_row_of_failures_ends_when_a_new_resource_has_served(served: list[float], row: int) -> None:
    outage = failing(3)

    assert outage.made(3.5)
    assert (outage.failures, outage.error) == (0, None)
    assert not outage.made(3.5)
    for begun in served:
        outage.served(begun)
    fail(outage, begun=4.0, now=5.0)
    assert (outage.failures, outage.error) == (row, ERROR)


@pytest.mark.parametrize(
    "served, since",
    [
        pytest.param([], 0.0, id="nothing served: the tasks have waited all the time"),
        pytest.param([3.5], 5.0, id="the new resource served"),
        pytest.param([0.5], 5.0, id="an old one did"),
    ],
)
def test_a_resource_that_fails_before_it_has_served_does_not_begin_the_wait_anew(served: list[float], since: float) -> None:
    outage = failing(3)

    assert outage.gives_up_at(0.0, 3.0, None) == 3600.0
    outage.made(3.5)
    assert outage.gives_up_at(0.0, 3.5, None) is None
    assert outage.gives_up_on(9999.0, None) is None
    for begun in served:
        outage.served(begun)
    outage.bare(5.0)
    assert outage.gives_up_at(-1.0, 5.0, None) == since + 3600.0
    assert outage.gives_up_at(7.0, 7.0, None) == 3607.0


def test_only_the_loss_of_the_last_resource_begins_a_wait() -> None:
    outage = Outage(10.0, 0.0)
    outage.made(0.0)
    outage.served(0.0)
    outage.bare(5.0)
    outage.bare(6.0)

    assert outage.bare_since == 5.0


# -- how long a task waits --


def test_without_a_failure_a_task_waits_for_create_timeout() -> None:
    outage = Outage(10.0, 0.0)

    assert outage.gives_up_at(queued=7.0, now=8.0, hope=None) == 17.0
    assert outage.gives_up_on(now=9.0, hope=None) is None
    assert outage.gives_up_on(now=18.0, hope=8.0) == 8.0
    assert not outage.is_old(18.0)


@pytest.mark.parametrize(
    "queued, now, hope, due",
    [
        pytest.param(1.0, 5.0, None, 11.0, id="a young outage: create_timeout"),
        pytest.param(3.0, 5.0, None, 11.0, id="but not beyond the time when the outage is old"),
        pytest.param(5.0, 5.0, 4.9, 11.0, id="then an attempt that is under way is looked at"),
        pytest.param(12.0, 12.0, None, 12.0, id="an old outage, in a pause: at once"),
        pytest.param(12.0, 12.0, 11.5, 21.5, id="an attempt under way: until it is late"),
        pytest.param(3.0, 12.0, 11.5, 13.0, id="but create_timeout in all"),
    ],
)
def test_when_a_task_is_looked_at_again(queued: float, now: float, hope: float | None, due: float) -> None:
    """The outage began at 1, and is old at 11."""
    outage = failing(1, create_timeout=10.0)

    assert outage.gives_up_at(queued, now, hope) == due


@pytest.mark.parametrize(
    "failed_at, now, hope, until",
    [
        pytest.param([], 10.9, None, 0.9, id="a young outage: the tasks that have waited so long"),
        pytest.param([], 9.0, None, None, id="none has"),
        pytest.param([], 11.0, None, 11.0, id="an old outage, without hope: all"),
        pytest.param([], 11.0, 10.5, 1.0, id="an attempt under way: those that have waited so long"),
        pytest.param([10.0], 11.5, 10.5, 1.5, id="it began after a failure, but the outage was young then"),
        pytest.param([12.0], 12.5, 12.1, 12.0, id="those whose attempt has failed"),
        pytest.param([12.0], 30.0, 29.0, 20.0, id="or who have waited so long"),
        pytest.param([12.0], 30.0, None, 30.0, id="the next pause: all"),
    ],
)
def test_which_tasks_fail(failed_at: list[float], now: float, hope: float | None, until: float | None) -> None:
    """The outage began at 1, and is old at 11. It goes on with the failures at `failed_at`."""
    outage = failing(1, create_timeout=10.0)
    for moment in failed_at:
        fail(outage, begun=moment - 0.1, now=moment)

    answer = outage.gives_up_on(now, hope)
    assert answer == (None if until is None else pytest.approx(until))


def test_an_outage_counts_from_the_begin_of_its_first_failed_attempt() -> None:
    outage = Outage(10.0, 0.0)
    fail(outage, begun=5.0, now=8.0)
    fail(outage, begun=9.0, now=9.5)

    assert not outage.is_old(14.9)
    assert outage.is_old(15.0)


@pytest.mark.parametrize(
    "begun, since",
    [
        pytest.param(7.0, 7.0, id="begun after the last resource was made"),
        pytest.param(2.0, 8.0, id="begun before: the factory worked meanwhile"),
    ],
)
def test_an_attempt_that_hung_while_others_succeeded_begins_no_old_outage(begun: float, since: float) -> None:
    outage = Outage(10.0, 0.0)
    outage.made(6.0)
    outage.served(5.0)
    fail(outage, begun, now=8.0)

    assert outage.since == since


@pytest.mark.parametrize(
    "served, fails_at, failures, since",
    [
        pytest.param(False, 6.0, 4, 1.0, id="it failed before it had served: the same outage"),
        pytest.param(False, 13.6, 1, 13.6, id="it lasted for create_timeout"),
        pytest.param(True, 6.0, 1, 6.0, id="it served"),
    ],
)
def test_an_outage_goes_on_if_its_last_resource_was_no_good(served: bool, fails_at: float, failures: int, since: float) -> None:
    outage = failing(3, create_timeout=10.0)
    outage.made(3.5)
    if served:
        outage.served(3.2)

    assert not outage.is_old(100.0)
    fail(outage, begun=3.2, now=fails_at)
    assert (outage.failures, outage.since) == (failures, since)
