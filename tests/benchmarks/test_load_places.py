"""load.py at endpoints that are not a host and a port, and with more connections than an address has ports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evloop.net.endpoint import UnixEndpoint, parse_endpoint
from evloop_bench.loadgen.runner import run_once
from evloop_bench.loadgen.settings import Settings
from evloop_bench.loadgen.target import CannotRun
from paths import ROOT, SERVER
from processes import Process
from tlsworld import world
from variants import first_of


@pytest.mark.parametrize("churn", [False, True])
def test_a_server_on_a_unix_socket(tmp_path: Path, churn: bool) -> None:
    endpoint = UnixEndpoint(str(tmp_path / "cc"))
    with Process([SERVER, "--listen", str(endpoint)]) as server:
        server.wait_for_log("listening on")
        settings = Settings(connections=4, duration_s=0.3, warmup_s=0.0, seed=1, churn=churn)
        result = run_once(settings, server=endpoint)
        assert result["error_total"] == 0
        assert result["messages"]["replies"] > 100
        assert result["server"]["pids"] == [server.popen.pid]


@pytest.mark.parametrize("churn", first_of(False, True))
def test_a_server_by_tls(churn: bool) -> None:
    certificate, key = world().pair
    with Process([SERVER, "--listen", "tls:127.0.0.1:0", "--tls-cert", certificate, "--tls-key", key]) as server:
        server.wait_for_log("listening on tls:127.0.0.1:")
        endpoint = parse_endpoint(server.log.split()[-1])
        settings = Settings(connections=4, duration_s=0.3, warmup_s=0.0, seed=1, churn=churn)
        result = run_once(settings, server=endpoint)
        assert result["error_total"] == 0
        assert result["messages"]["replies"] > 20
        assert result["server"]["pids"] == [server.popen.pid]
        server.signal(signal.SIGUSR1)
        server.wait_for_log("tls_failures        none")


def test_nobody_on_a_unix_socket(tmp_path: Path) -> None:
    endpoint = UnixEndpoint(str(tmp_path / "cc"))
    with pytest.raises(CannotRun, match=f"nothing accepts connections at unix:{tmp_path}/cc: start the server"):
        run_once(Settings(connections=4), server=endpoint)


IN_A_NETWORK_OF_ITS_OWN = """
import fcntl, os, socket, struct, subprocess, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up, running
with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as ports:
    ports.write("20000 20099")
sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)
"""


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
@pytest.mark.slow
def test_more_connections_than_an_address_has_ports(tmp_path: Path) -> None:
    """In a network where it has 100: on the machine's own it would take 28,000 connections to find out."""
    report = tmp_path / "report.json"
    command = ["benchmarks/load.py", "-c", "250", "-d", "0.3", "--warmup", "0", "--json", str(report)]
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", IN_A_NETWORK_OF_ITS_OWN, *command, "--processes", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (0, 4), done.stderr  # 4: whether the numbers can be trusted is not asked here
    (result,) = json.loads(report.read_text())["runs"]
    assert result["error_total"] == 0
    assert result["connections"] == 250
