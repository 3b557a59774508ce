"""The states of a connection.

States::

    OPEN ──close()──► FLUSHING ──all sent, FIN sent──► LINGERING ──peer's EOF, or limits──► CLOSED
     │ │                 ▲  │                                                                 ▲
     │ └─peer's EOF─► HALF_OPEN ──close()──► FLUSHING ──all sent───────────────────────────────┤
     │                                                                                        │
     └─write_eof()─► HALF_CLOSED ──all sent, FIN sent; peer's EOF──────────────────────────────┘

Every state goes to CLOSED at once by `abort`, by an error of the socket, or by an exception in a callback;
`_teardown` is the only way there, and runs once.

LINGERING is there so that our last words reach the peer: see `evloop.net.linger`. For the protocol the connection is
over before it: `on_close` has been called.

What goes with which state (`Connection.is_legal` holds it against the object, and tests call that after each step):

=========== ============ ================= =========== ======== ==============================================
state       peer ended   a rest is held    lingering   unsent   paused
=========== ============ ================= =========== ======== ==============================================
OPEN        no           if paused         no          any      any
HALF_CLOSED no           if paused         no          any      any but by high water: nothing is added any more
HALF_OPEN   yes          no                no          any      any: nothing comes any more anyway
FLUSHING    yes or no    no                no          any      any
LINGERING   no           no                yes         none     any
CLOSED      yes or no    no                if it was   none     any
=========== ============ ================= =========== ======== ==============================================
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where a connection is in its life; the theory is above."""

    OPEN = "open"
    HALF_OPEN = "half-open"
    HALF_CLOSED = "half-closed"
    FLUSHING = "flushing"
    LINGERING = "lingering"
    CLOSED = "closed"
