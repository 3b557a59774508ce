"""What is printed of results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evloop.net.endpoint import TcpEndpoint
from evloop_bench.loadgen import report
from evloop_bench.loadgen.command import LiveRate
from evloop_bench.loadgen.results import assemble
from evloop_bench.loadgen.sampling import Usage
from evloop_bench.loadgen.settings import Settings
from evloop_bench.loadgen.target import Target

Load = Callable[..., Any]


def usage(at_s: float, cpu_s: float, rss_bytes: int) -> Usage:
    return Usage(at_s, cpu_s, 0.0, rss_bytes, 0, 0, 0.0)


def part(measured: int = 10_000, cpu_s: float = 0.5, **changes: Any) -> dict[str, Any]:
    """What a generator hands over after a second."""
    latency = [(bucket * 100_000, measured // 10) for bucket in range(1, 11)]
    return {
        "begin_ns": 0,
        "end_ns": 10**9,
        "cpu_s": cpu_s,
        "core_wait_s": 0.0,
        "stalled_s": 0.0,
        "context_switches": [1, 2],
        "measured_replies": measured,
        "sent": measured,
        "replies": measured,
        "connections": 4,
        "bytes_sent": 0,
        "bytes_received": 0,
        "errors": dict.fromkeys(("wrong", "missing", "late", "refused", "reset", "timed_out"), 0),
        "examples": [],
        "connect_errors": {},
        "late_sends": 0,
        "missed_sends": 0,
        "latency": latency,
        "service": [],
        "lateness": [],
        "connect": [],
        "intervals": [{"from_s": 0.0, "to_s": 1.0, "cpu_s": cpu_s, "replies": measured, "latency": latency}],
    } | changes


def make_result(parts: list[dict[str, Any]], settings: Settings = Settings(), **changes: Any) -> dict[str, Any]:  # noqa: B008
    marks = {
        "start": usage(0, 0.0, 14 << 20),
        "base": usage(1, 0.0, 15 << 20),
        "connected": usage(2, 0.0, 16 << 20),
        "begin": usage(3, 0.0, 16 << 20),
        "end": usage(4, 0.95, 16 << 20),
    }
    arguments: dict[str, Any] = {
        "marks": marks,
        "samples": list(marks.values()),
        "machine_cpu": {},
        "cores": (None, None),
        "interrupted": False,
    }
    return assemble(settings, Target(TcpEndpoint("127.0.0.1", 1), (1,), True, "x"), parts, **arguments | changes)


def line_of(text: str, name: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(name))
    return line


def test_a_hundred_processes_are_not_a_hundred_numbers() -> None:
    def line(count: int) -> str:
        parts = [part(cpu_s=0.1 + index / 1000) for index in range(count)]
        return line_of(report.summary(make_result(parts, Settings(processes=count))), "generator CPU")

    assert line(3).endswith("10% + 10% + 10% of a core, 10.10 us per message")
    assert line(100).endswith("10% to 20% of a core each, 14.95 cores in all 100, 14.95 us per message")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "none in 10,000 replies: each was right"),
        ({"replies": 1}, "none in 1 reply: each was right"),
        ({"missed_sends": 7}, "none in 10,000 replies: each was right; but 7 messages of the schedule never left"),
        ({"replies": 0}, "none, as no reply came"),
        ({"replies": 0, "sent": 0}, "none"),
    ],
)
def test_no_errors_in_what(changes: dict[str, int], said: str) -> None:
    assert line_of(report.summary(make_result([part(**changes)])), "errors") == f"{'errors':<18}{said}"


def test_memory_per_connection_begins_with_the_first_tenth() -> None:
    def cost(settings: Settings, **changes: Any) -> float | None:
        result = make_result([part(**changes)], settings)
        cost: float | None = result["server"]["rss_per_connection_bytes"]
        return cost

    assert cost(Settings(connections=1000)) == (1 << 20) / 900
    assert cost(Settings(connections=0, idle=1000)) == (1 << 20) / 900
    assert cost(Settings(connections=299)) is None, "the allocator's pages are more than they are"
    assert cost(Settings(connections=1000, churn=True)) is None, "none of them stays"
    assert cost(Settings(connections=1000), errors=part()["errors"] | {"refused": 1}) is None, "not so many were open"


@pytest.mark.slow
def test_several_runs_have_a_summary(load: Load) -> None:
    done = load("-c", "3", "-n", "1200", "--warmup", "0", "--repeat", "3")
    *_, rest = done.stdout.partition("\nall 3 runs ")
    assert rest.split()[:3] == ["median", "least", "most"]
    throughputs = sorted(run["throughput_per_s"] for run in done.document["runs"])
    least, middle, most = (f"{value:,.0f}" for value in throughputs)
    assert line_of(rest, "messages/s").split()[1:] == [middle, least, most]
    for name in ("latency p50, ms", "latency p95, ms", "server us/message"):
        assert len(line_of(rest, name).split()) == len(name.split()) + 3
    assert line_of(rest, "verdict").endswith("of 3 VALID")
    assert "all 1 runs" not in load("-c", "3", "-n", "100", "--warmup", "0").stdout


def test_the_live_rate_is_that_of_the_last_half_second() -> None:
    live = LiveRate()
    assert live.shown("warming up", 0, 0.0) == ""
    assert live.shown("measuring", 0, 1.0) == ""
    assert live.shown("measuring", 500, 1.25) == ""
    assert live.shown("measuring", 1000, 1.5) == "2,000/s"
    assert live.shown("measuring", 9000, 1.75) == "2,000/s"
    assert live.shown("measuring", 9000, 2.0) == "16,000/s"
    assert live.shown("measuring", 9000, 2.5) == "0/s"
    assert live.shown("waiting for replies", 9000, 3.0) == ""
