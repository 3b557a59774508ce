"""Fill in the tables of docs/analysis.md, its translation and docs/performance.md from what ``versus.py --json`` wrote.

``python benchmarks/fill_tables.py docs/results/versus.json``. The lines of a table stand between two comments that a
browser does not show, ``<!-- figures: NAME -->`` and ``<!-- end -->``; its head, in the document's language, is kept.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

if not __package__:
    __import__("_root")

from benchmarks.comparison.files import FileError, read_document, write_whole
from benchmarks.comparison.results import Results
from benchmarks.comparison.scenarios import OVER_TLS, SCENARIOS
from benchmarks.comparison.statistics import Estimate
from benchmarks.peers.registry import OURS, PEERS
from evloop_bench.common.arguments import Parser
from evloop_bench.common.paths import ROOT
from evloop_bench.common.streams import EXIT_CANNOT_RUN, EXIT_FAILED, EXIT_OK, print_error, run_program

ANALYSES = (ROOT / "docs" / "analysis.md", ROOT / "docs" / "analysis.id.md")
DOCUMENTS = (*ANALYSES, ROOT / "docs" / "performance.md")

EXIT_DIFFERENT = EXIT_FAILED

_SERVERS = ("c-epoll", OURS, "uvloop-protocol", "asyncio-protocol", "asyncio-streams", "socketserver")
_CONNECTIONS = ("connections-10", "connections-100", "connections-1000", "connections-10000")
_IN_FLIGHT = ("inflight-1", "inflight-16", "inflight-256")
_TLS = ("tls-1", "tls-16", "tls-records", "tls-churn", "tls-resume", "tls-idle-memory")
_WITHOUT_TLS = {"tls-1": "inflight-1", "tls-16": "inflight-16"}
_NOTHING = "–"

# The callback for one line, to which all others are compared that are written line by line.
_ON_LINE = "evloop-on-line"
_LINE_BY_LINE = (
    *(_ON_LINE, "evloop-on-lines", "evloop-lines", "evloop-batches"),
    *("asyncio-streams", "asyncio-streams-malloc", "uvloop-streams", "uvloop-streams-malloc"),
    *("trio-line", "trio-chunk", "curio-streams"),
)
# A server, a scenario, to what it is compared, and at most or at least how many times that it may cost.
_AIMS = (
    ("evloop-lines", "inflight-1", _ON_LINE, "at most", 1.07),
    ("evloop-lines", "inflight-16", "evloop-on-lines", "at most", 1.35),
    ("evloop-batches", "inflight-16", "evloop-on-lines", "at most", 1.10),
    ("evloop-batches", "inflight-256", "evloop-on-lines", "at most", 1.10),
    ("asyncio-streams", "inflight-16", "evloop-lines", "at least", 8.0),
)

_TABLE = re.compile(
    r"(?P<head><!-- figures: (?P<name>[\w-]+) -->\n\n?\|[^\n]*\n\|[^\n]*\n)"
    r"(?P<lines>(?:\|[^\n]*\n)*)(?=\n?<!-- end -->)"
)


def _significant(value: float | None) -> str:
    """Three digits of it."""
    if value is None:
        return _NOTHING
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def _found(results: Results, scenario: str, server: str, figure: str) -> float | None:
    estimate = results.estimate(scenario, server, figure)
    return None if estimate is None else estimate.value


def _servers(results: Results) -> Iterator[list[str]]:
    """Server, kind, CPU per message at 1 in flight, how many times ours, CPU at 16, bytes of an idle connection."""
    for server in _SERVERS:
        ratio = results.ratio("inflight-1", server, "cpu_us")
        yield [
            server,
            PEERS[server].kind,
            _significant(_found(results, "inflight-1", server, "cpu_us")),
            _NOTHING if ratio is None else f"{ratio.value:.2f}",
            _significant(_found(results, "inflight-16", server, "cpu_us")),
            _significant(_found(results, "memory", server, "bytes")),
        ]


def _latency(results: Results) -> Iterator[list[str]]:
    """Connections, in flight on each, messages a second, that many in flight over it in ms, median and p99 in ms."""
    for name in (*_CONNECTIONS, *_IN_FLIGHT):
        scenario = SCENARIOS[name]
        rate = _found(results, name, OURS, "per_s")
        expected_us = None if rate is None else scenario.connections * scenario.depth / rate * 1e6
        times_us = [expected_us, *(_found(results, name, OURS, figure) for figure in ("p50_us", "p99_us"))]
        yield [
            f"{scenario.connections:,}",
            str(scenario.depth),
            _NOTHING if rate is None else f"{rate:,.0f}",
            *(_NOTHING if time_us is None else _significant(time_us / 1000) for time_us in times_us),
        ]


def _kernel(results: Results) -> Iterator[list[str]]:
    """Server, then for 1 and for 16 in flight: microseconds of a message in the kernel, and outside of it."""
    for server in _SERVERS:
        line = [server]
        for scenario in ("inflight-1", "inflight-16"):
            cpu_us = _found(results, scenario, server, "cpu_us")
            share = _found(results, scenario, server, "kernel_share")
            if cpu_us is None or share is None:
                line += [_NOTHING, _NOTHING]
            else:
                line += [_significant(cpu_us * share), _significant(cpu_us * (1 - share))]
        yield line


def _tls(results: Results) -> Iterator[list[str]]:
    """Server, then for each scenario with TLS: ours as measured, of others how many times ours. At last ours, times
    the same without TLS."""
    for server in (*OVER_TLS, "python-floor"):
        line = [server]
        for name in _TLS:
            if server not in (SCENARIOS[name].servers or ()):
                line.append("")
                continue
            metric = SCENARIOS[name].metric
            if server == OURS:
                line.append(_significant(_found(results, name, OURS, metric)))
            else:
                line.append(_times(results.ratio(name, server, metric)))
        yield line
    growths = {name: results.growth(name, base, OURS, SCENARIOS[name].metric) for name, base in _WITHOUT_TLS.items()}
    yield ["ours, times plaintext", *(_times(growths[name]) if name in growths else "" for name in _TLS)]


def _times(ratio: Estimate | None) -> str:
    return _NOTHING if ratio is None else f"×{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def _line_by_line(results: Results) -> Iterator[list[str]]:
    """Server, CPU per message at 1 in flight, then for each depth how many times that of the callback for one line."""
    for server in _LINE_BY_LINE:
        ratios = [results.ratio(scenario, server, "cpu_us", _ON_LINE) for scenario in _IN_FLIGHT]
        yield [
            server,
            _significant(_found(results, "inflight-1", server, "cpu_us")),
            *(_NOTHING if ratio is None else f"×{_significant(ratio.value)}" for ratio in ratios),
        ]


def _aims(results: Results) -> Iterator[list[str]]:
    """Server, in flight, compared to what, the aim, the ratio with its interval, whether it meets the aim."""
    for server, scenario, other, bound, aim in _AIMS:
        ratio = results.ratio(scenario, server, "cpu_us", other)
        line = [server, str(SCENARIOS[scenario].depth), other, f"{bound} ×{aim:g}"]
        if ratio is None:
            yield [*line, _NOTHING, _NOTHING]
        else:
            met = ratio.value <= aim if bound == "at most" else ratio.value >= aim
            yield [*line, f"×{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})", "yes" if met else "no"]


TABLES: dict[str, Callable[[Results], Iterator[list[str]]]] = {
    "servers": _servers,
    "latency": _latency,
    "kernel": _kernel,
    "tls": _tls,
    "line-by-line": _line_by_line,
    "aims": _aims,
}


def filled(text: str, results: Results) -> str:
    """The document with the lines of its tables replaced.

    Raises:
        KeyError: it names a table that isn't one of `TABLES`.
    """

    def replaced(table: re.Match[str]) -> str:
        lines = TABLES[table["name"]](results)
        return table["head"] + "".join(_line(cells) for cells in lines)

    return _TABLE.sub(replaced, text)


def _line(cells: list[str]) -> str:
    if cells[0] == OURS:
        cells = [f"**{cell}**" for cell in cells]
    return "| " + " | ".join(cells) + " |\n"


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="fill_tables.py",
        description="Fill in the tables of the documentation.",
        epilog="Exit status: 0 done; 1 --check has found a difference; 2 wrong usage; 3 cannot read or write.",
    )
    parser.add_argument("results", type=Path, metavar="FILE", help="what versus.py --json wrote")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is not up to date")
    args = parser.parse_args(argv)
    different = False
    try:
        results, _ = read_document(args.results)
        if not results.finished:
            raise FileError(f"{args.results} is from a comparison that was interrupted")
        for document in DOCUMENTS:
            text = document.read_text(encoding="utf-8")
            new = filled(text, results)
            if new == text:
                continue
            different = True
            if args.check:
                print_error(f"{document.relative_to(ROOT)}: a table is not what {args.results} says")
            else:
                write_whole(document, new)
    except (FileError, OSError) as error:
        print_error(f"fill_tables.py: {error}")
        return EXIT_CANNOT_RUN
    return EXIT_DIFFERENT if args.check and different else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_program("fill_tables.py", main))
