"""Which objects of an asyncore map are ready: epoll, where the old loop had select().

Theory of operation
-------------------
A program of asyncore keeps a *map*, a dict from descriptors to objects. Before each wait the old loop asked each object
whether it is `readable()` and `writable()`, and told select() all descriptors anew. The kernel can remember them: here
each map has an epoll, and only what changes is told to it.

An answer may depend on anything: on the buffer of another object, on the clock. Some programs even do their
housekeeping in `readable()`. So whoever overrides one of the two is asked before each wait, as ever. What the library
itself answers (`foreseen`) depends on the object alone: it is asked after each of its events, and when an attribute on
which the answer depends was looked at (`Touching`). An idle object of that kind is never asked.

Who is in the map is told by `add` and `drop`. As a map is a plain dict, which a program may change itself, it is also
compared with a copy before each wait. C does that, in some ten nanoseconds for an object.

epoll differs from select() in three ways that must not show. It refuses regular files, which are always ready. It
forgets a closed descriptor without a word, so a new socket of the same number is told to it again. And a forked child
shares it with its parent: what the child closes, the parent would not hear of any more. So a child gets a new one.

An epoll is itself a descriptor that can be waited for. That is how all the objects of a map are one handler of an
`evloop.EventLoop` (`Attachment`).
"""

from __future__ import annotations

import os
import select
import weakref
from collections.abc import Callable

from evloop.compat.events import expt, handle, read, readwrite, write
from evloop.core.loop import Loop
from evloop.core.poller import READ

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any, TypeVar

    SocketMap = dict[int, Any]
    Events = list[tuple[int, int]]
    Predicate = TypeVar("Predicate", bound=Callable[..., object])

if not hasattr(select, "epoll"):
    raise ImportError("evloop.compat needs epoll, which this system does not have: it works on Linux only")

IN, PRI, OUT = select.EPOLLIN, select.EPOLLPRI, select.EPOLLOUT
HUNG_UP = select.EPOLLHUP | select.EPOLLERR
INVALID = select.POLLNVAL  # epoll never says this; it is what poll() says of a descriptor that is not open


def foreseen(predicate: Predicate) -> Predicate:
    """Mark a ``readable`` or ``writable`` whose answer changes only at an event of its object, or by `Touching`."""
    vars(predicate)["foreseen"] = True
    return predicate


