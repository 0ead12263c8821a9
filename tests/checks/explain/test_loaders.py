"""What VITA's own loaders do, and where loaders diverge: the goldens, each broken in one way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fixtures.builder import (
    Spec,
    TowerSpec,
    write_audio_encoder,
    write_checkpoint,
    write_tower,
)
from tests.conftest import BASES, GOLDEN
from vita_ckpt import explain, open_checkpoint
from vita_ckpt.checks.explain.explanation import Explanation
from vita_ckpt.checks.explain.loaders import loaders_of
from vita_ckpt.checks.explain.trace import LoaderTrace
from vita_ckpt.checks.loader_metadata import check_loaders
from vita_ckpt.checks.rules import RULES
from vita_ckpt.core.binding.result import PartSource
from vita_ckpt.errors import InputError

INDEX = "model.safetensors.index.json"
TOWER = "model.vision_tower."
PROJECTOR = "model.mm_projector."
PT = {"format": "pt"}
VITA_1_5, VITA_1_0 = "vita-1.5", "vita-1.0"
NON_LORA = "non_lora_trainables.bin"


def told(explanation: Explanation) -> dict[str, LoaderTrace]:
    return {story.loader: story for story in explanation.traces}


def answers(explanation: Explanation, question: str) -> dict[str, str]:
    """Each loader's answer to a question that has several; none if it has one."""
    return {
        loader: answer
        for divergence in explanation.divergences
        if divergence.question.startswith(question)
        for answer, loaders in divergence.answers
        for loader in loaders
    }


def set_config(root: Path, **keys: object) -> Path:
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, **keys}))
    return root


def copied(tmp_path: Path, case: str, **config: Any) -> Path:
    """A golden's base and tower, with other values in its config."""
    shutil.copytree(GOLDEN / case, tmp_path / case)
    base = tmp_path / case / "base"
    said = json.loads((base / "config.json").read_text())
    said |= config
    kept = {key: value for key, value in said.items() if value is not None}
    (base / "config.json").write_text(json.dumps(kept))
    return base


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=PT)


def dropped(prefix: str) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith(prefix)]


def steps(story: LoaderTrace) -> str:
    return "\n".join(f"{step.action} {step.detail}" for step in story.steps)


@pytest.mark.parametrize("case", BASES)
def test_a_golden(case: str) -> None:
    """UPSTREAM's facts: 1.5's tower is the checkpoint's, 1.0's the directory's unless unfrozen."""
    explanation = explain(GOLDEN / case / "base")
    stories = told(explanation)
    assert tuple(stories) == loaders_of(None)
    config = json.loads((GOLDEN / case / "base" / "config.json").read_text())
    new, old = stories[VITA_1_5], stories[VITA_1_0]
    assert (new.outcome, new.dtype) == ("complete", "float16")
    assert new.model_class == config["architectures"][0]
    assert (new.tower, new.projector) == (PartSource.CHECKPOINT, PartSource.CHECKPOINT)
    frozen = not config["unfreeze_vision_tower"]
    assert old.tower == (PartSource.TOWER_DIRECTORY if frozen else PartSource.CHECKPOINT)
    assert bool(old.ignored) == frozen
    assert all(name.startswith(TOWER) for name in old.ignored)
    again = [name for name in new.tower_files if name in new.files_read]
    assert bool(again) == (not frozen)
    assert list(new.files_read) == sorted(new.files_read)
    assert stories["hub-model"].outcome == stories["hub-metadata"].outcome == "complete"
    assert stories["transformers-4.41"].dtype == "float32"
    for loader in ("transformers-4.41", "transformers-5.6"):
        assert stories[loader].outcome == "partial"
        assert stories[loader].tower == PartSource.NOT_BUILT
    assert answers(explanation, "dtype")[VITA_1_5] == "float16"
    assert not answers(explanation, "file of")


def test_continuous_training_builds_1_0s_tower_at_once(tmp_path: Path) -> None:
    stories = told(explain(copied(tmp_path, "A2", continuous_training=True)))
    assert stories[VITA_1_0].tower == PartSource.CHECKPOINT
    assert not stories[VITA_1_0].ignored


def test_no_tower_in_the_checkpoint(tmp_path: Path) -> None:
    base = copied(tmp_path, "A2")
    edited(base / "model.safetensors", dropped(TOWER))
    stories = told(explain(base))
    assert (stories[VITA_1_5].outcome, stories[VITA_1_5].tower) == (
        "partial",
        PartSource.UNFILLED,
    )
    assert (stories[VITA_1_0].outcome, stories[VITA_1_0].tower) == (
        "complete",
        PartSource.TOWER_DIRECTORY,
    )


