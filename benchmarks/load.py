#!/usr/bin/env python3
"""Drive a character-count server, check every reply, measure. `load.py --help`, and docs/benchmarking.md."""

from __future__ import annotations

import sys

if not __package__:
    __import__("_root")

from evloop_bench.load import run

if __name__ == "__main__":
    sys.exit(run("load.py", "pip install -e '.[bench]'"))
