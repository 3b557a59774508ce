"""What is measured: each scenario is one load, given to every server in turn."""

from __future__ import annotations

from dataclasses import dataclass

CORE = ("evloop", "c-epoll", "uvloop-protocol", "asyncio-protocol")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load.

    Attributes:
        name: as on the command line.
        title: as over its table.
        group: scenarios that make one plot; ``x`` is where on its axis.
        mode: ``closed``, ``open`` or ``churn`` (see drive.c); ``memory``; or ``command``.
        connections: active ones.
        depth: messages in flight on each.
        size_bytes: of a message, LF included.
        text: kind of text (see payload).
        idle: silent connections beside the active ones.
        metric: the figure the ratios are about.
        reference: the server that the ratios are relative to.
        servers: which ones, by default; None for all.
    """

    name: str
    title: str
    group: str = ""
    x: float = 0
    mode: str = "closed"
    connections: int = 300
    depth: int = 1
    size_bytes: int = 32
    text: str = "ascii"
    idle: int = 0
    metric: str = "cpu_us"
    reference: str = "evloop"
    servers: tuple[str, ...] | None = None


def _all() -> list[Scenario]:
    found = [
        Scenario("inflight-1", "1 in flight, 300 connections, 32 B", "inflight", 1),
        Scenario("inflight-16", "16 in flight, 300 connections, 32 B", "inflight", 16, depth=16),
        Scenario("inflight-256", "256 in flight, 100 connections, 32 B", "inflight", 256, depth=256, connections=100),
        Scenario("size-8000", "8,000-byte messages, 1 in flight, 300 connections", size_bytes=8000),
    ]
    for text in ("cjk", "emoji", "mixed"):
        for depth in (1, 16):
            title = f"{text} text, {depth} in flight, 300 connections, 32 B"
            found.append(Scenario(f"{text}-{depth}", title, depth=depth, text=text, servers=CORE))
    found.append(Scenario("churn", "connect, ask, close", mode="churn", connections=64))
    for number in (10, 100, 1000, 10000):
        title = f"{number:,} connections, all active, 1 in flight, 32 B"
        found.append(Scenario(f"connections-{number}", title, "connections", number, connections=number, servers=CORE))
    title = "100 active connections beside 10,000 idle ones, 1 in flight, 32 B"
    found.append(Scenario("idle-10000", title, connections=100, idle=10000, servers=CORE))
    for size in (32, 256, 2048, 16384, 65536):
        title = f"{size:,}-byte messages, 1 in flight, 100 connections"
        found.append(Scenario(f"size-{size}", title, "size", size, connections=100, size_bytes=size, servers=CORE))
    title = "open loop at half of asyncio Protocol's capacity, 300 connections, 32 B"
    found.append(Scenario("open-half", title, mode="open", metric="p999_us", servers=CORE))
    found.append(Scenario("memory", "an idle connection, 5,000 of them", mode="memory", metric="bytes", idle=5000))
    return found


SCENARIOS = {scenario.name: scenario for scenario in _all()}
