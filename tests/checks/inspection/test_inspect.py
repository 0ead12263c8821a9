"""inspect: golden cases agree, each broken config is said, the report keeps its schema."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from fixtures.builder import (
    FULL,
    Spec,
    TowerSpec,
    checkpoint_config,
    checkpoint_shapes,
    mm_projector,
    random_fill,
    write_adapter,
    write_checkpoint,
    write_safetensors,
    write_tower,
)
from tests.conftest import BASES, GOLDEN
from vita_ckpt import inspect
from vita_ckpt.checks.inspection.facts import config_keys
from vita_ckpt.core.anatomy.families import VITA

SCHEMA = json.loads((files("vita_ckpt") / "schemas" / "inspect-v1.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

# mm_hidden_size, projector type, family, tokens per image, upstream's class
EXPECTED = {
    "A1": (128, "mlp2x_gelu", "internvit", 4, "InternViTVisionTower"),
    "A2": (48, "mlp2x_gelu", "siglip", 16, "SiglipVisionTower"),
    "A3": (32, "linear", "clip", 9, "CLIPVisionTower"),
    "A4": (128, "mlp2x_gelu", "internvit", 4, "InternViTVisionTower"),
    "A5": (96, "mlp2x_gelu", "siglip", 4, "SiglipVisionTowerS2"),
    "A6": (48, "mlp2x_gelu", "eva", 16, "EvaClipVisionTower"),
    "A7": (128, "mlp2x_gelu", "internvit", 4, "InternViTVisionTower"),
    "A8": (48, "mlp2x_gelu", "siglip", 16, "SiglipVisionTower"),
}


def report(path: Path) -> dict[str, Any]:
    data = {**inspect(path).to_dict(), "tensor_list": None, "modules": None, "values": None}
    VALIDATOR.validate(data)
    assert json.loads(json.dumps(data)) == data
    return data


@pytest.mark.parametrize("case", BASES)
def test_golden_bases_agree_with_themselves(case: str) -> None:
    found = report(GOLDEN / case / "base")
    config = json.loads((GOLDEN / case / "base" / "config.json").read_text())
    width, projector, family, tokens, tower_class = EXPECTED[case]
    assert found["kind"] == "vita-checkpoint"
    assert found["disagreements"] == []
    assert found["tokens_per_image"] == tokens
    assert found["dispatch"]["tower_class"] == tower_class
    assert found["tower"]["family"] == family
    assert found["tower"] == found["tower_directory"]["tower"]
    assert found["projector"]["in_width"] == width
    assert found["config"]["mm_hidden_size"]["weights"] == width
    assert projector in found["config"]["mm_projector_type"]["weights"]
    for key in config_keys(VITA):
        line = found["config"][key]
        assert line["present"] == (key in config)
        assert line["value"] == config.get(key)
        assert line["agrees"] is not False
    for key in ("mm_vision_tower", "mm_hidden_size", "mm_projector_type", "use_mm_proj"):
        assert found["config"][key]["agrees"] is True
    names = json.loads((GOLDEN / case / "case.json").read_text())["base_keys"]
    assert found["tensors"] == len(names)
    assert found["parameters"] == sum(torch.Size(s).numel() for _, s, _ in names.values())


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("A7/mm_projector_fp32", "projector"),
        ("A7/mm_projector_fp32/mm_projector.bin", "projector"),
        ("A8/new_projector", "projector"),
        ("A1/tower-internvit", "vision-tower"),
        ("A2/tower-siglip", "vision-tower"),
        ("A3/tower-clip", "vision-tower"),
        ("A6/tower-eva", "vision-tower"),
        ("A8/swapped_by_upstream", "vita-checkpoint"),
    ],
)
def test_golden_adapters_and_towers(path: str, kind: str) -> None:
    found = report(GOLDEN / path)
    assert found["kind"] == kind
    assert found["disagreements"] == []
    assert (found["projector"] is not None) == (kind != "vision-tower")


def test_the_half_swapped_checkpoint_that_users_bring(tmp_path: Path) -> None:
    """Upstream's initialize_vision_modules on a model with a tower: only the path changes."""
    root = write_checkpoint(
        tmp_path / "c",
        Spec(tower=TowerSpec("siglip"), config={"mm_vision_tower": "tower-internvit"}),
    )
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    found = report(root)
    assert found["config"]["mm_vision_tower"]["agrees"] is False
    assert any("InternViTVisionTower" in s and "SigLIP" in s for s in found["disagreements"])
    assert any(
        "family is siglip in the weights, internvit in its directory" in s
        for s in found["disagreements"]
    )


