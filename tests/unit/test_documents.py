"""What the documents name exists: files, folders, headings, tests, modules."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

import evloop
from paths import ROOT

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", ".github/*.md")
    for path in ROOT.glob(pattern)
    if ".venv" not in path.parts and "site-packages" not in path.parts
)

LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"\s]+)\"")

# A path from the root of the project, wherever it stands: in a sentence, in a command, in a table.
FOLDERS = "evloop|evloop_bench|bin|benchmarks|tests|docs|tools|examples|deploy|share|\\.ci|\\.github"
PATH = re.compile(rf"(?<![\w./-])(?:\./)?((?:{FOLDERS})/[\w./*-]*)")

MODULE = re.compile(r"`(evloop(?:\.\w+)+)`")
TEST = re.compile(r"`(test_\w+)`")


def without_programs(text: str) -> str:
    """Without blocks of code that show what some other machine may have."""
    return re.sub(r"^```(?:python|ini|yaml|json)\n.*?^```$", "", text, flags=re.S | re.M)


def headings(page: Path) -> set[str]:
    """The anchors of a page, as a forge makes them of its headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def exists(module: str) -> bool:
    """A module, or something in one."""
    parent, _, last = module.rpartition(".")
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is a module and no package, or isn't there
        return exists(parent) and hasattr(importlib.import_module(parent), last)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_documents_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/operations.md"} <= set(
        map(name, DOCUMENTS)
    )


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in map("".join, LINK.findall(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue  # another site
        path, _, anchor = target.partition("#")
        found = page if not path else page.parent / path
        assert found.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in headings(found), f"{target}: no such heading, there are {sorted(headings(found))}"


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_paths_exist(page: Path) -> None:
    for found in PATH.findall(without_programs(page.read_text(encoding="utf-8"))):
        path = found.rstrip(".")
        assert list(ROOT.glob(path)) if "*" in path else (ROOT / path).exists(), f"{path}: no such file"


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_modules_and_tests_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module in MODULE.findall(text):
        assert exists(module), f"{module}: no such module"
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for test in TEST.findall(text):
        assert f"def {test}" in tests or list((ROOT / "tests").rglob(f"{test}.py")), f"{test}: no such test"


def test_no_module_is_longer_than_the_readme_says() -> None:
    found = re.search(r"No module has more than (\d+) lines", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert found
    for path in (ROOT / "evloop").rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= int(found[1]), path


def test_the_names_in_the_readmes_table_of_the_library_are_public() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("All these names are imported from `evloop`:")[2].partition("\n\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.M))
    assert {"Protocol", "LineProtocol", "Connection", "prepare", "Server", "EventLoop"} <= set(rows)
    for name, described in rows.items():
        public = getattr(evloop, name)
        if isinstance(public, type):
            for used in re.findall(r"`([a-z_]+)`", described):
                assert hasattr(public, used), f"{name} has no {used}"
