"""The machine and the software that the figures belong to."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.peers.registry import ROOT, Peer


def describe(peers: Iterable[Peer]) -> dict[str, object]:
    """CPU, kernel, Python, commit, and the version of what each peer is built on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "commit": _commit(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {peer.name: peer.version() for peer in peers},
    }


def in_words(machine: dict[str, object]) -> str:
    """As one paragraph, for the foot of a table."""
    versions = machine["versions"]
    assert isinstance(versions, dict)
    built_on = ", ".join(sorted({str(version) for version in versions.values()}, key=str.lower))
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, {machine['python']}; "
        f"commit {machine['commit']}; {built_on}. Server and generator pinned to one core each."
    )


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown CPU"


def _commit() -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=20
        )
    except OSError:
        return "unknown"
    return result.stdout.strip() or "unknown"
