"""Servers in a thread, with their clients, and protocols for them that write down what they go through."""

from __future__ import annotations

import selectors
import threading
from collections.abc import Callable
from typing import Any

from clients import Client
from evloop import Connection, EventLoop, Limits, Protocol, Server
from waiting import DEADLINE_S, LoopThread, wait_until


class RunningServer:
    """A `Server` in a `LoopThread`, listening, with clients. Closing it closes them all.

    Args:
        make_server: makes the server in the loop's thread; called with the loop.
        selector: as for `LoopThread`.
        host, port: where to listen; by default on any free port of 127.0.0.1.
    """

    def __init__(
        self,
        make_server: Callable[[EventLoop], Server],
        selector: type[selectors.BaseSelector] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._clients: list[Client] = []
        self.thread = LoopThread(selector)
        self.loop = self.thread.loop
        self.call = self.thread.call
        self.passes = self.thread.passes
        try:
            self.server = self.call(make_server, self.loop)
            self.addresses = self.call(self.server.listen, host, port)
        except BaseException:
            self.thread.close()
            raise

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the first listener."""
        name = self.server.listeners[0].socket.getsockname()
        return name[0], name[1]

    @property
    def port(self) -> int:
        """Port of the first listener."""
        return self.address[1]

    def connect(self, host: str | None = None, *, receive_buffer: int | None = None) -> Client:
        """A new client, closed with the server."""
        address = (self.address[0] if host is None else host, self.port)
        client = Client(address, receive_buffer=receive_buffer)
        self._clients.append(client)
        return client

    def connections(self) -> list[Connection]:
        """The open connections."""
        return self.call(lambda: list(self.server.connections))

    def connection(self) -> Connection:
        """The only open connection, waited for."""
        found = wait_until(self.connections, "a connection")
        assert len(found) == 1, found
        return found[0]

    def hold(self) -> threading.Event:
        """Keep the loop busy until the event is set: meanwhile everything piles up in the kernel."""
        held, release = threading.Event(), threading.Event()

        def wait() -> None:
            held.set()
            release.wait(DEADLINE_S)

        self.loop.call_soon_threadsafe(wait)
        assert held.wait(DEADLINE_S)
        return release

    def wait_empty(self) -> None:
        """Wait until no connection is open."""
        wait_until(lambda: not self.connections(), "all connections closed")

    def limit_hits(self, limit: str) -> int:
        """The counter of a limit."""
        return self.call(lambda: self.server.stats.limits[limit])

    def close(self) -> None:
        """Abort the server, close the clients, stop the loop. Safe to call twice."""
        for client in self._clients:
            client.close()
        if self.thread._closed:
            return
        try:
            if self.thread._thread.is_alive():
                self.call(self.server.abort)
                self.passes(1)  # sockets are closed at the end of the pass
                assert not self.server.connections
        finally:
            self.thread.close()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Echo(Protocol):
    """Sends back what comes."""

    def on_data(self, data: bytes) -> bytes:
        return data


class Recorder(Protocol):
    """Writes down which callbacks are called and with what, for all connections of a test.

    Make a subclass per test with `recorder`; ``events`` is shared by its connections.
    """

    events: list[Any]
    last: Recorder

    def on_connect(self) -> bytes | None:
        type(self).last = self
        self.events.append("connect")
        return None

    def on_data(self, data: bytes) -> bytes | None:
        self.events.append(("data", data))
        return None

    def on_eof(self) -> bytes | None:
        self.events.append("eof")
        return None

    def on_high_water(self) -> None:
        self.events.append("high")

    def on_low_water(self) -> None:
        self.events.append("low")

    def on_close(self, error: Exception | None) -> None:
        self.events.append("close" if error is None else ("close", type(error).__name__))

    def on_connect_error(self, error: Exception) -> None:
        self.events.append(("connect error", str(error)))

    @classmethod
    def received(cls) -> bytes:
        """All bytes that came in."""
        return b"".join(event[1] for event in cls.events if event[0] == "data")


def recorder(base: type[Recorder] = Recorder, **attributes: Any) -> type[Recorder]:
    """A new `Recorder` class with events of its own, and with other attributes replaced."""
    return type("TestRecorder", (base,), {"events": [], **attributes})


def small_limits(**changes: Any) -> Limits:
    """Limits at which everything happens early, without moving megabytes, and that each selector can keep."""
    values: dict[str, Any] = {
        "high_water_bytes": 4096,
        "low_water_bytes": 1024,
        "max_connections": 500,
        **changes,
    }
    return Limits(**values)
