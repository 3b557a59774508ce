"""Draw the pictures of docs/architecture.md from the code that they show.

``python tools/draw_architecture.py`` writes them to docs/pictures/, each for light and for dark pages; with ``--check``
it only says which one is out of date (exit status 1). Nothing in them is typed in twice: folders and modules are those
of ``ORDER`` in tests/unit/test_imports.py, arrows are the imports of the files, what a folder is for is the first
sentence of its ``__init__.py``, and the steps of a pass are those of the docstring of evloop/core/loop.py. The
functions that a picture names must exist, or nothing is drawn.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
PACKAGE = "evloop"

EXIT_DIFFERENT = 1

# By what they mean: text, text of less weight, the box of a layer, a module in it, one without I/O, arrows.
THEMES = {
    "light": {
        "text": "#1f2328",
        "quiet": "#59636e",
        "line": "#c3cad2",
        "box": "#f6f8fa",
        "chip": "#ffffff",
        "pure": "#dbeafe",
        "arrow": "#0a58ca",
    },
    "dark": {
        "text": "#e6edf3",
        "quiet": "#9aa5b1",
        "line": "#444c56",
        "box": "#161b22",
        "chip": "#0d1117",
        "pure": "#163a63",
        "arrow": "#6cb6ff",
    },
}

WIDTH = 980
MARGIN = 16
TEXT_SIZE = 13
LINE_HEIGHT = 18
# Widths of text as fractions of its size: fonts differ, so these are those of wide ones.
MONO_CHARACTER = 0.61
SANS_CHARACTER = 0.55


class Picture:
    """An SVG picture under construction. Lengths are its pixels, from the top left corner."""

    def __init__(self, theme: dict[str, str], title: str) -> None:
        self.theme = theme
        self._title = title
        self._parts: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, fill: str, dashed: bool = False) -> None:
        """A rectangle with round corners."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" '
            f'fill="{self.theme[fill]}" stroke="{self.theme["line"]}"{dash}/>'
        )

    def text(
        self, x: float, y: float, text: str, *, size: int = TEXT_SIZE, mono: bool = False, bold: bool = False,
        quiet: bool = False, anchor: str = "start",
    ) -> None:  # fmt: skip
        """One line, whose baseline begins there; ``anchor`` as in SVG."""
        family = "mono" if mono else "sans"
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text class="{family}" x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" '
            f'fill="{self.theme["quiet" if quiet else "text"]}"{weight}>{escape(text, quote=False)}</text>'
        )

    def wrapped(self, text: str, width: float) -> list[str]:
        """Text of the usual size broken into lines of that width at most."""
        return textwrap.wrap(text, int(width / (TEXT_SIZE * SANS_CHARACTER)))

    def path(self, *points: tuple[float, float], arrow: bool = True, dashed: bool = False) -> None:
        """A line over those points, with a head at its end."""
        steps = "L".join(f"{x:g} {y:g}" for x, y in points)
        head = ' marker-end="url(#head)"' if arrow else ""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<path d="M{steps}" fill="none" stroke="{self.theme["arrow"]}" stroke-width="1.5"{head}{dash}/>'
        )

    def dot(self, x: float, y: float) -> None:
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="3.5" fill="{self.theme["arrow"]}"/>')

    def svg(self, height: float) -> str:
        """The file."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
                f'height="{height:g}" role="img">',
                f"<title>{escape(self._title, quote=False)}</title>",
                "<style>.sans { font-family: system-ui, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif }",
                ".mono { font-family: ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace }</style>",
                '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
                f'orient="auto"><path d="M0 0L10 5L0 10z" fill="{self.theme["arrow"]}"/></marker></defs>',
                *self._parts,
                "</svg>\n",
            ]
        )


# ---------------------------------------------------------------------- what is read from the code


def _assigned(name: str) -> list[str]:
    """A list of names that tests/unit/test_imports.py assigns. That file is not imported, as it needs pytest."""
    path = ROOT / "tests" / "unit" / "test_imports.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            found: list[str] = ast.literal_eval(node.value)
            return found
    raise SystemExit(f"{path.relative_to(ROOT)} assigns no {name}")


def path_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


def modules() -> list[str]:
    """All modules, in the order of their imports: each one imports from those before it only."""
    found = []
    for name in _assigned("ORDER"):
        if name.endswith("."):  # a folder, inside which there is no order but that of the names before it
            folder = ROOT / name.replace(".", "/")
            names = sorted(name + path.stem for path in folder.glob("*.py") if path.stem != "__init__")
            found += [module for module in names if module not in found]
        elif name != f"{PACKAGE}._version":
            found.append(name)
    return found


def layer_of(module: str) -> str:
    """The folder that a module is in; of those that are in none, the module itself."""
    return module.split(".")[1]


def layers() -> list[tuple[str, list[str]]]:
    """From the top down: name and modules of each layer. Modules that are in no folder and beside each other are one
    layer without a name.
    """
    found: list[tuple[str, list[str]]] = []
    for name, group in groupby(modules(), lambda module: layer_of(module) if module.count(".") > 1 else ""):
        found.append((name, list(group)))
    return found[::-1]


def imported(module: str) -> set[str]:
    """The modules of the package that a module names in its imports, those for annotations too."""
    known = set(modules())
    found = set()
    for node in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


def purpose(layer: str, its_modules: list[str]) -> str:
    """The first sentence of a folder's docstring, or of the module's if that is the only one of its layer."""
    path = ROOT / PACKAGE / layer / "__init__.py" if layer else path_of(its_modules[0])
    if not layer and len(its_modules) > 1:
        return "What all may use."
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[.])\s", docstring)[0].replace("\n", " ")


def steps_of_a_pass() -> list[tuple[str, str]]:
    """Name and text of each step, in order, from the docstring of the loop."""
    docstring = ast.get_docstring(ast.parse(path_of(f"{PACKAGE}.core.loop").read_text(encoding="utf-8"))) or ""
    steps = re.findall(r"^ +(\d)\. (\w+) +(\S.*)$", docstring, re.M)
    if [number for number, _, _ in steps] != [str(number) for number in range(1, 7)]:
        raise SystemExit("the docstring of evloop/core/loop.py does not list the six steps of a pass")
    return [(f"{number}. {name}", text.replace("`", "")) for number, name, text in steps]


def function(file: str, name: str) -> str:
    """``name``, if the file under evloop/ defines something of that name."""
    last = name.rpartition(".")[2]
    text = (ROOT / PACKAGE / file).read_text(encoding="utf-8")
    if not re.search(rf"\bdef {last}\b|\bself\.{last}\b", text):
        raise SystemExit(f"evloop/{file} has no {name} any more: mend tools/draw_architecture.py")
    return name


# ---------------------------------------------------------------------- the pictures


def draw_layers(theme: dict[str, str]) -> str:
    """The folders, one on the other, the modules in them, and which folder imports from which."""
    picture = Picture(theme, "The folders of evloop as layers, their modules, and which of them import from which")
    pure = set(_assigned("SANS_IO"))
    found = layers()
    uses = _uses(found)
    columns = sorted({target for used in uses for target in used})
    box_width = WIDTH - 2 * MARGIN - 12 - 20 * len(columns)
    bounds = []
    y: float = MARGIN
    for name, its_modules in found:
        top = y
        chips = []  # where each one stands: from the left, and in which row
        x, row = MARGIN + 14.0, 0
        for module in its_modules:
            shown = module.split(".", 2 if name else 1)[-1].replace(".", "/")
            width = len(shown) * 12 * MONO_CHARACTER + 16
            if x + width > MARGIN + box_width - 10:
                x, row = MARGIN + 14.0, row + 1
            chips.append((x, row, width, shown, module in pure))
            x += width + 8
        single = not name and len(its_modules) == 1
        text_x = MARGIN + 14 + (126 if name else chips[0][2] + 12 if single else 0)
        lines = picture.wrapped(purpose(name, its_modules), MARGIN + box_width - text_x)
        chips_y = top + 20 + LINE_HEIGHT * len(lines)
        height = chips_y - top + (2 if single else 32 * (row + 1) + 6)
        picture.box(MARGIN, top, box_width, height, "box")
        if name:
            picture.text(MARGIN + 14, top + 25, f"{name}/", size=16, mono=True, bold=True)
        for number, line in enumerate(lines):
            picture.text(text_x, top + 25 + LINE_HEIGHT * number, line, quiet=True)
        for chip_x, row, width, shown, is_pure in chips:
            chip_y = top + 8 if single else chips_y + 32 * row
            picture.box(chip_x, chip_y, width, 24, "pure" if is_pure else "chip")
            picture.text(chip_x + width / 2, chip_y + 16, shown, size=12, mono=True, anchor="middle")
        bounds.append((top, height))
        y = top + height + 12
    _draw_imports(picture, uses, columns, bounds, MARGIN + box_width)
    y += 12
    picture.box(MARGIN, y - 12, 30, 16, "pure")
    picture.text(MARGIN + 38, y, "without I/O: a test keeps sockets out of it", quiet=True)
    picture.text(
        MARGIN + 350, y, "In a folder, a module imports only those that stand before it.", quiet=True
    )  # fmt: skip
    return picture.svg(y + MARGIN)


def _uses(found: list[tuple[str, list[str]]]) -> list[set[int]]:
    """For each layer the numbers of the layers, counted from the top, that its modules import from; not its own."""
    place = {module: number for number, (_, its_modules) in enumerate(found) for module in its_modules}
    return [
        {place[used] for module in its_modules for used in imported(module)} - {number}
        for number, (_, its_modules) in enumerate(found)
    ]


def _draw_imports(
    picture: Picture, uses: list[set[int]], columns: list[int], bounds: list[tuple[float, float]], right: float
) -> None:
    """A column of lines for each layer that is imported from: a dot where that is done, a head at that layer."""
    middle = [top + height / 2 for top, height in bounds]
    place = {target: right + 22 + 20 * number for number, target in enumerate(columns)}
    for target, x in place.items():
        importers = [number for number, used in enumerate(uses) if target in used]
        picture.path((x, middle[importers[0]] + 7), (x, middle[target] - 7), (right + 1, middle[target] - 7))
        for number in importers:
            picture.dot(x, middle[number] + 7)
    for number, used in enumerate(uses):
        if used:
            y = middle[number] + 7
            picture.path((right, y), (max(place[target] for target in used), y), arrow=False)


# The function behind each step, in their order.
STEP_CODE = [
    ("core/poller.py", "Poller.poll"),
    ("net/stream.py", "Stream._handle_readable"),
    ("core/loop.py", "Loop.call_soon"),
    ("core/timers.py", "TimerQueue.pop_due"),
    ("core/loop.py", "Loop.flush_writes"),
    ("core/loop.py", "Loop.close_later"),
]


def draw_pass(theme: dict[str, str]) -> str:
    """One pass of the loop as a circle of its steps, and below it what a message goes through in step 2."""
    picture = Picture(theme, "One pass of the loop, and the way of one message through it")
    width, height, gap = 280, 122, 44
    columns = [MARGIN + (width + gap) * number for number in range(3)]
    upper, lower = 44, 44 + height + 50
    # Against the clock, from the top left: so the second step stands over the way of a message, which is part of it.
    corners = [(0, upper), (0, lower), (1, lower), (2, lower), (2, upper), (1, upper)]
    picture.text(MARGIN, 26, "One pass of the loop", size=16, bold=True)
    picture.text(MARGIN + 204, 26, function("core/loop.py", "Loop._run_pass"), mono=True, quiet=True)
    for (name, text), code, (column, y) in zip(steps_of_a_pass(), STEP_CODE, corners, strict=True):
        x = columns[column]
        picture.box(x, y, width, height, "box")
        picture.text(x + 14, y + 26, name, size=16, bold=True)
        for number, line in enumerate(picture.wrapped(text, width - 24)):
            picture.text(x + 14, y + 48 + LINE_HEIGHT * number, line)
        picture.text(x + 14, y + height - 12, function(*code), size=12, mono=True, quiet=True)
    middle = [x + width / 2 for x in columns]
    picture.path((middle[0], upper + height), (middle[0], lower - 1))
    picture.path((columns[0] + width, lower + height / 2), (columns[1] - 1, lower + height / 2))
    picture.path((columns[1] + width, lower + height / 2), (columns[2] - 1, lower + height / 2))
    picture.path((middle[2], lower), (middle[2], upper + height + 1))
    picture.path((columns[2], upper + height / 2), (columns[1] + width + 1, upper + height / 2))
    picture.path((columns[1], upper + height / 2), (columns[0] + width + 1, upper + height / 2))
    picture.text(middle[1], upper + height + 30, "and again, until stop() is called", quiet=True, anchor="middle")
    _draw_message(picture, columns, width, lower + height, upper + height / 2)
    return picture.svg(lower + height + 250)


def _draw_message(picture: Picture, columns: list[int], width: int, above: float, writes_y: float) -> None:
    """The way of a message: three calls, and what happens to the bytes that the kernel does not take."""
    sys.path.insert(0, str(ROOT))
    from evloop.net.receiving import FIRST_RECV_BYTES

    top = above + 84
    picture.path((columns[0] + width / 2, above), (columns[0] + width / 2, top - 1), arrow=True)
    picture.text(columns[0] + width / 2 + 12, above + 44, "One message, in step 2", size=16, bold=True)
    handle = function("net/stream.py", "Stream._handle_readable")
    calls = [
        (f"data = socket.recv({FIRST_RECV_BYTES})", handle, "all that has come, up to that much"),
        ("reply = session.feed(data)", function("charcount/session.py", "LineSession.feed"), "bytes in, bytes out"),
        ("sent = socket.send(reply)", handle, "at once, while all is in the caches"),
    ]
    for x, (code, where, text) in zip(columns, calls, strict=True):
        picture.box(x, top, width, 78, "box")
        picture.text(x + 14, top + 24, code, mono=True, bold=True)
        picture.text(x + 14, top + 45, text, quiet=True)
        picture.text(x + 14, top + 66, where, size=12, mono=True, quiet=True)
    for left, right in ((0, 1), (1, 2)):
        picture.path((columns[left] + width, top + 39), (columns[right] - 1, top + 39))
    rest = top + 104
    x = columns[1]
    picture.box(x, rest, columns[2] + width - x, 48, "box", dashed=True)
    picture.text(x + 14, rest + 20, "what the kernel did not take is queued, and offered again in step 5;", quiet=True)
    picture.text(x + 14, rest + 39, "then whenever the socket is writable, in step 2 of a later pass", quiet=True)
    picture.path((columns[2] + width / 2, top + 78), (columns[2] + width / 2, rest - 1), dashed=True)
    function("net/stream.py", "Stream._enqueue")
    edge = columns[2] + width
    picture.path((edge, rest + 24), (edge + 20, rest + 24), (edge + 20, writes_y), (edge + 1, writes_y), dashed=True)


DRAWINGS = {"layers": draw_layers, "pass": draw_pass}


def pictures() -> Iterator[tuple[Path, str]]:
    """Each file with what it must hold."""
    for name, draw in DRAWINGS.items():
        for theme_name, theme in THEMES.items():
            yield PICTURES / f"{name}-{theme_name}.svg", draw(theme)


def main() -> int:
    """Write the pictures, or check them. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/architecture.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a picture is out of date")
    check = parser.parse_args().check
    status = 0
    for path, wanted in pictures():
        if path.exists() and path.read_text(encoding="utf-8") == wanted:
            continue
        if check:
            print(
                f"{path.relative_to(ROOT)} is out of date: run python tools/draw_architecture.py", file=sys.stderr
            )  # fmt: skip
            status = EXIT_DIFFERENT
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(wanted, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
