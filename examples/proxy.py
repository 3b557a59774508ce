"""A TCP proxy: what a client sends goes to a server, and the other way; with TLS on either side, if you like.

Teaches: two tasks for one connection; `connect`; flow control both ways, as `await write` of the one side keeps the
other from being read; half-close both ways, so that an answer after the end of the question gets through; that TLS is a
setting, and the handler does not know of it.

    python examples/proxy.py 9000 example.org:80
    python examples/proxy.py 9000 unix:/run/service.sock
    python examples/proxy.py 9000 tls:example.org:443                                     # TLS to the server
    python examples/proxy.py 9443 127.0.0.1:80 --cert server.pem --key server.key         # TLS for the clients
"""

import argparse
import sys
from functools import partial

from evloop import (
    ConnectError,
    ConnectionLostError,
    EndpointError,
    Stream,
    TaskGroup,
    TLSClientSettings,
    TLSServerSettings,
    TLSSettingsError,
    connect,
    parse_endpoint,
    serve,
)


async def copy(source: Stream, target: Stream) -> None:
    """Everything up to the end, and the end."""
    while data := await source.read():
        await target.write(data)
    target.write_eof()


async def proxy(target: str, tls: TLSClientSettings | None, client: Stream) -> None:
    try:
        server = await connect(target, tls=tls)
    except ConnectError as error:
        print(f"{client.peer}: {error}", file=sys.stderr)
        client.abort()
        return
    try:
        async with server, TaskGroup() as group:
            group.create_task(copy(client, server))
            group.create_task(copy(server, client))
    except* ConnectionLostError:
        client.abort()  # one side broke off: let the other one know that this was not the end


def main() -> None:
    parser = argparse.ArgumentParser(description="A TCP proxy.")
    parser.add_argument("port", type=int, help="where it listens, on 127.0.0.1")
    parser.add_argument("target", help="HOST:PORT, unix:PATH, or tls:HOST:PORT")
    parser.add_argument("--ca", help="a file of the authorities that the target's certificate may be from")
    parser.add_argument("--cert", help="a certificate: then clients must speak TLS")
    parser.add_argument("--key", help="the certificate's key, if it is in a file of its own")
    options = parser.parse_args()
    try:
        to_server = TLSClientSettings(ca=options.ca) if parse_endpoint(options.target).tls else None
        for_clients = TLSServerSettings([(options.cert, options.key or options.cert)]) if options.cert else None
    except (EndpointError, TLSSettingsError) as error:
        sys.exit(f"proxy.py: {error}")
    serve(partial(proxy, options.target, to_server), port=options.port, tls=for_clients)


if __name__ == "__main__":
    main()
