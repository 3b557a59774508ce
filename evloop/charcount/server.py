"""The character-count server: a `Session` for each connection, and a log line for each connect and disconnect.

A connection is in the log from its first byte on. Health checks and port scans, which connect and close, are logged at
DEBUG only: they would be most of the log, and mean nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from evloop.charcount.session import DEFAULT_TEMPLATE, LineSession, RawSession, Replies, Session
from evloop.core.loop import Loop
from evloop.core.timers import Timer
from evloop.errors import LimitError
from evloop.limits import Limits
from evloop.log import DEBUG, INFO, WARNING, Logger
from evloop.net.protocol import Protocol
from evloop.ratelimit import LimitedLogger
from evloop.server.server import Server

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.server.sharedcounts import SharedCounts
    from evloop.server.stats import Value

DEFAULT_PORT = 12345

# A person who types a line by hand, and a slow link, are not told; one who wonders is.
_HINT_AFTER_S = 5.0

# How a client of TLS begins: a handshake record, of version 3. As text it would be control characters.
_TLS_HELLO = b"\x16\x03"
# Any of these bytes begins what is worth a line in the log: that, or a PROXY header.
_REMARKABLE = _TLS_HELLO[:1] + b"P\r"
_TLS_ADVICE = "seems to speak TLS, which this port does not: have it connect without, or serve it by --listen tls:..."


class ServiceSettings:
    """What the service speaks, and its limits.

    Attributes:
        framing: ``"line"`` or ``"raw"``.
        template: the text of a reply, with ``{count}`` in it.
        max_message_bytes: the longest message that is counted; None for any length, which is safe, as a message is
            counted as it arrives and never held.
        limits: those of the server.
        proxy_from: proxies that are trusted to say whom they speak for; as for `Server`.
    """

    def __init__(
        self,
        framing: str = "line",
        template: str = DEFAULT_TEMPLATE,
        max_message_bytes: int | None = None,
        limits: Limits | None = None,
        proxy_from: str = "",
    ) -> None:
        self.framing = framing
        self.template = template
        self.max_message_bytes = max_message_bytes
        self.limits = Limits() if limits is None else limits
        self.proxy_from = proxy_from

    def session_factory(self) -> Callable[[Counter[str]], Session]:
        """What makes the session of each connection, given where it counts limits. They share one table of replies.

        Raises:
            TemplateError: the template can't be used.
        """
        line = self.framing == "line"
        replies = Replies(self.template, end="\n" if line else "")
        session_class = LineSession if line else RawSession
        return partial(session_class, replies, self.max_message_bytes)


class CharCountProtocol(Protocol):
    """Connects a session to a connection. All work is the session's: received bytes go straight to its ``feed``."""

    __slots__ = ("_server", "session")

    message_end = b"\n"

    def __init__(self, session: Session, server: CharCountServer) -> None:
        self.session = session
        self._server = server

    def data_handler(self) -> Callable[[bytes], bytes]:
        return self._on_first_data if self._server.log.enabled(INFO) else self._look_at_first_data

    def _on_first_data(self, data: bytes) -> bytes:
        connection = self.connection
        header = connection.proxy_header
        tls = connection.tls
        peer = connection.peer if tls is None else f"{connection.peer} {tls}"
        if header is None:
            self._server.log.log(INFO, "connect %s", peer)
        else:
            level = DEBUG if header.local else INFO
            self._server.log.log(level, "connect %s through %s: %s", peer, header.sender, header)
        reply = self._look_at_first_data(data)
        if not reply and self.waits_for_line_end and not data.startswith(_TLS_HELLO):
            self._server.hint_later(self)
        return reply

    def _look_at_first_data(self, data: bytes) -> bytes:
        feed = self.session.feed
        self.connection.set_data_handler(feed)
        if data[0] in _REMARKABLE:
            self._remark(data)
        return feed(data)

    def _remark(self, data: bytes) -> None:
        """Say in the log if this client speaks another protocol, which is answered, but not in a way that it likes."""
        connection = self.connection
        if data.startswith(_TLS_HELLO):
            if connection.tls is None:
                self._server.log.log(WARNING, "%s %s", connection.peer, _TLS_ADVICE)
        elif connection.proxy_header is None:
            try:
                from evloop.net.unexpectedheader import look_for_header  # here, as few begin like that
            except (OSError, ImportError):  # out of descriptors: then it is not said
                return
            look_for_header(connection, data, self._server.proxy_option)

    @property
    def waits_for_line_end(self) -> bool:
        """Whether all that came of this client is a beginning of a line."""
        return not self.session.messages and self.session.message_in_progress() is not None

    def on_eof(self) -> bytes:
        return self.session.finish()

    def message_in_progress(self) -> int | None:
        return self.session.message_in_progress()

    def dump(self) -> bytes:
        return self.session.dump()

    def restore(self, state: bytes) -> None:
        self.session.restore(state)
        self._server.messages -= self.session.messages  # they were answered elsewhere, and this server counts its own
        self._server.errors -= self.session.errors
        if self.connection.bytes_received:  # the first look at it was taken there
            self.connection.set_data_handler(self.session.feed)

    def on_moved(self) -> None:
        self._server.forget_hint(self)
        self._server.messages += self.session.messages
        self._server.errors += self.session.errors

    def on_close(self, error: Exception | None) -> None:
        server, connection = self._server, self.connection
        if server.hints:
            server.forget_hint(self)
        server.messages += self.session.messages
        server.errors += self.session.errors
        if not server.log.enabled(INFO):
            return
        server.log.log(
            DEBUG if connection.is_probe and not isinstance(error, LimitError) else INFO,
            "disconnect %s messages=%d errors=%d received=%d sent=%d seconds=%.3f%s",
            connection.peer,
            self.session.messages,
            self.session.errors,
            connection.bytes_received,
            connection.bytes_sent,
            connection.loop.now - connection.opened_at,
            "" if error is None else f" reason={type(error).__name__}: {error}",
        )


