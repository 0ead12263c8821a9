"""What a mistyped word was meant to be."""

from __future__ import annotations

import pytest

from vita_ckpt.core.spelling import did_you_mean, did_you_mean_tensor, globs_of_nothing

LAYERS = [
    f"model.layers.{number}.{module}.weight"
    for number in range(28)
    for module in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm")
]
NAMES = [*LAYERS, "model.mm_projector.0.weight", "model.embed_tokens.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("mm_vison_tower", "did you mean 'mm_vision_tower'? more"),
        ("MM-HIDDEN-SIZE", "did you mean 'mm_hidden_size'? more"),
        ("zzz", "more"),
        ("", "more"),
    ],
)
def test_words(word: str, hint: str) -> None:
    assert did_you_mean(word, ["mm_vision_tower", "mm_hidden_size"], "more") == hint


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("lm_heads.weight", "lm_head.weight"),
        ("model.layers.3.mlp.up_prj.weight", "model.layers.3.mlp.up_proj.weight"),
        ("model.layer.27.input_layernorm.weight", "model.layers.27.input_layernorm.weight"),
        ("model.layers.99.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("*mm_projetor*", "*mm_projector*"),
        ("*.q_prj.*", "*.q_proj.*"),
        ("*layers.3.mpl*", "*layers.3.mlp*"),
        ("nothing.like.it", None),
        ("*", None),
    ],
)
def test_names_of_tensors(pattern: str, meant: str | None) -> None:
    assert did_you_mean_tensor(pattern, NAMES) == (f"did you mean {meant!r}?" if meant else "")


def test_many_tensors_take_no_time() -> None:
    names = [
        f"model.layers.{n}.mlp.experts.{e}.w{w}"
        for n in range(64)
        for e in range(512)
        for w in "123"
    ]
    assert len(names) > 98_000
    assert did_you_mean_tensor("model.layers.63.mlp.expert.511.w3", names) == (
        "did you mean 'model.layers.63.mlp.experts.511.w3'?"
    )


def test_globs_of_nothing() -> None:
    assert globs_of_nothing(("*norm*", "*.q_prj.*", "zzz*"), NAMES) == [
        "*.q_prj.* matches no tensor (did you mean '*.q_proj.*'?)",
        "zzz* matches no tensor",
    ]
