"""Every rule: a small valid checkpoint passes, and one change makes it fail with that id."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from fixtures.builder import (
    Spec,
    TowerSpec,
    checkpoint_shapes,
    mm_projector,
    snapshot,
    write_adapter,
    write_checkpoint,
    write_tower,
)
from tests.conftest import BASES, GOLDEN
from vita_ckpt import InputError, UsageError, apply, explain, plan_swap_tower
from vita_ckpt.api.validate import KINDS, holds_checkpoints, validate
from vita_ckpt.api.validate_many import validate_all
from vita_ckpt.checks.rules import GROUPS, RULES
from vita_ckpt.core.report import Report, condensed
from vita_ckpt.storage.system.processes import Worker

Change = Callable[[Path], object]


def rules(path: Path | str, **options: Any) -> list[str]:
    """The rules that a path violates, notes left out; every finding is well-formed."""
    report = validate(path, **options)
    for one in report.findings:
        assert one.severity == RULES[one.rule].severity, one
        assert one.subject
        assert one.message
        assert "\n" not in one.message
        assert not one.file or os.path.isabs(one.file), one
    return [one.rule for one in report.findings if one.severity != "note"]


def edit_json(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def config(**values: Any) -> Change:
    return lambda root: edit_json(root / "config.json", **values)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Change the tensors of a single-file checkpoint."""

    def apply_to(root: Path) -> None:
        file = root / "model.safetensors"
        content = load_file(file)
        change(content)
        save_file({n: t.contiguous() for n, t in content.items()}, file, {"format": "pt"})

    return apply_to


def drop(*parts: str) -> Change:
    def change(content: dict[str, torch.Tensor]) -> None:
        for name in [n for n in content if any(part in n for part in parts)]:
            del content[name]

    return tensors(change)


def put(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Change:
    return tensors(lambda content: content.update({name: torch.ones(shape, dtype=dtype)}))


def rename(old: str, new: str) -> Change:
    def change(content: dict[str, torch.Tensor]) -> None:
        for name in [n for n in content if n.startswith(old)]:
            content[new + name.removeprefix(old)] = content.pop(name)

    return tensors(change)


def write(name: str, data: bytes | str) -> Change:
    def change(root: Path) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())

    return change


def both(*changes: Change) -> Change:
    def change(root: Path) -> None:
        for one in changes:
            one(root)

    return change


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    return write_tower(tmp_path / "tower-internvit", TowerSpec())


@pytest.fixture
def base(tmp_path: Path, tower: Path) -> Path:
    return write_checkpoint(tmp_path / "base")


@pytest.fixture
def sharded(tmp_path: Path, tower: Path) -> Path:
    return write_checkpoint(tmp_path / "sharded", shards=3)


def test_a_valid_checkpoint_has_no_findings(base: Path, sharded: Path) -> None:
    before = snapshot(base)
    assert validate(base) == Report(str(base), "vita-checkpoint", ())
    assert validate(sharded).findings == ()
    assert validate(base, values=True).findings == ()
    assert snapshot(base) == before


@pytest.mark.parametrize("case", BASES)
def test_the_goldens_are_valid(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN / case)
    for path in Path().iterdir():
        if path.is_dir() and path.name != "tower":
            assert rules(path, values=True) == [], path


@pytest.mark.parametrize(
    "spec",
    [
        Spec(model_type="vita-fo-Qwen2"),
        Spec(model_type="vita-mixtral", experts=3),
        Spec(model_type="vita-Mistral"),
        Spec(tied=True),
        Spec(audio=True),
        *(Spec(projector=kind) for kind in ("linear", "sppv1", "ldp", "vanilla", "minigpt")),
        *(Spec(tower=TowerSpec(family)) for family in ("siglip", "clip", "eva")),
        Spec(tower=TowerSpec("siglip"), s2_scales="8,16"),
    ],
    ids=lambda spec: f"{spec.model_type}-{spec.projector}-{spec.tower.family}",
)
def test_other_shapes_of_checkpoints_are_valid(tmp_path: Path, spec: Spec) -> None:
    found = rules(write_checkpoint(tmp_path / "c", spec))
    assert set(found) == {"tower-path-unreachable"}


def index_entry(name: str, shard: str) -> Change:
    def change(root: Path) -> None:
        path = root / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"][name] = shard
        path.write_text(json.dumps(index))

    return change


LAST = "model-00003-of-00003.safetensors"


def cut(name: str, keep: float) -> Change:
    def change(root: Path) -> None:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: int(len(data) * keep)])

    return change


def copy(name: str, target: str) -> Change:
    return lambda root: (root / target).write_bytes((root / name).read_bytes())


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/vita-ckpt-was-executed",)


