"""From what the processes handed over to one result."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from evloop_bench.loadgen.histogram import Counts, from_pairs, merge, percentile, summarise, to_hdr
from evloop_bench.loadgen.sampling import Usage, between
from evloop_bench.loadgen.settings import MIN_SOCKETS_FOR_MEMORY, Settings
from evloop_bench.loadgen.target import Target
from evloop_bench.loadgen.verdict import judge

ERROR_KINDS = ("wrong", "missing", "late", "refused", "reset", "timed_out")


def assemble(
    settings: Settings,
    target: Target,
    parts: list[dict[str, Any]],
    *,
    marks: dict[str, Usage | None],
    samples: list[Usage],
    machine_cpu: dict[str, tuple[float, float]],
    cores: tuple[list[int] | None, list[int] | None],
    interrupted: bool,
) -> dict[str, Any]:
    """The result of a run, as it is written to JSON; docs/benchmarking.md says what each field means.

    Args:
        parts: the generators' results.
        marks: the server's usage at the ``start``, with the first connections (``base``), with all of them
            (``connected``), when the measuring began (``begin``), and when it ended (``end``).
        machine_cpu: busy and total processor time of the machine at the same moments.
        cores: of the server and of the generators.
    """

    def total(key: str) -> int:
        return sum(part[key] for part in parts)

    seconds = max((part["end_ns"] - part["begin_ns"]) / 1e9 for part in parts)
    replies = total("measured_replies")
    latency, service, lateness, connect = (
        merge(from_pairs(part[key]) for part in parts) for key in ("latency", "service", "lateness", "connect")
    )
    errors = {kind: sum(part["errors"][kind] for part in parts) for kind in ERROR_KINDS}
    connect_errors: Counts = {}
    for part in parts:
        for reason, n in part["connect_errors"].items():
            connect_errors[reason] = connect_errors.get(reason, 0) + n
    server = between(marks.get("begin"), marks.get("end"), replies)
    if server is not None:
        server |= {"command": target.command, "pids": list(target.pids), "cores": cores[0]}
        server |= _memory(marks, samples, settings, spawned=target.spawned, refused=errors["refused"])
    cpu_s = sum(part["cpu_s"] for part in parts)
    result: dict[str, Any] = {
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": settings.to_dict(),
        "interrupted": interrupted,
        "seconds": seconds,
        "messages": {
            "measured": replies,
            "sent": total("sent"),
            "replies": total("replies"),
            "late_sends": total("late_sends"),
            "missed_sends": total("missed_sends"),
        },
        "bytes": {"sent": total("bytes_sent"), "received": total("bytes_received")},
        "connections": total("connections"),
        "errors": errors,
        "error_total": sum(errors.values()),
        "examples": [example for part in parts for example in part["examples"]][:5],
        "connect_errors": connect_errors,
        "throughput_per_s": replies / seconds if seconds else 0.0,
        "latency": summarise(latency) | {"hdr": _encoded(latency)},
        "service_time": summarise(service) | {"hdr": _encoded(service)} if service else None,
        "send_lateness": summarise(lateness) if lateness else None,
        "connect_time": summarise(connect),
        "server": server,
        "generator": {
            "processes": len(parts),
            "cores": cores[1],
            "cpu_s": cpu_s,
            "cpu_share": [part["cpu_s"] / seconds if seconds else 0.0 for part in parts],
            "cpu_us_per_message": cpu_s / replies * 1e6 if replies else None,
            "core_wait_s": [part["core_wait_s"] for part in parts],
            "stalled_s": [part["stalled_s"] for part in parts],
            "voluntary_switches": sum(part["context_switches"][0] for part in parts),
            "involuntary_switches": sum(part["context_switches"][1] for part in parts),
        },
        "other_cpu_share": _others(machine_cpu, cpu_s, server),
        "intervals": _intervals(parts),
        "samples": _samples(marks, samples),
    }
    result["verdict"] = judge(settings, result)
    return result


def _encoded(counts: Counts) -> str:
    return str(to_hdr(counts).encode().decode())


def _memory(
    marks: dict[str, Usage | None], samples: list[Usage], settings: Settings, *, spawned: bool, refused: int
) -> dict[str, Any]:
    start, base, connected = marks.get("start"), marks.get("base"), marks.get("connected")
    sockets = settings.lasting_sockets
    per_connection = None
    # One that ran before may have had more connections, and uses that memory again: its growth says nothing.
    enough = spawned and not refused and sockets >= MIN_SOCKETS_FOR_MEMORY
    if enough and base is not None and connected is not None:
        per_connection = (connected.rss_bytes - base.rss_bytes) / (sockets - settings.base_sockets)
    return {
        "rss_start_bytes": start.rss_bytes if start is not None else None,
        "rss_base_bytes": base.rss_bytes if base is not None else None,
        "rss_connected_bytes": connected.rss_bytes if connected is not None else None,
        "rss_max_bytes": max((sample.rss_bytes for sample in samples), default=None),
        "rss_per_connection_bytes": per_connection,
    }


def _others(machine: dict[str, tuple[float, float]], generator_s: float, server: dict[str, Any] | None) -> float | None:
    """How many cores' worth of processor time others took meanwhile; None when the server's own is not known."""
    if server is None or "begin" not in machine or "end" not in machine or not server["seconds"]:
        return None
    busy_s = machine["end"][0] - machine["begin"][0]
    return max(busy_s - generator_s - float(server["cpu_s"]), 0.0) / float(server["seconds"])


def _intervals(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pieces of the run, those of all processes with the same number together."""
    merged = []
    for pieces in zip(*(part["intervals"] for part in parts), strict=False):
        seconds = sum(piece["to_s"] - piece["from_s"] for piece in pieces) / len(pieces)
        counts = merge(from_pairs(piece["latency"]) for piece in pieces)
        n = sum(piece["replies"] for piece in pieces)
        p50, p99 = percentile(counts, 50), percentile(counts, 99)
        merged.append(
            {
                "from_s": pieces[0]["from_s"],
                "to_s": pieces[0]["to_s"],
                "replies": n,
                "throughput_per_s": n / seconds if seconds > 0 else 0.0,
                "p50_ms": None if p50 is None else p50 / 1e6,
                "p99_ms": None if p99 is None else p99 / 1e6,
                "max_ms": max(counts) / 1e6 if counts else None,
                "generator_cpu_share": sum(piece["cpu_s"] for piece in pieces) / seconds if seconds > 0 else 0.0,
            }
        )
    return merged


def _samples(marks: dict[str, Usage | None], samples: list[Usage]) -> list[dict[str, Any]]:
    """The server's usage over time; times count from the beginning of the measured part."""
    begin = marks.get("begin")
    if begin is None:
        return []
    rows = []
    for before, after in pairwise(samples):
        seconds = after.at_s - before.at_s
        if seconds > 0:
            rows.append(
                {
                    "at_s": after.at_s - begin.at_s,
                    "cpu_share": (after.cpu_s - before.cpu_s) / seconds,
                    "rss_bytes": after.rss_bytes,
                }
            )
    return rows
