"""A file of settings: lines ``NAME=value``, as ``--print-config`` shows them, and as a shell and systemd read them.

A value may be quoted as a whole, in double quotes, in which a backslash takes the meaning from what follows it, or in
single quotes. A line that begins with ``#`` is a comment.
"""

from __future__ import annotations

import os
import re

_LINE = re.compile(
    r"""([A-Za-z_][A-Za-z0-9_]*)=(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([^\s"']*))[^\S\n]*(?:\n|\Z)""", re.DOTALL
)
# Before these a backslash means nothing itself in double quotes; before others it stands for itself.
_ESCAPED = re.compile(r"""\\(["\\$`])""")


def parse_variables(text: str) -> dict[str, str]:
    """The variables in the text of a file.

    Raises:
        ValueError: a line is none; the text says which.
    """
    found = {}
    position = _skip(text, 0)
    while position < len(text):
        match = _LINE.match(text, position)
        if match is None:
            line = text.count("\n", 0, position) + 1
            raise ValueError(
                f"line {line} is not NAME=value, with quotes around a value that has blanks or quotes in it"
            )
        name, double, single, plain = match.groups()
        found[name] = _ESCAPED.sub(r"\1", double) if double is not None else plain if single is None else single
        position = _skip(text, match.end())
    return found


def _skip(text: str, position: int) -> int:
    """Past blanks, empty lines and comments."""
    while position < len(text):
        if text[position].isspace():
            position += 1
        elif text[position] == "#":
            end = text.find("\n", position)
            position = len(text) if end < 0 else end
        else:
            break
    return position


def read_variables(path: str) -> dict[str, str]:
    """Those in a file.

    Raises:
        ValueError: it can't be read, or makes no sense; in one line.
    """
    try:
        with open(path, "rb") as file:
            return parse_variables(os.fsdecode(file.read()))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