SHARDED: list[tuple[str, Change]] = [
    ("missing-shard", lambda root: (root / LAST).unlink()),
    ("truncated-file", cut(LAST, 0.5)),
    ("header-too-small", write(LAST, b"")),
    ("header-too-large", write(LAST, b"\xff" * 64)),
    ("invalid-header-json", write(LAST, struct.pack("<Q", 4) + b"{xx}")),
    ("git-lfs-pointer", write(LAST, "version https://git-lfs.github.com/spec/v1\noid x\n")),
    ("index-mismatch", index_entry("model.nothing.weight", LAST)),
    (
        "duplicate-tensor",
        both(
            lambda root: _append(root / LAST, "model.norm.weight2", root),
        ),
    ),
    (
        "index-total-size",
        lambda root: edit_json(root / "model.safetensors.index.json", metadata={"total_size": 12}),
    ),
    ("ambiguous-weights", copy(LAST, "model.safetensors")),
    ("stale-weights", copy(LAST, "old-model.safetensors")),
    ("stale-weights", both(copy(LAST, "old.safetensors"), config(unfreeze_vision_tower=True))),
    ("stale-weights", both(write("old.safetensors", b"x"), config(unfreeze_vision_tower=True))),
    ("other-weights", write("pytorch_model.bin", b"stale")),
    ("path-outside-checkpoint", index_entry("model.x", "../outside.safetensors")),
    ("path-outside-checkpoint", index_entry("model.x", "/etc/passwd")),
    ("invalid-index", write("model.safetensors.index.json", '{"weight_map": {}}')),
    ("invalid-json", write("model.safetensors.index.json", "{")),
    ("partial-download", write("model-00003-of-00003.safetensors.incomplete", b"x")),
    (
        "partial-download",
        write(".cache/huggingface/download/model.safetensors.abc.incomplete", b"x"),
    ),
    (
        "no-index-metadata",
        lambda root: edit_json(root / "model.safetensors.index.json", metadata=...),
    ),
    ("no-format-metadata", lambda root: save_file(load_file(root / LAST), root / LAST)),
    ("unsafe-pickle", write("evil.bin", pickle.dumps(Evil(), protocol=2))),
    ("pickle-runs-code", write("vocab.pkl", pickle.dumps(Evil()))),
    ("pickle-runs-code", write("sub/rng_state_0.pth", pickle.dumps(Evil()))),
    ("pickle-runs-code", write("checkpoint-5/optimizer.pt", pickle.dumps(Evil()))),
    ("pickle-runs-code", write("checkpoint-5/global_step5/x.pt", pickle.dumps(Evil()))),
    ("pickle-runs-code", write("tokenizer.model", pickle.dumps(Evil()))),
    ("pickle-runs-code", write("scheduler.pt", pickle.dumps(Evil(), protocol=0))),
    (
        "duplicate-key",
        lambda root: (root / "model.safetensors.index.json").write_text(
            (root / "model.safetensors.index.json")
            .read_text()
            .replace('"weight_map": {', '"weight_map": {"lm_head.weight": "x.safetensors", ')
        ),
    ),
    ("ambiguous-weights", lambda root: _pickled(root, 1.0)),
    ("ambiguous-weights", lambda root: _pickled(root, 0.0, extra=torch.ones(2))),
    ("pickle-unknown-global", write("data.pickle", b"cmine\nThing\n)R.")),
    ("pickle-not-read", write("x.joblib", b"\x04\x22\x4d\x18 packed by lz4")),
]


def _pickled(root: Path, added: float, **more: torch.Tensor) -> None:
    """Put the whole model beside its shards as a .bin, its norm changed by a number."""
    whole = {n: t for file in root.glob("*.safetensors") for n, t in load_file(file).items()}
    whole["model.norm.weight"] += added
    torch.save({**whole, **more}, root / "pytorch_model.bin")


def test_the_same_weights_pickled_are_no_error(sharded: Path) -> None:
    _pickled(sharded, 0.0)
    assert rules(sharded) == ["other-weights"]


def _append(path: Path, _name: str, root: Path) -> None:
    """Put a tensor of the first shard into the last one too."""
    first = load_file(root / "model-00001-of-00003.safetensors")
    name = next(iter(first))
    save_file({**load_file(path), name: first[name]}, path)


@pytest.mark.parametrize(("rule", "change"), SHARDED, ids=[rule for rule, _ in SHARDED])
def test_files(sharded: Path, rule: str, change: Change) -> None:
    change(sharded)
    before = snapshot(sharded)
    assert rule in rules(sharded)
    assert snapshot(sharded) == before
    assert not Path("/tmp/vita-ckpt-was-executed").exists()


