"""Drive a character-count server, check every reply, measure: ``evloop-load``. See docs/benchmarking.md."""

from __future__ import annotations

import importlib.util
import sys

from evloop_bench.common import streams  # of the standard library only

_MODULES = ("psutil", "hdrh", "rich", "matplotlib")


def main() -> int:
    """``evloop-load``. Returns the exit status."""
    return run("evloop-load", "pip install 'evloop[bench]'")


def run(program: str, how_to_install: str) -> int:
    """Do what the command line asks for. Returns the exit status.

    Args:
        program: what this is called, for messages.
        how_to_install: the command that brings what it needs.
    """
    return streams.run_program(program, lambda: _run(program, how_to_install, sys.argv[1:]))


def _run(program: str, how_to_install: str, argv: list[str]) -> int:
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        streams.print_error(f"{program}: {', '.join(missing)} not installed: run  {how_to_install}  first")
        return streams.EXIT_NOT_INSTALLED
    from evloop_bench.loadgen import command

    if argv[:1] == ["compare"]:
        return command.compare(argv[1:], program)
    return command.run(argv, program)
