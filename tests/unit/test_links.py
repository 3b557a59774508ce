"""Links of pages that are shown without the files beside them."""

from __future__ import annotations

import pytest

from tools.links import SOURCE_VARIABLE, on_the_forge, rewritten

SOURCE = "https://forge.example/evloop/blob/v1"


@pytest.mark.parametrize(
    ("page", "text", "there", "nowhere"),
    [
        ("README.md", "[a](docs/a.md)", f"[a]({SOURCE}/docs/a.md)", "a"),
        ("docs/a.md", "[`a`](../x/y.py)", f"[`a`]({SOURCE}/x/y.py)", "`a`"),
        ("docs/a.md", "[a](b.md#c-d), [b](c.md)", f"[a]({SOURCE}/docs/b.md#c-d), [b]({SOURCE}/docs/c.md)", "a, b"),
        ("docs/a.md", "[a](#c)", f"[a]({SOURCE}/docs/a.md#c)", "a"),
        ("README.md", "![a](p/q.png)", f"![a]({SOURCE}/p/q.png?raw=true)", "a"),
        ("README.md", "[a](https://b.example/c)", "[a](https://b.example/c)", "[a](https://b.example/c)"),
        (
            "README.md",
            "a[1](b)\n```\nx[1](y)\n```\n",
            f"a[1]({SOURCE}/b)\n```\nx[1](y)\n```\n",
            "a1\n```\nx[1](y)\n```\n",
        ),
    ],
)
def test_rewritten(monkeypatch: pytest.MonkeyPatch, page: str, text: str, there: str, nowhere: str) -> None:
    monkeypatch.setenv(SOURCE_VARIABLE, f"{SOURCE}/")
    assert rewritten(page, text, on_the_forge) == there
    monkeypatch.delenv(SOURCE_VARIABLE)
    assert rewritten(page, text, on_the_forge) == nowhere
