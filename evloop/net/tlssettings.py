"""What TLS is made from: files of certificates and keys, checked whole before they are used.

Theory of operation
-------------------
An `ssl.SSLContext` that is in use is never changed: one into which a bad certificate was loaded has none any more, and
every handshake fails from then on. So files are read into new contexts, which are tried out in a handshake in memory,
and only if all of them are good they take the place of the old ones, by one assignment. Handshakes that begin after it
use the new ones; connections that are open go on.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Sequence

from evloop.core.loop import Loop
from evloop.core.timers import Timer
from evloop.errors import TLSSettingsError
from evloop.log import ERROR, NOTICE, WARNING, Logger
from evloop.net.tls import TLSConnection
from evloop.net.tlsfiles import Certificate, check_key_file, fingerprint, load_authorities, load_pair, try_out
from evloop.net.tlsinfo import HandshakeTally

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

_log = Logger("evloop.tls")

# How long a handshake may take: two round trips to the other end of the world and a slow phone's arithmetic are 2 s.
HANDSHAKE_TIMEOUT_S = 10.0
# When to begin to say that a certificate expires: a renewal that failed can still be repaired in office hours.
EXPIRY_WARNING_S = 14 * 86400.0
# How often that is said.
_EXPIRY_REPEAT_S = 86400.0
# How often files are looked at: a stat each.
LOOK_EVERY_S = 10.0

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class _ServerSide(ssl.SSLObject):
    """Knows the name that its client asked for."""

    asked_for: str | None = None


class TLSServerSettings:
    """Serves TLS with certificates from files. Its `connection` is what makes a listener's connections.

    Args:
        certificates: pairs of files in PEM: a certificate with its chain, and its key, which may be the same file. Of
            several, a client gets the one for the name that it asks for, else the first.
        client_ca: a file of authorities; then clients must show a certificate from one of them.
        client_certificates: ``"required"``, or ``"optional"``: who shows none is served, too.
        min_version: ``"1.2"`` or ``"1.3"``.
        handshake_timeout_s: how long a handshake may take.

    Attributes:
        tally: what is counted.
        certificates: those in force.

    Raises:
        TLSSettingsError: in one line, which file can't be used, why, and what to do.
    """

    def __init__(
        self,
        certificates: Sequence[tuple[str, str]],
        *,
        client_ca: str | None = None,
        client_certificates: str = "required",
        min_version: str = "1.2",
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        if not certificates:
            raise TLSSettingsError("TLS needs a certificate and its key: give both files")
        if client_certificates not in ("required", "optional"):
            raise ValueError(f"client_certificates must be 'required' or 'optional', got {client_certificates!r}")
        if min_version not in VERSIONS:
            raise ValueError(f"min_version must be one of {', '.join(VERSIONS)}, got {min_version!r}")
        if not handshake_timeout_s > 0:
            raise ValueError(f"handshake_timeout_s must be greater than 0, got {handshake_timeout_s}")
        self.tally = HandshakeTally()
        self._files = [(os.fspath(certificate), os.fspath(key)) for certificate, key in certificates]
        self._client_ca = client_ca
        self._verify = ssl.CERT_REQUIRED if client_certificates == "required" else ssl.CERT_OPTIONAL
        self._min_version = VERSIONS[min_version]
        self._handshake_timeout_s = handshake_timeout_s
        self._timer: Timer | None = None
        self._warn_again_at = 0.0
        self._seen = self._look()
        self._use(self._load())

    # ------------------------------------------------------------------ connections

    def connection(self, *connection: Any) -> TLSConnection:
        """Make a connection for an accepted socket: called as `Connection` is."""
        return TLSConnection(
            *connection, tally=self.tally, wrap=self._wrap, handshake_timeout_s=self._handshake_timeout_s
        )

    def _wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        return self.certificates[0].context.wrap_bio(incoming, outgoing, server_side=True)

    def _choose(self, tls: Any, name: str | None, _context: ssl.SSLContext) -> None:
        """Called in a handshake with the name that the client asks for, or None. Must not raise."""
        if name is None:
            return
        tls.asked_for = name
        name = name.lower()
        chosen = self._by_name.get(name) or self._by_name.get("*." + name.partition(".")[2])
        if chosen is not None and chosen is not self.certificates[0]:
            tls.context = chosen.context

    # ------------------------------------------------------------------ files

    def reload(self) -> None:
        """Read all files again. The next handshakes use what is in them; if any is bad, what was in force stays so.

        Raises:
            TLSSettingsError: as when this was made.
        """
        self._seen = self._look()
        self._use(self._load())

    def watch(self, loop: Loop, every_s: float = LOOK_EVERY_S) -> None:
        """Look now and then whether a file has changed, and `reload` then; say it in the log when one expires soon."""
        self.stop_watching()
        self._timer = loop.call_later(every_s, self.watch, loop, every_s)
        if self._look() != self._seen:
            self.reload_and_log()
        self._warn_of_expiry()

    def stop_watching(self) -> None:
        """Look no more. Safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def reload_and_log(self) -> bool:
        """`reload`, with a line in the log instead of an exception. Whether it succeeded."""
        try:
            self.reload()
        except TLSSettingsError as error:
            _log.log(ERROR, "certificates not reloaded, the old ones stay in force: %s", error)
            return False
        _log.log(NOTICE, "certificates reloaded: %s", ", ".join(found.path for found in self.certificates))
        self._warn_of_expiry()
        return True

    def expiry_warnings(self, now: float | None = None) -> list[str]:
        """A line for each certificate that expires within 14 days of ``now`` (seconds since 1970)."""
        now = time.time() if now is None else now  # what certificates speak of is the wall clock
        lines = []
        for found in self.certificates:
            left_s = found.expires - now
            if left_s < EXPIRY_WARNING_S:
                when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(found.expires))
                verb = f"expires in {left_s / 86400:.1f} days" if left_s > 0 else "has expired"
                lines.append(f"the certificate in {found.path} {verb}, at {when}: renew it")
        return lines

    def _warn_of_expiry(self) -> None:
        now = time.time()
        if now >= self._warn_again_at or now < self._warn_again_at - _EXPIRY_REPEAT_S:
            lines = self.expiry_warnings(now)
            if lines:
                self._warn_again_at = now + _EXPIRY_REPEAT_S
            for line in lines:
                _log.log(WARNING, "%s", line)

    def _look(self) -> list[object]:
        """What tells whether a file has been changed or replaced."""
        paths = [path for pair in self._files for path in pair]
        if self._client_ca is not None:
            paths.append(self._client_ca)
        return [fingerprint(path) for path in paths]

    def _load(self) -> list[Certificate]:
        return [self._load_one(certificate, key) for certificate, key in self._files]

    def _use(self, certificates: list[Certificate]) -> None:
        by_name: dict[str, Certificate] = {}
        for found in certificates:
            for name in found.names:
                by_name.setdefault(name, found)
        self.certificates, self._by_name = certificates, by_name

    def _load_one(self, certificate: str, key: str) -> Certificate:
        check_key_file(key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self._min_version
        context.options |= ssl.OP_NO_RENEGOTIATION  # of TLS 1.2: a handshake that each client may ask for, for ever
        load_pair(context, certificate, key)
        names, expires = try_out(context, certificate)
        context.sslobject_class = _ServerSide
        context.sni_callback = self._choose
        if self._client_ca is not None:
            load_authorities(context, self._client_ca)
            context.verify_mode = self._verify
        return Certificate(context, certificate, names, expires)


class TLSClientSettings:
    """Connects by TLS.

    Args:
        ca: a file of authorities, instead of those that the system trusts.
        certificate, key: files, to be shown to a server that wants a certificate.
        server_name: the name that the server's certificate must be for. Default: the host that is connected to.
        insecure: trust any server, which means to trust anybody on the way to it.
        min_version: ``"1.2"`` or ``"1.3"``.
        handshake_timeout_s: how long a handshake may take.

    Raises:
        TLSSettingsError: in one line, which file can't be used, why, and what to do.
    """

    def __init__(
        self,
        *,
        ca: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        server_name: str | None = None,
        insecure: bool = False,
        min_version: str = "1.2",
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        if min_version not in VERSIONS:
            raise ValueError(f"min_version must be one of {', '.join(VERSIONS)}, got {min_version!r}")
        if key is not None and certificate is None:
            raise TLSSettingsError(f"the key {key} needs its certificate: give that file, too")
        self.tally = HandshakeTally()
        self.server_name = server_name
        self._handshake_timeout_s = handshake_timeout_s
        self.context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = VERSIONS[min_version]
        context.options |= ssl.OP_NO_RENEGOTIATION
        if insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if ca is not None:
            load_authorities(context, ca)
        elif not insecure:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        if certificate is not None:
            key = certificate if key is None else key
            check_key_file(key)
            load_pair(context, certificate, key)

    def factory(self, host: str) -> Callable[..., TLSConnection]:
        """What makes connections to ``host``: called as `Connection` is.

        Raises:
            ValueError: that can't be the name of a server.
        """
        name = self.server_name or host.partition("%")[0]  # no certificate is for the scope of an address
        wrap = self._wrapper(name)
        try:
            wrap(ssl.MemoryBIO(), ssl.MemoryBIO())
        except ValueError as error:  # a UnicodeError, too
            raise ValueError(f"{name!r} can't be the name of a TLS server: {error}") from None

        def made(*connection: Any) -> TLSConnection:
            return TLSConnection(
                *connection, tally=self.tally, wrap=wrap, handshake_timeout_s=self._handshake_timeout_s
            )

        return made

    def _wrapper(self, name: str) -> Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject]:
        return lambda incoming, outgoing: self.context.wrap_bio(incoming, outgoing, server_hostname=name)
