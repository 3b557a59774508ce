"""Opens connections to the server, from several addresses of this machine in turn if one has too few ports."""

from __future__ import annotations

import itertools

from evloop.eventloop import EventLoop
from evloop.net.endpoint import Endpoint
from evloop.net.tlssettings import TLSClientSettings
from evloop_bench.loadgen.clients import GENERATOR_LIMITS, CheckedClient


class Opener:
    """Knows where connections go, and where they come from.

    Args:
        server: where to.
        sources: local addresses to connect from; empty for the one that the kernel picks.
    """

    def __init__(self, loop: EventLoop, server: Endpoint, sources: list[str]) -> None:
        self._loop = loop
        self._server = server
        # It measures, and has no secrets: who answers is not asked for a name.
        self._tls = TLSClientSettings(insecure=True) if server.tls else None
        self._sources = itertools.cycle([(source, 0) for source in sources] or [None])

    def open(self, client: CheckedClient, timeout_s: float) -> None:
        """Connect; the client is told how that ended."""
        self._loop.connect(
            client,
            self._server,
            timeout_s=timeout_s,
            limits=GENERATOR_LIMITS,
            source_address=next(self._sources),
            tls=self._tls,
        )
