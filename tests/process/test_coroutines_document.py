"""What docs/coroutines.md shows is true: its programs run, and do what the text says."""

from __future__ import annotations

import re
import signal

import pytest

from paths import ROOT
from processes import Process

PAGE = (ROOT / "docs" / "coroutines.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M)

CONVERSATIONS = [
    ("hello, ", b"world\nyou", b"hello, world\nhello, you\n"),
    ("put ", b"put 5\nab\ncdput 0\nend\nrest", b"got 5 bytes\ngot 0 bytes\nthe rest is rest"),
    ("still here", b"one\ntwo\n", b"one\ntwo\n"),
]


def test_each_program_is_in_the_list() -> None:
    assert len(PROGRAMS) == len(CONVERSATIONS) + 1


@pytest.mark.parametrize(("containing", "said", "answered"), CONVERSATIONS)
def test_program(containing: str, said: bytes, answered: bytes) -> None:
    (program,) = [program for program in PROGRAMS if containing in program and "serve(" in program]
    with Process(["-c", program.replace("port=9000", "port=0")]) as server:
        client = server.connect()
        client.send(said)
        client.half_close()
        assert client.receive_rest() == answered
        client.close()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_a_reset_of_a_client_makes_no_traceback() -> None:
    (program,) = [program for program in PROGRAMS if "still here" in program]
    with Process(["-c", program.replace("port=9000", "port=0")]) as server:
        server.connect().reset()
        with server.connect() as client:
            assert client.ask(b"one\n", 4) == b"one\n"
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_the_program_that_is_a_test() -> None:
    (program,) = [program for program in PROGRAMS if "MemoryLoop" in program]
    exec(compile(program, "docs/coroutines.md", "exec"), {})
