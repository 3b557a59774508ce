"""``charcount-client``: messages from arguments, a terminal or a pipe to the server, replies to stdout.

stdout carries replies and nothing else, one a line; whatever else there is to say goes to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator

from evloop.charcount.cli.arguments import EXIT_TLS, EXIT_USAGE, CommandParser, one_line, port_number, seconds
from evloop.charcount.cli.streams import (
    OutputEndedError,
    OutputError,
    read_lines,
    run_command,
    say,
    write_stderr,
    write_stdout,
)
from evloop.charcount.cli.terminal import typed_lines
from evloop.charcount.cli.tlsoptions import add_client_options, advice, check_client_options, client_settings
from evloop.charcount.client import (
    DEFAULT_TIMEOUT_S,
    CharCountClient,
    encode_message,
)
from evloop.charcount.connecting import (
    DEFAULT_HOST,
    DEFAULT_PORT,
    connect_wire,
    server_endpoint,
    to_connect_to,
)
from evloop.charcount.pump import InputError, Pump
from evloop.charcount.wire import (
    ClientTimeoutError,
    ConnectionLostError,
    Deadline,
    ReplyTooLongError,
    UnexpectedReplyError,
    Wire,
)
from evloop.errors import EndpointError, EvloopError, TLSError, TLSSettingsError
from evloop.net.endpoint import Endpoint, parse_endpoint

EXIT_OK = 0
EXIT_SERVER_ERROR = 1  # or what it sent is no reply, or stdout can't be written
EXIT_CANNOT_CONNECT = 3
EXIT_TIMEOUT = 4
EXIT_UNEXPECTED_REPLY = 6
EXIT_INTERRUPTED = 130

_COMMAND = "charcount-client"
_IN_PIECES = "; in raw framing a long message may be answered in pieces"
# What poll(2) can wait for is about twice that: its milliseconds are an int.
_LONGEST_TIMEOUT_S = 1_000_000


def complain(text: str) -> None:
    """One line on stderr: stdout is for replies."""
    say(_COMMAND, text)


def to_utf8(text: str) -> bytes:
    """As it goes over the wire, in any locale; bytes that were not valid in that stay as they are."""
    return text.encode("utf-8", "surrogateescape")


class Output:
    """Replies to stdout, errors to stderr; knows the exit status that follows.

    Raises:
        OutputEndedError: the reader of stdout has closed it.
        OutputError: stdout can't be written for another reason.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdout is not None and sys.stdout.isatty()
        self.status = EXIT_OK

    def reply(self, line: bytes, number: int) -> None:
        """One reply, without its LF, to message ``number``, counted from 1."""
        if line.startswith(b"ERR "):
            complain(f"message {number}: the server answered {line.decode('utf-8', 'replace')!r}")
            self.status = EXIT_SERVER_ERROR
        else:
            self._write(line + b"\n")

    def reply_lines(self, lines: bytes, first: int) -> None:
        """Whole reply lines, of which the first answers message ``first``."""
        if lines.startswith(b"ERR ") or b"\nERR " in lines:
            for number, line in enumerate(lines.split(b"\n")[:-1], first):
                self.reply(line, number)
        else:
            self._write(lines)

    def _write(self, lines: bytes) -> None:
        if self._terminal:
            # A server's words must not move the cursor, or worse. A pipe gets them as they came.
            shown = (line.removesuffix(b"\r").decode("utf-8", "backslashreplace") for line in lines.split(b"\n")[:-1])
            lines = "".join(f"{one_line(line)}\n" for line in shown).encode()
        write_stdout(lines)


# ---------------------------------------------------------------------- line framing


def send_arguments(client: CharCountClient, messages: list[bytes], output: Output) -> None:
    """Each argument is a message."""
    for number, reply in enumerate(client.replies(messages), 1):
        output.reply(reply, number)


