"""uvloop, callback style, with the project's session: the program of asyncio_protocol on another loop."""

from __future__ import annotations

import uvloop

from benchmarks.peers.asyncio_protocol import main

if __name__ == "__main__":
    uvloop.run(main())
