"""The certificate of servers that are tried with TLS: a key on the curve P-256, made anew each time."""

from __future__ import annotations

from pathlib import Path


class NoCertificate(Exception):
    """It can't be made. The text is one line that says why and what to do."""


def write_certificate(directory: Path) -> Path:
    """Write a certificate and its key into one file in ``directory``.

    Raises:
        NoCertificate: what makes it is missing.
    """
    try:
        import trustme
    except ImportError:
        raise NoCertificate(
            "trustme, which makes certificates, is not installed: run  pip install -e '.[bench]'  first"
        ) from None
    issued = trustme.CA(key_type=trustme.KeyType.ECDSA).issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    path = directory / "server.pem"
    path.touch(mode=0o600)
    path.write_bytes(b"".join(part.bytes() for part in (issued.private_key_pem, *issued.cert_chain_pems)))
    return path
