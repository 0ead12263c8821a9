"""get_w and the projector's plans: pure, without disk and without torch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.builder import Spec, TowerSpec, checkpoint_config, checkpoint_shapes, mm_projector
from vita_ckpt.core.checkpoint import Cast, Checkpoint, LocalFile, Shard, TensorRef
from vita_ckpt.core.plan import AddTensor, DropTensor, Plan, ReplaceTensor, SetConfig
from vita_ckpt.errors import AdapterError, CastError, InputError, UsageError
from vita_ckpt.surgery.donors import get_w
from vita_ckpt.surgery.projector import plan_extract_projector, plan_merge_projector

Shapes = dict[str, tuple[int, ...]]
TYPES = (
    "linear",
    "mlp1x_gelu",
    "mlp2x_gelu",
    "mlp3x_gelu",
    "sppv1",
    "sppv2",
    "sppv3",
    "ldp",
    "vanilla",
    "minigpt",
)


def upstream_get_w(weights: dict[str, Any], keyword: str) -> dict[str, Any]:
    """Upstream's rule as UPSTREAM states it."""
    return {key.split(keyword + ".")[1]: value for key, value in weights.items() if keyword in key}


def checkpoint(
    shapes: Shapes,
    config: dict[str, Any] | None = None,
    *,
    dtype: str = "F32",
    layout: Any = "safetensors",
    root: str = "/base",
    dtypes: dict[str, str] | None = None,
) -> Checkpoint:
    file = LocalFile(f"{root}/model.safetensors", 1 << 40, 1)
    tensors = {
        name: TensorRef(file, 8 * number, (dtypes or {}).get(name, dtype), shape)
        for number, (name, shape) in enumerate(shapes.items())
    }
    return Checkpoint(
        root, layout, tensors, (Shard("model.safetensors", file, "safetensors"),), config
    )


def base_of(spec: Spec | None = None, dtype: str = "BF16", **config: Any) -> Checkpoint:
    spec = spec or Spec()
    return checkpoint(
        checkpoint_shapes(spec), {**checkpoint_config(spec, dtype), **config}, dtype=dtype
    )


def adapter_of(
    shapes: Shapes,
    config: dict[str, Any] | None = None,
    *,
    prefix: str = "model.mm_projector.",
    **options: Any,
) -> Checkpoint:
    named = {f"{prefix}{name}": shape for name, shape in shapes.items()}
    return checkpoint(
        named, config, layout=options.pop("layout", "run"), root="/adapter", **options
    )


def edits(plan: Plan, kind: type) -> dict[str, Any]:
    return {getattr(e, "name", getattr(e, "key", "")): e for e in plan.edits if isinstance(e, kind)}


component = st.sampled_from(["model", "base_model", "layers", "0", "weight", "projector", "mm"])
path = st.lists(component, max_size=3).map(lambda parts: "".join(f"{p}." for p in parts))


@given(
    st.dictionaries(
        st.builds(lambda a, b, c: f"{a}mm_projector.{b}{c}", path, path, component)
        | st.builds(lambda a, b: f"{a}{b}", path, component),
        st.integers(),
        max_size=6,
    )
)
def test_get_w_equals_upstream_on_well_formed_names(weights: dict[str, int]) -> None:
    wanted = [name for name in weights if "mm_projector" in name]
    if len({name.split("mm_projector.")[1] for name in wanted}) == len(wanted):
        assert get_w(weights, "mm_projector") == upstream_get_w(weights, "mm_projector")
    else:
        with pytest.raises(AdapterError, match="ambiguous-key"):
            get_w(weights, "mm_projector")


@pytest.mark.parametrize(
    "names",
    [
        ["model.mm_projector_old.0.weight"],
        ["model.mm_projector"],
        ["model.mm_projector."],
        ["mm_projector.0.mm_projector.weight"],
        ["mm_projector.mm_projector.0.weight"],
        ["model.old_mm_projector.0.weight"],
        ["model.mm_projector.0.weight", "base_model.model.model.mm_projector.0.weight"],
    ],
)
def test_get_w_refuses_by_name_what_upstream_mangles(names: list[str]) -> None:
    weights = {"model.mm_projector.2.bias": 0} | dict.fromkeys(names, 1)
    with pytest.raises(AdapterError) as error:
        get_w(weights, "mm_projector")
    assert error.value.code == "ambiguous-key"
    assert error.value.subject in names


