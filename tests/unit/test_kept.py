"""Modules that are kept for an upgrade."""

from __future__ import annotations

import errno
import sys

import pytest

from evloop.program.workers.kept import Kept, keep
from evloop.testing import MemoryLoop


@pytest.mark.parametrize(("code", "read"), [(errno.EMFILE, ["a", "b", "b", "c"]), (errno.EACCES, ["a", "b", "c"])])
def test_without_a_descriptor_it_is_read_later_and_what_cannot_be_read_is_left_out(monkeypatch, code, read):
    tries: list[str] = []

    def try_to_read(self: Kept, name: str) -> None:
        tries.append(name)
        if tries == ["a", "b"]:
            raise OSError(code, "injected")

    monkeypatch.setattr(Kept, "read", try_to_read)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    loop = MemoryLoop()
    keep(loop, ["a", "b", "c"])
    loop.advance(5)
    assert tries == read
    assert loop.timers == 0
