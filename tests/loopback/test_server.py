"""Where a server listens, and how many it serves."""

from __future__ import annotations

import os
import re
import selectors
import socket

import pytest

from clients import Client
from evloop import Limits, ListenError, Server, serve
from servers import Echo, RunningServer, small_limits
from waiting import wait_until


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")

# ---------------------------------------------------------------------- addresses


def test_port_0_says_which_port_it_is(start):
    server = start(Echo)
    assert server.addresses == [f"127.0.0.1:{server.port}"]
    assert server.port > 0
    assert server.connect().ask(b"x", 1) == b"x"


@needs_ipv6
def test_ipv6(start):
    server = start(Echo, host="::1")
    assert server.addresses == [f"[::1]:{server.port}"]
    client = server.connect()
    assert client.ask(b"x", 1) == b"x"
    assert server.connection().peer == f"[::1]:{client.socket.getsockname()[1]}"


@needs_ipv6
def test_a_name_with_two_addresses_has_one_port(start, monkeypatch):
    lookup = socket.getaddrinfo

    def both(host: str | bytes | None, port: int, **options: object) -> list:
        if host not in ("both.example", b"both.example"):
            return lookup(host, port, **options)  # type: ignore[arg-type]
        return lookup("127.0.0.1", port, **options) + lookup("::1", port, **options) * 2  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    server = start(Echo, host="both.example")
    assert server.addresses == [f"127.0.0.1:{server.port}", f"[::1]:{server.port}"]
    assert server.connect("127.0.0.1").ask(b"x", 1) == b"x"
    assert server.connect("::1").ask(b"x", 1) == b"x"
    peers = {connection.peer.rpartition(":")[0] for connection in server.connections()}
    assert peers == {"127.0.0.1", "[::1]"}


def test_localhost(start):
    server = start(Echo, host="localhost")
    ports = {address.rpartition(":")[2] for address in server.addresses}
    assert ports == {str(server.port)}
    for address in server.addresses:
        host = address.rpartition(":")[0].strip("[]")
        assert server.connect(host).ask(b"x", 1) == b"x"


def test_all_addresses(start):
    server = start(Echo, host="")
    assert f"0.0.0.0:{server.port}" in server.addresses
    assert server.connect("127.0.0.1").ask(b"x", 1) == b"x"


def test_listening_twice(start):
    server = start(Echo)
    (second,) = server.call(server.server.listen, "127.0.0.1", 0)
    assert second != server.addresses[0]
    with Client(("127.0.0.1", int(second.rpartition(":")[2]))) as client:
        assert client.ask(b"x", 1) == b"x"


def test_a_port_that_is_taken(start):
    server = start(Echo)
    with pytest.raises(ListenError) as caught:
        server.call(server.server.listen, "127.0.0.1", server.port)
    # Where it can be told, the program is named.
    text = rf"cannot listen on 127\.0\.0\.1:{server.port}: the port is taken( by .+ \(pid {os.getpid()}\); stop it|"
    assert re.fullmatch(text + "; stop the program that has it) or choose another port", str(caught.value))
    assert server.connect().ask(b"x", 1) == b"x"


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        ("no-such-host.invalid", 0, "cannot resolve host 'no-such-host.invalid'"),
        ("a..b", 0, "cannot resolve host 'a..b'"),
        ("192.0.2.1", 0, "cannot listen on 192.0.2.1:0: not an address of this machine"),
    ],
)
def test_a_host_that_cannot_be_listened_on(start, host, port, text):
    server = start(Echo)
    with pytest.raises(ListenError) as caught:
        server.call(server.server.listen, host, port)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)
    assert len(server.server.listeners) == 1


def test_a_second_address_that_is_taken_gives_the_first_back(start, monkeypatch):
    taken = start(Echo)
    lookup = socket.getaddrinfo

    def two(host: str | None, port: int, **options: object) -> list:
        found = lookup("127.0.0.1", port, **options)  # type: ignore[arg-type]
        return [*found, (*found[0][:4], ("127.0.0.1", taken.port))]

    other = start(Echo)
    monkeypatch.setattr(socket, "getaddrinfo", two)
    with pytest.raises(ListenError, match="the port is taken"):
        other.call(other.server.listen, "two.example", 0)
    assert len(other.server.listeners) == 1


def test_a_port_can_be_used_again_at_once(start):
    first = start(Echo)
    client = first.connect()
    assert client.ask(b"x", 1) == b"x"
    port = first.port
    first.call(first.server.abort)  # the server closes first, so the connection lingers in TIME_WAIT
    client.receive_rest()
    first.close()
    again = start(Echo, port=port)
    assert again.port == port
    assert again.connect().ask(b"x", 1) == b"x"


# ---------------------------------------------------------------------- how many


def test_one_over_the_limit_is_told_so_and_capacity_recovers(start, logged):
    logged.expect("refused: too-many-connections limit 3")
    server = start(Echo, small_limits(max_connections=3))
    clients = [server.connect() for _ in range(3)]
    for client in clients:
        assert client.ask(b"x", 1) == b"x"
    over = server.connect()
    over.send(b"unread input must not turn the message into a reset")
    assert over.receive_rest() == b"ERR too-many-connections limit 3\n"
    over.close()
    assert server.limit_hits("too-many-connections") == 1
    assert clients[0].ask(b"x", 1) == b"x"
    clients[1].close()
    wait_until(lambda: len(server.connections()) == 2)
    assert server.connect().ask(b"x", 1) == b"x"
    assert server.server.stats.accepted == 4
    assert server.server.stats.failed == 0


