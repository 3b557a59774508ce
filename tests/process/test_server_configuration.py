"""Settings of the server command: from variables and options, shown and checked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from evloop.charcount.cli import environment
from evloop.charcount.cli.server import make_parser, parse_arguments
from evloop.charcount.cli.settings import SETTINGS
from paths import ROOT

CLASSIC_REPLY = "Jumlah karakter: {count}"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The server command, which must end by itself."""
    return subprocess.run(
        [sys.executable, "bin/charcount-server", *arguments],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=10,
        env={"PATH": os.environ["PATH"], **variables},
    )


def shown(*arguments: str, **variables: str) -> str:
    """What --print-config shows."""
    done = run("--print-config", *arguments, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def settings(*arguments: str, **variables: str) -> dict[str, str]:
    """What --print-config shows, read back by a shell."""
    return read_by_shell(shown(*arguments, **variables))


# ---------------------------------------------------------------------- who reads an environment file


def read_by_shell(text: str) -> dict[str, str]:
    """As after ``set -a; . FILE``."""
    done = subprocess.run(
        ["/bin/sh", "-c", "set -a; . /dev/stdin; exec env -0"],
        input=text.encode(),
        capture_output=True,
        timeout=10,
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    pairs = [line.partition("=") for line in done.stdout.decode().split("\0")]
    return {name: value for name, _, value in pairs if name.startswith("CHARCOUNT_")}


def read_by_systemd(text: str) -> dict[str, str]:
    """By the rules of ``EnvironmentFile=`` in systemd.exec(5), for a value that is quoted as a whole or not at all."""
    found = {}
    while text:
        name, _, text = text.partition("=")
        value = ""
        if text.startswith('"'):
            text = text[1:]
            while not text.startswith('"'):
                if text[0] == "\\" and text[1] in '"\\`$':
                    text = text[1:]
                value, text = value + text[0], text[1:]
            assert text.startswith('"\n')
            text = text[2:]
        else:
            value, _, text = text.partition("\n")
            assert not set(value) & set("\\'\""), value
            assert value == value.strip()
        assert not name.startswith("#")
        found[name] = value
    return found


def read_by_docker(text: str) -> dict[str, str]:
    """As ``docker run --env-file`` does: each line is a variable, and nothing is special."""
    return dict(line.split("=", 1) for line in text.removesuffix("\n").split("\n"))


READERS = [read_by_shell, read_by_systemd, read_by_docker]


# ---------------------------------------------------------------------- what wins


def test_variables_set_options_and_the_command_line_wins() -> None:
    found = settings("--port", "7", CHARCOUNT_PORT="6", CHARCOUNT_IDLE_TIMEOUT="1.5", CHARCOUNT_CLASSIC="yes")
    assert found["CHARCOUNT_PORT"] == "7"
    assert found["CHARCOUNT_IDLE_TIMEOUT"] == "1.5"
    assert found["CHARCOUNT_CLASSIC"] == "1"


@pytest.mark.parametrize(
    ("variables", "arguments", "framing", "reply"),
    [
        ({}, "", "line", "{count}"),
        ({}, "--classic", "raw", CLASSIC_REPLY),
        ({}, "--no-classic", "line", "{count}"),
        ({}, "--classic --no-classic", "line", "{count}"),
        ({}, "--no-classic --reply <{count}>", "line", "<{count}>"),
        ({}, "--classic --framing raw", "raw", CLASSIC_REPLY),
        ({"CLASSIC": "1"}, "", "raw", CLASSIC_REPLY),
        ({"CLASSIC": "1"}, "--no-classic", "line", "{count}"),
        ({"CLASSIC": "0"}, "--classic", "raw", CLASSIC_REPLY),
        # The command line wins over what the variable stands for, and over no more than that.
        ({"CLASSIC": "1"}, "--framing line", "line", CLASSIC_REPLY),
        ({"CLASSIC": "1"}, "--reply {count}", "raw", "{count}"),
        ({"CLASSIC": "1"}, "--no-classic --reply <{count}>", "line", "<{count}>"),
        ({"FRAMING": "line"}, "--classic", "raw", CLASSIC_REPLY),
        ({"REPLY": "<{count}>"}, "--classic", "raw", CLASSIC_REPLY),
        ({"REPLY": "<{count}>", "FRAMING": "raw"}, "--no-classic", "raw", "<{count}>"),
        ({"CLASSIC": "1", "FRAMING": "raw"}, "--no-classic", "raw", "{count}"),
        # Variables that contradict each other, until the command line says what is meant.
        ({"CLASSIC": "1", "FRAMING": "line"}, "--classic", "raw", CLASSIC_REPLY),
        ({"CLASSIC": "1", "FRAMING": "line"}, "--no-classic", "line", "{count}"),
    ],
    ids=str,
)
def test_classic_stands_for_framing_and_reply(
    variables: dict[str, str], arguments: str, framing: str, reply: str
) -> None:
    environ = {f"CHARCOUNT_{name}": value for name, value in variables.items()}
    args = parse_arguments(make_parser(), arguments.split(), environ)
    assert (args.framing, args.reply) == (framing, reply)
    assert args.classic is (framing == "raw" and reply == CLASSIC_REPLY)


def test_a_limit_can_be_lifted_on_the_command_line() -> None:
    limits = {"MAX_MESSAGE": "100", "MAX_CONNECTIONS_PER_ADDRESS": "5", "IDLE_TIMEOUT": "60", "WRITE_TIMEOUT": "60"}
    environ = {f"CHARCOUNT_{name}": value for name, value in limits.items()}
    arguments = [f"--{name.lower().replace('_', '-')}=0" for name in limits]
    found = settings(*arguments, **environ)
    assert {name: found[name] for name in environ} == dict.fromkeys(environ, "0")


# ---------------------------------------------------------------------- wrong variables


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"CHARCOUNT_PORT": "http"}, "CHARCOUNT_PORT: argument -p/--port: 'http' is not a port"),
        ({"CHARCOUNT_CLASSIC": "perhaps"}, "CHARCOUNT_CLASSIC: 'perhaps' is neither yes nor no"),
        ({"CHARCOUNT_MAX_CONECTIONS": "5"}, "CHARCOUNT_MAX_CONECTIONS: there is no such setting"),
        ({"CHARCOUNT_PRINT_CONFIG": "1"}, "CHARCOUNT_PRINT_CONFIG: there is no such setting"),
        ({"CHARCOUNT_FRAMING": "round"}, "CHARCOUNT_FRAMING: argument --framing: invalid choice"),
        ({"CHARCOUNT_IPV6_PREFIX_BITS": "129"}, "ipv6_prefix_bits must be at most 128, got 129"),
        # A name may be as strange as a value: nothing of it may get to the terminal as it is.
        ({"CHARCOUNT_\x1b[31m\n": "1"}, r"CHARCOUNT_\x1b[31m\n: there is no such setting"),
        ({"CHARCOUNT_PORT": "\x1b[31m\n"}, r"argument -p/--port: '\x1b[31m\n' is not a port"),
        ({"CHARCOUNT_REPLY": "no number"}, "argument --reply: 'no number' does not contain {count}"),
        (
            {"CHARCOUNT_CLASSIC": "1", "CHARCOUNT_REPLY": "{count}"},
            "environment: --classic sets framing and reply: leave out --framing line and --reply",
        ),
    ],
    ids=str,
)
def test_a_bad_variable_is_named(variables: dict[str, str], complaint: str) -> None:
    done = run(**variables)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "\x1b" not in done.stderr


