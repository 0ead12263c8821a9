"""extract-projector, merge-projector and apply as a person types them."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
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
from vita_ckpt import apply, plan_merge_projector

SCHEMA = json.loads((files("vita_ckpt") / "schemas" / "summary-v1.json").read_text())
SPEC = Spec()
MLP = mm_projector("mlp2x_gelu", SPEC.mm_hidden, SPEC.hidden)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", dtype="BF16", shards=3)


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


def test_a_saved_plan_runs_later(cli: Cli, base: Path, adapter: Path, tmp_path: Path) -> None:
    merge = ["merge-projector", "--base", base, "--adapter", adapter]
    plan = tmp_path / "plan.json"
    assert cli(*merge, "--plan-out", plan).code == 0
    assert not (tmp_path / "out").exists()
    assert cli("apply", plan, "--out", tmp_path / "out").code == 0
    assert cli(*merge, "--out", tmp_path / "direct").code == 0
    assert read_tensors(tmp_path / "out") == read_tensors(tmp_path / "direct")
    assert_one_error(cli("-q", *merge, "--plan-out", plan), 2, "output-exists", "plan.json")
    os.utime(adapter, ns=(1, 1))
    result = cli("apply", plan, "--out", tmp_path / "late")
    assert_one_error(result, 3, "input-changed", "adapter.safetensors")
    assert not (tmp_path / "late").exists()


def test_a_saved_extraction(cli: Cli, base: Path, tmp_path: Path) -> None:
    assert cli("extract-projector", "--from", base, "--plan-out", tmp_path / "plan.json").code == 0
    assert cli("apply", tmp_path / "plan.json", "--out", tmp_path / "p.safetensors").code == 0
    assert len(read_tensors(tmp_path / "p.safetensors")) == 4


def test_a_plan_never_lands_in_its_own_inputs(
    cli: Cli, base: Path, adapter: Path, tmp_path: Path
) -> None:
    merge = ["merge-projector", "--base", base, "--adapter", adapter]
    before = snapshot(tmp_path)
    result = cli(*merge, "--plan-out", base / "plan.json")
    assert_one_error(result, 2, "output-overlaps-input")
    (tmp_path / "out").mkdir()
    result = cli(*merge, "--plan-out", tmp_path / "plan.json", "--out", tmp_path / "out")
    assert_one_error(result, 2, "output-exists")
    assert snapshot(tmp_path) == before


def test_a_plan_can_be_looked_at(cli: Cli, base: Path, adapter: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    cli("merge-projector", "--base", base, "--adapter", adapter, "--plan-out", plan)
    result = cli("apply", plan, "--dry-run")
    assert result.code == 0
    assert "would write" in result.out
    assert_one_error(cli("apply", plan), 2, "no-output")


def test_a_plan_whose_base_is_a_lone_file(
    cli: Cli, base: Path, adapter: Path, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    cli("merge-projector", "--base", base, "--adapter", adapter, "--plan-out", path)
    plan = json.loads(path.read_text())
    plan["inputs"] = plan["inputs"][1:]
    plan["edits"] = []
    plan["record"]["roles"] = []
    path.write_text(json.dumps(plan))
    assert_one_error(cli("apply", path, "--out", tmp_path / "out"), 3, "invalid-plan")
    plan["edits"] = [{"edit": "set-config", "key": "\ud800", "value": 1, "reason": ""}]
    path.write_text(json.dumps(plan))
    assert_one_error(cli("apply", path, "--out", tmp_path / "out"), 3, "invalid-plan")


def test_names_of_files_that_are_no_text(cli: Cli, base: Path, tmp_path: Path) -> None:
    out = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.bin")
    assert cli("extract-projector", "--from", base, "--out", out).code == 0
    assert len(torch.load(out, weights_only=True)) == 4


def test_ambiguous_keys_name_their_file(cli: Cli, base: Path, tmp_path: Path) -> None:
    torch.save({"model.mm_projector_old.0.weight": torch.zeros(2)}, tmp_path / "a.bin")
    result = cli("merge-projector", "--base", base, "--adapter", tmp_path / "a.bin", "--dry-run")
    assert_one_error(result, 3, "ambiguous-key", "a.bin: model.mm_projector_old.0.weight")
    prefix = "base_model.model.model.mm_projector."
    torch.save({f"{prefix}{n}": torch.zeros(0) for n in MLP}, tmp_path / "b.bin")
    result = cli("merge-projector", "--base", base, "--adapter", tmp_path / "b.bin", "--dry-run")
    assert_one_error(result, 3, "empty-tensor", f"b.bin: {prefix}")


def test_usage_errors_are_one_line_too(cli: Cli, base: Path) -> None:
    assert_one_error(cli("merge-projector", "--base", base), 2, "usage", "--adapter", "--help")
    assert_one_error(cli("nonsense"), 2, "usage", "nonsense")


def test_a_full_stdout_is_no_bug_of_ours(base: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from vita_ckpt.cli.main import main; main()",
                "inspect",
                str(base),
            ],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr == "error: system: no space left on device\n"


@pytest.mark.parametrize("streams", [">&-", "2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_streams_that_lead_nowhere(base: Path, adapter: Path, tmp_path: Path, streams: str) -> None:
    """What is done is done all the same, and what fails is not taken for findings."""
    line = [sys.executable, "-c", "from vita_ckpt.cli.main import main; main()"]

    def run(*arguments: object) -> tuple[int, str]:
        words = shlex.join([*line, *map(str, arguments)])
        done = subprocess.run(
            ["sh", "-c", f"{words} {streams}"], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    out = tmp_path / "out"
    merge = ["merge-projector", "--base", base, "--adapter", adapter, "--out", out]
    code, said = run(*merge)
    assert (code, "error" in said) == (0, False)
    apply(plan_merge_projector(base, adapter), tmp_path / "same")
    weights = {name: read_tensors(tmp_path / name) for name in ("out", "same")}
    assert weights["out"] == weights["same"]
    code, said = run(*merge)
    assert (code, said.count("\n")) == (2, 1 if streams == ">&-" else 0)
    assert run("inspect", tmp_path / "nowhere")[0] == 3


PROGRESS = """
import sys
from vita_ckpt.cli import render
render._LONG_ENOUGH = 0
from vita_ckpt.cli.main import main
main()
"""


def test_a_bar_on_a_terminal(base: Path, adapter: Path, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    arguments = ["merge-projector", "--base", base, "--adapter", adapter, "--out", tmp_path / "out"]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRESS, *map(str, arguments)], stdout=subprocess.PIPE, stderr=slave
    ) as process:
        process.communicate()
    os.close(slave)
    shown = os.read(master, 100_000).decode()
    os.close(master)
    assert process.returncode == 0
    assert "writing" in shown
    assert "100%" in shown


def test_a_plan_that_is_none(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for text in ("{}", "[]", "no", '{"format": "vita-ckpt-plan", "version": 1, "inputs": []}'):
        path.write_text(text)
        done = cli("apply", path, "--out", tmp_path / "out")
        assert_one_error(done, 3, "plan.json")
        assert "None" not in done.err
    assert_one_error(cli("apply", tmp_path / "nowhere", "--out", tmp_path / "out"), 3, "nowhere")


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
            3,
            ["not-a-vita-checkpoint"],
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


def test_quiet_and_debug(cli: Cli, base: Path, adapter: Path, tmp_path: Path) -> None:
    result = cli(
        "--quiet",
        "merge-projector",
        "--base",
        base,
        "--adapter",
        adapter,
        "--out",
        tmp_path / "out",
    )
    assert (result.code, result.err) == (0, "")
    debugged = cli("--debug", "inspect", tmp_path / "nowhere")
    assert debugged.code == 3
    assert "Traceback" in debugged.err
    assert debugged.err.splitlines()[-1].startswith("error: not-found: ")


def test_lora_notes_are_said(cli: Cli, base: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora"
    lora.mkdir()
    prefix = "base_model.model.model."
    torch.save(
        {f"{prefix}layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 2)},
        lora / "adapter_model.bin",
    )
    torch.save(
        {f"{prefix}mm_projector.{n}": torch.zeros(s) for n, s in MLP.items()},
        lora / "non_lora_trainables.bin",
    )
    result = cli("merge-projector", "--base", base, "--adapter", lora, "--dry-run")
    assert "the 1 LoRA deltas are not merged" in result.err


def test_root_options(cli: Cli) -> None:
    from vita_ckpt import __version__

    assert cli("--version").out == f"vita-ckpt, version {__version__}\n"
    for shell in ("bash", "zsh", "fish"):
        assert "_VITA_CKPT_COMPLETE" in cli("--completion", shell).out
    for arguments in (
        ["--help"],
        ["-h"],
        ["inspect", "--help"],
        ["merge-projector", "-h"],
        ["extract-projector", "-h"],
        ["apply", "-h"],
    ):
        assert cli(*arguments).out.startswith("Usage: vita-ckpt")
    assert "merge-projector" in cli().err + cli().out
