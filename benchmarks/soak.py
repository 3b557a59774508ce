#!/usr/bin/env python3
"""Everything at once, for as long as you like: is the server the same afterwards?

Ordinary clients ask and check every answer while others churn, flood, reset, half-close, send rubbish, dribble, don't
read, or come in a crowd. At the end, descriptors, timers, connections and memory must be back where they were, each
limit must have been hit, and not one answer may be wrong. Exit status: 0 if so, 1 if not, 2 for wrong usage, 3 if it
cannot run, 5 if stdout did not take what it says, 130 if it is interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import threading
import time
from typing import TYPE_CHECKING

if not __package__:
    __import__("_root")

from evloop_bench.common.arguments import Parser, seconds
from evloop_bench.common.streams import EXIT_FAILED, EXIT_NOT_INSTALLED, EXIT_OK, print_error, print_out, run_program

if TYPE_CHECKING:
    from benchmarks.soaking.roles import Role
    from benchmarks.soaking.shared import Soak
    from benchmarks.soaking.target import Status, Target

# What the process may keep: pools of the allocator, tables of replies, log buffers. A leak of 100 bytes for each
# connection is well above it after a minute.
MEMORY_SLACK_BYTES = 4 * 1024 * 1024
CALM_TIMEOUT_S = 20.0
# Who behaves well, who reads slowly, and who asks without pause but reads: each must be served amid all that.
EXPECTED_SERVICE = (
    "right answers",
    "messages of slow readers answered",
    "tiny messages answered",
    *(f"visits by TLS, {how}" for how in ("straight", "through a proxy", "resumed")),
    "messages amid key updates answered",
)
# These must have been hit, or the abuse was none. Of all there are, five are missing: the server is not stopped amid
# it (drain-timeout) nor replaced (handover-timeout), nor does it run out of memory (memory), the service has a limit of
# its own for messages (max-line), and nobody may get as far as the fifth (see below). One can be had on Linux only.
EXPECTED_LIMITS = (
    "accepts-per-pass",
    *(["descriptors"] if sys.platform == "linux" else []),
    "high-water",
    "idle-timeout",
    "linger-bytes",
    "linger-timeout",
    "max-message",
    "message-timeout",
    "proxy-header-timeout",
    "tls-handshake-timeout",
    "too-many-connections",
    "too-many-connections-from-address",
    "write-timeout",
)
# A turn is bounded by its replies, and who is above the mark has no turn: so nobody can have more unsent than that.
IMPOSSIBLE_LIMITS = ("unsent",)
# And so must each of these kinds of failure of TLS.
EXPECTED_TLS_FAILURES = ("ended", "plaintext", "timeout", "truncated")


def main(argv: list[str] | None = None) -> int:
    """Run it. Returns the exit status."""
    parser = Parser(prog="soak.py", description=(__doc__ or "").partition("\n\n")[2])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=_positive, metavar="M", help="how long it takes")
    length.add_argument("--seconds", type=seconds, metavar="S", help="the same in seconds, 10 or more (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="of what the clients do (default: a random one)")
    parser.add_argument("--dev", action="store_true", help="run the server with -X dev -W error")
    args = parser.parse_args(argv)
    missing = [name for name in ("psutil", "trustme") if importlib.util.find_spec(name) is None]
    if missing:
        print_error(f"soak.py: {' and '.join(missing)} not installed: run  pip install -e '.[bench]'  first")
        return EXIT_NOT_INSTALLED
    from benchmarks.soaking.target import Target

    duration_s = args.minutes * 60 if args.minutes is not None else args.seconds if args.seconds is not None else 60.0
    seed = random.randrange(10**6) if args.seed is None else args.seed
    print_out(f"soak: {duration_s:g} s, seed {seed}{', server with -X dev -W error' if args.dev else ''}")
    with Target(args.dev) as target:
        problems = run(target, duration_s, seed)
    for problem in problems[:20]:
        print_out(f"FAILED: {problem}")
    if len(problems) > 20:
        print_out(f"FAILED: and {len(problems) - 20} more")
    print_out("soak: FAILED" if problems else "soak: passed")
    return EXIT_FAILED if problems else EXIT_OK


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"must be greater than 0: {text}")
    return number


_positive.__name__ = "float"  # for argparse's message about what is no number


def run(target: Target, duration_s: float, seed: int) -> list[str]:
    """The whole soak. Returns what went wrong, in words."""
    # Once through everything, so that what is allocated once and kept is there before the first look.
    warm_up = abuse(target, max(2.0, 0.2 * duration_s), seed + 1)
    before = target.wait_until_calm(CALM_TIMEOUT_S)
    soak = abuse(target, max(2.0, 0.8 * duration_s), seed)
    after = target.wait_until_calm(CALM_TIMEOUT_S)
    show(soak, before, after)
    problems = warm_up.problems + soak.problems + compare(before, after)
    problems += [f"none: {what}" for what in EXPECTED_SERVICE if not soak.counts[what]]
    status, log = target.stop()
    if status != 0:
        problems.append(f"the server ended with status {status}")
    problems += [
        f"the server logged: {line}"
        for line in log.splitlines()
        if line.startswith("ERROR") or "Traceback" in line or "Warning" in line or "Exception ignored" in line
    ]
    return problems


def abuse(target: Target, duration_s: float, seed: int) -> Soak:
    """Let everybody loose for a time."""
    from benchmarks.soaking.roles import ROLES
    from benchmarks.soaking.shared import Soak

    soak = Soak(target.address, target.tls_address, target.few_descriptors)
    threads = [
        threading.Thread(target=play, args=(role, soak, f"{seed} {role.__name__} {number}"), daemon=True)
        for role, count in ROLES.items()
        for number in range(count)
    ]
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    began = time.monotonic()
    for thread in threads:
        thread.start()
    while (left_s := began + duration_s - time.monotonic()) > 0:
        time.sleep(min(left_s, 2.0))
        if on_terminal:
            now = target.status()
            answers = soak.counts["right answers"]
            print(
                f"\r{duration_s - max(left_s, 0):6.0f} s  {answers:9,} answers  {now.connections:4} connections  "
                f"{now.memory_bytes / 2**20:6.1f} MiB  ",
                end="",
                flush=True,
            )
    if on_terminal:
        print()
    soak.over.set()
    for thread in threads:
        thread.join(60)
        if thread.is_alive():
            soak.problem(f"a client hangs: {thread}")
    return soak


def play(role: Role, soak: Soak, seed: str) -> None:
    """One role in its thread. An ordinary client that fails is a problem; of the others, a lost connection is none."""
    chance = random.Random(seed)
    while not soak.over.is_set():
        try:
            role(soak, chance)
        except Exception as error:
            if role.__name__.startswith(("ordinary", "resident")) or not isinstance(error, ConnectionError):
                soak.problem(f"{role.__name__}: {type(error).__name__}: {error}")


def compare(before: Status, after: Status) -> list[str]:
    """What is not back where it was."""
    problems = []
    if after.connections:
        problems.append(f"{after.connections} connections are left")
    for name in ("timers", "handlers", "descriptors"):
        if getattr(after, name) > getattr(before, name):
            problems.append(f"{name}: {getattr(before, name)} before, {getattr(after, name)} after")
    grown = after.memory_bytes - before.memory_bytes
    if grown > MEMORY_SLACK_BYTES:
        problems.append(f"memory has grown by {grown / 2**20:.1f} MiB")
    problems += [f"limit {name} was never hit" for name in EXPECTED_LIMITS if not after.limits.get(name)]
    problems += [f"TLS never failed as {name}" for name in EXPECTED_TLS_FAILURES if not after.tls.get(name)]
    problems += [f"limit {name} was hit" for name in IMPOSSIBLE_LIMITS if after.limits.get(name)]
    return problems


def show(soak: Soak, before: Status, after: Status) -> None:
    """Print what happened."""
    print_out(f"{'':24} {'before':>12} {'after':>12}")
    for name in ("connections", "timers", "handlers", "descriptors", "accepted", "probes", "failed"):
        print_out(f"{name:24} {getattr(before, name):12,} {getattr(after, name):12,}")
    print_out(f"{'memory, MiB':24} {before.memory_bytes / 2**20:12.1f} {after.memory_bytes / 2**20:12.1f}")
    for name in sorted(after.limits):
        print_out(f"{'limit ' + name:24} {before.limits.get(name, 0):12,} {after.limits[name]:12,}")
    print_out("")
    soak.counts["flooded MB"] //= 1_000_000
    for name, count in sorted(soak.counts.items()):
        print_out(f"{name:40} {count:9,}")


if __name__ == "__main__":
    sys.exit(run_program("soak.py", main))
