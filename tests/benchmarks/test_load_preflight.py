"""What is found before a run begins."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from evloop.net.endpoint import TcpEndpoint, UnixEndpoint
from evloop_bench.loadgen import preflight
from evloop_bench.loadgen.settings import Settings
from evloop_bench.loadgen.target import CannotRun


class Limit:
    """Stands for the process's descriptor limit; only root may raise the hard one."""

    def __init__(self, soft: int, hard: int) -> None:
        self.now = (soft, hard)

    def getrlimit(self, which: int) -> tuple[int, int]:
        return self.now

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        if limits[1] > self.now[1]:
            raise ValueError("not allowed to raise maximum limit")
        self.now = limits


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    limit = Limit(1024, 4096)
    monkeypatch.setattr(resource, "getrlimit", limit.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", limit.setrlimit)
    return limit


def test_the_descriptor_limit_is_raised_and_never_lowered(limit: Limit) -> None:
    preflight.check(Settings(connections=2000, idle=1000), local=True)
    assert 3000 < limit.now[0] < 3200
    before = limit.now
    preflight.check(Settings(connections=10), local=True)
    assert limit.now == before


def test_too_low_a_hard_limit_is_an_error_that_names_the_number(limit: Limit) -> None:
    with pytest.raises(CannotRun, match="5064 descriptors are needed and the hard limit is 4096"):
        preflight.check(Settings(connections=5000), local=True)


def test_too_few_ports_are_an_error_that_names_them(tmp_path: Path) -> None:
    ports = tmp_path / "ip_local_port_range"
    ports.write_text("32768\t60999\n")
    elsewhere = TcpEndpoint("192.0.2.1", 80)
    assert preflight.source_addresses(28232, elsewhere, str(ports)) == []
    with pytest.raises(CannotRun, match=r"28233 connections .* there are 28232 \(32768-60999\)"):
        preflight.source_addresses(28233, elsewhere, str(ports))
    assert preflight.source_addresses(28233, UnixEndpoint("/run/cc"), str(ports)) == []
    loopback = TcpEndpoint("127.0.0.1", 80)
    assert preflight.source_addresses(28232, loopback, str(ports)) == []
    assert preflight.source_addresses(28233, loopback, str(ports)) == ["127.0.1.1", "127.0.1.2"]
    assert len(set(preflight.source_addresses(10_000_000, loopback, str(ports)))) == 394


def test_a_ramp_steeper_than_the_backlog_is_warned_about(limit: Limit) -> None:
    steep = preflight.check(Settings(connections=3000, ramp_per_s=1e9), local=True)
    backlog = int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert bool(steep) == (backlog < 3000)
    assert preflight.check(Settings(connections=3000, ramp_per_s=100), local=True) == []


def test_cores_are_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {2, 5, 7})
    assert preflight.pick_cores(None, True) == ([2], [5, 7])
    assert preflight.pick_cores(True, False) == ([2], [5, 7])
    assert preflight.pick_cores(None, False) == (None, None)
    assert preflight.pick_cores(False, True) == (None, None)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {2})
    assert preflight.pick_cores(None, True) == (None, None)
    with pytest.raises(CannotRun, match="two cores"):
        preflight.pick_cores(True, True)
