"""What a test needs of the Python it runs on, for those that not every Python can pass. Each says why."""

from __future__ import annotations

import sys

import pytest

_PYPY = sys.implementation.name == "pypy"

gives_memory_back = pytest.mark.skipif(
    _PYPY, reason="PyPy frees objects when its collector runs: the size of its process is not what the program holds"
)
frees_at_once = pytest.mark.skipif(_PYPY, reason="PyPy frees objects when its collector runs, and not when they drop")
loads_logging_fast = pytest.mark.skipif(
    _PYPY, reason="PyPy can take more than 0.1 s to load logging, and the watchdog says so, as it should"
)
measures_objects = pytest.mark.skipif(_PYPY, reason="PyPy does not tell the size of an object")
has_gnu_readline = pytest.mark.skipif(_PYPY, reason="PyPy's readline is its own, with other keys than GNU's")
tells_imports = pytest.mark.skipif(_PYPY, reason="PyPy has no -X importtime")
refuses_sigkill = pytest.mark.skipif(_PYPY, reason="PyPy's signal.signal takes SIGKILL without a word")
