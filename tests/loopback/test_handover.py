"""Connections that go on in another process: here from one server to another, over a socket pair as between processes.

The two share nothing but what is passed; each has its own loop.
"""

from __future__ import annotations

import logging
import socket
from typing import Any, ClassVar

import pytest

import proxyheaders
from evloop import Connection, EventLoop, Limits, Protocol, Server
from evloop.errors import CannotMoveError
from evloop.net.memory import FakeClock
from evloop.net.proxyheader import AUTHORITY
from evloop.net.state import State
from evloop.server.handover import adopt
from moving import Later, Upper, service, serving

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
    assert w.rounds == 1  # the next process need not wait for it
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


def test_with_no_time_none_moves(worlds):
    w = worlds(serving(Upper))
    client = w.connect()
    client.send(b"a\n")
    new = w.move(serving(Upper), timeout_s=0).server
    w.until_moved()
    assert w.rounds == 1
    assert client.receive_rest() == b"A\n"
    assert not new.stats.adopted


# ---------------------------------------------------------------------- settings that clients see


def test_a_librarys_server_speaks_what_its_factory_makes(loop):
    from functools import partial

    async def handler(stream: Any) -> None: ...

    servers = [Server(loop, each, Limits(max_connections=10)) for each in (Upper, partial(Upper), Later, handler)]
    upper, same, later, coroutine = (server.speaks for server in servers)
    assert upper == same == "moving.Upper"
    assert later == "moving.Later"
    assert coroutine.endswith(".handler")
    for server in servers:
        server.abort()


# ---------------------------------------------------------------------- what goes wrong


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

    New.__module__, New.__qualname__ = Upper.__module__, Upper.__qualname__
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
