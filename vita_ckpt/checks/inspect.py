"""Describe a checkpoint: its parts, its config against its weights, what upstream would build."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import chain, groupby
from math import isfinite, prod
from typing import Any, Final, TypedDict

from vita_ckpt.checks.audio_summary import AudioSummary, audio_disagreements, summarize_audio
from vita_ckpt.core.anatomy import parts, projectors, towers
from vita_ckpt.core.anatomy.audio.directory import AudioDirectory
from vita_ckpt.core.anatomy.audio.tensors import AUDIO_PREFIX, PROMPT
from vita_ckpt.core.anatomy.config_keys import Types
from vita_ckpt.core.anatomy.families import (
    VITA,
    Features,
    Load,
    ModelFamily,
    TowerSource,
    recognise,
)
from vita_ckpt.core.anatomy.language_tensors import of_plain_type
from vita_ckpt.core.anatomy.towers import Dispatch, Tower, TowerDirectory
from vita_ckpt.core.binding.bind import bind
from vita_ckpt.core.binding.model import Surroundings, features_of, is_tied, tower_class
from vita_ckpt.core.checkpoint import (
    Checkpoint,
    File,
    Form,
    Shape,
    TensorRef,
    bytes_by_dtype,
    count_forms,
    parameters,
    refs_of,
)
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.display import Displayed
from vita_ckpt.core.filenames import ADAPTER_CONFIG, CONFIG
from vita_ckpt.core.kinds import (
    LANGUAGE_MODEL,
    LORA_RUN,
    MULTIMODAL,
    TOWER,
    WHOLE,
    Kind,
    kind_of,
    part_as,
)
from vita_ckpt.core.left_out import LeftOut, left_out_to_json
from vita_ckpt.core.memory import Memory, estimate
from vita_ckpt.core.provenance import needs_alignment
from vita_ckpt.core.training.state import TrainingState

REPORT_VERSION: Final = 1


# Keys of every family that the weights say something of, with the type of each value.
_LANGUAGE_KEYS: Final[dict[str, Types]] = {
    "hidden_size": (int,),
    "num_hidden_layers": (int,),
    "vocab_size": (int,),
    "tie_word_embeddings": (bool,),
    "torch_dtype": (str,),
}

_TORCH_DTYPES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def config_keys(family: ModelFamily) -> dict[str, Types]:
    """Return a family's vision config and what it is compared by, with the type of each value."""
    return {name: key.types for name, key in family.keys.items()} | _LANGUAGE_KEYS


@dataclass(frozen=True, slots=True)
class PartSummary:
    """One part: its tensors, parameters (elements), bytes, and dtypes, the commonest first.

    ``bytes_by_dtype`` has the bytes of each of ``dtypes``, in the same order.
    """

    name: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]
    bytes_by_dtype: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """One weight file: its name below the checkpoint, format, size in bytes, tensors."""

    name: str
    format: str
    bytes: int
    tensors: int


@dataclass(frozen=True, slots=True)
class ConfigLine:
    """A key of ``config.json``, its value, and what the weights say of it.

    ``problem`` is set, and ``value`` None, where the value has the wrong type. ``weights`` is None
    where the weights say nothing, ``agrees`` where there is nothing to compare.
    """

    present: bool
    value: Any
    problem: str | None
    weights: Any
    agrees: bool | None


@dataclass(frozen=True, slots=True)
class ProjectorSummary:
    """The projector by its tensors: the types it can be, its widths."""

    types: tuple[str, ...]
    in_width: int
    out_width: int


