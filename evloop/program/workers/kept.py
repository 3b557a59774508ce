"""Modules as they were when this process started, for when they are needed.

A process that is upgraded needs modules which it has not loaded so far, and on disk they may be those of the next
version by then: made for other classes than this process has. So their code is read soon after the start, and kept as
bytes, 150 KB; to load them would take a megabyte, in every process that is never upgraded. Modules of the
standard library are not kept: a Python that is replaced under a running program has more of such troubles.
"""

from __future__ import annotations

import marshal
import struct
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

from evloop.core.loop import Loop
from evloop.errors import EXHAUSTED

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from types import ModuleType

# What `evloop.program.workers.upgrade` loads in the old process, and what that may load later.
UPGRADE = (
    "evloop.net.proxyheader",
    "evloop.net.moving",
    "evloop.server.unixsockets",
    "evloop.server.handover",
    "evloop.program.workers.messages",
    "evloop.program.workers.channel",
    "evloop.program.workers.role",
    "evloop.program.workers.spawn",
    "evloop.program.workers.slotsockets",
    "evloop.program.workers.succession",
    "evloop.program.workers.upgrade",
)

# When to try again to read one for which there was no descriptor.
_AGAIN_S = 1.0

# Before the code in a file of compiled code (PEP 552).
_PYC_HEADER_BYTES = 16
_OF_SOURCE = struct.Struct("<III")  # flags, the source's time and size; after a magic number


class Kept:
    """Code of modules, to be imported from here and not from disk.

    Attributes:
        code: what was kept, by the module's name: its file, and its code.
    """

    def __init__(self) -> None:
        self.code: dict[str, tuple[str, bytes]] = {}

    def read(self, name: str) -> None:
        """Keep a module, unless it is loaded already, or there is none."""
        if name in sys.modules:
            return
        package = sys.modules.get(name.rpartition(".")[0])
        spec = None if package is None else PathFinder.find_spec(name, package.__path__)
        if spec is None or spec.origin is None or not isinstance(spec.loader, SourceFileLoader):
            return
        loader = spec.loader
        stats = loader.path_stats(spec.origin)
        of_this_source = _OF_SOURCE.pack(0, int(stats["mtime"]) & 0xFFFFFFFF, int(stats["size"]) & 0xFFFFFFFF)
        try:
            code = loader.get_data(spec.cached or "")
        except OSError:  # this Python keeps none
            code = b""
        if code[4:_PYC_HEADER_BYTES] != of_this_source:
            code = bytes(_PYC_HEADER_BYTES) + marshal.dumps(loader.get_code(name))
        self.code[name] = (spec.origin, code)

    # ------------------------------------------------------------------ what the import system asks for

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """How to load a module that is kept."""
        if name not in self.code:
            return None
        spec = ModuleSpec(name, self, origin=self.code[name][0])  # type: ignore[arg-type]
        spec.has_location = True  # so that it has a __file__
        return spec

    def create_module(self, _spec: ModuleSpec) -> ModuleType | None:
        """The usual one."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Run its code."""
        code = memoryview(self.code.pop(module.__name__)[1])[_PYC_HEADER_BYTES:]
        exec(marshal.loads(code), module.__dict__)


def keep(loop: Loop, names: Sequence[str] = UPGRADE) -> None:
    """Keep modules, one in a pass, so that nobody waits for it."""
    kept = Kept()
    sys.meta_path.insert(0, kept)

    def read_next(position: int) -> None:
        if position == len(names):
            return
        try:
            kept.read(names[position])
        except OSError as error:
            if error.errno in EXHAUSTED:
                loop.call_later(_AGAIN_S, read_next, position)
                return
        loop.call_later(0, read_next, position + 1)

    read_next(0)
