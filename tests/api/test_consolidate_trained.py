"""A trained model's state becomes a checkpoint that computes what the model computed.

The trained models are goldens, so the logits are upstream's own. Their states have the layouts of
DeepSpeed, written here element by element, and of torch's own writer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict_saver import save as save_dcp

from tests.conftest import GOLDEN, Cli
from vita_ckpt import load_model

Tensors = dict[str, torch.Tensor]

LIMIT = 1e-5
CONFIGS = {
    torch.float32: {},
    torch.bfloat16: {"bf16": {"enabled": True}},
}


def trained(case: str) -> Tensors:
    tensors: Tensors = {}
    for file in sorted((GOLDEN / case / "base").glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def is_tower(name: str) -> bool:
    return "vision_tower" in name


def write_zero(
    root: Path,
    model: Tensors,
    *,
    stage: int,
    ranks: int = 2,
    dtype: torch.dtype = torch.float32,
    frozen: Collection[str] = (),
    excluded: bool = False,
) -> Path:
    """The files of ``ranks`` ranks: two optimizer groups, one of biases; returns ``root``."""
    state = root / "global_step7"
    state.mkdir(parents=True)
    (root / "latest").write_text("global_step7")
    masters = [n for n in model if n not in frozen]
    groups = [
        {n: model[n].shape for n in masters if n.endswith("bias") is biases}
        for biases in (False, True)
    ]
    config = {"zero_optimization": {"stage": stage}, **CONFIGS[dtype]}
    common = {"ds_version": "0.9.5", "ds_config": config}
    module = {n: model[n] if n in frozen else model[n].to(dtype) for n in model}
    if excluded:
        module = {n: t for n, t in module.items() if n not in frozen}
    saved_frozen = {n: model[n] for n in frozen if not excluded}
    write = _write_stage_3 if stage == 3 else _write_stage_2
    for rank, (vectors, fragments) in enumerate(write(model, groups, saved_frozen, ranks)):
        states: dict[str, Any] = {
            "module": {n: t.new_empty(0) for n, t in module.items()} if stage == 3 else module,
            "buffer_names": [],
            "param_shapes": groups,
            "frozen_param_shapes": {n: t.shape for n, t in saved_frozen.items()} or None,
            "frozen_param_fragments": fragments or None,
            "shared_params": {},
            "dp_world_size": ranks,
            "mp_world_size": 1,
            "global_steps": 7,
            **common,
        }
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        if rank == 0 or stage == 3:
            front = name if stage == 3 else "mp_rank_00"
            torch.save(states, state / f"{front}_model_states.pt")
        flat = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        optimizer = {
            "zero_stage": stage,
            "partition_count": ranks if stage == 3 else [ranks] * len(groups),
            flat: vectors,
            "base_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        }
        front = "bf16_" if dtype is torch.bfloat16 else ""
        torch.save(
            {"optimizer_state_dict": optimizer, **common},
            state / f"{front}{name}_optim_states.pt",
        )
    return root


Ranks = list[tuple[list[torch.Tensor], Tensors]]


def _write_stage_2(
    model: Tensors, groups: list[dict[str, torch.Size]], frozen: Tensors, ranks: int
) -> Ranks:
    """Each group is one vector, cut into as many equal parts as there are ranks."""
    written: Ranks = [([], frozen) for _ in range(ranks)]
    for group in groups:
        flat = torch.cat([model[name].reshape(-1) for name in group])
        padding = -len(flat) % (2 * ranks)
        parts = torch.cat([flat, flat.new_zeros(padding)]).chunk(ranks)
        for rank, part in enumerate(parts):
            kept = part[: len(part) - padding] if rank == ranks - 1 else part
            written[rank][0].append(kept.clone())
    return written


def _write_stage_3(
    model: Tensors, groups: list[dict[str, torch.Size]], frozen: Tensors, ranks: int
) -> Ranks:
    """Each parameter is cut by itself; the pieces of a rank are cut again at sub-groups."""

    def piece(tensor: torch.Tensor, rank: int) -> torch.Tensor:
        flat = tensor.reshape(-1)
        count = -(-len(flat) // ranks)
        padded = torch.cat([flat, flat.new_zeros(count * ranks - len(flat))])
        return padded[rank * count : (rank + 1) * count]

    written: Ranks = []
    for rank in range(ranks):
        whole = torch.cat([piece(model[name], rank) for group in groups for name in group])
        cuts = (0, 1000, 1000 + len(whole) // 3, len(whole))
        vectors = [whole[start:end].clone() for start, end in pairwise(cuts)]
        written.append((vectors, {n: piece(t, rank) for n, t in frozen.items()}))
    return written


def write_dcp(root: Path, model: Tensors) -> Path:
    """The files of torch's own writer; returns ``root``."""
    save_dcp({"model": model, "step": torch.tensor(7)}, checkpoint_id=root, no_dist=True)
    return root


