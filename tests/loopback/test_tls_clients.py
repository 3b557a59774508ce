"""TLS clients of ours: what they ask, trust, and say when there is no connection."""

from __future__ import annotations

import socket
import ssl
import threading
from typing import Any

import pytest

from evloop import Connection, EventLoop, Limits, Protocol, TLSClientSettings, TLSServerSettings
from evloop.net.state import State
from servers import Echo, Recorder, recorder
from tlsworld import world
from waiting import run_pass, run_until


class EchoRecorder(Recorder):
    def on_data(self, data: bytes) -> bytes:
        super().on_data(data)
        return data


# ---------------------------------------------------------------------- our own clients


def open_client(loop: EventLoop, address: tuple[str, int], protocol: Protocol, **options: Any) -> Connection:
    """A TLS connection to ``localhost``, in its handshake."""
    sock = socket.create_connection(address)
    sock.setblocking(False)
    settings = TLSClientSettings(**options)
    connection = settings.factory("localhost")(loop, sock, "localhost:1", protocol, Limits())
    connection.open()
    return connection


class Asker(Recorder):
    def on_connect(self) -> bytes:
        super().on_connect()
        return b"question"

    def on_data(self, data: bytes) -> None:
        super().on_data(data)
        if self.received() == b"before question":
            self.connection.close()


def test_a_client_of_ours_asks_and_closes(start_tls):
    server_side, client_side = recorder(EchoRecorder), recorder(Asker)
    server = start_tls(server_side)
    with EventLoop() as loop:
        connection = open_client(loop, server.address, client_side(), ca=world().ca)
        connection.write(b"before ")  # kept until the handshake is done
        assert connection.tls is None
        run_until(loop, lambda: "close" in client_side.events)
        run_until(loop, lambda: connection.state is State.CLOSED)  # its descriptor lives until the server says goodbye
    assert client_side.received() == b"before question"
    server.wait_empty()
    assert server_side.events[-2:] == ["eof", "close"]


def test_a_client_of_ours_that_closes_in_the_handshake_sends_what_it_wrote(start_tls):
    server_side, client_side = recorder(), recorder()
    server = start_tls(server_side)
    with EventLoop() as loop:
        connection = open_client(loop, server.address, client_side(), ca=world().ca)
        connection.write(b"fire and forget")
        connection.close()
        run_until(loop, lambda: connection.state is State.CLOSED)
    server.wait_empty()
    assert client_side.events == ["connect", "close"]
    assert server_side.received() == b"fire and forget"


@pytest.mark.parametrize("give_up", ["cancel", "abort"])
def test_an_attempt_can_be_given_up_in_the_handshake(loop, listener, give_up):
    protocol = recorder()()
    attempt = loop.connect(protocol, *listener.getsockname(), tls=TLSClientSettings(ca=world().ca))
    run_until(loop, lambda: protocol.connection is not attempt)
    peer, _ = listener.accept()
    with peer:
        getattr(attempt, give_up)()
        run_pass(loop)
        peer.settimeout(1)
        while peer.recv(4096):
            pass
    assert loop.timers == 0
    assert protocol.events == []


def test_an_attempt_that_is_given_up_after_the_handshake_is_a_connection(start_tls, loop):
    server = start_tls(Echo)
    protocol = recorder()()
    attempt = loop.connect(protocol, *server.address, tls=TLSClientSettings(ca=world().ca))
    run_until(loop, lambda: protocol.events)
    attempt.cancel()
    protocol.connection.write(b"still here")
    run_until(loop, lambda: protocol.received() == b"still here")
    protocol.connection.abort()
    run_pass(loop)


def test_the_scope_of_an_address_is_no_part_of_the_servers_name(start_tls, loop):
    server = start_tls(Echo, tls=TLSServerSettings([world().issue("six", "fe80::1")]))
    protocol = recorder()()
    sock = socket.create_connection(server.address)
    sock.setblocking(False)
    make = TLSClientSettings(ca=world().ca).factory("fe80::1%eth0")
    make(loop, sock, "[fe80::1%eth0]:1", protocol, Limits()).open()
    run_until(loop, lambda: protocol.events)
    assert protocol.events == ["connect"]
    protocol.connection.abort()
    run_pass(loop)


