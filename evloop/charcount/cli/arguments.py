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
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, NoReturn

EXIT_USAGE = 2
EXIT_TLS = 5  # of both commands: files that can't be used, or a connection that can't be made so

# argparse asks gettext for translations of its words. Python has none, and to find that out takes the file system some
# looks, and loads `locale`: a thirtieth of the whole start.
argparse._ = str  # type: ignore[attr-defined]

_INT_MAX = 2**31 - 1

# More than machines have cores; it is a wrong number.
_MOST_WORKERS = 1024

# Wide enough that each option and its help stand side by side in a terminal of 80 columns.
_HELP_COLUMN = 30


Examples = tuple[tuple[str, str], ...]


class HelpfulParser(argparse.ArgumentParser):
    """An argument parser that guesses which option was meant, and whose help ends with examples.

    Attributes:
        examples: command lines, each with what it does. They stand in the help as they are.
        documentation: where there is more to read, by commas.
    """

    examples: Examples = ()
    documentation = ""

    def format_help(self) -> str:
        """The help, and after it the examples."""
        return super().format_help() + self._format_examples()

    def _format_examples(self) -> str:
        lines = [f"  {command}\n      {what}\n" for command, what in self.examples]
        if self.documentation:
            lines += ["\ndocumentation:\n", f"  {self.documentation}\n"]
        return "".join(["\nexamples:\n", *lines] if self.examples else lines)

    def parse_args(  # type: ignore[override]  # that of argparse returns other kinds of namespaces as well
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse all of them. Ends the process with a usage error if some are of no use."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.reject(unknown)
        return parsed

    def reject(self, unknown: list[str], advice: str = "") -> NoReturn:
        """End the process with a usage error: there are no such arguments.

        Args:
            advice: what else to say about them.
        """
        options = [argument.partition("=")[0] for argument in unknown if argument.startswith("--")]
        guess = did_you_mean(options, self._option_string_actions)
        hint = " ".join(text for text in (guess, advice) if text)
        self.error(f"unrecognized arguments: {' '.join(unknown)}" + (f" ({hint})" if hint else ""))


def did_you_mean(words: Iterable[str], known: Iterable[str]) -> str:
    """Which of the known words were meant by some that are misspelt or cut short: a question, or nothing."""
    from difflib import get_close_matches  # here: nobody who spells well is to wait for it

    names = list(known)
    guesses: list[str] = []
    for word in words:
        guesses += [name for name in names if name.startswith(word)] or get_close_matches(word, names, n=1)
    *others, last = dict.fromkeys(guesses) or [""]
    return f"did you mean {', '.join(others)}{' or ' * bool(others)}{last}?" if last else ""


class CommandParser(HelpfulParser):
    """An argument parser whose usage errors are one line, and whose options must be spelled out.

    Args:
        command: the command's name.
        usage: its arguments in short, after the name.
        description, epilog: above and below the list of options.
        examples, documentation: what the help ends with, see `HelpfulParser`.

    Attributes:
        origin: the environment variable that is being parsed; None for the command line.
        on_error: called with a usage error instead of ending the process; raises.
    """

    origin: str | None = None
    on_error: Callable[[str], NoReturn] | None = None

    def __init__(
        self, command: str, usage: str, description: str, epilog: str, examples: Examples, documentation: str
    ) -> None:
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
        self.examples = examples
        self.documentation = documentation
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def error(self, message: str) -> NoReturn:
        """End the process: one line on stderr, exit status 2."""
        if self.origin is not None:
            message = f"{self.origin}: {message}"
        if self.on_error is not None:
            self.on_error(one_line(message))
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


def workers(text: str) -> int | str:
    """How many processes serve: a number, or ``auto``."""
    if text == "auto":
        return text
    number = _parse_int(text)
    if not 1 <= number <= _MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number from 1 to {_MOST_WORKERS}")
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
