"""The PROXY protocol's header: read whole, byte by byte and in every split, or refused in one line."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from evloop.net.proxyheader import (
    MAX_HEADER_BYTES,
    ProxyHeader,
    ProxyHeaderError,
    ProxyHeaderReader,
    crc32c,
    looks_like_proxy_header,
)
from proxyheaders import DATAGRAM, SIGNATURE, ssl_tlv, tlv, v1, v2

FOUR = ("192.0.2.1", 56324), ("198.51.100.1", 443)
SIX = ("2001:db8::1", 1), ("2001:db8::2", 65535)
UNIX = "/run/client", "@abstract"


def read(pieces: Iterable[bytes], max_bytes: int = MAX_HEADER_BYTES) -> tuple[ProxyHeader, bytes] | str | None:
    """What a reader that is fed with these pieces finds: the header and what comes after it, an error, or nothing."""
    reader = ProxyHeaderReader(max_bytes)
    pieces = list(pieces)
    for number, piece in enumerate(pieces):
        try:
            found = reader.feed(piece)
        except ProxyHeaderError as error:
            return str(error)
        assert reader.received <= max_bytes or found
        if found is not None:
            return found[0], found[1] + b"".join(pieces[number + 1 :])
    return None


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def header_of(data: bytes, after: bytes = b"") -> ProxyHeader:
    """The header in ``data``, whichever way it is fed."""
    found = read([data + after])
    assert isinstance(found, tuple), found
    header, rest = found
    assert rest == after
    splits = [[data[:at], data[at:] + after] for at in range(1, len(data))]
    for pieces in ([data, after], byte_by_byte(data + after), *splits):
        again = read(pieces)
        assert isinstance(again, tuple), (again, pieces)
        assert (repr(again[0]), again[1]) == (repr(header), after)
        assert again[0].tlvs == header.tlvs
    assert read([data[:-1]]) is None
    return header


def refused(data: bytes) -> str:
    """Why ``data`` is no header: one line, whichever way it is fed, and at the same byte."""
    reasons = {read(pieces) for pieces in ([data], byte_by_byte(data), [data[:7], data[7:]])}
    for reason in reasons:
        assert isinstance(reason, str), reason
        assert reason.isprintable()
    return str(read([data]))


# ---------------------------------------------------------------------- what is right


@pytest.mark.parametrize("after", [b"", b"hello\n", b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n", b"\0" * 5000])
@pytest.mark.parametrize("ends", [FOUR, SIX], ids=["4", "6"])
@pytest.mark.parametrize("build", [v1, v2])
def test_addresses(build, ends, after):
    header = header_of(build(*ends), after)
    assert (header.source, header.destination) == ends
    assert not header.local
    assert header.version == (1 if build is v1 else 2)


def test_unix_addresses():
    header = header_of(v2(*UNIX), b"x")
    assert (header.source, header.destination) == UNIX
    assert header_of(v2("", "/run/cc")).source == ""  # a client that has no name, as most
    assert header_of(v2("x" * 108, "/run/cc")).source == "x" * 108


def test_the_examples_of_the_specification():
    line = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
    header = header_of(line, b"GET / HTTP/1.1\r\nHost: 192.168.0.11\r\n\r\n")
    assert header.source == ("192.168.0.1", 56324)
    assert header.destination == ("192.168.0.11", 443)
    longest = b"PROXY UNKNOWN " + b"ffff:f...f:ffff".ljust(39, b"f") + b" " + b"f" * 39 + b" 65535 65535\r\n"
    assert len(longest) == 107
    assert header_of(longest).source is None
    assert header_of(b"PROXY UNKNOWN\r\n", b"x").source is None
    least = SIGNATURE + b"\x21\x11\x00\x0c" + bytes([127, 0, 0, 1, 127, 0, 0, 2, 0x30, 0x39, 0, 80])
    assert header_of(least, b"x").source == ("127.0.0.1", 12345)


def test_addresses_are_written_as_sockets_write_them():
    header = header_of(v1(("2001:0DB8:0:0:0:0:0:1", 1), ("::FFFF:192.0.2.7", 2)))
    assert header.source == ("2001:db8::1", 1)
    assert header.destination == ("::ffff:192.0.2.7", 2)


def test_a_proxy_that_speaks_for_itself():
    header = header_of(v2(None, local=True, transport=0), b"x")
    assert header.local
    assert header.source is None
    assert str(header) == "PROXY v2 LOCAL"
    # What it says besides is to be skipped, whatever it is.
    assert header_of(v2(*FOUR, tlvs=b"\xff\xff", local=True)).source is None


def test_a_client_that_the_proxy_does_not_know():
    header = header_of(v2(None, transport=0, tlvs=tlv(5, b"id")), b"x")
    assert header.source is None
    assert not header.local
    assert header.unique_id == b"id"
    assert str(header) == "PROXY v2 UNKNOWN id=b'id'"


def test_datagrams_have_addresses_too():
    assert header_of(v2(*FOUR, transport=DATAGRAM)).source == FOUR[0]


def test_what_else_is_said():
    inner = [(0x21, b"TLSv1.3"), (0x22, "Zoë\n".encode()), (0x23, b"TLS_AES_128_GCM_SHA256")]
    tlvs = (
        tlv(1, b"h2")
        + tlv(2, b"www.example")
        + tlv(4, b"nothing")
        + tlv(5, bytes(range(4)))
        + ssl_tlv(client=3, inner=inner)
        + tlv(0xEA, b"a cloud's own")
    )
    header = header_of(v2(*SIX, tlvs, checksum=True), b"x")
    assert header.alpn == b"h2"
    assert header.authority == "www.example"
    assert header.unique_id == bytes(range(4))
    assert header.tls is not None
    assert header.tls.spoken
    assert header.tls.certificate
    assert header.tls.verified
    assert (header.tls.version, header.tls.cipher) == ("TLSv1.3", "TLS_AES_128_GCM_SHA256")
    assert header.tls.common_name == "Zoë\n"
    assert [kind for kind, _ in header.tlvs] == [1, 2, 4, 5, 0x20, 0xEA, 3]
    assert (0xEA, b"a cloud's own") in header.tlvs
    assert str(header) == (
        "PROXY v2 from [2001:db8::1]:1 to [2001:db8::2]:65535 authority='www.example' alpn=b'h2' "
        r"id=b'\x00\x01\x02\x03' tls='TLSv1.3' cipher='TLS_AES_128_GCM_SHA256' cn='Zo\xeb\n'"
    )


@pytest.mark.parametrize(
    ("client", "verify", "spoken", "certificate", "verified"),
    [
        (0, 1, False, False, False),
        (1, 1, True, False, False),
        (1, 0, True, False, False),  # nothing failed, as no certificate came: so none is verified
        (3, 0, True, True, True),
        (5, 1, True, True, False),
    ],
)
def test_what_is_said_of_tls(client, verify, spoken, certificate, verified):
    header = header_of(v2(*FOUR, ssl_tlv(client=client, verify=verify, inner=[(0x22, b"x")])))
    assert header.tls is not None
    assert (header.tls.spoken, header.tls.certificate, header.tls.verified) == (spoken, certificate, verified)
    assert header.tls.version is None
    assert ("(not verified)" in str(header)) == (not verified)


def test_the_checksum():
    assert crc32c(b"123456789") == 0xE3069283  # as every description of it has it
    right = v2(*FOUR, tlv(2, b"a") + tlv(5, b"b"), checksum=True)
    assert header_of(right, b"x").source == FOUR[0]
    for at in range(16, len(right)):
        if right[at : at + 1] not in (b"\0", b"\3"):  # lengths and types are other errors
            wrong = bytearray(right)
            wrong[at] ^= 1
            assert isinstance(read([bytes(wrong)]), str), at
    assert "CRC32c is wrong" in refused(right[:20] + b"\1" + right[21:])
    assert "a CRC32c of 2 bytes" in refused(v2(*FOUR, tlv(3, b"ab")))


# ---------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"hello\n", "no PROXY header, but 'hello\\n'"),
        (b"GET / HTTP/1.1\r\n", "no PROXY header, but 'GET / HTTP/1.1\\r\\n'"),
        (b"PROXYTCP4 ", "no PROXY header"),
        (b"PROXY\r\n", "no PROXY header"),
        (b"proxy TCP4 ", "no PROXY header"),
        (b"\r\n\r\n\0\r\nQUIx", "no PROXY header"),
        (b"\x16\x03\x01\x02\x00", "no PROXY header, but '\\x16\\x03\\x01\\x02\\x00'"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", "a line that ends in CR LF"),
        (b"PROXY UNKNOWN\n", "a line that ends in CR LF"),
        (b"PROXY \r\n", "a family, two addresses and two ports"),
        (b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n", "a family, two addresses and two ports"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n", "a family, two addresses and two ports"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n", "a family, two addresses and two ports"),
        (b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n", "a family, two addresses and two ports"),
        (b"PROXY TCP4 ::1 ::1 1 2\r\n", "not an address of TCP4: '::1'"),
        (b"PROXY TCP6 1.2.3.4 ::1 1 2\r\n", "not an address of TCP6: '1.2.3.4'"),
        (b"PROXY TCP6 fe80::1%lo ::1 1 2\r\n", "not an address of TCP6"),
        (b"PROXY TCP4 01.2.3.4 5.6.7.8 1 2\r\n", "not an address of TCP4"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.\xb2 1 2\r\n", "not an address of TCP4"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n", "not a port: '65536'"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n", "not a port: '01'"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 -1 2\r\n", "not a port: '-1'"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8  2\r\n", "not a port: ''"),
        (b"PROXY TCP4 " + b"1" * 200, "ends within 107 bytes"),
        (b"PROXY UNKNOWN " + b"1" * 92 + b"\r\n", "ends within 107 bytes"),
        (SIGNATURE + b"\x11", "of version 1, and 1 and 2 are known"),
        (SIGNATURE + b"\x31\x11\0\0", "of version 3"),
        (SIGNATURE + b"\x22", "with command 2"),
        (SIGNATURE + b"\x21\x41\0\x00", "family 4 and transport 1"),
        (SIGNATURE + b"\x21\x13\0\x0c" + bytes(12), "family 1 and transport 3"),
        (SIGNATURE + b"\x21\x11\0\x0b" + bytes(11), "11 bytes for addresses that take 12"),
        (SIGNATURE + b"\x21\x21\0\x0c" + bytes(12), "12 bytes for addresses that take 36"),
        (SIGNATURE + b"\x21\x31\0\x0c" + bytes(12), "12 bytes for addresses that take 216"),
        (SIGNATURE + b"\x21\x11\xff\xff", "a PROXY v2 header of 65551 bytes, and 4096 are allowed"),
        (v2(*FOUR, b"\1"), "a PROXY v2 header whose TLV of type 0x01 goes beyond its end"),
        (v2(*FOUR, b"\1\0"), "goes beyond its end"),
        (v2(*FOUR, b"\1\0\2x"), "goes beyond its end"),
        (v2(*FOUR, tlv(0x20, b"\1\0\0\0")), "its SSL TLV has 4 bytes"),
        (v2(*FOUR, ssl_tlv(inner=[]) + tlv(0x20, b"")[:2]), "goes beyond its end"),
        (v2(*FOUR, tlv(0x20, b"\1\0\0\0\0\x21\0\7x")), "TLV of type 0x21 goes beyond its end"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    assert reason in refused(data)


@pytest.mark.parametrize("data", [b"hello", b"PROXZ", b"\r\n\n", SIGNATURE + b"\x41", b"PROXYx"])
def test_what_begins_wrongly_is_refused_at_the_first_byte_that_differs(data: bytes) -> None:
    wrong = 1 if data == b"hello" else len(data)
    assert read([data[: wrong - 1]]) is None
    assert isinstance(read([data[:wrong]]), str)


def test_nothing_is_held_of_what_is_too_long():
    reader = ProxyHeaderReader(max_bytes=200)
    with pytest.raises(ProxyHeaderError, match="216 bytes, and 200 are allowed"):
        reader.feed(SIGNATURE + b"\x21\x11\0\xc8")
    assert header_of(v2(*FOUR, tlv(4, bytes(4096 - 16 - 12 - 3)))).source == FOUR[0]
    with pytest.raises(ValueError, match="at least 107"):
        ProxyHeaderReader(max_bytes=106)


def test_how_much_has_come():
    reader = ProxyHeaderReader()
    assert reader.received == 0
    assert reader.feed(b"PROX") is None
    assert reader.received == 4


def test_what_looks_like_one():
    for header in (v1(*FOUR), v1(*SIX), b"PROXY UNKNOWN\r\n", v2(*FOUR), v2(None, local=True), SIGNATURE):
        assert looks_like_proxy_header(header)
    for other in (
        b"",
        b"PROXY",
        b"PROXY is a word\n",
        b"hello PROXY TCP4 ",
        b"\r\n\r\n",
        b"proxy tcp4 ",
        SIGNATURE[:-1],
    ):
        assert not looks_like_proxy_header(other)


# ---------------------------------------------------------------------- anything

ports = st.integers(0, 65535)
fours = st.tuples(st.ip_addresses(v=4).map(str), ports)
sixes = st.tuples(st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None).map(str), ports)
path = st.text(st.characters(exclude_characters="\0@", exclude_categories=["Cs"]), max_size=20)
ends = st.one_of(*(st.tuples(kind, kind) for kind in (fours, sixes, path)))
some_tlvs = st.lists(
    st.builds(tlv, st.integers(0, 255).filter(lambda kind: kind not in (3, 0x20)), st.binary(max_size=30)), max_size=4
).map(b"".join)
cuts = st.lists(st.integers(1, 60), max_size=20)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    found, at = [], 0
    for size in sizes:
        found.append(data[at : at + size])
        at += size
    return [piece for piece in [*found, data[at:]] if piece]


@given(ends, some_tlvs, st.booleans(), st.binary(max_size=300), cuts)
def test_what_is_built_is_read_back(two, tlvs, checksum, after, sizes):
    found = read(cut(v2(*two, tlvs, checksum=checksum) + after, sizes))
    assert isinstance(found, tuple), found
    assert (found[0].source, found[0].destination) == two
    assert found[1] == after
    assert b"".join(tlv(*pair) for pair in found[0].tlvs[: -1 if checksum else None]) == tlvs
    assert str(found[0]).isprintable()
    if isinstance(two[0], tuple):
        found = read(cut(v1(*two) + after, sizes))
        assert isinstance(found, tuple), found
        assert (found[0].source, found[0].destination, found[1]) == (*two, after)


def mutate(header: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    data = bytearray(header)
    for at, length, new in changes:
        at %= len(data) + 1
        data[at : at + length] = new
    return bytes(data)


headers = st.one_of(
    st.builds(lambda two, tlvs, crc: v2(*two, tlvs, checksum=crc), ends, some_tlvs, st.booleans()),
    st.builds(lambda two: v1(*two), st.one_of(st.tuples(fours, fours), st.tuples(sixes, sixes))),
    st.builds(
        lambda client, value: v2(*FOUR, ssl_tlv(client=client, inner=[(0x22, value)])),
        ports.map(lambda n: n % 8),
        st.binary(),
    ),
    st.sampled_from([v2(None, local=True), b"PROXY UNKNOWN\r\n", SIGNATURE, b""]),
)
changed = st.builds(
    mutate, headers, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=3)), max_size=3)
)


def check_any(data: bytes, sizes: list[int]) -> None:
    """However it is cut the outcome is the same: a header and its rest, an error, or not enough."""
    whole, cut_up = read([data] if data else []), read(cut(data, sizes))
    if isinstance(whole, str):
        assert isinstance(cut_up, str)
        assert whole.isprintable()
        assert len(whole) < 300
        return
    assert repr(whole) == repr(cut_up)
    if whole is not None:
        header, rest = whole
        assert data.endswith(rest)
        assert looks_like_proxy_header(data)
        assert str(header).isprintable()
        for address in (header.source, header.destination):
            if isinstance(address, tuple):
                ipaddress.ip_address(address[0])
                struct.pack("!H", address[1])


@given(changed, cuts)
def test_fuzz(data, sizes):
    check_any(data, sizes)


@pytest.mark.slow
@settings(max_examples=20000)
@given(changed | st.binary(max_size=300), cuts)
def test_fuzz_long(data, sizes):
    check_any(data, sizes)
