"""Opens the connections that stay: a few first, and the others when the server's memory has been looked at."""

from __future__ import annotations

from collections.abc import Callable

from evloop.eventloop import EventLoop
from evloop_bench.loadgen.clients import CheckedClient, clock_ns
from evloop_bench.loadgen.opener import Opener

_TICK_S = 0.005
# Connects that wait for an answer at the same time: a backlog, not the ramp, is what they'd overrun.
_MAX_CONNECTING = 128
_CONNECT_TIMEOUT_S = 10.0


class Ramp:
    """Opens connections at a rate.

    Args:
        clients: what to connect, the first one first.
        opener: what connects them.
        base: how many are opened by `start`; the rest waits for `go_on`.
        per_s: the rate.
        on_base: called once when these are open, or have failed.
        on_all: likewise for all.

    Attributes:
        began_s: when `start` was called, of the loop's clock.
    """

    def __init__(
        self,
        loop: EventLoop,
        clients: list[CheckedClient],
        opener: Opener,
        *,
        base: int,
        per_s: float,
        on_base: Callable[[], None],
        on_all: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._clients = clients
        self._opener = opener
        self._per_s = per_s
        self._on_base = on_base
        self._on_all = on_all
        self._limit = base
        self._waiting = list(reversed(clients))
        self._connecting: set[CheckedClient] = set()
        self._at_base = False
        self.began_s = 0.0

    def start(self) -> None:
        """Open the first ones."""
        self.began_s = self._loop.clock()
        self._open_due()

    def go_on(self) -> None:
        """Open the rest."""
        self._limit = len(self._clients)
        self._open_due()

    def _open_due(self) -> None:
        total = len(self._clients)
        self._connecting.difference_update([one for one in self._connecting if one.opened or one.closed])
        due = min(int((self._loop.clock() - self.began_s) * self._per_s) + 1, self._limit)
        while total - len(self._waiting) < due and len(self._connecting) < _MAX_CONNECTING:
            client = self._waiting.pop()
            self._connecting.add(client)
            client.connecting_ns = clock_ns()
            self._opener.open(client, _CONNECT_TIMEOUT_S)
        if self._connecting or total - len(self._waiting) < self._limit:
            self._loop.call_later(_TICK_S, self._open_due)
        elif not self._at_base:
            self._at_base = True
            self._on_base()
        else:
            self._on_all()
