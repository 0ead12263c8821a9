"""Run one forward pass and report what it shows as findings."""

from __future__ import annotations

import ctypes
import gc
import resource
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import isfinite, isnan, prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from vita_ckpt.checks.audio import check_audio_directory
from vita_ckpt.checks.config import check_config
from vita_ckpt.checks.files import check_left_out
from vita_ckpt.checks.loader_metadata import check_loaders
from vita_ckpt.checks.structure import check_structure, unsaid
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core.anatomy import parts, projectors
from vita_ckpt.core.binding.result import Binding
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.progress import OnProgress, Tally, unwatched
from vita_ckpt.core.provenance import needs_alignment
from vita_ckpt.core.report import Finding, has_errors, worst_first
from vita_ckpt.core.verification import RankReport, Verification
from vita_ckpt.model.answer import ask
from vita_ckpt.model.image import Picture, prepare_image
from vita_ckpt.model.language import check_language_values
from vita_ckpt.model.load import StrPath, check_values, dtype_of, load_bound, load_model
from vita_ckpt.model.pipeline import follow, load_stage
from vita_ckpt.model.placement import free_memory, offered
from vita_ckpt.model.tokenizer import TokenizerProcess
from vita_ckpt.model.vita import VitaModel
from vita_ckpt.model.weights import Observer
from vita_ckpt.storage.reading.paths import Stores

if TYPE_CHECKING:
    from vita_ckpt.model.ranks import Ranks

# The largest value of float16, into which upstream's loader casts everything.
FLOAT16_MAX: Final = 65504.0

# An input matters if it moves the logits this many times more than equal runs differ.
_MATTERS: Final = 100.0
# Below this part of the logits' scale two runs count as equal, whatever they differ.
_NOISE: Final = 1e-9

_TEXT_LENGTH: Final = 8
_SHOWN: Final = 16  # of the tokens of an image or a recording
# The synthetic recording: four seconds, with the range that the logarithms of mel energies have.
FRAMES: Final = 400
_FEATURE_MEAN: Final = 10.0
_FEATURE_SPREAD: Final = 3.0
_AUDIO_ROWS: Final = ("audio", "other audio")
_GOLDEN_FORMAT: Final = "vita-ckpt-golden"
_GOLDEN_VERSION: Final = 1
_TOP: Final = 8
_NMSE: Final = 1e-3

# What is wrong with the audio encoder, and keeps nothing else from being run.
_AUDIO: Final = (
    "audio-absent",
    "audio-not-built",
    "audio-files-missing",
    "audio-directory-unreadable",
)


