"""The harness's modules, and a way to run it. Without the bench extra its tests are left out."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if any(importlib.util.find_spec(name) is None for name in ("hdrh", "psutil", "rich", "matplotlib")):
    collect_ignore_glob = ["test_load_*.py"]


@dataclass
class LoadRun:
    """How ``load.py`` ended, and what it said and wrote."""

    status: int
    stdout: str
    stderr: str
    document: dict[str, Any]

    @property
    def result(self) -> dict[str, Any]:
        """Its only run."""
        runs: list[dict[str, Any]] = self.document["runs"]
        (result,) = runs
        return result


@pytest.fixture
def load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., LoadRun]:
    """Runs ``load.py`` with arguments; short runs, as these are no measurements."""

    def run(*arguments: str) -> LoadRun:
        from evloop_bench.loadgen import command

        path = tmp_path / "run.json"
        status = command.run(["--json", str(path), *arguments])
        said = capsys.readouterr()
        text = path.read_text() if path.exists() else ""
        return LoadRun(status, said.out, said.err, json.loads(text) if text else {})

    return run
