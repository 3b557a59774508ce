"""Build the documentation as a site: ``python tools/build_site.py FOLDER``. Needs the docs extra.

The pages stay plain files that read well on a forge: what a site needs otherwise is done to a copy of them. Links to
what is not on the site lead to the forge (see tools/links.py), and pictures follow the colours that a reader chooses.
A page in docs/ that has no place in `NAV` is put at the end. Warnings are errors.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from links import on_the_forge, rewritten  # noqa: E402

SETTINGS = ROOT / "tools" / "site"

# Where files of the project are on the site; all of docs/ but these is where it is there.
PLACES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
    "tools/site/api.md": "api.md",
}

# Of these files of docs/ the site has none: programs and their data.
_LEFT_OUT = ("lab/*", "results/*.json")

NAV = {
    "The library": {
        "Coroutines": "coroutines.md",
        "Framing": "framing.md",
        "TLS": "tls.md",
        "API reference": "api.md",
        "Examples": "examples.md",
        "From asyncio": "from-asyncio.md",
        "From asyncore": "from-asyncore.md",
    },
    "The service": {"Operations": "operations.md", "Wire protocol": "protocol.md", "Security": "security.md"},
    "How it works": {
        "Architecture": "architecture.md",
        "Reliability": "reliability.md",
        "Performance": "performance.md",
    },
    "Measuring": {"load.py": "benchmarking.md", "versus.py": "versus.md", "Results": "results/versus.md"},
    "The exercise": {"Analysis": "analysis.md", "Analisis": "analysis.id.md"},
    "The project": {"Contributing": "contributing.md", "Pythons": "pythons.md", "Changelog": "changelog.md"},
}
_MORE = "More"

_PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">\s*'
    r'<img alt="(?P<alt>[^"]*)" src="(?P<light>[^"]+)">\s*</picture>'
)


def site_path(path: str) -> str | None:
    """Where a file of the project is on the site; None if it isn't there."""
    if path in PLACES:
        return PLACES[path]
    if path.startswith("docs/") and not any(Path(path).match(f"docs/{pattern}") for pattern in _LEFT_OUT):
        return path.removeprefix("docs/")
    return None


def staged(source: str) -> str:
    """The text of a page as the site has it.

    Args:
        source: its path in the project.
    """
    page = site_path(source)
    assert page is not None

    def place(path: str, anchor: str, image: bool) -> str | None:
        there = site_path(path)
        if there is None or not (ROOT / path).is_file():
            return on_the_forge(path, anchor, image)
        return posixpath.relpath(there, posixpath.dirname(page) or ".") + anchor

    text = (ROOT / source).read_text(encoding="utf-8")
    text = _PICTURE.sub(r"![\g<alt>](\g<light>#only-light)\n![\g<alt>](\g<dark>#only-dark)", text)
    # A page that is made for the site has the links of the site.
    return text if source.startswith("tools/") else rewritten(source, text, place)


def stage(folder: Path) -> list[str]:
    """Copy pages and pictures into a folder. Returns the pages."""
    sources = [*PLACES, *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*")))]
    pages = []
    for source in sources:
        there = site_path(source)
        if there is None or not (ROOT / source).is_file():
            continue
        (folder / there).parent.mkdir(parents=True, exist_ok=True)
        if there.endswith(".md"):
            (folder / there).write_text(staged(source), encoding="utf-8")
            pages.append(there)
        else:
            shutil.copyfile(ROOT / source, folder / there)
    shutil.copyfile(SETTINGS / "site.css", folder / "site.css")
    return pages


def navigation(pages: list[str]) -> str:
    """The ``nav`` of mkdocs.yml: what is there of `NAV`, and what has no place in it at the end."""
    lines = ["nav:", "  - evloop: index.md"]
    rest = [page for page in pages if page != "index.md"]
    for section, entries in NAV.items():
        there = {title: page for title, page in entries.items() if page in rest}
        lines += [f"  - {section}:", *(f"      - {title}: {page}" for title, page in there.items())] if there else []
        rest = [page for page in rest if page not in there.values()]
    lines += [f"  - {_MORE}:", *(f"      - {page}" for page in rest)] if rest else []
    return "\n".join(lines) + "\n"


def main() -> int:
    """Build the site. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Build the documentation as a site. Needs  pip install -e '.[docs]'.")
    parser.add_argument("folder", type=Path, help="where to put it; what is there is replaced")
    folder = parser.parse_args().folder.resolve()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        listed = navigation(stage(work / "pages"))
        settings = (SETTINGS / "mkdocs.yml").read_text(encoding="utf-8")
        (work / "mkdocs.yml").write_text(f"{settings}docs_dir: pages\nsite_dir: site\n{listed}", encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", "mkdocs.yml"],
            cwd=work,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            # What is wrong; and not where in its own code it found out.
            print(done.stdout.partition("Traceback ")[0], file=sys.stderr)
            return done.returncode
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(work / "site", folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
