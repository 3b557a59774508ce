"""The units for systemd: systemd itself reads and judges them. `test_systemd.py` runs the service as they say."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from paths import ROOT, SERVER
from processes import Process

FOLDER = ROOT / "deploy" / "systemd"
UNITS = ("charcount.service", "charcount.socket")
DROP_IN = "notify-reload.conf"


pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def copy_units(folder: Path, *change: str) -> list[str]:
    """The units, with one text in place of another if they are given; their paths."""
    for name in UNITS:
        # systemd looks whether the program is there.
        text = (FOLDER / name).read_text().replace("/usr/local/bin/charcount-server", SERVER)
        (folder / name).write_text(text.replace(*change) if change else text)
    return [str(folder / name) for name in UNITS]


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


def complaints(*units: str) -> list[str]:
    """What systemd finds wrong with them."""
    done = analyze("verify", "--man=no", *units)
    assert done.stdout == ""
    return [line for line in done.stderr.splitlines() if "charcount" in line]


def systemd_version() -> int:
    found = re.match(r"systemd (\d+)", analyze("--version").stdout)
    assert found is not None
    return int(found[1])


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    assert complaints(*copy_units(tmp_path)) == []


def test_it_would_find_something(tmp_path: Path) -> None:
    (line,) = complaints(*copy_units(tmp_path, "LimitNOFILE=12000", "LimitNOFILE=many"))
    assert re.search(r"charcount\.service:\d+: Failed to parse resource value", line)


def test_the_part_for_a_newer_systemd_is_understood_from_253_on(tmp_path: Path) -> None:
    units = copy_units(tmp_path)
    drop_ins = tmp_path / "charcount.service.d"
    drop_ins.mkdir()
    shutil.copy(FOLDER / DROP_IN, drop_ins)
    found = complaints(*units)
    if systemd_version() >= 253:
        assert found == []
    else:
        (line,) = found
        assert "Failed to parse service type, ignoring: notify-reload" in line


def test_the_service_reads_its_settings_again_at_a_reload(tmp_path: Path) -> None:
    text = (FOLDER / "charcount.service").read_text()
    (command,) = re.findall(r"^ExecStart=/usr/local/bin/charcount-server(.*)$", text, re.MULTILINE)
    assert re.search(r"^ExecReload=/bin/kill -HUP \$MAINPID$", text, re.MULTILINE)
    assert "\nEnvironmentFile=" not in text  # it would win over the file for ever
    settings = tmp_path / "charcount.env"
    settings.write_text("CHARCOUNT_PORT=0\n")
    arguments = command.replace("/etc/charcount.env", str(settings)).split()
    server = Process(["-W", "error", SERVER, *arguments])
    try:
        server.wait_for_log("listening on")
        settings.write_text("CHARCOUNT_PORT=0\nCHARCOUNT_MAX_CONNECTIONS=99\n")
        server.signal(signal.SIGHUP)
        server.wait_for_log("reloaded: --max-connections\n")
    finally:
        server.close()


def test_the_service_is_well_shut_in() -> None:
    done = analyze("security", "--offline=true", "--no-pager", "--threshold=20", str(FOLDER / "charcount.service"))
    assert "Overall exposure level" in done.stdout
    assert done.returncode == 0, done.stdout  # an exposure of 2.0 at most: OK
    weaker = analyze("security", "--offline=true", "--no-pager", "--threshold=10", str(FOLDER / "charcount.service"))
    assert weaker.returncode != 0  # it would have said so
