"""Files of certificates and keys: loaded into new TLS contexts, and tried out.

A certificate is tried in a handshake in memory, which tells what the standard library has no other public way to tell:
whether it is of a kind that clients accept, until when it is valid, and for which names. The client of the trial trusts
this one certificate, so its chain is not judged: that depends on who connects.

Whatever is wrong is a `TLSSettingsError` of one line: which file, what is wrong, and what to do.
"""

from __future__ import annotations

import os
import ssl
import stat
import sys

from evloop.errors import TLSSettingsError

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

# Who else may do what with a key: its group may read it, and nobody else anything.
_KEY_FORBIDDEN = stat.S_IWGRP | stat.S_IRWXO

_NOT_YET_VALID, _EXPIRED = 9, 10

# A handshake takes three rounds; one with another try of the client's four.
_TRIAL_ROUNDS = 10


class Certificate:
    """A certificate that can be used, with what is to be known of it.

    Attributes:
        context: serves it.
        path: its file.
        names: the DNS names it is for, in lower case; ``*.example.org`` among them.
        expires: when it is not valid any more, in seconds since 1970.
    """

    def __init__(self, context: ssl.SSLContext, path: str, names: list[str], expires: float) -> None:
        self.context = context
        self.path = path
        self.names = names
        self.expires = expires


class _EncryptedKeyError(Exception):
    pass


def _no_passphrase() -> str:
    raise _EncryptedKeyError  # else OpenSSL would ask for it on the terminal


def load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Load a certificate and its key into a new context.

    Raises:
        TLSSettingsError: in one line, which file can't be used, why, and what to do.
    """
    for path in (certificate, key):
        _check_readable(path)
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except _EncryptedKeyError:
        raise TLSSettingsError(
            f"the key in {key} has a passphrase, which nobody could type in: write it out without one "
            f"(openssl pkey -in {key} -out NEW) and protect the file instead"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            text = f"the key in {key} is not that of the certificate in {certificate}: give the pair"
        elif error.reason in ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
            reason = error.reason.replace("_", " ").lower()
            text = f"the certificate in {certificate} is too weak ({reason}): get one with a longer key or better hash"
        else:
            text = f"no certificate with its key in {certificate} and {key}: both must be PEM, as text"
        raise TLSSettingsError(text) from None
    except OSError as error:
        raise TLSSettingsError(f"cannot read {certificate} and {key}: {error.strerror or error}") from None


def load_authorities(context: ssl.SSLContext, path: str) -> None:
    """Load a file of authorities to be trusted.

    Raises:
        TLSSettingsError: in one line, what is wrong with it.
    """
    _check_readable(path)
    try:
        context.load_verify_locations(path)
    except OSError:  # an SSLError, too
        raise TLSSettingsError(f"no certificates of authorities in {path}: it must have them in PEM, as text") from None


def _check_readable(path: str) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise TLSSettingsError(f"cannot read {path}: {error.strerror or error}") from None


def check_key_file(path: str) -> None:
    if sys.platform == "win32":
        return
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise TLSSettingsError(f"cannot read {path}: {error.strerror or error}") from None
    if mode & _KEY_FORBIDDEN:
        raise TLSSettingsError(
            f"others have access to the key in {path} (mode {stat.S_IMODE(mode):04o}): chmod 600 it, or 640 for a group"
        )


def fingerprint(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


# ---------------------------------------------------------------------- the trial


def try_out(server: ssl.SSLContext, path: str) -> tuple[list[str], float]:
    """Have a handshake in memory; the certificate's names, and when it expires.

    Raises:
        TLSSettingsError: no client would accept it.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    try:
        shown = _handshake(server, client).getpeercert(binary_form=True)
        assert shown is not None
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        client.load_verify_locations(cadata=shown)
        told: dict[str, Any] = _handshake(server, client).getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _EXPIRED:
            raise TLSSettingsError(f"the certificate in {path} has expired: renew it") from None
        if error.verify_code == _NOT_YET_VALID:
            raise TLSSettingsError(
                f"the certificate in {path} is not valid yet: look at this machine's clock"
            ) from None
        raise TLSSettingsError(
            f"no client would accept the certificate in {path} for a server: {error.verify_message}"
        ) from None
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        raise TLSSettingsError(f"the certificate in {path} can't be used: {reason}") from None
    names = [value.lower() for kind, value in told.get("subjectAltName", ()) if kind == "DNS"]
    return names, float(ssl.cert_time_to_seconds(told["notAfter"]))


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """The client's side of a handshake between the two that is done."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one, other = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [one, other]
    for _ in range(_TRIAL_ROUNDS):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
        if not waiting:
            return one
    raise AssertionError("a handshake that does not end")
