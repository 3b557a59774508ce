"""What is known of TLS connections: of one, and counted over all."""

from __future__ import annotations

from collections import Counter
from ssl import SSLObject

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

# How long the handshakes of one pass may take: as long as others wait. One step takes 0.3 ms with an elliptic curve,
# 1 ms with RSA of 2048 bits.
HANDSHAKE_TURN_S = 0.004


class HandshakeTally:
    """What is counted of the handshakes of one listener or client, and the time that they may take in one pass.

    Attributes:
        handshakes: those that led to a connection.
        resumed: of those, how many went on with an earlier session.
        versions: the same by version of TLS.
        failures: by `TLSError.kind`; those of connections that were made once, too.
    """

    def __init__(self) -> None:
        self.handshakes = 0
        self.resumed = 0
        self.versions: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._pass = -1
        self._spent_s = 0.0

    def has_time(self, passes: int) -> bool:
        """Whether there may be one more step in this pass of the loop."""
        if passes != self._pass:
            self._pass = passes
            self._spent_s = 0.0
        return self._spent_s < HANDSHAKE_TURN_S

    def spend(self, seconds: float) -> None:
        """A step took so long."""
        self._spent_s += seconds

    def succeeded(self, tls: SSLObject) -> None:
        """A handshake is done."""
        self.handshakes += 1
        self.resumed += bool(tls.session_reused)
        self.versions[tls.version() or "unknown"] += 1


class TLSInfo:
    """What both sides of a TLS connection have agreed on.

    Attributes:
        version: ``TLSv1.3``.
        cipher: OpenSSL's name of it.
        server_name: the name that the client asked for (SNI), or None. Told by the client, so don't trust it.
        resumed: whether it goes on with an earlier session.
        peer_certificate: as `ssl.SSLSocket.getpeercert` has it; None if the peer showed none, or it was not verified.
        peer_subject: of that, as text on one line: ``commonName=anna, organizationName=...``; empty without.
    """

    __slots__ = ("cipher", "peer_certificate", "peer_subject", "resumed", "server_name", "version")

    def __init__(self, tls: SSLObject, server_name: str | None) -> None:
        cipher = tls.cipher()
        self.version = tls.version() or "unknown"
        self.cipher = "unknown" if cipher is None else cipher[0]
        self.server_name = server_name
        self.resumed = bool(tls.session_reused)
        self.peer_certificate: dict[str, Any] | None = tls.getpeercert() or None
        subject: Any = (self.peer_certificate or {}).get("subject", ())
        text = ", ".join(f"{name}={value}" for part in subject for name, value in part)
        self.peer_subject = "".join(character if character.isprintable() else "?" for character in text)

    def __repr__(self) -> str:
        return f"<TLSInfo {self.version} {self.cipher} {self.peer_subject}>"


def server_name(tls: SSLObject) -> str | None:
    """The name that a client asked for: known to the client as what it was made with, to a server by its callback."""
    return getattr(tls, "asked_for", None) if tls.server_side else tls.server_hostname
