"""asyncore's interface, on epoll: ``import evloop.compat.asyncore as asyncore``, and the program runs as before.

What each name does is as it was in Python 3.11, whose tests this passes. Two things are new. `attach` serves the
dispatchers of a map in an `evloop.EventLoop`, beside its servers and connections; so a program moves one dispatcher at
a time. And `loop` and `poll` have no limit of 1024 descriptors, and don't ask dispatchers that leave ``readable`` and
``writable`` as they are (see `evloop.compat.watching`). docs/from-asyncore.md says what to replace each name with.
"""

from __future__ import annotations

import os
import socket
from errno import EAGAIN, EALREADY, EBADF, ECONNABORTED, EINPROGRESS, EINVAL, EISCONN, ENOTCONN, EWOULDBLOCK, errorcode

from evloop.compat import events, files
from evloop.compat.events import DISCONNECTED, RERAISED, EventHandlers
from evloop.compat.watching import Attachment, Touching, Watch, foreseen, watch_of, watches
from evloop.core.loop import Loop

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    from evloop.compat.watching import SocketMap

# Names of asyncore that live elsewhere now. Programs use those with an underscore, too.
ExitNow = events.ExitNow
read, write, readwrite, _exception = events.read, events.write, events.readwrite, events.expt
compact_traceback = events.compact_traceback
file_wrapper = files.file_wrapper
_DISCONNECTED, _reraised_exceptions = DISCONNECTED, RERAISED
_strerror = os.strerror

socket_map: SocketMap = {}

# ---------------------------------------------------------------------- waiting


def poll(timeout: float | None = 0.0, map: SocketMap | None = None) -> None:
    """Wait once, for so many seconds at most, None for ever; and have whoever is ready handle it."""
    _wait(timeout, socket_map if map is None else map, False)


def poll2(timeout: float | None = 0.0, map: SocketMap | None = None) -> None:
    """The same, with ``handle_close`` at once when a peer hangs up, even if it has left something to be read."""
    _wait(timeout, socket_map if map is None else map, True)


poll3 = poll2


def _wait(timeout: float | None, map: SocketMap, use_poll: bool) -> None:
    if map:
        watch = watch_of(map)
        watch.prepare()
        watch.deliver(watch.poll(timeout), use_poll)


def loop(
    timeout: float | None = 30.0,
    use_poll: bool = False,
    map: SocketMap | None = None,
    count: int | None = None,
    *,
    loop: Loop | None = None,
) -> None:
    """Wait again and again, until the map is empty, or ``count`` times.

    Args:
        timeout: the longest wait in seconds.
        use_poll: wait as `poll2` does.
        map: descriptors and dispatchers. Default: `socket_map`.
        loop: run this `evloop.EventLoop` meanwhile, with all that is in it; ``count`` are its passes then. What stops
            it ends this as well.
    """
    map = socket_map if map is None else map
    if loop is None:
        wait = poll2 if use_poll else poll
        while map and (count is None or count > 0):
            wait(timeout, map)
            count = None if count is None else count - 1
    elif map and (count is None or count > 0):
        end = None if count is None else loop.passes + count
        with attach(loop, map, timeout, use_poll) as attachment:
            attachment.stop_when(lambda: not map or (end is not None and loop.passes >= end))
            loop.run()


def attach(
    loop: Loop, map: SocketMap | None = None, timeout: float | None = 30.0, use_poll: bool = False
) -> Attachment:
    """Have an `evloop.EventLoop` serve the dispatchers of a map, those added later too; somebody else runs the loop.

    What a ``handle_error`` raises, and `ExitNow`, leave the loop's ``run``, as they left `loop`.

    Args:
        loop: the loop, running already or not.
        map, timeout, use_poll: as for `loop`.

    Returns:
        what can be detached; the dispatchers stay in the map and open then. Close them with `close_all`.

    Raises:
        RuntimeError: the map is attached already.
    """
    return Attachment(loop, watch_of(socket_map if map is None else map), timeout, use_poll)


def close_all(map: SocketMap | None = None, ignore_all: bool = False) -> None:
    """Close all that is in a map, and empty it. ``ignore_all``: whatever some ``close`` raises."""
    map = socket_map if map is None else map
    for obj in list(map.values()):
        try:
            obj.close()
        except RERAISED:
            raise
        except BaseException as error:
            if not ignore_all and getattr(error, "errno", None) != EBADF:
                raise
    map.clear()


# ---------------------------------------------------------------------- dispatchers


