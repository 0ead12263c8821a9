"""The process in which a checkpoint's tokenizer and chat template run, within limits.

Both are programs that come with a checkpoint. This module is started by
:mod:`vita_ckpt.model.tokenizer` in an interpreter of its own, without torch. It reads requests from
stdin and writes answers to stdout, each one line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import IO, Any, Final

# How an image is written in a prompt.
IMAGE: Final = "<image>"

# Generous: the tokenizers of published models take a few hundred megabytes and a few seconds.
MOST_MEMORY: Final = 4 << 30  # bytes of address space
MOST_CPU_SECONDS: Final = 60

# Of one answer.
MOST_TOKENS: Final = 1 << 20
MOST_TEXT: Final = 1 << 20
_LONGEST_MESSAGE: Final = 1000

# What the process was doing, if it ends without an answer.
STARTING: Final = "starting"
BUILDING: Final = "building the tokenizer"
RENDERING: Final = "rendering the chat template"
ENCODING: Final = "encoding the prompt"
DECODING: Final = "decoding the answer"
STAGES: Final = (STARTING, BUILDING, RENDERING, ENCODING, DECODING)

# The codes that an answer may have instead of a result.
UNREADABLE: Final = "tokenizer-unreadable"
NEEDS_CODE: Final = "tokenizer-needs-code"
TEMPLATE_FAILED: Final = "chat-template-failed"
OVER_LIMIT: Final = "tokenizer-over-limit"
CODES: Final = (UNREADABLE, NEEDS_CODE, TEMPLATE_FAILED, OVER_LIMIT)

# Exit status of a process whose memory ran out in Python.
OUT_OF_MEMORY: Final = 70

_PR_SET_PDEATHSIG: Final = 1


class _Refused(Exception):
    """The code of an error, and what is said about it."""

    def __init__(self, code: str, said: str) -> None:
        super().__init__(code, said)
        self.code = code
        self.said = said


def main(parent: int, cpu_seconds: int) -> None:
    """Answer requests until stdin ends; ``parent`` is the process that started this one."""
    _limit(parent, cpu_seconds)
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no answer
    sys.modules["torch"] = None  # type: ignore[assignment]  # tokenizers run without it
    try:
        import transformers  # noqa: F401, PLC0415 - while the parent imports torch

        _serve(answers)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _limit(parent: int, cpu_seconds: int) -> None:
    """Limit what this process may take, and let it end with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for what, most in (
        (resource.RLIMIT_AS, MOST_MEMORY),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (value, hard))


def _serve(answers: IO[str]) -> None:
    def write(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer, separators=(",", ":")) + "\n")
        answers.flush()

    tokenizer: Any = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            if "prompt" in request:
                write({"doing": BUILDING})
                tokenizer = _build(request["directory"])
                text, first = request["prompt"], []
                if getattr(tokenizer, "chat_template", None):
                    write({"doing": RENDERING})
                    text = _chat(tokenizer, text)
                    write({"doing": ENCODING})
                else:
                    write({"doing": ENCODING})
                    first = _first(tokenizer)
                write(_encode(tokenizer, text, first))
            else:
                write({"doing": DECODING})
                write(_decode(tokenizer, request["ids"]))
        except _Refused as error:
            write({"error": error.code, "said": error.said})


def _build(directory: str) -> Any:
    """Build the tokenizer; nothing is downloaded and none of its code is run."""
    try:
        from transformers import AutoTokenizer, PretrainedConfig  # noqa: PLC0415

        # Given instead of the checkpoint's config.json, which may ask for code of its own and whose
        # model_type no library knows.
        config: Any = PretrainedConfig()
        config.tokenizer_class = "PreTrainedTokenizerFast"
        return AutoTokenizer.from_pretrained(
            directory, config=config, local_files_only=True, trust_remote_code=False
        )
    except MemoryError:
        raise
    except Exception as error:  # whatever a tokenizer's file makes the library raise
        needs_code = "trust_remote_code" in str(error)
        raise _Refused(NEEDS_CODE if needs_code else UNREADABLE, _said(error)) from error


def _chat(tokenizer: Any, prompt: str) -> str:
    """Return the prompt as the one message of a user, and the beginning of the answer to it."""
    messages = [{"role": "user", "content": prompt}]
    try:
        text = str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    except MemoryError:
        raise
    except Exception as error:  # a template is a program
        raise _Refused(TEMPLATE_FAILED, _said(error)) from error
    if text.count(IMAGE) != prompt.count(IMAGE):
        raise _Refused(TEMPLATE_FAILED, f"{text.count(IMAGE)} of them")
    return text


def _first(tokenizer: Any) -> list[int]:
    """Return what stands before a text; some tokenizers would also end it."""
    try:
        before: list[int] = tokenizer("").input_ids[:1]
    except MemoryError:
        raise
    except Exception as error:
        raise _Refused(UNREADABLE, _said(error)) from error
    return before if before == [tokenizer.bos_token_id] else []


def _encode(tokenizer: Any, text: str, first: list[int]) -> dict[str, Any]:
    """Return the ids between the images of a text, and the one that ends an answer."""
    try:
        pieces: list[list[int]] = [
            tokenizer(piece, add_special_tokens=False).input_ids if piece else []
            for piece in text.split(IMAGE)
        ]
    except MemoryError:
        raise
    except Exception as error:
        raise _Refused(UNREADABLE, _said(error)) from error
    pieces[0] = first + pieces[0]
    tokens = sum(map(len, pieces))
    if tokens > MOST_TOKENS:
        raise _Refused(OVER_LIMIT, f"a prompt of {tokens} tokens")
    return {"pieces": pieces, "eos": tokenizer.eos_token_id}


def _decode(tokenizer: Any, ids: list[int]) -> dict[str, Any]:
    try:
        text: str = tokenizer.decode(ids, skip_special_tokens=True)
    except MemoryError:
        raise
    except Exception as error:
        raise _Refused(UNREADABLE, _said(error)) from error
    if len(text) > MOST_TEXT:
        raise _Refused(OVER_LIMIT, f"an answer of {len(text)} characters")
    return {"text": text}


def _said(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return text[:_LONGEST_MESSAGE]
