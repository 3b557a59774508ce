"""A client that changes its keys without end, which the standard library can't: line 130 of docs/reliability.md."""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path

import pytest

from evloop.net.receiving import FIRST_RECV_BYTES
from servers import Echo
from tlsworld import RecordClient, world
from waiting import wait_until

AESGCM = pytest.importorskip("cryptography.hazmat.primitives.ciphers.aead").AESGCM

_HANDSHAKE, _DATA = 22, 23
_KEY_UPDATE = b"\x18\x00\x00\x01"


class Sealer:
    """Seals records of TLS 1.3 (TLS_AES_256_GCM_SHA384) with a secret that TLS has written into its log of keys."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._begin()

    def _begin(self) -> None:
        self._aead = AESGCM(self._expand(b"key", 32))
        self._iv = int.from_bytes(self._expand(b"iv", 12), "big")
        self._number = 0

    def _expand(self, label: bytes, size: int) -> bytes:
        """HKDF-Expand-Label of RFC 8446, of which one block is enough."""
        label = b"tls13 " + label
        info = size.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
        return hmac.digest(self._secret, info + b"\1", "sha384")[:size]

    def seal(self, kind: int, data: bytes) -> bytes:
        """One record."""
        header = b"\x17\x03\x03" + (len(data) + 1 + 16).to_bytes(2, "big")
        nonce = (self._iv ^ self._number).to_bytes(12, "big")
        self._number += 1
        sealed: bytes = self._aead.encrypt(nonce, data + bytes([kind]), header)
        return header + sealed

    def update(self, *, ask: bool) -> bytes:
        """A KeyUpdate, which may ask for the peer's. What is sealed from now on is sealed with the next key."""
        record = self.seal(_HANDSHAKE, _KEY_UPDATE + bytes([ask]))
        self._secret = self._expand(b"traffic upd", hashlib.sha384().digest_size)
        self._begin()
        return record


@pytest.mark.parametrize("ask", [False, True], ids=["its own", "wants ours too"])
def test_130_key_updates_are_dealt_with_a_few_in_a_turn(start_tls, tmp_path: Path, ask: bool):
    server = start_tls(Echo)
    log = tmp_path / "keys"
    with RecordClient(server.address, world().client_context(keylog_filename=str(log))) as client:
        client.shake_hands()
        assert client.tls.cipher()[0] == "TLS_AES_256_GCM_SHA384"
        secret = re.search(r"^CLIENT_TRAFFIC_SECRET_0 \w+ (\w+)$", log.read_text(), re.MULTILINE)
        assert secret is not None
        sealer = Sealer(bytes.fromhex(secret[1]))
        connection = server.connection()
        client.socket.sendall(sealer.seal(_DATA, b"before"))
        assert client.receive_exactly(6) == b"before"
        flood = b"".join(sealer.update(ask=ask) for _ in range(1500))
        received, passes = server.call(lambda: (connection.bytes_received, server.loop.passes))
        client.socket.sendall(flood)
        wait_until(lambda: connection.bytes_received - received == len(flood))
        # Each turn is one receive of the smallest size: some twenty of them. And nothing is kept for each of them.
        turns = server.call(lambda: server.loop.passes) - passes
        assert turns >= len(flood) / FIRST_RECV_BYTES
        assert server.call(lambda: (connection._recv_bytes, connection.unsent_bytes)) == (FIRST_RECV_BYTES, 0)
        sent = connection.bytes_sent
        client.socket.sendall(sealer.seal(_DATA, b"after"))
        assert client.receive_exactly(5) == b"after"
        assert connection.bytes_sent - sent < 1000
        client.socket.sendall(sealer.seal(21, b"\x01\x00"))  # close_notify
        assert client.receive_rest() == b""
