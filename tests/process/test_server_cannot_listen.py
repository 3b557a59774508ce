"""``charcount-server`` can't listen: one line that says what to do, exit status 3, no traceback."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from paths import ROOT, SERVER
from process.commands import PYTHON, one_line, run_command
from processes import listening_socket
from waiting import DEADLINE_S


def complaint(*arguments: str) -> str:
    done = run_command(SERVER, *arguments)
    assert (done.returncode, done.stdout) == (3, b"")
    return one_line(done.stderr)


def test_port_taken():
    with listening_socket() as taken:
        port = taken.getsockname()[1]
        line = complaint("--port", str(port))
    found = re.fullmatch(
        rf"charcount-server: cannot listen on 127\.0\.0\.1:{port}: the port is taken(?: by \S+ \(pid (\d+)\))?; "
        "stop (?:it|the program that has it) or choose another port",
        line,
    )
    assert found, line
    assert found[1] in (None, str(os.getpid()))


@pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="who has a port is told by /proc only")
def test_port_taken_by_a_process_with_a_strange_name():
    program = (
        "import socket, sys\n"
        "open('/proc/self/comm', 'wb', 0).write(b'x\\xff\\x1b[31m')\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "print(listener.getsockname()[1], flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen([*PYTHON, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        line = complaint("--port", holder.stdout.readline().decode().strip())
        holder.kill()
    assert f"the port is taken by x\N{REPLACEMENT CHARACTER}?[31m (pid {holder.pid})" in line


def first_privileged_port() -> int:
    """The first port that only root may have; 0 if there is none."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) - 1
    except OSError:
        return 1023


@pytest.mark.skipif(first_privileged_port() <= 0, reason="anybody may listen on any port here")
def test_no_permission():
    port = first_privileged_port()
    # Root may do everything, so it gives that up first; and only when all is imported, as another user may not be
    # allowed to read this Python's files.
    program = (
        "import os, sys; from evloop.charcount.cli.server import main, make_parser; make_parser().format_help()\n"
        "import encodings.idna\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        f"sys.exit(main(['--port', '{port}']))"
    )
    done = run_command("-c", program, cwd=ROOT)
    assert (done.returncode, done.stdout) == (3, b"")
    assert one_line(done.stderr) == (
        f"charcount-server: cannot listen on 127.0.0.1:{port}: no permission; choose a port of 1024 or above"
    )


def test_unknown_host():
    line = complaint("--host", "no-such-host.invalid", "--port", "0")
    assert line.startswith("charcount-server: cannot resolve host 'no-such-host.invalid': ")
    assert line.endswith("; give a name or address of this machine")


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "ü" * 70, "two words", "127.0.0.1:80", "[::1]"], ids=ascii)
def test_malformed_host(host):
    assert f"cannot resolve host {host!r}" in complaint("--host", host, "--port", "0")


def test_address_of_another_machine():
    line = complaint("--host", "192.0.2.1", "--port", "5000")
    assert line == (
        "charcount-server: cannot listen on 192.0.2.1:5000: not an address of this machine; try 127.0.0.1 or 0.0.0.0"
    )


def test_stderr_may_be_closed():
    with listening_socket() as taken:
        command = [*PYTHON, SERVER, "--port", str(taken.getsockname()[1])]
        done = subprocess.run(
            ["/bin/sh", "-c", f"{shlex.join(command)} 2>&-"], stdout=subprocess.PIPE, timeout=DEADLINE_S, check=False
        )
    assert (done.returncode, done.stdout) == (3, b"")
