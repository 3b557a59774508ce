"""The event loop: one thread, one pass after another.

Theory of operation
-------------------
A pass has six steps, always in this order::

    1. poll         wait until a descriptor is ready, a timer is due, or a call is queued; then read the clock, once
    2. handlers     each ready descriptor's handler runs once: one recv each, so nobody starves; a reply leaves at once
    3. calls        those queued by `call_soon` before this step; those that they queue run in the next pass
    4. timers       those that were due when the wait ended
    5. writes       what was written in other ways is sent, in one piece for each connection
    6. closing      descriptors of connections that ended in this pass are closed

The order has reasons. A reply leaves while all that belongs to its connection is still in the caches (2). A call that
queues itself again doesn't keep the loop from its sockets (3). What a handler writes bit by bit, or to others, and what
calls and timers write, is collected first, and leaves before the pass ends, even if it is the last one (5). And a
descriptor is closed only when every event of the pass has been handled. So its number can't be given to a new
connection while an old event for it is still in the list (6).

A signal or another thread wakes the loop from poll by a byte on a socket pair. The byte itself means nothing; what to
do stands in a queue. So when the pair is full, one byte less makes no difference.

An exception in a handler is handled by its connection (see `evloop.net.connection`); one raised by a queued call or a
timer is logged. What the loop itself raises is a bug and propagates.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from collections.abc import Callable

from evloop.core.memory import MemoryReserve
from evloop.core.poller import POLL_MAX_EVENTS, READ, Poller
from evloop.core.running import running
from evloop.core.signals import Signals
from evloop.core.timers import Timer, TimerQueue
from evloop.core.watchdog import Watchdog
from evloop.log import ERROR, WARNING, Logger
from evloop.ratelimit import LimitedLogger

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any, Protocol, Self

    class Flushable(Protocol):
        """Something that collects what is written and sends it when it is asked to."""

        def flush(self) -> None: ...

    class Cancellable(Protocol):
        """Something under way that can be given up."""

        def cancel(self) -> None: ...


_log = Logger("evloop")

# A wait is never longer, whatever the timers say: some selectors overflow on a time-out of weeks.
_MAX_WAIT_S = 86400.0
# A timer that is later than this is not judged by what was ready before: the process did not run for a while.
_OVERRUN_S = 0.02
# How long a worst lag is remembered, at least; at most twice that.
LAG_WINDOW_S = 60.0


class Loop:
    """What waits: descriptors, calls, timers and signals in one thread. Use it as a context manager, or `close` it.

    Programs use `evloop.EventLoop`, which is this and opens connections, too.

    All methods but `call_soon_threadsafe` belong to the thread that runs it.

    Args:
        selector: the selector to use; the loop owns and closes it. Default: ``selectors.DefaultSelector()``.
        clock: a monotonic clock in seconds. The wall clock is never looked at.
        slow_pass_s: a pass that takes longer is counted and logged, with what kept it (see `evloop.core.watchdog`,
            which uses SIGALRM); None to do without.

    Attributes:
        clock: the clock itself.
        now: the moment this pass began, in seconds of the clock. Shared by all that happens in the pass.
        poller: readiness by descriptor.
        pending_writes: what has something to send at the end of this pass: its ``flush()`` is called then, once
            for each time that it is in the list.
        passes: how many passes there have been.
        task: the coroutine that is running, for whoever runs some (`evloop.protocols.tasks`); else None.
        waiting: True while it waits for something to do.
        unwatched: set by the watchdog when it has stopped looking, as nothing happens.
        slow_passes: how many took longer than ``slow_pass_s``.
        memory: what is done when memory runs out, and who can give some up.
        slowest: how many seconds the slowest pass took, and what took most of them; None if no pass was slow.
    """

    def __init__(
        self,
        *,
        selector: selectors.BaseSelector | None = None,
        clock: Callable[[], float] = time.monotonic,
        slow_pass_s: float | None = None,
    ) -> None:
        self.poller = Poller(selector)
        self.pending_writes: list[Flushable] = []
        self.now = clock()
        self.clock = clock
        self.passes = 0
        self.waiting = False
        self.task: Any = None
        self.unwatched = False
        self.slow_passes = 0
        self.memory = MemoryReserve()
        self._worst_s = self._worst_before_s = 0.0  # the longest pass of this minute, and of the one before
        self._lag_window_ends = self.now + LAG_WINDOW_S
        self.slowest: tuple[float, str] | None = None
        self._slow_pass_s = slow_pass_s
        self._watchdog: Watchdog | None = None
        self._timers = TimerQueue()
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._closing: list[socket.socket] = []
        self._log = LimitedLogger(_log, clock, call_later=self.call_later)
        self._pass_ended = self.now
        self._stopping = False
        self._running = False
        self._closed = False
        self._wakeup_reader, self._wakeup_writer = self._wakeup_pair()
        self._wakeup_reader.setblocking(False)
        self._wakeup_writer.setblocking(False)
        self._signals = Signals(self._wakeup_writer.fileno())
        self.poller.register(self._wakeup_reader.fileno(), READ, self._drain_wakeup)

    # ------------------------------------------------------------------ running

    def run(self) -> None:
        """Run passes until `stop` is called.

        Raises:
            RuntimeError: the loop is running already, or closed.
        """
        if self._running or self._closed:
            raise RuntimeError("this loop is closed" if self._closed else "this loop is running already")
        self._running = True
        outer, running.loop = running.loop, self
        self._pass_ended = self.clock()
        if self._slow_pass_s is not None:
            self._watchdog = Watchdog(self, self._slow_pass_s)
        try:
            while not self._stopping:
                try:
                    self._run_pass()
                except MemoryError:
                    self.waiting = False
                    self._pass_ended = self.clock()
                    if not self.memory.make_room():
                        raise  # else what was left undone of the pass is done in the next one
        finally:
            self._running = False
            self._stopping = False
            running.loop = outer
            if self._watchdog is not None:
                self._watchdog.stop()
                self._watchdog = None

    def stop(self) -> None:
        """Make `run` return at the end of this pass, when what was written has been given to the kernel.

        What a kernel does not take stays unsent: to wait for that, drain the server first. To be called in the loop's
        thread, e.g. from a callback.
        """
        self._stopping = True

    def _run_pass(self) -> None:
        # A server that is not busy has a message or two in each pass, so what a pass costs they cost: no call here that
        # can be spared.
        due = self._timers.next_due()
        timeout_s: float | None = None
        if self._calls or self.pending_writes or self._stopping:  # pending: written because of the last pass's writes
            timeout_s = 0
        elif due is not None:
            timeout_s = due - self._pass_ended
            if timeout_s < 0:
                timeout_s = 0
            elif timeout_s > _MAX_WAIT_S:
                timeout_s = _MAX_WAIT_S
        self.waiting = True
        events = self.poller.poll(timeout_s)
        self.waiting = False
        if self.unwatched:
            self._watch_again(events)
        self.passes += 1
        self.now = self.clock()

        handlers = self.poller.handlers
        for fd, _ in events:
            try:
                handler = handlers[fd]
            except KeyError:
                continue  # gone since the poll: closed by another handler of this pass
            handler()

        if self._calls:
            for _ in range(len(self._calls)):
                self._run_call(*self._calls.popleft())

        if due is not None and due <= self.now:
            if self.now - due > _OVERRUN_S:
                self._look_again()
            if self.now >= self._lag_window_ends:
                self._begin_lag_window()
            newest = self._timers.newest  # those that they add wait for the next pass
            while (timer := self._timers.pop_due(self.now, newest)) is not None:
                self._run_call(*timer)

        if self.pending_writes:
            self.flush_writes()

        if self._closing:
            for sock in self._closing:
                sock.close()
            self._closing.clear()

        self._pass_ended = self.clock()
        lag_s = self._pass_ended - self.now
        if lag_s > self._worst_s:
            self._worst_s = lag_s
        if self._slow_pass_s is not None and lag_s > self._slow_pass_s:
            self._pass_was_slow(lag_s)

    def flush_writes(self) -> None:
        """Send what was written so far in this pass: step 5, for a caller who can't wait for it."""
        # A new list: what is written again because of this flush is flushed in the next pass, so this comes to an end.
        pending, self.pending_writes = self.pending_writes, []
        try:
            for one in pending:
                one.flush()
        except MemoryError:
            self.pending_writes += pending  # flushing twice does no harm
            raise

    def _look_again(self) -> None:
        """Timers are late, as the process did not run: look at what is ready before a time-out is judged."""
        handlers = self.poller.handlers
        for _ in range(1 + len(handlers) // POLL_MAX_EVENTS):  # one poll returns so many at most, in turn
            for fd, _ in self.poller.poll(0):
                handler = handlers.get(fd)
                if handler is not None:
                    handler()

    def _watch_again(self, events: list[tuple[int, Any]]) -> None:
        # A signal alone is likely to be the monitor's own: one that means something has queued a call.
        if self._calls or [fd for fd, _ in events] != [self._wakeup_reader.fileno()]:
            self.unwatched = False
            assert self._watchdog is not None  # who else said so?
            self._watchdog.watch()

    def _pass_was_slow(self, lag_s: float) -> None:
        assert self._watchdog is not None
        what = self._watchdog.found_in(self.passes)
        self.slow_passes += 1
        if self.slowest is None or lag_s > self.slowest[0]:
            self.slowest = (lag_s, what)
        self._log.log(WARNING, "the loop was blocked for %.3f s by %s", lag_s, what)

    @property
    def timers(self) -> int:
        """How many timers are still to fire."""
        return len(self._timers)

    @property
    def worst_lag_s(self) -> float:
        """The longest time, in seconds, that a pass has taken in the last minute or two.

        What became ready just after that pass began had to wait so long. Reading it changes nothing. (A new minute
        begins only when a timer fires; a server's sweep is one.)
        """
        return max(self._worst_s, self._worst_before_s)

    def _begin_lag_window(self) -> None:
        stale = self.now >= self._lag_window_ends + LAG_WINDOW_S
        self._worst_before_s = 0.0 if stale else self._worst_s
        self._worst_s = 0.0
        self._lag_window_ends = self.now + LAG_WINDOW_S

    def _run_call(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            callback(*args)
        except Exception as error:
            self.log_exception(error, "call of %s raised", getattr(callback, "__qualname__", callback))

    def close(self) -> None:
        """Give back descriptors and signal handlers. Connections that are still open are not closed: close their
        server.

        Raises:
            RuntimeError: the loop is running.
        """
        if self._running:
            raise RuntimeError("stop the loop before closing it")
        if self._closed:
            return
        self._closed = True
        self._signals.remove_all()
        for sock in self._closing:
            sock.close()
        self.poller.close()
        self._wakeup_reader.close()
        self._wakeup_writer.close()
        self._log.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ------------------------------------------------------------------ calls and timers

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Call ``callback(*args)`` in this pass if it has not come to its calls yet, else in the next one."""
        self._calls.append((callback, args))

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call ``callback(*args)`` in ``delay_s`` seconds, never earlier.

        Returns:
            the timer, whose ``cancel()`` keeps it from happening.
        """
        return self._timers.add(self.clock() + delay_s, callback, *args)

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        """Like `call_soon`, from any thread: wakes the loop up."""
        self._calls.append((callback, args))
        self._wake_up()

    def _wakeup_pair(self) -> tuple[socket.socket, socket.socket]:
        return socket.socketpair()

    def _wake_up(self) -> None:
        try:
            self._wakeup_writer.send(b"\0")
        except OSError:
            pass  # full: the loop is about to wake up anyway. Closed: there is nobody to wake.

    def _drain_wakeup(self) -> None:
        try:
            self._wakeup_reader.recv(4096)
        except OSError:
            pass

    # ------------------------------------------------------------------ signals

    def add_signal_handler(self, signum: int, callback: Callable[..., object], *args: Any) -> None:
        """Have ``callback(*args)`` called in the loop, as by `call_soon`, when the process gets the signal.

        A signal that the process was started with blocked is unblocked: it would never come.

        Raises:
            RuntimeError: not in the main thread; Python handles signals only there.
            OSError, ValueError: the signal can't be handled.
        """
        self._signals.add(signum, lambda: self._calls.append((callback, args)))

    def remove_signal_handler(self, signum: int) -> None:
        """Restore what handled the signal before, unless the program has set a handler since.

        Nothing happens if it has no handler here.
        """
        self._signals.remove(signum)

    # ------------------------------------------------------------------ connections

    # What `evloop.eventloop.EventLoop` adds, the loop that programs use: declared for code that is given a loop.
    connect: Callable[..., Cancellable]
    run_in_thread: Callable[..., Cancellable]

    def close_later(self, sock: socket.socket) -> None:
        """Close a socket at the end of this pass. For connections; see step 6 above."""
        try:
            self._closing.append(sock)
        except MemoryError:
            sock.close()  # if its number is used again in this pass a stale event is a hint that comes to nothing

    # ------------------------------------------------------------------ logging

    def log_exception(self, error: BaseException, text: str, *args: object) -> None:
        """Log an exception with its traceback, unless there are too many like it (see `evloop.ratelimit`)."""
        self._log_safely(ERROR, text, args, error)
        if isinstance(error, MemoryError):
            self.call_soon(self.memory.make_room)

    def log_limited(self, level: int, text: str, *args: object) -> None:
        """Log a line, unless there are too many like it (see `evloop.ratelimit`)."""
        self._log_safely(level, text, args, None)

    def _log_safely(self, level: int, text: str, args: tuple[object, ...], error: BaseException | None) -> None:
        try:
            self._log.log(level, text, *args, exc_info=error)
        except MemoryError:
            pass  # the caller, who reports a fault, goes on handling it
