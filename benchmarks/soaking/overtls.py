"""Those who come by TLS during a soak, straight or through a proxy; some ask, and others abuse it.

They use the standard library's `ssl`, and for what it can't do records made by hand.
"""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import tempfile
from pathlib import Path

from benchmarks.soaking.served import Refused, ask
from benchmarks.soaking.shared import TIMEOUT_S, Soak, reset
from benchmarks.soaking.target import HANDSHAKE_TIMEOUT_S, LIMITS, PROXY
from evloop_bench.common.sealer import CIPHER, DATA, Sealer, client_secret

# A proxy speaks for clients of these networks, so that no limit for an address is reached by it.
_NETWORKS = ("10.1", "10.2", "10.3", "192.168")


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the certificate is of no interest here
    return context


def _connect(soak: Soak, chance: random.Random, *, proxied: bool, for_tls: bool = True) -> socket.socket:
    """A connection on which a proxy has said for whom it speaks, or none."""
    sock = soak.connect(source=PROXY if proxied else None, for_tls=for_tls)
    if proxied:
        client = f"{chance.choice(_NETWORKS)}.{chance.randrange(256)}.{chance.randrange(1, 255)}"
        header = f"PROXY TCP4 {client} 192.0.2.1 {chance.randrange(1024, 65536)} 443\r\n".encode()
        cut = chance.randrange(len(header)) if chance.random() < 0.3 else 0
        for part in (header[:cut], header[cut:]):
            sock.sendall(part)
    return sock


def ordinary_by_tls(soak: Soak, chance: random.Random) -> None:
    """Comes, straight or through a proxy, asks, checks each answer, says goodbye and waits for the server's."""
    context = _context()
    session: ssl.SSLSession | None = None
    while not soak.over.is_set():
        proxied, served = chance.random() < 0.5, False
        try:
            with _connect(soak, chance, proxied=proxied) as plain, context.wrap_socket(plain, session=session) as sock:
                resumed = sock.session_reused
                for _ in range(chance.randrange(1, 5)):
                    ask(soak, sock, chance, chance.randrange(1, 30), last=False)
                    served = True
                session = sock.session
                sock.unwrap().close()
            soak.count(f"visits by TLS, {'through a proxy' if proxied else 'straight'}")
            soak.count("visits by TLS, resumed", bool(resumed))
        except Refused:
            soak.count("ordinary clients refused, with a reason")
        except (ConnectionError, ssl.SSLError):
            # One who is refused in a crowd is closed without a word. One who has been served may not be.
            if served:
                raise
            soak.count("ordinary clients refused in a crowd")
        soak.over.wait(0.01)


def resident_by_tls(soak: Soak, chance: random.Random) -> None:
    """Stays connected all the time, whatever the others do."""
    proxied = chance.random() < 0.5
    with _connect(soak, chance, proxied=proxied) as plain, _context().wrap_socket(plain) as sock:
        while not soak.over.is_set():
            ask(soak, sock, chance, chance.randrange(1, 20), last=False)
            soak.over.wait(0.02)
        sock.unwrap().close()


def _hello(context: ssl.SSLContext) -> bytes:
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


def cuts_handshakes(soak: Soak, chance: random.Random) -> None:
    """Begins a handshake and does not go on: ends, resets, spoils a byte, or stays until it is given up."""
    context = _context()
    while not soak.over.wait(0.005):
        with contextlib.suppress(ConnectionError), _connect(soak, chance, proxied=chance.random() < 0.5) as sock:
            hello = bytearray(_hello(context))
            how = chance.choice(["ends", "resets", "spoils", "stays"])
            if how == "spoils":
                hello[chance.randrange(len(hello))] ^= 1 << chance.randrange(8)
            sock.sendall(hello[: chance.randrange(1, len(hello))] if how != "spoils" else hello)
            if how == "resets":
                reset(sock)
            elif how == "stays":
                _wait_for_the_end(soak, sock, HANDSHAKE_TIMEOUT_S, "who began a handshake")
            soak.count("handshakes cut")


def speaks_no_tls(soak: Soak, chance: random.Random) -> None:
    """Says something that is not TLS, in plain text or rubbish, before a handshake or after one."""
    context = _context()
    while not soak.over.wait(0.01):
        text = chance.choice([b"hello\n", b"GET / HTTP/1.1\r\n\r\n", chance.randbytes(chance.randrange(6, 3000))])
        with (
            contextlib.suppress(ConnectionError, ssl.SSLError),
            _connect(soak, chance, proxied=chance.random() < 0.5) as plain,
        ):
            if chance.random() < 0.5:
                with context.wrap_socket(plain) as sock, socket.socket(fileno=sock.detach()) as bare:
                    bare.settimeout(5)
                    if chance.random() < 0.5:  # else it is cut
                        bare.sendall(b"\0" + text)
                        while bare.recv(4096):
                            pass
            else:
                plain.sendall(b"\0" + text if text[0] == 22 else text)
                while plain.recv(4096):
                    pass
            soak.count("spoke no TLS")


def changes_keys(soak: Soak, chance: random.Random) -> None:
    """Changes its keys over and over, asks for the server's, and puts questions in between, which must be answered."""
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        log = Path(directory) / "keys"
        context = _context()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.keylog_filename = str(log)
        while not soak.over.wait(0.05):
            log.write_text("")
            with (
                contextlib.suppress(ConnectionError, ssl.SSLEOFError),
                _connect(soak, chance, proxied=False) as plain,
                context.wrap_socket(plain) as sock,
            ):
                assert (sock.cipher() or ("",))[0] == CIPHER
                sealer = Sealer(client_secret(log.read_text()))
                with socket.socket(fileno=sock.fileno()) as bare:  # the same, for what is sealed by hand
                    bare.settimeout(TIMEOUT_S)
                    try:
                        for _ in range(20):
                            records = [sealer.update(ask=chance.random() < 0.5) for _ in range(chance.randrange(400))]
                            bare.sendall(b"".join([*records, sealer.seal(DATA, b"four\n")]))
                            got = sock.recv(100)
                            if got.startswith(b"ERR too-many") or not got:
                                break
                            if got != b"4\n":
                                soak.problem(f"{got!r} instead of 4 amid key updates")
                            soak.count("messages amid key updates answered")
                    finally:
                        bare.detach()


def proxy_says_nothing(soak: Soak, chance: random.Random) -> None:
    """A proxy that connects and says nothing, half a header, or another protocol."""
    while not soak.over.wait(0.02):
        with contextlib.suppress(ConnectionError), soak.connect(source=PROXY, for_tls=chance.random() < 0.5) as sock:
            said = chance.choice([b"", b"PROXY TCP4 10.0.0.1 ", b"hello\n", b"\r\n\r\n\0\r\nQUIT\n"])
            sock.sendall(said)
            _wait_for_the_end(soak, sock, LIMITS.proxy_header_timeout_s, "a proxy that says nothing")
            soak.count("proxies without a header")


def _wait_for_the_end(soak: Soak, sock: socket.socket, timeout_s: float, who: str) -> None:
    sock.settimeout(timeout_s + 5)
    try:
        while sock.recv(4096):
            pass
    except TimeoutError:
        soak.problem(f"{who} was not given up")
