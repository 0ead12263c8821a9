"""Settings of audio encoders, and the tensors that follow from them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fixtures.builder import AudioSpec, audio_encoder, train_yaml
from tests.conftest import GOLDEN
from vita_ckpt import InputError
from vita_ckpt.core.anatomy.audio.cmvn import cmvn_of_json, cmvn_of_text
from vita_ckpt.core.anatomy.audio.settings import (
    AudioAdapter,
    AudioEncoder,
    Subsampling,
    Transformer,
    read_settings,
    tokens_for_llm,
)
from vita_ckpt.core.anatomy.audio.tensors import (
    AUDIO_PREFIX,
    expected_shapes,
    is_statistic,
    settings_of_shapes,
)

CASES = ("U1", "U2")


def content(case: str) -> dict[str, Any]:
    text = (GOLDEN / case / "audio-encoder" / "train.yaml").read_text()
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def changed(path: str, value: object, case: str = "U1") -> dict[str, Any]:
    """The content of a golden's train.yaml with one value changed; ``...`` removes it."""
    whole = content(case)
    place: dict[str, Any] = whole
    *parents, key = path.split("/")
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return whole


@pytest.mark.parametrize("case", CASES)
def test_the_goldens_have_the_tensors_that_their_settings_ask_for(case: str) -> None:
    keys = json.loads((GOLDEN / case / "case.json").read_text())["audio_keys"]
    stored = {name.removeprefix(AUDIO_PREFIX): tuple(entry[1]) for name, entry in keys.items()}
    settings = read_settings(content(case))
    assert expected_shapes(settings) == stored
    told = settings_of_shapes(stored)
    assert told is not None
    assert expected_shapes(told) == stored
    assert settings.is_complete
    assert not told.is_complete


def test_the_builder_agrees() -> None:
    for audio in (AudioSpec(), AudioSpec(3584, 80, 1024, 16, 4096, 24, 5)):
        settings = read_settings(yaml.safe_load(train_yaml(audio)))
        assert expected_shapes(settings) == audio_encoder(audio)


WIDTHS = st.integers(1, 6).map(lambda n: 4 * n)


@st.composite
def encoders(draw: st.DrawFn) -> AudioEncoder:
    """Every combination of options, as tensors tell them."""
    mel_bins, wide, width = draw(st.integers(7, 30)), draw(WIDTHS), draw(WIDTHS)
    linear = draw(st.booleans())
    relative = draw(st.booleans())
    forward = draw(st.sampled_from(("linear", "conv1d", "conv1d-linear")))
    transformer = Transformer(
        in_width=wide,
        width=width if linear else wide,
        heads=draw(st.sampled_from((1, 2, 4))) if relative else None,
        units=draw(st.integers(1, 9)),
        blocks=draw(st.integers(1, 3)),
        input_layer="linear" if linear else "none",
        positions="rel-enc" if relative else "abs-enc",
        pre_norm=draw(st.booleans()),
        concat_after=draw(st.booleans()),
        feed_forward=forward,
        kernel=1 if forward == "linear" else draw(st.integers(1, 5)),
        chunk=None,
        left_chunks=None,
        dynamic_chunks=None,
    )
    kind = draw(st.sampled_from(("subsampling", "cnn", "linear")))
    adapter = AudioAdapter(
        type=kind,
        in_width=transformer.width,
        out_width=draw(st.integers(1, 9)),
        kernel=1 if kind == "linear" else draw(st.integers(1, 5)),
        norm=draw(st.sampled_from(("batch", "layer"))) if kind == "subsampling" else "batch",
        activation=None if kind == "subsampling" else "relu",
    )
    return AudioEncoder(mel_bins, (Subsampling(mel_bins, wide), transformer), adapter)


@given(encoders(), st.data())
def test_tensors_tell_what_they_determine(settings: AudioEncoder, data: st.DataObject) -> None:
    shapes = expected_shapes(settings)
    assert settings_of_shapes(shapes) == settings
    name = data.draw(st.sampled_from(sorted(shapes)))
    cut = {other: shape for other, shape in shapes.items() if other != name}
    told = settings_of_shapes(cut)
    # Running statistics and whole blocks aside, what is missing is seen.
    if not is_statistic(name) and (told is None or told.transformers == settings.transformers):
        assert told is None or expected_shapes(told) != cut


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("input_dim", 21, "input_dim"),
        ("encoder_conf", ..., "encoder_conf"),
        ("model_conf", [], "model_conf"),
        ("encoder_conf/para_conf", ..., "encoder_conf.para_conf"),
        ("encoder_conf/para_conf/transformer", ..., "para_conf.transformer"),
        ("encoder_conf/overview_conf/encoder-layer-config", "mamba", "encoder-layer-config"),
        ("encoder_conf/overview_conf/encoder-layer-config", 3, "encoder-layer-config"),
        (
            "encoder_conf/overview_conf/encoder-layer-config",
            "-".join(["transformer"] * 99),
            "encoder-layer-config",
        ),
        ("encoder_conf/overview_conf/encoder-input-dim", 3, "encoder-input-dim"),
        ("encoder_conf/overview_conf/encoder-output-dim", 33, "encoder-output-dim"),
        ("encoder_conf/para_conf/subsampling/subsampling-rate", 6, "subsampling-rate"),
        ("encoder_conf/para_conf/subsampling/subsampling-input-dim", 80, "subsampling-input-dim"),
        ("encoder_conf/para_conf/transformer/transformer-attention-heads", 5, "-attention-heads"),
        ("encoder_conf/para_conf/transformer/transformer-attention-dim", 48, "-attention-dim"),
        ("encoder_conf/para_conf/transformer/transformer-output-dim", 4, "-output-dim"),
        ("encoder_conf/para_conf/transformer/transformer-num-blocks", 10**9, "-num-blocks"),
        ("encoder_conf/para_conf/transformer/transformer-num-blocks", True, "-num-blocks"),
        ("encoder_conf/para_conf/transformer/transformer-input-layer", "embed", "-input-layer"),
        ("encoder_conf/para_conf/transformer/transformer-pos-enc-class", "rope", "-pos-enc-class"),
        ("encoder_conf/para_conf/transformer/transformer-dynamic-chunks", "no", "-dynamic-chunks"),
        ("encoder_conf/para_conf/transformer/transformer-chunk_size", 1.5, "-chunk-size"),
        ("model_conf/llm_path", ..., "llm_path"),
        ("model_conf/enc_out_dim", 31, "enc_out_dim"),
        ("model_conf/adpter_type", "mlp", "adpter_type"),
        ("model_conf/norm", "group", "norm"),
        ("model_conf/kernel_size", 0, "kernel_size"),
        ("model_conf/add_audio_bos_eos", True, "add_audio_bos_eos"),
        ("model_conf/surprise", 1, "model_conf"),
    ],
)
def test_what_upstream_cannot_build_is_refused(path: str, value: object, key: str) -> None:
    with pytest.raises(InputError) as caught:
        read_settings(changed(path, value))
    assert caught.value.code == "unsupported-audio-config"
    assert key in caught.value.subject


