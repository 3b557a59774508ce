"""What one more message costs, counted: calls of Python functions, calls of C functions, bytecode instructions.

They are the same on every run and every machine.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

# Sends a message on so many connections, serves them in one pass (or more), and takes the replies.
Exchange = Callable[..., None]


def in_project(frame: FrameType) -> bool:
    path = frame.f_code.co_filename.replace("\\", "/")
    return "/evloop/" in path and "/tests/" not in path


def calls(exchange: Exchange, connections: int, message: bytes, reply_size: int) -> Counter[str]:
    """The calls of one pass by name; those into C begin with ``c:``."""
    seen: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if not in_project(frame):
            return
        if event == "call":
            seen[frame.f_code.co_name] += 1
        elif event == "c_call":
            seen["c:" + argument.__name__] += 1

    exchange(2, message, reply_size, passes=3)  # a connection's first receives are small
    sys.setprofile(count)
    try:
        exchange(connections, message, reply_size)
    finally:
        sys.setprofile(None)
    return seen


def instructions(exchange: Exchange, connections: int, message: bytes, reply_size: int) -> int:
    """The bytecode instructions of one pass in this project's code."""
    seen = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        if not in_project(frame):
            return None
        frame.f_trace_opcodes = True
        seen += event == "opcode"
        return trace

    exchange(2, message, reply_size, passes=3)
    sys.settrace(trace)
    try:
        exchange(connections, message, reply_size)
    finally:
        sys.settrace(None)
    return seen


def instructions_of(function: Callable[[], object], within: str = "") -> int:
    """How many it takes, in files with ``within`` in their path, calls included."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if within not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        count += event in ("opcode", "call")
        return trace

    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(None)
    return count
