"""Whether a run's numbers can be trusted. The rules are those of docs/benchmarking.md."""

from __future__ import annotations

import errno
import os
from statistics import median
from typing import Any

from evloop_bench.loadgen.settings import LATE_SEND_S, Settings

# A process that has used this part of a core could not have done more: the rest is the scheduler's.
SATURATED = 0.9
# With so many messages in flight a closed loop is meant to saturate the server: if it doesn't, its throughput is not
# what the server is capable of.
SATURATING_IN_FLIGHT = 64
MAX_LATE_FRACTION = 0.01
MIN_RATE_FRACTION = 0.98
# So that a p99 can be given.
MIN_SAMPLES = 1000
MAX_DRIFT = 0.10
MAX_MEDIAN_DRIFT = 0.5
_MEDIAN_DRIFT_FLOOR_MS = 0.2
_MIN_INTERVALS = 8
NO_PORT = os.strerror(errno.EADDRNOTAVAIL)
# Cores' worth of other processes' time above which the machine was not quiet.
NOISE = 0.1


def judge(settings: Settings, result: dict[str, Any]) -> dict[str, Any]:
    """The verdict: ``valid``, the ``reasons`` why not, and ``notes`` for the reader."""
    reasons: list[str] = []
    notes: list[str] = []
    if result["error_total"]:
        found = ", ".join(f"{n:,} {kind.replace('_', ' ')}" for kind, n in result["errors"].items() if n)
        reasons.append(f"errors ({found}): a server that does not do its work may be as fast as it likes")
    stalled_s = max(result["generator"]["stalled_s"], default=0.0)
    if stalled_s:
        reasons.append(
            f"a generator stood still for {stalled_s:.1f} s, suspended or without a core: what came meanwhile was read "
            "later, and its latency is not the server's"
        )
    if settings.connections:
        if settings.mode == "open":
            _judge_open(settings, result, reasons)
        else:
            _judge_closed(settings, result, reasons, notes)
        n = result["latency"]["n"]
        if n < MIN_SAMPLES:
            # In an overload there are none however long it runs: that reason stands already.
            advice = "" if settings.mode == "open" and reasons else "; run longer"
            reasons.append(f"too few samples: {n} (at least {MIN_SAMPLES}){advice}")
        _judge_drift(settings, result["intervals"], reasons, notes)
    if result["server"] is None:
        notes.append("the server's process could not be found: its CPU and memory are not known")
    others = result["other_cpu_share"]
    if others is not None and others > NOISE:
        notes.append(f"the machine was not quiet: other processes used {others:.0%} of a core")
    if NO_PORT in result["connect_errors"]:
        notes.append("local ports ran out: each is free again a second or a minute after its connection was closed")
    if result["interrupted"]:
        notes.append("interrupted: these are the numbers up to then")
    return {"valid": not reasons, "reasons": reasons, "notes": notes}


def _busiest_generator(result: dict[str, Any]) -> float:
    """What the busiest generator used of a core; or all of them of the cores that they share, if that is more."""
    generator = result["generator"]
    shares = generator["cpu_share"]
    together = sum(shares) / len(generator["cores"]) if generator["cores"] else 0.0
    return max([*shares, together], default=0.0)


def _more_generators(result: dict[str, Any]) -> str:
    cores = result["generator"]["cores"]
    if cores and len(result["generator"]["cpu_share"]) >= len(cores):
        return "it needs a machine with more cores"
    return "use more --processes"


def _waits(result: dict[str, Any]) -> str:
    """Who had to wait for a core that others used, as the end of a sentence."""
    seconds = result["seconds"]
    waits = {"a generator": max(result["generator"]["core_wait_s"], default=0.0) / seconds}
    if result["server"] is not None:
        waits["the server"] = result["server"]["core_wait_s"] / seconds
    found = [f"{name} waited {share:.0%} of the time" for name, share in waits.items() if share > NOISE]
    return f"; other processes had its core: {', '.join(found)}" if found else ""


