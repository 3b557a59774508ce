"""One notation for where something listens or is connected to: it round-trips, and a wrong one shows what was meant."""

from __future__ import annotations

import string

import hypothesis.strategies as st
import pytest
from hypothesis import given

from evloop import Endpoint, EndpointError, EvloopError, parse_endpoint
from evloop.net.endpoint import MAX_UNIX_PATH_BYTES, FdEndpoint, TcpEndpoint, UnixEndpoint

names = st.text(string.ascii_letters + string.digits + ".-_", max_size=40) | st.sampled_from(
    ["", "tls", "unix", "fd", "::", "::1", "2001:db8::1", "fe80::1%eth0", "::ffff:192.0.2.1", "bücher.example", "PORT"]
)
paths = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30)
tcp = st.builds(TcpEndpoint, names, st.integers(0, 65535), tls=st.booleans())
unix = st.builds(
    UnixEndpoint, paths.filter(lambda path: path != "@" and not path.startswith("tls:")), tls=st.booleans()
)
fds = st.builds(FdEndpoint, st.integers(0, 2**31 - 1), tls=st.booleans())
endpoints = tcp | unix | fds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:12345", TcpEndpoint("127.0.0.1", 12345)),
        ("localhost:0", TcpEndpoint("localhost", 0)),
        (":80", TcpEndpoint("", 80)),
        ("[::1]:80", TcpEndpoint("::1", 80)),
        ("[fe80::1%eth0]:80", TcpEndpoint("fe80::1%eth0", 80)),
        ("[unix]:80", TcpEndpoint("unix", 80)),
        ("h:00080", TcpEndpoint("h", 80)),
        ("unix:/run/cc", UnixEndpoint("/run/cc")),
        ("unix:cc.sock", UnixEndpoint("cc.sock")),
        ("unix:@cc", UnixEndpoint("@cc")),
        ("unix:///run/cc", UnixEndpoint("/run/cc")),
        ("unix:fd:3", UnixEndpoint("fd:3")),
        ("fd:3", FdEndpoint(3)),
        ("tls:0.0.0.0:12346", TcpEndpoint("0.0.0.0", 12346, tls=True)),
        ("tls:[::]:1", TcpEndpoint("::", 1, tls=True)),
        ("tls:unix:/run/cc", UnixEndpoint("/run/cc", tls=True)),
        ("tls:unix:@cc", UnixEndpoint("@cc", tls=True)),
        ("tls:fd:3", FdEndpoint(3, tls=True)),
    ],
)
def test_the_notation(text: str, expected: Endpoint) -> None:
    assert parse_endpoint(text) == expected
    assert parse_endpoint(str(expected)) == expected


@given(endpoints)
def test_what_is_written_is_read_back(endpoint: Endpoint) -> None:
    text = str(endpoint)
    again = parse_endpoint(text)
    assert again == endpoint
    assert hash(again) == hash(endpoint)
    assert str(again) == text


@given(endpoints, endpoints)
def test_different_endpoints_are_written_differently(one: Endpoint, other: Endpoint) -> None:
    assert (one == other) == (str(one) == str(other))


pieces = st.sampled_from(
    [
        *"[]:1a/@%*-é٣ \0\n\x1b\udc80",
        "tls:",
        "unix:",
        "fd:",
        "tcp://",
        "https://",
        "::",
        "80",
        "99999",
        "PORT",
        "x" * 120,
    ]
)


