"""What a server counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.net.tlsinfo import HandshakeTally

    # What a status is made of: numbers, counters by name, and the few things that are text.
    Value = int | float | str | list[str] | dict[str, int] | None


class ServerStats:
    """Counters since the start.

    Attributes:
        accepted: connections that were accepted.
        adopted: connections that have come from another process, where they were accepted (`evloop.server.handover`).
        handed_over: connections that have gone on in another process.
        closed: how many of them are closed.
        failed: how many of those because of an error or a limit.
        probes: how many of those without a byte from the client, such as health checks and port scans, or as a
            trusted proxy's own.
        bad_proxy_headers: closed because a trusted proxy sent no PROXY header, or a wrong one.
        bytes_received, bytes_sent: of connections that are not here any more, less what those had that have come from
            another process; `Server.totals` adds those that are open.
        limits: one counter for each limit that was hit, by its name in `LimitError`.
        tls: what counts handshakes, of each set of TLS settings that is used.
    """

    __slots__ = (
        "accepted",
        "adopted",
        "bad_proxy_headers",
        "bytes_received",
        "bytes_sent",
        "closed",
        "failed",
        "handed_over",
        "limits",
        "probes",
        "tls",
    )

    def __init__(self) -> None:
        self.accepted = 0
        self.adopted = 0
        self.handed_over = 0
        self.closed = 0
        self.failed = 0
        self.probes = 0
        self.bad_proxy_headers = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.limits: Counter[str] = Counter()
        self.tls: set[HandshakeTally] = set()

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


# How the statuses of several processes make one (see `evloop.program.workers.statuses`): numbers, and counters by their
# names, are added; or the greatest is taken; or the one of the process that had the slowest pass; or each that is
# different.
SUM, MOST, OF_SLOWEST, EACH = "sum", "most", "of slowest", "each"

# What `Server.status` tells, name by name, and how it adds up. Names that end in ``_bytes`` or ``_s`` are bytes or
# seconds; the others count what their name says, unless the text says something else. "Total" counts from the start;
# "now" may go up and down.
STATUS = {
    "listening": (EACH, "where it listens: a list of texts"),
    "connections": (SUM, "connections that are open, now"),
    "max_connections": (MOST, "connections that may be open at the same time"),
    "accepted": (SUM, "connections that were accepted, total"),
    "adopted": (SUM, "connections that were taken over from another process, total"),
    "handed_over": (SUM, "connections that another process has taken over, total"),
    "closed": (SUM, "connections that were closed, total"),
    "failed": (SUM, "connections that were closed because of an error or a limit, total"),
    "probes": (
        SUM,
        "connections that were closed without a byte from the client, or a proxy's own health checks, total",
    ),
    "bad_proxy_headers": (SUM, "connections that were closed for want of a right PROXY header, total"),
    "received_bytes": (SUM, "received, total"),
    "sent_bytes": (SUM, "given to the kernel, total"),
    "unsent_bytes": (SUM, "not yet taken by the kernel, now"),
    "not_reading": (SUM, "connections whose peer reads more slowly than we write, now"),
    "limits_hit": (SUM, "how often each limit was hit, by its name, total"),
    "accept_errors": (SUM, "accepts that failed, total"),
    "out_of_descriptors": (SUM, "accepts that failed because there was no descriptor left, total"),
    "tls_handshakes": (
        SUM,
        "TLS handshakes that led to a connection, by version, and how many of these ``resumed``; total",
    ),
    "tls_failures": (SUM, "TLS connections that failed, by kind (see `evloop.errors.TLSError`), total"),
    "passes": (SUM, "passes of the loop, total"),
    "slow_passes": (SUM, "passes of the loop that took too long, total"),
    "timers": (SUM, "timers that are still to fire, now"),
    "selector": (EACH, "what the loop waits with: its name"),
    "worst_lag_s": (MOST, "the longest pass of the last minute or two"),
    "slowest_pass_s": (MOST, "the longest slow pass since the start; None if there was none"),
    "slowest_handler": (OF_SLOWEST, "what that one was busy with: text; None if there was none"),
}