def test_defaults_spellings_and_values_that_stay() -> None:
    """Upstream's defaults; - and _ are the same; a second component keeps what the first set."""
    whole = content("U1")
    encoder = whole["encoder_conf"]
    encoder["overview_conf"]["encoder-layer-config"] = "subsampling-transformer-transformer_2"
    first: dict[str, Any] = {
        "transformer_input_dim": 32,
        "transformer-output-dim": 32,
        "transformer_attention-dim": 32,
        "transformer-unknown": 1,
    }
    encoder["para_conf"]["transformer"] = first
    encoder["para_conf"]["transformer_2"] = {"transformer-attention-heads": 8}
    one, two = read_settings(whole).transformers
    assert (one.heads, one.units, one.blocks, one.input_layer) == (4, 1024, 6, "linear")
    assert (one.positions, one.pre_norm, one.chunk, one.dynamic_chunks) == (
        "abs-enc",
        True,
        -1,
        True,
    )
    assert (two.width, two.heads) == (32, 8)
    whole["model_conf"] = {"llm_path": None, "enc_out_dim": 32}
    adapter = read_settings(whole).adapter
    assert (adapter.type, adapter.out_width, adapter.kernel) == ("cnn", 4096, 3)
    assert adapter.has_statistics


@pytest.mark.parametrize(
    ("adapter", "norm", "activation", "kept"),
    [
        ("subsampling", "layer", "gelu", "gelu"),
        ("subsampling", "batch", "tanh", "relu"),
        ("cnn", "layer", "gelu", "relu"),
        ("linear", "anything", "gelu", "relu"),
    ],
)
def test_what_an_adapter_reads(adapter: str, norm: str, activation: str, kept: str) -> None:
    whole = content("U1")
    whole["model_conf"] |= {"adpter_type": adapter, "norm": norm, "activation_func": activation}
    assert read_settings(whole).adapter.activation == kept


@given(st.integers(0, 500))
def test_lengths(frames: int) -> None:
    mask = range(frames)
    settings = read_settings(content("U1"))
    assert settings.frames_out(frames) == len(mask[2::2][2::2])
    assert settings.tokens_out(frames) == tokens_for_llm(frames) == len(mask[2::2][2::2][::2])
    cnn: Mapping[str, Any] = changed("model_conf/adpter_type", "cnn")
    assert read_settings(cnn).tokens_out(frames) == len(mask[2::2][2::2])


@pytest.mark.parametrize(
    "text",
    ["", "[ 1 2 3", "[ 1 2 3 4 0 ]", "[ 1 x 3 0 ]", "[ 1 0 3 0 ]", "[ nan 1 3 0 ]", "[ 2 0 ]"],
)
def test_statistics_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="invalid-global-cmvn"):
        cmvn_of_text(text, "global_cmvn")


@pytest.mark.parametrize(
    "change",
    [
        {"mean_stat": None},
        {"mean_stat": []},
        {"var_stat": [1.0]},
        {"frame_num": 0},
        {"frame_num": True},
        {"frame_num": 10**400},
        {"mean_stat": [1e308, 1.0]},
        {"mean_stat": ["1", 1.0]},
    ],
    ids=repr,
)
def test_json_statistics_that_are_none_are_refused(change: dict[str, object]) -> None:
    sound: dict[str, object] = {"mean_stat": [1.0, 2.0], "var_stat": [3.0, 9.0], "frame_num": 1}
    assert cmvn_of_json(sound, "x").mean == (1.0, 2.0)
    with pytest.raises(InputError, match="invalid-global-cmvn"):
        cmvn_of_json(copy.copy(sound) | change, "x")


def test_a_bin_that_never_changes_has_the_least_variance() -> None:
    cmvn = cmvn_of_text("[ 4 6 2 8 30 0 ]", "x")
    assert cmvn.mean == (2.0, 3.0)
    assert cmvn.istd == pytest.approx((1e10, 6**-0.5))
