"""Processes that are started from here: where, how their end is noticed, and what is left if the start goes wrong."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest

from evloop import EventLoop, Limits
from evloop.errors import ListenError
from evloop.net.endpoint import parse_endpoint
from evloop.program.terminal import working_folder
from evloop.program.workers.channel import Channel, channel_pair
from evloop.program.workers.health import Pulse
from evloop.program.workers.role import WORKER, Role
from evloop.program.workers.service import supervise
from evloop.program.workers.spawn import Children
from evloop.program.workers.succession import Successor
from evloop.program.workers.worker import Worker
from evloop.program.workers.workerprocess import WorkerProcess
from evloop.server.sharedcounts import CountsMemory
from waiting import run_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers need Unix sockets")

WORKERS = "evloop.program.workers"


@pytest.fixture
def loop():
    with EventLoop() as loop:
        yield loop


def fail(*_arguments: object, **_named: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def nobody(*_arguments: object) -> None:
    """Hears what is told."""


def run(loop: EventLoop, children: Children) -> int:
    """Start one, and wait for its end."""
    ends: list[int] = []
    children.start(Role(WORKER, 0), [], ends.append)
    run_until(loop, lambda: bool(ends))
    return ends[0]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_a_kernel_that_has_no_descriptors_for_processes(loop, monkeypatch, number):
    def refuse(_pid: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    before = signal.getsignal(signal.SIGCHLD)
    children = Children(loop, ["sh", "-c", "exit 7"], ".")
    assert run(loop, children) == 7
    loop.remove_signal_handler(signal.SIGCHLD)
    assert signal.getsignal(signal.SIGCHLD) is before


def test_a_link_is_followed_to_where_it_leads_by_then(loop, tmp_path: Path, monkeypatch):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    link = tmp_path / "current"
    link.symlink_to("old")
    monkeypatch.chdir(link)
    monkeypatch.setenv("PWD", str(link))
    children = Children(loop, ["touch", "here"], working_folder())
    link.unlink()
    link.symlink_to("new")
    assert run(loop, children) == 0
    assert (tmp_path / "new" / "here").exists()


def test_a_name_of_the_folder_that_is_another_ones_is_not_believed(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("/", "", "relative", str(tmp_path / "missing")):
        monkeypatch.setenv("PWD", name)
        assert working_folder() == str(tmp_path.resolve())
    monkeypatch.delenv("PWD")
    assert working_folder() == str(tmp_path.resolve())


def children_now() -> list[psutil.Process]:
    return psutil.Process().children()


@pytest.mark.parametrize(
    "what", ["workerprocess.Channel", "workerprocess.Channel.send", "workerprocess.LifeLine.tie", "spawn.Child.watch"]
)
def test_a_worker_that_could_not_be_started_is_not_there(loop, monkeypatch, what):
    before = children_now()
    counts = CountsMemory.create(2)
    with monkeypatch.context() as patch:
        patch.setattr(f"{WORKERS}.{what}", fail)
        children = Children(loop, ["sleep", "60"], ".")
        with pytest.raises(OSError, match="Too many open files"):
            WorkerProcess(loop, children, 0, [], {}, Pulse(60.0, 30.0), counts, nobody, nobody, nobody)
    assert children_now() == before
    assert {counts.take_row(), counts.take_row()} == {0, 1}  # it has none of them any more
    counts.close()


@pytest.mark.parametrize("what", ["succession.Channel", "succession.Channel.send", "spawn.Child.watch"])
def test_a_successor_that_could_not_be_started_is_not_there(loop, monkeypatch, what):
    before = children_now()
    with monkeypatch.context() as patch:
        patch.setattr(f"{WORKERS}.{what}", fail)
        children = Children(loop, ["sleep", "60"], ".")
        with pytest.raises(OSError, match="Too many open files"):
            Successor(loop, children, [], {}, 60.0, lambda: None, print)
    assert children_now() == before


def test_a_worker_without_a_descriptor_for_all_that_it_is_given_does_not_start(loop):
    ours, theirs = channel_pair()
    channel = Channel(loop, ours, print, lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        places = [{"endpoint": "127.0.0.1:0", "passed": False}]
        channel.send("serve", descriptors=[sock.fileno()], places=places, row=None)  # the kernel has dropped the rest
    with pytest.raises(ListenError, match="no descriptors are left to get the listening sockets"):
        Worker(loop, Role(WORKER, theirs.detach()))
    channel.close()


def test_what_fails_beside_the_sockets_is_not_said_to_be_one_of_them(monkeypatch):
    monkeypatch.setattr(CountsMemory, "create", fail)
    with pytest.raises(ListenError, match="cannot look after workers: Too many open files"):
        supervise({parse_endpoint("127.0.0.1:0"): ""}, 2, Limits(), print)


def test_who_is_not_read_is_not_taken_for_stuck(loop):
    ended: list[int] = []
    children = Children(loop, ["sleep", "60"], ".")
    worker = WorkerProcess(
        loop, children, 0, [], {}, Pulse(60.0, 0.5), None, nobody, nobody, lambda _, status: ended.append(status)
    )
    worker.pulse.became_ready()
    heir = type("Heir", (), {"behind": True, "gone": False, "speaks": ""})()
    worker.rest_while_behind(heir)
    worker.let_pass(1)
    assert not worker.pulse.given_up
    heir.behind = False
    run_until(loop, lambda: not worker._channel.rests)
    worker.let_pass(0.25)
    assert not worker.pulse.given_up
    worker.kill()
    run_until(loop, lambda: bool(ended))