class Touching:
    """An attribute on which a `foreseen` predicate depends: who gets at it, or sets it, may change the answer.

    The value stands in ``vars(object)`` under its name; a predicate looks there, which touches nothing.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        if obj is None:
            return self
        watch = obj._watch
        if watch is not None:
            watch.touched.add(obj._fileno)
        try:
            return vars(obj)[self._name]
        except KeyError:
            raise AttributeError(f"{type(obj).__name__!r} object has no attribute {self._name!r}") from None

    def __set__(self, obj: Any, value: Any) -> None:
        watch = obj._watch
        if watch is not None:
            watch.touched.add(obj._fileno)
        vars(obj)[self._name] = value


class Watch:
    """What epoll watches for one map. Get it by `watch_of`.

    It lives as long as an object in the map holds it (in ``_watch``), or a loop that runs. Its epoll is open while it
    has something to watch, or a loop waits for it.

    Args:
        map: the map. Its objects have ``readable()``, ``writable()`` and ``accepting``, and the handlers of events.

    Attributes:
        attachment: the last loop that waits, or has waited, for it.
        touched: descriptors of those whose predicates may have another answer now. Add to it.
        unpolled: what is ready without a wait, with what it is ready for.
    """

    def __init__(self, map: SocketMap) -> None:
        self.map = map
        self.attachment: Attachment | None = None
        self.unpolled: dict[int, int] = {}
        self._epoll: select.epoll | None = None
        self._objects: SocketMap = {}  # the map, as far as it is known
        self._wanted: dict[int, int] = {}
        self._asked: SocketMap = {}  # before each wait
        self.touched: set[int] = set()

    def fileno(self) -> int:
        """What is readable when an object is ready."""
        return self._opened().fileno()

    @property
    def asks(self) -> bool:
        """Whether there is someone who must be asked now and then, even if nothing happens."""
        return bool(self._asked)

    # ------------------------------------------------------------------ who is in the map

    def add(self, fd: int, obj: Any) -> None:
        """The object is in the map now. If another one had that number, it is not."""
        self.drop(fd)
        self._objects[fd] = obj
        self.touched.add(fd)
        if getattr(obj, "_watch", self) is None:
            obj._watch = self

    def drop(self, fd: int) -> None:
        """It is not any more. To be called before its descriptor is closed. Safe to call twice."""
        obj = self._objects.pop(fd, None)
        self._asked.pop(fd, None)
        self.touched.discard(fd)
        if getattr(obj, "_watch", None) is self:
            obj._watch = None
        if self._wanted.pop(fd, 0) and self.unpolled.pop(fd, None) is None:
            self._forget(fd)
        if not self._objects:
            self.close_if_idle()

    def close_if_idle(self) -> None:
        """Close epoll if nobody is left. It is opened again when it is needed."""
        attached = self.attachment is not None and self.attachment.active
        if self._epoll is not None and not self._objects and not attached:
            self._epoll.close()
            self._epoll = None

    # ------------------------------------------------------------------ one wait

    def prepare(self) -> None:
        """Bring epoll up to date with the map and with the answers of its objects: before each wait."""
        if self.map != self._objects:
            self._compare()
        for fd, obj in list(self._asked.items()):
            if fd not in self.touched:
                self._ask(fd, obj)
        for fd in list(self.touched):
            self.touched.discard(fd)
            if fd in self._objects:
                obj = self._objects[fd]
                if is_foreseen(obj) and getattr(obj, "_watch", None) is self:
                    self._asked.pop(fd, None)
                else:
                    self._asked[fd] = obj
                self._ask(fd, obj)

    def poll(self, timeout_s: float | None) -> Events:
        """Wait until something is ready; None for ever. Returns descriptors and what they are ready for."""
        events: Events = self._opened().poll(0 if self.unpolled else -1 if timeout_s is None else timeout_s)
        return [*events, *self.unpolled.items()] if self.unpolled else events

    def deliver(self, events: Events, use_poll: bool) -> None:
        """Have the objects handle their events.

        Args:
            events: what `poll` has returned.
            use_poll: as after poll(): who is hung up on is told to close, whatever is left to be read. Else as after
                select(), which takes a hang-up for something to be read.
        """
        for fd, flags in events:
            obj, wanted = self._objects.get(fd), self._wanted.get(fd, 0)
            # Gone meanwhile? Another one that has got its number has wanted nothing yet.
            if not wanted or self.map.get(fd) is not obj:
                continue
            self.touched.add(fd)
            if use_poll or flags & INVALID:
                readwrite(obj, flags)
                continue
            if wanted & IN and flags & (IN | HUNG_UP):
                read(obj)
            if wanted & OUT and flags & (OUT | HUNG_UP) and self.map.get(fd) is obj:
                write(obj)
            if flags & PRI and self.map.get(fd) is obj:
                expt(obj)

    def _compare(self) -> None:
        # The program has changed the map itself, or nobody has looked at it before.
        for fd, obj in list(self._objects.items()):
            if self.map.get(fd) is not obj:
                self.drop(fd)
        for fd, obj in list(self.map.items()):
            if fd not in self._objects:
                self.add(fd, obj)

    def _ask(self, fd: int, obj: Any) -> None:
        try:
            # An exception is told to those who wait for anything: so did select(), which the old loop used by default.
            wanted = IN | PRI if obj.readable() else 0
            if obj.writable() and not obj.accepting:
                wanted |= OUT | PRI
        except BaseException as error:
            handle(obj, error)
            return
        if wanted != self._wanted.get(fd, 0) and self._objects.get(fd) is obj:
            self._wanted[fd] = wanted
            self._tell(fd, wanted)

    def _tell(self, fd: int, wanted: int) -> None:
        if self.unpolled.pop(fd, None) is None and not wanted:
            self._forget(fd)  # epoll would tell of its hang-up again and again
        if not wanted:
            return
        epoll = self._opened()
        try:
            try:
                epoll.modify(fd, wanted)
            except FileNotFoundError:
                epoll.register(fd, wanted)
        except PermissionError:
            self.unpolled[fd] = wanted & ~PRI  # a file
        except (OSError, ValueError):
            self.unpolled[fd] = INVALID

    def _forget(self, fd: int) -> None:
        if self._epoll is not None:
            try:
                self._epoll.unregister(fd)
            except (OSError, ValueError):
                pass  # closed already: epoll has forgotten it

    def _opened(self) -> select.epoll:
        if self._epoll is None:
            self._epoll = select.epoll()
        return self._epoll

    def renew(self) -> None:
        """In a child process: leave the parent's epoll alone, and begin anew."""
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        self._wanted.clear()
        self.unpolled.clear()
        self.touched.update(self._objects)


