"""Builds PROXY headers, from the specification's text and not from the reader's code: for tests only."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

SIGNATURE = bytes.fromhex("0D0A0D0A000D0A515549540A")
STREAM, DATAGRAM = 1, 2


def v1(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """A header of version 1."""
    family = "TCP6" if ":" in source[0] else "TCP4"
    return f"PROXY {family} {source[0]} {destination[0]} {source[1]} {destination[1]}\r\n".encode()


def tlv(kind: int, value: bytes) -> bytes:
    """One more thing that a header of version 2 can say."""
    return struct.pack("!BH", kind, len(value)) + value


def ssl_tlv(*, client: int = 1, verify: int = 0, inner: Sequence[tuple[int, bytes]] = ()) -> bytes:
    """What is said of the client's TLS."""
    return tlv(0x20, struct.pack("!BI", client, verify) + b"".join(tlv(kind, value) for kind, value in inner))


def v2(
    source: tuple[str, int] | str | None,
    destination: tuple[str, int] | str | None = None,
    tlvs: bytes = b"",
    *,
    local: bool = False,
    transport: int = STREAM,
    checksum: bool = False,
) -> bytes:
    """A header of version 2.

    Args:
        source, destination: host and port, or the path of a Unix socket; None for an unknown family.
        tlvs: made by `tlv`.
        checksum: add a CRC32c that is right.
    """
    if source is None:
        family, addresses = 0, b""
    elif isinstance(source, str):
        family, addresses = 3, b"".join(_path(name).ljust(108, b"\0") for name in (source, str(destination)))
    else:
        assert isinstance(destination, tuple)
        family, kind = (2, socket.AF_INET6) if ":" in source[0] else (1, socket.AF_INET)
        hosts = b"".join(socket.inet_pton(kind, host) for host, _ in (source, destination))
        addresses = hosts + struct.pack("!HH", source[1], destination[1])
    if checksum:
        tlvs += tlv(3, bytes(4))
    header = SIGNATURE + struct.pack("!BBH", 0x20 | (not local), family << 4 | transport, len(addresses + tlvs))
    header += addresses + tlvs
    return header[:-4] + crc32c(header).to_bytes(4, "big") if checksum else header


def _path(name: str) -> bytes:
    return (b"\0" + name[1:].encode() if name.startswith("@") else name.encode())[:108]


def crc32c(data: bytes) -> int:
    """Bit by bit, as its definition has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    return crc ^ 0xFFFFFFFF
