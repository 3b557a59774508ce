"""The machine and the software that the figures belong to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from benchmarks.peers.registry import Peer
from evloop_bench.common.machine import cpu_model, git, kernel, python_build


def describe(peers: Iterable[Peer]) -> dict[str, Any]:
    """CPU, kernel, Python and how it was built, commit, and the version of what each peer is built on."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "kernel": kernel(),
        "python": python_build(),
        "commit": git("describe", "--always", "--dirty") or "unknown",
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {peer.name: peer.version() for peer in peers},
    }


def in_words(machine: dict[str, Any]) -> str:
    """As one paragraph, for the foot of a table."""
    built_on = ", ".join(sorted({str(version) for version in machine["versions"].values()}, key=str.lower))
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, {machine['python']}; "
        f"commit {machine['commit']}; {built_on}. Server and generator pinned to one core each."
    )
