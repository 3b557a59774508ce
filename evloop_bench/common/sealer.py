"""Records of TLS 1.3 made by hand, for what the standard library's `ssl` does not do: above all KeyUpdate.

Needs the package cryptography, which comes with trustme.
"""

from __future__ import annotations

import hashlib
import hmac
import re

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ALERT, HANDSHAKE, DATA = 21, 22, 23
CIPHER = "TLS_AES_256_GCM_SHA384"
_KEY_UPDATE = b"\x18\x00\x00\x01"


def client_secret(log: str) -> bytes:
    """The first secret that the client seals data with, as TLS has written it into its log of keys."""
    found = re.findall(r"^CLIENT_TRAFFIC_SECRET_0 \w+ (\w+)$", log, re.MULTILINE)
    return bytes.fromhex(found[-1])


class Sealer:
    """Seals records of TLS 1.3 (`CIPHER`) with a secret."""

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

    def seal(self, kind: int, data: bytes, padding: int = 0) -> bytes:
        """One record, with so many bytes of padding."""
        header = b"\x17\x03\x03" + (len(data) + 1 + padding + 16).to_bytes(2, "big")
        nonce = (self._iv ^ self._number).to_bytes(12, "big")
        self._number += 1
        sealed: bytes = self._aead.encrypt(nonce, data + bytes([kind]) + bytes(padding), header)
        return header + sealed

    def update(self, *, ask: bool, padding: int = 0) -> bytes:
        """A KeyUpdate, which may ask for the peer's. What is sealed from now on is sealed with the next key."""
        record = self.seal(HANDSHAKE, _KEY_UPDATE + bytes([ask]), padding)
        self._secret = self._expand(b"traffic upd", hashlib.sha384().digest_size)
        self._begin()
        return record
