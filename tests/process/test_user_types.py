"""What a type checker sees of the library in a user's own code, outside the checkout, after the README's install."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

# A comment is what mypy must say about its line; it must say nothing else.
PROGRAM = """
from evloop import LineProtocol, Limits, serve

class Greeter(LineProtocol):
    def on_line(self, line: bytes) -> bytes:
        self.connection.paint()  # "Connection" has no attribute "paint"
        return b"hello, " + line

limits = Limits(max_connections=5, idle_timeout_s=None, drain_timeout_s=3)
whole: int = limits.max_connections
timeout: float | None = limits.idle_timeout_s
Limits(max_conns=5)  # Unexpected keyword argument "max_conns" for "Limits"
Limits(backlog="x")  # Argument "backlog" to "Limits" has incompatible type "str"; expected "int"
Limits(max_connections=None)  # Argument "max_connections" to "Limits" has incompatible type "None"; expected "int"
limits.backlog = 4  # Property "backlog" defined in "Limits" is read-only
serve(Greeter, limits=limits)
"""


def has_install() -> bool:
    try:
        metadata.distribution("evloop")
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not has_install(), reason="evloop is not installed: pip install -e .")
def test_mypy_finds_evloop_and_knows_its_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    wanted = {
        str(number): line.partition("  # ")[2] for number, line in enumerate(PROGRAM.split("\n"), 1) if "  # " in line
    }
    said = dict(re.findall(r"^program\.py:(\d+): error: (.*?)  \[", done.stdout, re.M))
    assert said == wanted, done.stdout + done.stderr
