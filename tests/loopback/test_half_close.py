"""What happens when one side has said all it has to say."""

from __future__ import annotations

from evloop import Protocol, State
from servers import Recorder, recorder
from waiting import wait_until


def test_what_was_received_before_the_end_is_answered_and_then_the_server_closes(start):
    class Upper(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return data.upper()

        def on_eof(self) -> bytes:
            return b"!"

    server = start(Upper)
    client = server.connect()
    client.send(b"hello")
    client.half_close()
    assert client.receive_rest() == b"HELLO!"
    server.wait_empty()


class KeepsOpen(Recorder):
    keep_half_open = True


def test_keep_half_open_lets_the_server_go_on_until_it_closes(start):
    protocol = recorder(KeepsOpen)
    server = start(protocol)
    client = server.connect()
    client.half_close()
    wait_until(lambda: protocol.events == ["connect", "eof"])
    connection = server.connection()
    assert connection.state is State.HALF_OPEN
    assert not connection.closing
    for word in (b"one ", b"two ", b"three"):
        server.call(connection.write, word)
    assert client.receive_exactly(13) == b"one two three"
    server.call(connection.close)
    assert client.receive_rest() == b""
    server.wait_empty()
    assert protocol.events == ["connect", "eof", "close"]


def test_keep_half_open_can_be_answered_much_later(start):
    class Later(KeepsOpen):
        def on_eof(self) -> None:
            super().on_eof()
            self.connection.loop.call_later(0.02, self.finish)

        def finish(self) -> None:
            self.connection.write(b"report")
            self.connection.close()

    client = start(recorder(Later)).connect()
    client.half_close()
    assert client.receive_rest() == b"report"


def test_the_end_is_told_once_and_does_not_spin(start):
    protocol = recorder(KeepsOpen)
    server = start(protocol)
    client = server.connect()
    client.half_close()
    wait_until(lambda: "eof" in protocol.events)
    server.passes(20)
    assert protocol.events == ["connect", "eof"]
    fd = server.connection().socket.fileno()
    assert fd not in server.loop.poller.handlers  # epoll and poll would report the hang-up for ever
    client.close()


def test_a_large_reply_after_the_end_arrives_whole(start):
    class Large(Protocol):
        def on_eof(self) -> bytes:
            return b"0123456789" * 500_000

    client = start(Large).connect()
    client.half_close()
    assert client.receive_rest() == b"0123456789" * 500_000


def test_a_client_that_ends_while_its_replies_wait_gets_them_all(start):
    class Echo(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return data * 20

    client = start(Echo).connect(receive_buffer=4096)
    client.send(b"x" * 100_000)
    client.half_close()
    assert client.receive_rest() == b"x" * 2_000_000


def test_a_client_gone_while_half_open_is_noticed_by_the_next_writes(start):
    protocol = recorder(KeepsOpen)
    server = start(protocol)
    client = server.connect()
    client.half_close()
    wait_until(lambda: "eof" in protocol.events)
    connection = server.connection()
    client.reset()

    def write_until_noticed() -> bool:
        server.call(connection.write, b"x")
        return connection.closing

    wait_until(write_until_noticed)
    assert len(protocol.events) == 3
    assert protocol.events[2] in (("close", "ConnectionResetError"), ("close", "BrokenPipeError"))
