"""What docs/framing.md shows is true: its programs run, and do what the text says."""

from __future__ import annotations

import re

import pytest

from paths import ROOT
from processes import Process

PROGRAMS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "framing.md").read_text(), re.S | re.M)
SERVERS = [program for program in PROGRAMS if "serve(" in program]


@pytest.mark.parametrize("program", [program for program in PROGRAMS if program not in SERVERS])
def test_a_program_that_is_a_test(program: str) -> None:
    assert "assert " in program
    exec(compile(program, "docs/framing.md", "exec"), {})


@pytest.mark.parametrize(
    ("containing", "said", "answered"),
    [
        ("LengthPrefix", b"\0\0\0\5hello\0\0\0\0", b"\0\0\0\5HELLO\0\0\0\0"),
        ("Netstring", b"5:hello,0:,", b"5:HELLO,0:,"),
    ],
)
def test_a_program_that_serves(containing: str, said: bytes, answered: bytes) -> None:
    (program,) = [program for program in SERVERS if containing in program]
    with Process(["-c", program.replace("port=9000", "port=0")]) as server:
        client = server.connect()
        client.send(said)
        client.half_close()
        assert client.receive_rest() == answered
        client.close()
