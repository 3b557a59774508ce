#!/usr/bin/env python3
"""Drive a character-count server, check every reply, measure. `load.py --help`, and docs/benchmarking.md."""

from __future__ import annotations

import importlib.util
import sys

if not __package__:
    __import__("_root")

from benchmarks.common import streams  # of the standard library only

_MODULES = ("psutil", "hdrh", "rich", "matplotlib")


def main(argv: list[str]) -> int:
    """Run it. Returns the exit status."""
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        streams.print_error(f"load.py: {', '.join(missing)} not installed: run  pip install -e '.[bench]'  first")
        return streams.EXIT_CANNOT_RUN
    from benchmarks.loadgen import command

    if argv[:1] == ["compare"]:
        return command.compare(argv[1:])
    return command.run(argv)


if __name__ == "__main__":
    sys.exit(streams.run_program("load.py", lambda: main(sys.argv[1:])))
