"""Settings from environment variables, for those who start a server from a unit file or a container.

Each setting has a variable: ``--max-connections`` is ``CHARCOUNT_MAX_CONNECTIONS``. The command line wins over the
environment.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

from evloop.charcount.cli.arguments import CommandParser, did_you_mean
from evloop.charcount.cli.settings import SETTINGS, as_text, from_list

_PREFIX = "CHARCOUNT_"
_VARIABLES = {_PREFIX + setting.name.upper(): setting for setting in SETTINGS}
_YES = {"1", "true", "yes", "on"}
_NO = {"", "0", "false", "no", "off"}

# Beside ASCII letters and digits, what needs no quotes in a shell nor in an environment file.
_PLAIN = "@%+=:,./-_{}[]"


def parse(
    parser: CommandParser,
    argv: Sequence[str] | None,
    environ: Mapping[str, str],
    expand: Callable[[argparse.Namespace], None],
) -> argparse.Namespace:
    """The settings in force: of the command line, else of the environment, else the defaults.

    Ends the process with a usage error that names the variable or option.

    Args:
        parser: knows the options. Those that are not given it leaves at None.
        argv: the command line; None for that of the process.
        environ: the environment.
        expand: called with what the environment sets, then with what the command line sets, where what is not set is
            None. Replaces an option that stands for others, and rejects what contradicts itself.
    """
    # The command line first: --help must be shown whatever the environment is.
    given = parser.parse_args(argv)
    preset = _parse_variables(parser, environ)
    for setting in SETTINGS:
        if getattr(given, setting.name) is not None:
            setattr(preset, setting.name, None)
        if any(getattr(given, name) is not None for name in setting.replaces):
            setattr(preset, setting.name, None)
    parser.origin = "environment"
    expand(preset)
    parser.origin = None
    expand(given)
    for setting in SETTINGS:
        if getattr(given, setting.name) is None:
            value = getattr(preset, setting.name)
            setattr(given, setting.name, setting.default if value is None else value)
    return given


def as_variables(settings: argparse.Namespace) -> str:
    """Lines ``NAME=value`` that give the same settings again, as the environment of another process.

    A value that needs quotes is quoted in the one way that a shell and systemd have in common.
    """
    return "".join(
        f"{variable}={_quote(as_text(getattr(settings, setting.name)))}\n" for variable, setting in _VARIABLES.items()
    )


def _parse_variables(parser: CommandParser, environ: Mapping[str, str]) -> argparse.Namespace:
    preset = parser.parse_args([])
    for variable, value in environ.items():
        if not variable.startswith(_PREFIX):
            continue
        parser.origin = variable
        setting = _VARIABLES.get(variable)
        if setting is None:
            # A limit that is misspelled is a limit that isn't there.
            guess = did_you_mean([variable], _VARIABLES)
            parser.error("there is no such setting" + (f" ({guess})" if guess else ""))
        if setting.is_list:
            parser.parse_args([f"{setting.option}={item}" for item in from_list(value)], preset)
            continue
        if not setting.is_switch:
            argument = f"{setting.option}={value}"
        elif value.lower() in _YES:
            argument = setting.option
        elif value.lower() in _NO:
            argument = setting.option.replace("--", "--no-", 1)
        else:
            parser.error(f"{value!r} is neither yes nor no")
        parser.parse_args([argument], preset)
    parser.origin = None
    return preset


def _quote(text: str) -> str:
    if all((character.isascii() and character.isalnum()) or character in _PLAIN for character in text):
        return text
    for special in ("\\", '"', "$", "`"):  # the backslash first, as it marks the others
        text = text.replace(special, "\\" + special)
    return f'"{text}"'
