"""A client that changes its keys without end, which the standard library can't: line 130 of docs/reliability.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from evloop.net.receiving import FIRST_RECV_BYTES
from servers import Echo
from tlsworld import RecordClient, world
from waiting import wait_until

sealer = pytest.importorskip("evloop_bench.common.sealer")  # cryptography comes with trustme


@pytest.mark.parametrize("ask", [False, True], ids=["its own", "wants ours too"])
def test_130_key_updates_are_dealt_with_a_few_in_a_turn(start_tls, tmp_path: Path, ask: bool):
    server = start_tls(Echo)
    log = tmp_path / "keys"
    with RecordClient(server.address, world().client_context(keylog_filename=str(log))) as client:
        client.shake_hands()
        assert client.tls.cipher()[0] == sealer.CIPHER
        ours = sealer.Sealer(sealer.client_secret(log.read_text()))
        connection = server.connection()
        client.socket.sendall(ours.seal(sealer.DATA, b"before"))
        assert client.receive_exactly(6) == b"before"
        flood = b"".join(ours.update(ask=ask) for _ in range(1500))
        received, passes = server.call(lambda: (connection.bytes_received, server.loop.passes))
        client.socket.sendall(flood)
        wait_until(lambda: connection.bytes_received - received == len(flood))
        # Each turn is one receive of the smallest size: some twenty of them. And nothing is kept for each of them.
        turns = server.call(lambda: server.loop.passes) - passes
        assert turns >= len(flood) / FIRST_RECV_BYTES
        assert server.call(lambda: (connection._recv_bytes, connection.unsent_bytes)) == (FIRST_RECV_BYTES, 0)
        sent = connection.bytes_sent
        client.socket.sendall(ours.seal(sealer.DATA, b"after"))
        assert client.receive_exactly(5) == b"after"
        assert connection.bytes_sent - sent < 1000
        client.socket.sendall(ours.seal(sealer.ALERT, b"\x01\x00"))  # close_notify
        assert client.receive_rest() == b""