def converse(client: CharCountClient, output: Output) -> None:
    """Read lines from the terminal and answer each before the next prompt."""
    for number, text in enumerate(typed_lines(complain), 1):
        try:
            message = encode_message(text)
        except ValueError as error:
            complain(str(error))
            continue
        for reply in client.replies([message]):
            output.reply(reply, number)


# ---------------------------------------------------------------------- classic framing


def exchange_classic(wire: Wire, messages: Iterable[bytes], timeout_s: float, output: Output) -> None:
    """The lab exercise's exchange: one message, and what comes then is the reply to it."""
    deadline = Deadline(timeout_s)
    for number, message in enumerate(messages, 1):
        if not message:
            complain(f"message {number} is empty, which raw framing cannot carry: skipped")
            output.status = EXIT_USAGE
            continue
        early = wire.receive()
        if early:
            raise UnexpectedReplyError(early, _IN_PIECES)
        deadline.restart()
        output.reply(_classic_reply(wire, message, deadline), number)
    late = wire.receive()
    if late:
        raise UnexpectedReplyError(late, _IN_PIECES)


def _classic_reply(wire: Wire, message: bytes, deadline: Deadline) -> bytes:
    unsent = memoryview(message)
    while True:
        sent, reply = wire.exchange(unsent, deadline)
        if sent:
            unsent = unsent[sent:]
            deadline.restart()
        elif not reply:
            raise ConnectionLostError("the server closed the connection instead of answering")
        elif unsent:
            raise UnexpectedReplyError(reply, _IN_PIECES)
        else:
            return reply


def typed_messages() -> Iterator[bytes]:
    """Lines typed at the terminal that raw framing can carry."""
    for line in typed_lines(complain):
        if line:
            yield to_utf8(line)
        else:
            complain("raw framing cannot carry an empty message")


def piped_lines() -> Iterator[bytes]:
    """The lines of stdin, without their LF or CR LF."""
    try:
        for line in read_lines(sys.stdin.fileno()):
            yield line.removesuffix(b"\r")
    except OSError as error:
        raise InputError(error) from None


# ---------------------------------------------------------------------- the command


def make_parser() -> CommandParser:
    """The command line of ``charcount-client``."""
    parser = CommandParser(
        _COMMAND,
        usage="[OPTION ...] [TEXT ...]",
        description="Send messages to a charcount-server and show the number of characters of each.",
        epilog="Without TEXT, each line of input is a message. Exit status: 0 fine, 1 the server answered an error or "
        "what is no reply, or stdout cannot be written, 2 wrong usage, 3 cannot connect or connection lost, "
        "4 no answer in time, 5 TLS failed, 6 the server sent a reply that no message asked for, 130 interrupted.",
        examples=(
            (f'{_COMMAND} "hello, world" "Halo dunia"', "two messages, two numbers"),
            (f"{_COMMAND} --port 8000 < messages.txt", "each line of a file is a message"),
            (f"{_COMMAND} --connect tls:count.example:8443 --ca ca.pem hello", "by TLS"),
        ),
        documentation=f"man {_COMMAND}; docs/protocol.md, docs/tls.md",
    )
    parser.add_argument("text", nargs="*", metavar="TEXT", help="a message (put -- before one that begins with -)")
    parser.add_argument("--host", help=f"the server's name or address (default: {DEFAULT_HOST})")
    parser.add_argument("-p", "--port", type=port_number, help=f"the server's port (default: {DEFAULT_PORT})")
    parser.add_argument(
        "--connect",
        type=endpoint_to_connect_to,
        metavar="ENDPOINT",
        help="instead of host and port: HOST:PORT, [IPV6]:PORT, unix:PATH or unix:@NAME, with tls: in front for TLS",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=DEFAULT_TIMEOUT_S,
        metavar="SECONDS",
        help="longest wait for the connection (all addresses of a name together), and for each whole answer "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--classic",
        action="store_true",
        help="the lab exercise's exchange: without line ends; a reply is shown as it came",
    )
    add_client_options(parser)
    return parser


