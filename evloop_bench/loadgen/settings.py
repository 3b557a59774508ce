"""What one run does: everything that the command line, a script or a generator process has to know."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

# Of the JSON; the version changes when a field changes its meaning or goes.
SCHEMA = "evloop-load"
SCHEMA_VERSION = 2

# Stated here, explained in docs/benchmarking.md.
LATE_SEND_S = 0.001
# With fewer, the pages that an allocator takes at a time are more than what the connections need.
MIN_SOCKETS_FOR_MEMORY = 300


@dataclass(frozen=True)
class Settings:
    """One run. Immutable, and plain data, so that it can be written to JSON and handed to another process.

    Attributes:
        connections: sockets that send; idle: silent ones beside them.
        pipeline: messages that each connection keeps in flight (closed loop); messages of each connection (churn).
        rate_per_s: messages (with churn: connections) per second in total; None for a closed loop.
        arrivals: ``"poisson"`` or ``"uniform"``: how an open loop's sends are spread.
        duration_s, warmup_s: of the measured part, and of what comes before it and is not counted.
        messages: end after so many measured replies instead; None for `duration_s`.
        ramp_per_s: connects per second while connecting.
        size, text: what messages look like; see `evloop_bench.loadgen.workload`.
        churn: each connection is closed after its replies, and opened again.
        timeout_s: a reply that takes longer is late; one that has not come this long after the end has timed out.
        null: the server is the null server of `--calibrate`.
    """

    connections: int = 300
    idle: int = 0
    pipeline: int = 1
    rate_per_s: float | None = None
    arrivals: str = "poisson"
    duration_s: float = 5.0
    warmup_s: float = 1.0
    messages: int | None = None
    ramp_per_s: float = 2500.0
    size: str = "32"
    text: str = "ascii"
    churn: bool = False
    processes: int = 1
    seed: int = 1
    timeout_s: float = 5.0
    null: bool = False

    @property
    def mode(self) -> str:
        """``"open"`` or ``"closed"``."""
        return "closed" if self.rate_per_s is None else "open"

    @property
    def sockets(self) -> int:
        """All sockets that are open at the same time."""
        return self.connections + self.idle

    @property
    def lasting_sockets(self) -> int:
        """Those that are opened before the sending begins, and stay."""
        return self.idle + (0 if self.churn else self.connections)

    @property
    def base_sockets(self) -> int:
        """How many of them are opened before the server's memory is taken as that of one that is at work.

        The very first ones make it grow by what it needs only once: modules, tables, the allocator's arenas.
        """
        return sum(-(-self.share(index).lasting_sockets // 10) for index in range(self.processes))

    @property
    def interval_s(self) -> float:
        """Length of the pieces that the run is cut into for plots and for the drift check."""
        if self.messages is not None:
            return 0.25
        return max(self.duration_s / 60, 0.1)

    def to_dict(self) -> dict[str, Any]:
        """As plain data; `Settings(**data)` makes it again."""
        return asdict(self)

    def share(self, index: int) -> Settings:
        """What generator process ``index`` of `processes` does of it."""
        count = self.processes
        return replace(
            self,
            connections=_share(self.connections, index, count),
            idle=_share(self.idle, index, count),
            rate_per_s=None if self.rate_per_s is None else self.rate_per_s / count,
            messages=None if self.messages is None else _share(self.messages, index, count),
            ramp_per_s=self.ramp_per_s / count,
            processes=1,
            seed=self.seed * 1000 + index,
        )


def _share(total: int, index: int, count: int) -> int:
    return total // count + (index < total % count)
