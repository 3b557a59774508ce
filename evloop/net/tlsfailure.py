"""What went wrong with TLS, in words: from OpenSSL's names of reasons to a kind and a line of text.

An `ssl.SSLError` is an OSError whose ``errno`` comes from another table (2 is "want read" there, ENOENT here), so it is
never looked up in those of `evloop.errors`. What tells something is its ``reason``, a name that OpenSSL gives, and for
certificates its ``verify_code``. Nothing that a peer sent is in these texts.
"""

from __future__ import annotations

from evloop.errors import TLSError
from evloop.net.proxyheader import looks_like_proxy_header

# OpenSSL's reasons, by what they mean for people. What is in none of them is a fault in what the peer sent.
_PLAINTEXT = {"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER"}
_VERSION = {
    "INAPPROPRIATE_FALLBACK",
    "NO_PROTOCOLS_AVAILABLE",
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "UNKNOWN_PROTOCOL",
    "UNSUPPORTED_PROTOCOL",
    "VERSION_TOO_LOW",
    "WRONG_SSL_VERSION",
}
_CIPHER = {
    "NO_SHARED_CIPHER",
    "NO_SHARED_GROUPS",
    "NO_SHARED_SIGATURE_ALGORITHMS",  # sic
    "NO_SHARED_SIGNATURE_ALGORITHMS",
    "NO_SUITABLE_GROUPS",
    "NO_SUITABLE_KEY_SHARE",
    "NO_SUITABLE_SIGNATURE_ALGORITHM",
    "SSLV3_ALERT_HANDSHAKE_FAILURE",  # it says no more than this: mostly it is the ciphers
}
_CALLBACK = "CALLBACK_FAILED"  # of the callback that chooses by name, see `evloop.net.tls.shake_hands`
_NO_CERTIFICATE = "PEER_DID_NOT_RETURN_A_CERTIFICATE"
_WANTS_CERTIFICATE = "TLSV13_ALERT_CERTIFICATE_REQUIRED"

# X509_V_ERR_...: numbers that are part of OpenSSL's interface.
_NOT_YET_VALID, _EXPIRED = 9, 10
_OTHER_NAME = {62, 63, 64}  # host, mail address, IP address


def explain(error: Exception, *, of_server: bool) -> TLSError:
    """What an `ssl.SSLError` means.

    Args:
        of_server: it was met by a server, so the peer is a client.
    """
    reason = getattr(error, "reason", None) or ""
    code = getattr(error, "verify_code", None)
    peer = "client" if of_server else "server"
    if code is not None:
        return _explain_certificate(code, getattr(error, "verify_message", ""), peer)
    if reason == _NO_CERTIFICATE:
        return TLSError("certificate", f"the {peer} has no certificate, and needs one")
    if reason in _PLAINTEXT:
        return plaintext(of_server=of_server)
    if reason in _VERSION:
        return TLSError("version", f"the {peer} speaks no version of TLS that is allowed here")
    if reason == _CALLBACK:
        return TLSError("name", f"the {peer} asks for a name that can't be one")
    if reason in _CIPHER:
        return TLSError("cipher", f"no cipher or key exchange in common with the {peer}")
    if reason == _WANTS_CERTIFICATE:
        return TLSError("refused", f"the {peer} wants a certificate from us: give one, with its key")
    if "_ALERT_" in reason:
        alert = reason.partition("_ALERT_")[2].replace("_", " ").lower()
        return TLSError("refused", f"the {peer} gave up, and says why: {alert}")
    text = reason.replace("_", " ").lower() or type(error).__name__
    return TLSError("protocol", f"what the {peer} sent is not right: {text}")


def _explain_certificate(code: int, message: str, peer: str) -> TLSError:
    if code == _EXPIRED:
        return TLSError("date", f"the {peer}'s certificate has expired: it needs a new one (or a clock is wrong)")
    if code == _NOT_YET_VALID:
        return TLSError("date", f"the {peer}'s certificate is not valid yet: look at the clocks")
    if code in _OTHER_NAME:
        return TLSError("name", f"the {peer}'s certificate is for another name: {message}")
    return TLSError("chain", f"the {peer}'s certificate is from nobody who is trusted here: {message}")


def plaintext(*, of_server: bool, begins: bytes = b"") -> TLSError:
    """The peer does not speak TLS, but begins with something else."""
    if of_server:
        if looks_like_proxy_header(begins):
            text = "the client begins with what looks like a PROXY header, and nobody there is trusted to send one"
            return TLSError("plaintext", f"{text}; if it is a proxy of yours, add its address to proxy_from")
        return TLSError("plaintext", "the client does not speak TLS, and this port speaks nothing else")
    return TLSError("plaintext", "the server does not speak TLS: connect to it without")


def truncated() -> TLSError:
    """The stream ended, and the peer had not said in TLS that it would."""
    return TLSError("truncated", "the stream ended without TLS's goodbye: somebody may have cut it")
