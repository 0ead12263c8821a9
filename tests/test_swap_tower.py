"""Another tower in a checkpoint: equal to upstream's swap, to the live model's, and reversible."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fixtures.builder import (
    Spec,
    TowerSpec,
    language_model,
    mm_projector,
    random_fill,
    read_tensors,
    snapshot,
    vision_tower,
    write_adapter,
    write_checkpoint,
    write_safetensors,
    write_tower,
)
from tests.conftest import GOLDEN
from vita_ckpt import (
    InputError,
    UsageError,
    apply,
    inspect,
    load_model,
    load_plan,
    open_checkpoint,
    plan_extract_projector,
    plan_extract_tower,
    plan_merge_projector,
    plan_swap_tower,
    save_plan,
    verify,
)
from vita_ckpt.core.report import has_errors

FAMILIES = ("siglip", "clip", "internvit", "eva")
TYPES = ("linear", "mlp2x_gelu", "mlp3x_gelu", "sppv1", "ldp", "vanilla", "minigpt", "identity")
VISION_KEYS = (
    "mm_vision_tower",
    "mm_hidden_size",
    "mm_projector_type",
    "use_mm_proj",
    "use_s2",
    "s2_scales",
)
A8 = GOLDEN / "A8"


def tower_at(root: Path, family: str, name: str = "", **sizes: Any) -> Path:
    """A standalone tower as it is published: an EVA one is a file with its text half."""
    spec = TowerSpec(family, image_size=16, patch_size=4, **sizes)
    path = root / (name or f"new-tower-{family}")
    if family != "eva":
        write_tower(path, spec, seed=7)
        (path / "preprocessor_config.json").write_text('{"crop_size": 16}\n')
        return path
    path.mkdir()
    shapes = {f"visual.{n}": ("F32", s) for n, s in vision_tower(spec).items()}
    file = path / "eva_clip.safetensors"
    write_safetensors(file, {**shapes, "text.ln_final.weight": ("F32", (4,))}, random_fill("F32"))
    return file


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    return write_checkpoint(tmp_path / "base", shards=3)


def config_of(root: str | Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((Path(root) / "config.json").read_text())
    return config


def test_a8_is_upstreams_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(A8)
    before = snapshot(A8)
    plan = plan_swap_tower("base", "tower-internvit", projector="new_projector/mm_projector.bin")
    out = Path(apply(plan, tmp_path / "out"))
    assert read_tensors(out) == read_tensors(A8 / "swapped_by_upstream")
    ours, theirs = config_of(out), config_of(A8 / "swapped_by_upstream")
    assert theirs.pop("_name_or_path") == "base"
    assert ours == theirs
    for name, source in (
        ("vision_tower_config.json", "config.json"),
        ("preprocessor_config.json", "preprocessor_config.json"),
    ):
        assert (out / name).read_bytes() == (A8 / "tower-internvit" / source).read_bytes()
    assert json.loads((out / "vita_ckpt.json").read_text())["needs_alignment"] is False

    inputs, expected = load_file("inputs.safetensors"), load_file("expected.safetensors")
    monkeypatch.chdir(tmp_path)  # the tower's directory is out of reach: its config was carried
    model = load_model(out, device="cpu")
    with torch.inference_mode():
        logits = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits
        text = model(input_ids=inputs["text_input_ids"]).logits
    assert (logits - expected["logits"]).abs().max() < 1e-5
    assert (text - expected["text_logits"]).abs().max() < 1e-5
    assert snapshot(A8) == before


def test_there_and_back_with_the_original_projector_is_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(A8)
    projector = apply(plan_extract_projector("base"), tmp_path / "old.safetensors")
    there = apply(
        plan_swap_tower("base", "tower-internvit", projector="reinit"), tmp_path / "there"
    )
    assert inspect(there).needs_alignment
    back = plan_swap_tower(there, "tower-siglip", projector=projector)
    out = apply(back, tmp_path / "back")
    assert read_tensors(Path(out)) == read_tensors(A8 / "base")
    assert config_of(out) == config_of(A8 / "base")
    assert not inspect(out).needs_alignment


def test_the_half_swapped_checkpoint_that_upstream_writes_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Config of the new tower, tensors of the old one: what users bring."""
    monkeypatch.chdir(A8)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes((A8 / "base/model.safetensors").read_bytes())
    config = config_of(A8 / "base") | {"mm_vision_tower": "tower-internvit"}
    (broken / "config.json").write_text(json.dumps(config))
    plan = plan_swap_tower(broken, "tower-internvit", projector=A8 / "new_projector")
    out = Path(apply(plan, tmp_path / "out"))
    assert read_tensors(out) == read_tensors(A8 / "swapped_by_upstream")
    assert config_of(out)["mm_hidden_size"] == 96


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_is_what_the_live_model_becomes(
    tmp_path: Path, base: Path, family: str, kind: str
) -> None:
    """The live side is read from the modules that were built, not from any table."""
    width = 4 if family == "internvit" and kind == "identity" else 16
    tower = tower_at(tmp_path, family, width=width)
    plan = plan_swap_tower(base, tower, projector="reinit", projector_type=kind)
    target = plan.target()
    model = load_model(base, device="cpu")
    model.initialize_vision_modules(
        SimpleNamespace(
            vision_tower=str(tower),
            mm_projector_type=kind,
            pretrain_mm_mlp_adapter=None,
            use_s2=False,
        )
    )
    state = model.state_dict()
    live = {stored: tuple(state[name].shape) for name, stored in model.stored_names().items()}
    assert {name: tensor.shape for name, tensor in target.tensors.items()} == live
    for key in VISION_KEYS:
        assert (target.config or {}).get(key) == model.config.get(key), key
    written = load_model(target, device="cpu").vision_tower
    assert written is not None
    assert model.vision_tower is not None
    values = written.state_dict()
    for name, tensor in model.vision_tower.state_dict().items():
        assert torch.equal(values[name], tensor), name


