"""docs/protocol.md says exactly what goes over the wire: each of its examples is run against a server."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from evloop.charcount.cli.server import make_parser, make_settings, parse_arguments
from evloop.charcount.server import CharCountServer
from servers import RunningServer

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"


def examples() -> list[tuple[str, str]]:
    """The server's arguments and the exchange of each example."""
    found = re.findall(r"^```exchange ?(.*)\n((?:[<>] .*\n)+)```$", DOCUMENT.read_text(), re.MULTILINE)
    assert len(found) == DOCUMENT.read_text().count("```exchange")
    return found


def wire_bytes(text: str) -> bytes:
    """The bytes that the inside of a bytes literal stands for."""
    return text.encode("ascii").decode("unicode_escape").encode("latin-1")


@pytest.mark.parametrize(("arguments", "exchange"), examples(), ids=lambda text: text.splitlines()[0] if text else "-")
def test_example(arguments: str, exchange: str, start: Callable[..., RunningServer]) -> None:
    parser = make_parser()
    # Few connections, for select has room for no more.
    args = parse_arguments(parser, [*shlex.split(arguments), "--max-connections=100"], {})
    settings = make_settings(parser, args)
    client = start(make_server=lambda loop: CharCountServer(loop, settings)).connect()
    ended = False
    for line in exchange.splitlines():
        direction, text = line.split(" ", 1)
        if direction == ">" and text == "EOF":
            client.half_close()
            ended = True
        elif direction == ">":
            client.send(wire_bytes(text))
        elif text == "EOF":
            assert ended
        else:
            expected = wire_bytes(text)
            assert client.receive_exactly(len(expected)) == expected
    if not ended:
        client.half_close()
    assert client.receive_rest() == b""
