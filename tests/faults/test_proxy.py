"""Proxies and those who pretend to be some: 60 to 66 of docs/reliability.md."""

from __future__ import annotations

import pytest

from clients import Client
from evloop import Server
from faults.proxied import FOUR, client_of, counts, served, waiting
from proxyheaders import SIGNATURE, tlv, v1, v2
from servers import recorder, small_limits
from waiting import run_until, wait_until

# ---------------------------------------------------------------------- 60


@pytest.mark.parametrize("begin", [b"", b"PROXY TCP4 192.0.2.1 ", SIGNATURE])
def test_60_header_that_does_not_come_in_time(behind, logged, begin):
    logged.expect(r"connection of proxy 127\.0\.0\.1:\d+ closed: no whole PROXY header in 0\.05 s")
    server = behind(proxy_header_timeout_s=0.05)
    client = server.connect()
    client.send(begin)
    assert client.receive_rest() == b""
    assert server.limit_hits("proxy-header-timeout") == 1
    assert counts(server) == {"accepted": 1, "closed": 1, "probes": 0, "failed": 1, "bad_proxy_headers": 0}


def test_60_header_whose_bytes_trickle(behind, logged):
    """They don't put the deadline off."""
    logged.expect("no whole PROXY header")
    server = behind(proxy_header_timeout_s=0.2)
    client = server.connect()
    try:
        for byte in v2(*FOUR, tlv(4, bytes(3000))):
            client.send(bytes([byte]))
            client.socket.settimeout(0.001)
            try:
                assert client.socket.recv(1) == b""
                break
            except TimeoutError:
                pass
        else:
            pytest.fail("all of it was taken, byte by byte")
    except ConnectionError:
        pass
    wait_until(lambda: server.limit_hits("proxy-header-timeout") == 1, "counted")


def test_60_header_that_came_leaves_no_timer(behind):
    server = behind()
    before = server.call(lambda: server.loop.timers)
    client = server.connect()
    wait_until(lambda: server.call(lambda: server.loop.timers) == before + 1, "a deadline")
    client.send(v1(*FOUR))
    assert served(client)
    assert server.call(lambda: server.loop.timers) == before


def test_60_header_that_came_while_the_process_did_not_run(behind):
    """What is ready is looked at before anybody is judged."""
    server = behind(proxy_header_timeout_s=0.1)
    client = server.connect()
    wait_until(lambda: waiting(server) == 1, "it waits")
    release = server.hold()
    client.send(v1(*FOUR) + b"hello\n")
    client.receives_nothing(0.15)
    release.set()
    assert client.receive_exactly(2) == b"5\n"
    assert server.limit_hits("proxy-header-timeout") == 0


# ---------------------------------------------------------------------- 61


