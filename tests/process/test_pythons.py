"""The script that runs the suite on several Pythons: what it says of each, and what it writes down."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from paths import ROOT
from waiting import DEADLINE_S

# A Python of which only the script's questions are answered; its environments have a pytest that does as it is told.
FAKE = """#!/bin/bash
case "$*" in
    *python_implementation*) echo "{version}" ;;
    "-m venv "*)
        mkdir -p "$3/bin"
        printf '#!/bin/bash\\n' > "$3/bin/pip"
        printf '#!/bin/bash\\n{pytest}\\n' > "$3/bin/pytest"
        chmod +x "$3/bin/pip" "$3/bin/pytest" ;;
    *version_info*) exit {old} ;;
esac
"""
PASSES = "echo 1234 passed, 5 skipped in 60.00s"
FAILS = "echo 1 failed, 7 passed in 1.00s; exit 1"
FAILS_AMONG_OTHERS = "echo 1 failed, 7 passed in 1.00s; [[ $* == *--last-failed* ]]"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".ci").mkdir()
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / ".ci" / "pythons", tmp_path / ".ci")
    page = (ROOT / "docs" / "pythons.md").read_text()
    kept = [line for line in page.splitlines(keepends=True) if not line.startswith(("| CPython", "| PyPy"))]
    (tmp_path / "docs" / "pythons.md").write_text("".join(kept))
    return tmp_path


def fake(root: Path, name: str, version: str, pytest: str, old: int = 0) -> str:
    path = root / name
    path.write_text(FAKE.format(version=version, pytest=pytest.replace("'", "'\\''"), old=old))
    path.chmod(0o755)
    return str(path)


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [root / ".ci" / "pythons", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={"PATH": os.environ["PATH"], "HOME": str(root)},
    )


def rows(root: Path) -> list[list[str]]:
    """The table's, without the system and the day."""
    lines = [line.strip("| ").split(" | ") for line in (root / "docs" / "pythons.md").read_text().splitlines()]
    return [[cells[0], cells[3]] for cells in lines if len(cells) == 4 and cells[0] != "Python"]


def test_what_came_of_each_is_said_and_written_once(root: Path) -> None:
    good = fake(root, "good", "CPython 3.99.0", PASSES)
    unlucky = fake(root, "unlucky", "CPython 3.98.1", FAILS_AMONG_OTHERS)
    bad = fake(root, "bad", "PyPy 3.97.2", FAILS)
    old = fake(root, "old", "CPython 3.10.1", PASSES, old=1)
    for _ in range(2):
        done = run(root, "--record", good, unlucky, bad, old, good, "no-such-python")
        assert done.returncode == 1
        assert done.stdout.partition("== in short\n")[2].splitlines() == [
            f"{good}: passed: CPython 3.99.0",
            f"{unlucky}: passed: CPython 3.98.1",
            f"{bad}: FAILED: PyPy 3.97.2",
            f"{old}: skipped: it is CPython 3.10.1, and evloop needs 3.11 or later",
            f"{good}: skipped: it is CPython 3.99.0, which has been run",
            "no-such-python: skipped: there is no such Python here",
        ]
        assert rows(root) == [
            ["CPython 3.99.0", "1234 passed, 5 skipped"],
            ["CPython 3.98.1", "1 passed when run again alone, 7 passed"],
            ["PyPy 3.97.2", "**failed**"],
        ]


def test_nothing_is_written_unless_asked(root: Path) -> None:
    done = run(root, fake(root, "good", "CPython 3.99.0", PASSES))
    assert done.returncode == 0
    assert rows(root) == []
