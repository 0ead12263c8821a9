"""``vita-ckpt extract-projector`` as a person types it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fixtures.builder import read_tensors
from tests.conftest import GOLDEN, Cli


def test_names_of_files_that_are_no_text(cli: Cli, base: Path, tmp_path: Path) -> None:
    out = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.bin")
    assert cli("extract-projector", "--from", base, "--out", out).code == 0
    assert len(torch.load(out, weights_only=True)) == 4


def test_extract_bin_is_upstreams(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "mm_projector.bin"
    assert cli("extract-projector", "--from", GOLDEN / "A1" / "base", "--out", out).code == 0
    loaded = torch.load(out, weights_only=True, map_location="cpu")
    assert list(loaded) == [
        "model.mm_projector.0.bias",
        "model.mm_projector.0.weight",
        "model.mm_projector.2.bias",
        "model.mm_projector.2.weight",
    ]
    module = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.GELU(), torch.nn.Linear(64, 64))
    module.load_state_dict({k.split("mm_projector.")[1]: v for k, v in loaded.items()}, strict=True)
    bare = tmp_path / "bare.safetensors"
    assert cli("extract-projector", "--from", out, "--bare", "--out", bare).code == 0
    assert set(read_tensors(bare)) == {"0.weight", "0.bias", "2.weight", "2.bias"}
