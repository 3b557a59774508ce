"""A service of workers for tests, which tells which process answers, and misbehaves when it is told to.

Lines are answered with themselves and the number of the worker's process. Some are orders: ``block PATH`` waits in the
handler until something is written to that FIFO; ``spin`` never comes back, from a call that runs no Python.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from itertools import repeat

from evloop import Limits, LineProtocol, serve


class Teller(LineProtocol):
    """Tells which process it runs in."""

    def on_line(self, line: bytes) -> bytes:
        order, _, argument = line.partition(b" ")
        if order == b"block":
            with open(argument, "rb") as fifo:
                fifo.read()
        elif order == b"spin":
            deque(repeat(None), maxlen=0)
        elif order == b"die":
            os._exit(9)
        return b"%b %d\n" % (line, os.getpid())


if __name__ == "__main__":
    # Options as JSON: where, workers, and limits by their names. A file that must exist, or nothing starts.
    options = json.loads(sys.argv[1])
    needed = options.pop("needs", None)
    if needed is not None and not os.path.exists(needed):
        raise SystemExit(f"there is no {needed}")
    where, workers = options.pop("where", "127.0.0.1:0"), options.pop("workers")
    serve(Teller, where, workers=workers, limits=Limits(**options))
