"""Where something listens, or is to be connected to: one notation for options, the environment, logs and programs.

======================  ==============================================================================
``HOST:PORT``           a name or an IPv4 address; without a HOST all addresses of this machine
``[IPV6]:PORT``         an IPv6 address, with its scope if it needs one: ``[fe80::1%eth0]:80``
``unix:PATH``           a Unix socket in the file system; one that begins with ``@`` is written ``unix:./@NAME``
``unix:@NAME``          one in Linux's abstract namespace, which leaves no file
``fd:N``                a socket that the process has been started with
======================  ==============================================================================

``tls:`` in front of any of them: TLS is spoken there. A host that is called ``tls``, ``unix`` or ``fd`` goes into
brackets, as an IPv6 address does.

``str`` of an endpoint is this notation, and `parse_endpoint` of that is the same endpoint. Nothing is looked up and
nothing opened here. This module is at the bottom of `evloop.net`, as listening and connecting both need it; it loads
only exceptions, so that the command-line client, which has no loop, can use it as well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from evloop.errors import EndpointError

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Never

_FORMS = "write HOST:PORT, [IPV6]:PORT, unix:PATH, unix:@NAME or fd:N, with tls: in front for TLS"
_WORDS = ("tls", "unix", "fd")
_MAX_SHOWN = 120  # characters of what was given, in an error's line

# What the kernel's struct holds: 108 bytes on Linux, 104 on BSD and macOS. A path needs one for its end, an abstract
# name one for its beginning.
MAX_UNIX_PATH_BYTES = 107 if sys.platform == "linux" else 103


class Endpoint:
    """One of `TcpEndpoint`, `UnixEndpoint` and `FdEndpoint`. An immutable value; ``str`` is its notation.

    Attributes:
        tls: whether TLS is spoken there.
    """

    __slots__ = ("tls",)
    tls: bool

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _values(self) -> tuple[object, ...]:
        return (type(self), self.tls, *(getattr(self, name) for name in self.__slots__))

    def __setattr__(self, name: str, value: object) -> Never:
        raise AttributeError("an endpoint cannot be changed: make a new one")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Endpoint) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __str__(self) -> str:
        return ("tls:" if self.tls else "") + self._plain()

    def _plain(self) -> str:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self)!r}>"


class TcpEndpoint(Endpoint):
    """A host and a port.

    Args:
        host: a name, or an address without brackets; ``""`` for all addresses of this machine.
        port: 0 to 65535. A listener with 0 gets a port that the kernel picks.

    Raises:
        EndpointError: there can't be one like that.
    """

    __slots__ = ("host", "port")
    host: str
    port: int

    def __init__(self, host: str, port: int, *, tls: bool = False) -> None:
        _check_host(host)
        if not 0 <= port <= 65535:
            raise EndpointError(f"there is no port {port}: the highest is 65535")
        self._set(host=host, port=port, tls=tls)

    def _plain(self) -> str:
        brackets = ":" in self.host or self.host in _WORDS
        return f"[{self.host}]:{self.port}" if brackets else f"{self.host}:{self.port}"


class UnixEndpoint(Endpoint):
    """A Unix socket.

    Args:
        path: its path, or ``@`` and a name in the abstract namespace.

    Raises:
        EndpointError: there can't be one like that.
    """

    __slots__ = ("path",)
    path: str

    def __init__(self, path: str, *, tls: bool = False) -> None:
        if path in ("", "@"):
            raise EndpointError("there is no path" if not path else "there is no name after the @")
        if "\0" in path:
            raise EndpointError("a path can't hold a NUL")
        if path.startswith("tls:"):
            raise EndpointError("tls: comes before unix: (a path that begins like that is written ./tls:)")
        if path.startswith("//"):  # as in unix:///run/x, by those who think of URLs; it is the same path
            path = "/" + path.lstrip("/")
        try:
            size = len(os.fsencode(path))
        except UnicodeEncodeError as error:
            raise EndpointError(f"a path can't hold {path[error.start]!a} in this locale") from None
        if size > MAX_UNIX_PATH_BYTES:
            raise EndpointError(
                f"the path of a Unix socket can have {MAX_UNIX_PATH_BYTES} bytes, this one has {size}: take a shorter "
                "one, or one relative to the working directory"
            )
        self._set(path=path, tls=tls)

    @property
    def address(self) -> str:
        """What ``socket.bind`` and ``socket.connect`` take."""
        return "\0" + self.path[1:] if self.path.startswith("@") else self.path

    def _plain(self) -> str:
        return "unix:" + self.path


class FdEndpoint(Endpoint):
    """A socket that the process has been started with, by the number of its descriptor.

    Raises:
        EndpointError: there can't be one like that.
    """

    __slots__ = ("number",)
    number: int

    def __init__(self, number: int, *, tls: bool = False) -> None:
        if not 0 <= number < 2**31:
            raise EndpointError(f"there is no descriptor {number}")
        self._set(number=number, tls=tls)

    def _plain(self) -> str:
        return f"fd:{self.number}"


def parse_endpoint(text: str) -> Endpoint:
    """The endpoint that is written like this; the notation is at the top of this module.

    Raises:
        EndpointError: it is none. The text is one line, and shows what was meant if that can be told.
    """
    try:
        return _parse(text)
    except EndpointError as error:
        meant = list(dict.fromkeys(_meant(text)))
        what_to_do = f"did you mean {' or '.join(meant)}?" if meant else _FORMS
        shown = text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
        raise EndpointError(f"{shown!r} is no endpoint: {error}; {what_to_do}") from None


def _parse(text: str) -> Endpoint:
    plain = text.removeprefix("tls:")
    tls = plain != text
    if plain.startswith("tls:"):
        raise EndpointError("tls: is there twice")
    if plain.startswith("unix:"):
        return UnixEndpoint(plain.removeprefix("unix:"), tls=tls)
    if plain.startswith("fd:"):
        return FdEndpoint(_number(plain.removeprefix("fd:"), "descriptor"), tls=tls)
    host, colon, port = plain.rpartition(":")
    if plain.endswith("]") or not colon:
        raise EndpointError("the port is missing")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not (host in _WORDS or _is_ipv6(host)):
            raise EndpointError(f"{host!r} is no IPv6 address, and only these have brackets")
    elif ":" in host:
        raise EndpointError("an IPv6 address needs brackets" if _is_ipv6(host) else "there is a colon too many")
    elif host in _WORDS:
        raise EndpointError(f"{host}: is not followed by what it needs")
    return TcpEndpoint(host, _number(port, "port"), tls=tls)


def _number(text: str, of_what: str) -> int:
    if not text:
        raise EndpointError(f"the number of the {of_what} is missing")
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise EndpointError(f"{text[:40]!r} is not the number of a {of_what}")
    return int(text)


def _check_host(host: str) -> None:
    wrong = next((c for c in host if c in "[]/@*,;\"'\\" or c.isspace() or not c.isprintable()), None)
    if wrong is not None:
        raise EndpointError(f"a host can't hold {wrong!r}")
    if ":" in host and not _is_ipv6(host):
        raise EndpointError(f"{host!r} is no IPv6 address")


def _is_ipv6(text: str) -> bool:
    import ipaddress  # here, as few need it and it takes 2 ms to load

    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------------- what was meant by what is wrong


def _meant(text: str) -> Iterator[str]:
    """Endpoints that this may have been meant for, each of which can be parsed; PORT stands for any port."""
    for candidate in _candidates(text.strip()):
        try:
            parsed = _parse(candidate.replace("PORT", "1"))
        except EndpointError:
            continue
        shown = candidate if candidate.endswith("PORT") else str(parsed)
        if shown.isprintable():  # a path may hold what does things to a terminal
            yield shown


def _candidates(text: str) -> Iterator[str]:
    tls, plain = "", text
    while plain[:4].lower() in ("tls:", "ssl:"):
        tls, plain = "tls:", plain[4:].removeprefix("//")
    word, colon, rest = plain.partition(":")
    word, rest = word.lower(), rest.rstrip("/")
    if colon and word in ("unix", "fd"):
        yield f"{tls}{word}:{rest}"
        if rest.startswith(("tls:", "ssl:")):
            yield f"tls:{word}:{rest[4:]}"
    elif colon and rest and word in ("tcp", "inet", "http", "https", "tcp4", "tcp6"):
        yield ("tls:" if word == "https" else tls) + rest.removeprefix("//")
    elif plain.startswith(("/", "./", "../", "@")):
        yield f"{tls}unix:{plain}"
    elif plain.isascii() and plain.isdigit():
        yield f"{tls}127.0.0.1:{plain}"
        yield f"{tls}:{plain}"
    else:
        yield f"{tls}{plain.rstrip('/')}"
        host, colon, port = plain.rpartition(":")
        yield f"{tls}[{host}]:{port}"
        yield f"{tls}{host.strip('[]')}:{port}"
        yield f"{tls}{':'.join(plain.split())}"
        if plain.count(":") > 1 and not plain.startswith("["):
            yield f"{tls}[{plain}]:PORT"
        if host == "*":  # as others write it
            yield f"{tls}:{port}"
        if (not port or "]" in port or not colon) and plain not in _WORDS:
            yield f"{tls}{plain.removesuffix(':')}:PORT"
