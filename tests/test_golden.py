"""The main job on upstream's own checkpoints: merges equal upstream's, extraction undoes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fixtures.builder import read_tensors
from tests.conftest import BASES, GOLDEN
from vita_ckpt import apply, plan_extract_projector, plan_merge_projector

ROUND_TRIPS = [*(f"{case}/base" for case in BASES), "A8/swapped_by_upstream"]


def loaded(directory: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def test_a7_merge_is_upstreams(tmp_path: Path) -> None:
    case = GOLDEN / "A7"
    out = Path(
        apply(plan_merge_projector(case / "base", case / "mm_projector_fp32"), tmp_path / "out")
    )
    adapter = torch.load(case / "mm_projector_fp32" / "mm_projector.bin", weights_only=True)
    before, after = loaded(case / "base"), loaded(out)
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, adapter.get(name, before[name])), name

    expected = load_file(case / "expected.safetensors")
    weights = {
        n.removeprefix("model.mm_projector."): t for n, t in after.items() if "mm_projector" in n
    }
    module = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.GELU(), torch.nn.Linear(64, 64))
    module.load_state_dict(weights, strict=True)
    with torch.no_grad():
        features = module(expected["tower_features"])
    assert (features - expected["image_features"]).abs().max() < 1e-5
    assert (features - expected["base_image_features"]).abs().max() > 0.1


@pytest.mark.parametrize("path", ROUND_TRIPS)
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_extract_then_merge_is_the_identity(tmp_path: Path, path: str, suffix: str) -> None:
    base = GOLDEN / path
    file = apply(plan_extract_projector(base), tmp_path / f"mm_projector{suffix}")
    out = Path(apply(plan_merge_projector(base, file), tmp_path / "out"))
    assert read_tensors(out) == read_tensors(base)
    (out / "vita_ckpt.json").unlink()  # how it was made
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in base.iterdir())
    for source in base.iterdir():
        assert (out / source.name).read_bytes() == source.read_bytes()


@pytest.mark.parametrize("path", ROUND_TRIPS)
def test_merge_then_extract_is_the_identity(tmp_path: Path, path: str) -> None:
    base = GOLDEN / path
    torch.manual_seed(3)
    adapter = {n: torch.randn_like(t) for n, t in loaded(base).items() if "mm_projector" in n}
    torch.save(adapter, tmp_path / "a.bin")
    out = apply(plan_merge_projector(base, tmp_path / "a.bin"), tmp_path / "out")
    file = apply(plan_extract_projector(out), tmp_path / "b.bin")
    found = torch.load(file, weights_only=True)
    assert found.keys() == adapter.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in adapter.items())


def test_a_full_checkpoint_gives_its_projector(tmp_path: Path) -> None:
    """A1's projector into A4, another backbone of the same widths."""
    out = Path(
        apply(
            plan_merge_projector(GOLDEN / "A4" / "base", GOLDEN / "A1" / "base"), tmp_path / "out"
        )
    )
    mine, theirs, merged = (
        loaded(p) for p in (GOLDEN / "A4" / "base", GOLDEN / "A1" / "base", out)
    )
    for name, tensor in merged.items():
        assert torch.equal(tensor, (theirs if "mm_projector" in name else mine)[name])
