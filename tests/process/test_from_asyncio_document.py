"""What docs/from-asyncio.md shows is true: of each pair of programs, the one does what the other does."""

from __future__ import annotations

import re
import signal
import socket

import pytest

from evloop_bench.loadgen.target import free_port
from paths import ROOT
from processes import Process
from waiting import DEADLINE_S

PAGE = (ROOT / "docs" / "from-asyncio.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M)
PROTOCOL, OUR_PROTOCOL, STREAMS, OUR_STREAMS, ASKS, WE_ASK, WITH_A_LIBRARY = PROGRAMS


def end(process: Process, program: str) -> None:
    """Ours ends in order at a signal; what asyncio does then is its own affair."""
    if "serve(" in program:
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert "Traceback" not in process.log


@pytest.mark.parametrize("program", [PROTOCOL, OUR_PROTOCOL, STREAMS, OUR_STREAMS])
def test_a_pair_that_shouts(program: str) -> None:
    port = free_port()
    with Process(["-c", program.replace("9000", str(port))]) as process:
        with process.connect_when_ready(port) as client:
            assert client.ask(b"one\ntw", 4) == b"ONE\n"
            assert client.ask(b"o\nthree\n", 10) == b"TWO\nTHREE\n"
        end(process, program)


@pytest.mark.parametrize("program", [ASKS, WE_ASK])
def test_a_pair_that_asks_another_one(program: str) -> None:
    port, upstream_port = free_port(), free_port()
    ports = {"9000": str(port), "9001": str(upstream_port)}
    asking = re.sub("|".join(ports), lambda match: ports[match[0]], program)
    upstream = OUR_PROTOCOL.replace("9000", str(upstream_port))
    with Process(["-c", upstream]) as other, Process(["-c", asking]) as process:
        other.connect_when_ready(upstream_port).close()
        with process.connect_when_ready(port) as client:
            assert client.ask(b"one\n", 4) == b"ONE\n"
            assert client.ask(b"two\nthree\n", 10) == b"TWO\nTHREE\n"
        end(process, program)


def test_ours_ends_in_order_when_the_other_one_does() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        upstream.settimeout(DEADLINE_S)
        program = WE_ASK.replace("9000", str(port)).replace("9001", str(upstream.getsockname()[1]))
        with Process(["-c", program]) as process:
            with process.connect_when_ready(port) as client:
                client.send(b"one\n")
                other, _ = upstream.accept()
                with other:
                    assert other.recv(100) == b"one\n"
                assert client.receive_rest() == b""
            end(process, program)


def test_a_library_of_asyncio_in_a_thread() -> None:
    port = free_port()
    with Process(["-c", WITH_A_LIBRARY.replace("9000", str(port))]) as process:
        with process.connect_when_ready(port) as client:
            assert client.ask(b"abc\ndef\n", 8) == b"cba\nfed\n"
        end(process, WITH_A_LIBRARY)


def test_ours_answers_the_last_line_too_and_stops_in_order() -> None:
    for program in (OUR_PROTOCOL, OUR_STREAMS):
        port = free_port()
        with Process(["-c", program.replace("9000", str(port))]) as process:
            with process.connect_when_ready(port) as client:
                client.send(b"one\nlast")
                client.half_close()
                assert client.receive_rest() == b"ONE\nLAST\n"
            end(process, program)