class dispatcher(EventHandlers):
    """A socket and what happens on it. Override what you need; ``map`` is where it is served, default `socket_map`."""

    _fileno: Any  # a descriptor; None while it has no socket, or is in no map
    _watch: Watch | None = None  # set by it

    def __init__(self, sock: Any = None, map: SocketMap | None = None) -> None:
        self._map = socket_map if map is None else map
        self._fileno = None
        if sock is None:
            self.socket = None
            return
        sock.setblocking(False)
        self.set_socket(sock, map)
        self.connected = True
        try:
            self.addr = sock.getpeername()
        except OSError as error:
            if error.errno not in (ENOTCONN, EINVAL):
                self.del_channel(map)
                raise
            self.connected = False  # it will be, or listens

    def __repr__(self) -> str:
        words = [f"{type(self).__module__.removeprefix('evloop.compat.')}.{type(self).__qualname__}"]
        if self.accepting and self.addr:
            words.append("listening")
        elif self.connected:
            words.append("connected")
        if self.addr is not None:
            pair = isinstance(self.addr, tuple) and len(self.addr) == 2
            words.append(f"{self.addr[0]}:{self.addr[1]}" if pair else repr(self.addr))
        return f"<{' '.join(words)} at {id(self):#x}>"

    def add_channel(self, map: SocketMap | None = None) -> None:
        """Put it into a map."""
        map = self._map if map is None else map
        map[self._fileno] = self
        watch = watches.get(id(map))
        if watch is not None:
            watch.add(self._fileno, self)

    def del_channel(self, map: SocketMap | None = None) -> None:
        """Take it out of a map. Its socket stays open."""
        map = self._map if map is None else map
        watch = watches.get(id(map))
        if watch is not None:
            watch.drop(self._fileno)
        map.pop(self._fileno, None)
        self._fileno = None

    def create_socket(self, family: int = socket.AF_INET, type: int = socket.SOCK_STREAM) -> None:
        """Make it a new socket, in its map."""
        self.family_and_type = family, type
        sock = socket.socket(family, type)
        sock.setblocking(False)
        self.set_socket(sock)

    def set_socket(self, sock: Any, map: SocketMap | None = None) -> None:
        """Give it a socket, which it owns from now on, in a map."""
        self.socket = sock
        self._fileno = sock.fileno()
        self.add_channel(map)

    def set_reuse_addr(self) -> None:
        """Let it bind an address that was in use until just now."""
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError:
            pass

    # ------------------------------------------------------------------ asked before a wait

    @foreseen
    def readable(self) -> object:
        """Whether it wants to know when something can be read, or accepted."""
        return True

    @foreseen
    def writable(self) -> object:
        """Whether it wants to know when something can be written, or it is connected."""
        return True

    # ------------------------------------------------------------------ its socket

    def listen(self, num: int) -> None:
        """Have it accept connections."""
        self.accepting = True
        self.socket.listen(num)

    def bind(self, addr: Any) -> None:
        """Give it a local address."""
        self.addr = addr
        self.socket.bind(addr)

    def connect(self, address: Any) -> None:
        """Begin to connect it. ``handle_connect`` is called at once, or when it is done."""
        self.connected = False
        self.connecting = True
        if self._watch is not None:
            self._watch.touched.add(self._fileno)
        error = self.socket.connect_ex(address)
        if error not in (0, EISCONN, EINPROGRESS, EALREADY, EWOULDBLOCK):
            raise OSError(error, errorcode[error])
        self.addr = address
        if error in (0, EISCONN):
            self.handle_connect_event()

    def accept(self) -> tuple[Any, Any] | None:
        """The next connection and its address; None if there is none (any more)."""
        try:
            conn, addr = self.socket.accept()
        except OSError as error:
            if error.errno in (EWOULDBLOCK, EAGAIN, ECONNABORTED):
                return None
            raise
        return conn, addr

    def send(self, data: Any) -> Any:
        """Send what the kernel takes now. Returns how much that was."""
        try:
            return self.socket.send(data)
        except OSError as error:
            if error.errno in DISCONNECTED:
                self.handle_close()
            elif error.errno != EWOULDBLOCK:
                raise
            return 0

    def recv(self, buffer_size: int) -> bytes:
        """What has come, up to that much. Nothing at its end, of which ``handle_close`` has heard then.

        Raises:
            BlockingIOError: nothing has come.
        """
        try:
            data: bytes = self.socket.recv(buffer_size)
        except OSError as error:
            if error.errno not in DISCONNECTED:
                raise
            data = b""
        if not data:
            self.handle_close()
        return data

    def close(self) -> None:
        """Take it out of its map, and close its socket. Safe to call twice."""
        self.connected = False
        self.accepting = False
        self.connecting = False
        self.del_channel()
        if self.socket is not None:
            try:
                self.socket.close()
            except OSError as error:
                if error.errno not in (ENOTCONN, EBADF):
                    raise


class dispatcher_with_send(dispatcher):
    """A dispatcher that keeps what the kernel does not take, in ``out_buffer``."""

    out_buffer: Any = Touching()

    def __init__(self, sock: Any = None, map: SocketMap | None = None) -> None:
        super().__init__(sock, map)
        self.out_buffer = b""

    def initiate_send(self) -> None:
        """Send what the kernel takes now."""
        sent = dispatcher.send(self, self.out_buffer[:65536])
        self.out_buffer = self.out_buffer[sent:]

    def handle_write(self) -> None:
        self.initiate_send()

    @foreseen
    def writable(self) -> object:
        return not self.connected or len(vars(self)["out_buffer"])

    def send(self, data: Any) -> None:
        """Send all of it, sooner or later."""
        if self.debug:
            self.log_info(f"sending {data!r}")
        self.out_buffer = self.out_buffer + data
        self.initiate_send()


class file_dispatcher(dispatcher):
    """A dispatcher of a pipe, a terminal or a file: of a duplicate of its descriptor."""

    def __init__(self, fd: Any, map: SocketMap | None = None) -> None:
        super().__init__(None, map)
        self.connected = True
        fd = fd.fileno() if hasattr(fd, "fileno") else fd
        self.set_file(fd)
        os.set_blocking(fd, False)  # of the duplicate too: they share this

    def set_file(self, fd: int) -> None:
        """Give it a duplicate of a descriptor, in its map."""
        self.socket = file_wrapper(fd)
        self._fileno = self.socket.fileno()
        self.add_channel()
