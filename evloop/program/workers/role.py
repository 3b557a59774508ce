"""What a process is of a service of several: told by who has started it, in the environment.

A service starts its program again for each worker. The program runs as ever, until it is about to serve; there it finds
out here that it is a *worker*, whose sockets and orders come from a supervisor. Or it is a *successor*: a newer version
of the whole service, started by the older one, from which it takes over.

The variable is taken out of the environment at once, and means nothing to a process without the control channel that it
names: so whatever a worker starts itself is no worker.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import MutableMapping

ROLE_VARIABLE = "EVLOOP_ROLE"

WORKER = "worker"
SUCCESSOR = "successor"

_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid


class Role:
    """What this process is, and the descriptors that go with it, which it owns.

    Attributes:
        kind: `WORKER` or `SUCCESSOR`.
        control: the control channel to who has started it.
        life: the life line of a worker (see `evloop.program.workers.lifeline`), which is never read, and never closed;
            None for none.
        name: what a worker is called in the log; empty for a successor.
        inherited: the sockets that the service was started with, by descriptor, and what each is called. The process
            itself does not have these descriptors: it gets the sockets through the channel.
    """

    __slots__ = ("control", "inherited", "kind", "life", "name")

    def __init__(
        self, kind: str, control: int, life: int | None = None, name: str = "", inherited: dict[int, str] | None = None
    ) -> None:
        self.kind = kind
        self.control = control
        self.life = life
        self.name = name
        self.inherited = {} if inherited is None else inherited

    def as_text(self, parent: int) -> str:
        """As the variable's value, from process ``parent``."""
        return json.dumps(
            {
                "role": self.kind,
                "parent": parent,
                "control": self.control,
                "life": self.life,
                "name": self.name,
                "inherited": list(self.inherited.items()),
            }
        )


def take_role(environ: MutableMapping[str, str] = os.environ) -> Role | None:
    """What this process is; None for an ordinary program. Removes the variable.

    The sockets that the service was started with are announced again as systemd does it, so that the program finds the
    same places to listen; see `Role.inherited`.
    """
    text = environ.pop(ROLE_VARIABLE, None)
    if text is None:
        return None
    try:
        told = json.loads(text)
        role = Role(
            str(told["role"]),
            int(told["control"]),
            None if told["life"] is None else int(told["life"]),
            str(told["name"]),
            {int(number): str(name) for number, name in told["inherited"]},
        )
        parent = int(told["parent"])
    except (ValueError, KeyError, TypeError):
        return None  # somebody else's variable
    if not _comes_from(role.control, parent):
        return None
    for descriptor in (role.control, role.life):
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
    if role.inherited:
        environ["LISTEN_PID"] = str(os.getpid())
        environ["LISTEN_FDS"] = str(len(role.inherited))
        environ["LISTEN_FDNAMES"] = ":".join(role.inherited.values())
    return role


def _comes_from(control: int, parent: int) -> bool:
    """Whether this is a Unix socket that process ``parent`` has made, as far as the system tells."""
    try:
        sock = socket.socket(fileno=control)
    except (OSError, OverflowError, ValueError):
        return False
    try:
        if sock.family != socket.AF_UNIX:
            return False
        if not hasattr(socket, "SO_PEERCRED"):
            return True
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return bool(_CREDENTIALS.unpack(raw)[0] == parent)
    except OSError:
        return False
    finally:
        sock.detach()
