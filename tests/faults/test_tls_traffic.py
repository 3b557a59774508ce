"""TLS records that cost much, and readers that are slow: lines 84 to 86 of docs/reliability.md."""

from __future__ import annotations

import os
import random
import ssl

import pytest

from evloop.net.receiving import FIRST_RECV_BYTES
from evloop.net.tlsqueue import RECORD_BYTES
from evloop.net.tlsstream import MAX_RECV_BYTES
from servers import Echo, Recorder, recorder, small_limits
from tlsworld import RecordClient, world
from waiting import DEADLINE_S, wait_until

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
        client.socket.settimeout(0.5)  # a server on a busy machine is not stalled yet if it lets one wait for less
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