@dataclass(frozen=True, slots=True)
class LoraSummary:
    """A LoRA run: rank and alpha of its config, number of delta tensors, the base it names.

    ``targets`` is the pattern of its targets, or their names. ``modules`` are the weights with a
    delta, ``changes`` the parameters of these, ``share`` of the language model's (None if its size
    is not known). ``trained`` counts the other tensors, ``projector_file`` holds the projector.
    """

    r: int | None
    lora_alpha: float | None
    deltas: int
    base_model: str | None
    targets: tuple[str, ...]
    modules: int
    changes: int
    share: float | None
    trained: int
    projector_file: str | None


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(Displayed):
    """A checkpoint as ``inspect`` reports it.

    ``disagreements`` are sentences about what does not fit, ``missing`` names the files without
    which no loader can use the weights, such as config.json. ``needs_alignment`` is set where
    the projector was drawn at random and not trained since. ``family`` is set for a model or a run
    of another family than VITA, ``family_evidence`` says what it was told by, and why it may be
    another. ``tower_source`` says which tower its loader ends with, ``features`` what of the tower
    is taken, ``tiles`` how many tokens a picture becomes where that depends on it.
    ``quantisation`` names how weights are quantised; ``parameters`` are then those that the codes
    stand for. ``config_file`` is the file that the config is from. ``training`` describes a
    training state, ``memory`` what a whole model or a tower needs to run; it is None for other
    kinds, and for quantised weights.
    """

    path: str
    kind: str
    layout: str
    model_type: str | None
    architectures: tuple[str, ...]
    backbone: str | None
    loader_name: str | None
    dtypes: tuple[str, ...]
    tensors: int
    parameters: int
    bytes: int
    shards: tuple[ShardSummary, ...]
    parts: tuple[PartSummary, ...]
    config: Mapping[str, ConfigLine]
    tower: Tower | None
    tower_directory: TowerDirectory | None
    dispatch: Dispatch | None
    projector: ProjectorSummary | None
    tokens_per_image: int | None
    audio: AudioSummary | None
    audio_directory: AudioDirectory | None
    lora: LoraSummary | None
    needs_alignment: bool
    disagreements: tuple[str, ...]
    missing: tuple[str, ...]
    left_out: Mapping[str, LeftOut]
    family: str | None = None
    quantisation: str | None = None
    config_file: str | None = None
    training: TrainingState | None = None
    memory: Memory | None = None
    family_evidence: str | None = None
    tower_source: str | None = None
    features: str | None = None
    tiles: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as JSON, in the form of ``schemas/inspect-v1.json``.

        The lists of tensors and modules that the schema has beside it are reports of their own.
        """
        report: dict[str, Any] = _listed(asdict(replace(self, training=None)))
        report["training"] = None if self.training is None else self.training.to_dict()
        if self.dispatch is not None:
            report["dispatch"]["reason"] = str(self.dispatch.reason)
        report["left_out"] = left_out_to_json(self.left_out)
        if self.tower_directory is not None:
            del report["tower_directory"]["config"]
        if self.audio_directory is not None:
            path, problem = self.audio_directory.path, self.audio_directory.problem
            report["audio_directory"] = {"path": path, "problem": problem}
        return {"format": "vita-ckpt-inspect", "version": REPORT_VERSION, **report}

    def display_rows(self) -> Iterator[tuple[str, object]]:
        """Yield every field that is not empty, nested ones in short."""
        short: dict[str, object] = {}
        if self.tower_directory is not None:
            short["tower directory"] = self.tower_directory.problem or self.tower_directory.tower
        if self.dispatch is not None:
            short["dispatch"] = f"{self.dispatch.tower_class or 'nothing'}: {self.dispatch.reason}"
        if self.training is not None:
            short["training"] = ", ".join(self.training.summary())
        if self.projector is not None:
            widths = f"{self.projector.in_width}→{self.projector.out_width}"
            short["projector"] = f"{' or '.join(self.projector.types)} {widths}"
        if self.audio_directory is not None:
            short["audio directory"] = self.audio_directory.problem or self.audio_directory.path
        for label, value in Displayed.display_rows(self):
            yield label, short.get(label, value)


class TensorRow(TypedDict):
    """A tensor as JSON: name, dtype, shape, the shard that holds it, its size in bytes."""

    name: str
    dtype: str
    shape: list[int]
    shard: str
    bytes: int


class ModuleRow(TypedDict):
    """A module as JSON: its name, and the tensors, parameters and bytes below it."""

    name: str
    tensors: int
    parameters: int
    bytes: int


def inspect_checkpoint(
    checkpoint: Checkpoint,
    tower_directory: TowerDirectory | None = None,
    audio_directory: AudioDirectory | None = None,
    *,
    kind: str | None = None,
    dtype: str | None = None,
    batch: int = 1,
) -> Inspection:
    """Describe a checkpoint, adapter, run or tower, or what ``kind`` says, from its headers.

    ``dtype`` and ``batch`` are those of the memory that is estimated.
    """
    found = kind_of(checkpoint)
    if kind is not None and kind != found.name:
        checkpoint = part_as(checkpoint, kind)
        found = replace(found, name=kind, relative=None)
    kind = found.name
    if kind == MULTIMODAL and (tower_directory or _NOWHERE).path == checkpoint.root:
        tower_directory = None  # the model's own config describes its tower
    config, forms = checkpoint.config or {}, count_forms(checkpoint.tensors.values())
    sizes = bytes_by_dtype(forms)
    facts = _Facts.of(checkpoint, tower_directory, audio_directory, found, forms)
    summaries = _parts(checkpoint, found)
    is_tower = kind == TOWER
    lines = {} if is_tower or _is_foreign(found) else {key: facts.line(key) for key in facts.keys}
    backbone = facts.family.backbone(config)
    plain = of_plain_type(config.get("model_type"))
    told = recognise(config, checkpoint.tensors) if found.family not in (None, VITA) else None
    architectures = config.get("architectures")
    missing = tuple(missing_files(checkpoint, kind, facts.tower))
    return Inspection(
        path=checkpoint.root,
        kind=kind,
        layout=checkpoint.layout,
        model_type=_text(config.get("model_type")),
        architectures=tuple(filter(None, map(_text, architectures)))
        if isinstance(architectures, list)
        else (),
        backbone=backbone.language_model if backbone else plain.name if plain else None,
        loader_name=backbone.loader_name if backbone else None,
        dtypes=tuple(sizes),
        tensors=len(checkpoint.tensors),
        parameters=sum(part.parameters for part in summaries),
        bytes=sum(sizes.values()),
        shards=_shards(checkpoint),
        parts=summaries,
        config=lines,
        tower=facts.tower,
        tower_directory=tower_directory,
        dispatch=facts.dispatch,
        projector=facts.projector,
        tokens_per_image=None if _is_foreign(found) else facts.tokens_per_image(kind),
        audio=summarize_audio(facts.shapes, audio_directory),
        audio_directory=audio_directory,
        lora=_lora(checkpoint),
        needs_alignment=needs_alignment(checkpoint),
        disagreements=(
            *(facts.disagreements(kind, lines) if not _is_foreign(found) else ()),
            *(f"no {name} beside the weights: no loader can use them" for name in missing),
        ),
        missing=missing,
        left_out=checkpoint.left_out,
        family=_family(found),
        family_evidence=None
        if told is None
        else told.evidence + (f"; {told.doubt}" if told.doubt else ""),
        tower_source=facts.tower_source if kind in WHOLE else None,
        features=facts.features_text if kind in WHOLE else None,
        tiles=facts.tiles if kind in WHOLE else None,
        quantisation=found.quantisation.method if found.quantisation is not None else None,
        config_file=checkpoint.config_file if checkpoint.config is not None else None,
        training=checkpoint.training,
        memory=_memory(checkpoint, forms, found, dtype, batch),
    )


def _memory(
    checkpoint: Checkpoint, forms: Mapping[Form, int], found: Kind, dtype: str | None, batch: int
) -> Memory | None:
    if found.name not in (*WHOLE, LANGUAGE_MODEL, TOWER) or found.quantisation is not None:
        return None
    scales = (found.family or VITA).s2_scales(checkpoint.config or {})
    return estimate(checkpoint, forms, dtype=dtype, batch=batch, scales=scales or ())


_NOWHERE: Final = TowerDirectory(None, None, None)


def _family(kind: Kind) -> str | None:
    """Return the family of a model or a run, if it is another than VITA."""
    if kind.relative is not None:
        return kind.relative.label
    known = kind.family is not None and kind.family is not VITA
    return kind.family.label if kind.family is not None and known else None


def _is_foreign(kind: Kind) -> bool:
    """Return whether no family's rules say anything of a config: a whole model of none of them."""
    return kind.name == MULTIMODAL or kind.relative is not None


