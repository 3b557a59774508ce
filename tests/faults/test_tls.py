"""TLS handshakes, ends and certificates that go wrong: lines 80 to 83 and 87 to 90 of docs/reliability.md."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
import threading
from pathlib import Path

import pytest

from clients import Client
from evloop import EventLoop, Server, TLSError, TLSServerSettings, TLSSettingsError
from evloop.net import tls as tls_module
from evloop.net.tlsinfo import HANDSHAKE_TURN_S
from evloop.net.tlsqueue import RECORD_BYTES
from faults.faultysocket import FaultySocket
from servers import Echo, Recorder, RunningServer, recorder, small_limits
from tlsworld import RecordClient, connect_tls, hello, tally, world
from waiting import DEADLINE_S, run_pass, run_until, wait_until


class EchoRecorder(Recorder):
    def on_data(self, data: bytes) -> bytes:
        super().on_data(data)
        return data


# ---------------------------------------------------------------------- 80, 81: handshakes


@pytest.mark.parametrize("size", [1, 4, 5, 100, None], ids=["1", "4", "header", "half", "all"])
def test_80_handshake_that_does_not_go_on_has_a_deadline(start_tls, size):
    protocol = recorder()
    server = start_tls(protocol, tls=world().settings(handshake_timeout_s=0.1))
    with Client(server.address) as client:
        client.send(hello()[:size])
        client.was_reset()
        server.wait_empty()
        assert server.limit_hits("tls-handshake-timeout") == 1
        assert tally(server).failures == {"timeout": 1}
        assert server.server.stats.failed == 1
        assert server.call(lambda: server.loop.timers) <= 1  # the server's own
    assert protocol.events == []


def test_80_handshake_deadline_is_not_moved_by_bytes_that_trickle():
    now = 0.0
    with EventLoop(clock=lambda: now) as loop:
        server = Server(loop, Echo, small_limits())
        server.listen(tls=world().settings(handshake_timeout_s=10))
        with Client(server.listeners[0].socket.getsockname()) as client:
            run_pass(loop)
            for byte in hello()[:10]:
                assert len(server.connections) == 1
                client.send(bytes([byte]))
                now += 1.01
                run_pass(loop)
                run_pass(loop)
            assert not server.connections
            assert server.stats.limits["tls-handshake-timeout"] == 1
        server.abort()
        run_pass(loop)


def test_80_handshake_that_is_done_leaves_no_timer(start_tls):
    server = start_tls(Echo)
    timers = server.call(lambda: server.loop.timers)
    with RecordClient(server.address) as client:
        client.shake_hands()
        client.send(b"x")
        client.receive_exactly(1)
        assert server.call(lambda: server.loop.timers) == timers


def test_81_handshake_storm_leaves_others_their_turn():
    ticks = iter(range(1 << 60))
    tick_s = HANDSHAKE_TURN_S / 3.5
    with EventLoop(clock=lambda: next(ticks) * tick_s) as loop:
        server = Server(loop, Echo, small_limits(accepts_per_pass=500))
        server.listen(tls=world().settings(handshake_timeout_s=3600))
        address = server.listeners[0].socket.getsockname()
        clients = [Client(address) for _ in range(30)]
        run_until(loop, lambda: len(server.connections) == 30, timeout_s=1e9)
        for client in clients:
            client.send(hello())
        answered = 0
        passes = 0
        while answered < 30:
            run_pass(loop)
            now_answered = sum(connection.bytes_sent > 0 for connection in server.connections)
            assert now_answered - answered <= 4  # a step takes a tick here, and four are a turn
            answered = now_answered
            passes += 1
            assert passes < 100
        assert passes >= 30 / 4
        server.abort()
        run_pass(loop)
        for client in clients:
            client.close()


# ---------------------------------------------------------------------- 82: the wrong language


@pytest.mark.parametrize("data", [b"G", b"GET / HTTP/1.0\r\n\r\n", b"hello, world\n", bytes(100_000)])
def test_82_plaintext_client_is_told_and_logged(start_tls, logged, data):
    logged.expect("TLS failed: the client does not speak TLS, and this port speaks nothing else")
    protocol = recorder()
    server = start_tls(protocol, small_limits(linger_timeout_s=1))
    with Client(server.address) as client:
        client.send(data)
        client.half_close()
        assert client.receive_rest() == b"\x15\x03\x03\x00\x02\x02\x0a"  # a fatal alert, as it would be from OpenSSL
    server.wait_empty()
    assert tally(server).failures == {"plaintext": 1}
    assert protocol.events == []


def test_82_plaintext_clients_do_not_flood_the_log(start_tls, logged):
    logged.expect("does not speak TLS")
    logged.allow("lines like these left out")
    server = start_tls(Echo)
    for _ in range(60):
        with Client(server.address) as client:
            client.send(b"x")
            client.half_close()
            client.receive_rest()
    server.wait_empty()
    assert tally(server).failures == {"plaintext": 60}
    assert len(logged.lines) < 60


def test_82_plaintext_probe_is_no_failure(start_tls):
    server = start_tls(Echo)
    Client(server.address).close()
    wait_until(lambda: server.server.stats.closed == 1)
    assert server.server.stats.probes == 1
    assert server.server.stats.failed == 0
    assert not tally(server).failures


# ---------------------------------------------------------------------- 83: the end


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "reset"])
def test_83_truncated_end_is_an_error_and_no_end_of_stream(start_tls, reset):
    errors = []

    class Notes(EchoRecorder):
        def on_close(self, error: Exception | None) -> None:
            super().on_close(error)
            errors.append(error)

    protocol = recorder(Notes)
    server = start_tls(protocol)
    client = RecordClient(server.address)
    client.shake_hands()
    client.send(b"half a mess")
    assert client.receive_exactly(11) == b"half a mess"
    if reset:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    server.wait_empty()
    assert "eof" not in protocol.events
    (error,) = errors
    if reset:
        assert isinstance(error, ConnectionError)
    else:
        assert isinstance(error, TLSError)
        assert error.kind == "truncated"
        assert tally(server).failures == {"truncated": 1}
    assert server.server.stats.failed == 1


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "reset"])
def test_83_truncated_handshake(start_tls, reset):
    protocol = recorder()
    server = start_tls(protocol)
    with Client(server.address) as client:
        client.send(hello()[:50])
        wait_until(lambda: server.connection().bytes_received == 50)
        if reset:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.wait_empty()
    assert tally(server).failures == {"ended": 1}
    assert protocol.events == []


def test_a_reply_is_dropped_while_our_goodbye_waits_to_be_sent(start_tls):
    """As without TLS, after our end of the stream; it can't be sealed any more."""
    sends: list[int] = []
    released = threading.Event()

    def plan(size: int) -> int:
        sends.append(size)
        return size if len(sends) == 1 or released.is_set() else -errno.EAGAIN

    class Ends(EchoRecorder):
        def on_data(self, data: bytes) -> bytes:
            if not sends:
                self.connection.write_eof()
            return super().on_data(data)

    protocol = recorder(Ends)
    server = start_tls(protocol)
    with RecordClient(server.address) as client:
        client.shake_hands()
        connection = server.connection()
        wait_until(lambda: protocol.events == ["connect"])
        server.call(setattr, connection, "_socket", FaultySocket(connection.socket, plan))
        client.send(b"question")
        wait_until(lambda: len(sends) > 1)
        client.send(b"more")
        wait_until(lambda: protocol.received() == b"questionmore")
        server.passes(2)
        released.set()
        assert client.receive_rest() == b"question"
        client.say_goodbye()
        server.wait_empty()
    assert protocol.events[-2:] == ["eof", "close"]


