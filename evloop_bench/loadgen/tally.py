"""What the connections of one generator process share: their counters, and what they may do at the moment."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from evloop.eventloop import EventLoop
from evloop_bench.loadgen.histogram import Counts
from evloop_bench.loadgen.workload import Pool, Turns

_EXAMPLES = 5


@dataclass
class Tally:
    """What all clients of a process count together. Times are of `time.monotonic_ns`.

    ``latency``, ``service`` (open loop and churn), ``lateness`` (open loop) and ``connect`` are counts by bucket.
    """

    latency: Counts = field(default_factory=lambda: defaultdict(int))
    service: Counts = field(default_factory=lambda: defaultdict(int))
    lateness: Counts = field(default_factory=lambda: defaultdict(int))
    connect: Counts = field(default_factory=lambda: defaultdict(int))
    examples: list[str] = field(default_factory=list)
    connect_errors: dict[str, int] = field(default_factory=dict)
    sent: int = 0  # messages, all of the run
    replies: int = 0  # all of the run; kept up by the slow paths and `settle`, not by every reply
    wrong: int = 0
    missing: int = 0
    refused: int = 0
    reset: int = 0
    late_sends: int = 0
    missed_sends: int = 0
    connections: int = 0  # opened
    bytes_sent: int = 0
    bytes_received: int = 0

    def example(self, text: str) -> None:
        """Keep one of the first few descriptions of what was wrong."""
        if len(self.examples) < _EXAMPLES:
            self.examples.append(text)


class Run:
    """What the clients of one process share.

    Attributes:
        sending: False before the start and after the end: replies are still checked, but nothing new is sent.
        from_ns, to_ns: messages of an open loop count if they were meant to be sent in between.
        budget: how many messages may still be sent; None for any number.
    """

    def __init__(self, loop: EventLoop, pool: Pool, window: int, timeout_s: float) -> None:
        self.loop = loop
        self.pool = pool
        self.window = window
        self.turns = Turns(pool, window)
        self.timeout_s = timeout_s
        self.tally = Tally()
        self.sending = False
        self.from_ns = 0
        self.to_ns = 1 << 63
        self.budget: int | None = None

    def grant(self, wanted: int) -> int:
        """How many of ``wanted`` messages may be sent now."""
        if not self.sending:
            return 0
        if self.budget is None:
            return wanted
        granted = min(wanted, self.budget)
        self.budget -= granted
        return granted
