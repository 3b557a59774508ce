"""What the peers in Python share: the port argument, the listening socket, the session."""

from __future__ import annotations

import gc
import socket
import sys

from evloop.charcount.session import LineSession, Replies
from evloop.descriptors import raise_descriptor_limit

BACKLOG = 4096
RECV_BYTES = 65536
_MAX_CONNECTIONS = 20000

_replies = Replies()


def new_session() -> LineSession:
    """The counting object of one connection; the project's own, so that a comparison compares loops."""
    return LineSession(_replies)


def listening_socket() -> socket.socket:
    """Listen on the port that the first argument names (0 picks one), with the descriptor limit raised."""
    raise_descriptor_limit(_MAX_CONNECTIONS)
    return socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=BACKLOG)


def announce(sock: socket.socket) -> None:
    """Say where it listens. Called when everything is ready; so what exists now is taken out of the collector's sight,
    as our own server does it."""
    gc.freeze()
    print(f"listening on 127.0.0.1:{sock.getsockname()[1]}", flush=True)
