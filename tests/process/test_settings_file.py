"""``--config FILE``: settings from a file, and what SIGHUP does when it has changed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evloop.charcount.cli.environment import _quote
from evloop.charcount.cli.settingsfile import parse_variables
from paths import SERVER
from waiting import DEADLINE_S
from workers import wait_for_workers


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SERVER, *arguments], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


@given(st.lists(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0")), max_size=5))
def test_what_print_config_writes_is_read_back(values):
    text = "".join(f"NAME_{number}={_quote(value)}\n" for number, value in enumerate(values))
    assert list(parse_variables(text).values()) == values


def test_comments_quotes_and_empty_lines():
    text = '# a comment\n\n  A=1\nB=\'it is "so"\' \n\tC="a\\"b\\c"\n#D=2\nE='
    assert parse_variables(text) == {"A": "1", "B": 'it is "so"', "C": 'a"b\\c', "E": ""}


@pytest.mark.parametrize("line", ["A", "=1", "A=b c", 'A="b', "1A=2", "A='b'c"])
def test_what_is_no_variable_is_told_with_its_line(line):
    with pytest.raises(ValueError, match="line 3 is not NAME=value"):
        parse_variables(f"OK=1\n\n{line}\nOK=2\n")


def test_the_command_line_and_the_environment_win(tmp_path, monkeypatch):
    file = tmp_path / "settings"
    file.write_text("CHARCOUNT_BACKLOG=7\nCHARCOUNT_LOG_LEVEL=error\nCHARCOUNT_MAX_CONNECTIONS=5\n")
    monkeypatch.setenv("CHARCOUNT_CONFIG", str(file))
    monkeypatch.setenv("CHARCOUNT_LOG_LEVEL", "debug")
    shown = run("--print-config", "--max-connections", "6").stdout
    assert "CHARCOUNT_BACKLOG=7\n" in shown
    assert "CHARCOUNT_LOG_LEVEL=debug\n" in shown
    assert "CHARCOUNT_MAX_CONNECTIONS=6\n" in shown
    file.write_text(shown)
    assert run("--print-config", "--max-connections", "6").stdout == shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("CHARCOUNT_BACKLOG=many", "FILE: CHARCOUNT_BACKLOG: "),
        ("CHARCOUNT_BAKLOG=1", "FILE: CHARCOUNT_BAKLOG: there is no such setting"),
        ("nonsense", "--config: FILE: line 1 is not NAME=value"),
        (None, "--config: FILE cannot be read: No such file or directory"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, text, said):
    file = tmp_path / "settings"
    if text is not None:
        file.write_text(text)
    done = run("--config", str(file), "--print-config")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said.replace("FILE", str(file)) in done.stderr


def test_one_process_changes_what_it_can_and_tells_what_it_cannot(spawn, tmp_path):
    file = tmp_path / "settings"
    file.write_text("CHARCOUNT_MAX_CONNECTIONS=100\n")
    server = spawn("--config", str(file))
    first = server.connect()
    assert first.ask(b"abc\n", 2) == b"3\n"
    file.write_text("CHARCOUNT_MAX_CONNECTIONS=many\n")
    server.signal(signal.SIGHUP)
    server.wait_for_log("not reloaded, the old settings stay in force: ")
    assert server.connect().ask(b"abc\n", 2) == b"3\n"
    file.write_text("CHARCOUNT_MAX_CONNECTIONS=2\nCHARCOUNT_REPLY='x{count}'\n")
    server.signal(signal.SIGHUP)
    server.wait_for_log("reloaded: --max-connections; these need an upgrade (SIGUSR2) or a restart: --reply")
    assert server.connect().receive_rest() == b"ERR too-many-connections limit 2\n"
    assert first.ask(b"abc\n", 2) == b"3\n"


@pytest.mark.slow
def test_workers_are_replaced_by_some_with_the_new_settings_if_these_are_good(spawn, tmp_path):
    file = tmp_path / "settings"
    file.write_text("CHARCOUNT_REPLY='{count}'\n")
    server = spawn("--workers", "2", "--config", str(file))
    old = wait_for_workers(server, 2)
    file.write_text("CHARCOUNT_REPLY='no number'\n")
    server.signal(signal.SIGHUP)
    server.wait_for_log("not reloaded: worker 1")
    assert wait_for_workers(server, 2) == old
    file.write_text("CHARCOUNT_REPLY='x{count}'\n")
    server.signal(signal.SIGHUP)
    server.wait_for_log(" reloaded: 2 workers")
    assert server.connect().ask(b"abc\n", 3) == b"x3\n"
    wait_for_workers(server, 2, without=old)
