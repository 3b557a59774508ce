"""TLS among rubbish and crowds: lines 91 to 94 of docs/reliability.md."""

from __future__ import annotations

import random
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from clients import Client
from evloop import EventLoop, LimitError, Server
from servers import Echo, recorder, small_limits
from tlsworld import RecordClient, connect_tls, tally, world
from waiting import run_pass, run_until, wait_until

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
        # A quick machine has more to log in a second than may be, and says a second later how much was left out.
        run_until(loop, lambda: loop.timers == timers)
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
