"""Surgery on audio: merges as upstream makes them, swaps there and back, extractions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fixtures.builder import Spec, TowerSpec, write_checkpoint, write_tower
from tests.conftest import GOLDEN
from vita_ckpt import (
    AdapterError,
    InputError,
    Plan,
    UsageError,
    apply,
    apply_in_place,
    diff,
    load_plan,
    open_checkpoint,
    plan_extract_audio_adapter,
    plan_extract_audio_encoder,
    plan_merge_audio_adapter,
    plan_set,
    plan_swap_audio_encoder,
    save_plan,
    undo,
    validate,
)

AUDIO = "model.audio_encoder."
ADAPTER = f"{AUDIO}adpter."
CASES = ("U1", "U2")


@pytest.fixture
def cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of the goldens; the working directory is U2's, whose paths are relative."""
    for case in CASES:
        shutil.copytree(GOLDEN / case, tmp_path / case)
    monkeypatch.chdir(tmp_path / "U2")
    return tmp_path


def tensors(root: Path | str) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for shard in sorted(Path(root).glob("*.safetensors")):
        found |= load_file(shard)
    return found


def rules(path: Path | str) -> list[str]:
    return [found.rule for found in validate(path).findings if found.severity != "note"]


def is_same(one: Path | str, other: Path | str) -> bool:
    return diff(one, other).identical


def test_wrappers_inside_an_adapter_are_left_out_of_its_names(cases: Path) -> None:
    adapter = Path(apply(plan_extract_audio_adapter("merged_by_upstream"), cases / "a.safetensors"))
    expected = plan_merge_audio_adapter("base", adapter)
    wrapped = {
        name.replace(".adpter.", ".adpter._checkpoint_wrapped_module."): tensor
        for name, tensor in load_file(adapter).items()
    }
    save_file(wrapped, cases / "wrapped.safetensors")
    plan = plan_merge_audio_adapter("base", cases / "wrapped.safetensors")
    assert {e.name for e in plan.tensor_edits} == {e.name for e in expected.tensor_edits}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "adapter", ["audio_run", "audio_run/audio_adpter.bin", "merged_by_upstream"]
)
def test_a_merge_equals_upstreams(
    cases: Path, case: str, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cases / case)
    plan = plan_merge_audio_adapter("base", adapter)
    kept = [note for note in plan.notes if "running statistics are kept" in note]
    assert bool(kept) == (case == "U2" and adapter != "merged_by_upstream")
    apply(plan, "merged")
    wanted, found = tensors("merged_by_upstream"), tensors("merged")
    assert found.keys() == wanted.keys()
    assert all(found[name].tobytes() == wanted[name].tobytes() for name in wanted)
    assert rules("merged") == []


def test_a_merge_in_place_and_its_undo(cases: Path) -> None:
    apply_in_place(plan_merge_audio_adapter("base", "audio_run"))
    assert is_same("base", "merged_by_upstream")
    assert rules("base") == []
    undo("base")
    assert is_same("base", GOLDEN / "U2" / "base")


def test_a_merge_that_does_not_fit(cases: Path) -> None:
    with pytest.raises(AdapterError, match="audio-adapter-does-not-fit"):
        plan_merge_audio_adapter("base", cases / "U1" / "audio_run")
    with pytest.raises(AdapterError, match="adapter-no-audio-adapter"):
        plan_merge_audio_adapter("base", "tower-internvit")
    write_checkpoint(cases / "deaf", Spec())
    with pytest.raises(InputError, match=r"audio-absent.*swap-audio-encoder"):
        plan_merge_audio_adapter(cases / "deaf", "audio_run")


def test_an_extracted_adapter_merges_again(cases: Path) -> None:
    """Its running statistics are in it, so nothing has to be kept."""
    plan = plan_extract_audio_adapter("merged_by_upstream")
    apply(plan, "adapter.bin")
    assert f"{ADAPTER}bn2.running_mean" in open_checkpoint("adapter.bin").tensors
    again = plan_merge_audio_adapter("base", "adapter.bin")
    assert not any("kept" in note for note in again.notes)
    assert is_same(Path(apply(again, "again")), "merged_by_upstream")


