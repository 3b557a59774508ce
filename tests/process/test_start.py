"""What the commands import on the way to the first answer: what takes long to import is paid at each start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from interpreters import tells_imports
from paths import CLIENT
from processes import Process
from waiting import DEADLINE_S

# -S: what a virtual environment loads for its own sake is none of our doing.
PYTHON_OPTIONS = ("-S", "-X", "importtime")

# Among them are those that are easily taken on again: by a decorator, by a helper of two lines.
SLOW = {
    "asyncio",
    "concurrent",
    "contextlib",
    "copy",
    "dataclasses",
    "datetime",
    "difflib",
    "email",
    "http",
    "importlib.metadata",
    "importlib.resources",
    "inspect",
    "ipaddress",
    "json",
    "logging",
    "multiprocessing",
    "pathlib",
    "platform",
    "random",
    "readline",
    "shlex",
    "shutil",
    "ssl",
    "string",
    "subprocess",
    "tempfile",
    "textwrap",
    "threading",
    "traceback",
    "typing",
    "unittest",
    "urllib",
    "uuid",
}


# What any program loads that has an option. Python 3.14's argparse, for one, takes some of the above for its colours.
OF_ARGPARSE = "import argparse; argparse.ArgumentParser().add_argument('--option')"


pytestmark = tells_imports


@pytest.fixture(scope="module")
def slow() -> set[str]:
    """The modules that the commands must not load: all that are slow, but for those that argparse itself needs."""
    done = subprocess.run(
        [sys.executable, *PYTHON_OPTIONS, "-c", OF_ARGPARSE], capture_output=True, text=True, timeout=DEADLINE_S
    )
    of_argparse = imported(done.stderr)
    assert "argparse" in of_argparse
    return SLOW - of_argparse


def imported(stderr: str) -> set[str]:
    """The modules that ``-X importtime`` has listed."""
    lines = [line for line in stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_client(spawn, host, slow):
    port = spawn("--host", host).address[1]
    done = subprocess.run(
        [sys.executable, *PYTHON_OPTIONS, CLIENT, "--host", host, "--port", str(port), "hello"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert done.stdout == "5\n"
    modules = imported(done.stderr)
    assert {"argparse", "socket", "evloop.charcount.client"} <= modules
    assert modules & {*slow, "encodings.idna", "evloop.core.loop", "evloop.net.connection"} == set()


def test_server(spawn, slow):
    """Until it says that it listens; after the first answer it loads what it logs with."""
    server: Process = spawn(python_options=PYTHON_OPTIONS)
    modules = imported(server.log.partition("listening on")[0])
    assert {"argparse", "socket", "evloop.charcount.server", "evloop.core.loop"} <= modules
    assert modules & slow == set()
    # One process needs nothing of those that several need.
    assert {name for name in modules if name.startswith("evloop.program.")} == {
        "evloop.program.serve",
        "evloop.program.statustext",
        "evloop.program.terminal",
    }
