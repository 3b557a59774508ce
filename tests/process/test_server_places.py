"""Where the server listens, as a setting: options, the variable, what is shown, and what contradicts itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from evloop.charcount.cli.server import make_parser, parse_arguments
from evloop.charcount.cli.settings import as_text, from_list
from paths import ROOT, SERVER
from process.test_server_configuration import READERS, read_by_shell, shown

DEFAULTS = ("127.0.0.1", 12345)


def places(arguments: str, **variables: str) -> tuple[list[str], tuple[str, int]]:
    """What is in force: the endpoints of --listen; host and port."""
    environ = {f"CHARCOUNT_{name}": value for name, value in variables.items()}
    args = parse_arguments(make_parser(), arguments.split(), environ)
    return list(args.listen), (args.host, args.port)


def complaint(*arguments: str, **variables: str) -> str:
    """The one line of a usage error."""
    done = subprocess.run(
        [sys.executable, SERVER, *arguments],
        env={"PATH": os.environ["PATH"], **{f"CHARCOUNT_{name}": value for name, value in variables.items()}},
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("charcount-server: ")


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ("", {}, ([], DEFAULTS)),
        ("--listen unix:/run/cc --listen [::1]:80", {}, (["unix:/run/cc", "[::1]:80"], DEFAULTS)),
        ("", {"LISTEN": "unix:/run/cc,[::1]:80"}, (["unix:/run/cc", "[::1]:80"], DEFAULTS)),
        ("", {"LISTEN": " unix:/run/cc  :80 ,\n"}, (["unix:/run/cc", ":80"], DEFAULTS)),
        ("", {"LISTEN": ""}, ([], DEFAULTS)),
        ("", {"LISTEN": "", "PORT": "7"}, ([], ("127.0.0.1", 7))),
        # As --print-config shows it: the variables of both ways, of which one holds the defaults.
        ("", {"LISTEN": "fd:3", "HOST": "127.0.0.1", "PORT": "12345"}, (["fd:3"], DEFAULTS)),
        # The command line wins, whichever way it says it.
        ("--listen fd:3", {"LISTEN": "fd:4 fd:5"}, (["fd:3"], DEFAULTS)),
        ("--listen fd:3", {"HOST": "::", "PORT": "7"}, (["fd:3"], DEFAULTS)),
        ("--port 7", {"LISTEN": "fd:4"}, ([], ("127.0.0.1", 7))),
        ("--host ::", {"LISTEN": "fd:4", "PORT": "12345"}, ([], ("::", 12345))),
    ],
    ids=str,
)
def test_where_it_listens(arguments: str, variables: dict[str, str], expected: object) -> None:
    assert places(arguments, **variables) == expected


def test_two_ways_in_one_place_are_an_error() -> None:
    assert complaint("--listen", "fd:3", "--port", "12345") == (
        "--listen says where: leave out --port, or give --listen once more; see charcount-server --help\n"
    )
    assert complaint("--listen", "fd:3", "--host", "::").startswith("--listen says where: leave out --host, ")
    assert complaint(LISTEN="fd:3", PORT="7").startswith("environment: --listen says where: leave out --port, ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--listen", "12345"), "'12345' is no endpoint: the port is missing; did you mean 127.0.0.1:12345 or :12345?"),
        (("--listen", "/run/cc"), "did you mean unix:/run/cc?"),
        (("--listen", "unix:" + "x" * 108), "the path of a Unix socket can have 107 bytes, this one has 108"),
        (("--listen", "tls:[::]:1"), "tls:[::]:1 needs a certificate and its key: give --tls-cert FILE and --tls-key"),
        (("--unix-mode", "888"), "'888' is no mode of a file: give an octal number from 0 to 777"),
        (("--unix-mode", "1777"), "'1777' is no mode of a file"),
        (("--unix-uids", "0,nobody-has-this"), "there is no user 'nobody-has-this'"),
    ],
    ids=str,
)
def test_wrong_places_are_one_line(arguments: tuple[str, str], said: str) -> None:
    assert said in complaint(*arguments)


def test_a_wrong_variable_is_named() -> None:
    assert complaint(LISTEN="fd:3 nowhere").startswith(
        "CHARCOUNT_LISTEN: argument --listen: 'nowhere' is no endpoint: "
    )


paths = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(st.lists(paths, max_size=4))
def test_a_list_of_anything_is_read_back(items: list[str]) -> None:
    assert from_list(as_text(tuple(items))) == items


@pytest.mark.parametrize("read", READERS)
def test_places_are_shown_so_that_they_can_be_read_back(read) -> None:
    arguments = ["--listen=unix:/run/cc", "--listen=[fe80::1%eth0]:80", "--listen=unix:@cc", "--unix-mode=600"]
    text = shown(*arguments, "--unix-group=adm", "--unix-uids=0,33")
    again = read(text)
    assert again["CHARCOUNT_LISTEN"] == "unix:/run/cc,[fe80::1%eth0]:80,unix:@cc"
    assert shown(**again) == text


def test_a_path_of_any_text_is_read_back() -> None:
    text = shown("--listen", "unix:/tmp/a, b\\c $d", "--listen", ":1")
    assert shown(**read_by_shell(text)) == text
    assert from_list(read_by_shell(text)["CHARCOUNT_LISTEN"]) == ["unix:/tmp/a, b\\c $d", ":1"]


def check(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, SERVER, "--check-config", *arguments], capture_output=True, text=True, timeout=10, cwd=ROOT
    )
    assert done.stderr.count("\n") == 1
    return done.returncode, done.stderr.removeprefix("charcount-server: ").removesuffix("\n")


def test_check_config_looks_at_paths_and_makes_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    good = f"unix:{tmp_path}/cc"
    assert check("--listen", good, "--listen", "unix:@cc") == (0, "the settings are good")
    assert not (tmp_path / "cc").exists()
    for where, why in (
        (f"unix:{tmp_path}/none/cc", f"there is no folder '{tmp_path}/none'; make it first"),
        (f"unix:{tmp_path}/file", "what is at this path is no socket; remove it or choose another path"),
    ):
        assert check("--listen", good, "--listen", where) == (3, f"cannot listen on {where}: {why}")
    status, line = check("--listen", good, "--unix-group", "nobody-has-this")
    assert (status, line) == (3, f"cannot listen on {good}: there is no group 'nobody-has-this'")
    assert check("--listen", "no.such.host.invalid:1")[0] == 3
