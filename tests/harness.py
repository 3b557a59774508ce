"""What the tests share: loops in threads, clients with deadlines, and how to wait without sleeping.

Everything here is bounded in time: a wait that is over its deadline fails the test and says what it waited for.
"""

from __future__ import annotations

import queue
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from evloop import Connection, EventLoop, Limits, Protocol, Server

T = TypeVar("T")

# How long anything may take before a test gives up. Far above what it takes, also on a busy machine.
DEADLINE_S = 10.0

# Every selector of this platform.
SELECTORS: list[type[selectors.BaseSelector]] = [
    getattr(selectors, name)
    for name in ("EpollSelector", "KqueueSelector", "DevpollSelector", "PollSelector", "SelectSelector")
    if hasattr(selectors, name)
]


def wait_until(condition: Callable[[], T], what: str = "", timeout_s: float = DEADLINE_S) -> T:
    """Poll ``condition`` until it is true and return what it returned. Fails the test when it takes too long."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.0002
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what or condition}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.01)
    return result


# ---------------------------------------------------------------------- loops


def run_pass(loop: EventLoop) -> None:
    """Run exactly one pass of the loop in this thread; it does not wait for events."""
    loop.call_soon(loop.stop)
    loop.run()


def run_until(loop: EventLoop, condition: Callable[[], object], what: str = "", timeout_s: float = DEADLINE_S) -> None:
    """Run the loop in this thread until ``condition`` is true. Fails the test when it takes too long."""
    deadline = time.monotonic() + timeout_s

    def check() -> None:
        if condition() or time.monotonic() > deadline:
            loop.stop()
        else:
            loop.call_later(0.001, check)

    loop.call_soon(check)
    loop.run()
    assert condition(), f"not within {timeout_s:g} s: {what or condition}"


class LoopThread:
    """An `EventLoop` that runs in a thread of its own. Use it as a context manager; it owns the loop.

    What the loop itself raises (a bug, by its contract) is raised again by `close`.

    Args:
        selector: the selector class to use. Default: the platform's own choice.
    """

    def __init__(self, selector: type[selectors.BaseSelector] | None = None) -> None:
        self.loop = EventLoop(selector=None if selector is None else selector())
        self._fault: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:
            self._fault = error

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run ``function(*args)`` in the loop's thread; return what it returns, raise what it raises."""
        results: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                results.put((function(*args), None))
            except BaseException as error:
                results.put((None, error))

        self.loop.call_soon_threadsafe(run)
        try:
            result, error = results.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise AssertionError(f"the loop did not run {function} within {DEADLINE_S:g} s: {self._fault!r}") from None
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def passes(self, count: int = 2) -> None:
        """Wait until the loop has gone through ``count`` passes: what was ready before has been dealt with."""
        for _ in range(count):
            self.call(int)

    def close(self) -> None:
        """Stop the loop, wait for the thread and close the loop. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the loop did not stop"
        self.loop.close()
        if self._fault is not None:
            raise self._fault

    def __enter__(self) -> LoopThread:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


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


# ---------------------------------------------------------------------- clients


class Client:
    """A blocking client socket on which every call has a deadline.

    Args:
        address: host and port.
        receive_buffer: SO_RCVBUF in bytes, for a reader that is soon full.
        source: the local address to bind to.
    """

    def __init__(
        self, address: tuple[str, int], *, receive_buffer: int | None = None, source: tuple[str, int] | None = None
    ) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            if receive_buffer is not None:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.settimeout(DEADLINE_S)
            if source is not None:
                self.socket.bind(source)
            self.socket.connect(address)
        except BaseException:
            self.socket.close()
            raise

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(data)

    def send_until_full(self, piece: bytes = bytes(65536)) -> int:
        """Send again and again until the kernels hold all they can: the peer has stopped reading. Returns how much."""
        sent = 0
        self.socket.settimeout(0.05)
        try:
            while sent < 1 << 30:
                sent += self.socket.send(piece)
        except TimeoutError:
            return sent
        finally:
            self.socket.settimeout(DEADLINE_S)
        raise AssertionError("the peer never stopped reading")

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self.socket.shutdown(socket.SHUT_WR)

    def receive_exactly(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        parts: list[bytes] = []
        left = size
        while left:
            part = self.socket.recv(min(left, 1 << 20))
            assert part, f"end of stream after {size - left} of {size} bytes: {b''.join(parts)[-80:]!r}"
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def receive_line(self) -> bytes:
        """The next line, with its LF. Reads byte by byte, so that nothing after it is lost."""
        line = b""
        while not line.endswith(b"\n"):
            byte = self.socket.recv(1)
            assert byte, f"end of stream after {line!r}"
            line += byte
        return line

    def receive_rest(self) -> bytes:
        """All bytes up to the end of the stream."""
        parts: list[bytes] = []
        while part := self.socket.recv(1 << 20):
            parts.append(part)
        return b"".join(parts)

    def ask(self, data: bytes, reply_size: int) -> bytes:
        """Send and take a reply of a known size."""
        self.send(data)
        return self.receive_exactly(reply_size)

    def receives_nothing(self, for_s: float = 0.05) -> bool:
        """True if neither a byte nor an end arrives within a time. Only for what can never arrive by mistake later."""
        self.socket.settimeout(for_s)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(DEADLINE_S)
        return False

    def was_reset(self) -> bool:
        """Read to the end of the stream; True if that is a reset, False if it is in order."""
        try:
            self.receive_rest()
        except ConnectionError:
            return True
        return False

    def reset(self) -> None:
        """Close so that the peer sees a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """Close the socket. Safe to call twice."""
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


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
