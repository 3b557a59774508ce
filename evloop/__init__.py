"""evloop: a selectors-based, single-threaded event-loop server library in pure Python.

The names below are the public API. See README.md for a server in ten lines and docs/architecture.md for how it works.
"""

from evloop._version import __version__
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
