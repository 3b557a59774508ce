"""What a server counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.core.loop import Loop
    from evloop.net.connection import Connection
    from evloop.net.tlsinfo import HandshakeTally
    from evloop.server.listener import Listener

    # What a status is made of: numbers, counters by name, and the few things that are text.
    Value = int | float | str | list[str] | dict[str, int] | None


class ServerStats:
    """Counters since the start.

    Attributes:
        accepted: connections that were accepted.
        closed: how many of them are closed.
        failed: how many of those because of an error or a limit.
        probes: how many of those without a byte from the client, such as health checks and port scans, or as a
            trusted proxy's own.
        bad_proxy_headers: closed because a trusted proxy sent no PROXY header, or a wrong one.
        bytes_received, bytes_sent: of closed connections; `Server.totals` adds those that are open.
        limits: one counter for each limit that was hit, by its name in `LimitError`.
        tls: what counts handshakes, of each set of TLS settings that is used.
    """

    __slots__ = (
        "accepted",
        "bad_proxy_headers",
        "bytes_received",
        "bytes_sent",
        "closed",
        "failed",
        "limits",
        "probes",
        "tls",
    )

    def __init__(self) -> None:
        self.accepted = 0
        self.closed = 0
        self.failed = 0
        self.probes = 0
        self.bad_proxy_headers = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.limits: Counter[str] = Counter()
        self.tls: set[HandshakeTally] = set()

    def totals(self, open_connections: Iterable[Connection]) -> tuple[int, int]:
        """Bytes received and sent since the start, by closed connections and by those that are open."""
        received, sent = self.bytes_received, self.bytes_sent
        for connection in open_connections:
            received += connection.bytes_received
            sent += connection.bytes_sent
        return received, sent

    def status(
        self, loop: Loop, listeners: Iterable[Listener], connections: Collection[Connection], max_connections: int
    ) -> dict[str, Value]:
        """What `Server.status` tells, of the server to which all of this belongs."""
        received, sent = self.totals(connections)
        slowest_s, slowest = (None, None) if loop.slowest is None else loop.slowest
        return {
            "listening": [listener.address for listener in listeners],
            "connections": len(connections),
            "max_connections": max_connections,
            "accepted": self.accepted,
            "closed": self.closed,
            "failed": self.failed,
            "probes": self.probes,
            "bad_proxy_headers": self.bad_proxy_headers,
            "received_bytes": received,
            "sent_bytes": sent,
            "unsent_bytes": sum(connection.unsent_bytes for connection in connections),
            "not_reading": sum(connection.stalled for connection in connections),
            "limits_hit": dict(sorted(self.limits.items())),
            "accept_errors": sum(listener.accept_errors for listener in listeners),
            "out_of_descriptors": sum(listener.exhausted for listener in listeners),
            **self.tls_status(),
            "passes": loop.passes,
            "slow_passes": loop.slow_passes,
            "timers": loop.timers,
            "selector": loop.poller.name,
            "worst_lag_s": loop.worst_lag_s,
            "slowest_pass_s": slowest_s,
            "slowest_handler": slowest,
        }

    def tls_status(self) -> dict[str, Value]:
        """What `Server.status` tells of TLS."""
        return {
            "tls_handshakes": _total(tally.status() for tally in self.tls),
            "tls_failures": _total(tally.failures for tally in self.tls),
        }


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Several counts by name as one, in the order of the names."""
    added: Counter[str] = Counter()
    for each in counts:
        added.update(each)
    return dict(sorted(added.items()))


# What `Server.status` tells, name by name. Names that end in ``_bytes`` or ``_s`` are bytes or seconds; the others
# count what their name says, unless the text says something else. "Total" counts from the start; "now" may go up and
# down.
STATUS = {
    "listening": "where it listens: a list of texts",
    "connections": "connections that are open, now",
    "max_connections": "connections that may be open at the same time",
    "accepted": "connections that were accepted, total",
    "closed": "connections that were closed, total",
    "failed": "connections that were closed because of an error or a limit, total",
    "probes": "connections that were closed without a byte from the client, or a proxy's own health checks, total",
    "bad_proxy_headers": "connections that were closed for want of a right PROXY header, total",
    "received_bytes": "received, total",
    "sent_bytes": "given to the kernel, total",
    "unsent_bytes": "not yet taken by the kernel, now",
    "not_reading": "connections whose peer reads more slowly than we write, now",
    "limits_hit": "how often each limit was hit, by its name, total",
    "accept_errors": "accepts that failed, total",
    "out_of_descriptors": "accepts that failed because there was no descriptor left, total",
    "tls_handshakes": "TLS handshakes that led to a connection, by version, and how many of these ``resumed``; total",
    "tls_failures": "TLS connections that failed, by kind (see `evloop.errors.TLSError`), total",
    "passes": "passes of the loop, total",
    "slow_passes": "passes of the loop that took too long, total",
    "timers": "timers that are still to fire, now",
    "selector": "what the loop waits with: its name",
    "worst_lag_s": "the longest pass of the last minute or two",
    "slowest_pass_s": "the longest slow pass since the start; None if there was none",
    "slowest_handler": "what that one was busy with: text; None if there was none",
}
