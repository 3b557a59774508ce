"""A network that loses, delays, reorders and repeats packets, and a cable that is pulled in mid-message."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from faults.badnetwork import SERVER_ADDRESS, BadNetwork, Weather, why_not
from processes import SPINNING, Process, start_server
from waiting import wait_until

_reason = why_not()
pytestmark = pytest.mark.skipif(_reason is not None, reason=f"no bad network: {_reason}")


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Iterator[BadNetwork]:
    with BadNetwork(seed=len(request.node.name)) as network:
        yield network


@pytest.fixture
def start(network: BadNetwork) -> Iterator:
    running: list[Process] = []

    def start_one(*arguments: str) -> Process:
        running.append(start_server("--host", SERVER_ADDRESS, *arguments, prefix=network.server_side))
        return running[-1]

    yield start_one
    for process in running:
        process.close()


def converse(network: BadNetwork, server: Process, messages: int) -> None:
    """One client that pipelines in pieces, half-closes, and checks all replies."""
    texts = ["字" * (number % 50) + "x" * (number % 7) for number in range(messages)]
    request = "".join(text + "\n" for text in texts).encode()
    expected = b"".join(b"%d\n" % len(text) for text in texts)
    with network.connect(server.address[1]) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(request), 997):  # cut in the middle of code points
            sock.sendall(request[start : start + 997])
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while part := sock.recv(65536):
            received += part
    assert received == expected


def test_network_with_delay_reordering_and_duplicates(network, start):
    server = start()
    network.weather = Weather(duplicate=0.2, delay_s=0.002, jitter_s=0.01)
    converse(network, server, 500)
    assert network.passed > 20
    server.wait_for_log("disconnect ")
    assert "messages=500 errors=0" in server.log


def test_network_with_loss(network, start):
    server = start()
    network.weather = Weather(loss=0.03, delay_s=0.001, jitter_s=0.002)
    for _ in range(50):
        converse(network, server, 500)
        if network.lost > 2:
            break
    assert network.lost > 2


@pytest.mark.slow
@pytest.mark.parametrize("loss", [0.1, 0.2])
def test_network_with_everything_at_once(network, start, loss):
    server = start()
    network.weather = Weather(loss=loss, duplicate=0.2, delay_s=0.005, jitter_s=0.02)
    for _ in range(5):
        converse(network, server, 500)
    assert network.lost > 10


def test_network_cable_pulled_in_mid_message_ends_only_that_connection(network, start):
    server = start("--message-timeout", "0.4")
    before = server.descriptors()
    victim = network.connect(server.address[1])
    victim.sendall(b"abc\nhalf a mess")
    assert victim.recv(10) == b"3\n"
    network.weather = Weather(cable_pulled=True)
    server.wait_for_log("LimitError: message not complete in 0.4 s")
    wait_until(lambda: server.descriptors() == before, "the descriptor is given back")
    assert server.cpu_share() < SPINNING
    # The cable is back: others are served, and the victim learns that it is over.
    network.weather = Weather()
    converse(network, server, 20)
    try:
        victim.sendall(b"age\n")
        while victim.recv(100):
            pass
    except ConnectionError:
        pass
    victim.close()


def test_network_cable_pulled_while_replies_wait_is_noticed(network, start):
    server = start("--write-timeout", "0.4")
    victim = network.connect(server.address[1], receive_buffer=4096)
    victim.setblocking(False)
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        try:
            victim.send(b"\n" * 65536)
        except BlockingIOError:
            time.sleep(0.001)
        except ConnectionError:
            break
    network.weather = Weather(cable_pulled=True)
    server.wait_for_log("LimitError: not one byte read by the peer in 0.4 s")
    victim.close()


def test_network_cable_pulled_from_an_idle_connection_is_noticed_by_the_idle_timeout(network, start):
    server = start("--idle-timeout", "0.4")
    with network.connect(server.address[1]) as victim:
        victim.sendall(b"abc\n")
        assert victim.recv(10) == b"3\n"
        network.weather = Weather(cable_pulled=True)
        server.wait_for_log("LimitError: no byte in 0.4 s")


def test_network_cable_put_back_in_time_loses_nothing(network, start):
    server = start("--message-timeout", "30")
    with network.connect(server.address[1]) as sock:
        sock.sendall(b"before\nhalf of ")
        assert sock.recv(10) == b"6\n"
        network.weather = Weather(cable_pulled=True)
        sock.sendall("a message, and a whole one\nzażółć\n".encode())
        wait_until(lambda: network.lost > 0, "packets are lost")
        network.weather = Weather()
        received = b""
        while received.count(b"\n") < 2:
            received += sock.recv(100)
        assert received == b"%d\n6\n" % len("half of a message, and a whole one")