def test_help_is_shown_whatever_the_variables_are() -> None:
    """The error says: see --help."""
    done = run("--help", CHARCOUNT_PORT="http", CHARCOUNT_BOGUS="")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--no-classic" in done.stdout


# ---------------------------------------------------------------------- --print-config


def test_all_settings_are_shown_as_they_are_in_force() -> None:
    lines = shown().splitlines()
    assert [line.partition("=")[0] for line in lines] == [f"CHARCOUNT_{setting.name.upper()}" for setting in SETTINGS]
    # A value of each kind.
    assert {
        "CHARCOUNT_HOST=127.0.0.1",
        "CHARCOUNT_PORT=12345",
        "CHARCOUNT_FRAMING=line",
        "CHARCOUNT_REPLY={count}",
        "CHARCOUNT_CLASSIC=0",
        "CHARCOUNT_MAX_CONNECTIONS=10000",
        "CHARCOUNT_IDLE_TIMEOUT=0",
        "CHARCOUNT_WRITE_TIMEOUT=60",
    } <= set(lines)


def test_what_classic_stands_for_is_shown() -> None:
    lines = shown("--classic").splitlines()
    assert "CHARCOUNT_FRAMING=raw" in lines
    assert 'CHARCOUNT_REPLY="Jumlah karakter: {count}"' in lines
    assert "CHARCOUNT_CLASSIC=1" in lines


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        ([], {}),
        (["--reply", "n = {count}", "--max-message", "99", "--max-connections", "12", "--host", "::1"], {}),
        (["--classic", "--idle-timeout", "0.125"], {}),
        (["--framing", "line"], {"CHARCOUNT_CLASSIC": "1"}),
        (["--reply", '«it\'s» "$5" `{count}` \\n'], {"CHARCOUNT_HOST": ""}),
    ],
    ids=str,
)
def test_what_is_shown_gives_the_same_settings_again(arguments: list[str], variables: dict[str, str]) -> None:
    text = shown(*arguments, **variables)
    assert shown(**read_by_shell(text)) == text


def assert_read_back(arguments: list[str], text: str, variables: Mapping[str, str]) -> None:
    parser = make_parser()
    args = parse_arguments(parser, arguments, {})
    again = parse_arguments(parser, [], variables)
    assert vars(again) == vars(args)
    assert environment.as_variables(again) == text


