"""The worker: what a server does differently when a supervisor has started it.

It is the server of one process, and knows nothing of others. But its listening sockets come from the supervisor,
through the control channel, and so do orders that would otherwise be signals: a terminal sends its signals to all
processes at once, and the supervisor knows better which of them is to do what. It says when it serves, sends its beats,
and takes connections that others have accepted. If the supervisor is gone, it stops in order.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Container
from functools import partial

from evloop.core.loop import Loop
from evloop.errors import ListenError
from evloop.log import INFO, NOTICE, WARNING, Logger, load
from evloop.net.endpoint import Endpoint
from evloop.program.statustext import status_text
from evloop.program.workers.channel import Channel, MessageReader
from evloop.program.workers.health import BEAT_S
from evloop.program.workers.lifeline import end_after
from evloop.program.workers.messages import Message
from evloop.program.workers.passing import Passed
from evloop.program.workers.role import Role
from evloop.program.workers.slotsockets import adopt_sockets
from evloop.server.handover import HandOver, adopt, fingerprint
from evloop.server.listener import Listener
from evloop.server.server import Server
from evloop.server.sharedcounts import CountsMemory, SharedCounts

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from types import FrameType

    from evloop.server.unixsockets import UnixAccess

_log = Logger("evloop.worker")

# Those that a terminal sends to every process of a program, and those that are orders to the supervisor.
_SUPERVISORS_SIGNALS = ("SIGINT", "SIGHUP", "SIGUSR2", "SIGTTIN", "SIGTTOU")

# When it ends, it looks so often whether the supervisor has got all that it was sent.
_LOOK_AGAIN_S = 0.005

# A worker that gets SIGTERM waits so long for its supervisor, which may have got it, too.
_WAIT_FOR_ORDERS_S = 0.2

# After the time to drain, handlers may have 3 s to be cancelled; then an end is overdue.
_GRACE_AFTER_DRAIN_S = 5.0


class _GivenPlace:
    """A listening socket from the supervisor."""

    def __init__(self, endpoint: str, passed: bool, sock: socket.socket) -> None:
        self.endpoint = endpoint
        self.passed = passed
        self.sock: socket.socket | None = sock  # until a listener has it
        self.listener: Listener | None = None


class Worker:
    """What makes a worker of the servers of this process.

    Args:
        role: what the process was told to be. Its descriptors are owned from here on.

    Attributes:
        name: as the supervisor calls it: ``worker 2``.
        counts: what the service counts together, for the server whose limits are the service's.
    """

    def __init__(self, loop: Loop, role: Role) -> None:
        self.name = role.name
        self._loop = loop
        self._servers: tuple[Server, ...] = ()
        self._running: set[Server] = set()
        self._stopping = False
        self._was_terminated = False
        control = socket.socket(fileno=role.control)
        control.setblocking(True)
        reader = MessageReader(control)
        try:
            told = reader.read()
        except OSError:
            told = None
        if told is None or told.kind != "serve":
            control.close()
            raise ListenError("the supervisor is gone")
        places = told.fields["places"]
        row = told.fields.get("row")
        # One for each place, the counts if they are shared, and its end of what connections are passed through.
        if len(told.descriptors) < len(places) + (row is not None) + 1:
            control.close()
            for descriptor in told.descriptors:
                os.close(descriptor)
            raise ListenError("no descriptors are left to get the listening sockets; raise the limit (ulimit -n)")
        sockets = adopt_sockets(told.descriptors[: len(places)])
        self._places = [
            _GivenPlace(place["endpoint"], place["passed"], sock) for place, sock in zip(places, sockets, strict=True)
        ]
        self.counts: SharedCounts | None = None
        if row is not None:
            try:
                self.counts = SharedCounts.of(CountsMemory(told.descriptors[len(places)]), row)
            except OSError as error:
                _log.log(WARNING, "the limits of connections hold for this worker alone: %s", error.strerror or error)
        self._passed_by = told.descriptors[-1]
        self._passed: Passed | None = None
        self._beat_s = float(told.fields.get("beat_s", BEAT_S))
        self._channel = Channel(loop, control, self._on_message, self._supervisor_gone)

    def equip(self, server: Server) -> None:
        """Have a server listen on the supervisor's sockets, before its `Server.listen` is called."""
        server.open_endpoint = self._open_endpoint

    def _open_endpoint(
        self, endpoint: Endpoint, backlog: int, access: UnixAccess | None, in_use: Container[int]
    ) -> list[socket.socket]:
        found = [place.sock for place in self._places if place.endpoint == str(endpoint) and place.sock is not None]
        if not found:
            raise ListenError(
                f"cannot listen on {endpoint}: the service was started to listen elsewhere; restart it to change that"
            )
        return found

    # ------------------------------------------------------------------ life

    def prepare(self, *servers: Server) -> None:
        """As `evloop.program.serve.prepare`, for a worker. To be called when the servers listen.

        Raises:
            ListenError: the service listens somewhere that these servers do not.
        """
        self._servers = servers
        self._running = set(servers)
        by_descriptor = {listener.socket.fileno(): listener for server in servers for listener in server.listeners}
        for place in self._places:
            assert place.sock is not None
            listener = by_descriptor.get(place.sock.fileno())
            if listener is None:
                raise ListenError(f"the service listens on {place.endpoint}, too; restart it to change that")
            place.listener, place.sock = listener, None
            if place.passed:
                listener.leave_to_others()
        self._passed = Passed(self._loop, self._passed_by, self._take)
        for name in _SUPERVISORS_SIGNALS:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        load()  # a worker is not waited for, and need not load that between its first answers
        self._loop.add_signal_handler(signal.SIGTERM, self._terminated)
        if hasattr(signal, "SIGUSR1"):
            self._loop.add_signal_handler(signal.SIGUSR1, self._report)
        signal.signal(signal.SIGABRT, self._give_up)
        drain_s = max((server.limits.drain_timeout_s for server in servers), default=0.0)
        end_after(drain_s + _GRACE_AFTER_DRAIN_S)
        self._loop.call_soon(self._is_ready)

    def _is_ready(self) -> None:
        self._channel.send("ready", speaks=fingerprint(self._servers))
        self._beat()

    def _beat(self) -> None:
        if self._servers:
            self._channel.send("beat", connections=sum(len(server.connections) for server in self._servers))
            self._loop.call_later(self._beat_s, self._beat)

    def _on_message(self, message: Message) -> None:
        handle = {
            "moved": self._adopt,
            "stop": lambda message: self._stop("stopping"),
            "retire": self._retire,
            "abort": lambda message: self._abort(),
            "status": self._tell_status,
        }.get(message.kind)
        if handle is not None:
            handle(message)
            return
        for descriptor in message.descriptors:
            os.close(descriptor)

    def _take(self, place: int, sock: socket.socket) -> None:
        listener = self._places[place].listener
        assert listener is not None
        listener.take(sock)

    def _adopt(self, message: Message) -> None:
        """A connection of another worker, or of the service that this one follows."""
        if message.descriptors:
            descriptor, *more = message.descriptors
            assert not more
            adopt(self._servers, socket.socket(fileno=descriptor), message.payload)

    def _tell_status(self, message: Message) -> None:
        self._channel.send("status", id=message.fields["id"], servers=[server.status() for server in self._servers])

    def _report(self) -> None:
        for server in self._servers:
            _log.log(NOTICE, "status:\n%s", status_text(server.status()))

    # ------------------------------------------------------------------ its end

    def _retire(self, message: Message) -> None:
        """Another one serves in its place: what waits in the queues of the sockets is for that one."""
        self._take_last()
        for server in self._servers:
            server.stop_accepting()
        if message.fields["how"] == "handover":
            timeout_s = float(message.fields["timeout_s"])
            HandOver(
                self._loop,
                self._servers,
                self._hand_over,
                lambda: self._stop("making way"),
                timeout_s,
                self._is_channel_full,
                self._say_retired,  # the next worker need not wait for the few that can't move yet
            )
        else:
            self._say_retired()
            self._stop("making way")

    def _take_last(self) -> None:
        if self._passed is not None:
            self._passed.take_last()

    def _hand_over(self, state: bytes, sock: socket.socket) -> None:
        self._channel.send("moved", state, [sock.fileno()])

    def _is_channel_full(self) -> bool:
        return self._channel.unsent_bytes > 0

    def _say_retired(self) -> None:
        self._channel.send("retired")

    def _terminated(self) -> None:
        """Somebody wants this worker to end, or all processes of the service, as systemd does. Then the supervisor will
        say so, and how, in a moment; or has said so already, and the first signal is no wish to abort."""
        if self._was_terminated:
            self._abort()
            return
        self._was_terminated = True
        if not self._stopping:
            self._loop.call_later(_WAIT_FOR_ORDERS_S, self._end_alone)

    def _end_alone(self) -> None:
        """It is this worker alone that is to end: it will have an heir."""
        if self._stopping:
            return
        self._channel.send("closing")
        for server in self._servers:
            server.stop_accepting()
        self._stop("stopping")

    def _stop(self, why: str) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._take_last()
        open_connections = sum(len(server.connections) for server in self._servers)
        _log.log(INFO, "%s: %d connections to finish", why, open_connections)
        for server in self._servers:
            server.drain(partial(self._stopped, server))
        if not self._servers:
            self._loop.stop()

    def _stopped(self, server: Server) -> None:
        self._running.discard(server)
        if not self._running:
            self._end()

    def _end(self) -> None:
        if self._channel.unsent_bytes:  # connections that were handed over may be among it
            self._loop.call_later(_LOOK_AGAIN_S, self._end)
        else:
            self._loop.stop()

    def _abort(self) -> None:
        self._stopping = True
        for server in self._servers:
            server.abort()
        self._loop.call_soon(self._loop.stop)  # in the next pass, when handlers have seen that they are cancelled

    def _supervisor_gone(self) -> None:
        _log.log(WARNING, "the supervisor is gone: stopping")
        self._stop("stopping")

    def _give_up(self, _signum: int, frame: FrameType | None) -> None:
        """SIGABRT: the supervisor has not heard of this worker for too long. Say where it hangs, and end."""
        from evloop.core.watchdog import describe

        found = None if frame is None else describe(frame)
        where = "nobody knows what" if found is None else f"{found[0]} ({found[1]})"
        _log.log(WARNING, "stuck in %s; ended by SIGABRT", where)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGABRT)

    def close(self) -> None:
        """The loop has ended."""
        if self._passed is not None:
            self._passed.close()
        self._channel.close()