@pytest.mark.parametrize("old", ["A1", "A2", "A3", "A5", "A6"])
@pytest.mark.parametrize("new", ["A1", "A2", "A3", "A6"])
def test_each_family_becomes_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tower = next((GOLDEN / new).glob("tower-*"))
    base = GOLDEN / old / "base"
    # What A5's scales ask for does not fit another SigLIP.
    use_s2 = False if old == "A5" else None
    plan = plan_swap_tower(base, tower, projector="reinit", use_s2=use_s2)
    out = apply(plan, tmp_path / "out")
    verification = verify(out, device="cpu", against=base)
    assert [f.rule for f in verification.findings] == ["projector-untrained"]
    before, after = read_tensors(base), read_tensors(Path(out))
    for name in before.keys() & after.keys():
        if "vision_tower" not in name and "mm_projector" not in name:
            assert after[name] == before[name]
    assert {n for n in before if "vision_tower" not in n and "mm_projector" not in n} == {
        n for n in after if "vision_tower" not in n and "mm_projector" not in n
    }


def test_an_output_loads_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(A8)
    plan = plan_swap_tower("base", "tower-internvit", projector="new_projector")
    out = Path(apply(plan, tmp_path / "out"))
    tensors = load_file(out / "model.safetensors")
    assert tensors["model.vision_tower.vision_tower.embeddings.class_embedding"].shape == (1, 1, 24)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "model.safetensors").symlink_to(out / "model.safetensors")
    (plain / "config.json").write_text(json.dumps(config_of(out) | {"model_type": "qwen2"}))
    model = transformers.Qwen2ForCausalLM.from_pretrained(plain)
    expected = load_file("expected.safetensors")["text_logits"]
    with torch.inference_mode():
        logits = model(load_file("inputs.safetensors")["text_input_ids"]).logits
    assert (logits - expected).abs().max() < 1e-5


def test_what_is_drawn_anew_is_the_same_every_time(tmp_path: Path, base: Path) -> None:
    tower = tower_at(tmp_path, "clip")
    outs = [
        apply(plan_swap_tower(base, tower, projector="reinit", seed=seed), tmp_path / name)
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    ]
    one, two, other = (read_tensors(Path(out)) for out in outs)
    assert one == two
    changed = {name for name in one if one[name] != other[name]}
    assert changed == {f"model.mm_projector.{n}" for n in mm_projector("mlp2x_gelu", 8, 16)}
    mark = json.loads((Path(outs[0]) / "vita_ckpt.json").read_text())
    assert mark["needs_alignment"] is True
    assert mark["operations"][0]["seed"] == 3
    assert str(tmp_path) not in json.dumps(mark)


def test_a_merge_ends_the_need_for_training(tmp_path: Path, base: Path) -> None:
    drawn = apply(
        plan_swap_tower(base, tower_at(tmp_path, "clip"), projector="reinit"), tmp_path / "drawn"
    )
    kept = plan_swap_tower(drawn, tower_at(tmp_path, "siglip"))  # same width: it still fits
    assert inspect(apply(kept, tmp_path / "kept")).needs_alignment
    adapter = write_adapter(tmp_path / "a.safetensors", mm_projector("mlp2x_gelu", 8, 16))
    merged = apply(plan_merge_projector(drawn, adapter), tmp_path / "merged")
    assert not inspect(merged).needs_alignment
    done = json.loads((tmp_path / "merged" / "vita_ckpt.json").read_text())["operations"]
    assert [entry["operation"] for entry in done] == ["swap-tower", "merge-projector"]


