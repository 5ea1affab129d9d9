"""How much a task costs: ``python -m benchmarks``, or ``make bench``. README.rst has the numbers and how to read them."""
