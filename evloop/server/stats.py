"""What a server counts."""

from __future__ import annotations

from collections import Counter

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    # What a status is made of: numbers, counters by name, and the few things that are text.
    Value = int | float | str | list[str] | dict[str, int] | None


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


# What `Server.status` tells, name by name. Those in ``_bytes`` and ``_s`` are bytes and seconds, the others are numbers
# of what they are called, unless it is said. "Total" is since the start, "now" may go up and down.
STATUS = {
    "listening": "where it listens: a list of texts",
    "connections": "open now",
    "max_connections": "that may be open",
    "accepted": "connections, total",
    "closed": "of those, total",
    "failed": "closed because of an error, limits included, total",
    "probes": "closed without a byte from the client, total",
    "received_bytes": "total",
    "sent_bytes": "given to the kernel, total",
    "unsent_bytes": "that the kernel has not taken, now",
    "not_reading": "connections whose peer reads slower than it is written to, now",
    "limits_hit": "total of each limit that was hit, by its name",
    "accept_errors": "accepts that failed, total",
    "out_of_descriptors": "of those, because there were none left, total",
    "passes": "of the loop, total",
    "slow_passes": "of those, that took too long, total",
    "timers": "still to fire, now",
    "selector": "what the loop waits with: its name",
    "worst_lag_s": "the longest pass of the last minute or two",
    "slowest_pass_s": "the longest slow pass since the start; None if there was none",
    "slowest_handler": "what that one was busy with: text; None if there was none",
}
