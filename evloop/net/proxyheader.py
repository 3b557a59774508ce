"""The header in which a proxy names its client: PROXY protocol, version 1 and version 2, without I/O.

Theory of operation
-------------------
A proxy that passes a stream on hides its client: every connection comes from the proxy's address. So HAProxy, nginx,
and the load balancers of the clouds may send a header first, once, before the client's own bytes::

    version 1   PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 CR LF                       107 bytes at most

    version 2   signature   version, command   family, transport   length   addresses and TLVs
                12 bytes    1 byte             1 byte              2 bytes  as many bytes as length says

A `ProxyHeaderReader` is fed with what was received, cut at any place, until it has the header; what comes after it
belongs to the next reader. So it is used as a first data handler that replaces itself::

    def on_data(data):
        if (found := reader.feed(data)) is None:
            return None                                   # not complete
        header, rest = found
        connection.set_data_handler(handler)
        return handler(rest) if rest else None

The sender of this header decides which address everybody sees. So it should be read only from addresses that are
trusted to tell the truth, and must be there then. From all others it is ordinary bytes; `looks_like_proxy_header` helps
to log what these bytes seem to be.

What does not begin like a header is rejected at the first byte that differs, what is too long as soon as that can be
told: the reader never holds more than the limit, and a client that was not expected here gets its answer at once.
"""

from __future__ import annotations

import struct

from evloop.errors import EvloopError

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

# Enough for a certificate among the TLVs, and the most that nginx takes, too.
MAX_HEADER_BYTES = 4096

_V1 = b"PROXY "
_V1_MAX_BYTES = 107
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEAD = struct.Struct("!12sBBH")

_LOCAL, _PROXY = 0x20, 0x21  # version and command
_UNKNOWN_FAMILY, _INET, _INET6, _UNIX = range(4)
_ADDRESS_BYTES = {_UNKNOWN_FAMILY: 0, _INET: 12, _INET6: 36, _UNIX: 216}
_TRANSPORTS = 3  # unknown, stream, datagram
_UNIX_PATH_BYTES = 108

# Types of TLVs, as the specification numbers them.
ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL, NETNS = 0x01, 0x02, 0x03, 0x04, 0x05, 0x20, 0x30
SSL_VERSION, SSL_COMMON_NAME, SSL_CIPHER = 0x21, 0x22, 0x23

_CLIENT_SSL, _CLIENT_CERT_CONNECTION, _CLIENT_CERT_SESSION = 0x01, 0x02, 0x04  # bits of an SSL TLV's first byte

Address = tuple[str, int] | str


class ProxyHeaderError(EvloopError):
    """Bytes that are no PROXY header, or a wrong one. The text is one line that says what is wrong."""


class ProxyTls:
    """What the proxy says of the TLS that its client speaks with it; text is None where it says nothing.

    Attributes:
        spoken: the client speaks TLS with the proxy.
        certificate: it has presented a certificate, in this connection or in the session it resumed.
        verified: and that was verified.
        version, cipher, common_name: as text, e.g. ``"TLSv1.3"``; the last one from the client's certificate.
        tlvs: all that it says, as pairs of type and value.
    """

    __slots__ = ("certificate", "cipher", "common_name", "spoken", "tlvs", "verified", "version")

    def __init__(self, value: bytes) -> None:
        if len(value) < 5:
            raise ProxyHeaderError(f"its SSL TLV has {len(value)} bytes, and 5 at least are needed")
        client = value[0]
        self.tlvs = _parse_tlvs(value[5:])
        self.spoken = bool(client & _CLIENT_SSL)
        self.certificate = bool(client & (_CLIENT_CERT_CONNECTION | _CLIENT_CERT_SESSION))
        self.verified = self.certificate and value[1:5] == b"\0\0\0\0"
        self.version = _text(self.tlvs, SSL_VERSION)
        self.cipher = _text(self.tlvs, SSL_CIPHER)
        self.common_name = _text(self.tlvs, SSL_COMMON_NAME)


