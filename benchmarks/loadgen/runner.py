"""Runs, one after the other, each with its server: the interface for scripts."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.loadgen import preflight
from benchmarks.loadgen.coordinator import Coordinator, Progress
from benchmarks.loadgen.machine import describe_code, describe_machine
from benchmarks.loadgen.options import Options
from benchmarks.loadgen.settings import Settings
from benchmarks.loadgen.target import Target, default_command, null_server_command, running_server, spawned_server

SCHEMA = "evloop-load"
SCHEMA_VERSION = 1


def no_progress(phase: str, done: float, replies: int) -> None:
    """Shows nothing."""


def run_once(
    settings: Settings,
    *,
    spawn: str | None = None,
    server: tuple[str, int] | None = None,
    server_log: str | None = None,
    pin: bool | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """One run.

    Args:
        spawn: a command with ``{port}`` in it that starts the server; default: the project's own server, or the null
            server if the settings say so.
        server: where a server runs already, instead.
        server_log: a file for what a started server prints.
        pin: server and generators on cores of their own; None: if the server is started here and there are two.
        progress: called now and then.

    Returns:
        the result; docs/benchmarking.md says what is in it. Its ``verdict`` says whether to believe it.

    Raises:
        CannotRun: it could not take place.
    """
    warnings = preflight.check(settings, local=server is None)
    server_cores, _ = preflight.pick_cores(pin, server is None)
    target: AbstractContextManager[Target]
    if server is not None:
        target = nullcontext(running_server(*server))
    else:
        default = null_server_command() if settings.null else default_command(settings.sockets)
        target = spawned_server(spawn or default, server_cores, server_log)
    with target as ready:
        result = Coordinator(settings, ready, pin=pin, progress=progress).run()
    result["verdict"]["notes"] += warnings
    return result


def run_all(options: Options, progress: Progress = no_progress) -> list[dict[str, Any]]:
    """As many runs as asked for. Ends after one that was interrupted."""
    results = []
    for index in range(options.repeat):
        settings = replace(options.settings, seed=options.settings.seed + index)
        results.append(
            run_once(
                settings,
                spawn=options.spawn,
                server=options.server,
                server_log=options.server_log,
                pin=options.pin,
                progress=progress,
            )
        )
        if results[-1]["interrupted"]:
            break
    return results


def document(options: Options, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Runs and what they were measured on, as written to JSON."""
    return {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": options.settings.seed,
        "code": describe_code(),
        "machine": describe_machine(),
        "runs": results,
    }