def endpoint_to_connect_to(text: str) -> Endpoint:
    """An endpoint on the command line."""
    try:
        return to_connect_to(parse_endpoint(text))
    except EndpointError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace, messages: list[bytes], output: Output) -> None:
    """Connect, and have the conversation that the arguments ask for."""
    tls = client_settings(args)
    if args.insecure:
        complain("--insecure: anybody between here and the server can read and change everything")
    where = args.connect or server_endpoint(DEFAULT_HOST if args.host is None else args.host, args.port or DEFAULT_PORT)
    interactive = not messages and sys.stdin is not None and sys.stdin.isatty()
    if args.classic:
        wire = connect_wire(where, args.timeout, tls)
        try:
            if interactive:
                texts: Iterable[bytes] = typed_messages()
            else:
                texts = messages or piped_lines()
            exchange_classic(wire, texts, args.timeout, output)
        finally:
            wire.close()
    elif messages or interactive:
        with CharCountClient(where, tls=tls, timeout_s=args.timeout) as client:
            if messages:
                send_arguments(client, messages, output)
            else:
                converse(client, output)
    else:
        wire = connect_wire(where, args.timeout, tls)
        try:
            Pump(wire, sys.stdin.fileno(), output.reply_lines, args.timeout).run()
        finally:
            wire.close()


def parse_arguments(parser: CommandParser, arguments: list[str]) -> argparse.Namespace:
    """Options may stand before, between and after texts; what follows ``--`` is text."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    args, unknown = parser.parse_known_intermixed_args(arguments[:end])
    if unknown:
        parser.reject(unknown, "put -- before a TEXT that begins with -")
    args.text += arguments[end + 1 :]
    if not 0 < args.timeout <= _LONGEST_TIMEOUT_S:
        parser.error(f"argument --timeout: give more than 0 seconds, and not more than {_LONGEST_TIMEOUT_S}")
    if args.connect is not None and not args.host is args.port is None:
        parser.error("--connect says where: leave out --host and --port")
    check_client_options(parser, args)
    if args.port == 0:
        parser.error("argument -p/--port: give the port the server listens on")
    if not args.text and sys.stdin is None:
        parser.error("no TEXT given and stdin is closed: nothing to send")
    return args


def encode_texts(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[bytes]:
    """The arguments as messages: in line framing with their LF."""
    messages = []
    for number, text in enumerate(args.text, 1):
        try:
            messages.append(to_utf8(text) if args.classic else encode_message(text))
        except ValueError as error:
            parser.error(f"TEXT {number}: {error}")
        if args.classic and not text:
            parser.error(f"TEXT {number} is empty, which raw framing cannot carry")
    return messages


def main(argv: list[str] | None = None) -> int:
    """Run the client. Returns the exit status."""
    return run_command(_COMMAND, lambda: run_client(argv))


def run_client(argv: list[str] | None) -> int:
    """What the command line asks for. Returns the exit status."""
    parser = make_parser()
    args = parse_arguments(parser, sys.argv[1:] if argv is None else argv)
    messages = encode_texts(parser, args)
    output = Output()
    try:
        run(args, messages, output)
        return output.status
    except OutputEndedError:
        return output.status
    except KeyboardInterrupt:
        if sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty():
            write_stderr("\n")
        return EXIT_INTERRUPTED
    except EvloopError as error:
        complain(f"{error}{advice(error)}")
        return exit_status(error)


def exit_status(error: EvloopError) -> int:
    """That of a client which ended with this error."""
    if isinstance(error, ClientTimeoutError):
        return EXIT_TIMEOUT
    if isinstance(error, TLSError | TLSSettingsError):
        return EXIT_TLS
    if isinstance(error, InputError):
        return EXIT_USAGE
    if isinstance(error, UnexpectedReplyError) and not error.reply.startswith(b"ERR "):
        return EXIT_UNEXPECTED_REPLY
    if isinstance(error, OutputError | ReplyTooLongError | UnexpectedReplyError):
        return EXIT_SERVER_ERROR
    return EXIT_CANNOT_CONNECT
