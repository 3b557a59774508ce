"""``charcount-server``: arguments in, a running server out."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Mapping

from evloop.charcount.cli import environment
from evloop.charcount.cli.arguments import (
    EXIT_USAGE,
    CommandParser,
    port_number,
    positive_number,
    seconds,
    whole_number,
)
from evloop.charcount.cli.streams import run_command, say, write_stdout
from evloop.charcount.server import DEFAULT_PORT, CharCountServer, ServiceSettings
from evloop.charcount.session import CLASSIC_TEMPLATE, DEFAULT_TEMPLATE, TemplateError
from evloop.errors import ListenError
from evloop.limits import Limits
from evloop.log import DEBUG, ERROR, INFO, WARNING, Logger, configure_later
from evloop.net.eventloop import EventLoop
from evloop.program.serve import SLOW_PASS_S, STOP_SIGNALS, prepare
from evloop.server.descriptors import affordable_connections, raise_descriptor_limit
from evloop.server.listener import resolve

EXIT_OK = 0
EXIT_ABORTED = 1  # or stdout can't be written
EXIT_CANNOT_LISTEN = 3

LOG_LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}

_COMMAND = "charcount-server"
_DEFAULTS = Limits()


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
        "SIGUSR1 logs a status. "
        "Exit status: 0 stopped, 1 stopped with connections aborted, 2 wrong usage, 3 cannot listen.",
    )
    where = parser.add_argument_group("where it listens")
    where.add_argument("--host", default="127.0.0.1", help="name, IPv4 or IPv6 address (default: %(default)s)")
    where.add_argument(
        "-p", "--port", type=port_number, default=DEFAULT_PORT, help="0 picks a free one (default: %(default)s)"
    )
    where.add_argument(
        "--backlog",
        type=positive_number,
        default=_DEFAULTS.backlog,
        metavar="N",
        help="connections that may wait to be accepted (default: %(default)s)",
    )
    what = parser.add_argument_group("what it speaks (docs/protocol.md)")
    what.add_argument(
        "--framing",
        choices=("line", "raw"),
        default="line",
        metavar="line|raw",
        help="line: a message ends in LF; raw: each chunk received is a message (default: %(default)s)",
    )
    what.add_argument(
        "--reply",
        default=DEFAULT_TEMPLATE,
        metavar="TEMPLATE",
        help="text of a reply, with {count} where the number goes (default: %(default)s)",
    )
    what.add_argument(
        "--classic",
        action=argparse.BooleanOptionalAction,
        help=f"the lab exercise's exchange: as --framing raw --reply '{CLASSIC_TEMPLATE}'",
    )
    what.add_argument(
        "--max-message",
        type=whole_number,
        default=0,
        metavar="BYTES",
        help="answer a longer message with an error (default: 0, any length; messages are counted, not held in memory)",
    )
    limits = parser.add_argument_group("limits (0 means no limit; not so for the first and the last)")
    limits.add_argument(
        "--max-connections",
        type=positive_number,
        default=_DEFAULTS.max_connections,
        metavar="N",
        help="clients served at the same time (default: %(default)s)",
    )
    limits.add_argument(
        "--max-connections-per-address",
        type=whole_number,
        default=_DEFAULTS.max_connections_per_address or 0,
        metavar="N",
        help="of those, from one address (default: no limit)",
    )
    limits.add_argument(
        "--ipv6-prefix-bits",
        type=whole_number,
        default=_DEFAULTS.ipv6_prefix_bits,
        metavar="N",
        help="for that, IPv6 addresses are one if so many first bits are equal (default: %(default)s)",
    )
    for flag, default, text in (
        ("--idle-timeout", _DEFAULTS.idle_timeout_s, "end a connection without a byte in either direction for so long"),
        ("--message-timeout", _DEFAULTS.message_timeout_s, "end one whose message, once begun, takes longer than this"),
        ("--write-timeout", _DEFAULTS.write_timeout_s, "end one that reads not one byte of its replies for so long"),
        ("--drain-timeout", _DEFAULTS.drain_timeout_s, "time to finish when stopped, then abort; 0: abort at once"),
    ):
        limits.add_argument(
            flag,
            type=seconds,
            default=default or 0.0,
            metavar="SECONDS",
            help=f"{text} (default: {'no limit' if default is None else f'{default:g}'})",
        )
    logs = parser.add_argument_group("what it logs, on stderr")
    logs.add_argument(
        "--log-level",
        choices=tuple(LOG_LEVELS),
        default="info",
        metavar="LEVEL",
        help="debug, info (each connect and disconnect), warning or error (default: %(default)s)",
    )
    config = parser.add_argument_group("instead of serving")
    config.add_argument("--print-config", action="store_true", help="show the settings in force as variables, and end")
    config.add_argument("--check-config", action="store_true", help="say whether it could start with them, and end")
    return parser


def parse_arguments(parser: CommandParser, argv: list[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    """The options in force. Ends the process with a usage error if some are wrong or contradict each other."""

    def expand_classic(args: argparse.Namespace) -> None:
        if args.classic:
            if args.framing == "line" or args.reply not in (None, CLASSIC_TEMPLATE):
                parser.error("--classic sets framing and reply: leave out --framing line and --reply")
            args.framing, args.reply = "raw", CLASSIC_TEMPLATE

    args = environment.parse(parser, argv, environ, expand_classic)
    # What the environment's stands for may have been set otherwise on the command line.
    args.classic = args.framing == "raw" and args.reply == CLASSIC_TEMPLATE
    return args


def make_settings(parser: CommandParser, args: argparse.Namespace) -> ServiceSettings:
    """Settings from the options in force. Ends the process with a usage error if the reply can't be used."""
    if not 1 <= args.ipv6_prefix_bits <= 128:
        parser.error("argument --ipv6-prefix-bits: from 1 to 128")
    settings = ServiceSettings(
        framing=args.framing,
        template=args.reply,
        max_message_bytes=args.max_message or None,
        limits=Limits(
            backlog=args.backlog,
            max_connections=args.max_connections,
            max_connections_per_address=args.max_connections_per_address or None,
            ipv6_prefix_bits=args.ipv6_prefix_bits,
            idle_timeout_s=args.idle_timeout or None,
            message_timeout_s=args.message_timeout or None,
            write_timeout_s=args.write_timeout or None,
            drain_timeout_s=args.drain_timeout,
        ),
    )
    try:
        settings.session_factory()
    except TemplateError as error:
        parser.error(f"argument --reply: {error}")
    return settings


