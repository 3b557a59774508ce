"""The documentation as a site: every public name is in it, and what is wrong with a page is an error."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import evloop
from paths import ROOT
from tools.build_site import NAV, navigation, site_path, staged

BUILD_S = 120

needs_the_extra = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("zensical", "mkdocstrings")),
    reason="needs pip install -e '.[docs]'",
)


def build(root: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "tools" / "build_site.py", folder]
    return subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S)


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    listed = re.findall(r"^::: evloop\.(\w+)$", (ROOT / "tools" / "site" / "api.md").read_text(), re.M)
    assert sorted(listed) == sorted(set(evloop.__all__) - {"__version__"})


def test_pages_are_where_the_navigation_has_them() -> None:
    assert site_path("README.md") == "index.md"
    assert site_path("docs/tls.md") == "tls.md"
    assert site_path("docs/lab/experiments.py") is None
    assert site_path("evloop/limits.py") is None
    shown = navigation(["index.md", "tls.md", "new.md"])
    assert shown == "nav:\n  - evloop: index.md\n  - The library:\n      - TLS: tls.md\n  - More:\n      - new.md\n"
    assert len({page for entries in NAV.values() for page in entries.values()}) > 15


def test_links_and_pictures_are_those_of_the_site() -> None:
    readme = staged("README.md")
    assert "](architecture.md)" in readme
    assert "](operations.md#where-it-listens)" in readme
    assert "](results/inflight-cpu.svg)" in readme
    assert "[evloop/limits.py]" not in readme, "is not on the site, and nobody has said where the forge is"
    assert "](index.md)" in staged("docs/benchmarking.md")
    assert "![inflight-cpu](inflight-cpu.png)" in staged("docs/results/versus.md")
    pictures = staged("docs/architecture.md")
    assert "<picture>" not in pictures
    assert "(pictures/pass-dark.svg#only-dark)" in pictures


@pytest.mark.slow
@needs_the_extra
def test_the_site_is_built_and_has_all_of_the_api(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path / "site")
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "site" / "api.html").read_text()
    for name in (*(set(evloop.__all__) - {"__version__"}), "Connection.pause_reading", "EventLoop.call_later"):
        assert f'id="evloop.{name}"' in page, name
    found = json.dumps(json.loads((tmp_path / "site" / "search.json").read_text()), ensure_ascii=False)
    for text in ("pause_reading", "naïve café", "half-close"):
        assert text in found, "what the search looks in"
    for html in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img)[^>]* src="(https?:[^"]+)|<link[^>]* href="(https?:[^"]+)', html.read_text()
        )
        assert loaded == [], "nothing comes from another host"


@pytest.mark.slow
@needs_the_extra
def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT,
        tmp_path / "x",
        ignore=shutil.ignore_patterns(".venv*", ".git", "__pycache__", ".*_cache", "build", "dist"),
    )
    page = tmp_path / "x" / "docs" / "tls.md"
    page.write_text(page.read_text() + "\nSee [this](operations.md#no-such-heading).\n")
    done = build(tmp_path / "x", tmp_path / "site")
    assert done.returncode == 1
    assert "anchor does not exist" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "site").exists()
