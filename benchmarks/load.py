#!/usr/bin/env python3
"""Drive a character-count server, check every reply, measure. `load.py --help`, and docs/benchmarking.md."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_MODULES = ("psutil", "hdrh", "rich", "matplotlib")


def main(argv: list[str]) -> int:
    """Run it. Returns the exit status."""
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"load.py: {', '.join(missing)} not installed: run  pip install -e '.[bench]'  first", file=sys.stderr)
        return 3
    from benchmarks.loadgen import command

    if argv[:1] == ["compare"]:
        return command.compare(argv[1:])
    return command.run(argv)


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