# ---------------------------------------------------------------------- 87: errors


def test_87_errors_of_tls_are_in_no_table_of_errno(start_tls, logged):
    errors = []

    class Notes(Recorder):
        def on_close(self, error: Exception | None) -> None:
            errors.append(error)

    server = start_tls(recorder(Notes))
    for spoil in (lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b"\x17\x03\x03\xff\xff" + b, lambda b: b[5:]):
        with RecordClient(server.address) as client:
            client.shake_hands()
            client.socket.sendall(spoil(client.seal(b"secret", b"more")))
            with pytest.raises((ssl.SSLError, EOFError)):
                client.receive_rest()
        server.wait_empty()
    assert [type(error) for error in errors] == [TLSError] * 3
    assert {error.kind for error in errors} <= {"protocol", "plaintext"}
    assert not any(isinstance(error, OSError) for error in errors)
    assert not any("lost" in line for line in logged.lines)
    logged.allow("does not speak TLS")


# ---------------------------------------------------------------------- 88: stopping


def drained(server: RunningServer) -> threading.Event:
    """Begin to drain; the event is set when all is done."""
    done = threading.Event()
    server.call(server.server.drain, done.set)
    return done


def test_88_drain_lets_a_handshake_end_and_answers_what_came(start_tls):
    server = start_tls(EchoRecorder.__class__("E", (EchoRecorder,), {"events": []}))
    with RecordClient(server.address) as client:
        client.step()
        client.push()
        assert client.receive_some()
        done = drained(server)
        assert not done.is_set()
        assert client.step()
        client.socket.sendall(client.take() + client.seal(b"in time"))
        assert client.receive_rest() == b"in time"
        client.say_goodbye()
        client.socket.close()
        assert done.wait(DEADLINE_S)
    assert not server.server.aborted


