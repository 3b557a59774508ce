"""How fast the machine is at the moment: a fixed amount of work, timed.

A processor has fast hours and slow ones: its clock changes, and on a virtual machine so do its neighbours. Ratios are
taken within a round because of that, and hold as long as the machine does not change in the middle of one. So the same
work is timed before each run, on the server's core, and a round in which the times differ is done again.

The work is what a server's is made of: some Python, and system calls that copy a few bytes. It is timed by the thread's
CPU time, as servers are, so that waiting for the core does not count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from evloop_bench.common.processes import pinned_to

_TURNS = 15
_EXCHANGES_PER_TURN = 1500
_MESSAGE = bytes(32)

# A round is steady if its slowest calibration takes at most so many times its quickest. While other programs use the
# machine that is up to 1.13; from a fast hour of this processor to a slow one it is 1.35.
STEADY_WITHIN = 1.15


def calibrate(core: int) -> float:
    """Time the work on a core.

    Returns:
        microseconds of CPU for an exchange through a pipe, of the quickest of a few turns: what disturbs only adds.
    """
    reader, writer = os.pipe()
    try:
        with pinned_to([core]):
            _exchange(reader, writer)  # the core wakes up, and the caches are warm
            return min(_exchange(reader, writer) for _ in range(_TURNS))
    finally:
        os.close(reader)
        os.close(writer)


def _exchange(reader: int, writer: int) -> float:
    read, write = os.read, os.write
    start_ns = time.thread_time_ns()
    for _ in range(_EXCHANGES_PER_TURN):
        write(writer, _MESSAGE)
        line = read(reader, 479)
        str(len(line.decode())).encode()
    return (time.thread_time_ns() - start_ns) / _EXCHANGES_PER_TURN / 1000


def spread(times_us: Sequence[float]) -> float:
    """How many times the quickest the slowest is; 1.0 if nothing was timed."""
    return max(times_us) / min(times_us) if times_us else 1.0
