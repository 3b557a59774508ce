"""Man pages and shell completion: made of the options that there are, and driven by the programs they are for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from paths import ROOT
from waiting import DEADLINE_S

SHARE = ROOT / "share"
COMMANDS = ("charcount-server", "charcount-client", "evloop-load")
PAGES = [SHARE / "man" / "man1" / f"{name}.1" for name in COMMANDS]
PROMPT = "ready> "


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def fill(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "tools" / "fill_share.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)


@pytest.mark.slow
def test_what_is_stale_is_said_and_mended(tmp_path: Path) -> None:
    for folder in ("evloop", "evloop_bench", "tools", "share"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    settings = tmp_path / "evloop" / "charcount" / "cli" / "settings.py"
    text = settings.read_text()
    assert '"port"' in text
    settings.write_text(text.replace("0 picks a free one", "0 picks whatever is free"))
    stale = fill(tmp_path, "--check")
    assert stale.returncode == 1
    assert stale.stderr.splitlines() == [
        f"share/{name} is out of date: run python tools/fill_share.py"
        for name in (
            "man/man1/charcount-server.1",
            "zsh/site-functions/_charcount-server",
            "fish/vendor_completions.d/charcount-server.fish",
        )
    ]
    assert fill(tmp_path).returncode == 0
    assert "0 picks whatever is free" in (tmp_path / "share" / "man" / "man1" / "charcount-server.1").read_text()


# ---------------------------------------------------------------------- man pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@needs("groff")
def test_groff_has_no_complaint_and_shows_each_option(page: Path) -> None:
    done = subprocess.run(
        ["groff", "-ww", "-man", "-Tascii", "-P-cbou", page], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = " ".join(done.stdout.split())
    options = re.findall(
        r"^complete .* -l (\S+)", (SHARE / f"fish/vendor_completions.d/{page.stem}.fish").read_text(), re.M
    )
    assert len(options) > 5
    for option in options:
        assert f"--{option}" in shown
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"):
        assert f" {heading} " in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@needs("mandoc")
def test_mandoc_has_no_complaint(page: Path) -> None:
    done = subprocess.run(["mandoc", "-Tlint", page], capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# ---------------------------------------------------------------------- shells


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file whose name has a blank, and one that has none."""
    tmp_path = tmp_path_factory.mktemp("files")
    (tmp_path / "server cert.pem").touch()
    (tmp_path / "run.json").touch()
    return tmp_path


@pytest.fixture(scope="module")
def bash(files: Path) -> Iterator[Callable[[str], list[str]]]:
    """Completes in a bash that runs in a terminal, as a user does: by a tab."""
    shell = pexpect.spawn(
        shutil.which("bash") or "bash", ["--norc", "--noprofile"], cwd=str(files), encoding="utf-8", timeout=DEADLINE_S
    )
    shell.delaybeforesend = None
    shell.setwinsize(200, 400)
    for line in (
        "bind 'set bell-style none'; bind 'set show-all-if-ambiguous on'; bind 'set page-completions off'",
        "bind 'set completion-query-items 0'; bind 'set enable-bracketed-paste off'",
        *(f"source '{SHARE}/bash-completion/completions/{name}'" for name in COMMANDS),
        "PS1='ready''> '",
    ):
        shell.sendline(line)
    shell.expect_exact(PROMPT)

    def complete(line: str) -> list[str]:
        """The words that the terminal shows after the line and a tab, those of the line first."""
        shell.send(f"{line}\t")
        shell.send(" :end\x15")  # the line is cut, so nothing is run
        shell.sendline("echo do''ne")
        shell.expect_exact("done")
        text = str(shell.before)
        shell.expect_exact(PROMPT)
        return text.split()

    yield complete
    shell.close(force=True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("charcount-server --frami", ["--framing"]),
        ("charcount-server --framing ", ["line", "raw"]),
        ("charcount-server --framing=r", ["--framing=raw"]),
        ("charcount-server --port 80 --no-cl", ["--no-classic"]),
        ("charcount-server --tls-cert ser", [r"server\ cert.pem"]),
        ("charcount-server --tls-cert=ser", [r"--tls-cert=server\ cert.pem"]),
        ("charcount-client --conn", ["--connect"]),
        ("charcount-client hello --class", ["--classic"]),
        ("evloop-load comp", ["compare"]),
        ("evloop-load compare --fo", ["--force"]),
        ("evloop-load compare run", ["run.json"]),
        ("evloop-load --text ", ["ascii", "latin", "cjk", "emoji", "mixed"]),
    ],
)
def test_bash(bash: Callable[[str], list[str]], line: str, words: list[str]) -> None:
    text = " ".join(bash(line))
    for word in words:
        assert word in text


def test_bash_offers_all_options_and_no_file_where_none_is_meant(bash: Callable[[str], list[str]]) -> None:
    text = bash("charcount-server --")
    for option in ("--host", "--listen", "--tls-cert", "--no-classic", "--max-connections", "--check-config", "--help"):
        assert option in text
    assert "run.json" not in bash("charcount-server --port ")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("charcount-server --frami", ["--framing"]),
        ("charcount-server --framing ", ["line", "raw"]),
        ("charcount-server --tls-cert ser", ["server cert.pem"]),
        ("charcount-client --conn", ["--connect"]),
        ("evloop-load comp", ["compare"]),
        ("evloop-load compare --fo", ["--force"]),
        ("evloop-load compare run", ["run.json"]),
    ],
)
@needs("fish")
def test_fish(files: Path, line: str, words: list[str]) -> None:
    program = "".join(f"source '{SHARE}/fish/vendor_completions.d/{name}.fish'; " for name in COMMANDS)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"{program} complete -C '{line}'"],
        cwd=files,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    offered = [candidate.partition("\t")[0] for candidate in done.stdout.splitlines()]
    assert offered == words


@needs("zsh")
@pytest.mark.slow
def test_zsh(files: Path) -> None:
    """In one session, as zsh takes a while to load its completion."""
    environment = {**os.environ, "TERM": "dumb"}  # no colours between the characters
    with pexpect.spawn(
        "zsh", ["-f"], cwd=str(files), encoding="utf-8", timeout=DEADLINE_S, env=environment, dimensions=(200, 400)
    ) as shell:
        for line in (
            f"fpath=('{SHARE}/zsh/site-functions' $fpath); autoload -Uz compinit; compinit -u -D",
            "unset zle_bracketed_paste; setopt no_beep; PS1='ready''> '",
        ):
            shell.sendline(line)
        shell.expect_exact(PROMPT)
        for line, said in (
            ("charcount-server --frami", "--framing="),
            ("charcount-server --framing r", "--framing raw"),
            ("charcount-server --tls-cert ser", "server\\ cert.pem"),
            ("charcount-client --conn", "--connect="),
            ("evloop-load comp", "compare"),
            ("evloop-load compare --fo", "--force"),
            ("evloop-load compare run", "run.json"),
        ):
            shell.send(f"{line}\t")
            shell.expect_exact(said)
            shell.send("\x15")  # the line is cut, so nothing is run
            shell.sendline("echo do''ne")
            shell.expect_exact("done\r\n")
            shell.expect_exact(PROMPT)
