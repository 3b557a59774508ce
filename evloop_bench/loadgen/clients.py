"""One generator connection: sends, checks every reply, records latencies.

Theory of operation
-------------------
Messages and right replies are slices of two long byte strings (`evloop_bench.loadgen.workload.Pool`). A chunk that
arrives is checked in one of three ways, from the common to the rare:

1. It is exactly the replies to all that is in flight, which was sent at one time: one comparison of bytes, one clock
   reading, one bucket counted up, one send.
2. It continues the expected stream of replies, from anywhere to anywhere: one comparison, and bookkeeping by groups
   of messages that were sent together.
3. It differs: reply by reply, and what is wrong is counted and kept as an example.

Replies that arrive in one chunk share its clock reading. What is sent leaves at once, not at the end of the loop's
pass: else a latency would hold the time in which this process served its other connections. So a reading taken just
before a send is the moment of the send.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from evloop.errors import ConnectError
from evloop.limits import Limits
from evloop.net.protocol import Protocol
from evloop_bench.loadgen.histogram import SUB_BUCKET_BITS, record
from evloop_bench.loadgen.tally import Run
from evloop_bench.loadgen.workload import Turn

clock_ns = time.monotonic_ns

_REFUSAL = b"ERR too-many-connections"

# The library stops reading a peer that doesn't read; a generator must go on, or two that wait for each other stand
# still. What an open loop can't send because so much is unsent already is counted as missed.
GENERATOR_LIMITS = Limits(high_water_bytes=256 << 20, max_unsent_bytes=256 << 20, linger_timeout_s=5.0)
MAX_UNSENT_BYTES = 1 << 20

_NOT_STEADY: Turn = (b"", b"", None)  # no data that arrives is empty


class CheckedClient(Protocol):
    """Keeps track of what is in flight and checks what comes back. Subclasses decide what is sent when.

    ``_groups`` holds what is in flight, oldest first, as lists of when it was meant to be sent, when it was sent, and
    how many messages it is.
    """

    __slots__ = (
        "_groups",
        "_partial",
        "_receive_at",
        "_receive_offset",
        "_run",
        "_send_at",
        "closed",
        "connecting_ns",
        "finished",
        "opened",
    )

    def __init__(self, run: Run, position: int) -> None:
        self._run = run
        self._groups: deque[list[int]] = deque()
        self._send_at = position  # in the pool: the next message
        self._receive_at = position  # in the pool: the message whose reply comes next
        self._receive_offset = run.pool.reply_at[position]  # in the pool's replies: the next byte
        self._partial = b""  # of a reply that was examined on its own
        self.connecting_ns = 0  # when the connect began; for whoever makes it to set
        self.opened = False
        self.closed = False
        self.finished = False  # we are the ones who end it

    @property
    def in_flight(self) -> int:
        """Messages sent whose reply has not come."""
        return sum(group[2] for group in self._groups)

    # ------------------------------------------------------------------ sending

    def _send(self, count: int, intended_ns: int, now_ns: int) -> None:
        """Send the next messages at once. ``now_ns`` must just have been read."""
        run = self._run
        position = self._send_at
        self.connection.write(run.pool.requests_from(position, count))
        run.loop.flush_writes()
        self._groups.append([intended_ns, now_ns, count])
        position += count
        self._send_at = position - run.pool.size if position >= run.pool.size else position
        run.tally.sent += count

    # ------------------------------------------------------------------ checking

    def on_data(self, data: bytes) -> bytes | None:
        now_ns = clock_ns()
        pool = self._run.pool
        start = self._receive_offset
        if not self._partial and pool.replies.startswith(data, start):
            count = data.count(b"\n")
            if count < self.in_flight or (count == self.in_flight and data.endswith(b"\n")):
                self._advance(count)
                end = start + len(data)
                total = pool.reply_at[pool.size]
                self._receive_offset = end - total if end >= total else end
                if count:
                    self._answered(count, now_ns)
                return None
        self._examine(data, now_ns)
        return None

    def _advance(self, count: int) -> None:
        size = self._run.pool.size
        self._receive_at = (self._receive_at + count) % size

    def _examine(self, data: bytes, now_ns: int) -> None:
        """Reply by reply, for chunks with something wrong in them."""
        run = self._run
        pool = run.pool
        at = pool.reply_at
        # What of the current reply was found right before this chunk came.
        begun = pool.replies[at[self._receive_at] : self._receive_offset] if not self._partial else self._partial
        *lines, self._partial = (begun + data).split(b"\n")
        for line in lines:
            in_flight = self.in_flight
            if line.startswith(_REFUSAL) and not in_flight:
                run.tally.refused += 1
                continue
            if not in_flight:
                run.tally.wrong += 1
                run.tally.example(f"a reply to nothing: {line[:80]!r}")
                continue
            expected = pool.replies_from(self._receive_at, 1)
            if line + b"\n" != expected:
                if line.startswith(_REFUSAL):
                    run.tally.refused += 1
                else:
                    run.tally.wrong += 1
                request = pool.requests_from(self._receive_at, 1)
                run.tally.example(
                    f"{line[:80]!r} instead of {expected[:-1]!r} to {request[:60]!r} ({len(request)} bytes)"
                )
            self._advance(1)
            self._answered(1, now_ns)
        self._receive_offset = at[self._receive_at]
        if len(self._partial) > 4096:
            run.tally.wrong += 1
            run.tally.example(f"not a reply at all: {self._partial[:80]!r}...")
            self.connection.abort()
        elif not self._partial.strip() or pool.replies.startswith(self._partial, self._receive_offset):
            # In step again: go back to comparing chunks.
            self._receive_offset += len(self._partial)
            self._partial = b""

    def _answered(self, count: int, now_ns: int) -> None:
        """The oldest ``count`` messages in flight were answered."""
        groups = self._groups
        self._run.tally.replies += count
        while count:
            group = groups[0]
            n = min(count, group[2])
            self._measure(group[0], group[1], n, now_ns)
            group[2] -= n
            count -= n
            if not group[2]:
                groups.popleft()

    def _measure(self, intended_ns: int, sent_ns: int, count: int, now_ns: int) -> None:
        record(self._run.tally.latency, now_ns - intended_ns, count)

    # ------------------------------------------------------------------ life

    def on_connect(self) -> None:
        self.opened = True
        tally = self._run.tally
        tally.connections += 1
        record(tally.connect, clock_ns() - self.connecting_ns)

    def on_connect_error(self, error: ConnectError) -> None:
        tally = self._run.tally
        tally.refused += 1
        reason = str(error).rpartition(": ")[2]
        tally.connect_errors[reason] = tally.connect_errors.get(reason, 0) + 1
        self.closed = True

    def on_close(self, error: Exception | None) -> None:
        tally = self._run.tally
        self.closed = True
        tally.bytes_sent += self.connection.bytes_sent
        tally.bytes_received += self.connection.bytes_received
        if self.finished:
            return
        if error is not None and not isinstance(error, OSError):
            tally.example(f"the generator failed: {error!r}")
        self.settle()
        tally.reset += 1
        tally.missing += self.in_flight
        self._groups.clear()

    def finish(self) -> None:
        """Close in order; what is still in flight is no longer expected."""
        if self.opened and not self.closed:
            self.settle()
            self.finished = True
            self.connection.close()

    def settle(self) -> None:
        """Bring the books up to date that a fast path doesn't keep."""


