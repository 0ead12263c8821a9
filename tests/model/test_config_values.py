"""A config is data: whatever it says is a finding of validate and one line of verify."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.builder import Spec, TowerSpec, write_checkpoint, write_tower
from tests.builders import lively
from tests.conftest import BASES, GOLDEN
from vita_ckpt import InputError, open_checkpoint, validate, verify
from vita_ckpt.core.anatomy import config_values
from vita_ckpt.core.anatomy.backbones import BACKBONES
from vita_ckpt.core.binding.bind import bind
from vita_ckpt.model.vita import build
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.surroundings import look_around
from vita_ckpt.storage.reading.tower import read_tower_config

BACKBONE_OF = {"c-Qwen2": "vita-Qwen2", "c-mixtral": "vita-mixtral", "c-Mistral": "vita-Mistral"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("config-values")
    for family in ("internvit", "siglip", "clip"):
        write_tower(place / f"tower-{family}", TowerSpec(family=family))
    for name, model_type in BACKBONE_OF.items():
        lively(write_checkpoint(place / name, Spec(model_type=model_type)))
    for family in ("siglip", "clip"):
        tower = TowerSpec(family=family)
        lively(write_checkpoint(place / f"c-{family}", Spec(tower=tower)))
    return place


def edited(path: Path, changes: Mapping[str, Any]) -> str:
    """The text before, of a config that is changed."""
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), **changes}))
    return before


def outcome(place: Path, name: str, where: str, changes: Mapping[str, Any]) -> tuple[Any, Any]:
    """The errors of validate, and the code or the errors of verify."""
    path = place / where / "config.json"
    before = edited(path, changes)
    try:
        found = [f.rule for f in validate(place / name).findings if f.severity == "error"]
        try:
            ran: Any = [f.rule for f in verify(place / name, device="cpu").findings]
        except InputError as error:
            assert "\n" not in str(error)
            ran = error.code
        return found, ran
    finally:
        path.write_text(before)


LANGUAGE = [
    ("num_attention_heads", [10**15, 0, -1, 3, "4", None, 4.0, True]),
    ("num_key_value_heads", [0, 3, -2, "2", None, 10**15]),
    ("rms_norm_eps", ["x", float("nan"), -1, None, [1e-6], 1e999]),
    ("rope_theta", [float("nan"), 0, -1, "x", None, {}, float("inf"), 10**400]),
    ("hidden_act", ["none", 3, None, ["silu"], {}, "prelu"]),
    ("max_position_embeddings", [10**15, -1, 0, "x", None, 1.5]),
    ("vocab_size", [10**12, 0, "x", None]),
    ("num_hidden_layers", [10**9, 0, -1, "2", None]),
    ("hidden_size", [10**12, 0, "x", None]),
    ("intermediate_size", [10**12, 0, "x", None]),
    ("sliding_window", ["x", -1, 0, [], 10**20]),
    ("use_sliding_window", ["yes", 1, None]),
    ("tie_word_embeddings", ["yes", 1]),
    ("torch_dtype", ["junk", 3, ["float32"]]),
    ("mm_hidden_size", [32.0, "32", 0, -1, 10**20, 1 << 20]),
    ("tokenizer_model_max_length", [0, -1, "x", 1.5]),
    ("rope_scaling", ["x", [], 3, {"type": "junk"}, {"type": []}, {"type": "linear"}]),
    (
        "rope_parameters",
        [
            {"rope_theta": 0},
            {"rope_type": "yarn", "factor": "x"},
            {"rope_type": "llama3", "factor": 2.0},
            {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]},
        ],
    ),
]
TOWER = [
    ("num_attention_heads", [10**15, 0, -1, 3, "4", None]),
    ("hidden_size", [10**12, 0, "x", None]),
    ("intermediate_size", [10**12, 0, "x", None]),
    ("num_hidden_layers", [10**9, 0, "2", None]),
    ("image_size", [10**12, 1 << 19, 0, "x", None]),
    ("patch_size", [10**12, 0, "x", None]),
    ("layer_norm_eps", ["x", float("nan"), -1, None]),
    ("hidden_act", ["none", 3, None, []]),
    ("num_channels", [10**12, 1, "x"]),
    ("vision_use_head", ["yes", 1, None]),
    ("qkv_bias", ["yes", None]),
    ("norm_type", ["none", 3, None]),
]


@pytest.mark.parametrize(("key", "values"), LANGUAGE, ids=[key for key, _ in LANGUAGE])
def test_values_of_a_language_model(place: Path, key: str, values: list[Any]) -> None:
    for value in values:
        found, ran = outcome(place, "c-Qwen2", "c-Qwen2", {key: value})
        assert found, value
        assert isinstance(ran, str) or ran, value


@pytest.mark.parametrize(("key", "values"), TOWER, ids=[key for key, _ in TOWER])
@pytest.mark.parametrize("tower", ["internvit", "siglip"])
def test_values_of_a_tower(place: Path, tower: str, key: str, values: list[Any]) -> None:
    name = "c-Qwen2" if tower == "internvit" else f"c-{tower}"
    for value in values:
        found, ran = outcome(place, name, f"tower-{tower}", {key: value})
        assert found, value
        assert isinstance(ran, str) or ran, value


def test_mixtures(place: Path) -> None:
    for changes in (
        {"num_experts_per_tok": 3},
        {"num_local_experts": 10**9},
        {"head_dim": 3},
        {"num_experts_per_tok": "x"},
    ):
        assert outcome(place, "c-mixtral", "c-mixtral", changes)[1] == "unsupported-config"


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 2},
        {"rope_type": "dynamic", "factor": 2.0},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
        {
            "rope_type": "longrope",
            "short_factor": [1.0, 1.0],
            "long_factor": [2.0, 2.0],
            "original_max_position_embeddings": 512,
        },
    ],
    ids=lambda scaling: str(scaling.get("type", scaling.get("rope_type"))),
)
def test_scalings_that_there_are(place: Path, scaling: dict[str, Any]) -> None:
    assert outcome(place, "c-Qwen2", "c-Qwen2", {"rope_scaling": scaling}) == ([], [])


def test_integers_are_numbers(place: Path) -> None:
    """Newer versions of the library take only floats for these, the pinned loader any number."""
    numbers = {"rms_norm_eps": 1, "initializer_range": 5, "attention_dropout": 0}
    rotary = {"rope_theta": 10000, "rope_scaling": {"type": "linear", "factor": 2}}
    for changes in (numbers, rotary):
        assert outcome(place, "c-Qwen2", "c-Qwen2", changes) == ([], [])


def test_a_longrope_of_one_position(place: Path) -> None:
    """The library divides by the logarithm of it."""
    factors = {"short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}
    scaling = {"rope_type": "longrope", "original_max_position_embeddings": 1, **factors}
    found, ran = outcome(place, "c-Qwen2", "c-Qwen2", {"rope_scaling": scaling})
    assert found
    assert ran == "unsupported-config"


@pytest.mark.parametrize("case", BASES)
def test_the_tables_are_the_model(case: str) -> None:
    """What is compared before anything is built is what is built."""
    checkpoint = open_checkpoint(GOLDEN / case / "base")
    tower = read_tower_config(checkpoint, Stores())
    model = build(checkpoint, tower, torch.float32)
    state = model.state_dict()
    built = {stored: tuple(state[name].shape) for name, stored in model.stored_names().items()}
    bound = bind(checkpoint.config or {}, checkpoint.tensors, look_around(checkpoint, Stores()))
    wanted = {n: shape for part in bound.parts.values() for n, shape in part.wanted.items()}
    assert wanted == built


def test_activations_are_known_to_the_library() -> None:
    from transformers.activations import ACT2FN

    assert set(config_values.ACTIVATIONS) <= set(ACT2FN)


def test_every_default_is_within_its_bounds() -> None:
    for backbone in BACKBONES.values():
        assert config_values.wrong_language_values(backbone.language_model, {}) == ()


ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 3, 8, 16, 10**6, 10**12, 10**400, -(10**30)]),
    st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e300, float("nan"), float("inf"), 1e-300]),
    st.sampled_from(["", "x", "4", "silu", "yes", "default", "float32", "\x1b[0m\n"]),
)
JUNK = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from(["type", "rope_type", "factor", "rope_theta", "x"]), inner, max_size=3
        ),
    ),
    max_leaves=4,
)
LANGUAGE_KEYS = sorted(
    {*config_values._LANGUAGE_MODEL, *config_values._VITA, "rope_scaling", "rope_parameters"}
)
CASES = st.one_of(
    st.tuples(
        st.sampled_from([(name, name) for name in BACKBONE_OF]),
        st.dictionaries(st.sampled_from(LANGUAGE_KEYS), JUNK, min_size=1, max_size=2),
    ),
    st.tuples(
        st.sampled_from(
            [("c-Qwen2", "tower-internvit"), ("c-siglip", "tower-siglip"), ("c-clip", "tower-clip")]
        ),
        st.dictionaries(
            st.sampled_from(sorted(config_values._TOWER)), JUNK, min_size=1, max_size=2
        ),
    ),
)


def test_any_value(place: Path) -> None:
    """No bug of ours, no memory by the config, and what has no error runs."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=CASES)
    def explore(case: Any) -> None:
        (name, where), changes = case
        found, ran = outcome(place, name, where, changes)
        assert found or ran == [], (changes, ran)

    explore()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 256 << 10  # KiB
