"""What is published: built from a checkout, looked at as a package index does, and run where nothing else is."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from evloop import __version__
from paths import ROOT
from tools.links import SOURCE_VARIABLE
from waiting import DEADLINE_S

SOURCE = "https://forge.example/evloop/blob/v1"
BUILD_S = 300
TOOLS = ("build", "twine")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in TOOLS), reason="needs pip install -e '.[release]'"
    ),
]


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run it in a folder that is not the project's, with an environment of its own."""
    options = {"timeout": BUILD_S, "capture_output": True, "text": True, **options}
    return subprocess.run([str(word) for word in command], **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sdist and wheel, the one built from the other; and in bare/ an environment with nothing but it.

    It takes half a minute, so all processes of pytest-xdist share it.
    """
    run_of_all = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run_of_all is None:
        folder = tmp_path_factory.mktemp("built")
    else:
        folder = tmp_path_factory.getbasetemp().parent / f"built-{run_of_all}"
        folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "bare").exists():
            environment = {**os.environ, SOURCE_VARIABLE: SOURCE}
            done = run(sys.executable, "-m", "build", "-o", folder / "dist", ROOT, env=environment)
            assert done.returncode == 0, done.stdout + done.stderr
            (path,) = (folder / "dist").glob("*.whl")
            assert run(sys.executable, "-m", "venv", folder / "bare").returncode == 0
            done = run(folder / "bare" / "bin" / "pip", "install", "--no-index", path)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = (built / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bare(built: Path) -> Path:
    return built / "bare"


def plain(bare: Path, **more: str) -> dict[str, str]:
    """The environment of somebody who has just logged in, and put the commands on the path."""
    return {"PATH": f"{bare / 'bin'}:/usr/bin:/bin", "HOME": str(bare), **more}


def test_a_package_index_takes_it(built: Path) -> None:
    assert sorted(path.suffix for path in (built / "dist").iterdir()) == [".gz", ".whl"]
    done = run(sys.executable, "-m", "twine", "check", "--strict", *sorted((built / "dist").iterdir()))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_links_of_the_readme_lead_to_what_there_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"evloop-{__version__}.dist-info/METADATA").decode()
    assert f"Project-URL: Source, {SOURCE}\n" in metadata
    targets = re.findall(r"\]\(([^)]+)\)", metadata)
    assert len(targets) > 20
    for target in targets:
        path = target.removeprefix(f"{SOURCE}/").partition("#")[0].removesuffix("?raw=true")
        assert path != target
        assert (ROOT / path).exists(), target


def test_it_puts_nothing_else_where_packages_are(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = f"evloop-{__version__}"
    assert {name.partition("/")[0] for name in names} <= {"evloop", "evloop_bench", f"{info}.dist-info", f"{info}.data"}
    for package in ("evloop", "evloop_bench"):
        expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")}
        assert expected == {name for name in names if name.startswith(f"{package}/") and name.endswith(".py")}
    assert "evloop/py.typed" in names
    assert any(name.startswith("evloop_bench/loadgen/templates/") for name in names)


def test_man_and_the_shells_find_what_is_for_them(bare: Path, tmp_path: Path) -> None:
    for name in ("charcount-server", "charcount-client", "evloop-load"):
        for path in (
            f"man/man1/{name}.1",
            f"bash-completion/completions/{name}",
            f"zsh/site-functions/_{name}",
            f"fish/vendor_completions.d/{name}.fish",
        ):
            assert (bare / "share" / path).read_text() == (ROOT / "share" / path).read_text()
    if shutil.which("man") is not None:
        # man looks for pages beside the folders in which it finds commands.
        found = run("man", "-w", "charcount-server", env=plain(bare), cwd=tmp_path)
        assert found.stdout == f"{bare}/share/man/man1/charcount-server.1\n", found.stderr


def test_both_commands_run_with_nothing_else_installed(bare: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        ["charcount-server", "--port", "0"], env=plain(bare), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            said = server.stderr.readline()
            port = said.rpartition(":")[2].strip()
            client = run("charcount-client", "--port", port, "hello", env=plain(bare), cwd=tmp_path, timeout=DEADLINE_S)
            assert (client.stdout, client.stderr, client.returncode) == ("5\n", "", 0)
        finally:
            server.terminate()
        assert server.wait(DEADLINE_S) == 0


def test_the_load_harness_says_what_it_needs(bare: Path, tmp_path: Path) -> None:
    done = run("evloop-load", env=plain(bare), cwd=tmp_path)
    assert done.returncode == 6
    assert done.stderr.endswith(" not installed: run  pip install 'evloop[bench]'  first\n")
    assert done.stderr.startswith("evloop-load: psutil, ")
    assert len(done.stderr.splitlines()) == 1


def test_the_load_harness_runs_from_the_wheel(bare: Path, tmp_path: Path) -> None:
    # What the extra brings is where the tests run; what is tested is in the wheel, as a path of PYTHONPATH does not
    # carry an editable install.
    extra = sysconfig.get_path("purelib")
    environment = plain(bare, PYTHONPATH=extra)
    result = tmp_path / "run.json"
    done = run(
        *("evloop-load", "-c", "4", "-n", "200", "--warmup", "0", "--no-pin", "--json", result),
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode in (0, 4), done.stderr  # INVALID on a busy machine: that is no matter here
    document = json.loads(result.read_text())
    assert document["code"]["commit"] is None
    (measured,) = document["runs"]
    assert measured["error_total"] == 0
    assert "charcount.cli.server" in measured["server"]["command"]
    files = run(
        bare / "bin" / "python", "-c", "import evloop_bench as e; print(e.__file__)", env=environment, cwd=tmp_path
    )
    assert files.stdout.startswith(str(bare))
    page = run("evloop-load", "compare", result, result, "--force", env=environment, cwd=tmp_path)
    assert page.returncode == 0, page.stderr