class RawCharCountProtocol(CharCountProtocol):
    """In raw framing a chunk is a message."""

    __slots__ = ()

    wants_whole_chunks = True
    waits_for_line_end = False


class CharCountServer(Server):
    """The service in a loop. Use as `Server`.

    Attributes:
        messages: how many were answered on connections that have left, less those that were answered elsewhere before
            a connection came from there.
        errors: how many of them with an error.
        log: where connects and disconnects are logged. ``flush`` it at the end.
        hints: the timers of clients that may have to be told what they did not send.

    Raises:
        TemplateError: the reply template can't be used.
        ValueError: the networks of the proxies can't.
    """

    looks_for_headers = False  # the protocol does, where it logs the first bytes anyway
    proxy_option = "--proxy-from"

    def __init__(self, loop: Loop, settings: ServiceSettings | None = None, counts: SharedCounts | None = None) -> None:
        settings = ServiceSettings() if settings is None else settings
        new_session = settings.session_factory()
        self._speaks = f"{settings.framing} {settings.template!r} {settings.max_message_bytes}"
        self.messages = 0
        self.errors = 0
        self.hints: dict[CharCountProtocol, Timer] = {}
        self.log = LimitedLogger(Logger("charcount"), loop.clock, call_later=loop.call_later)
        protocol_class = RawCharCountProtocol if settings.framing == "raw" else CharCountProtocol
        super().__init__(
            loop,
            lambda: protocol_class(new_session(self.stats.limits), self),
            settings.limits,
            proxy_from=settings.proxy_from,
            counts=counts,
        )

    @property
    def speaks(self) -> str:
        return self._speaks

    def hint_later(self, protocol: CharCountProtocol) -> None:
        """Say in the log what is missing, if this client's first line does not end soon: a client of the exercise sends
        no line ends, and would wait for ever without a word.
        """
        self.hints[protocol] = self.loop.call_later(_HINT_AFTER_S, self._hint, protocol)

    def _hint(self, protocol: CharCountProtocol) -> None:
        del self.hints[protocol]
        if protocol.waits_for_line_end:
            self.log.log(
                INFO,
                "%s has sent %d bytes and no line end, so it gets no answer yet; for a client that sends none, "
                "start the server with --classic",
                protocol.connection.peer,
                protocol.connection.bytes_received,
            )

    def forget_hint(self, protocol: CharCountProtocol) -> None:
        """The connection is over."""
        if protocol in self.hints:
            self.hints.pop(protocol).cancel()

    def message_totals(self) -> tuple[int, int]:
        """Messages answered since the start, and how many of them with an error; open connections included."""
        sessions = [c.protocol.session for c in self.connections if isinstance(c.protocol, CharCountProtocol)]
        return (
            self.messages + sum(session.messages for session in sessions),
            self.errors + sum(session.errors for session in sessions),
        )

    def status(self) -> dict[str, Value]:
        """As `Server.status`, and ``messages`` and ``message_errors``: answered since the start, and with an error."""
        messages, errors = self.message_totals()
        return {"messages": messages, "message_errors": errors, **super().status()}