class IdleClient(CheckedClient):
    """A silent socket. The server must keep it open and say nothing."""

    __slots__ = ()


class ClosedLoopClient(CheckedClient):
    """Keeps a window of messages in flight: sends as many as were answered.

    In the steady state ``_turn`` says what must come now and what to send then, and the books of the general paths
    rest: ``_windows`` counts what passed meanwhile, and `settle` makes up for it.
    """

    __slots__ = ("_latency", "_sent_ns", "_turn", "_window", "_windows")

    def __init__(self, run: Run, position: int) -> None:
        super().__init__(run, position)
        self._turn = _NOT_STEADY
        self._sent_ns = 0
        self._windows = 0
        self._window = run.window
        self._latency = run.tally.latency

    def start(self) -> None:
        """Send the first window, or what the budget allows of it."""
        count = self._run.grant(self._run.window)
        if count:
            now_ns = clock_ns()
            self._send(count, now_ns, now_ns)
            self._try_steady()

    def on_data(self, data: bytes) -> bytes | None:
        # Budget: what this costs beyond one recv and one send must stay below what the server does to answer. What is
        # returned is sent at once.
        now_ns = clock_ns()
        expected, messages, after = self._turn
        if data != expected:
            self.settle()
            super().on_data(data)
            self._try_steady()
            return None
        latency_ns = now_ns - self._sent_ns
        shift = latency_ns.bit_length() - SUB_BUCKET_BITS
        self._latency[latency_ns >> shift << shift if shift > 0 else latency_ns] += self._window
        # The books first: sending may end in on_close, which settles them.
        self._sent_ns = now_ns
        self._turn = after or self._run.turns.at(self._send_position)
        self._windows += 1
        return messages

    @property
    def _send_position(self) -> int:
        """Where the next message is in the pool, also in the steady state."""
        return (self._send_at + self._windows * self._window) % self._run.pool.size

    def _try_steady(self) -> None:
        """Go to the fast path if one whole window is in flight, and sent at one time."""
        run = self._run
        groups = self._groups
        if run.budget is None and run.sending and len(groups) == 1 and groups[0][2] == run.window and not self._partial:
            if self._receive_offset != run.pool.reply_at[self._receive_at]:
                return  # within a reply
            self._turn = run.turns.at(self._receive_at)
            self._sent_ns = groups[0][1]
            self._windows = 0

    def settle(self) -> None:
        if self._turn is _NOT_STEADY:
            return
        run = self._run
        self._turn = _NOT_STEADY
        done = self._windows * run.window
        run.tally.sent += done
        run.tally.replies += done
        self._send_at = self._send_position
        self._windows = 0
        size = run.pool.size
        self._receive_at = (self._send_at - run.window) % size
        self._receive_offset = run.pool.reply_at[self._receive_at]
        self._groups.clear()
        self._groups.append([self._sent_ns, self._sent_ns, run.window])

    def _answered(self, count: int, now_ns: int) -> None:
        super()._answered(count, now_ns)
        granted = self._run.grant(count)
        if granted and not self.connection.closing:
            self._send(granted, now_ns, now_ns)


