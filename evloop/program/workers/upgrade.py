"""The upgrade of a service of one process: the program that is on disk now takes over, with all connections.

Theory of operation
-------------------
As in a service of several processes (`evloop.program.workers.succession`), but the process that has the sockets is the
one that serves. It starts the program again, and gives it the listening sockets; serves on until the new one says that
it serves, too; then hands its connections over, drains those that can't move, and ends. If the new one does not get so
far, nothing has happened.

The new process is an ordinary one. It only has its sockets from elsewhere, and adopts connections for a while.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Container, Mapping, Sequence

from evloop.core.loop import Loop
from evloop.log import ERROR, NOTICE, Logger
from evloop.net.endpoint import Endpoint, FdEndpoint
from evloop.program.workers.messages import Message
from evloop.program.workers.role import Role
from evloop.program.workers.spawn import CannotStartAgainError, Children, command_of_this_program
from evloop.program.workers.succession import Predecessor, Successor
from evloop.server.handover import HandOver, adopt, fingerprint
from evloop.server.opening import open_endpoint
from evloop.server.server import Server
from evloop.server.unixsockets import UnixListeningSocket

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.server.unixsockets import UnixAccess

_log = Logger("evloop.server")

# How often it is looked whether the new process has got all that it was sent.
_LOOK_AGAIN_S = 0.005


class Upgrade:
    """One upgrade, in the old process.

    Args:
        servers: what it is made of.
        folder: where the new one is started.
        on_ready: called with the new one's pid when that serves.
        on_over: called when this process need only drain, and end; by its own word, if the new one has failed.
        environment: variables for the new one, beside those of this process.

    Attributes:
        making_way: the new one serves, and has not got all yet: ``on_over`` is still to be called.
    """

    def __init__(
        self,
        loop: Loop,
        servers: Sequence[Server],
        folder: str,
        on_ready: Callable[[int], object],
        on_over: Callable[[bool], object],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.making_way = False
        self._loop = loop
        self._servers = servers
        self._on_ready = on_ready
        self._on_over = on_over
        self._folder = folder
        self._environment = environment
        self._successor: Successor | None = None

    def begin(self) -> None:
        """Start the new one."""
        _log.log(NOTICE, "upgrading: starting the new service")
        places = [
            _OwnPlace(one.endpoint, one.socket)
            for server in self._servers
            for one in server.listeners
            if one.endpoint is not None  # others it can't ask for
        ]
        inherited = {one.endpoint.number: "" for one in places if isinstance(one.endpoint, FdEndpoint)}
        timeouts = [server.limits.worker_boot_timeout_s for server in self._servers]
        timeout_s = max((one for one in timeouts if one is not None), default=None)
        try:
            children = Children(self._loop, command_of_this_program(), self._folder)
            self._successor = Successor(
                self._loop,
                children,
                places,
                inherited,
                timeout_s,
                self._succeeded,
                self._failed,
                self._environment,
            )
        except CannotStartAgainError as error:
            self._failed(str(error))
        except OSError as error:
            self._failed(f"it cannot be started: {error.strerror or error}")

    def cancel(self) -> None:
        """This process is to stop: it need not be followed any more."""
        if self._successor is not None:
            self._successor.cancel()

    def _failed(self, why: str) -> None:
        _log.log(ERROR, "not upgraded: %s; this one goes on", why)
        self._on_over(False)

    def _succeeded(self) -> None:
        successor = self._successor
        assert successor is not None
        self.making_way = True
        _log.log(NOTICE, "upgraded: the new service has pid %d; this one makes way", successor.pid)
        self._on_ready(successor.pid)
        for server in self._servers:
            for listener in server.listeners:
                if isinstance(listener.socket, UnixListeningSocket):
                    listener.socket.leave_path()
            server.stop_accepting()
        if fingerprint(self._servers) != successor.speaks:
            self._over()
            return
        timeout_s = max(server.limits.handover_timeout_s for server in self._servers)
        HandOver(self._loop, self._servers, successor.hand_over, self._over, timeout_s, successor.is_full)

    def _over(self) -> None:
        assert self._successor is not None
        if self._successor.is_full():
            self._loop.call_later(_LOOK_AGAIN_S, self._over)
        else:
            self._successor.let_go()
            self.making_way = False
            self._on_over(True)


class _OwnPlace:
    """Where this process listens, as the other one is told."""

    passed = False

    def __init__(self, endpoint: Endpoint, sock: socket.socket) -> None:
        self.endpoint = endpoint
        self.sockets = [sock]


class Heritage:
    """What a process is given by the one that it follows, if both are services of one process.

    Args:
        role: what this process was told to be. Its descriptors are owned from here on.

    Raises:
        ListenError: the other one is gone.
    """

    def __init__(self, loop: Loop, role: Role) -> None:
        self._loop = loop
        self._predecessor = Predecessor(role)
        self._servers: tuple[Server, ...] = ()

    def equip(self, server: Server) -> None:
        """Have a server listen on the sockets of the other one, where that listens; before its `Server.listen` is
        called."""
        server.open_endpoint = self._open_endpoint

    def _open_endpoint(
        self, endpoint: Endpoint, backlog: int, access: UnixAccess | None, in_use: Container[int]
    ) -> list[socket.socket]:
        return self._predecessor.sockets_of(endpoint) or open_endpoint(endpoint, backlog, access, in_use)

    def take_over(self, *servers: Server) -> None:
        """The servers listen: from its first pass on, this process can have the connections."""
        self._servers = servers
        self._predecessor.listen_to(self._loop, self._heard)
        self._loop.call_soon(self._is_ready)

    def _is_ready(self) -> None:
        for server in self._servers:
            for listener in server.listeners:
                if isinstance(listener.socket, UnixListeningSocket):
                    listener.socket.own_path()
        self._predecessor.say_ready(fingerprint(self._servers))

    def _heard(self, message: Message) -> None:
        if message.kind == "moved" and message.descriptors:
            adopt(self._servers, socket.socket(fileno=message.descriptors.pop()), message.payload)
        for descriptor in message.descriptors:
            os.close(descriptor)

    def close(self) -> None:
        """The loop has ended."""
        self._predecessor.close()
