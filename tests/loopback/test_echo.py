"""The simplest server over real sockets, with every selector."""

from __future__ import annotations

from servers import Echo


def test_echo(start):
    server = start(Echo)
    client = server.connect()
    for text in (b"a", b"hello", b"\0" * 1000):
        assert client.ask(text, len(text)) == text
