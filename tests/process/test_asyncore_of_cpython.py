"""CPython's own tests of asyncore, asynchat and smtpd pass with ours in their place, and nothing is missing.

They come with Python 3.11, the last one that had them (Debian: libpython3.11-testsuite), and are run from there.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT

WITH_OURS = """
import sys, unittest
import evloop.compat.asyncore, evloop.compat.asynchat
sys.modules["asyncore"] = evloop.compat.asyncore
sys.modules["asynchat"] = evloop.compat.asynchat
"""

RUN = (
    WITH_OURS
    + """
left_out, *names = sys.argv[1:]
def all_of(suite):
    for one in suite:
        yield from all_of(one) if isinstance(one, unittest.TestSuite) else [one]
loader = unittest.TestLoader()
found = [test for name in names for test in all_of(loader.loadTestsFromName("test." + name))]
chosen = [test for test in found if not left_out or left_out not in test.id()]
for name in names:
    print(name, sum(test.id().startswith(f"test.{name}.") for test in chosen), flush=True)
result = unittest.TextTestRunner(verbosity=2).run(unittest.TestSuite(chosen))
used = {module.__file__ for name in names if (module := getattr(sys.modules["test." + name], "asyncore", None))}
assert used == {evloop.compat.asyncore.__file__}, used
sys.exit(not result.wasSuccessful())
"""
)

needs_them = pytest.mark.skipif(
    sys.version_info >= (3, 12) or sys.implementation.name != "cpython", reason="this Python has no asyncore any more"
)


def run(folder: Path, left_out: str, *names: str) -> dict[str, int]:
    """Run tests of CPython, and return how many of each module. ``left_out``: part of the names of some, or ''."""
    try:
        there = all(importlib.util.find_spec(f"test.{name}") for name in names)
    except ModuleNotFoundError:
        there = False
    if not there:
        pytest.skip("this Python was installed without its tests (Debian: apt install libpython3.11-testsuite)")
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", RUN, left_out, *names],
        cwd=folder,  # they write files
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: int(count) for name, count in re.findall(r"^(test_\w+) (\d+)$", done.stdout, re.M)}


@needs_them
def test_quick_ones(tmp_path: Path) -> None:
    """All but those that wait half a second."""
    ran = run(tmp_path, "quick_connect", "test_asyncore", "test_smtpd")
    assert ran["test_asyncore"] > 90
    assert ran["test_smtpd"] > 150


@pytest.mark.slow
@needs_them
@pytest.mark.parametrize(
    "name",
    [
        "test_asyncore",
        "test_asynchat",
        "test_smtpd",
        # Their servers are dispatchers.
        "test_ftplib",
        "test_poplib",
        "test_smtplib",
    ],
)
def test_all(tmp_path: Path, name: str) -> None:
    assert run(tmp_path, "", name)[name] > 20


COMPARE = """
import inspect, warnings
warnings.simplefilter("ignore")
import asyncore, asynchat
import evloop.compat.asyncore, evloop.compat.asynchat

def parameters(function):
    found = inspect.signature(function).parameters.values()
    return [(one.name, one.kind, one.default) for one in found if one.name != "loop"]

def compare(theirs, ours):
    for name, value in theirs.items():
        mine = getattr(ours, name)
        print(f"{ours.__name__}.{name}")
        if isinstance(value, type):
            compare({name: value for name, value in vars(value).items() if not name.startswith("__")}, mine)
        elif inspect.isfunction(value) and not name.startswith("_"):
            assert parameters(value) == parameters(mine), name

def defined_in(module):
    return {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}

constants = {name: vars(asyncore)[name] for name in ("socket_map", "_DISCONNECTED", "_reraised_exceptions")}
compare(defined_in(asyncore) | constants, evloop.compat.asyncore)
compare(defined_in(asynchat), evloop.compat.asynchat)
"""


@needs_them
def test_no_name_is_missing_and_no_parameter_differs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMPARE], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    assert {"evloop.compat.asyncore.loop", "dispatcher.connect", "async_chat.push", "file_wrapper.recv"} <= set(names)
    assert len(names) >= 80
