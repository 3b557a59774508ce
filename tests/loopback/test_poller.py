"""Readiness: who is called, who is not any more, and what each selector can watch."""

from __future__ import annotations

import select
import selectors
import socket
import threading
import time

import pytest

from evloop import EventLoop
from servers import recorder
from waiting import run_pass, wait_until


def test_no_number_is_used_again_while_old_events_may_mention_it(start):
    """Of two connections that are ready in one pass, the first served aborts the other and opens new sockets."""

    order: list[str] = []
    opened: list[socket.socket] = []
    numbers: list[int] = []

    class Killer(recorder()):  # type: ignore[misc]
        def on_data(self, data: bytes) -> None:
            super().on_data(data)
            order.append(self.connection.peer)
            (victim,) = [one for one in server.server.connections if one is not self.connection]
            numbers.append(victim.socket.fileno())
            victim.abort()
            for _ in range(8):
                opened.append(socket.socket())
                numbers.append(opened[-1].fileno())

    server = start(Killer)
    clients = [server.connect(), server.connect()]
    wait_until(lambda: len(server.connections()) == 2)

    holding = threading.Event()

    def hold_until_both_are_ready() -> None:
        holding.set()
        waiting = [connection.socket for connection in server.server.connections]
        deadline = time.monotonic() + 10
        while len(select.select(waiting, [], [], 1)[0]) < 2 and time.monotonic() < deadline:
            pass

    server.loop.call_soon_threadsafe(hold_until_both_are_ready)
    assert holding.wait(10)
    for client in clients:
        client.send(b"x")
    wait_until(lambda: Killer.events.count("close") == 1)
    server.passes()
    for sock in opened:
        sock.close()
    assert len(order) == 1, "the aborted connection was served by a stale event"
    assert numbers[0] not in numbers[1:], "the aborted connection's number was given away in the same pass"


def test_the_poller_follows_what_is_watched(loop):

    ours, theirs = socket.socketpair()
    events = []
    poller = loop.poller
    fd = ours.fileno()
    with ours, theirs:
        poller.watch(fd, selectors.EVENT_WRITE, lambda: events.append("write"))
        run_pass(loop)
        assert events == ["write"]
        poller.watch(fd, selectors.EVENT_READ, lambda: events.append("read"))
        run_pass(loop)
        assert events == ["write"]
        theirs.send(b"x")
        run_pass(loop)
        run_pass(loop)
        assert events == ["write", "read", "read"]  # level triggered: nobody has read it
        with pytest.raises(KeyError):
            poller.register(fd, selectors.EVENT_READ, print)
        poller.watch(fd, selectors.EVENT_READ | selectors.EVENT_WRITE, lambda: events.append("both"))
        run_pass(loop)
        assert events[3:] == ["both"]  # one call for both
        poller.watch(fd, 0, print)
        poller.watch(fd, 0, print)
        run_pass(loop)
        assert events[4:] == []
        assert fd not in poller.handlers


def test_an_end_that_nobody_watches_does_not_wake_the_loop(loop):

    ours, theirs = socket.socketpair()
    with ours:
        loop.poller.register(ours.fileno(), selectors.EVENT_READ, print)
        loop.poller.watch(ours.fileno(), 0, print)
        theirs.close()
        assert loop.poller.poll(0) == []


def test_the_poller_says_which_selector_it_has(selector):
    with EventLoop(selector=selector()) as loop:
        assert loop.poller.name == selector.__name__
        assert (loop.poller.capacity is None) == (selector is not selectors.SelectSelector)


def test_the_default_selector_is_the_platform_s():
    with EventLoop() as loop:
        assert loop.poller.name == selectors.DefaultSelector.__name__


def test_select_refuses_a_descriptor_that_it_cannot_watch():
    with EventLoop(selector=selectors.SelectSelector()) as loop:
        with pytest.raises(OSError, match="select\\(\\) cannot watch more than"):
            loop.poller.register(1024, selectors.EVENT_READ, print)
        assert 1024 not in loop.poller.handlers
