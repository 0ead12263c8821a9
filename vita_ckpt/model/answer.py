"""The greedy answer to a prompt: the checkpoint's own tokenizer, one token after another."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor
from transformers import DynamicCache

from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.filenames import GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG
from vita_ckpt.core.requirements import family_of_model
from vita_ckpt.errors import InputError, MalformedFileError, UsageError
from vita_ckpt.model.image import Picture
from vita_ckpt.model.tokenizer import TokenizerProcess
from vita_ckpt.model.tokenizer_process import IMAGE
from vita_ckpt.model.vita import IMAGE_TOKEN, VitaModel
from vita_ckpt.storage.reading.paths import read_json
from vita_ckpt.storage.stores.local import LOCAL

# What stands around an image in a prompt for a model that was trained with it.
_START: Final = "<im_start>"
_END: Final = "<im_end>"
_TOKENIZER_FILES: Final = (TOKENIZER_CONFIG, TOKENIZER)


@dataclass(frozen=True)
class Question:
    """A prompt as the model reads it, and what it takes to read the answer.

    ``input_ids`` int64 [T], -200 where the image stands; ``stop`` are the ids that end an answer.
    """

    input_ids: Tensor
    stop: frozenset[int]
    root: str
    tokenizer: TokenizerProcess

    def answer(
        self,
        model: VitaModel,
        image: Picture | None,
        *,
        max_new_tokens: int,
        on_token: Callable[[int], None] = lambda _number: None,
    ) -> str:
        """The model's greedy answer, as text, about ``image`` if there is one.

        ``on_token`` is called with the number of each token, from 1, before it is computed.
        Raises InputError ``tokenizer-does-not-fit`` for ids that the model has no embedding of.
        """
        rows, largest = model.language_model.config.vocab_size, int(self.input_ids.max())
        if largest >= rows:
            raise InputError(
                "tokenizer-does-not-fit",
                self.root,
                expected=f"token ids below {rows}, the rows of the embedding",
                got=f"{largest} in the prompt",
                hint="the tokenizer is another model's, or the embedding was not resized",
            )
        ids = greedy(
            model,
            self.input_ids,
            None if image is None else image.pixels,
            {} if image is None else image.options,
            max_new_tokens=max_new_tokens,
            stop=self.stop,
            on_token=on_token,
        )
        return self.tokenizer.decode(ids)


def ask(
    checkpoint: Checkpoint, prompt: str, *, with_image: bool, tokenizer: TokenizerProcess
) -> Question:
    """Return a prompt in the words of the checkpoint's tokenizer, which ``tokenizer`` builds.

    The image stands before the text, or where the prompt says ``<image>``. With a chat template
    the prompt is the one message of a user, else plain text after the tokenizer's first token.

    Raises UsageError for an empty prompt, one that is no text, or one with more images than there
    are; InputError ``tokenizer-missing``, ``path-outside-checkpoint``, and what
    :class:`~vita_ckpt.model.tokenizer.TokenizerProcess` raises.
    """
    if not prompt.strip():
        raise UsageError("empty-prompt", "--prompt", expected="a text")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError("invalid-prompt", "--prompt", expected="UTF-8", got=prompt) from error
    if prompt.count(IMAGE) > with_image:
        raise UsageError(
            "images-do-not-fit-placeholders",
            "--prompt",
            expected=f"at most {int(with_image)} {IMAGE}, as many as there are images",
            got=str(prompt.count(IMAGE)),
        )
    if with_image and IMAGE not in prompt:
        prompt = f"{IMAGE}\n{prompt}"
    if _START in family_of_model(checkpoint).added_tokens(checkpoint.config or {}):
        prompt = prompt.replace(IMAGE, f"{_START}{IMAGE}{_END}")
    encoded = tokenizer.encode(checkpoint.root, _directory(checkpoint), prompt)
    ids = encoded.pieces[0]
    for piece in encoded.pieces[1:]:
        ids = [*ids, IMAGE_TOKEN, *piece]
    if not ids:
        raise UsageError("empty-prompt", "--prompt", expected="a text", got="no token")
    stop = _stop_ids(checkpoint, encoded.eos)
    return Question(torch.tensor(ids), stop, checkpoint.root, tokenizer)


@torch.inference_mode()
def greedy(
    model: VitaModel,
    input_ids: Tensor,
    pixel_values: Tensor | None,
    options: Mapping[str, Any] = MappingProxyType({}),
    *,
    max_new_tokens: int,
    stop: Container[int] = (),
    on_token: Callable[[int], None] = lambda _number: None,
) -> list[int]:
    """The most likely token after ``input_ids`` [T], and so on; ends before one of ``stop``.

    ``pixel_values`` are [N, 3, H, W], one image for each placeholder, or with ``options`` their
    tiles. What came before is kept as keys and values, so that each token costs a forward pass of
    one position. ``on_token`` is called with the number of each token, from 1, before it is
    computed.
    """
    ids = input_ids[None]
    embeds = (
        model.embed_tokens(ids)
        if pixel_values is None
        else model.embed_multimodal(ids, pixel_values, **options)
    )
    cache = DynamicCache()
    answer: list[int] = []
    for number in range(1, max_new_tokens + 1):
        on_token(number)
        token = int(model.logits_of(embeds, cache)[0, -1].argmax())
        if token in stop:
            break
        answer.append(token)
        embeds = model.embed_tokens(torch.tensor([[token]]))
    return answer


def _directory(checkpoint: Checkpoint) -> str:
    """Return the directory of the tokenizer's files."""
    found = [checkpoint.files[name].path for name in _TOKENIZER_FILES if name in checkpoint.files]
    if not found:
        raise InputError(
            "tokenizer-missing",
            checkpoint.root,
            expected=" or ".join(_TOKENIZER_FILES),
            got="neither",
            hint="copy the tokenizer's files into it, or leave out --prompt",
        )
    _check_paths(checkpoint)
    return os.path.dirname(found[0])


def _check_paths(checkpoint: Checkpoint) -> None:
    """The library would follow a path in the tokenizer's config to wherever it leads."""
    if TOKENIZER_CONFIG not in checkpoint.files:
        return
    config, file = read_json(LOCAL, checkpoint.files[TOKENIZER_CONFIG].path)
    for key in ("tokenizer_file", "vocab_file", "merges_file"):
        if config.get(key) is not None:
            raise MalformedFileError(
                "path-outside-checkpoint",
                f"{file.path}: {key}",
                expected="no path: the files lie beside it",
                got=str(config[key]),
                hint="remove the key",
            )


def _stop_ids(checkpoint: Checkpoint, eos: int | None) -> frozenset[int]:
    """Every end that the tokenizer, the config or the generation config names."""
    named = [eos, (checkpoint.config or {}).get("eos_token_id")]
    if GENERATION_CONFIG in checkpoint.files:
        generation, _ = read_json(LOCAL, checkpoint.files[GENERATION_CONFIG].path)
        named.append(generation.get("eos_token_id"))
    ids = (i for value in named for i in (value if isinstance(value, list) else [value]))
    return frozenset(i for i in ids if type(i) is int)
