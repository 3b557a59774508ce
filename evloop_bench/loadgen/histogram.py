"""Latencies as counts by bucket: cheap to record, exact to merge.

A bucket is the value in nanoseconds with all but its eleven leading bits set to zero, which is the lowest value of a
bucket of an HdrHistogram with three significant digits. So counts of several processes are added bucket by bucket,
never percentiles averaged, and the sum becomes an HdrHistogram without any loss.

The recording itself is three lines that stand in the callers' hot paths (a call would cost as much again)::

    shift = value_ns.bit_length() - SUB_BUCKET_BITS
    counts[value_ns >> shift << shift if shift > 0 else value_ns] += n
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram

SUB_BUCKET_BITS = 11
MAX_VALUE_NS = 3600 * 10**9

Counts = dict[int, int]

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 99.99)
# A percentile with fewer samples beyond it than this is one slow message's story, not a property of the server.
MIN_SAMPLES_BEYOND = 10


def bucket_of(value_ns: int) -> int:
    """The lowest value of the bucket that a value belongs to."""
    shift = value_ns.bit_length() - SUB_BUCKET_BITS
    return value_ns >> shift << shift if shift > 0 else value_ns


def record(counts: Counts, value_ns: int, n: int = 1) -> None:
    """Count a value ``n`` times: for where a call doesn't matter."""
    bucket = bucket_of(max(value_ns, 0))
    counts[bucket] = counts.get(bucket, 0) + n


def merge(parts: Iterable[Counts]) -> Counts:
    """The sum of several, bucket by bucket."""
    total: Counts = {}
    for part in parts:
        for bucket, n in part.items():
            total[bucket] = total.get(bucket, 0) + n
    return total


def from_pairs(pairs: Iterable[Iterable[int]]) -> Counts:
    """Counts from the pairs they were handed over as (JSON has no integer keys)."""
    return dict(pairs)  # type: ignore[arg-type]


def percentile(counts: Counts, percent: float) -> int | None:
    """The lowest bucket below or in which ``percent`` of the values lie; None without values."""
    total = sum(counts.values())
    wanted = total * percent / 100
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= wanted:
            return bucket
    return None


def count_above(counts: Counts, value_ns: int) -> int:
    """How many values lie in buckets above the one of ``value_ns``."""
    bound = bucket_of(value_ns)
    return sum(n for bucket, n in counts.items() if bucket > bound)


def to_hdr(counts: Counts) -> HdrHistogram:
    """The same as an HdrHistogram (nanoseconds, three significant digits, one hour at most)."""
    from hdrh.histogram import HdrHistogram  # here, as the generator processes do without it

    histogram = HdrHistogram(1, MAX_VALUE_NS, 3)
    for bucket, n in counts.items():
        # It counts from 1 ns on; an hour is its end.
        histogram.record_value(min(max(bucket, 1), MAX_VALUE_NS), n)
    return histogram


def summarise(counts: Counts) -> dict[str, Any]:
    """What is reported of a distribution, in milliseconds: n, mean, min, max and the percentiles that it supports."""
    n = sum(counts.values())
    if not n:
        return {"n": 0, "mean_ms": None, "min_ms": None, "max_ms": None, "percentiles_ms": {}}
    histogram = to_hdr(counts)
    percentiles = {
        f"{percent:g}": histogram.get_value_at_percentile(percent) / 1e6
        for percent in PERCENTILES
        if n * (100 - percent) / 100 >= MIN_SAMPLES_BEYOND - 1e-9
    }
    return {
        "n": n,
        "mean_ms": sum(bucket * count for bucket, count in counts.items()) / n / 1e6,
        "min_ms": min(counts) / 1e6,
        "max_ms": histogram.get_max_value() / 1e6,
        "percentiles_ms": percentiles,
    }
