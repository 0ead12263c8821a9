"""Run the model of a checkpoint, and say what one forward pass shows (extra ``model``)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from vita_ckpt import __version__
from vita_ckpt.api.extra import need_the_extra
from vita_ckpt.api.fetch import downloaded
from vita_ckpt.api.locate import StrPath, as_checkpoint, local, locate
from vita_ckpt.api.ranks import told_to_all
from vita_ckpt.api.subject import gather
from vita_ckpt.checks.files import finding_of_error
from vita_ckpt.core.address import is_remote
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.kinds import CHECKPOINTS
from vita_ckpt.core.progress import OnProgress, unwatched
from vita_ckpt.core.report import Finding
from vita_ckpt.core.requirements import family_of_model, require_runnable
from vita_ckpt.core.verification import Verification
from vita_ckpt.errors import INCONCLUSIVE, InputError, UsageError
from vita_ckpt.storage.reading.paths import Stores, read_json
from vita_ckpt.storage.reading.survey import Survey, survey
from vita_ckpt.storage.stores.local import LOCAL
from vita_ckpt.storage.writing.atomic_file import check_new, write_new
from vita_ckpt.storage.writing.limits import access_of_text

if TYPE_CHECKING:
    import torch

    from vita_ckpt.model.ranks import Ranks
    from vita_ckpt.model.tokenizer import TokenizerProcess
    from vita_ckpt.model.vita import VitaModel

# What weights may take: bytes or a text such as "4GB", by GPU number or "cpu".
MaxMemory = Mapping[Any, int | str]

# Enough to see whether an answer makes sense: while streaming, each token reads all the weights.
NEW_TOKENS: Final = 16


def load_model(
    path: Checkpoint | StrPath,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    tower: StrPath | None = None,
    audio_encoder: StrPath | None = None,
    attn: str | None = None,
    max_memory: MaxMemory | None = None,
    stores: Stores | None = None,
) -> VitaModel:
    """Load the model of a checkpoint, ready to run.

    ``device`` is ``"auto"`` (GPUs if there are any), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``;
    ``dtype`` a torch dtype or its name, by default the checkpoint's; ``attn`` the library's
    attention implementation. ``tower`` is the tower's directory, where the config's path does not
    lead to it; its weights are run where the loader of the checkpoint's family takes those.
    ``audio_encoder`` is the audio encoder's, whose tensors are not run without it. ``max_memory``
    is what weights may take: bytes or ``"4GB"``, by GPU number or ``"cpu"``; by default most of
    what is free, of a CPU at least half a gigabyte. Weights lie on one GPU if they fit there, on
    several if they fit on those together (only ``max_memory``'s, where it names some), and
    otherwise stream from the checkpoint's own files, module by module.

    The model has ``vision_tower(pixel_values)`` [N, 3, H, W] → [N, tokens, mm_hidden_size],
    ``encode_images(pixel_values)`` → [N, tokens', hidden], ``image_tokens(pixel_values,
    tiles_per_image, image_sizes, modalities)`` → the tokens [T, hidden] of each image,
    ``encode_audio(audio_features, audio_lengths)`` [M, F, mel bins], [M] → [M, T'', hidden],
    ``embed_multimodal(input_ids, pixel_values, …)`` [B, T] → [B, T', hidden], and
    ``model(…).logits`` of the same arguments [B, T', vocab]; they take those of ``image_tokens``
    and ``encode_audio`` by their names.

    Raises InputError if the checkpoint cannot be read or its tensors are not exactly those of the
    model, UsageError for a device that is not there or without torch.
    """
    need_the_extra()
    from vita_ckpt.model import load  # noqa: PLC0415 - torch

    stores = Stores() if stores is None else stores
    checkpoint = downloaded(as_checkpoint(path, stores), stores)
    with _memory_errors(checkpoint.root):
        return load.load_model(
            checkpoint,
            device=device,
            dtype=dtype,
            tower=None if tower is None else locate(tower, stores),
            audio_encoder=None if audio_encoder is None else locate(audio_encoder, stores),
            attn=attn,
            max_memory=max_memory,
            stores=stores,
        )


def verify(
    path: Checkpoint | StrPath,
    *,
    device: str = "auto",
    dtype: str | None = None,
    tower: StrPath | None = None,
    audio_encoder: StrPath | None = None,
    attn: str | None = None,
    max_memory: MaxMemory | None = None,
    against: Checkpoint | StrPath | None = None,
    golden: StrPath | None = None,
    save_golden: StrPath | None = None,
    image: StrPath | None = None,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    on_progress: OnProgress = unwatched,
    stores: Stores | None = None,
    ranks: Ranks | None = None,
) -> Verification:
    """Build a checkpoint strictly, run it once, and say what is wrong as findings.

    ``against`` is a checkpoint whose text-only logits must be the same; ``save_golden`` a new file
    for a fingerprint of the logits, ``golden`` one of an earlier run to compare with. ``image`` is
    a file that takes the place of a synthetic image, prepared by the processor of the checkpoint
    or of its tower. With ``prompt`` the greedy answer is generated, about the image if there is
    one, of at most ``max_new_tokens`` (by default 16), and without sampling: ``answer`` of the
    result. The tokenizer is the checkpoint's own; code that comes with it is never run.
    ``on_progress`` is told what is being loaded, and how far that is: see
    :mod:`vita_ckpt.core.progress`.

    The other options and the errors are those of :func:`load_model`; a tokenizer, a processor or
    an image that cannot be read is an InputError.

    With the ``ranks`` of :func:`join_ranks` every process of a launcher makes the same call. Each
    reads and runs some of the layers, and all return the same result or raise the same error.
    """
    need_the_extra()
    options: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "tower": tower,
        "audio_encoder": audio_encoder,
        "attn": attn,
        "max_memory": max_memory,
        "against": against,
        "on_progress": on_progress,
    }
    asked: dict[str, Any] = {
        "golden": golden,
        "save_golden": save_golden,
        "image": image,
        "prompt": prompt,
        "max_new_tokens": max_new_tokens,
    }
    stores = Stores() if stores is None else stores
    if ranks is None:
        return _verify(path, stores, None, **options, **asked)
    with told_to_all(ranks):
        # Only rank 0 asks: the files need not lie on every machine.
        return _verify(path, stores, ranks, **options, **({} if ranks.rank else asked))


def _verify(
    path: Checkpoint | StrPath,
    stores: Stores,
    ranks: Ranks | None,
    *,
    device: str,
    dtype: str | None,
    tower: StrPath | None,
    audio_encoder: StrPath | None,
    attn: str | None,
    max_memory: MaxMemory | None,
    against: Checkpoint | StrPath | None,
    on_progress: OnProgress,
    golden: StrPath | None = None,
    save_golden: StrPath | None = None,
    image: StrPath | None = None,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
) -> Verification:
    if max_new_tokens is not None and prompt is None:
        raise UsageError(
            "max-new-tokens-without-prompt", "--max-new-tokens", expected="a prompt to answer"
        )
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UsageError(
            "invalid-max-new-tokens",
            "--max-new-tokens",
            expected="1 or more",
            got=f"{max_new_tokens}",
        )
    for here in (golden, save_golden, image):  # before the model is read
        if here is not None:
            local(here)
    if save_golden is not None:
        check_new(os.fspath(save_golden))
    with nullcontext() if ranks is None else ranks.agreement():
        checkpoint, surveyed = _open(path, stores)
        base = None if against is None else downloaded(as_checkpoint(against, stores), stores)
        earlier = None if golden is None else _read_golden(os.fspath(golden))
        place = None if tower is None else locate(tower, stores)
        require_runnable(checkpoint)
        subject, known = gather(
            checkpoint,
            stores,
            kind=CHECKPOINTS[family_of_model(checkpoint).name],
            surveyed=surveyed,
            tower=place,
            audio_encoder=None if audio_encoder is None else locate(audio_encoder, stores),
        )
    if ranks is not None:
        ranks.agree([_identity(one) for one in (checkpoint, base) if one], checkpoint.root)
    on_progress("starting torch", 0, 0)
    with _tokenizer_process(prompt) as tokenizer, _memory_errors(checkpoint.root):
        from vita_ckpt.model.verification import verify as forward  # noqa: PLC0415 - torch

        verification = forward.verify_checkpoint(
            subject,
            device=device,
            dtype=dtype,
            tower=place,
            attn=attn,
            max_memory=max_memory,
            stores=stores,
            against=base,
            golden=earlier,
            image=image,
            prompt=prompt,
            tokenizer=tokenizer,
            max_new_tokens=NEW_TOKENS if max_new_tokens is None else max_new_tokens,
            on_progress=on_progress,
            ranks=ranks,
            known=[*_problems(surveyed), *known],
        )
    if save_golden is not None and verification is not None and verification.golden is not None:
        text = json.dumps(verification.golden) + "\n"
        write_new(os.fspath(save_golden), text, access_of_text([checkpoint]))
    if ranks is not None:
        verification = ranks.share(verification)
    assert verification is not None  # noqa: S101 - only other ranks than 0 have none
    return verification


def _open(path: Checkpoint | StrPath, stores: Stores) -> tuple[Checkpoint, Survey | None]:
    """Open what is verified, with what lies beside its weights on the disk: headers are read once.

    What the caller has opened in another way, or changed, is not what lies there.
    """
    if isinstance(path, Checkpoint):
        found = None if is_remote(path.root) else _survey(path.root, stores)
        as_it_lies = found is not None and found.checkpoint.tensors == path.tensors
        return downloaded(path, stores), found if as_it_lies else None
    if is_remote(locate(path, stores)):
        return downloaded(as_checkpoint(path, stores), stores), None
    found = _survey(path, stores)
    if found is None or found.problems:  # most of which opening raises
        return as_checkpoint(path, stores), found
    return found.checkpoint, found


def _survey(path: StrPath, stores: Stores) -> Survey | None:
    try:
        return survey(path, stores)
    except INCONCLUSIVE:
        raise
    except InputError:
        return None


def _problems(surveyed: Survey | None) -> list[Finding]:
    if surveyed is None:
        return []
    return [finding_of_error(problem.error, problem.file) for problem in surveyed.problems]


def _identity(checkpoint: Checkpoint) -> str:
    """Return what must be the same wherever a part of a checkpoint runs, as a digest."""
    tensors = sorted((name, one.dtype, one.shape) for name, one in checkpoint.tensors.items())
    versions = [version(package) for package in ("torch", "transformers")]
    text = json.dumps([__version__, versions, checkpoint.config, tensors], sort_keys=True)
    return sha256(text.encode()).hexdigest()


@contextmanager
def _tokenizer_process(prompt: str | None) -> Iterator[TokenizerProcess | None]:
    """Start the process for a prompt's tokenizer: it gets ready while torch is imported."""
    if prompt is None:
        yield None
        return
    from vita_ckpt.model.tokenizer import TokenizerProcess  # noqa: PLC0415 - only with a prompt

    with TokenizerProcess() as process:
        yield process


@contextmanager
def _memory_errors(path: str) -> Iterator[None]:
    """Raise InputError in one line where memory runs out; torch raises it in many."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        message = str(error).lower()
        memory = ("out of memory", "not enough memory", "can't allocate memory")
        if not isinstance(error, MemoryError) and not any(words in message for words in memory):
            raise
        raise InputError(
            "out-of-memory",
            path,
            got=message.partition("\n")[0],
            hint="with --max-memory cpu=0 (or 0=0 for a GPU) the weights stream from the files",
        ) from error


def _read_golden(path: str) -> Mapping[str, Any]:
    data, _ = read_json(LOCAL, path)
    rows = data.get("rows")
    if data.get("format") != "vita-ckpt-golden" or data.get("version") != 1 or not _are_rows(rows):
        raise InputError(
            "invalid-golden",
            path,
            expected="a file that verify --save-golden wrote",
            hint="save it again",
        )
    return data


def _are_rows(rows: Any) -> bool:
    """Return whether ``rows`` are tables of ids and of values of one shape."""

    def sizes(table: Any, kinds: tuple[type, ...]) -> list[int] | None:
        if not isinstance(table, list) or not all(isinstance(line, list) for line in table):
            return None
        flat = all(type(value) in kinds for line in table for value in line)
        return [len(line) for line in table] if flat else None

    return isinstance(rows, dict) and all(
        isinstance(row, dict)
        and (ids := sizes(row.get("ids"), (int,))) is not None
        and len(set(ids)) <= 1
        and ids == sizes(row.get("values"), (int, float))
        and all(0 <= value < 1 << 31 for line in row["ids"] for value in line)
        for row in rows.values()
    )