def missing_files(checkpoint: Checkpoint, kind: str, tower: Tower | None) -> Iterator[str]:
    """Name the files that a directory of this kind needs beside its weights, and has not."""
    if checkpoint.layout in ("file", "state"):
        return
    is_eva = kind == TOWER and tower is not None and tower.traits.lone_file
    whole = (*WHOLE, LANGUAGE_MODEL, TOWER, MULTIMODAL)
    if kind in whole and checkpoint.config is None and not is_eva:
        yield CONFIG
    if kind == LORA_RUN and checkpoint.adapter_config is None:
        yield ADAPTER_CONFIG


def tensor_rows(checkpoint: Checkpoint, names: Iterable[str]) -> list[TensorRow]:
    """Return name, dtype, shape, bytes and (the first) shard of each named tensor, as JSON."""
    shards = {shard.file: shard.name for shard in checkpoint.shards}
    tensors = checkpoint.tensors
    return [
        {
            "name": name,
            "dtype": tensors[name].dtype,
            "shape": list(tensors[name].shape),
            "shard": shards[refs_of(tensors[name])[0].source],
            "bytes": tensors[name].nbytes,
        }
        for name in names
    ]


def module_rows(checkpoint: Checkpoint, depth: int) -> list[ModuleRow]:
    """Count tensors, parameters and bytes of the module tree down to ``depth`` components."""
    rows: dict[tuple[str, ...], list[int]] = {}
    for name, tensor in checkpoint.tensors.items():
        components = name.split(".")
        for level in range(1, min(depth, len(components)) + 1):
            row = rows.setdefault(tuple(components[:level]), [0, 0, 0])
            row[0] += 1
            row[1] += parameters(tensor)
            row[2] += tensor.nbytes
    return [
        {"name": ".".join(path), "tensors": row[0], "parameters": row[1], "bytes": row[2]}
        for path, row in sorted(rows.items(), key=lambda item: [_natural(c) for c in item[0]])
    ]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Facts:
    """The facts that weights and tower directory give, gathered once."""

    config: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    dtypes: tuple[str, ...]
    has_language_model: bool
    tower: Tower | None
    directory: Tower | None
    audio: AudioDirectory | None
    projector: ProjectorSummary | None
    has_projector: bool
    dispatch: Dispatch | None
    empty: tuple[str, ...]
    family: ModelFamily

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        directory: TowerDirectory | None,
        audio: AudioDirectory | None,
        kind: Kind,
        forms: Mapping[Form, int],
    ) -> _Facts:
        config = checkpoint.config or {}
        shapes = {
            name.removeprefix(parts.PEFT_PREFIX): tensor.shape
            for name, tensor in checkpoint.tensors.items()
            if parts.part_of(name) != parts.LORA
        }
        below = parts.below(parts.TOWER_PREFIX, shapes)
        tower = towers.tower_of_shapes(below or shapes)
        own = parts.below(parts.PROJECTOR_PREFIX, shapes)
        family = kind.family or VITA
        found = projectors.candidates(own, family.projector_types)
        dispatch = None
        if not _is_foreign(kind):
            dispatch = tower_class(config, Surroundings(directory), family)
        return cls(
            config=config,
            shapes=shapes,
            dtypes=tuple(bytes_by_dtype(forms)),
            has_language_model=any(name.startswith(parts.LAYERS_PREFIX) for name in shapes),
            tower=tower,
            directory=directory.tower if directory else None,
            audio=audio,
            projector=ProjectorSummary(
                tuple(p.type for p in found), found[0].in_width, found[0].out_width
            )
            if found
            else None,
            has_projector=bool(own),
            dispatch=dispatch,
            empty=tuple(n for n, tensor in checkpoint.tensors.items() if 0 in tensor.shape)
            if any(0 in shape for _, shape in forms)
            else (),
            family=family,
        )

    @property
    def keys(self) -> dict[str, Types]:
        """The keys that are compared, with the type of each value."""
        return config_keys(self.family)

    @property
    def features(self) -> Features | None:
        """What of the tower is taken; None if that raises, or there is no tower."""
        tower = self.tower or self.directory
        return None if tower is None else features_of(self.config, tower, self.family)

    @property
    def features_text(self) -> str | None:
        """What of the tower is taken, in words, where the config decides it."""
        if self.family.features is None or self.features is None:
            return None
        layers = ", ".join(map(str, self.features.layers))
        token = "the class token kept" if self.features.class_token else "no class token"
        return f"hidden state{'s' * (len(self.features.layers) > 1)} {layers}, {token}"

    @property
    def source(self) -> TowerSource | None:
        """Which tower the family's loader ends with; None if it builds none."""
        if self.dispatch is None or self.dispatch.family is None:
            return None
        return self.family.tower_source(self.config, Load(stored=self.tower is not None))

    @property
    def tower_source(self) -> str | None:
        """Which tower the family's loader ends with, in words."""
        source = self.source
        if source is TowerSource.DIRECTORY and self.tower is not None:
            return f"{source.value}: the one that is stored is not used"
        return None if source is None else source.value

    @property
    def tiles(self) -> str | None:
        """How many tokens a picture becomes where that depends on it; None where it does not."""
        return self.family.tiles(self.config)

    def line(self, key: str) -> ConfigLine:
        """Compare the value of ``key`` with what the weights give."""
        name = "dtype" if key == "torch_dtype" and key not in self.config else key
        value, problem = self.config.get(name), None
        types = self.keys[key]
        if value is not None and type(value) not in types:
            wanted = " or ".join(kind.__name__ for kind in types)
            problem, value = f"expected {wanted}, got {value!r}", None
        if isinstance(value, float) and not isfinite(value):
            problem, value = f"expected a finite number, got {value!r}", None
        weights, agrees = self._compare(key, value)
        if not self.config:
            agrees = None  # without a config there is nothing to agree with
        return ConfigLine(
            name in self.config, value, problem, weights, False if problem else agrees
        )

    def _compare(self, key: str, value: Any) -> tuple[Any, bool | None]:
        compare = _COMPARISONS.get(key)
        return (None, None) if compare is None else compare(self, value)

    def _mm_vision_tower(self, value: str | None) -> tuple[str | None, bool | None]:
        known = self.tower or self.directory
        if known is None:
            return None, None
        families = {t.family for t in (self.tower, self.directory) if t is not None}
        agrees = None
        if value is not None and self.dispatch is not None:
            agrees = families == {self.dispatch.family}
        return (str(self.tower) if self.tower else None), agrees

    def _mm_hidden_size(self, value: int | None) -> tuple[int | None, bool | None]:
        widths = [] if self.tower is None else [self._output_width(self.tower)]
        widths += [self.projector.in_width] if self.projector else []
        if not widths:
            return None, None
        return widths[0], None if value is None else all(width == value for width in widths)

    def _mm_projector_type(self, value: str | None) -> tuple[str | None, bool | None]:
        configured = value if value is not None else self.family.default_projector
        if self.projector is not None:
            types = self.projector.types
            return " or ".join(types), any(projectors.same_tensors(configured, t) for t in types)
        if self.has_projector:
            return "no known type", None  # a rule of the tensors
        plain = of_plain_type(self.config.get("model_type"))
        if plain is not None or not self.has_language_model:
            return None, None
        return (
            (configured, True) if projectors.has_no_tensors(configured) else ("no tensors", False)
        )

    def _use_mm_proj(self, value: bool | None) -> tuple[bool | None, bool | None]:
        kind = str(self.config.get("mm_projector_type"))
        if not self.has_language_model or projectors.has_no_tensors(kind):
            return None, None
        return self.has_projector, None if value is None else value == self.has_projector

    def _use_s2(self, value: bool | None) -> tuple[bool | None, bool | None]:
        scales = self._scales_of_widths()
        if scales is None:
            return None, None
        return scales > 1, (value is True) == (scales > 1)

    def _s2_scales(self, value: str | None) -> tuple[str | None, bool | None]:
        scales = self._scales_of_widths()
        asked = self.config.get(self.family.s2_key) is True
        if not asked or scales is None or self.tower is None:
            return None, None
        wanted = towers.parse_s2_scales(value or self.family.default_s2_scales)
        size = self.tower.image_size
        description = f"{scales} scales" + (f" from {size} px" if size is not None else "")
        agrees = wanted is not None and len(wanted) == scales and size in (None, wanted[0])
        return description, agrees

    def _hidden_size(self, value: int | None) -> tuple[int | None, bool | None]:
        embed = self.shapes.get(parts.EMBED_TOKENS, ())
        widths = [embed[1]] if len(embed) == 2 else []
        widths += [self.projector.out_width] if self.projector else []
        if not widths:
            return None, None
        return widths[0], None if value is None else all(width == value for width in widths)

    def _num_hidden_layers(self, value: int | None) -> tuple[int | None, bool | None]:
        layers = {
            name[len(parts.LAYERS_PREFIX) :].partition(".")[0]
            for name in self.shapes
            if name.startswith(parts.LAYERS_PREFIX)
        }
        if not layers:
            return None, None
        return len(layers), None if value is None else value == len(layers)

    def _vocab_size(self, value: int | None) -> tuple[int | None, bool | None]:
        embed = self.shapes.get(parts.EMBED_TOKENS, ())
        if len(embed) != 2:
            return None, None
        return embed[0], None if value is None else value == embed[0]

    def _tie_word_embeddings(self, value: bool | None) -> tuple[bool | None, bool | None]:
        if not self.has_language_model or parts.EMBED_TOKENS not in self.shapes:
            return None, None
        tied = parts.LM_HEAD not in self.shapes
        return tied, is_tied(self.config) == tied

    def _torch_dtype(self, value: str | None) -> tuple[str | None, bool | None]:
        dtype = _TORCH_DTYPES.get(self.dtypes[0]) if self.dtypes else None
        if dtype is None or not self.has_language_model:
            return None, None
        return dtype, None if value is None else value == dtype

    def _audio_prompt_num(self, value: int | None) -> tuple[int | None, bool | None]:
        rows = self.shapes.get(AUDIO_PREFIX + PROMPT, ())
        return (rows[0], value == rows[0]) if rows else (None, None)

    def _audio_prompt_finetune(self, value: bool | None) -> tuple[bool | None, bool | None]:
        is_stored = AUDIO_PREFIX + PROMPT in self.shapes
        return (True, value is True) if is_stored else (None, None)

    def _as_stored(self, tower: Tower) -> Tower:
        """Return the directory's tower as the family stores it."""
        sizes = {"hidden_size": tower.width, "num_hidden_layers": tower.layers}
        layers = self.family.stored_tower(tower.family, sizes)["num_hidden_layers"]
        return replace(tower, layers=layers)

    def _output_width(self, tower: Tower) -> int:
        layers = len(self.features.layers) if self.features is not None else 1
        return tower.output_width(self.family.number_of_scales(self.config)) * layers

    def _scales_of_widths(self) -> int | None:
        """How many S2 scales the projector's input width holds, None where that says nothing."""
        if self.tower is None or self.projector is None or not self.tower.width:
            return None
        if self.tower.family not in self.family.s2_towers:
            return None
        layers = len(self.features.layers) if self.features is not None else 1
        scales, rest = divmod(self.projector.in_width, self.tower.width * layers)
        return scales if scales and not rest else None

    def tokens_per_image(self, kind: str) -> int | None:
        """Return how many tokens one image becomes (of a tower: before a projector)."""
        tower = self.directory or self.tower
        if self.tower is not None and tower is not None and tower.family != self.tower.family:
            tower = self.tower
        projector = self.family.projector_type(self.config)
        if kind == TOWER and tower is not None:
            return tower.tokens()
        if tower is None or not self.config or not isinstance(projector, str):
            return None
        scales = self.family.s2_scales(self.config)
        tokens = tower.tokens(scales[0] if scales else None)
        features = features_of(self.config, tower, self.family)
        if tokens is None or features is None:
            return None
        return projectors.tokens_out(projector, tokens + features.class_token)

    def disagreements(self, kind: str, lines: Mapping[str, ConfigLine]) -> Iterable[str]:
        """Word what does not fit together."""
        for key, line in lines.items():
            if line.problem is not None:
                yield f"{key}: {line.problem}"
            elif line.agrees is False and key != "mm_vision_tower":
                stated = "is not set" if line.value is None else f"says {line.value!r}"
                yield f"{key} {stated}, the weights say {line.weights!r}"
        what = self.tower or self.directory
        if self.dispatch is not None and what is not None and self.dispatch.family != what.family:
            built = self.dispatch.tower_class or "nothing"
            yield (
                f"upstream builds {built} from the path ({self.dispatch.reason}), "
                f"but the tower is {what.traits.label}"
            )
        elif self.dispatch is not None and self.dispatch.family is None:
            yield f"upstream builds no tower from the path: {self.dispatch.reason}"
        if self.tower is not None and self.directory is not None:
            for key in self.tower.differences(self._as_stored(self.directory)):
                ours, theirs = getattr(self.tower, key), getattr(self.directory, key)
                yield f"the tower's {key} is {ours} in the weights, {theirs} in its directory"
        lacking = (TowerSource.UNINITIALISED, TowerSource.RAISES, None)
        if kind in WHOLE and self.tower is None and self.source in lacking:
            strange = any(name.startswith(parts.TOWER_MODULE) for name in self.shapes)
            raises = self.source is TowerSource.RAISES
            loader = "VITA-1.5" if self.family is VITA else self.family.label
            would = "raise" if raises else "leave it uninitialised"
            yield (
                "the vision tower in the weights is of no known family, or a part of one"
                if strange
                else f"no vision tower in the weights: {loader}'s loader would {would}"
            )
        yield from audio_disagreements(self.config, self.shapes, self.audio)
        if self.empty:
            yield f"{len(self.empty)} tensors have no elements (ZeRO-3), such as {self.empty[0]}"
        scales = self.config.get("s2_scales")
        if isinstance(scales, str) and towers.parse_s2_scales(scales) is None:
            yield f"s2_scales {scales!r} is no list of sizes in pixels"