def test_an_untrained_projector_stays_one_wherever_it_is_merged(tmp_path: Path, base: Path) -> None:
    clip = tower_at(tmp_path, "clip")
    drawn = apply(plan_swap_tower(base, clip, projector="reinit"), tmp_path / "drawn")
    for plan in (
        plan_swap_tower(base, clip, projector=drawn),
        plan_merge_projector(drawn, drawn),
    ):
        assert inspect(plan.target()).needs_alignment


def test_a_saved_swap_runs_later(tmp_path: Path, base: Path) -> None:
    plan = plan_swap_tower(base, tower_at(tmp_path, "clip"), projector="reinit")
    save_plan(plan, tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json")
    assert again.target().tensors == plan.target().tensors
    one, two = (Path(apply(p, tmp_path / n)) for p, n in ((plan, "one"), (again, "two")))
    assert {n: c for n, (_, _, c) in snapshot(one).items()} == {
        n: c for n, (_, _, c) in snapshot(two).items()
    }


class TestForms:
    """Every form in which a tower comes."""

    def swapped(self, base: Path, tower: Path, tmp_path: Path, **options: Any) -> dict[str, Any]:
        target = plan_swap_tower(base, tower, projector="reinit", **options).target()
        assert not has_errors(verify(target, device="cpu").findings)
        out = apply(
            plan_swap_tower(base, tower, projector="reinit", **options), tmp_path / "swapped"
        )
        found = read_tensors(Path(out))
        prefix = "model.vision_tower.vision_tower."
        return {n.removeprefix(prefix): v for n, v in found.items() if n.startswith(prefix)}

    def test_bin_and_sharded(self, tmp_path: Path, base: Path) -> None:
        tower = tower_at(tmp_path, "clip")
        want = read_tensors(tower / "model.safetensors")
        tensors = load_file(tower / "model.safetensors")
        (tower / "model.safetensors").unlink()
        torch.save(tensors, tower / "pytorch_model.bin")
        assert self.swapped(base, tower, tmp_path) == want
        (tower / "pytorch_model.bin").unlink()
        names = sorted(tensors)
        half = len(names) // 2
        files = {"model-00001-of-00002.safetensors": names[:half]}
        files["model-00002-of-00002.safetensors"] = names[half:]
        for file, some in files.items():
            save_file({n: tensors[n] for n in some}, tower / file)
        index = {"weight_map": {n: file for file, some in files.items() for n in some}}
        (tower / "model.safetensors.index.json").write_text(json.dumps(index))
        (tmp_path / "swapped").rename(tmp_path / "first")
        assert self.swapped(base, tower, tmp_path) == want

    @pytest.mark.parametrize("family", ["siglip", "clip"])
    def test_the_library_and_its_full_models(self, tmp_path: Path, base: Path, family: str) -> None:
        """As the installed transformers writes it, on either side of 5.6."""
        name = {"siglip": "Siglip", "clip": "CLIP"}[family]
        sizes = {
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        }
        text = {
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "vocab_size": 32,
        }
        config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=sizes)
        full = getattr(transformers, f"{name}Model")(config)
        full.save_pretrained(tmp_path / f"full-{family}")
        alone = getattr(transformers, f"{name}VisionModel")(config.vision_config)
        alone.save_pretrained(tmp_path / f"alone-{family}")
        one = self.swapped(base, tmp_path / f"full-{family}", tmp_path)
        (tmp_path / "swapped").rename(tmp_path / "first")
        two = self.swapped(base, tmp_path / f"alone-{family}", tmp_path)
        assert {n: (d, s) for n, (d, s, _) in one.items()} == {
            n: (d, s) for n, (d, s, _) in two.items()
        }
        assert all(n.startswith("vision_model.") for n in one)

    def test_internvl(self, tmp_path: Path, base: Path) -> None:
        spec = TowerSpec("internvit", image_size=16, patch_size=4)
        root = tmp_path / "InternVL-with-internvit"
        root.mkdir()
        shapes = {f"vision_model.{n}": ("F32", s) for n, s in vision_tower(spec).items()}
        language = {f"language_model.{n}": ("F32", s) for n, s in language_model(Spec()).items()}
        other: dict[str, Any] = {**language, "mlp1.0.weight": ("F32", (32,))}
        write_safetensors(root / "model.safetensors", {**shapes, **other}, random_fill("F32"))
        vision = json.loads((write_tower(tmp_path / "t", spec) / "config.json").read_text())
        parent = {"model_type": "internvl_chat", "vision_config": vision, "llm_config": {}}
        (root / "config.json").write_text(json.dumps(parent))
        found = self.swapped(base, root, tmp_path)
        assert found.keys() == vision_tower(spec).keys()

    def test_another_vita_checkpoint(self, tmp_path: Path, base: Path) -> None:
        donor = tmp_path / "donor"
        spec = TowerSpec("clip", image_size=16, patch_size=4)
        write_checkpoint(donor, Spec(tower=spec), seed=5)
        tower_at(tmp_path, "clip", "tower-clip")
        plan = plan_swap_tower(base, donor, projector=donor)
        assert (plan.target().config or {})["mm_vision_tower"] == "tower-clip"
        out = apply(plan, tmp_path / "out")
        found, given = read_tensors(Path(out)), read_tensors(donor)
        for name in given:
            if "vision_tower" in name or "mm_projector" in name:
                assert found[name] == given[name]

    def test_eva_is_a_file(self, tmp_path: Path, base: Path) -> None:
        file = tower_at(tmp_path, "eva")
        for given in (file, file.parent):
            target = plan_swap_tower(base, given, projector="reinit").target()
            assert (target.config or {})["mm_vision_tower"] == str(file)
            assert "model.vision_tower.vision_tower.model.cls_token" in target.tensors
            assert not [n for n in target.tensors if "text" in n]

    def test_eva_in_another_checkpoint_has_no_config_to_carry(
        self, tmp_path: Path, base: Path
    ) -> None:
        donor = write_checkpoint(tmp_path / "donor", Spec(tower=TowerSpec("eva")))
        for given in (None, tower_at(tmp_path, "clip")):
            plan = plan_swap_tower(base, donor, projector="reinit", tower_config=given)
            assert "vision_tower_config.json" not in plan.target().texts

    def test_a_tower_that_was_trained_with_lora(self, tmp_path: Path, base: Path) -> None:
        run = tmp_path / "run"
        run.mkdir()
        (run / "adapter_config.json").write_text("{}")
        (run / "config.json").write_text('{"mm_vision_tower": "openai-clip"}')
        clip = tower_at(tmp_path, "clip")
        tensors = load_file(clip / "model.safetensors")
        below = "base_model.model.model.vision_tower.vision_tower."
        torch.save({below + n: t for n, t in tensors.items()}, run / "non_lora_trainables.bin")
        with pytest.raises(InputError, match="--tower-config"):
            plan_swap_tower(base, run, projector="reinit")
        assert self.swapped(base, run, tmp_path, tower_config=clip) == read_tensors(
            clip / "model.safetensors"
        )

    def test_a_lone_file_beside_its_config(self, tmp_path: Path, base: Path) -> None:
        tower = tower_at(tmp_path, "clip")
        assert self.swapped(base, tower / "model.safetensors", tmp_path)

    def test_in_the_dtype_of_the_base(self, tmp_path: Path) -> None:
        root = write_checkpoint(tmp_path / "half", dtype="BF16")
        tower = tower_at(tmp_path, "clip")
        out = apply(plan_swap_tower(root, tower, projector="reinit"), tmp_path / "out")
        assert {dtype for dtype, _, _ in read_tensors(Path(out)).values()} == {"BF16"}
        name = "vision_model.encoder.layers.0.mlp.fc1.weight"
        given = load_file(tower / "model.safetensors")[name].bfloat16()
        stored = load_file(Path(out) / "model.safetensors")
        assert torch.equal(stored[f"model.vision_tower.vision_tower.{name}"], given)


