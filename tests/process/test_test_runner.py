"""The tests themselves: a plain ``pytest`` works, with pytest-xdist and without it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from paths import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "-n 0", "-p no:xdist"])
def test_a_plain_pytest_works(options: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options.split(), "tests/unit/test_ratelimit.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed in " in done.stdout
    assert ("workers [" in done.stdout) is (options == "" and "xdist" in sys.modules)
