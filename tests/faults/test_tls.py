"""TLS among people who mean no good, and among programs that do as they like: lines 80 to 94 of docs/reliability.md."""

from __future__ import annotations

import os
import random
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients import Client
from evloop import EventLoop, LimitError, Protocol, Server, TLSError, TLSServerSettings, TLSSettingsError
from evloop.net import tls as tls_module
from evloop.net.receiving import FIRST_RECV_BYTES
from evloop.net.tlsinfo import HANDSHAKE_TURN_S
from evloop.net.tlsqueue import RECORD_BYTES
from evloop.net.tlsstream import MAX_RECV_BYTES
from servers import Recorder, RunningServer, recorder, small_limits
from tlsworld import RecordClient, connect_tls, world
from waiting import DEADLINE_S, run_pass, run_until, wait_until


class EchoRecorder(Recorder):
    def on_data(self, data: bytes) -> bytes:
        super().on_data(data)
        return data


class Echo(Protocol):
    def on_data(self, data: bytes) -> bytes:
        return data


def hello() -> bytes:
    """A client's first words."""
    outgoing = ssl.MemoryBIO()
    try:
        world().client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def tally(server: RunningServer) -> Any:
    """What a server has counted."""
    return server.server.tls.tally  # type: ignore[attr-defined]


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


def test_83_truncated_handshake(start_tls):
    protocol = recorder()
    server = start_tls(protocol)
    with Client(server.address) as client:
        client.send(hello()[:50])
    server.wait_empty()
    assert tally(server).failures == {"ended": 1}
    assert protocol.events == []


# ---------------------------------------------------------------------- 84, 85: records


def test_84_records_that_say_little_are_received_in_small_portions(start_tls):
    protocol = recorder()
    server = start_tls(protocol)
    with RecordClient(server.address) as client:
        client.shake_hands()
        for _ in range(3):
            client.send(b"x" * RECORD_BYTES)  # earns a large receive
        wait_until(lambda: len(protocol.received()) == 3 * RECORD_BYTES)
        connection = server.connection()
        assert server.call(lambda: connection._recv_bytes) > FIRST_RECV_BYTES
        protocol.events.clear()
        client.send(*[b"y"] * 5000)
        wait_until(lambda: len(protocol.received()) == 5000)
    sizes = [len(event[1]) for event in protocol.events if event[0] == "data"]
    assert max(sizes) <= MAX_RECV_BYTES // 23  # the one that was earned
    assert max(sizes[1:]) <= FIRST_RECV_BYTES // 23 + 1  # a record of one byte is 23 bytes
    assert len(sizes) > 100


def test_84_records_are_received_in_large_portions_when_they_say_much(start_tls):
    protocol = recorder()
    server = start_tls(protocol)
    data = os.urandom(1 << 20)
    with RecordClient(server.address) as client:
        client.shake_hands()
        connection = server.connection()
        client.send(data)
        wait_until(lambda: len(protocol.received()) == len(data))
        assert protocol.received() == data
        assert server.call(lambda: connection._recv_bytes) <= MAX_RECV_BYTES


@pytest.mark.parametrize("size", [457, 458, 512, 4000, RECORD_BYTES])
def test_84_records_that_are_longer_than_a_receive_are_soon_received_whole(start_tls, size):
    # 457: with all that is around it, just what the first receive takes.
    server = start_tls(Echo)
    with RecordClient(server.address) as client:
        client.shake_hands()
        connection = server.connection()
        for _ in range(4):
            client.send(b"x" * size)
            client.receive_exactly(size)
        assert server.call(lambda: connection._recv_bytes) >= size + 22


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_85_record_cut_anywhere_leaves_nothing_inside(start_tls, version):
    server = start_tls(Echo)
    chance = random.Random(7)
    with RecordClient(server.address, world().client_context(maximum_version=version)) as client:
        client.shake_hands()
        for _ in range(40):
            messages = [chance.randbytes(chance.choice([1, 7, 400, 3000, RECORD_BYTES])) for _ in range(3)]
            sealed = client.seal(*messages)
            cuts = sorted(chance.randrange(len(sealed)) for _ in range(3))
            for start, end in zip([0, *cuts], [*cuts, len(sealed)], strict=True):
                client.socket.sendall(sealed[start:end])
                server.passes(1)
            # All of it is answered without one byte more from us: nothing waits where no poller sees it.
            expected = b"".join(messages)
            assert client.receive_exactly(len(expected)) == expected