def test_get_w_of_the_audio_adapter() -> None:
    weights = {"model.audio_encoder.adpter.project.weight": 1, "model.norm.weight": 2}
    assert get_w(weights, "audio_encoder.adpter") == {"project.weight": 1}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("family", ["internvit", "siglip", "clip", "eva"])
def test_every_type_merges_into_its_own_base(kind: str, family: str) -> None:
    spec = Spec(projector=kind, tower=TowerSpec(family=family))
    shapes = mm_projector(kind, spec.mm_hidden, spec.hidden)
    plan = plan_merge_projector(base_of(spec), adapter_of(shapes))
    replaced = edits(plan, ReplaceTensor)
    assert set(replaced) == {f"model.mm_projector.{name}" for name in shapes}
    assert all(isinstance(e.tensor, Cast) and e.tensor.dtype == "BF16" for e in replaced.values())
    assert len(plan.edits) == len(replaced)
    assert plan.target().config == plan.base.config


@pytest.mark.parametrize(
    "prefix", ["mm_projector.", "model.mm_projector.", "base_model.model.model.mm_projector."]
)
def test_prefixes_of_every_trainer(prefix: str) -> None:
    shapes = mm_projector("mlp2x_gelu", Spec().mm_hidden, Spec().hidden)
    plan = plan_merge_projector(base_of(), adapter_of(shapes, prefix=prefix))
    assert set(edits(plan, ReplaceTensor)) == {f"model.mm_projector.{n}" for n in shapes}


def test_dtype_follows_the_base_or_the_option() -> None:
    shapes = mm_projector("mlp2x_gelu", Spec().mm_hidden, Spec().hidden)
    for dtype, wanted in ((None, "BF16"), ("F16", "F16"), ("F32", "F32")):
        plan = plan_merge_projector(base_of(), adapter_of(shapes), dtype=dtype)
        assert {e.tensor.dtype for e in edits(plan, ReplaceTensor).values()} == {wanted}
    uncast = edits(plan, ReplaceTensor)["model.mm_projector.0.weight"].tensor
    assert isinstance(uncast, TensorRef)


def test_a_base_without_projector_takes_the_language_models_dtype() -> None:
    spec = Spec()
    shapes = {n: s for n, s in checkpoint_shapes(spec).items() if "mm_projector" not in n}
    base = checkpoint(shapes, {**checkpoint_config(spec, "F16"), "use_mm_proj": False}, dtype="F16")
    plan = plan_merge_projector(
        base, adapter_of(mm_projector("mlp2x_gelu", spec.mm_hidden, spec.hidden))
    )
    assert {e.tensor.dtype for e in edits(plan, AddTensor).values()} == {"F16"}
    assert edits(plan, SetConfig)["use_mm_proj"].value is True


def test_another_type_that_fits_updates_the_config_and_drops_the_old() -> None:
    spec = Spec(projector="mlp3x_gelu")
    plan = plan_merge_projector(
        base_of(spec), adapter_of(mm_projector("linear", spec.mm_hidden, spec.hidden))
    )
    assert set(edits(plan, AddTensor)) == {"model.mm_projector.weight", "model.mm_projector.bias"}
    assert len(edits(plan, DropTensor)) == 6
    assert edits(plan, SetConfig)["mm_projector_type"].value == "linear"
    assert "mlp3x_gelu" in edits(plan, SetConfig)["mm_projector_type"].reason
    assert plan.target().config == {**(plan.base.config or {}), "mm_projector_type": "linear"}


@pytest.mark.parametrize(("mine", "theirs"), [("sppv1", "sppv2"), ("vanilla", "minigpt")])
def test_types_with_the_same_tensors_are_told_apart_by_the_runs_config(
    mine: str, theirs: str
) -> None:
    spec = Spec(projector=mine)
    shapes = mm_projector(theirs, spec.mm_hidden, spec.hidden)
    plan = plan_merge_projector(base_of(spec), adapter_of(shapes, {"mm_projector_type": theirs}))
    assert edits(plan, SetConfig)["mm_projector_type"].value == theirs
    plan = plan_merge_projector(base_of(spec), adapter_of(shapes))
    assert not edits(plan, SetConfig)
    with pytest.raises(AdapterError, match="ambiguous-projector-type"):
        plan_merge_projector(base_of(Spec(projector="linear")), adapter_of(shapes))


