"""Whose word is taken for something, by the address it comes from.

An address in a packet can be forged, but not where a TCP connection comes from, unless who forges it can read what is
sent there. So it tells who speaks as well as the network does that the packets come through, and no better.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

# Stands for all who connect to a Unix socket, which have no address: who may is a matter of its file's mode.
_UNIX = "unix"

_IPV4_BITS, _IPV6_BITS = 32, 128
_MAPPED = 0xFFFF << 32  # an IPv4 address that is written as an IPv6 one begins with this

_ADVICE = "give addresses or networks as 192.0.2.1, 10.0.0.0/8 or 2001:db8::/32, or unix for Unix sockets"


class TrustedPeers:
    """Networks, and whether an address is in one of them.

    Args:
        networks: addresses and networks separated by commas, e.g. ``"192.0.2.1,10.0.0.0/8,2001:db8::/32"``, or several
            such texts. ``unix`` stands for whoever connects to a Unix socket.

    Raises:
        ValueError: one that is no network; the text says what was meant.
    """

    def __init__(self, networks: str | Iterable[str]) -> None:
        texts = networks.split(",") if isinstance(networks, str) else ",".join(networks).split(",")
        self._unix = False
        self._ipv4: list[tuple[int, int]] = []  # bits beyond the prefix, and the prefix as a number
        self._ipv6: list[tuple[int, int]] = []
        for text in filter(None, map(str.strip, texts)):
            if text == _UNIX:
                self._unix = True
            else:
                self._add(text)

    def _add(self, text: str) -> None:
        import ipaddress  # here, as few need it and it takes 2 ms to load

        try:
            network = ipaddress.ip_network(text, strict=False)
            if "%" in text:
                raise ValueError
        except ValueError:
            raise ValueError(f"{text!r} is no network: {_ADVICE}") from None
        if "/" in text and ipaddress.ip_address(text.partition("/")[0]) != network.network_address:
            raise ValueError(f"{text!r} goes on after its first {network.prefixlen} bits: {network} is the network")
        known, bits = (self._ipv4, _IPV4_BITS) if network.version == 4 else (self._ipv6, _IPV6_BITS)
        beyond = bits - network.prefixlen
        known.append((beyond, int(network.network_address) >> beyond))

    def __bool__(self) -> bool:
        """Whether anybody is trusted at all."""
        return bool(self._unix or self._ipv4 or self._ipv6)

    def contains(self, family: int, address: Any) -> bool:
        """Whether this is an address of theirs.

        Args:
            family: the socket's.
            address: the peer's, as the socket has it.
        """
        if family == socket.AF_INET:
            return _in(self._ipv4, int.from_bytes(socket.inet_aton(address[0]), "big"))
        if family != socket.AF_INET6:
            return self._unix
        number = int.from_bytes(socket.inet_pton(socket.AF_INET6, address[0].partition("%")[0]), "big")
        if number >> _IPV4_BITS == _MAPPED >> _IPV4_BITS:
            return _in(self._ipv4, number & 0xFFFFFFFF)
        return _in(self._ipv6, number)


def _in(networks: list[tuple[int, int]], number: int) -> bool:
    return any(number >> beyond == prefix for beyond, prefix in networks)
