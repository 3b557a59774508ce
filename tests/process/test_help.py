"""What the commands' help ends with, and what they say about an option that is misspelt."""

from __future__ import annotations

import os
import re
import shlex

import pytest

from evloop.charcount.cli import client, server
from evloop.charcount.cli.arguments import HelpfulParser, did_you_mean
from paths import CLIENT, ROOT, SERVER
from process.commands import one_line, run_command

PARSERS = {"charcount-server": server.make_parser(), "charcount-client": client.make_parser()}


@pytest.mark.parametrize("name", PARSERS)
def test_three_examples_that_are_understood_and_where_the_documentation_is(name: str) -> None:
    parser: HelpfulParser = PARSERS[name]
    text = run_command(str(ROOT / "bin" / name), "--help", env={**os.environ, "COLUMNS": "80"}).stdout.decode()
    examples, _, documentation = text.partition("\nexamples:\n")[2].partition("\ndocumentation:\n")
    commands = re.findall(r"^  (\S.*)$", examples, re.M)
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command.partition(" < ")[0])
        parser.parse_args(words[words.index(name) + 1 :])
    pages = re.findall(r"docs/\w+\.md", documentation)
    assert pages
    assert all((ROOT / page).exists() for page in pages)


@pytest.mark.parametrize(
    ("command", "arguments", "guess"),
    [
        (SERVER, ["--prot", "8000"], "--prot 8000 (did you mean --port?)"),
        (SERVER, ["--tls-cret=a.pem"], "--tls-cret=a.pem (did you mean --tls-cert?)"),
        (SERVER, ["--prot=1", "--hots=x"], "--prot=1 --hots=x (did you mean --port or --host?)"),
        (SERVER, ["--tls", "a"], "--tls a (did you mean --tls-cert, --tls-key, --tls-client-ca, --tls-client-auth or "),
        (CLIENT, ["--hots", "::1", "hi"], "--hots (did you mean --host? put -- before a TEXT that begins with -)"),
    ],
)
def test_a_misspelt_option_is_one_line_with_a_guess(command: str, arguments: list[str], guess: str) -> None:
    done = run_command(command, *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert f": unrecognized arguments: {guess}" in one_line(done.stderr)


def test_a_misspelt_variable_too() -> None:
    done = run_command(SERVER, env={**os.environ, "CHARCOUNT_MAX_MESAGE": "5"})
    assert done.returncode == 2
    assert "CHARCOUNT_MAX_MESAGE: there is no such setting (did you mean CHARCOUNT_MAX_MESSAGE?);" in one_line(
        done.stderr
    )


@pytest.mark.parametrize(
    ("words", "question"),
    [
        ([], ""),
        (["--bogus"], ""),
        (["--port"], "did you mean --port?"),
        (["--prot", "--potr"], "did you mean --port?"),
        (["--max-c"], "did you mean --max-connections?"),
    ],
)
def test_guesses(words: list[str], question: str) -> None:
    assert did_you_mean(words, ["--port", "--framing", "--max-message", "--max-connections"]) == question
