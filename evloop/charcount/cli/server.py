"""``charcount-server``: arguments in, a running server out."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping

from evloop.charcount.cli import environment
from evloop.charcount.cli.arguments import EXIT_TLS, EXIT_USAGE, CommandParser
from evloop.charcount.cli.listening import Places, forget_host_and_port, reject_two_places
from evloop.charcount.cli.settings import LOG_LEVELS, SETTINGS, setting_name
from evloop.charcount.cli.streams import run_command, say, write_stdout
from evloop.charcount.server import CharCountServer, ServiceSettings
from evloop.charcount.session import CLASSIC_TEMPLATE, TemplateError
from evloop.errors import ListenError, TLSSettingsError
from evloop.eventloop import EventLoop
from evloop.limits import Limits
from evloop.log import INFO, Logger, configure_later
from evloop.program.serve import SLOW_PASS_S, STOP_SIGNALS, prepare, take_part
from evloop.server.descriptors import affordable_connections, raise_descriptor_limit

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    from evloop.net.tlssettings import TLSServerSettings
    from evloop.program.workers.role import Role
    from evloop.program.workers.upgrade import Heritage
    from evloop.program.workers.worker import Worker

EXIT_OK = 0
EXIT_ABORTED = 1  # or stdout can't be written
EXIT_CANNOT_LISTEN = 3

_COMMAND = "charcount-server"


def configure_logging(level: int, process: str = "") -> None:
    """Log to stderr from that level on.

    Args:
        process: which process of the service it is, named in each line.
    """
    import logging

    who = f"{process}: " if process else ""
    logging.basicConfig(level=level, format=f"%(asctime)s %(levelname)s {who}%(message)s", stream=sys.stderr)
    logging.raiseExceptions = False  # a log that can't be written must not stop the service


def make_parser() -> CommandParser:
    """The command line of ``charcount-server``."""
    parser = CommandParser(
        _COMMAND,
        usage="[OPTION ...]",
        description="Answer each message that clients send with its number of characters.",
        epilog="Each option can be set by a variable as well, --max-message by CHARCOUNT_MAX_MESSAGE and --classic by "
        "CHARCOUNT_CLASSIC=1; the command line wins. "
        "SIGTERM or Ctrl-C stops it: what has been received is answered first; a second one stops it at once. "
        "SIGUSR1 logs a status; SIGHUP reads certificates and --config again, with --workers by new workers one after "
        "another, but stops it if its terminal was closed; SIGUSR2 has the program that is on disk now take over. "
        "Exit status: 0 stopped, 1 stopped with connections aborted, 2 wrong usage, 3 cannot listen, "
        "5 certificates or keys cannot be used.",
        examples=(
            (f"{_COMMAND} --port 8000", "for the programs of this machine"),
            (f"{_COMMAND} --listen tls:0.0.0.0:8443 --tls-cert server.pem", "for other machines too, by TLS"),
            (f"CHARCOUNT_MAX_CONNECTIONS=500 {_COMMAND} --check-config", "could it start with these settings?"),
        ),
        documentation=f"man {_COMMAND}; docs/operations.md, docs/protocol.md, docs/tls.md",
    )
    groups = {setting.group: parser.add_argument_group(setting.group) for setting in SETTINGS}
    for setting in SETTINGS:
        setting.add_to(groups[setting.group])
    config = parser.add_argument_group("instead of serving")
    config.add_argument("--print-config", action="store_true", help="show the settings in force as variables, and end")
    config.add_argument("--check-config", action="store_true", help="say whether it could start with them, and end")
    return parser


def parse_arguments(parser: CommandParser, argv: list[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    """The options in force. Ends the process with a usage error if some are wrong or contradict each other."""

    def expand(args: argparse.Namespace) -> None:
        reject_two_places(parser, args)
        if args.classic:
            if args.framing == "line" or args.reply not in (None, CLASSIC_TEMPLATE):
                parser.error("--classic sets framing and reply: leave out --framing line and --reply")
            args.framing, args.reply = "raw", CLASSIC_TEMPLATE

    args = environment.parse(parser, argv, environ, expand)
    forget_host_and_port(args)
    # What the environment's stands for may have been set otherwise on the command line.
    args.classic = args.framing == "raw" and args.reply == CLASSIC_TEMPLATE
    return args


def make_limits(args: argparse.Namespace) -> Limits:
    """The limits of the server from the options in force. Those that have no option have their defaults.

    Raises:
        ValueError: one that makes no sense; the text names it.
    """
    chosen: dict[str, Any] = {}
    for limit in Limits.table.values():
        if limit.option is not None:
            value = getattr(args, setting_name(limit))
            chosen[limit.name] = value or None if limit.can_be_off else value
    return Limits(**chosen)


def make_settings(parser: CommandParser, args: argparse.Namespace) -> ServiceSettings:
    """Settings from the options in force. Ends the process with a usage error if some can't be used."""
    try:
        settings = ServiceSettings(
            framing=args.framing,
            template=args.reply,
            max_message_bytes=args.max_message or None,
            limits=make_limits(args),
            proxy_from=args.proxy_from,
        )
        settings.session_factory()
    except TemplateError as error:
        parser.error(f"argument --reply: {error}")
    except ValueError as error:
        parser.error(str(error))
    return settings