def test_swap_there_and_back_is_the_identity(cases: Path) -> None:
    """An extracted encoder brings its own adapter, where the one that is there does not fit."""
    apply(plan_extract_audio_encoder("base"), "heard")
    assert sorted(p.name for p in Path("heard").iterdir()) == [
        "final.pt",
        "global_cmvn",
        "train.yaml",
    ]
    there = plan_swap_audio_encoder("base", cases / "U1" / "audio-encoder")
    apply(there, "there")
    assert rules("there") == ["tower-path-absolute"]
    back = plan_swap_audio_encoder("there", "heard", audio_path="audio-encoder")
    apply(back, "back")
    assert is_same("back", "base")
    assert rules("back") == []


def test_a_swap_takes_what_final_pt_holds(cases: Path) -> None:
    plan = plan_swap_audio_encoder("base", "audio-encoder")
    assert any("kept" in note for note in plan.notes)
    assert any("llm.dummy.weight" in note for note in plan.notes)
    apply(plan, "swapped")
    given = open_checkpoint("audio-encoder/final.pt")
    apply(plan_extract_audio_encoder("swapped"), "heard")
    found = open_checkpoint("heard/final.pt")
    own = [name for name in found.tensors if name.startswith("encoder.")]
    assert own == [name for name in found.tensors if not name.startswith("adpter.")]
    before, after = tensors("base"), tensors("swapped")
    assert all(given.tensors[name].shape == found.tensors[name].shape for name in own)
    changed = {n for n in before if before[n].tobytes() != after[n].tobytes()}
    assert changed
    assert all(name.startswith(f"{AUDIO}encoder.") for name in changed)


@pytest.mark.parametrize("adapter", ["audio_run", "reinit", None])
def test_a_base_without_audio_gets_an_encoder(cases: Path, adapter: str | None) -> None:
    root = write_checkpoint(cases / "U2" / "deaf", Spec(hidden=48, heads=4), shards=3, dtype="BF16")
    write_tower(cases / "U2" / "tower-internvit-2", TowerSpec(name="tower-internvit-2"))
    apply(plan_set(root, {"mm_vision_tower": "tower-internvit-2"}), "named")
    plan = plan_swap_audio_encoder("named", "audio-encoder", adapter=adapter, seed=3)
    drawn = any("untrained norm" in note for note in plan.notes)
    assert drawn == (adapter == "audio_run")
    apply(plan, "hears")
    assert rules("hears") == []
    target = open_checkpoint("hears")
    dtypes = {t.dtype for n, t in target.tensors.items() if n.startswith(AUDIO)}
    assert dtypes - {"I64"} == {"BF16", "F32"}  # the statistics of the features keep theirs
    assert target.tensors[f"{AUDIO}encoder.global_cmvn.mean"].dtype == "F32"
    assert (target.config or {})["mm_audio_encoder"] == "audio-encoder"


def test_a_drawn_adapter_follows_from_its_seed(cases: Path) -> None:
    drawn = []
    for number, seed in enumerate((1, 1, 2)):
        plan = plan_swap_audio_encoder("base", "audio-encoder", adapter="reinit", seed=seed)
        drawn.append(tensors(apply(plan, f"drawn{number}")))
    weight = f"{ADAPTER}conv1d2.weight"
    assert (drawn[0][weight] == drawn[1][weight]).all()
    assert (drawn[0][weight] != drawn[2][weight]).any()
    assert np.abs(drawn[0][weight]).max() <= (32 * 3) ** -0.5
    assert (drawn[0][f"{ADAPTER}bn2.running_var"] == 1).all()
    assert (drawn[0][f"{ADAPTER}bn2.running_mean"] == 0).all()
    assert (drawn[0][f"{ADAPTER}bn2.weight"] == 1).all()