class ProxyHeader:
    """What a proxy has said. ``str`` is one line for a log, in which nothing that a client chose can do harm.

    Attributes:
        version: 1 or 2, of the protocol.
        local: the proxy speaks for itself, as in a health check: there is no client. Who reads the header may find that
            out in other ways, too, and set it.
        source: the client's address, as sockets have it: host and port, or the path of a Unix socket (a name in the
            abstract namespace with ``@`` in front). None if the proxy doesn't know or there is no client: then the
            connection's own peer is all that is known.
        destination: where the client connected to; None in the same cases.
        tlvs: what else was said, as pairs of type and value, in order.
        authority: the host name that the client asked for (SNI), or None.
        alpn: the protocol that was agreed on, or None.
        unique_id: the proxy's name of this connection, or None.
        tls: what is said of the client's TLS, or None.
        sender: the proxy's own address as text, if who received the header says it; else empty.
    """

    __slots__ = (
        "alpn",
        "authority",
        "destination",
        "local",
        "sender",
        "source",
        "tls",
        "tlvs",
        "unique_id",
        "version",
    )

    def __init__(
        self,
        version: int,
        *,
        local: bool = False,
        source: Address | None = None,
        destination: Address | None = None,
        tlvs: tuple[tuple[int, bytes], ...] = (),
    ) -> None:
        self.version = version
        self.local = local
        self.source = source
        self.destination = destination
        self.tlvs = tlvs
        self.authority = _text(tlvs, AUTHORITY)
        self.alpn = _value(tlvs, ALPN)
        self.unique_id = _value(tlvs, UNIQUE_ID)
        tls = _value(tlvs, SSL)
        self.tls = None if tls is None else ProxyTls(tls)
        self.sender = ""

    def __str__(self) -> str:
        said = [f"PROXY v{self.version}"]
        if self.local:
            said.append("LOCAL")
        elif self.source is None or self.destination is None:
            said.append("UNKNOWN")
        else:
            said.append(f"from {_shown(self.source)} to {_shown(self.destination)}")
        said += [
            f"{name}={value!a}"
            for name, value in (("authority", self.authority), ("alpn", self.alpn), ("id", self.unique_id))
            if value is not None
        ]
        if self.tls is not None:
            tls = self.tls
            said.append(f"tls={tls.version or ('yes' if tls.spoken else 'no')!a}")
            if tls.cipher is not None:
                said.append(f"cipher={tls.cipher!a}")
            if tls.common_name is not None:
                said.append(f"cn={tls.common_name!a}{'' if tls.verified else ' (not verified)'}")
        return " ".join(said)

    def __repr__(self) -> str:
        return f"<{self}>"


