"""From an endpoint to the sockets that listen there: opened, or adopted from who started this process."""

from __future__ import annotations

import errno
import socket
from collections.abc import Container

from evloop.errors import EndpointError, ListenError
from evloop.net.endpoint import Endpoint, FdEndpoint, TcpEndpoint, UnixEndpoint, parse_endpoint
from evloop.server.tcpsockets import ListeningSocket, open_listeners

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.server.unixsockets import UnixAccess

UNIX = getattr(socket, "AF_UNIX", None)  # Windows has none


def endpoint_to_listen_on(host: str | Endpoint | None, port: int | None) -> Endpoint:
    """What `Server.listen` was asked for: an endpoint, its text, or host and port. Neither: any port of 127.0.0.1.

    Raises:
        EndpointError: it is none.
        ListenError: there can't be such a host or port.
    """
    if isinstance(host, Endpoint):
        if port is not None:
            raise EndpointError(f"{host} says all that is needed: give no port beside it")
        return host
    if host is not None and port is None:
        return parse_endpoint(host)
    host = "127.0.0.1" if host is None else host
    try:
        return TcpEndpoint(host, port or 0)
    except EndpointError as error:
        reason = f"{error}; give a name or address of this machine"
        raise ListenError(f"cannot resolve host {host!r}: {reason}") from None


def open_endpoint(
    endpoint: Endpoint, backlog: int, access: UnixAccess | None, in_use: Container[int]
) -> list[socket.socket]:
    """Listening, non-blocking sockets: one, or for a name of TCP one on each of its addresses.

    Args:
        backlog: how many connections may wait to be accepted. An adopted socket keeps its own.
        access: of a Unix socket in the file system; None for the defaults.
        in_use: descriptors that can't be adopted, as somebody has them already.

    Raises:
        ListenError: in one line, what happened and what to do.
    """
    if isinstance(endpoint, TcpEndpoint):
        return open_listeners(endpoint.host, endpoint.port, backlog)
    if isinstance(endpoint, UnixEndpoint):
        from evloop.server.unixsockets import UnixAccess, open_unix_listener  # here, as few need it

        return [open_unix_listener(endpoint, backlog, UnixAccess() if access is None else access)]
    assert isinstance(endpoint, FdEndpoint)
    if endpoint.number in in_use:
        raise ListenError(f"cannot listen on {endpoint}: it is in use already")
    return [_adopt(endpoint)]


def _adopt(endpoint: FdEndpoint) -> socket.socket:
    """The socket behind a descriptor. Owned from now on, unless this raises."""
    try:
        found = socket.socket(fileno=endpoint.number)
    except OSError as error:
        if error.errno == errno.EBADF:
            raise ListenError(
                f"cannot listen on {endpoint}: this process was started without such a descriptor"
            ) from None
        raise ListenError(f"cannot listen on {endpoint}: it is no socket") from None
    family, kind = found.family, found.type
    listens = not hasattr(socket, "SO_ACCEPTCONN") or found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    found.detach()
    if kind != socket.SOCK_STREAM or family not in (socket.AF_INET, socket.AF_INET6, UNIX):
        raise ListenError(f"cannot listen on {endpoint}: it is neither a TCP socket nor a Unix stream socket")
    if not listens:
        raise ListenError(f"cannot listen on {endpoint}: it is a socket that does not listen")
    sock = ListeningSocket(family, endpoint.number)
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock
