"""Which process listens where we want to: for the error message that says why we can't."""

from __future__ import annotations

import os
from pathlib import Path

_LISTENING = "0A"  # as the kernel writes this state of a TCP socket in its tables


def owner_of_port(port: int) -> str | None:
    """The process that listens on a TCP port, as ``name (pid 123)``.

    None where it can't be told: on systems without Linux's ``/proc``, and when it is another user's.
    """
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            descriptors = process / "fd"
            if any(os.readlink(descriptors / number) in wanted for number in os.listdir(descriptors)):
                return process_name(int(process.name))
        except OSError:  # not ours to look at, or gone meanwhile
            continue
    return None


def process_name(pid: int) -> str:
    """A process, as ``name (pid 123)``; without a name where it can't be told."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()  # a process may call itself anything
    except OSError:
        return f"a process (pid {pid})"
    return f"{''.join(c if c.isprintable() else '?' for c in name)} (pid {pid})"


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            # Slot, local address, remote address, state, four counters and timers, user, time-outs, inode.
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes
