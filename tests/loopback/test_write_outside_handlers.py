"""What a timer or a queued call writes leaves at once, also on a loop with nothing else to do."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from evloop import EventLoop, Protocol


def call(loop: EventLoop, how: str, callback: Callable[[], None]) -> None:
    if how == "timer":
        loop.call_later(0.01, callback)
    else:
        loop.call_soon(callback)


@pytest.mark.parametrize("how", ["timer", "call"])
def test_a_write_of_a_timer_or_a_call_does_not_wait_for_the_next_event(how: str) -> None:
    with EventLoop() as loop, socket.create_server(("127.0.0.1", 0)) as listener:

        class Greeter(Protocol):
            def on_connect(self) -> None:
                call(loop, how, self.greet)

            def greet(self) -> None:
                self.connection.write(b"hello")

        protocol = Greeter()
        loop.connect(protocol, *listener.getsockname())
        gave_up = loop.call_later(5, loop.stop)
        peer = None

        def look() -> None:
            nonlocal peer
            peer, _ = listener.accept()
            peer.setblocking(False)
            loop.poller.register(peer.fileno(), 1, loop.stop)

        loop.call_soon(look)
        loop.run()
        assert peer is not None
        assert peer.recv(16) == b"hello"
        assert gave_up.active, "it left only when the next timer was due"
        protocol.connection.abort()
        loop.poller.watch(peer.fileno(), 0, loop.stop)
        peer.close()
        loop.call_soon(loop.stop)
        loop.run()


@pytest.mark.parametrize("how", ["timer", "call"])
def test_what_is_written_in_the_last_pass_leaves_before_the_loop_ends(how: str) -> None:
    with EventLoop() as loop, socket.create_server(("127.0.0.1", 0)) as listener:

        class Parting(Protocol):
            def on_connect(self) -> None:
                call(loop, how, self.part)

            def part(self) -> None:
                self.connection.write(b"goodbye")
                loop.stop()

        protocol = Parting()
        loop.connect(protocol, *listener.getsockname())
        loop.run()
        protocol.connection.abort()
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(10)
            assert peer.recv(16) == b"goodbye"
