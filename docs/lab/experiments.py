"""What happens to a server that takes each recv for a message, and serves one client after the other.

Start a server, then run one experiment at a time against it; docs/analysis.md explains what they show::

    python3 docs/lab/blocking_server.py                    # a fault in each experiment
    bin/charcount-server --classic                         # the same exchange
    bin/charcount-server                                   # with --lines: messages end in LF

    python3 docs/lab/experiments.py long
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

# Nothing here takes longer, unless the server does not answer at all.
_DEADLINE_S = 10.0
_STARTING_S = 2.0  # a server that was started in the same moment listens by then
_STOPPING_S = 0.2  # a process that gets SIGSTOP has stopped by then
_FLOOD_BYTES = 1_000_000_000  # far more than the kernel holds
_MSG_MORE = getattr(socket, "MSG_MORE", 0)  # Linux only


@dataclass(frozen=True)
class Setting:
    """How to talk to the server.

    Attributes:
        port: of 127.0.0.1.
        end: what ends a message.
        patience_s: how long to wait before saying that nothing came.
        server_pid: for experiments that stop the server for a moment.
        sockets: closes the clients' sockets in the end.
    """

    port: int
    end: bytes
    patience_s: float
    server_pid: int | None
    sockets: ExitStack


class Client:
    """A client that says what it does."""

    def __init__(self, name: str, setting: Setting) -> None:
        self._name = name
        self._patience_s = setting.patience_s
        self._socket = _connect(setting.port)
        setting.sockets.enter_context(self._socket)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small messages leave at once

    def send(self, data: bytes, flags: int = 0) -> None:
        """One call of send."""
        self._say(f"sends {_shown(data)}")
        self._socket.sendall(data, flags)

    def receive(self) -> bool:
        """One call of recv; gives up when nothing comes. False if the server has closed the connection."""
        self._socket.settimeout(self._patience_s)
        try:
            data = self._socket.recv(1024)
        except TimeoutError:
            self._say("receives nothing yet")
            return True
        except ConnectionError:
            data = b""
        finally:
            self._socket.settimeout(_DEADLINE_S)
        self._say(f"receives {_shown(data)}" if data else "finds the connection closed")
        return bool(data)

    def receive_rest(self) -> None:
        """Say that nothing more will be sent, and take all that comes until the server closes."""
        parts = []
        try:
            self._socket.shutdown(socket.SHUT_WR)
            while part := self._socket.recv(1024):
                parts.append(part)
        except OSError:
            self._say("finds the connection reset")
        else:
            self._say(f"receives {_shown(b''.join(parts))}, and the end" if parts else "receives the end")

    def send_until_full(self, data: bytes) -> None:
        """Send, and never receive, until the kernels on both sides hold all they can."""
        self._say("sends and sends, and never receives")
        self._socket.settimeout(self._patience_s)
        sent = 0
        try:
            while sent < _FLOOD_BYTES:
                sent += self._socket.send(data)
        except TimeoutError:
            self._say(f"can't send any more, after {sent / 1e6:.1f} MB")
        else:
            self._say(f"could send {sent / 1e6:.0f} MB")
        self._socket.settimeout(_DEADLINE_S)

    def close(self) -> None:
        self._say("closes")
        self._socket.close()

    def _say(self, text: str) -> None:
        print(f"{self._name} {text}", flush=True)


def _connect(port: int) -> socket.socket:
    """A connection to a server that may have been started in the same moment."""
    deadline = time.monotonic() + _STARTING_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), _DEADLINE_S)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _shown(data: bytes) -> str:
    return repr(data) if len(data) <= 64 else f"{len(data):,} bytes"


def two_clients(setting: Setting) -> None:
    """A second client comes while the first one is connected."""
    first = Client("A", setting)
    first.send(b"halo" + setting.end)
    first.receive()
    second = Client("B", setting)
    second.send(b"dunia" + setting.end)
    second.receive()
    first.close()
    second.receive_rest()


def long(setting: Setting) -> None:
    """One message of 3,000 characters, in one send."""
    client = Client("A", setting)
    client.send(b"x" * 3000 + setting.end)
    client.receive_rest()


def split(setting: Setting) -> None:
    """One message of 10 characters, in two pieces with a pause between them."""
    client = Client("A", setting)
    client.send(b"halo du")
    client.receive()
    client.send(b"nia" + setting.end)
    client.receive_rest()


def merged(setting: Setting) -> None:
    """Two messages that arrive together. MSG_MORE asks the kernel for what it also does when it is busy."""
    client = Client("A", setting)
    client.send(b"halo" + setting.end, _MSG_MORE)
    client.send(b"dunia" + setting.end)
    client.receive_rest()


def character(setting: Setting) -> None:
    """One euro sign (E2 82 AC), cut between its second and its third byte."""
    client = Client("A", setting)
    client.send("€".encode()[:2])
    if client.receive():
        client.send("€".encode()[2:] + setting.end)
        client.receive_rest()
    _ask_again(setting)


def japanese(setting: Setting) -> None:
    """One message of 400 characters of 3 bytes each: 1,024 is no multiple of 3."""
    client = Client("A", setting)
    client.send(("日" * 400).encode() + setting.end)
    client.receive_rest()
    _ask_again(setting)


def flood(setting: Setting) -> None:
    """A client sends messages without an end and never reads a reply; then another one comes."""
    first = Client("A", setting)
    first.send_until_full((b"x" + setting.end) * 32768)
    second = Client("B", setting)
    second.send(b"halo" + setting.end)
    second.receive()


def drain(setting: Setting) -> None:
    """The server is told to end while messages, and a client that it doesn't know yet, wait in the kernel."""
    first = Client("A", setting)
    first.send(b"halo" + setting.end)
    first.receive()
    with _stopped(setting) as server_pid:
        first.send(b"satu" + setting.end + b"dua" + setting.end)
        second = Client("B", setting)
        second.send(b"tiga" + setting.end)
        print("the server gets SIGTERM")
        os.kill(server_pid, signal.SIGTERM)
    first.receive_rest()
    second.receive_rest()