def verify_checkpoint(
    subject: Subject,
    *,
    device: str = "auto",
    dtype: str | None = None,
    tower: StrPath | None = None,
    attn: str | None = None,
    max_memory: Mapping[Any, int | str] | None = None,
    against: Checkpoint | None = None,
    golden: Mapping[str, Any] | None = None,
    image: StrPath | None = None,
    prompt: str | None = None,
    tokenizer: TokenizerProcess | None = None,
    max_new_tokens: int = 1,
    on_progress: OnProgress = unwatched,
    stores: Stores | None = None,
    ranks: Ranks | None = None,
    known: Iterable[Finding] = (),
) -> Verification | None:
    """Build the model strictly, run it once on synthetic inputs, and say what is wrong.

    All variants (an image twice, another image, another text, a recording, another one, text alone)
    are rows of one batch, so the weights are read once. ``against`` is a checkpoint whose text-only
    logits must be the same; ``golden`` the fingerprint of an earlier verification. ``image`` is a
    file that takes the place of the first synthetic image and is what ``prompt`` asks about: its
    answer has at most ``max_new_tokens``, and is encoded and decoded by ``tokenizer``. ``known``
    are findings of whoever read the files. Errors of the input are raised as
    :func:`~vita_ckpt.model.load.load_model` does, a checkpoint that does not work gives findings.

    With ``ranks`` each of them runs some layers. Rank 0 asks and judges, the others may return
    None; ``golden``, ``image`` and ``prompt`` are only rank 0's.
    """
    checkpoint = subject.checkpoint
    stores = Stores() if stores is None else stores
    picture = None if image is None else prepare_image(checkpoint, image, tower, stores=stores)
    question = None
    if prompt is not None and tokenizer is not None:
        question = ask(checkpoint, prompt, with_image=picture is not None, tokenizer=tokenizer)
    findings = [found for found in known if found.severity == "error"]
    started = time.perf_counter()
    bound = subject.binding
    check_language_values(subject.config)
    findings += _wrong(subject)
    incomplete = bound is None or not bound.is_complete
    if bound is None or (incomplete and has_errors(f for f in findings if f.rule not in _AUDIO)):
        return _not_run(checkpoint, findings, dtype, time.perf_counter() - started)
    check_values(checkpoint, subject.surroundings, bound, stores)
    findings += _before_it_runs(subject)
    watch = _Watch(_sizes(checkpoint, bound.renamed), on_progress)
    loads = _Loads(
        subject,
        bound,
        against,
        device=device if ranks is None else ranks.place(device),
        dtype=dtype,
        tower=tower,
        attn=attn,
        max_memory=max_memory or {},
        on_progress=on_progress,
        stores=stores,
        ranks=ranks,
    )
    if ranks is not None and ranks.rank:
        _follow(ranks, loads, watch)
        return None
    model = loads.checkpoint(dtype_of(dtype, checkpoint), watch)
    loaded = time.perf_counter()
    watch.follow(model)
    batch = _Batch.of(model, picture)
    done = batch.run(model)
    _settle(model, ranks, watch)
    rows, tokens = done.rows, done.image_tokens
    findings += _check_pass(done, batch, model, subject)
    findings += watch.findings()
    passed = time.perf_counter()
    answer = None
    if question is not None and not any(f.rule == "logits-not-finite" for f in findings):
        answer = question.answer(
            model,
            picture,
            max_new_tokens=max_new_tokens,
            on_token=lambda number: watch.expect(f"token {number} of {max_new_tokens}"),
        )
    skipped = 0 if model.audio_encoder is not None else _audio_tensors(checkpoint)
    if against is not None:
        watch.expect("text alone")
    alone = rows["text"] if against is None else _text_alone(model, len(rows["text"]))
    model.end()
    shares = _shares(model, watch, ranks, 0, _devices(model))
    kind, on_gpu = model.dtype, model.device.type == "cuda"
    # A GPU that holds one model need not hold two.
    del model
    _free_memory()
    if on_gpu:
        findings += _check_float16(loads.in_float16(), batch)
    if against is not None:
        findings += _check_against(against.root, loads.base(), alone)
    if golden is not None:
        findings += _check_golden(golden, rows)
    return Verification(
        path=checkpoint.root,
        device=", ".join(dict.fromkeys(share.report.device for share in shares)),
        dtype=_name(kind),
        streamed=any(share.streams for share in shares),
        findings=worst_first(findings),
        load_seconds=loaded - started,
        pass_seconds=passed - loaded,
        peak_memory=max(share.report.peak_memory for share in shares),
        tokens_per_image=tokens,
        tokens_per_recording=done.audio_tokens,
        skipped_audio_tensors=skipped,
        answer=answer,
        ranks=() if ranks is None else tuple(share.report for share in shares),
        golden=_fingerprint(rows),
    )


@dataclass(frozen=True)
class _Loads:
    """The models that a verification runs, one after the other: of ranks, this one's stage."""

    subject: Subject
    bound: Binding
    against: Checkpoint | None
    device: str
    dtype: str | None
    tower: StrPath | None
    attn: str | None
    max_memory: Mapping[Any, int | str]
    on_progress: OnProgress
    stores: Stores
    ranks: Ranks | None

    def checkpoint(self, kind: torch.dtype, observe: Observer | None = None) -> VitaModel:
        """Load the checkpoint that is verified."""
        return load_stage(self.ranks, partial(self._checkpoint, kind, observe))

    def in_float16(self) -> VitaModel:
        """Load it once more, as upstream runs it."""
        watch = _Loading(_sizes(self.subject.checkpoint), self.on_progress, "float16")
        return self.checkpoint(torch.float16, watch)

    def base(self) -> VitaModel:
        """Load the checkpoint that it is compared with."""
        return load_stage(self.ranks, self._base)

    def _checkpoint(self, kind: torch.dtype, observe: Observer | None) -> VitaModel:
        return load_bound(
            self.subject.checkpoint,
            self.subject.surroundings,
            self.bound,
            offered(self.device, self.max_memory, torch.cuda.device_count(), self._free),
            kind,
            attn=self.attn,
            observe=observe,
            stage=self._stage,
            stores=self.stores,
        )

    def _base(self) -> VitaModel:
        assert self.against is not None  # noqa: S101 - only called with one
        return load_model(
            self.against,
            device=self.device,
            dtype=self.dtype,
            tower=self.tower,
            attn=self.attn,
            max_memory=self.max_memory,
            observe=_Loading(_sizes(self.against), self.on_progress),
            stores=self.stores,
            stage=self._stage,
        )

    @property
    def _stage(self) -> tuple[int, int] | None:
        return None if self.ranks is None else (self.ranks.rank, self.ranks.size)

    def _free(self, index: int | None) -> int:
        return free_memory(index) // (1 if self.ranks is None else self.ranks.sharers)


