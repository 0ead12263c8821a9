"""Describe what a LoRA run makes of its base: the tensors that are merged, and what does not fit.

The names are those that the trainer and peft write (LORA §1, §2 of upstream's facts). Deltas are
read with the run's config; what else was trained, in ``adapter_model`` or in
``non_lora_trainables.bin``, takes the place that it had in the model that was trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any, Final

from vita_ckpt.core.anatomy import parts, wrappers
from vita_ckpt.core.binding.match import is_harmless
from vita_ckpt.core.binding.modules import is_tied
from vita_ckpt.core.checkpoint import (
    Checkpoint,
    LoraMerge,
    Pieces,
    Shape,
    Stored,
    Tensor,
    TensorRef,
    cast,
    rows_of,
    source_of,
)
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.dtype import CAST_TARGETS, can_cast
from vita_ckpt.core.lora_config import LoraConfig, Problem
from vita_ckpt.core.patterns import PatternError
from vita_ckpt.core.quantisation import quantisation_of

# ``….q_proj.lora_A.weight``, with the adapter's name before the last component in a whole model.
_DELTA: Final = re.compile(
    r"(?P<module>.+?)\.lora_(?P<kind>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(\.(?P<adapter>(?!(weight|bias)$)[^.]+))?(\.(?P<leaf>weight|bias))?",
    re.ASCII,
)
# Rows of embeddings that were trained by themselves, in the wrapper that peft puts around them.
_TOKENS: Final = re.compile(
    rf"(?P<module>.+?)\.{wrappers.TOKEN_ADAPTER}\.trainable_tokens_(?P<kind>delta|original)"
    r"(\.(?P<adapter>[^.]+))?",
    re.ASCII,
)
BASE_LAYER: Final = f".{wrappers.BASE_LAYER}."
_SAVED: Final = f".{wrappers.MODULES_TO_SAVE}."
_ORIGINAL: Final = f".{wrappers.ORIGINAL_MODULE}."
_IN_FRONT: Final = f"{wrappers.IN_FRONT}."
_LM_HEAD_MODULE: Final = parts.LM_HEAD.removesuffix(".weight")
_EMBED_MODULE: Final = parts.EMBED_TOKENS.removesuffix(".weight")
_NOT_GATHERED: Final = (
    "a ZeRO-3 run saved without gathering: save it again, or consolidate its global_stepN"
)


@dataclass(slots=True)
class Delta:
    """The names of the tensors that one module's delta consists of, in the run."""

    a: str | None = None
    b: str | None = None
    magnitude: str | None = None
    bias: str | None = None
    is_embedding: bool = False

    @property
    def name(self) -> str:
        """One of them."""
        return self.a or self.b or self.magnitude or self.bias or ""


@dataclass(slots=True)
class RunNames:
    """The tensors of a run by what they are.

    ``deltas`` are by module, as ``tokens`` are, the rows that were trained by themselves,
    ``trained`` by the name in the model that was trained, ``adapters``
    the names of adapters that names of tensors have, ``wrapped`` the names of what lies in a
    wrapper of peft's there, ``originals`` what such a wrapper kept of the base, ``clashing`` pairs
    for one place, and ``strange`` what looks like a delta and is none that is known.
    """

    deltas: dict[str, Delta] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    trained: dict[str, str] = field(default_factory=dict)
    adapters: set[str] = field(default_factory=set)
    wrapped: list[str] = field(default_factory=list)
    originals: dict[str, str] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)
    clashing: list[tuple[str, str]] = field(default_factory=list)


def read_names(names: Iterable[str]) -> RunNames:
    """Sort the names of a run's tensors, or of a model that was saved with its deltas unmerged."""
    found = RunNames()
    for name in names:
        bare = _bare(name)
        match = _DELTA.fullmatch(bare)
        rows = _TOKENS.fullmatch(bare)
        if match is not None:
            _add_delta(found, match, name)
        elif rows is not None:
            if rows["adapter"] is not None:
                found.adapters.add(rows["adapter"])
            if rows["kind"] == "delta":
                found.tokens[rows["module"]] = name
        elif parts.part_of(name) == parts.LORA or ".lora_" in name:
            found.strange.append(name)
        elif _ORIGINAL in bare:
            found.originals[bare.replace(_ORIGINAL, ".")] = name
        else:
            place = _place(bare, found.adapters)
            if place != bare:
                found.wrapped.append(place)
            if place in found.trained:
                found.clashing.append((found.trained[place], name))
            found.trained.setdefault(place, name)
    return found


