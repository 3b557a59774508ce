"""Listening sockets on TCP: every address of a host, all on one port, with errors that say what to do."""

from __future__ import annotations

import errno
import os
import socket

from evloop.errors import ListenError
from evloop.net.sockets import encoded_host, peer_text

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

# How many ports are tried when the kernel may choose, and one port has to be free on several addresses.
_PORT_TRIES = 20


def resolve(host: str, port: int) -> list[tuple[int, Any]]:
    """The address families and addresses of a name of this machine, each once; ``""`` stands for all of them.

    Raises:
        ListenError: in one line, what happened and what to do.
    """
    name = encoded_host(host) if host else None
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ListenError(f"cannot resolve host {host!r}: {reason}; give a name or address of this machine") from None
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def open_listeners(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Listening sockets on every address of ``host``, non-blocking, all on the same port.

    Args:
        host: a name, an IPv4 or IPv6 address, or ``""`` for all addresses of this machine.
        port: 0 for one that the kernel picks; the same one is then used for each address.
        backlog: how many connections may wait to be accepted.

    Raises:
        ListenError: in one line, what happened and what to do.
    """
    addresses = resolve(host, port)
    tries = _PORT_TRIES if port == 0 else 1
    while True:
        tries -= 1
        try:
            sockets = _open_all(addresses, backlog)
        except _PortTakenError as taken:
            # The kernel picks a port that is free on the first address; another may be taken on the second.
            if not tries:
                raise ListenError(_explain_taken(taken.address)) from None
        else:
            break
    if not sockets:
        raise ListenError(f"none of the addresses of {host!r} belongs to this machine; try --host 127.0.0.1")
    return sockets


class _PortTakenError(Exception):
    def __init__(self, address: tuple[Any, ...]) -> None:
        self.address = address


def _open_all(addresses: list[tuple[int, Any]], backlog: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for family, address in addresses:
            if address[1] == 0 and sockets:  # the port that the kernel picked for the first
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            try:
                sockets.append(_open_listener(family, address, backlog))
            except OSError as error:
                if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) and len(addresses) > 1:
                    continue  # a name with an IPv6 address on a machine without IPv6: the others will do
                if error.errno == errno.EADDRINUSE:
                    raise _PortTakenError(address) from None
                raise ListenError(_explain(error, address)) from None
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


class ListeningSocket(socket.socket):
    """A stream socket that knows its family and type.

    ``socket.accept`` asks for them to make the new socket, and ``socket.socket`` has to turn the kernel's numbers into
    members of enums each time: 1 us of the 29 that a short connection costs.
    """

    __slots__ = ("family", "type")
    family: socket.AddressFamily  # a property there
    type: socket.SocketKind

    def __init__(self, family: int, fileno: int | None = None) -> None:
        super().__init__(family, socket.SOCK_STREAM, 0, fileno)
        self.family = socket.AddressFamily(family)
        self.type = socket.SOCK_STREAM


def _open_listener(family: int, address: tuple[Any, ...], backlog: int) -> socket.socket:
    sock = ListeningSocket(family)
    try:
        if os.name == "posix":
            # Restart without waiting for old connections to time out. On Windows the option means something else.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Each family has a socket of its own, so that IPv4 peers are not shown as ::ffff:192.0.2.1.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _explain_taken(address: tuple[Any, ...]) -> str:
    from evloop.server.portowner import owner_of_port  # here, as what it imports would slow down every start

    owner = owner_of_port(address[1])  # looks at every process
    by, program = ("", "the program that has it") if owner is None else (f" by {owner}", "it")
    return f"cannot listen on {peer_text(address)}: the port is taken{by}; stop {program} or choose another port"


def _explain(error: OSError, address: tuple[Any, ...]) -> str:
    where = peer_text(address)
    if error.errno == errno.EACCES:
        return f"cannot listen on {where}: no permission; choose a port of 1024 or above"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on {where}: not an address of this machine; try 127.0.0.1 or 0.0.0.0"
    return f"cannot listen on {where}: {error.strerror or error}"
