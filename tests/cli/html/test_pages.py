"""The pages of inspect and diff, from the command line and from hostile names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fixtures.builder import (
    FULL,
    Spec,
    checkpoint_shapes,
    random_fill,
    write_checkpoint,
    write_safetensors,
)
from tests.cli.pages import read_page
from tests.cli.reports import HOSTILE
from tests.conftest import GOLDEN, Cli, assert_one_error
from vita_ckpt.checks.change_map import change_maps
from vita_ckpt.checks.diff import Difference, TensorDifference
from vita_ckpt.cli.html.difference import difference_page
from vita_ckpt.core.checkpoint import LocalFile, TensorRef
from vita_ckpt.core.distance import Distance

BASE = GOLDEN / "A7" / "base"


def page_of(cli: Cli, tmp_path: Path, *arguments: object) -> str:
    result = cli(*arguments, "--html", tmp_path / "page.html")
    assert result.err == ""
    return (tmp_path / "page.html").read_text()


def test_inspect_shows_parts_config_and_tensors(cli: Cli, tmp_path: Path) -> None:
    page = page_of(cli, tmp_path, "inspect", BASE)
    text = read_page(page).text
    for word in (
        *("language model", "projector", "vision tower", "F32", "mm_hidden_size", "mlp2x_gelu"),
        *("model.layers.*.self_attn.q_proj.weight", "model-00004-of-00004.safetensors"),
        *("nothing contradicts", "No surgery is known."),
    ):
        assert word in text, word
    assert page.count("<svg") == 1
    assert 'id="values"' not in page
    # The areas are as large as the bytes: three parts of one checkpoint fill the drawing.
    places = re.findall(
        r'<rect class="area p\d" x="([\d.]+)" y="[\d.]+" width="([\d.]+)" h\w+="([\d.]+)"', page
    )
    sizes = sorted(float(width) * float(height) for _, width, height in places)
    report = json.loads(cli("inspect", BASE, "--json").out)
    parts = sorted(part["bytes"] for part in report["parts"])
    assert [s / sum(sizes) for s in sizes] == pytest.approx(
        [p / sum(parts) for p in parts], rel=1e-2
    )


def test_inspect_draws_values_where_they_were_read(cli: Cli, tmp_path: Path) -> None:
    page = page_of(cli, tmp_path, "inspect", BASE, "--values")
    assert 'id="values"' in page
    assert page.count("<svg") == 4
    assert "projector: magnitudes of its values" in read_page(page).text


def test_inspect_draws_how_a_checkpoint_was_made(cli: Cli, tmp_path: Path) -> None:
    run = GOLDEN / "A7" / "mm_projector_fp32"
    merged, again = tmp_path / "merged", tmp_path / "again"
    cli("merge-projector", "--base", BASE, "--adapter", run, "--out", merged)
    cli("merge-projector", "--base", merged, "--adapter", run, "--out", again)
    page = page_of(cli, tmp_path, "inspect", again)
    text = read_page(page).text
    for word in ("merge-projector", "mm_projector_fp32", "this checkpoint", "2 operations"):
        assert word in text, word
    assert page.count('class="done"') == 2
    # The first one's base is drawn; that of the second is what the first made.
    assert page.count('class="box"') == 4


@pytest.mark.parametrize("operations", [[1, None, {}], [{"inputs": {"base": 3}, "time": []}] * 99])
def test_a_lineage_that_is_nonsense_is_drawn(
    cli: Cli, tmp_path: Path, operations: list[object]
) -> None:
    root = write_checkpoint(tmp_path / "c", Spec())
    content = {"format": "vita-ckpt-provenance", "version": 1, "operations": operations}
    (root / "vita_ckpt.json").write_text(json.dumps(content))
    read_page(page_of(cli, tmp_path, "inspect", root))


def test_diff_draws_a_map_and_says_its_numbers(cli: Cli, tmp_path: Path) -> None:
    merged = GOLDEN / "L1" / "merged_by_upstream"
    page = page_of(cli, tmp_path, "diff", GOLDEN / "L1" / "base", merged, "--values")
    text = read_page(page).text
    assert "Changes in model.layers, layer by module" in text
    report = json.loads(cli("diff", GOLDEN / "L1" / "base", merged, "--values", "--json").out)
    changed = {t["name"]: t["values"]["relative_l2"] for t in report["tensors"]}
    for layer in (0, 1):
        relative = changed[f"model.layers.{layer}.self_attn.q_proj.weight"]
        assert f"{relative * 100:.3g} %" in text
    # By default only bytes are compared, and the page says so.
    plain = read_page(page_of(cli, tmp_path, "diff", GOLDEN / "L1" / "base", merged)).text
    assert "Values were not compared" in plain
    assert "%" not in plain.partition("model.layers: what changed")[2].partition("Tensors")[0]


def test_diff_of_two_architectures_says_added_and_removed(cli: Cli, tmp_path: Path) -> None:
    page = page_of(cli, tmp_path, "diff", BASE, GOLDEN / "A8" / "swapped_by_upstream", "--values")
    text = read_page(page).text
    for word in ("≠", "other shape", "removed", "1 removed", "Config", "--only holds"):
        assert (word in text) is (word != "--only holds"), word
    same = page_of(cli, tmp_path, "diff", BASE, BASE)
    assert "no difference" in read_page(same).text


def test_format_and_output_give_the_same_page(cli: Cli, tmp_path: Path) -> None:
    page = page_of(cli, tmp_path, "diff", BASE, GOLDEN / "A1" / "base")
    printed = cli("diff", BASE, GOLDEN / "A1" / "base", "--format", "html").out
    cli("diff", BASE, GOLDEN / "A1" / "base", "--output", f"html={tmp_path / 'other.html'}")
    assert printed == page == (tmp_path / "other.html").read_text()


def test_a_page_replaces_nothing_but_a_file(cli: Cli, tmp_path: Path) -> None:
    for command in (("inspect", BASE), ("diff", BASE, BASE)):
        for path, word in (
            (tmp_path, "not-a-regular-file"),
            (BASE / "page.html", "output-overlaps-input"),
            (tmp_path / "gone" / "page.html", "no-output-directory"),
            ("-", "invalid-output"),
        ):
            result = cli(*command, "--html", path)
            assert_one_error(result, 2, word, f"--html {path}")
    assert not list(tmp_path.iterdir())


def test_hostile_names_are_text(cli: Cli, tmp_path: Path) -> None:
    shapes = {
        f"{name}.{n}": ("F32", (1,)) for n, name in enumerate(HOSTILE) if "\udcff" not in name
    }
    shapes |= {
        f"model.layers.0.{name}.w": ("F32", (2,)) for name in HOSTILE if "\udcff" not in name
    }
    config = {"model_type": "<script>", "mm_vision_tower": "javascript:alert(1)", "x\u202e": "<b>"}
    for folder, number in (("a<script>alert(1)<", 0), ("b", 1)):
        root = tmp_path / folder
        root.mkdir()
        write_safetensors(
            root / "model.safetensors", dict([*shapes.items()][number:]), random_fill("F32")
        )
        (root / "config.json").write_text(json.dumps({**config, "n": number}))
    a, b = tmp_path / "a<script>alert(1)<", tmp_path / "b"
    read_page(page_of(cli, tmp_path, "diff", a, b))
    read_page(page_of(cli, tmp_path, "diff", b, a, "--only", "</title><script>"))
    cli("inspect", a, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script>" in read_page(page).text
    assert "\u202e" not in page


def test_pages_of_vita_1_5_are_small() -> None:
    """Every tensor of a model of its size has changed: the page stays below 300 kB."""
    file = LocalFile("model.safetensors", 1 << 40, 0, "")
    before = {n: TensorRef(file, 0, "BF16", s) for n, s in checkpoint_shapes(FULL).items()}
    assert len(before) > 1000
    distance = Distance(1, 1, max_abs=0.123456789, delta=0.0123456789, before=1.0, after=1.0)
    tensors = tuple(TensorDifference(n, ref, ref, distance) for n, ref in before.items())
    found = Difference("a", "b", True, False, (), (), tensors, (), (), ())
    page = difference_page(found)
    assert len(page.encode()) < 300_000
    assert {one.stack: len(one.rows) for one in change_maps(tensors)} == {
        "model.layers": 28,
        "model.vision_tower.vision_tower.encoder.layers": 24,
        "model.audio_encoder.encoder.enc.1.encoders": 24,
        "model.audio_encoder.encoder.enc": 2,
        "model.mm_projector": 3,
    }
