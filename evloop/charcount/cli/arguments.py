"""What the command lines of both commands have in common."""

from __future__ import annotations

import argparse
import os
import sys

from evloop._version import __version__
from evloop.charcount.cli.streams import write_stderr, write_stdout
from evloop.errors import EndpointError
from evloop.net.endpoint import parse_endpoint

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any, NoReturn

EXIT_USAGE = 2
EXIT_TLS = 5  # of both commands: files that can't be used, or a connection that can't be made so

# argparse asks gettext for translations of its words. Python has none, and to find that out takes the file system some
# looks, and loads `locale`: a thirtieth of the whole start.
argparse._ = str  # type: ignore[attr-defined]

_INT_MAX = 2**31 - 1

# Wide enough that each option and its help stand side by side in a terminal of 80 columns.
_HELP_COLUMN = 30


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose usage errors are one line, and whose options must be spelled out.

    Args:
        command: the command's name.
        usage: its arguments in short, after the name.
        description, epilog: above and below the list of options.

    Attributes:
        origin: the environment variable that is being parsed; None for the command line.
    """

    origin: str | None = None

    def __init__(self, command: str, usage: str, description: str, epilog: str) -> None:
        width = terminal_columns() - 2
        super().__init__(
            prog=command,
            usage=f"%(prog)s {usage}",
            description=description,
            epilog=epilog,
            # A script that says --max must not change its meaning when there is a second option of that beginning.
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=_HELP_COLUMN, width=width),
        )
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def error(self, message: str) -> NoReturn:
        """End the process: one line on stderr, exit status 2."""
        if self.origin is not None:
            message = f"{self.origin}: {message}"
        self.exit(EXIT_USAGE, f"{self.prog}: {one_line(message)}; see {self.prog} --help\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """All that argparse prints goes through here; its own method loses what a short write did not take."""
        if file is not None and file is sys.stdout:
            write_stdout(message.encode(sys.stdout.encoding, "backslashreplace"))
        else:
            write_stderr(message)


def terminal_columns() -> int:
    """The width of the terminal, or 80. What argparse would do, but without importing shutil to start a server."""
    try:
        return int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        pass
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


def one_line(text: str) -> str:
    """``text`` with line breaks and other control characters shown as escapes."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def port_number(text: str) -> int:
    """A TCP port."""
    port = _parse_int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 0 to 65535")
    return port


def whole_number(text: str) -> int:
    """A whole number, not negative."""
    number = _parse_int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return number


def positive_number(text: str) -> int:
    """A whole number of 1 or more, small enough for an ``int`` of C."""
    number = _parse_int(text)
    if not 1 <= number <= _INT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {_INT_MAX}")
    return number


def endpoint(text: str) -> str:
    """An endpoint, in the one notation that it has (see `evloop.net.endpoint`)."""
    try:
        return str(parse_endpoint(text))
    except EndpointError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def file_mode(text: str) -> str:
    """Permissions of a file: an octal number from 0 to 777."""
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is no mode of a file: give an octal number from 0 to 777")
    return f"{mode:03o}"


def users(text: str) -> str:
    """Users, by name or number, with commas between; empty for everybody."""
    user_ids(text)
    return text


def user_ids(text: str) -> frozenset[int] | None:
    """Their numbers; None for everybody.

    Raises:
        argparse.ArgumentTypeError: there is no user like that.
    """
    if not text:
        return None
    found = set()
    for name in text.split(","):
        name = name.strip()
        if name.isascii() and name.isdigit():
            found.add(int(name))
            continue
        try:
            import pwd  # Windows has none

            found.add(pwd.getpwnam(name).pw_uid)
        except (ImportError, KeyError, ValueError):
            raise argparse.ArgumentTypeError(f"there is no user {name!r}") from None
    return frozenset(found)


def _parse_int(text: str) -> int:
    """-1 for what is no number."""
    try:
        return int(text)
    except ValueError:
        return -1


def seconds(text: str) -> float:
    """A finite time, not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def networks(text: str) -> str:
    """Addresses and networks, separated by commas; as they are, once it is known that they make sense."""
    if text:
        from evloop.net.trustedpeers import TrustedPeers  # here, as few need it

        try:
            TrustedPeers(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text
