"""The supervisor at moments that are hard to meet with real workers: here the test plays these."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from evloop import EventLoop, Limits
from evloop.net.endpoint import Endpoint
from evloop.program.workers import door, supervisor
from evloop.program.workers.channel import MessageReader
from evloop.program.workers.messages import Message, encode
from evloop.program.workers.role import Role
from evloop.program.workers.slotsockets import close_all, open_places
from evloop.server.opening import endpoint_to_listen_on
from waiting import run_pass, run_until

pytestmark = [
    pytest.mark.one_selector,
    pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="workers need Unix sockets"),
]

NO_PROCESS = OSError(errno.EAGAIN, "no process more")


class Played:
    """A process that is none."""

    pid = 0  # to which the kernel sends nothing

    def __init__(self, descriptors: Sequence[int], on_end: Callable[[int], object]) -> None:
        self.signals: list[int] = []
        self.ended = False
        self._socket = socket.socket(fileno=os.dup(descriptors[0]))
        self._socket.setblocking(False)
        self._reader = MessageReader(self._socket)
        self._on_end = on_end

    def signal(self, signum: int) -> None:
        self.signals.append(signum)

    def discard(self) -> None:
        self.let_go()

    def let_go(self) -> None:
        self.ended = True
        self._socket.close()

    def say(self, kind: str, **fields: Any) -> None:
        self._socket.sendall(encode(kind, fields))

    def told(self) -> list[str]:
        """What it was told since the last time."""
        found = []
        while True:
            try:
                message = self._reader.read()
            except BlockingIOError:
                return found
            if message is None:
                return found
            found.append(message.kind)
            for descriptor in message.descriptors:
                os.close(descriptor)

    def end(self, status: int = 0) -> None:
        if not self.ended:
            self.let_go()
            self._on_end(status)


class Stage:
    """A supervisor, and who plays its processes.

    Attributes:
        played: all that were started.
        error: why none can be started, if none can.
        tries: how often it was tried.
    """

    def __init__(self, loop: EventLoop, workers: int, where: Endpoint, error: OSError | None, limits: Limits) -> None:
        self.loop = loop
        self.played: list[Played] = []
        self.error = error
        self.tries = 0
        self.places = open_places(where, workers, 10, None)
        self.supervisor = supervisor.Supervisor(
            loop,
            self,  # type: ignore[arg-type]
            self.places,
            workers,
            limits,
            lambda addresses: None,
        )

    def start(
        self, role: Role, descriptors: Sequence[int], on_end: Callable[[int], object], environment: object = None
    ) -> Played:
        """As `Children.start`."""
        self.tries += 1
        if self.error is not None:
            raise self.error
        self.played.append(Played(descriptors, on_end))
        return self.played[-1]

    def say(self, number: int, kind: str, **fields: Any) -> None:
        """The one that was started so says something, and the supervisor hears it."""
        self.played[number].say(kind, **fields)
        for _ in range(3):
            run_pass(self.loop)

    def serve(self) -> None:
        """All that were started are ready."""
        for number in range(len(self.played)):
            self.say(number, "ready", speaks="x")
            self.played[number].told()
        assert self.supervisor.serving

    def close(self) -> None:
        self.supervisor.stop()
        for one in reversed(self.played):  # a new service first
            one.end()
        close_all(self.places)


@pytest.fixture
def stage(loop: EventLoop, logged: Any) -> Iterator[Callable[..., Stage]]:
    """Makes one."""
    logged.allow(".*")
    made: list[Stage] = []

    def make(
        workers: int = 2, where: str = "127.0.0.1:0", error: OSError | None = None, serves: bool = True, **limits: Any
    ) -> Stage:
        made.append(Stage(loop, workers, endpoint_to_listen_on(where, None), error, Limits(**limits)))
        if serves:
            made[-1].serve()
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_when_the_first_worker_cannot_be_started_no_other_one_is(stage):
    s = stage(3, error=NO_PROCESS, serves=False)
    assert s.tries == 1
    assert s.supervisor.failure == "cannot start worker 1: no process more"


def test_there_are_not_fewer_workers_amid_a_reload_which_comes_to_its_end(stage, logged):
    s = stage(2)
    s.supervisor.reload()
    s.say(2, "ready", speaks="x")
    s.say(0, "retired")
    assert len(s.played) == 4
    s.supervisor.one_less()
    assert len(s.supervisor.slots) == 2
    s.supervisor.one_more()
    assert len(s.supervisor.slots) == 2
    s.say(3, "ready", speaks="x")
    s.say(1, "retired")
    logged.expect("reloaded: 2 workers")
    s.supervisor.one_more()
    assert len(s.supervisor.slots) == 3


def test_there_are_not_fewer_workers_when_no_other_one_lives(stage):
    s = stage(2)
    s.error = NO_PROCESS
    s.played[0].end(-9)
    s.supervisor.one_less()
    assert len(s.supervisor.slots) == 2
    s.played[1].end(-9)


def test_reload_does_not_go_on_when_the_service_stops(stage):
    s = stage(2)
    s.supervisor.reload()
    s.say(2, "ready", speaks="x")
    s.supervisor.stop()
    s.say(0, "retired")
    assert s.tries == 3


def test_upgrade_amid_a_reload_has_connections_go_to_the_new_service(stage):
    s = stage(2)
    s.supervisor.reload()
    s.supervisor.upgrade()
    s.say(3, "ready", speaks="x")
    s.say(2, "ready", speaks="x")
    assert s.played[0].told() == s.played[1].told() == ["retire"]


def test_slot_is_not_left_empty_when_a_reload_cannot_start_a_worker_there(stage, logged):
    s = stage(2)
    s.played[0].end(-9)
    s.played[2].end(-9)  # the next one is started in a while
    s.error = NO_PROCESS
    s.supervisor.reload()
    logged.expect("not reloaded: cannot start worker 1: no process more; 0 of 2 workers were replaced; ")
    s.error = None
    run_until(s.loop, lambda: len(s.played) == 4, "another one", timeout_s=2)


def test_log_says_how_many_workers_a_reload_has_replaced_before_it_failed(stage, logged):
    s = stage(2)
    s.supervisor.reload()
    s.say(2, "ready", speaks="x")
    s.say(0, "retired")
    s.played[3].end(1)
    logged.expect("not reloaded: worker 2 .*; 1 of 2 workers were replaced; those that serve go on")


def test_sigterm_while_a_new_service_starts_ends_that_one(stage):
    s = stage(2)
    s.supervisor.upgrade()
    s.supervisor.stop()
    assert s.played[2].signals == [signal.SIGKILL]
    s.say(2, "ready", speaks="x")  # said before it was killed
    assert s.played[0].told() == ["stop"]


def test_first_sigterm_to_one_that_makes_way_does_not_abort_and_the_second_does(stage):
    s = stage(2)
    s.supervisor.upgrade()
    s.say(2, "ready", speaks="x")
    for what in ("retire", "stop", "abort"):
        assert s.played[0].told() == s.played[1].told() == [what]
        s.supervisor.stop()


def test_new_service_that_does_not_read_is_not_waited_for_without_end(stage, monkeypatch):
    monkeypatch.setattr(supervisor, "_GRACE_AFTER_DRAIN_S", 0.01)
    s = stage(2, handover_timeout_s=0.05, drain_timeout_s=0.05)
    s.supervisor.upgrade()
    s.say(2, "ready", speaks="x")
    s.supervisor._successor.forward(Message("moved", {}, bytes(1 << 22), []))
    s.played[0].end()
    s.played[1].end()
    ended: list[bool] = []
    s.loop.call_later(2, lambda: (ended.append(False), s.loop.stop()))
    s.loop.run()
    assert not ended


def test_clients_of_a_worker_that_ends_by_itself_are_for_the_others(stage):
    s = stage(2)
    s.say(0, "closing")
    s.say(1, "beat", connections=0)
    assert [slot.served for slot in s.supervisor.slots] == [False, True]
    s.say(0, "beat", connections=1)
    assert not s.supervisor.slots[0].served
    assert s.supervisor.next_worker() is s.supervisor.slots[1].worker


def no_descriptor(descriptor: int) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_service_is_ready_also_when_there_is_no_descriptor_for_its_door(stage, monkeypatch, tmp_path):
    monkeypatch.setattr(door, "os", SimpleNamespace(dup=no_descriptor))
    s = stage(2, where=f"unix:{tmp_path / 's'}", serves=False)
    s.serve()


def test_door_that_could_not_be_opened_is_opened_when_it_is_asked_for_again(loop, logged, monkeypatch):
    logged.expect("the supervisor cannot accept: Too many open files")
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        one = door.Door(loop, listening, 5, accepted.append)
        with monkeypatch.context() as patch:
            patch.setattr(door, "os", SimpleNamespace(dup=no_descriptor))
            one.set_open(True)
        one.set_open(True)
        with socket.create_connection(listening.getsockname()):
            run_until(loop, lambda: accepted, "a client")
        one.set_open(False)
        accepted[0].close()
