"""Who makes streams: servers for their handlers, and tasks that connect somewhere."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

from evloop.core.loop import Loop
from evloop.errors import ConnectionLostError, FramingError, IncompleteReadError, LimitError
from evloop.log import WARNING, Logger
from evloop.protocols.streams import Stream
from evloop.protocols.tasks import Cancelled, Task, current_task, park

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    from evloop.core.timers import Timer
    from evloop.errors import ConnectError
    from evloop.net.connection import Connection

    Handler = Callable[[Stream], Coroutine[Any, Any, object]]

_log = Logger("evloop.server")

# How long cancelled handlers whose connection is gone have for what they do in ``finally``: write a last record, say.
CLEANUP_S = 3.0


class Handlers:
    """Makes the streams whose handler a coroutine function is: what a server has for a protocol factory then.

    Args:
        loop: the loop they live in.
        handler: the function.
        on_finished: called with the connection when a task has ended that went on after that was gone.

    Attributes:
        unfinished: the tasks that go on though their connection is gone, by that.
    """

    def __init__(
        self, loop: Loop, handler: Handler, on_finished: Callable[[Connection], object] = lambda connection: None
    ) -> None:
        self.loop = loop
        self.handler = handler
        self.unfinished: dict[Connection, Task] = {}
        self._on_finished = on_finished
        self._given_up: Timer | None = None  # when those are that were told to end

    def __call__(self) -> Stream:
        return _Handled(self)

    def abort(self) -> None:
        """Cancel those that go on without a connection; when they had their time, or this is called again, give up."""
        if not self.unfinished:
            return
        if self._given_up is not None:
            self._give_up()
            return
        for task in self.unfinished.values():
            task.cancel()
        self._given_up = self.loop.call_later(CLEANUP_S, self._give_up)

    def _give_up(self) -> None:
        if self.unfinished:
            _log.log(WARNING, "%d handlers have not ended, and are not waited for any longer", len(self.unfinished))
            given_up, self.unfinished = self.unfinished, {}
            for connection in given_up:
                self._on_finished(connection)

    def finished(self, connection: Connection) -> None:
        """The task of a connection has ended."""
        if self.unfinished.pop(connection, None) is not None:
            if not self.unfinished and self._given_up is not None:
                self._given_up.cancel()
            self._on_finished(connection)


class _Handled(Stream):
    """The stream of a connection whose handler is a task. The task is what the connection owes (`Connection.hold`):
    after the peer's half-close, and in a drain, it goes on until the task ends, within the server's time-outs.
    """

    __slots__ = ("_handlers", "_task")

    def __init__(self, handlers: Handlers) -> None:
        super().__init__()
        self._handlers = handlers
        self._task: Task | None = None

    def on_connect(self) -> bytes | None:
        connection = self.connection
        connection.hold()
        self._task = task = _HandlerTask(connection.loop, self._handlers.handler(self), self)
        self._attach(task)
        self._out = []
        task.start()
        return self._collected()

    def on_connect_error(self, error: ConnectError) -> None:
        self._handlers.loop.log_limited(WARNING, "%s", error)  # nobody else would be told

    def on_close(self, error: Exception | None) -> None:
        super().on_close(error)
        if self._task is not None:
            self._handlers.unfinished[self.connection] = self._task
        else:
            self._lost = True  # not its own handler's error, in whose traceback this stream is

    def ended(self, task: Task, error: BaseException | None) -> None:
        """The handler has returned or raised."""
        self._task = None
        connection = self.connection
        if error is None:
            self.close()
        elif isinstance(error, Cancelled):
            connection.abort()
        else:
            self._failed(connection, error)
        task.error = None  # all was said of it; from Python 3.12 on its traceback leads to the task
        connection.release()
        self._handlers.finished(connection)

    def _failed(self, connection: Connection, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup) and self._is_of_the_peer(error):
            error = error.exceptions[0]  # the others of the task group say the same, or follow from it
        lost = bool(self._lost)
        if isinstance(error, ConnectionLostError) and lost:
            return  # it could not but fail
        if isinstance(error, IncompleteReadError) and self._ended:
            self.close()  # the peer has left in the middle of something: its affair
        elif isinstance(error, (LimitError, FramingError)):  # what the peer has sent
            connection.loop.log_limited(WARNING, "connection %s ended: %s", connection.peer, error)
            connection.end_for(error)
        else:
            what = "its handler raised" if lost else "aborted: its handler raised"
            connection.loop.log_exception(error, f"connection %s {what}", connection.peer)
            connection.end_for(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    def _is_of_the_peer(self, error: BaseException) -> bool:
        """Whether what a handler has raised comes of what its peer has sent or done."""
        if isinstance(error, BaseExceptionGroup):
            return all(map(self._is_of_the_peer, error.exceptions))
        if isinstance(error, ConnectionLostError):
            return bool(self._lost)
        if isinstance(error, IncompleteReadError):
            return self._ended
        return isinstance(error, (LimitError, FramingError))


class _HandlerTask(Task):
    """The task of a connection."""

    __slots__ = ("_handled",)

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, Any, Any], handled: _Handled) -> None:
        super().__init__(loop, coroutine)
        self._handled: _Handled | None = handled

    def _ended(self) -> None:
        handled, self._handled = self._handled, None
        assert handled is not None
        handled.ended(self, self.error)


class _Outgoing(Stream):
    """The stream of `connect`."""

    __slots__ = ("_opener", "failed")

    keep_half_open = True  # whoever has opened it says when it is not needed any more

    def __init__(self, opener: Callable[[], object]) -> None:
        super().__init__()
        self._opener = opener
        self.failed: ConnectError | None = None

    def on_connect(self) -> None:
        self._opener()

    def on_connect_error(self, error: ConnectError) -> None:
        self.failed = error
        self._opener()


async def connect(*where: Any, **options: Any) -> Stream:
    """Open a connection: a stream of one's own, to be closed when it is not needed any more.

    ``async with await connect(host, port) as stream:`` closes it.

    Args:
        where, options: as for `EventLoop.connect`.

    Raises:
        ConnectError: it could not be opened.
    """
    task = current_task()
    task.check_cancelled()
    loop, turn = task.loop, task.turn
    stream = _Outgoing(lambda: loop.call_soon(task.step, turn))
    attempt = loop.connect(stream, *where, **options)
    try:
        await park(task)
    except BaseException:
        attempt.cancel()
        stream.abort()
        raise
    finally:
        del stream._opener  # it refers to this frame
    if stream.failed is not None:
        raise stream.failed
    return stream