# ---------------------------------------------------------------------- 86: slow readers


class Pours(Recorder):
    """Answers each message with many times its size."""

    def on_data(self, data: bytes) -> bytes:
        super().on_data(data)
        return data * 20


def test_86_stalled_tls_reader_is_not_read_and_memory_is_bounded(start_tls):
    protocol = recorder(Pours)
    server = start_tls(protocol, small_limits())
    with RecordClient(server.address, receive_buffer=4096) as client:
        client.shake_hands()
        client.socket.settimeout(0.05)
        try:
            for _ in range(100_000):
                client.send(b"x" * 400)
        except TimeoutError:
            pass
        client.socket.settimeout(DEADLINE_S)
        connection = server.connection()
        assert server.call(lambda: (connection.stalled, connection.paused)) == (True, True)
        assert server.limit_hits("high-water") >= 1
        assert server.call(lambda: connection.unsent_bytes) < 4096 + 2 * 20 * RECORD_BYTES
        assert protocol.events[-1] == "high"
        connections = server.connections()
        # Others are served meanwhile.
        with RecordClient(server.address) as other:
            other.shake_hands()
            other.send(b"y")
            assert other.receive_exactly(20) == b"y" * 20
        assert connections == [connection]
        client.receive_exactly(100_000)
    server.wait_empty()
    assert "low" in protocol.events


def test_86_stalled_tls_writer_is_aborted_at_the_write_time_out(start_tls):
    protocol = recorder()
    server = start_tls(protocol, small_limits(write_timeout_s=0.2))
    with RecordClient(server.address, receive_buffer=4096) as client:
        client.shake_hands()
        connection = server.connection()
        wait_until(lambda: protocol.events == ["connect"])
        server.call(connection.write, bytes(8_000_000))
        wait_until(lambda: server.limit_hits("write-timeout") == 1)
        server.wait_empty()
    assert protocol.events[-1] == ("close", "LimitError")


def test_86_stalled_tls_writer_is_aborted_at_the_cap(start_tls):
    protocol = recorder()
    server = start_tls(protocol, small_limits(max_unsent_bytes=1_000_000))
    with RecordClient(server.address, receive_buffer=4096) as client:
        client.shake_hands()
        connection = server.connection()
        wait_until(lambda: protocol.events == ["connect"])

        def pour() -> None:
            for _ in range(200):
                connection.write(bytes(10_000))
            assert connection.unsent_bytes <= 1_000_000

        server.call(pour)
        server.wait_empty()
        assert server.limit_hits("unsent") == 1
    assert protocol.events[-1] == ("close", "LimitError")


def test_86_stalled_tls_queue_is_sealed_no_further_ahead_than_is_sent(start_tls):
    server = start_tls(recorder())
    with RecordClient(server.address, receive_buffer=4096) as client:
        client.shake_hands()
        connection = server.connection()
        server.call(connection.write, bytes(8_000_000))
        server.passes(20)
        queue = server.call(lambda: connection._unsent)
        assert queue.sealed_bytes < 5 * RECORD_BYTES < len(queue)
        assert client.receive_exactly(8_000_000) == bytes(8_000_000)


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


# ---------------------------------------------------------------------- 91, 92: rubbish


def records(data: bytes) -> Iterator[bytes]:
    """The records of which this consists; the last one may be cut short."""
    while data:
        size = 5 + int.from_bytes(data[3:5], "big")
        yield data[:size]
        data = data[size:]


def spoil(chance: random.Random, data: bytes) -> bytes:
    """Cut, flip bits, repeat, reorder records, lie about lengths; or leave it as it is."""
    kind = chance.randrange(6)
    if kind == 0:
        return data[: chance.randrange(len(data) + 1)]
    if kind == 1:
        spoilt = bytearray(data)
        for _ in range(chance.choice([1, 2, 30])):
            spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
        return bytes(spoilt)
    if kind == 2:
        shuffled = list(records(data)) * chance.choice([1, 2])
        chance.shuffle(shuffled)
        return b"".join(shuffled)
    if kind == 3:
        where = chance.randrange(len(data))
        return data[:where] + chance.randbytes(chance.choice([1, 5, 500])) + data[where:]
    if kind == 4:
        spoilt = bytearray(data)
        where = chance.choice([3, 4, 6, 7, 8, min(43, len(data) - 1)])
        spoilt[where] = chance.randrange(256)
        return bytes(spoilt)
    return data


