"""The scenario of reloads: its clients notice what they are there to notice."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from benchmarks.comparison.reloading import HTTP, LINES, Load, ReloadError, reload, services
from waiting import DEADLINE_S


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server of connections that ``answer`` deals with, one after another; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        done = threading.Event()

        def serve() -> None:
            while True:
                try:
                    sock, _ = listening.accept()
                except OSError:
                    return
                with sock:
                    sock.settimeout(DEADLINE_S)
                    if done.is_set():
                        return
                    answer(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            done.set()
            socket.create_connection(listening.getsockname()).close()
            thread.join(DEADLINE_S)


def test_it_counts_replies_and_connections_that_end_with_and_without_a_loss():
    connections = 0

    def answer(sock: socket.socket) -> None:
        nonlocal connections
        connections += 1
        with sock.makefile("rwb") as stream:
            for number in range(4):
                line = stream.readline()
                if not line or (connections == 1 and number == 3):
                    return  # one question has no answer
                stream.write(b"%d\n" % (len(line) - 1))
                stream.flush()

    with serving(answer) as port:
        load = Load(port, LINES, clients=1)
        while connections < 3:
            load.run(0.02)
        load.finish()
    assert load.lost >= 1
    assert load.ended >= 2
    assert load.messages >= 3 + 4
    assert not load.refused


@pytest.mark.slow
def test_a_wrong_reply_is_an_error():
    def answer(sock: socket.socket) -> None:
        if sock.recv(100):
            sock.sendall(b"1000\n")
            sock.recv(100)

    with serving(answer) as port:
        load = Load(port, LINES, clients=1)
        with pytest.raises(ReloadError, match="a wrong reply: 1000 instead of"):
            load.run(DEADLINE_S)
        load.finish()


def test_who_can_not_connect_is_counted():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    load = Load(port, LINES, clients=2)
    load.run(0.02)
    load.finish()
    assert load.refused >= 2


@pytest.mark.parametrize(
    ("received", "found"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n17", (17, 40)),
        (b"HTTP/1.1 200 OK\r\ncontent-length:2\r\n\r\n17more", (17, 39)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1", None),
        (b"HTTP/1.1 200 OK\r\nContent-Le", None),
    ],
)
def test_replies_of_http(received, found):
    assert HTTP.answer(received) == found
    if found is not None:
        assert received[: found[1]].endswith(b"17")


def test_questions_of_http():
    head, _, body = HTTP.question(12).partition(b"\r\n\r\n")
    assert body == b"x" * 12
    assert b"Content-Length: 12" in head


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in services() if name.startswith("evloop")])
def test_ours_loses_nothing(tmp_path, name):
    figures = reload(tmp_path, [name])[name]
    assert figures["lost"] == figures["ended"] == figures["refused"] == 0
    assert figures["messages"] > 1000
