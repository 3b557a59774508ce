"""Several statuses as one: what is added, what is not, and how it looks."""

from __future__ import annotations

from evloop import Limits, Protocol, Server
from evloop.charcount.server import CharCountServer
from evloop.program.workers.statuses import service_status, sum_of
from evloop.server.stats import EACH, MOST, OF_SLOWEST, STATUS, SUM
from evloop.testing import MemoryLoop

ONE = {
    "messages": 5,
    "listening": ["127.0.0.1:80", "unix:/run/x"],
    "connections": 3,
    "max_connections": 100,
    "received_bytes": 10,
    "limits_hit": {"idle-timeout": 1, "max-message": 2},
    "selector": "EpollSelector",
    "worst_lag_s": 0.25,
    "slowest_pass_s": None,
    "slowest_handler": None,
}
TWO = {
    **ONE,
    "messages": 7,
    "connections": 4,
    "received_bytes": 30,
    "limits_hit": {"drain-timeout": 4, "max-message": 1},
    "worst_lag_s": 0.5,
    "slowest_pass_s": 0.2,
    "slowest_handler": "two (two.py:2)",
}
THREE = {**ONE, "selector": "PollSelector", "slowest_pass_s": 0.3, "slowest_handler": "three (three.py:3)"}


def test_how_values_add_up():
    assert sum_of([ONE, TWO, THREE]) == {
        "messages": 17,
        "listening": ["127.0.0.1:80", "unix:/run/x"],
        "connections": 10,
        "max_connections": 100,
        "received_bytes": 50,
        "limits_hit": {"drain-timeout": 4, "idle-timeout": 2, "max-message": 5},
        "selector": "EpollSelector, PollSelector",
        "worst_lag_s": 0.5,
        "slowest_pass_s": 0.3,
        "slowest_handler": "three (three.py:3)",
    }


def test_one_alone_and_none():
    assert sum_of([ONE]) == ONE
    assert sum_of([]) == {}


def test_a_name_that_only_some_have():
    assert sum_of([ONE, {"news": 3, "messages": 1}])["news"] == 3


def test_each_name_of_a_status_says_how_it_adds_up():
    """A new counter can't be forgotten: it is in the table, with how, or there is no such status."""
    status = Server(MemoryLoop(), Protocol).status()
    assert list(status) == list(STATUS)
    assert {how for how, _ in STATUS.values()} <= {SUM, MOST, OF_SLOWEST, EACH}
    for name, value in status.items():
        how = STATUS[name][0]
        if isinstance(value, list | str):
            assert how == EACH, name
        if how == SUM:
            assert isinstance(value, int | dict), name


def test_real_statuses_of_three_servers_add_up():
    servers = [CharCountServer(MemoryLoop()) for _ in range(3)]
    for count, server in enumerate(servers):
        server.stats.accepted = count
        server.stats.limits["max-message"] = count
        server.messages = 10
    total = sum_of([server.status() for server in servers])
    assert list(total) == list(servers[0].status())
    assert (total["accepted"], total["messages"], total["limits_hit"]) == (3, 30, {"max-message": 3})
    assert total["max_connections"] == min(servers[0].max_connections, Limits().max_connections)
    assert total["slowest_pass_s"] is None


def test_how_it_looks():
    text = service_status({"worker 1 (pid 11)": [ONE], "worker 2 (pid 12)": [TWO], "worker 3 (pid 13)": None})
    assert text.splitlines() == [
        "  2 of 3 workers answer",
        "  worker 3 (pid 13) does not answer",
        "                           all  worker 1 (pid 11)  worker 2 (pid 12)",
        "  messages                  12                  5                  7",
        "  listening           127.0.0.1:80, unix:/run/x",
        "  connections                7                  3                  4",
        "  max_connections          100                100                100",
        "  received_bytes            40                 10                 30",
        "  limits_hit          drain-timeout 4, idle-timeout 1, max-message 3",
        "  selector            EpollSelector",
        "  worst_lag_s         0.500000           0.250000           0.500000",
        "  slowest_pass_s      0.200000               none           0.200000",
        "  slowest_handler     two (two.py:2)",
    ]


def test_several_servers_have_a_table_each():
    text = service_status({"worker 1": [{"connections": 1}, {"connections": 5}], "worker 2": [{"connections": 2}]})
    assert text.splitlines() == [
        "  2 of 2 workers answer",
        "                      all  worker 1  worker 2",
        "  connections           3         1         2",
        "                      all  worker 1",
        "  connections           5         5",
    ]


def test_nobody_answers():
    assert service_status({"worker 1": None}).splitlines() == ["  0 of 1 workers answer", "  worker 1 does not answer"]