def test_the_tower_outweighs_a_wrong_mm_hidden_size() -> None:
    """Documentation calls the ViT width mm_hidden_size; the projector receives four times that."""
    spec = Spec()
    shapes = mm_projector("mlp2x_gelu", spec.mm_hidden, spec.hidden)
    plan = plan_merge_projector(base_of(spec, mm_hidden_size=spec.tower.width), adapter_of(shapes))
    assert edits(plan, SetConfig)["mm_hidden_size"].value == spec.mm_hidden
    narrow = mm_projector("mlp2x_gelu", spec.tower.width, spec.hidden)
    with pytest.raises(AdapterError, match="projector-width-mismatch"):
        plan_merge_projector(base_of(spec, mm_hidden_size=spec.tower.width), adapter_of(narrow))


def test_s2_widths() -> None:
    spec = Spec(tower=TowerSpec("siglip"), s2_scales="8,16,24")
    shapes = mm_projector("mlp2x_gelu", 3 * spec.tower.width, spec.hidden)
    assert not edits(plan_merge_projector(base_of(spec), adapter_of(shapes)), SetConfig)
    one = mm_projector("mlp2x_gelu", spec.tower.width, spec.hidden)
    with pytest.raises(AdapterError, match="projector-width-mismatch"):
        plan_merge_projector(base_of(spec), adapter_of(one))


def test_a_width_that_does_not_fit_says_what_it_was_trained_for() -> None:
    siglip, internvit = Spec(tower=TowerSpec("siglip")), Spec()
    for spec, wide, out, hint in (
        (siglip, 3 * siglip.mm_hidden, siglip.hidden, "with S2 at 3 scales"),
        (siglip, siglip.mm_hidden + 1, siglip.hidden, "for another tower)"),
        (internvit, 3 * internvit.mm_hidden, internvit.hidden, "for another tower)"),
        (internvit, internvit.mm_hidden, internvit.hidden + 1, "for another language model"),
    ):
        adapter = adapter_of(mm_projector("mlp2x_gelu", wide, out))
        with pytest.raises(AdapterError) as error:
            plan_merge_projector(base_of(spec), adapter)
        assert hint in str(error.value)


MLP = mm_projector("mlp2x_gelu", Spec().mm_hidden, Spec().hidden)
MISFITS: list[tuple[str, Shapes, str]] = [
    ("adapter-no-projector", {}, "without a single tensor"),
    ("projector-incomplete", {n: s for n, s in MLP.items() if n != "2.bias"}, "2.bias"),
    ("projector-incomplete", {n: s for n, s in MLP.items() if n.endswith("weight")}, "0.bias"),
    ("projector-unexpected-tensor", {**MLP, "2.scale": (3,)}, "2.scale"),
    ("projector-shape-mismatch", {**MLP, "2.bias": (7,)}, "2.bias"),
    ("projector-shape-mismatch", {**MLP, "2.weight": (16, 15)}, "2.weight"),
    ("projector-width-mismatch", mm_projector("mlp2x_gelu", 31, 16), "31→16"),
    ("projector-width-mismatch", mm_projector("mlp2x_gelu", 32, 17), "32→17"),
    ("empty-tensor", dict.fromkeys(MLP, (0,)), "ZeRO-3"),
    ("empty-tensor", {**MLP, "0.bias": (0,)}, "0.bias"),
]


@pytest.mark.parametrize(("code", "shapes", "word"), MISFITS)
def test_adapters_that_do_not_fit_are_named(code: str, shapes: Shapes, word: str) -> None:
    with pytest.raises(AdapterError) as error:
        plan_merge_projector(base_of(), adapter_of(shapes))
    assert error.value.code == code
    assert word in str(error.value)
    assert "/adapter" in str(error.value)


def test_an_adapter_of_something_else_says_what_was_found() -> None:
    with pytest.raises(AdapterError, match=r"adapter-no-projector.*1 audio adapter.*adpter"):
        plan_merge_projector(
            base_of(), checkpoint({"model.audio_encoder.adpter.project.weight": (2, 2)})
        )
    with pytest.raises(
        AdapterError, match=r"adapter-no-projector.*0.weight.*only below mm_projector"
    ):
        plan_merge_projector(base_of(), checkpoint({**MLP, "norm.weight": (4,)}))


