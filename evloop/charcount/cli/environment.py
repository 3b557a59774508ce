"""Settings from environment variables, for those who start a server from a unit file or a container.

Each option that takes a value, or is a switch, has a variable: ``--max-connections`` is
``CHARCOUNT_MAX_CONNECTIONS``. The command line wins over the environment.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence

from evloop.charcount.cli.arguments import CommandParser

_PREFIX = "CHARCOUNT_"
_YES = {"1", "true", "yes", "on"}
_NO = {"", "0", "false", "no", "off"}


def _variables(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """The variable of each option that is a setting. What only shows something and ends has none."""
    for action in parser._actions:
        if action.option_strings and action.dest not in ("help", "version", "print_config", "check_config"):
            yield _PREFIX + action.dest.upper(), action


def parse(parser: CommandParser, argv: Sequence[str] | None, environ: Mapping[str, str]) -> argparse.Namespace:
    """Parse environment, then command line. Ends the process with a usage error that names the variable or option."""
    variables = dict(_variables(parser))
    args = argparse.Namespace()
    for name, value in environ.items():
        if not name.startswith(_PREFIX):
            continue
        parser.origin = name
        if name not in variables:
            # A limit that is misspelled is a limit that isn't there.
            parser.error("there is no such setting")
        option = variables[name].option_strings[-1]
        if variables[name].nargs == 0:
            if value.lower() not in _YES | _NO:
                parser.error(f"{value!r} is neither yes nor no")
            given = [option] if value.lower() in _YES else []
        else:
            given = [f"{option}={value}"]
        args = parser.parse_args(given, args)
    parser.origin = None
    return parser.parse_args(argv, args)


def as_variables(parser: CommandParser, args: argparse.Namespace) -> str:
    """The settings as lines ``NAME=value``, fit for a shell or an environment file; those not set are comments."""
    lines = []
    for name, action in _variables(parser):
        value = getattr(args, action.dest)
        if value is None:
            lines.append(f"# {name}=")
        else:
            text = (
                str(int(value))
                if isinstance(value, bool)
                else f"{value!r}".removesuffix(".0")
                if isinstance(value, float)
                else str(value)
            )
            lines.append(f"{name}={shlex.quote(text)}")
    return "\n".join(lines)