# What the weights say of a key of the config, and whether its value agrees.
_COMPARISONS: Final[Mapping[str, Callable[[_Facts, Any], tuple[Any, bool | None]]]] = {
    "mm_vision_tower": _Facts._mm_vision_tower,
    "mm_hidden_size": _Facts._mm_hidden_size,
    "mm_projector_type": _Facts._mm_projector_type,
    "use_mm_proj": _Facts._use_mm_proj,
    "use_s2": _Facts._use_s2,
    "s2": _Facts._use_s2,
    "s2_scales": _Facts._s2_scales,
    "hidden_size": _Facts._hidden_size,
    "num_hidden_layers": _Facts._num_hidden_layers,
    "vocab_size": _Facts._vocab_size,
    "tie_word_embeddings": _Facts._tie_word_embeddings,
    "torch_dtype": _Facts._torch_dtype,
    "audio_prompt_finetune": _Facts._audio_prompt_finetune,
    "audio_prompt_num": _Facts._audio_prompt_num,
}


def _shards(checkpoint: Checkpoint) -> tuple[ShardSummary, ...]:
    sources = (
        (tensor.source,)
        if isinstance(tensor, TensorRef)
        else {ref.source for ref in refs_of(tensor)}
        for tensor in checkpoint.tensors.values()
    )
    counts: Counter[File] = Counter()
    # Mostly one file after the other: each is looked up once for many tensors.
    for source, group in groupby(chain.from_iterable(sources)):
        counts[source] += len(list(group))
    return tuple(
        ShardSummary(shard.name, shard.format, shard.file.size, counts[shard.file])
        for shard in checkpoint.shards
    )