def _judge_closed(settings: Settings, result: dict[str, Any], reasons: list[str], notes: list[str]) -> None:
    generator = _busiest_generator(result)
    server = result["server"]["cpu_share"] if result["server"] is not None else None
    if server is not None and server >= SATURATED:
        return  # as it should be
    if settings.null and generator >= SATURATED:
        return  # what a calibration is after
    said = "unknown" if server is None else f"{server:.0%} of a core"
    if generator >= SATURATED:
        reasons.append(
            f"generator saturated: it used {generator:.0%} of its core, the server {said}; "
            f"this is the generator's limit: {_more_generators(result)}"
        )
    elif server is not None:
        in_flight = settings.connections * settings.pipeline
        if in_flight >= SATURATING_IN_FLIGHT:
            reasons.append(
                f"server not saturated: it used {said}, the generator {generator:.0%}; with {in_flight} "
                f"in flight one of them should be at its limit{_waits(result)}"
            )
        else:
            notes.append(
                f"neither side was at its limit (server {said}, generator {generator:.0%} of a core): with {in_flight} "
                "in flight the throughput follows from the latency, and is not the server's capacity"
            )


def _judge_open(settings: Settings, result: dict[str, Any], reasons: list[str]) -> None:
    generator = _busiest_generator(result)
    if generator >= SATURATED:
        reasons.append(
            f"generator saturated: it used {generator:.0%} of its core; {_more_generators(result)}, or lower --rate"
        )
    messages = result["messages"]
    lateness = result["send_lateness"]
    sends = (lateness["n"] if lateness is not None else 0) + messages["missed_sends"]
    if not sends:
        reasons.append("nothing was sent")
        return
    late = messages["late_sends"]
    if late > MAX_LATE_FRACTION * sends:
        reasons.append(
            f"sends late: {late / sends:.1%} left more than {LATE_SEND_S * 1000:g} ms after their time "
            f"(at most {MAX_LATE_FRACTION:.0%} may){_waits(result)}"
        )
    missed = messages["missed_sends"]
    if missed > MAX_LATE_FRACTION * sends and not result["interrupted"]:
        reasons.append(
            f"sends missed: {missed:,} of the {sends:,} scheduled never left, and are in no latency: lower --rate"
        )
    # Of what was scheduled, not of rate times duration: Poisson arrivals vary, and that is no fault.
    window = settings.pipeline if settings.churn else 1
    reached = result["messages"]["measured"] / (sends * window)
    if reached < MIN_RATE_FRACTION and not result["interrupted"]:
        reasons.append(
            f"rate not reached: {result['throughput_per_s']:,.0f} replies/s "
            f"of {sends * window / result['seconds']:,.0f}/s asked for; latency then grows with the length of the run"
        )


def _judge_drift(settings: Settings, intervals: list[dict[str, Any]], reasons: list[str], notes: list[str]) -> None:
    """Whether the beginning differs from the rest, which then had not warmed up."""
    whole = [interval for interval in intervals if interval["to_s"] - interval["from_s"] >= settings.interval_s / 2]
    if len(whole) < _MIN_INTERVALS:
        notes.append("too short to tell whether it had warmed up")
        return
    first, last = whole[: len(whole) // 4], whole[len(whole) // 2 :]
    if settings.mode == "closed":
        before, after = (median(interval["throughput_per_s"] for interval in part) for part in (first, last))
        if after and abs(before / after - 1) > MAX_DRIFT:
            reasons.append(
                f"warm-up drift: {before:,.0f}/s in the first quarter, {after:,.0f}/s in the second half; "
                "use a longer --warmup, or a quieter machine"
            )
        return
    medians = [[interval["p50_ms"] for interval in part if interval["p50_ms"] is not None] for part in (first, last)]
    if all(medians):
        before, after = map(median, medians)
        drift_ms = abs(before - after)
        if drift_ms > _MEDIAN_DRIFT_FLOOR_MS and drift_ms > MAX_MEDIAN_DRIFT * after:
            reasons.append(
                f"warm-up drift: p50 {before:.2f} ms in the first quarter, {after:.2f} ms in the second half; "
                "use a longer --warmup, or a quieter machine"
            )
