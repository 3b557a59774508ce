"""Limits and status of services of several processes: 120 to 122 and 127 of docs/reliability.md."""

from __future__ import annotations

import os
import re
import signal
import sys

import pytest

from clients import Client
from waiting import wait_until
from workers import Service, answered_by, wait_for_workers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a service shares out its connections as Linux does")


def served_by(client: Client) -> int | None:
    """Which worker serves a new client; None if it is refused, with a line that says why."""
    client.send(b"who\n")
    line = client.receive_line()
    if line.startswith(b"ERR too-many-connections"):
        return None
    return int(line.rpartition(b" ")[2])


def fill(service: Service, count: int) -> dict[Client, int]:
    """So many new clients; those that are served, by whom."""
    found = {}
    for _ in range(count):
        client = service.connect()
        who = served_by(client)
        if who is not None:
            found[client] = who
    return found


def refill(service: Service, count: int) -> None:
    """So many more are served, sooner or later, and no more than that."""

    def is_served() -> bool:
        return served_by(service.connect()) is not None

    for _ in range(count):
        wait_until(is_served, "one more is served")
    assert not any(is_served() for _ in range(5))


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("max_connections", b"ERR too-many-connections limit 10\n"),
        pytest.param(
            "max_connections_per_address",
            b"ERR too-many-connections-from-address limit 10\n",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_120_limit_holds_for_all_workers_together(limit, told):
    with Service(3, **{limit: 10}) as service:
        wait_for_workers(service, 3)
        served = fill(service, 25)
        assert len(served) == 10
        assert len(set(served.values())) > 1
        with service.connect() as client:
            client.send(b"who\n")
            assert client.receive_line() == told
        for client in list(served)[:4]:
            client.close()
        refill(service, 4)


def test_121_counts_of_a_killed_worker_are_given_back() -> None:
    with Service(2, max_connections=8) as service:
        served = fill(service, 10)
        assert len(served) == 8
        killed = next(iter(served.values()))
        had = sum(who == killed for who in served.values())
        os.kill(killed, signal.SIGKILL)
        refill(service, had)


@pytest.mark.slow
def test_121_counts_of_many_killed_workers_leave_nothing_behind() -> None:
    with Service(2, max_connections=8, max_connections_per_address=8) as service:
        for _ in range(6):
            served = fill(service, 10)
            assert served
            os.kill(next(iter(served.values())), signal.SIGKILL)
            for client in service._clients:
                client.close()
            service._clients.clear()
            wait_for_workers(service, 2)
        refill(service, 8)


@pytest.mark.slow
def test_122_limit_holds_through_a_reload_and_connections_that_move_count_once() -> None:
    with Service(2, max_connections=8, max_connections_per_address=8) as service:
        old = wait_for_workers(service, 2)
        served = fill(service, 10)
        assert len(served) == 8
        service.signal(signal.SIGHUP)
        service.wait_for_log("reloaded:")
        wait_for_workers(service, 2, without=old)
        assert all(answered_by(client) not in old for client in served)
        for client in list(served)[:3]:
            client.close()
        refill(service, 3)


def test_127_status_is_the_sum_of_the_workers() -> None:
    with Service(2, max_connections=8) as service:
        served = fill(service, 10)
        service.signal(signal.SIGUSR1)
        service.wait_for_log("slowest_handler")
        status = service.log.rpartition("status:\n")[2]
        assert "  2 of 2 workers answer\n" in status

        def numbers(name: str) -> list[int]:
            found = re.search(rf"^  {name} +(\d+) +(\d+) +(\d+)$", status, re.M)
            assert found is not None, status
            return [int(number) for number in found.groups()]

        by_worker = sorted(sum(who == pid for who in served.values()) for pid in set(served.values()))
        total, *each = numbers("connections")
        assert (total, sorted(each)) == (8, by_worker if len(by_worker) == 2 else [0, *by_worker])
        assert numbers("max_connections") == [8, 8, 8]
        total, *each = numbers("accepted")
        assert total == sum(each) == 8
        assert "limits_hit          too-many-connections 2\n" in status
