"""Outgoing connections: written to before they are there, and the time-outs that they can be asked to have."""

from __future__ import annotations

import gc
import os
import weakref

import pytest

from evloop import Limits, Protocol
from evloop.core.poller import Poller
from outgoing import error_of, silent_listener
from servers import Recorder, recorder
from waiting import run_pass, run_until

pytestmark = pytest.mark.one_selector


# ---------------------------------------------------------------------- written to before it is there


class Early(Recorder):
    def on_connect(self) -> bytes:
        super().on_connect()
        self.connection.write(b"third ")
        return b"fourth"


def test_what_is_written_before_is_sent_first(loop, listener):
    protocol = recorder(Early)()
    loop.connect(protocol, *listener.getsockname())
    protocol.connection.write(b"first ")
    run_pass(loop)
    protocol.connection.write(bytearray(b"second "))
    assert protocol.events == []
    assert protocol.connection.unsent_bytes == 13
    run_until(loop, lambda: protocol.events)
    peer, _ = listener.accept()
    with peer:
        run_pass(loop)
        assert peer.recv(100) == b"first second third fourth"
    run_until(loop, lambda: "close" in protocol.events)


def test_much_is_sent_too(loop, listener):
    protocol = recorder()()
    loop.connect(protocol, *listener.getsockname())
    data = os.urandom(1 << 20)
    for at in range(0, len(data), 4096):
        protocol.connection.write(data[at : at + 4096])
    run_until(loop, lambda: protocol.events)
    peer, _ = listener.accept()
    with peer:
        peer.setblocking(False)
        got = bytearray()

        def take() -> None:
            try:
                got.extend(peer.recv(1 << 20))
            except BlockingIOError:
                pass

        run_until(loop, lambda: take() or len(got) == len(data))
        assert got == data
    run_until(loop, lambda: protocol.events[-1] != "low" and len(protocol.events) > 1 and protocol.connection.closing)


def test_more_than_a_connection_may_hold(loop, listener):
    protocol = recorder()()
    limits = Limits(low_water_bytes=1, high_water_bytes=10, max_unsent_bytes=100)
    loop.connect(protocol, *listener.getsockname(), limits=limits)
    protocol.connection.write(bytes(100))
    protocol.connection.write(b"x")
    protocol.connection.write(b"x")
    assert error_of(loop, protocol).endswith(": more than 100 bytes were written before it was made")
    assert protocol.connection.unsent_bytes == 0


def test_closed_before_it_is_there_it_sends_what_was_written(loop, listener):
    protocol = recorder()()
    loop.connect(protocol, *listener.getsockname())
    protocol.connection.write(b"all")
    protocol.connection.close()
    protocol.connection.write(b" dropped")
    assert protocol.connection.closing
    run_until(loop, lambda: protocol.events)
    peer, _ = listener.accept()
    with peer:
        run_pass(loop)
        assert peer.recv(100) == b"all"
        assert peer.recv(100) == b""
    run_until(loop, lambda: "close" in protocol.events)
    assert protocol.events == ["connect", "close"]


@pytest.mark.parametrize("how", ["abort", "cancel"])
def test_given_up_before_it_is_there_nothing_is_called(loop, listener, how):
    protocol = recorder()()
    loop.connect(protocol, *listener.getsockname())
    protocol.connection.write(b"x")
    getattr(protocol.connection, how)()
    protocol.connection.write(b"x")
    for _ in range(3):
        run_pass(loop)
    assert protocol.events == []
    assert protocol.connection.closing
    assert protocol.connection.unsent_bytes == 0
    assert loop.timers == 0


def test_whatever_else_is_wanted_of_it_is_a_clear_error(loop):
    with silent_listener() as silent:
        protocol = recorder()()
        attempt = loop.connect(protocol, *silent.getsockname())
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        assert protocol.connection.peer == where
        assert repr(protocol.connection) == f"<Connector {where} connecting unsent=0>"
        with pytest.raises(AttributeError) as early:
            protocol.connection.pause_reading()
        attempt.cancel()
        with pytest.raises(AttributeError) as late:
            protocol.connection.pause_reading()
        run_pass(loop)
    text = f"no 'pause_reading': the connection to {where} "
    assert str(early.value) == text + "is not made yet, wait for on_connect; before, there is write and close"
    assert str(late.value) == text + "was not made; before, there is write and close"


