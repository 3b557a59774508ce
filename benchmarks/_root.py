"""Makes ``benchmarks`` and ``evloop`` importable for a script that is run as a file, without an installation.

``python benchmarks/NAME.py`` finds only what lies beside the script. So each script begins with an import of this,
which puts the project's root in front; imported as a part of ``benchmarks`` it needs nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
