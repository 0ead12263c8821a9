"""Audio equals upstream's outputs; every option of an encoder runs, streamed as in memory."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fixtures.builder import AudioSpec, Spec, TowerSpec, write_audio_encoder, write_checkpoint
from fixtures.builder import write_tower as write_tower_directory
from tests.builders import lively
from tests.conftest import GOLDEN
from vita_ckpt import AdapterError, InputError, UsageError, load_model, verify
from vita_ckpt.core.anatomy.audio.settings import (
    AudioAdapter,
    AudioEncoder,
    Subsampling,
    Transformer,
    tokens_for_llm,
)
from vita_ckpt.core.anatomy.audio.tensors import expected_shapes
from vita_ckpt.model.audio.build import AudioEncoderWithAdapter

LIMIT = 1e-5
NOTHING = {"cpu": 0}
CASES = ("U1", "U2")

SETTINGS = AudioEncoder(
    mel_bins=12,
    components=(
        Subsampling(12, 8),
        Transformer(
            in_width=8,
            width=8,
            heads=2,
            units=12,
            blocks=2,
            input_layer="none",
            positions="rel-enc",
            pre_norm=True,
            concat_after=False,
            feed_forward="linear",
            kernel=1,
            chunk=-1,
            left_chunks=-1,
            dynamic_chunks=False,
        ),
    ),
    adapter=AudioAdapter("subsampling", 8, 16, 3, "layer", "gelu"),
)


def outputs(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    features, lengths = inputs["audio_features"], inputs["audio_lengths"]
    ids, pixels, taken = (
        inputs[name] for name in ("input_ids", "pixel_values", "audio_lengths_for_llm")
    )
    return {
        "audio_inputs_embeds": model.encode_audio(features, lengths),
        "inputs_embeds": model.embed_multimodal(ids, pixels, features, lengths, taken),
        "logits": model(
            input_ids=ids, pixel_values=pixels, audio_features=features, audio_lengths=lengths
        ).logits,
        "text_logits": model(input_ids=inputs["text_input_ids"]).logits,
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("memory", [None, NOTHING], ids=["resident", "streamed"])
@pytest.mark.parametrize("name", ["base", "merged_by_upstream"])
def test_goldens(case: str, memory: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN / case)
    inputs, expected = load_file("inputs.safetensors"), load_file("expected.safetensors")
    prefix = "base_" if name == "base" else ""
    model = load_model(name, device="cpu", max_memory=memory)
    for output, found in outputs(model, inputs).items():
        wanted = expected[prefix + output]
        assert found.shape == wanted.shape, output
        assert (found - wanted).abs().max() < LIMIT, output


@pytest.mark.parametrize("case", CASES)
def test_the_parts_of_the_goldens(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN / case)
    inputs, expected = load_file("inputs.safetensors"), load_file("expected.safetensors")
    audio = load_model("base", device="cpu").audio_encoder
    assert audio is not None
    features, lengths = inputs["audio_features"], inputs["audio_lengths"]
    with torch.no_grad():
        normal = audio.encoder.global_cmvn(features)
        hidden, mask = audio.encoder(features, lengths, torch.float32)
    assert (normal - expected["base_audio_after_cmvn"]).abs().max() < LIMIT
    assert (hidden - expected["base_audio_encoder_output"]).abs().max() < LIMIT
    assert torch.equal(mask.long(), expected["base_audio_encoder_mask"])


def test_each_recording_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN / "U1")
    inputs, expected = load_file("inputs.safetensors"), load_file("expected.safetensors")
    model = load_model("base", device="cpu")
    for number, length in enumerate(inputs["audio_lengths"].tolist()):
        alone = inputs["audio_features"][number : number + 1, :length]
        found = model.encode_audio(alone, torch.tensor([length]))
        assert found.shape[1] == tokens_for_llm(length)
        assert (found - expected[f"base_audio_inputs_embeds_alone_{number}"]).abs().max() < LIMIT


def transformer(**changes: Any) -> AudioEncoder:
    first, second = SETTINGS.components
    assert isinstance(second, Transformer)
    return replace(SETTINGS, components=(first, replace(second, **changes)))


def adapter(**changes: Any) -> AudioEncoder:
    return replace(SETTINGS, adapter=replace(SETTINGS.adapter, **changes))


OPTIONS = {
    "as it is": SETTINGS,
    "absolute": transformer(positions="abs-enc"),
    "linear input": transformer(input_layer="linear"),
    "norm after": transformer(pre_norm=False),
    "concatenated": transformer(concat_after=True, pre_norm=False),
    "conv1d": transformer(feed_forward="conv1d", kernel=3),
    "conv1d-linear": transformer(feed_forward="conv1d-linear", kernel=2),
    "chunks": transformer(chunk=2, left_chunks=1),
    "chunks, all before": transformer(chunk=2, left_chunks=-1),
    "chunks, none before": transformer(chunk=3, left_chunks=0),
    "batch norm": adapter(norm="batch", activation="relu"),
    "even kernel": adapter(kernel=4),
    "cnn": adapter(type="cnn", norm="batch", activation="relu"),
    "linear": adapter(type="linear", kernel=1, norm="batch", activation="relu"),
}


def built(settings: AudioEncoder, prompt: int = 0) -> AudioEncoderWithAdapter:
    """The encoder with random weights, whose statistics are those of some training."""
    torch.manual_seed(0)
    module = AudioEncoderWithAdapter(settings, prompt).eval()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(0, 0.5)
            if name.endswith("var"):
                tensor.abs_().add_(0.1)
    return module


@pytest.mark.parametrize("option", OPTIONS)
@torch.inference_mode()
def test_every_option(option: str) -> None:
    """Names and shapes are those of the anatomy; padding reaches no frame of a recording."""
    settings = OPTIONS[option]
    module = built(settings, prompt=2)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == expected_shapes(settings, 2)
    features = torch.randn(2, 60, 12)
    lengths = torch.tensor([60, 41])
    found = module(features, lengths)
    assert found.shape == (2, 2 + settings.tokens_out(60), 16)
    assert torch.isfinite(found).all()
    alone = module(features[1:, :41], torch.tensor([41]))
    if option != "conv1d":  # where upstream too lets padding leak into the last frames
        assert (found[1, : alone.shape[1]] - alone[0]).abs().max() < 1e-5
    other = module(features + 1, lengths)
    assert torch.equal(found[:, :2], other[:, :2])  # the prompt
    assert not torch.equal(found[:, 2:], other[:, 2:])


@torch.inference_mode()
def test_chunks_are_a_mask() -> None:
    """A frame sees its chunk and those to the left of it, and nothing else."""
    settings = transformer(chunk=2, left_chunks=1, blocks=1)
    component: Any = built(settings).encoder.enc[1]
    seen = component._chunks(7, torch.device("cpu"))
    rows = ["1100000", "1100000", "1111000", "1111000", "0011110", "0011110", "0000111"]
    assert ["".join("01"[int(cell)] for cell in row) for row in seen] == rows


@torch.inference_mode()
def test_dynamic_chunks_run_the_configured_size() -> None:
    features, lengths = torch.randn(1, 60, 12), torch.tensor([60])
    fixed = built(transformer(chunk=2, left_chunks=1))(features, lengths)
    dynamic = built(transformer(chunk=2, left_chunks=1, dynamic_chunks=True))(features, lengths)
    assert torch.equal(fixed, dynamic)


@torch.inference_mode()
def test_a_recording_that_is_too_long() -> None:
    with pytest.raises(UsageError, match=r"audio-too-long.*1500 frames"):
        built(transformer(positions="abs-enc", blocks=1))(
            torch.zeros(1, 6003, 12), torch.tensor([6003])
        )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_tower_directory(tmp_path / "tower-internvit", TowerSpec())
    write_audio_encoder(tmp_path / "heard")
    return write_checkpoint(
        tmp_path / "base", Spec(audio=True, config={"mm_audio_encoder": "heard"}), dtype="BF16"
    )


def test_statistics_stay_float32(root: Path) -> None:
    """Resident and streamed alike, whatever the weights are computed in."""
    features, lengths = torch.randn(2, 40, 8), torch.tensor([40, 31])
    found = []
    for memory in (None, NOTHING):
        model = load_model(root, device="cpu", dtype="bfloat16", max_memory=memory)
        assert model.audio_encoder is not None
        assert model.audio_encoder.encoder.global_cmvn.mean.dtype == torch.float32
        found.append(model.encode_audio(features, lengths))
        assert found[-1].dtype == torch.bfloat16
    assert torch.equal(*found)


def test_wrong_recordings_are_refused(root: Path) -> None:
    model = load_model(root, device="cpu", dtype="float32")
    features, lengths = torch.randn(1, 40, 8), torch.tensor([40])
    ids = torch.tensor([[1, -500, 2]])
    assert model(ids, None, features).logits.shape == (1, 2 + tokens_for_llm(40), 32)
    for message, arguments in (
        ("recordings-do-not-fit-placeholders", (torch.tensor([[1, 2, -500, -500]]), features)),
        ("recordings-do-not-fit-placeholders", (torch.cat([ids, ids]), features)),
        ("features-do-not-fit-encoder", (ids, features[..., :7])),
        ("features-do-not-fit-encoder", (ids, features[:, :6])),
        ("features-do-not-fit-encoder", (ids, features, lengths + 1)),
        ("features-do-not-fit-encoder", (ids, features, lengths, torch.tensor([1, 2]))),
        ("token-out-of-range.*an audio placeholder", (ids, None)),
    ):
        given, *rest = arguments
        with pytest.raises(UsageError, match=message):
            model(given, None, *rest)


def test_a_prompt_lengthens_what_is_taken(root: Path) -> None:
    model = load_model(root, device="cpu", dtype="float32")
    features, ids = torch.randn(1, 40, 8), torch.tensor([[1, -500, 2]])
    taken = torch.tensor([2])
    assert model.embed_multimodal(ids, None, features, None, taken).shape[1] == 4
    model.config["audio_prompt_num"] = 1
    assert model.embed_multimodal(ids, None, features, None, taken).shape[1] == 5


def test_without_its_directory_audio_is_not_run(root: Path) -> None:
    """Its tensors are bound by themselves; how to run them nothing says."""
    heard = shutil.move(root.parent / "heard", root.parent / "elsewhere")
    model = load_model(root, device="cpu")
    assert model.audio_encoder is None
    with pytest.raises(UsageError, match="no-audio-modules"):
        model.encode_audio(torch.zeros(1, 40, 8), torch.tensor([40]))
    assert load_model(root, device="cpu", audio_encoder=heard).audio_encoder is not None


def edited(root: Path, name: str, value: float) -> None:
    tensors = load_file(root / "model.safetensors")
    for stored, tensor in tensors.items():
        if name in stored:
            tensor.fill_(value)
    save_file(tensors, root / "model.safetensors", {"format": "pt"})


def test_verify_runs_a_recording(root: Path) -> None:
    lively(root)
    found = verify(root, device="cpu", dtype="float32")
    assert (found.findings, found.tokens_per_recording) == ((), 50)
    assert found.skipped_audio_tensors == 0
    edited(root, "adpter.project", 0)
    assert [one.rule for one in verify(root, device="cpu").findings] == ["audio-ignored"]
    edited(root, "adpter.project.bias", 70000.0)
    rules = {one.rule for one in verify(root, device="cpu", max_memory=NOTHING).findings}
    assert {"audio-ignored", "float16-weight"} <= rules


def test_verify_of_a_golden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN / "U2")
    assert verify("merged_by_upstream", device="cpu", max_memory=NOTHING).findings == ()


def test_a_directory_of_another_encoder_is_refused(root: Path) -> None:
    other = write_audio_encoder(root.parent / "other", AudioSpec(units=20))
    with pytest.raises(InputError, match="weights-do-not-fit"):
        load_model(root, device="cpu", audio_encoder=other)


def arguments(**given: Any) -> SimpleNamespace:
    return SimpleNamespace(audio_encoder="audio-encoder", **given)


@pytest.mark.parametrize("case", CASES)
def test_live_modules_are_upstreams_merge(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN / case)
    inputs, expected = load_file("inputs.safetensors"), load_file("expected.safetensors")
    model: Any = load_model("base", device="cpu")
    before = model.audio_encoder
    model.initialize_audio_modules(
        arguments(
            model_name_or_path="base", pretrain_audio_mlp_adapter="audio_run/audio_adpter.bin"
        )
    )
    assert model.audio_encoder is not before
    for output, found in outputs(model, inputs).items():
        assert (found - expected[output]).abs().max() < LIMIT, output
    assert not any(p.requires_grad for p in model.audio_encoder.parameters())
    model.config["freeze_audio_encoder_adapter"] = False
    model.initialize_audio_modules(arguments())  # as final.pt has it
    trained = {n for n, p in model.audio_encoder.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("adpter.") for name in trained)
    final = torch.load("audio-encoder/final.pt", weights_only=True)
    for name, tensor in model.audio_encoder.state_dict().items():
        assert torch.equal(tensor, final[name]), name


def test_a_live_model_without_audio_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tower_directory(tmp_path / "tower-internvit", TowerSpec())
    deaf = write_checkpoint(tmp_path / "deaf", Spec(hidden=48, heads=4))
    model: Any = load_model(deaf, device="cpu")
    monkeypatch.chdir(GOLDEN / "U1")
    model.config |= {"audio_prompt_finetune": True, "audio_prompt_num": 3}
    model.initialize_audio_modules(arguments(model_name_or_path=deaf))
    embeds = model.encode_audio(torch.randn(1, 60, 20), torch.tensor([60]))
    assert embeds.shape == (1, 3 + tokens_for_llm(60), 48)
    assert torch.isfinite(embeds).all()
    assert model.audio_encoder.prompt_embeddings.weight.requires_grad


def test_live_modules_that_do_not_fit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN / "U1")
    model = load_model("base", device="cpu")
    before = model.audio_encoder
    other = GOLDEN / "U2"
    for error, message, given in (
        (InputError, "weights-do-not-fit", arguments(model_name_or_path=other / "base")),
        (
            AdapterError,
            "audio-adapter-does-not-fit",
            arguments(pretrain_audio_mlp_adapter=other / "audio_run" / "audio_adpter.bin"),
        ),
        (InputError, "unreadable-file", {"audio_encoder": "elsewhere"}),
        (InputError, "audio-adapter-width", {"audio_encoder": str(root.parent / "heard")}),
    ):
        with pytest.raises(error, match=message):
            model.initialize_audio_modules(given)
        assert model.audio_encoder is before
