"""Connections that go on in another process, whatever happens meanwhile: rows 110 to 116 of docs/reliability.md.

Here from one server to another, over a socket pair as between processes. With processes: tests/process/test_reload.py.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evloop import EventLoop, Limits, Server
from evloop.server.handover import fingerprint
from moving import Later, Upper, service, serving, world

# ---------------------------------------------------------------------- 110

MESSAGES = st.lists(st.text(max_size=5) | st.integers(0, 3000).map(lambda size: "x" * size), min_size=1, max_size=20)
# What happens: a client sends some messages, and keeps back so many bytes of the last one; the loops have some passes;
# all connections are moved; a client reads what is there.
EVENTS = st.lists(
    st.tuples(st.just("send"), st.integers(0, 2), MESSAGES, st.integers(0, 4))
    | st.tuples(st.just("passes"), st.integers(1, 3))
    | st.tuples(st.just("move"))
    | st.tuples(st.just("read"), st.integers(0, 2)),
    max_size=25,
)


class Talker:
    """A client that knows what it is owed."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.unsent = bytearray()
        self.kept_back = b""
        self.owed = bytearray()
        self.got = bytearray()
        sock.setblocking(False)

    def say(self, messages: list[str], keep_back: int) -> None:
        for message in messages:
            text = message.replace("\n", "")
            self.owed += b"%d\n" % len(text.encode("utf-8", "replace").removesuffix(b"\r").decode())
        said = self.kept_back + b"".join(
            message.replace("\n", "").encode("utf-8", "replace") + b"\n" for message in messages
        )
        end = len(said) - keep_back
        self.unsent += said[:end]
        self.kept_back = said[end:]

    def finish(self) -> None:
        self.unsent += self.kept_back
        self.kept_back = b""

    def send(self) -> None:
        try:
            del self.unsent[: self.socket.send(self.unsent)]
        except BlockingIOError:
            pass

    def read(self) -> None:
        try:
            self.got += self.socket.recv(1 << 20)
        except BlockingIOError:
            pass


@settings(max_examples=25)
@given(EVENTS)
def test_110_life_in_which_every_message_is_answered_once_and_in_order(events):
    make = service(limits={"kernel_unsent_bytes": 2048})
    with world(make) as w:
        talkers = [Talker(w.connect(receive_buffer=4096).socket) for _ in range(3)]
        for what, *how in events:
            if what == "send":
                who, messages, keep_back = how
                talkers[who].say(messages, keep_back)
            elif what == "read":
                talkers[how[0]].read()
            elif what == "move" and w.is_settled:
                w.move(make)
            for talker in talkers:
                talker.send()
            w.passes(how[0] if what == "passes" else 1)
            assert all(one.is_legal for generation in w.all for one in generation.server.connections)
        for talker in talkers:
            talker.finish()

        def finished() -> bool:
            for talker in talkers:
                talker.send()
                talker.read()
            return all(not talker.unsent and len(talker.got) >= len(talker.owed) for talker in talkers)

        w.until(finished)
        w.passes()
        assert [bytes(talker.got) for talker in talkers] == [bytes(talker.owed) for talker in talkers]
        servers = [generation.server for generation in w.all]
        w.until(lambda: w.is_settled)
        w.until(lambda: sum(len(server.connections) for server in servers) == 3)
        assert sum(server.stats.accepted for server in servers) == 3
        assert sum(server.stats.closed for server in servers) == 0
        assert sum(server.message_totals()[0] for server in servers) == sum(
            talker.owed.count(b"\n") for talker in talkers
        )
        assert sum(server.totals()[1] for server in servers) == sum(len(talker.owed) for talker in talkers)


@pytest.mark.parametrize(
    ("make_server", "begun", "rest", "reply"),
    [
        (service(), b"ab", b"c\n", b"3\n"),
        (service(), "日".encode()[:2], "日".encode()[2:] + b"x\n", b"2\n"),
        (service(), b"\xffab", b"c\n", b"ERR invalid-utf8 at byte 0\n"),
        (service(), b"ab\r", b"\n", b"2\n"),
        (service(), b"ab\r", b"c\n", b"4\n"),
        (service(max_message_bytes=4), b"abcde", b"\n", b"ERR too-long limit 4\n"),
        (service(framing="raw"), b"\xc3", b"\xa9a", b"2"),
        (serving(Upper), b"ab", b"c\n", b"ABC\n"),
        (serving(Upper), b"ab\r", b"\n", b"AB\n"),
    ],
)
def test_111_message_that_has_begun_goes_along(worlds, make_server, begun, rest, reply):
    w = worlds(make_server)
    client = w.connect()
    client.send(begun)
    w.until(lambda: [c for c in w.all[0].server.connections if c.bytes_received == len(begun)])
    w.move(make_server)
    w.until_moved()
    assert not w.all[0].server.connections
    assert w.ask(client, rest, len(reply)) == reply