class ProxyHeaderReader:
    """Takes a stream's first bytes until they are a header. For one stream.

    Args:
        max_bytes: how long a header may be, 107 at least; one of version 1 is never longer than that.

    Attributes:
        received: how many bytes of the header it holds. 0: nothing was received, so it was probably a probe.
    """

    __slots__ = ("_enough", "_held", "_max_bytes")

    def __init__(self, max_bytes: int = MAX_HEADER_BYTES) -> None:
        if max_bytes < _V1_MAX_BYTES:
            raise ValueError(f"max_bytes must be at least {_V1_MAX_BYTES}, got {max_bytes}")
        self._held = bytearray()
        self._enough = 0  # with fewer bytes there is nothing new to be found out
        self._max_bytes = max_bytes

    @property
    def received(self) -> int:
        return len(self._held)

    def feed(self, data: bytes) -> tuple[ProxyHeader, bytes] | None:
        """Take what was received.

        Returns:
            the header and the bytes that came after it; None while it is not complete.

        Raises:
            ProxyHeaderError: this is no header, or a wrong one, or too long. The stream can't be used.
        """
        held = self._held
        searched = len(held)
        held += data
        if len(held) < self._enough:
            return None
        if held.startswith(_V1):
            return self._feed_v1(max(searched - 1, 0))
        if held.startswith(_V2):
            return self._feed_v2()
        if _V1.startswith(held) or _V2.startswith(held):
            return None
        raise ProxyHeaderError(f"no PROXY header, but {_quoted(held)}")

    def _feed_v1(self, searched: int) -> tuple[ProxyHeader, bytes] | None:
        held = self._held
        end = held.find(b"\n", searched, _V1_MAX_BYTES)
        if end < 0:
            if len(held) >= _V1_MAX_BYTES:
                raise ProxyHeaderError(f"a PROXY v1 header ends within {_V1_MAX_BYTES} bytes, this is {_quoted(held)}")
            return None
        return _parse_v1(bytes(held[: end + 1])), bytes(held[end + 1 :])

    def _feed_v2(self) -> tuple[ProxyHeader, bytes] | None:
        held = self._held
        if len(held) > len(_V2):
            _check_command(held[len(_V2)])
        if len(held) < _V2_HEAD.size:
            return None
        _, command, family, length = _V2_HEAD.unpack_from(held)
        end = _V2_HEAD.size + length
        if end > self._max_bytes:
            raise ProxyHeaderError(f"a PROXY v2 header of {end} bytes, and {self._max_bytes} are allowed")
        if len(held) < end:
            self._enough = end
            return None
        return _parse_v2(bytes(held[:end]), command, family), bytes(held[end:])


