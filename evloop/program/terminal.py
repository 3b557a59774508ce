"""Where the program was started: whether from a terminal that is still there, and in which folder.

SIGHUP means two things: somebody asks a server to read its files again, or the terminal that it was started from is
gone. The signal does not say which; the terminal does. When a terminal hangs up, the kernel takes it away from all
processes of its session, and only then sends the signal: from then on ``/dev/tty`` can't be opened. A shell that ends
sends the signal first, and the terminal goes away with it a moment later.
"""

from __future__ import annotations

import os

from evloop.errors import EXHAUSTED


def has_terminal() -> bool:
    """Whether there is a controlling terminal, and it has not been hung up."""
    try:
        descriptor = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        return error.errno in EXHAUSTED  # no answer: a server out of descriptors must not end because of it
    os.close(descriptor)
    return True


def working_folder() -> str:
    """The folder in which this program works, by the name that it was entered by, if that leads there.

    For who starts the program again: a link on that way (``/srv/app/current``) may lead to another version by then, and
    that is the one to be started. To be called at the start, while it does not.
    """
    named = os.environ.get("PWD", "")
    try:
        if os.path.isabs(named) and os.path.samefile(named, "."):
            return named
    except OSError:  # there is none of that name any more
        pass
    try:
        return os.getcwd()
    except OSError:  # it is gone
        return "."