class OpenLoopClient(CheckedClient):
    """Sends when it is told to, however much is in flight."""

    __slots__ = ()

    def send(self, intended_ns: int, now_ns: int) -> bool:
        """Send one message now that was meant to be sent at ``intended_ns``. False if that can't be done."""
        if not self.opened or self.connection.closing or self.connection.unsent_bytes > MAX_UNSENT_BYTES:
            return False
        if len(self._groups) >= self._run.pool.size - 1:
            return False  # one more, and the expected replies would overtake themselves
        self._send(1, intended_ns, now_ns)
        return True

    @property
    def in_flight(self) -> int:
        return len(self._groups)  # each message is a group of its own

    def _answered(self, count: int, now_ns: int) -> None:
        run = self._run
        tally = run.tally
        tally.replies += count
        from_ns, to_ns = run.from_ns, run.to_ns
        latency, service = tally.latency, tally.service
        for _ in range(count):
            intended_ns, sent_ns, _ = self._groups.popleft()
            if from_ns <= intended_ns < to_ns:
                value_ns = now_ns - intended_ns
                shift = value_ns.bit_length() - SUB_BUCKET_BITS
                latency[value_ns >> shift << shift if shift > 0 else value_ns] += 1
                value_ns = now_ns - sent_ns
                shift = value_ns.bit_length() - SUB_BUCKET_BITS
                service[value_ns >> shift << shift if shift > 0 else value_ns] += 1


class ChurnClient(CheckedClient):
    """Connects, sends one window, closes when it is answered. A new one is made for each connection.

    Args:
        intended_ns: when it was meant to connect; latency counts from here, service time from the sending.
        done: called once it is over, well or not.
    """

    __slots__ = ("_done", "_intended_ns")

    def __init__(self, run: Run, position: int, intended_ns: int, done: Callable[[ChurnClient], None]) -> None:
        super().__init__(run, position)
        self._intended_ns = intended_ns
        self.connecting_ns = clock_ns()
        self._done = done

    def on_connect(self) -> None:
        super().on_connect()
        run = self._run
        # One that began in the warm-up doesn't count, so it isn't rationed.
        count = run.window if run.sending and self._intended_ns < run.from_ns else run.grant(run.window)
        if count:
            self._send(count, self._intended_ns, clock_ns())
        else:
            self.finish()

    def on_connect_error(self, error: ConnectError) -> None:
        super().on_connect_error(error)
        self._done(self)

    def on_close(self, error: Exception | None) -> None:
        super().on_close(error)
        self._done(self)

    def _answered(self, count: int, now_ns: int) -> None:
        super()._answered(count, now_ns)
        if not self._groups:
            # In order, and waiting for the server's end of it: so the server never has more of them than it should.
            self.finish()

    def _measure(self, intended_ns: int, sent_ns: int, count: int, now_ns: int) -> None:
        run = self._run
        if run.from_ns <= intended_ns < run.to_ns:
            record(run.tally.latency, now_ns - intended_ns, count)
            record(run.tally.service, now_ns - sent_ns, count)