def test_no_tower_where_it_is_read_again(tmp_path: Path) -> None:
    base = copied(tmp_path, "A2", unfreeze_vision_tower=True)
    edited(base / "model.safetensors", dropped(TOWER))
    stories = told(explain(base))
    assert stories[VITA_1_5].stopped_by == stories[VITA_1_0].stopped_by == "tower-absent"


def test_a_part_of_the_tower_where_it_is_read_again(tmp_path: Path) -> None:
    base = copied(tmp_path, "A2", unfreeze_vision_tower=True)
    edited(base / "model.safetensors", dropped(f"{TOWER}vision_tower.vision_model.post_layernorm"))
    assert told(explain(base))[VITA_1_5].stopped_by == "missing-tensor"


def test_no_projector_is_drawn(tmp_path: Path) -> None:
    base = copied(tmp_path, "A2")
    edited(base / "model.safetensors", dropped(PROJECTOR))
    story = told(explain(base))[VITA_1_5]
    assert (story.outcome, story.projector) == ("partial", PartSource.RANDOM)
    assert {name.rpartition(".")[0] for name in story.missing} == {
        f"{PROJECTOR}0",
        f"{PROJECTOR}2",
    }


def test_a_wrong_mm_hidden_size_is_a_size_mismatch(tmp_path: Path) -> None:
    stories = told(explain(copied(tmp_path, "A2", mm_hidden_size=47)))
    assert stories[VITA_1_5].stopped_by == stories[VITA_1_0].stopped_by == "shape-mismatch"
    assert stories["transformers-5.6"].stopped_by is None


def test_a_stale_file_beside_an_index(tmp_path: Path) -> None:
    """transformers, and so VITA, reads the single file; load_torch_model the index."""
    base = copied(tmp_path, "A1", unfreeze_vision_tower=False)
    tensors: dict[str, Any] = {}
    for shard in base.glob("model-*.safetensors"):
        tensors |= load_file(shard)
    save_file(tensors, base / "model.safetensors", metadata=PT)
    explanation = explain(base)
    stories = told(explanation)
    assert stories["hub-model"].chosen == INDEX
    for loader in (VITA_1_5, VITA_1_0, "transformers-4.41", "transformers-5.6", "hub-metadata"):
        assert stories[loader].chosen == "model.safetensors"
        assert stories[loader].files_read == ("model.safetensors",)
    files = answers(explanation, "file of")
    assert files[VITA_1_5] == "model.safetensors"
    assert files["hub-model"].startswith("model-0000")


def test_a_file_that_only_the_unfrozen_tower_reads(tmp_path: Path) -> None:
    base = copied(tmp_path, "A1")
    tensors: dict[str, Any] = {}
    for shard in base.glob("model-*.safetensors"):
        tensors |= {n: t for n, t in load_file(shard).items() if n.startswith(TOWER)}
    save_file(tensors, base / "stale.safetensors", metadata=PT)
    explanation = explain(base)
    story = told(explanation)[VITA_1_5]
    assert "stale.safetensors" not in story.files_read
    assert "stale.safetensors" in story.tower_files
    assert "the one listed last counts" in steps(story)
    assert answers(explanation, "file of")[VITA_1_5].endswith("or stale.safetensors")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("design/tower-clip", "tower-path-misleads"),
        ("towers/large", "tower-path-misleads"),
    ],
)
def test_a_path_that_misleads(tmp_path: Path, path: str, code: str) -> None:
    base = copied(tmp_path, "A3", mm_vision_tower=path)
    (tmp_path / "A3" / path).parent.mkdir()
    os.rename(tmp_path / "A3" / "tower-clip", tmp_path / "A3" / path)
    stories = told(explain(base))
    assert stories[VITA_1_5].stopped_by == stories[VITA_1_0].stopped_by == code


def test_s2_needs_siglip(tmp_path: Path) -> None:
    stories = told(explain(copied(tmp_path, "A3", use_s2=True)))
    assert stories[VITA_1_5].stopped_by == "s2-needs-siglip"


