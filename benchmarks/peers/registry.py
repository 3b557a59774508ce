"""Which servers there are to compare, what each stands for, and how it is started."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from evloop_bench.common import native
from evloop_bench.common.paths import ROOT

_HERE = Path(__file__).resolve().parent

# What each kind means; printed under every table.
KINDS = {
    "ours": "this project's server, with all its limits, time-outs and counters on",
    "tuned": "runs this project's own counting session: only the loop differs",
    "idiomatic": "what a user of that library would write",
    "floor": "the least loop that CPython can run, with that session; no server, but the limit of pure Python",
    "native": "the same service written in C: the practical limit",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to compare.

    Attributes:
        name: as on the command line and in tables.
        kind: a key of `KINDS`.
        command: makes the argument list; port 0. May raise `native.BuildError`.
        requires: the Python package it needs, or ``"node"``, or ``"cc"``; empty for nothing.
        answers_half_close: also answers an unterminated last message, after the client's end of input.
        reports_invalid: answers invalid UTF-8 with the protocol's error.
        only_in: the scenarios that it takes part in unless it is asked for; empty for all.
        python: the interpreter that runs it, if that is not ours.
        over_tls: makes the argument list for serving by TLS with the certificate and key in a file; None if it can't.
        environment: variables that it gets beside ours; of ours, those for malloc are left out.
    """

    name: str
    kind: str
    command: Callable[[], list[str]]
    requires: str = ""
    answers_half_close: bool = True
    reports_invalid: bool = True
    only_in: tuple[str, ...] = ()
    python: str = ""
    over_tls: Callable[[Path], list[str]] | None = None
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)

    def missing(self) -> str | None:
        """Why it can't run here, or None."""
        if self.python and shutil.which(self.python) is None:
            return f"there is no {self.python}"
        if self.requires == "cc":
            return None if native.compiler() else "no C compiler"
        if self.requires == "node":
            return None if shutil.which("node") else "node is not installed"
        if self.requires and importlib.util.find_spec(self.requires) is None:
            return f"{self.requires} is not installed"
        return None

    def version(self) -> str:
        """Of what it is built on."""
        if self.python:
            code = "from evloop_bench.common.machine import python_build; print(python_build())"
            return subprocess.run([self.python, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        if self.requires == "cc":
            return native.compiler_version()
        if self.requires == "node":
            return "node " + subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
        if self.requires:
            try:
                return f"{self.requires} {importlib.metadata.version(self.requires)}"
            except importlib.metadata.PackageNotFoundError:  # it can be imported, but nobody has installed it
                return f"{self.requires} of unknown version"
        return f"Python {sys.version.split()[0]}"


def _module(name: str, *arguments: str) -> Callable[[], list[str]]:
    return lambda: [sys.executable, "-m", f"benchmarks.peers.{name}", "0", *arguments]


def _module_over_tls(name: str) -> Callable[[Path], list[str]]:
    return lambda certificate: _module(name, str(certificate))()


def _evloop(*where: str, python: str = sys.executable) -> list[str]:
    return [
        python,
        str(ROOT / "bin" / "charcount-server"),
        *(where or ("--port", "0")),
        *("--log-level", "warning"),
        *("--idle-timeout", "600", "--message-timeout", "60", "--max-connections", "15000"),
    ]


def _evloop_over_tls(certificate: Path, python: str = sys.executable) -> list[str]:
    return _evloop("--listen", "tls:127.0.0.1:0", "--tls-cert", str(certificate), python=python)


def _keeping_memory(peer: Peer) -> Peer:
    """The same server with a malloc that does not give the memory of a freed buffer back to the kernel.

    asyncio reads into a new buffer of 256 KiB each time, and with TLS uvloop does, too. Unless glibc's malloc is told
    otherwise it takes that from the kernel and gives it back, and every message pays for the system calls and the page
    faults. Each of the two variables alone helps, the two together always (see docs/versus.md). Both are far above
    anything that is allocated here.
    """
    raised = {"MALLOC_MMAP_THRESHOLD_": str(64 * 1024 * 1024), "MALLOC_TRIM_THRESHOLD_": str(256 * 1024 * 1024)}
    return replace(peer, name=f"{peer.name}-malloc", environment=raised)


def _with_and_without(peer: Peer) -> tuple[Peer, Peer]:
    return peer, _keeping_memory(peer)


OURS = "evloop"
# Where the loop is what differs: for those that are compared for its sake.
_LOOP_IN = ("inflight-1", "inflight-16", "inflight-256", "churn")

PEERS = {
    peer.name: peer
    for peer in (
        Peer(OURS, "ours", _evloop, over_tls=_evloop_over_tls),
        Peer("c-epoll", "native", lambda: [str(native.build(_HERE / "c_epoll.c")), "0"], "cc"),
        Peer(
            "python-floor",
            "floor",
            _module("python_floor"),
            only_in=_LOOP_IN,
            over_tls=_module_over_tls("python_floor_tls"),
        ),
        Peer("python-floor-et", "floor", _module("python_floor", "edge-triggered"), only_in=_LOOP_IN),
        *(
            peer
            for loop, package in (("uvloop", "uvloop"), ("asyncio", ""))
            for peer in _with_and_without(
                Peer(
                    f"{loop}-protocol",
                    "tuned",
                    _module(f"{loop}_protocol"),
                    package,
                    over_tls=_module_over_tls(f"{loop}_protocol"),
                )
            )
        ),
        Peer("twisted", "tuned", _module("twisted_protocol"), "twisted"),
        Peer("gevent", "tuned", _module("gevent_server"), "gevent"),
        Peer("trio", "tuned", _module("trio_server"), "trio"),
        *(
            Peer(f"evloop-{kind}", "idiomatic", _module("evloop_handlers", kind), only_in=_LOOP_IN)
            for kind in ("lines", "batches", "on-line", "on-lines")
        ),
        Peer("trio-line", "idiomatic", _module("trio_lines", "line"), "trio", only_in=_LOOP_IN),
        Peer("trio-chunk", "idiomatic", _module("trio_lines", "chunk"), "trio", only_in=_LOOP_IN),
        Peer("curio-streams", "idiomatic", _module("curio_streams"), "curio", only_in=_LOOP_IN),
        Peer("node-net", "idiomatic", lambda: ["node", str(_HERE / "node_net.js"), "0"], "node", reports_invalid=False),
        *_with_and_without(Peer("uvloop-streams", "idiomatic", _module("uvloop_streams"), "uvloop")),
        *_with_and_without(Peer("asyncio-streams", "idiomatic", _module("asyncio_streams"))),
        Peer("tornado", "idiomatic", _module("tornado_stream"), "tornado", answers_half_close=False),
        Peer("socketserver", "idiomatic", _module("socketserver_threads")),
    )
}


def ours_under(name: str, python: str) -> Peer:
    """Our server under another Python, as ``evloop@NAME``."""
    return Peer(
        f"{OURS}@{name}",
        "ours",
        lambda: _evloop(python=python),
        only_in=_LOOP_IN,
        python=python,
        over_tls=lambda certificate: _evloop_over_tls(certificate, python),
    )


def kind_of(name: str) -> str:
    """The kind of a server; empty for what is none, and for one that is no longer here."""
    peer = PEERS.get(name.partition("@")[0])
    return peer.kind if peer else ""
