"""Which runs are not to be believed."""

from __future__ import annotations

from typing import Any

import pytest

from evloop_bench.loadgen.settings import Settings
from evloop_bench.loadgen.verdict import judge


def make_result(**changes: Any) -> dict[str, Any]:
    """A result with nothing wrong in it, but for the changes."""
    result: dict[str, Any] = {
        "latency": {"n": 50_000},
        "messages": {"measured": 50_000, "late_sends": 0, "missed_sends": 0},
        "send_lateness": {"n": 50_000},
        "seconds": 5.0,
        "throughput_per_s": 10_000.0,
        "server": {"cpu_share": 0.99, "core_wait_s": 0.0},
        "generator": {"cpu_share": [0.5], "core_wait_s": [0.0], "stalled_s": [0.0], "cores": None},
        "error_total": 0,
        "errors": {"wrong": 0, "timed_out": 0},
        "other_cpu_share": 0.0,
        "connect_errors": {},
        "interrupted": False,
        "intervals": [
            {"from_s": i / 10, "to_s": (i + 1) / 10, "throughput_per_s": 10_000.0, "p50_ms": 1.0} for i in range(50)
        ],
    }
    for key, value in changes.items():
        result[key] = result[key] | value if isinstance(value, dict) else value
    return result


CLOSED = Settings(duration_s=5)
OPEN = Settings(duration_s=5, rate_per_s=10_000)
SMALL = Settings(duration_s=5, connections=1)


def drifting(key: str, before: float, after: float) -> list[dict[str, Any]]:
    intervals = make_result()["intervals"]
    for interval in intervals:
        interval[key] = before if interval["from_s"] < 2 else after
    return list(intervals)


@pytest.mark.parametrize("settings", [CLOSED, OPEN, SMALL])
def test_a_good_run_is_valid(settings: Settings) -> None:
    assert judge(settings, make_result()) == {"valid": True, "reasons": [], "notes": []}


@pytest.mark.parametrize(
    ("settings", "changes", "reason"),
    [
        (CLOSED, {"server": {"cpu_share": 0.6}, "generator": {"cpu_share": [0.4, 0.97]}}, "generator saturated"),
        (CLOSED, {"server": None, "generator": {"cpu_share": [0.97]}}, "generator saturated"),
        (CLOSED, {"server": {"cpu_share": 0.6}}, "server not saturated"),
        (SMALL, {"server": {"cpu_share": 0.3}, "generator": {"cpu_share": [0.95]}}, "generator saturated"),
        (OPEN, {"server": {"cpu_share": 0.3}, "generator": {"cpu_share": [0.95]}}, "generator saturated"),
        (OPEN, {"messages": {"measured": 50_000, "late_sends": 501, "missed_sends": 0}}, "sends late: 1.0% left"),
        (OPEN, {"messages": {"measured": 48_000, "late_sends": 0, "missed_sends": 0}}, "rate not reached"),
        (
            OPEN,
            {"messages": {"measured": 50_000, "late_sends": 0, "missed_sends": 900}},
            "sends missed: 900 of the 50,9",
        ),
        (CLOSED, {"error_total": 50_000, "errors": {"wrong": 50_000}}, "errors (50,000 wrong)"),
        (OPEN, {"error_total": 1, "errors": {"timed_out": 1}}, "errors (1 timed out)"),
        (Settings(connections=0, idle=5), {"error_total": 1, "errors": {"reset": 1}}, "errors (1 reset)"),
        (OPEN, {"generator": {"stalled_s": [0.0, 2.5]}}, "a generator stood still for 2.5 s"),
        (CLOSED, {"latency": {"n": 999}}, "too few samples"),
        (CLOSED, {"intervals": drifting("throughput_per_s", 8_000, 10_000)}, "warm-up drift"),
        (OPEN, {"intervals": drifting("p50_ms", 3, 1)}, "warm-up drift"),
    ],
)
def test_a_run_that_can_not_be_believed_says_why(settings: Settings, changes: dict[str, Any], reason: str) -> None:
    verdict = judge(settings, make_result(**changes))
    assert not verdict["valid"]
    assert len(verdict["reasons"]) == 1
    assert verdict["reasons"][0].startswith(reason)


def test_an_overload_is_not_told_to_run_longer() -> None:
    messages = {"measured": 30_000, "late_sends": 0, "missed_sends": 50_000}
    verdict = judge(OPEN, make_result(messages=messages, send_lateness=None, latency={"n": 0}))
    assert "sends missed: 50,000 of the 50,000 scheduled never left" in verdict["reasons"][0]
    assert verdict["reasons"][1].startswith("rate not reached: 10,000 replies/s of 10,000/s asked for")
    assert verdict["reasons"][2] == "too few samples: 0 (at least 1000)"


def test_generators_that_share_a_core_are_saturated_together() -> None:
    changes = {"server": {"cpu_share": 0.5}, "generator": {"cpu_share": [0.08] * 12, "cores": [1]}}
    (reason,) = judge(SMALL, make_result(**changes))["reasons"]
    assert reason.startswith("generator saturated: it used 96% of its core")
    assert reason.endswith("it needs a machine with more cores")
    changes["generator"]["cores"] = [1, 2]
    assert judge(SMALL, make_result(**changes))["valid"]


def test_a_saturated_server_excuses_a_busy_generator_in_a_closed_loop() -> None:
    assert judge(CLOSED, make_result(generator={"cpu_share": [0.99]}))["valid"]


def test_who_had_to_wait_for_a_core_is_said() -> None:
    changes = {"server": {"cpu_share": 0.5, "core_wait_s": 0.1}, "generator": {"core_wait_s": [0.0, 2.5]}}
    (reason,) = judge(CLOSED, make_result(**changes))["reasons"]
    assert reason.endswith("other processes had its core: a generator waited 50% of the time")


def test_few_in_flight_need_not_saturate_anybody() -> None:
    verdict = judge(SMALL, make_result(server={"cpu_share": 0.3}))
    assert verdict["valid"]
    assert "neither side was at its limit" in verdict["notes"][0]


def test_a_slow_median_is_no_drift_when_it_is_the_same_all_along() -> None:
    assert judge(OPEN, make_result(intervals=drifting("p50_ms", 80, 80)))["valid"]


def test_a_short_run_and_a_busy_machine_are_noted() -> None:
    result = make_result(intervals=[], other_cpu_share=0.5, server={"cpu_share": 1.0})
    notes = " / ".join(judge(CLOSED, result)["notes"])
    assert "too short to tell" in notes
    assert "not quiet: other processes used 50% of a core" in notes


def test_a_calibration_may_saturate_the_generator() -> None:
    settings = Settings(null=True)
    assert judge(settings, make_result(server={"cpu_share": 0.6}, generator={"cpu_share": [0.99]}))["valid"]
