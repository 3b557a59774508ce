"""What ``benchmarks/load.py``, or ``evloop-load``, does with its arguments."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evloop_bench.common.streams import (
    EXIT_CANNOT_RUN,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    EXIT_NOT_WRITTEN,
    EXIT_OK,
    CannotWrite,
    print_error,
    print_out,
)
from evloop_bench.loadgen import report
from evloop_bench.loadgen.compare import CannotCompare, compare_sides, load_side
from evloop_bench.loadgen.coordinator import Progress
from evloop_bench.loadgen.export import write_csv, write_hgrm
from evloop_bench.loadgen.machine import describe_code, describe_machine
from evloop_bench.loadgen.options import Options, make_compare_parser, parse_options
from evloop_bench.loadgen.runner import document, no_progress, run_all
from evloop_bench.loadgen.target import CannotRun


def run(argv: list[str], program: str = "load.py") -> int:
    """Run what the arguments ask for, write and print the results. Returns the exit status.

    Args:
        program: what this is called, for messages.

    Raises:
        CannotWrite: a file could not be opened before the run, or stdout did not take the report.
    """
    options = parse_options(argv, program)
    for path in (options.json, options.csv, options.hgrm, options.html):
        check_writable(path)
    # Before the run: git may be slow, and what is measured is the code as it is now.
    surroundings = {"code": describe_code(), "machine": describe_machine()}
    results: list[dict[str, Any]] = []
    ended_by = EXIT_OK
    try:
        with shown_progress() as progress:
            run_all(options, results, progress)
    except CannotRun as error:
        print_error(f"{program}: {error}")
        ended_by = EXIT_CANNOT_RUN
    except KeyboardInterrupt:
        print_error(f"{program}: interrupted" + ("" if results else ", there is nothing to tell"))
        ended_by = EXIT_INTERRUPTED
    if not results:
        return ended_by
    # What can be lost is saved first: a report that can't be printed is in the files.
    unwritten = write_outputs(options, document(options, results, surroundings))
    for problem in unwritten:
        print_error(f"{program}: {problem}")
    broken = [problem for result in results for problem in broken_conditions(options, result)]
    print_out("\n".join([*report_lines(options, results), *(f"broken: {problem}" for problem in broken)]))
    return EXIT_NOT_WRITTEN if unwritten else exit_status(results, broken, ended_by)


def report_lines(options: Options, results: list[dict[str, Any]]) -> list[str]:
    """The report of each run, and, if there are several, what they say together."""
    lines: list[str] = []
    for index, result in enumerate(results):
        if options.repeat > 1:
            lines += [*([""] if index else []), f"run {index + 1} of {options.repeat}"]
        lines.append(report.summary(result))
        if options.calibrate:
            lines += ["", report.ceiling(result)]
    if len(results) > 1:
        lines += ["", *report.over_runs(results)]
    return lines


def broken_conditions(options: Options, result: dict[str, Any]) -> list[str]:
    """What is wrong with a result."""
    return [problem for condition in options.conditions if (problem := condition.check(result)) is not None]


def exit_status(results: list[dict[str, Any]], broken: list[str], ended_by: int) -> int:
    """The worst of what happened: an error in a reply outweighs a doubt about a number.

    Args:
        ended_by: why there are fewer runs than asked for, as a status.
    """
    if ended_by == EXIT_CANNOT_RUN:
        return EXIT_CANNOT_RUN
    if any(result["error_total"] for result in results):
        return EXIT_FAILED
    if ended_by == EXIT_INTERRUPTED or any(result["interrupted"] for result in results):
        return EXIT_INTERRUPTED
    if any(not result["verdict"]["valid"] for result in results):
        return EXIT_INVALID
    return EXIT_FAILED if broken else EXIT_OK


def check_writable(path: str | None) -> None:
    """A run of an hour must not end with a file that can't be written.

    Raises:
        CannotWrite: it can't.
    """
    if path is None:
        return
    existed = Path(path).exists()
    try:
        with open(path, "a"):
            pass
        if not existed:
            Path(path).unlink()  # nobody is to take it for a result before there is one
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: str, error: Exception) -> CannotWrite:
    return CannotWrite(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")


def write_outputs(options: Options, everything: dict[str, Any]) -> list[str]:
    """Write the files that were asked for, each whatever becomes of the others.

    Returns:
        what could not be written, a line each.
    """
    results = everything["runs"]
    problems = []

    def write_json(path: str) -> None:
        Path(path).write_text(json.dumps(everything, indent=1) + "\n")

    def write_html(path: str) -> None:
        from evloop_bench.loadgen.page import write_page  # matplotlib takes a second to import

        write_page(path, everything)

    for path, write in (
        (options.json, write_json),
        (options.csv, lambda path: write_csv(path, results)),
        (options.hgrm, lambda path: write_hgrm(path, results)),
        (options.html, write_html),
    ):
        if path is not None:
            try:
                write(path)
            except OSError as error:
                problems.append(str(_cannot_write(path, error)))
    return problems


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """Progress on stderr, if that is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        TextColumn("{task.fields[replies]:>14,} replies"),
        TextColumn("{task.fields[rate]:>12}"),
    )
    # No thread that refreshes: each event draws, and nothing else does.
    bar = Bar(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
    task = bar.add_task("starting", total=1.0, replies=0, rate="")
    live = LiveRate()

    def show(phase: str, done: float, replies: int) -> None:
        with suppress(OSError):  # a terminal that is gone must not end the run
            bar.update(task, description=phase, completed=done, replies=replies, rate=live.shown(phase, replies))
            bar.refresh()

    with suppress(OSError):
        bar.start()
    try:
        yield show
    finally:
        with suppress(OSError):
            bar.stop()


class LiveRate:
    """Replies per second at the moment: over the last half second or more."""

    WINDOW_S = 0.5

    def __init__(self) -> None:
        self._phase = ""
        self._since_s = 0.0
        self._replies = 0
        self._text = ""

    def shown(self, phase: str, replies: int, now_s: float | None = None) -> str:
        """As text; empty until there is one."""
        now_s = time.monotonic() if now_s is None else now_s
        if phase != self._phase or phase != "measuring":
            self._phase, self._since_s, self._replies, self._text = phase, now_s, replies, ""
        elif now_s - self._since_s >= self.WINDOW_S:
            self._text = f"{(replies - self._replies) / (now_s - self._since_s):,.0f}/s"
            self._since_s, self._replies = now_s, replies
        return self._text


def compare(argv: list[str], program: str = "load.py") -> int:
    """Compare two sides. Returns the exit status.

    Args:
        program: what this is called, for messages.

    Raises:
        CannotWrite: stdout did not take the comparison.
    """
    parser = make_compare_parser(program)
    args = parser.parse_args(argv)
    try:
        text = compare_sides(load_side(args.a), load_side(args.b), force=args.force)
    except CannotCompare as error:
        print_error(f"{program} compare: {error}")
        return EXIT_CANNOT_RUN
    print_out(text)
    return EXIT_OK
