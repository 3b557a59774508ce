"""A blocking client of the character-count service.

Theory of operation
-------------------
A client that writes all its messages and then reads all the replies works in every test and hangs in real life: once
the buffers of both kernels are full of replies nobody reads, the server stops reading, and the client's send never
returns. So `Wire` never waits for one direction only: while it has something to send it also takes what comes in. All
else here is built on it, with a bounded number of messages in flight.
"""

from __future__ import annotations

import selectors
import socket
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType

from evloop.errors import ConnectError, EvloopError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 12345
DEFAULT_TIMEOUT_S = 10.0

_RECV_BYTES = 65536
# In flight at most, so that memory stays flat: enough to keep both sides busy over a long round trip.
_WINDOW_BYTES = 65536
_WINDOW_MESSAGES = 4096
# A reply is a few bytes; with a template of the server's it may be longer, but not for ever. Not less than what is
# received at once.
_MAX_REPLY_BYTES = 65536

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


class ReplyTooLongError(EvloopError):
    """The server sends no line end where one is long due. What follows can't be understood."""


class ConnectionLostError(EvloopError):
    """The connection ended before all messages were answered."""


class ClientTimeoutError(EvloopError, TimeoutError):
    """The server did not answer in time."""


def open_socket(host: str, port: int, timeout_s: float) -> socket.socket:
    """A connected socket with that time-out set. The caller closes it.

    Raises:
        ConnectError: in one line, what happened and what to do.
        ClientTimeoutError: no answer in ``timeout_s`` seconds.
    """
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        sock = socket.create_connection((_encode_host(host), port), timeout=timeout_s)  # type: ignore[arg-type]
    except TimeoutError:
        raise ClientTimeoutError(f"cannot connect to {target}: no answer in {timeout_s:g} s") from None
    except ConnectionRefusedError:
        raise ConnectError(f"cannot connect to {target}: nothing listens there; start charcount-server") from None
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConnectError(f"cannot resolve {host!r}: {reason}; check --host") from None
    except OSError as error:
        raise ConnectError(f"cannot connect to {target}: {error.strerror or error}") from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _encode_host(host: str) -> str | bytes:
    """The host as `socket.getaddrinfo` takes it, in bytes where they are the same in IDNA.

    For a str it loads the IDNA codec, which takes longer than to connect and get an answer.
    """
    plain = host.isascii() and all(0 < len(label) < 64 for label in host.split("."))
    return host.encode() if plain else host


