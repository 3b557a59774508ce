"""What docs/tls.md shows is true: its server and its client run, and talk to each other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT
from processes import Process
from tlsworld import trustme, world
from waiting import DEADLINE_S

PAGE = (ROOT / "docs" / "tls.md").read_text(encoding="utf-8")
SERVER, CLIENT = re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M)


@pytest.mark.parametrize("trusted", [True, False])
def test_the_server_greets_a_client_that_trusts_it(tmp_path: Path, trusted: bool) -> None:
    certificate, key = world().pair
    authority = tmp_path / "ca.pem"
    (world().authority if trusted else trustme.CA()).cert_pem.write_to_path(str(authority))
    server = SERVER.replace("port=9000", "port=0").replace("server.pem", certificate).replace("server.key", key)
    with Process(["-c", server]) as process:
        host, port = process.address
        assert host == "127.0.0.1"
        client = CLIENT.replace("9000", str(port)).replace("server.pem", str(authority))
        command = [sys.executable, "-c", client]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line == "hello, world" if trusted else "from nobody who is trusted here" in line