def edit_yaml(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def test_swaps_that_do_not_go(cases: Path) -> None:
    with pytest.raises(UsageError, match="audio-adapter-choice-needed"):
        plan_swap_audio_encoder("base", cases / "U1" / "audio-encoder", adapter="keep")
    with pytest.raises(UsageError, match="invalid-audio-path"):
        plan_swap_audio_encoder("base", "audio-encoder", audio_path="a\nb")
    with pytest.raises(InputError, match="not-found"):
        plan_swap_audio_encoder("base", "audio_run")
    with pytest.raises(InputError, match="audio-adapter-width"):
        plan_swap_audio_encoder(write_checkpoint(cases / "deaf", Spec()), "audio-encoder")
    edit_yaml("audio-encoder/train.yaml", "num-blocks: 2", "num-blocks: 3")
    with pytest.raises(InputError, match=r"weights-do-not-fit.*final\.pt belongs"):
        plan_swap_audio_encoder("base", "audio-encoder")
    with pytest.raises(InputError, match=r"weights-do-not-fit.*--audio-encoder"):
        plan_extract_audio_encoder("base")
    edit_yaml("audio-encoder/train.yaml", "input_dim: 24", "input_dim: 25")
    with pytest.raises(InputError, match=r"unsupported-audio-config.*train\.yaml: input_dim"):
        plan_swap_audio_encoder("base", "audio-encoder")
    shutil.rmtree("audio-encoder")
    with pytest.raises(InputError, match="audio-encoder-unknown"):
        plan_extract_audio_encoder("base")


def test_a_trained_prompt_must_be_there(cases: Path) -> None:
    apply(plan_set("base", {"audio_prompt_finetune": True, "audio_prompt_num": 2}), "asks")
    with pytest.raises(InputError, match="prompt_embeddings"):
        plan_swap_audio_encoder("asks", "audio-encoder")
    shard = next(
        s for s in Path("asks").glob("*.safetensors") if any("adpter" in n for n in load_file(s))
    )
    content = load_file(shard) | {f"{AUDIO}prompt_embeddings.weight": np.ones((2, 48), np.float32)}
    save_file(content, shard, {"format": "pt"})
    index = Path("asks/model.safetensors.index.json")
    known = json.loads(index.read_text())
    known["weight_map"][f"{AUDIO}prompt_embeddings.weight"] = shard.name
    known["metadata"]["total_size"] += 2 * 48 * 4
    index.write_text(json.dumps(known))
    apply(plan_swap_audio_encoder("asks", "audio-encoder"), "swapped")
    assert (tensors("swapped")[f"{AUDIO}prompt_embeddings.weight"] == 1).all()
    apply(plan_extract_audio_encoder("swapped"), "heard")
    assert "prompt_embeddings.weight" in open_checkpoint("heard/final.pt").tensors


@pytest.mark.parametrize(
    "planned",
    [
        lambda: plan_merge_audio_adapter("base", "audio_run"),
        lambda: plan_extract_audio_adapter("base"),
        lambda: plan_swap_audio_encoder("base", "audio-encoder", adapter="reinit", seed=7),
        lambda: plan_swap_audio_encoder("base", "audio-encoder", adapter="audio_run"),
        lambda: plan_extract_audio_encoder("base", audio_encoder="audio-encoder"),
    ],
    ids=["merge", "extract-adapter", "swap", "swap-adapter", "extract"],
)
def test_saved_plans_are_computed_again(cases: Path, planned: object) -> None:
    assert callable(planned)
    plan = planned()
    assert isinstance(plan, Plan)
    save_plan(plan, "plan.json")
    assert load_plan("plan.json").edits == plan.edits


def test_a_changed_train_yaml_spoils_a_saved_plan(cases: Path) -> None:
    save_plan(plan_swap_audio_encoder("base", "audio-encoder", adapter="reinit"), "plan.json")
    edit_yaml("audio-encoder/train.yaml", "\n  kernel_size: 3", "\n  kernel_size: 5")
    with pytest.raises(InputError, match="invalid-plan"):
        load_plan("plan.json")
