"""What MkDocs does not do itself: pages from outside ``docs``, and a look at what it has built.

Pages link to files of the repository, so that the links work where the repository is read. Those
files are a part of the site, at the path that they have in the repository.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/README.md",
    "fixtures/golden/README.md",
)
# The files that pages link to, by what they are.
OTHERS = ("vita_ckpt/schemas", "examples")
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
# What a browser would fetch from another server.
FOREIGN = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]+"')
CANONICAL = 'rel="canonical"'


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and files that lie outside ``docs``."""
    others = (path for folder in OTHERS for path in sorted((ROOT / folder).glob("*.*")))
    for path in (*(ROOT / page for page in PAGES), *others):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    source = page.file.src_uri
    place = source if source in PAGES else posixpath.join("docs", source)

    def moved(link: re.Match[str]) -> str:
        if re.match(r"[a-z]+:", link[2]):
            return link[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), link[2]))
        target = "index.md" if target == "README.md" else target.removeprefix("docs/")
        if "." not in posixpath.basename(target):
            raise PluginError(f"{source}: the site has no page for {link[2]}")
        return f"{link[1]}{posixpath.relpath(target, posixpath.dirname(source) or '.')}{link[3]}"

    return LINK.sub(moved, markdown)


def on_post_build(config: Any) -> None:
    """Refuse a page that loads something from another server."""
    for folder, _, names in os.walk(config["site_dir"]):
        for name in names:
            if name.endswith(".html"):
                text = (Path(folder) / name).read_text("utf-8")
                bad = [found[0] for found in FOREIGN.finditer(text) if CANONICAL not in found[0]]
                if bad:
                    raise PluginError(f"{name}: {bad[0]}")
