"""Who makes streams: servers for their handlers, and tasks that connect somewhere."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

from evloop.errors import ConnectionLostError
from evloop.protocols.streams import Stream
from evloop.protocols.tasks import Cancelled, Task, current_task, park

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    from evloop.errors import ConnectError

    Handler = Callable[[Stream], Coroutine[Any, Any, object]]


class HandledStream(Stream):
    """The stream of a served connection, whose handler is a task."""

    __slots__ = ("_handler", "_task")

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self._handler = handler
        self._task: Task | None = None

    def on_connect(self) -> bytes | None:
        connection = self.connection
        connection.hold()
        self._task = task = Task(connection.loop, self._handler(self), None, self._task_ended)
        self._attach(task)
        self._out = []
        return task.start()

    def _task_ended(self, task: Task) -> None:
        self._task = None
        connection, error = self.connection, task.error
        if error is None:
            self.close()
        elif isinstance(error, Cancelled):
            connection.abort()
        elif not (isinstance(error, ConnectionLostError) and self._lost):
            if not self._lost:
                connection.loop.log_exception(error, "connection %s aborted: its handler raised", connection.peer)
                connection.end_for(error if isinstance(error, Exception) else RuntimeError(repr(error)))
            else:
                connection.loop.log_exception(error, "connection %s: its handler raised", connection.peer)
        connection.release()

    def on_close(self, error: Exception | None) -> None:
        super().on_close(error)
        if self._task is not None and error is None:
            self._task.cancel()  # aborted: the server stops


class _Outgoing(Stream):
    """The stream of `connect`."""

    __slots__ = ("_opener", "failed")

    def __init__(self, opener: Callable[[], object]) -> None:
        super().__init__()
        self._opener = opener
        self.failed: ConnectError | None = None

    def on_connect(self) -> None:
        self._opener()

    def on_connect_error(self, error: ConnectError) -> None:
        self.failed = error
        self._opener()


async def connect(host: str, port: int, **options: Any) -> Stream:
    """Open a connection: a stream of one's own, to be closed when it is not needed any more.

    Args:
        options: as for `EventLoop.connect`.

    Raises:
        ConnectError: it could not be opened.
    """
    task = current_task()
    turn = task.turn
    stream = _Outgoing(lambda: task.loop.call_soon(task.step, turn))
    attempt = task.loop.connect(stream, host, port, **options)
    try:
        await park(task)
    except BaseException:
        attempt.cancel()
        if hasattr(stream, "connection"):
            stream.abort()
        raise
    if stream.failed is not None:
        raise stream.failed
    return stream
