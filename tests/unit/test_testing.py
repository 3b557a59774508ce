"""`evloop.testing`: what a protocol goes through in memory is what it would go through on sockets."""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
import sys

import pytest

from evloop import LimitError, LineProtocol, Protocol, State
from evloop.testing import MemoryLoop, MemoryStream
from servers import Recorder, recorder, small_limits


class Upper(Protocol):
    def on_data(self, data: bytes) -> bytes:
        return data.upper()


class Clock(Protocol):
    """Ticks once in two seconds, and says when it was made."""

    def on_connect(self) -> bytes:
        self.tick_later()
        return b"hello\n"

    def tick_later(self) -> None:
        self.connection.loop.call_later(2.0, self.tick)

    def tick(self) -> None:
        self.connection.write(b"%g\n" % (self.connection.loop.now - self.connection.opened_at))
        self.tick_later()


# ---------------------------------------------------------------------- the sockets are like real ones


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setblocking(False)
    return one, other


@pytest.fixture(params=["memory", "tcp"])
def pair(request):
    """Two connected sockets: what a test finds out about those in memory must be true of real ones."""
    sockets = MemoryLoop().pair() if request.param == "memory" else tcp_pair()
    yield sockets
    for sock in sockets:
        sock.close()


def code_of(call, *args) -> int:
    with pytest.raises(OSError) as raised:
        call(*args)
    return raised.value.errno


def test_socket_nothing_there_and_something_there(pair):
    one, other = pair
    assert code_of(other.recv, 10) == errno.EAGAIN
    assert one.send(b"hello") == 5
    assert other.recv(1, socket.MSG_PEEK) == b"h"
    assert other.recv(2) == b"he"
    assert other.recv(10) == b"llo"
    assert code_of(other.recv, 10) == errno.EAGAIN
    assert one.fileno() > 2


def test_socket_half_close(pair):
    one, other = pair
    one.send(b"last")
    one.shutdown(socket.SHUT_WR)
    assert code_of(one.send, b"x") == errno.EPIPE
    assert [other.recv(10) for _ in range(3)] == [b"last", b"", b""]
    other.send(b"answer")
    assert one.recv(10) == b"answer"


def test_socket_close_and_what_the_other_end_sees(pair):
    one, other = pair
    one.close()
    assert one.fileno() == -1
    assert code_of(one.send, b"x") == errno.EBADF
    assert code_of(one.recv, 1) == errno.EBADF
    assert code_of(one.setsockopt, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1) == errno.EBADF
    assert other.recv(10) == b""
    assert other.send(b"into the void") == 13
    assert code_of(other.send, b"x") == errno.EPIPE
    assert other.recv(10) == b""
    assert code_of(other.shutdown, socket.SHUT_WR) == errno.ENOTCONN


def test_socket_closed_with_unread_bytes_resets(pair):
    one, other = pair
    other.send(b"never read")
    one.send(b"but this is")
    one.close()
    assert other.recv(100) == b"but this is"
    assert code_of(other.recv, 10) == errno.ECONNRESET
    assert other.recv(10) == b""


def test_socket_told_to_reset(pair):
    one, other = pair
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
    assert other.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
    assert other.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


# ---------------------------------------------------------------------- what a user does with it


def test_feed_returns_the_answer_and_sent_is_everything():
    stream = MemoryStream(Upper())
    assert stream.feed(b"one") == b"ONE"
    assert stream.feed(b"two") == b"TWO"
    assert stream.feed(b"") == b""
    assert stream.sent == b"ONETWO"
    assert stream.connection.bytes_received == stream.connection.bytes_sent == 6


def test_events_of_each_kind_of_end():
    for end, told in (
        ("eof", ["eof", "close"]),
        ("reset", [("close", "ConnectionResetError")]),
    ):
        protocol = recorder()()
        stream = MemoryStream(protocol)
        stream.feed(b"x")
        assert not stream.closed
        getattr(stream, end)()
        assert protocol.events == ["connect", ("data", b"x"), *told]
        assert stream.closed
        assert not stream.was_reset
        assert stream.connection.state is State.CLOSED
        assert stream.loop.timers == 0


def test_an_orderly_close_an_abort_and_an_abort_with_something_unsent():
    stream = MemoryStream(Protocol())
    stream.connection.close()
    assert not stream.closed  # not until the loop has run
    stream.advance()
    assert (stream.closed, stream.was_reset) == (True, False)
    assert stream.connection.state is State.LINGERING
    stream.feed(b"dropped")
    stream.advance(stream.connection.limits.linger_timeout_s)
    assert stream.connection.state is State.CLOSED
    assert stream.limits_hit == {"linger-timeout": 1}
    assert stream.feed(b"lost") == b""

    stream = MemoryStream(Protocol(), peer_reads=2)
    stream.connection.write(b"12345")
    stream.advance()
    stream.connection.abort()
    stream.advance()
    assert (stream.sent, stream.closed, stream.was_reset) == (b"12", True, True)
    assert stream.eof() == b""


def test_nothing_can_be_fed_after_the_end():
    stream = MemoryStream(Protocol())
    stream.eof()
    with pytest.raises(ValueError, match="ended its stream"):
        stream.feed(b"x")


def test_time_passes_when_the_test_says_so():
    stream = MemoryStream(Clock())
    assert stream.sent == b"hello\n"
    began = stream.clock.now
    assert stream.advance(1.9) == b""
    assert stream.advance(0.1) == b"2\n"
    assert stream.advance(6.5) == b"4\n6\n8\n"
    assert stream.clock.now == pytest.approx(began + 8.5, abs=1e-9)
    with pytest.raises(ValueError, match="backwards"):
        stream.advance(-1)


