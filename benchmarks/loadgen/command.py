"""What ``benchmarks/load.py`` does with its arguments."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.loadgen import report
from benchmarks.loadgen.compare import CannotCompare, compare_sides, load_side
from benchmarks.loadgen.coordinator import Progress
from benchmarks.loadgen.export import write_csv, write_hgrm
from benchmarks.loadgen.options import Options, parse_options
from benchmarks.loadgen.runner import document, no_progress, run_all
from benchmarks.loadgen.target import CannotRun

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CANNOT_RUN = 3
EXIT_INVALID = 4
EXIT_INTERRUPTED = 130


def run(argv: list[str]) -> int:
    """Run what the arguments ask for, print and write the results. Returns the exit status."""
    options = parse_options(argv)
    try:
        for path in (options.json, options.csv, options.hgrm, options.html):
            check_writable(path)
        with shown_progress() as progress:
            results = run_all(options, progress)
    except CannotRun as error:
        print(f"load.py: {error}", file=sys.stderr)
        return EXIT_CANNOT_RUN
    except KeyboardInterrupt:
        print("load.py: interrupted before there was anything to tell", file=sys.stderr)
        return EXIT_INTERRUPTED
    for index, result in enumerate(results):
        if len(results) > 1:
            print(f"{'' if index == 0 else chr(10)}run {index + 1} of {options.repeat}")
        print(report.summary(result))
        if options.calibrate:
            print("\n" + report.ceiling(result))
    broken = [problem for result in results for problem in broken_conditions(options, result)]
    for problem in broken:
        print(f"broken: {problem}")
    sys.stdout.flush()
    write_outputs(options, results)
    return exit_status(results, broken)


def broken_conditions(options: Options, result: dict[str, Any]) -> list[str]:
    """What is wrong with a result."""
    return [problem for condition in options.conditions if (problem := condition.check(result)) is not None]


def exit_status(results: list[dict[str, Any]], broken: list[str]) -> int:
    """The worst of what happened: an error in a reply outweighs a doubt about a number."""
    if any(result["error_total"] for result in results):
        return EXIT_FAILED
    if any(result["interrupted"] for result in results):
        return EXIT_INTERRUPTED
    if any(not result["verdict"]["valid"] for result in results):
        return EXIT_INVALID
    return EXIT_FAILED if broken else EXIT_OK


def check_writable(path: str | None) -> None:
    """A run of an hour must not end with a file that can't be written.

    Raises:
        CannotRun: it can't.
    """
    if path is None:
        return
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise CannotRun(f"cannot write {path}: {error.strerror}") from None


def write_outputs(options: Options, results: list[dict[str, Any]]) -> None:
    """Write the files that were asked for."""
    everything = document(options, results)
    if options.json is not None:
        Path(options.json).write_text(json.dumps(everything, indent=1) + "\n")
    if options.csv is not None:
        write_csv(options.csv, results)
    if options.hgrm is not None:
        write_hgrm(options.hgrm, results)
    if options.html is not None:
        from benchmarks.loadgen.page import write_page  # matplotlib takes a second to import

        write_page(options.html, everything)


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """Progress on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description:<20}"), BarColumn(), TextColumn("{task.fields[replies]:>14,} replies"))
    # No thread that refreshes: each event draws, and nothing else does.
    with Bar(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task("starting", total=1.0, replies=0)

        def show(phase: str, done: float, replies: int) -> None:
            bar.update(task, description=phase, completed=done, replies=replies)
            bar.refresh()

        yield show


def compare(argv: list[str]) -> int:
    """Compare two sides. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="load.py compare",
        description="Which of two is faster, by how much, and how sure that is: bootstrapped over runs.",
        epilog="Each side is a file written by load.py --json (best with --repeat 5), several of them separated "
        "by commas, or a directory of them.",
    )
    parser.add_argument("a", metavar="A.json")
    parser.add_argument("b", metavar="B.json")
    args = parser.parse_args(argv)
    try:
        print(compare_sides(load_side(args.a), load_side(args.b)))
    except CannotCompare as error:
        print(f"load.py compare: {error}", file=sys.stderr)
        return EXIT_CANNOT_RUN
    return EXIT_OK