def print_config(variables: str) -> int:
    """Write them to stdout, bytes that are not valid text as they came."""
    write_stdout(os.fsencode(variables))
    return EXIT_OK


def check_config(args: argparse.Namespace, settings: ServiceSettings) -> int:
    """Say whether a server could start with these settings; the port itself may be in use by the running one."""
    wanted = settings.limits.max_connections
    raise_descriptor_limit(wanted)
    affordable = affordable_connections(wanted, None)
    try:
        resolve(args.host, args.port)
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
        return print_config(environment.as_variables(parser, args))
    if args.check_config:
        return check_config(args, settings)
    level = LOG_LEVELS[args.log_level]
    configure_later(level, lambda: configure_logging(level))
    raise_descriptor_limit(settings.limits.max_connections)
    with EventLoop(slow_pass_s=SLOW_PASS_S) as loop:
        server = CharCountServer(loop, settings)
        try:
            addresses = server.listen(args.host, args.port)
        except ListenError as error:
            say(_COMMAND, str(error))
            return EXIT_CANNOT_LISTEN
        prepare(loop, server)
        # What exists by now lives as long as the process: the collector need never look at it again.
        gc.freeze()
        for address in addresses:
            say(_COMMAND, f"listening on {address}")
        loop.run()
        for signum in STOP_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)  # it is over: what comes now must not change the exit status
        server.log.flush()
    stats = server.stats
    received, sent = server.totals()
    Logger("charcount").log(INFO, "stopped: connections=%d received=%d sent=%d", stats.accepted, received, sent)
    return EXIT_ABORTED if server.aborted else EXIT_OK
