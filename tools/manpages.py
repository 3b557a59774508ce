"""Man pages, section 1, in the macros of man(7)."""

from __future__ import annotations

import textwrap

from commandline import Command, Option

from evloop import __version__


def man_page(command: Command, date: str, others: list[str]) -> str:
    """The page of a command.

    Args:
        date: of its last change, as 2030-12-31.
        others: commands whose pages are to be named.
    """
    first = command.description.partition(". ")[0].removesuffix(".")
    lines = [
        ".\\\" Made by tools/fill_share.py from the command's options: not to be edited.",
        f'.TH {_word(command.name.upper())} 1 {date} "evloop {__version__}" "User Commands"',
        ".SH NAME",
        *_text(f"{command.name} -- {first[:1].lower()}{first[1:]}", dash=True),
        ".SH SYNOPSIS",
        f".B {_word(command.name)}",
        *_text(command.usage),
    ]
    below = command.subcommand
    if below is not None:
        lines += [".br", f".B {_word(below.name)}", *_text(below.usage)]
    lines += [".SH DESCRIPTION", *_text(command.description)]
    if command.notes:
        lines += [".PP", *_text(command.notes)]
    for argument in command.arguments:
        lines += _entry(argument)
    lines.append(".SH OPTIONS")
    for title, options in command.groups:
        named = [option for option in options if option.names]
        if named and title:
            lines.append(f'.SS "{_word(title)}"')
        for option in named:
            lines += _entry(option)
    if below is not None:
        lines += [f".SH {_word(below.name.rpartition(' ')[2].upper())}", *_text(below.description)]
        lines += [".PP", *_text(below.notes)] if below.notes else []
        for option in (*below.arguments, *below.options):
            lines += _entry(option)
    lines.append(".SH EXIT STATUS")
    for status, meaning in command.statuses:
        lines += [".TP", f".B {status}", *_text(meaning)]
    lines.append(".SH EXAMPLES")
    for example, what in command.examples:
        lines += [".TP", f".B {_word(example)}", *_text(what)]
    lines.append(".SH SEE ALSO")
    lines += [f".BR {_word(other)} (1){',' if other is not others[-1] else ''}" for other in others]
    pages = command.documentation.partition("; ")[2] or command.documentation
    return "\n".join([*lines, ".PP", *_text(f"In the sources: {pages}"), ""])


def _entry(option: Option) -> list[str]:
    """A name and what it means. Bold is what is typed as it is, italic what stands for something."""
    names = ", ".join(f"\\fB{_word(name)}\\fR" for name in option.names)
    value = f"\\fI{_word(option.value)}\\fR" if option.value else ""
    return [".TP", " ".join(filter(None, [names, value])), *(_text(option.help) or [_word(option.value)])]


def _text(text: str, *, dash: bool = False) -> list[str]:
    """As it is to be read, in lines of the length that sources of man pages have."""
    lines: list[str] = []
    for line in textwrap.wrap(text, 66, break_long_words=False, break_on_hyphens=False):
        escaped = _word(line)
        # The one dash that is meant parts a command from what it is.
        lines.append(escaped.replace("\\-\\-", "\\-", 1) if dash and not lines else escaped)
    return lines


def _word(text: str) -> str:
    """No character of it is for the formatter, and no hyphen is to be a dash."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace('"', "\\(dq")
    return "\\&" + escaped if escaped.startswith((".", "\\(aq")) else escaped
