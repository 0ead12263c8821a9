"""The rules about audio: a sound checkpoint passes, and one change makes it fail with that id."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fixtures.builder import (
    AudioSpec,
    Spec,
    TowerSpec,
    write_audio_encoder,
    write_checkpoint,
    write_tower,
)
from tests.conftest import GOLDEN
from vita_ckpt import explain, inspect, validate

AUDIO = "model.audio_encoder."
ENCODER = f"{AUDIO}encoder."
ADAPTER = f"{AUDIO}adpter."
Change = Callable[[Path], object]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint whose tower and audio encoder lie beside it."""
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    write_audio_encoder(tmp_path / "heard")
    return write_checkpoint(
        tmp_path / "base", Spec(audio=True, config={"mm_audio_encoder": "heard"})
    )


def rules(path: Path) -> list[str]:
    return [found.rule for found in validate(path).findings if found.severity != "note"]


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def edit(root: Path) -> None:
        content = load_file(root / "model.safetensors")
        change(content)
        save_file(content, root / "model.safetensors", {"format": "pt"})

    return edit


def drop(part: str) -> Change:
    def change(content: dict[str, torch.Tensor]) -> None:
        for name in [name for name in content if part in name]:
            del content[name]

    return tensors(change)


def put(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Change:
    return tensors(lambda content: content.update({name: torch.ones(shape, dtype=dtype)}))


def config(**values: Any) -> Change:
    def edit(root: Path) -> None:
        content = json.loads((root / "config.json").read_text()) | values
        (root / "config.json").write_text(json.dumps(content))

    return edit


def yaml(old: str, new: str) -> Change:
    def edit(root: Path) -> None:
        path = root.parent / "heard" / "train.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return edit


def gone(name: str) -> Change:
    return lambda root: (root.parent / "heard" / name).unlink()


def both(*changes: Change) -> Change:
    return lambda root: [change(root) for change in changes]


def test_a_sound_checkpoint_has_no_findings(base: Path) -> None:
    assert rules(base) == []
    shutil.rmtree(base.parent / "heard")
    assert rules(base) == ["tower-path-unreachable"]


@pytest.mark.parametrize("case", ["U1", "U2"])
def test_the_goldens_are_sound(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN / case)
    for name in ("base", "merged_by_upstream", "tower-internvit"):
        assert rules(Path(name)) == []
    (trace,) = (t for t in explain("base").traces if t.loader == "vita-1.5")
    assert trace.outcome == "complete"


CASES: list[tuple[str, Change]] = [
    ("audio-absent", drop(AUDIO)),
    ("audio-not-built", config(mm_audio_encoder=None)),
    ("audio-files-missing", gone("final.pt")),
    ("audio-files-missing", gone("train.yaml")),
    ("audio-files-missing", gone("global_cmvn")),
    ("audio-directory-unreadable", yaml("rate: 4", "rate: 8")),
    ("audio-directory-unreadable", yaml("is_json_cmvn: true", "is_json_cmvn: 1")),
    (
        "audio-directory-unreadable",
        lambda root: (root.parent / "heard" / "global_cmvn").write_text("[ 1 1 2 0 ]"),
    ),
    (
        "audio-directory-unreadable",
        lambda root: (root.parent / "heard" / "global_cmvn").write_text(
            '{"mean_stat": [1.0], "var_stat": [2.0], "frame_num": 1}'
        ),
    ),
    ("audio-directory-mismatch", yaml("num-blocks: 1", "num-blocks: 2")),
    ("audio-directory-mismatch", yaml("rel-enc", "abs-enc")),
    ("audio-dynamic-chunks", yaml("dynamic-chunks: false", "dynamic-chunks: true")),
    ("audio-dynamic-chunks", yaml("      transformer-dynamic-chunks: false\n", "")),
    ("unknown-audio-encoder", both(drop("pos_bias"), config(mm_audio_encoder="org/x"))),
    ("audio-cmvn-missing", drop("global_cmvn.istd")),
    (
        "audio-adapter-width",
        both(
            yaml("dim: 16", "dim: 12"),
            put(f"{ADAPTER}project.bias", 12),
            put(f"{ADAPTER}project.weight", 12, 16),
        ),
    ),
    ("missing-tensor", drop("linear_pos")),
    ("missing-tensor", drop(f"{ADAPTER}project.bias")),
    ("unexpected-tensor", put(f"{ENCODER}enc.1.extra", 2)),
    ("unexpected-tensor", put(f"{AUDIO}prompt_embeddings.weight", 2, 16)),
    ("shape-mismatch", put(f"{ENCODER}enc.1.after_norm.bias", 9)),
    ("empty-tensor", put(f"{ENCODER}enc.1.after_norm.bias", 0)),
    ("mixed-dtypes", put(f"{ENCODER}enc.1.after_norm.bias", 8, dtype=torch.bfloat16)),
    ("config-type", config(audio_prompt_finetune=True, audio_prompt_num=0)),
    ("config-type", config(freeze_audio_encoder="yes")),
]


@pytest.mark.parametrize(
    ("rule", "change"), CASES, ids=[f"{n}-{r}" for n, (r, _) in enumerate(CASES)]
)
def test_each_rule(base: Path, rule: str, change: Change) -> None:
    change(base)
    assert rule in rules(base)


def test_the_counter_of_a_batch_norm_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream tolerates that alone; running statistics it needs."""
    shutil.copytree(GOLDEN / "U2", tmp_path / "U2")
    monkeypatch.chdir(tmp_path / "U2")
    shards = sorted(Path("base").glob("*.safetensors"))
    (shard,) = [s for s in shards if f"{ADAPTER}bn2.running_mean" in load_file(s)]
    index = Path("base/model.safetensors.index.json")

    def without(name: str) -> None:
        content = load_file(shard)
        del content[name]
        save_file(content, shard, {"format": "pt"})
        kept = json.loads(index.read_text())
        del kept["weight_map"][name]
        index.write_text(json.dumps(kept))

    without(f"{ADAPTER}bn2.num_batches_tracked")
    assert set(rules(Path("base"))) <= {"index-total-size"}
    without(f"{ADAPTER}bn2.running_mean")
    assert "audio-statistics-missing" in rules(Path("base"))
    without(f"{ADAPTER}bn2.running_var")
    assert rules(Path("base")).count("audio-statistics-missing") == 2


def test_cmvn_may_have_a_dtype_of_its_own(base: Path) -> None:
    put(f"{ENCODER}global_cmvn.mean", 8, dtype=torch.bfloat16)(base)
    assert rules(base) == []


def test_a_trained_prompt(base: Path) -> None:
    put(f"{AUDIO}prompt_embeddings.weight", 3, 16)(base)
    assert "config-weights-mismatch" in rules(base)
    config(audio_prompt_finetune=True, audio_prompt_num=3)(base)
    assert rules(base) == []
    summary = inspect(base).audio
    assert summary is not None
    assert summary.prompt == 3


def test_inspect_shows_encoder_and_adapter(base: Path) -> None:
    summary, directory = inspect(base).audio, inspect(base).audio_directory
    assert summary is not None
    assert directory is not None
    assert (summary.blocks, summary.width, summary.heads, summary.mel_bins) == (1, 8, 2, 8)
    assert (summary.positions, summary.chunk, summary.left_chunks) == ("rel-enc", 4, 2)
    assert (summary.adapter, summary.adapter_out_width) == ("subsampling", 16)
    assert summary.adapter_activation == "gelu"
    shutil.rmtree(base.parent / "heard")
    told = inspect(base).audio  # by the tensors alone
    assert told is not None
    assert (told.blocks, told.width, told.heads, told.chunk) == (1, 8, 2, None)
    write_audio_encoder(base.parent / "heard", AudioSpec(hidden=12, units=20))
    sentences = " ".join(inspect(base).disagreements)
    assert "describes 1 blocks" in sentences


def test_without_a_config_nothing_is_said_of_its_keys() -> None:
    """A training state, and the file that becomes of it, have none."""
    rules = {finding.rule for finding in validate(GOLDEN / "T12" / "run").findings}
    assert "audio-not-built" not in rules
