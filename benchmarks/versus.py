"""Compare this project's server with its rivals: ``python benchmarks/versus.py``.

Every server in turn, a fresh process each time, round after round (A B C A B C ...), server and generator on a core
each. The result is ratios, taken within each round, with confidence intervals. docs/versus.md explains it.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.comparison import machine as machine_description
from benchmarks.comparison import native, report
from benchmarks.comparison.commands import COMMANDS
from benchmarks.comparison.results import Results
from benchmarks.comparison.runner import RunError, Runner, Timing, cores, raise_descriptor_limit
from benchmarks.comparison.scenarios import SCENARIOS, Scenario
from benchmarks.peers.registry import OURS, PEERS, Peer

SCHEMA = 1
EXIT_FAILED = 1
EXIT_CANNOT_RUN = 3
EXIT_INTERRUPTED = 130
_QUICK = ("inflight-1", "inflight-16", "inflight-256")
_CAPACITY_OF = "asyncio-protocol"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="versus.py",
        description="Compare the server with its rivals.",
        epilog="Exit status: 0 done, 1 a run failed (a wrong reply, say), 2 wrong usage, 3 cannot run.",
    )
    parser.add_argument("--scenario", "-s", type=_names(SCENARIOS), metavar="NAME,...", help="default: all; see --list")
    parser.add_argument(
        "--servers", "-S", type=_names(PEERS), metavar="NAME,...", help="default: all that can run here"
    )
    parser.add_argument("--rounds", "-r", type=_positive(int), metavar="N", help="default: 5; with --quick 2")
    parser.add_argument("--duration", type=_positive(float), metavar="SECONDS", help="measured in each run; default: 1")
    parser.add_argument("--warmup", type=_positive(float), metavar="SECONDS", help="before that; default: 0.3")
    parser.add_argument("--quick", action="store_true", help=f"a first look: {', '.join(_QUICK)}; short runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write tables (Markdown) and plots (SVG, PNG)")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="run nothing: show what --json wrote")
    parser.add_argument("--list", action="store_true", help="list scenarios and servers, and end")
    return parser


def _names(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no {name!r}; there are: {', '.join(known)}")
        return names

    return parse


def _positive(number_type: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        number = number_type(text)
        if not 0 < number < 1e6:
            raise argparse.ArgumentTypeError(f"must be greater than 0: {text}")
        return number

    parse.__name__ = number_type.__name__  # for argparse's message about what is no number
    return parse


def list_everything() -> None:
    print("Scenarios:")
    for scenario in SCENARIOS.values():
        print(f"  {scenario.name:<18} {scenario.title}")
    print("Servers:")
    for peer in PEERS.values():
        missing = peer.missing()
        print(f"  {peer.name:<18} {peer.kind:<10} {'not here: ' + missing if missing else peer.version()}")
    print(report.legend(PEERS))


def participants(scenario: Scenario, chosen: Sequence[str] | None) -> list[Peer]:
    """Who runs in a scenario: those asked for, else the scenario's own choice, as far as they can run here."""
    everybody = [peer.name for peer in PEERS.values() if not peer.only_in or scenario.name in peer.only_in]
    names = chosen or scenario.servers or everybody
    return [PEERS[name] for name in names if PEERS[name].missing() is None]


