"""An upgrade: a new service, from the program that is on disk now, takes over from this one.

Theory of operation
-------------------
The old one starts the program again and gives it all its listening sockets. The new one opens nothing that it was
given, starts its own workers, and says when they serve: until then nothing has happened, and if it ends, nothing will.
From then on both have the sockets; the old one closes its own copies, and its workers pass the connections on, or
drain. When the last of them is gone, so is the old one.

What both say to each other are the messages between a supervisor and a worker, so each end may also be a service of one
process (`evloop.program.workers.worker`).
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from evloop.core.loop import Loop
from evloop.errors import ListenError
from evloop.net.endpoint import Endpoint, UnixEndpoint
from evloop.program.workers.channel import Channel, MessageReader, channel_pair
from evloop.program.workers.messages import MAX_DESCRIPTORS, Message
from evloop.program.workers.role import SUCCESSOR, Role
from evloop.program.workers.slotsockets import adopt_sockets
from evloop.program.workers.spawn import Children, status_text
from evloop.server.unixsockets import UnixListeningSocket

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Protocol

    from evloop.program.workers.workerprocess import Heir

    class Held(Protocol):
        """Where a service listens, and with what: an `evloop.program.workers.slotsockets.Place`, say."""

        @property
        def endpoint(self) -> Endpoint: ...
        @property
        def passed(self) -> bool: ...
        @property
        def sockets(self) -> Sequence[socket.socket]: ...


class Successor:
    """The new service, as the old one sees it.

    Args:
        places: where this one listens.
        inherited: as in `Role`.
        timeout_s: how long it may take until it serves; None for any time.
        on_ready: called once, when it serves.
        on_failed: called once, if it does not get so far, with the reason.
        environment: variables for it, beside those of this process.

    Attributes:
        pid: its process.
        speaks: what its clients see of it, once it serves; as `WorkerProcess.speaks`.
        gone: it has ended.

    Raises:
        OSError: it can't be started.
    """

    def __init__(
        self,
        loop: Loop,
        children: Children,
        places: Sequence[Held],
        inherited: dict[int, str],
        timeout_s: float | None,
        on_ready: Callable[[], object],
        on_failed: Callable[[str], object],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.speaks = ""
        self.gone = False
        self._ready = self._cancelled = False
        self._on_ready = on_ready
        self._on_failed = on_failed
        # More than the kernel passes at once are opened again there.
        given = [(place, sock) for place in places for sock in place.sockets][:MAX_DESCRIPTORS]
        ours, theirs = channel_pair()
        with theirs, ExitStack() as undo:
            undo.callback(ours.close)
            self._channel = Channel(loop, ours, self._heard, lambda: None)
            undo.callback(self._channel.close)
            # It waits there, and what could fail has not when the process starts.
            self._channel.send(
                "serve",
                descriptors=[sock.fileno() for _, sock in given],
                places=[{"endpoint": str(place.endpoint), "passed": place.passed} for place, _ in given],
            )
            role = Role(SUCCESSOR, theirs.fileno(), inherited=inherited)
            self._child = children.start(role, [theirs.fileno()], self._ended, environment)
            undo.pop_all()
        self.pid = self._child.pid
        self._timer = loop.call_later(timeout_s, self._too_late) if timeout_s is not None else None

    def forward(self, message: Message) -> None:
        """Give it what a worker has said, with its descriptors, which are closed here."""
        self._channel.forward(message)

    def hand_over(self, state: bytes, sock: socket.socket) -> None:
        """Give it a connection of this process, which keeps its own descriptor."""
        self._channel.send("moved", state, [sock.fileno()])

    def is_full(self) -> bool:
        """Whether there is something that it was sent and has not taken yet."""
        return self._channel.unsent_bytes > 0

    @property
    def behind(self) -> bool:
        """As `Channel.behind`."""
        return self._channel.behind

    def let_go(self) -> None:
        """It has all that it is to have, and this process is about to end."""
        self._channel.close()
        self._child.let_go()

    def cancel(self) -> None:
        """It is not needed any more, unless it serves already. What becomes of it is not told."""
        if not self._ready:
            self._cancelled = True
            self._child.signal(signal.SIGKILL)

    def _heard(self, message: Message) -> None:
        for descriptor in message.descriptors:
            os.close(descriptor)
        if message.kind == "ready" and not self._ready and not self._cancelled:
            self._ready = True
            self.speaks = message.fields.get("speaks", "")
            if self._timer is not None:
                self._timer.cancel()
            self._on_ready()

    def _too_late(self) -> None:
        self._child.signal(signal.SIGKILL)

    def _ended(self, status: int) -> None:
        self._channel.receive_all()
        self._channel.close()
        self.gone = True
        if not self._ready:
            if self._timer is not None:
                self._timer.cancel()
            if self._cancelled:
                return
            self._on_failed(f"the new one (pid {self.pid}) {status_text(status)} before it served")


class Predecessor:
    """The old service, as the new one sees it.

    Args:
        role: what this process was told to be. Its descriptors are owned from here on.

    Attributes:
        channel: to it. For `listen_to`.
    """

    def __init__(self, role: Role) -> None:
        self._socket = socket.socket(fileno=role.control)
        self._socket.setblocking(True)
        try:
            told = MessageReader(self._socket).read()
        except OSError:
            told = None
        if told is None or told.kind != "serve":
            raise ListenError("the service that is to be taken over from is gone")
        self._channel: Channel | None = None
        self._given: list[tuple[str, socket.socket]] = []
        names = [place["endpoint"] for place in told.fields["places"]]
        self._given = list(zip(names, adopt_sockets(told.descriptors), strict=False))

    def sockets_of(self, endpoint: Endpoint) -> list[socket.socket]:
        """Those that it has given for an endpoint; owned by the caller from here on. Empty if it does not listen there.

        The path of a Unix socket is still its own, until `UnixListeningSocket.own_path`.
        """
        found = [sock for name, sock in self._given if name == str(endpoint)]
        self._given = [(name, sock) for name, sock in self._given if name != str(endpoint)]
        if isinstance(endpoint, UnixEndpoint) and not endpoint.path.startswith("@"):
            return [UnixListeningSocket(endpoint.path, sock.detach()) for sock in found]
        return found

    def listen_to(self, loop: Loop, on_message: Callable[[Message], object]) -> None:
        """Handle what it passes on: connections."""
        for _, sock in self._given:  # where this one does not listen any more
            sock.close()
        self._channel = Channel(loop, self._socket, on_message, self.close)

    def rest_while_behind(self, heir: Heir) -> None:
        """Hear no more of it until the heir has taken what it has passed on so far."""
        if self._channel is not None:
            self._channel.rest_while(lambda: heir.behind)

    def say_ready(self, speaks: str) -> None:
        """It may go now."""
        if self._channel is not None:
            self._channel.send("ready", speaks=speaks)

    def close(self) -> None:
        """It is gone, or need not be listened to any more."""
        if self._channel is not None:
            self._channel.close()
