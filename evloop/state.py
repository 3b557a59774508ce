"""The states of a connection.

States::

    OPEN ──close()──► FLUSHING ──all sent, FIN sent──► LINGERING ──peer's EOF, or limits──► CLOSED
     │                    ▲
     └─peer's EOF─► HALF_OPEN ──close()──► FLUSHING ──all sent──────────────────────────► CLOSED

Every state goes to CLOSED at once by `abort`, by an error of the socket, or by an exception in a callback;
`_teardown` is the only way there, and runs once.

LINGERING exists because closing a socket that still has unread input makes the kernel send a reset, and a reset makes
the peer's kernel throw away what it has not handed to its program yet: our last reply, typically the one that said
what was wrong. So we say FIN, and read and drop what comes until the peer says FIN as well, bounded in bytes and time.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where a connection is in its life; the theory is above."""

    OPEN = "open"
    HALF_OPEN = "half-open"
    FLUSHING = "flushing"
    LINGERING = "lingering"
    CLOSED = "closed"