class TestS2:
    def test_on_and_off(self, tmp_path: Path, base: Path) -> None:
        tower = tower_at(tmp_path, "siglip")
        plan = plan_swap_tower(base, tower, projector="reinit", s2_scales="16,32")
        config = plan.target().config or {}
        assert (config["use_s2"], config["s2_scales"], config["mm_hidden_size"]) == (
            True,
            "16,32",
            16,
        )
        out = apply(plan, tmp_path / "s2")
        assert not has_errors(verify(out, device="cpu").findings)
        kept = plan_swap_tower(out, tower)  # nothing changes, S2 stays
        assert kept.target().config == config
        off = plan_swap_tower(out, tower, projector="reinit", use_s2=False).target().config or {}
        assert (off["use_s2"], off["mm_hidden_size"]) == (False, 8)
        clip = plan_swap_tower(out, tower_at(tmp_path, "clip"), projector="reinit")
        assert (clip.target().config or {})["use_s2"] is False

    def test_impossible(self, tmp_path: Path, base: Path) -> None:
        for family, options, code in (
            ("clip", {"use_s2": True}, "s2-needs-siglip"),
            ("eva", {"s2_scales": "16,32"}, "s2-needs-siglip"),
            ("siglip", {"use_s2": True}, "s2-scales-do-not-fit-tower"),
            ("siglip", {"s2_scales": "15,30"}, "s2-scales-do-not-fit-tower"),
        ):
            tower = tmp_path / f"new-tower-{family}"
            tower = tower if tower.exists() else tower_at(tmp_path, family)
            with pytest.raises(InputError) as raised:
                plan_swap_tower(base, tower, projector="reinit", **options)
            assert raised.value.code == code
        siglip = tmp_path / "new-tower-siglip"
        for scales in ("big", ""):
            with pytest.raises(UsageError, match="invalid-s2-scales"):
                plan_swap_tower(base, siglip, s2_scales=scales)
        with pytest.raises(UsageError, match="options-exclude-each-other"):
            plan_swap_tower(base, siglip, s2_scales="16,32", use_s2=False)


