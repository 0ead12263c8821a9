"""``consolidate``: files, checkpoint directories and LoRA runs out of training state."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GOLDEN, Cli, assert_one_error
from vita_ckpt import open_checkpoint
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.storage.tensors.stream import Inputs, tensor_bytes
from vita_ckpt.storage.writing import layout

ZERO_2 = GOLDEN / "T12" / "run"
ZERO_3 = GOLDEN / "T2" / "run"
LORA = GOLDEN / "T5" / "run"
BASE = GOLDEN / "A1" / "base"


def _bytes(checkpoint: Checkpoint, name: str) -> bytes:
    with Inputs() as inputs:
        return b"".join(tensor_bytes(checkpoint.tensors[name], inputs, name))


def _config(path: Path, **changes: Any) -> Path:
    config = json.loads((BASE / "config.json").read_text())
    path.write_text(json.dumps({**config, **changes}))
    return path


def test_a_directory_needs_a_config(cli: Cli, tmp_path: Path) -> None:
    result = cli("consolidate", ZERO_3, "--out", tmp_path / "out")
    assert_one_error(result, 3, "missing-config", "--config", "--base")
    assert not (tmp_path / "out").exists()


def test_a_directory_is_a_checkpoint(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli("consolidate", ZERO_3, "--out", out, "--config", BASE, "--check")
    assert result.code == 0, result.err
    made = open_checkpoint(out)
    state = open_checkpoint(ZERO_3)
    assert made.tensors.keys() == state.tensors.keys()
    assert all(_bytes(made, name) == _bytes(state, name) for name in made.tensors)
    assert made.config is not None
    assert made.config["torch_dtype"] == "float32"
    (operation,) = json.loads((out / "vita_ckpt.json").read_text())["operations"]
    assert operation["operation"] == "consolidate"
    assert operation["arguments"]["step"] == 3
    assert operation["arguments"]["world_size"] == 2
    assert [*operation["inputs"]] == ["state"]
    assert cli("history", out).code == 0
    assert cli("validate", out, "--deep").out.count("digest") == 0


def test_a_tied_head_is_not_stored_twice(cli: Cli, tmp_path: Path) -> None:
    config = _config(tmp_path / "config.json", tie_word_embeddings=True)
    result = cli("consolidate", ZERO_3, "--out", tmp_path / "out", "--config", config)
    assert result.code == 0, result.err
    made, state = open_checkpoint(tmp_path / "out"), open_checkpoint(ZERO_3)
    assert state.tensors.keys() - made.tensors.keys() == {"lm_head.weight"}


def test_the_config_and_the_tokenizer_of_the_run(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(ZERO_3, run / "checkpoint-3")
    shutil.copy(BASE / "config.json", run / "checkpoint-3")
    (run / "checkpoint-3" / "tokenizer.json").write_text('{"model": {}}')
    (run / "checkpoint-3" / "merges.txt").write_text("a b\n")
    result = cli("consolidate", run, "--out", tmp_path / "out", "--dtype", "bf16")
    assert result.code == 0, result.err
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "merges.txt", "vita_ckpt.json")
    }
    made = open_checkpoint(out)
    floating = {t.dtype for t in made.tensors.values()} - {"I64"}
    assert floating == {"BF16"}
    assert made.config is not None
    assert made.config["torch_dtype"] == "bfloat16"


def test_large_checkpoints_are_sharded(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_LARGEST_SHARD", 100_000)
    out = tmp_path / "out"
    result = cli("consolidate", ZERO_3, "--out", out, "--config", BASE)
    assert result.code == 0, result.err
    index = json.loads((out / "model.safetensors.index.json").read_text())
    made, state = open_checkpoint(out), open_checkpoint(ZERO_3)
    assert len(made.shards) > 3
    assert index["weight_map"].keys() == made.tensors.keys() == state.tensors.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in made.tensors.values())
    assert not {"index-total-size", "index-mismatch"} & {
        found["rule"] for found in _findings(cli("validate", out, "--format", "json").out)
    }


def _findings(text: str) -> list[dict[str, Any]]:
    return [f for r in json.loads(text)["reports"] for f in r["findings"]]


def test_a_lora_run(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli("consolidate", LORA, "--out", out, "--check")
    assert result.code == 0, result.err
    made = open_checkpoint(out)
    state = open_checkpoint(LORA / "checkpoint-4" / "global_step4")
    trainers = open_checkpoint(LORA / "checkpoint-4")
    assert made.layout == "lora"
    assert [shard.name for shard in made.shards] == [
        "adapter_model.safetensors",
        "non_lora_trainables.bin",
    ]
    assert made.adapter_config == trainers.adapter_config
    held = {s.name: {n for n, r in made.refs.items() if r.source == s.file} for s in made.shards}
    assert held["adapter_model.safetensors"] == trainers.tensors.keys()
    rest = held["non_lora_trainables.bin"]
    assert rest == {n for n in state.tensors if "mm_projector" in n}
    assert all(_bytes(made, name) == _bytes(state, name) for name in rest)
    # The trainer's adapter is the masters, rounded.
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A"
    assert _bytes(made, f"{name}.weight") == _bytes(state, f"{name}.default.weight")
    assert made.tensors[f"{name}.weight"].dtype == "F32"


def test_a_lora_run_whose_optimizer_is_not_there(cli: Cli, tmp_path: Path) -> None:
    """The model states alone, as copies: what was trained is known by its names."""
    run = tmp_path / "run"
    shutil.copytree(LORA, run)
    for path in (run / "checkpoint-4" / "global_step4").glob("*optim_states.pt"):
        path.unlink()
    result = cli("consolidate", run, "--out", tmp_path / "out")
    assert_one_error(result, 3, "missing-rank", "--weights copies")
    result = cli("consolidate", run, "--out", tmp_path / "out", "--weights", "copies")
    assert result.code == 0, result.err
    made = open_checkpoint(tmp_path / "out")
    assert len(made.tensors) == 32
    assert {tensor.dtype for tensor in made.tensors.values()} == {"BF16"}


def test_the_adapter_in_16_bits_is_the_trainers(cli: Cli, tmp_path: Path) -> None:
    for asked in (("--dtype", "bf16"), ("--weights", "copies")):
        out = tmp_path / asked[1]
        result = cli("consolidate", LORA, "--out", out, *asked)
        assert result.code == 0, result.err
        made, trainers = open_checkpoint(out), open_checkpoint(LORA / "checkpoint-4")
        assert {made.tensors[n].dtype for n in trainers.tensors} == {"BF16"}
        for name, tensor in trainers.tensors.items():
            if tensor.dtype == "BF16":
                assert _bytes(made, name) == _bytes(trainers, name), name


def test_a_base_supplies_what_was_excluded(cli: Cli, tmp_path: Path) -> None:
    """The projector and the last layers of a run, on the checkpoint that it was trained on."""
    out = tmp_path / "out"
    result = cli("consolidate", ZERO_2, "--out", out, "--base", BASE, "--link", "copy")
    assert result.code == 2  # an option that the command does not have
    result = cli("consolidate", ZERO_2, "--out", out, "--base", BASE, "--check")
    assert result.code == 0, result.err
    made, base = open_checkpoint(out), open_checkpoint(BASE)
    state = open_checkpoint(ZERO_2)
    assert made.tensors.keys() == base.tensors.keys() | state.tensors.keys()
    for name in made.tensors:
        side = state if name in state.tensors else base
        assert _bytes(made, name) == _bytes(side, name), name


def test_a_file_takes_a_base_too(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    result = cli("consolidate", ZERO_2, "--out", out, "--base", BASE)
    assert result.code == 0, result.err
    wanted = open_checkpoint(BASE).tensors.keys() | open_checkpoint(ZERO_2).tensors.keys()
    assert open_checkpoint(out).tensors.keys() == wanted


def test_a_base_that_does_not_fit(cli: Cli, tmp_path: Path) -> None:
    for base, out in ((GOLDEN / "A4" / "base", "out"), (LORA / "checkpoint-4", "out.safetensors")):
        result = cli("consolidate", ZERO_3, "--out", tmp_path / out, "--base", base)
        assert_one_error(result, 3, "base-does-not-fit-run")
    result = cli("consolidate", LORA, "--out", tmp_path / "out", "--base", BASE)
    assert_one_error(result, 2, "base-of-lora-run")


def test_the_projector_of_a_state(cli: Cli, tmp_path: Path) -> None:
    """Every surgery that takes a projector takes training state, and the step of a run above it."""
    states = {"3": ZERO_3, "run": LORA, "step": LORA / "checkpoint-4"}
    for label, state in states.items():
        out = tmp_path / f"{label}.safetensors"
        result = cli("extract-projector", "--from", state, "--out", out)
        assert result.code == 0, result.err
        assert len(open_checkpoint(out).tensors) == 4
        result = cli(
            "merge-projector", "--base", BASE, "--adapter", state, "--out", tmp_path / label
        )
        assert result.code == 0, result.err
        name = "model.mm_projector.2.weight"
        merged, alone = open_checkpoint(tmp_path / label), open_checkpoint(out)
        assert _bytes(merged, name) == _bytes(alone, name)


def test_inspect_and_diff_take_a_state(cli: Cli) -> None:
    screen = cli("inspect", ZERO_3)
    assert screen.code == 0
    for words in ("deepspeed, 0.19.8, stage 3, step 3, 2 ranks", "37 trained", "moments", "tied"):
        assert words in screen.out
    rows = json.loads(cli("inspect", ZERO_2, "--json", "--tensors").out)
    assert rows["layout"] == "state"
    assert rows["training"]["ranks"] == 11
    assert len(rows["tensor_list"]) == 13
    assert cli("diff", ZERO_3, ZERO_3).code == 0
    result = cli("diff", ZERO_3, GOLDEN / "T2" / "expected.safetensors", "--values")
    assert "changed" in result.out


def test_nothing_else_is_taken_for_a_state(cli: Cli, tmp_path: Path) -> None:
    result = cli("consolidate", BASE, "--out", tmp_path / "out.safetensors")
    assert_one_error(result, 3, "not-a-training-state")
    result = cli("swap-tower", "--base", ZERO_3, "--tower", BASE, "--out", tmp_path / "out")
    assert_one_error(result, 3, "not-a-vita-checkpoint", "a training state", "consolidate")


def test_a_plan_is_saved_and_applied(cli: Cli, tmp_path: Path) -> None:
    for number, asked in enumerate(
        (
            (ZERO_3, "--config", BASE),
            (ZERO_2, "--base", BASE, "--dtype", "f16"),
            (ZERO_2, "--base", BASE, "--weights", "copies"),
            (LORA,),
        )
    ):
        plan, direct = tmp_path / f"{number}.json", tmp_path / f"direct{number}"
        assert cli("consolidate", *asked, "--plan-out", plan).code == 0
        assert cli("consolidate", *asked, "--out", direct).code == 0
        applied = tmp_path / f"applied{number}"
        result = cli("apply", plan, "--out", applied)
        assert result.code == 0, result.err
        one, other = open_checkpoint(direct), open_checkpoint(applied)
        assert one.tensors.keys() == other.tensors.keys()
        assert all(_bytes(one, name) == _bytes(other, name) for name in one.tensors)


def test_nothing_is_written_over_or_into_a_state(cli: Cli, tmp_path: Path) -> None:
    state = tmp_path / "run"
    shutil.copytree(ZERO_2, state)
    result = cli("consolidate", state, "--out", state / "global_step3" / "x.safetensors")
    assert_one_error(result, 2, "output-overlaps-input")
    (tmp_path / "x.safetensors").write_bytes(b"")
    result = cli("consolidate", state, "--out", tmp_path / "x.safetensors")
    assert_one_error(result, 2, "output-exists")


def test_a_dry_run_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    result = cli("consolidate", ZERO_2, "--base", BASE, "--dry-run")
    assert result.code == 0, result.err
    assert "would write" in result.out
    assert not [*tmp_path.iterdir()]


def test_a_lora_run_is_merged_out_of_its_state(cli: Cli, tmp_path: Path) -> None:
    """The same bytes as by way of the run's directory, and again from a saved plan."""
    state = LORA / "checkpoint-4" / "global_step4"
    assert cli("consolidate", state, "--out", tmp_path / "run").code == 0
    for label, adapter in (("two steps", tmp_path / "run"), ("one", state)):
        plan = () if label != "one" else ("--plan-out", tmp_path / "plan.json")
        asked = ("--base", BASE, "--adapter", adapter, "--out", tmp_path / label, *plan)
        result = cli("merge-lora", *asked)
        assert result.code == 0, result.err
    assert cli("apply", tmp_path / "plan.json", "--out", tmp_path / "again").code == 0
    merged, base = open_checkpoint(tmp_path / "one"), open_checkpoint(BASE)
    changed = [n for n in merged.tensors if _bytes(merged, n) != _bytes(base, n)]
    assert sum("layers" in name for name in changed) == 14
    assert sum("mm_projector" in name for name in changed) == 4
    for other in ("two steps", "again"):
        found = open_checkpoint(tmp_path / other)
        assert all(_bytes(found, n) == _bytes(merged, n) for n in merged.tensors)


def test_a_model_cannot_be_merged_as_a_lora_run(cli: Cli, tmp_path: Path) -> None:
    result = cli("merge-lora", "--base", BASE, "--adapter", ZERO_3, "--out", tmp_path / "out")
    assert_one_error(result, 3, "not-a-lora-run")


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("convert", ("--dtype", "bf16")),
        ("resize-embeddings", ("--tokens", "256")),
        ("set", ("image_aspect_ratio=pad",)),
    ],
)
def test_what_needs_a_checkpoint_says_how_to_make_one(
    cli: Cli, tmp_path: Path, command: str, asked: tuple[str, ...]
) -> None:
    result = cli(command, ZERO_3, *asked, "--out", tmp_path / "out")
    assert result.code == 3
    assert f"vita-ckpt consolidate {ZERO_3 / 'global_step3'} --out" in result.err
    assert not (tmp_path / "out").exists()
