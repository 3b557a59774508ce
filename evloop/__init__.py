"""evloop: a selectors-based, single-threaded event-loop server library in pure Python.

The names below are the public API. See README.md for a server in ten lines and docs/architecture.md for how it works.

A module is loaded when a name of it is first asked for: a client that only shows a count does not load a server.
"""

from evloop._version import __version__

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.core.timers import Timer
    from evloop.errors import (
        CallbackResultError,
        ConnectError,
        ConnectionLostError,
        EndpointError,
        EvloopError,
        FramingError,
        IncompleteReadError,
        LimitError,
        ListenError,
        TLSError,
        TLSSettingsError,
    )
    from evloop.eventloop import EventLoop
    from evloop.limits import Limits
    from evloop.net.connection import Connection
    from evloop.net.endpoint import Endpoint, parse_endpoint
    from evloop.net.protocol import Protocol
    from evloop.net.state import State
    from evloop.net.tlsinfo import TLSInfo
    from evloop.net.tlssettings import TLSClientSettings, TLSServerSettings
    from evloop.program.serve import prepare, serve
    from evloop.protocols.framings import Framing, LengthPrefix, MessageFramer, Netstring, VarintPrefix
    from evloop.protocols.handlers import connect
    from evloop.protocols.lineframer import LineFramer
    from evloop.protocols.lines import LineProtocol
    from evloop.protocols.messages import MessageProtocol
    from evloop.protocols.streams import Stream
    from evloop.protocols.taskgroup import TaskGroup
    from evloop.protocols.tasks import Cancelled
    from evloop.protocols.waiting import Event, Queue, run_in_thread, sleep, timeout
    from evloop.server.server import Server
    from evloop.server.stats import ServerStats
    from evloop.server.unixsockets import UnixAccess

__all__ = [
    "CallbackResultError",
    "Cancelled",
    "ConnectError",
    "Connection",
    "ConnectionLostError",
    "Endpoint",
    "EndpointError",
    "Event",
    "EventLoop",
    "EvloopError",
    "Framing",
    "FramingError",
    "IncompleteReadError",
    "LengthPrefix",
    "LimitError",
    "Limits",
    "LineFramer",
    "LineProtocol",
    "ListenError",
    "MessageFramer",
    "MessageProtocol",
    "Netstring",
    "Protocol",
    "Queue",
    "Server",
    "ServerStats",
    "State",
    "Stream",
    "TLSClientSettings",
    "TLSError",
    "TLSInfo",
    "TLSServerSettings",
    "TLSSettingsError",
    "TaskGroup",
    "Timer",
    "UnixAccess",
    "VarintPrefix",
    "__version__",
    "connect",
    "parse_endpoint",
    "prepare",
    "run_in_thread",
    "serve",
    "sleep",
    "timeout",
]

_MODULES = {
    "net.connection": ("Connection",),
    "errors": (
        "CallbackResultError",
        "ConnectError",
        "ConnectionLostError",
        "EndpointError",
        "EvloopError",
        "FramingError",
        "IncompleteReadError",
        "LimitError",
        "ListenError",
        "TLSError",
        "TLSSettingsError",
    ),
    "protocols.lineframer": ("LineFramer",),
    "limits": ("Limits",),
    "net.endpoint": ("Endpoint", "parse_endpoint"),
    "eventloop": ("EventLoop",),
    "net.protocol": ("Protocol",),
    "protocols.lines": ("LineProtocol",),
    "protocols.framings": ("Framing", "LengthPrefix", "MessageFramer", "Netstring", "VarintPrefix"),
    "protocols.messages": ("MessageProtocol",),
    "protocols.streams": ("Stream",),
    "protocols.handlers": ("connect",),
    "protocols.taskgroup": ("TaskGroup",),
    "protocols.tasks": ("Cancelled",),
    "protocols.waiting": ("Event", "Queue", "run_in_thread", "sleep", "timeout"),
    "server.server": ("Server",),
    "server.stats": ("ServerStats",),
    "server.unixsockets": ("UnixAccess",),
    "program.serve": ("prepare", "serve"),
    "net.state": ("State",),
    "net.tlsinfo": ("TLSInfo",),
    "net.tlssettings": ("TLSClientSettings", "TLSServerSettings"),
    "core.timers": ("Timer",),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            value: object = getattr(__import__(f"{__name__}.{module}", fromlist=[name]), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
