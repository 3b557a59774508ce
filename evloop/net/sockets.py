"""What is the same for every stream socket: its options, and how an address is written."""

from __future__ import annotations

import socket
import struct
import sys

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any


# For SO_LINGER: on, with no time.
_RESET_ON_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


def peer_text(address: Any) -> str:
    """An IPv4 or IPv6 socket address as people write it: ``192.0.2.1:80``, ``[2001:db8::1]:80``."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def set_stream_options(sock: socket.socket) -> None:
    """The options each stream has: replies leave at once, and a peer that vanished is noticed some day."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def reset_when_closed(sock: socket.socket) -> None:
    """Have the peer see a reset instead of an orderly end, if the socket still can be told so."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    except OSError:
        pass
