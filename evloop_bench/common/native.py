"""Builds the C programs (the generator, the bare epoll server) with the system's compiler, once for each version."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_FLAGS = ("-O2", "-Wall", "-Wextra")


class BuildError(Exception):
    """There is no program. The text says why, in one line."""


def compiler() -> str | None:
    """The C compiler, or None."""
    wanted = os.environ.get("CC")
    return shutil.which(wanted) if wanted else shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build(source: Path) -> Path:
    """The compiled program, from the user's cache directory if it is there.

    Raises:
        BuildError: no compiler, or it failed.
    """
    cc = compiler()
    if cc is None:
        raise BuildError("no C compiler (install one, for instance: apt install gcc libc6-dev)")
    key = hashlib.sha256(source.read_bytes() + " ".join((cc, *_FLAGS)).encode()).hexdigest()[:16]
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evloop-benchmarks"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        directory = Path(tempfile.mkdtemp(prefix="evloop-benchmarks-"))
    program = directory / f"{source.stem}-{key}"
    if not program.exists():
        # Under another name first, so that a program that is there is always whole.
        unfinished = directory / f"{program.name}.{os.getpid()}"
        result = subprocess.run(
            [cc, *_FLAGS, "-o", str(unfinished), str(source), "-lm"], capture_output=True, text=True, timeout=120
        )
        if result.returncode != 0:
            raise BuildError(f"cannot compile {source.name}: {result.stderr.strip().splitlines()[-1:]}")
        unfinished.replace(program)
    return program


def compiler_version() -> str:
    """The first line of what the compiler says of itself; empty without one."""
    cc = compiler()
    if cc is None:
        return ""
    return subprocess.run([cc, "--version"], capture_output=True, text=True, timeout=20).stdout.partition("\n")[0]