def _follow(ranks: Ranks, loads: _Loads, watch: _Watch) -> None:
    """Run this rank's stage of each model that rank 0 runs."""
    device = torch.device(loads.device)
    model = loads.checkpoint(dtype_of(loads.dtype, loads.subject.checkpoint), watch)
    watch.follow(model)
    follow(model, ranks, device, partial(_settle, model, ranks, watch))
    _shares(model, watch, ranks, ranks.rank, loads.device)
    del model
    _free_memory()
    if ranks.leader_on_gpu:
        follow(loads.checkpoint(torch.float16), ranks, device)
        _free_memory()
    if loads.against is not None:
        follow(loads.base(), ranks, device)


def _settle(model: VitaModel, ranks: Ranks | None, watch: _Watch) -> None:
    """Look at what no pass has read, then no more; on rank 0 with what the other ranks saw."""
    if model.later is not None:
        model.later.settle()
    model.observe_rest()
    watch.stop()
    if ranks is not None:
        watch.add(ranks.gather(watch.seen))


@dataclass(frozen=True)
class _Share:
    """What one process did, and whether its weights streamed."""

    report: RankReport
    streams: bool


def _shares(
    model: VitaModel, watch: _Watch, ranks: Ranks | None, rank: int, devices: str
) -> list[_Share]:
    """Return what this process did, of several what each of them did."""
    own = _Share(RankReport(rank, devices, watch.bytes_read, _peak(devices)), model.streams)
    return [own] if ranks is None else ranks.gather(own)


def _not_run(
    checkpoint: Checkpoint, findings: list[Finding], dtype: str | None, seconds: float
) -> Verification:
    """Return what is known of a checkpoint whose tensors are not those of its config."""
    if needs_alignment(checkpoint):
        findings.append(_untrained())
    return Verification(
        path=checkpoint.root,
        device="meta",
        dtype=_name(dtype_of(dtype, checkpoint)),
        streamed=False,
        findings=worst_first(findings),
        load_seconds=seconds,
        pass_seconds=0.0,
        peak_memory=_peak_of_host(),
        tokens_per_image=None,
        tokens_per_recording=None,
        skipped_audio_tensors=_audio_tensors(checkpoint),
        answer=None,
        golden=None,
    )


def _audio_tensors(checkpoint: Checkpoint) -> int:
    return sum(
        parts.part_of(name) in (parts.AUDIO_ENCODER, parts.AUDIO_ADAPTER)
        for name in checkpoint.tensors
    )


def _untrained() -> Finding:
    return Finding(
        "projector-untrained",
        "warning",
        "mm_projector",
        "drawn at random, and no trained one has been merged since",
        "train it, and merge it with merge-projector",
    )


class _Loading:
    """Tells of every weight that goes by which layer it belongs to, and how many bytes are left."""

    def __init__(
        self, sizes: Mapping[str, int], on_progress: OnProgress, purpose: str = ""
    ) -> None:
        self._what = f"{purpose}, loading" if purpose else "loading"
        layers = [layer for name in sizes if (layer := _layer(name)) is not None]
        self._layers = max(layers, default=-1) + 1
        self._step = Tally(on_progress, self._what, sum(sizes.values()))

    def __call__(self, stored: str, tensor: Tensor) -> None:
        """A weight on its way into its module."""
        layer = _layer(stored)
        of = "" if layer is None else f" layer {layer + 1} of {self._layers}"
        self._step.what = self._what + of
        self._step(tensor.nbytes)


