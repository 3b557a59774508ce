"""What a server says when it starts or can't: behaviours 33 and 34."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import evloop.server.tcpsockets
from evloop.errors import ListenError
from evloop.server.tcpsockets import open_listeners
from paths import ROOT, SERVER
from processes import listening_socket
from waiting import DEADLINE_S, wait_until

EXIT_CANNOT_LISTEN = 3


# ---------------------------------------------------------------------- 33


def run_server(*arguments: str, prefix: tuple[str, ...] = ()) -> tuple[int, list[str]]:
    """Exit status and lines of stderr of a server that can't start."""
    command = [*prefix, sys.executable, SERVER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, cwd=ROOT)
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def test_33_port_taken_is_one_line_that_says_who_has_it():
    with listening_socket() as taken:
        port = taken.getsockname()[1]
        status, lines = run_server("--port", str(port))
    assert status == EXIT_CANNOT_LISTEN
    assert len(lines) == 1
    assert lines[0].startswith(f"charcount-server: cannot listen on 127.0.0.1:{port}: the port is taken")
    assert lines[0].endswith("or choose another port")
    if sys.platform == "linux":
        assert f"(pid {os.getpid()})" in lines[0]


def test_33_bad_host_is_one_line():
    status, lines = run_server("--host", "no.such.host.invalid", "--port", "0")
    assert status == EXIT_CANNOT_LISTEN
    assert len(lines) == 1
    assert lines[0].startswith("charcount-server: cannot resolve host 'no.such.host.invalid': ")
    # An address that exists and is somebody else's: 192.0.2.0/24 is for examples.
    status, lines = run_server("--host", "192.0.2.1", "--port", "0")
    assert (status, lines) == (
        EXIT_CANNOT_LISTEN,
        ["charcount-server: cannot listen on 192.0.2.1:0: not an address of this machine; try 127.0.0.1 or 0.0.0.0"],
    )


def test_33_no_permission_is_one_line():
    first_open_port = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if first_open_port.exists() and int(first_open_port.read_text()) <= 80:
        pytest.skip("this system lets everybody listen on port 80")
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("runs as root, and setpriv is not installed")
        prefix = (setpriv, "--bounding-set", "-net_bind_service")
    status, lines = run_server("--port", "80", prefix=prefix)
    assert (status, lines) == (
        EXIT_CANNOT_LISTEN,
        ["charcount-server: cannot listen on 127.0.0.1:80: no permission; choose a port of 1024 or above"],
    )


@pytest.mark.parametrize(
    "arguments",
    [("--port", "70000"), ("--port", "abc"), ("--reply", "no count"), ("--max-connections", "0"), ("--bogus",)],
)
def test_33_wrong_usage_exits_2(arguments):
    status, lines = run_server(*arguments)
    assert status == 2
    assert lines[-1].startswith("charcount-server: ")
    assert lines[-1].endswith("see charcount-server --help")


# ---------------------------------------------------------------------- 34


def test_34_port_0_prints_the_real_address(spawn):
    server = spawn()
    host, port = server.address
    assert (host, port > 0) == ("127.0.0.1", True)
    assert server.connect().ask(b"abc\n", 2) == b"3\n"


def test_34_dual_stack_same_port_for_both_and_both_are_printed(spawn):
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback address")
    server = spawn("--host", "")
    wait_until(lambda: server.log.count("\n") == 2, "two lines")
    said = [line.rpartition(" ")[2] for line in server.log.splitlines() if "listening on " in line]
    port = server.address[1]
    assert sorted(said) == sorted([f"0.0.0.0:{port}", f"[::]:{port}"])
    for address in (("127.0.0.1", port), ("::1", port)):
        with socket.create_connection(address, DEADLINE_S) as sock:
            sock.sendall(b"abc\n")
            assert sock.recv(10) == b"3\n"
    server.wait_for_log("connect 127.0.0.1:")  # not ::ffff:127.0.0.1
    server.wait_for_log("connect [::1]:")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_34_dual_stack_port_0_tries_another_port_if_only_one_family_has_it(monkeypatch):
    """The port that the kernel picks for the first address may be taken on the second."""
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback address")
    real = evloop.server.tcpsockets._open_listener
    picked: list[int] = []

    def taken_on_the_second(family: int, address: tuple, backlog: int) -> socket.socket:
        if address[1] and len(picked) < 3:
            picked.append(address[1])
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return real(family, address, backlog)

    monkeypatch.setattr(evloop.server.tcpsockets, "_open_listener", taken_on_the_second)
    sockets = open_listeners("", 0, 5)
    ports = {sock.getsockname()[1] for sock in sockets}
    for sock in sockets:
        sock.close()
    assert len(sockets) == 2
    assert len(ports) == 1
    assert len(picked) == 3


def test_34_port_given_and_taken_on_one_family_is_an_error():
    with listening_socket() as taken, pytest.raises(ListenError, match="the port is taken"):
        open_listeners("127.0.0.1", taken.getsockname()[1], 5)
