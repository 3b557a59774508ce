"""How many workers a process may keep busy: its cores, or as much of them as its control group allows."""

from __future__ import annotations

import math
import os
from pathlib import Path

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """At least 1. A quota of one core and a half is taken for two.

    Args:
        root: where proc and sys are; for tests.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        cores = os.cpu_count() or 1
    quota = cgroup_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cgroup_quota(root: Path = _ROOT) -> float | None:
    """How many cores the control groups of this process may use, of either version; None for any number."""
    quotas = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            base, quota_of = root / "sys/fs/cgroup", _quota_2
        elif "cpu" in controllers.split(","):
            base, quota_of = root / "sys/fs/cgroup" / controllers, _quota_1
            if not base.is_dir():
                base = root / "sys/fs/cgroup/cpu"
        else:
            continue
        # In a container the path may be that of the host, and the group's files are at the top.
        group = base / path.lstrip("/")
        for folder in {base, group, *(parent for parent in group.parents if base in parent.parents)}:
            quota = quota_of(folder)
            if quota is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _quota_2(folder: Path) -> float | None:
    limit, _, period = _read(folder / "cpu.max").strip().partition(" ")
    return _ratio(limit, period or "100000")


def _quota_1(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip())


def _ratio(limit: str, period: str) -> float | None:
    """``max`` and -1 stand for no limit."""
    if not (limit.isdigit() and period.isdigit() and int(limit) and int(period)):
        return None
    return int(limit) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeError):
        return ""