def test_88_drain_answers_what_has_come_with_the_end_of_the_handshake(start_tls):
    server = start_tls(Echo)
    with RecordClient(server.address) as client:
        client.shake_hands(finish=False)
        release = server.hold()
        client.socket.sendall(client.take() + client.seal(b"just in time"))
        done = threading.Event()
        server.loop.call_soon_threadsafe(server.server.drain, done.set)
        release.set()
        assert client.receive_rest() == b"just in time"
        client.say_goodbye()
        client.socket.close()
        assert done.wait(DEADLINE_S)


def test_88_drain_does_not_wait_for_who_has_said_nothing(start_tls):
    server = start_tls(Echo)
    with Client(server.address):
        server.connection()
        assert drained(server).wait(DEADLINE_S / 2)
    assert tally(server).failures == {"stopped": 1}
    assert not server.server.aborted


def test_88_drain_waits_a_moment_only_for_who_does_not_go_on(start_tls, monkeypatch):
    monkeypatch.setattr(tls_module, "DRAIN_HANDSHAKE_S", 0.05)
    server = start_tls(Echo, small_limits(drain_timeout_s=60))
    with Client(server.address) as client:
        client.send(hello())
        wait_until(lambda: server.connection().bytes_sent)
        assert drained(server).wait(DEADLINE_S)
    assert tally(server).failures == {"stopped": 1}


# ---------------------------------------------------------------------- 89: certificates


def test_89_certificates_that_go_bad_do_not_end_the_service(start_tls, tmp_path, logged):
    logged.expect("the old ones stay in force")
    certificate, key = tmp_path / "c.pem", tmp_path / "c.key"
    for path, source in zip((certificate, key), world().pair, strict=True):
        path.write_bytes(Path(source).read_bytes())
        path.chmod(0o600)
    settings = TLSServerSettings([(str(certificate), str(key))])
    server = start_tls(Echo, tls=settings)
    other_certificate, _ = world().issue("another", "localhost")
    good = certificate.read_bytes()
    for bad in (b"", b"rubbish", good[:300], Path(other_certificate).read_bytes()):
        certificate.write_bytes(bad)
        with pytest.raises(TLSSettingsError):
            server.call(settings.reload)
        assert not server.call(settings.reload_and_log)
        with connect_tls(server.address) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
    certificate.write_bytes(good)
    server.call(settings.reload)


# ---------------------------------------------------------------------- 90: goodbyes


def test_90_goodbye_comes_after_all_that_a_slow_reader_has_yet_to_read(start_tls):
    data = os.urandom(4_000_000)

    class Dump(Recorder):
        def on_eof(self) -> bytes:
            super().on_eof()
            return data

    protocol = recorder(Dump)
    server = start_tls(protocol)
    with RecordClient(server.address, receive_buffer=4096) as client:
        client.shake_hands()
        client.say_goodbye()
        assert client.receive_rest() == data
        assert client.socket.recv(1) == b""
    server.wait_empty()
    assert protocol.events[0] == "connect"
    assert protocol.events[1] == "eof"
    assert protocol.events[-1] == "close"


def test_90_goodbye_that_comes_while_a_rest_is_held_is_told_after_it(start_tls):
    class Pauses(Recorder):
        def on_data(self, data: bytes) -> None:
            super().on_data(data)
            self.connection.pause_reading()
            self.connection.loop.call_later(0, self.connection.resume_reading)

    protocol = recorder(Pauses)
    server = start_tls(protocol)
    with RecordClient(server.address) as client:
        client.shake_hands()
        for _ in range(2):
            client.send(b"z" * RECORD_BYTES)
        client.say_goodbye()
        client.close()
        server.wait_empty()
    assert protocol.received() == b"z" * 2 * RECORD_BYTES
    assert protocol.events[-2:] == ["eof", "close"]


def test_a_program_serves_by_tls(spawn_program):
    certificate, key = world().pair
    program = spawn_program(
        "import sys; from evloop import LineProtocol, TLSServerSettings, serve\n"
        "class Greeter(LineProtocol):\n"
        "    def on_line(self, line): return b'hello, ' + line + b'\\n'\n"
        "serve(Greeter, tls=TLSServerSettings([sys.argv[1:]]))",
        certificate,
        key,
    )
    with connect_tls(program.address) as client:
        client.sendall(b"world\n")
        assert client.recv(100) == b"hello, world\n"