def test_an_hour_takes_no_time_and_only_the_passes_it_needs():
    stream = MemoryStream(Clock())
    passes = stream.loop.passes
    assert len(stream.advance(3600).splitlines()) == 1800
    assert stream.loop.passes - passes < 4000


def test_a_slow_reader_and_the_water_marks():
    protocol = recorder()()
    stream = MemoryStream(protocol, limits=small_limits(), peer_reads=0)
    stream.connection.write(bytes(6000))
    stream.advance()
    assert protocol.events == ["connect", "high"]
    assert stream.feed(b"not read") == b""
    assert stream.connection.paused
    assert len(stream.peer_reads(4000)) == 4000
    assert protocol.events == ["connect", "high"]
    assert stream.connection.unsent_bytes == 2000
    assert len(stream.peer_reads(976)) == 976
    assert protocol.events == ["connect", "high", "low", ("data", b"not read")]
    assert len(stream.peer_reads(None)) == 1024
    assert stream.limits_hit == {"high-water": 1}
    assert not stream.connection.stalled


def test_a_reader_that_reads_nothing_is_given_up_at_the_cap():
    protocol = recorder()()
    stream = MemoryStream(protocol, limits=small_limits(max_unsent_bytes=5000), peer_reads=0)
    for _ in range(6):
        stream.connection.write(bytes(1000))
    stream.advance()
    assert protocol.events == ["connect", ("close", LimitError.__name__)]
    assert stream.was_reset


def test_what_a_callback_raises_reaches_the_test_and_costs_the_connection():
    class Fragile(Recorder):
        def on_data(self, data: bytes) -> bytes:
            return b"%d" % (1 // len(data.strip()))

    protocol = recorder(Fragile)()
    stream = MemoryStream(protocol)
    assert stream.feed(b"1") == b"1"
    with pytest.raises(ZeroDivisionError):
        stream.feed(b" ")
    assert stream.closed
    assert protocol.events == ["connect", ("close", "ZeroDivisionError")]
    assert stream.advance(10) == b""  # it is raised once


@pytest.mark.parametrize("callback", ["on_connect", "on_data", "on_eof"])
def test_a_wrong_result_reaches_the_test(callback):
    protocol = type("Wrong", (Protocol,), {callback: lambda self, *args: "text"})

    def run() -> None:
        stream = MemoryStream(protocol())
        stream.feed(b"x")
        stream.eof()

    with pytest.raises(TypeError, match="returned str, not bytes: encode it"):
        run()


def test_what_a_timer_raises_reaches_the_test():
    loop = MemoryLoop()
    loop.call_later(5, int, "five")
    loop.advance(4)
    with pytest.raises(ValueError, match="invalid literal"):
        loop.advance(4)


def test_of_two_errors_the_second_is_logged(logged):
    logged.expect("call of .* raised")
    loop = MemoryLoop()
    loop.call_soon(int, "one")
    loop.call_soon(int, "two")
    with pytest.raises(ValueError, match="'one'"):
        loop.advance()


def test_what_never_comes_to_rest_is_found(monkeypatch):
    monkeypatch.setattr("evloop.net.memory._MAX_PASSES_AT_A_MOMENT", 50)
    loop = MemoryLoop()

    def again() -> None:
        loop.call_soon(again)

    again()
    with pytest.raises(AssertionError, match="not at rest after 51 passes"):
        loop.advance(1)


def test_a_slow_callback_takes_time_from_the_others():
    late: list[float] = []
    loop = MemoryLoop()
    began = loop.clock.now

    def slow() -> None:
        loop.clock.now += 3

    loop.call_later(1, slow)
    loop.call_later(2, lambda: late.append(loop.now - began))
    loop.advance(2)
    assert late == [4]


def test_two_streams_in_one_loop():
    everyone: list[Protocol] = []

    class Chat(LineProtocol):
        def on_connect(self) -> None:
            everyone.append(self)

        def on_line(self, line: bytes) -> None:
            for one in everyone:
                one.connection.write(line + b"\n")

    loop = MemoryLoop()
    ada, bob = (MemoryStream(Chat(), loop=loop, peer=name) for name in ("ada", "bob"))
    assert ada.feed(b"hel") == b""
    assert ada.feed(b"lo\n") == b"hello\n"
    assert bob.sent == b"hello\n"
    assert "bob open" in repr(bob)


def test_two_protocols_that_speak_with_each_other():
    class Asks(LineProtocol):
        answers: tuple[bytes, ...] = ()

        def on_connect(self) -> bytes:
            return b"one\n"

        def on_line(self, line: bytes) -> bytes | None:
            self.answers += (line,)
            if len(self.answers) == 2:
                self.connection.close()
                return None
            return b"two\n"

    class Answers(LineProtocol):
        def on_line(self, line: bytes) -> bytes:
            return line.upper() + b"\n"

    loop = MemoryLoop()
    client, server = Asks(), Answers()
    loop.join(client, server)
    assert client.answers == (b"ONE", b"TWO")
    assert loop.timers == 0  # both connections are over


def test_nobody_is_connected_to():
    with pytest.raises(NotImplementedError, match=r"MemoryLoop\.join"):
        MemoryLoop().connect(Protocol(), "127.0.0.1", 1)


def test_a_real_descriptor_is_refused():
    with pytest.raises(ValueError, match="only sockets in memory"):
        MemoryLoop().poller.register(0, 1, int)


def test_another_thread_can_call():
    loop = MemoryLoop()
    called: list[int] = []
    loop.call_soon_threadsafe(called.append, 1)
    loop.advance()
    assert called == [1]


def test_a_program_that_serves_does_not_load_it():
    program = "import evloop, sys, evloop.charcount.cli.server; print('evloop.testing' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
