"""What a server counts."""

from __future__ import annotations

from collections import Counter


class ServerStats:
    """Counters since the start.

    Attributes:
        accepted: connections.
        closed: of those.
        failed: closed because of an error, limits included.
        probes: closed without having sent a byte: health checks, port scans.
        bytes_received, bytes_sent: of closed connections; `Server.totals` adds those that are open.
        limits: one counter for each limit that was hit, by its name in `LimitError`.
    """

    __slots__ = ("accepted", "bytes_received", "bytes_sent", "closed", "failed", "limits", "probes")

    def __init__(self) -> None:
        self.accepted = 0
        self.closed = 0
        self.failed = 0
        self.probes = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.limits: Counter[str] = Counter()
