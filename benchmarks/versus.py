#!/usr/bin/env python3
"""Compare this project's server with its rivals: ``python benchmarks/versus.py``.

Every server in turn, a fresh process each time, round after round (A B C A B C ...), server and generator on a core
each. The result is ratios, taken within each round, with confidence intervals. docs/versus.md explains it.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:
    __import__("_root")

from benchmarks.comparison import files, report
from benchmarks.comparison import machine as machine_description
from benchmarks.comparison.calibration import calibrate
from benchmarks.comparison.results import Results
from benchmarks.comparison.rounds import Comparison, participants
from benchmarks.comparison.runner import DESCRIPTORS, Runner, Timing, cores
from benchmarks.comparison.scenarios import SCENARIOS, Scenario
from benchmarks.peers.registry import PEERS, Peer, ours_under
from evloop_bench.common import native
from evloop_bench.common.arguments import Parser, positive, seconds
from evloop_bench.common.certificate import NoCertificate
from evloop_bench.common.descriptors import raise_descriptor_limit
from evloop_bench.common.streams import (
    EXIT_CANNOT_RUN,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NOT_WRITTEN,
    EXIT_OK,
    CannotWrite,
    print_error,
    print_out,
    run_program,
)

_QUICK = ("inflight-1", "inflight-16", "inflight-256")


class CannotRun(Exception):
    """Nothing was measured. The text is one line that says why and what to do."""


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="versus.py",
        description="Compare the server with its rivals.",
        epilog="Exit status: 0 done; 1 a run failed (a wrong reply, say); 2 wrong usage; 3 cannot run; 5 measured, but "
        "not all could be written (where the figures are then is said on stderr); 130 interrupted (what was measured "
        "until then is shown and written, and marked).",
    )
    parser.add_argument("--scenario", "-s", type=_names(SCENARIOS), metavar="NAME,...", help="default: all; see --list")
    parser.add_argument(
        "--servers", "-S", type=_names(PEERS), metavar="NAME,...", help="default: all that can run here"
    )
    parser.add_argument(
        "--python",
        type=_pythons,
        default=[],
        metavar="NAME=PATH,...",
        help="run our server under these Pythons as well, as evloop@NAME",
    )
    parser.add_argument("--rounds", "-r", type=positive, metavar="N", help="default: 5; with --quick 2")
    parser.add_argument("--duration", type=seconds, metavar="SECONDS", help="measured in each run; default: 1")
    parser.add_argument("--warmup", type=seconds, metavar="SECONDS", help="before that; default: 0.3")
    parser.add_argument("--quick", action="store_true", help=f"a first look: {', '.join(_QUICK)}; short runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write tables (Markdown) and plots (SVG, PNG)")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="run nothing: show what --json wrote")
    parser.add_argument("--list", action="store_true", help="list scenarios and servers, and end")
    return parser


def _names(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))  # each once, in the order given
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no {name!r}; there are: {', '.join(known)}")
        return names

    return parse


def _pythons(text: str) -> list[Peer]:
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    for name, path in pairs:
        if not re.fullmatch(r"[\w.+-]+", name) or not path:
            raise argparse.ArgumentTypeError("give NAME=PATH,..., for instance new=/usr/bin/python3.13")
    if len({name for name, _ in pairs}) < len(pairs):
        raise argparse.ArgumentTypeError("each needs a name of its own")
    return [ours_under(name, path) for name, path in pairs]


def list_everything() -> str:
    lines = ["Scenarios:"]
    lines += [f"  {scenario.name:<18} {scenario.title}" for scenario in SCENARIOS.values()]
    lines += ["Servers:"]
    for peer in PEERS.values():
        missing = peer.missing()
        lines.append(f"  {peer.name:<24} {peer.kind:<10} {'not here: ' + missing if missing else peer.version()}")
    return "\n".join([*lines, report.legend(PEERS)])


def check_servers(asked_for: Iterable[Peer]) -> None:
    """See that each server that was asked for by name can run here.

    Raises:
        CannotRun: one can't.
    """
    missing = [f"{peer.name}: {reason}" for peer in asked_for if (reason := peer.missing()) is not None]
    if missing:
        raise CannotRun(f"{'; '.join(missing)} (the rivals in Python come with  pip install -e '.[bench]')")


def check_plots(out: Path | None) -> None:
    """See that plots can be drawn, if they are wanted.

    Raises:
        CannotRun: they can't be.
    """
    if out is not None and importlib.util.find_spec("matplotlib") is None:
        raise CannotRun("--out needs matplotlib: run  pip install -e '.[bench]'  first")


def check_contestants(
    scenarios: list[Scenario], contestants: Callable[[Scenario], Sequence[Peer]], *, asked_for: bool
) -> list[Scenario]:
    """Those scenarios in which somebody can take part.

    Raises:
        CannotRun: in one of them, that was asked for by name, nobody can.
    """
    possible = [scenario for scenario in scenarios if scenario.mode == "command" or contestants(scenario)]
    if asked_for and len(possible) < len(scenarios):
        (first, *_) = (scenario.name for scenario in scenarios if scenario not in possible)
        raise CannotRun(f"none of these servers can take part in {first}: see --list")
    return possible


def prepare_tls(runner: Runner, scenarios: list[Scenario], *, asked_for: bool) -> list[Scenario]:
    """Prepare what those with TLS need, or leave them out.

    Raises:
        CannotRun: they can't run, and were asked for by name.
    """
    if any(scenario.tls for scenario in scenarios):
        try:
            runner.prepare_tls()
        except (native.BuildError, NoCertificate) as error:
            if asked_for:
                raise CannotRun(str(error)) from None
            print_error(f"versus.py: without the scenarios with TLS: {error}")
            return [scenario for scenario in scenarios if not scenario.tls]
    return scenarios


class Session:
    """Where a comparison's results go: to stdout, to a file, to a directory. One that fails does not stop the others.

    Attributes:
        problems: what could not be written, in words.
    """

    def __init__(self, args: argparse.Namespace, results: Results, machine: dict[str, Any]) -> None:
        self.problems: list[str] = []
        self._args = args
        self._results = results
        self._machine = machine
        self._stdout_works = True
        self._kept = False

    @property
    def useless(self) -> bool:
        """Nobody would see anything of what is measured from now on."""
        return not (self._stdout_works or self._args.json or self._args.out)

    def show(self, text: str) -> None:
        """Print on stdout, as long as that works."""
        if text and self._stdout_works:
            try:
                print_out(text)
            except CannotWrite as error:
                self._stdout_works = False
                self.problems.append(str(error))

    def keep(self, *, for_good: bool = False) -> None:
        """Write the figures that there are by now. That it fails is a problem only ``for_good``, in the end.

        What can't be replaced, a pipe say, is written to in the end only.
        """
        if self._args.json and (for_good or files.is_replaced(self._args.json)):
            try:
                files.write_whole(self._args.json, self._document())
                self._kept = True
            except files.FileError as error:
                self._kept = False
                if for_good:
                    self.problems.append(str(error))

    def rescue(self) -> None:
        """If something could not be written, and the figures are in no file, put them into one elsewhere."""
        if self.problems and not self._kept and self._results.runs:
            try:
                self.problems.append(f"the figures are in {files.save_elsewhere(self._document())}")
            except files.FileError as error:
                self.problems.append(str(error))

    def draw(self, scenarios: Sequence[Scenario]) -> None:
        """Write the tables and plots, if they are asked for."""
        out = self._args.out
        if out is None:
            return
        from benchmarks.comparison import plots  # slow to import, and not everyone has matplotlib

        words = machine_description.in_words(self._machine)
        try:
            names = plots.draw_all(self._results, words, out)
            files.write_whole(out / "versus.md", report.document(self._results, scenarios, words, names))
        except files.FileError as error:
            self.problems.append(str(error))
        except OSError as error:
            self.problems.append(f"cannot write to {out}: {error.strerror}")

    def show_rest(self) -> None:
        """What stands under all tables."""
        results = self._results
        self.show(report.growth_as_text(results))
        self.show(report.legend(server for servers in results.runs.values() for server in servers))
        self.show(machine_description.in_words(self._machine))
        if not results.finished:
            self.show(report.INTERRUPTED)

    def _document(self) -> str:
        return files.as_document(self._results, self._machine, sys.argv[1:])


def measure(args: argparse.Namespace) -> int:
    """Run what was asked for, show it, write it. Returns the exit status.

    Raises:
        CannotRun: it can't be run, or could not be written afterwards.
    """
    names = args.scenario or (_QUICK if args.quick else list(SCENARIOS))
    scenarios = [SCENARIOS[name] for name in names]
    check_servers([*(PEERS[name] for name in args.servers or ()), *args.python])
    if sys.stdout is None and not (args.json or args.out):
        raise CannotRun("stdout is closed, and there is no --json and no --out: nobody would see the figures")
    try:
        files.check_writable(args.json, args.out)
    except files.FileError as error:
        raise CannotRun(str(error)) from None
    check_plots(args.out)
    timing = Timing(
        warmup_s=args.warmup if args.warmup is not None else 0.2 if args.quick else 0.3,
        duration_s=args.duration if args.duration is not None else 0.4 if args.quick else 1.0,
    )
    raise_descriptor_limit(DESCRIPTORS)
    if len(set(cores())) < 2:
        print_error("versus.py: only one core: server and generator share it, so rates mean little")

    def contestants(scenario: Scenario) -> list[Peer]:
        everywhere = args.scenario is not None  # as asked for by name
        pythons = [peer for peer in args.python if everywhere or scenario.name in peer.only_in]
        return [*participants(scenario, args.servers), *pythons]

    scenarios = check_contestants(scenarios, contestants, asked_for=args.scenario is not None)
    taking_part = {peer.name: peer for scenario in scenarios for peer in contestants(scenario)}
    results = Results(finished=False)
    session = Session(args, results, machine_description.describe(taking_part.values()))
    with tempfile.TemporaryDirectory(prefix="versus-") as directory:
        try:
            runner = Runner(Path(directory), timing)
        except native.BuildError as error:
            raise CannotRun(str(error)) from None
        scenarios = prepare_tls(runner, scenarios, asked_for=args.scenario is not None)
        rounds = args.rounds or (2 if args.quick else 5)
        comparison = Comparison(results, runner, contestants, rounds, partial(calibrate, cores()[0]), Progress().show)
        unshown = {scenario.name: scenario for scenario in scenarios}
        try:
            for complete in comparison.run(scenarios):
                session.keep()
                for scenario in complete:
                    session.show(report.as_text(results, scenario))
                    del unshown[scenario.name]
                if session.useless:
                    break
            else:
                results.finished = True
        except KeyboardInterrupt:
            print_error("\nversus.py: interrupted; this is what there is")
        interrupted = not results.finished and not session.useless
        session.keep(for_good=True)
        for scenario in unshown.values():
            if scenario.name in results.runs:
                session.show(report.as_text(results, scenario))
    session.show_rest()
    session.draw(scenarios)
    session.rescue()
    for problem in session.problems:
        print_error(f"versus.py: {problem}")
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_NOT_WRITTEN if session.problems else EXIT_FAILED if results.failures else EXIT_OK


def show_file(args: argparse.Namespace) -> int:
    """Show what another comparison measured. Returns the exit status.

    Raises:
        CannotRun: it can't be read, or has no figures of what was asked for.
    """
    try:
        results, machine = files.read_document(args.source)
        files.check_writable(None, args.out)
    except files.FileError as error:
        raise CannotRun(str(error)) from None
    check_plots(args.out)
    known = results.runs.keys() | results.failures.keys()
    missing = [name for name in args.scenario or () if name not in known]
    if missing:
        raise CannotRun(f"{args.source} has no figures of {', '.join(missing)}")
    scenarios = [SCENARIOS[name] for name in args.scenario or [name for name in SCENARIOS if name in known]]
    session = Session(args, results, machine)
    for scenario in scenarios:
        session.show(report.as_text(results, scenario))
    session.show_rest()
    session.draw(scenarios)
    for problem in session.problems:
        print_error(f"versus.py: {problem}")
    return EXIT_NOT_WRITTEN if session.problems else EXIT_FAILED if results.failures else EXIT_OK


class Progress:
    """One line on stderr that says what is being run, if that is a terminal."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._shown = sys.stderr is not None and sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Replace the line; an empty text removes it."""
        if self._shown:
            line = f"{time.monotonic() - self._start:4.0f} s  {text}" if text else ""
            with suppress(OSError):
                print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.list:
        print_out(list_everything())
        return EXIT_OK
    if args.source and args.json:
        parser.error("argument --json: not allowed with --from, which runs nothing")
    try:
        return show_file(args) if args.source else measure(args)
    except CannotRun as error:
        print_error(f"versus.py: cannot run: {error}")
        return EXIT_CANNOT_RUN


if __name__ == "__main__":
    sys.exit(run_program("versus.py", main))
