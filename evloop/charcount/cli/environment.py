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
_FILE = _PREFIX + "CONFIG"
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
    """The settings in force: of the command line, else of the environment, else of the file, else the defaults.

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
    path = environ.get(_FILE, "") if given.config is None else given.config
    in_file = _read_file(parser, path) if path else {}
    preset = _parse_variables(parser, {**in_file, **environ}, {name: path for name in in_file if name not in environ})
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


def _read_file(parser: CommandParser, path: str) -> dict[str, str]:
    from evloop.charcount.cli.settingsfile import read_variables  # here, as many have none

    try:
        variables = read_variables(path)
    except ValueError as error:
        parser.error(f"--config: {error}")
    # It may name itself, if it was made by --print-config.
    return {name: value for name, value in variables.items() if name != _FILE}


def _parse_variables(parser: CommandParser, environ: Mapping[str, str], files: Mapping[str, str]) -> argparse.Namespace:
    """What the variables set.

    Args:
        files: in which file a variable stands that is not in the environment.
    """
    preset = parser.parse_args([])
    for variable, value in environ.items():
        if not variable.startswith(_PREFIX):
            continue
        parser.origin = f"{files[variable]}: {variable}" if variable in files else variable
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