def test_an_unreachable_tower_is_said(tmp_path: Path) -> None:
    base = copied(tmp_path, "A3", mm_vision_tower="/far/away/clip-large")
    story = told(explain(base))[VITA_1_5]
    assert (story.outcome, story.stopped_by) == ("stops", "tower-path-unreachable")
    assert "not reachable from here" in steps(story)


def test_a_tower_on_the_hub_is_fetched(tmp_path: Path) -> None:
    base = copied(tmp_path, "A3", mm_vision_tower="openai/clip-vit-large-patch14")
    story = told(explain(base))[VITA_1_5]
    assert (story.outcome, story.tower) == ("complete", PartSource.CHECKPOINT)
    assert "fetched from the hub, if it can" in steps(story)


def test_an_audio_encoder_that_is_gone(tmp_path: Path) -> None:
    base = copied(tmp_path, "A3", mm_audio_encoder="/far/away/audio")
    assert told(explain(base))[VITA_1_5].stopped_by == "tower-path-unreachable"
    (tmp_path / "A3" / "audio").mkdir()
    base = set_config(base, mm_audio_encoder="audio")
    assert told(explain(base))[VITA_1_5].stopped_by == "audio-files-missing"
    write_audio_encoder(tmp_path / "A3" / "heard")
    base = set_config(base, mm_audio_encoder="heard")
    story = told(explain(base))[VITA_1_5]
    assert (story.outcome, story.missing) == ("partial", ("model.audio_encoder.*",))
    assert "uninitialised memory" in steps(story)


def test_an_internvit_that_is_taken_for_siglip(tmp_path: Path) -> None:
    """Its path says sig: frozen, the loader comes to its end with a tower of nothing."""
    base = copied(tmp_path, "A1", mm_vision_tower="design/tower", unfreeze_vision_tower=False)
    (tmp_path / "A1" / "design").mkdir()
    os.rename(tmp_path / "A1" / "tower-internvit", tmp_path / "A1" / "design" / "tower")
    story = told(explain(base))[VITA_1_5]
    assert (story.outcome, story.stopped_by) == ("partial", None)
    set_config(base, unfreeze_vision_tower=True)
    assert told(explain(base))[VITA_1_5].outcome == "stops"


def test_rows_that_are_cut_or_invented(tmp_path: Path) -> None:
    base = copied(tmp_path, "A3")
    for tokens, words in ((2, "cuts"), (100_000, "invents")):
        vocab = {f"w{number}": number for number in range(tokens)}
        (base / "vocab.json").write_text(json.dumps(vocab))
        assert words in [step.action for step in told(explain(base))[VITA_1_5].steps]


def test_a_tower_is_looked_for_where_the_loader_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = copied(tmp_path, "A3")
    assert "the loader looks from where it runs" in steps(told(explain(base))[VITA_1_5])
    monkeypatch.chdir(base.parent)
    assert "the loader looks from where it runs" not in steps(told(explain("base"))[VITA_1_5])


def test_a_tower_directory_without_the_level(tmp_path: Path) -> None:
    """1.0 keeps what its tower drew at random, 1.5 overwrites it."""
    base = copied(tmp_path, "A3")
    tower = tmp_path / "A3" / "tower-clip" / "model.safetensors"
    stored = load_file(tower)
    save_file({n.removeprefix("vision_model."): t for n, t in stored.items()}, tower, metadata=PT)
    stories = told(explain(base))
    assert (stories[VITA_1_5].outcome, stories[VITA_1_5].tower) == (
        "complete",
        PartSource.CHECKPOINT,
    )
    assert (stories[VITA_1_0].outcome, stories[VITA_1_0].tower) == ("partial", PartSource.RANDOM)


def lose_shard(base: Path) -> None:
    (base / "model-00002-of-00004.safetensors").unlink()


def point(base: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 123\n"
    (base / "model-00002-of-00004.safetensors").write_text(text)


def truncate(base: Path) -> None:
    path = base / "model-00002-of-00004.safetensors"
    os.truncate(path, path.stat().st_size - 8)


def lead_out(base: Path) -> None:
    index = json.loads((base / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../../../secret.safetensors")
    (base / INDEX).write_text(json.dumps(index))


def break_index(base: Path) -> None:
    (base / INDEX).write_text("[")


def break_config(base: Path) -> None:
    (base / "config.json").write_text("{")


def lose_config(base: Path) -> None:
    (base / "config.json").unlink()


def forget_type(base: Path) -> None:
    (base / "config.json").write_text('{"model_type": "gpt2"}')


def misspell_projector(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "mm_projector_type": "spp"}))


def lengthen(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "num_hidden_layers": "two"}))