def test_many_over_the_limit(start, logged):
    logged.expect("refused: too-many-connections limit 1")
    logged.allow("lines like these left out")
    server = start(Echo, small_limits(max_connections=1))
    inside = server.connect()
    assert inside.ask(b"x", 1) == b"x"
    over = [server.connect() for _ in range(60)]
    for client in over:
        assert client.receive_rest() == b"ERR too-many-connections limit 1\n"
    assert server.limit_hits("too-many-connections") == 60
    assert inside.ask(b"x", 1) == b"x"
    for client in [*over, inside]:
        client.close()
    server.wait_empty()
    assert server.connect().ask(b"x", 1) == b"x"


def test_a_limit_per_address(start, logged):
    logged.expect("refused: too-many-connections-from-address limit 2")
    server = start(Echo, small_limits(max_connections_per_address=2), host="")
    clients = [server.connect("127.0.0.1") for _ in range(2)]
    for client in clients:
        assert client.ask(b"x", 1) == b"x"
    assert server.connect("127.0.0.1").receive_rest() == b"ERR too-many-connections-from-address limit 2\n"
    with Client(("127.0.0.1", server.port), source=("127.0.0.2", 0)) as other:
        assert other.ask(b"x", 1) == b"x"
    clients[0].close()
    wait_until(lambda: len(server.connections()) == 1)
    assert server.connect("127.0.0.1").ask(b"x", 1) == b"x"
    assert server.limit_hits("too-many-connections-from-address") == 1


def test_addresses_without_connections_are_forgotten(start):
    server = start(Echo, small_limits(max_connections_per_address=2))
    for _ in range(5):
        client = server.connect()
        assert client.ask(b"x", 1) == b"x"
        client.close()
        server.wait_empty()
    assert not server.server._by_origin


def test_the_text_of_a_refusal_is_the_server_s(start, logged):
    logged.expect("refused")

    def make(loop):
        return Server(loop, Echo, small_limits(max_connections=1), refusal=lambda limit, n: f"{limit}/{n}".encode())

    server = start(make_server=make)
    assert server.connect().ask(b"x", 1) == b"x"
    assert server.connect().receive_rest() == b"too-many-connections/1"


def test_a_refusal_that_raises_costs_only_its_text(start, logged):
    logged.expect("refused")
    logged.expect("the text of a refusal could not be made")

    def make(loop):
        return Server(loop, Echo, small_limits(max_connections=1), refusal=lambda limit, number: b"%d" % limit)

    server = start(make_server=make)
    client = server.connect()
    assert client.ask(b"x", 1) == b"x"
    assert server.connect().receive_rest() == b""
    assert client.ask(b"y", 1) == b"y"
    assert server.limit_hits("too-many-connections") == 1


def test_more_connections_than_descriptors_allow_are_lowered_with_a_warning(start, logged, monkeypatch):
    resource = pytest.importorskip("resource")
    logged.expect("at most 968 connections, not 5000: the descriptor limit allows no more")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, 1000))
    server = start(Echo, Limits(max_connections=5000))
    assert server.server.max_connections == 968


@pytest.mark.parametrize("selector", [selectors.SelectSelector])
def test_more_connections_than_select_can_watch_are_lowered_with_a_warning(start, logged, monkeypatch):
    resource = pytest.importorskip("resource")
    logged.expect("at most 992 connections, not 5000: SelectSelector can watch no more")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4096, 4096))
    server = start(Echo, Limits(max_connections=5000))
    assert server.server.max_connections == 992


def test_counters(start):
    server = start(Echo)
    for size in (1, 10, 100):
        client = server.connect()
        assert client.ask(b"x" * size, size) == b"x" * size
        client.close()
    server.wait_empty()
    stats = server.server.stats
    assert (stats.accepted, stats.closed, stats.failed) == (3, 3, 0)
    assert (stats.bytes_received, stats.bytes_sent) == (111, 111)
    client = server.connect()
    assert client.ask(b"abc", 3) == b"abc"
    client.reset()
    server.wait_empty()
    assert (stats.accepted, stats.closed, stats.failed) == (4, 4, 1)
    assert server.call(server.server.totals) == (114, 114)


def test_a_storm_of_clients_is_served(start):
    server = start(Echo, small_limits(accepts_per_pass=4))
    clients = [server.connect() for _ in range(200)]
    for client in clients:
        client.send(b"hello")
    for client in clients:
        assert client.receive_exactly(5) == b"hello"
    assert server.server.stats.accepted == 200


def test_a_server_can_be_closed_with_clients_in_every_state(selector):
    with RunningServer(lambda loop: Server(loop, Echo, small_limits()), selector) as server:
        server.connect()
        server.connect().send(b"x" * 100)
        flooded = server.connect(receive_buffer=4096)
        flooded.send_until_full()
        server.connect().half_close()


def test_serve_gives_everything_back_when_it_fails():
    addresses = []

    def fails(listening):
        addresses.extend(listening)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        serve(Echo, on_listening=fails)
    host, _, port = addresses[0].rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))
