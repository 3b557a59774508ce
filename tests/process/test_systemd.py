"""The units of deploy/systemd/ in a real systemd, booted for these tests in namespaces of its own (`systemdworld`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from systemdworld import SETTINGS, System, unit, why_not
from waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=f"no systemd can be booted here: {why_not()}"),
]

SERVICE = "charcount.service"

# Talks to a server line by line, in the world of the tests: "PORT LINE..." each answer on a line, as it comes. A line
# "-" waits for a line on stdin.
TALK = """
import socket, sys
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
lines = sock.makefile("rb")
for text in sys.argv[2:]:
    if text == "-":
        sys.stdin.readline()
        continue
    sock.sendall(text.encode() + b"\\n")
    print(lines.readline().decode().strip(), flush=True)
"""

BLOCKS = """
import time
from evloop import LineProtocol, serve
class Blocks(LineProtocol):
    def on_line(self, line):
        time.sleep(600)
serve(Blocks, "127.0.0.1:12347")
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("systemd")
    (folder / "blocks.py").write_text(BLOCKS)
    (folder / "talk.py").write_text(TALK)
    units = {
        SERVICE: unit(SERVICE),
        "charcount.socket": unit("charcount.socket"),
        "team.service": unit(SERVICE, [("ExecStart=PROGRAM", "ExecStart=PROGRAM --port 12346 --workers 2")]),
        # Its program blocks; there is no time to wait until it is found out.
        "blocks.service": unit(
            SERVICE,
            [
                (f"ExecStartPre=PROGRAM --config {SETTINGS} --check-config\n", ""),
                (
                    f"ExecStart=PROGRAM --config {SETTINGS}",
                    "ExecStart=PYTHON /mnt/tests/blocks.py\nEnvironment=PYTHONPATH=/mnt/evloop",
                ),
                ("WatchdogSec=30", "WatchdogSec=1\nRestartSec=0"),
            ],
        ),
        "slow.service": unit(
            SERVICE,
            [
                ("ExecStart=PROGRAM", "ExecStart=PROGRAM --port 12348 --drain-timeout 3"),
                ("TimeoutStopSec=15", "TimeoutStopSec=1"),
            ],
        ),
        "taken.service": unit(SERVICE, [("Restart=on-failure", "Restart=no")]),
    }
    system = System(folder, units)
    yield system
    system.close()


def invocations(world: System, service: str) -> str:
    return world.show(service, "NRestarts")[0]


def test_it_is_started_when_it_serves(world: System) -> None:
    world.systemctl("start", SERVICE)
    assert world.client("hello") == "5\n"  # at once
    state, status, restarts = world.show(SERVICE, "ActiveState", "StatusText", "NRestarts")
    assert (state, restarts) == ("active", "0")
    assert re.fullmatch(r"\d+ connections now, \d+ accepted", status)
    # Another one on the same port does not get ready, and systemd knows.
    assert "failed" in world.systemctl("start", "taken.service", check=False)
    assert world.show("taken.service", "ActiveState", "ExecMainStatus") == ["failed", "3"]
    assert "cannot listen on 127.0.0.1:12345: the port is taken" in world.log
    world.systemctl("stop", SERVICE)
    assert world.show(SERVICE, "ActiveState", "Result", "ExecMainStatus") == ["inactive", "success", "0"]


def test_a_reload_reads_the_settings_again_and_is_over_when_it_says_so(world: System) -> None:
    world.systemctl("start", SERVICE)
    world.settings.write_text("CHARCOUNT_MAX_CONNECTIONS=99\n")
    world.systemctl("reload", SERVICE)
    world.wait_for_log("reloaded: --max-connections\n")
    world.settings.write_text("")
    wait_until(lambda: world.show(SERVICE, "ActiveState") == ["active"], "active again")
    world.systemctl("stop", SERVICE)


