"""What a run costs: CPU, memory and context switches of the server and everything it started, from outside."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psutil

from evloop_bench.loadgen.corewait import core_wait_s

# Looking for new child processes costs more than reading the numbers of known ones.
_CHILDREN_EVERY_S = 1.0


@dataclass(frozen=True)
class Usage:
    """Sums over all processes of the server at one moment. ``at_s`` is of `time.monotonic`."""

    at_s: float
    user_s: float
    system_s: float
    rss_bytes: int
    voluntary_switches: int
    involuntary_switches: int
    core_wait_s: float

    @property
    def cpu_s(self) -> float:
        """Processor time since the processes began."""
        return self.user_s + self.system_s


class Sampler:
    """Reads what processes have used.

    A process that ends keeps counting with what it had used when it was last seen.

    Attributes:
        samples: what `sample` has read so far.
    """

    def __init__(self, pids: tuple[int, ...]) -> None:
        self._roots = []
        for pid in pids:
            try:
                self._roots.append(psutil.Process(pid))
            except psutil.Error:
                pass
        self._processes: dict[int, psutil.Process] = {process.pid: process for process in self._roots}
        self._last: dict[int, tuple[float, float, int, int, int, float]] = {}
        self._looked_at_s = 0.0
        self.samples: list[Usage] = []

    @property
    def known(self) -> bool:
        """False when there is nothing to look at: the server runs elsewhere or belongs to somebody else."""
        return bool(self._roots)

    def descriptors(self) -> int | None:
        """How many descriptors the known processes have open; None if that can't be seen."""
        try:
            return sum(int(process.num_fds()) for process in self._processes.values())
        except psutil.Error:
            return None

    def sample(self) -> Usage | None:
        """Read now, and keep it. None when nothing is known."""
        if not self.known:
            return None
        now_s = time.monotonic()
        if now_s - self._looked_at_s > _CHILDREN_EVERY_S:
            self._looked_at_s = now_s
            for root in self._roots:
                try:
                    for child in root.children(recursive=True):
                        self._processes.setdefault(child.pid, child)
                except psutil.Error:
                    pass
        for pid, process in list(self._processes.items()):
            try:
                with process.oneshot():
                    cpu = process.cpu_times()
                    switches = process.num_ctx_switches()
                    self._last[pid] = (
                        cpu.user,
                        cpu.system,
                        process.memory_info().rss,
                        switches.voluntary,
                        switches.involuntary,
                        core_wait_s(pid),
                    )
            except psutil.Error:
                if pid in self._last:
                    user, system, _, *others = self._last[pid]
                    self._last[pid] = (user, system, 0, *others)  # type: ignore[assignment]
                del self._processes[pid]
        sums = (
            [sum(column) for column in zip(*self._last.values(), strict=True)]
            if self._last
            else [0.0, 0.0, 0, 0, 0, 0.0]
        )
        usage = Usage(time.monotonic(), *sums)  # type: ignore[arg-type]
        self.samples.append(usage)
        return usage


def between(before: Usage | None, after: Usage | None, messages: int) -> dict[str, Any] | None:
    """What was used from one sample to another, in all, by the second and by the message."""
    if before is None or after is None:
        return None
    seconds = after.at_s - before.at_s
    cpu_s = after.cpu_s - before.cpu_s
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "user_s": after.user_s - before.user_s,
        "system_s": after.system_s - before.system_s,
        "cpu_share": cpu_s / seconds if seconds > 0 else 0.0,
        "cpu_us_per_message": cpu_s / messages * 1e6 if messages else None,
        "rss_bytes": after.rss_bytes,
        "voluntary_switches": after.voluntary_switches - before.voluntary_switches,
        "involuntary_switches": after.involuntary_switches - before.involuntary_switches,
        "core_wait_s": after.core_wait_s - before.core_wait_s,
    }


def machine_cpu() -> tuple[float, float]:
    """Busy and total processor seconds of the whole machine since it started, all cores together."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # guest time is contained in user time
    total = sum(times[:8]) if len(times) >= 8 else sum(times)
    return total - idle, total
