"""Settings from environment variables, for those who start a server from a unit file or a container.

Each option that takes a value, or is a switch, has a variable: ``--max-connections`` is
``CHARCOUNT_MAX_CONNECTIONS``. The command line wins over the environment.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence

from evloop.charcount.cli.arguments import CommandParser

_PREFIX = "CHARCOUNT_"
_YES = {"1", "true", "yes", "on"}
_NO = {"", "0", "false", "no", "off"}

# Beside ASCII letters and digits, what needs no quotes in a shell nor in an environment file.
_PLAIN = "@%+=:,./-_{}"


def parse(
    parser: CommandParser,
    argv: Sequence[str] | None,
    environ: Mapping[str, str],
    expand: Callable[[argparse.Namespace], None],
) -> argparse.Namespace:
    """The settings in force: of the command line, else of the environment, else the parser's defaults.

    Ends the process with a usage error that names the variable or option.

    Args:
        parser: knows the options. None is no value of any of them.
        argv: the command line; None for that of the process.
        environ: the environment.
        expand: called with what the environment sets, then with what the command line sets, where what is not set is
            None. Replaces an option that stands for others, and rejects what contradicts itself.
    """
    # The command line first: --help must be shown whatever the environment is.
    given = parser.parse_args(argv, _nothing_set(parser))
    preset = _parse_variables(parser, environ)
    for name in _set_in(given):
        setattr(preset, name, None)
    parser.origin = "environment"
    expand(preset)
    parser.origin = None
    expand(given)
    defaults = {name: parser.get_default(name) for name in vars(given)}
    return argparse.Namespace(**{**defaults, **_set_in(preset), **_set_in(given)})


def as_variables(parser: CommandParser, settings: argparse.Namespace) -> str:
    """Lines ``NAME=value`` that give the same settings again, as the environment of another process.

    A value that needs quotes is quoted in the one way that a shell and systemd have in common.
    """
    lines = [f"{name}={_quote(_as_text(getattr(settings, action.dest)))}\n" for name, action in _variables(parser)]
    return "".join(lines)


def _variables(parser: CommandParser) -> Iterator[tuple[str, argparse.Action]]:
    """The variable of each option that is a setting. What only shows something and ends has none."""
    for action in parser._actions:
        if action.option_strings and action.dest not in ("help", "version", "print_config", "check_config"):
            yield _PREFIX + action.dest.upper(), action


def _nothing_set(parser: CommandParser) -> argparse.Namespace:
    """Parsed into this, an option that is not given stays None."""
    return argparse.Namespace(
        **{action.dest: None for action in parser._actions if action.default != argparse.SUPPRESS}
    )


def _set_in(layer: argparse.Namespace) -> dict[str, object]:
    return {name: value for name, value in vars(layer).items() if value is not None}


def _parse_variables(parser: CommandParser, environ: Mapping[str, str]) -> argparse.Namespace:
    variables = dict(_variables(parser))
    preset = _nothing_set(parser)
    for name, value in environ.items():
        if not name.startswith(_PREFIX):
            continue
        parser.origin = name
        if name not in variables:
            # A limit that is misspelled is a limit that isn't there.
            parser.error("there is no such setting")
        options = variables[name].option_strings
        if variables[name].nargs == 0:  # a switch: --it, --no-it
            if value.lower() not in _YES | _NO:
                parser.error(f"{value!r} is neither yes nor no")
            argument = options[0] if value.lower() in _YES else options[1]
        else:
            argument = f"{options[-1]}={value}"
        parser.parse_args([argument], preset)
    parser.origin = None
    return preset


def _as_text(value: bool | int | float | str) -> str:
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return str(int(value) if isinstance(value, bool) else value)


def _quote(text: str) -> str:
    if all((character.isascii() and character.isalnum()) or character in _PLAIN for character in text):
        return text
    for special in ("\\", '"', "$", "`"):  # the backslash first, as it marks the others
        text = text.replace(special, "\\" + special)
    return f'"{text}"'
