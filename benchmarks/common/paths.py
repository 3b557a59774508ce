"""Where things are."""

from __future__ import annotations

from pathlib import Path

# The project's root: of the checkout, not of an installation, as the benchmarks are in no wheel.
ROOT = Path(__file__).resolve().parents[2]
