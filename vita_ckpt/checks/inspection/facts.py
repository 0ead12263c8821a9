"""Compare a config with what the weights say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import isfinite
from typing import Any, Final

from vita_ckpt.checks.audio_summary import audio_disagreements
from vita_ckpt.checks.inspection.summary import ConfigLine, ProjectorSummary
from vita_ckpt.core.anatomy import parts, projectors, towers
from vita_ckpt.core.anatomy.audio.directory import AudioDirectory
from vita_ckpt.core.anatomy.audio.tensors import AUDIO_PREFIX, PROMPT
from vita_ckpt.core.anatomy.config_keys import Types
from vita_ckpt.core.anatomy.families import VITA, Features, Load, ModelFamily, TowerSource
from vita_ckpt.core.anatomy.language_tensors import of_plain_type
from vita_ckpt.core.anatomy.towers import Dispatch, Tower, TowerDirectory
from vita_ckpt.core.binding.modules import Surroundings, features_of, is_tied, tower_class
from vita_ckpt.core.checkpoint import Checkpoint, Form, Shape, bytes_by_dtype
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.kinds import MULTIMODAL, TOWER, WHOLE, Kind

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


def is_foreign(kind: Kind) -> bool:
    """Return whether no family's rules say anything of a config: a whole model of none of them."""
    return kind.name == MULTIMODAL or kind.relative is not None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Facts:
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
    ) -> Facts:
        """Gather what the weights, the tower and the config say."""
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
        if not is_foreign(kind):
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
_COMPARISONS: Final[Mapping[str, Callable[[Facts, Any], tuple[Any, bool | None]]]] = {
    "mm_vision_tower": Facts._mm_vision_tower,
    "mm_hidden_size": Facts._mm_hidden_size,
    "mm_projector_type": Facts._mm_projector_type,
    "use_mm_proj": Facts._use_mm_proj,
    "use_s2": Facts._use_s2,
    "s2": Facts._use_s2,
    "s2_scales": Facts._s2_scales,
    "hidden_size": Facts._hidden_size,
    "num_hidden_layers": Facts._num_hidden_layers,
    "vocab_size": Facts._vocab_size,
    "tie_word_embeddings": Facts._tie_word_embeddings,
    "torch_dtype": Facts._torch_dtype,
    "audio_prompt_finetune": Facts._audio_prompt_finetune,
    "audio_prompt_num": Facts._audio_prompt_num,
}