@pytest.mark.parametrize(
    ("change", "code", "read"),
    [
        (lose_shard, "missing-shard", 1),
        (point, "git-lfs-pointer", 1),
        (truncate, "truncated-file", 1),
        (lead_out, "path-outside-checkpoint", 0),
        (break_index, "invalid-json", 0),
        (break_config, "invalid-json", 0),
        (lose_config, "config-missing", 0),
        (forget_type, "unknown-model-type", 0),
        (misspell_projector, "unknown-projector-type", 4),
        (lengthen, "config-type", 4),
    ],
)
def test_a_broken_checkpoint_is_explained_up_to_where_it_breaks(
    tmp_path: Path, change: Callable[[Path], None], code: str, read: int
) -> None:
    base = copied(tmp_path, "A1")
    change(base)
    story = told(explain(base))[VITA_1_5]
    assert (story.outcome, story.stopped_by) == ("stops", code)
    assert len(story.files_read) == read
    assert story.steps[-1].code == code


def test_a_tower_directory_that_cannot_be_read(tmp_path: Path) -> None:
    base = copied(tmp_path, "A3")
    (tmp_path / "A3" / "tower-clip" / "model.safetensors").write_bytes(b"")
    stories = told(explain(base))
    assert stories[VITA_1_5].stopped_by == stories[VITA_1_0].stopped_by == "header-too-small"
    (tmp_path / "A3" / "tower-clip" / "config.json").write_text("{")
    assert told(explain(base))[VITA_1_5].stopped_by == "tower-directory-unreadable"


def test_every_code_is_explained_somewhere() -> None:
    page = (GOLDEN.parent.parent / "docs" / "errors.md").read_text()
    sources = [
        path.read_text()
        for path in (GOLDEN.parent.parent / "vita_ckpt" / "checks" / "explain").glob("*.py")
    ]
    codes = {
        text.split('"')[1]
        for source in sources
        for text in source.split("tracer.stop(")[1:]
        if text.strip().startswith('"')
    }
    assert len(codes) > 10
    assert {code for code in codes if code not in RULES and f"`{code}`" not in page} == set()


def test_runs_that_no_loader_loads(tmp_path: Path) -> None:
    """VITA-1.5's loader has no code for a run on Qwen2, and none that works for a projector."""
    stories = told(explain(GOLDEN / "A7" / "mm_projector_fp32"))
    assert stories[VITA_1_5].stopped_by == "run-not-loadable"
    assert "UnboundLocalError" in steps(stories[VITA_1_5])
    assert stories[VITA_1_0].projector == PartSource.CHECKPOINT
    assert stories[VITA_1_0].tower == PartSource.BASE
    assert "strict=False" in steps(stories[VITA_1_0])
    assert stories["transformers-5.6"].stopped_by == "not-a-checkpoint"
    run = tmp_path / "run"
    shutil.copytree(GOLDEN / "A7" / "mm_projector_fp32", run)
    set_config(run, model_type="vita-mixtral")
    assert "AttributeError" in steps(told(explain(run))[VITA_1_5])


PEFT = "base_model.model."
DELTA = f"{PEFT}model.layers.0.self_attn.q_proj."
RUNS: dict[str, tuple[Callable[[Path], object], str]] = {
    "as it was saved": (lambda run: None, "complete"),
    "a name without lora": (lambda run: run.rename(run.parent / "run"), "AttributeError"),
    "a base that is gone": (lambda run: set_adapter(run, "gone/base/here"), "model_base is not"),
    "a base on the hub": (lambda run: set_adapter(run, "the/base"), "complete"),
    "no deltas": (lambda run: (run / "adapter_model.safetensors").unlink(), "OSError"),
    "nothing else trained": (lambda run: (run / "non_lora_trainables.bin").unlink(), "raises"),
    "a delta of another shape": (
        lambda run: edited(
            run / "adapter_model.safetensors",
            lambda t: t.update({f"{DELTA}lora_A.weight": torch.ones(2, 5)}),
        ),
        "size mismatch",
    ),
    "a name that fits nowhere": (
        lambda run: torch.save({f"{PEFT}model.x.weight": torch.ones(2)}, run / NON_LORA),
        "partial",
    ),
    "a module that is saved whole": (
        lambda run: torch.save(
            {f"{PEFT}lm_head.modules_to_save.default.weight": torch.ones(2)}, run / NON_LORA
        ),
        "partial",
    ),
    "no tower": (lambda run: set_config(run, mm_vision_tower="gone/internvit/x"), "not reachable"),
}


