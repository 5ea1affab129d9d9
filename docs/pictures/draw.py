"""Draw the pictures of the documentation: ``python docs/pictures/draw.py`` writes them beside this file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from canvas import Canvas, Point

from tasker_executor import Hysteresis, QueueWaitPolicy
from tasker_executor.simulation import simulate


def pool() -> Canvas:
    """Draw what an executor is, for the first screen of the README."""
    canvas = Canvas(
        880, 292, "Tasks wait in two lanes. Each worker is a thread with one resource, and calls the next task with it."
    )
    program = ["your program", "`submit(task)", "`submit_priority(task)", "`map(task, items)", "`await view.run(task)"]
    canvas.box(24, 55, 190, 130, program)
    for y, lane, kind, count in (55, "priority lane", "amber", 2), (135, "normal lane", "blue", 5):
        canvas.text(276, y - 7, lane, "faint small", anchor="start")
        canvas.rect(276, y, 200, 50, "box")
        for number in range(count):
            canvas.rect(442 - 38 * number, y + 11, 26, 28, kind, radius=4)
        canvas.arrow([(214, y + 25), (272, y + 25)], kind)
        canvas.line([(476, y + 25), (516, y + 25)])
    canvas.line([(516, 52), (516, 188)])
    canvas.text(827, 20, "resources", "faint small")
    workers = [
        (24, "green", "`task(connection, ...)"),
        (92, "green", "`task(connection, ...)"),
        (160, "red", "its resource broke: it is replaced"),
    ]
    for y, kind, line in workers:
        canvas.arrow([(516, y + 28), (552, y + 28)])
        canvas.box(556, y, 212, 56, ["worker", line])
        canvas.arrow([(768, y + 28), (796, y + 28)])
        canvas.cylinder(800, y + 6, 54, 44, kind)
        canvas.text(827, y + 35, "\N{BALLOT X}" if kind == "red" else "\N{CHECK MARK}", f"in-{kind} bold")
    canvas.text(705, 240, "each resource: made, used and destroyed on its thread", "faint small")
    canvas.arrow([(540, 246), (540, 268), (119, 268), (119, 189)], "green", dashed=True)
    canvas.text(330, 260, "the future of each task: its result, or its error", "faint small")
    return canvas


def walk() -> Canvas:
    """Draw the five steps of a task."""
    canvas = Canvas(880, 330, "The walk of a task: submit, lane, worker, resource, future.")
    columns = [(90, "caller"), (320, "lane"), (550, "worker"), (780, "resource")]
    for x, name in columns:
        canvas.box(x - 70, 20, 140, 32, [name], "green" if name == "resource" else "box")
        canvas.line([(x, 52), (x, 310)], dashed=True)
    steps = [
        (90, 90, 320, "1  submit: append the task", "blue"),
        (90, 126, 544, "2  wake an idle worker, or have one started", "blue"),
        (544, 162, 320, "3  take it: priority first", "blue"),
        (556, 202, 774, "4  fn(resource, ...)", "green"),
        (774, 234, 556, "return, or raise", "green"),
        (544, 272, 90, "5  publish: future.result() returns, or raises", "blue"),
    ]
    for x, y, to, label, kind in steps:
        canvas.arrow([(x, y), (to, y)], kind)
        canvas.text((x + to) / 2, y - 7, label, "text small")
    canvas.rect(544, 120, 12, 188, "blue", radius=3)
    canvas.rect(774, 196, 12, 44, "green", radius=3)
    canvas.text(566, 300, "clean the resource, next task", "faint small", anchor="start")
    return canvas


def task() -> Canvas:
    """Draw the states of a task, and the ways between them."""
    canvas = Canvas(880, 330, "A task waits, runs and is done. What may happen while it waits, and while it runs.")
    canvas.box(30, 120, 110, 56, ["submitted"])
    canvas.box(230, 120, 130, 56, ["waits", "in its lane"], "amber")
    canvas.box(480, 120, 130, 56, ["runs", "on a worker"], "blue")
    canvas.box(730, 70, 120, 50, ["result"], "green")
    canvas.box(730, 176, 120, 50, ["its own error"], "red")
    canvas.arrow([(140, 148), (226, 148)])
    canvas.arrow([(360, 148), (476, 148)])
    canvas.text(418, 140, "a worker is free", "faint small")
    canvas.arrow([(610, 138), (670, 138), (670, 95), (726, 95)], "green")
    canvas.text(698, 86, "returns", "faint small")
    canvas.arrow([(610, 158), (670, 158), (670, 201), (726, 201)], "red")
    canvas.text(698, 220, "raises", "faint small")
    canvas.arrow([(545, 120), (545, 56), (295, 56), (295, 116)], "amber")
    canvas.text(420, 30, "its resource broke: run again on another one, before all others;", "faint small")
    canvas.text(420, 47, "after max_retries times, its error is the result", "faint small")
    canvas.box(175, 244, 240, 62, ["ends without having run", "`cancel(), stop(), start_within,", "`create_timeout"], "red")
    canvas.arrow([(295, 176), (295, 240)], "red")
    canvas.box(430, 244, 230, 62, ["TaskStopped, TaskTimeout", "`stop(), kill(), run_within"], "red")
    canvas.arrow([(545, 176), (545, 240)], "red")
    canvas.text(537, 204, "stopped, and its", "faint small", anchor="end")
    canvas.text(537, 220, "resource aborted", "faint small", anchor="end")
    return canvas


def worker() -> Canvas:
    """Draw the life of a worker."""
    canvas = Canvas(880, 330, "The life of a worker: it makes its resource, rests and works, destroys its resource, and ends.")
    canvas.box(16, 106, 160, 68, ["starts", "a task found no worker,", "or the base wants it"])
    canvas.box(212, 110, 168, 60, ["makes its resource", "`on_create()"], "green")
    canvas.box(444, 40, 150, 60, ["rests", "with its resource"], "green")
    canvas.box(444, 180, 150, 60, ["works", "`fn(resource, ...)"], "blue")
    canvas.box(696, 110, 168, 60, ["destroys, and ends", "`on_destroy(resource)"], "red")
    canvas.arrow([(176, 140), (208, 140)])
    canvas.arrow([(380, 130), (412, 130), (412, 70), (440, 70)])
    canvas.arrow([(380, 150), (412, 150), (412, 210), (440, 210)])
    canvas.arrow([(270, 110), (270, 70), (318, 70), (318, 106)], "amber")
    canvas.text(294, 47, "fails: again after a pause", "faint small")
    canvas.text(294, 62, "that doubles", "faint small")
    canvas.arrow([(500, 100), (500, 176)])
    canvas.text(492, 144, "a task", "faint small", anchor="end")
    canvas.arrow([(540, 180), (540, 104)])
    canvas.text(548, 134, "no task waits:", "faint small", anchor="start")
    canvas.text(548, 150, "cleaned first", "faint small", anchor="start")
    canvas.arrow([(594, 70), (779, 70), (779, 106)], "red")
    canvas.text(690, 62, "idle_timeout, policy, shutdown", "faint small")
    canvas.arrow([(594, 210), (779, 210), (779, 174)], "red")
    canvas.text(690, 228, "broken, max_age, max_uses,", "faint small")
    canvas.text(690, 243, "refresh(): a successor starts", "faint small")
    canvas.box(424, 268, 190, 44, ["written off", "stopped, and does not end"], "amber")
    canvas.arrow([(519, 240), (519, 264)], "amber")
    canvas.arrow([(614, 290), (840, 290), (840, 174)], "amber", dashed=True)
    canvas.text(724, 306, "its call returns at last", "faint small")
    return canvas


def burst() -> Canvas:
    """Draw what a policy makes of a burst: the tasks that wait, the workers, and the waits."""
    rates = [0] + [20] * 2 + [200] * 2 + [20] * 5
    arrivals = [second + number / rate for second, rate in enumerate(rates) for number in range(rate)]
    policy = Hysteresis(QueueWaitPolicy(target_wait=0.1), shrink_after=5)
    result = simulate(policy, arrivals, service_time=0.05, create_time=0.3, min_workers=2, max_workers=16)
    moments = [moment for moment in result.timeline if moment.time <= len(rates)]
    canvas = Canvas(880, 360, "A burst: tasks wait, the policy adds workers until none waits, and gives them up later.")
    rows = [
        ("tasks waiting", "amber", [(moment.time, float(moment.queued)) for moment in moments]),
        ("workers", "blue", [(moment.time, float(moment.workers)) for moment in moments]),
        ("wait of each task [s]", "green", list(zip(arrivals, result.waits, strict=True))),
    ]
    left, width, height = 60.0, 790.0, 66.0
    for row, (label, kind, values) in enumerate(rows):
        bottom = 102.0 + 106.0 * row
        most = max(value for _, value in values)
        points = [(left + width * time / len(rates), bottom - height * value / most) for time, value in values]
        canvas.text(left, bottom - height - 10, label, "text small", anchor="start")
        canvas.text(
            left - 8, bottom - height + 5, f"{most:.2g}" if kind == "green" else f"{most:.0f}", "faint small", anchor="end"
        )
        canvas.text(left - 8, bottom + 4, "0", "faint small", anchor="end")
        canvas.line([(left, bottom), (left + width, bottom)])
        if kind == "green":
            for x, y in points:
                canvas.dot(x, y, kind)
        else:
            canvas.area([(left, bottom), *steps(points), (points[-1][0], bottom)], kind)
    for second in range(len(rates) + 1):
        canvas.text(left + width * second / len(rates), 336, f"{second} s", "faint small")
    return canvas


def steps(points: list[Point]) -> list[Point]:
    """Return the points of a line in which each value holds until the next."""
    corners = [(following[0], point[1]) for point, following in pairwise(points)]
    return [point for pair in zip(points, [*corners, points[-1]], strict=True) for point in pair]


def panel() -> Canvas:
    """Draw the live panel in a terminal, as the guide shows it; a test compares that with the panel itself."""
    page = (Path(__file__).parent.parent / "howto/watching.rst").read_text("utf-8")
    lines = [line[4:] for line in page.splitlines() if line[4:5] in tuple("\u256d\u2502\u2570")]
    canvas = Canvas(680, 28 + 15 * len(lines), "A live view in the terminal: workers, lanes, rates, waits, resources.")
    for number, line in enumerate(lines):
        canvas.text(20, 26 + 15 * number, line, "text mono", anchor="start")
    return canvas


#: Each picture by its name.
PICTURES: dict[str, Callable[[], Canvas]] = {drawing.__name__: drawing for drawing in (pool, walk, task, worker, burst, panel)}


def main() -> None:
    """Write all pictures, into the folder that the command line names or beside this file."""
    folder = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent
    for name, draw in PICTURES.items():
        (folder / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
