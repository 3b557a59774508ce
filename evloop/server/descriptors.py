"""How many descriptors the process may have open, and how many connections that allows."""

from __future__ import annotations

# Beside connections: standard streams, selector, wake-up pair, listeners, a log file, and some to spare.
RESERVED_DESCRIPTORS = 32


def raise_descriptor_limit(connections: int) -> None:
    """Raise the soft descriptor limit, as far as the hard one allows, to what ``connections`` need. Never lowers it."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVED_DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # some systems have another limit above it: `affordable_connections` sees
            pass


def affordable_connections(wanted: int, selector_capacity: int | None) -> int:
    """``wanted``, lowered to what the descriptor limit and the selector allow, but at least 1.

    Args:
        wanted: how many connections there should be.
        selector_capacity: how many descriptors the selector can watch; None for any number.
    """
    ceilings = [wanted]
    if selector_capacity is not None:
        ceilings.append(selector_capacity - RESERVED_DESCRIPTORS)
    try:
        import resource
    except ImportError:
        pass
    else:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            ceilings.append(soft - RESERVED_DESCRIPTORS)
    return max(min(ceilings), 1)
