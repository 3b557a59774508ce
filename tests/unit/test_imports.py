"""What imports what: the layers of the project are a promise, and this holds it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from paths import ROOT

# Each module imports from those above it only: the folders in their order, and inside a folder too.
ORDER = [
    "evloop._version",
    "evloop.errors",
    "evloop.limits",
    "evloop.log",
    "evloop.ratelimit",
    "evloop.core.timers",
    "evloop.core.poller",
    "evloop.core.memory",
    "evloop.core.signals",
    "evloop.core.watchdog",
    "evloop.core.threads",
    "evloop.core.running",
    "evloop.core.loop",
    "evloop.net.endpoint",
    "evloop.net.proxyheader",
    "evloop.net.state",
    "evloop.net.receiving",
    "evloop.net.buffers",
    "evloop.net.sockets",
    "evloop.net.trustedpeers",
    "evloop.net.linger",
    "evloop.net.tlsinfo",
    "evloop.net.protocol",
    "evloop.net.stream",
    "evloop.net.connection",
    "evloop.net.moving",
    "evloop.net.unexpectedheader",
    "evloop.net.sweeper",
    "evloop.net.tlsfailure",
    "evloop.net.tlsqueue",
    "evloop.net.tlsstream",
    "evloop.net.tls",
    "evloop.net.tlsfiles",
    "evloop.net.tlssettings",
    "evloop.net.resolver",
    "evloop.net.attempt",
    "evloop.net.connector",
    "evloop.net.memory",
    "evloop.protocols.answers",
    "evloop.protocols.lineframer",
    "evloop.protocols.lines",
    "evloop.protocols.framings",
    "evloop.protocols.messages",
    "evloop.protocols.readbuffer",
    "evloop.protocols.tasks",
    "evloop.protocols.taskgroup",
    "evloop.protocols.waiting",
    "evloop.protocols.conversation",
    "evloop.protocols.streams",
    "evloop.protocols.handlers",
    "evloop.eventloop",  # what it opens may be a handler's
    "evloop.server.portowner",
    "evloop.server.descriptors",
    "evloop.server.tcpsockets",
    "evloop.server.unixsockets",
    "evloop.server.opening",
    "evloop.server.listener",
    "evloop.server.countdown",
    "evloop.server.room",
    "evloop.server.stats",
    "evloop.server.refusals",
    "evloop.server.proxygate",
    "evloop.server.sharedcounts",
    "evloop.server.population",
    "evloop.server.server",
    "evloop.compat.events",
    "evloop.compat.files",
    "evloop.compat.watching",
    "evloop.compat.asyncore",
    "evloop.compat.asynchat",
    "evloop.server.handover",
    "evloop.testing",
    "evloop.program.systemd",
    "evloop.program.notify",
    "evloop.program.terminal",
    "evloop.program.statustext",
    "evloop.program.workers.statuses",
    "evloop.program.workers.messages",
    "evloop.program.workers.channel",
    "evloop.program.workers.health",
    "evloop.program.workers.role",
    "evloop.program.workers.cores",
    "evloop.program.workers.lifeline",
    "evloop.program.workers.spawn",
    "evloop.program.workers.passing",
    "evloop.program.workers.slotsockets",
    "evloop.program.workers.worker",
    "evloop.program.workers.workerprocess",
    "evloop.program.workers.door",
    "evloop.program.workers.slot",
    "evloop.program.workers.reload",
    "evloop.program.workers.statusround",
    "evloop.program.workers.succession",
    "evloop.program.workers.upgrade",
    "evloop.program.workers.kept",
    "evloop.program.workers.crew",
    "evloop.program.workers.supervisor",
    "evloop.program.workers.service",
    "evloop.program.serve",
    "evloop.charcount.counting",
    "evloop.charcount.session",
    "evloop.charcount.server",
    "evloop.charcount.wire",
    "evloop.charcount.tlswire",
    "evloop.charcount.connecting",
    "evloop.charcount.client",
    "evloop.charcount.pump",
    "evloop.charcount.cli.streams",
    "evloop.charcount.cli.arguments",
    "evloop.charcount.cli.",
]

# They may name each other: a protocol has its connection, whose type it wants to tell.
PARTNERS = ("evloop.net.protocol", "evloop.net.connection")

# Tested without I/O, and run unchanged under other event loops.
SANS_IO = [
    "evloop.errors",
    "evloop.core.timers",
    "evloop.net.endpoint",
    "evloop.net.proxyheader",
    "evloop.net.buffers",
    "evloop.net.receiving",
    "evloop.net.tlsfailure",
    "evloop.net.tlsqueue",
    "evloop.protocols.lineframer",
    "evloop.protocols.readbuffer",
    "evloop.program.systemd",
    "evloop.program.workers.messages",
    "evloop.program.workers.health",
    "evloop.charcount.counting",
    "evloop.charcount.session",
]
IO_MODULES = {"socket", "_socket", "select", "selectors", "ssl", "asyncio"}


def rank(module: str) -> int:
    for number, name in enumerate(ORDER):
        if module == name or (name.endswith(".") and module.startswith(name)):
            return number
    raise AssertionError(f"{module} has no place in the order of imports: give it one")


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "evloop").rglob("*.py")):
        if path.name != "__init__.py":
            found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = path
    return found


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@cache
def imports(module: str, annotations: bool = False) -> frozenset[str]:
    """What a module imports when it runs, at its top or inside a function, as full names; or for annotations, too."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute here"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in modules() else node.module)
        elif isinstance(node, ast.If) and is_type_checking(node.test):
            for child in [*node.body, *node.orelse] if annotations else node.orelse:
                visit(child)
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(modules()[module].read_text(encoding="utf-8")))
    return frozenset(found)


