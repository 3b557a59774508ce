"""A setting is declared in one entry, and everything that must tell of it does: options, variables, pages."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evloop import Limits
from evloop.charcount.cli.settings import SETTINGS
from paths import ROOT

# A limit that nobody has heard of, as an entry of the table.
ENTRY = """
    max_dragons: int | None = limit(
        default=None,
        can_be_off=True,
        option="dragons that may be kept",
        at_it="fed to them",
        counter="dragons",
        off_because="they are rare",
        suggested=3,
    )
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project with one entry more in its table of limits."""
    for folder in ("evloop", "bin", "tools", "docs"):
        ignored = shutil.ignore_patterns("results", "__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    limits = tmp_path / "evloop" / "limits.py"
    place = "    # Connections that wait in the kernel"
    text = limits.read_text()
    assert text.count(place) == 1
    limits.write_text(text.replace(place, ENTRY + place))
    return tmp_path


def run(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=checkout, env=variables, capture_output=True, text=True, timeout=30
    )


def test_one_entry_is_an_option_a_variable_and_a_row_of_each_page(checkout: Path) -> None:
    server = ("bin/charcount-server", "--print-config")
    assert "CHARCOUNT_MAX_DRAGONS=0\n" in run(checkout, *server).stdout
    assert "CHARCOUNT_MAX_DRAGONS=7\n" in run(checkout, *server, "--max-dragons", "7").stdout
    assert "CHARCOUNT_MAX_DRAGONS=8\n" in run(checkout, *server, CHARCOUNT_MAX_DRAGONS="8").stdout
    assert "argument --max-dragons: '-1' is not a whole number" in run(checkout, *server, "--max-dragons=-1").stderr
    assert "dragons that may be kept (default: 0: no limit)" in " ".join(
        run(checkout, "bin/charcount-server", "--help").stdout.split()
    )
    assert run(checkout, "-c", "import evloop; print(evloop.Limits(max_dragons=5).max_dragons)").stdout == "5\n"
    assert "ValueError: max_dragons must be greater than 0 (or None for no limit), got 0" in (
        run(checkout, "-c", "import evloop; evloop.Limits(max_dragons=0)").stderr
    )

    stale = run(checkout, "tools/fill_settings.py", "--check")
    assert stale.returncode == 1
    assert "docs/operations.md is out of date: run python tools/fill_settings.py" in stale.stderr
    assert "docs/reliability.md is out of date" in stale.stderr
    assert run(checkout, "tools/fill_settings.py").returncode == 0
    assert run(checkout, "tools/fill_settings.py", "--check").returncode == 0
    operations = (checkout / "docs" / "operations.md").read_text()
    assert "| `--max-dragons` | 0: no limit | dragons that may be kept |" in operations
    assert "| `--max-dragons` | they are rare | 3 |" in operations
    row = "| `max_dragons` | `--max-dragons` | none | fed to them | `dragons` |"
    assert row in (checkout / "docs" / "reliability.md").read_text()


def test_a_value_that_only_limits_knows_to_be_wrong_is_a_usage_error(checkout: Path) -> None:
    limits = checkout / "evloop" / "limits.py"
    limits.write_text(
        limits.read_text().replace(
            "    def _check_together(self) -> None:\n        if not",
            """
    def _check_together(self) -> None:
        if self.max_dragons == 13:
            raise ValueError("13 dragons bring bad luck")
        if not""",
        )
    )
    done = run(checkout, "bin/charcount-server", "--print-config", "--max-dragons", "13")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "charcount-server: 13 dragons bring bad luck; see charcount-server --help\n"


def test_the_pages_tables_are_up_to_date() -> None:
    done = run(ROOT, "tools/fill_settings.py", "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_pages_list_every_setting_and_every_limit() -> None:
    """Whatever the tool does: an empty table must not pass."""
    operations = (ROOT / "docs" / "operations.md").read_text()
    reliability = (ROOT / "docs" / "reliability.md").read_text()
    assert [setting.name for setting in SETTINGS if f"\n| `{setting.option}`" not in operations] == []
    assert [name for name in Limits.table if f"\n| `{name}` |" not in reliability] == []
    off = [setting for setting in SETTINGS if setting.off_because is not None]
    assert off
    for setting in off:
        assert f"| `{setting.option}` | {setting.off_because} | {setting.suggested} |" in operations