def test_a_missing_shard_is_said_once(sharded: Path) -> None:
    """Its tensors are not missing too."""
    (sharded / LAST).unlink()
    assert rules(sharded) == ["missing-shard"]


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("truncated-file", cut("shard", 0.5)),
        ("missing-shard", lambda root: (root / "shard").unlink()),
    ],
)
def test_a_broken_shard_is_said_once(sharded: Path, number: int, rule: str, change: Change) -> None:
    """It is no left-over to be removed, and the config is not wrong about what was not read."""
    name = f"model-{number:05}-of-00003.safetensors"
    (sharded / name).rename(sharded / "shard")
    change(sharded)
    if (sharded / "shard").exists():
        (sharded / "shard").rename(sharded / name)
    assert rules(sharded) == [rule]


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("invalid-json", write("model.safetensors.index.json", "{")),
        ("missing-index", lambda root: (root / "model.safetensors.index.json").unlink()),
    ],
)
def test_without_an_index_no_shard_is_a_left_over(sharded: Path, rule: str, change: Change) -> None:
    change(sharded)
    assert rules(sharded) == [rule]


def test_a_broken_file_of_weights_is_said_once(base: Path) -> None:
    cut("model.safetensors", 0.5)(base)
    assert rules(base) == ["truncated-file"]


def test_training_state_is_a_note(base: Path) -> None:
    (base / "training_args.bin").write_bytes(pickle.dumps({"lr": 1}))
    report = validate(base)
    assert [(one.rule, one.severity) for one in report.findings] == [("training-state", "note")]


def test_a_pickle_of_a_trainer_is_a_note_and_one_that_runs_code_an_error(base: Path) -> None:
    torch.save(argparse.Namespace(lr=1), base / "training_args.bin")
    torch.save({"a": torch.ones(2)}, base / "optimizer.pt")
    assert {one.severity for one in validate(base).findings} == {"note"}
    (base / "vocab.pkl").write_bytes(pickle.dumps(Evil()))
    first = validate(base).findings[0]
    assert (first.rule, first.severity, first.subject) == (
        *("pickle-runs-code", "error", "vocab.pkl"),
    )
    assert "posix.system" in first.message
    assert not Path("/tmp/vita-ckpt-was-executed").exists()


# Older versions of the library write no complex numbers.
RECENT = tuple(map(int, safetensors.__version__.split(".")[:2])) >= (0, 8)
COMPLEX = torch.complex64 if RECENT else torch.int64
TOWER = "model.vision_tower.vision_tower."
NAMES: list[tuple[str, Change]] = [
    ("missing-tensor", drop("layers.1.mlp.up_proj")),
    ("missing-tensor", drop(f"{TOWER}encoder.layers.1.ls2")),
    ("missing-tensor", drop("mm_projector.2.bias")),
    ("unexpected-tensor", put("model.extra.weight", 2, 2)),
    ("unexpected-tensor", put("model.layers.7.mlp.up_proj.weight", 2, 2)),
    ("unexpected-tensor", put(f"{TOWER}encoder.layers.0.extra", 2)),
    ("unexpected-tensor", put("predictor_head.weight", 3, 16)),
    ("shape-mismatch", put("model.layers.1.mlp.up_proj.weight", 3, 16)),
    ("shape-mismatch", put(f"{TOWER}encoder.layers.1.ls2", 3)),
    ("projector-dtype", put("model.mm_projector.0.bias", 16, dtype=COMPLEX)),
    ("projector-dtype", put("model.mm_projector.0.bias", 16, dtype=torch.int32)),
    ("integer-tensor", put("model.norm.weight", 16, dtype=torch.int32)),
    ("empty-tensor", put("model.mm_projector.0.weight", 0)),
    ("foreign-prefix", rename("", "module.")),
    ("foreign-prefix", rename("", "base_model.model.")),
    ("two-names", put("module.model.norm.weight", 16)),
    ("tied-lm-head", config(tie_word_embeddings=True)),
    ("lm-head-absent", drop("lm_head")),
    ("mixed-dtypes", put("model.norm.weight", 16, dtype=torch.bfloat16)),
    ("tower-absent", drop("vision_tower")),
    ("audio-absent", config(mm_audio_encoder="audio")),
    ("audio-not-built", put("model.audio_encoder.adpter.project.weight", 16, 8)),
    ("projector-absent", drop("mm_projector")),
    (
        "unknown-tower",
        both(
            config(mm_vision_tower="elsewhere/InternViT-300M"),
            drop(f"{TOWER}embeddings.patch_embedding"),
        ),
    ),
    (
        "unknown-projector",
        both(config(mm_projector_type="???"), put("model.mm_projector.9.weight", 2, 2)),
    ),
]


@pytest.mark.parametrize(("rule", "change"), NAMES, ids=[rule for rule, _ in NAMES])
def test_names_and_shapes(base: Path, rule: str, change: Change) -> None:
    change(base)
    assert rule in rules(base)