def names_by_part(checkpoint: Checkpoint, kind: Kind | None = None) -> dict[str, list[str]]:
    """Return the names of the tensors of each part, empty for a part that is not there."""
    kind = kind_of(checkpoint) if kind is None else kind
    is_tower = kind.name == TOWER
    groups: dict[str, list[str]] = {label: [] for label in parts.LABELS}
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    prefix = towers.tower_prefix(shapes) if is_tower else parts.TOWER_PREFIX
    part_of = kind.part_of
    for name in checkpoint.tensors:
        below = is_tower and name.startswith(prefix)
        groups[parts.VISION_TOWER if below else part_of(name)].append(name)
    return groups


def _parts(checkpoint: Checkpoint, kind: Kind) -> tuple[PartSummary, ...]:
    codes, tensors = kind.quantisation, checkpoint.tensors
    always = (parts.LANGUAGE_MODEL, parts.MM_PROJECTOR, parts.VISION_TOWER)
    found = []
    for part, names in names_by_part(checkpoint, kind).items():
        if not names and part not in always:
            continue
        forms = count_forms(tensors[name] for name in names)
        sizes = bytes_by_dtype(forms)
        elements = (
            (prod(shape) * count for (_, shape), count in forms.items())
            if codes is None
            else (codes.parameters(name, tensors[name]) for name in names)
        )
        found.append(
            PartSummary(
                name=part,
                tensors=len(names),
                parameters=sum(elements),
                bytes=sum(sizes.values()),
                dtypes=tuple(sizes),
                bytes_by_dtype=tuple(sizes.values()),
            )
        )
    return tuple(found)


