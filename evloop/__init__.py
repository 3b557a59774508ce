"""evloop: a selectors-based, single-threaded event-loop server library in pure Python.

The names below are the public API. See README.md for a server in ten lines and docs/architecture.md for how it works.

A module is loaded when a name of it is first asked for: a client that only shows a count does not load a server.
"""

from evloop._version import __version__

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.connection import Connection
    from evloop.errors import ConnectError, EvloopError, LimitError, ListenError
    from evloop.framing import LineFramer
    from evloop.limits import Limits
    from evloop.loop import EventLoop
    from evloop.protocol import LineProtocol, Protocol
    from evloop.server import Server, ServerStats
    from evloop.serving import serve
    from evloop.state import State
    from evloop.timers import Timer

__all__ = [
    "ConnectError",
    "Connection",
    "EventLoop",
    "EvloopError",
    "LimitError",
    "Limits",
    "LineFramer",
    "LineProtocol",
    "ListenError",
    "Protocol",
    "Server",
    "ServerStats",
    "State",
    "Timer",
    "__version__",
    "serve",
]

_MODULES = {
    "connection": ("Connection",),
    "errors": ("ConnectError", "EvloopError", "LimitError", "ListenError"),
    "framing": ("LineFramer",),
    "limits": ("Limits",),
    "loop": ("EventLoop",),
    "protocol": ("LineProtocol", "Protocol"),
    "server": ("Server", "ServerStats"),
    "serving": ("serve",),
    "state": ("State",),
    "timers": ("Timer",),
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