def test_casts_that_are_not_defined_are_refused() -> None:
    with pytest.raises(CastError, match=r"cast-not-defined.*I8"):
        plan_merge_projector(base_of(), adapter_of(MLP, dtype="I8"))


def test_bases_that_are_no_vita_checkpoint() -> None:
    adapter = adapter_of(MLP)
    for base, word in (
        (checkpoint(checkpoint_shapes(Spec()), None), "no config.json"),
        (checkpoint(MLP, {}, layout="run"), "a projector run"),
        (checkpoint(MLP, {}, layout="file"), "a lone weight file"),
        (checkpoint(checkpoint_shapes(Spec()), {"model_type": "qwen2"}), "plain Qwen2"),
        (checkpoint(checkpoint_shapes(Spec()), {"model_type": ["x"]}), "vita-Qwen2"),
    ):
        with pytest.raises(InputError, match="not-a-vita-checkpoint") as error:
            plan_merge_projector(base, adapter)
        assert word in str(error.value)


def test_extras_are_left_out_unless_asked_for() -> None:
    spec = Spec()
    shapes = {
        **{f"model.mm_projector.{n}": s for n, s in MLP.items()},
        "model.embed_tokens.weight": (spec.vocab, spec.hidden),
        "model.other.weight": (1,),
    }
    adapter = checkpoint(shapes, root="/adapter", layout="run")
    plan = plan_merge_projector(base_of(), adapter)
    assert len(plan.edits) == 4
    assert any("language model 1, other 1" in note and "--with" in note for note in plan.notes)
    plan = plan_merge_projector(base_of(), adapter, extras=["embed_tokens"])
    assert edits(plan, ReplaceTensor)["model.embed_tokens.weight"].tensor.dtype == "BF16"
    with pytest.raises(UsageError, match="extra-not-found"):
        plan_merge_projector(base_of(), adapter, extras=["embed"])
    with pytest.raises(AdapterError, match="extra-does-not-fit"):
        plan_merge_projector(base_of(), adapter, extras=["other"])
    bigger = checkpoint({**shapes, "model.embed_tokens.weight": (spec.vocab + 2, spec.hidden)})
    with pytest.raises(AdapterError, match=r"extra-does-not-fit.*\[32, 16\].*\[34, 16\]"):
        plan_merge_projector(base_of(), bigger, extras=["embed_tokens"])


def test_two_extras_for_one_tensor_are_refused() -> None:
    shape = (Spec().vocab, Spec().hidden)
    names = ("model.embed_tokens.weight", "base_model.model.model.embed_tokens.weight")
    adapter = checkpoint(
        {f"model.mm_projector.{n}": s for n, s in MLP.items()} | dict.fromkeys(names, shape)
    )
    with pytest.raises(AdapterError, match="ambiguous-key"):
        plan_merge_projector(base_of(), adapter, extras=["embed_tokens"])


def test_of_a_lora_run_only_the_projector_is_taken() -> None:
    prefix = "base_model.model.model."
    shapes = {f"{prefix}mm_projector.{n}": s for n, s in MLP.items()}
    shapes |= {f"{prefix}layers.0.self_attn.q_proj.lora_{x}.weight": (2, 2) for x in "AB"}
    plan = plan_merge_projector(base_of(), checkpoint(shapes, layout="lora"))
    assert len(plan.edits) == 4
    assert any("2 LoRA deltas are not merged" in note for note in plan.notes)


def test_a_full_checkpoint_is_an_adapter() -> None:
    other = base_of(Spec(), "F32")
    plan = plan_merge_projector(base_of(), other)
    assert len(plan.edits) == 4
    assert any("language model" in note and "vision tower" in note for note in plan.notes)


@pytest.mark.parametrize("bare", [False, True])
def test_extract_names(bare: bool) -> None:
    plan = plan_extract_projector(base_of(), bare=bare)
    prefix = "" if bare else "model.mm_projector."
    assert set(plan.target().tensors) == {f"{prefix}{name}" for name in MLP}
    assert all(isinstance(tensor, TensorRef) for tensor in plan.target().tensors.values())


def test_extract_from_nothing_and_from_empty_tensors() -> None:
    with pytest.raises(AdapterError, match="adapter-no-projector"):
        plan_extract_projector(checkpoint({"a": (1,)}))
    with pytest.raises(AdapterError, match="empty-tensor"):
        plan_extract_projector(checkpoint({"mm_projector.weight": (0,)}))
