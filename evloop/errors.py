"""Exceptions, and the only tables of errno values in the project.

Every I/O error that the library meets is classified here, once, into one of three outcomes:

* ``RETRY``: nothing is wrong, try again when the descriptor is ready.
* ``DISCONNECTED``: the peer or the path to it is gone. This is ordinary life of a server: it ends one
  connection and is never logged as an error.
* ``EXHAUSTED``: the process or the machine has no descriptor or buffer left, so nothing can be accepted. It passes;
  wait, don't spin.

Whatever is in none of them, and EXHAUSTED on a connection that is open already, is unexpected there: it ends that
connection, and is logged.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

RETRY = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR})

# The answers of a connect that goes on in the background; the last one is Windows'. Elsewhere EWOULDBLOCK means that
# nothing goes on: the queue of a Unix socket's listener is full, or there is no local port left.
CONNECTING = frozenset(
    {errno.EINPROGRESS, errno.EALREADY, errno.EINTR} | ({errno.EWOULDBLOCK} if sys.platform == "win32" else set())
)

DISCONNECTED = frozenset(
    {
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EPIPE,
        errno.ENOTCONN,
        errno.ESHUTDOWN,
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ECONNREFUSED,
    }
)

# The last one: too many descriptors are on their way to other processes.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})

# Linux passes errors that are already pending on the new connection to accept(2), whose manual page asks
# to treat them like EAGAIN: the connection is gone before we saw it, the listener is fine.
ACCEPT_RETRY = RETRY | DISCONNECTED | {errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPERM}
if hasattr(errno, "ENONET"):
    ACCEPT_RETRY |= {errno.ENONET}


class EvloopError(Exception):
    """Base of all exceptions raised by evloop."""


class ListenError(EvloopError):
    """A listener could not be opened. The text is one line that says what happened and what to do."""


class ConnectError(EvloopError):
    """An outgoing connection could not be made. The text is one line that says what happened."""


class ConnectionLostError(EvloopError, ConnectionError):
    """The connection ended otherwise than by the peer's end of stream."""


class IncompleteReadError(EvloopError, EOFError):
    """The stream ended in the middle of what was to be read.

    Attributes:
        partial: what came of it.
    """

    def __init__(self, partial: bytes) -> None:
        super().__init__(f"the stream ended after {len(partial)} bytes of what was to be read")
        self.partial = partial


class FramingError(EvloopError):
    """What came is not how messages stand in a stream, so nobody can tell where the next one begins. Says what came."""


class EndpointError(EvloopError, ValueError):
    """Text that is no endpoint, or parts of which there can't be one (see `evloop.net.endpoint`), in one line."""


class CallbackResultError(EvloopError, TypeError):
    """A callback returned something that can't be sent. The text says what, and what to return instead.

    Attributes:
        kind: the type of what it returned, with its module.
    """

    def __init__(self, callback: Callable[..., object], result: object) -> None:
        self.kind = f"{type(result).__module__}.{type(result).__qualname__}"
        name = getattr(callback, "__qualname__", repr(callback))
        if hasattr(result, "send") and hasattr(result, "close"):
            result.close()  # a coroutine: nobody will await it, and nobody needs to be told so a second time
            super().__init__(f"{name} is async: make it a plain function that returns bytes or None")
        else:
            advice = "encode it" if isinstance(result, str) else "return bytes or None"
            super().__init__(f"{name} returned {type(result).__name__}, not bytes: {advice}")


class LimitError(EvloopError):
    """A connection was ended because it went over one of the server's limits.

    Attributes:
        limit: name of the limit, as it appears in counters and logs, e.g. ``"idle-timeout"``.
    """

    def __init__(self, limit: str, text: str) -> None:
        super().__init__(text)
        self.limit = limit


class TLSError(EvloopError):
    """A TLS connection could not be made, or went wrong. The text is one line that says what happened.

    Attributes:
        kind: for counters and decisions: ``name``, ``date`` or ``chain`` (the peer's certificate), ``certificate``
            (it has none, or a bad one), ``version``, ``cipher``, ``plaintext`` (the peer does not speak TLS),
            ``refused`` (the peer says it does not like us), ``truncated`` (the end came without TLS's goodbye),
            ``ended``, ``timeout``, ``stopped``, ``protocol``.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class TLSSettingsError(EvloopError):
    """Certificates or keys can't be used. The text is one line that says which file, what is wrong, and what to do."""


class CannotMoveError(EvloopError):
    """A connection can't go on in another process. The text says why."""
