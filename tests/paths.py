"""Where the project and its commands are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER = str(ROOT / "bin" / "charcount-server")
CLIENT = str(ROOT / "bin" / "charcount-client")