def _bare(name: str) -> str:
    """Return a name without the prefixes of peft, of a model in a model and of wrappers."""
    levels = (level for level in name.split(".") if level not in wrappers.ANYWHERE)
    bare = ".".join(levels).removeprefix(_IN_FRONT)
    while bare.startswith(parts.PEFT_PREFIX):
        bare = bare.removeprefix(parts.PEFT_PREFIX).removeprefix(_IN_FRONT)
    return bare.removeprefix("model.") if bare.startswith("model.model.") else bare


def _place(name: str, adapters: set[str]) -> str:
    """Return the name that a tensor has in the model without peft's wrappers."""
    name = name.replace(f".{wrappers.TOKEN_ADAPTER}{BASE_LAYER}", ".").replace(BASE_LAYER, ".")
    before, saved, after = name.partition(_SAVED)
    if not saved:
        return name
    adapter, dot, rest = after.partition(".")
    if not dot:
        return f"{before}.{after}"
    adapters.add(adapter)
    return f"{before}.{rest}"


def _add_delta(found: RunNames, match: re.Match[str], name: str) -> None:
    kind, leaf = match["kind"], match["leaf"]
    role = {"A": "a", "B": "b", "embedding_A": "a", "embedding_B": "b"}.get(kind, "magnitude")
    if leaf == "bias":
        role = "bias" if kind == "B" else ""
    delta = found.deltas.setdefault(match["module"], Delta())
    if match["adapter"] is not None:
        found.adapters.add(match["adapter"])
    if not role or getattr(delta, role) is not None:
        found.strange.append(name)
        return
    setattr(delta, role, name)
    if kind.startswith("embedding"):
        delta.is_embedding = True


def settings_of_deltas(
    checkpoint: Checkpoint, alpha: float, *, use_rslora: bool = False
) -> dict[str, Any]:
    """Return the settings of a checkpoint's deltas, as far as their shapes tell them."""
    names = read_names(checkpoint.tensors)
    shapes = [checkpoint.tensors[d.a].shape for d in names.deltas.values() if d.a is not None]
    return {
        "r": shapes[0][0] if shapes and shapes[0] else 0,
        "lora_alpha": alpha,
        "use_rslora": use_rslora,
        "use_dora": any(delta.magnitude is not None for delta in names.deltas.values()),
        "lora_bias": any(delta.bias is not None for delta in names.deltas.values()),
    }


@dataclass(frozen=True, slots=True)
class Merged:
    """What a run makes of its base.

    ``tensors`` are those that replace or join the base's. ``deltas`` are the modules whose deltas
    are merged, ``untrained`` those that the config targets and that have none, ``ignored`` those
    with a delta that the config does not target. ``tokens`` are how many rows of a module were
    trained by themselves; the biases of ``without_bias`` were trained and are not in the run;
    ``wrappers`` are levels that were left out of the names.
    ``wrapped`` and ``rescued`` are trained tensors
    below a wrapper's name: upstream drops the first where it loads the base first, the others in
    any case. ``is_untied`` is set where embeddings and head, one tensor in the base, are two now.
    """

    tensors: Mapping[str, Tensor]
    problems: tuple[Problem, ...]
    deltas: tuple[str, ...]
    trained: tuple[str, ...]
    untrained: tuple[str, ...]
    ignored: tuple[str, ...]
    tokens: Mapping[str, int]
    without_bias: tuple[str, ...]
    wrappers: tuple[str, ...]
    wrapped: tuple[str, ...]
    rescued: tuple[str, ...]
    is_untied: bool


def merge_run(
    run: Checkpoint, base: Checkpoint, config: LoraConfig, dtype: str | None = None
) -> Merged:
    """Compute what ``run`` makes of ``base``, in ``dtype`` or in that of the base's tensors.

    For a model that was saved with its deltas unmerged both are the same checkpoint.
    """
    return _Merger(run, base, config, dtype).merge()


