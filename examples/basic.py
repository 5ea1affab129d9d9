"""Two workers, each with a calculator of its own; two tasks; the statistics.

    python examples/basic.py

A calculator stands for whatever is costly to make and must not be shared: a connection, a session, a browser,
a model. Each worker makes one on its own thread, keeps it as long as it lives, and gives it up at the end.
"""

from __future__ import annotations

import sys
import threading

from tasker_executor import ResourceExecutor


def say(text: str) -> None:
    """Print a line in one piece. (print() writes the end of the line separately; another thread may print first.)"""
    sys.stdout.write(f"{text}\n")


class Calculator:
    def __init__(self) -> None:
        self.owner = threading.current_thread().name
        say(f"  {self.owner} made its calculator")

    def close(self) -> None:
        say(f"  {self.owner} gave its calculator up")


# A task is a plain function. The worker's resource is its first argument; the rest comes from submit().
def add(calculator: Calculator, a: int, b: int) -> int:
    return a + b


def factorial(calculator: Calculator, n: int) -> int:
    product = 1
    for factor in range(2, n + 1):
        product *= factor
    return product


def main() -> None:
    print("Start:")
    with ResourceExecutor(2, min_workers=2, on_create=Calculator, on_destroy=Calculator.close, name="office") as pool:
        pool.wait_ready()  # Only for the order of the output: tasks may be submitted at once.

        print("\nTwo tasks:")
        total = pool.submit(add, 19, 23)  # an ordinary concurrent.futures.Future[int]
        product = pool.submit(factorial, 20)
        print(f"  19 + 23 = {total.result()}")
        print(f"  20! = {product.result()}")

        print("\nThe pool, while it is running:")
        stats = pool.stats()
        print(f"  {stats.active_workers} workers, {stats.resources_created} calculators")
        print(f"  {stats.submitted} tasks submitted, {stats.completed} completed, {stats.failed} failed")

        print("\nEnd:")  # The end of the block drains the queue and destroys every calculator.

    stats = pool.stats()
    print(f"\nAfterwards: {stats.active_workers} workers, {stats.resources_created} calculators made, ", end="")
    print(f"{stats.resources_destroyed} given up")

    if (total.result(), product.result()) != (42, 2432902008176640000):
        sys.exit("FAILED: the results are wrong")
    if stats.active_workers or not stats.resources_created == stats.resources_destroyed == 2:
        sys.exit(f"FAILED: something is left over: {stats}")


if __name__ == "__main__":
    main()
