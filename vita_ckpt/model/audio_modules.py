"""Implement the audio modules of a live model, with upstream's ``initialize_audio_modules``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vita_ckpt.core.anatomy.audio.directory import WEIGHTS
from vita_ckpt.core.anatomy.audio.settings import AudioEncoder
from vita_ckpt.core.anatomy.audio.tensors import (
    ADAPTER,
    AUDIO_PREFIX,
    PROMPT,
    expected_shapes,
    is_statistic,
    prompt_rows,
)
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.checkpoint import Tensor as StoredTensor
from vita_ckpt.core.tensor_match import compare
from vita_ckpt.errors import AdapterError, InputError, UsageError
from vita_ckpt.model.audio.build import AudioEncoderWithAdapter
from vita_ckpt.model.vision_modules import argument
from vita_ckpt.model.weights import Weights, load_resident, on_meta
from vita_ckpt.storage.reading.audio import open_audio_directory
from vita_ckpt.storage.reading.checkpoint import open_checkpoint
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.surgery.audio import KEYWORD
from vita_ckpt.surgery.donors import get_w

Stored = Mapping[str, StoredTensor]


class AudioModules(nn.Module):
    """A mixin with the audio encoder, its adapter and its prompt.

    ``config`` is the checkpoint's config, ``language_model`` the library's causal language model.
    Both are set before :meth:`build_audio_modules` is called.
    """

    config: dict[str, Any]
    language_model: Any
    audio_encoder: AudioEncoderWithAdapter | None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device of a model's inputs and outputs."""
        raise NotImplementedError

    def build_audio_modules(self, settings: AudioEncoder | None) -> None:
        """Build the audio encoder of ``settings``, without weights; None builds none."""
        self.audio_encoder = None
        if settings is not None:
            prompt = prompt_rows(self.config)
            self.audio_encoder = AudioEncoderWithAdapter(settings, prompt).eval()

    def encode_audio(self, audio_features: Tensor, audio_lengths: Tensor) -> Tensor:
        """Return the embeddings [B, T', hidden] of recordings, a trained prompt's rows first.

        ``audio_features`` is float [B, T, n], n mel bins for each frame; ``audio_lengths`` int64
        [B], the frames of each recording that are no padding. T' is that of T frames. Raises
        UsageError for a model without an audio encoder, or features that it cannot take.
        """
        if self.audio_encoder is None:
            raise UsageError(
                "no-audio-modules",
                "audio_features",
                expected="a model with an audio encoder",
                got="none, or one whose train.yaml was not found",
                hint="name its directory as audio_encoder when the model is loaded",
            )
        features, lengths = audio_features.to(self.device), audio_lengths.to(self.device)
        embeds: Tensor = self.audio_encoder(features, lengths)
        return embeds.to(self.device)

    def initialize_audio_modules(self, model_args: object) -> None:
        """Replace the audio encoder and its adapter, as upstream's method should.

        ``model_args`` has ``audio_encoder`` (a directory with ``train.yaml``, ``global_cmvn`` and
        ``final.pt``), and may have ``pretrain_audio_mlp_adapter`` (a file or None) and
        ``model_name_or_path`` (a checkpoint whose audio tensors replace those of ``final.pt``, if
        it has any; upstream demands them). Running statistics of batch norms that an adapter's file
        lacks are those of the checkpoint or of ``final.pt``. ``freeze_audio_encoder`` and
        ``freeze_audio_encoder_adapter`` of the config, true by default, say what is not trained; a
        prompt is trained, and drawn anew where nothing holds it. ``config`` is updated.

        Raises InputError for a directory that describes no encoder, one for a language model of
        another width, or tensors that do not fit it, and AdapterError for an adapter that does not.
        After an error the model is unchanged.
        """
        path = str(argument(model_args, "audio_encoder", ""))
        settings = open_audio_directory(os.path.abspath(path), Stores()).settings
        hidden = self.language_model.config.hidden_size
        if settings is None or settings.adapter.out_width != hidden:
            raise InputError(
                "audio-adapter-width",
                path,
                expected=f"llm_embed_dim {hidden}, the language model's width",
                got=str(settings.adapter.out_width if settings is not None else None),
            )
        wanted = expected_shapes(settings, prompt_rows(self.config))
        donor = open_checkpoint(os.path.join(path, WEIGHTS), Stores())
        # Upstream takes of final.pt what fits, whatever else is in it.
        taken: dict[str, StoredTensor] = {
            name: tensor
            for name, tensor in donor.tensors.items()
            if wanted.get(name) == tensor.shape
        }
        taken |= _of_checkpoint(argument(model_args, "model_name_or_path", None), wanted)
        taken |= _of_adapter(argument(model_args, "pretrain_audio_mlp_adapter", None), wanted)
        needed = {n: s for n, s in wanted.items() if not is_statistic(n) and n != PROMPT}
        compare(needed, {n: t.shape for n, t in taken.items() if n in needed}).refuse(
            path, "every tensor of the encoder and its adapter", f"{WEIGHTS} is incomplete"
        )
        built = _built(settings, prompt_rows(self.config), self.dtype, self.device)
        with Weights(replace(donor, tensors=taken)) as weights:
            load_resident(built, {name: name for name in taken}, weights, {"": self.device})
        # The model is changed only after every check has passed.
        built.encoder.requires_grad_(self.config.get("freeze_audio_encoder", True) is False)
        trained = self.config.get("freeze_audio_encoder_adapter", True) is False
        built.adpter.requires_grad_(trained)
        if built.prompt:
            built.prompt_embeddings.requires_grad_(True)
        self.audio_encoder = built
        self.config["mm_audio_encoder"] = path