def test_the_poller_can_watch_no_more_when_it_is_there(loop, listener, monkeypatch):
    """What was written is not sent on a socket that is closed already."""
    protocol = recorder()()
    loop.connect(protocol, *listener.getsockname(), enforce_timeouts=True)
    protocol.connection.write(b"x")
    run_pass(loop)

    def register(self: Poller, fd: int, events: int, handler: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Poller, "register", register)
        while loop.poller.handlers.keys() - {loop._wakeup_reader.fileno()}:
            run_pass(loop)
    assert error_of(loop, protocol).endswith("No space left on device")
    assert loop.timers == 0


# ---------------------------------------------------------------------- time-outs


class Slow(Recorder):
    def message_in_progress(self) -> int:
        return 7


@pytest.mark.parametrize(
    ("protocol_class", "timeouts"),
    [(Recorder, {"idle_timeout_s": 0.05}), (Slow, {"message_timeout_s": 0.05}), (Recorder, {"write_timeout_s": 0.05})],
)
def test_time_outs_that_are_asked_for(loop, listener, protocol_class, timeouts):
    limits = Limits(**{"write_timeout_s": None, **timeouts})
    asked, other = recorder(protocol_class)(), recorder(protocol_class)()
    loop.connect(asked, *listener.getsockname(), limits=limits, enforce_timeouts=True)
    loop.connect(other, *listener.getsockname(), limits=limits)
    if limits.write_timeout_s is not None:
        for protocol in (asked, other):
            protocol.connection.write(bytes(12 << 20))
    run_until(loop, lambda: "connect" in asked.events and "connect" in other.events)
    peers = [listener.accept()[0] for _ in range(2)]
    run_until(loop, lambda: asked.events[-1] != "high" and len(asked.events) > 1)
    assert asked.events[-1] == ("close", "LimitError")
    assert not other.connection.closing
    other.connection.abort()
    run_pass(loop)
    assert loop.timers == 0, "no sweep is left when there is nothing to look after"
    for peer in peers:
        peer.close()


def test_connections_with_the_same_limits_share_a_sweep(loop, listener):
    limits = Limits(idle_timeout_s=60)
    protocols = [recorder()() for _ in range(3)]
    for protocol in protocols:
        loop.connect(protocol, *listener.getsockname(), limits=limits, enforce_timeouts=True)
    run_until(loop, lambda: all(protocol.events for protocol in protocols))
    assert loop.timers == 1
    for protocol in protocols:
        protocol.connection.abort()
    run_pass(loop)
    assert loop.timers == 0


def test_the_sweep_forgets_who_is_gone(loop, listener):
    limits = Limits(message_timeout_s=0.08)
    both = [recorder(Slow)(), recorder()()]
    for protocol in both:
        loop.connect(protocol, *listener.getsockname(), limits=limits, enforce_timeouts=True)
    run_until(loop, lambda: all(protocol.events for protocol in both))
    gone = weakref.ref(both[0].connection.socket)
    swept = []
    loop.call_later(0.03, swept.append, 1)
    run_until(loop, lambda: swept)  # the sweep has seen its unfinished message
    assert both[0].events == ["connect"]
    both.pop(0).connection.abort()
    run_pass(loop)
    gc.collect()
    assert gone() is None
    both[0].connection.abort()
    run_pass(loop)


def test_a_connection_that_can_not_be_used_leaves_no_sweep(loop, listener, logged):
    logged.expect("its protocol could not be used")

    class Bad(Recorder):
        def data_handler(self) -> None:  # type: ignore[override]
            raise ValueError("no handler")

    protocol = recorder(Bad)()
    loop.connect(protocol, *listener.getsockname(), enforce_timeouts=True)
    assert "no handler" in error_of(loop, protocol)
    assert loop.timers == 0


def test_a_protocol_without_a_connection_is_not_kept_alive(loop):
    class Plain(Protocol):
        __slots__ = ("__weakref__",)

    protocol = Plain()
    alive = weakref.ref(protocol)
    loop.connect(protocol, "127.0.0.1", 1).cancel()
    run_pass(loop)
    gc.disable()
    try:
        del protocol
        assert alive() is None
    finally:
        gc.enable()
