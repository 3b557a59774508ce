"""The commands of the service at an endpoint."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from paths import CLIENT, SERVER
from waiting import DEADLINE_S


def ask(where: str, text: str = "abc") -> subprocess.CompletedProcess[str]:
    """The client's answer from an endpoint."""
    return subprocess.run(
        [sys.executable, CLIENT, "--connect", where, "--timeout", str(DEADLINE_S), text],
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
    )


def refused(*arguments: str, **options: Any) -> str:
    """The one line of a server that can't listen."""
    command = [sys.executable, SERVER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE_S, **options)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    line: str = done.stderr.removeprefix("charcount-server: ").removesuffix("\n")
    return line
