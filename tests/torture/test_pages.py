"""Pages in a browser: what they show, what they ask for, and who can read them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fixtures.builder import random_fill, write_safetensors
from tests.cli.pages import read_page
from tests.cli.reports import HOSTILE
from tests.conftest import GOLDEN
from tests.torture.browser import Browser, browser
from vita_ckpt.checks.rules import RULES, finding
from vita_ckpt.cli.formats import renderer
from vita_ckpt.cli.main import main
from vita_ckpt.core.report import Report

pytestmark = pytest.mark.torture

LARGEST = 2_000_000
SCREENS = {"wide": (1280, False), "dark": (1280, True), "phone": (320, False), "375": (375, True)}

# What a script would be, in every place that a page has for a name.
NAMES = (
    "<script>document.title='ran'</script>",
    "</title></style><script>document.title='ran'</script>",
    "\"><img src=x onerror=document.title='ran'>",
    "' onmouseover='document.title=1",
    "javascript:document.title='ran'",
    "\u202egnp.exe\u202c\u2066",
    "]]></svg><svg onload=document.title='ran'>",
    "&lt;script&gt;&#60;script&#62;",
    "-->\n<!--",
    "${7*7}{{7*7}}",
    *(name for name in HOSTILE if "\ud800" not in name and "\udcff" not in name and name),
)

# The contrast of every text with what is painted behind it, below 4.5.
CONTRAST = """
(() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = color => {
    const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = color.map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = (element, middle) => {
    const svg = element.closest('svg');
    if (svg) {
      let found = null;
      for (const shape of svg.querySelectorAll('rect')) {
        const box = shape.getBoundingClientRect(), fill = getComputedStyle(shape).fill;
        if (fill !== 'none' && box.left <= middle.x && middle.x <= box.right &&
            box.top <= middle.y && middle.y <= box.bottom) found = rgb(fill);
      }
      if (found) return found;
    }
    for (let at = element; at; at = at.parentElement) {
      const color = rgb(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const bad = [];
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || element.localName === 'title') continue;
    const box = element.getBoundingClientRect();
    const middle = {x: box.x + box.width / 2, y: box.y + box.height / 2};
    const style = getComputedStyle(element);
    const color = rgb(element.closest('svg') ? style.fill : style.color);
    const pair = [light(color.slice(0, 3)), light(behind(element, middle))].sort((a, b) => b - a);
    const ratio = (pair[0] + .05) / (pair[1] + .05);
    seen++;
    if (ratio < 4.5) bad.push([text.slice(0, 40), ratio]);
  }
  return [seen, bad];
})()
"""
UNFOLD = "document.querySelectorAll('details').forEach(one => { one.open = true })"
FOCUS = "[...document.querySelectorAll('body *')].indexOf(document.activeElement)"


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert exit_.value.code in (0, 1)


def broken(root: Path) -> Path:
    """A1 without a shard, and with a config that contradicts its weights."""
    shutil.copytree(GOLDEN / "A1" / "base", root)
    (root / "model-00003-of-00004.safetensors").unlink()
    config = json.loads((root / "config.json").read_text())
    config |= {"mm_hidden_size": 99, "mm_vision_tower": "/data/towers/clip"}
    (root / "config.json").write_text(json.dumps(config))
    return root


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of goldens: one of each kind, with everything that a page can have."""
    root = tmp_path_factory.mktemp("pages")
    files = {name: root / f"{name}.html" for name in ("inspect", "diff", "lora", "validate")}
    base, run_of_a7 = GOLDEN / "A7" / "base", GOLDEN / "A7" / "mm_projector_fp32"
    run("merge-projector", "--base", base, "--adapter", run_of_a7, "--out", root / "merged")
    run("inspect", root / "merged", "--values", "--html", files["inspect"])
    swapped = GOLDEN / "A8" / "swapped_by_upstream"
    run("diff", GOLDEN / "A1" / "base", swapped, "--values", "--html", files["diff"])
    lora = GOLDEN / "L1"
    merged = lora / "merged_by_upstream"
    run("diff", lora / "base", merged, "--values", "--only", "x*", "--html", files["lora"])
    pair = (broken(root / "broken"), GOLDEN / "A2" / "base")
    run("validate", *pair, "--output", f"html={files['validate']}")
    return files


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Callable[..., Browser]]:
    """Open pages; at the end nothing was complained of, and nothing but the pages was loaded."""
    asked: list[str] = []
    chromium.complaints.clear()
    chromium.requests.clear()

    def show(page: Path, **options: Any) -> Browser:
        chromium.open(page, **options)
        asked.append(page.as_uri())
        return chromium

    yield show
    assert chromium.complaints == []
    assert chromium.requests == asked


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", ["inspect", "diff", "lora", "validate"])
def test_a_page_is_there_for_everyone(
    opened: Callable[..., Browser], pages: dict[str, Path], tmp_path: Path, name: str, screen: str
) -> None:
    width, dark = SCREENS[screen]
    page = opened(pages[name], width=width, dark=dark)
    page.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        colours: Any = image.convert("RGB").getcolors(1 << 24)
    pixels = sum(count for count, _ in colours)
    assert len(colours) > 50
    background = max(colours)
    assert (sum(background[1]) < 150) is dark
    assert background[0] < 0.97 * pixels
    page.ask(UNFOLD)
    seen, bad = page.ask(CONTRAST)
    assert (seen > 60, bad) == (True, [])
    # Nothing is cut off or needs scrolling in two directions: what is wide scrolls by itself.
    assert page.ask("document.documentElement.scrollWidth") <= width
    hidden = page.ask(
        "[...document.querySelectorAll('body *')].filter(e => e.scrollWidth > e.clientWidth + 1"
        " && getComputedStyle(e).overflowX === 'auto' && e.tabIndex !== 0).length"
    )
    assert hidden == 0
    spilt = page.ask(
        "[...document.querySelectorAll('body *:not(.skip)')].filter(e => !e.closest('.scroll')"
        f" && e.getBoundingClientRect().right > {width} + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert spilt == []


@pytest.mark.parametrize("name", ["inspect", "diff", "validate"])
def test_everything_can_be_reached_by_the_keyboard(
    opened: Callable[..., Browser], pages: dict[str, Path], name: str
) -> None:
    page = opened(pages[name])
    stops = page.ask("document.querySelectorAll('a, summary, [tabindex]').length")
    page.ask("document.querySelectorAll('details').forEach(one => { one.open = false })")
    visible = page.ask(
        "[...document.querySelectorAll('a, summary, [tabindex]')].filter(e =>"
        " e.localName === 'summary' || !e.closest('details')).length"
    )
    assert 5 < visible <= stops
    reached = []
    for _ in range(visible):
        page.press("Tab")
        reached.append(page.ask(FOCUS))
        assert page.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert len(set(reached)) == visible
    assert reached == sorted(reached)
    assert -1 not in reached
    # Enter unfolds, and a link leads to its section.
    if name != "inspect":
        page.ask("document.querySelector('summary').focus()")
        page.press("Enter")
        assert page.ask("document.querySelector('details').open") is True
    page.ask("document.querySelectorAll('nav a')[1].focus()")
    page.press("Enter")
    assert page.ask("document.querySelector(location.hash).getBoundingClientRect().top") < 300


@pytest.mark.parametrize("name", ["inspect", "diff", "lora", "validate"])
def test_paper_shows_what_is_folded_and_cuts_nothing_off(
    opened: Callable[..., Browser], pages: dict[str, Path], name: str
) -> None:
    page = opened(pages[name], width=720)  # of A4 within its margins
    page.call("Emulation.setEmulatedMedia", media="print")
    heights = page.ask(
        "[...document.querySelectorAll('details table')].map(e => e.getBoundingClientRect().height)"
    )
    widest = page.ask(
        "Math.max(...[...document.querySelectorAll('body *:not(.skip)')]"
        ".map(e => e.getBoundingClientRect().right))"
    )
    page.call("Emulation.setEmulatedMedia", media="")
    assert all(height > 40 for height in heights)
    assert widest <= 720


def hostile(root: Path, number: int) -> Path:
    """A checkpoint whose names, keys and values are one of the names, wherever they may stand."""
    name = NAMES[number % len(NAMES)]
    folder = "".join(c for c in name if c not in "/\0")[:60]
    path = root / f"{number}{folder}"
    path.mkdir()
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        f"{name}{n}": ("F32", (n + 1,)) for n in range(3)
    }
    shapes |= {f"model.layers.{n}.{name}.weight": ("F32", (2,)) for n in range(3)}
    shapes[f"model.mm_projector.{name}"] = ("F32", (2, 2))
    write_safetensors(path / "model.safetensors", shapes, random_fill("F32", number))
    config = {"model_type": name, "architectures": [name], "mm_vision_tower": name, name: [name]}
    (path / "config.json").write_text(json.dumps(config))
    entry = {
        "operation": name,
        "time": name,
        "inputs": {name: {"name": name}},
        "arguments": {name: 1},
    }
    content = {"format": "vita-ckpt-provenance", "version": 1, "operations": [entry] * 3}
    (path / "vita_ckpt.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("number", range(20))
def test_no_name_of_a_stranger_runs(
    opened: Callable[..., Browser], tmp_path: Path, number: int
) -> None:
    one, other = hostile(tmp_path, number), hostile(tmp_path, number + 20)
    files = {name: tmp_path / f"{name}.html" for name in ("inspect", "diff", "validate")}
    run("inspect", one, "--values", "--html", files["inspect"])
    run("diff", one, other, "--values", "--html", files["diff"])
    run("validate", one, other, "--output", f"html={files['validate']}")
    for file in files.values():
        assert file.stat().st_size < LARGEST
        read_page(file.read_text())
        page = opened(file)
        assert page.ask("document.title").endswith(f"vita-ckpt {file.stem}")
        assert page.ask("document.scripts.length + document.images.length") == 0
        assert page.ask("document.documentElement.scrollWidth") <= 1280


def filled(value: int, _name: str, size: int) -> list[bytes]:
    return [bytes([value]) * size]


def test_what_is_huge_opens(opened: Callable[..., Browser], tmp_path: Path) -> None:
    many = {
        f"model.layers.{n % 300}.{NAMES[n % len(NAMES)]}{n}.w": ("U8", (1,)) for n in range(100_000)
    }
    for folder, seed in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "model.safetensors"
        write_safetensors(file, many, partial(filled, seed))
        (tmp_path / folder / "config.json").write_text("{}")
    run("inspect", tmp_path / "a", "--html", tmp_path / "inspect.html")
    run("diff", tmp_path / "a", tmp_path / "b", "--html", tmp_path / "diff.html")
    findings = tuple(
        finding("missing-tensor", f"{NAMES[n % len(NAMES)]}{n}", NAMES[n % 7] * 40)
        for n in range(10_000)
    )
    report = Report("many", "vita-checkpoint", findings)
    (tmp_path / "findings.html").write_text(renderer("html")([report], RULES))
    for name in ("inspect", "diff", "findings"):
        file = tmp_path / f"{name}.html"
        assert file.stat().st_size < LARGEST
        page = opened(file)
        assert page.ask("document.scripts.length") == 0
        assert page.ask("document.querySelectorAll('tbody tr').length") > 100
        if name != "inspect":  # there names that differ in their numbers alone are one row
            assert "left out" in page.ask("document.body.innerText")