def test_workers_are_reloaded_and_the_whole_service_is_upgraded(world: System) -> None:
    service = "team.service"
    world.systemctl("start", service)
    assert world.show(service, "StatusText") == ["2 of 2 workers serve, 0 connections now"]
    before = world.log.count("reloaded: 2 workers")
    world.systemctl("reload", service)
    wait_until(lambda: world.log.count("reloaded: 2 workers") > before, "it has reloaded")
    wait_until(lambda: world.show(service, "ActiveState") == ["active"], "active again")

    old = world.main_pid(service)
    world.systemctl("kill", "--kill-who=main", "--signal=USR2", service)
    wait_until(lambda: world.main_pid(service) not in (0, old), "another main process")
    assert world.show(service, "ActiveState", "NRestarts") == ["active", "0"]
    wait_until(lambda: not alive_in(world, old), "the old one is gone")
    assert world.client("--port", "12346", "hello") == "5\n"
    world.systemctl("reload", service)  # the new one is the one that is spoken to
    wait_until(lambda: world.log.count("reloaded: 2 workers") > before + 1, "it has reloaded")
    world.systemctl("stop", service)
    assert world.show(service, "ActiveState", "Result") == ["inactive", "success"]


def test_an_upgrade_of_one_process_is_not_noticed_by_its_clients(world: System) -> None:
    world.systemctl("start", SERVICE)
    old = world.main_pid(SERVICE)
    with world.talk("12345", "hello", "-", "hello, world") as client:
        assert client.stdout.readline() == "5\n"
        world.systemctl("kill", "--kill-who=main", "--signal=USR2", SERVICE)
        wait_until(lambda: world.main_pid(SERVICE) not in (0, old), "another main process")
        wait_until(lambda: not alive_in(world, old), "the old one is gone")
        client.stdin.write("\n")
        client.stdin.flush()
        assert client.stdout.readline() == "12\n"
    assert world.show(SERVICE, "ActiveState", "NRestarts") == ["active", "0"]
    world.systemctl("stop", SERVICE)
    assert world.show(SERVICE, "ActiveState", "Result") == ["inactive", "success"]


def test_a_loop_that_is_stuck_is_ended_and_started_again(world: System) -> None:
    world.systemctl("start", "blocks.service")
    old = world.main_pid("blocks.service")
    with world.talk("12347", "block"):
        wait_until(lambda: invocations(world, "blocks.service") != "0", "started again", 30)
        wait_until(lambda: world.main_pid("blocks.service") not in (0, old), "another process")
    wait_until(lambda: world.show("blocks.service", "ActiveState") == ["active"], "active again")
    world.systemctl("stop", "blocks.service")


def test_a_drain_may_take_longer_than_systemd_was_told(world: System) -> None:
    world.systemctl("start", "slow.service")
    with world.talk("12348", "hello", "-") as client:
        assert client.stdout.readline() == "5\n"
        world.systemctl("stop", "slow.service")
    assert world.show("slow.service", "ActiveState", "Result") != ["failed", "timeout"]


def test_sockets_of_systemd_wait_while_the_service_is_restarted(world: System) -> None:
    world.systemctl("start", "charcount.socket")
    assert world.show(SERVICE, "ActiveState") == ["inactive"]
    assert world.client("hello") == "5\n"  # this starts it
    assert world.show(SERVICE, "ActiveState") == ["active"]
    assert "listening on 127.0.0.1:12345 (fd:3, charcount)" in world.log
    assert world.client("--connect", "unix:/run/charcount.socket", "hello") == "5\n"
    world.systemctl("kill", "--signal=KILL", SERVICE)  # on failure it is started again
    assert world.client("hello, world") == "12\n"
    wait_until(lambda: invocations(world, SERVICE) != "0", "restarted")
    world.systemctl("stop", "charcount.socket", SERVICE)


def alive_in(world: System, pid: int) -> bool:
    return Path(f"/proc/{pid}").name in world.run("ls", "/proc").split()
