"""A surgery in place that changes no byte changes nothing, and what undoes the last one stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.builder import TowerSpec, mm_projector, write_adapter, write_checkpoint, write_tower
from tests.builders import as_bins
from tests.conftest import Cli
from tests.in_place import files_of

MLP = mm_projector("mlp2x_gelu", 32, 16)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tower(tmp_path / "tower-internvit", TowerSpec(), seed=5)
    return write_checkpoint(tmp_path / "base", dtype="BF16", shards=3)


def merge(base: Path) -> tuple[object, ...]:
    """The adapter has another dtype: what is compared is what would be written."""
    adapter = base.parent / "adapter.safetensors"
    if not adapter.exists():
        write_adapter(adapter, MLP, dtype="F32", seed=9)
    return ("merge-projector", "--base", base, "--adapter", adapter, "--in-place")


def swap(base: Path) -> tuple[object, ...]:
    return ("swap-tower", "--base", base, "--tower", base.parent / "tower-internvit", "--in-place")


def set_key(base: Path) -> tuple[object, ...]:
    return ("set", base, "image_aspect_ratio=pad", "--in-place")


@pytest.mark.parametrize("more", [(), ("--digest",), ("--digest", "--model-card")])
@pytest.mark.parametrize("command", [merge, swap, set_key], ids=lambda c: c.__name__)
def test_the_same_again_changes_nothing(
    cli: Cli, base: Path, command: Callable[[Path], tuple[object, ...]], more: tuple[str, ...]
) -> None:
    before = files_of(base)
    assert "undoes it" in cli(*command(base), *more).out
    after = files_of(base)
    kept = sorted((base / ".vita-ckpt").rglob("*"))
    for dry in (("--dry-run",), ()):
        again = cli(*command(base), *more, *dry)
        assert (again.code, again.out) == (0, "nothing to change\n"), again
        assert "undo" not in again.err
    summary = json.loads(cli(*command(base), *more, "--json").out)
    assert [summary[k] for k in ("tensors", "files", "patched", "rewritten")] == [[], [], [], []]
    assert summary["bytes_to_write"] == 0
    assert files_of(base) == after
    assert sorted((base / ".vita-ckpt").rglob("*")) == kept
    assert cli("undo", base).code == 0
    assert files_of(base) == before


def test_links_to_shards_make_no_difference(cli: Cli, base: Path) -> None:
    """A shard that other names lead to would be written anew."""
    assert cli(*merge(base)).code == 0
    after = files_of(base)
    for shard in base.glob("*.safetensors"):
        (base.parent / f"backup-{shard.name}").hardlink_to(shard)
    assert cli(*merge(base)).out == "nothing to change\n"
    assert files_of(base) == after


def test_bins_that_have_the_tensors_stay_bins(cli: Cli, tmp_path: Path, base: Path) -> None:
    bins = as_bins(write_checkpoint(tmp_path / "bins", dtype="BF16"), shards=2)
    assert cli("extract-projector", "--from", bins, "--out", tmp_path / "own.safetensors").code == 0
    call = ("merge-projector", "--base", bins, "--adapter", tmp_path / "own.safetensors")
    before = files_of(bins)
    assert cli(*call, "--in-place").out == "nothing to change\n"
    assert files_of(bins) == before


def test_undo_data_that_other_takes_the_place_of(cli: Cli, base: Path, tmp_path: Path) -> None:
    assert cli(*set_key(base)).err == ""
    planned = cli(*merge(base), "--dry-run")
    assert "would replace what was kept to undo set" in planned.err
    assert "--out PATH instead of --in-place" in planned.err
    call = [argument for argument in merge(base) if argument != "--in-place"]
    assert "undo" not in cli(*call, "--out", tmp_path / "out").err
    assert "can be undone" in cli("history", base).out
    done = cli(*merge(base))
    assert "replaced what was kept to undo set" in done.err


def test_a_digest_that_is_new_is_a_change(cli: Cli, base: Path) -> None:
    assert cli(*set_key(base)).code == 0
    for option in ("--digest", "--model-card"):
        assert "undoes it" in cli(*set_key(base), option).out
        assert cli(*set_key(base), option).out == "nothing to change\n"
