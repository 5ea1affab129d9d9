"""What goes wrong, by name, in the order of the report."""

from . import connections, work, endings, surroundings  # noqa: I001  # That order.
from ._fault import FAULTS, After, Fault

__all__ = ["FAULTS", "After", "Fault", "connections", "endings", "surroundings", "work"]