def test_many_misfits_are_counted(base: Path) -> None:
    drop("model.layers.")(base)
    put("model.layers.0.input_layernorm.weight", 16)(base)
    report = validate(base)
    found = [one for one in report.findings if one.rule == "missing-tensor"]
    assert len(found) == 23
    (said,) = [one for one in condensed(report.findings) if one.rule == "missing-tensor"]
    assert "23 tensors of the language model" in said.message


CONFIG: list[tuple[str, Change]] = [
    ("config-missing", lambda root: (root / "config.json").unlink()),
    ("invalid-json", write("config.json", "{")),
    ("unknown-model-type", config(model_type="llava")),
    ("architecture-mismatch", config(architectures=["LlavaForCausalLM"])),
    ("architecture-mismatch", config(architectures=["VITAMixtralForCausalLM"])),
    ("architecture-missing", config(architectures=None)),
    ("unknown-projector-type", config(mm_projector_type="mlp")),
    ("unknown-projector-type", config(mm_projector_type=None)),
    ("unknown-projector-type", config(mm_projector_type="spp")),
    ("config-type", config(use_s2="false")),
    ("config-type", config(mm_hidden_size="32")),
    ("config-type", config(mm_hidden_size=[32])),
    ("config-type", config(intermediate_size=-4)),
    ("config-type", config(unfreeze_vision_tower="false")),
    ("config-type-unread", config(mm_projector_lr="2e-5")),
    ("config-weights-mismatch", config(mm_projector_type="linear")),
    ("config-weights-mismatch", config(num_hidden_layers=3)),
    ("config-weights-mismatch", config(vocab_size=31)),
    ("config-weights-mismatch", config(hidden_size=8)),
    ("config-weights-mismatch", config(mm_vision_tower=None)),
    ("config-stale", config(torch_dtype="float16")),
    ("hidden-size-mismatch", config(mm_hidden_size=8)),
    ("hidden-size-mismatch", config(mm_hidden_size=...)),
    ("s2-needs-siglip", config(use_s2=True)),
    ("tower-path-misleads", config(mm_vision_tower="/data/design/InternViT-300M")),
    ("tower-path-misleads", config(mm_vision_tower="/data/evaluation/clip")),
    ("tower-path-misleads", config(mm_vision_tower="/data/vit")),
    ("tower-path-absolute", config(mm_vision_tower="/models/InternViT-300M")),
    ("tower-path-unreachable", config(mm_vision_tower="models/InternViT-300M")),
    ("tower-path-unreachable", config(mm_audio_encoder="audio")),
    ("tower-path-absolute", config(mm_audio_encoder="/models/audio")),
    ("invalid-provenance", write("vita_ckpt.json", '{"needs_alignment": "yes"}')),
    ("invalid-json", write("vita_ckpt.json", "[]")),
    ("invalid-json", write("../tower-internvit/preprocessor_config.json", "nothing")),
    (
        "processor-size-mismatch",
        write("../tower-internvit/preprocessor_config.json", '{"size": 16}'),
    ),
    (
        "processor-size-mismatch",
        write(
            "../tower-internvit/preprocessor_config.json",
            '{"crop_size": {"height": 16, "width": 16}}',
        ),
    ),
    (
        "fewer-embeddings-than-tokens",
        write(
            "tokenizer.json",
            json.dumps({"model": {"vocab": {f"t{n}": n for n in range(33)}}, "added_tokens": []}),
        ),
    ),
    (
        "fewer-embeddings-than-tokens",
        both(
            lambda root: (root / "tokenizer.json").unlink(),
            write("vocab.json", json.dumps({f"t{n}": n for n in range(30)})),
            write("added_tokens.json", json.dumps({f"<{n}>": 30 + n for n in range(3)})),
        ),
    ),
    (
        "tower-directory-mismatch",
        lambda root: edit_json(
            root.parent / "tower-internvit" / "config.json", num_hidden_layers=5
        ),
    ),
    (
        "tower-directory-unreadable",
        lambda root: (root.parent / "tower-internvit" / "config.json").write_text("{"),
    ),
]


@pytest.mark.parametrize(("rule", "change"), CONFIG, ids=[rule for rule, _ in CONFIG])
def test_config(base: Path, rule: str, change: Change) -> None:
    change(base)
    assert rule in rules(base)


@pytest.mark.parametrize(
    "change",
    [
        config(mm_vision_tower="InternViT-300M", mm_projector_lr=2e-5, extra={"a": 1}),
        write("../tower-internvit/preprocessor_config.json", '{"size": 8, "crop_size": 8}'),
        write("../tower-internvit/preprocessor_config.json", '{"size": {"shortest_edge": 8}}'),
        write("tokenizer.json", json.dumps({"model": {"vocab": {"a": 0}}})),
        write("tokenizer.json", json.dumps({"model": {"vocab": [["a", -1.0], [["b"], 0], [{}]]}})),
        write("README.md", "hello"),
        put("model.layers.0.self_attn.rotary_emb.inv_freq", 2),
        config(tie_word_embeddings=...),
    ],
)
def test_what_is_odd_but_legal(base: Path, change: Change) -> None:
    change(base)
    assert set(rules(base)) <= {"tower-path-unreachable"}


