"""What an asyncore object is called with at an event, what a dispatcher does then, and what becomes of an exception."""

from __future__ import annotations

import os
import select
import socket
import sys
from errno import EBADF, ECONNABORTED, ECONNRESET, ENOTCONN, EPIPE, ESHUTDOWN
from types import TracebackType

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

# Whatever of these a socket says, its peer is gone. They were asyncore's, so programs may count on them; what other
# parts of evloop take for a disconnection is more (see `evloop.errors`).
DISCONNECTED = frozenset({ECONNRESET, ENOTCONN, ESHUTDOWN, ECONNABORTED, EPIPE, EBADF})


class ExitNow(Exception):
    """Raised by a handler to leave the loop."""


RERAISED = (ExitNow, KeyboardInterrupt, SystemExit)


def read(obj: Any) -> None:
    """Have an object handle that it can be read; if that raises, have it handle the error."""
    try:
        obj.handle_read_event()
    except BaseException as error:
        handle(obj, error)


def write(obj: Any) -> None:
    """Have an object handle that it can be written; if that raises, have it handle the error."""
    try:
        obj.handle_write_event()
    except BaseException as error:
        handle(obj, error)


def expt(obj: Any) -> None:
    """Have an object handle out-of-band data or an error of its socket; if that raises, have it handle the error."""
    try:
        obj.handle_expt_event()
    except BaseException as error:
        handle(obj, error)


def readwrite(obj: Any, flags: int) -> None:
    """Have an object handle all that poll() says of it in ``flags``, one after the other."""
    try:
        if flags & select.POLLIN:
            obj.handle_read_event()
        if flags & select.POLLOUT:
            obj.handle_write_event()
        if flags & select.POLLPRI:
            obj.handle_expt_event()
        if flags & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
            obj.handle_close()
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in DISCONNECTED:
            obj.handle_close()
        else:
            handle(obj, error)


def handle(obj: Any, error: BaseException) -> None:
    """Inside ``except``: have an object handle the error, unless it is one that ends the program or leaves the loop."""
    if isinstance(error, RERAISED):
        raise error
    obj.handle_error()


def compact_traceback() -> tuple[tuple[str, str, str], type[BaseException], BaseException, str]:
    """Inside ``except``: where it was raised (file, function, line), its type, itself, and the way there in one line.

    Raises:
        AssertionError: nothing is being handled.
    """
    error = sys.exc_info()[1]
    if error is None or error.__traceback__ is None:
        raise AssertionError("compact_traceback is for inside of except: nothing has been raised")
    frames = []
    step: TracebackType | None = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        frames.append((code.co_filename, code.co_name, str(step.tb_lineno)))
        step = step.tb_next
    return frames[-1], type(error), error, " ".join(f"[{file}|{name}|{line}]" for file, name, line in frames)


class EventHandlers:
    """The part of a dispatcher that events come to. What a program overrides is in the second half.

    Attributes:
        debug: whether more is said.
        connected, accepting, connecting: what the socket is at; ``closing`` is for the program.
        addr: the other end's address; a listener's own.
        ignore_log_types: what `log_info` says nothing of.
        socket: the socket, or what stands for it.
    """

    debug = False
    connected = False
    accepting = False
    connecting = False
    closing = False
    addr: Any = None
    ignore_log_types = frozenset({"warning"})
    socket: Any

    if TYPE_CHECKING:

        def accept(self) -> tuple[Any, Any] | None: ...
        def close(self) -> None: ...

    # ------------------------------------------------------------------ events, from the loop

    def handle_read_event(self) -> None:
        """It can be read: accept, or read. If that is how a connect has ended, it is connected first."""
        if self.accepting:
            self.handle_accept()
            return
        if self.connecting and not self.connected:
            self.handle_connect_event()
        self.handle_read()

    def handle_write_event(self) -> None:
        """It can be written. If that is how a connect has ended, it is connected first."""
        if self.accepting:
            return
        if self.connecting and not self.connected:
            self.handle_connect_event()
        self.handle_write()

    def handle_connect_event(self) -> None:
        """A connect has ended.

        Raises:
            OSError: it has failed.
        """
        error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        self.handle_connect()
        self.connected = True
        self.connecting = False

    def handle_expt_event(self) -> None:
        """Out-of-band data has come, or the socket has failed."""
        if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.handle_close()
        else:
            self.handle_expt()

    # ------------------------------------------------------------------ events, for the program

    def handle_read(self) -> None:
        """Override: something can be read, or the peer has ended, which `recv` finds out."""
        self.log_info("unhandled read event", "warning")

    def handle_write(self) -> None:
        """Override: something can be written."""
        self.log_info("unhandled write event", "warning")

    def handle_expt(self) -> None:
        """Override: out-of-band data has come."""
        self.log_info("unhandled incoming priority event", "warning")

    def handle_connect(self) -> None:
        """Override: it is connected."""
        self.log_info("unhandled connect event", "warning")

    def handle_accept(self) -> None:
        """A connection can be accepted: this does, and calls `handle_accepted`."""
        pair = self.accept()
        if pair is not None:
            self.handle_accepted(*pair)

    def handle_accepted(self, sock: Any, addr: Any) -> None:
        """Override: a connection was accepted, and is yours."""
        sock.close()
        self.log_info("unhandled accepted event", "warning")

    def handle_close(self) -> None:
        """Override: the peer is gone. Close it then, as this does."""
        self.log_info("unhandled close event", "warning")
        self.close()

    def handle_error(self) -> None:
        """A handler has raised something: this says so in a line, and calls `handle_close`."""
        _, kind, error, way = compact_traceback()
        try:
            name = repr(self)
        except Exception:
            name = f"<__repr__(self) failed for object at {id(self):#x}>"
        self.log_info(f"uncaptured python exception, closing channel {name} ({kind}:{error} {way})", "error")
        self.handle_close()

    def log(self, message: object) -> None:
        """Write a line to stderr."""
        sys.stderr.write(f"log: {message}\n")

    def log_info(self, message: object, type: str = "info") -> None:
        """Print a line, unless it is of a type in ``ignore_log_types``."""
        if type not in self.ignore_log_types:
            print(f"{type}: {message}")
