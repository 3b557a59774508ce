"""Names and the addresses behind them."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterable

from evloop.net.sockets import encoded_host

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    Address = tuple[int, Any]  # a family, and what a socket of that family connects to


def literal_addresses(host: str, port: int) -> list[Address] | None:
    """The address that ``host`` is; None if it is a name, which has to be looked up. Never blocks."""
    if not host.isascii():
        return None
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        found = socket.getaddrinfo(host.encode(), port, type=socket.SOCK_STREAM, flags=numeric)
    except OSError:
        return None
    return [(family, address) for family, _, _, _, address in found]


def look_up(host: str, port: int) -> list[Address]:
    """The addresses of a name, in the order in which to try them (see `interleaved`). Blocks.

    Raises:
        OSError, UnicodeError: it has none, or can't be a name at all; `lookup_error` says it in words.
    """
    found = socket.getaddrinfo(encoded_host(host), port, type=socket.SOCK_STREAM)
    return interleaved((family, address) for family, _, _, _, address in found)


def lookup_error(host: str, error: BaseException) -> str:
    """Why a name could not be looked up, in one line."""
    return f"cannot resolve {host!r}: {getattr(error, 'strerror', None) or error}"


def interleaved(addresses: Iterable[Address]) -> list[Address]:
    """The same addresses, each once, the families in turn, beginning with that of the first one.

    The resolver puts the best ones first (RFC 6724). If those of one family don't answer, none of them will, so the
    other family gets its turn before all of them have been tried (RFC 8305, section 4).
    """
    families: dict[int, deque[Address]] = {}
    for address in dict.fromkeys(addresses):
        families.setdefault(address[0], deque()).append(address)
    waiting = deque(families.values())
    order = []
    while waiting:
        family = waiting.popleft()
        order.append(family.popleft())
        if family:
            waiting.append(family)
    return order
