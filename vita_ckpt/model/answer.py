"""The greedy answer to a prompt: the checkpoint's own tokenizer, one token after another."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache

from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.filenames import GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG
from vita_ckpt.errors import InputError, MalformedFileError, UsageError
from vita_ckpt.model.vita import IMAGE_TOKEN, VitaModel
from vita_ckpt.storage.reading.paths import read_json
from vita_ckpt.storage.stores.local import LOCAL

# How an image is written in a prompt.
IMAGE: Final = "<image>"

_TOKENIZER_FILES: Final = (TOKENIZER_CONFIG, TOKENIZER)


@dataclass(frozen=True)
class Question:
    """A prompt as the model reads it, and what it takes to read the answer.

    ``input_ids`` int64 [T], -200 where the image stands; ``stop`` are the ids that end an answer.
    """

    input_ids: Tensor
    stop: frozenset[int]
    root: str
    tokenizer: Any

    def answer(self, model: VitaModel, pixel_values: Tensor | None, *, max_new_tokens: int) -> str:
        """The model's greedy answer, as text; ``pixel_values`` [1, 3, H, W] if there is an image.

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
            pixel_values,
            max_new_tokens=max_new_tokens,
            stop=self.stop,
        )
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def ask(checkpoint: Checkpoint, prompt: str, *, with_image: bool) -> Question:
    """A prompt in the words of the checkpoint's tokenizer.

    The image stands before the text, or where the prompt says ``<image>``. With a chat template
    the prompt is the one message of a user, else plain text after the tokenizer's first token.

    Raises UsageError for an empty prompt, one that is no text, or one with more images than there
    are; InputError ``tokenizer-missing``, ``tokenizer-needs-code``, ``tokenizer-unreadable``,
    ``path-outside-checkpoint`` or ``chat-template-failed``.
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
    tokenizer = _tokenizer(checkpoint)
    ids: list[int] = []
    if getattr(tokenizer, "chat_template", None):
        prompt = _chat(checkpoint, tokenizer, prompt)
    elif tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:
        # Only what stands before a text: some tokenizers would also end it.
        ids.append(tokenizer.bos_token_id)
    for index, piece in enumerate(prompt.split(IMAGE)):
        ids += [IMAGE_TOKEN] * (index > 0)
        ids += tokenizer(piece, add_special_tokens=False).input_ids if piece else []
    if not ids:
        raise UsageError("empty-prompt", "--prompt", expected="a text", got="no token")
    return Question(torch.tensor(ids), _stop_ids(checkpoint, tokenizer), checkpoint.root, tokenizer)


@torch.inference_mode()
def greedy(
    model: VitaModel,
    input_ids: Tensor,
    pixel_values: Tensor | None,
    *,
    max_new_tokens: int,
    stop: Container[int] = (),
) -> list[int]:
    """The most likely token after ``input_ids`` [T], and so on; ends before one of ``stop``.

    ``pixel_values`` are [N, 3, H, W], one image for each placeholder. What came before is kept as
    keys and values, so that each token costs a forward pass of one position.
    """
    ids = input_ids[None]
    embeds = (
        model.embed_tokens(ids)
        if pixel_values is None
        else model.embed_multimodal(ids, pixel_values)
    )
    cache = DynamicCache()
    answer: list[int] = []
    for _ in range(max_new_tokens):
        token = int(model.logits_of(embeds, cache)[0, -1].argmax())
        if token in stop:
            break
        answer.append(token)
        embeds = model.embed_tokens(torch.tensor([[token]]))
    return answer


def _tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer; nothing is downloaded and none of its code is run."""
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
    # Given instead of the checkpoint's config.json, which may ask for code of its own and whose
    # model_type no library knows.
    config: Any = transformers.PretrainedConfig()
    config.tokenizer_class = "PreTrainedTokenizerFast"
    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(
                os.path.dirname(found[0]),
                config=config,
                local_files_only=True,
                trust_remote_code=False,
            )
    except Exception as error:  # whatever a tokenizer's file makes the library raise
        needs_code = "trust_remote_code" in str(error)
        raise InputError(
            "tokenizer-needs-code" if needs_code else "tokenizer-unreadable",
            checkpoint.root,
            expected="a tokenizer that the library knows",
            got="one with code of its own, which is not run" if needs_code else _said(error),
        ) from error


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's advice on stderr: what matters here is raised."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _chat(checkpoint: Checkpoint, tokenizer: Any, prompt: str) -> str:
    """The prompt as the one message of a user, and the beginning of the answer to it."""
    try:
        text = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        )
        said = "" if text.count(IMAGE) == prompt.count(IMAGE) else f"{text.count(IMAGE)} of them"
    except Exception as error:  # noqa: BLE001 - a template is a program
        said = _said(error)
    if said:
        raise InputError(
            "chat-template-failed",
            checkpoint.root,
            expected=f"a template that renders one message and keeps its {IMAGE}",
            got=said,
        )
    return text


def _stop_ids(checkpoint: Checkpoint, tokenizer: Any) -> frozenset[int]:
    """Every end that the tokenizer, the config or the generation config names."""
    named = [tokenizer.eos_token_id, (checkpoint.config or {}).get("eos_token_id")]
    if GENERATION_CONFIG in checkpoint.files:
        generation, _ = read_json(LOCAL, checkpoint.files[GENERATION_CONFIG].path)
        named.append(generation.get("eos_token_id"))
    ids = (i for value in named for i in (value if isinstance(value, list) else [value]))
    return frozenset(i for i in ids if type(i) is int)


def _said(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
