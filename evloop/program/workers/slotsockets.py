"""The listening sockets of a service of several processes: opened once, held by the supervisor.

Theory of operation
-------------------
On Linux each worker's slot has a socket of its own on each TCP address, and the kernel deals new connections out among
those of one address (SO_REUSEPORT). They belong to the slot and not to the worker: what waits in the queue of one that
has died waits for the next. The first socket of an address is opened as ever, without that option, so that a port that
another program has is refused, also if that one would share it; the option is set when it is ours.

A Unix socket, one that the service was started with, and a TCP socket elsewhere, exist once. From these the supervisor
accepts, and passes connections on: `Place.passed`. A shared socket, from which all workers accept, would deal them out
unfairly, and wake workers for nothing.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Sequence

from evloop.net.endpoint import Endpoint, TcpEndpoint
from evloop.net.sockets import peer_text
from evloop.server.opening import open_endpoint
from evloop.server.tcpsockets import ListeningSocket
from evloop.server.unixsockets import UnixAccess, UnixListeningSocket

# Elsewhere the option exists as well, and the last socket gets all connections.
_KERNEL_DEALS_OUT = sys.platform == "linux" and hasattr(socket, "SO_REUSEPORT")


class Place:
    """One address that the service listens on.

    Args:
        endpoint: what was asked for; a name may be several addresses, so several places have it.
        sock: the first socket, which listens. Owned.
        backlog: for further sockets.
        note: said behind the address when it is shown.
        tls: whether TLS is spoken there.

    Attributes:
        passed: the supervisor accepts and passes connections on; there is one socket.
        sockets: one for each slot, or the only one. Never shut down: closing is enough, and leaves others theirs.
    """

    def __init__(
        self, endpoint: Endpoint, sock: socket.socket, backlog: int, *, note: str = "", tls: bool = False
    ) -> None:
        self.endpoint = endpoint
        self.note = note
        self.tls = tls or endpoint.tls
        self.passed = not (_KERNEL_DEALS_OUT and isinstance(endpoint, TcpEndpoint))
        self.sockets = [sock]
        self._backlog = backlog
        if not self.passed:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    def add_slot(self, sock: socket.socket) -> None:
        """Have one more socket, which listens at the same address already. Owned."""
        if not self.passed:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.sockets.append(sock)

    def take_path(self, own: bool) -> None:
        """Whether the path of a Unix socket is removed in the end: not if it is another service's now."""
        for sock in self.sockets:
            if isinstance(sock, UnixListeningSocket):
                sock.own_path() if own else sock.leave_path()

    def __str__(self) -> str:
        return ("tls:" if self.tls else "") + peer_text(self.sockets[0].getsockname()) + self.note

    def socket_of(self, slot: int) -> socket.socket:
        """The socket of a slot, counted from 0."""
        return self.sockets[0 if self.passed else slot]

    def make_room(self, slots: int) -> None:
        """Have a socket for each of so many slots.

        Raises:
            OSError: there can't be more.
        """
        while not self.passed and len(self.sockets) < slots:
            first = self.sockets[0]
            sock = ListeningSocket(first.family)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if first.family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(first.getsockname())
                sock.listen(self._backlog)
                sock.setblocking(False)
            except BaseException:
                sock.close()
                raise
            self.sockets.append(sock)

    def close_slots(self, slots: int) -> None:
        """Keep the sockets of so many slots."""
        while not self.passed and len(self.sockets) > slots:
            self.sockets.pop().close()

    def close(self) -> None:
        """Close them all. The path of a Unix socket is removed."""
        for sock in self.sockets:
            sock.close()


def open_places(
    endpoint: Endpoint,
    slots: int,
    backlog: int,
    access: UnixAccess | None,
    given: Iterable[socket.socket] = (),
    *,
    note: str = "",
    tls: bool = False,
) -> list[Place]:
    """Every address of an endpoint, with sockets for so many slots.

    Args:
        given: sockets that listen there already: they are taken, and no others opened. Owned.

    Raises:
        ListenError: in one line, what happened and what to do.
        OSError: there can't be more than one socket.
    """
    places: dict[object, Place] = {}
    sockets = list(given) or open_endpoint(endpoint, backlog, access, ())
    try:
        while sockets:
            sock = sockets.pop(0)
            address = sock.getsockname()
            if address in places:
                places[address].add_slot(sock)
            else:
                places[address] = Place(endpoint, sock, backlog, note=note, tls=tls)
        for place in places.values():
            place.make_room(slots)
    except BaseException:
        close_all(places.values())
        for sock in sockets:
            sock.close()
        raise
    return list(places.values())


def close_all(places: Iterable[Place]) -> None:
    """Close their sockets."""
    for place in places:
        place.close()


def adopt_sockets(descriptors: Sequence[int]) -> list[socket.socket]:
    """Listening sockets that came from another process of the service; owned from here on."""
    found: list[socket.socket] = []
    for descriptor in descriptors:
        with socket.socket(fileno=os.dup(descriptor)) as probe:
            family = probe.family
        sock = ListeningSocket(family, descriptor)
        sock.setblocking(False)
        found.append(sock)
    return found
