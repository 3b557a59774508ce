"""What tests of outgoing connections share: names, and addresses that refuse or stay silent."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from evloop import EventLoop
from servers import Recorder
from waiting import DEADLINE_S, run_pass, run_until

Address = tuple[Any, ...]


def closed_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def error_of(loop: EventLoop, protocol: Recorder) -> str:
    """What the protocol is told of a connection that can't be made, and that nothing else is said."""
    run_until(loop, lambda: protocol.events)
    for _ in range(2):
        run_pass(loop)
    ((kind, text),) = protocol.events
    assert kind == "connect error"
    assert text.isprintable()
    return str(text)


@contextlib.contextmanager
def silent_listener(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A listener that does not answer, since its queue is full. Skips the test where that can't be had."""
    with contextlib.ExitStack() as opened:
        sock = opened.enter_context(socket.socket())
        sock.bind((host, 0))
        sock.listen(0)
        for _ in range(4):
            filler = opened.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        probe = opened.enter_context(socket.socket())
        probe.settimeout(0.05)
        try:
            probe.connect(sock.getsockname())
        except TimeoutError:
            yield sock
        else:
            pytest.skip("a full queue does not hold connections back here")


class Names:
    """What `socket.getaddrinfo` finds. Addresses are looked up by the real one.

    Attributes:
        threads: the threads in which names were looked up.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: list[threading.Thread] = []
        self._found: dict[str, list[Address] | Exception] = {}
        self._hold: threading.Event | None = None
        self._real: Callable[..., Any] = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def add(self, name: str, *addresses: Address) -> None:
        """From now on, ``name`` has these addresses, as sockets have them."""
        self._found[name] = list(addresses)

    def fail(self, name: str, error: Exception) -> None:
        """From now on, looking up ``name`` raises this."""
        self._found[name] = error

    def hold(self) -> threading.Event:
        """From now on no name is found before the event that this returns is set."""
        self._hold = threading.Event()
        return self._hold

    def _getaddrinfo(self, host: str | bytes, port: int, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if options.get("flags", 0) & socket.AI_NUMERICHOST or name not in self._found:
            return self._real(host, port, **options)
        self.threads.append(threading.current_thread())
        if self._hold is not None:
            assert self._hold.wait(DEADLINE_S)
        found = self._found[name]
        if isinstance(found, Exception):
            raise found
        return [
            (socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
            for address in found
        ]
