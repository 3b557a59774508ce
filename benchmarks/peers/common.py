"""What the peers in Python share: the port argument, the listening socket, the session."""

from __future__ import annotations

import gc
import socket
import ssl
import sys

from evloop.charcount.session import LineSession, Replies
from evloop_bench.common.descriptors import raise_descriptor_limit

BACKLOG = 4096
RECV_BYTES = 65536
_DESCRIPTORS = 20_000

_replies = Replies()


def new_session() -> LineSession:
    """The counting object of one connection; the project's own, so that a comparison compares loops."""
    return LineSession(_replies)


def reply_to(line: bytes) -> bytes:
    """The reply to one line, as a program that reads line by line would make it. The last line may lack its LF."""
    if line.endswith(b"\n"):
        line = line[:-1].removesuffix(b"\r")
    try:
        return b"%d\n" % len(line.decode())
    except UnicodeDecodeError as error:
        return b"ERR invalid-utf8 at byte %d\n" % error.start


def prepare() -> None:
    """To be called first by a peer that makes its listening socket by itself."""
    raise_descriptor_limit(_DESCRIPTORS)


def listening_socket() -> socket.socket:
    """Listen on the port that the first argument names (0 picks one)."""
    prepare()
    return socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=BACKLOG)


def tls_context() -> ssl.SSLContext | None:
    """TLS with the certificate and key in the file that the second argument names; None without one."""
    if len(sys.argv) < 3:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2])
    return context


def announce(sock: socket.socket) -> None:
    """Say where it listens; to be called when all is ready.

    So what exists now lives as long as the process, and is taken out of the collector's sight, as our server does it.
    """
    if hasattr(gc, "freeze"):  # PyPy's collector has no such thing
        gc.freeze()
    print(f"listening on 127.0.0.1:{sock.getsockname()[1]}", flush=True)
