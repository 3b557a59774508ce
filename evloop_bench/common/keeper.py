"""Ends a started server when the process that started it is gone: ``keeper.py``, with orders on stdin.

A process that is killed by SIGKILL can't stop what it has started. But the kernel closes its end of a pipe, and the
process at the other end sees that: this one. It is told the process group of the server, a number in a line, and then
waits. ``done`` ends it; the end of its input means that nobody is left to say so.

Run as a script, with the least of Python that there is: it is there for as long as the measuring lasts.
"""

from __future__ import annotations

import os
import signal
import sys
import time

# For a server that answers what it has received before it ends.
_GRACE_S = 5.0
_LOOK_EVERY_S = 0.02


def main() -> None:
    """Wait for orders."""
    group = 0
    for line in sys.stdin:
        if line.strip() == "done":
            return
        group = int(line)
    if group:
        end_group(group)


def end_group(group: int) -> None:
    """End a process group: by SIGTERM, and what is left of it after a while by SIGKILL."""
    try:
        os.killpg(group, signal.SIGCONT)  # it may have been stopped
        os.killpg(group, signal.SIGTERM)
        for _ in range(int(_GRACE_S / _LOOK_EVERY_S)):  # not by the clock: we may be stopped as well
            os.killpg(group, 0)
            time.sleep(_LOOK_EVERY_S)
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # nobody is left


if __name__ == "__main__":
    main()
