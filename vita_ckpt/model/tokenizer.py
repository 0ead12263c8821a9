"""Use a checkpoint's tokenizer, which runs in a process of its own, within limits.

This module does not import torch, so that the process can be started before torch is imported.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from threading import Timer
from types import TracebackType
from typing import Any, Final

from vita_ckpt.errors import InputError
from vita_ckpt.model.tokenizer_process import (
    CODES,
    IMAGE,
    MOST_CPU_SECONDS,
    MOST_MEMORY,
    MOST_TEXT,
    NEEDS_CODE,
    OUT_OF_MEMORY,
    OVER_LIMIT,
    STAGES,
    STARTING,
    TEMPLATE_FAILED,
    UNREADABLE,
)

# Of one request, from sending it to its answer.
MOST_SECONDS: Final = 120

# Bytes of one answer: the longest text, of which JSON spells a character in up to 12.
_LONGEST_ANSWER: Final = 13 * MOST_TEXT

# The search path is this interpreter's: with -I no directory is added to it, in particular not the
# working directory, and no variable of the environment changes it.
_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from vita_ckpt.model.tokenizer_process import main; main(*map(int, sys.argv[2:]))"
)

# What the environment keeps: where libraries, home and temporary files are, and the language.
_KEPT: Final = ("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE")
_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # One thread: each takes address space of its own.
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}

_EXPECTED: Final = {
    UNREADABLE: "a tokenizer that the library knows",
    NEEDS_CODE: "a tokenizer that the library knows",
    TEMPLATE_FAILED: "a template that renders one message and keeps its <image>",
    OVER_LIMIT: f"a tokenizer within {MOST_MEMORY >> 30} GiB of memory, "
    f"{MOST_CPU_SECONDS} s of CPU time and {MOST_SECONDS} s",
}


@dataclass(frozen=True)
class Encoded:
    """The ids of a prompt between its images, and the id that ends an answer, if there is one."""

    pieces: list[list[int]]
    eos: int | None


class TokenizerProcess:
    """A process that builds a tokenizer and uses it; it ends with the ``with`` block.

    Every method raises InputError about the checkpoint: ``tokenizer-over-limit`` where the process
    takes too much memory or time, ``tokenizer-crashed`` where it ends for another reason, and
    ``tokenizer-unreadable``, ``tokenizer-needs-code`` or ``chat-template-failed``.
    """

    def __init__(
        self, *, seconds: float = MOST_SECONDS, cpu_seconds: int = MOST_CPU_SECONDS
    ) -> None:
        self._seconds = seconds
        self._cpu_seconds = cpu_seconds
        self._root = ""
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        path = [os.path.abspath(entry) for entry in sys.path]
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and no shell
            [
                *(sys.executable, "-I", "-c", _PROGRAM),
                *(json.dumps(path), str(os.getpid()), str(cpu_seconds)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept | _ENVIRONMENT,
        )

    def __enter__(self) -> TokenizerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # a request that was never read
                    pipe.close()

    def encode(self, root: str, directory: str, prompt: str) -> Encoded:
        """Build the tokenizer of the checkpoint at ``root`` from ``directory``; encode a prompt."""
        self._root = root
        answer = self._ask({"directory": directory, "prompt": prompt})
        pieces, eos = answer.get("pieces"), answer.get("eos")
        if (
            not isinstance(pieces, list)
            or len(pieces) != prompt.count(IMAGE) + 1
            or not all(_are_ids(piece) for piece in pieces)
        ):
            raise self._crashed(STARTING, "an answer that is no ids")
        return Encoded(pieces, eos if type(eos) is int else None)

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, without special tokens."""
        text = self._ask({"ids": ids}).get("text")
        if not isinstance(text, str):
            raise self._crashed(STARTING, "an answer that is no text")
        return text

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # noqa: S101 - both are pipes
        assert stdout is not None  # noqa: S101
        stage = STARTING
        late = Timer(self._seconds, self._process.kill)
        late.daemon = True
        late.start()
        try:
            with suppress(BrokenPipeError):  # it has ended: its status says why
                stdin.write(json.dumps(request).encode() + b"\n")
                stdin.flush()
            while True:
                line = stdout.readline(_LONGEST_ANSWER)
                answer = _parsed(line)
                if answer is None:
                    break
                if "doing" not in answer:
                    return self._checked(answer)
                stage = next((known for known in STAGES if known == answer["doing"]), stage)
        finally:
            timely = late.is_alive()
            late.cancel()
        self._process.kill()
        raise self._ended(stage, timely=timely)

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return an answer, or raise the error that it is."""
        code = answer.get("error")
        if code is None:
            return answer
        if code not in CODES:
            raise self._crashed(STARTING, "an answer that is no error")
        said = "one with code of its own, which is not run"
        raise InputError(
            code,
            self._root,
            expected=_EXPECTED[code],
            got=said if code == NEEDS_CODE else str(answer.get("said")),
        )

    def _ended(self, stage: str, *, timely: bool) -> InputError:
        """Return the error for a process that has given no answer."""
        status = self._process.wait()
        got = ""
        if not timely:
            got = f"more than {self._seconds:g} s"
        elif status == -signal.SIGXCPU:
            got = f"more than {self._cpu_seconds} s of CPU time"
        elif status == OUT_OF_MEMORY:
            got = f"more than {MOST_MEMORY >> 30} GiB of memory"
        if got:
            return InputError(
                OVER_LIMIT,
                self._root,
                expected=_EXPECTED[OVER_LIMIT],
                got=f"{got} while {stage}",
                hint="look at its tokenizer and chat template before you trust them",
            )
        return self._crashed(stage, _name(status))

    def _crashed(self, stage: str, got: str) -> InputError:
        return InputError(
            "tokenizer-crashed",
            self._root,
            expected="a tokenizer that can be used",
            got=f"{got} while {stage}",
            hint="look at its tokenizer and chat template before you trust them",
        )


def _are_ids(piece: object) -> bool:
    return isinstance(piece, list) and all(type(i) is int and 0 <= i < 1 << 63 for i in piece)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the object that a line holds; None at the end, or for what is none."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _name(status: int) -> str:
    """Name how a process ended."""
    try:
        return f"{signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    except ValueError:
        return f"signal {-status}"
