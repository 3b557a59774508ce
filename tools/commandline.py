"""A command line as data, read from its argparse parser: what man pages and completions are made of.

Only what a parser has been given is read, never the help that it prints, which differs from Python to Python.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from evloop.charcount.cli.arguments import HelpfulParser

# How the names of values say what completes them.
_KINDS = {"FILE": "file", "A.json": "file", "B.json": "file", "HOST": "host", "GROUP": "group"}


@dataclass(frozen=True)
class Option:
    """An option, or an argument without a name.

    Attributes:
        names: as they are written; none for an argument.
        value: what stands for the value; empty for a switch.
        choices: the values that there are; empty if these can't be listed.
        kind: what else completes the value: ``file``, ``host``, ``group``; empty for what only the user knows.
        repeatable: it may be given again.
        help: all that is said of it.
    """

    names: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    kind: str
    repeatable: bool
    help: str

    @property
    def summary(self) -> str:
        """Its help as far as a menu has room for it."""
        return re.split(r"; | \(default", self.help, maxsplit=1)[0]


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: as it is typed.
        usage: its arguments in short.
        description: what it does, the first sentence as one line.
        notes: what else there is to say, but for its exit status.
        statuses: exit status and what it means.
        groups: options under their headings; those without one under an empty one.
        examples: command lines, each with what it does.
        documentation: where to read on.
        subcommand: a second word that makes it another command, if there is one.
    """

    name: str
    usage: str
    description: str
    notes: str
    statuses: tuple[tuple[str, str], ...]
    groups: tuple[tuple[str, tuple[Option, ...]], ...]
    examples: tuple[tuple[str, str], ...]
    documentation: str
    subcommand: Command | None = None

    @property
    def options(self) -> tuple[Option, ...]:
        """All that have a name."""
        return tuple(option for _, options in self.groups for option in options if option.names)

    @property
    def arguments(self) -> tuple[Option, ...]:
        """All that have none."""
        return tuple(option for _, options in self.groups for option in options if not option.names)


def read(parser: HelpfulParser, subcommand: Command | None = None) -> Command:
    """The command that a parser is for."""
    epilog = " ".join((parser.epilog or "").split())
    notes, _, statuses = epilog.partition("Exit status: ")
    groups = []
    for group in parser._action_groups:
        options = tuple(_option(action) for action in group._group_actions)
        if options:
            title = "" if group in (parser._positionals, parser._optionals) else group.title or ""
            groups.append((title, options))
    parts = re.split(r"[,;] (?=\d+ )", statuses.strip().removesuffix("."))
    # argparse makes a usage of its own, with every option in it, where a parser has none.
    arguments = [str(action.metavar) for action in parser._positionals._group_actions]
    usage = (parser.usage or "").removeprefix("%(prog)s").strip() or " ".join(["[OPTION ...]", *arguments])
    return Command(
        name=parser.prog,
        usage=usage,
        description=" ".join((parser.description or "").split()),
        notes=notes.strip(),
        statuses=tuple((part.partition(" ")[0], part.partition(" ")[2]) for part in parts),
        groups=tuple(groups),
        examples=parser.examples,
        documentation=parser.documentation,
        subcommand=subcommand,
    )


def _option(action: argparse.Action) -> Option:
    switch = action.nargs == 0
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    choices = tuple(map(str, action.choices or ()))
    return Option(
        names=tuple(action.option_strings),
        value="" if switch else "|".join(choices) if choices else metavar,
        choices=choices,
        kind=_KINDS.get(metavar, ""),
        repeatable=action.nargs == "*" or isinstance(action, argparse._AppendAction),
        help=" ".join(((action.help or "") % {**vars(action), "prog": ""}).split()),
    )
