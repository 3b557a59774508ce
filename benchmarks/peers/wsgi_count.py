"""The counting service as a WSGI application: the characters of a request's body."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def count(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """The application."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    reply = b"%d" % len(body.decode("utf-8", "replace"))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(reply)))])
    return [reply]