def test_widths_that_no_model_has(tmp_path: Path) -> None:
    """Four times such a number has more digits than Python prints."""
    shapes = checkpoint_shapes(Spec(projector="vanilla"))
    del shapes["model.mm_projector.linear.bias"]
    root = write_checkpoint(tmp_path / "c", Spec(projector="vanilla"), only=shapes)
    edit_json(root / "config.json", mm_hidden_size=10**4300 - 1)
    assert "unknown-projector" in rules(root)
    assert explain(root).traces[0].missing == ()


def test_more_embeddings_than_tokens_is_a_note(base: Path) -> None:
    write("tokenizer.json", json.dumps({"model": {"vocab": {"a": 0}}}))(base)
    assert [one.rule for one in validate(base).findings] == ["more-embeddings-than-tokens"]


def test_s2(tmp_path: Path) -> None:
    tower = TowerSpec("siglip")
    root = write_checkpoint(tmp_path / "c", Spec(tower=tower, s2_scales="8,16"))
    write_tower(tmp_path / "tower-siglip", tower)
    assert rules(root) == []
    for changed, rule in (
        ({"s2_scales": "12,24"}, "invalid-s2-scales"),
        ({"s2_scales": "big"}, "invalid-s2-scales"),
        ({"use_s2": False}, "config-weights-mismatch"),
        ({"s2_scales": "8,16,24"}, "hidden-size-mismatch"),
    ):
        copy_of = json.loads((root / "config.json").read_text())
        edit_json(root / "config.json", **changed)
        assert rule in rules(root)
        (root / "config.json").write_text(json.dumps(copy_of))


def test_grids_and_tokens(tmp_path: Path) -> None:
    odd = write_checkpoint(tmp_path / "odd", Spec(tower=TowerSpec(image_size=6)))
    assert "odd-patch-grid" in rules(odd)
    spec = Spec(projector="vanilla", tower=TowerSpec("clip", image_size=6))
    assert "projector-tokens" in rules(write_checkpoint(tmp_path / "nine", spec))


def test_an_untrained_projector(base: Path, tmp_path: Path) -> None:
    tower = write_tower(tmp_path / "clip", TowerSpec("clip"))
    out = apply(plan_swap_tower(base, tower, projector="reinit"), tmp_path / "out")
    assert set(rules(out)) == {"projector-untrained", "tower-path-absolute"}