class Wire:
    """Both directions of one socket at once. Owns the socket.

    Args:
        sock: a connected socket.
        timeout_s: the longest wait for the socket to move at all, in either direction.

    Attributes:
        broken: nothing can be sent any more; there may still be something to read.
        closed: `close` was called.
    """

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._timeout_s = timeout_s
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)
        self.broken = False
        self.closed = False

    def exchange(self, data: bytes | memoryview) -> tuple[int, bytes]:
        """Wait until some of ``data`` has left or something has come; with no data, until something has come.

        Returns:
            how many bytes of ``data`` have left, and what has come; with neither, the server has ended the stream.

        Raises:
            ClientTimeoutError: neither happened in time.
            ConnectionLostError: the wire is closed.
        """
        if self.closed:
            raise ConnectionLostError("the connection is closed: by close(), or after an error or an interrupt")
        while True:
            # Nearly always the socket can be written at once, so try before asking.
            sent = self.send(data) if data else 0
            if sent:
                return sent, b""
            writing = selectors.EVENT_WRITE if data and not self.broken else 0
            self._selector.modify(self._socket, selectors.EVENT_READ | writing)
            ready = self._selector.select(self._timeout_s)
            if not ready:
                raise ClientTimeoutError(f"no answer from the server in {self._timeout_s:g} s; see --timeout")
            if ready[0][1] & selectors.EVENT_READ:
                received = self.receive()
                if received is not None:
                    return 0, received

    def send(self, data: bytes | memoryview) -> int:
        """Send what the socket takes now, and return how much that was."""
        try:
            return 0 if self.broken else self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # The server may have said why before it hung up: what it sent is still to be read.
            self.broken = True
            return 0

    def receive(self) -> bytes | None:
        """What has come by now: None for nothing, empty at the end of the stream, also if the server has reset it."""
        try:
            return self._socket.recv(_RECV_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def fileno(self) -> int:
        """The socket's descriptor, for whoever waits for it together with others."""
        return self._socket.fileno()

    def end(self) -> None:
        """Say that nothing more will be sent."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # reset; the next read says so

    def close(self) -> None:
        """Close the socket. Safe to call twice."""
        self.closed = True
        self._selector.close()
        self._socket.close()


class ReplyLines:
    """Cuts what comes from the server into lines, and holds the beginning of the next one, of bounded length.

    Attributes:
        unfinished: what has come of the next line.
    """

    def __init__(self) -> None:
        self.unfinished = b""

    def feed(self, received: bytes) -> bytes:
        """The whole lines that end in what was received, with their LFs.

        Raises:
            ReplyTooLongError: a line is longer than a reply can be, ended or not.
        """
        # Only the first line can be too long: the others began and ended in what was received at once.
        end = received.find(b"\n")
        if len(self.unfinished) + (len(received) if end < 0 else end) > _MAX_REPLY_BYTES:
            raise ReplyTooLongError(
                f"the server sent more than {_MAX_REPLY_BYTES} bytes without a line end: "
                "is that a charcount-server in line framing?"
            )
        whole, newline, rest = (self.unfinished + received).rpartition(b"\n")
        self.unfinished = rest
        return whole + newline


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
        host, port: where the server listens.
        timeout_s: the longest wait for the connection, and for the server to move while an answer is due.

    Raises:
        ConnectError: the server can't be found or reached.
        ClientTimeoutError: it does not answer in time.
    """

    def __init__(
        self, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self._wire = Wire(open_socket(host, port, timeout_s), timeout_s)
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
        """
        (count,) = self.count_many([text])
        return count

    def count_many(self, texts: Iterable[str | bytes]) -> Iterator[int]:
        """The counts of many messages, in order, sent without waiting for each reply.

        Lazy both ways: takes ``texts`` as it goes, some thousands ahead of what it has yielded at most, and holds no
        more than that. An error in ``texts`` is raised when all texts before it are counted. When it ends early, it
        first waits for the replies that are still due, so the connection can be used again; but it closes the
        connection if that has failed, or in an interrupt.

        Raises:
            RuntimeError: another `count_many` of this client has not ended.
            ValueError, ReplyError, ConnectionLostError, ClientTimeoutError, ReplyTooLongError: as for `count`.
        """
        replies = self.replies(map(encode_message, texts))
        try:
            for index, reply in enumerate(replies):
                if reply.startswith(b"ERR "):
                    raise ReplyError(reply.decode("utf-8", "replace"), index)
                try:
                    count = int(reply)
                except ValueError:
                    raise ReplyError(reply.decode("utf-8", "replace"), index) from None
                yield count
        finally:
            replies.close()

    def replies(self, messages: Iterable[bytes]) -> Generator[bytes, None, None]:
        """Like `count_many`, but takes messages with their LF and yields each reply line as it came, errors too."""
        if self._in_use:
            raise RuntimeError("one count_many at a time: end the other one first")
        self._in_use = True
        source = iter(messages)
        due = 0  # replies
        try:
            while True:
                batch, error = _take(source, _WINDOW_MESSAGES - due)
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
                while due and not self._wire.closed:
                    self._next_reply()
                    due -= 1
            except EvloopError:
                pass
            raise
        except BaseException:
            self.close()  # an interrupt: no time to wait for what is due
            raise
        finally:
            self._in_use = False

    def _send(self, data: bytes) -> None:
        unsent = memoryview(data)
        while unsent:
            sent = self._exchange(unsent)
            unsent = unsent[sent:]

    def _next_reply(self) -> bytes:
        while not self._received:
            self._exchange(b"")
        return self._received.popleft()

    def _exchange(self, data: bytes | memoryview) -> int:
        """Let the wire move, keep the replies that came, and return how much of ``data`` has left."""
        try:
            sent, received = self._wire.exchange(data)
            if not sent and not received:
                raise ConnectionLostError(_LOST)
            lines = self._reply_lines.feed(received)
        except BaseException:
            # Cut off in the middle of a message or of a reply: what came next would answer something else.
            self.close()
            raise
        self._received.extend(line.removesuffix(b"\r") for line in lines.split(b"\n")[:-1])
        return sent


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
