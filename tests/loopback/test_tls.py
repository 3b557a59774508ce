"""TLS connections: records, goodbyes, what is told and counted. What goes wrong is in tests/faults."""

from __future__ import annotations

import os
import ssl
from typing import Any

import pytest

from evloop import Protocol
from servers import Echo, Recorder, recorder, small_limits
from tlsworld import RecordClient, connect_tls, world
from waiting import wait_until

BOTH = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])


class EchoRecorder(Recorder):
    def on_data(self, data: bytes) -> bytes:
        self.events.append(("data", data))
        return data


def context(version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client's that speaks this version only."""
    return world().client_context(maximum_version=version, minimum_version=version)


# ---------------------------------------------------------------------- records


@BOTH
@pytest.mark.parametrize("size", [1, 100, 16384, 16385, 1_000_000])
def test_what_is_sent_comes_back(start_tls, version, size):
    server = start_tls(Echo)
    data = os.urandom(size)
    with connect_tls(server.address, context(version)) as client:
        received = b""
        # In pieces, none of which fills a buffer on its way: two threads may not use Python's TLS socket at once.
        for start in range(0, size, 65536):
            client.sendall(data[start : start + 65536])
            while len(received) < min(start + 65536, size):
                received += client.recv(65536)
        assert received == data
        assert client.version() == ("TLSv1.2" if version is ssl.TLSVersion.TLSv1_2 else "TLSv1.3")


class CountedSends(Protocol):
    """Answers with as many bytes as came, and notes how much was sent after how many receives."""

    pieces: list[int] = []  # noqa: RUF012

    def on_data(self, data: bytes) -> bytes:
        self.pieces.append(len(data))
        return data


@BOTH
def test_all_records_of_one_receive_are_one_call_and_one_record(start_tls, version):
    protocol = type("Counted", (CountedSends,), {"pieces": []})
    server = start_tls(protocol)
    with RecordClient(server.address, context(version)) as client:
        client.shake_hands()
        client.send(b"x" * 300)  # the first receives are small, and grow for who fills them
        client.receive_exactly(300)
        for _ in range(3):
            client.send(*[b"%05d" % n * 6 for n in range(16)])
            client.receive_exactly(480)
        protocol.pieces.clear()
        release = server.hold()
        client.send(*[b"%05d" % n * 6 for n in range(16)])
        release.set()
        assert client.read() == b"".join(b"%05d" % n * 6 for n in range(16))  # one read is one record at most
        assert protocol.pieces == [480]


@BOTH
@pytest.mark.parametrize("first", [1, 4, 5, 6, 21, 100, 478, 479, 480, 1000, 16000, 16390])
def test_a_record_that_comes_in_two_pieces_is_delivered_whole(start_tls, version, first):
    # A read of less than the record leaves the rest inside of OpenSSL, where no poller sees it.
    server = start_tls(Echo)
    data = os.urandom(16384)
    with RecordClient(server.address, context(version)) as client:
        client.shake_hands()
        sealed = client.seal(data)
        client.socket.sendall(sealed[:first])
        server.passes(3)
        client.socket.sendall(sealed[first:])
        assert client.receive_exactly(len(data)) == data


@BOTH
def test_a_byte_at_a_time(start_tls, version):
    server = start_tls(Echo)
    with RecordClient(server.address, context(version)) as client:
        while not client.step():
            for byte in client.take():
                client.socket.sendall(bytes([byte]))
            assert client.receive_some()
        for byte in client.take() + client.seal(b"slowly", b"and well"):
            client.socket.sendall(bytes([byte]))
        assert client.receive_exactly(14) == b"slowlyand well"


@BOTH
def test_a_request_that_comes_together_with_the_end_of_the_handshake_is_answered(start_tls, version):
    server = start_tls(Echo)
    with RecordClient(server.address, context(version)) as client:
        client.shake_hands(finish=False)
        client.socket.sendall(client.take() + client.seal(b"early") + client.seal(b"bird"))
        assert client.receive_exactly(9) == b"earlybird"


def test_who_pauses_in_on_connect_gets_what_came_with_the_handshake_when_it_resumes(start_tls):
    class Pauses(Recorder):
        def on_connect(self) -> None:
            super().on_connect()
            self.connection.pause_reading()

    protocol = recorder(Pauses)
    server = start_tls(protocol)
    with RecordClient(server.address) as client:
        client.shake_hands(finish=False)
        client.socket.sendall(client.take() + client.seal(b"early"))
        client.say_goodbye()
        connection = server.connection()
        wait_until(lambda: protocol.events == ["connect"])
        server.passes(3)
        assert protocol.events == ["connect"]
        assert server.call(lambda: connection.is_legal)
        server.call(connection.resume_reading)
        server.wait_empty()
        assert protocol.events == ["connect", ("data", b"early"), "eof", "close"]


def test_many_small_writes_become_one_record(start_tls):
    class Bits(Protocol):
        def on_data(self, data: bytes) -> None:
            for _ in range(1000):
                self.connection.write(b"bit")

    server = start_tls(Bits)
    with RecordClient(server.address) as client:
        client.shake_hands()
        client.send(b"?")
        assert client.read() == b"bit" * 1000


def test_replies_keep_their_order_when_some_are_written_and_some_returned(start_tls):
    class Mixed(Protocol):
        def on_data(self, data: bytes) -> bytes:
            self.connection.write(b"1")
            self.connection.write(b"2" * 20_000)
            return b"3"

    server = start_tls(Mixed)
    with RecordClient(server.address) as client:
        client.shake_hands()
        client.send(b"?")
        assert client.receive_exactly(20_002) == b"1" + b"2" * 20_000 + b"3"


def test_a_message_of_many_pieces_is_dealt_with_in_turns(start_tls):
    class Slow(Recorder):
        message_end = b"\n"

        def on_data(self, data: bytes) -> bytes:
            super().on_data(data)
            return data

    protocol = recorder(Slow)
    server = start_tls(protocol)
    data = b"line\n" * 3276
    with RecordClient(server.address) as client:
        client.shake_hands()
        for _ in range(3):
            client.send(data)
            assert client.receive_exactly(len(data)) == data
    pieces = [len(event[1]) for event in protocol.events if event[0] == "data"]
    assert max(pieces) <= 10240 + 5


# ---------------------------------------------------------------------- goodbyes


@BOTH
def test_both_say_goodbye(start_tls, version):
    protocol = recorder(EchoRecorder)
    server = start_tls(protocol)
    with RecordClient(server.address, context(version)) as client:
        client.shake_hands()
        client.send(b"last words")
        client.say_goodbye()
        assert client.receive_rest() == b"last words"
        with pytest.raises(ssl.SSLError):
            client.tls.write(b"more")
    server.wait_empty()
    assert protocol.events == ["connect", ("data", b"last words"), "eof", "close"]


@BOTH
def test_a_reply_after_the_clients_goodbye_arrives(start_tls, version):
    class Late(Recorder):
        keep_half_open = True

        def on_eof(self) -> bytes:
            super().on_eof()
            self.connection.loop.call_later(0.01, self.connection.write, b"later")
            self.connection.loop.call_later(0.02, self.connection.close)
            return b"now "

    protocol = recorder(Late)
    server = start_tls(protocol)
    with RecordClient(server.address, context(version)) as client:
        client.shake_hands()
        client.say_goodbye()
        assert client.receive_rest() == b"now later"
    server.wait_empty()
    assert protocol.events == ["connect", "eof", "close"]


@BOTH
def test_our_goodbye_comes_before_the_end_of_the_stream(start_tls, version):
    class Dismissive(Recorder):
        def on_data(self, data: bytes) -> bytes:
            self.connection.close()
            return b"bye"

    protocol = recorder(Dismissive)
    server = start_tls(protocol, small_limits(linger_timeout_s=60))
    with RecordClient(server.address, context(version)) as client:
        client.shake_hands()
        client.send(b"x")
        assert client.receive_rest() == b"bye"  # would be EOFError without the goodbye
        assert client.socket.recv(1) == b""
        client.say_goodbye()
    server.wait_empty()
    assert protocol.events == ["connect", "close"]


@BOTH
def test_own_half_close_still_receives(start_tls, version):
    class Asks(Recorder):
        def on_connect(self) -> bytes:
            super().on_connect()
            self.connection.write_eof()
            return b"question"

    protocol = recorder(Asks)
    server = start_tls(protocol)
    with RecordClient(server.address, context(version)) as client:
        client.shake_hands()
        assert client.receive_rest() == b"question"
        assert client.socket.recv(1) == b""
        client.send(b"an answer")
        client.send(b" in two parts")
        client.say_goodbye()
        server.wait_empty()
    assert protocol.received() == b"an answer in two parts"
    assert protocol.events[-2:] == ["eof", "close"]


def test_close_in_on_connect_and_at_once(start_tls):
    class Short(Recorder):
        def on_connect(self) -> bytes:
            super().on_connect()
            self.connection.close()
            return b"no"

    protocol = recorder(Short)
    server = start_tls(protocol)
    with RecordClient(server.address) as client:
        client.shake_hands()
        assert client.receive_rest() == b"no"
        client.close()
        server.wait_empty()
    assert protocol.events == ["connect", "close"]


def test_abort_says_no_goodbye(start_tls):
    class Aborts(Recorder):
        def on_data(self, data: bytes) -> bytes:
            self.connection.abort()
            return b"must never be sent"

    protocol = recorder(Aborts)
    server = start_tls(protocol)
    with RecordClient(server.address) as client:
        client.shake_hands()
        client.send(b"x")
        with pytest.raises((EOFError, ConnectionError)):
            client.receive_rest()
    server.wait_empty()
    assert protocol.events == ["connect", "close"]


def test_close_flushes_large_output_to_a_slow_reader(start_tls):
    data = os.urandom(8_000_000)

    class Dump(Protocol):
        def on_connect(self) -> bytes:
            self.connection.close()
            return data

    server = start_tls(Dump)
    with RecordClient(server.address, receive_buffer=8192) as client:
        client.shake_hands()
        assert client.receive_exactly(1000) == data[:1000]
        server.passes(5)
        assert server.connection().unsent_bytes > 0
        assert client.receive_rest() == data[1000:]


def test_a_callback_that_raises_or_returns_what_it_must_not(start_tls, logged):
    logged.expect("its protocol raised")
    logged.expect("returned int, not bytes")

    class Bad(Protocol):
        def on_data(self, data: bytes) -> Any:
            if data == b"raise":
                raise RuntimeError("on purpose")
            return 5

    server = start_tls(Bad)
    for order in (b"raise", b"return"):
        with RecordClient(server.address) as client:
            client.shake_hands()
            client.send(order)
            with pytest.raises((EOFError, ConnectionError)):
                client.receive_rest()
    server.wait_empty()


# ---------------------------------------------------------------------- what is told


@BOTH
def test_a_connection_tells_what_was_agreed_on(start_tls, version):
    tls = world().settings(client_ca=world().ca)
    certificate, key = world().issue("anna", "anna@example.org", common_name="anna\n\x1b[31m")
    told: list[Any] = []

    class Tells(Protocol):
        def on_connect(self) -> None:
            told.append(self.connection.tls)

    server = start_tls(Tells, tls=tls)
    chosen = context(version)
    chosen.load_cert_chain(certificate, key)
    with connect_tls(server.address, chosen, "example.org"):
        info = wait_until(lambda: told and told[0])
        assert info.version == ("TLSv1.2" if version is ssl.TLSVersion.TLSv1_2 else "TLSv1.3")
        assert "AES" in info.cipher or "CHACHA" in info.cipher
        assert info.server_name == "example.org"
        assert not info.resumed
        assert ("email", "anna@example.org") in info.peer_certificate["subjectAltName"]
        assert "commonName=anna??[31m" in info.peer_subject  # it goes to logs
    server.wait_empty()


def test_without_tls_there_is_nothing_to_tell(start):
    server = start(Protocol)
    with server.connect():
        assert server.connection().tls is None


@BOTH
def test_handshakes_are_counted_and_sessions_resumed(start_tls, version):
    server = start_tls(Echo)
    chosen = context(version)
    session = None
    resumed = []
    for _ in range(3):
        with connect_tls(server.address, chosen, session=session) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"  # what came before it is the session
            session = client.session
            resumed.append(client.session_reused)
            client.unwrap().close()
    server.wait_empty()
    tally = server.server.tls.tally
    assert resumed == [False, True, True]
    assert (tally.handshakes, tally.resumed) == (3, 2)
    assert dict(tally.versions) == {"TLSv1.2" if version is ssl.TLSVersion.TLSv1_2 else "TLSv1.3": 3}
    assert not tally.failures


def test_no_application_protocol_is_chosen(start_tls):
    server = start_tls(Echo)
    chosen = world().client_context()
    chosen.set_alpn_protocols(["h2", "http/1.1"])
    with connect_tls(server.address, chosen) as client:
        assert client.selected_alpn_protocol() is None
