"""merge-lora: upstream's merges bit for bit, what upstream loses, and what is refused by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import GOLDEN
from vita_ckpt import (
    AdapterError,
    CastError,
    InputError,
    LoraMerge,
    Options,
    Plan,
    UsageError,
    apply,
    apply_in_place,
    inspect,
    load_plan,
    open_checkpoint,
    plan_merge_lora,
    plan_merge_projector,
    plan_resize_embeddings,
    plan_swap_tower,
    save_plan,
    undo,
    validate,
)
from vita_ckpt.core.reading_notes import reading_notes

CASES = ("L1", "L2", "L3", "L4")
MODULE = "model.layers.0.self_attn.q_proj"
EMBED = "model.embed_tokens"
DELTAS = "adapter_model.safetensors"
UNREACHABLE = "tower-path-unreachable"
Tensors = dict[str, torch.Tensor]


def loaded(directory: Path) -> Tensors:
    tensors: Tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def same(one: Tensors, other: Tensors) -> list[str]:
    """The names whose tensors differ in dtype, shape or a bit."""
    assert one.keys() == other.keys()
    return [
        name
        for name, tensor in one.items()
        if tensor.dtype != other[name].dtype
        or not torch.equal(tensor.view(torch.uint8), other[name].view(torch.uint8))
    ]


def unsound(root: Path) -> list[str]:
    """The rules that a checkpoint breaks; that its tower is elsewhere is none of them."""
    return [found.rule for found in validate(root).findings if found.rule != UNREACHABLE]


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """L3 with a base and a run that may be changed."""
    for name in ("base", "lora"):
        shutil.copytree(GOLDEN / "L3" / name, tmp_path / name)
    return tmp_path


def edit(run: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    """Change the deltas of a run."""
    tensors = load_file(run / DELTAS)
    save_file(change(tensors) or tensors, run / DELTAS, metadata={"format": "pt"})


def edit_beside(run: Path, change: Callable[[Tensors], Tensors | None]) -> None:
    """Change what was trained beside the deltas."""
    path = run / "non_lora_trainables.bin"
    tensors = torch.load(path, weights_only=True)
    torch.save(change(tensors) or tensors, path)


def configure(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


def merged(case: Path, **options: Any) -> tuple[Plan, Tensors]:
    plan = plan_merge_lora(case / "base", case / "lora", **options)
    return plan, loaded(Path(apply(plan, case / "out")))


def tied(case: Path) -> torch.Tensor:
    """The embeddings of the base, to which its head is tied from now on."""
    for file in (case / "base").glob("*.safetensors"):
        kept = {n: t for n, t in load_file(file).items() if n != "lm_head.weight"}
        save_file(kept, file, metadata={"format": "pt"})
    index = case / "base" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"].pop("lm_head.weight")
    size = sum(tensor.nbytes for tensor in loaded(case / "base").values())
    index.write_text(json.dumps({**content, "metadata": {"total_size": size}}))
    configure(case / "base" / "config.json", tie_word_embeddings=True)
    return loaded(case / "base")[f"{EMBED}.weight"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("dtype", "expected"), [(None, "merged_by_upstream"), ("f16", "merged_by_loader_fp16")]
)
def test_it_is_upstreams_merge(tmp_path: Path, name: str, dtype: str | None, expected: str) -> None:
    case = GOLDEN / name
    plan = plan_merge_lora(case / "base", case / "lora", dtype=dtype)
    out = Path(apply(plan, tmp_path / "out", options=Options(check=True)))
    assert same(loaded(out), loaded(case / expected)) == []
    config = json.loads((out / "config.json").read_text())
    theirs = json.loads((case / expected / "config.json").read_text())
    assert config == {key: value for key, value in theirs.items() if key != "_name_or_path"}
    assert unsound(out) == []


def test_the_base_is_found_by_a_plain_name_only(
    case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(case.parent)
    assert plan_merge_lora(adapter=case / "lora").base.root == str(case / "base")
    for named in (str(case / "base"), "../base", "lora/../base", "~/base", "nobody/nothing", None):
        configure(case / "lora" / "adapter_config.json", base_model_name_or_path=named)
        with pytest.raises(InputError, match="lora-base-absent"):
            plan_merge_lora(adapter=case / "lora")


@pytest.mark.parametrize("dtype", [None, "f16", "f32"])
def test_in_place_it_is_the_same_and_undo_brings_back(case: Path, dtype: str | None) -> None:
    plan, expected = merged(case, dtype=dtype)
    before = {path.name: path.read_bytes() for path in (case / "base").iterdir()}
    apply_in_place(plan)
    assert same(loaded(case / "base"), expected) == []
    undo(case / "base")
    shutil.rmtree(case / "base" / ".vita-ckpt", ignore_errors=True)
    assert {path.name: path.read_bytes() for path in (case / "base").iterdir()} == before


def test_a_saved_plan_makes_the_same_and_one_that_was_changed_is_refused(case: Path) -> None:
    plan, _ = merged(case)
    save_plan(plan, case / "plan.json")
    assert load_plan(case / "plan.json") == plan
    content = json.loads((case / "plan.json").read_text())
    first = next(edit for edit in content["edits"] if "merge" in edit)
    first["merge"]["scale"] *= 2
    (case / "plan.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="invalid-plan"):
        load_plan(case / "plan.json")


def test_only_shards_with_a_change_are_written(case: Path) -> None:
    (case / "lora" / "non_lora_trainables.bin").unlink()
    edit(case / "lora", lambda t: {n: v for n, v in t.items() if MODULE in n})
    configure(case / "lora" / "adapter_config.json", target_modules=[MODULE])
    plan, after = merged(case)
    before = loaded(case / "base")
    assert [name for name in after if not torch.equal(after[name], before[name])] == [
        f"{MODULE}.weight"
    ]
    assert [type(edit.tensor) for edit in plan.tensor_edits] == [LoraMerge]


def test_what_upstream_loses_of_modules_to_save_is_kept(case: Path) -> None:
    trained = {
        name: torch.randn(loaded(case / "base")[f"{name}.weight"].shape).bfloat16()
        for name in ("model.embed_tokens", "lm_head")
    }
    saved = {
        f"base_model.model.{name}.modules_to_save.default.weight": t for name, t in trained.items()
    }
    edit_beside(case / "lora", lambda tensors: {**tensors, **saved})
    plan, after = merged(case)
    for name, tensor in trained.items():
        assert torch.equal(after[f"{name}.weight"], tensor)
    assert any("modules_to_save" in note and "upstream" in note for note in plan.notes)


def test_trained_weights_and_biases_below_a_delta_are_kept(case: Path) -> None:
    """What an unfrozen tower, or bias="lora_only", leaves in non_lora_trainables.bin."""
    base = loaded(case / "base")
    weight = torch.randn(base[f"{MODULE}.weight"].shape).bfloat16()
    bias = torch.randn(base[f"{MODULE}.bias"].shape).bfloat16()
    prefix = f"base_model.model.{MODULE}.base_layer"
    edit_beside(case / "lora", lambda t: {**t, f"{prefix}.weight": weight, f"{prefix}.bias": bias})
    plan, after = merged(case)
    assert torch.equal(after[f"{MODULE}.bias"], bias)
    deltas = load_file(case / "lora" / DELTAS)
    a, b = (deltas[f"base_model.model.{MODULE}.lora_{half}.weight"] for half in "AB")
    expected = weight + ((b.float() @ a.float()).bfloat16() * (7 / 5)).bfloat16()
    assert torch.equal(after[f"{MODULE}.weight"], expected)
    assert any("merge script drops" in note for note in plan.notes)
    assert inspect(case / "lora").kind == "lora-run"
    assert inspect(case / "lora" / "non_lora_trainables.bin").kind == "projector"
    assert not [found for found in validate(case / "lora").findings if found.severity == "error"]


def test_a_bias_that_is_in_both_files_counts_once(case: Path) -> None:
    name = f"base_model.model.{MODULE}.base_layer.bias"
    bias = torch.randn(loaded(case / "base")[f"{MODULE}.bias"].shape).bfloat16()
    edit(case / "lora", lambda tensors: {**tensors, name: bias})
    edit_beside(case / "lora", lambda tensors: {**tensors, name: bias})
    assert torch.equal(merged(case)[1][f"{MODULE}.bias"], bias)
    assert not [found for found in validate(case / "lora").findings if found.severity == "error"]
    assert inspect(case / "lora" / DELTAS).kind == "lora-run"


def test_a_projector_in_modules_to_save_is_in_both_files(case: Path) -> None:
    old = "base_model.model.model.mm_projector"
    beside = torch.load(case / "lora" / "non_lora_trainables.bin", weights_only=True)
    edit(case / "lora", lambda t: {**t, **beside})
    edit_beside(case / "lora", renamed(old, f"{old}.modules_to_save.default"))
    plan, after = merged(case)
    for name, tensor in beside.items():
        assert torch.equal(after[name.removeprefix("base_model.model.")], tensor)
    assert "lora-run" in str(inspect(case / "lora").kind)
    assert not [found for found in validate(case / "lora").findings if found.severity == "error"]
    projector = plan_merge_projector(case / "base", case / "lora")
    assert {e.name for e in projector.tensor_edits} <= {e.name for e in plan.tensor_edits}


@pytest.mark.parametrize("trained", ["model.embed_tokens", "lm_head"])
def test_tied_embeddings_are_two_tensors_once_one_is_trained(case: Path, trained: str) -> None:
    before = tied(case)
    new = torch.randn(before.shape).bfloat16()
    name = f"base_model.model.{trained}.modules_to_save.default.weight"
    edit_beside(case / "lora", lambda tensors: {**tensors, name: new})
    _, after = merged(case)
    names = ("model.embed_tokens", "lm_head")
    for module in names:
        assert torch.equal(after[f"{module}.weight"], new if module == trained else before)
    config = json.loads((case / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert unsound(case / "out") == []


def test_more_rows_are_the_vocabulary(case: Path) -> None:
    base = loaded(case / "base")
    rows = len(base["lm_head.weight"]) + 3
    saved = {
        f"base_model.model.{name}.weight": torch.randn(rows, 48).bfloat16()
        for name in ("model.embed_tokens", "lm_head")
    }
    edit(case / "lora", lambda tensors: {**tensors, **saved})
    _, after = merged(case)
    assert len(after["lm_head.weight"]) == rows
    assert json.loads((case / "out" / "config.json").read_text())["vocab_size"] == rows
    assert unsound(case / "out") == []


def with_tokens(case: Path, rows: list[int], named: str = EMBED) -> torch.Tensor:
    """Train some rows by themselves, as peft saves them; return them."""
    new = torch.randn(len(rows), 48).bfloat16()
    name = f"base_model.model.{named}.token_adapter.trainable_tokens_delta"
    edit(case / "lora", lambda tensors: {**tensors, name: new})
    configure(case / "lora" / "adapter_config.json", trainable_token_indices=rows)
    return new


@pytest.mark.parametrize("is_tied", [True, False])
def test_rows_of_tokens_that_were_trained_by_themselves(case: Path, is_tied: bool) -> None:
    expected = tied(case) if is_tied else loaded(case / "base")[f"{EMBED}.weight"]
    rows = [5, 0, len(expected) - 1, 6]
    expected[rows] = with_tokens(case, rows)
    plan, after = merged(case)
    assert torch.equal(after[f"{EMBED}.weight"], expected)
    assert ("lm_head.weight" in after) != is_tied
    assert f"4 rows of {EMBED} as trained, by trainable_token_indices" in plan.notes
    assert not [f for f in validate(case / "lora").findings if f.severity == "error"]
    assert unsound(case / "out") == []
    apply_in_place(plan_merge_lora(case / "base", case / "lora"))
    assert same(loaded(case / "base"), after) == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([1], "lora-rank-mismatch.*1 rows"),
        ([1, 1], "lora-config-invalid"),
        ([0, 100_000], "lora-target-absent.*resize-embeddings"),
    ],
)
def test_rows_that_are_not_the_bases(case: Path, rows: list[int], said: str) -> None:
    with_tokens(case, [0, 1])
    configure(case / "lora" / "adapter_config.json", trainable_token_indices=rows)
    with pytest.raises(AdapterError, match=said):
        plan_merge_lora(case / "base", case / "lora")


@pytest.mark.parametrize(("alpha", "is_one"), [(14, True), (7, False)])
def test_deltas_of_a_tied_head_count_once_if_they_were_kept_tied(
    case: Path, alpha: int, is_one: bool
) -> None:
    """What ensure_weight_tying saves: the same delta twice, and embeddings as the only target."""
    table = tied(case)
    a, b = torch.randn(5, len(table)).bfloat16(), torch.randn(48, 5).bfloat16()
    deltas = {
        f"{EMBED}.lora_embedding_A": a,
        f"{EMBED}.lora_embedding_B": b,
        "lm_head.lora_A.weight": b.T.contiguous(),
        "lm_head.lora_B.weight": a.T.contiguous(),
    }
    edit(case / "lora", lambda t: {**t, **{f"base_model.model.{n}": v for n, v in deltas.items()}})
    config = json.loads((case / "lora" / "adapter_config.json").read_text())
    configure(
        case / "lora" / "adapter_config.json",
        target_modules=[*config["target_modules"], "embed_tokens"],
        ensure_weight_tying=True,
        alpha_pattern={"embed_tokens": 14, "lm_head": alpha},
        peft_version="0.21.2",
    )
    plan, after = merged(case)
    assert ("lm_head.weight" in after) != is_one
    assert not torch.equal(after[f"{EMBED}.weight"], table)
    assert any("one tensor and are two now" in note for note in plan.notes) != is_one
    assert unsound(case / "out") == []


def test_biases_that_were_trained_and_not_saved_are_said(case: Path) -> None:
    """As peft leaves out those of bias="lora_only"."""
    configure(case / "lora" / "adapter_config.json", bias="lora_only")
    plan, _ = merged(case)
    assert any("saved in neither file" in note and "bias" in note for note in plan.notes)
    assert "lora-bias-absent" in {found.rule for found in validate(case / "lora").findings}


@pytest.mark.parametrize("initial", ["mica", "orthogonal", None, False])
def test_how_deltas_began_does_not_matter_where_the_base_was_kept(
    case: Path, initial: str | bool | None
) -> None:
    plan = plan_merge_lora(case / "base", case / "lora")
    configure(case / "lora" / "adapter_config.json", init_lora_weights=initial)
    assert plan_merge_lora(case / "base", case / "lora").notes == plan.notes


def unmerged(case: Path, prefix: str = "") -> Path:
    """The model of a case as a trainer saves it whole, its deltas in it."""
    base, deltas = loaded(case / "base"), load_file(case / "lora" / DELTAS)
    with_delta = {n.removeprefix("base_model.model.").partition(".lora_")[0] for n in deltas}
    tensors = {
        f"{prefix}{module}.base_layer.{leaf}" if module in with_delta else f"{prefix}{name}": tensor
        for name, tensor in base.items()
        for module, _, leaf in [name.rpartition(".")]
    }
    for name, tensor in deltas.items():
        bare = name.removeprefix("base_model.model.").removesuffix(".weight")
        tensors[f"{prefix}{bare}.default.weight"] = tensor
    root = case / "whole"
    shutil.copytree(case / "base", root, ignore=shutil.ignore_patterns("model*"))
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    return root


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_deltas_that_were_saved_unmerged(case: Path, prefix: str) -> None:
    root = unmerged(case, prefix)
    (case / "lora" / "non_lora_trainables.bin").unlink()
    expected = merged(case)[1]
    with pytest.raises(AdapterError, match="lora-config-missing"):
        plan_merge_lora(root)
    file = case / "lora" / "adapter_config.json"
    with pytest.raises(InputError, match=r"base-does-not-fit-run.*unmerged.*merge-lora --base"):
        plan_merge_lora(root, case / "lora")
    for number, options in enumerate(({"lora_alpha": 7}, {"adapter_config": file})):
        plan = plan_merge_lora(root, **options)  # type: ignore[arg-type]
        out = Path(apply(plan, case / f"out-{number}"))
        assert same(loaded(out), expected) == []
    shutil.copy(file, root)
    apply_in_place(plan_merge_lora(root))
    assert same(loaded(root), expected) == []


def test_other_surgeries_say_that_deltas_are_unmerged(case: Path) -> None:
    root = unmerged(case, "base_model.model.")
    file = case / "lora" / "non_lora_trainables.bin"
    command = re.escape(f"merge-lora --base {root} --adapter-config FILE --out OUT")
    plans: tuple[Callable[[], object], ...] = (
        lambda: plan_merge_projector(root, file),
        lambda: plan_resize_embeddings(root, tokens=100),
        lambda: plan_swap_tower(root, GOLDEN / "A2" / "tower-siglip"),
    )
    for plan in plans:
        with pytest.raises(InputError, match=f"unmerged-peft.*{command}"):
            plan()
    out = Path(apply(plan_merge_lora(root, lora_alpha=7), case / "out"))
    assert not any("upstream" in note for note in plan_merge_lora(root, lora_alpha=7).notes)
    assert plan_merge_projector(out, file).edits


def test_a_projector_run_is_no_lora_run_whatever_its_base(case: Path) -> None:
    run = case / "projector"
    run.mkdir()
    shutil.copy(case / "lora" / "non_lora_trainables.bin", run / "mm_projector.bin")
    with pytest.raises(AdapterError, match=r"not-a-lora-run.*a projector run"):
        plan_merge_lora(adapter=run)


def test_deltas_saved_unmerged_are_not_merged_with_bad_values(case: Path) -> None:
    root = unmerged(case)
    edit_file = root / "model.safetensors"
    tensors = load_file(edit_file)
    name = next(name for name in tensors if ".lora_B." in name)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, edit_file, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=f"bad-adapter-values: .*{re.escape(name)}.*NaN"):
        plan_merge_lora(root, lora_alpha=7)
    plan = plan_merge_lora(root, lora_alpha=7, allow_bad_values=True)
    save_plan(plan, case / "plan.json")
    assert load_plan(case / "plan.json").edits == plan.edits


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: t for n, t in tensors.items() if part not in n}


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n.replace(old, new): t for n, t in tensors.items()}


def add_lora_biases(run: Path) -> None:
    """Give every delta a bias, of layers without one too."""
    configure(run / "adapter_config.json", lora_bias=True)
    biases = {
        name.replace(".weight", ".bias"): torch.ones(len(tensor)).bfloat16()
        for name, tensor in load_file(run / DELTAS).items()
        if ".lora_B." in name
    }
    edit(run, lambda tensors: {**tensors, **biases})


WRAPPED = {
    "_orig_mod": ("base_model.model.", "_orig_mod.base_model.model."),
    "module": ("base_model.model.", "module.base_model.model."),
    "_fsdp_wrapped_module": (".self_attn.", "._fsdp_wrapped_module.self_attn."),
    "_checkpoint_wrapped_module": (".mlp.", "._checkpoint_wrapped_module.mlp."),
}


@pytest.mark.parametrize("level", WRAPPED)
def test_wrappers_in_the_names_of_a_run_are_left_out_and_said(case: Path, level: str) -> None:
    expected = plan_merge_lora(case / "base", case / "lora")
    edit(case / "lora", renamed(*WRAPPED[level]))
    beside = "mm_projector._orig_mod." if level == "_orig_mod" else "mm_projector."
    edit_beside(case / "lora", renamed("mm_projector.", beside))
    plan = plan_merge_lora(case / "base", case / "lora")
    assert f"left out of the names: {level}" in plan.notes
    assert {e.name for e in plan.tensor_edits} == {e.name for e in expected.tensor_edits}
    assert not [f for f in validate(case / "lora").findings if f.severity == "error"]


def test_an_adapter_file_that_is_not_read_is_said(case: Path) -> None:
    deltas = load_file(case / "lora" / DELTAS)
    torch.save({name: t + 1 for name, t in deltas.items()}, case / "lora/adapter_model.bin")
    (note,) = reading_notes(open_checkpoint(case / "lora"))
    assert f"{DELTAS} is read, not adapter_model.bin" in note
    found = next(f for f in validate(case / "lora").findings if f.rule == "other-weights")
    assert "it differs" in found.message


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "half": (lambda run: edit(run, without(f"{MODULE}.lora_B")), "lora-pair-incomplete"),
    "no such module": (
        lambda run: edit(run, renamed("layers.1", "layers.9")),
        "lora-target-absent",
    ),
    "convolution": (
        lambda run: edit(
            run, lambda t: {**t, **{n: v[..., None] for n, v in t.items() if MODULE in n}}
        ),
        "lora-unsupported",
    ),
    "two adapters": (
        lambda run: edit(
            run,
            lambda t: {
                n.replace(".weight", f".{'a' if 'layers.0' in n else 'b'}.weight"): v
                for n, v in t.items()
            },
        ),
        "lora-unsupported",
    ),
    "another delta": (
        lambda run: edit(run, renamed(f"{MODULE}.lora_A", f"{MODULE}.lora_C")),
        "lora-unsupported",
    ),
    "nowhere": (
        lambda run: edit_beside(run, lambda t: {**t, "model.more.weight": torch.ones(2)}),
        "lora-tensor-unplaced",
    ),
    "rank": (lambda run: configure(run / "adapter_config.json", r=4), "lora-rank-mismatch"),
    "alpha": (lambda run: configure(run / "adapter_config.json", lora_alpha=0), "lora-alpha"),
    "dora": (
        lambda run: configure(run / "adapter_config.json", use_dora=True),
        "dora-magnitude-missing",
    ),
    "peft type": (
        lambda run: configure(run / "adapter_config.json", peft_type="LOHA"),
        "peft_type",
    ),
    "pissa": (
        lambda run: configure(run / "adapter_config.json", init_lora_weights="pissa"),
        "init_lora_weights",
    ),
    "activated": (
        lambda run: configure(run / "adapter_config.json", alora_invocation_tokens=[1]),
        "no merge computes it",
    ),
    "bias of a delta": (add_lora_biases, "no place for"),
    "unknown setting": (
        lambda run: configure(run / "adapter_config.json", some_new_thing=3),
        "some_new_thing",
    ),
    "pattern": (
        lambda run: configure(run / "adapter_config.json", target_modules=r"(q)\1"),
        "target_modules",
    ),
    "no target": (
        lambda run: configure(run / "adapter_config.json", target_modules=["c_attn"]),
        "lora-target-absent",
    ),
    "rows": (
        lambda run: edit(
            run,
            lambda t: {**t, "base_model.model.lm_head.weight": torch.ones(999, 48).bfloat16()},
        ),
        "lora-tensor-unplaced",
    ),
    "no deltas": (lambda run: (run / DELTAS).unlink(), "lora-pair-incomplete"),
    "not gathered": (
        lambda run: edit_beside(run, lambda t: dict.fromkeys(t, torch.empty(0))),
        "lora-tensor-unplaced.*ZeRO-3",
    ),
    "no half gathered": (
        lambda run: edit(run, lambda t: dict.fromkeys(t, torch.empty(0))),
        "lora-pair-incomplete.*ZeRO-3",
    ),
    "nothing gathered": (lambda run: edit(run, lambda _: {"x": torch.ones(0)}), "pair-incomplete"),
    "no config": (lambda run: (run / "adapter_config.json").unlink(), "lora-config-missing"),
    "other model": (lambda run: configure(run / "config.json", model_type="vita-mixtral"), "base"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_refused_by_name_and_found_by_validate(case: Path, name: str) -> None:
    breaks, said = BROKEN[name]
    breaks(case / "lora")
    with pytest.raises(InputError, match=said) as error:
        plan_merge_lora(case / "base", case / "lora")
    if "says all that is wrong" in str(error.value):
        assert f"vita-ckpt validate {case / 'lora'} says" in str(error.value)
    if said.startswith(("lora", "dora")):
        assert said.partition(".")[0] in {found.rule for found in validate(case / "lora").findings}


def test_what_peft_passes_over_is_said(case: Path) -> None:
    run = case / "lora"
    edit(run, without("layers.1.mlp.up_proj"))
    configure(run / "adapter_config.json", target_modules=r".*layers\.\d\..*(up_proj|q_proj)")
    plan, after = merged(case)
    notes = " ".join(plan.notes)
    assert "without a delta, unchanged: model.layers.1.mlp.up_proj" in notes
    assert "not targeted by the config, unchanged" in notes
    before = loaded(case / "base")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.k_proj.weight"):
        assert torch.equal(after[name], before[name])


def test_a_sum_that_float16_cannot_hold_is_refused(case: Path) -> None:
    edit(case / "lora", lambda t: {n: v * (1e3 if MODULE in n else 1) for n, v in t.items()})
    configure(case / "lora" / "adapter_config.json", lora_alpha=10**6)
    with pytest.raises(CastError, match="cast-overflow"):
        merged(case, dtype="f16")
    assert not (case / "out").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_are_refused_unless_allowed(case: Path, bad: float) -> None:
    edit(
        case / "lora",
        lambda t: {n: v.fill_(bad) if f"{MODULE}.lora_A" in n else v for n, v in t.items()},
    )
    with pytest.raises(AdapterError, match=r"bad-adapter-values.*q_proj\.lora_A"):
        plan_merge_lora(case / "base", case / "lora")
    assert {f.rule for f in validate(case / "lora").findings} & {"value-nan", "value-inf"}
    plan = plan_merge_lora(case / "base", case / "lora", allow_bad_values=True)
    save_plan(plan, case / "plan.json")
    assert load_plan(case / "plan.json") == plan


def test_a_run_is_merged_once(case: Path) -> None:
    plan, _ = merged(case)
    assert plan.base.root == str(case / "base")
    with pytest.raises(AdapterError, match="lora-already-merged"):
        plan_merge_lora(case / "out", case / "lora")


@pytest.mark.parametrize("in_place", [False, True])
def test_the_runs_tokenizer_comes_along(case: Path, in_place: bool) -> None:
    for root, text in (("base", "{}"), ("lora", '{"a": 1}')):
        (case / root / "added_tokens.json").write_text(text)
        (case / root / "merges.txt").write_text("the same")
    (case / "lora" / "chat_template.jinja").write_text("new")
    plan = plan_merge_lora(case / "base", case / "lora")
    out = Path(apply_in_place(plan) if in_place else apply(plan, case / "out"))
    assert (out / "added_tokens.json").read_text() == '{"a": 1}'
    assert (out / "chat_template.jinja").read_text() == "new"
    assert "merges.txt" not in {getattr(edit, "name", "") for edit in plan.edits}


def test_options_that_exclude_each_other(case: Path) -> None:
    with pytest.raises(UsageError, match="options-exclude-each-other"):
        plan_merge_lora(case / "base", case / "lora", lora_alpha=3)
    with pytest.raises(UsageError, match="option-needed"):
        plan_merge_lora()
    with pytest.raises(AdapterError, match="not-a-lora-run"):
        plan_merge_lora(case / "base", case / "base")
    with pytest.raises(AdapterError, match=r"not-a-lora-run.*give the directory that it lies in"):
        plan_merge_lora(case / "base", case / "lora" / DELTAS)
    for wrong in ((case / "lora", case / "base"), (case / "lora",)):
        with pytest.raises(UsageError, match=r"base-and-adapter-swapped.*merge-lora --base"):
            plan_merge_lora(*wrong)
    with pytest.raises(AdapterError, match="lora-empty"):
        plan_merge_lora(case / "base")
    assert open_checkpoint(case / "lora").layout == "lora"
