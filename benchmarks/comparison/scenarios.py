"""What is measured: each scenario is one load, given to every server in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

CORE = ("evloop", "c-epoll", "uvloop-protocol", "asyncio-protocol")
# Those who speak TLS, each as it comes and with a malloc that keeps memory, which is what decides there.
OVER_TLS = ("evloop", "uvloop-protocol", "uvloop-protocol-malloc", "asyncio-protocol", "asyncio-protocol-malloc")

# Kinds of text of which one message is a gibibyte: one byte a code point, three, and as it comes.
HUGE_TEXTS = ("ascii", "cjk", "mixed")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load.

    Attributes:
        name: as on the command line.
        title: as over its table.
        family: scenarios that are compared with each other; they take turns within each round.
        group: scenarios that make one plot; ``x`` is where on its axis.
        mode: ``closed``, ``open`` or ``churn`` (see drive.c); ``memory``; or ``command``.
        connections: active ones.
        depth: messages in flight on each.
        size_bytes: of a message, LF included.
        text: kind of text (see payload).
        idle: silent connections beside the active ones.
        tls: whether all of it goes through TLS 1.3.
        records: then each message is a record of its own; else those of a batch are one.
        resume: then each connection goes on with the session of the one before.
        metric: the figure the ratios are about.
        reference: the server that the ratios are relative to.
        servers: which ones, by default; None for all.
        max_rounds: fewer rounds than asked for, for what takes long.
    """

    name: str
    title: str
    family: str = ""
    group: str = ""
    x: float = 0
    mode: str = "closed"
    connections: int = 300
    depth: int = 1
    size_bytes: int = 32
    text: str = "ascii"
    idle: int = 0
    tls: bool = False
    records: bool = False
    resume: bool = False
    metric: str = "cpu_us"
    reference: str = "evloop"
    servers: tuple[str, ...] | None = None
    max_rounds: int | None = None


def _in_flight() -> Iterator[Scenario]:
    for depth, connections in ((1, 300), (16, 300), (256, 100)):
        title = f"{depth} in flight, {connections} connections, 32 B"
        yield Scenario(f"inflight-{depth}", title, "inflight", "inflight", depth, connections=connections, depth=depth)
    for text in ("cjk", "emoji", "mixed"):
        for depth in (1, 16):
            title = f"{text} text, {depth} in flight, 300 connections, 32 B"
            yield Scenario(f"{text}-{depth}", title, "inflight", depth=depth, text=text, servers=CORE)
    # In this family, so that it can be told how many times its cost without TLS a message has.
    for name, depth, how, records in (
        ("tls-1", 1, "1 in flight", False),
        ("tls-16", 16, "16 in flight in one record", False),
        ("tls-records", 16, "16 in flight, a record each", True),
    ):
        title = f"TLS 1.3, {how}, 300 connections, 32 B"
        servers = (*OVER_TLS, "python-floor")
        yield Scenario(name, title, "inflight", depth=depth, tls=True, records=records, servers=servers)


def _connections() -> Iterator[Scenario]:
    for number in (10, 100, 1000, 10000):
        title = f"{number:,} connections, all active, 1 in flight, 32 B"
        name = f"connections-{number}"
        yield Scenario(name, title, "connections", "connections", number, connections=number, servers=CORE)
    title = "100 active connections beside 10,000 idle ones, 1 in flight, 32 B"
    yield Scenario("idle-10000", title, "connections", connections=100, idle=10000, servers=CORE)


def _sizes() -> Iterator[Scenario]:
    for size in (32, 256, 2048, 16384, 65536):
        title = f"{size:,}-byte messages, 1 in flight, 100 connections"
        yield Scenario(f"size-{size}", title, "size", "size", size, connections=100, size_bytes=size, servers=CORE)
    title = "8,000-byte messages, 1 in flight, 300 connections"
    yield Scenario("size-8000", title, "size", size_bytes=8000)


def _others() -> Iterator[Scenario]:
    yield Scenario("churn", "connect, ask, close; 64 at a time", mode="churn", connections=64)
    for name, how, resume in (("tls-churn", "a whole one", False), ("tls-resume", "resumed", True)):
        title = f"TLS 1.3: connect, handshake ({how}), ask, close; 64 at a time"
        yield Scenario(
            name, title, "tls-churn", mode="churn", connections=64, tls=True, resume=resume, servers=OVER_TLS
        )
    title = "open loop at half of asyncio Protocol's capacity, 300 connections, 32 B"
    yield Scenario("open-half", title, mode="open", metric="p999_us", servers=CORE)
    title = "memory of an idle connection, 5,000 of them, each after one exchange"
    yield Scenario("memory", title, mode="memory", metric="bytes", idle=5000, max_rounds=3)
    title = "TLS 1.3: memory of an idle connection, 1,000 of them, each after one exchange"
    yield Scenario(
        "tls-idle-memory", title, mode="memory", metric="bytes", idle=1000, tls=True, servers=OVER_TLS, max_rounds=3
    )


def _commands() -> Iterator[Scenario]:
    yield Scenario(
        "startup",
        "from start to first answer; a whole run of the client",
        mode="command",
        metric="wall_ms",
        reference="python3 -c pass",
    )
    for text in HUGE_TEXTS:
        title = f"one message of 1 GiB of {text} text, and wc -m on the same bytes"
        yield Scenario(f"huge-{text}", title, mode="command", metric="cpu_ms", max_rounds=3)
    title = "a million lines through the client's standard input"
    yield Scenario(
        "client-lines", title, mode="command", metric="cpu_ms", reference="charcount-client < lines", max_rounds=3
    )
    yield Scenario(
        "reload",
        "three reloads while 100 clients ask; a reply to each, and connections kept",
        mode="command",
        metric="slowest_ms",
        reference="evloop, 2 workers, SIGHUP",
        max_rounds=3,
    )


SCENARIOS = {
    scenario.name: scenario for part in (_in_flight, _sizes, _connections, _others, _commands) for scenario in part()
}


@dataclass(frozen=True, slots=True)
class Growth:
    """A server's cost in one scenario, relative to its own cost in another."""

    scenario: str
    base: str
    per_byte: bool = False


GROWTHS = (
    Growth("connections-1000", "connections-100"),
    Growth("connections-10000", "connections-100"),
    Growth("idle-10000", "connections-100"),
    Growth("tls-1", "inflight-1"),
    Growth("tls-16", "inflight-16"),
    Growth("tls-resume", "tls-churn"),
    *(
        Growth(f"{text}-{depth}", f"inflight-{depth}", per_byte=True)
        for text in ("cjk", "emoji", "mixed")
        for depth in (1, 16)
    ),
)
