"""What a service manager is told: the messages, when they are sent, and what happens when they can't be."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evloop.program.notify import STATUS_S, Notifier, from_environment, notification, socket_address, watchdog_s
from evloop.testing import MemoryLoop
from managers import Manager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.close()


@pytest.fixture
def loop() -> MemoryLoop:
    return MemoryLoop()


@pytest.fixture
def notify(loop: MemoryLoop, manager: Manager) -> Iterator[Notifier]:
    environ = {"NOTIFY_SOCKET": manager.text, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    notify = from_environment(loop, environ)
    assert notify is not None
    yield notify
    notify.close()


def test_messages():
    assert notification(READY=1, STATUS="a b") == b"READY=1\nSTATUS=a b"
    assert notification(STATUS="line\nMAINPID=1\r\n") == b"STATUS=line MAINPID=1"  # nobody can smuggle a variable in
    assert notification(STATUS="\udcff") == b"STATUS=?"


@pytest.mark.parametrize(
    ("text", "address"),
    [("/run/x", "/run/x"), ("@x", "\0x"), ("", None), ("@", None), ("x", None), ("vsock:2:1", None)],
)
def test_addresses(text: str, address: str | None):
    assert socket_address(text) == address


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "7"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_time_of_the_watchdog(environ: dict[str, str], expected: float | None):
    assert watchdog_s(environ, 7) == expected


def test_nobody_to_tell(loop: MemoryLoop):
    environ = {"WATCHDOG_USEC": "1", "PATH": "/bin"}
    assert from_environment(loop, environ) is None
    assert environ == {"PATH": "/bin"}


def test_an_address_that_is_none(loop: MemoryLoop, logged):
    assert from_environment(loop, {"NOTIFY_SOCKET": "vsock:2:1"}) is None
    logged.expect("nobody is told that the service is ready: NOTIFY_SOCKET is 'vsock:2:1', which is no path")


def test_children_have_nothing_to_tell(loop: MemoryLoop, manager: Manager):
    environ = {"NOTIFY_SOCKET": manager.text, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    notify = from_environment(loop, environ)
    assert notify is not None
    assert environ == {"PATH": "/bin"}
    notify.close()


def test_an_abstract_address(loop: MemoryLoop):
    manager = Manager(f"@evloop-test-{os.getpid()}")
    notify = from_environment(loop, {"NOTIFY_SOCKET": manager.text})
    assert notify is not None
    notify.ready()
    assert manager.told() == ["READY=1"]
    notify.close()
    manager.close()


def test_a_service_from_its_begin_to_its_end(loop: MemoryLoop, manager: Manager, notify: Notifier):
    connections = 0
    assert manager.told() == []
    notify.begin(lambda: f"{connections} connections now")
    assert manager.told() == ["READY=1\nSTATUS=0 connections now"]
    loop.advance(STATUS_S + 0.5)  # nothing new, but signs of life at a third of their time
    assert manager.told() == ["WATCHDOG=1"] * 5
    connections = 7
    loop.advance(STATUS_S)
    assert sorted(manager.told()) == ["STATUS=7 connections now", *["WATCHDOG=1"] * 5]
    before = time.monotonic_ns() // 1000
    notify.reloading()
    (told,) = manager.told()
    reloading, _, stamp = told.partition("\nMONOTONIC_USEC=")
    assert reloading == "RELOADING=1"
    assert before <= int(stamp) <= time.monotonic_ns() // 1000
    notify.ready()
    assert manager.told() == ["READY=1"]
    notify.stopping(15.5, "stopping: 7 connections to finish")
    assert manager.told() == ["STOPPING=1\nEXTEND_TIMEOUT_USEC=15500000\nSTATUS=stopping: 7 connections to finish"]
    loop.advance(100)
    assert manager.told() == []


def test_who_looks_after_others_gives_a_sign_of_life_only_while_they_live(
    loop: MemoryLoop, manager: Manager, notify: Notifier
):
    well = True
    notify.begin(lambda: "", lambda: well)
    loop.advance(1)
    assert manager.told() == ["READY=1", "WATCHDOG=1"]
    well = False
    loop.advance(10)
    assert manager.told() == []
    well = True
    loop.advance(1)
    assert manager.told() == ["WATCHDOG=1"]


def test_another_process_takes_over(loop: MemoryLoop, manager: Manager, notify: Notifier):
    environ = notify.environment()
    assert "WATCHDOG_PID" not in environ  # it has another one
    follower = from_environment(loop, environ)
    assert follower is not None
    assert environ == {}
    notify.begin(lambda: "old")
    follower.begin(lambda: "new")
    assert manager.told() == ["READY=1\nSTATUS=old"]  # the follower would not be believed yet
    notify.main_pid(77)
    notify.stopping(1)
    assert manager.told() == ["MAINPID=77\nREADY=1"]
    loop.advance(STATUS_S)
    assert sorted(manager.told()) == ["STATUS=new", *["WATCHDOG=1"] * 5]
    follower.reloading()
    follower.ready()
    assert len(manager.told()) == 2
    follower.close()


def test_a_manager_that_has_no_room_is_told_later_what_it_must_know(
    loop: MemoryLoop, manager: Manager, notify: Notifier
):
    notify._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # so that a few fill it
    sent = 0
    while notify._send(b"filler" * 100):
        sent += 1
    notify.begin(lambda: "status")
    notify.reloading()
    notify.ready()
    loop.advance(3)  # signs of life don't wait
    assert manager.told() == ["filler" * 100] * sent
    loop.advance(0.2)
    first, second, third = manager.told()
    assert (first, second.split("\n")[0], third) == ("READY=1\nSTATUS=status", "RELOADING=1", "READY=1")


def test_a_manager_that_has_no_room_at_the_end_is_waited_for_a_moment(
    loop: MemoryLoop, manager: Manager, notify: Notifier, monkeypatch: pytest.MonkeyPatch
):
    notify._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    while notify._send(b"filler" * 100):
        pass
    notify.main_pid(77)
    slow = threading.Timer(0.05, manager.told)
    slow.start()
    notify.close()  # or this one's end would be taken for the service's
    slow.join()
    manager.told()
    assert manager.heard[-1] == "MAINPID=77\nREADY=1"
    # Not for ever.
    monkeypatch.setattr("evloop.program.notify._AT_THE_END_S", 0.02)
    other = from_environment(loop, {"NOTIFY_SOCKET": manager.text})
    assert other is not None
    other._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    while other._send(b"filler" * 100):
        pass
    other.main_pid(77)
    other.close()
    assert set(manager.told()) == {"filler" * 100}


def test_a_manager_that_is_gone_costs_a_line_in_the_log(loop: MemoryLoop, manager: Manager, notify: Notifier, logged):
    manager.close()
    notify.begin(lambda: "")
    logged.expect("the service manager cannot be told anything: Connection refused")
    assert notify._unsent == []
