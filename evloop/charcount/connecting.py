"""The client's way to a server, within one time-out and without a loop.

Theory of operation
-------------------
A name is looked up by a thread, as the system's resolver knows no time-out and may take minutes. Its addresses race, as
RFC 8305 has it and `evloop.net.connector` does: the next one joins in when one fails, or after 250 ms, the families in
turn; the first that is connected wins. A Unix socket has one address, and can't be waited for if its server's queue is
full, so it is tried again.

Before anybody is told that time is over, each attempt is asked how it stands: a process that was suspended finds its
time over before it has seen what has happened.
"""

from __future__ import annotations

import _thread
import errno
import os
import selectors
import socket
import time
from collections import deque

from evloop.charcount.wire import GRACE_S, OVERRUN_S, ClientTimeoutError, Wire
from evloop.errors import CONNECTING, RETRY, ConnectError, EndpointError
from evloop.net.endpoint import Endpoint, TcpEndpoint, UnixEndpoint, parse_endpoint
from evloop.net.resolver import literal_addresses, look_up, lookup_error

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.net.resolver import Address

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 12345

# How long an address is waited for before the next one joins in: what RFC 8305 recommends.
_ATTEMPT_DELAY_S = 0.25
# A Unix socket whose listener's queue is full is tried again after so long.
_RETRY_S = 0.01


def server_endpoint(host: str | Endpoint, port: int | None) -> TcpEndpoint | UnixEndpoint:
    """What a client was asked to connect to: an endpoint, its text, or a host, with the default port if there is none.

    Raises:
        EndpointError: it is none, or none to connect to.
        ConnectError: there can't be such a host.
    """
    if isinstance(host, Endpoint):
        if port is not None:
            raise EndpointError(f"{host} says all that is needed: give no port beside it")
        return to_connect_to(host)
    try:
        return to_connect_to(parse_endpoint(host) if port is None else TcpEndpoint(host, port))
    except EndpointError as error:
        if port is not None:
            raise ConnectError(f"cannot resolve {host!r}: {error}; check the name") from None
        try:
            return to_connect_to(TcpEndpoint(host, DEFAULT_PORT))
        except EndpointError:
            raise error from None  # it was meant for an endpoint: it is no host either


def to_connect_to(endpoint: Endpoint) -> TcpEndpoint | UnixEndpoint:
    """The same endpoint, if it is one that a client can connect to.

    Raises:
        EndpointError: it is not.
    """
    if isinstance(endpoint, UnixEndpoint):
        return endpoint
    if not isinstance(endpoint, TcpEndpoint):
        raise EndpointError(f"cannot connect to {endpoint}: only who listens can be given a socket")
    if not endpoint.host:
        raise EndpointError(f"cannot connect to {endpoint}: only who listens can leave out the host")
    if not endpoint.port:
        raise EndpointError(f"cannot connect to {endpoint}: give the port that the server listens on")
    return endpoint


def connect_wire(endpoint: TcpEndpoint | UnixEndpoint, timeout_s: float) -> Wire:
    """A connection to a server. The caller closes it.

    Args:
        timeout_s: for all of it: the name and every address.

    Raises:
        ConnectError: in one line, what happened and what to do.
        ClientTimeoutError: no answer in ``timeout_s`` seconds.
    """
    if endpoint.tls:
        raise ConnectError(f"cannot connect to {endpoint}: this client speaks no TLS")
    return Wire(open_socket(endpoint, timeout_s))


