"""TLS on the command lines: from options to settings, and what to do about a failure.

`ssl` takes longer to load than all the rest, so it is loaded by who speaks TLS only.
"""

from __future__ import annotations

import argparse

from evloop.charcount.cli.arguments import CommandParser
from evloop.errors import TLSError

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.net.endpoint import Endpoint
    from evloop.net.tlssettings import TLSClientSettings, TLSServerSettings

# What a person at the client's command line can do, by the kind of failure.
_ADVICE = {
    "chain": "; --ca FILE trusts its authority",
    "name": "; connect by a name that it is for, or say with --server-name which one it is",
    "version": "; one of the two needs newer software, or settings",
}


def check_server_options(parser: CommandParser, args: argparse.Namespace, places: list[Endpoint]) -> None:
    """End the process with a usage error if the server's options do not fit together.

    Args:
        places: the endpoints of TLS.
    """
    if not args.tls_cert:
        if args.tls_key:
            parser.error("--tls-key needs its certificate: give --tls-cert FILE")
        if args.tls_client_ca:
            parser.error("--tls-client-ca: a server of TLS needs a certificate of its own: give --tls-cert FILE")
        if places:
            parser.error(f"{places[0]} needs a certificate and its key: give --tls-cert FILE and --tls-key FILE")
        return
    if args.tls_key and len(args.tls_key) != len(args.tls_cert):
        parser.error(
            f"{len(args.tls_cert)} --tls-cert and {len(args.tls_key)} --tls-key: give a key for each certificate, in "
            "the same order, or none if each is in its certificate's file"
        )
    if args.tls_client_auth != "required" and not args.tls_client_ca:
        parser.error(f"--tls-client-auth {args.tls_client_auth} needs authorities: give --tls-client-ca FILE")
    if not places:
        parser.error("--tls-cert: no endpoint speaks TLS: put tls: in front of one, as in --listen tls:127.0.0.1:12345")


def server_settings(args: argparse.Namespace) -> TLSServerSettings:
    """What the server's endpoints of TLS are made with.

    Raises:
        TLSSettingsError: files can't be used.
    """
    from evloop.net.tlssettings import TLSServerSettings

    return TLSServerSettings(
        list(zip(args.tls_cert, args.tls_key or args.tls_cert, strict=True)),
        client_ca=args.tls_client_ca or None,
        client_certificates=args.tls_client_auth,
        min_version=args.tls_min_version,
    )


# ---------------------------------------------------------------------- the client


def add_client_options(parser: CommandParser) -> None:
    """Add the client's options."""
    group = parser.add_argument_group("TLS, with --connect tls:...")
    group.add_argument("--ca", metavar="FILE", help="trust these authorities (PEM), and not the system's")
    group.add_argument("--cert", metavar="FILE", help="show this certificate to a server that wants one")
    group.add_argument("--key", metavar="FILE", help="its key (default: in the file of the certificate)")
    group.add_argument(
        "--server-name", metavar="NAME", help="the server's certificate must be for this name (default: the host's)"
    )
    group.add_argument(
        "--insecure", action="store_true", help="trust any server, and whoever else is on the way; for trying out"
    )


def check_client_options(parser: CommandParser, args: argparse.Namespace) -> None:
    """End the process with a usage error if the client's options do not fit together."""
    given = [name for name in ("ca", "cert", "key", "server_name", "insecure") if getattr(args, name)]
    if given and (args.connect is None or not args.connect.tls):
        parser.error(f"--{given[0].replace('_', '-')} is for TLS: give --connect tls:HOST:PORT")
    if args.key and not args.cert:
        parser.error("--key needs its certificate: give --cert FILE")
    if args.insecure and args.ca:
        parser.error("--insecure trusts everybody, and --ca only some: leave out one of them")


def client_settings(args: argparse.Namespace) -> TLSClientSettings | None:
    """What the client connects with; None without TLS.

    Raises:
        TLSSettingsError: files can't be used.
    """
    if args.connect is None or not args.connect.tls:
        return None
    from evloop.net.tlssettings import TLSClientSettings

    return TLSClientSettings(
        ca=args.ca, certificate=args.cert, key=args.key, server_name=args.server_name, insecure=args.insecure
    )


def advice(error: Exception) -> str:
    """What to do about an error, by the client's options; empty if its text says it."""
    return _ADVICE.get(error.kind, "") if isinstance(error, TLSError) else ""
