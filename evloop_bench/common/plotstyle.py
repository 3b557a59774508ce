"""How plots look, in all reports."""

from __future__ import annotations

from typing import Any

RED, BLUE, ORANGE, GREEN = "#c8374a", "#2563a8", "#c2571a", "#2e7d4f"
BLACK, GREY, LIGHT = "#222222", "#6b7280", "#e5e7eb"

# For matplotlib's rc_context.
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": "#374151",
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlepad": 12,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    # Text stays text: it can be searched and read aloud, and takes the font of the page around it.
    "svg.fonttype": "none",
    # The same data give the same file.
    "svg.hashsalt": "evloop",
}
