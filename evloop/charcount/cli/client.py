"""``charcount-client``: messages from arguments, a terminal or a pipe to the server, replies to stdout.

stdout carries replies and nothing else, one a line; whatever else there is to say goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import socket
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from evloop.charcount.cli.arguments import EXIT_USAGE, CommandParser, port_number, seconds
from evloop.charcount.client import (
    DEFAULT_HOST,
    DEFAULT_PORT,
    DEFAULT_TIMEOUT_S,
    CharCountClient,
    ClientTimeoutError,
    ConnectionLostError,
    Wire,
    encode_message,
    open_socket,
)
from evloop.errors import ConnectError

EXIT_OK = 0
EXIT_SERVER_ERROR = 1
EXIT_CANNOT_CONNECT = 3
EXIT_TIMEOUT = 4
EXIT_INTERRUPTED = 130

_BLOCK_BYTES = 65536
_PROMPT = "> "
# The old client's one recv.
_CLASSIC_RECV_BYTES = 1024


def complain(text: str) -> None:
    """One line on stderr."""
    print(f"charcount-client: {text}", file=sys.stderr, flush=True)


class Output:
    """Replies to stdout, errors to stderr; knows the exit status that follows."""

    def __init__(self) -> None:
        # A process may be started with stdout closed.
        self._stream: BinaryIO = sys.stdout.buffer if sys.stdout is not None else open(os.devnull, "wb")  # noqa: SIM115
        self.status = EXIT_OK

    def reply(self, line: bytes, number: int) -> None:
        """One reply, without its LF, to message ``number``, counted from 1."""
        if line.startswith(b"ERR "):
            complain(f"message {number}: the server answered {line.decode('utf-8', 'replace')!r}")
            self.status = EXIT_SERVER_ERROR
        else:
            self._stream.write(line + b"\n")
            self._stream.flush()

    def reply_lines(self, lines: bytes, first: int) -> None:
        """Whole reply lines, of which the first answers message ``first``."""
        if lines.startswith(b"ERR ") or b"\nERR " in lines:
            for number, line in enumerate(lines.split(b"\n")[:-1], first):
                self.reply(line, number)
        else:
            self._stream.write(lines)
            self._stream.flush()


# ---------------------------------------------------------------------- line framing


def send_arguments(client: CharCountClient, messages: list[bytes], output: Output) -> None:
    """Each argument is a message."""
    for number, reply in enumerate(client.replies(messages), 1):
        output.reply(reply, number)


def converse(client: CharCountClient, output: Output) -> None:
    """Read lines from the terminal and answer each before the next prompt."""
    for number, text in enumerate(terminal_lines(), 1):
        try:
            message = encode_message(text)
        except ValueError as error:
            complain(str(error))
            continue
        for reply in client.replies([message]):
            output.reply(reply, number)


def terminal_lines() -> Iterator[str]:
    """Lines typed at the terminal, with line editing and history, until Ctrl-D."""
    # input() prompts on stdout, unless that is the terminal, too, and then has line editing.
    editing = sys.stdout is not None and sys.stdout.isatty()
    if editing:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() its line editing)
    while True:
        try:
            if editing:
                yield input(_PROMPT)
            else:
                print(_PROMPT, end="", file=sys.stderr, flush=True)
                line = sys.stdin.readline()
                if not line:
                    raise EOFError
                yield line.removesuffix("\n")
        except EOFError:
            print(file=sys.stderr)  # the shell's prompt starts on a line of its own
            return
        except UnicodeDecodeError:
            complain("that was not valid text in this terminal's encoding")


def pump(wire: Wire, source: int, output: Output, timeout_s: float) -> None:
    """Send what comes from a descriptor, as it comes, and write replies as they come, until both have ended.

    The bytes of a file of lines are the wire format already, so blocks are passed on whole: no line is ever looked at.
    """
    # poll, not epoll: epoll can't wait for a regular file, and stdin may be one.
    selector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
    unsent = memoryview(b"")
    sent_messages = 0
    answered = 0
    unterminated = False
    reading = True
    partial = b""  # of a reply
    with contextlib.closing(selector):
        selector.register(wire.fileno(), selectors.EVENT_READ)
        selector.register(source, selectors.EVENT_READ)
        while True:
            ready = selector.select(timeout_s if unsent or sent_messages > answered else None)
            if not ready:
                raise ClientTimeoutError(f"no answer from the server in {timeout_s:g} s; see --timeout")
            fds = {key.fd: events for key, events in ready}
            if fds.get(wire.fileno(), 0) & selectors.EVENT_READ:
                received = wire.receive()
                if received == b"":
                    break
                lines, newline, rest = (received or b"").rpartition(b"\n")
                if newline:
                    lines = partial + lines + newline
                    output.reply_lines(lines, answered + 1)
                    answered += lines.count(b"\n")
                    partial = rest
                else:
                    partial += rest
            if source in fds:
                block = os.read(source, _BLOCK_BYTES)
                if block:
                    unsent = memoryview(block)
                    sent_messages += block.count(b"\n")
                    unterminated = not block.endswith(b"\n")
                else:
                    reading = False
                    sent_messages += unterminated
                    selector.unregister(source)
                    wire.end()
            if unsent:
                unsent = unsent[wire.send(unsent) :]
            # One block at a time: stdin is read again when the last one has left.
            if reading and (source in selector.get_map()) == bool(unsent):
                if unsent:
                    selector.unregister(source)
                else:
                    selector.register(source, selectors.EVENT_READ)
            selector.modify(
                wire.fileno(), selectors.EVENT_READ | (selectors.EVENT_WRITE if unsent and not wire.broken else 0)
            )
    if partial:
        output.reply_lines(partial + b"\n", answered + 1)
    if reading or unsent or answered < sent_messages:
        raise ConnectionLostError(f"the server closed the connection; {answered} messages were answered")


# ---------------------------------------------------------------------- classic framing


def exchange_classic(sock: socket.socket, messages: Iterable[bytes], output: Output) -> None:
    """The lab exercise's exchange: one send, one recv, for each message."""
    for number, message in enumerate(messages, 1):
        if not message:
            complain(f"message {number} is empty, which raw framing cannot carry: skipped")
            output.status = EXIT_USAGE
            continue
        try:
            sock.sendall(message)
            reply = sock.recv(_CLASSIC_RECV_BYTES)
        except TimeoutError:
            raise ClientTimeoutError(f"no answer from the server in {sock.gettimeout():g} s; see --timeout") from None
        except OSError as error:
            raise ConnectionLostError(f"the connection was lost: {error.strerror or error}") from None
        if not reply:
            raise ConnectionLostError("the server closed the connection instead of answering")
        output.reply(reply, number)