def imports_of_imports(module: str) -> set[str]:
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        for name in imports(waiting.pop()):
            if name not in reached:
                reached.add(name)
                if name in modules():
                    waiting.append(name)
    return reached


def test_the_modules_are_found():
    assert {"evloop.core.loop", "evloop.charcount.session", "evloop.charcount.cli.server"} <= set(modules())
    assert "evloop.net.buffers" in imports("evloop.net.connection")
    assert "socket" in imports_of_imports("evloop.server.server")


@pytest.mark.parametrize("module", modules())
def test_imports_point_to_what_is_above_only(module):
    for name in imports(module, annotations=True):
        if (module, name) != PARTNERS and name.split(".")[0] == "evloop":
            assert name in modules(), (
                f"{module} imports the package {name}: import the module that defines what it needs"
            )
            last = rank(name) == rank(module) == len(ORDER) - 1
            assert rank(name) < rank(module) or last, f"{module} imports {name}"


@pytest.mark.parametrize("module", modules())
def test_nothing_outside_the_standard_library_is_imported(module):
    outside = {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names - {"evloop"}
    assert not outside


@pytest.mark.parametrize("module", SANS_IO)
def test_sans_io_modules_import_no_io(module):
    reached = imports_of_imports(module)
    assert not reached & IO_MODULES
    # Nor do the parts of the standard library that they import.
    standard = sorted(name for name in reached if name.split(".")[0] != "evloop")
    code = f"import sys, {', '.join(standard)}; print(sorted(set(sys.modules) & {IO_MODULES!r}))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["evloop", "evloop.charcount.cli.server"])
def test_start_up_imports_nothing_heavy(module):
    heavy = {"asyncio", "ssl", "concurrent.futures", "multiprocessing", "http", "email", "unittest"}
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {heavy!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "[]"


def test_the_architecture_page_lists_these_modules_in_this_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text().partition("## The modules")[2].partition("\n## ")[0]
    listed = [
        f"evloop.{name}"
        for line in page.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([\w.]+)`", line.split("|")[1])
    ]
    inside_cli = ("evloop.charcount.cli.streams", "evloop.charcount.cli.arguments")
    order = [name.rstrip(".") for name in ORDER if name not in ("evloop._version", *inside_cli)]
    assert listed == order