class TestAdapters:
    def test_valid(self, tmp_path: Path) -> None:
        file = write_adapter(tmp_path / "a.safetensors", mm_projector("mlp2x_gelu", 32, 16))
        assert validate(file) == Report(str(file), "projector", ())

    @pytest.mark.parametrize(
        ("rule", "names"),
        [
            ("unknown-projector", {"model.mm_projector.0.weight": (16, 32)}),
            (
                "ambiguous-key",
                {
                    "model.mm_projector.0.weight": (16, 32),
                    "a.mm_projector.0.weight": (16, 32),
                },
            ),
            ("empty-tensor", {"model.mm_projector.weight": (0,), "model.mm_projector.bias": (2,)}),
            ("other-kind", {"weight": (2, 2)}),
            ("no-tensors", {}),
        ],
    )
    def test_broken(self, tmp_path: Path, rule: str, names: dict[str, tuple[int, ...]]) -> None:
        file = write_adapter(tmp_path / "a.safetensors", names, prefix="")
        assert rule in rules(file)

    def test_a_run_whose_config_disagrees(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        run.mkdir()
        shapes = mm_projector("mlp2x_gelu", 32, 16)
        torch.save(
            {f"model.mm_projector.{n}": torch.randn(s) for n, s in shapes.items()},
            run / "mm_projector.bin",
        )
        assert rules(run) == []
        edit_json(run / "config.json", mm_projector_type="linear", mm_hidden_size=8)
        assert {"config-weights-mismatch", "hidden-size-mismatch"} <= set(rules(run))

    def test_a_pickle_that_executes(self, tmp_path: Path) -> None:
        (tmp_path / "mm_projector.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
        assert rules(tmp_path / "mm_projector.bin") == ["unsafe-pickle"]
        assert "system" in validate(tmp_path).findings[0].message


def test_a_lone_shard_proves_nothing(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "c", shards=2)
    for shard in root.glob("model-*.safetensors"):
        report = validate(shard)
        (found,) = [one for one in report.findings if one.severity == "error"]
        assert found.rule == "lone-shard"
        assert str(root) in found.hint
    only = tmp_path / "model-00001-of-00001.safetensors"
    only.write_bytes((root / "model-00001-of-00002.safetensors").read_bytes())
    assert "lone-shard" not in rules(only)


class TestLora:
    def run_at(self, root: Path, base: Path | None = None, **adapter: Any) -> Path:
        root.mkdir(exist_ok=True)
        module = "base_model.model.model.layers.0.self_attn.q_proj"
        shapes: dict[str, tuple[int, ...]] = {
            f"{module}.lora_A.weight": (4, 16),
            f"{module}.lora_B.weight": (16, 4),
        }
        write_adapter(root / "adapter_model.safetensors", shapes, prefix="")
        values = {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["layers.0.self_attn.q_proj"],
            "base_model_name_or_path": str(base) if base else None,
            **adapter,
        }
        edit_json(root / "adapter_config.json", **values)
        return root

    def test_valid(self, tmp_path: Path, base: Path) -> None:
        run = self.run_at(tmp_path / "run", base)
        report = validate(run)
        assert (report.kind, report.findings) == ("lora-run", ())

    def test_broken(self, tmp_path: Path, base: Path) -> None:
        for values, rule in (
            ({"r": 8}, "lora-rank-mismatch"),
            ({"r": None}, "lora-rank-mismatch"),
            ({"r": [[4]]}, "lora-rank-mismatch"),
            ({"r": {}}, "lora-rank-mismatch"),
            ({"lora_alpha": 0}, "lora-alpha"),
            ({"lora_alpha": "16"}, "lora-alpha"),
            ({"use_dora": "yes"}, "lora-config-invalid"),
            ({"peft_type": "LOHA"}, "lora-unsupported"),
            ({"target_parameters": ["experts"]}, "lora-unsupported"),
            ({"target_modules": ["q_proj"]}, "lora-target-untrained"),
            ({"target_modules": ["k_proj"]}, "lora-delta-untargeted"),
            ({"bias": "lora_only"}, "lora-bias-absent"),
            ({"base_model_name_or_path": None}, "lora-base-absent"),
            ({"base_model_name_or_path": "/nowhere/base"}, "lora-base-absent"),
            ({"base_model_name_or_path": "nobody/nothing"}, "lora-base-absent"),
            ({"base_model_name_or_path": "no\0body/nothing"}, "lora-base-absent"),
            ({"base_model_name_or_path": "nobody/\ud800"}, "lora-base-absent"),
        ):
            assert rule in rules(self.run_at(tmp_path / "run", base, **values)), values
        run = self.run_at(tmp_path / "run", base)
        (run / "adapter_config.json").unlink()
        assert "lora-config-missing" in rules(run)

    def test_against_the_base(self, tmp_path: Path, base: Path) -> None:
        run = self.run_at(tmp_path / "run", base)
        file = run / "adapter_model.safetensors"
        good = load_file(file)
        name = next(n for n in good if "lora_B" in n)
        save_file({n: t for n, t in good.items() if n != name}, file)
        assert "lora-pair-incomplete" in rules(run)
        edit_json(run / "adapter_config.json", target_modules=["q_proj"])
        save_file({n.replace("layers.0", "layers.9"): t for n, t in good.items()}, file)
        assert "lora-target-absent" in rules(run)
        save_file({**good, name: torch.ones(8, 4)}, file)
        assert "lora-target-absent" in rules(run)
        save_file({**good, "base_model.model.model.layers.0.more.weight": torch.ones(8, 4)}, file)
        assert "lora-tensor-unplaced" in rules(run)

    def test_dora(self, tmp_path: Path, base: Path) -> None:
        run = self.run_at(tmp_path / "run", base, use_dora=True)
        assert rules(run) == ["dora-magnitude-missing"]
        file = run / "adapter_model.safetensors"
        good = {name: tensor.clone() for name, tensor in load_file(file).items()}  # it is replaced
        module = next(iter(good)).partition(".lora_")[0]
        for shape, found in (((16,), []), ((15,), ["dora-magnitude-missing"])):
            save_file({**good, f"{module}.lora_magnitude_vector": torch.ones(shape)}, file)
            assert rules(run) == found
        shutil.rmtree(base)  # without it the run's own files still show what is wrong
        assert "dora-magnitude-missing" in rules(run)
        edit_json(run / "adapter_config.json", use_dora=False)
        assert "lora-unsupported" in rules(run)

    def test_ranks_of_single_modules(self, tmp_path: Path, base: Path) -> None:
        run = self.run_at(tmp_path / "run", base, r=8, rank_pattern={"q_proj": 4})
        assert rules(run) == []
        run = self.run_at(tmp_path / "run", base, r=8, rank_pattern={"q_proj": 2})
        assert "lora-rank-mismatch" in rules(run)


class TestTowers:
    @pytest.mark.parametrize("family", ["siglip", "clip", "internvit"])
    def test_valid(self, tmp_path: Path, family: str) -> None:
        report = validate(write_tower(tmp_path / "t", TowerSpec(family)))
        assert (report.kind, report.findings) == ("vision-tower", ())

    @pytest.mark.parametrize(
        ("rule", "change"),
        [
            ("config-missing", lambda root: (root / "config.json").unlink()),
            ("tower-directory-mismatch", config(hidden_size=16)),
            ("shape-mismatch", config(intermediate_size=17)),
            ("processor-size-mismatch", write("preprocessor_config.json", '{"size": 16}')),
            ("missing-tensor", drop("layer_norm2.bias")),
        ],
    )
    def test_broken(self, tmp_path: Path, rule: str, change: Change) -> None:
        root = write_tower(tmp_path / "t", TowerSpec("clip"))
        change(root)
        assert rule in rules(root)


class TestKinds:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("model.gguf", "GGUF"),
            ("zero_to_fp32.py", "DeepSpeed"),
            ("global_step12", "DeepSpeed"),
            ("model-rank-0-part-0.safetensors", "vLLM"),
        ],
    )
    def test_directories_of_other_kinds(self, tmp_path: Path, name: str, words: str) -> None:
        if name == "global_step12":
            (tmp_path / name).mkdir()
        else:
            write_adapter(tmp_path / name, {"a": (2,)})
            if "part-0" in name:
                write_adapter(tmp_path / name.replace("part-0", "part-1"), {"a": (2,)})
        report = validate(tmp_path)
        assert [one.rule for one in report.findings] == ["other-kind"]
        assert words in report.findings[0].message

    def test_quantised(self, base: Path) -> None:
        edit_json(base / "config.json", quantization_config={"quant_method": "gptq"})
        assert rules(base) == ["other-kind"]

    def test_forced(self, base: Path, tmp_path: Path) -> None:
        assert "tower-absent" in rules(
            write_adapter(tmp_path / "a.safetensors", {"model.norm.weight": (4,)}, prefix=""),
            kind="vita-checkpoint",
        )
        with pytest.raises(UsageError, match="unknown-kind"):
            validate(base, kind="anything")
        for kind in KINDS:
            validate(base, kind=kind)

    def test_nothing_there(self, tmp_path: Path) -> None:
        for path in (tmp_path / "nowhere", tmp_path):
            with pytest.raises(InputError, match=r"not-found|not-a-checkpoint"):
                validate(path)