def test_111_what_waits_for_its_turn_goes_along(worlds):
    w = worlds(service())
    client = w.connect()
    old = w.all[0].server
    lines = b"".join(b"x" * (number % 5) + b"\n" for number in range(20_000))
    client.send(lines)
    w.until(lambda: [c for c in old.connections if c._rest])
    w.move(service())
    replies = b"".join(b"%d\n" % (number % 5) for number in range(20_000))
    assert w.ask(client, b"", len(replies)) == replies
    assert 0 < old.message_totals()[0] < 20_000


def test_111_what_was_not_read_is_answered_by_the_next(worlds):
    w = worlds(service())
    client = w.connect()
    w.ask(client, b"abc\n", 2)
    arrivals = w.hand_over(w.all[0])
    w.until_moved()
    client.send(b"hello\n" * 1000)
    w.begin(service()).take_over(arrivals)
    assert w.ask(client, b"", 2000) == b"5\n" * 1000
    assert w.all[0].server.message_totals() == (1, 0)


def test_112_peer_that_does_not_read_moves_when_it_has(worlds):
    w = worlds(service(limits={"kernel_unsent_bytes": 4096}))
    client = w.connect(receive_buffer=4096)
    old = w.all[0].server
    client.socket.setblocking(False)
    sent = 0
    lines = b"\n" * 65536
    while not any(connection.stalled for connection in old.connections):
        try:
            sent += client.socket.send(lines)
        except BlockingIOError:
            pass
        w.passes(1)
    w.move(service())
    w.passes(20)
    (connection,) = old.connections
    assert connection.unsent_bytes
    assert not w.done
    received = len(w.ask(client, b"", 2 * sent))
    assert received == 2 * sent
    w.until_moved()
    assert not old.connections
    assert w.ask(client, b"abc\n", 2) == b"3\n"


def test_112_peer_that_does_not_read_is_not_read(worlds):
    w = worlds(service())
    client = w.connect(receive_buffer=4096)
    old = w.all[0].server
    w.ask(client, b"abc\n", 2)
    (connection,) = old.connections
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client.socket.setblocking(False)
    while not connection.stalled:
        try:
            client.socket.send(b"\n" * 1000)
        except BlockingIOError:
            pass
        w.passes(1)
    w.move(service())
    w.passes(3)
    before = connection.bytes_received
    try:
        client.socket.send(b"\n" * 1000)
    except BlockingIOError:
        pass
    w.passes(10)
    assert connection.bytes_received == before
    assert connection.is_legal


def test_112_rest_is_drained_when_the_time_is_over(worlds, caplog):
    caplog.set_level(logging.INFO, "evloop.server")

    class Asked(Later):
        asked: ClassVar[list[Later]] = []

    w = worlds(serving(Asked))
    client, other = w.connect(), w.connect()
    client.send(b"?")
    w.until(lambda: Asked.asked)
    new = w.move(serving(Asked), timeout_s=0.05).server
    w.until_moved()
    old = w.all[0].server
    assert old.stats.limits["handover-timeout"] == 1
    assert "1 connections handed over" in caplog.text
    assert "1 are drained; 1: they were owed something for too long" in caplog.text
    Asked.asked[0].answer()
    assert w.ask(client, b"", 7) == b"later\n"
    client.close()
    w.until(lambda: not old.connections)
    assert len(new.connections) == 1
    other.close()


def test_112_tls_is_drained_at_once_and_ends_in_order():
    import ssl

    from tlsworld import world as certificates

    settings = certificates().settings()

    def make(loop: EventLoop) -> Server:
        return Server(loop, Upper, Limits(max_connections=100))

    with world(make) as w:
        w.all[0].stop_accepting()
        old = w.all[0].server
        old.listen(tls=settings)
        address = old.listeners[0].socket.getsockname()
        raw = socket.create_connection(address)
        raw.setblocking(False)
        client = (
            certificates().client_context().wrap_socket(raw, server_hostname="localhost", do_handshake_on_connect=False)
        )

        def tried(function: Callable[..., Any], *args: Any) -> Any:
            found: list[Any] = []

            def attempt() -> bool:
                try:
                    found.append(function(*args))
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    return False
                return True

            w.until(attempt)
            return found[0]

        with client:
            tried(client.do_handshake)
            client.send(b"a\n")
            assert tried(client.recv, 10) == b"A\n"
            client.send(b"b\n")
            new = w.move(make).server
            w.until_moved()
            assert tried(client.recv, 10) == b"B\n"
            assert tried(client.recv, 10) == b""  # TLS's goodbye: without it this is an error
            client.unwrap()
        w.until(lambda: not old.connections)
        assert not new.stats.adopted
        assert not old.stats.failed
        assert not old.stats.limits["handover-timeout"]


