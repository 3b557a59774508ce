"""Where things are."""

from __future__ import annotations

from pathlib import Path

# What has to be on the path for evloop and evloop_bench to be found.
ROOT = Path(__file__).resolve().parents[2]

# The checkout that this is a part of, with bin/ and git; None if it is installed.
CHECKOUT = ROOT if (ROOT / "benchmarks" / "load.py").is_file() else None