class TestSeveral:
    def test_in_order_whatever_happens(self, base: Path, sharded: Path, tmp_path: Path) -> None:
        paths = [base, tmp_path / "nowhere", sharded]
        for jobs in (1, 3):
            results = list(validate_all(paths, jobs=jobs))
            assert [type(result) for result in results] == [Report, InputError, Report]
            assert [getattr(r, "path", None) for r in results] == [str(base), None, str(sharded)]

    def test_an_interrupt_while_the_processes_end(
        self, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ends = Worker.__exit__

        def interrupted(worker: Worker, *exc: object) -> None:
            ends(worker, *exc)
            raise KeyboardInterrupt

        monkeypatch.setattr(Worker, "__exit__", interrupted)
        results = validate_all([base / "nowhere", base, base], jobs=2)
        assert [type(next(results)) for _ in range(3)] == [InputError, Report, Report]
        with pytest.raises(KeyboardInterrupt):
            next(results)

    def test_a_directory_of_checkpoints(self, base: Path, sharded: Path, tmp_path: Path) -> None:
        (tmp_path / "notes").mkdir()
        found = holds_checkpoints(str(tmp_path))
        assert found == [str(base), str(sharded), str(tmp_path / "tower-internvit")]
        assert holds_checkpoints(str(base)) == []
        assert holds_checkpoints(str(tmp_path / "nowhere")) == []

    @pytest.mark.parametrize(
        "remains",
        [
            ("config.json",),
            ("config.json", "model.safetensors.incomplete"),
            ("adapter_config.json",),
            ("config.json", "a.safetensors", "b.safetensors"),
            ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"),
        ],
    )
    def test_what_is_left_of_a_checkpoint_is_one(
        self, base: Path, tmp_path: Path, remains: tuple[str, ...]
    ) -> None:
        left = tmp_path / "left"
        left.mkdir()
        for name in remains:
            (left / name).write_text("{}")
        (tmp_path / "stray.bin").write_bytes(b"")
        for found in (holds_checkpoints(str(tmp_path)), holds_checkpoints(str(tmp_path))):
            assert str(left) in found
            (tmp_path / "more.bin").write_bytes(b"")
        (tmp_path / "left").rename(base / "left")
        assert holds_checkpoints(str(base)) == []

    def test_a_link_that_leads_nowhere_is_not_passed_over(self, base: Path, tmp_path: Path) -> None:
        (tmp_path / "latest").symlink_to("removed")
        found = holds_checkpoints(str(tmp_path))
        assert found == [str(base), str(tmp_path / "latest"), str(tmp_path / "tower-internvit")]
        assert isinstance(list(validate_all(found))[1], InputError)

    def test_a_link_in_a_checkpoint_leads_to_no_other_one(
        self, base: Path, sharded: Path, tmp_path: Path
    ) -> None:
        for name, target in (("itself", "."), ("above", ".."), ("other", sharded)):
            (base / name).symlink_to(target)
        assert holds_checkpoints(str(base)) == []
        parent = tmp_path / "parent"
        parent.mkdir()
        for name, target in (("itself", "."), ("above", ".."), ("other", sharded)):
            (parent / name).symlink_to(target)
        assert holds_checkpoints(str(parent)) == [str(parent / "other")]

    def test_loose_shards_beside_checkpoints_are_not_passed_over(
        self, base: Path, tmp_path: Path
    ) -> None:
        for number in (1, 2):
            (tmp_path / f"model-0000{number}-of-00003.safetensors").write_bytes(b"")
        assert holds_checkpoints(str(tmp_path))[0] == str(tmp_path)

    def test_with_a_forward_pass(self, base: Path) -> None:
        (report,) = validate_all([base], verify=True)
        assert isinstance(report, Report)
        assert report.findings == ()
        tensors(lambda content: content["model.mm_projector.2.weight"].mul_(1e-20))(base)
        (report,) = validate_all([base], verify=True)
        assert isinstance(report, Report)
        assert "image-ignored" in [one.rule for one in report.findings]


def test_a_flat_parameter_of_fsdp_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mm_projector.safetensors"
    save_file({"model.mm_projector._flat_param": torch.ones(8)}, file)
    found = validate(file, kind="projector").findings
    assert "flat-parameter" in [one.rule for one in found]


@pytest.mark.parametrize(
    ("kind", "rule"),
    [("lora-run", "lora-config-missing"), ("audio-adapter", "adapter-no-audio-adapter")],
)
def test_what_is_not_of_the_kind_that_is_asked_for_is_not_sound(
    base: Path, kind: str, rule: str
) -> None:
    (found,) = (one for one in validate(base, kind=kind).findings if one.severity == "error")
    assert found.rule == rule
    assert found.hint.endswith("a vita-checkpoint: leave --kind out")


def test_every_rule_is_tested() -> None:
    """The rules of files, names, config and LoRA runs each fail somewhere above."""
    here = Path(__file__)
    text = here.read_text() + here.with_name("test_validate_audio.py").read_text()
    elsewhere = {
        "mid-surgery",
        "unreadable-file",
        "missing-index",
        "weights-misnamed",
        "several-steps",
        "adapter-no-projector",
        *(
            "other-family",
            "unmerged-peft",
            "trained-beside",
            "trained-in-state",
            "image-fails",
            "tower-unused",
            "tower-differs",
            "tower-not-loadable",
            "newline-absent",
            "run-rows-absent",
            "run-not-loadable",
            "lora-untrained",
            "lora-bias-absent",
        ),  # of other modules
    }
    for group in ("files", "names and shapes", "config", "LoRA runs"):
        for rule in GROUPS[group]:
            assert f'"{rule.id}"' in text or rule.id in elsewhere, rule.id


HOSTILE: tuple[Any, ...] = (None, True, -1, 1e308, "", "\x00", "x" * 999, [], {}, [[]], {"a": 1})


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_whatever_a_config_says_is_a_finding(base: Path, value: Any) -> None:
    """Never an exception, whatever stands where a size or a path should."""
    good = json.loads((base / "config.json").read_text())
    more = ("s2_scales", "mm_audio_encoder", "head_dim", "vision_config", "num_local_experts")
    for key in (*good, *more):
        (base / "config.json").write_text(json.dumps({**good, key: value}))
        validate(base)
    (base / "config.json").write_text(json.dumps(good))
    for name in ("vita_ckpt.json", "preprocessor_config.json", "vision_tower_config.json"):
        for content in (
            value,
            {"size": value},
            {"model_type": "intern_vit_6b", "image_size": value},
        ):
            (base / name).write_text(json.dumps(content))
            validate(base)
        (base / name).unlink()


def test_a_family_without_audio_has_nothing_to_say_about_it(tmp_path: Path) -> None:
    root = tmp_path / "base"
    shutil.copytree(GOLDEN / "F16" / "base", root)
    config = json.loads((root / "config.json").read_text())
    before = validate(root).findings
    (root / "config.json").write_text(json.dumps(config | {"mm_audio_encoder": "audio"}))
    assert validate(root).findings == before
