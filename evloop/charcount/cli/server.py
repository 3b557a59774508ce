"""``charcount-server``: arguments in, a running server out."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Mapping

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
from evloop.program.serve import SLOW_PASS_S, STOP_SIGNALS, prepare
from evloop.server.descriptors import affordable_connections, raise_descriptor_limit

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

EXIT_OK = 0
EXIT_ABORTED = 1  # or stdout can't be written
EXIT_CANNOT_LISTEN = 3

_COMMAND = "charcount-server"


def configure_logging(level: int) -> None:
    """Log to stderr from that level on."""
    import logging

    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
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
        "SIGUSR1 logs a status; SIGHUP reads certificates again, but stops it if its terminal was closed. "
        "Exit status: 0 stopped, 1 stopped with connections aborted, 2 wrong usage, 3 cannot listen, "
        "5 certificates or keys cannot be used.",
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
    try:
        places = Places(parser, args)
    except (ListenError, TLSSettingsError) as error:
        say(_COMMAND, str(error))
        return EXIT_TLS if isinstance(error, TLSSettingsError) else EXIT_CANNOT_LISTEN
    if args.check_config:
        return check_config(places, settings)
    if places.unused:
        unused = ", ".join(map(str, places.unused))
        say(_COMMAND, f"started with sockets that are not used, as other places to listen are set: {unused}")
    level = LOG_LEVELS[args.log_level]
    configure_later(level, lambda: configure_logging(level))
    raise_descriptor_limit(settings.limits.max_connections)
    with EventLoop(slow_pass_s=SLOW_PASS_S) as loop:
        server = CharCountServer(loop, settings)
        try:
            addresses = places.listen(server)
            tls = places.tls
            prepare(loop, server, on_reload=[] if tls is None else [tls.reload_and_log])
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
        for signum in STOP_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)  # it is over: what comes now must not change the exit status
        server.log.flush()
    stats = server.stats
    received, sent = server.totals()
    Logger("charcount").log(INFO, "stopped: connections=%d received=%d sent=%d", stats.accepted, received, sent)
    return EXIT_ABORTED if server.aborted else EXIT_OK
