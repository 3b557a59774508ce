"""Compare this project's server with its rivals: ``python benchmarks/versus.py``.

Every server in turn, a fresh process each time, round after round (A B C A B C ...), server and generator on a core
each. The result is ratios, taken within each round, with confidence intervals. docs/versus.md explains it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.comparison import machine as machine_description
from benchmarks.comparison import native, report
from benchmarks.comparison.runner import RunError, Runner, Timing, cores, raise_descriptor_limit
from benchmarks.comparison.scenarios import SCENARIOS, Scenario
from benchmarks.peers.registry import PEERS, Peer

SCHEMA = 1
EXIT_FAILED = 1
EXIT_CANNOT_RUN = 3
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
    parser.add_argument("--rounds", "-r", type=int, metavar="N", help="default: 5; with --quick 2")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="measured in each run; default: 1")
    parser.add_argument("--warmup", type=float, metavar="SECONDS", help="before that; default: 0.3")
    parser.add_argument("--quick", action="store_true", help=f"a first look: {', '.join(_QUICK)}; short runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write tables (Markdown) and plots (SVG, PNG)")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="run nothing: show what --json wrote")
    parser.add_argument("--list", action="store_true", help="list scenarios and servers, and end")
    return parser


def _names(known: dict[str, object]):  # type: ignore[no-untyped-def]
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no {name!r}; there are: {', '.join(known)}")
        return names

    return parse


def list_everything() -> None:
    print("Scenarios:")
    for scenario in SCENARIOS.values():
        print(f"  {scenario.name:<18} {scenario.title}")
    print("Servers:")
    for peer in PEERS.values():
        missing = peer.missing()
        print(f"  {peer.name:<18} {peer.kind:<10} {'not here: ' + missing if missing else peer.version()}")
    print(*report.legend(peer.kind for peer in PEERS.values()), sep="\n")


def participants(scenario: Scenario, chosen: Sequence[str] | None) -> list[Peer]:
    """Who runs in a scenario: those asked for, else the scenario's own choice, as far as they can run here."""
    names = chosen or scenario.servers or list(PEERS)
    return [PEERS[name] for name in names if PEERS[name].missing() is None]


def compare(scenarios: Sequence[Scenario], chosen: Sequence[str] | None, rounds: int, runner: Runner) -> report.Results:
    """Run it all; a line of progress on stderr."""
    results = report.Results()
    total = sum(len(participants(scenario, chosen)) for scenario in scenarios) * rounds
    done = 0
    start = time.monotonic()
    for scenario in scenarios:
        rate = 0.5 * capacity(runner) if scenario.mode == "open" else 0.0
        for number in range(rounds):
            for peer in participants(scenario, chosen):
                done += 1
                if sys.stderr.isatty():
                    elapsed = time.monotonic() - start
                    line = f"{done}/{total} {elapsed:.0f} s  {scenario.name} round {number + 1} {peer.name}"
                    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
                try:
                    results.add(scenario.name, peer.name, number, runner.run(scenario, peer, number + 1, rate))
                except RunError as error:
                    results.fail(scenario.name, peer.name, str(error))
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        print(report.as_text(results, scenario), flush=True)
    return results


def capacity(runner: Runner) -> float:
    """What asyncio's Protocol answers in a second at most: the yardstick of the open loop's rate."""
    return runner.run(SCENARIOS["inflight-1"], PEERS[_CAPACITY_OF], 1)["per_s"]


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.list:
        list_everything()
        return 0
    if args.source:
        data = json.loads(args.source.read_text())
        results, machine = report.Results.from_json(data), data["machine"]
        names = args.scenario or [name for name in SCENARIOS if name in results.runs]
        scenarios = [SCENARIOS[name] for name in names]
        for scenario in scenarios:
            print(report.as_text(results, scenario))
    else:
        names = args.scenario or (_QUICK if args.quick else list(SCENARIOS))
        scenarios = [SCENARIOS[name] for name in names]
        timing = Timing(
            warmup_s=args.warmup if args.warmup is not None else 0.2 if args.quick else 0.3,
            duration_s=args.duration if args.duration is not None else 0.4 if args.quick else 1.0,
        )
        rounds = args.rounds or (2 if args.quick else 5)
        raise_descriptor_limit()
        if len(set(cores())) < 2:
            print("versus.py: only one core: server and generator share it, so rates mean little", file=sys.stderr)
        taking_part = {peer.name: peer for scenario in scenarios for peer in participants(scenario, args.servers)}
        machine = machine_description.describe(taking_part.values())
        with tempfile.TemporaryDirectory(prefix="versus-") as directory:
            try:
                runner = Runner(Path(directory), timing)
            except native.BuildError as error:
                print(f"versus.py: cannot run: {error}", file=sys.stderr)
                return EXIT_CANNOT_RUN
            results = compare(scenarios, args.servers, rounds, runner)
    servers = {server for scenario in scenarios for server in results.runs.get(scenario.name, {})}
    print(*report.legend(PEERS[name].kind for name in servers if name in PEERS), sep="\n")
    print(machine_description.in_words(machine))
    if args.json:
        document = {"schema": SCHEMA, "machine": machine, "argv": sys.argv[1:], **results.to_json()}
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return EXIT_FAILED if results.failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