@pytest.mark.parametrize(
    ("bytes_sent", "reason"),
    [
        (b"hello\n", r"no PROXY header, but 'hello\\n'"),
        (b"\x16\x03\x01\x02\x00\x01", "no PROXY header, but"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\nhello\n", "not a port"),
        (v2(*FOUR, tlv(5, b"id"), checksum=True)[:-1] + b"!hello\n", "CRC32c is wrong"),
        (SIGNATURE + b"\x21\x11\xff\xff", "65551 bytes, and 4096 are allowed"),
    ],
)
def test_61_bad_header(behind, logged, bytes_sent, reason):
    logged.expect(rf"connection of proxy 127\.0\.0\.1:\d+ closed: .*{reason}")
    server = behind()
    client = server.connect()
    client.send(bytes_sent)
    try:
        assert client.receive_rest() == b""
    except ConnectionError:
        pass  # what came after it was not read
    assert counts(server) == {"accepted": 1, "closed": 1, "probes": 0, "failed": 1, "bad_proxy_headers": 1}
    assert len(logged.lines) == 1
    assert served(client_of(server, "192.0.2.1"))


def test_61_bad_header_that_ends_too_early(behind, logged):
    logged.expect("a PROXY header that ends after 9 bytes")
    server = behind()
    client = server.connect()
    client.send(b"PROXY TCP")
    client.half_close()
    assert client.receive_rest() == b""
    assert counts(server)["bad_proxy_headers"] == 1


def test_61_bad_header_limit_of_its_size(behind, logged):
    logged.expect("a PROXY v2 header of 231 bytes, and 200 are allowed")
    server = behind(proxy_header_bytes=200)
    client = server.connect()
    client.send(v2(*FOUR, tlv(4, bytes(200))))
    client.was_reset()
    client = server.connect()
    client.send(v2(*FOUR, tlv(4, bytes(200 - 28 - 3))))
    assert served(client)


# ---------------------------------------------------------------------- 62


def test_62_header_of_somebody_else(behind, logged):
    """It changes no address, and the line that tells of it can't fill a disk."""
    logged.expect("127.0.0.1:[0-9]+ begins with what looks like a PROXY header")
    logged.allow("lines like these left out")
    server = behind("10.0.0.0/8", max_connections_per_address=200)
    clients = [server.connect() for _ in range(50)]
    for client in clients:
        client.send(v1(*FOUR))
        assert client.receive_line() == b"%d\n" % (len(v1(*FOUR)) - 2)
    assert {connection.peer.partition(":")[0] for connection in server.connections()} == {"127.0.0.1"}
    assert server.call(lambda: dict(server.server._by_origin)) == {"127.0.0.1": 50}
    lines = [record for record in logged.records if "looks like a PROXY header" in record.msg]
    assert 1 <= len(lines) < 50


# ---------------------------------------------------------------------- 63


@pytest.mark.parametrize("header", [b"", v2(None, local=True), b"PROXY UNKNOWN\r\n"])
@pytest.mark.parametrize("end", [Client.close, Client.reset])
def test_63_probe_of_a_proxy(behind, caplog, header, end):
    """HAProxy's end with a reset."""
    caplog.set_level("INFO")
    server = behind(idle_timeout_s=600)
    for _ in range(5):
        client = server.connect()
        client.send(header)
        end(client)
    wait_until(lambda: counts(server)["closed"] == 5, "all closed")
    assert counts(server) == {"accepted": 5, "closed": 5, "probes": 5, "failed": 0, "bad_proxy_headers": 0}
    assert caplog.messages == []


def test_63_probe_of_a_proxy_that_names_itself(behind, caplog):
    """As HAProxy's do in version 1, which has no word for it. It counts for no address, and may ask something."""
    caplog.set_level("INFO")
    server = behind(max_connections_per_address=1)
    probes = [server.connect() for _ in range(3)]
    for client in probes:
        client.send(v1(client.socket.getsockname(), server.address))
        assert served(client)
    for client in probes:
        client.reset()
    wait_until(lambda: counts(server)["closed"] == 3, "all closed")
    assert counts(server) == {"accepted": 3, "closed": 3, "probes": 3, "failed": 0, "bad_proxy_headers": 0}
    assert caplog.messages == []


def test_63_probe_of_a_proxy_that_asks_something_is_answered(behind):
    server = behind()
    client = server.connect()
    client.send(v2(None, local=True))
    assert served(client)


# ---------------------------------------------------------------------- 64


def test_64_limit_for_each_address_is_for_the_clients(behind, logged):
    logged.expect(r"connection 192\.0\.2\.1:4711 refused: too-many-connections-from-address limit 2")
    logged.expect(r"connection \[::ffff:192\.0\.2\.1\]:4711 refused: too-many-connections-from-address limit 2")
    logged.expect(r"connection \[2001:db8::9\]:4711 refused: too-many-connections-from-address limit 2")
    server = behind(max_connections_per_address=2, ipv6_prefix_bits=64)
    first = [client_of(server, "192.0.2.1") for _ in range(2)]
    others = [client_of(server, f"192.0.2.{number}") for number in range(2, 12)]
    neighbours = [client_of(server, f"2001:db8::{number}") for number in range(2)]
    assert all(map(served, first + others + neighbours))
    for over in (
        client_of(server, "192.0.2.1"),
        client_of(server, "::ffff:192.0.2.1"),
        client_of(server, "2001:db8::9"),
    ):
        assert over.receive_rest() == b"ERR too-many-connections-from-address limit 2\n"
    assert server.limit_hits("too-many-connections-from-address") == 3
    first[0].close()
    wait_until(lambda: len(server.connections()) == 13, "one has gone")
    assert served(client_of(server, "192.0.2.1"))


def test_64_limit_for_each_address_knows_none_of_an_unknown_client(behind):
    server = behind(max_connections_per_address=2)
    for header in (v2(None, local=True), b"PROXY UNKNOWN\r\n", v2("/run/client", "/run/cc")):
        clients = [server.connect() for _ in range(4)]
        for client in clients:
            client.send(header)
        assert all(map(served, clients))


def test_64_limit_of_connections_counts_those_whose_header_is_awaited(behind, logged):
    """Each takes a descriptor. A few more may wait, so that a refusal is the client's, with its address."""
    logged.expect(r"connection 192\.0\.2\.77:4711 refused: too-many-connections limit 4")
    logged.expect(r"connection 127\.0\.0\.1:\d+ refused: too-many-connections limit 4")
    server = behind(max_connections=4, proxy_header_timeout_s=60)
    inside = [client_of(server, f"192.0.2.{number}") for number in range(2)]
    assert all(map(served, inside))
    silent = [server.connect() for _ in range(2)]
    wait_until(lambda: waiting(server) == 2, "two wait")
    assert client_of(server, "192.0.2.77").receive_rest() == b"ERR too-many-connections limit 4\n"
    more = [server.connect() for _ in range(8)]
    wait_until(lambda: waiting(server) == 10, "eight more wait")
    assert server.connect().receive_rest() == b"ERR too-many-connections limit 4\n"
    assert server.limit_hits("too-many-connections") == 2
    for client in more:
        client.close()
    wait_until(lambda: waiting(server) == 2, "two wait")
    for client in silent:
        client.send(v1(*FOUR))
        assert served(client)


# ---------------------------------------------------------------------- 65


def test_65_bytes_after_a_header_wherever_it_is_cut(start):
    """In every split, with what comes after it in the same segment or in another one."""
    protocol = recorder()
    server = start(make_server=lambda loop: Server(loop, protocol, small_limits(), proxy_from="127.0.0.1"))
    for data in (v1(*FOUR) + b"after", v2(*FOUR) + b"after"):
        for cut in range(1, len(data)):
            protocol.events.clear()
            client = server.connect()
            client.send(data[:cut])
            if cut < len(data) - 5:
                wait_until(lambda: waiting(server), "it waits")
                server.passes(1)
            client.send(data[cut:])
            client.half_close()
            assert client.receive_rest() == b""
            assert protocol.received() == b"after", (data, cut)
            client.close()
            server.wait_empty()


# ---------------------------------------------------------------------- 66


def test_66_drain_answers_what_has_come_through_a_proxy(behind):
    server = behind()
    waits = server.connect()
    begun = server.connect()
    begun.send(b"PROXY TCP4 ")
    silent = server.connect()
    wait_until(lambda: waiting(server) == 3, "they wait")
    release = server.hold()
    late = client_of(server, "192.0.2.1")  # in the kernel's queue
    for client in (waits, late):
        if client is waits:
            client.send(v1(*FOUR))
        client.send(b"hello\nno end")
    server.loop.call_soon_threadsafe(server.server.drain)
    release.set()
    for client in (waits, late):
        assert client.receive_exactly(2) == b"5\n"
        client.close()
    assert begun.receive_rest() == silent.receive_rest() == b""
    wait_until(lambda: not server.server.connections, "drained")
    assert waiting(server) == 0
    assert not server.server.aborted
    assert counts(server)["failed"] == 0


def test_66_drain_looks_itself(loop):
    """Whoever calls it, and if no pass of the loop has shown before what has come."""
    server = Server(loop, recorder(), small_limits(), proxy_from="127.0.0.1")
    server.listen()
    with Client(server.listeners[0].socket.getsockname()) as client:
        run_until(loop, lambda: server._gate.waiting, "it waits")
        client.send(v1(*FOUR))
        server.drain()
        (connection,) = server.connections
        assert connection.peer == "192.0.2.1:56324"
        client.close()
        run_until(loop, lambda: not server.connections, "closed")


def test_66_drain_that_is_aborted_closes_those_who_wait(behind):
    server = behind()
    client = server.connect()
    wait_until(lambda: waiting(server) == 1, "it waits")
    server.call(server.server.abort)
    assert client.receive_rest() == b""
    assert waiting(server) == 0