class TestLanguageModels:
    """Upstream's load paths 2 and 3: a plain language model becomes a VITA checkpoint."""

    def plain(self, root: Path, model_type: str = "vita-Qwen2", **options: Any) -> Path:
        spec = Spec(model_type=model_type, **options)
        write_checkpoint(root, spec)
        tensors = load_file(root / "model.safetensors")
        kept = language_model(spec).keys()
        save_file({n: t for n, t in tensors.items() if n in kept}, root / "model.safetensors")
        config = {k: v for k, v in config_of(root).items() if not k.startswith(("mm_", "use_"))}
        config.pop("unfreeze_vision_tower")
        plain_type = {"vita-Qwen2": "qwen2", "vita-mixtral": "mixtral", "vita-Mistral": "mistral"}
        config |= {"model_type": plain_type[model_type], "architectures": ["PlainForCausalLM"]}
        (root / "config.json").write_text(json.dumps(config))
        return root

    @pytest.mark.parametrize("model_type", ["vita-Qwen2", "vita-mixtral", "vita-Mistral"])
    def test_swap_tower_adds_one(self, tmp_path: Path, model_type: str) -> None:
        base = self.plain(tmp_path / "llm", model_type)
        with pytest.raises(UsageError, match="projector-choice-needed"):
            plan_swap_tower(base, tower_at(tmp_path, "clip"))
        plan = plan_swap_tower(base, tmp_path / "new-tower-clip", projector="reinit")
        out = apply(plan, tmp_path / "out")
        config = config_of(out)
        assert config["model_type"] == model_type
        assert config["architectures"] == [
            {"vita-Qwen2": "VITAQwen2", "vita-mixtral": "VITAMixtral"}.get(
                model_type, "VITAMistral"
            )
            + "ForCausalLM"
        ]
        assert config["use_mm_proj"] is True
        assert inspect(out).kind == "vita-checkpoint"
        assert not has_errors(verify(out, device="cpu").findings)

    def run_at(self, root: Path, **config: Any) -> Path:
        root.mkdir()
        shapes = {f"model.mm_projector.{n}": s for n, s in mm_projector("linear", 8, 16).items()}
        torch.save({n: torch.randn(s) for n, s in shapes.items()}, root / "mm_projector.bin")
        values = {
            "model_type": "vita-fo-Qwen2",
            "mm_projector_type": "linear",
            "mm_vision_tower": "/home/somebody/clip-vit",
            "mm_hidden_size": 8,
            "hidden_size": 16,
            "image_aspect_ratio": "pad",
            "continuous_training": True,
            "tokenizer_model_max_length": 77,
            "mm_audio_encoder": "audio",
            **config,
        }
        (root / "config.json").write_text(json.dumps(values))
        return root

    def test_base_and_projector(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        base, run = self.plain(tmp_path / "llm"), self.run_at(tmp_path / "run")
        with pytest.raises(InputError) as raised:
            plan_merge_projector(base, run)
        assert raised.value.code == "not-enough-information"
        assert "--tower DIR" in raised.value.got
        assert "/home/somebody/clip-vit" in raised.value.got
        lone = (run / "mm_projector.bin").rename(tmp_path / "mm_projector.bin")
        with pytest.raises(InputError, match=r"missing: config\.json"):
            plan_merge_projector(base, lone, tower=tower_at(tmp_path, "clip"))
        with pytest.raises(UsageError, match="option-without-tower"):
            plan_merge_projector(base, lone, dtype="bf16")

    def test_base_projector_and_tower(self, tmp_path: Path) -> None:
        base, run = self.plain(tmp_path / "llm"), self.run_at(tmp_path / "run")
        plan = plan_merge_projector(base, run, tower=tower_at(tmp_path, "clip"))
        assert plan.operation == "merge-projector"
        out = apply(plan, tmp_path / "out")
        config = config_of(out)
        assert (config["model_type"], config["architectures"]) == (
            "vita-fo-Qwen2",
            ["VITAFOQwen2ForCausalLM"],
        )
        assert config["mm_vision_tower"] == "/home/somebody/clip-vit"
        assert (config["mm_projector_type"], config["image_aspect_ratio"]) == ("linear", "pad")
        assert config["continuous_training"] is False
        assert config["tokenizer_model_max_length"] == 77
        assert config["mm_audio_encoder"] == "audio"
        assert not has_errors(verify(out, device="cpu").findings)
        trained = torch.load(run / "mm_projector.bin", weights_only=True)
        stored = load_file(Path(out) / "model.safetensors")
        for name, tensor in trained.items():
            assert torch.equal(stored[name], tensor)

    def test_another_tower_or_projector_than_the_runs(self, tmp_path: Path) -> None:
        """What is said names no option of another command."""
        base = self.plain(tmp_path / "llm")
        run = self.run_at(tmp_path / "run", mm_projector_type="mlp2x_gelu")
        with pytest.raises(UsageError) as type_error:
            plan_merge_projector(base, run, tower=tower_at(tmp_path, "clip"))
        with pytest.raises(InputError) as path_error:
            plan_merge_projector(base, run, tower=tower_at(tmp_path, "internvit"))
        for raised, code in (
            (type_error.value, "projector-type-mismatch"),
            (path_error.value, "tower-path-misleads"),
        ):
            assert raised.code == code
            assert "the run" in raised.hint
            assert "--" not in str(raised)

    def test_the_towers_directory_is_found_by_the_runs_config(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = self.plain(tmp_path / "llm")
        tower_at(tmp_path, "clip")
        run = self.run_at(tmp_path / "run", mm_vision_tower="new-tower-clip")
        monkeypatch.chdir(tmp_path)
        plan = plan_merge_projector(base, run)
        assert (plan.target().config or {})["mm_vision_tower"] == "new-tower-clip"

    def test_another_base_than_the_runs(self, tmp_path: Path) -> None:
        run = self.run_at(tmp_path / "run", num_hidden_layers=28)
        tower = tower_at(tmp_path, "clip")
        with pytest.raises(InputError, match="base-does-not-fit-run"):
            plan_merge_projector(self.plain(tmp_path / "llm"), run, tower=tower)
        run = self.run_at(tmp_path / "other", model_type="vita-mixtral")
        with pytest.raises(InputError, match="model-type-mismatch"):
            plan_merge_projector(tmp_path / "llm", run, tower=tower)

    def test_a_base_that_has_a_tower(self, tmp_path: Path, base: Path) -> None:
        run = self.run_at(tmp_path / "run")
        with pytest.raises(UsageError, match="tower-already-there"):
            plan_merge_projector(base, run, tower=tower_at(tmp_path, "clip"))


class TestExtract:
    @pytest.mark.parametrize("case", ["A1", "A2", "A3", "A5"])
    def test_a_tower_that_transformers_loads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
    ) -> None:
        monkeypatch.chdir(GOLDEN / case)
        standalone = next((GOLDEN / case).glob("tower-*"))
        out = Path(apply(plan_extract_tower("base"), tmp_path / standalone.name))
        assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in standalone.iterdir())
        shapes = {n: (d, s) for n, (d, s, _) in read_tensors(out).items()}
        assert shapes == {n: (d, s) for n, (d, s, _) in read_tensors(standalone).items()}
        assert config_of(out) == config_of(standalone)
        if case in ("A2", "A3"):
            name = {"A2": "SiglipVisionModel", "A3": "CLIPVisionModel"}[case]
            _, report = getattr(transformers, name).from_pretrained(out, output_loading_info=True)
            assert not report["missing_keys"]
            assert not report["unexpected_keys"]
        again = plan_swap_tower("base", out, tower_path=standalone.name)
        assert (again.target().config or {}) == config_of("base")
        back = Path(apply(again, tmp_path / "back"))
        assert read_tensors(back) == read_tensors(Path("base"))

    def test_eva_has_no_config(self, tmp_path: Path) -> None:
        out = Path(apply(plan_extract_tower(GOLDEN / "A6/base"), tmp_path / "eva-clip"))
        assert [p.name for p in out.iterdir()] == ["model.safetensors"]
        assert all(name.startswith("visual.") for name in read_tensors(out))
        plan = plan_swap_tower(GOLDEN / "A6/base", out)
        assert read_tensors(Path(apply(plan, tmp_path / "back"))) == read_tensors(
            GOLDEN / "A6/base"
        )

    def test_where_the_config_comes_from(
        self, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        away = tmp_path / "away"
        away.mkdir()
        moved = base.rename(away / "base")
        with pytest.raises(InputError, match="tower-config-unknown"):
            plan_extract_tower(moved)
        tower = tmp_path / "tower-internvit"
        for given in (tower, tower / "config.json"):
            assert plan_extract_tower(moved, tower_config=given).edits
        with pytest.raises(InputError, match="tower-config"):
            plan_extract_tower(moved, tower_config=tower_at(tmp_path, "clip"))
        with pytest.raises(InputError, match="unknown-tower"):
            plan_extract_tower(write_adapter(tmp_path / "a.safetensors", {"0.weight": (2, 2)}))


class TestWrongTowers:
    @pytest.fixture
    def refused(self, base: Path, tmp_path: Path) -> Any:
        def refuse(tower: Path, code: str, **options: Any) -> InputError:
            with pytest.raises(InputError) as raised:
                plan_swap_tower(base, tower, projector="reinit", **options)
            assert raised.value.code == code, raised.value
            return raised.value

        return refuse

    def test_a_text_model(self, tmp_path: Path, refused: Any) -> None:
        error = refused(TestLanguageModels().plain(tmp_path / "qwen"), "unknown-tower")
        assert "qwen2" in error.got

    def test_a_truncated_file(self, tmp_path: Path, refused: Any) -> None:
        tower = tower_at(tmp_path, "clip")
        data = (tower / "model.safetensors").read_bytes()
        (tower / "model.safetensors").write_bytes(data[:-10])
        refused(tower, "truncated-file")

    def test_without_a_config(self, tmp_path: Path, refused: Any) -> None:
        tower = tower_at(tmp_path, "clip")
        config = (tower / "config.json").rename(tmp_path / "elsewhere.json")
        refused(tower, "tower-config-unknown")
        refused(tower, "tower-config-mismatch", tower_config=tmp_path / "tower-internvit")
        assert plan_swap_tower(
            tmp_path / "base", tower, projector="reinit", tower_config=config
        ).edits

    def test_with_tensors_missing_or_too_many(self, tmp_path: Path, refused: Any) -> None:
        for family in FAMILIES:
            path = tower_at(tmp_path, family)
            file = path if family == "eva" else path / "model.safetensors"
            tensors = load_file(file)
            name = next(n for n in sorted(tensors) if "norm2.bias" in n)
            gone = tensors.pop(name)
            save_file(tensors, file)
            refused(path, "weights-do-not-fit")
            save_file(tensors | {name: gone[:2].clone()}, file)
            refused(path, "weights-do-not-fit")

    def test_a_path_that_misleads(self, tmp_path: Path, refused: Any) -> None:
        tower = tower_at(tmp_path, "internvit", "design-of-internvit")
        error = refused(tower, "tower-path-misleads")
        assert "--tower-path" in error.hint
        refused(tower, "tower-path-misleads", tower_path="/somewhere/clip")
        refused(tower_at(tmp_path, "clip", "vision"), "tower-path-misleads")
        plan = plan_swap_tower(
            tmp_path / "base", tower, projector="reinit", tower_path="/data/InternViT-300M"
        )
        assert (plan.target().config or {})["mm_vision_tower"] == "/data/InternViT-300M"

    def test_eva_without_its_rotary_buffers(self, tmp_path: Path, refused: Any) -> None:
        file = tower_at(tmp_path, "eva")
        save_file({n: t for n, t in load_file(file).items() if "rope" not in n}, file)
        assert "rope" in refused(file, "weights-do-not-fit").expected

    def test_a_checkpoint_whose_tower_is_out_of_reach(self, tmp_path: Path, refused: Any) -> None:
        donor = write_checkpoint(tmp_path / "elsewhere" / "donor")
        assert "--tower-config" in refused(donor, "tower-config-unknown").hint

    def test_an_odd_grid(self, tmp_path: Path, refused: Any) -> None:
        spec = TowerSpec("internvit", image_size=12, patch_size=4)
        refused(write_tower(tmp_path / "odd-internvit", spec), "odd-patch-grid")

    def test_a_config_that_asks_for_too_much(self, tmp_path: Path, refused: Any) -> None:
        tower = tower_at(tmp_path, "clip")
        config = config_of(tower)
        for key, value, code in (
            ("num_hidden_layers", 1_000_000, "tower-config-mismatch"),
            ("intermediate_size", "16", "unsupported-tower-config"),
            ("intermediate_size", 17, "weights-do-not-fit"),
            ("image_size", 3, "unsupported-tower-config"),
            ("num_attention_heads", 3, "unsupported-tower-config"),
        ):
            (tower / "config.json").write_text(json.dumps(config | {key: value}))
            refused(tower, code)

    def test_eva_tensors_that_ask_for_too_much(self, tmp_path: Path, refused: Any) -> None:
        """EVA's sizes are read from its tensors, so those are what is not believed."""
        file = tower_at(tmp_path, "eva")
        tensors = load_file(file)
        kernel = "visual.patch_embed.proj.weight"
        for name, shape, code in (
            ("visual.blocks.999999.x", (1,), "unsupported-tower-config"),
            (kernel, (8, 3, 0, 0), "unknown-tower"),
            (kernel, (0, 3, 4, 4), "unknown-tower"),
        ):
            save_file(tensors | {name: torch.zeros(shape)}, file)
            refused(file, code)


class TestProjectorChoice:
    def test_what_does_not_fit_needs_a_word(self, tmp_path: Path, base: Path) -> None:
        tower = tower_at(tmp_path, "clip")
        for options, code in (
            ({}, "projector-choice-needed"),
            ({"projector": "keep"}, "projector-does-not-fit"),
            ({"projector": "reinit", "projector_type": "mlp"}, "unknown-projector-type"),
            ({"projector": "reinit", "projector_type": "identity"}, "projector-does-not-fit"),
        ):
            with pytest.raises(UsageError) as raised:
                plan_swap_tower(base, tower, **options)  # type: ignore[arg-type]
            assert raised.value.code == code
        with pytest.raises(UsageError, match="projector-choice-needed"):
            plan_swap_tower(base, tmp_path / "tower-internvit", projector_type="linear")

    def test_what_fits_is_kept(self, tmp_path: Path, base: Path) -> None:
        tower = tower_at(tmp_path, "internvit")
        plan = plan_swap_tower(base, tower)
        assert not [e for e in plan.edits if "mm_projector" in getattr(e, "name", "")]
        assert any("kept" in note for note in plan.notes)

    def test_a_file_of_another_type(self, tmp_path: Path, base: Path) -> None:
        tower = tower_at(tmp_path, "clip")
        adapter = write_adapter(tmp_path / "a.safetensors", mm_projector("linear", 8, 16))
        plan = plan_swap_tower(base, tower, projector=adapter)
        config = plan.target().config or {}
        assert (config["mm_projector_type"], config["mm_hidden_size"]) == ("linear", 8)
        with pytest.raises(UsageError, match="projector-type-mismatch"):
            plan_swap_tower(base, tower, projector=adapter, projector_type="mlp2x_gelu")

    def test_types_with_the_same_tensors(self, tmp_path: Path) -> None:
        write_tower(tmp_path / "tower-internvit", TowerSpec())
        root = write_checkpoint(tmp_path / "spp", Spec(projector="sppv1"))
        tower = tower_at(tmp_path, "internvit")
        with pytest.raises(UsageError, match="projector-choice-needed"):
            plan_swap_tower(root, tower, projector_type="sppv2")
        kept = plan_swap_tower(root, tower, projector="keep", projector_type="sppv2")
        assert (kept.target().config or {})["mm_projector_type"] == "sppv2"


def test_the_old_towers_files_do_not_stay(tmp_path: Path, base: Path) -> None:
    first = apply(
        plan_swap_tower(base, tower_at(tmp_path, "clip"), projector="reinit"), tmp_path / "first"
    )
    assert (Path(first) / "preprocessor_config.json").exists()
    second = plan_swap_tower(first, tower_at(tmp_path, "eva"), projector="reinit")
    out = Path(apply(second, tmp_path / "second"))
    names = {p.name for p in out.iterdir()}
    assert not names & {"preprocessor_config.json", "vision_tower_config.json"}
    assert "vita_ckpt.json" in names
    assert len(open_checkpoint(out).shards) == 3


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_a_broken_note_stops_nobody(tmp_path: Path, base: Path, text: str) -> None:
    """What it says decides nothing about a tensor; a surgery that notes something mends it."""
    (base / "vita_ckpt.json").write_text(text)
    assert not inspect(base).needs_alignment
    plan = plan_swap_tower(base, tower_at(tmp_path, "clip"), projector="reinit")
    assert inspect(apply(plan, tmp_path / "out")).needs_alignment
