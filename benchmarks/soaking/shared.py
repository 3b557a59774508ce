"""What all who come to the server during a soak share: where it is, what they count, and how they connect and end.

They use plain blocking sockets and nothing of the library, so that they can't share its mistakes.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

TIMEOUT_S = 20.0


@dataclass
class Soak:
    """What the roles share.

    Attributes:
        address: where the server listens.
        tls_address: where it listens for TLS.
        few_descriptors: while its context is entered, the server has hardly a descriptor to spare.
        counts: how often what happened, by name.
        problems: what must not happen, in words.
    """

    address: tuple[str, int]
    tls_address: tuple[str, int] = ("127.0.0.1", 0)
    few_descriptors: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    over: threading.Event = field(default_factory=threading.Event)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, number: int = 1) -> None:
        """Count something."""
        with self._lock:
            self.counts[what] += number

    def problem(self, text: str) -> None:
        """Note something that must not happen."""
        with self._lock:
            self.problems.append(text)

    def connect(
        self, *, receive_buffer: int | None = None, source: str | None = None, for_tls: bool = False
    ) -> socket.socket:
        """A new client socket, from the address ``source`` if that is given, to the port for TLS if that is wanted."""
        sock = socket.socket()
        sock.settimeout(TIMEOUT_S)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            if source is not None:
                sock.bind((source, 0))
            sock.connect(self.tls_address if for_tls else self.address)
        except BaseException:
            sock.close()
            raise
        return sock


def reset(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def end(sock: socket.socket) -> None:
    """Half-close."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:  # ENOTCONN: it is reset already
        raise ConnectionResetError from None


def read_all(sock: socket.socket) -> bytes:
    """Up to the end of the stream."""
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)