def is_foreseen(obj: Any) -> bool:
    """Whether neither of its predicates is overridden, in its class or in the object itself."""
    return getattr(obj.readable, "foreseen", False) and getattr(obj.writable, "foreseen", False)


# By the number of the map, as a dict can't be referred to weakly. A watch holds its map, so that number stays its own.
watches: weakref.WeakValueDictionary[int, Watch] = weakref.WeakValueDictionary()


def watch_of(map: SocketMap) -> Watch:
    """The watch of a map, made when it is needed: a program may close all descriptors first, to become a daemon."""
    watch = watches.get(id(map))
    if watch is None:
        watch = watches[id(map)] = Watch(map)
    return watch


def _renew_all() -> None:
    for watch in list(watches.values()):
        watch.renew()


os.register_at_fork(after_in_child=_renew_all)


class Attachment:
    """A map whose objects are served by a loop, beside all that is its own. A context manager; or `detach` it.

    The loop's poller is the only part that it touches: what waits is wrapped, so that predicates are asked before.

    Args:
        loop: the loop. It is neither run nor stopped by this.
        watch: the map's.
        timeout_s: the longest wait as long as somebody overrides a predicate, whose answer may change by itself.
        use_poll: as for `Watch.deliver`.

    Raises:
        RuntimeError: the map is attached already.
    """

    def __init__(self, loop: Loop, watch: Watch, timeout_s: float | None, use_poll: bool) -> None:
        if watch.attachment is not None and watch.attachment.active:
            raise RuntimeError("this map is attached to a loop already: detach it first")
        self._loop = loop
        self._watch = watch
        self._timeout_s = timeout_s
        self._use_poll = use_poll
        self._over: Callable[[], bool] | None = None
        self._fd = watch.fileno()
        self._poll_loop = loop.poller.poll
        loop.poller.register(self._fd, READ, self._handle_ready)
        loop.poller.poll = self._poll
        watch.attachment = self

    @property
    def active(self) -> bool:
        """Whether the loop waits for it: until it is detached, or the loop closed."""
        return self._loop.poller.handlers.get(self._fd) == self._handle_ready

    def stop_when(self, over: Callable[[], bool]) -> None:
        """Stop the loop when ``over()`` is true before a wait; none is longer than the time-out then."""
        self._over = over

    def detach(self) -> None:
        """Leave the loop. The objects stay open, and in their map. Safe to call twice."""
        if self.active:
            self._loop.poller.watch(self._fd, 0, self._handle_ready)
            self._watch.attachment = None
            self._watch.close_if_idle()
        if self._loop.poller.poll == self._poll:  # else another one was attached later, and goes on calling this
            self._loop.poller.poll = self._poll_loop

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.detach()

    def _poll(self, timeout_s: float | None) -> Events:
        if not self.active:
            return self._poll_loop(timeout_s)
        if self._over is not None and self._over():
            self._loop.stop()
            return self._poll_loop(0)
        self._watch.prepare()
        if self._watch.unpolled:
            timeout_s = 0
        elif self._timeout_s is not None and (self._watch.asks or self._over is not None):
            timeout_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        events = self._poll_loop(timeout_s)
        if self._watch.unpolled and self._fd not in dict(events):
            events = [*events, (self._fd, IN)]
        return events

    def _handle_ready(self) -> None:
        self._watch.deliver(self._watch.poll(0), self._use_poll)