def looks_like_proxy_header(data: bytes) -> bool:
    """Whether a stream's first received bytes look like a PROXY header: for a server that does not expect one."""
    return data.startswith((b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN", _V2))


# ---------------------------------------------------------------------- version 1


def _parse_v1(line: bytes) -> ProxyHeader:
    if not line.endswith(b"\r\n"):
        raise ProxyHeaderError(f"a PROXY v1 header is a line that ends in CR LF, this is {_quoted(line)}")
    _, family, *fields = line.removesuffix(b"\r\n").split(b" ")
    if family == b"UNKNOWN":
        return ProxyHeader(1)  # what may follow is to be ignored
    if family not in (b"TCP4", b"TCP6") or len(fields) != 4:
        raise ProxyHeaderError(f"a PROXY v1 header has a family, two addresses and two ports, this is {_quoted(line)}")
    source, destination = (_host_v1(field, family, line) for field in fields[:2])
    source_port, destination_port = (_port_v1(field, line) for field in fields[2:])
    return ProxyHeader(1, source=(source, source_port), destination=(destination, destination_port))


def _host_v1(field: bytes, family: bytes, line: bytes) -> str:
    import ipaddress  # here, as few need it and it takes 2 ms to load

    try:
        text = field.decode("ascii")
        if "%" in text:
            raise ValueError
        return _host(ipaddress.IPv4Address(text) if family == b"TCP4" else ipaddress.IPv6Address(text))
    except ValueError:
        raise ProxyHeaderError(f"not an address of {family.decode()}: {_quoted(field)} in {_quoted(line)}") from None


def _port_v1(field: bytes, line: bytes) -> int:
    if not field.isdigit() or len(field) > 5 or (field[0] == 0x30 and len(field) > 1) or int(field) > 65535:
        raise ProxyHeaderError(f"not a port: {_quoted(field)} in {_quoted(line)}")
    return int(field)


# ---------------------------------------------------------------------- version 2


def _check_command(command: int) -> None:
    if command >> 4 != 2:
        raise ProxyHeaderError(f"a PROXY header of version {command >> 4}, and 1 and 2 are known")
    if command not in (_LOCAL, _PROXY):
        raise ProxyHeaderError(f"a PROXY v2 header with command {command & 15}, and only LOCAL (0) and PROXY (1) exist")


def _parse_v2(header: bytes, command: int, family_and_transport: int) -> ProxyHeader:
    if command == _LOCAL:
        return ProxyHeader(2, local=True)  # its block is to be skipped, whatever is in it
    family, transport = divmod(family_and_transport, 16)
    if family not in _ADDRESS_BYTES or transport >= _TRANSPORTS:
        raise ProxyHeaderError(f"a PROXY v2 header with family {family} and transport {transport}, which don't exist")
    block = header[_V2_HEAD.size :]
    needed = _ADDRESS_BYTES[family]
    if len(block) < needed:
        raise ProxyHeaderError(f"a PROXY v2 header with {len(block)} bytes for addresses that take {needed}")
    source, destination = _addresses_v2(family, block[:needed])
    tlvs = _parse_tlvs(block[needed:])
    _check_crc32c(header, _V2_HEAD.size + needed, tlvs)
    return ProxyHeader(2, source=source, destination=destination, tlvs=tlvs)


def _addresses_v2(family: int, block: bytes) -> tuple[Address | None, Address | None]:
    if family == _UNKNOWN_FAMILY:
        return None, None
    if family == _UNIX:
        return _path(block[:_UNIX_PATH_BYTES]), _path(block[_UNIX_PATH_BYTES:])
    import ipaddress

    size = 4 if family == _INET else 16
    source, destination, source_port, destination_port = struct.unpack(f"!{size}s{size}sHH", block)
    return (_host(ipaddress.ip_address(source)), source_port), (
        _host(ipaddress.ip_address(destination)),
        destination_port,
    )


def _host(address: IPv4Address | IPv6Address) -> str:
    """As sockets write it, also where ``ipaddress`` differs."""
    mapped = address.ipv4_mapped if address.version == 6 else None
    return str(address) if mapped is None else f"::ffff:{mapped}"


def _path(field: bytes) -> str:
    if field.startswith(b"\0") and field.strip(b"\0"):
        field = b"@" + field[1:].rstrip(b"\0")
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _parse_tlvs(data: bytes) -> tuple[tuple[int, bytes], ...]:
    found = []
    at = 0
    while at < len(data):
        value_at = at + 3
        end = value_at + int.from_bytes(data[at + 1 : value_at], "big")
        if value_at > len(data) or end > len(data):
            raise ProxyHeaderError(f"a PROXY v2 header whose TLV of type {data[at]:#04x} goes beyond its end")
        found.append((data[at], data[value_at:end]))
        at = end
    return tuple(found)


def _value(tlvs: tuple[tuple[int, bytes], ...], wanted: int) -> bytes | None:
    return next((value for kind, value in tlvs if kind == wanted), None)


def _text(tlvs: tuple[tuple[int, bytes], ...], wanted: int) -> str | None:
    value = _value(tlvs, wanted)
    return None if value is None else value.decode("utf-8", "replace")


def _check_crc32c(header: bytes, tlvs_at: int, tlvs: tuple[tuple[int, bytes], ...]) -> None:
    at = tlvs_at
    for kind, value in tlvs:
        at += 3
        if kind == CRC32C:
            if len(value) != 4:
                raise ProxyHeaderError(f"a PROXY v2 header with a CRC32c of {len(value)} bytes, not 4")
            # It was computed with zeros in its own place.
            computed = crc32c(header[:at] + bytes(4) + header[at + 4 :])
            if computed != int.from_bytes(value, "big"):
                raise ProxyHeaderError("a PROXY v2 header whose CRC32c is wrong: it was damaged on its way")
        at += len(value)


_crc32c_table: list[int] = []


def crc32c(data: bytes) -> int:
    """The checksum named CRC-32C (Castagnoli). ``zlib.crc32`` is another one."""
    if not _crc32c_table:  # made when the first one is sent
        for byte in range(256):
            for _ in range(8):
                byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
            _crc32c_table.append(byte)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _crc32c_table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


# ---------------------------------------------------------------------- text for people


def _quoted(data: bytes | bytearray) -> str:
    return ascii(bytes(data[:40]))[1:] + ("..." if len(data) > 40 else "")


def _shown(address: Address) -> str:
    if isinstance(address, str):
        return "unix:" + ascii(address)[1:-1]
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
