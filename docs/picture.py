"""Draws the picture in the README: the page of a diff, in a browser.

Usage: python -m docs.picture. It needs Chromium.
"""

from __future__ import annotations

import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.torture.browser import browser
from vita_ckpt import diff
from vita_ckpt.cli.html.difference import difference_page

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "diff-page.png"
CASE = ROOT / "fixtures" / "golden" / "L1"
WIDTH, HEIGHT = 1000, 1196


def picture() -> bytes:
    """Return the picture as PNG of 128 colours."""
    found = diff(CASE / "base", CASE / "merged_by_upstream", values=True)
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder) / "page.html", Path(folder) / "page.png"
        page.write_text(difference_page(found))
        with browser(Path(folder) / "profile") as shown:
            shown.open(page, width=WIDTH, height=HEIGHT)
            shown.screenshot(shot, whole=False)
        with Image.open(shot) as image:
            small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    out = BytesIO()
    small.save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    PICTURE.write_bytes(picture())
