"""Buckets: the same as HdrHistogram's, merged without loss."""

from __future__ import annotations

import random

from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from evloop_bench.loadgen.histogram import (
    MAX_VALUE_NS,
    Counts,
    bucket_of,
    count_above,
    merge,
    percentile,
    record,
    summarise,
    to_hdr,
)

values = st.integers(min_value=1, max_value=MAX_VALUE_NS)


@given(values)
def test_a_bucket_is_one_of_hdr_histogram(value: int) -> None:
    assert bucket_of(value) == HdrHistogram(1, MAX_VALUE_NS, 3).get_lowest_equivalent_value(value)
    assert bucket_of(value) <= value <= bucket_of(value) * 1.001 + 1


@given(st.lists(values, max_size=50), st.lists(values, max_size=50))
def test_merging_is_the_same_as_recording_everything_in_one(first: list[int], second: list[int]) -> None:
    a: Counts = {}
    b: Counts = {}
    both: Counts = {}
    for value in first:
        record(a, value)
    for value in second:
        record(b, value)
    for value in first + second:
        record(both, value)
    assert merge([a, b]) == both


def test_percentiles_are_those_of_hdr_histogram() -> None:
    rng = random.Random(3)
    counts: Counts = {}
    reference = HdrHistogram(1, MAX_VALUE_NS, 3)
    for _ in range(5000):
        value = int(rng.lognormvariate(12, 2))
        record(counts, value)
        reference.record_value(value)
    for percent in (1, 50, 90, 99, 99.9, 100):
        expected = reference.get_value_at_percentile(percent)
        assert to_hdr(counts).get_value_at_percentile(percent) == expected
        found = percentile(counts, percent)
        assert found is not None
        assert abs(found - expected) <= expected * 0.001 + 1


def test_a_percentile_is_given_only_with_ten_samples_beyond_it() -> None:
    counts: Counts = {}
    record(counts, 1_000_000, 999)
    assert list(summarise(counts)["percentiles_ms"]) == ["50", "90", "95"]
    record(counts, 2_000_000)
    assert list(summarise(counts)["percentiles_ms"]) == ["50", "90", "95", "99"]
    record(counts, 1_000_000, 99_000)
    assert list(summarise(counts)["percentiles_ms"]) == ["50", "90", "95", "99", "99.9", "99.99"]
    assert summarise(counts)["n"] == 100_000
    assert abs(summarise(counts)["max_ms"] - 2) < 0.003


def test_nothing_recorded_has_no_numbers() -> None:
    assert summarise({}) == {"n": 0, "mean_ms": None, "min_ms": None, "max_ms": None, "percentiles_ms": {}}
    assert percentile({}, 50) is None


def test_values_above_a_bound_are_counted() -> None:
    counts: Counts = {}
    for value in (10, 1000, 5_000_000_000, 6_000_000_000):
        record(counts, value)
    assert count_above(counts, 4_000_000_000) == 2
    assert count_above(counts, 6_000_000_000) == 0
