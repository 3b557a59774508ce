"""Outgoing connections: to endpoints, from an address, written to before they are there, with time-outs."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evloop import EndpointError, EventLoop, parse_endpoint
from outgoing import closed_port, error_of
from servers import Recorder, recorder
from waiting import run_pass, run_until

pytestmark = pytest.mark.one_selector


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where a Unix socket's path is short enough: the working directory."""
    before = os.getcwd()
    os.chdir(tmp_path)
    yield Path()
    os.chdir(before)


def unix_listener(path: str, backlog: int = 10) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen(backlog)
    sock.settimeout(10)
    return sock


def talk(loop: EventLoop, listener: socket.socket, protocol: Recorder) -> None:
    """A byte each way, then the peer closes."""
    run_until(loop, lambda: protocol.events)
    assert protocol.events == ["connect"]
    peer, _ = listener.accept()
    with peer:
        protocol.connection.write(b"x")
        run_pass(loop)
        assert peer.recv(10) == b"x"
        peer.sendall(b"y")
    run_until(loop, lambda: "close" in protocol.events)
    assert protocol.events == ["connect", ("data", b"y"), "eof", "close"]


# ---------------------------------------------------------------------- endpoints


@pytest.mark.parametrize("parsed", [False, True])
def test_an_endpoint_of_tcp(loop, listener, parsed):
    text = f"127.0.0.1:{listener.getsockname()[1]}"
    protocol = recorder()()
    loop.connect(protocol, parse_endpoint(text) if parsed else text)
    talk(loop, listener, protocol)


@pytest.mark.parametrize("name", ["unix:cc", "unix:@evloop-test"])
def test_a_unix_socket(loop, folder, name):
    with unix_listener(parse_endpoint(name).address) as listener:
        protocol = recorder()()
        loop.connect(protocol, name)
        talk(loop, listener, protocol)
        assert protocol.connection.peer == name


def test_a_unix_socket_that_is_not_there(loop, folder):
    protocol = recorder()()
    loop.connect(protocol, "unix:nothing")
    assert error_of(loop, protocol) == "cannot connect to unix:nothing: No such file or directory"


def test_a_unix_socket_on_which_nobody_listens_any_more(loop, folder):
    unix_listener("stale").close()
    protocol = recorder()()
    loop.connect(protocol, "unix:stale")
    assert error_of(loop, protocol) == "cannot connect to unix:stale: Connection refused"


def fill(path: str) -> list[socket.socket]:
    """Connect to a listener until its queue is full."""
    fillers = []
    while True:
        filler = socket.socket(socket.AF_UNIX)
        filler.setblocking(False)
        fillers.append(filler)
        if filler.connect_ex(path):
            return fillers


def test_a_unix_listener_whose_queue_is_full_is_tried_until_there_is_room(loop, folder):
    with unix_listener("full", 1) as listener:
        fillers = fill("full")
        protocol = recorder()()
        loop.connect(protocol, "unix:full")
        ticks = []
        loop.call_later(0.05, ticks.append, 1)
        passes = loop.passes
        run_until(loop, lambda: ticks)
        assert protocol.events == []
        assert loop.passes - passes < 200, "it does not spin"
        while not protocol.events:
            listener.accept()[0].close()
            ticks.clear()
            loop.call_later(0.02, ticks.append, 1)
            run_until(loop, lambda: ticks)
        assert protocol.events[0] == "connect"
        protocol.connection.abort()
        run_pass(loop)
        for filler in fillers:
            filler.close()


