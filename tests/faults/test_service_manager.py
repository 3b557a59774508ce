"""What a service manager is told, by whole programs: 123 to 126 of docs/reliability.md."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clients import Client
from managers import Manager
from paths import SERVER
from processes import Process, listening_socket
from waiting import DEADLINE_S

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is asked of the system here is Linux's")

BOOT_S = 3 * DEADLINE_S  # several processes start, each of them a Python

# Blocks its loop for as long as it is told to.
BLOCKING = """
import sys, time
from evloop import LineProtocol, serve
class Blocking(LineProtocol):
    def on_line(self, line):
        time.sleep(float(line))
        return b"done\\n"
if __name__ == "__main__":
    serve(Blocking, "127.0.0.1:0", workers=int(sys.argv[1]))
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with contextlib.closing(Manager(str(tmp_path / "notify"))) as manager:
        yield manager


@pytest.fixture
def launch() -> Iterator[Callable[..., Process]]:
    """Starts charcount-server on a free port; when it serves the manager is told. Killed with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, port=0, **options: stack.enter_context(
            Process([SERVER, "--port", str(port), *arguments], **options)
        )


def told_by(manager: Manager, *, watchdog_s: float | None = None) -> dict[str, str]:
    """The variables for a program that is to tell the manager."""
    watchdog = {} if watchdog_s is None else {"WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
    return {"NOTIFY_SOCKET": manager.text, **watchdog}


# ---------------------------------------------------------------------- 123


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_123_manager_is_told_ready_when_all_of_it_serves_and_when_it_stops(launch, manager, workers):
    server = launch("--workers", str(workers), environment=told_by(manager))
    manager.wait_for("READY=1", BOOT_S)
    with Client(server.address) as client:  # at once
        assert client.ask(b"abc\n", 2) == b"3\n"
        client.send(b"unfinished")
        server.signal(signal.SIGTERM)
        (told,) = manager.wait_for("STOPPING=1")
        assert "\nEXTEND_TIMEOUT_USEC=" in told
    assert server.wait() == 0
    assert manager.told() == []
    (ready, stopping) = manager.heard
    assert ready.startswith("READY=1\nSTATUS=")
    assert stopping.startswith("STOPPING=1\n")


def test_123_manager_at_an_abstract_address(spawn):
    with contextlib.closing(Manager(f"@evloop-test-{os.getpid()}")) as manager:
        spawn(environment=told_by(manager))
        manager.wait_for("READY=1", BOOT_S)


def test_123_manager_is_not_told_ready_by_who_cannot_serve(launch, manager):
    with listening_socket() as taken:
        server = launch(port=taken.getsockname()[1], environment=told_by(manager))
        assert server.wait() == 3
    assert manager.told() == []


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_123_manager_is_told_of_a_reload_with_its_time_and_of_its_end(launch, manager, workers):
    server = launch("--workers", str(workers), environment=told_by(manager))
    manager.wait_for("READY=1", BOOT_S)
    began = time.monotonic_ns() // 1000
    server.signal(signal.SIGHUP)
    manager.wait_for("READY=1", BOOT_S)
    _, reloading, ready = manager.heard
    name, _, stamp = reloading.partition("\nMONOTONIC_USEC=")
    assert name == "RELOADING=1"
    assert began <= int(stamp) <= time.monotonic_ns() // 1000
    assert ready.startswith("READY=1")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_123_manager_is_told_of_another_main_process_which_goes_on_telling(launch, manager, workers):
    server = launch("--workers", str(workers), environment=told_by(manager, watchdog_s=0.6))
    manager.wait_for("READY=1", BOOT_S)
    server.signal(signal.SIGUSR2)
    told = manager.wait_for("MAINPID=", BOOT_S)
    pid = int(told[-1].partition("\n")[0].removeprefix("MAINPID="))
    assert pid != server.popen.pid
    assert told[-1].endswith("\nREADY=1")
    assert server.wait() == 0  # the old one; it does not say that it stops, as the service does not
    try:
        told = manager.wait_for("WATCHDOG=1") + manager.wait_for("WATCHDOG=1")
        assert not [one for one in told if one.startswith("STOPPING")]
        with Client(server.address) as client:
            assert client.ask(b"abc\n", 2) == b"3\n"
    finally:
        os.kill(pid, signal.SIGTERM)
        manager.wait_for("STOPPING=1")


# ---------------------------------------------------------------------- 124


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_124_watchdog_gets_no_sign_of_life_from_a_loop_that_is_stuck(manager, workers, tmp_path):
    program = tmp_path / "blocking.py"
    program.write_text(BLOCKING)
    with Process([str(program), str(workers)], environment=told_by(manager, watchdog_s=0.3)) as server:
        is_quiet_while_it_blocks(server, manager, workers)


def is_quiet_while_it_blocks(server: Process, manager: Manager, workers: int) -> None:
    manager.wait_for("READY=1", BOOT_S)
    manager.wait_for("WATCHDOG=1")
    with contextlib.ExitStack() as stack:
        # All of them: one worker that lives is enough. Which worker gets a connection is the kernel's choice.
        for _ in range(1 if workers == 1 else 12):
            stack.enter_context(Client(server.address)).send(b"1\n")
        wait_until_quiet(manager)
        manager.wait_for("WATCHDOG=1", BOOT_S)  # it is back


def wait_until_quiet(manager: Manager) -> None:
    """Wait until for longer than it may take no sign of life has come."""
    began = quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 0.4:
        assert time.monotonic() - began < DEADLINE_S
        if manager.told():
            quiet_since = time.monotonic()
        time.sleep(0.05)


# ---------------------------------------------------------------------- 125


def test_125_children_do_not_believe_that_they_are_to_tell(spawn_program, manager):
    program = (
        "import os, subprocess, sys\n"
        "from evloop import Protocol, serve\n"
        "class P(Protocol):\n"
        "    def on_connect(self):\n"
        "        names = ('NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID')\n"
        "        return repr([name for name in names if name in os.environ]).encode()\n"
        "serve(P, '127.0.0.1:0')\n"
    )
    server = spawn_program(program, environment=told_by(manager, watchdog_s=5))
    manager.wait_for("READY=1", BOOT_S)
    with Client(server.address) as client:
        assert client.receive_exactly(2) == b"[]"


# ---------------------------------------------------------------------- 126


def test_126_manager_that_is_gone_costs_a_line(spawn, tmp_path):
    server: Process = spawn(environment={"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    server.wait_for_log("the service manager cannot be told anything: No such file or directory")
    with Client(server.address) as client:
        assert client.ask(b"abc\n", 2) == b"3\n"


def test_126_manager_whose_queue_is_full_is_told_later_and_nobody_waits(spawn, manager):
    filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    filler.setblocking(False)
    with filler:
        with contextlib.suppress(BlockingIOError):
            while True:
                filler.sendto(b"filler", manager.text)
        server = spawn(environment=told_by(manager))
        with Client(server.address) as client:
            assert client.ask(b"abc\n", 2) == b"3\n"  # it serves meanwhile
        assert set(manager.told()) == {"filler"}
        manager.wait_for("READY=1")


# ---------------------------------------------------------------------- 128

# The worker that comes first is held up just when the other one gets ready.
HELD_UP = """
import os, sys, time
from evloop import LineProtocol, serve
def hold_up(loop, server):
    loop.call_later(0.05, time.sleep, 2)
if __name__ == "__main__":
    on_start = None
    if "EVLOOP_ROLE" in os.environ:
        try:
            os.close(os.open(sys.argv[1], os.O_CREAT | os.O_EXCL))
            on_start = hold_up
        except FileExistsError:
            time.sleep(1)
    serve(LineProtocol, "127.0.0.1:0", workers=2, on_start=on_start)
"""


@pytest.mark.slow
def test_128_service_is_ready_though_one_of_its_workers_is_held_up_just_then(manager, tmp_path):
    program = tmp_path / "held_up.py"
    program.write_text(HELD_UP)
    with Process([str(program), str(tmp_path / "first")], environment=told_by(manager)) as server:
        manager.wait_for("READY=1", BOOT_S)
        server.wait_for_log("listening on")
