"""The connections of a process go on in another one: a reload that no client notices.

Theory of operation
-------------------
The old process has stopped accepting. It goes over its connections, and sends each that can move to the new process:
its descriptor, and what is known of it (`evloop.net.moving`). Then it closes its own descriptor, which the peer does
not notice. Nearly all connections can move at once. Of the others some never can (TLS, coroutines, protocols with state
and without a `dump`): these are drained now. What is left owes its peer an answer, or its protocol is in the middle of
something. It is looked at again, soon and at a cost of a few per cent of the time, and drained when the time is up.

What carries a connection over is not known here: somebody is called with a socket and bytes. Between the call and the
arrival the connection has no owner. If whoever carries it fails, it is lost; so it must read to the end what a process
that has died was sent.

Processes agree beforehand whether connections can move: if their `fingerprint` is the same. If it is not, a client
would see another framing, say, in the middle of its conversation.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Sequence

from evloop.core.loop import Loop
from evloop.errors import CannotMoveError
from evloop.log import INFO, Logger
from evloop.net.connection import Connection
from evloop.net.moving import FORMAT, Moving, go_on, wait_for_what_is_owed
from evloop.net.state import State
from evloop.server.countdown import Countdown
from evloop.server.server import Server

_log = Logger("evloop.server")

# Between two connections a pass goes on to the next one until it has taken so long.
_TURN_S = 0.001
# Those that are left are looked at again after this, or after so many times what the last look has taken.
_LOOK_AGAIN_S = 0.005
_REST = 20

# They are over for their protocols, and end by themselves.
_ENDING = (State.FLUSHING, State.LINGERING, State.CLOSED)


def fingerprint(servers: Sequence[Server]) -> str:
    """What must be the same of the servers of two processes, so that connections can move from one to the other."""
    return "\n".join((f"format {FORMAT}", *(server.speaks for server in servers)))


def adopt(servers: Sequence[Server], sock: socket.socket, state: bytes) -> None:
    """Take over a connection.

    Args:
        servers: those of this process, in the order of the other one's.
        sock: the connection. Owned from here on.
        state: what came with it.

    Raises:
        CannotMoveError: it is no such state. The socket is closed then.
    """
    try:
        moving = Moving.from_bytes(state)
        server = servers[moving.facts["server"]]
    except BaseException as error:
        sock.close()
        if isinstance(error, (CannotMoveError, MemoryError)):
            raise
        raise CannotMoveError(f"a connection of a server that is not here: {error!r}") from None
    server.adopt(sock, moving)


class HandOver:
    """Hands the connections of this process over to another one, and has the rest drained.

    Nobody may accept any more when it is made. It begins in the next pass.

    Args:
        loop: the loop of the servers.
        servers: those whose connections move, in an order that both processes share.
        send: called with a connection's socket and state. It duplicates the descriptor if it can't pass it on at once.
        on_done: called once, when nothing more will be sent; the servers are draining then.
        timeout_s: how long connections have to get to where they can move. 0: none moves.
        is_full: whether it must wait before it sends one more.
        on_round: called once, when all that could move at once has moved.
    """

    def __init__(
        self,
        loop: Loop,
        servers: Sequence[Server],
        send: Callable[[bytes, socket.socket], object],
        on_done: Callable[[], object],
        timeout_s: float,
        is_full: Callable[[], bool] = lambda: False,
        on_round: Callable[[], object] = lambda: None,
    ) -> None:
        self._loop = loop
        self._servers = servers
        self._send = send
        self._on_done = on_done
        self._is_full = is_full
        self._on_round: Callable[[], object] | None = on_round
        self._began = loop.clock()
        self._moved = 0
        self._staying: set[Connection] = set()
        self._reasons: Counter[str] = Counter()
        self._left: list[tuple[int, Connection]] = []  # to look at in this round
        self._round_s = 0.0  # how much of the time it has taken so far
        self._countdown: Countdown | None = None
        if timeout_s > 0:
            self._countdown = Countdown(loop, timeout_s, self._time_is_over)
            loop.call_soon(self._begin_round)
        else:
            loop.call_soon(self._finish)
        self._done = False

    # ------------------------------------------------------------------ rounds

    def _begin_round(self) -> None:
        self._left = [(number, one) for number, server in enumerate(self._servers) for one in server.connections]
        self._round_s = 0.0
        self._go_on()

    def _go_on(self) -> None:
        if self._done:
            return
        if any(server.stopping for server in self._servers):
            self._finish()
            return
        clock = self._loop.clock
        began = clock()
        while self._left and not self._is_full() and clock() - began < _TURN_S:
            number, connection = self._left.pop()
            if connection not in self._staying and connection.state not in _ENDING:
                self._look_at(number, connection)
        self._round_s += clock() - began
        if self._done:
            return
        if self._left:
            self._loop.call_later(_LOOK_AGAIN_S if self._is_full() else 0, self._go_on)
            return
        self._round_over()
        if self._is_anybody_left():
            self._loop.call_later(max(_LOOK_AGAIN_S, _REST * self._round_s), self._begin_round)
        else:
            self._finish()

    def _round_over(self) -> None:
        if self._on_round is not None:
            on_round, self._on_round = self._on_round, None
            on_round()

    def _is_anybody_left(self) -> bool:
        return any(
            server.proxies_waiting
            or any(one not in self._staying and one.state not in _ENDING for one in server.connections)
            for server in self._servers
        )

    def _look_at(self, number: int, connection: Connection) -> None:
        server = self._servers[number]
        try:
            moving = server.dump(connection)
        except CannotMoveError as error:
            self._reasons[str(error)] += 1
            self._staying.add(connection)
            go_on(connection)
            connection.drain()
            return
        except Exception as error:
            self._loop.log_exception(error, "connection %s aborted: its protocol raised", connection.peer)
            connection.end_for(error)
            return
        if moving is None:
            wait_for_what_is_owed(connection)
            return
        moving.facts["server"] = number
        try:
            self._send(moving.to_bytes(), connection.socket)
        except Exception as error:
            self._loop.log_exception(error, "connections can't be handed over any more")
            self._reasons["nobody takes them"] += 1
            self._finish()
            return
        server.release(connection)
        self._moved += 1

    # ------------------------------------------------------------------ the end

    def _time_is_over(self) -> None:
        for server in self._servers:
            late = sum(one not in self._staying and one.state not in _ENDING for one in server.connections)
            if late:
                server.stats.limits["handover-timeout"] += late
                self._reasons["they were owed something for too long"] += late
        self._finish()

    def _finish(self) -> None:
        if self._done:
            return
        self._done = True
        self._left.clear()
        if self._countdown is not None:
            self._countdown.cancel()
        stay = sum(len(server.connections) for server in self._servers)
        _log.log(
            INFO,
            "%d connections handed over in %.3f s; %d are drained%s",
            self._moved,
            self._loop.clock() - self._began,
            stay,
            "".join(f"; {count}: {reason}" for reason, count in self._reasons.items()),
        )
        for server in self._servers:
            for connection in server.connections:
                go_on(connection)
            server.drain()
        self._round_over()
        self._on_done()
