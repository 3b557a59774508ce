"""docs/architecture.md shows the code as it is: its pictures are drawn from it, and what it names is there."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest

from paths import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))

# `Stream.flush`, of whatever class it is a method; and a file under evloop/.
METHOD = re.compile(r"`([A-Z]\w+)\.(\w+)`")
FILE = re.compile(r"`((?:\w+/)*\w+\.py)`")
# A row of a table that tells in which file a function is.
FUNCTION_ROW = re.compile(r"^\|[^|]+\| `(\w+)\.(\w+)`[^|]*\| `([\w/.]+)` \|", re.M)


def test_the_way_of_a_message_goes_through_functions_that_are_there() -> None:
    rows = FUNCTION_ROW.findall(PAGE)
    assert {"_handle_readable", "feed", "_take_turn", "flush", "_finish", "_teardown", "drain"} <= {
        row[1] for row in rows
    }
    for class_name, function, file in rows:
        assert defines(ROOT / "evloop" / file, class_name, function), f"{file} has no {class_name}.{function}"


def test_methods_and_files_that_the_page_names_exist() -> None:
    files = list((ROOT / "evloop").rglob("*.py"))
    for class_name, function in METHOD.findall(PAGE):
        assert any(defines(path, class_name, function) for path in files), f"there is no {class_name}.{function}"
    for file in FILE.findall(PAGE):
        assert (ROOT / "evloop" / file).exists(), f"there is no evloop/{file}"


def defines(path: Path, class_name: str, name: str) -> bool:
    """Whether the file has a class with a method or attribute of that name."""
    text = classes(path).get(class_name, "")
    return re.search(rf"\bdef {name}\b|\bself\.{name}\b", text) is not None


@cache
def classes(path: Path) -> dict[str, str]:
    """The text of each class in a file, by its name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: ast.unparse(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def draw(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/draw_architecture.py", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the pictures are drawn from."""
    for folder in ("evloop", "tools", "docs/pictures"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "unit" / "test_imports.py", tmp_path / "tests" / "unit")
    return tmp_path


def test_the_pictures_are_what_the_command_draws() -> None:
    done = draw(ROOT, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in PICTURES} == {
        f"{name}-{theme}.svg" for name in ("layers", "pass") for theme in ("light", "dark")
    }


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_shown_and_nothing_is_outside_of_it(path: Path) -> None:
    assert f"pictures/{path.name}" in PAGE
    svg = ElementTree.parse(path).getroot()
    width, height = float(svg.get("width", "")), float(svg.get("height", ""))
    for box in svg.iter("{http://www.w3.org/2000/svg}rect"):
        x, y = float(box.get("x", "")), float(box.get("y", ""))
        assert 0 <= x <= x + float(box.get("width", "")) <= width
        assert 0 <= y <= y + float(box.get("height", "")) <= height
    for text in svg.iter("{http://www.w3.org/2000/svg}text"):
        if text.get("text-anchor") == "start":
            assert float(text.get("x", "")) + text_width(text) <= width, text.text


def text_width(text: ElementTree.Element) -> float:
    """About as wide as a browser shows it."""
    return len(text.text or "") * float(text.get("font-size", "")) * (0.61 if text.get("class") == "mono" else 0.55)


@pytest.mark.slow
def test_a_long_sentence_is_broken_and_stays_in_its_box(checkout: Path) -> None:
    folder = checkout / "evloop" / "program" / "__init__.py"
    folder.write_text('"""' + "Words of which there are many " * 8 + 'now.\n"""\n')
    assert draw(checkout).returncode == 0
    svg = ElementTree.parse(checkout / "docs" / "pictures" / "layers-light.svg").getroot()
    boxes = list(svg.iter("{http://www.w3.org/2000/svg}rect"))
    right = max(float(box.get("x", "")) + float(box.get("width", "")) for box in boxes)
    lines = [text for text in svg.iter("{http://www.w3.org/2000/svg}text") if "many" in (text.text or "")]
    assert len(lines) > 1
    for line in lines:
        assert float(line.get("x", "")) + text_width(line) <= right


@pytest.mark.slow
def test_a_new_import_makes_the_pictures_out_of_date_until_they_are_drawn_again(checkout: Path) -> None:
    assert draw(checkout, "--check").returncode == 0
    session = checkout / "evloop" / "charcount" / "session.py"
    session.write_text(session.read_text() + "\nfrom evloop.protocols.lineframer import LineFramer\n")
    stale = draw(checkout, "--check")
    assert stale.returncode == 1
    assert "docs/pictures/layers-dark.svg is out of date: run python tools/draw_architecture.py" in stale.stderr
    assert draw(checkout).returncode == 0
    assert draw(checkout, "--check").returncode == 0


@pytest.mark.slow
def test_a_new_module_and_another_step_are_drawn(checkout: Path) -> None:
    (checkout / "evloop" / "net" / "dragons.py").write_text("")
    order = checkout / "tests" / "unit" / "test_imports.py"
    order.write_text(
        order.read_text().replace('    "evloop.net.state",\n', '    "evloop.net.state",\n    "evloop.net.dragons",\n')
    )
    loop = checkout / "evloop" / "core" / "loop.py"
    loop.write_text(loop.read_text().replace("    6. closing      ", "    6. burying      "))
    done = draw(checkout)
    assert (done.returncode, done.stderr) == (0, "")
    assert ">dragons<" in (checkout / "docs" / "pictures" / "layers-light.svg").read_text()
    assert ">6. burying<" in (checkout / "docs" / "pictures" / "pass-light.svg").read_text()


@pytest.mark.slow
def test_a_function_that_is_gone_is_not_drawn(checkout: Path) -> None:
    loop = checkout / "evloop" / "core" / "loop.py"
    loop.write_text(loop.read_text().replace("flush_writes", "send_all"))
    done = draw(checkout)
    assert done.returncode == 1
    assert done.stderr == "evloop/core/loop.py has no Loop.flush_writes any more: mend tools/draw_architecture.py\n"
