"""uvloop, streams: the program of asyncio_streams on another loop."""

from __future__ import annotations

import uvloop

from benchmarks.peers.asyncio_streams import main

if __name__ == "__main__":
    uvloop.run(main())