def open_socket(endpoint: TcpEndpoint | UnixEndpoint, timeout_s: float) -> socket.socket:
    """A connected socket, which does not block. The caller closes it. The rest is as for `connect_wire`."""
    ends = time.monotonic() + timeout_s
    if isinstance(endpoint, UnixEndpoint):
        return _open_unix_socket(endpoint, ends, timeout_s)
    addresses = _addresses(endpoint.host, endpoint.port, timeout_s)
    race = _Race(endpoint, addresses)
    try:
        sock = race.run(ends, timeout_s)
    finally:
        race.close()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class _Race:
    """Addresses that are tried, one after the other and beside each other. Owns all sockets but the one that wins."""

    def __init__(self, endpoint: TcpEndpoint, addresses: list[Address]) -> None:
        self._endpoint = endpoint
        self._waiting = deque(addresses)
        self._attempts: dict[socket.socket, str] = {}  # and the address as text
        self._reasons: dict[str, str] = {}  # why attempts failed, each with the address it was said of first
        self._selector = selectors.DefaultSelector()

    def run(self, ends: float, timeout_s: float) -> socket.socket:
        """The first socket that is connected before ``ends``, of the monotonic clock."""
        next_at = time.monotonic()
        while True:
            while self._waiting and (not self._attempts or time.monotonic() >= next_at):
                next_at = time.monotonic() + _ATTEMPT_DELAY_S
                self._begin(*self._waiting.popleft())
            if not self._attempts:
                raise ConnectError(f"cannot connect to {self._endpoint}: {self._explain()}")
            until = min(ends, next_at) if self._waiting else ends
            self._selector.select(max(until - time.monotonic(), 0))
            late_s = time.monotonic() - until
            for sock in list(self._attempts):
                if self._is_connected(sock):
                    del self._attempts[sock]
                    return sock
                if sock not in self._attempts:
                    next_at = 0.0  # it failed: the next one begins at once
            if time.monotonic() < ends or not self._attempts:
                continue
            if late_s <= OVERRUN_S:
                raise ClientTimeoutError(f"cannot connect to {self._endpoint}: no answer in {timeout_s:g} s")
            # This process was stopped, and perhaps the server was, too.
            ends = time.monotonic() + min(timeout_s, GRACE_S)

    def _begin(self, family: int, address: object) -> None:
        where = str(address[0]) if isinstance(address, tuple) else str(address)
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # a machine without IPv6
            self._note(where, error.errno or 0)
            return
        sock.setblocking(False)
        self._attempts[sock] = where
        code = sock.connect_ex(address)  # type: ignore[arg-type]
        if code and code not in CONNECTING:
            self._fail(sock, code)
        else:
            self._selector.register(sock, selectors.EVENT_WRITE)

    def _is_connected(self, sock: socket.socket) -> bool:
        """Whether an attempt is; one that failed is taken out."""
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(sock, code)
            return False
        try:
            peer = sock.getpeername()
        except OSError:
            return False  # not yet
        # To connect to a port of the range that the kernel takes its own ports from can succeed though nobody listens
        # there: when it happens to take that very port for this socket. That is TCP's simultaneous open, with oneself.
        if peer == sock.getsockname():
            from evloop.net.sockets import reset_when_closed  # here, as it hardly ever happens

            reset_when_closed(sock)
            self._fail(sock, errno.ECONNREFUSED)
            return False
        return True

    def _fail(self, sock: socket.socket, code: int) -> None:
        self._note(self._attempts.pop(sock), code)
        if sock in self._selector.get_map():
            self._selector.unregister(sock)
        sock.close()

    def _note(self, where: str, code: int) -> None:
        refused = code == errno.ECONNREFUSED
        reason = "nothing listens there; start charcount-server" if refused else os.strerror(code)
        self._reasons.setdefault(reason, where)

    def _explain(self) -> str:
        if len(self._reasons) < 2:
            return "".join(self._reasons) or "it has no address"
        return "; ".join(f"{reason} ({where})" for reason, where in self._reasons.items())

    def close(self) -> None:
        """Give up those that have not won."""
        self._selector.close()
        for sock in self._attempts:
            sock.close()


def _addresses(host: str, port: int, timeout_s: float) -> list[Address]:
    """Those of a host, in the order in which to try them, in bounded time.

    Raises:
        ConnectError: there is none.
        ClientTimeoutError: nobody knew in time.
    """
    literal = literal_addresses(host, port)
    if literal is not None:
        return literal
    # By a thread which is left alone when the time is over, and not by the module threading, which takes long to load.
    answers: list[list[Address] | Exception] = []
    answered = _thread.allocate_lock()
    answered.acquire()

    def ask() -> None:
        try:
            answers.append(look_up(host, port))
        except Exception as error:
            answers.append(error)
        finally:
            answered.release()

    try:
        _thread.start_new_thread(ask, ())
    except RuntimeError:  # no more threads to be had
        ask()
    answered.acquire(timeout=min(timeout_s, _thread.TIMEOUT_MAX))
    if not answers:
        raise ClientTimeoutError(f"cannot resolve {host!r}: no answer in {timeout_s:g} s")
    answer = answers[0]
    if isinstance(answer, OSError | UnicodeError):
        raise ConnectError(f"{lookup_error(host, answer)}; check the name")
    if isinstance(answer, Exception):
        raise answer
    return answer


def _open_unix_socket(endpoint: UnixEndpoint, ends: float, timeout_s: float) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise ConnectError(f"cannot connect to {endpoint}: this system has no Unix sockets")
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        code = sock.connect_ex(endpoint.address)
        if not code:
            return sock
        sock.close()
        if code not in RETRY:
            raise ConnectError(f"cannot connect to {endpoint}: {_explain_unix(code)}")
        if time.monotonic() >= ends:
            raise ClientTimeoutError(f"cannot connect to {endpoint}: no answer in {timeout_s:g} s")
        time.sleep(_RETRY_S)


def _explain_unix(code: int) -> str:
    if code in (errno.ECONNREFUSED, errno.ENOENT):
        return "nothing listens there; start charcount-server"
    if code == errno.EACCES:
        return "no permission; the server's --unix-mode and --unix-group say who may connect"
    return os.strerror(code)
