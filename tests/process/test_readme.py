"""What README.md shows is true: its programs run, its transcript is what one gets."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable

from paths import ROOT
from processes import Process

README = (ROOT / "README.md").read_text()


def code_block(language: str, containing: str) -> str:
    """The only block of code in that language with that text in it."""
    found = [block for block in re.findall(rf"^```{language}\n(.*?)^```$", README, re.S | re.M) if containing in block]
    assert len(found) == 1
    return found[0]


def test_server_in_ten_lines() -> None:
    program = code_block("python", "class Greeter")
    assert len([line for line in program.splitlines() if line]) <= 10
    with Process(["-c", program.replace("port=9000", "port=0")]) as server:
        client = server.connect()
        client.send(b"world\nquit\nnot any more\n")
        assert client.receive_rest() == b"hello, world\nbye\n"
        client.close()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_coroutine() -> None:
    with Process(["-c", code_block("python", "async def greeter").replace("port=9000", "port=0")]) as server:
        client = server.connect()
        assert client.ask(b"world\n", 13) == b"hello, world\n"
        client.close()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_protocol_in_memory() -> None:
    names: dict[str, object] = {}
    exec(code_block("python", "class Greeter").partition("\nserve(")[0], names)
    exec(code_block("python", "MemoryStream"), names)


def test_client_in_python(spawn: Callable[..., Process]) -> None:
    program = code_block("python", "CharCountClient")
    _, port = spawn().address
    printed = subprocess.run(
        [sys.executable, "-c", program.replace("12345", str(port))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    ).stdout
    assert printed.split() == ["10", "[3,", "3,", "5]"]


def test_transcript(spawn: Callable[..., Process]) -> None:
    transcript = code_block("console", "bin/charcount-client")
    # The conversation at a terminal is tested where the client is, in a pseudo-terminal.
    shown = transcript[: transcript.index("$ bin/charcount-client\n")]
    commands = re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", shown, re.M)
    assert len(commands) == 2
    _, port = spawn().address
    for command, output in commands:
        run = subprocess.run(
            ["bash", "-c", command.replace("bin/charcount-client", f"{sys.executable} bin/charcount-client -p {port}")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
        )
        assert (run.stdout, run.stderr, run.returncode) == (output, "", 0)