def _built(
    settings: AudioEncoder, prompt: int, dtype: torch.dtype, device: torch.device
) -> AudioEncoderWithAdapter:
    """Build the modules on the meta device; a prompt and statistics have values already."""
    with on_meta(dtype):
        built = AudioEncoderWithAdapter(settings, prompt)
    if prompt:
        built.prompt_embeddings = nn.Embedding(
            prompt, settings.adapter.out_width, device=device, dtype=dtype
        )
    for module in built.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to(device))
    return built.eval()


def _of_checkpoint(path: Any, wanted: Mapping[str, tuple[int, ...]]) -> Stored:
    """Return the audio tensors of a checkpoint, which must be the wanted ones, or none."""
    if path is None:
        return {}
    checkpoint = open_checkpoint(os.fspath(path), Stores())
    own = _below(checkpoint, AUDIO_PREFIX)
    needed = {n: s for n, s in wanted.items() if n in own or not is_statistic(n)}
    if own:
        compare(needed, {name: tensor.shape for name, tensor in own.items()}).refuse(
            checkpoint.root, "the audio tensors that the directory describes"
        )
    return own


def _of_adapter(path: Any, wanted: Mapping[str, tuple[int, ...]]) -> Stored:
    """Return the tensors of an adapter's file, which may lack running statistics."""
    if path is None:
        return {}
    adapter = open_checkpoint(os.fspath(path), Stores())
    stored = get_w({name: name for name in adapter.tensors}, KEYWORD)
    found = {ADAPTER + name: adapter.tensors[origin] for name, origin in stored.items()}
    needed = {
        name: shape
        for name, shape in wanted.items()
        if name.startswith(ADAPTER) and (name in found or not is_statistic(name))
    }
    if {name: tensor.shape for name, tensor in found.items()} != needed:
        raise AdapterError(
            "audio-adapter-does-not-fit",
            adapter.root,
            expected="the tensors of the adapter that train.yaml describes",
            got=", ".join(f"{n} {list(t.shape)}" for n, t in found.items()) or "none of an adapter",
        )
    return found


def _below(checkpoint: Checkpoint, prefix: str) -> dict[str, StoredTensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(prefix)
    }
