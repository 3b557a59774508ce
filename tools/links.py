"""Links in a Markdown page, for where the page is shown without the files beside it: a package index, the site.

In the repository links are relative, so that they work in a checkout and on any forge. Elsewhere they have to name the
forge, and only who publishes knows that: it is in the variable EVLOOP_SOURCE_URL, up to and with the name of the
version, as https://forge.example/evloop/blob/v1.0. Without it, a link to what isn't there becomes the text that it is.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable

SOURCE_VARIABLE = "EVLOOP_SOURCE_URL"

# The text may hold an image, but no other link.
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\((?P<target>[^)\s]+)\)")
_BLOCK_OF_CODE = re.compile(r"^```.*?^```$", re.S | re.M)

Place = Callable[[str, str, bool], str | None]


def rewritten(page: str, text: str, place: Place) -> str:
    """The text of a page with each relative link replaced.

    Args:
        page: its path from the root of the project.
        place: where something is to be found: called with its path from the root, the anchor with its ``#``, or an
            empty one, and whether it is an image to show. None: nowhere, so that the link becomes plain text.
    """
    folder = posixpath.dirname(page)

    def replaced(match: re.Match[str]) -> str:
        if re.match(r"[a-z]+:", match["target"]):
            return match[0]  # another site
        path, number, anchor = match["target"].partition("#")
        path = posixpath.normpath(posixpath.join(folder, path)) if path else page
        found = place(path, number + anchor, bool(match["image"]))
        return match["text"] if found is None else f"{match['image']}[{match['text']}]({found})"

    pieces = []
    end = 0
    for code in _BLOCK_OF_CODE.finditer(text):
        pieces += [_LINK.sub(replaced, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, _LINK.sub(replaced, text[end:])])


def on_the_forge(path: str, anchor: str, image: bool) -> str | None:
    """A `Place`: the address of a file of this version, if it is known."""
    source = os.environ.get(SOURCE_VARIABLE, "").rstrip("/")
    return f"{source}/{path}{'?raw=true' if image else ''}{anchor}" if source else None
