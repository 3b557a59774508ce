"""Conditions on results."""

from __future__ import annotations

from typing import Any

import pytest

from evloop_bench.loadgen.asserts import METRICS, AssertionSyntaxError, parse_condition

RESULT: dict[str, Any] = {
    "throughput_per_s": 60_000.0,
    "messages": {"measured": 300_000, "late_sends": 2, "missed_sends": 0},
    "error_total": 1,
    "errors": {"wrong": 1, "missing": 0, "late": 0, "refused": 0, "reset": 0, "timed_out": 0},
    "latency": {"mean_ms": 1.0, "max_ms": 30.0, "min_ms": 0.1, "percentiles_ms": {"50": 0.9, "99": 9.5}},
    "service_time": None,
    "send_lateness": None,
    "connect_time": {"percentiles_ms": {}, "mean_ms": None, "max_ms": None, "min_ms": None},
    "server": {
        "cpu_us_per_message": 5.5,
        "cpu_share": 0.95,
        "rss_max_bytes": 20 << 20,
        "rss_per_connection_bytes": 900.0,
    },
    "generator": {"cpu_us_per_message": 4.0},
}


@pytest.mark.parametrize(
    "text",
    [
        "p99<10ms",
        " p99 < 9501us ",
        "p50<=0.9ms",
        "max<1s",
        "throughput>=60k",
        "throughput<0.1M",
        "missing==0",
        "wrong!=0",
        "cpu_per_message<6us",
        "cpu>90%",
        "rss<32MiB",
        "rss_per_connection<=1KiB",
        "late_sends==2",
        "throughput>1e4",
    ],
)
def test_a_condition_that_holds(text: str) -> None:
    assert parse_condition(text).check(RESULT) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p99<9ms", "p99<9ms: it is 9.5 ms"),
        ("errors==0", "errors==0: it is 1"),
        ("cpu_per_message<5us", "cpu_per_message<5us: it is 5.5 us"),
        ("p99.9<1s", "p99.9 is not known"),
        ("service.p99<1s", "service.p99 is not known"),
        ("rss<1MiB", "it is 20,480.0 KiB"),
        ("cpu<90%", "it is 95.0%"),
    ],
)
def test_a_condition_that_is_broken_says_by_what(text: str, said: str) -> None:
    assert said in (parse_condition(text).check(RESULT) or "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p98<1ms", "there is no 'p98'"),
        ("p99<10", "needs a unit"),
        ("p99<10MiB", "is not a unit of p99"),
        ("throughput>5ms", "is not a unit of throughput"),
        ("p99", "is not a condition"),
        ("p99=1ms", "is not a condition"),
        ("p99<fast", "is not a condition"),
        ("", "is not a condition"),
        ("p99<1.2.3ms", "is not a number"),
    ],
)
def test_what_is_no_condition_is_refused(text: str, said: str) -> None:
    with pytest.raises(AssertionSyntaxError, match=said):
        parse_condition(text)


def test_every_metric_can_be_read_from_a_result_without_a_server() -> None:
    without = RESULT | {"server": None}
    for name, (kind, _) in METRICS.items():
        unit = {"time": "ms", "bytes": "B", "share": "%", "number": ""}[kind]
        parse_condition(f"{name}>=0{unit}").check(without)
