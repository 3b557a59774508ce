"""Settings of the server command from the environment, shown and checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The server command, which must end by itself."""
    return subprocess.run(
        [sys.executable, "bin/charcount-server", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=10,
        env={"PATH": os.environ["PATH"], **variables},
    )


def shown(*arguments: str, **variables: str) -> dict[str, str]:
    """What --print-config shows, read back as a shell would."""
    done = run("--print-config", *arguments, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    settings = [line.split("=", 1) for line in done.stdout.splitlines() if not line.startswith("#")]
    return {name: value.strip("'") for name, value in settings}


def test_variables_set_options_and_the_command_line_wins() -> None:
    settings = shown("--port", "7", CHARCOUNT_PORT="6", CHARCOUNT_IDLE_TIMEOUT="1.5", CHARCOUNT_CLASSIC="yes")
    assert settings["CHARCOUNT_PORT"] == "7"
    assert settings["CHARCOUNT_IDLE_TIMEOUT"] == "1.5"
    assert settings["CHARCOUNT_CLASSIC"] == "1"


def test_what_is_shown_gives_the_same_settings_again() -> None:
    settings = shown("--reply", "n = {count}", "--max-message", "99", "--max-connections", "12", "--host", "::1")
    assert settings["CHARCOUNT_REPLY"] == "n = {count}"
    assert shown(**settings) == settings


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"CHARCOUNT_PORT": "http"}, "CHARCOUNT_PORT: argument -p/--port: 'http' is not a port"),
        ({"CHARCOUNT_CLASSIC": "perhaps"}, "CHARCOUNT_CLASSIC: 'perhaps' is neither yes nor no"),
        ({"CHARCOUNT_MAX_CONECTIONS": "5"}, "CHARCOUNT_MAX_CONECTIONS: there is no such setting"),
        ({"CHARCOUNT_FRAMING": "round"}, "CHARCOUNT_FRAMING: argument --framing: invalid choice"),
        ({"CHARCOUNT_REPLY": "no number"}, "argument --reply: 'no number' does not contain {count}"),
    ],
)
def test_a_bad_variable_is_named(variables: dict[str, str], complaint: str) -> None:
    done = run(**variables)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_check_config() -> None:
    done = run("--check-config")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "charcount-server: the settings are good\n")
    done = run("--check-config", "--host", "no.such.host.invalid")
    assert done.returncode == 3
    assert "cannot resolve host" in done.stderr
    done = run("--check-config", "--max-connections", "1000000000")
    assert done.returncode == 2
    assert "descriptor limit allows" in done.stderr
