"""Whether there is a controlling terminal."""

from __future__ import annotations

import errno
import os

import pytest

from evloop.program.terminal import has_terminal


@pytest.mark.parametrize(("code", "there"), [(errno.ENXIO, False), (errno.ENOENT, False), (errno.EMFILE, True)])
def test_without_descriptors_nothing_is_known_so_it_is_not_gone(
    monkeypatch: pytest.MonkeyPatch, code: int, there: bool
) -> None:
    def fail(path: str, flags: int) -> int:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(os, "open", fail)
    assert has_terminal() is there
