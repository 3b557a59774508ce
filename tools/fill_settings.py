"""Fill in the tables of settings and limits in docs/ from where these are declared.

``python tools/fill_settings.py`` writes them; with ``--check`` it only says which page is out of date (exit status 1).
A table stands between two comments that a browser does not show, ``<!-- settings: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evloop.charcount.cli.settings import SETTINGS, as_text, setting_name
from evloop.limits import Limit, Limits

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "docs" / "operations.md", ROOT / "docs" / "reliability.md")

EXIT_DIFFERENT = 1

_TABLE = re.compile(r"(?<=<!-- settings: )(?P<name>\w+)( -->\n\n)(?:\|[^\n]*\n)*(?=\n<!-- end -->)")


def _settings() -> Iterator[tuple[str, ...]]:
    """Every option that has a variable."""
    yield "option", "default", "what it does"
    for setting in SETTINGS:
        option = f"`{setting.option}`, `--no-{setting.name}`" if setting.is_switch else f"`{setting.option}`"
        yield option, setting.default_shown, setting.help


def _off_by_default() -> Iterator[tuple[str, ...]]:
    """The limits of the command that are off by default."""
    yield "setting", "off by default because", "suggestion"
    for setting in SETTINGS:
        if setting.off_because is not None:
            yield f"`{setting.option}`", setting.off_because, setting.suggested or ""


def _limits() -> Iterator[tuple[str, ...]]:
    """Every limit of the library."""
    yield "Limit", "Option", "Default", "What happens at it", "Counter"
    for limit in Limits.table.values():
        yield (
            f"`{limit.name}`",
            "" if limit.option is None else f"`--{setting_name(limit).replace('_', '-')}`",
            _amount(limit),
            limit.at_it,
            "" if limit.counter is None else f"`{limit.counter}`",
        )


def _amount(limit: Limit) -> str:
    """The default of a limit with its unit: 64 KiB, 10 s."""
    if limit.default is None:
        return "none"
    if limit.name.endswith("_s"):
        return f"{as_text(limit.default)} s"
    if not limit.name.endswith("_bytes"):
        return as_text(limit.default)
    for factor, unit in ((1024**2, "MiB"), (1024, "KiB")):
        if limit.default and limit.default % factor == 0:
            return f"{as_text(limit.default // factor)} {unit}"
    return f"{as_text(limit.default)} bytes"


TABLES: dict[str, Callable[[], Iterator[tuple[str, ...]]]] = {
    "all": _settings,
    "off": _off_by_default,
    "limits": _limits,
}


def filled(page: str) -> str:
    """The text of a page with its tables as they must be."""

    def table(match: re.Match[str]) -> str:
        head, *rows = TABLES[match["name"]]()
        lines = [head, ("---",) * len(head), *rows]
        return match["name"] + match[2] + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    return _TABLE.sub(table, page)


def main() -> int:
    """Write the pages, or check them. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Fill in the tables of settings and limits in docs/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page is out of date")
    check = parser.parse_args().check
    status = 0
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        wanted = filled(page)
        if wanted == page:
            continue
        if check:
            print(f"{path.relative_to(ROOT)} is out of date: run python tools/fill_settings.py", file=sys.stderr)
            status = EXIT_DIFFERENT
        else:
            path.write_text(wanted, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