@contextmanager
def _stopped(setting: Setting) -> Iterator[int]:
    """The server does nothing in the ``with`` block; the kernel goes on for it."""
    if setting.server_pid is None:
        raise SystemExit("this experiment needs --server-pid")
    os.kill(setting.server_pid, signal.SIGSTOP)
    try:
        time.sleep(_STOPPING_S)
        yield setting.server_pid
    finally:
        os.kill(setting.server_pid, signal.SIGCONT)


def _ask_again(setting: Setting) -> None:
    """Does it still serve others?"""
    try:
        with socket.create_connection(("127.0.0.1", setting.port), _DEADLINE_S) as client:
            client.sendall(b"halo" + setting.end)
            answer = client.recv(1024)
    except ConnectionError:
        answer = b""
    print(f"B receives {answer!r}" if answer else "B finds no server any more")


def burst(setting: Setting) -> None:
    """Three clients send while the server is stopped; it finds them all ready when it goes on."""
    clients = [Client(name, setting) for name in "ABC"]
    for client in clients:
        client.send(b"halo" + setting.end)
        client.receive()
    with _stopped(setting):
        for number, client in enumerate(clients, 1):
            client.send(b"x" * number + setting.end)
    for client in clients:
        client.receive()
    for client in clients:
        client.close()


EXPERIMENTS: dict[str, Callable[[Setting], None]] = {
    "two-clients": two_clients,
    "long": long,
    "split": split,
    "merged": merged,
    "character": character,
    "japanese": japanese,
    "flood": flood,
    "burst": burst,
    "drain": drain,
}


def main() -> None:
    listing = "\n".join(f"  {name:<12} {run.__doc__}" for name, run in EXPERIMENTS.items())
    parser = argparse.ArgumentParser(
        description="Talk to a server on 127.0.0.1, and show what comes back.",
        epilog=f"experiments:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", choices=EXPERIMENTS, metavar="EXPERIMENT", help="see below")
    parser.add_argument("--port", type=int, default=12345, help="default: 12345")
    parser.add_argument("--lines", action="store_true", help="end each message with LF")
    parser.add_argument(
        "--patience", type=float, default=0.5, metavar="S", help="seconds to wait for what may never come; default: 0.5"
    )
    parser.add_argument("--server-pid", type=int, metavar="PID", help="for burst and drain: the server's process")
    args = parser.parse_args()
    try:
        with ExitStack() as sockets:
            end = b"\n" if args.lines else b""
            EXPERIMENTS[args.experiment](Setting(args.port, end, args.patience, args.server_pid, sockets))
    except ConnectionRefusedError:
        parser.exit(3, f"no server on port {args.port}: start one first\n")


if __name__ == "__main__":
    main()
