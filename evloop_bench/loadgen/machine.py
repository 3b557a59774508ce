"""On what a result was measured: without it, a number means nothing."""

from __future__ import annotations

import os
import platform
from typing import Any

import psutil

from evloop_bench.common.machine import cpu_model, git, kernel
from evloop_bench.common.processes import usable_cores


def describe_machine() -> dict[str, Any]:
    """Python, kernel, processor, memory."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "kernel": kernel(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(usable_cores()) or os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def describe_code() -> dict[str, Any]:
    """The commit of this checkout, and whether there are changes on top of it; None where there is no git."""
    commit = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "modified": None if changes is None else bool(changes)}
