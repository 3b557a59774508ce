"""What would make a run fail half-way, found before it starts."""

from __future__ import annotations

import resource
from pathlib import Path

from evloop.net.endpoint import Endpoint, TcpEndpoint
from evloop_bench.common.descriptors import raise_descriptor_limit
from evloop_bench.common.processes import usable_cores
from evloop_bench.loadgen.settings import Settings
from evloop_bench.loadgen.target import CannotRun

# Beside connections: streams, selector, wake-up pair, pipes, listener, log, what the interpreter opens.
_OTHER_DESCRIPTORS = 64


def check(settings: Settings, *, local: bool) -> list[str]:
    """Make the process ready for a run, its children included (they inherit the limits).

    Args:
        local: the server is on this machine.

    Returns:
        warnings, one line each.

    Raises:
        CannotRun: it can't succeed.
    """
    check_descriptors(settings.sockets + _OTHER_DESCRIPTORS)
    warnings = []
    if local:
        backlog = _number("/proc/sys/net/core/somaxconn", 4096)
        if min(settings.ramp_per_s, settings.sockets) > backlog:
            warnings.append(
                f"connections are opened at up to {settings.ramp_per_s:.0f}/s, and the kernel queues {backlog} at most "
                "(net.core.somaxconn): a stalled server will lose some; lower --ramp"
            )
    if settings.churn and _number("/proc/sys/net/ipv4/tcp_tw_reuse", 2) == 0:
        warnings.append("net.ipv4.tcp_tw_reuse is 0: --churn runs out of ports after as many connections as there are")
    return warnings


def check_descriptors(needed: int) -> None:
    """Raise the limit of open descriptors to what is needed.

    Raises:
        CannotRun: it may not be raised so far; the text names the number.
    """
    if not raise_descriptor_limit(needed):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        raise CannotRun(
            f"{needed} descriptors are needed and the hard limit is {hard}: "
            f"run `ulimit -Hn {needed}` as root first, or lower --connections and --idle"
        )


def source_addresses(
    sockets: int, server: Endpoint, range_file: str = "/proc/sys/net/ipv4/ip_local_port_range"
) -> list[str]:
    """The local addresses to connect from. A connection to one address and port needs a local port of its own.

    Returns:
        none if that is of no concern: one has enough of them. A server on Linux's loopback network can be reached from
        any address of it.

    Raises:
        CannotRun: there are too few.
    """
    try:
        low, high = (int(word) for word in Path(range_file).read_text().split())
    except (OSError, ValueError):
        return []
    ports = high - low + 1
    if not isinstance(server, TcpEndpoint) or sockets <= ports:
        return []
    if not server.host.startswith("127."):
        raise CannotRun(
            f"{sockets} connections need as many local ports, and there are {ports} ({low}-{high}): "
            "widen net.ipv4.ip_local_port_range, or lower --connections and --idle"
        )
    # Not to the last port of each: others need some, too, and the last ones take the kernel long to find.
    count = -(-sockets // max(ports * 9 // 10, 1))
    return [f"127.0.{1 + index // 250}.{1 + index % 250}" for index in range(count)]


def pick_cores(pin: bool | None, spawned: bool) -> tuple[list[int] | None, list[int] | None]:
    """Which cores the server and the generators get: the first one, and the others. None: any.

    Args:
        pin: as asked for; None: if we started the server, and there are two cores.

    Raises:
        CannotRun: asked for, and there is only one core, or the system can't do it.
    """
    cores = usable_cores()
    if len(cores) < 2:
        if pin:
            raise CannotRun("--pin needs two cores: one for the server, one for the generator")
        return None, None
    if pin or (pin is None and spawned):
        return cores[:1], cores[1:]
    return None, None


def _number(path: str, default: int) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return default