def test_112_protocol_with_state_is_drained_and_the_log_says_which(worlds, caplog):
    caplog.set_level(logging.INFO, "evloop.server")

    class Named(Upper):
        def on_line(self, line: bytes) -> bytes:
            self.name = line
            return line + b"\n"

    w = worlds(serving(Named))
    named, nameless = w.connect(), w.connect()
    w.ask(named, b"a\n", 2)
    new = w.move(serving(Named)).server
    w.until_moved()
    assert named.receive_rest() == b""
    assert "Named has an attribute 'name': give it dump() and restore()" in caplog.text
    assert len(new.connections) == 1
    assert w.ask(nameless, b"b\n", 2) == b"b\n"


@pytest.mark.parametrize(
    "other", [{"framing": "raw"}, {"template": "count: {count}"}, {"max_message_bytes": 10}], ids=str
)
def test_113_settings_that_clients_see_are_in_the_fingerprint(loop, other):
    servers = [service(limits=limits, **settings)(loop) for limits, settings in (({}, {}), ({}, other), ({}, {}))]
    quiet = service(limits={"idle_timeout_s": 5})(loop)
    same, different, again = (fingerprint([server]) for server in servers)
    assert same == again == fingerprint([quiet])
    assert same != different
    assert fingerprint([servers[0], servers[1]]) != fingerprint([servers[1], servers[0]])
    for server in (*servers, quiet):
        server.abort()


def test_113_another_protocol_than_there_is_refused(worlds, logged, caplog):
    logged.expect("could not be taken over")
    w = worlds(serving(Upper))
    client = w.connect()
    new = w.move(serving(Later)).server
    w.until(lambda: new.stats.failed)
    assert new.stats.adopted == new.stats.closed == 1
    w.passes()
    assert client.receive_rest() == b""
    assert "it spoke moving.Upper, and here it would be moving.Later" in caplog.text


def test_114_connections_on_their_way_to_a_dead_process_are_not_lost(worlds):
    w = worlds(serving(Upper))
    clients = [w.connect() for _ in range(3)]
    dead = w.hand_over(w.all[0])
    of_supervisor = dead.dup()
    w.until(lambda: w.done)
    assert not w.all[0].server.connections
    dead.close()  # with the process; its supervisor has one more
    new = w.begin(serving(Upper))
    new.take_over(of_supervisor)
    for client in clients:
        assert w.ask(client, b"a\n", 2) == b"A\n"
    assert new.server.stats.adopted == 3


def test_114_rest_is_drained_when_nobody_takes_them(worlds, logged):
    logged.expect("connections can't be handed over any more")
    w = worlds(serving(Upper))
    clients = [w.connect() for _ in range(3)]
    sent = []

    def broken(state: bytes, sock: socket.socket) -> None:
        if sent:
            raise BrokenPipeError
        sent.append(sock.dup())

    w.send_to_next = lambda channel: broken
    w.move(serving(Upper))
    w.until_moved()
    assert w.all[0].server.stats.handed_over == 1
    sent[0].close()
    assert [client.receive_rest() for client in clients] == [b""] * 3


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_116_peer_that_has_left_meanwhile(worlds, how):
    w = worlds(service(limits={"max_connections_per_address": 5}))
    client, other = w.connect(), w.connect()
    w.ask(client, b"abc\n", 2)
    arrivals = w.hand_over(w.all[0])
    w.until_moved()
    client.reset() if how == "reset" else client.close()
    generation = w.begin(service(limits={"max_connections_per_address": 5}))
    generation.take_over(arrivals)
    new = generation.server
    w.until(lambda: new.stats.adopted == 2 and new.stats.closed == 1)
    assert new.stats.failed == (how == "reset")
    assert w.all[0].server.stats.closed == 0
    assert w.ask(other, b"abc\n", 2) == b"3\n"
