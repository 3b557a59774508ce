"""The units for systemd: systemd itself reads them, and the service runs as they say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from paths import ROOT, SERVER

UNITS = ("charcount.service", "charcount.socket")


pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def complaints(folder: Path, *change: str) -> list[str]:
    """What systemd finds wrong with the units, with one text in place of another if they are given."""
    for name in UNITS:
        text = (ROOT / "deploy" / name).read_text()
        # systemd looks whether the program is there.
        text = text.replace("/usr/local/bin/charcount-server", SERVER)
        (folder / name).write_text(text.replace(*change) if change else text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(folder / name) for name in UNITS)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == ""
    return [line for line in done.stderr.splitlines() if "charcount" in line]


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    assert complaints(tmp_path) == []


def test_it_would_find_something(tmp_path: Path) -> None:
    (line,) = complaints(tmp_path, "LimitNOFILE=12000", "LimitNOFILE=many")
    assert "charcount.service:14: Failed to parse resource value" in line
