"""Services of several processes: who answers, and what happens when one of them dies, hangs, or is replaced."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import pytest

from waiting import wait_until
from workers import Service, connections_by_worker, wait_for_workers

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="workers need Unix sockets")


@pytest.fixture
def team() -> Iterator[Service]:
    """A service of three workers, which ends in order."""
    with Service(3) as service:
        yield service
        for client in service._clients:
            client.close()  # else the workers wait a while for their FIN
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
        assert "Traceback" not in service.log


@pytest.mark.slow
def test_all_workers_serve_and_the_supervisor_does_not(team):
    workers = wait_for_workers(team, 3)
    assert set(connections_by_worker(team, 60)) == workers
    assert team.popen.pid not in workers


@pytest.mark.slow
def test_one_status_for_all_with_each_worker_beside_it(team):
    workers = wait_for_workers(team, 3)
    before = team.log.count("status:")
    team.signal(signal.SIGUSR1)
    team.wait_for_log("status:", before + 1)
    told = team.log.rpartition("status:")[2]
    assert all(str(pid) in told for pid in workers)


@pytest.mark.slow
def test_a_worker_more_and_a_worker_less(team):
    workers = wait_for_workers(team, 3)
    team.signal(signal.SIGTTIN)
    more = wait_for_workers(team, 4)
    assert workers < more
    (new,) = more - workers
    wait_until(lambda: team.ask() == new, "the new one serves")
    team.signal(signal.SIGTTOU)
    assert wait_for_workers(team, 3) == workers
    assert {team.ask() for _ in range(30)} <= workers


def test_hang_up_replaces_all_workers(team):
    old = wait_for_workers(team, 3)
    before = team.log.count("reloaded:")
    team.signal(signal.SIGHUP)
    team.wait_for_log("reloaded:", before + 1)
    assert team.ask() not in old
    wait_for_workers(team, 3, without=old)