def _sizes(
    checkpoint: Checkpoint, renamed: Mapping[str, str] = MappingProxyType({})
) -> dict[str, int]:
    return {renamed.get(name, name): t.nbytes for name, t in checkpoint.tensors.items()}


def _layer(name: str) -> int | None:
    number = name.removeprefix(parts.LAYERS_PREFIX).partition(".")[0]
    return int(number) if name.startswith(parts.LAYERS_PREFIX) and number.isdecimal() else None


class _Watch:
    """Sees every weight and every module's output go by, and remembers what float16 cannot hold."""

    def __init__(self, sizes: Mapping[str, int], on_progress: OnProgress) -> None:
        self._sizes = sizes
        self._on_progress = on_progress
        self.expect("")
        self._weights: dict[str, float] = {}
        self._activations: dict[str, float] = {}
        self._stopped = False
        self.bytes_read = 0

    @property
    def seen(self) -> tuple[dict[str, float], dict[str, float]]:
        """The weights and the activations that float16 cannot hold, in the order of the run."""
        return self._weights, self._activations

    def add(self, seen: Iterable[tuple[dict[str, float], dict[str, float]]]) -> None:
        """Add what the ranks saw, by rank, which is the order of the run."""
        for weights, activations in seen:
            self._weights = {**weights, **self._weights}
            self._activations = {**self._activations, **activations}

    def __call__(self, stored: str, tensor: Tensor) -> None:
        """A weight on its way into its module."""
        self.bytes_read += tensor.nbytes
        self._loading(stored, tensor)
        if self._stopped:
            return
        largest = _largest(tensor)
        if not largest <= FLOAT16_MAX:
            self._weights.setdefault(stored, largest)  # a large matrix comes in parts

    def expect(self, purpose: str) -> None:
        """Tell from now on how far another pass over the weights is."""
        self._loading = _Loading(self._sizes, self._on_progress, purpose)

    def follow(self, model: VitaModel) -> None:
        """Look at the output of every module that has weights of its own."""
        for name, stored in model.stored_names().items():
            owner = model.get_submodule(name.rpartition(".")[0])
            if stored.endswith((".weight", "_embedding")):
                owner.register_forward_hook(self._see(stored.removesuffix(".weight")))

    def stop(self) -> None:
        """Look no more: another pass takes the same weights, and looking takes time."""
        self._stopped = True

    def findings(self) -> list[Finding]:
        """What was seen: weights in the order of the files, activations in that of the run."""
        weights = {name: self._weights[name] for name in self._sizes if name in self._weights}
        found: list[Finding] = []
        for kind, seen, hint in (
            ("weight", weights, "upstream's loader makes it infinite"),
            (
                "activation",
                self._activations,
                "upstream runs in float16: it becomes infinite there",
            ),
        ):
            for name, value in seen.items():
                finite = isfinite(value)
                found.append(
                    Finding(
                        f"float16-{kind}" if finite else f"{kind}-not-finite",
                        "error",
                        name,
                        f"{kind} of {value:g}, float16 holds {FLOAT16_MAX:g}"
                        if finite
                        else f"{kind} is {value:g}",
                        hint if finite else "",
                    )
                )
        return found

    def _see(self, name: str) -> Any:
        def hook(_module: Any, _arguments: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, Tensor) and not self._stopped:
                largest = _largest(tensor)
                if not largest <= FLOAT16_MAX:
                    self._activations.setdefault(name, largest)

        return hook


