"""What pyproject.toml cannot say: the readme with links that work on a package index, and where the sources are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

from links import SOURCE_VARIABLE, on_the_forge, rewritten  # noqa: E402

source = os.environ.get(SOURCE_VARIABLE)
setup(
    long_description=rewritten("README.md", (ROOT / "README.md").read_text(encoding="utf-8"), on_the_forge),
    long_description_content_type="text/markdown",
    project_urls={"Source": source} if source else {},
)
