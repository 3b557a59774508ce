"""What every stream socket needs: its options, its address as text, and what the kernel knows of the peer."""

from __future__ import annotations

import socket
import struct
import sys

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

# Other sockets, Unix sockets above all, don't have TCP's options, and refuse them.
_TCP_FAMILIES = (socket.AF_INET, socket.AF_INET6)

# The first 12 bytes of an IPv4 address that is written as an IPv6 one.
_MAPPED_IPV4 = bytes(10) + b"\xff\xff"

# For SO_LINGER: on, with no time.
_RESET_ON_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


def encoded_host(host: str) -> str | bytes:
    """A host as `socket.getaddrinfo` takes it, in bytes where they are the same in IDNA.

    For a str it loads the IDNA codec, which takes longer than to connect, and a twentieth of the start of a server.
    """
    plain = host.isascii() and all(0 < len(label) < 64 for label in host.removesuffix(".").split("."))
    return host.encode() if plain else host


def peer_text(address: Any) -> str:
    """A socket address as people write it: ``192.0.2.1:80``, ``[2001:db8::1]:80``, ``unix:/run/app.sock``.

    Args:
        address: as the socket gave it: a tuple that begins with host and port, or for a Unix socket its path, empty if
            it has none, or bytes that begin with a zero if it has an abstract name.
    """
    if isinstance(address, tuple):
        host, port = address[0], address[1]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    if isinstance(address, bytes):
        address = "@" + address[1:].decode(errors="replace")
    path = "".join(character if character.isprintable() else "?" for character in str(address))
    return f"unix:{path}" if path else "unix:unnamed"


def origin(family: int, address: Any, ipv6_prefix_bits: int) -> object:
    """By what the connections from an address are counted: equal for all addresses that probably have the same owner.

    Each IPv4 address is counted by itself; IPv6 addresses count as one if so many of their first bits are equal. None
    if an address tells nothing, as on a Unix socket.
    """
    if family == socket.AF_INET:
        host: str = address[0]
        return host
    if family != socket.AF_INET6:
        return None
    packed = socket.inet_pton(socket.AF_INET6, address[0].partition("%")[0])
    if packed.startswith(_MAPPED_IPV4):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return int.from_bytes(packed, "big") >> (128 - ipv6_prefix_bits)


def set_stream_options(sock: socket.socket, kernel_unsent_bytes: int | None = None) -> None:
    """The options of each stream: replies leave at once, a peer that vanished is noticed some day, and the kernel does
    not take much more than it can send.

    Args:
        sock: connected, or listening, where the system lets accepted sockets inherit options. Of a family without TCP
            it is left as it is.
        kernel_unsent_bytes: as in `Limits`. Not set where the system has no such option.
    """
    if sock.family not in _TCP_FAMILIES:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if kernel_unsent_bytes is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, kernel_unsent_bytes)


def unacknowledged_bytes(sock: socket.socket) -> int | None:
    """How much of what the kernel took has not been acknowledged by the peer's kernel; 0 when all has.

    None where it can't be told: that is asked on Linux only (for a Unix socket it is memory, not bytes: it still
    changes when the peer reads). A peer acknowledges what goes into its own buffer. When that is full it makes room in
    steps, on Linux of a sixteenth of the buffer, which has 6 MiB at most: so a slow reader is seen to move now and
    then only.
    """
    if sys.platform != "linux":
        return None
    from fcntl import ioctl  # here, as only few connections are ever asked
    from termios import TIOCOUTQ  # which is SIOCOUTQ, by another name

    try:
        return int.from_bytes(ioctl(sock.fileno(), TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return None


def reset_when_closed(sock: socket.socket) -> None:
    """Have the peer see a reset instead of an orderly end, if the socket still can be told so."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    except OSError:
        pass
