"""Sockets that the process has been started with, as systemd and others pass them.

``LISTEN_FDS`` says how many there are, from descriptor 3 on, ``LISTEN_PID`` for which process they are meant, and
``LISTEN_FDNAMES`` what they are called, with colons between (see sd_listen_fds(3)). A process that was started by the
one that they were meant for sees the same variables, so without its own number in them they mean nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from evloop.errors import ListenError
from evloop.net.endpoint import Endpoint, FdEndpoint

_FIRST = 3
_MOST = 1000  # more than any process is started with; it is a wrong number
_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")


def parse_inherited(environ: Mapping[str, str], pid: int) -> dict[Endpoint, str]:
    """What process ``pid`` has been started with, by its variables: endpoints, and what each is called. No I/O.

    Raises:
        ListenError: the variables are for this process, and make no sense.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return {}
    count = environ.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdigit() and len(count) <= 4 and int(count) <= _MOST):
        raise ListenError(f"cannot use the sockets that this process was started with: LISTEN_FDS is {count!r}")
    text = environ.get("LISTEN_FDNAMES", "")
    names = text.split(":") if text else [""] * int(count)
    if len(names) != int(count):
        raise ListenError(
            f"cannot use the sockets that this process was started with: LISTEN_FDS is {count}, and LISTEN_FDNAMES has "
            f"{len(names)} names"
        )
    return {FdEndpoint(_FIRST + index): name for index, name in enumerate(names)}


def take_inherited(environ: MutableMapping[str, str] = os.environ) -> dict[Endpoint, str]:
    """As `parse_inherited`, for this process; takes the variables out, so that no child believes that they are for it.

    Raises:
        ListenError: as there.
    """
    found = parse_inherited(environ, os.getpid())
    if environ.get("LISTEN_PID") == str(os.getpid()):
        for name in _VARIABLES:
            environ.pop(name, None)
    return found
