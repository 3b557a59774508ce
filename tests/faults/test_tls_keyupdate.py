"""A client that changes its keys without end, which the standard library can't: line 130 of docs/reliability.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from evloop.net.receiving import FIRST_RECV_BYTES
from evloop.net.tlsqueue import RECORD_BYTES
from evloop.net.tlsstream import MAX_RECV_BYTES
from servers import Echo, RunningServer
from tlsworld import RecordClient, world
from waiting import wait_until

sealer = pytest.importorskip("evloop_bench.common.sealer")  # cryptography comes with trustme


@contextmanager
def sealing(server: RunningServer, folder: Path) -> Iterator[tuple[RecordClient, Any]]:
    """A client after its handshake, and what seals its records from now on."""
    log = folder / "keys"
    with RecordClient(server.address, world().client_context(keylog_filename=str(log))) as client:
        client.shake_hands()
        assert client.tls.cipher()[0] == sealer.CIPHER
        yield client, sealer.Sealer(sealer.client_secret(log.read_text()))


def turns_for(server: RunningServer, send: Callable[[bytes], None], data: bytes) -> int:
    """In how many passes of the loop a connection has received this. It is down to the smallest receives then."""
    connection = server.connection()
    received, passes = server.call(lambda: (connection.bytes_received, server.loop.passes))
    send(data)
    wait_until(lambda: connection.bytes_received - received == len(data))
    assert server.call(lambda: connection._recv_bytes) == FIRST_RECV_BYTES
    return server.call(lambda: server.loop.passes) - passes


@pytest.mark.parametrize("ask", [False, True], ids=["its own", "wants ours too"])
def test_130_key_updates_are_dealt_with_a_few_in_a_turn(start_tls, tmp_path: Path, ask: bool):
    server = start_tls(Echo)
    with sealing(server, tmp_path) as (client, ours):
        connection = server.connection()
        client.socket.sendall(ours.seal(sealer.DATA, b"before"))
        assert client.receive_exactly(6) == b"before"
        flood = b"".join(ours.update(ask=ask) for _ in range(1500))
        # Each turn is one receive of the smallest size: some twenty of them. And nothing is kept for each of them.
        assert turns_for(server, client.socket.sendall, flood) >= len(flood) / FIRST_RECV_BYTES
        assert server.call(lambda: connection.unsent_bytes) == 0
        sent = connection.bytes_sent
        client.socket.sendall(ours.seal(sealer.DATA, b"after"))
        assert client.receive_exactly(5) == b"after"
        assert connection.bytes_sent - sent < 1000
        client.socket.sendall(ours.seal(sealer.ALERT, b"\x01\x00"))  # close_notify
        assert client.receive_rest() == b""


@pytest.mark.parametrize(
    ("data", "earned"),
    [
        pytest.param(b"x", 0, id="little"),
        # Some receives of the size that data has earned; then it is over with it.
        pytest.param(b"x" * RECORD_BYTES, 4 * MAX_RECV_BYTES, id="much"),
    ],
)
def test_130_key_updates_right_behind_data(start_tls, tmp_path: Path, data: bytes, earned: int):
    """A receive ends within a record then, and the next one does not begin with a header."""
    server = start_tls(Echo)
    with sealing(server, tmp_path) as (client, ours):
        records = ours.seal(sealer.DATA, data) + ours.seal(sealer.DATA, data)
        flood = b"".join(ours.update(ask=False) for _ in range(3000))
        assert turns_for(server, client.socket.sendall, records + flood) >= (len(flood) - earned) / FIRST_RECV_BYTES
        assert client.receive_exactly(2 * len(data)) == 2 * data


def test_130_key_updates_behind_one_that_is_padded(start_tls, tmp_path: Path):
    """A header that announces a long record, all of it, and nothing in it."""
    server = start_tls(Echo)
    with sealing(server, tmp_path) as (client, ours):
        connection = server.connection()
        padded = ours.update(ask=False, padding=RECORD_BYTES - 5)
        before = server.call(lambda: connection.bytes_received)
        for part in (padded[:5], padded[5:]):
            client.socket.sendall(part)
            before += len(part)
            wait_until(lambda before=before: connection.bytes_received == before)
        flood = b"".join(ours.update(ask=False) for _ in range(1500))
        assert turns_for(server, client.socket.sendall, flood) >= len(flood) / FIRST_RECV_BYTES