@pytest.mark.parametrize(
    ("config", "key", "words"),
    [
        ({"mm_hidden_size": 8}, "mm_hidden_size", "the weights say 32"),
        ({"mm_hidden_size": "32"}, "mm_hidden_size", "expected int, got '32'"),
        ({"mm_hidden_size": True}, "mm_hidden_size", "expected int"),
        ({"mm_projector_type": "linear"}, "mm_projector_type", "the weights say 'mlp2x_gelu'"),
        ({"mm_projector_type": "unknown"}, "mm_projector_type", "says 'unknown'"),
        ({"mm_projector_type": ["linear"]}, "mm_projector_type", "expected str"),
        ({"hidden_size": 99}, "hidden_size", "the weights say 16"),
        ({"num_hidden_layers": 3}, "num_hidden_layers", "the weights say 2"),
        ({"vocab_size": 31}, "vocab_size", "the weights say 32"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings", "the weights say False"),
        ({"torch_dtype": "bfloat16"}, "torch_dtype", "the weights say 'float32'"),
        ({"use_mm_proj": False}, "use_mm_proj", "the weights say True"),
        (
            {"mm_vision_tower": "/data/design/InternViT"},
            "mm_vision_tower",
            'SiglipVisionTower from the path ("sig"',
        ),
        ({"mm_vision_tower": "/models/vit"}, "mm_vision_tower", "builds nothing"),
        ({"use_s2": True}, "mm_vision_tower", "has no S2"),
        ({"mm_projector_lr": float("nan")}, "mm_projector_lr", "finite"),
    ],
)
def test_each_disagreement_is_said(
    tmp_path: Path, config: dict[str, Any], key: str, words: str
) -> None:
    found = report(write_checkpoint(tmp_path / "c", Spec(config=config)))
    assert found["config"][key]["agrees"] is False
    assert any(words in sentence for sentence in found["disagreements"]), found["disagreements"]


def test_s2_is_told_by_the_widths(tmp_path: Path) -> None:
    spec = Spec(tower=TowerSpec("siglip"), s2_scales="8,16,24")
    assert report(write_checkpoint(tmp_path / "a", spec))["disagreements"] == []
    off = report(
        write_checkpoint(
            tmp_path / "b",
            Spec(tower=TowerSpec("siglip"), s2_scales="8,16,24", config={"use_s2": False}),
        )
    )
    assert off["config"]["use_s2"] | {"problem": None} == {
        "present": True,
        "value": False,
        "problem": None,
        "weights": True,
        "agrees": False,
    }
    wrong = report(
        write_checkpoint(
            tmp_path / "c",
            Spec(tower=TowerSpec("siglip"), s2_scales="8,16,24", config={"s2_scales": "16,32,48"}),
        )
    )
    assert wrong["config"]["s2_scales"]["weights"] == "3 scales from 8 px"
    assert wrong["config"]["s2_scales"]["agrees"] is False


def test_an_unreachable_tower_is_said(tmp_path: Path) -> None:
    found = report(write_checkpoint(tmp_path / "c"))
    assert found["tower_directory"] == {
        "path": None,
        "problem": "not reachable from here",
        "tower": None,
    }
    assert found["tokens_per_image"] == 4


def test_a_tower_directory_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "c")
    (tmp_path / "tower-internvit").mkdir()
    (tmp_path / "tower-internvit" / "config.json").write_text("{")
    found = report(root)
    assert "invalid-json" in found["tower_directory"]["problem"]


def test_the_tower_directory_is_looked_for_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_checkpoint(tmp_path / "deep" / "c")
    here = write_tower(tmp_path / "here" / "tower-internvit", TowerSpec(layers=7))
    assert report(root)["tower_directory"]["path"] is None
    monkeypatch.chdir(tmp_path / "here")
    found = report(root)
    assert found["tower_directory"]["path"] == str(here)
    assert any(
        "layers is 2 in the weights, 7 in its directory" in s for s in found["disagreements"]
    )


@pytest.mark.parametrize("missing", ["mm_projector", "vision_tower"])
def test_parts_that_are_not_there(tmp_path: Path, missing: str) -> None:
    root = write_checkpoint(tmp_path / "c")
    shapes = {n: ("F32", s) for n, s in checkpoint_shapes(Spec()).items() if missing not in n}
    write_safetensors(root / "model.safetensors", shapes, random_fill("F32"))
    found = report(root)
    assert found["kind"] == "vita-checkpoint"
    assert found["disagreements"]