def as_shown(arguments: list[str]) -> str:
    return environment.as_variables(parse_arguments(make_parser(), arguments, {}))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "arguments",
    [
        "--host= --port 0",
        "--host ::1 --port 65535 --backlog 1",
        "--host fe80::1%lo",
        "--host localhost",
        "--framing raw",
        "--framing raw --reply {count}",
        "--no-classic",
        "--max-message 1 --max-connections 1 --max-connections-per-address 1",
        "--max-message 123456789012345678901234567890",
        "--max-message 0 --max-connections-per-address 0",
        "--idle-timeout 0.1 --message-timeout 1e-7 --write-timeout 1e9 --drain-timeout 0",
        "--idle-timeout -0 --message-timeout 16777216.000000004 --write-timeout 0 --drain-timeout 3",
        "--log-level debug",
    ],
)
def test_settings_are_read_back(arguments: str, read) -> None:
    text = as_shown(arguments.split())
    assert_read_back(arguments.split(), text, read(text))


@pytest.mark.parametrize(
    "reply",
    [
        "n = {count}",
        " {count} ",
        "\t{count}\t",
        "it's {count}",
        "'{count}'",
        '"{count}"',
        'say "{count}',
        "$HOME ${count} $$ $(date) $1",
        "`date` {count}",
        "\\{count}",
        "{count}\\",
        '\\"{count}\\$\\`\\\\',
        "\\n{count}\\t",
        "# {count}",
        "{count} # not a comment",
        "; {count}",
        "a;b&c|d<e>f(g) {count}",
        "!{count}!!",
        "~{count}",
        "x:~:{count}",
        "*{count}?[a]",
        "%d %s %% {count}",
        "{{}} {{a,b}} {count}",
        "{count:,}",
        "{count:>5}",
        "={count}=",
        "--port={count}",
        "-{count}",
        "«{count}»",
        "日本 {count}",
        "\N{NO-BREAK SPACE}{count}\N{IDEOGRAPHIC SPACE}",
        "\x1b[1m{count}\x7f",
        "export CHARCOUNT_PORT=1 {count}",
    ],
)
@pytest.mark.parametrize("read", [read_by_shell, read_by_systemd])
def test_any_reply_is_read_back(reply: str, read) -> None:
    text = as_shown([f"--reply={reply}"])
    assert read(text)["CHARCOUNT_REPLY"] == reply
    assert_read_back([f"--reply={reply}"], text, read(text))


@pytest.mark.parametrize(
    "reply", ["{count}\n", "\n\n{count}\r\n", "{count}\\\n", "a\rb{count}\nCHARCOUNT_PORT=1\n"], ids=ascii
)
@pytest.mark.parametrize("read", [read_by_shell, read_by_systemd])
def test_line_breaks_in_a_raw_reply_are_read_back(reply: str, read) -> None:
    arguments = ["--framing=raw", f"--reply={reply}"]
    text = as_shown(arguments)
    assert read(text)["CHARCOUNT_REPLY"] == reply
    assert_read_back(arguments, text, read(text))


def test_bytes_that_are_no_text_are_shown_as_they_are() -> None:
    done = subprocess.run(
        [sys.executable, "bin/charcount-server", "--print-config", "--host", b"\xff"],
        cwd=ROOT,
        capture_output=True,
        timeout=10,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b'CHARCOUNT_HOST="\xff"\n')


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_settings_that_cannot_be_shown() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "bin/charcount-server", "--print-config"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=10,
        )
    assert done.returncode == 1
    assert done.stderr == "charcount-server: cannot write to stdout: No space left on device\n"


# ---------------------------------------------------------------------- --check-config


def test_check_config() -> None:
    done = run("--check-config")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "charcount-server: the settings are good\n")
    done = run("--check-config", "--host", "no.such.host.invalid")
    assert done.returncode == 3
    assert "cannot resolve host" in done.stderr
    done = run("--check-config", "--max-connections", "1000000000")
    assert done.returncode == 2
    assert "descriptor limit allows" in done.stderr


# ---------------------------------------------------------------------- proxies


def test_proxies_are_named_by_option_or_variable() -> None:
    assert settings()["CHARCOUNT_PROXY_FROM"] == ""
    networks = "10.0.0.0/8,2001:db8::7,unix"
    assert settings("--proxy-from", networks)["CHARCOUNT_PROXY_FROM"] == networks
    assert settings(CHARCOUNT_PROXY_FROM=networks)["CHARCOUNT_PROXY_FROM"] == networks
    assert settings("--proxy-from", "", CHARCOUNT_PROXY_FROM=networks)["CHARCOUNT_PROXY_FROM"] == ""


@pytest.mark.parametrize(
    ("networks", "reason"),
    [
        ("10.0.0.5/8", "'10.0.0.5/8' goes on after its first 8 bits: 10.0.0.0/8 is the network"),
        ("10.0.0.0/8,haproxy.example", "'haproxy.example' is no network: give addresses or networks as 192.0.2.1, "),
    ],
)
def test_proxies_that_are_no_networks_are_a_usage_error(networks: str, reason: str) -> None:
    for done in (run("--proxy-from", networks), run(CHARCOUNT_PROXY_FROM=networks)):
        assert done.returncode == 2
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1
        assert ("--proxy-from" in done.stderr) or ("CHARCOUNT_PROXY_FROM" in done.stderr)
