"""Connections that go on in another process: here from one server to another, over a socket pair as between processes.

The two share nothing but what is passed; each has its own loop.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

import proxyheaders
from evloop import Connection, EventLoop, Limits, LineProtocol, Protocol, Server
from evloop.charcount.server import CharCountServer, ServiceSettings
from evloop.errors import CannotMoveError
from evloop.net.memory import FakeClock
from evloop.net.proxyheader import AUTHORITY
from evloop.net.state import State
from evloop.server.handover import adopt, fingerprint
from moving import MakeServer, World, world

Worlds = Callable[..., World]


@pytest.fixture
def worlds() -> Iterator[Worlds]:
    """Makes worlds, which end with the test."""
    made: list[World] = []

    def make(make_server: MakeServer, clock: Callable[[], float] | None = None) -> World:
        made.append(World(make_server, clock))
        return made[-1]

    yield make
    for each in made:
        each.close()


def service(**settings: Any) -> MakeServer:
    """The counting service."""
    limits = Limits(max_connections=100, **settings.pop("limits", {}))
    return lambda loop: CharCountServer(loop, ServiceSettings(limits=limits, **settings))


def serving(protocol: Callable[[], Protocol], **limits: Any) -> MakeServer:
    """A server of one protocol."""
    return lambda loop: Server(loop, protocol, Limits(max_connections=100, **limits))


class Upper(LineProtocol):
    """Answers each line in capitals."""

    def on_line(self, line: bytes) -> bytes:
        return line.upper() + b"\n"


# ---------------------------------------------------------------------- what moves


def test_a_connection_goes_on_and_its_peer_notices_nothing(worlds):
    w = worlds(service())
    client = w.connect()
    assert w.ask(client, b"abc\n", 2) == b"3\n"
    old, new = w.all[0].server, w.move(service()).server
    w.until_moved()
    assert not old.connections
    assert len(new.connections) == 1
    assert w.ask(client, b"abcd\n" * 3, 6) == b"4\n" * 3
    client.socket.shutdown(socket.SHUT_WR)
    w.until(lambda: not new.connections)
    assert client.receive_rest() == b""
    for server, accepted, adopted, handed_over, closed, messages, received in (
        (old, 1, 0, 1, 0, 1, 4),
        (new, 0, 1, 0, 1, 3, 15),
    ):
        status = server.status()
        assert status["accepted"] == accepted
        assert status["adopted"] == adopted
        assert status["handed_over"] == handed_over
        assert status["closed"] == closed
        assert status["messages"] == messages  # what each has done itself, so the sum is what was done
        assert status["received_bytes"] == received
        assert status["failed"] == status["probes"] == 0


def test_the_new_server_is_counted_right_while_the_connection_is_open(worlds):
    w = worlds(service())
    w.ask(w.connect(), b"abc\n", 2)
    new = w.move(service()).server
    w.until_moved()
    assert w.all[0].server.totals() == (4, 2)
    assert new.totals() == (0, 0)
    assert new.message_totals() == (0, 0)


def test_what_has_arrived_and_was_not_read_is_answered_by_the_next(worlds):
    w = worlds(service())
    client = w.connect()
    w.ask(client, b"abc\n", 2)
    arrivals = w.hand_over(w.all[0])
    w.until_moved()
    client.send(b"hello\n" * 1000)
    w.begin(service()).take_over(arrivals)
    assert w.ask(client, b"", 2000) == b"5\n" * 1000
    assert w.all[0].server.message_totals() == (1, 0)


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
def test_a_message_that_has_begun_goes_along(worlds, make_server, begun, rest, reply):
    w = worlds(make_server)
    client = w.connect()
    client.send(begun)
    w.until(lambda: [c for c in w.all[0].server.connections if c.bytes_received == len(begun)])
    w.move(make_server)
    w.until_moved()
    assert not w.all[0].server.connections
    assert w.ask(client, rest, len(reply)) == reply


def test_what_was_received_and_waits_for_its_turn_goes_along(worlds):
    w = worlds(service())
    client = w.connect()
    old = w.all[0].server
    lines = b"".join(b"x" * (number % 50) + b"\n" for number in range(20_000))
    client.send(lines)
    w.until(lambda: [c for c in old.connections if c._rest])
    w.move(service())
    replies = b"".join(b"%d\n" % (number % 50) for number in range(20_000))
    assert w.ask(client, b"", len(replies)) == replies
    assert 0 < old.message_totals()[0] < 20_000


def test_a_connection_from_which_nothing_has_come_is_looked_at_there(worlds, caplog):
    caplog.set_level(logging.INFO, "charcount")
    w = worlds(service())
    client = w.connect()
    w.move(service())
    w.until_moved()
    assert not caplog.records
    w.ask(client, b"abc\n", 2)
    assert caplog.messages == [f"connect 127.0.0.1:{client.socket.getsockname()[1]}"]


def test_the_log_tells_of_one_connection(worlds, caplog):
    caplog.set_level(logging.INFO, "charcount")
    w = worlds(service())
    client = w.connect()
    w.ask(client, b"abc\n", 2)
    new = w.move(service()).server
    w.until_moved()
    w.ask(client, b"\xff\n", 27)
    client.close()
    w.until(lambda: not new.connections)
    connect, disconnect = caplog.messages
    assert connect.startswith("connect 127.0.0.1:")
    assert " messages=2 errors=1 received=6 sent=29 seconds=" in disconnect


def test_a_proxys_word_goes_along(worlds):
    def make(loop: EventLoop) -> Server:
        return Server(loop, Upper, Limits(max_connections=100, max_connections_per_address=1), proxy_from="127.0.0.0/8")

    w = worlds(make)
    client = w.connect_unaccepted()
    tlvs = proxyheaders.tlv(AUTHORITY, b"example.org") + proxyheaders.tlv(0xE0, bytes(range(256)))
    client.send(proxyheaders.v2(("192.0.2.7", 1234), ("198.51.100.1", 80), tlvs))
    assert w.ask(client, b"a\n", 2) == b"A\n"
    (before,) = w.all[0].server.connections
    header = before.proxy_header
    new = w.move(make).server
    w.until_moved()
    (after,) = new.connections
    assert after.peer == "192.0.2.7:1234"
    assert new.connections[after] == "192.0.2.7"
    for name in ("version", "local", "source", "destination", "tlvs", "authority", "alpn", "tls", "sender"):
        assert getattr(after.proxy_header, name) == getattr(header, name)
    assert header.sender


def test_who_is_still_to_be_introduced_by_a_proxy_is_waited_for(worlds):
    def make(loop: EventLoop) -> Server:
        return Server(loop, Upper, Limits(max_connections=100), proxy_from="127.0.0.0/8")

    w = worlds(make)
    client = w.connect_unaccepted()
    w.until(lambda: w.all[0].server.proxies_waiting)
    w.move(make)
    w.passes(5)
    assert not w.done
    client.send(proxyheaders.v1(("192.0.2.7", 1234), ("198.51.100.1", 80)))
    w.until_moved()
    assert not w.all[0].server.connections
    assert w.ask(client, b"a\n", 2) == b"A\n"


# ---------------------------------------------------------------------- who has to wait


def test_a_peer_that_does_not_read_moves_when_it_has(worlds):
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


def test_it_is_not_read_while_it_owes_something_so_that_it_comes_to_an_end(worlds):
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


class Later(Protocol):
    """Answers when it is told to."""

    asked: ClassVar[list[Later]]

    def on_data(self, data: bytes) -> None:
        self.connection.hold()
        self.asked.append(self)

    def answer(self) -> None:
        self.connection.write(b"later\n")
        self.connection.release()


def test_an_answer_that_is_owed_is_given_first(worlds):
    class Asked(Later):
        asked: ClassVar[list[Later]] = []

    w = worlds(serving(Asked))
    client = w.connect()
    client.send(b"?")
    w.until(lambda: Asked.asked)
    w.move(serving(Asked))
    w.passes(5)
    client.send(b"?")
    w.passes(5)
    assert len(Asked.asked) == 1  # or it might owe something for ever
    assert not w.done
    Asked.asked[0].answer()
    w.until(lambda: len(Asked.asked) == 2)
    assert not w.all[0].server.connections
    Asked.asked[1].answer()
    assert w.ask(client, b"", 12) == b"later\n" * 2


def test_who_is_paused_moves_when_it_is_not_any_more(worlds):
    w = worlds(serving(Upper))
    client = w.connect()
    w.ask(client, b"a\n", 2)
    (connection,) = w.all[0].server.connections
    connection.pause_reading()
    w.move(serving(Upper))
    client.send(b"b\n")
    w.passes(10)
    assert not w.done
    connection.resume_reading()
    w.until_moved()
    assert w.ask(client, b"", 2) == b"B\n"


def test_a_protocol_that_is_in_the_middle_of_something_is_asked_again(worlds):
    class Counting(Upper):
        """Has a state, which moves only when it is even."""

        count = 0

        def on_line(self, line: bytes) -> bytes:
            self.count += 1
            return b"%d\n" % self.count

        def dump(self) -> bytes | None:
            return None if self.count % 2 else b"%d" % self.count

        def restore(self, state: bytes) -> None:
            self.count = int(state)

    w = worlds(serving(Counting))
    client = w.connect()
    assert w.ask(client, b"a\n", 2) == b"1\n"
    w.move(serving(Counting))
    w.passes(5)
    assert not w.done
    assert w.ask(client, b"a\n", 2) == b"2\n"
    w.until_moved()
    assert not w.all[0].server.connections
    assert w.ask(client, b"a\n", 2) == b"3\n"


@pytest.mark.parametrize("state", ["HALF_OPEN", "HALF_CLOSED", "FLUSHING", "LINGERING"])
def test_who_is_about_to_end_ends_where_it_is(worlds, state):
    class Ending(Protocol):
        keep_half_open = True

    w = worlds(serving(Ending, linger_timeout_s=600, handover_timeout_s=0.05))
    client = w.connect(receive_buffer=4096)
    old = w.all[0].server
    (connection,) = old.connections
    if state == "HALF_OPEN":
        client.socket.shutdown(socket.SHUT_WR)
    elif state == "HALF_CLOSED":
        connection.write_eof()
    else:
        connection.write(b"x" * (10_000_000 if state == "FLUSHING" else 1))
        connection.close()
    w.until(lambda: connection.state is State[state])
    new = w.move(serving(Ending), timeout_s=0.05).server
    w.until_moved()
    assert connection.is_legal
    assert not new.stats.adopted
    client.receive_rest() if state == "HALF_OPEN" else client.close()
    w.until(lambda: not old.connections)
    late = old.stats.limits["handover-timeout"]
    assert late == (state in ("HALF_OPEN", "HALF_CLOSED"))  # the others end by themselves


# ---------------------------------------------------------------------- who never can


def test_tls_is_drained_at_once_and_ends_in_order():
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


def test_a_coroutine_is_drained_at_once(worlds, caplog):
    caplog.set_level(logging.INFO, "evloop.server")

    async def handler(stream: Any) -> None:
        async for line in stream.lines():
            stream.write(line + b"\n")

    w = worlds(lambda loop: Server(loop, handler, Limits(max_connections=100)))
    client = w.connect()
    w.ask(client, b"a\n", 2)
    client.send(b"b\n")
    w.move(lambda loop: Server(loop, handler, Limits(max_connections=100)))
    w.until_moved()
    assert client.receive_rest() == b"b\n"
    assert "0 connections handed over" in caplog.text
    assert "1 are drained; 1: a coroutine can't go on in another process" in caplog.text


def test_a_protocol_with_state_and_without_a_dump_is_drained_and_the_log_says_which(worlds, caplog):
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


def test_another_kind_of_connection_is_drained(worlds, caplog):
    caplog.set_level(logging.INFO, "evloop.server")

    class Special(Connection):
        __slots__ = ()

    w = worlds(serving(Upper))
    w.all[0].stop_accepting()
    w.all[0].server.listen(connection_factory=Special)
    with socket.create_connection(w.all[0].server.listeners[0].socket.getsockname()):
        w.until(lambda: w.all[0].server.connections)
        w.move(serving(Upper))
        w.until_moved()
    assert "Special" in caplog.text


# ---------------------------------------------------------------------- limits and time-outs


def test_nobody_is_refused_and_everybody_is_counted(worlds, logged):
    logged.expect("too-many-connections")

    def make(loop: EventLoop) -> Server:
        return Server(loop, Upper, Limits(max_connections=2, max_connections_per_address=2))

    w = worlds(serving(Upper, max_connections_per_address=50))
    clients = [w.connect() for _ in range(5)]
    old, new = w.all[0].server, w.move(make).server
    w.until(lambda: new.stats.adopted == 5)
    assert not old._by_origin
    assert new._by_origin == {"127.0.0.1": 5}
    for client in clients:
        assert w.ask(client, b"a\n", 2) == b"A\n"
    refusal = b"ERR too-many-connections limit 2\n"
    assert w.ask(w.connect_unaccepted(), b"", len(refusal)) == refusal
    for client in clients:
        client.close()
    w.until(lambda: not new.connections)
    assert not new._by_origin
    w.ask(w.connect(), b"a\n", 2)


def test_options_are_those_of_the_new_settings(worlds):
    w = worlds(serving(Upper, kernel_unsent_bytes=100_000))
    w.connect()
    new = w.move(serving(Upper, kernel_unsent_bytes=50_000)).server
    w.until_moved()
    (connection,) = new.connections
    sock = connection.socket
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert not sock.getblocking()
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 50_000
    assert not sock.get_inheritable()


def test_time_outs_go_on(worlds):
    clock = FakeClock()
    make = service(limits={"idle_timeout_s": 12, "message_timeout_s": 6})
    w = worlds(make, clock)
    idle, slow = w.connect(), w.connect()
    w.ask(idle, b"abc\n", 2)
    slow.send(b"beg")

    def pass_time(seconds: float) -> None:
        for _ in range(int(seconds * 4)):
            clock.now += 0.25
            if not w.all[-1].server.stats.limits:
                slow.send(b"x")  # a byte now and then is no help
            w.passes(2)

    pass_time(4)
    w.move(make)
    w.until_moved()
    new = w.all[1].server
    assert len(new.connections) == 2
    pass_time(4)  # 8 in all: more than 6 and a sweep or two
    assert new.stats.limits["message-timeout"] == 1
    assert new.stats.limits["idle-timeout"] == 0
    pass_time(6)  # 14
    assert new.stats.limits["idle-timeout"] == 1


def test_age_goes_along(worlds):
    clock = FakeClock()
    w = worlds(service(), clock)
    w.connect()
    clock.now += 100
    new = w.move(service()).server
    w.until_moved()
    (connection,) = new.connections
    assert connection.loop.now - connection.opened_at == 100


def test_who_reads_none_of_its_replies_is_found_there(worlds):
    clock = FakeClock()
    make = service(limits={"write_timeout_s": 6})
    w = worlds(make, clock)
    client = w.connect(receive_buffer=2048)
    w.ask(client, b"abc\n", 2)
    (connection,) = w.all[0].server.connections
    client.socket.setblocking(False)
    while connection.bytes_sent < 100_000 and not connection.stalled:  # the kernel has it all, and the peer reads none
        client.socket.send(b"\n" * 1000)
        w.passes(2)
    assert not connection.stalled
    new = w.move(make).server
    w.until_moved()
    assert len(new.connections) == 1
    for _ in range(40):
        clock.now += 0.25
        w.passes(2)
    assert new.stats.limits["write-timeout"] == 1


def test_when_the_time_is_over_the_rest_is_drained(worlds, caplog):
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


def test_with_no_time_none_moves(worlds):
    w = worlds(serving(Upper))
    client = w.connect()
    client.send(b"a\n")
    new = w.move(serving(Upper), timeout_s=0).server
    w.until_moved()
    assert client.receive_rest() == b"A\n"
    assert not new.stats.adopted


# ---------------------------------------------------------------------- settings that clients see


@pytest.mark.parametrize(
    "other", [{"framing": "raw"}, {"template": "count: {count}"}, {"max_message_bytes": 10}], ids=str
)
def test_servers_whose_clients_see_different_things_have_different_fingerprints(loop, other):
    servers = [service(limits=limits, **settings)(loop) for limits, settings in (({}, {}), ({}, other), ({}, {}))]
    quiet = service(limits={"idle_timeout_s": 5})(loop)
    same, different, again = (fingerprint([server]) for server in servers)
    assert same == again == fingerprint([quiet])
    assert same != different
    assert fingerprint([servers[0], servers[1]]) != fingerprint([servers[1], servers[0]])
    for server in (*servers, quiet):
        server.abort()


def test_a_librarys_server_speaks_what_its_factory_makes(loop):
    from functools import partial

    async def handler(stream: Any) -> None: ...

    servers = [Server(loop, each, Limits(max_connections=10)) for each in (Upper, partial(Upper), Later, handler)]
    upper, same, later, coroutine = (server.speaks for server in servers)
    assert upper == same == f"{__name__}.Upper"
    assert later == f"{__name__}.Later"
    assert coroutine.endswith(".handler")
    for server in servers:
        server.abort()


def test_another_protocol_than_there_is_refused(worlds, logged, caplog):
    logged.expect("could not be taken over")
    w = worlds(serving(Upper))
    client = w.connect()
    new = w.move(serving(Later)).server
    w.until(lambda: new.stats.failed)
    assert new.stats.adopted == new.stats.closed == 1
    w.passes()
    assert client.receive_rest() == b""
    assert f"it spoke {__name__}.Upper, and here it would be {__name__}.Later" in caplog.text


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_a_peer_that_has_left_meanwhile(worlds, how):
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


def test_a_dump_that_raises_costs_its_own_connection(worlds, logged):
    logged.expect("aborted: its protocol raised")

    class Broken(Upper):
        def dump(self) -> bytes:
            if self.connection.bytes_received:
                raise ZeroDivisionError
            return b""

    w = worlds(serving(Broken))
    broken, well = w.connect(), w.connect()
    w.ask(broken, b"a\n", 2)
    w.move(serving(Broken))
    w.until_moved()
    assert broken.receive_rest() == b""
    assert w.ask(well, b"a\n", 2) == b"A\n"


@pytest.mark.parametrize("where", ["restore", "factory"])
def test_a_protocol_that_can_not_go_on_costs_its_own_connection(worlds, logged, where):
    logged.expect("could not go on here" if where == "restore" else "could not be taken over")
    bad = iter([True, False])

    class New(Upper):
        def __init__(self) -> None:
            if where == "factory" and next(bad):
                raise ZeroDivisionError

        def restore(self, state: bytes) -> None:
            if where == "restore" and next(bad):
                raise ZeroDivisionError

    New.__qualname__ = Upper.__qualname__
    w = worlds(serving(Upper))
    clients = [w.connect(), w.connect()]
    new = w.move(serving(New)).server
    w.until(lambda: new.stats.adopted == 2)
    w.passes()
    assert new.stats.failed == new.stats.closed == 1
    assert len(new.connections) == 1
    ended = [client for client in clients if not client.receives_nothing()]
    assert len(ended) == 1
    (well,) = set(clients) - set(ended)
    assert w.ask(well, b"a\n", 2) == b"A\n"


@pytest.mark.parametrize(
    "state",
    [b"", b"nonsense", b"{}\n", b'{"format": 99}\n', b'{"format": 1, "parts": [0]}\n', b'{"format": 1, "parts": 7}\n'],
)
def test_what_is_no_state_is_refused_and_its_socket_closed(loop, state):
    server = Server(loop, Upper, Limits(max_connections=10))
    here, there = socket.socketpair()
    with pytest.raises(CannotMoveError):
        adopt([server], there, state)
    assert here.recv(1) == b""
    here.close()
    server.abort()


def test_a_server_that_is_not_here(loop):
    here, there = socket.socketpair()
    with pytest.raises(CannotMoveError, match="a server that is not here"):
        adopt([], there, b'{"format": 1, "parts": [0, 0, 0], "server": 0}\n')
    assert here.recv(1) == b""
    here.close()


def test_when_nobody_takes_them_any_more_the_rest_is_drained(worlds, logged):
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


def test_it_waits_while_the_channel_is_full(worlds):
    w = worlds(serving(Upper))
    clients = [w.connect() for _ in range(3)]
    w.is_full = True
    new = w.move(serving(Upper)).server
    w.passes(10)
    assert not new.stats.adopted
    w.is_full = False
    w.until_moved()
    assert new.stats.adopted == 3
    for client in clients:
        assert w.ask(client, b"a\n", 2) == b"A\n"


def test_descriptors_on_their_way_to_a_process_that_has_died_are_not_lost(worlds):
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


def test_a_server_that_is_stopped_meanwhile_drains_who_comes(worlds):
    w = worlds(serving(Upper))
    client = w.connect()
    new = w.move(serving(Upper))
    new.server.drain()
    client.send(b"a\n")
    w.until_moved()
    assert client.receive_rest() == b"A\n"


def test_a_server_that_is_told_to_stop_hands_over_no_more(worlds):
    class Asked(Later):
        asked: ClassVar[list[Later]] = []

    w = worlds(serving(Asked))
    client = w.connect()
    client.send(b"?")
    w.until(lambda: Asked.asked)
    new = w.move(serving(Asked)).server
    w.passes()
    old = w.all[0].server
    old.drain()
    w.until_moved()
    Asked.asked[0].answer()
    assert w.ask(client, b"", 7) == b"later\n"
    client.close()
    w.until(lambda: not old.connections)
    assert not new.stats.adopted


def test_nothing_of_a_connection_that_has_moved_is_left(worlds):
    import gc
    import weakref

    moved: list[str] = []

    class Told(Upper):
        def on_moved(self) -> None:
            moved.append("moved")

        def on_close(self, error: Exception | None) -> None:
            moved.append("closed")

        def dump(self) -> bytes:
            return b""

    w = worlds(serving(Told))
    client = w.connect()
    w.ask(client, b"a\n", 2)
    (connection,) = w.all[0].server.connections
    gone = weakref.ref(connection.protocol)
    descriptor = connection.socket
    gc.disable()
    try:
        w.move(serving(Told))
        w.until_moved()
        assert moved == ["moved"]
        assert connection.state is State.CLOSED
        assert connection.is_legal
        assert descriptor.fileno() == -1
        connection.write(b"no more\n")
        connection.close()
        connection.drain()
        w.passes()
        assert gone() is None
    finally:
        gc.enable()
    assert w.ask(client, b"b\n", 2) == b"B\n"
