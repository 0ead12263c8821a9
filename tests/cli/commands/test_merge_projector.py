"""``vita-ckpt merge-projector`` as a person types it."""

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
    read_tensors,
    snapshot,
    write_adapter,
    write_checkpoint,
)
from tests.conftest import GOLDEN, Cli, assert_one_error

SCHEMA = json.loads((files("vita_ckpt") / "schemas" / "summary-v1.json").read_text())
SPEC = Spec()
MLP = mm_projector("mlp2x_gelu", SPEC.mm_hidden, SPEC.hidden)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter.safetensors", MLP, seed=9)


def test_merge_says_what_it_did(cli: Cli, base: Path, adapter: Path, tmp_path: Path) -> None:
    result = cli("merge-projector", "--base", base, "--adapter", adapter, "--out", tmp_path / "out")
    assert result.code == 0
    assert result.err == "projector: mlp2x_gelu 32→16\n"
    assert "BF16 [16, 32] → BF16" not in result.out
    assert "model.mm_projector.0.weight  replaced" in result.out
    assert f"wrote {tmp_path / 'out'}" in result.out
    assert {n for n, t in read_tensors(tmp_path / "out").items() if t[0] == "BF16"} == set(
        read_tensors(base)
    )


def test_dry_run_writes_nothing(cli: Cli, base: Path, adapter: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    for arguments in ([], ["--out", tmp_path / "out"], ["--json"]):
        result = cli(
            "merge-projector", "--base", base, "--adapter", adapter, "--dry-run", *arguments
        )
        assert result.code == 0
        if "--json" not in arguments:
            assert "would write" in result.out
            assert "rewritten: model-0000" in result.out
            assert "carried: " in result.out
    assert snapshot(tmp_path) == before


def test_dry_run_finds_what_the_run_would(cli: Cli, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", dtype="F16")
    torch.save(
        {f"mm_projector.{n}": torch.full(s, 1e6) for n, s in MLP.items()}, tmp_path / "a.bin"
    )
    for arguments in (
        ["--dry-run"],
        ["--plan-out", tmp_path / "plan.json"],
        ["--out", tmp_path / "out"],
    ):
        result = cli(
            "-q", "merge-projector", "--base", base, "--adapter", tmp_path / "a.bin", *arguments
        )
        assert_one_error(result, 3, "cast-overflow", "a.bin", "mm_projector.0.")
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "base"]


def test_json_summary_keeps_its_schema(cli: Cli, base: Path, adapter: Path, tmp_path: Path) -> None:
    other = write_adapter(
        tmp_path / "linear.safetensors", mm_projector("linear", SPEC.mm_hidden, SPEC.hidden)
    )
    (base / "old.safetensors").touch()
    for file, out in ((adapter, tmp_path / "out"), (other, None)):
        arguments = ["--dry-run"] if out is None else ["--out", out]
        result = cli("merge-projector", "--base", base, "--adapter", file, "--json", *arguments)
        summary = json.loads(result.out)
        jsonschema.validate(summary, SCHEMA)
        assert summary["out"] == (str(out) if out else None)
        assert summary["left_out"][0]["name"] == "old.safetensors"
    assert {c["change"] for c in summary["tensors"]} == {"added", "removed"}
    assert [c["key"] for c in summary["config"]] == ["mm_projector_type"]
    result = cli("extract-projector", "--from", base, "--json", "--out", tmp_path / "p.bin")
    jsonschema.validate(json.loads(result.out), SCHEMA)


def test_ambiguous_keys_name_their_file(cli: Cli, base: Path, tmp_path: Path) -> None:
    torch.save({"model.mm_projector_old.0.weight": torch.zeros(2)}, tmp_path / "a.bin")
    result = cli("merge-projector", "--base", base, "--adapter", tmp_path / "a.bin", "--dry-run")
    assert_one_error(result, 3, "ambiguous-key", "a.bin: model.mm_projector_old.0.weight")
    prefix = "base_model.model.model.mm_projector."
    torch.save({f"{prefix}{n}": torch.zeros(0) for n in MLP}, tmp_path / "b.bin")
    result = cli("merge-projector", "--base", base, "--adapter", tmp_path / "b.bin", "--dry-run")
    assert_one_error(result, 3, "empty-tensor", f"b.bin: {prefix}")


def test_wrong_calls_are_one_line(cli: Cli, base: Path, adapter: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    merge = ["-q", "merge-projector", "--base", base, "--adapter", adapter]
    out = ["--out", tmp_path / "out"]
    for arguments, code, words in (
        (merge, 2, ["no-output", "--dry-run"]),
        ([*merge, "--out", base], 2, ["output-overlaps-input"]),
        ([*merge, "--out", tmp_path / "x" / "y"], 2, ["no-output-directory"]),
        ([*merge, *out, "--dtype", "int4"], 2, ["unknown-dtype", "int4", "bf16"]),
        ([*merge, *out, "--with", "nothing"], 2, ["extra-not-found", "nothing"]),
        (
            ["-q", "merge-projector", "--base", adapter, "--adapter", base, *out],
            2,
            ["base-and-adapter-swapped", "--base"],
        ),
        (
            [
                "-q",
                "merge-projector",
                "--base",
                base,
                "--adapter",
                GOLDEN / "A1" / "tower-internvit",
                *out,
            ],
            3,
            ["adapter-no-projector", "tower-internvit", "embeddings"],
        ),
        (
            [
                "-q",
                "merge-projector",
                "--base",
                base,
                "--adapter",
                GOLDEN / "A8" / "new_projector",
                *out,
            ],
            3,
            ["projector-width-mismatch", "96→64"],
        ),
        (
            ["-q", "extract-projector", "--from", base, "--out", tmp_path / "p.pt"],
            2,
            ["wrong-output-kind", ".bin"],
        ),
        (
            ["-q", "extract-projector", "--from", base, "--out", base / "p.bin"],
            2,
            ["output-overlaps-input"],
        ),
    ):
        assert_one_error(cli(*arguments), code, *words)
    assert cli("merge-projector", "--base", base).code == 2
    assert snapshot(tmp_path) == before


def test_lora_notes_are_said(cli: Cli, base: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora"
    lora.mkdir()
    prefix = "base_model.model.model."
    torch.save(
        {f"{prefix}layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 2)},
        lora / "adapter_model.bin",
    )
    torch.save(
        {f"{prefix}mm_projector.{n}": torch.full(s, 0.5) for n, s in MLP.items()},
        lora / "non_lora_trainables.bin",
    )
    result = cli("merge-projector", "--base", base, "--adapter", lora, "--dry-run")
    assert "the 1 LoRA deltas are not merged" in result.err


def test_values_that_became_zero_are_said_without_an_option_of_another_command(
    cli: Cli, base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "small.bin"
    torch.save({f"mm_projector.{n}": torch.full(s, 1e-9) for n, s in MLP.items()}, file)
    given = ("--base", base, "--adapter", file, "--dtype", "f16")
    merged = cli("merge-projector", *given, "--out", tmp_path / "out")
    assert "are zero now" in merged.err
    assert "--keep" not in merged.err
