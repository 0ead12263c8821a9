"""The site has every page, and pages lead to what is there. ``make site`` builds it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tests.docs.blocks import DOCS, ROOT

CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
OUTSIDE = {"CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md"}


def pages(nav: list[Any] | str) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for entry in nav for value in entry.values() for page in pages(value)]


def test_every_page_is_in_the_menu_once() -> None:
    listed = pages(CONFIG["nav"])
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert len(listed) == len(set(listed))
    assert set(listed) == written | OUTSIDE


def test_it_is_built_strictly_and_offline() -> None:
    assert CONFIG["strict"] is True
    assert CONFIG["theme"]["font"] is False
    assert CONFIG["docs_dir"] == "docs"
    text = (ROOT / "mkdocs.yml").read_text()
    assert not re.search(r"repo_url|extra_css|extra_javascript|https?://", text)


def test_links_lead_to_headings() -> None:
    def anchors(page: Path) -> set[str]:
        found = re.findall(r"(?m)^#+ (.*)$", page.read_text())
        plain = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in found)
        return {re.sub(r"[-\s]+", "-", heading) for heading in plain}

    for page in (*DOCS.rglob("*.md"), ROOT / "README.md"):
        for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text()):
            if not link.startswith("https:"):
                target = page.parent / link if link else page
                assert anchor in anchors(target), (page, link, anchor)
