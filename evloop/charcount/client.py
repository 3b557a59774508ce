"""A blocking client of the character-count service, on one connection, with a bounded number of messages in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType

from evloop.charcount.connecting import DEFAULT_HOST, connect_wire, server_endpoint
from evloop.charcount.wire import (
    ClientTimeoutError,
    ConnectionLostError,
    Deadline,
    ReplyLines,
    ReplyTooLongError,
    UnexpectedReplyError,
)
from evloop.errors import ConnectError, EvloopError
from evloop.net.endpoint import Endpoint

__all__ = [
    "CharCountClient",
    "ClientTimeoutError",
    "ConnectError",
    "ConnectionLostError",
    "ReplyError",
    "ReplyTooLongError",
    "UnexpectedReplyError",
    "encode_message",
]

DEFAULT_TIMEOUT_S = 10.0

# In flight at most, so that memory stays flat: enough to keep both sides busy over a long round trip.
_WINDOW_BYTES = 65536
_WINDOW_MESSAGES = 4096

_LOST = "the server closed the connection before it had answered all messages"


class ReplyError(EvloopError):
    """The server answered a message with an error.

    Attributes:
        reply: what it answered, e.g. ``"ERR invalid-utf8 at byte 3"``.
        index: which message it was, counted from 0.
    """

    def __init__(self, reply: str, index: int) -> None:
        super().__init__(f"message {index + 1}: the server answered {reply!r}")
        self.reply = reply
        self.index = index


def encode_message(text: str | bytes) -> bytes:
    """A message as it goes over the wire in line framing.

    Args:
        text: the message; undecodable bytes of a command line (surrogate escapes) become those bytes again.

    Raises:
        ValueError: it holds LF, or ends in CR: in line framing these end a message and don't count.
    """
    message = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)
    if b"\n" in message:
        raise ValueError("a message cannot contain a line break (LF), which ends a message")
    if message.endswith(b"\r"):
        raise ValueError("a message cannot end in CR, which counts as part of the line break")
    return message + b"\n"


class CharCountClient:
    """A connection to a server in line framing. Use it as a context manager, or `close` it.

    Args:
        host, port: where the server listens: a name or an address, and a port (default: 12345); or in one argument an
            endpoint, or its text (``"unix:/run/x"``: see `evloop.net.endpoint`). Addresses of a name race.
        timeout_s: the longest wait for the connection, all addresses of the name together, and for the server to give a
            whole answer, or to take more of what is sent.

    Raises:
        ConnectError: the server can't be found or reached.
        ClientTimeoutError: it does not answer in time.
        EndpointError: there can't be an endpoint like that.
    """

    def __init__(
        self,
        host: str | Endpoint = DEFAULT_HOST,
        port: int | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._wire = connect_wire(server_endpoint(host, port), timeout_s)
        self._timeout_s = timeout_s
        self._deadline = Deadline(timeout_s)
        self._reply_lines = ReplyLines()
        self._received: deque[bytes] = deque()  # replies that have come and are not handed out
        self._in_use = False

    def close(self) -> None:
        """Close the connection. Safe to call twice."""
        self._wire.close()

    def __enter__(self) -> CharCountClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def count(self, text: str | bytes) -> int:
        """The server's count of the characters of one message.

        Raises:
            ValueError: the message can't be sent in line framing (see `encode_message`).
            ReplyError: the server answered an error.
            ConnectionLostError, ClientTimeoutError, ReplyTooLongError: there was no answer. The connection is closed.
            UnexpectedReplyError: the server sent more replies than it had to. The connection is closed.
        """
        (count,) = self.count_many([text])
        return count

    def count_many(self, texts: Iterable[str | bytes]) -> Iterator[int]:
        """The counts of many messages, in order, sent without waiting for each reply.

        Lazy both ways: takes ``texts`` as it goes, some thousands ahead of what it has yielded at most, and holds no
        more than that. An error in ``texts`` is raised when all texts before it are counted. When it ends early, it
        first waits for the replies that are still due, so the connection can be used again; but it closes the
        connection if they have not come in ``timeout_s``, or in an interrupt.

        Raises:
            RuntimeError: another `count_many` of this client has not ended.
            ValueError, ReplyError, ConnectionLostError, ClientTimeoutError, ReplyTooLongError, UnexpectedReplyError: as
                for `count`.
        """
        replies = self.replies(map(encode_message, texts))
        try:
            for index, reply in enumerate(replies):
                count = _parse_count(reply)
                if count is None:
                    raise ReplyError(reply.decode("utf-8", "replace"), index)
                yield count
        finally:
            replies.close()

    def replies(self, messages: Iterable[bytes]) -> Generator[bytes, None, None]:
        """Like `count_many`, but takes messages with their LF and yields each reply line as it came, errors too."""
        if self._in_use:
            raise RuntimeError("one count_many at a time: end the other one first")
        self._in_use = True
        source = iter(messages)
        due = 0  # replies that are to be handed out
        try:
            while True:
                batch, error = _take(source, _WINDOW_MESSAGES - due)
                if batch:
                    if not due:
                        self._check_silence()
                    self._send(b"".join(batch))
                    due += len(batch)
                # Refill when half of the window is answered: bigger batches than one message out, one in.
                last = error is not None or not batch
                while due > (0 if last else _WINDOW_MESSAGES // 2):
                    reply = self._next_reply()
                    due -= 1
                    yield reply
                if error is not None:
                    raise error
                if last:
                    return
        except (Exception, GeneratorExit):
            # Of the source, of the connection, which is closed then, or the caller has enough. That is what matters,
            # and not what goes wrong while the rest is awaited.
            try:
                self._skip(due)
            except EvloopError:
                pass
            raise
        except BaseException:
            self.close()  # an interrupt: no time to wait for what is due
            raise
        finally:
            self._in_use = False

    def _send(self, data: bytes) -> None:
        self._deadline.restart()
        unsent = memoryview(data)
        while unsent:
            sent = self._exchange(unsent, self._deadline)
            begin = len(data) - len(unsent)
            self._reply_lines.ask(data.count(b"\n", begin, begin + sent))
            unsent = unsent[sent:]

    def _next_reply(self) -> bytes:
        if not self._received:
            self._deadline.restart()  # the caller may have taken its time
            while not self._received:
                self._exchange(b"", self._deadline)
        return self._received.popleft()

    def _skip(self, due: int) -> None:
        """Take so many replies that nobody wants, within one time-out for all of them."""
        deadline = Deadline(self._timeout_s)
        deadline.start()
        for _ in range(due):
            while not self._received:
                self._exchange(b"", deadline)
            self._received.popleft()

    def _exchange(self, data: bytes | memoryview, deadline: Deadline) -> int:
        """Let the wire move, keep the replies that came, and return how much of ``data`` has left."""
        try:
            sent, received = self._wire.exchange(data, deadline)
            if sent:
                self._deadline.restart()
            else:
                self._keep(received)
        except BaseException:
            # Cut off in the middle of a message or of a reply: what came next would answer something else.
            self.close()
            raise
        return sent

    def _check_silence(self) -> None:
        """All is answered, so nothing can have come. It would be taken for the answer to what is sent next."""
        self._wire.check_open()
        received = self._wire.receive()
        if received is not None:
            try:
                self._keep(received)
            except EvloopError:
                self.close()
                raise

    def _keep(self, received: bytes) -> None:
        if not received:
            raise ConnectionLostError(_LOST)
        lines = self._reply_lines.feed(received)
        if lines:  # and not just a byte: the wait is for a whole answer
            self._deadline.restart()
            self._received.extend(line.removesuffix(b"\r") for line in lines.split(b"\n")[:-1])


def _parse_count(reply: bytes) -> int | None:
    """Digits, and before or after them spaces, which a template of the server's may add. None for anything else."""
    digits = reply.strip(b" ")
    try:
        return int(digits) if digits.isdigit() else None
    except ValueError:  # thousands of digits
        return None


def _take(source: Iterator[bytes], most: int) -> tuple[list[bytes], Exception | None]:
    """The next messages to send together: at most so many, and not many more bytes than a window's.

    An error of the source comes with the messages before it, which are to be answered first.
    """
    batch: list[bytes] = []
    size = 0
    try:
        while len(batch) < most and size < _WINDOW_BYTES:
            message = next(source, None)
            if message is None:
                break
            batch.append(message)
            size += len(message)
    except Exception as error:
        return batch, error
    return batch, None