@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_client_of_ours_that_gives_up_in_the_handshake_is_told_nothing(start_tls, end, logged):
    client_side = recorder()
    server = start_tls(Echo)
    with EventLoop() as loop:
        connection = open_client(loop, server.address, client_side(), ca=world().ca)
        getattr(connection, end)()
        run_until(loop, lambda: connection.state is State.CLOSED)
        assert loop.timers == 0
    assert client_side.events == []
    server.wait_empty()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "from nobody who is trusted here"),
        ({"server_name": "example.com"}, "for another name"),
        ({"min_version": "1.3"}, "no version of TLS"),
    ],
    ids=["chain", "name", "version"],
)
def test_a_client_of_ours_says_why_there_is_no_connection(options, text):
    client_side = recorder()
    chosen = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # not ours, which can't be told to speak 1.2 only
    chosen.load_cert_chain(*world().pair)
    chosen.maximum_version = ssl.TLSVersion.TLSv1_2
    if options != {}:
        options = {"ca": world().ca, **options}
    with socket.create_server(("127.0.0.1", 0)) as listener, EventLoop() as loop:

        def serve() -> None:
            sock, _ = listener.accept()
            try:
                chosen.wrap_socket(sock, server_side=True).close()
            except (ssl.SSLError, ConnectionError):
                sock.close()

        thread = threading.Thread(target=serve)
        thread.start()
        open_client(loop, listener.getsockname(), client_side(), **options)
        run_until(loop, lambda: client_side.events)
        thread.join()
        run_until(loop, lambda: len(loop.poller.handlers) == 1)
    (event,) = client_side.events
    assert event[0] == "connect error"
    assert event[1].startswith("cannot connect to localhost:1: ")
    assert text in event[1]


def test_a_client_of_ours_on_a_port_without_tls(start):
    class Plain(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return b"ERR what is that\n"

    client_side = recorder()
    server = start(Plain)
    with EventLoop() as loop:
        open_client(loop, server.address, client_side(), ca=world().ca)
        run_until(loop, lambda: client_side.events)
        run_until(loop, lambda: len(loop.poller.handlers) == 1)
    assert "the server does not speak TLS: connect to it without" in client_side.events[0][1]


def test_insecure_trusts_anybody(start_tls):
    client_side = recorder()
    server = start_tls(Echo)
    with EventLoop() as loop:
        connection = open_client(loop, server.address, client_side(), insecure=True)
        run_until(loop, lambda: client_side.events == ["connect"])
        assert connection.tls is not None
        assert connection.tls.peer_certificate is None
        connection.close()
        run_until(loop, lambda: connection.state is State.CLOSED)


def test_a_name_that_can_be_none_is_an_error_at_once():
    with pytest.raises(ValueError, match="can't be the name of a TLS server"):
        TLSClientSettings(ca=world().ca).factory("a" * 300)


def test_a_loop_connects_by_tls(start_tls):
    server_side, client_side = recorder(EchoRecorder), recorder(Asker)
    server = start_tls(server_side)
    with EventLoop() as loop:
        protocol = client_side()
        loop.connect(protocol, "localhost", server.port, tls=TLSClientSettings(ca=world().ca))
        protocol.connection.write(b"before ")
        run_until(loop, lambda: "close" in client_side.events)
        run_until(loop, lambda: len(loop.poller.handlers) == 1)  # the peer's end has come, too
    assert client_side.events[0] == "connect"
    assert client_side.received() == b"before question"
    server.wait_empty()


def test_a_loop_connects_by_tls_and_is_told_why_it_can_not(start_tls):
    client_side = recorder()
    server = start_tls(Echo)
    with EventLoop() as loop:
        loop.connect(client_side(), "localhost", server.port, tls=TLSClientSettings(), enforce_timeouts=True)
        run_until(loop, lambda: client_side.events)
        run_until(loop, lambda: len(loop.poller.handlers) == 1)
    (event,) = client_side.events
    assert "from nobody who is trusted here" in event[1]
    with EventLoop() as loop, pytest.raises(ValueError, match="can't be the name"):
        loop.connect(Protocol(), "127.0.0.1", 1, tls=TLSClientSettings(server_name="." * 3))
