"""The states of a connection.

States::

    OPEN ──close()──► FLUSHING ──all sent, FIN sent──► LINGERING ──peer's EOF, or limits──► CLOSED
     │                    ▲
     └─peer's EOF─► HALF_OPEN ──close()──► FLUSHING ──all sent──────────────────────────► CLOSED

Every state goes to CLOSED at once by `abort`, by an error of the socket, or by an exception in a callback;
`_teardown` is the only way there, and runs once.

LINGERING is there so that our last words reach the peer: see `evloop.net.linger`.
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