class Comparison:
    """Runs scenarios, family by family; results are shown as each family is done, progress on stderr."""

    def __init__(self, chosen: Sequence[str] | None, rounds: int, runner: Runner) -> None:
        self.results = Results()
        self._chosen = chosen
        self._rounds = rounds
        self._runner = runner
        self._shown: set[str] = set()
        self._start = time.monotonic()
        self._progress_shown = sys.stderr.isatty()

    def run(self, scenarios: Sequence[Scenario]) -> bool:
        """Run and show them all. After Ctrl-C, show what there is, and return False."""
        try:
            self._run_families(scenarios)
        except KeyboardInterrupt:
            print("\nversus.py: interrupted; this is what there is", file=sys.stderr)
            for scenario in scenarios:
                if scenario.name in self.results.runs.keys() - self._shown:
                    self._show(scenario)
            return False
        return True

    def _run_families(self, scenarios: Sequence[Scenario]) -> None:
        """Every scenario of a family in turn within each round, so that they can be compared with each other too."""
        for _, group in itertools.groupby(scenarios, key=lambda scenario: scenario.family or scenario.name):
            family = list(group)
            rates = {scenario.name: self._rate(scenario) for scenario in family}
            for number in range(self._rounds):
                for scenario in family:
                    if scenario.max_rounds is None or number < scenario.max_rounds:
                        self._round(scenario, number, rates[scenario.name])
            self._show_progress("")
            for scenario in family:
                self._show(scenario)

    def _show(self, scenario: Scenario) -> None:
        print(report.as_text(self.results, scenario), flush=True)
        self._shown.add(scenario.name)

    def _round(self, scenario: Scenario, number: int, rate: float) -> None:
        if scenario.mode == "command":
            self._show_progress(f"{scenario.name} round {number + 1}")
            try:
                for name, figures in COMMANDS[scenario.name](self._runner.directory).items():
                    self.results.add(scenario.name, name, number, figures)
            except (RunError, OSError, subprocess.SubprocessError) as error:
                self.results.fail(scenario.name, OURS, str(error))
            return
        for peer in participants(scenario, self._chosen):
            self._show_progress(f"{scenario.name} round {number + 1} {peer.name}")
            try:
                figures = self._runner.run(scenario, peer, number + 1, rate)
                self.results.add(scenario.name, peer.name, number, figures)
            except RunError as error:
                self.results.fail(scenario.name, peer.name, str(error))

    def _rate(self, scenario: Scenario) -> float:
        """For open loop: half of what the yardstick answers in a second at most."""
        if scenario.mode != "open":
            return 0.0
        yardstick = SCENARIOS["inflight-1"]
        return 0.5 * max(self._runner.run(yardstick, PEERS[_CAPACITY_OF], seed)["per_s"] for seed in (1, 2))

    def _show_progress(self, text: str) -> None:
        if self._progress_shown:
            line = f"{time.monotonic() - self._start:4.0f} s  {text}" if text else ""
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def measure(args: argparse.Namespace, scenarios: Sequence[Scenario]) -> tuple[Results, dict[str, object], bool]:
    """Run it all.

    Returns:
        the results, the machine they are from, and whether it got to the end.

    Raises:
        native.BuildError: the generator can't be compiled.
    """
    timing = Timing(
        warmup_s=args.warmup if args.warmup is not None else 0.2 if args.quick else 0.3,
        duration_s=args.duration if args.duration is not None else 0.4 if args.quick else 1.0,
    )
    raise_descriptor_limit()
    if len(set(cores())) < 2:
        print("versus.py: only one core: server and generator share it, so rates mean little", file=sys.stderr)
    taking_part = {peer.name: peer for scenario in scenarios for peer in participants(scenario, args.servers)}
    machine = machine_description.describe(taking_part.values())
    with tempfile.TemporaryDirectory(prefix="versus-") as directory:
        rounds = args.rounds or (2 if args.quick else 5)
        comparison = Comparison(args.servers, rounds, Runner(Path(directory), timing))
        finished = comparison.run(scenarios)
    return comparison.results, machine, finished


def write_files(
    args: argparse.Namespace, results: Results, machine: dict[str, object], scenarios: list[Scenario]
) -> None:
    """What --json and --out ask for."""
    if args.json:
        document = {"schema": SCHEMA, "machine": machine, "argv": sys.argv[1:], **results.to_json()}
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    if args.out:
        from benchmarks.comparison import plots  # slow to import, and not everyone has matplotlib

        args.out.mkdir(parents=True, exist_ok=True)
        words = machine_description.in_words(machine)
        names = plots.draw_all(results, words, args.out)
        (args.out / "versus.md").write_text(report.document(results, scenarios, words, names))


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    finished = True
    if args.list:
        list_everything()
        return 0
    if args.out and importlib.util.find_spec("matplotlib") is None:
        print("versus.py: --out needs matplotlib: pip install -e '.[bench]'", file=sys.stderr)
        return EXIT_CANNOT_RUN
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"argument --json: no directory {args.json.absolute().parent}")
    if args.source:
        data = json.loads(args.source.read_text())
        results, machine = Results.from_json(data), data["machine"]
        names = args.scenario or [name for name in SCENARIOS if name in results.runs]
        scenarios = [SCENARIOS[name] for name in names]
        for scenario in scenarios:
            print(report.as_text(results, scenario))
    else:
        names = args.scenario or (_QUICK if args.quick else list(SCENARIOS))
        scenarios = [SCENARIOS[name] for name in names]
        try:
            results, machine, finished = measure(args, scenarios)
        except native.BuildError as error:
            print(f"versus.py: cannot run: {error}", file=sys.stderr)
            return EXIT_CANNOT_RUN
    print(report.growth_as_text(results))
    print(report.legend(server for servers in results.runs.values() for server in servers))
    print(machine_description.in_words(machine))
    write_files(args, results, machine, scenarios)
    if not finished:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if results.failures else 0


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_FAILED
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    sys.exit(status)
