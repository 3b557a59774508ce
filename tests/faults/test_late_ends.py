"""Answers and ends that come later, protocols that are made wrongly: behaviours 37 to 39; what water marks mean."""

from __future__ import annotations

import socket
import threading
from typing import ClassVar

import pytest

from evloop import LineProtocol, Protocol, State
from servers import Recorder, recorder, small_limits
from waiting import wait_until

# ---------------------------------------------------------------------- 37


class Later(LineProtocol):
    """Answers some passes later, and says that it will."""

    pending: ClassVar[list[Later]] = []

    def on_line(self, line: bytes) -> None:
        self.connection.hold()
        self.pending.append(self)

    def answer(self) -> None:
        self.connection.write(b"answer\n")
        self.connection.release()


@pytest.mark.parametrize("end", ["half-close", "drain", "half-close and drain"])
def test_37_late_answer_is_waited_for(start, end):
    Later.pending = []
    server = start(Later)
    client = server.connect()
    client.send(b"a\nb\n")
    wait_until(lambda: len(Later.pending) == 2, "both lines")
    if "half-close" in end:
        client.half_close()
        connection = server.connection()
        wait_until(lambda: connection.state is State.HALF_OPEN, "the client's end")
    if "drain" in end:
        server.call(server.server.drain)
    server.passes(5)
    for protocol in Later.pending:
        server.call(protocol.answer)
    assert client.receive_rest() == b"answer\nanswer\n"
    client.close()
    server.wait_empty()
    assert not server.server.aborted


def test_37_late_answer_that_never_comes_is_bounded_by_the_drain(start, logged):
    logged.expect("not done after")
    Later.pending = []
    server = start(Later, small_limits(drain_timeout_s=0.1))
    client = server.connect()
    client.send(b"a\n")
    wait_until(lambda: Later.pending, "the line")
    stopped = threading.Event()
    server.call(server.server.drain, stopped.set)
    assert stopped.wait(10)
    assert server.server.aborted
    server.call(Later.pending[0].answer)  # harmless


def test_37_late_answer_after_the_peer_is_gone_is_dropped(start):
    Later.pending = []
    server = start(Later)
    client = server.connect()
    client.send(b"a\n")
    wait_until(lambda: Later.pending, "the line")
    client.reset()
    server.wait_empty()
    server.call(Later.pending[0].answer)
    with pytest.raises(RuntimeError, match="without a hold"):
        server.call(Later.pending[0].connection.release)


def test_37_late_answer_nothing_new_is_read_while_draining(start):
    Later.pending = []
    server = start(Later)
    client = server.connect()
    client.send(b"a\n")
    wait_until(lambda: Later.pending, "the line")
    server.call(server.server.drain)
    server.passes(5)
    client.send(b"b\n")
    server.passes(5)
    server.call(Later.pending[0].answer)
    assert client.receive_rest() == b"answer\n"
    assert len(Later.pending) == 1


def test_37_own_half_close_leaves_the_other_direction_open(start):
    class Report(Recorder):
        def on_connect(self) -> bytes:
            super().on_connect()
            self.connection.write(b"one ")
            self.connection.write_eof()
            self.connection.write(b"never")
            return b"two"

    protocol = recorder(Report)
    server = start(protocol)
    client = server.connect()
    assert client.receive_rest() == b"one two"
    connection = server.connection()
    assert connection.state is State.HALF_CLOSED
    client.send(b"still heard")
    wait_until(lambda: protocol.received() == b"still heard", "what the client says")
    client.half_close()
    server.wait_empty()
    assert protocol.events[-2:] == ["eof", "close"]


def test_37_own_half_close_comes_after_what_a_slow_reader_has_not_taken(start):
    data = bytes(range(256)) * 40_000

    class Report(Protocol):
        def on_data(self, received: bytes) -> None:
            self.connection.write(data)
            self.connection.write_eof()

    server = start(Report)
    client = server.connect(receive_buffer=8192)
    client.send(b"x")
    client.half_close()
    assert client.receive_rest() == data
    server.wait_empty()
    assert server.server.stats.failed == 0


def test_37_own_half_close_then_drain(start):
    class Ends(Protocol):
        def on_connect(self) -> None:
            self.connection.write_eof()

    server = start(Ends)
    client = server.connect()
    assert client.receive_rest() == b""
    server.call(server.server.drain)
    client.close()
    server.wait_empty()
    assert not server.server.aborted


# ---------------------------------------------------------------------- 38


def test_38_on_close_comes_when_all_is_said_though_the_peer_stays(start):
    class Bye(Recorder):
        def on_data(self, data: bytes) -> bytes:
            super().on_data(data)
            self.connection.close()
            return b"bye"

    protocol = recorder(Bye)
    server = start(protocol, small_limits(linger_timeout_s=60))
    client = server.connect()
    client.send(b"x")
    assert client.receive_rest() == b"bye"
    wait_until(lambda: protocol.events[-1] == "close", "on_close, though the client's end is open")
    assert server.connection().state is State.LINGERING
    client.send(b"dropped")
    server.passes(3)
    client.close()
    server.wait_empty()
    assert protocol.events == ["connect", ("data", b"x"), "close"]
    assert server.server.stats.bytes_received == len(b"xdropped")


# ---------------------------------------------------------------------- 39


def test_39_protocol_without_a_connection_says_so():
    class Early(Protocol):
        def __init__(self) -> None:
            self.name = self.connection.peer

    with pytest.raises(AttributeError, match=r"this protocol has no connection yet: it has one from on_connect on"):
        Early()


def test_39_protocol_that_forgets_its_base_is_served(start):
    class Forgets(LineProtocol):
        max_line_bytes = 10

        def __init__(self) -> None:
            self.prefix = b"> "

        def on_line(self, line: bytes) -> bytes:
            return self.prefix + line + b"\n"

        def on_overlong_line(self) -> bytes:
            return b"long\n"

    client = start(Forgets).connect()
    client.send(b"abc\n" + b"x" * 20 + b"\ndef")
    client.half_close()
    assert client.receive_rest() == b"> abc\nlong\n> def\n"


def test_39_order_of_what_is_written_and_what_is_returned(start):
    class Mixes(LineProtocol):
        def on_line(self, line: bytes) -> bytes:
            self.connection.write(b"<" + line)
            return b">\n"

    client = start(Mixes).connect()
    lines = [b"%d" % number for number in range(5000)]
    threading.Thread(target=client.send, args=(b"".join(line + b"\n" for line in lines),)).start()
    wanted = b"".join(b"<" + line + b">\n" for line in lines)
    assert client.receive_exactly(len(wanted)) == wanted


# ---------------------------------------------------------------------- water marks


def test_14_pipelining_marks_speak_of_what_the_kernel_did_not_take(start):
    """What the kernel takes whole tells nobody, however much it is; what waits for it is seen by who asks."""
    seen: list[int] = []

    class Much(Recorder):
        def on_data(self, data: bytes) -> None:
            super().on_data(data)
            self.connection.write(bytes(100_000))
            self.connection.loop.call_soon(lambda: seen.append(self.connection.unsent_bytes))  # before the flush
            self.connection.loop.call_later(0, lambda: seen.append(self.connection.unsent_bytes))  # after it

    protocol = recorder(Much)
    server = start(protocol)
    server.server.listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    client = server.connect()
    client.send(b"x")
    client.receive_exactly(100_000)
    wait_until(lambda: len(seen) == 2, "both")
    assert seen == [100_000, 0]
    assert "high" not in protocol.events
