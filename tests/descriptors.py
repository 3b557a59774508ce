"""The open descriptors of the test process, in words: for the check that every test closes what it opened."""

from __future__ import annotations

import os
import socket
import stat


def open_descriptors() -> dict[int, str]:
    """The open descriptors of this process, each with what it is, in words. Empty where that can't be found out."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            numbers = [int(name) for name in os.listdir(folder)]
        except OSError:
            continue
        found = {}
        for number in numbers:
            try:
                mode = os.fstat(number).st_mode  # fails for the descriptor that listed the folder: it is closed
                found[number] = _describe(folder, number, mode)
            except OSError:
                pass
        return found
    return {}


def _describe(folder: str, number: int, mode: int) -> str:
    try:
        name = os.readlink(f"{folder}/{number}")
    except OSError:
        name = stat.filemode(mode)
    return name


def describe_socket(number: int) -> str:
    """The two ends of a socket in words, or an empty string if it isn't one."""
    try:
        duplicate = socket.socket(fileno=os.dup(number))
    except OSError:
        return ""
    try:
        ends = []
        for get_name in (duplicate.getsockname, duplicate.getpeername):
            try:
                ends.append(str(get_name()))
            except OSError:
                ends.append("-")
        return f" {duplicate.family.name} {ends[0]} -> {ends[1]}"
    finally:
        duplicate.close()
