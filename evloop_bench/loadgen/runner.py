"""Runs, one after the other, each with its server: the interface for scripts."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from evloop.net.endpoint import Endpoint
from evloop_bench.loadgen import preflight
from evloop_bench.loadgen.coordinator import Coordinator, Progress
from evloop_bench.loadgen.options import Options
from evloop_bench.loadgen.settings import SCHEMA, SCHEMA_VERSION, Settings
from evloop_bench.loadgen.target import Target, default_command, null_server_command, running_server, spawned_server


def no_progress(phase: str, done: float, replies: int) -> None:
    """Shows nothing."""


def run_once(
    settings: Settings,
    *,
    spawn: str | None = None,
    server: Endpoint | None = None,
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
        target = nullcontext(running_server(server))
    else:
        default = null_server_command() if settings.null else default_command(settings.sockets)
        target = spawned_server(spawn or default, server_cores, server_log)
    result: dict[str, Any] | None = None
    try:
        with target as ready:
            result = Coordinator(settings, ready, pin=pin, progress=progress).run()
    except KeyboardInterrupt:
        if result is None:
            raise
        result["interrupted"] = True  # only the wait for the server's end: what was measured stands
    assert result is not None
    result["verdict"]["notes"] += warnings
    return result


def run_all(options: Options, results: list[dict[str, Any]], progress: Progress = no_progress) -> None:
    """As many runs as asked for; fewer if one was interrupted.

    Args:
        results: takes the result of each run when it is over, so that none is lost with a later one.

    Raises:
        CannotRun: a run could not take place.
        KeyboardInterrupt: interrupted before a run had anything to tell.
    """
    for index in range(options.repeat):
        settings = replace(options.settings, seed=options.settings.seed + index)
        result = run_once(
            settings,
            spawn=options.spawn,
            server=options.server,
            server_log=options.server_log,
            pin=options.pin,
            progress=progress,
        )
        results.append(result)
        if result["interrupted"]:
            return


def document(options: Options, results: list[dict[str, Any]], surroundings: dict[str, Any]) -> dict[str, Any]:
    """Runs and what they were measured on, as written to JSON.

    Args:
        surroundings: ``code`` and ``machine``, see `evloop_bench.loadgen.machine`.
    """
    return {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": options.settings.seed,
        **surroundings,
        "runs": results,
    }