def _lora(checkpoint: Checkpoint) -> LoraSummary | None:
    deltas = Counter(map(parts.part_of, checkpoint.tensors))[parts.LORA]
    if checkpoint.layout != "lora" and not deltas:
        return None
    config = checkpoint.adapter_config or {}
    rank, alpha = config.get("r"), config.get("lora_alpha")
    return LoraSummary(
        r=rank if type(rank) is int else None,
        lora_alpha=_finite(alpha),
        deltas=deltas,
        base_model=_text(config.get("base_model_name_or_path")),
        targets=_targets(config.get("target_modules")),
        **_changes(checkpoint),
    )


def _targets(value: Any) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(sorted(name for name in listed if isinstance(name, str)))


def _changes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return how much of its base a run changes, as far as the run alone tells."""
    from vita_ckpt.core.lora import read_names  # noqa: PLC0415 - of runs only

    tensors, names = checkpoint.tensors, read_names(checkpoint.tensors)
    changed: dict[str, int] = {}
    for module, delta in names.deltas.items():
        if delta.a is not None and delta.b is not None:
            a, b = tensors[delta.a].shape, tensors[delta.b].shape
            if a and b:
                changed[f"{module}.weight"] = a[-1] * b[0]
    wanted = bind(checkpoint.config or {}, {}).part(parts.LANGUAGE_MODEL).wanted
    total = sum(map(prod, wanted.values()))
    language = [n for name, n in changed.items() if parts.part_of(name) == parts.LANGUAGE_MODEL]
    projector = next(
        (o for n, o in names.trained.items() if n.startswith(parts.PROJECTOR_PREFIX)), None
    )
    files = {shard.file: shard.name for shard in checkpoint.shards}
    return {
        "modules": len(changed),
        "changes": sum(changed.values()),
        "share": sum(language) / total if total else None,
        "trained": len(names.trained),
        "projector_file": None
        if projector is None
        else files.get(refs_of(tensors[projector])[0].source),
    }


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _finite(value: Any) -> float | None:
    return value if type(value) in (int, float) and abs(value) < float("inf") else None


def _natural(component: str) -> tuple[int, int, str]:
    short = component.isdecimal() and len(component) < 10
    return (0, int(component), "") if short else (1, 0, component)


def _listed(value: Any) -> Any:
    """Turn tuples into lists, all the way down, as JSON does."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (tuple, list)) else value
