"""The loop that runs in this thread, if one does. For `evloop.protocols.tasks` only: all others are given theirs."""

from __future__ import annotations

from _thread import _local

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any


class _Running(_local):
    loop: Any = None


running = _Running()
