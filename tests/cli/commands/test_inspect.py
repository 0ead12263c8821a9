"""``vita-ckpt inspect`` as a person types it."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import torch

from fixtures.builder import (
    Spec,
    mm_projector,
    random_fill,
    snapshot,
    write_adapter,
    write_checkpoint,
    write_safetensors,
)
from tests.builders import Runs
from tests.conftest import BASES, GOLDEN, Cli, assert_one_error

SCHEMA = json.loads((files("vita_ckpt") / "schemas" / "inspect-v1.json").read_text())


@pytest.mark.parametrize("case", BASES)
def test_one_screen_says_what_it_is(cli: Cli, case: str) -> None:
    result = cli("inspect", GOLDEN / case / "base")
    assert (result.code, result.err) == (0, "")
    config = json.loads((GOLDEN / case / "base" / "config.json").read_text())
    for word in (
        "VITA checkpoint",
        config["model_type"],
        "language model",
        "projector",
        "vision tower",
        "mm_vision_tower",
        config["mm_vision_tower"],
        "mm_hidden_size",
        str(config["mm_hidden_size"]),
        config["mm_projector_type"],
        "upstream builds",
        "tower directory",
        "tokens per image",
    ):
        assert word in result.out
    assert len(result.out.splitlines()) <= 40
    assert " NO" not in result.out


def test_every_fact_of_a_relative_is_told_once(cli: Cli) -> None:
    lines = cli("inspect", GOLDEN / "F13" / "base").out.splitlines()
    facts = [line.split("  ")[0] for line in lines[lines.index("", 4) + 1 :] if "  " in line]
    assert {"family", "tower from", "tiles"} <= set(facts)
    assert len(facts) == len(set(facts))


def test_json_keeps_its_schema(cli: Cli) -> None:
    for arguments in ([], ["--tensors"], ["--tensors", "*norm*"], ["--depth", "3"], ["--values"]):
        result = cli("inspect", GOLDEN / "A1" / "base", "--json", *arguments)
        jsonschema.validate(json.loads(result.out), SCHEMA)


def test_values_are_counted_by_part(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    data = torch.tensor([[0.0, float("nan"), float("inf"), 3.0]] * 8)
    torch.save({"model.mm_projector.weight": data}, run / "mm_projector.bin")
    table = cli("inspect", run, "--values").out.splitlines()[-2:]
    assert table[0].split()[:5] == ["part", "values", "zero", "NaN", "infinite"]
    assert table[1].split() == ["projector", "32", "8", "8", "8", "–", "3"]
    found = json.loads(cli("inspect", run, "--values", "--json").out)["values"]["mm_projector"]
    assert (found["elements"], found["exponents"]) == (32, [[1, 8]])
    both = cli("inspect", run, "--values", "--tensors").out
    assert "model.mm_projector.weight" in both
    assert "largest |x|" in both


def test_tensors_and_glob(cli: Cli) -> None:
    names = json.loads((GOLDEN / "A1" / "case.json").read_text())["base_keys"]
    listed = json.loads(cli("inspect", GOLDEN / "A1" / "base", "--tensors", "--json").out)
    assert {t["name"]: [t["dtype"], t["shape"], t["shard"]] for t in listed["tensor_list"]} == names
    result = cli("inspect", GOLDEN / "A1" / "base", "--tensors", "*mm_projector*weight")
    lines = result.out.splitlines()
    assert len(lines) == 3
    assert lines[1].split() == [
        "model.mm_projector.0.weight",
        "F32",
        "[64,",
        "128]",
        "model-00004-of-00004.safetensors",
        "32768",
    ]


def test_module_tree(cli: Cli) -> None:
    result = cli("inspect", GOLDEN / "A1" / "base", "--depth", "2", "--json")
    modules = {m["name"]: m for m in json.loads(result.out)["modules"]}
    assert modules["model.mm_projector"] == {
        "name": "model.mm_projector",
        "tensors": 4,
        "parameters": 12416,
        "bytes": 49664,
    }
    assert modules["model"]["tensors"] == 76
    text = cli("inspect", GOLDEN / "A1" / "base", "--depth", "3").out
    assert "· · 0" in text
    assert cli("inspect", GOLDEN / "A1" / "base", "--depth", "0").code == 2


def test_disagreement_is_marked_and_still_exit_0(cli: Cli, tmp_path: Path) -> None:
    result = cli("inspect", write_checkpoint(tmp_path / "c", Spec(config={"mm_hidden_size": 8})))
    assert result.code == 0
    assert " NO" in result.out
    assert "! mm_hidden_size says 8, the weights say 32" in result.out
    assert "not reachable from here" in result.out


def test_what_is_left_aside_is_said(cli: Cli, tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "c")
    (root / "old.safetensors").write_bytes(b"")
    assert "· old.safetensors: a weight file that is not part" in cli("inspect", root).out


def test_adapters_lora_runs_and_towers_say_what_they_are(cli: Cli, tmp_path: Path) -> None:
    lora = tmp_path / "lora"
    lora.mkdir()
    deltas = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ("F32", (2, 2))}
    write_safetensors(lora / "adapter_model.safetensors", deltas, random_fill("F32"))
    (lora / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 16}')
    for path, word in (
        (GOLDEN / "A7" / "mm_projector_fp32", "projector adapter"),
        (GOLDEN / "A6" / "tower-eva", "EVA-CLIP, width 48"),
        (GOLDEN / "A2" / "tower-siglip", "standalone vision tower"),
        (write_adapter(tmp_path / "a.safetensors", mm_projector("ldp", 4, 8)), "ldp 4→8"),
        (lora, "LoRA run"),
    ):
        result = cli("inspect", path)
        assert result.code == 0
        assert word in result.out


def test_control_characters_are_escaped(cli: Cli, tmp_path: Path) -> None:
    evil = "a\x1b[31m\n\r\x9b\u202e.weight"
    root = write_checkpoint(tmp_path / "c", Spec(config={"mm_vision_tower": evil}))
    torch.save({evil: torch.zeros(1)}, tmp_path / "x.bin")
    (root / f"evil\x1b[2J{chr(0x202E)}.safetensors").touch()
    for arguments in (
        [root],
        [tmp_path / "x.bin"],
        [tmp_path / "x.bin", "--tensors"],
        [tmp_path / "x.bin", "--depth", "2"],
        [root, "--json"],
        [tmp_path / evil],
    ):
        result = cli("inspect", *arguments)
        for character in ("\x1b", "\r", "\x9b", "\u202e"):
            assert character not in result.out + result.err
    assert_one_error(cli("inspect", tmp_path / evil), 3, "not-found")


def test_hostile_and_broken_inputs_are_one_line_and_exit_3(cli: Cli, tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    bin_file = tmp_path / "hostile.bin"
    torch.save({"a": Runs(os.system, f"touch {canary}")}, bin_file)
    broken = write_checkpoint(tmp_path / "c", shards=2)
    (broken / "model-00002-of-00002.safetensors").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    before = snapshot(tmp_path)
    assert_one_error(cli("inspect", bin_file), 3, "hostile.bin", "posix.system")
    assert_one_error(cli("inspect", broken), 3, "model-00002-of-00002.safetensors")
    assert_one_error(cli("inspect", empty), 3, "not-a-checkpoint", "empty directory")
    assert_one_error(cli("inspect", tmp_path / "nowhere"), 3, "not-found", "nowhere")
    assert snapshot(tmp_path) == before
    assert not canary.exists()


def test_usage_errors_are_exit_2(cli: Cli) -> None:
    assert cli("inspect").code == 2
    assert cli("inspect", "--no-such-option", "x").code == 2
    assert cli("no-such-command").code == 2


@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_missing_beside_the_weights_is_a_finding(
    cli: Cli, tmp_path: Path, as_json: bool
) -> None:
    root = write_checkpoint(tmp_path / "c")
    run = tmp_path / "run"
    run.mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes: dict[str, tuple[int, ...]] = {f"{module}.lora_A.weight": (4, 16)}
    write_adapter(run / "adapter_model.safetensors", shapes, prefix="")
    (root / "config.json").unlink()
    for path, name in ((root, "config.json"), (run, "adapter_config.json")):
        result = cli("inspect", path, *(["--json"] if as_json else []))
        assert (result.code, result.err) == (1, "")
        if as_json:
            said = json.loads(result.out)
            jsonschema.validate(said, SCHEMA)
            assert said["missing"] == [name]
            assert any(f"no {name}" in sentence for sentence in said["disagreements"])
        else:
            assert f"! no {name}" in result.out
    # A lone file needs neither.
    assert cli("inspect", root / "model.safetensors").code == 0
