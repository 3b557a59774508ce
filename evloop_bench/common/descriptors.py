"""How many descriptors this process, and those that it starts, may have open."""

from __future__ import annotations

import resource


def raise_descriptor_limit(needed: int) -> bool:
    """Raise the limit to ``needed`` if it is lower: the hard one as well, for who may do that.

    Returns:
        whether so many are to be had. If not, the limit is the hard one now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return True
    enough = hard == resource.RLIM_INFINITY or hard >= needed
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard if enough else needed))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return False
    return True