@dataclass(frozen=True)
class _Batch:
    """The inputs: rows of one length, so that nothing is padded and the weights are read once.

    Of an image's tokens the language model is shown a few, evenly spread: enough to see whether
    they matter, and a small part of what all of them would cost.
    """

    first: Tensor  # [T] token ids
    second: Tensor  # [T] other ones in every place
    images: tuple[Picture, Picture] | None
    expected_tokens: int | None
    recordings: Tensor | None  # [2, T, mel bins]
    expected_audio_tokens: int | None

    @classmethod
    def of(cls, model: VitaModel, image: Picture | None = None) -> _Batch:
        """Synthetic inputs; ``image`` takes the place of the first image."""
        vocab = model.language_model.config.vocab_size
        first = _text(_TEXT_LENGTH, vocab)
        second = (first + 1 + vocab // 2) % vocab
        recordings = audio_tokens = None
        if model.audio_encoder is not None:
            settings = model.audio_encoder.settings
            shape = (2, FRAMES, settings.mel_bins)
            drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            recordings = drawn * _FEATURE_SPREAD + _FEATURE_MEAN
            audio_tokens = settings.tokens_out(FRAMES)
        if model.vision_tower is None:
            return cls(first, second, None, None, recordings, audio_tokens)
        one, other = _drawn_images(model, image)
        tokens = _expected_tokens(model, one)
        return cls(first, second, (image or one, other), tokens, recordings, audio_tokens)

    @torch.inference_mode()
    def run(self, model: VitaModel) -> _Pass:
        """Every variant in one forward pass."""
        first, second = (model.embed_tokens(text) for text in (self.first, self.second))
        half = len(first) // 2

        def row(text: Tensor, part: Tensor) -> Tensor:
            """Put a few rows of an image or a recording, evenly spread, among those of text."""
            shown = torch.linspace(0, len(part) - 1, count).long()
            return torch.cat([text[:half], part[shown.to(part.device)], text[half:]])

        seen = None if self.images is None else _tokens_of(model, self.images)
        heard = None
        if self.recordings is not None:
            _trim_heap()
            heard = model.encode_audio(self.recordings, torch.full((2,), FRAMES))
        _trim_heap()
        lengths = [len(parts[0]) for parts in (seen, heard) if parts is not None]
        count = min([_SHOWN, *lengths])
        rows: dict[str, Tensor] = {}
        if seen is not None:
            one, other = seen
            rows |= {"image": row(first, one), "again": row(first, one)}
            rows |= {"other image": row(first, other), "other text": row(second, one)}
        if heard is not None:
            one, other = heard
            rows |= {"audio": row(first, one), "other audio": row(first, other)}
            rows.setdefault("again", rows["audio"])
        vocab = model.language_model.config.vocab_size
        length = len(first) + (count if rows else 0)
        rows["text"] = model.embed_tokens(_text(length, vocab))
        logits = model.logits_of(torch.stack(list(rows.values())))
        prompt = model.audio_encoder.prompt if model.audio_encoder is not None else 0
        return _Pass(
            dict(zip(rows, logits.cpu(), strict=True)),
            None if seen is None else len(seen[0]),
            None if heard is None else heard.shape[1] - prompt,
        )


@dataclass(frozen=True)
class _Pass:
    """Logits [T', vocab] of each variant, and how many tokens an image and a recording became."""

    rows: Mapping[str, Tensor]
    image_tokens: int | None
    audio_tokens: int | None


def _drawn_images(model: VitaModel, image: Picture | None) -> tuple[Picture, Picture]:
    """Return two images drawn at random, of as many pixels and tiles as ``image`` if there is one.

    Otherwise a model for images in tiles gets the smallest grid that its config has.
    """
    assert model.vision_tower is not None  # noqa: S101 - there is something to show it to
    side, tile = model.vision_tower.image_size, model.vision_tower.tile_size
    size = None
    shape: tuple[int, ...] = (1, 3, side, side)
    tiling = model.family.tiling(model.config)
    grids = [(size, tiling.grid(size, tile)) for size in tiling.sizes(tile)]
    if image is not None:
        size, shape = image.size, tuple(image.pixels.shape)
    elif tiling.is_anyres and grids:
        size, (across, down) = min(
            ((size, grid or (1, 1)) for size, grid in grids), key=lambda pair: prod(pair[1])
        )
        shape = (1 + across * down, *shape[1:])
    drawn = torch.randn(2 * shape[0], *shape[1:], generator=torch.Generator().manual_seed(0))
    one, other = torch.split(drawn, shape[0])
    return Picture(one, size), Picture(other, size)


def _expected_tokens(model: VitaModel, image: Picture) -> int | None:
    """Return how many tokens an image must become."""
    assert model.vision_tower is not None  # noqa: S101 - there is something to show it to
    tower = model.vision_tower
    tokens = projectors.tokens_out(str(model.family.projector_type(model.config)), tower.tokens)
    if image.size is None or tokens is None:
        return tokens
    tiling = model.family.tiling(model.config)
    return tiling.tokens(image.size, len(image.pixels), tower.grid, tower.tile_size, tokens)


def _tokens_of(model: VitaModel, images: tuple[Picture, Picture]) -> list[Tensor]:
    """Return the tokens of each image, computed together."""
    one, other = images
    pixels = torch.cat([one.pixels, other.pixels])
    if one.size is None or other.size is None:
        return model.image_tokens(pixels)
    return model.image_tokens(pixels, [len(one.pixels), len(other.pixels)], [one.size, other.size])


def _text(length: int, vocab: int) -> Tensor:
    """Token ids that are the same everywhere, spread over the vocabulary."""
    return (torch.arange(length) * 7919 + 11) % vocab


def _check_pass(done: _Pass, batch: _Batch, model: VitaModel, subject: Subject) -> list[Finding]:
    findings = [
        *_check_image_tokens(done.image_tokens, batch.expected_tokens),
        *_check_audio_tokens(done.audio_tokens, batch.expected_audio_tokens),
        *_check_rows(done.rows, model),
    ]
    if done.audio_tokens is not None:
        directory = check_audio_directory(subject.audio_directory)
        findings += [finding for finding in directory if finding.severity == "warning"]
    return findings


def _check_image_tokens(made: int | None, expected: int | None) -> list[Finding]:
    if made == expected:
        return []
    return [
        Finding(
            "image-token-count",
            "error",
            "mm_projector",
            f"an image became {made} tokens, expected {expected}",
            "the image's size, the tower and the projector do not go together",
        )
    ]


def _check_audio_tokens(made: int | None, expected: int | None) -> list[Finding]:
    if made == expected:
        return []
    return [
        Finding(
            "audio-token-count",
            "error",
            "audio_encoder",
            f"a recording became {made} tokens, expected {expected}",
            "the encoder and the adapter do not go together",
        )
    ]


def _check_rows(rows: Mapping[str, Tensor], model: VitaModel) -> list[Finding]:
    findings: list[Finding] = []
    bad = [name for name, logits in rows.items() if not bool(torch.isfinite(logits).all())]
    if bad:
        return [
            Finding(
                "logits-not-finite",
                "error",
                "logits",
                f"NaN or infinite for {', '.join(bad)} in {_name(model.dtype)}",
                "the activations named are where it begins",
            )
        ]
    if "again" not in rows:
        return findings
    twice = rows["image"] if "image" in rows else rows["audio"]
    noise = float((twice - rows["again"]).abs().max()) / (float(twice.abs().max()) or 1.0)
    if noise > 1e-3:
        findings.append(
            Finding("not-deterministic", "error", "logits", f"two equal runs differ by {noise:.1e}")
        )
    for rule, one, name, what in (
        ("image-ignored", "image", "other image", "the image"),
        ("text-ignored", "image", "other text", "the text"),
        ("audio-ignored", "audio", "other audio", "the recording"),
    ):
        if one not in rows:
            continue
        scale = float(rows[one].abs().max()) or 1.0
        moved = float((rows[one] - rows[name]).abs().max()) / scale
        if not moved > _MATTERS * max(noise, _NOISE):
            findings.append(
                Finding(
                    rule,
                    "error",
                    "logits",
                    f"{what} does not matter: another one moves the logits by {moved:.1e} of their "
                    f"scale, equal runs differ by {noise:.1e}",
                    _IGNORED_BECAUSE.get(rule, ""),
                )
            )
    return findings


_IGNORED_BECAUSE: Final = {
    "image-ignored": "a dead or zero projector",
    "audio-ignored": "a dead or zero audio adapter",
}


def _wrong(subject: Subject) -> list[Finding]:
    """Return the errors of tensors and config that validate finds too."""
    found = [*check_structure(subject), *check_config(subject)]
    found += unsaid(subject, found)
    return [finding for finding in found if finding.severity == "error"]


def _before_it_runs(subject: Subject) -> list[Finding]:
    """Return what is known to be wrong, and keeps nothing from being run here."""
    found = (*check_loaders(subject.checkpoint), *check_left_out(subject))
    untrained = [_untrained()] if needs_alignment(subject.checkpoint) else []
    return [*(finding for finding in found if finding.severity == "error"), *untrained]


def _check_float16(half: VitaModel, batch: _Batch) -> list[Finding]:
    """On a GPU: the same pass as upstream runs it, in float16."""
    rows = batch.run(half).rows
    half.end()
    del half
    _free_memory()
    if all(bool(torch.isfinite(logits).all()) for logits in rows.values()):
        return []
    return [
        Finding("float16-not-finite", "error", "logits", "NaN or infinite in upstream's float16")
    ]


def _trim_heap() -> None:
    """Give the heap's free pages back: glibc keeps those of freed activations, hundreds of MB."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _free_memory() -> None:
    """Give back what a model that nothing refers to any more held; its hooks are cycles."""
    gc.collect()
    torch.cuda.empty_cache()


def _text_alone(model: VitaModel, length: int) -> Tensor:
    """Return the logits of the text in a batch of its own: beside other rows sums are rounded anew.

    Mixtral's experts take the tokens of all rows together.
    """
    ids = _text(length, model.language_model.config.vocab_size)[None]
    with torch.inference_mode():
        return model.logits_of(model.embed_tokens(ids))[0].cpu()


def _check_against(root: str, model: VitaModel, text: Tensor) -> list[Finding]:
    """Text-only logits are the base's: surgery on vision does not touch language."""
    logits = _text_alone(model, len(text))
    model.end()
    if logits.shape == text.shape and bool(torch.equal(logits, text)):
        return []
    moved = "another vocabulary"
    if logits.shape == text.shape:
        scale = float(logits.abs().max()) or 1.0
        moved = f"a difference of {float((logits - text).abs().max()) / scale:.1e} of their scale"
    return [
        Finding(
            "language-changed",
            "error",
            "logits",
            f"text-only logits are not those of {root}: {moved}",
            "the language model was changed too",
        )
    ]


def _fingerprint(rows: Mapping[str, Tensor]) -> dict[str, Any]:
    """The largest logits of each position of each variant."""
    top = {name: logits.topk(min(_TOP, logits.shape[-1])) for name, logits in rows.items()}
    return {
        "format": _GOLDEN_FORMAT,
        "version": _GOLDEN_VERSION,
        "rows": {
            name: {"ids": found.indices.tolist(), "values": found.values.tolist()}
            for name, found in top.items()
        },
    }


def _check_golden(golden: Mapping[str, Any], rows: Mapping[str, Tensor]) -> list[Finding]:
    for name, logits in rows.items():
        expected = golden["rows"].get(name)
        if expected is None and name in _AUDIO_ROWS:
            continue  # saved by a version that did not run audio
        if expected is None or len(expected["ids"]) != len(logits):
            return [Finding("golden-mismatch", "error", name, "the golden has other positions")]
        values = torch.tensor(expected["values"])
        found = logits.gather(-1, torch.tensor(expected["ids"]))
        nmse = float(((found - values) ** 2).sum() / (values**2).sum())
        if not nmse <= _NMSE:
            return [
                Finding(
                    "golden-mismatch",
                    "error",
                    name,
                    f"logits differ from the golden: NMSE {nmse:.1e}, at most {_NMSE:g}",
                )
            ]
    return []


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _largest(tensor: Tensor) -> float:
    """The largest magnitude, NaN if there is one; one pass without a copy."""
    if not tensor.is_floating_point() or not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor)
    low_value, high_value = float(low), float(high)
    return low_value if isnan(low_value) else max(-low_value, high_value)


def _devices(model: VitaModel) -> str:
    """Where a model runs; several GPUs in the order in which it runs on them."""
    if model.streams:
        return str(model.device)
    return ", ".join(dict.fromkeys(str(parameter.device) for parameter in model.parameters()))


def _peak(devices: str) -> int:
    gpus = [device for device in devices.split(", ") if device.startswith("cuda")]
    if gpus:
        return sum(torch.cuda.max_memory_allocated(device) for device in gpus)
    return _peak_of_host()


def _peak_of_host() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
