"""The whole life of a connection on a socket that misbehaves on a schedule drawn by Hypothesis.

Peer, socket, protocol and owner do whatever they like in any order. What must hold all the while: the peer gets a
prefix of what was written, byte for byte, and the protocol a prefix of what the peer sent; ``on_close`` comes once.
And in the end: all of it has arrived unless something fatal happened, and no descriptor, timer or handler is left.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter, deque
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from evloop import Connection, EventLoop
from evloop.net.state import State
from faults.faultysocket import FATAL, TRANSIENT, FaultySocket
from faults.script import ABORT, CLOSE, FAIL, LIMITS, PAUSE, TALK, Script, pattern
from waiting import DEADLINE_S, run_pass

sizes = st.one_of(st.integers(1, 50), st.integers(1000, 9000))
transient = st.one_of(st.sampled_from(TRANSIENT).map(lambda code: -code), sizes)

passes = st.integers(0, 3)  # of the loop, after a step


class Life(RuleBasedStateMachine):
    """One connection from its beginning to its end."""

    # In a gentle life nothing fatal happens, so all must arrive. An early end leaves nothing to test: no end of any
    # kind comes before so many steps.
    @initialize(keep_half_open=st.booleans(), gentle=st.booleans(), end_after=st.integers(0, 60))
    def begin(self, keep_half_open: bool, gentle: bool, end_after: int) -> None:
        self.gentle = gentle
        self.end_after = end_after
        self.steps = 0
        self.now = 1000.0
        self.loop = EventLoop(clock=lambda: self.now)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            self.peer = socket.socket()
            self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.peer.connect(listener.getsockname())
            near, _ = listener.accept()
        near.setblocking(False)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer.setblocking(False)
        self.send_faults: deque[int] = deque()
        self.receive_faults: deque[int] = deque()
        self.socket = FaultySocket(
            near,
            lambda size: self.send_faults.popleft() if self.send_faults else size,
            lambda size: self.receive_faults.popleft() if self.receive_faults else size,
        )
        self.protocol = Script(keep_half_open)
        self.limits_hit: Counter[str] = Counter()
        self.closed_calls: list[Exception | None] = []
        self.peer_sent = bytearray()
        self.peer_received = bytearray()
        self.peer_ended = False  # has sent FIN
        self.peer_gone = False
        self.peer_saw_end = False
        self.owed = 0  # answers
        self.drains = False  # then nothing new is read while an answer is owed
        self.connection = self.make_connection(
            self.loop,
            self.socket,
            "peer",
            self.protocol,
            LIMITS,
            lambda connection, error: self.closed_calls.append(error),
            self.limits_hit,
        )
        self.connection.open()
        self.meet()

    def make_connection(self, *arguments: Any) -> Connection:
        """For other kinds of connections."""
        return Connection(*arguments)

    def meet(self) -> None:
        """What has to happen before both sides can speak."""

    @property
    def may_end(self) -> bool:
        """From here on the connection may be closed."""
        return self.steps >= self.end_after

    @property
    def may_break(self) -> bool:
        """From here on something fatal may happen."""
        return self.may_end and not self.gentle

    # ------------------------------------------------------------------ the peer

    @precondition(lambda self: not self.peer_ended)
    @rule(size=sizes, passes=passes)
    def peer_sends(self, size: int, passes: int) -> None:
        self.peer_sends_bytes(pattern(len(self.peer_sent), size))
        self.loop_runs(passes)

    def peer_sends_bytes(self, data: bytes) -> None:
        try:
            self.peer_sent += data[: self.peer.send(data)]
        except BlockingIOError:
            pass
        except ConnectionError:
            self.peer_ended = True

    @precondition(lambda self: not self.peer_ended)
    @rule(order=st.sampled_from([PAUSE, TALK]))
    def peer_orders(self, order: int) -> None:
        self.peer_sends_bytes(bytes([order]))

    @precondition(lambda self: not self.peer_ended and self.may_end)
    @rule()
    def peer_orders_close(self) -> None:
        self.peer_sends_bytes(bytes([CLOSE]))

    @precondition(lambda self: not self.peer_ended and self.may_break)
    @rule(order=st.sampled_from([ABORT, FAIL]))
    def peer_orders_worse(self, order: int) -> None:
        self.peer_sends_bytes(bytes([order]))

    @precondition(lambda self: not self.peer_gone)
    @rule(size=st.integers(1, 20_000))
    def peer_reads(self, size: int) -> None:
        """Take some of what has come."""
        try:
            data = self.peer.recv(size)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        self.peer_received += data
        self.peer_saw_end = self.peer_saw_end or not data

    @precondition(lambda self: not self.peer_ended and self.may_end)
    @rule()
    def peer_half_closes(self) -> None:
        self.peer_ended = True
        try:
            self.peer.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    @precondition(lambda self: not self.peer_gone and self.may_break)
    @rule()
    def peer_resets(self) -> None:
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()
        self.peer_ended = self.peer_gone = True

    # ------------------------------------------------------------------ the socket

    @rule(faults=st.lists(transient, max_size=6), passes=passes)
    def sends_misbehave(self, faults: list[int], passes: int) -> None:
        self.send_faults = deque(faults)
        self.loop_runs(passes)

    @rule(faults=st.lists(transient, max_size=6), passes=passes)
    def receives_misbehave(self, faults: list[int], passes: int) -> None:
        self.receive_faults = deque(faults)
        self.loop_runs(passes)

    @precondition(lambda self: self.may_break)
    @rule(code=st.sampled_from(FATAL), receive=st.booleans())
    def socket_breaks(self, code: int, receive: bool) -> None:
        (self.receive_faults if receive else self.send_faults).append(-code)

    # ------------------------------------------------------------------ the owner

    @rule(passes=passes)
    def loop_runs(self, passes: int) -> None:
        for _ in range(passes):
            run_pass(self.loop)

    @rule(seconds=st.sampled_from([0.1, 3.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        run_pass(self.loop)

    @rule(size=sizes, passes=passes)
    def owner_writes(self, size: int, passes: int) -> None:
        if self.gentle and self.connection.unsent_bytes > 60_000:
            return  # the hard cap is fatal, too
        data = pattern(len(self.protocol.written), size)
        if self.connection.state in (State.OPEN, State.HALF_OPEN):
            self.protocol.written += data
        self.connection.write(data)
        self.loop_runs(passes)

    @precondition(lambda self: self.may_end)
    @rule()
    def owner_closes(self) -> None:
        self.connection.close()

    @precondition(lambda self: self.may_break)
    @rule()
    def owner_aborts(self) -> None:
        self.connection.abort()

    @precondition(lambda self: self.may_end)
    @rule()
    def owner_drains(self) -> None:
        self.drains = True
        self.connection.drain()

    @precondition(lambda self: self.may_end)
    @rule()
    def owner_ends_its_output(self) -> None:
        self.connection.write_eof()

    @rule()
    def owner_owes_an_answer(self) -> None:
        self.connection.hold()
        self.owed += 1

    @precondition(lambda self: self.owed > 0)
    @rule(answer=st.binary(max_size=100))
    def owner_answers(self, answer: bytes) -> None:
        self.owed -= 1
        if self.connection.state in (State.OPEN, State.HALF_OPEN):
            self.protocol.written += answer
        self.connection.write(answer)
        self.connection.release()

    @rule()
    def owner_pauses(self) -> None:
        self.connection.pause_reading()

    @rule()
    def owner_resumes(self) -> None:
        self.connection.resume_reading()

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def count_steps(self) -> None:
        self.steps += 1

    @invariant()
    def no_byte_is_lost_repeated_or_reordered(self) -> None:
        assert self.protocol.written.startswith(self.peer_received)
        assert self.peer_sent.startswith(self.protocol.received)
        self.what_was_sent_was_written()
        assert self.connection.bytes_sent == len(self.socket.sent)
        assert self.connection.unsent_bytes <= LIMITS.max_unsent_bytes

    def what_was_sent_was_written(self) -> None:
        assert self.protocol.written.startswith(self.socket.sent)

    @invariant()
    def teardown_happens_exactly_once(self) -> None:
        assert self.connection.is_legal, self.connection
        closed = self.connection.state is State.CLOSED
        over = closed or self.connection.state is State.LINGERING
        assert self.protocol.events.count("close") == over
        assert self.protocol.events.count("eof") <= 1
        assert len(self.closed_calls) == closed
        assert self.socket.closes <= closed
        if over:
            assert self.protocol.events[-1] == "close"
            assert self.connection.unsent_bytes == 0

    def teardown(self) -> None:
        if not hasattr(self, "connection"):
            return
        self.receive_faults.clear()
        self.send_faults.clear()
        try:
            self.let_it_end()
            self.no_byte_is_lost_repeated_or_reordered()
            self.teardown_happens_exactly_once()
            assert self.connection.state is State.CLOSED
            assert self.socket.closes == 1
            assert len(self.loop.poller.handlers) == 1  # the loop's own wake-up
            assert not self.loop.pending_writes
            if self.gentle and not {"linger-bytes", "linger-timeout"} & self.limits_hit.keys():
                assert self.protocol.error is None
                assert self.peer_received == self.protocol.written
            # What `drain` looks at now and then may be queued still; it finds the connection closed.
            self.now += 1
            run_pass(self.loop)
            assert len(self.loop._timers) == 0
        finally:
            self.connection.abort()
            run_pass(self.loop)
            self.loop.close()
            self.peer.close()

    def let_it_end(self) -> None:
        """The peer reads what there is and closes; the owner closes. Nothing else goes wrong any more."""
        # The kernel takes its time for a peer with a small buffer, up to some 0.2 s for each bit of it.
        deadline = time.monotonic() + DEADLINE_S
        while not self.all_arrived() and time.monotonic() < deadline:
            self.connection.resume_reading()  # each time: there may be an order to pause among what is read
            self.step()
        if self.connection.state is State.OPEN and not self.peer_gone and not self.drains:
            # It can go on: all that was sent has been read, and all that was written has arrived, without an end.
            assert self.protocol.received == self.peer_sent
            assert self.peer_received == self.protocol.written
        self.connection.close()
        while time.monotonic() < deadline:
            self.step()
            if self.peer_saw_end and not self.peer_gone:
                self.peer_half_closes()
            if self.connection.state is State.CLOSED and (self.peer_gone or self.peer_saw_end):
                return
        raise AssertionError(f"never ended: {self.connection!r}")

    def all_arrived(self) -> bool:
        """Nothing is on its way in either direction, or the connection is not open anyway."""
        return (
            self.connection.state is not State.OPEN
            or self.peer_gone
            or self.drains
            or (self.protocol.received == self.peer_sent and self.peer_received == self.protocol.written)
        )

    def step(self) -> None:
        """One pass of the loop, and one read of the peer if it still can."""
        run_pass(self.loop)
        if not self.peer_gone and not self.peer_saw_end:
            self.peer_reads(65536)


def test_faults_over_the_whole_life_of_a_connection(logged):
    logged.allow("its protocol raised|No buffer space|left out")
    run_state_machine_as_test(
        Life, settings=settings(max_examples=40, stateful_step_count=40, deadline=None, database=None)
    )


@pytest.mark.slow
def test_faults_over_the_whole_life_of_a_connection_many(logged):
    logged.allow("its protocol raised|No buffer space|left out")
    run_state_machine_as_test(
        Life, settings=settings(max_examples=1500, stateful_step_count=80, deadline=None, database=None)
    )
