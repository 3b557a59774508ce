"""Write the man pages of the commands, and what shells complete after them, from the commands' own options.

``python tools/fill_share.py`` writes share/, which an installation puts where man and the shells look; with ``--check``
it only says what is out of date (exit status 1). The date of a man page is the day on which it was last written anew.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from commandline import Command, read  # noqa: E402
from completions import bash, fish, zsh  # noqa: E402
from manpages import man_page  # noqa: E402

from evloop.charcount.cli import client, server  # noqa: E402
from evloop_bench.loadgen import options  # noqa: E402

EXIT_DIFFERENT = 1

_DATE = re.compile(r"(?m)^(\.TH \S+ 1 )(\d{4}-\d\d-\d\d)")


def commands() -> list[Command]:
    """Those that an installation brings."""
    compare = read(options.make_compare_parser("evloop-load"))
    return [read(server.make_parser()), read(client.make_parser()), read(options.make_parser("evloop-load"), compare)]


def files(date: str) -> dict[str, str]:
    """Everything in share/, by its path there."""
    found = {}
    every = commands()
    for command in every:
        others = [other.name for other in every if other is not command]
        found[f"man/man1/{command.name}.1"] = man_page(command, date, others)
        found[f"bash-completion/completions/{command.name}"] = bash(command)
        found[f"zsh/site-functions/_{command.name}"] = zsh(command)
        found[f"fish/vendor_completions.d/{command.name}.fish"] = fish(command)
    return found


def main() -> int:
    """Write the files, or check them. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Write man pages and shell completion into share/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a file is out of date")
    check = parser.parse_args().check
    status = 0
    wanted = files(time.strftime("%Y-%m-%d"))
    for name, text in wanted.items():
        path = ROOT / "share" / name
        if path.exists() and _DATE.sub(r"\1", path.read_text(encoding="utf-8")) == _DATE.sub(r"\1", text):
            continue
        if check:
            print(f"share/{name} is out of date: run python tools/fill_share.py", file=sys.stderr)
            status = EXIT_DIFFERENT
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in sorted((ROOT / "share").rglob("*")):
        if path.is_file() and path.relative_to(ROOT / "share").as_posix() not in wanted:
            print(f"{path.relative_to(ROOT)} is of no command any more: remove it", file=sys.stderr)
            status = EXIT_DIFFERENT
    return status


if __name__ == "__main__":
    sys.exit(main())