def set_adapter(run: Path, base: str) -> None:
    (run / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))


@pytest.mark.parametrize("what", RUNS)
def test_a_lora_run_on_mixtral(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN / "A4")
    run = tmp_path / "vita-lora"
    run.mkdir()
    shutil.copy(GOLDEN / "A4" / "base" / "config.json", run)
    set_adapter(run, "base")
    deltas = {
        f"{DELTA}lora_A.weight": torch.ones(2, 64),
        f"{DELTA}lora_B.weight": torch.ones(64, 2),
    }
    save_file(deltas, run / "adapter_model.safetensors", PT)
    torch.save({f"{PEFT}{PROJECTOR}0.bias": torch.ones(64)}, run / NON_LORA)
    change, expected = RUNS[what]
    change(run)
    (left,) = tmp_path.iterdir()
    story = told(explain(left))[VITA_1_5]
    assert story.outcome == expected or expected in steps(story)
    assert (story.outcome == "stops") == (expected not in ("complete", "partial"))
    if expected == "complete":
        assert story.files_read == ("adapter_model.safetensors", NON_LORA)
        assert "model_base is not opened" in steps(story)
        assert "where peft is installed" in steps(told(explain(left))["transformers-4.41"])


@pytest.mark.parametrize("model_type", ["vita-Mistral", "vita-fo-Qwen2"])
def test_other_backbones_and_audio(tmp_path: Path, model_type: str) -> None:
    tower = TowerSpec("siglip")
    spec = Spec(model_type=model_type, tower=tower, audio=True)
    base = write_checkpoint(tmp_path / "base", spec)
    write_tower(tmp_path / tower.path, tower)
    story = told(explain(base))[VITA_1_5]
    assert not [name for name in story.ignored if name.startswith("model.audio_encoder.")]
    set_config(base, mm_audio_encoder=None)
    story = told(explain(base))[VITA_1_5]
    audio = {name for name in story.ignored if name.startswith("model.audio_encoder.")}
    assert audio  # the config names no encoder
    set_config(base, mm_audio_encoder="org/audio")
    story = told(explain(base))[VITA_1_5]
    head = {"predictor_head.weight", "predictor_head.bias"}
    assert set(story.ignored) == (head if model_type == "vita-fo-Qwen2" else set())
    assert "final.pt in org/audio" in steps(story)


def test_a_lone_file_and_nothing(tmp_path: Path) -> None:
    stories = told(explain(GOLDEN / "A2" / "base" / "model.safetensors"))
    assert stories["hub-model"].files_read == ("model.safetensors",)
    assert stories[VITA_1_5].stopped_by == "config-missing"
    with pytest.raises(InputError, match="not-found"):
        explain(tmp_path / "nowhere")


@pytest.mark.parametrize("metadata", [None, {"by": "hand"}])
def test_a_file_without_a_format_is_a_finding(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    base = copied(tmp_path, "A2")
    assert not list(check_loaders(open_checkpoint(base)))
    tensors = load_file(base / "model.safetensors")
    save_file(tensors, base / "model.safetensors", metadata=metadata)
    found = list(check_loaders(open_checkpoint(base)))
    assert [(f.rule, f.severity) for f in found] == [("no-format-metadata", "error")]
    assert found[0].file == str(base / "model.safetensors")
    assert told(explain(base))[VITA_1_5].stopped_by == "no-format-metadata"
    assert told(explain(base))["transformers-5.6"].stopped_by is None


def test_an_index_without_metadata_is_a_finding(tmp_path: Path) -> None:
    base = copied(tmp_path, "A1")
    assert not list(check_loaders(open_checkpoint(base)))
    index = json.loads((base / INDEX).read_text())
    (base / INDEX).write_text(json.dumps({"weight_map": index["weight_map"]}))
    found = list(check_loaders(open_checkpoint(base)))
    assert [(f.rule, f.subject) for f in found] == [("no-index-metadata", INDEX)]
    stories = told(explain(base))
    assert stories[VITA_1_5].stopped_by == "no-index-metadata"
    assert stories["transformers-5.6"].stopped_by == "no-index-metadata"
    assert stories["hub-model"].outcome == "complete"
