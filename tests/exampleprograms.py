"""What tests of examples/ share: a program of them that runs, and the programs of others that talk to it."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paths import ROOT
from waiting import DEADLINE_S, wait_until

EXAMPLES = ROOT / "examples"


class Example:
    """A program of examples/ that runs, on a free port."""

    def __init__(self, name: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", str(EXAMPLES / f"{name}.py"), "0", *arguments],
            cwd=EXAMPLES.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = re.search(r"listening on (?:tls:)?127\.0\.0\.1:(\d+)", line)
        if not found:
            self.process.kill()  # else it would be read for ever
            raise AssertionError(line + self.process.communicate()[1])
        self.port = int(found[1])

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def stop(self) -> tuple[str, str]:
        """End it in order; returns what it has printed."""
        self.process.terminate()
        out, err = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0
        assert "Traceback" not in err
        return out, err


@pytest.fixture
def example() -> Iterator[Callable[..., Example]]:
    running: list[Example] = []

    def run(name: str, *arguments: str) -> Example:
        running.append(Example(name, *arguments))
        return running[-1]

    yield run
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def needs(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


@pytest.fixture
def web(tmp_path: Path) -> Iterator[int]:
    """Python's own web server: its port."""
    (tmp_path / "page").write_bytes(b"0123456789" * 100_000)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(tmp_path), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: listens(port))
    yield port
    server.terminate()
    server.wait()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([needs("curl"), "-sS", *arguments], capture_output=True, timeout=DEADLINE_S)