def fuzz(seeds: range, logged: Any) -> None:
    logged.allow("TLS failed|left out")
    protocol = recorder()
    with EventLoop() as loop:
        server = Server(loop, protocol, small_limits(linger_timeout_s=0))
        server.listen(tls=world().settings(handshake_timeout_s=60))
        address = server.listeners[0].socket.getsockname()
        handlers, timers = len(loop.poller.handlers), loop.timers
        for seed in seeds:
            chance = random.Random(seed)
            version = chance.choice([ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
            client = RecordClient(address, world().client_context(maximum_version=version))
            run_until(loop, lambda: len(server.connections) == 1)
            client.socket.setblocking(False)
            spoil_at = chance.randrange(3)
            try:
                for flight in range(3):
                    done = client.step()
                    data = client.take()
                    if done and flight == 2:
                        data += client.seal(b"hello", b"x" * 1000)
                    if data:
                        client.socket.send(spoil(chance, data) if flight == spoil_at else data)
                    run_pass(loop)
                    run_pass(loop)
                    try:
                        if not client.receive_some():
                            break
                    except BlockingIOError:
                        pass
            except (ssl.SSLError, ConnectionError):
                pass
            client.close()
            run_until(loop, lambda: not server.connections, f"seed {seed}: the connection goes")
        run_until(loop, lambda: len(loop.poller.handlers) == handlers)
        assert loop.timers == timers
        stats = server.stats
        assert stats.accepted == stats.closed == len(seeds)
        # And it serves as before.
        thread = threading.Thread(target=lambda: connect_tls(address).close())
        thread.start()
        run_until(loop, lambda: not thread.is_alive())
        server.abort()
        run_pass(loop)


def test_91_fuzzed_handshakes_cost_only_themselves(logged, capfd):
    fuzz(range(150), logged)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_91_fuzzed_handshakes_many(logged, capfd):
    fuzz(range(1000, 21000), logged)
    assert capfd.readouterr().err == ""


def test_92_name_that_is_no_text_prints_nothing(start_tls, capfd):
    server = start_tls(Echo)
    with RecordClient(server.address) as client:
        client.step()
        words = client.take()
        assert b"localhost" in words
        client.socket.sendall(words.replace(b"localhost", b"\xff\x1b[31mhid"))
        assert client.socket.recv(7)[:1] == b"\x15"
    server.wait_empty()
    assert tally(server).failures == {"name": 1}
    captured = capfd.readouterr()
    assert captured.err == ""


# ---------------------------------------------------------------------- 93, 94: limits


def test_93_refusal_is_said_in_tls(start_tls, logged):
    logged.expect("too-many-connections")
    server = start_tls(Echo, small_limits(max_connections=1))
    with connect_tls(server.address) as first:
        with connect_tls(server.address) as second:
            assert second.recv(100) == b"ERR too-many-connections limit 1\n"
            assert second.recv(100) == b""
        first.sendall(b"x")
        assert first.recv(1) == b"x"


def test_93_refusal_of_a_crowd_sends_no_plaintext(start_tls, logged):
    logged.expect("too-many-connections")
    logged.allow("left out")
    server = start_tls(Echo, small_limits(max_connections=1))
    with connect_tls(server.address):
        crowd = [Client(server.address) for _ in range(30)]
        wait_until(lambda: server.limit_hits("too-many-connections") == 30)
        assert all(client.receive_rest() == b"" for client in crowd[16:])
        for client in crowd:
            client.close()


def test_94_idle_time_out_and_end_for_a_limit(start_tls):
    protocol = recorder()
    server = start_tls(protocol, small_limits(idle_timeout_s=0.1))
    with RecordClient(server.address) as client:
        client.shake_hands()
        with pytest.raises((EOFError, ConnectionError)):
            client.receive_rest()
    server.wait_empty()
    assert server.limit_hits("idle-timeout") == 1
    assert protocol.events == ["connect", ("close", LimitError.__name__)]


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