def _with_rows(weight: TensorRef, new: TensorRef, rows: tuple[int, ...], dtype: str) -> Tensor:
    """Return ``weight`` with some of its rows replaced by those of ``new``, in ``dtype``."""
    found: list[TensorRef] = []
    reached = 0
    for row, at in sorted((row, at) for at, row in enumerate(rows)):
        if row > reached:
            found.append(rows_of(weight, reached, row))
        found.append(rows_of(new, at, at + 1))
        reached = row + 1
    if reached < weight.shape[0]:
        found.append(rows_of(weight, reached, weight.shape[0]))
    return cast(Pieces(tuple(found), weight.shape), dtype)


class _Merger:
    def __init__(
        self, run: Checkpoint, base: Checkpoint, config: LoraConfig, dtype: str | None
    ) -> None:
        self._refs = run.stored
        self._names = read_names(self._refs)
        self._is_own = run is base
        self._base: Mapping[str, Stored] = {} if self._is_own else base.stored
        self._is_tied = is_tied(base.config or {})
        self._config = config
        self._dtype = dtype
        self._root = base.root
        found = quantisation_of(base)
        self._method = "" if found is None else found.method
        modules = () if found is None else found.modules
        self._packed = {_place(f"{_bare(name)}.", set()).removesuffix(".") for name in modules}
        self._problems: list[Problem] = []
        self._tensors: dict[str, Tensor] = {}

    def merge(self) -> Merged:
        self._check_names()
        merged, ignored = self._merge_deltas()
        self._check_targets(ignored)
        tokens = self._merge_tokens()
        trained = self._place_trained()
        self._check_rows()
        untrained = self._untrained()
        is_untied = self._untie()
        names = self._names
        trained_below = () if self._is_own else names.wrapped
        return Merged(
            tensors=self._tensors,
            problems=tuple(self._problems),
            deltas=tuple(merged),
            trained=tuple(trained),
            untrained=tuple(untrained),
            ignored=tuple(ignored),
            tokens=tokens,
            without_bias=tuple(self._without_bias(merged)),
            wrappers=self._left_out(),
            wrapped=tuple(n for n in trained_below if BASE_LAYER in names.trained[n]),
            rescued=tuple(n for n in names.wrapped if _SAVED in names.trained[n]),
            is_untied=is_untied,
        )

    def _problem(self, rule: str, subject: str, expected: str, got: str, hint: str = "") -> None:
        self._problems.append(Problem(rule, subject, expected, got, hint))

    def _check_names(self) -> None:
        names = self._names
        for name in names.strange:
            expected = (
                "lora_A, lora_B, lora_embedding_A and _B, lora_magnitude_vector of one module"
            )
            self._problem("lora-unsupported", name, expected, "a delta of another kind")
        if len(names.adapters) > 1:
            got = ", ".join(sorted(names.adapters))
            self._problem(
                "lora-unsupported",
                names.strange[0] if names.strange else next(iter(self._refs)),
                "one adapter",
                f"{len(names.adapters)}: {got}",
                "merge them with peft, one after the other, or save one",
            )
        for one, other in names.clashing:
            if source_of(self._refs[one]) != source_of(self._refs[other]):
                continue  # saved with the deltas and again beside them: a loader reads those last
            self._problem("lora-tensor-unplaced", other, "one tensor for one place", f"also {one}")

    def _base_ref(self, name: str) -> Stored | None:
        """Return what a run's tensor of this name was before: trained too, or of the base."""
        if name in self._names.trained:
            return self._refs[self._names.trained[name]]
        return self._stored(name)

    def _stored(self, name: str) -> Stored | None:
        """Return the base's tensor; of a tied head that of the embeddings, as every loader does."""
        if name == parts.LM_HEAD and self._is_tied:
            name = parts.EMBED_TOKENS
        if self._is_own and name in self._names.trained:
            return self._refs[self._names.trained[name]]
        return self._base.get(name)

    def _dtype_of(self, name: str, default: str) -> str:
        stored = self._stored(name)
        return self._dtype or (default if stored is None else stored.dtype)

    def _merge_deltas(self) -> tuple[list[str], list[str]]:
        merged: list[str] = []
        ignored: list[str] = []
        for module, delta in self._names.deltas.items():
            try:
                is_target = self._is_target(module)
                if is_target and self._merge_delta(module, delta):
                    merged.append(module)
                elif not is_target:
                    ignored.append(module)
            except PatternError as error:
                self._problem(
                    "lora-unsupported", module, "patterns that match in bounded time", str(error)
                )
        return merged, ignored

    def _is_target(self, module: str) -> bool:
        """Return whether peft gives a module a delta; a tied head has one where embeddings do."""
        if self._config.targets(module):
            return True
        is_head = module == _LM_HEAD_MODULE and self._is_tied and self._config.ensure_weight_tying
        return is_head and self._config.targets(_EMBED_MODULE)

    def _merge_tokens(self) -> dict[str, int]:
        """Put rows that were trained by themselves in the place of the base's; return how many."""
        merged: dict[str, int] = {}
        for module, name in self._names.tokens.items():
            rows = self._config.tokens_of(module)
            if rows is None:
                self._problem(
                    "lora-unsupported", name, f"trainable_token_indices of {module}", "none"
                )
                continue
            place, new = f"{module}.weight", self._refs[name]
            weight = self._base_ref(place)
            if self._fit_rows(name, place, rows, new, weight):
                assert isinstance(weight, TensorRef) and isinstance(new, TensorRef)  # noqa: S101
                dtype = self._dtype_of(place, weight.dtype)
                if self._can_cast(place, (weight, new), dtype):
                    self._tensors[place] = _with_rows(weight, new, rows, dtype)
                    merged[module] = len(rows)
        if merged and self._is_tied and _LM_HEAD_MODULE in self._names.deltas:
            self._problem(
                "lora-unsupported",
                _LM_HEAD_MODULE,
                "a delta of the head, or trained rows of the embeddings that it is tied to",
                "both",
            )
        if self._config.trained_tokens and not self._names.tokens:
            self._problem(
                "lora-pair-incomplete",
                "trainable_token_indices",
                f"the rows that were trained, ….{wrappers.TOKEN_ADAPTER}.trainable_tokens_delta",
                "none",
            )
        return merged

    def _fit_rows(
        self, name: str, place: str, rows: tuple[int, ...], new: Stored, weight: Stored | None
    ) -> bool:
        if len(new.shape) != 2 or new.shape[0] != len(rows) or not isinstance(new, TensorRef):
            self._problem(
                "lora-rank-mismatch",
                name,
                f"{len(rows)} rows, as trainable_token_indices says",
                f"{list(new.shape)}",
            )
            return False
        is_table = isinstance(weight, TensorRef) and len(weight.shape) == 2
        if not is_table or weight is None or weight.shape[1] != new.shape[1]:
            self._problem(
                "lora-target-absent",
                name,
                f"{place} [*, {new.shape[1]}] in the base {self._root}",
                "none" if weight is None else f"{list(weight.shape)}",
                "the run was trained on another base",
            )
            return False
        if rows and max(rows) >= weight.shape[0]:
            self._problem(
                "lora-target-absent",
                name,
                f"{place} with more than {max(rows)} rows in the base {self._root}",
                f"{list(weight.shape)}",
                "tokens were added before the training: resize-embeddings adds their rows",
            )
            return False
        return True

    def _without_bias(self, merged: list[str]) -> list[str]:
        """Return the biases that the config says were trained and that are not in the run."""
        if self._config.bias == "none" or self._is_own:
            return []
        of_deltas = [f"{module}.bias" for module in merged]
        wanted = of_deltas if self._config.bias == "lora_only" else [*self._base]
        return [
            name
            for name in wanted
            if name.endswith(".bias") and name in self._base and name not in self._names.trained
        ]

    def _left_out(self) -> tuple[str, ...]:
        """Return the levels of wrappers in the names of the run."""
        levels = {level for name in self._refs for level in name.split(".")[:-1]}
        in_front = {name.partition(".")[0] for name in self._refs} & {wrappers.IN_FRONT}
        return tuple(sorted(levels & wrappers.ANYWHERE.keys() | in_front))

    def _check_targets(self, ignored: list[str]) -> None:
        """Note a run without deltas, and a config that targets none; peft stops at both."""
        if not self._names.deltas and self._config.target_modules:
            self._problem(
                "lora-pair-incomplete",
                "adapter_model.safetensors",
                "the deltas of the modules that adapter_config.json targets",
                "none",
                "copy it from the run, or save it again with what a ZeRO-3 run had gathered; "
                "merge-projector takes the projector alone",
            )
        if ignored and len(ignored) == len(self._names.deltas):
            wanted = self._config.target_modules
            self._problem(
                "lora-target-absent",
                "target_modules",
                f"modules that have deltas, such as {ignored[0]}",
                wanted if isinstance(wanted, str) else f"none of {len(ignored)}",
                "the adapter_config.json is that of another run",
            )

    def _merge_delta(self, module: str, delta: Delta) -> bool:
        refs = self._refs
        if delta.a is None or delta.b is None:
            half = "B" if delta.b is None else "A"
            self._problem(
                "lora-pair-incomplete", delta.name, f"lora_{half} of {module} too", "none"
            )
            return False
        if self._config.use_dora and delta.magnitude is None and not delta.is_embedding:
            self._problem(
                "dora-magnitude-missing",
                module,
                f"{module}.lora_magnitude_vector, since use_dora is set",
                "none",
            )
            return False
        a, b = refs[delta.a], refs[delta.b]
        if not self._is_product(module, delta, a, b):
            return False
        magnitude = self._magnitude(module, delta, b.shape[0])
        weight_name = f"{module}.weight"
        weight = self._base_ref(weight_name)
        if not self._fits(module, delta, a, b, weight):
            return False
        assert weight is not None  # noqa: S101 - one that fits is there
        dtype = self._dtype_of(weight_name, weight.dtype)
        pieces = [weight, a, b, *([] if magnitude is None else [magnitude])]
        if not self._can_cast(weight_name, pieces, dtype):
            return False
        scale = self._config.scale(module)
        self._tensors[weight_name] = LoraMerge(
            weight, b, a, scale, dtype, magnitude, delta.is_embedding
        )
        if delta.bias is not None:
            self._merge_bias(module, refs[delta.bias], scale)
        elif self._config.lora_bias and not delta.is_embedding:
            self._problem(
                "lora-pair-incomplete",
                delta.b,
                f"lora_B.bias of {module} too, since lora_bias is set",
                "none",
            )
        return True

    def _is_product(self, module: str, delta: Delta, a: Stored, b: Stored) -> bool:
        """Return whether the halves make a delta of the rank that the config says."""
        if 0 in (*a.shape, *b.shape):
            self._problem(
                "lora-pair-incomplete",
                delta.name,
                "halves with elements",
                f"{list(a.shape)} and {list(b.shape)}",
                _NOT_GATHERED,
            )
            return False
        if len(a.shape) != 2 or len(b.shape) != 2:
            self._problem(
                "lora-unsupported",
                delta.name,
                "halves with two dimensions, of a linear layer or an embedding",
                f"{list(a.shape)} and {list(b.shape)}",
                "no module of a VITA model that LoRA trains is a convolution",
            )
            return False
        rank = self._config.rank(module)
        if (a.shape[0], b.shape[1]) != (rank, rank):
            self._problem(
                "lora-rank-mismatch",
                delta.a or "",
                f"rank {rank}, as adapter_config.json says",
                f"{list(a.shape)} and {list(b.shape)}",
            )
            return False
        return True

    def _fits(self, module: str, delta: Delta, a: Stored, b: Stored, weight: Stored | None) -> bool:
        """Return whether the base has a weight that the delta is added to."""
        if module in self._packed:
            self._problem(
                "lora-unsupported",
                delta.a or "",
                "a base in a floating dtype, since a sum of codes and a delta is another model",
                f"{self._method}, in {self._root}",
                "give the checkpoint before it was quantised as the base, and quantise the result",
            )
            return False
        product = (b.shape[0], a.shape[1])
        wanted: Shape = product[::-1] if delta.is_embedding else product
        if weight is None or weight.shape != wanted:
            self._problem(
                "lora-target-absent",
                delta.a or "",
                f"{module}.weight {list(wanted)} in the base {self._root}",
                "none" if weight is None else f"{list(weight.shape)}",
                "the run was trained on another base",
            )
            return False
        return True

    def _magnitude(self, module: str, delta: Delta, rows: int) -> Stored | None:
        """Return the magnitudes of a delta for so many rows; None of LoRA, and of wrong ones."""
        if not self._config.use_dora:
            if delta.magnitude is not None:
                self._problem(
                    "lora-unsupported",
                    delta.magnitude,
                    "no magnitudes, since use_dora is not set",
                    "one",
                )
            return None
        if delta.is_embedding:
            self._problem(
                "lora-unsupported",
                module,
                "DoRA of linear layers",
                "that of an embedding",
                "merge it with peft, as it was trained",
            )
            return None
        assert delta.magnitude is not None  # noqa: S101 - one that is not there was said
        magnitude = self._refs[delta.magnitude]
        if magnitude.shape != (rows,):
            self._problem(
                "dora-magnitude-missing",
                delta.magnitude,
                f"[{rows}], one for each row",
                f"{list(magnitude.shape)}",
            )
            return None
        return magnitude

    def _merge_bias(self, module: str, delta: Stored, scale: float) -> None:
        name = f"{module}.bias"
        bias = self._base_ref(name)
        if bias is None or bias.shape != delta.shape:
            self._problem(
                "lora-target-absent",
                name,
                f"{name} {list(delta.shape)} in the base {self._root}",
                "none" if bias is None else f"{list(bias.shape)}",
                "lora_bias trained one that the model has no place for, so peft cannot merge it"
                if bias is None
                else "the run was trained on another base",
            )
            return
        dtype = self._dtype_of(name, bias.dtype)
        if self._can_cast(name, (bias, delta), dtype):
            self._tensors[name] = LoraMerge(bias, delta, None, scale, dtype)

    def _can_cast(self, name: str, refs: Iterable[Stored], dtype: str) -> bool:
        strange = [ref.dtype for ref in refs if not can_cast(ref.dtype, dtype)]
        if dtype in CAST_TARGETS and not strange:
            return True
        self._problem(
            "lora-unsupported",
            name,
            f"tensors that become {', '.join(CAST_TARGETS)}",
            strange[0] if strange else dtype,
            "a quantized base is merged before it is quantized",
        )
        return False

    def _place_trained(self) -> list[str]:
        """Put what was trained beside the deltas in its place; return its names."""
        placed: list[str] = []
        for place, name in self._names.trained.items():
            if place in self._tensors:  # a delta is merged into it
                placed.append(place)
                continue
            ref, stored = self._refs[name], self._stored(place)
            if not self._is_own:
                if stored is None and is_harmless(place):
                    continue
                if not self._has_place(place, ref, stored):
                    continue
            dtype = self._dtype_of(place, self._dtype or self._likely_dtype(ref.dtype))
            if ref.dtype == dtype or not can_cast(ref.dtype, dtype):
                if ref.dtype != dtype and not self._is_own:
                    self._can_cast(name, (ref,), dtype)
                self._tensors[place] = ref
            else:
                self._tensors[place] = cast(ref, dtype)
            placed.append(place)
        return placed

    def _check_rows(self) -> None:
        """Note embeddings and a head that have become of different lengths, if they are two."""
        embed, head = (
            self._tensors.get(name) or self._stored(name)
            for name in (parts.EMBED_TOKENS, parts.LM_HEAD)
        )
        if self._is_tied or embed is None or head is None or embed.shape == head.shape:
            return
        name = parts.EMBED_TOKENS if parts.EMBED_TOKENS in self._tensors else parts.LM_HEAD
        self._problem(
            "lora-tensor-unplaced",
            self._names.trained.get(name, name),
            "embeddings and a head of one length",
            f"{list(embed.shape)} and {list(head.shape)}",
            "tokens were added and one of the two was not saved: save the run with both",
        )

    def _likely_dtype(self, default: str) -> str:
        embed = self._stored(parts.EMBED_TOKENS)
        return default if embed is None else embed.dtype

    def _has_place(self, place: str, ref: Stored, stored: Stored | None) -> bool:
        part = parts.part_of(place)
        if stored is None:
            # A part that the base lacks as a whole may come with the run; one tensor may not.
            whole = (parts.MM_PROJECTOR, parts.VISION_TOWER, parts.IMAGE_NEWLINE)
            fits = part in whole and not any(parts.part_of(name) == part for name in self._base)
        else:
            has_rows = place in (parts.EMBED_TOKENS, parts.LM_HEAD)
            first = 1 if has_rows and len(ref.shape) == 2 else 0
            fits = (len(ref.shape), ref.shape[first:]) == (
                len(stored.shape),
                stored.shape[first:],
            )
        if not fits and 0 in ref.shape:
            self._problem(
                "lora-tensor-unplaced",
                self._names.trained[place],
                f"{place} with elements",
                f"{list(ref.shape)}",
                _NOT_GATHERED,
            )
        elif not fits:
            self._problem(
                "lora-tensor-unplaced",
                self._names.trained[place],
                f"{place} {list(ref.shape)} in the base {self._root}",
                "none" if stored is None else f"{list(stored.shape)}",
                "the run was trained on another base",
            )
        return fits

    def _untrained(self) -> list[str]:
        """Return the modules that the config targets and that have no delta."""
        saved = set(self._config.modules_to_save)
        found: list[str] = []
        if self._config.target_modules is None:
            return found
        for name, ref in (self._refs if self._is_own else self._base).items():
            module = _place(_bare(name), set()).removesuffix(".weight")
            if not name.endswith(".weight") or len(ref.shape) != 2:
                continue
            if module in self._names.deltas or saved.intersection(module.split(".")):
                continue
            try:
                if self._config.targets(module):
                    found.append(module)
            except PatternError:
                break  # said for the deltas
        return found

    def _untie(self) -> bool:
        """Give a tied model both tensors where they are no longer one; return whether it has two.

        peft trains a copy of the one and leaves the other: so the model that was trained has two,
        unless it kept them tied.
        """
        if self._is_tied and self._stay_tied():
            return False
        changed = {parts.EMBED_TOKENS, parts.LM_HEAD} & self._tensors.keys()
        if self._is_own:
            changed = {
                name
                for name in changed
                if isinstance(self._tensors[name], LoraMerge) or name in self._names.wrapped
            }
        if not self._is_tied or not changed:
            return False
        for name in {parts.EMBED_TOKENS, parts.LM_HEAD} - changed:
            stored = self._before(name)
            first = self._tensors[next(iter(changed))]
            if stored is None or stored.shape != first.shape:
                return False  # with more rows only one of them is known
            dtype = self._dtype or stored.dtype
            known = dtype == stored.dtype or not can_cast(stored.dtype, dtype)
            self._tensors[name] = stored if known else cast(stored, dtype)
        return True

    def _stay_tied(self) -> bool:
        """Return whether embeddings and head were trained as one; then give both the one tensor."""
        embed, head = (self._tensors.get(name) for name in (parts.EMBED_TOKENS, parts.LM_HEAD))
        one = embed or head
        if one is None:
            return True
        if isinstance(one, Pieces):  # rows of tokens, which peft ties unless both have their own
            is_one = embed is not None and head is None
        else:
            scales = {t.scale for t in (embed, head) if isinstance(t, LoraMerge)}
            is_one = self._config.ensure_weight_tying and len(scales) < 2
        if is_one:
            self._tensors[parts.EMBED_TOKENS] = one
            self._tensors.pop(parts.LM_HEAD, None)
            if parts.LM_HEAD in self._base or (self._is_own and head is not None):
                self._tensors[parts.LM_HEAD] = one
        return is_one

    def _before(self, name: str) -> Stored | None:
        """Return one of two tied tensors as it was before the other was trained."""
        if not self._is_own:
            return self._stored(name)
        names = self._names
        origin = next(
            (n for n in (names.trained.get(name), *names.originals.values()) if n is not None), None
        )
        return None if origin is None else self._refs[origin]
