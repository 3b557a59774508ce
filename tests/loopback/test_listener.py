"""What a listener does with each connection that it accepts, and when accepting fails."""

from __future__ import annotations

import errno
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import evloop.server.listener
from clients import Client
from evloop import EventLoop
from evloop.server.listener import Listener
from waiting import run_pass, run_until

pytestmark = pytest.mark.one_selector


class Listening:
    """A listening socket. What goes wrong with the next accepts, one after the other, is in ``faults``.

    An exception is raised by accept; None: the socket that it returns fails at its first use.
    """

    def __init__(self, loop: EventLoop) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.loop = loop
        self.passes: set[int] = set()  # in which accept was called
        self.faults: list[Exception | None] = []
        self.accepted: list[Any] = []

    def accept(self) -> tuple[Any, Any]:
        self.passes.add(self.loop.passes)
        if not self.faults:
            return self.socket.accept()
        fault = self.faults.pop(0)
        if fault is not None:
            raise fault
        sock, address = self.socket.accept()
        self.accepted.append(GoneAlready(sock))
        return self.accepted[-1], address

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)


class GoneAlready:
    """A socket that some systems say can't be used any more, as its peer is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self.close = sock.close
        self.fileno = sock.fileno

    def setblocking(self, flag: bool) -> None:
        raise OSError(errno.EINVAL, "injected")


class Accepts:
    """A listener, and what it has accepted."""

    def __init__(self, loop: EventLoop, **options: Any) -> None:
        self.listening = Listening(loop)
        self.faults = self.listening.faults
        self.sockets: list[socket.socket] = []
        self.limits_hit: Counter[str] = Counter()
        self.listener = Listener(loop, self.listening, 10, self._accepted, self.limits_hit, **options)
        self.clients: list[Client] = []
        self.close_after_one = False

    def _accepted(self, sock: socket.socket, address: Any) -> None:
        assert address == sock.getpeername()
        self.sockets.append(sock)
        if self.close_after_one:
            self.listener.close()

    def connect(self) -> None:
        self.clients.append(Client(self.listening.getsockname()))

    def close(self) -> None:
        self.listener.close()
        for one in [*self.clients, *self.sockets]:
            one.close()


@pytest.fixture
def accepts(loop: EventLoop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Accepts]:
    """One that rests until it is woken."""
    monkeypatch.setattr(evloop.server.listener, "EXHAUSTED_PAUSE_S", 600)
    one = Accepts(loop)
    yield one
    one.close()


@pytest.mark.parametrize("inherited", [None, True, False] if sys.platform == "linux" else [None, False])
def test_an_accepted_socket_has_its_options_whether_it_inherits_them_or_not(loop, monkeypatch, inherited):
    if inherited is not None:
        monkeypatch.setattr(evloop.server.listener, "_INHERITS_OPTIONS", inherited)
    accepts = Accepts(loop, kernel_unsent_bytes=54321)
    accepts.connect()
    run_until(loop, lambda: accepts.sockets)
    (sock,) = accepts.sockets
    assert not sock.getblocking()
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 54321
    set_once = bool(accepts.listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    assert set_once is (sys.platform == "linux" if inherited is None else inherited)
    accepts.close()


def test_a_listener_that_is_closed_by_what_it_has_accepted_accepts_no_more(loop, accepts):
    accepts.close_after_one = True
    for _ in range(3):
        accepts.connect()
    run_until(loop, lambda: accepts.sockets)
    assert len(accepts.sockets) == 1
    assert not accepts.limits_hit  # it was not the number for one pass that ended it


@pytest.mark.parametrize("fault", [ConnectionAbortedError(errno.ECONNABORTED, "injected"), None], ids=repr)
def test_who_waits_behind_one_that_is_gone_is_accepted_in_the_same_pass(loop, accepts, fault):
    accepts.faults += [fault, fault]
    for _ in range(3):
        accepts.connect()
    run_until(loop, lambda: accepts.listener.accept_errors)
    assert len(accepts.sockets) == (1 if fault is None else 3)
    assert accepts.listener.accept_errors == 2
    assert accepts.listener.exhausted == 0
    assert not accepts.limits_hit
    assert not accepts.listener.resting
    assert len(accepts.listening.passes) == 1
    assert all(one.fileno() == -1 for one in accepts.listening.accepted)


def test_out_of_memory_it_rests_and_the_loop_is_told(loop, accepts, logged, monkeypatch):
    logged.expect(f"cannot accept on {accepts.listener.address}: out of memory; trying again")
    told: list[int] = []
    monkeypatch.setattr(loop.memory, "make_room", lambda: told.append(1) or True)
    accepts.faults.append(MemoryError())
    accepts.connect()
    run_until(loop, lambda: accepts.listener.accept_errors)
    assert told
    assert accepts.listener.resting
    assert (accepts.listener.accept_errors, accepts.listener.exhausted) == (1, 0)
    accepts.listener.resume()
    run_until(loop, lambda: accepts.sockets)


def test_an_error_without_a_number_is_told_by_its_text(loop, accepts, logged):
    logged.expect("cannot accept on .*: something odd; trying again")
    accepts.faults.append(OSError("something odd"))
    accepts.connect()
    run_until(loop, lambda: accepts.listener.resting)
    accepts.listener.resume()
    run_until(loop, lambda: accepts.sockets)


def test_closed_while_it_rests_it_leaves_nothing_behind(loop, accepts, logged):
    logged.expect("cannot accept on")
    accepts.faults.append(OSError(errno.EMFILE, "injected"))
    accepts.connect()
    run_until(loop, lambda: accepts.listener.resting)
    number = accepts.listening.fileno()
    accepts.listener.close()
    assert not accepts.listener.resting
    assert loop.timers == 0
    assert number not in loop.poller.handlers
    accepts.listener.resume()
    accepts.listener.close()
    run_pass(loop)
    assert accepts.sockets == []


def test_woken_before_its_pause_is_over_it_needs_no_timer_any_more(loop, accepts, logged):
    logged.expect("cannot accept on")
    accepts.faults.append(OSError(errno.EMFILE, "injected"))
    accepts.connect()
    run_until(loop, lambda: accepts.listener.resting)
    accepts.listener.resume()
    assert not accepts.listener.resting
    assert loop.timers == 0
    accepts.listener.resume()  # two descriptors have become free
    run_until(loop, lambda: accepts.sockets)


def test_what_cannot_be_watched_goes_on_to_rest(loop, accepts, logged, monkeypatch):
    monkeypatch.setattr(evloop.server.listener, "EXHAUSTED_PAUSE_S", 0.01)
    logged.expect("cannot accept on")
    accepts.faults.append(OSError(errno.EMFILE, "injected"))
    accepts.connect()
    watch, tries = loop.poller.watch, []

    def fails_twice(fd: int, events: int, handler: Any) -> None:
        if events:
            tries.append(fd)
            if len(tries) < 3:
                raise OSError(errno.ENOMEM, "injected")
        watch(fd, events, handler)

    monkeypatch.setattr(loop.poller, "watch", fails_twice)
    run_until(loop, lambda: accepts.sockets)
    assert len(tries) == 3
    assert loop.timers == 0
