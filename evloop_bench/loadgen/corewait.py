"""How long a process had to wait for a core: the sign of a machine that was not quiet."""

from __future__ import annotations

from pathlib import Path


def core_wait_s(pid: int | str = "self") -> float:
    """How long a process's main thread was ready to run and had to wait for a core: others had it. 0 if not known."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