def test_a_unix_listener_whose_queue_stays_full(loop, folder):
    with unix_listener("full", 1):
        fillers = fill("full")
        protocol, cancelled = recorder()(), recorder()()
        loop.connect(protocol, "unix:full", timeout_s=0.03)
        attempt = loop.connect(cancelled, "unix:full")
        assert error_of(loop, protocol) == "cannot connect to unix:full: no answer in 0.03 s"
        attempt.cancel()
        assert loop.timers == 0
        assert cancelled.events == []
        run_pass(loop)
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize(
    ("where", "error"),
    [
        (("fd:3",), "cannot connect to fd:3: only who listens can be given a socket"),
        ((":80",), "cannot connect to :80: only who listens can leave out the host"),
        (("", 80), "cannot connect to :80: only who listens can leave out the host"),
        (("tls:localhost:80",), "cannot connect to tls:localhost:80: give tls=TLSClientSettings(...)"),
        (("localhost",), "'localhost' is no endpoint: the port is missing; did you mean localhost:PORT?"),
        (("localhost", 70000), "there is no port 70000: the highest is 65535"),
        ((parse_endpoint("unix:x"), 80), "unix:x says all that is needed: give no port beside it"),
    ],
)
def test_where_nobody_can_connect_to(loop, where, error):
    with pytest.raises(EndpointError) as caught:
        loop.connect(recorder()(), *where)
    assert str(caught.value) == error


# ---------------------------------------------------------------------- from an address


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.9", "::1"])
def test_a_source_address(loop, source):
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    host = "::1" if ":" in source else "127.0.0.1"
    with socket.create_server((host, 0), family=family) as listener:
        protocol = recorder()()
        loop.connect(protocol, host, listener.getsockname()[1], source_address=(source, 0))
        run_until(loop, lambda: protocol.events)
        peer, address = listener.accept()
        with peer:
            assert address[0] == source
        run_until(loop, lambda: "close" in protocol.events)


def test_a_source_port(loop, listener):
    port = closed_port()
    protocol = recorder()()
    loop.connect(protocol, *listener.getsockname(), source_address=("127.0.0.1", port))
    run_until(loop, lambda: protocol.events)
    assert protocol.connection.socket.getsockname() == ("127.0.0.1", port)
    protocol.connection.abort()
    run_pass(loop)


@pytest.mark.skipif(sys.platform != "linux", reason="an option of Linux")
def test_a_port_is_taken_from_one_other_end_only(loop, listener):
    """Or all ports of the range were used up by 28,000 connections, to whatever ends."""
    protocol = recorder()()
    loop.connect(protocol, *listener.getsockname(), source_address=("127.0.0.7", 0))
    run_until(loop, lambda: protocol.events)
    ip_bind_address_no_port = 24
    assert protocol.connection.socket.getsockopt(socket.IPPROTO_IP, ip_bind_address_no_port) == 1
    protocol.connection.abort()
    run_pass(loop)


def test_only_addresses_of_the_sources_family_are_tried(loop, listener, monkeypatch):
    port = listener.getsockname()[1]
    protocol = recorder()()
    loop.connect(protocol, "localhost", port, source_address=("127.0.0.9", 0))
    run_until(loop, lambda: protocol.events)
    assert protocol.connection.peer == f"127.0.0.1:{port}"
    protocol.connection.abort()
    other = recorder()()
    loop.connect(other, "127.0.0.1", port, source_address=("::1", 0))
    text = f"cannot connect to 127.0.0.1:{port}: it has no address of the family of source_address"
    assert error_of(loop, other) == text


def test_a_source_address_of_another_machine(loop, listener):
    protocol = recorder()()
    loop.connect(protocol, *listener.getsockname(), source_address=("192.0.2.1", 0))
    assert error_of(loop, protocol).endswith("Cannot assign requested address (for source_address 192.0.2.1)")


@pytest.mark.parametrize("source", [("localhost", 0), ("", 0), "localhost"])
def test_a_source_that_is_no_address(loop, source):
    with pytest.raises(ValueError, match="source_address wants an address of this machine and a port"):
        loop.connect(recorder()(), "127.0.0.1", 1, source_address=source)


def test_a_source_address_for_a_unix_socket(loop):
    with pytest.raises(ValueError, match="source_address is for TCP, and unix:x is not"):
        loop.connect(recorder()(), "unix:x", source_address=("127.0.0.1", 0))


def test_a_connection_to_itself_is_refused_and_leaves_the_port_free(loop):
    port = closed_port()
    protocol = recorder()()
    loop.connect(protocol, "127.0.0.1", port, source_address=("127.0.0.1", port))
    assert error_of(loop, protocol) == f"cannot connect to 127.0.0.1:{port}: Connection refused"
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", port))  # without SO_REUSEADDR: nothing waits there for late packets