@given(st.lists(pieces | st.text(max_size=3), max_size=8).map("".join))
def test_any_text_is_an_endpoint_or_an_error_of_one_line(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except EndpointError as error:
        line = str(error)
    else:
        line = ""
        assert parse_endpoint(str(endpoint)) == endpoint
    assert line.isprintable()
    assert len(line) < 1500


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("::1:80", "[::1]:80 or [::1:80]:PORT"),
        ("2001:db8::1", "[2001:db8::1]:PORT"),
        ("::", "[::]:PORT"),
        ("[::1]", "[::1]:PORT"),
        ("[::1]:", "[::1]:PORT"),
        ("[127.0.0.1]:80", "127.0.0.1:80"),
        ("localhost", "localhost:PORT"),
        ("localhost:", "localhost:PORT"),
        ("tls:localhost", "tls:localhost:PORT"),
        ("12345", "127.0.0.1:12345 or :12345"),
        ("*:80", ":80"),
        ("localhost 80", "localhost:80"),
        (" localhost:80\n", "localhost:80"),
        ("localhost:80/", "localhost:80"),
        ("/run/cc", "unix:/run/cc"),
        ("./cc.sock", "unix:./cc.sock"),
        ("tls:/run/cc", "tls:unix:/run/cc"),
        ("@cc", "unix:@cc"),
        ("UNIX:/run/cc", "unix:/run/cc"),
        ("TLS:host:1", "tls:host:1"),
        ("ssl:host:1", "tls:host:1"),
        ("tls:tls:host:1", "tls:host:1"),
        ("unix:tls:/run/cc", "tls:unix:/run/cc"),
        ("fd:tls:3", "tls:fd:3"),
        ("tcp:host:80", "host:80"),
        ("tcp://host:80/", "host:80"),
        ("tls://host:80", "tls:host:80"),
        ("https://host:443/", "tls:host:443"),
    ],
)
def test_a_wrong_one_shows_what_was_meant(text: str, meant: str) -> None:
    with pytest.raises(EndpointError) as caught:
        parse_endpoint(text)
    assert str(caught.value).startswith(f"{text!r} is no endpoint: ")
    assert str(caught.value).endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("host:http", "'http' is not the number of a port"),
        ("host:-1", "'-1' is not the number of a port"),
        ("host:٣", "'٣' is not the number of a port"),
        ("host:70000", "there is no port 70000: the highest is 65535"),
        ("[::g]:80", "'::g' is no IPv6 address, and only these have brackets"),
        ("a b:1", "a host can't hold ' '"),
        ("h:1:2", "there is a colon too many"),
        ("fd:", "the number of the descriptor is missing"),
        ("fd:-1", "'-1' is not the number of a descriptor"),
        ("fd:3000000000", "there is no descriptor 3000000000"),
        ("unix:", "there is no path"),
        ("unix:@", "there is no name after the @"),
        ("unix:/a\0b", "a path can't hold a NUL"),
        ("h:" + "9" * 5000, f"{'9' * 40!r} is not the number of a port"),
    ],
)
def test_what_nobody_can_have_meant_gets_the_reason_and_the_forms(text: str, reason: str) -> None:
    with pytest.raises(EndpointError) as caught:
        parse_endpoint(text)
    assert f" is no endpoint: {reason}; write HOST:PORT, [IPV6]:PORT, unix:PATH" in str(caught.value)


@pytest.mark.parametrize("path", ["/{}", "@{}", "/{}é"])
def test_a_path_is_as_long_as_the_kernel_takes(path: str) -> None:
    longest = path.format("x" * (MAX_UNIX_PATH_BYTES - len(path.format("").encode())))
    assert UnixEndpoint(longest).path == longest
    with pytest.raises(EndpointError, match=f"can have {MAX_UNIX_PATH_BYTES} bytes, this one has"):
        UnixEndpoint(longest + "x")


def test_an_endpoint_is_a_value() -> None:
    endpoint = parse_endpoint("tls:[::1]:80")
    assert repr(endpoint) == "<TcpEndpoint 'tls:[::1]:80'>"
    with pytest.raises(AttributeError, match="cannot be changed"):
        endpoint.tls = False
    assert endpoint != "tls:[::1]:80"
    assert len({endpoint, parse_endpoint("tls:[::1]:80"), parse_endpoint("[::1]:80")}) == 2


def test_what_sockets_take() -> None:
    assert UnixEndpoint("/run/cc").address == "/run/cc"
    assert UnixEndpoint("@cc").address == "\0cc"
    assert UnixEndpoint("./@cc").address == "./@cc"


def test_its_error_is_a_value_error_and_one_of_ours() -> None:
    assert issubclass(EndpointError, ValueError)
    assert issubclass(EndpointError, EvloopError)
