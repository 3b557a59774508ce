"""What README.md shows is true: its programs run, its transcript is what one gets."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def code_block(language: str, containing: str) -> str:
    """The only block of code in that language with that text in it."""
    found = [block for block in re.findall(rf"^```{language}\n(.*?)^```$", README, re.S | re.M) if containing in block]
    assert len(found) == 1
    return found[0]


def start(*arguments: str) -> tuple[subprocess.Popen[str], int]:
    """A server process with that command line, and the port it says it listens on."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.search(r"listening on 127\.0\.0\.1:(\d+)$", line.strip())
    assert found, line
    return process, int(found[1])


def stop(process: subprocess.Popen[str]) -> None:
    """End it as an operator would."""
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=10)
    assert "Traceback" not in errors
    assert process.returncode == 0


def test_server_in_ten_lines() -> None:
    program = code_block("python", "class Greeter")
    assert len([line for line in program.splitlines() if line]) <= 10
    process, port = start("-c", program.replace("port=9000", "port=0"))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"world\nquit\nnot any more\n")
        reader = client.makefile("rb")
        assert reader.read() == b"hello, world\nbye\n"
        reader.close()
    stop(process)


def test_coroutine() -> None:
    process, port = start("-c", code_block("python", "async def greeter").replace("port=9000", "port=0"))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"world\n")
        assert client.recv(100) == b"hello, world\n"
    stop(process)


def test_protocol_in_memory() -> None:
    names: dict[str, object] = {}
    exec(code_block("python", "class Greeter").partition("\nserve(")[0], names)
    exec(code_block("python", "MemoryStream"), names)


def test_client_in_python() -> None:
    program = code_block("python", "CharCountClient")
    process, port = start("bin/charcount-server", "--port", "0")
    printed = subprocess.run(
        [sys.executable, "-c", program.replace("12345", str(port))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    ).stdout
    stop(process)
    assert printed.split() == ["10", "[3,", "3,", "5]"]


def test_transcript() -> None:
    transcript = code_block("console", "bin/charcount-client")
    # The conversation at a terminal is tested where the client is, in a pseudo-terminal.
    shown = transcript[: transcript.index("$ bin/charcount-client\n")]
    commands = re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", shown, re.M)
    assert len(commands) == 2
    process, port = start("bin/charcount-server", "--port", "0")
    for command, output in commands:
        run = subprocess.run(
            ["bash", "-c", command.replace("bin/charcount-client", f"{sys.executable} bin/charcount-client -p {port}")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
        )
        assert (run.stdout, run.stderr, run.returncode) == (output, "", 0)
    stop(process)