def print_config(variables: str) -> int:
    """Write them to stdout, bytes that are not valid text as they came."""
    write_stdout(os.fsencode(variables))
    return EXIT_OK


def check_config(places: Places, settings: ServiceSettings) -> int:
    """Say whether a server could start with these settings; where it listens may be in use by the running one."""
    wanted = settings.limits.max_connections
    raise_descriptor_limit(wanted)
    affordable = affordable_connections(wanted, None)
    try:
        places.check()
    except ListenError as error:
        say(_COMMAND, str(error))
        return EXIT_CANNOT_LISTEN
    if affordable < wanted:
        raise_it = "raise it (ulimit -n) or lower the number"
        say(_COMMAND, f"the descriptor limit allows {affordable} connections, not {wanted}: {raise_it}")
        return EXIT_USAGE
    say(_COMMAND, "the settings are good")
    return EXIT_OK


def main(argv: list[str] | None = None) -> int:
    """Run the server until a signal stops it. Returns the exit status."""
    return run_command(_COMMAND, lambda: run_server(argv))


def run_server(argv: list[str] | None) -> int:
    """What the command line asks for. Returns the exit status."""
    parser = make_parser()
    args = parse_arguments(parser, argv, os.environ)
    settings = make_settings(parser, args)
    if args.print_config:
        return print_config(environment.as_variables(args))
    role = None
    if "EVLOOP_ROLE" in os.environ:
        from evloop.program.workers.role import take_role  # here, as one process does not need it

        role = take_role()
    try:
        places = Places(parser, args)
    except (ListenError, TLSSettingsError) as error:
        say(_COMMAND, str(error))
        return EXIT_TLS if isinstance(error, TLSSettingsError) else EXIT_CANNOT_LISTEN
    if args.check_config:
        return check_config(places, settings)
    if places.unused and role is None:
        unused = ", ".join(map(str, places.unused))
        say(_COMMAND, f"started with sockets that are not used, as other places to listen are set: {unused}")
    level = LOG_LEVELS[args.log_level]
    process = "" if role is None else role.name
    configure_later(level, lambda: configure_logging(level, process))
    raise_descriptor_limit(settings.limits.max_connections)
    if args.workers != 1 and not process:
        from evloop.charcount.cli.workers import supervise_workers  # here, as one process does not need it

        status = supervise_workers(_COMMAND, places, settings, args, role)
        if status is not None:
            return status
    return serve(places, settings, role, argv, args)


def reloads(
    server: CharCountServer, tls: TLSServerSettings | None, argv: list[str] | None, args: argparse.Namespace
) -> list[Callable[[], object]]:
    """What SIGHUP calls."""
    if not args.config:
        return [] if tls is None else [tls.reload_and_log]
    from evloop.charcount.cli.reloading import Reloading  # here, as few have a file

    def parse(parser: CommandParser) -> argparse.Namespace:
        return parse_arguments(parser, argv, os.environ)

    return [Reloading(args, server, tls, make_parser, parse, make_settings)]


def serve(
    places: Places, settings: ServiceSettings, role: Role | None, argv: list[str] | None, args: argparse.Namespace
) -> int:
    """Serve in this process until it is told to stop. Returns the exit status.

    Args:
        role: if it is one of several.
        argv, args: the command line, and what was made of it.
    """
    worker: Worker | None = None
    heritage: Heritage | None = None
    with EventLoop(slow_pass_s=SLOW_PASS_S) as loop:
        try:
            if role is not None:
                worker, heritage = take_part(loop, role)
        except ListenError as error:
            say(_COMMAND, str(error))
            return EXIT_CANNOT_LISTEN
        server = CharCountServer(loop, settings, None if worker is None else worker.counts)
        try:
            if role is not None:
                (worker or heritage).equip(server)  # type: ignore[union-attr]
            addresses = places.listen(server)
            tls = places.tls
            if worker is not None:
                worker.prepare(server)
                addresses = []  # the supervisor tells them
            else:
                prepare(loop, server, on_reload=reloads(server, tls, argv, args), upgrades=True)
            if heritage is not None:
                heritage.take_over(server)
            if tls is not None:
                tls.watch(loop)
            if hasattr(gc, "freeze"):  # PyPy's collector has no need of it
                # What exists by now lives as long as the process: the collector need never look at it again.
                gc.freeze()
            for address in addresses:
                say(_COMMAND, f"listening on {address}")
            loop.run()
        except ListenError as error:
            say(_COMMAND, str(error))
            return EXIT_CANNOT_LISTEN
        finally:
            server.abort()  # nothing is left to abort, unless this ends by an error: then no path may be left behind
            if worker is not None:
                worker.close()
            if heritage is not None:
                heritage.close()
        for signum in STOP_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)  # it is over: what comes now must not change the exit status
        server.log.flush()
    stats = server.stats
    received, sent = server.totals()
    Logger("charcount").log(INFO, "stopped: connections=%d received=%d sent=%d", stats.accepted, received, sent)
    return EXIT_ABORTED if server.aborted else EXIT_OK
