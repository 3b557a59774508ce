"""What docs/analysis.md shows of the exercise's programs, and of these, is what they do; in both languages."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from paths import ROOT
from processes import Process
from waiting import DEADLINE_S

LAB = ROOT / "docs" / "lab"
ENGLISH = (ROOT / "docs" / "analysis.md").read_text()
INDONESIAN = (ROOT / "docs" / "analysis.id.md").read_text()

# A message that must not come is waited for this long. A server that is late can't make the test fail then.
SHORT_S = 0.2
# The same in experiments in which something else must come before or after it.
LONG_S = 1.5


def blocks(document: str) -> list[str]:
    """Everything between fences."""
    return re.findall(r"^```[^\n]*\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)


def transcripts() -> Iterator[tuple[str, str, str]]:
    """Server command, experiment with its options, and what is shown of it."""
    pattern = re.compile(
        r"\$ (?P<server>[^\n]+) &\n\$ python3 docs/lab/experiments\.py (?P<arguments>[^\n]+)\n(?P<shown>.+)", re.S
    )
    for block in blocks(ENGLISH):
        if found := pattern.fullmatch(block):
            shown = found["shown"].removesuffix("$ kill $!\n")
            yield found["server"].removeprefix("python3 "), found["arguments"], shown


@pytest.fixture
def start() -> Iterator[Callable[[str], Process]]:
    """Starts a server, given the command line that is shown, on a free port."""
    running = []

    def start_one(command: str) -> Process:
        program, *options = command.split()
        blocking = program.endswith("blocking_server.py")
        server = Process([program, *options, *(["0"] if blocking else ["--port", "0"])])
        running.append(server)
        return server

    yield start_one
    for server in running:
        server.close()


def run_experiment(server: Process, arguments: str, patience_s: float) -> str:
    """What the experiment prints."""
    name, _, options = arguments.replace(" --server-pid $!", "").partition(" ")
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", str(LAB / "experiments.py"), name, *options.split()),
            *("--port", str(server.address[1]), "--server-pid", str(server.popen.pid), "--patience", str(patience_s)),
        ],
        capture_output=True,
        text=True,
        timeout=3 * DEADLINE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def without_amounts(text: str) -> str:
    """How much the kernel's buffers hold is another number each time."""
    return re.sub(r"[\d.]+ MB", "N MB", text)


def patience_s(arguments: str, shown: str) -> float:
    """Long only where it has to be."""
    if arguments in ("two-clients", "flood --lines"):
        return LONG_S
    return SHORT_S if "nothing yet" in shown else DEADLINE_S


@pytest.mark.parametrize(("server", "arguments", "shown"), list(transcripts()))
def test_transcript(server: str, arguments: str, shown: str, start: Callable[[str], Process]) -> None:
    running = start(server)
    printed = run_experiment(running, arguments, patience_s(arguments, shown))
    assert without_amounts(printed) == without_amounts(shown)
    if "drain" in arguments:
        assert running.wait() == 0
    if (server, arguments) == ("docs/lab/blocking_server.py", "flood"):  # by then A is gone
        assert running.wait() == 1
        assert re.search(r"^(ConnectionResetError|BrokenPipeError)", running.log, re.MULTILINE)


def table_of_experiments() -> Iterator[tuple[str, str, str]]:
    """Experiment, options of our server, and what the table says that it answers."""
    lines = re.findall(r"^\| (\S+) \| .* \| .* \| (.*) \| (.*) \|$", ENGLISH, re.MULTILINE)
    for name, classic, by_lines in lines:
        if name in ("two-clients", "long", "split", "merged", "character", "japanese"):
            yield name, "--classic", classic
            yield name, "--lines", by_lines


@pytest.mark.parametrize(("name", "framing", "counts"), list(table_of_experiments()))
def test_table_of_experiments(name: str, framing: str, counts: str, start: Callable[[str], Process]) -> None:
    server = start("bin/charcount-server" + (" --classic" if framing == "--classic" else ""))
    waits_in_vain = name == "character" or (name, framing) == ("split", "--lines")
    arguments = name if framing == "--classic" else f"{name} {framing}"
    printed = run_experiment(server, arguments, SHORT_S if waits_in_vain else DEADLINE_S)
    answers = "".join(line for line in printed.splitlines() if "receives b" in line)
    found = re.findall(r"(?<=karakter: )\d+" if framing == "--classic" else r"\d+(?=\\n)", answers)
    if name in ("character", "japanese"):
        assert found.pop() == "4"  # to another client, which finds it alive
    assert found == re.findall(r"\d+", counts)


def test_table_has_all_experiments_of_both_servers() -> None:
    assert len(list(table_of_experiments())) == 12
    assert len(list(transcripts())) == 9


@pytest.mark.parametrize("experiment", ["character", "japanese"])
def test_half_a_character_ends_the_blocking_server(experiment: str, start: Callable[[str], Process]) -> None:
    server = start("docs/lab/blocking_server.py")
    run_experiment(server, experiment, DEADLINE_S)
    assert server.wait() == 1
    assert "UnicodeDecodeError: 'utf-8' codec can't decode" in server.log
    assert "unexpected end of data" in server.log


def test_three_clients_that_send_while_the_server_is_stopped(start: Callable[[str], Process]) -> None:
    server = start("bin/charcount-server")
    printed = run_experiment(server, "burst --lines", DEADLINE_S)
    for name, count in ("A", 1), ("B", 2), ("C", 3):
        assert f"{name} receives b'{count}\\n'\n" in printed
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


@pytest.mark.slow
def test_no_server_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, str(LAB / "experiments.py"), "long", "--port", "1"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "no server on port 1: start one first\n"


# ---------------------------------------------------------------------- the documents


def test_both_languages_show_the_same_captures() -> None:
    assert blocks(INDONESIAN) == blocks(ENGLISH)


def numbers(document: str) -> set[str]:
    """All numbers but those of captures."""
    text = re.sub(r"^```.*?^```$", "", document, flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"\d[\d,.]*\d|\d", text))


def test_both_languages_have_the_same_figures() -> None:
    assert numbers(INDONESIAN) == numbers(ENGLISH)


@pytest.mark.parametrize("document", [ENGLISH, INDONESIAN])
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document):
        assert (ROOT / "docs" / target).exists(), target


@pytest.mark.slow
def test_blocks_can_be_pasted_in_order() -> None:
    """Each leaves the port free for the next one."""
    commands = [
        line.removeprefix("$ ")
        for block in blocks(ENGLISH)
        if "experiments.py" in block and "strace" not in block
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    assert len(commands) > 20
    done = subprocess.run(["bash", "-c", "\n".join(commands)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    shown = "".join(shown for _, _, shown in transcripts())
    assert "no server on port" not in done.stdout + done.stderr
    assert "Address already in use" not in done.stderr
    printed = "".join(re.sub(r"^(charcount-server: )?listening on .*\n", "", done.stdout, flags=re.MULTILINE))
    assert without_amounts(printed) == without_amounts(shown)