def piped_lines() -> Iterator[bytes]:
    """The lines of stdin, without their LF or CR LF."""
    for line in sys.stdin.buffer:
        yield line.removesuffix(b"\n").removesuffix(b"\r")


# ---------------------------------------------------------------------- the command


def make_parser() -> argparse.ArgumentParser:
    """The command line of ``charcount-client``."""
    parser = CommandParser(
        "charcount-client",
        usage="[OPTION ...] [TEXT ...]",
        description="Send messages to a charcount-server and show the number of characters of each.",
        epilog="Without TEXT, each line of input is a message. Exit status: 0 fine, 1 the server answered an error, "
        "2 wrong usage, 3 cannot connect or connection lost, 4 no answer in time, 130 interrupted.",
    )
    parser.add_argument("text", nargs="*", metavar="TEXT", help="a message (put -- before one that begins with -)")
    parser.add_argument("--host", default=DEFAULT_HOST, help="the server's name or address (default: %(default)s)")
    parser.add_argument(
        "-p", "--port", type=port_number, default=DEFAULT_PORT, help="the server's port (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=DEFAULT_TIMEOUT_S,
        metavar="SECONDS",
        help="longest wait for the connection, and for an answer (default: %(default)g)",
    )
    parser.add_argument(
        "--classic", action="store_true", help="the lab exercise's exchange: no line ends, a reply is shown as it came"
    )
    return parser


def run(args: argparse.Namespace, messages: list[bytes], output: Output) -> None:
    """Connect, and have the conversation that the arguments ask for."""
    interactive = not messages and sys.stdin is not None and sys.stdin.isatty()
    if args.classic:
        with open_socket(args.host, args.port, args.timeout) as sock:
            if interactive:
                texts: Iterable[bytes] = (os.fsencode(line) for line in terminal_lines())
            else:
                texts = messages or piped_lines()
            exchange_classic(sock, texts, output)
    elif messages or interactive:
        with CharCountClient(args.host, args.port, timeout_s=args.timeout) as client:
            if messages:
                send_arguments(client, messages, output)
            else:
                converse(client, output)
    else:
        wire = Wire(open_socket(args.host, args.port, args.timeout), args.timeout)
        with contextlib.closing(wire):
            pump(wire, sys.stdin.fileno(), output, args.timeout)


def main(argv: list[str] | None = None) -> int:
    """Run the client. Returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.timeout == 0:
        parser.error("argument --timeout: give more than 0 seconds")
    if args.port == 0:
        parser.error("argument -p/--port: give the port the server listens on")
    messages = []
    for number, text in enumerate(args.text, 1):
        try:
            messages.append(os.fsencode(text) if args.classic else encode_message(os.fsencode(text)))
        except ValueError as error:
            parser.error(f"TEXT {number}: {error}")
        if args.classic and not text:
            parser.error(f"TEXT {number} is empty, which raw framing cannot carry")
    if not messages and sys.stdin is None:
        parser.error("no TEXT given and stdin is closed: nothing to send")
    try:
        output = Output()
        run(args, messages, output)
        return output.status
    except BrokenPipeError:
        # Whoever read our output has enough. Nothing may be written to stdout any more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_OK
    except KeyboardInterrupt:
        if sys.stdin is not None and sys.stdin.isatty():
            print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except ClientTimeoutError as error:
        complain(str(error))
        return EXIT_TIMEOUT
    except (ConnectError, ConnectionLostError) as error:
        complain(str(error))
        return EXIT_CANNOT_CONNECT
