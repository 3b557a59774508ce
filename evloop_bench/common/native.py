"""Builds the C programs (the generator, the bare epoll server) with the system's compiler, once for each version."""

from __future__ import annotations

import hashlib
import os
import re
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


def build(source: Path, tls_part: Path | None = None) -> Path:
    """The compiled program, from the user's cache directory if it is there.

    Args:
        tls_part: what the source includes if it is built with TLS (by OpenSSL); then it is.

    Raises:
        BuildError: no compiler, no OpenSSL to compile with, or it failed.
    """
    cc = compiler()
    if cc is None:
        raise BuildError("no C compiler (install one, for instance: apt install gcc libc6-dev)")
    flags = _FLAGS if tls_part is None else (*_FLAGS, "-DWITH_TLS")
    libraries = ("-lm",) if tls_part is None else ("-lm", "-lssl", "-lcrypto")
    text = source.read_bytes() + (b"" if tls_part is None else tls_part.read_bytes())
    key = hashlib.sha256(text + " ".join((cc, *flags)).encode()).hexdigest()[:16]
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
            [cc, *flags, "-o", str(unfinished), str(source), *libraries], capture_output=True, text=True, timeout=120
        )
        if result.returncode != 0:
            if tls_part is not None and re.search(r"openssl/\w+\.h|-lssl|-lcrypto", result.stderr):
                raise BuildError("OpenSSL's headers are missing (install them, for instance: apt install libssl-dev)")
            raise BuildError(f"cannot compile {source.name}: {result.stderr.strip().splitlines()[-1:]}")
        unfinished.replace(program)
    return program


def compiler_version() -> str:
    """The first line of what the compiler says of itself; empty without one."""
    cc = compiler()
    if cc is None:
        return ""
    return subprocess.run([cc, "--version"], capture_output=True, text=True, timeout=20).stdout.partition("\n")[0]