def test_a_plain_language_model_an_audio_adapter_and_a_lora_run(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    shapes = {
        n: ("F32", s)
        for n, s in checkpoint_shapes(Spec()).items()
        if "vision" not in n and "mm_" not in n
    }
    write_safetensors(plain / "model.safetensors", shapes, random_fill("F32"))
    (plain / "config.json").write_text('{"model_type": "qwen2"}')
    found = report(plain)
    assert found["disagreements"] == []
    assert (found["kind"], found["backbone"]) == ("language-model", "Qwen2")

    audio = {"model.audio_encoder.adpter.project.weight": torch.zeros(2, 2)}
    torch.save(audio, tmp_path / "audio_adpter.bin")
    assert report(tmp_path / "audio_adpter.bin")["kind"] == "audio-adapter"

    lora = tmp_path / "lora"
    lora.mkdir()
    deltas = {
        f"base_model.model.model.layers.0.self_attn.q_proj.lora_{x}.weight": ("F32", (2, 2))
        for x in "AB"
    }
    write_safetensors(lora / "adapter_model.safetensors", deltas, random_fill("F32"))
    torch.save(
        {
            f"base_model.model.model.mm_projector.{n}": torch.zeros(s)
            for n, s in mm_projector("linear", 4, 2).items()
        },
        lora / "non_lora_trainables.bin",
    )
    (lora / "adapter_config.json").write_text(
        '{"r": 8, "lora_alpha": 16, "base_model_name_or_path": "org/base"}'
    )
    found = report(lora)
    assert found["kind"] == "lora-run"
    assert found["lora"] == {
        "r": 8,
        "lora_alpha": 16,
        "deltas": 2,
        "base_model": "org/base",
        "targets": [],
        "modules": 1,
        "changes": 4,
        "share": None,
        "trained": 2,
        "projector_file": "non_lora_trainables.bin",
    }
    assert found["projector"]["types"] == ["linear"]


def test_a_healthy_lora_run_raises_no_alarm(tmp_path: Path) -> None:
    """Deltas of some layers, another dtype, embed_tokens saved along: nothing to disagree with."""
    lora = tmp_path / "lora"
    lora.mkdir()
    prefix = "base_model.model.model."
    deltas = {f"{prefix}layers.1.self_attn.q_proj.lora_{x}.weight": ("F32", (2, 2)) for x in "AB"}
    write_safetensors(lora / "adapter_model.safetensors", deltas, random_fill("F32"))
    embed = torch.zeros(Spec().vocab, Spec().hidden)
    torch.save({f"{prefix}embed_tokens.weight": embed}, lora / "non_lora_trainables.bin")
    config = checkpoint_config(Spec(), "BF16")
    (lora / "config.json").write_text(json.dumps(config))
    (lora / "adapter_config.json").write_text('{"r": 8, "lora_alpha": NaN}')
    found = report(lora)
    assert found["kind"] == "lora-run"
    assert found["disagreements"] == []
    assert found["lora"]["lora_alpha"] is None


def test_an_adapter_without_config_has_nothing_to_disagree_with(tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a.safetensors", mm_projector("linear", 4, 2))
    assert report(path)["disagreements"] == []


def test_tensors_without_elements_are_said(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "c")
    shapes = dict.fromkeys(checkpoint_shapes(Spec()), ("F32", (0,)))
    write_safetensors(root / "model.safetensors", shapes, random_fill("F32"))
    assert any("have no elements (ZeRO-3)" in s for s in report(root)["disagreements"])


def test_a_nonsense_tower_directory_does_not_break_a_good_checkpoint(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "c")
    (tmp_path / "tower-internvit").mkdir()
    for value in (10**160, 10**3000, -7, 0, True, "x", None, 1e9):
        config = {"model_type": "intern_vit_6b", "image_size": value, "patch_size": value}
        (tmp_path / "tower-internvit" / "config.json").write_text(json.dumps(config))
        assert report(root)["kind"] == "vita-checkpoint"


def test_a_tower_of_width_zero(tmp_path: Path) -> None:
    tower = TowerSpec("siglip", width=0)
    shapes = {n: ("F32", s) for n, s in checkpoint_shapes(Spec(tower=tower)).items()}
    root = write_checkpoint(tmp_path / "c", Spec(tower=TowerSpec("siglip")))
    shapes |= {
        f"model.mm_projector.{n}": ("F32", s) for n, s in mm_projector("mlp2x_gelu", 8, 16).items()
    }
    write_safetensors(root / "model.safetensors", shapes, random_fill("F32"))
    report(root)


def test_scales_that_are_no_list_are_said(tmp_path: Path) -> None:
    spec = Spec(tower=TowerSpec("siglip"), s2_scales="8,16,24", config={"s2_scales": "8,,16"})
    sentences = report(write_checkpoint(tmp_path / "c", spec))["disagreements"]
    assert "s2_scales '8,,16' is no list of sizes in pixels" in sentences


def test_an_adapter_file_alone(tmp_path: Path) -> None:
    found = report(write_adapter(tmp_path / "a.safetensors", mm_projector("vanilla", 4, 2)))
    assert found["projector"] == {"types": ["vanilla", "minigpt"], "in_width": 4, "out_width": 2}


def test_a_config_full_of_nonsense_is_no_crash(tmp_path: Path) -> None:
    values: list[Any] = [None, [], {}, "x", -1, 1e999, True, [[]], {"a": []}]
    for value in values:
        root = write_checkpoint(tmp_path / f"c{len(list(tmp_path.iterdir()))}")
        config = dict.fromkeys(
            (*config_keys(VITA), "model_type", "architectures", "vision_config"), value
        )
        (root / "config.json").write_text(json.dumps(config))
        report(root)


def test_full_size_numbers() -> None:
    """VITA-1.5: 4096 features from the 300M tower, 256 tokens per image."""
    shapes = checkpoint_shapes(FULL)
    assert shapes["model.mm_projector.0.weight"] == (3584, 4096)
    assert FULL.mm_hidden == 4096


def mutations(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every place of a report with a value of another type, removed, or with a neighbour."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key), "removed"
            yield from mutations(item, (*path, key))
        yield (*path, "unexpected"), "added"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from mutations(item, (*path, index))
        yield path, {"a": "mapping"}
    else:
        yield path, {"a": "mapping"}
        yield path, ["a list"]
        if not isinstance(value, str):
            yield path, "a string" if path[-1] not in ("model_type", "problem") else 3.5
        if value is not None and not isinstance(value, (bool, str)):
            yield path, 3.5 if path[-2:] != ("mm_projector_lr", "value") else "x"


# Where a report may say a text or nothing.
_TEXTS = (
    *("weights", "value", "path", "base_model", "family", "quantisation", "config_file"),
    *("family_evidence", "tower_source", "features", "tiles"),
)


@pytest.mark.parametrize("path", ["A1/base", "A7/mm_projector_fp32", "A6/tower-eva", "A5/base"])
def test_a_mutated_report_fails_the_schema(path: str) -> None:
    good = report(GOLDEN / path)
    count = 0
    for place, value in list(mutations(good)):
        if value == "a string" and place[-1] in _TEXTS:
            continue  # None there may become a string
        parent = good
        for step in place[:-1]:
            parent = parent[step]
        sound = copy.copy(parent)
        if value == "removed":
            del parent[place[-1]]
        else:
            parent[place[-1]] = value
        assert not VALIDATOR.is_valid(good), (place, value)
        parent.clear()  # a mapping or a list: mended
        parent.update(sound) if isinstance(parent, dict) else parent.extend(sound)
        count += 1
    assert VALIDATOR.is_valid(good)
    assert count > 100


def test_every_object_of_the_schema_is_closed() -> None:
    def closed(schema: Any, at: str) -> None:
        if isinstance(schema, dict):
            if schema.get("type") == "object":
                assert "additionalProperties" in schema, at
                if "properties" in schema:
                    assert schema["additionalProperties"] is False, at
                    assert set(schema["required"]) == set(schema["properties"]), at
            for key, item in schema.items():
                closed(item, f"{at}/{key}")
        elif isinstance(schema, list):
            for item in schema:
                closed(item, at)

    VALIDATOR.check_schema(SCHEMA)
    closed(SCHEMA, "")


def test_a_tower_of_no_known_family_is_there_all_the_same() -> None:
    found = report(GOLDEN / "T12" / "run")
    assert found["tower"] is None
    (said,) = (text for text in found["disagreements"] if "tower" in text)
    assert said == "the vision tower in the weights is of no known family, or a part of one"
