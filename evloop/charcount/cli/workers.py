"""``charcount-server --workers``: the process that looks after the others."""

from __future__ import annotations

import argparse
import signal

from evloop.charcount.cli.listening import Places
from evloop.charcount.cli.streams import say
from evloop.charcount.server import ServiceSettings
from evloop.errors import ListenError
from evloop.log import INFO, Logger
from evloop.program.serve import EXIT_ABORTED, EXIT_CANNOT_LISTEN, STOP_SIGNALS
from evloop.program.workers.role import Role
from evloop.program.workers.service import supervise, worker_count


def supervise_workers(
    command: str, places: Places, settings: ServiceSettings, args: argparse.Namespace, role: Role | None
) -> int | None:
    """Run the service until a signal ends it.

    Args:
        command: its name, for what is said on stderr.
        role: if this process is to take over from another service.

    Returns:
        the exit status; None if one process is enough, and this one is to serve itself.
    """
    workers = worker_count(args.workers)
    if workers == 1:
        return None

    def listening(addresses: list[str]) -> None:
        for address in addresses:
            say(command, f"listening on {address}")

    try:
        supervisor = supervise(
            places.notes(),
            workers,
            settings.limits,
            listening,
            access=places.access(),
            inherited=places.inherited,
            role=role,
        )
    except ListenError as error:
        say(command, str(error))
        return EXIT_CANNOT_LISTEN
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)  # it is over: what comes now must not change the exit status
    if supervisor.failure is not None:
        say(command, f"cannot serve: {supervisor.failure}")
        return EXIT_CANNOT_LISTEN
    Logger("charcount").log(INFO, "stopped")
    return EXIT_ABORTED if supervisor.aborted else 0
