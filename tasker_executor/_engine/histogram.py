"""The distribution of durations, in constant memory and mostly in C.

**Buckets.** The top 16 bits of a positive double are its sign (0), its exponent and the first four bits of
its mantissa. Taken as a number they grow with the value, in 16 steps per doubling. So they are a ready-made
bucket number: a bucket is at most 6.25 % wide, over all magnitudes there are. Packed doubles are a string of
bytes, and C counts the bytes of a string: no Python instruction per value.
"""

from __future__ import annotations

import struct
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..stats import DurationSummary

__all__ = ["Histogram"]

# Where the upper and the lower byte of the top 16 bits are in a double.
_UPPER, _LOWER = (7, 6) if sys.byteorder == "little" else (0, 1)
_NEGATIVE = 0x80  # the sign bit, in the upper byte
_BYTES = bytes(range(256))
_BYTE = [bytes((value,)) for value in range(256)]
_STRIKES = 10  # After 10 kinds of bytes, the rest is counted value by value.
_INFINITY = float("inf")


def _bucket(value: float) -> int:
    """Return the number of the bucket that `value` falls into."""
    return int.from_bytes(struct.pack(">d", value)[:2], "big")


def _bucket_start(bucket: int) -> float:
    """Return the smallest value that falls into `bucket`."""
    start: float = struct.unpack(">d", struct.pack(">Hxxxxxx", bucket))[0]
    return start


class Histogram:
    """A distribution of durations in seconds. Histograms of threads, processes and machines can be merged."""

    __slots__ = ("_high", "_low", "_pages", "count", "maximum", "minimum", "total")

    def __init__(self) -> None:
        # For each upper byte of a bucket number, a page: counts by its lower byte. A page spans a factor of
        # 65,536, so one or two pages are the rule.
        self._pages: dict[int, Counter[int]] = {}
        self.count: int = 0
        self.total: float = 0.0
        self.minimum: float = _INFINITY
        self.maximum: float = 0.0
        self._low, self._high = _bucket(_INFINITY), 0  # the buckets of the extremes

    def add(self, values: list[float]) -> float:
        """Add all values, at least one, and return their sum."""
        raw = struct.pack(f"={len(values)}d", *values)
        upper, lower = raw[_UPPER::8], raw[_LOWER::8]
        page = upper[0]
        if upper.count(page) < len(upper) or page >= _NEGATIVE:
            if max(upper) >= _NEGATIVE:
                # A worker takes the end of a task for the start of the next. A task submitted between the two
                # has a negative wait, which counts as 0.
                return self.add([value if value > 0.0 else 0.0 for value in values])
            return sum(
                self.add([value for value, byte in zip(values, upper, strict=True) if byte == page]) for page in set(upper)
            )
        counts = self._pages.get(page)
        if counts is None:
            counts = self._pages[page] = Counter()
        # The extremes need a look only if some value may lie outside of them. `bytes.translate` deletes the
        # bytes of the values that lie inside.
        high, low = self._high, self._low
        if page << 8 >= high or (high >> 8 == page and lower.translate(None, _BYTES[: high & 0xFF])):
            self.maximum = max(self.maximum, max(values))
            self._high = _bucket(self.maximum)
        if page << 8 | 0xFF <= low or (low >> 8 == page and lower.translate(None, _BYTES[(low & 0xFF) + 1 :])):
            self.minimum = min(self.minimum, min(values))
            self._low = _bucket(self.minimum)
        # Most values fall into a few buckets. To strike out one bucket after the other is faster than to look
        # at each value.
        count = len(lower)
        for _ in range(_STRIKES):
            byte = lower[0]
            lower = lower.translate(None, _BYTE[byte])
            counts[byte] += count - len(lower)
            count = len(lower)
            if not count:
                break
        else:
            counts.update(lower)
        total = sum(values)
        self.count += len(values)
        self.total += total
        return total

    @property
    def buckets(self) -> dict[int, int]:
        """Counts by bucket number, ascending."""
        return {
            page << 8 | byte: count for page, counts in sorted(self._pages.items()) for byte, count in sorted(counts.items())
        }

    def merge(self, other: Histogram) -> None:
        """Add what `other` has counted."""
        for page, counts in other._pages.items():
            self._pages.setdefault(page, Counter()).update(counts)
        self.count += other.count
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self._low, self._high = _bucket(self.minimum), _bucket(self.maximum)

    def copy(self) -> Histogram:
        """Return an independent copy."""
        twin = Histogram()
        twin.merge(self)
        return twin

    def new_since(self, before: Mapping[int, int]) -> list[tuple[float, int]]:
        """Return what was added since `buckets` was `before`: ascending values, and the count of each.

        A value is exact to within half a bucket.
        """
        new: list[tuple[float, int]] = []
        for bucket, count in self.buckets.items():
            if count > before.get(bucket, 0):
                middle = (_bucket_start(bucket) + _bucket_start(bucket + 1)) / 2
                new.append((min(max(middle, self.minimum), self.maximum), count - before.get(bucket, 0)))
        return new

    def _quantiles(self, shares: list[float]) -> list[float]:
        """Return for each of the ascending `shares` the value which that share of all values does not exceed.

        The value is interpolated inside its bucket.
        """
        found: list[float] = []
        below = 0
        for bucket, count in self.buckets.items():
            while len(found) < len(shares) and shares[len(found)] * self.count <= below + count:
                start, end = _bucket_start(bucket), _bucket_start(bucket + 1)
                value = start + (end - start) * (shares[len(found)] * self.count - below) / count
                found.append(min(max(value, self.minimum), self.maximum))
            below += count
        return found + [self.maximum] * (len(shares) - len(found))

    def summary(self) -> DurationSummary:
        """Return the distribution in a few numbers."""
        from ..stats import DurationSummary

        if not self.count:
            return DurationSummary(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        p50, p95, p99 = self._quantiles([0.50, 0.95, 0.99])
        return DurationSummary(self.count, self.total, self.minimum, self.maximum, self.total / self.count, p50, p95, p99)

    def cumulative(self, bounds: Iterable[float]) -> list[int]:
        """Return for each ascending bound how many values do not exceed it.

        A count is exact to within the bucket that the bound falls into.
        """
        buckets = list(self.buckets.items())
        reached: list[int] = []
        at, below = 0, 0
        for bound in bounds:
            while at < len(buckets) and _bucket_start(buckets[at][0] + 1) <= bound:
                below += buckets[at][1]
                at += 1
            inside = 0.0
            if at < len(buckets):
                start, end = _bucket_start(buckets[at][0]), _bucket_start(buckets[at][0] + 1)
                inside = buckets[at][1] * min(max((bound - start) / (end - start), 0.0), 1.0)
            reached.append(below + round(inside))
        return reached
