"""The machine, the Python and the code that figures are from: without them a number means nothing."""

from __future__ import annotations

import platform
import subprocess
import sysconfig
from pathlib import Path

from evloop_bench.common.paths import CHECKOUT


def cpu_model() -> str:
    """What the processor calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Hardware", "Model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown CPU"


def kernel() -> str:
    """The operating system and its version."""
    return f"{platform.system()} {platform.release()}"


def python_build() -> str:
    """Version and build of this Python, in words: two builds of one version differ by 15 % and more in speed.

    How CPython was built is read from the options it was configured with; paths among them are not shown. A
    distribution may do more than they say: Debian's packages are built with PGO and LTO, and leave no trace of it.
    """
    words = f"{platform.python_implementation()} {platform.python_version()}"
    options = sysconfig.get_config_var("CONFIG_ARGS")
    compiler = platform.python_compiler().strip()
    if not options or platform.python_implementation() != "CPython":
        return f"{words} ({compiler})" if compiler else words
    flags = " ".join(str(sysconfig.get_config_var(name) or "") for name in ("PY_CORE_CFLAGS", "PY_CORE_LDFLAGS"))
    found = [compiler or "unknown compiler"]
    pgo = "--enable-optimizations" in options or "-fprofile-use" in flags
    lto = "--with-lto" in options or "-flto" in flags
    found += [f"configured with{'' if pgo else 'out'} PGO", f"with{'' if lto else 'out'} LTO"]
    for option, name in (
        ("--enable-bolt", "BOLT"),
        ("--enable-experimental-jit", "JIT"),
        ("--disable-gil", "free-threaded"),
        ("--with-pydebug", "debug build"),
        ("--enable-shared", "shared library"),
    ):
        if option in options:
            found.append(name)
    return f"{words} ({', '.join(found)})"


def git(*arguments: str) -> str | None:
    """What git says of this checkout; None if this is none, if there is no git, or if it fails."""
    if CHECKOUT is None:
        return None  # installed, perhaps below a checkout of something else
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