def untrained_base(case: str, root: Path, changed: Collection[str]) -> Path:
    """The checkpoint that a run started from: other values of what was ``changed``."""
    root.mkdir()
    shutil.copy(GOLDEN / case / "base" / "config.json", root)
    tensors = {n: t + 1 if n in changed else t for n, t in trained(case).items()}
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    return root


def judge(cli: Cli, case: str, made: Path) -> None:
    """It validates, verifies, and its logits are upstream's."""
    for file in (GOLDEN / case).glob("tower-*"):
        shutil.copytree(file, made.parent / file.name, dirs_exist_ok=True)
    result = cli("validate", made)
    assert result.code == 0, result.out
    result = cli("verify", made, "--device", "cpu")
    assert result.code == 0, result.out
    inputs = load_file(GOLDEN / case / "inputs.safetensors")
    expected = load_file(GOLDEN / case / "expected.safetensors")
    model = load_model(made, device="cpu", dtype="float32")
    found = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits
    assert (found - expected["logits"]).abs().max() < LIMIT
    text = model(input_ids=inputs["text_input_ids"]).logits
    assert (text - expected["text_logits"]).abs().max() < LIMIT


WHOLE: dict[str, Callable[[Path, Tensors], Path]] = {
    "zero 2, frozen tower": lambda root, model: write_zero(
        root, model, stage=2, frozen=[*filter(is_tower, model)]
    ),
    "zero 2, bf16 beside masters": lambda root, model: write_zero(
        root, model, stage=2, ranks=3, dtype=torch.bfloat16
    ),
    "zero 3, frozen tower": lambda root, model: write_zero(
        root, model, stage=3, ranks=3, frozen=[*filter(is_tower, model)]
    ),
    "zero 3, bf16": lambda root, model: write_zero(
        root, model, stage=3, ranks=5, dtype=torch.bfloat16
    ),
    "dcp": write_dcp,
    "dcp of a compiled module": lambda root, model: write_dcp(
        root, {f"_orig_mod.{name}": tensor for name, tensor in model.items()}
    ),
}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("case", ["A1", "A4"])
def test_a_trained_model(cli: Cli, tmp_path: Path, case: str, kind: str) -> None:
    state = WHOLE[kind](tmp_path / "run", trained(case))
    out = tmp_path / "out"
    config = GOLDEN / case / "base"
    result = cli("consolidate", state, "--out", out, "--config", config, "--check")
    assert result.code == 0, result.err
    judge(cli, case, out)


def test_a_model_whose_frozen_parameters_were_excluded(cli: Cli, tmp_path: Path) -> None:
    """The base supplies them, and nothing of what was trained."""
    model = trained("A2")
    frozen = [name for name in model if "mm_projector" not in name]
    run = write_zero(
        tmp_path / "run", model, stage=2, dtype=torch.bfloat16, frozen=frozen, excluded=True
    )
    base = untrained_base("A2", tmp_path / "base", model.keys() - set(frozen))
    out = tmp_path / "out"
    result = cli("consolidate", run, "--out", out, "--base", base, "--check")
    assert result.code == 0, result.err
    judge(cli, "A2", out)


def test_a_projector_is_merged_out_of_its_state(cli: Cli, tmp_path: Path) -> None:
    """A projector run that left nothing but its state: the merge is upstream's of A7."""
    merged = trained("A7") | {
        name: tensor.float()
        for name, tensor in torch.load(
            GOLDEN / "A7" / "mm_projector_fp32" / "mm_projector.bin"
        ).items()
    }
    frozen = [name for name in merged if "mm_projector" not in name]
    run = write_zero(tmp_path / "run", merged, stage=3, frozen=frozen)
    out = tmp_path / "out"
    base = GOLDEN / "A7" / "base"
    result = cli("merge-projector", "--base", base, "--adapter", run, "--out", out)
    assert result.code == 0, result.err
    judge(cli, "A7", out)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("case", ["L1", "L4"])
def test_a_lora_run_is_merged_out_of_its_state(
    cli: Cli, tmp_path: Path, case: str, stage: int
) -> None:
    """In one step, and by way of the run that its end would have written: upstream's merge."""
    run = GOLDEN / case / "lora"
    whole = {
        name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."): tensor
        for name, tensor in load_file(run / "adapter_model.safetensors").items()
    } | torch.load(run / "non_lora_trainables.bin")
    step = tmp_path / "run" / "checkpoint-7"
    write_zero(step, whole, stage=stage, excluded=True)
    for name in ("adapter_config.json", "config.json"):
        shutil.copy(run / name, step)
    result = cli("consolidate", tmp_path / "run", "--out", tmp_path / "lora")
    assert result.code == 0, result.err
    base = GOLDEN / case / "base"
    for label, adapter in (("two-steps", tmp_path / "lora"), ("one", step)):
        out = tmp_path / label
        result = cli("merge-lora", "--base", base, "--adapter", adapter, "--out", out)
        assert result.code == 0, result.err
        judge(cli, case, out)
