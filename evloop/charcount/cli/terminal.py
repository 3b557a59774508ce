"""Lines that someone types: prompt, line editing, history, in any locale.

Theory of operation
-------------------
With stdin and stdout a terminal, Python's `input` edits lines with GNU readline, which follows the locale. In that of
C, and in one that isn't installed, it takes bytes above 127 for Meta keys, and text in UTF-8 is full of them: some
delete, some move the cursor, and one of those in 日 completes a word by the names of all files in the directory. So in
such a locale readline is given one of UTF-8, as Python gives it to itself where it may; if there is none, it is told
that those bytes are text. And nothing that is typed is completed, in no locale: a message has nothing to do with files.

With stdout elsewhere, the terminal's own line discipline edits, and it has room for one line of bounded length.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

from evloop.charcount.cli.streams import read_lines, write_stderr
from evloop.charcount.pump import InputError

_PROMPT = "> "
# Linux' N_TTY has room for 4,096 bytes of a line, its LF included. The kernel tells nobody what it dropped.
_LONGEST_LINE_BYTES = 4095
# As PEP 538 has them.
_UTF8_LOCALES = ("C.UTF-8", "C.utf8", "UTF-8")
_READLINE_SETTINGS = (
    "set output-meta on",
    "set convert-meta off",
    "set disable-completion on",
    # Else these put the name of the home directory for ~.
    r'"\e&": ""',
    r'"\e~": ""',
)


def typed_lines(complain: Callable[[str], None]) -> Iterator[str]:
    """What is typed, until Ctrl-D. Several lines that are pasted together are several lines.

    Args:
        complain: called with what to tell the user, on stderr.

    Raises:
        InputError: the terminal is gone.
    """
    # input() prompts on stdout, unless that is the terminal, too, and then has line editing.
    editing = sys.stdout is not None and sys.stdout.isatty() and _load_readline()
    asks = sys.stderr is not None and sys.stderr.isatty()
    descriptor_lines = read_lines(sys.stdin.fileno())
    while True:
        try:
            if editing:
                yield from input(_PROMPT).split("\n")
                continue
            if asks:
                write_stderr(_PROMPT)
            line = next(descriptor_lines, None)
            if line is None:
                raise EOFError
            if len(line) >= _LONGEST_LINE_BYTES:
                complain(
                    f"the terminal passes on {_LONGEST_LINE_BYTES} bytes of a line at most: "
                    "what was typed beyond that was not sent; use a pipe or a file"
                )
            yield line.decode(sys.stdin.encoding, sys.stdin.errors or "strict")
        except EOFError:
            if asks:
                write_stderr("\n")  # the shell's prompt starts on a line of its own
            return
        except UnicodeDecodeError:
            complain("that was not valid text in this terminal's encoding")
        except OSError as error:
            raise InputError(error) from None


def _load_readline() -> bool:
    """Give `input` its line editing, without what would change the text. False if this Python has none."""
    _leave_the_c_locale()
    try:
        import readline
    except ImportError:
        return False
    for setting in _READLINE_SETTINGS:
        readline.parse_and_bind(setting)
    # The commands that list or insert completions look for names of files if there is nobody else to ask.
    readline.set_completer(lambda text, state: None)
    return True


def _leave_the_c_locale() -> None:
    """Readline asks the environment for the locale, each time."""
    import locale

    if locale.setlocale(locale.LC_CTYPE) in ("C", "POSIX"):
        for name in _UTF8_LOCALES:
            try:
                locale.setlocale(locale.LC_CTYPE, name)
            except locale.Error:
                continue
            os.environ["LC_ALL"] = name
            return
