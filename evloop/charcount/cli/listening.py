"""Where the server listens: from the settings in force to endpoints, and what each of them needs."""

from __future__ import annotations

import argparse
import os

from evloop.charcount.cli.arguments import CommandParser, one_line, user_ids
from evloop.charcount.cli.settings import SETTINGS
from evloop.net.endpoint import Endpoint, TcpEndpoint, UnixEndpoint, parse_endpoint
from evloop.server.opening import endpoint_to_listen_on
from evloop.server.tcpsockets import resolve

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.net.tlssettings import TLSServerSettings
    from evloop.server.server import Server
    from evloop.server.unixsockets import UnixAccess

_DEFAULTS = {setting.name: setting.default for setting in SETTINGS}


def reject_two_places(parser: CommandParser, args: argparse.Namespace) -> None:
    """End the process with a usage error if options, or variables, say in both ways where to listen.

    Variables may hold the defaults of the other way, as those that ``--print-config`` shows do.
    """
    if not args.listen:
        return
    for name in ("host", "port"):
        value = getattr(args, name)
        if value is not None and (parser.origin is None or value != _DEFAULTS[name]):
            parser.error(f"--listen says where: leave out --{name}, or give --listen once more")


def forget_host_and_port(args: argparse.Namespace) -> None:
    """They are not in force beside --listen, so they need not be shown."""
    if args.listen:
        args.host, args.port = _DEFAULTS["host"], _DEFAULTS["port"]


class Places:
    """Everywhere that the server is to listen.

    Args:
        parser: for usage errors, which end the process.
        args: the settings in force.

    Attributes:
        names: the endpoints, and what those of inherited sockets are called.
        inherited: sockets that the process was started with.
        unused: sockets that the process was started with, and that the settings leave out.
        tls: what the endpoints of TLS among them are served with; None if there is none.

    Raises:
        ListenError: there can't be such a host, or such inherited sockets.
        TLSSettingsError: certificates or keys can't be used.
    """

    def __init__(self, parser: CommandParser, args: argparse.Namespace) -> None:
        inherited: dict[Endpoint, str] = {}
        if "LISTEN_PID" in os.environ:
            from evloop.program.systemd import take_inherited  # here, as most are started without sockets

            inherited = take_inherited()
        self.names: dict[Endpoint, str] = {}
        if args.listen:
            for text in args.listen:
                self.names[parse_endpoint(text)] = ""
        elif inherited and (args.host, args.port) == (_DEFAULTS["host"], _DEFAULTS["port"]):
            self.names.update(inherited)
        else:
            self.names[endpoint_to_listen_on(args.host, args.port)] = ""
        self.inherited = inherited
        self.unused = [endpoint for endpoint in inherited if endpoint not in self.names]
        self._args = args
        by_tls = [endpoint for endpoint in self.names if endpoint.tls]
        self.tls: TLSServerSettings | None = None
        if by_tls or args.tls_cert or args.tls_key or args.tls_client_ca:
            from evloop.charcount.cli.tlsoptions import check_server_options, server_settings  # here, as few need them

            check_server_options(parser, args, by_tls)
            if by_tls:
                self.tls = server_settings(args)

    def listen(self, server: Server) -> list[str]:
        """Have the server listen at all of them.

        Returns:
            the addresses, as they are to be shown.

        Raises:
            ListenError: one of them can't be listened on.
        """
        shown = []
        for endpoint, name in self.names.items():
            tls = self.tls if endpoint.tls else None
            addresses = server.listen(endpoint, unix=self.access(), tls=tls)
            shown += [address + _note(endpoint, name) for address in addresses]
        return shown

    def notes(self) -> dict[Endpoint, str]:
        """The endpoints, and what is shown behind the address of each."""
        return {endpoint: _note(endpoint, name) for endpoint, name in self.names.items()}

    def check(self) -> None:
        """Find out what can be found out without listening. A running server may have each of them.

        Raises:
            ListenError: one of them can't be listened on.
        """
        for endpoint in self.names:
            if isinstance(endpoint, TcpEndpoint):
                resolve(endpoint.host, endpoint.port)
            elif isinstance(endpoint, UnixEndpoint):
                from evloop.server.unixsockets import UnixAccess, check_unix_listener

                check_unix_listener(endpoint, self.access() or UnixAccess())

    def access(self) -> UnixAccess | None:
        """Who may connect to Unix sockets; None if none can be among the endpoints."""
        if all(isinstance(endpoint, TcpEndpoint) for endpoint in self.names):
            return None
        from evloop.server.unixsockets import UnixAccess  # here, as few need it

        args = self._args
        return UnixAccess(int(args.unix_mode, 8), args.unix_group or None, user_ids(args.unix_uids))


def _note(endpoint: Endpoint, name: str) -> str:
    return f" ({endpoint}, {one_line(name)})" if name else ""
