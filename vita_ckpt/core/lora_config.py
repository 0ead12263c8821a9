"""Read ``adapter_config.json`` of a LoRA run: every setting that a merge depends on, strictly.

Everything in it is a stranger's. What peft would take and this does not understand is refused by
name: a merge that ignored it would compute another model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from math import sqrt
from types import NoneType
from typing import Any, Final

from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.patterns import Pattern, PatternError

LARGEST_RANK: Final = 1 << 20

# Settings of training, of other libraries and of how deltas begin: a merge does not depend on them.
_INERT: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "fan_in_fan_out",  # peft switches it off for a Linear, and an Embedding has none
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
# How deltas may begin without the base being changed for it.
_INITIAL: Final = ("gaussian", "eva", "mica", "orthogonal")
_READ: Final = frozenset(
    {
        "alpha_pattern",
        "bias",
        "ensure_weight_tying",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_bias",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "trainable_token_indices",
        "use_dora",
        "use_rslora",
    }
)
# Deltas that count for some tokens or some inputs only: peft merges them neither.
_UNMERGEABLE: Final = frozenset({"alora_invocation_tokens", "arrow_config"})
_BIASES: Final = ("none", "all", "lora_only")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a run: a rule's id, what it is about, and both sides of the rule."""

    rule: str
    subject: str
    expected: str
    got: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The settings of a LoRA run, with peft's defaults for those that are absent.

    ``target_modules`` is a pattern for whole names of modules, or names that a module's ends with;
    None if nothing says which they are. ``trained_tokens`` are rows of embeddings that were trained
    by themselves, by the end of the module's name, which is empty for the input embeddings.
    ``has_own_alphas`` is set where peft looks a module up in ``rank_pattern`` and in
    ``alpha_pattern`` separately, as it does from 0.14 on; before, the first key of both that
    matches counts in both. ``has_grouped_keys`` is set from 0.15 on, where such a key may be a
    choice, and match a whole name.
    """

    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    ensure_weight_tying: bool = False
    trained_tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    has_own_alphas: bool = False
    has_grouped_keys: bool = False

    def rank(self, module: str) -> int:
        """Return the rank of a module. Raises PatternError, as the other lookups do."""
        return self._rank_and_alpha(module)[0]

    def scale(self, module: str) -> float:
        """Return the factor of a module's delta: alpha / r, or alpha / √r with rslora."""
        rank, alpha = self._rank_and_alpha(module)
        return alpha / (sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Return whether peft gives a module of this name a delta."""
        excluded, wanted = self.exclude_modules, self.target_modules
        if excluded and _is_listed(excluded, module):
            return False
        if wanted is None:
            return True
        if not _is_listed(wanted, module):
            return False
        if isinstance(wanted, str) or module in wanted or self.layers_to_transform is None:
            return True
        layer = self._layer(module)
        return layer is not None and layer in self.layers_to_transform

    def tokens_of(self, module: str) -> tuple[int, ...] | None:
        """Return the rows of a module that were trained by themselves, None if none were."""
        found = (rows for end, rows in self.trained_tokens.items() if module.endswith(end))
        return next(found, None)

    def _rank_and_alpha(self, module: str) -> tuple[int, float]:
        keys: tuple[str | None, str | None]
        if self.has_own_alphas:
            keys = self._key(self.rank_pattern, module), self._key(self.alpha_pattern, module)
        else:
            keys = (self._key({**self.rank_pattern, **self.alpha_pattern}, module),) * 2
        rank_key, alpha_key = (module if key is None else key for key in keys)
        return (
            self.rank_pattern.get(rank_key, self.r),
            self.alpha_pattern.get(alpha_key, self.lora_alpha),
        )

    def _key(self, table: Mapping[str, Any], module: str) -> str | None:
        """Return the first key of a table that matches a module."""
        form = r"(.*\.)?({})$" if self.has_grouped_keys else r".*\.{}$"
        matching = (key for key in table if Pattern(form.replace("{}", key)).match(module))
        return next(matching, None)

    def _layer(self, module: str) -> int | None:
        """Return the number of the layer that a module is in: the last one in its name."""
        names = module.split(".")
        for at in reversed(range(1, len(names) - 1)):
            number = names[at]
            if not (number.isascii() and number.isdigit()) or len(number) > 9:
                continue
            if not self.layers_pattern:
                if at > 1:
                    return int(number)
                continue
            before = ".".join(names[:at])
            if any(Pattern(rf".*\.(?:{p})").fullmatch(before) for p in self.layers_pattern):
                return int(number)
        return None


def _is_listed(wanted: str | tuple[str, ...], module: str) -> bool:
    if isinstance(wanted, str):
        return Pattern(wanted).fullmatch(module)
    return module in wanted or any(module.endswith(f".{name}") for name in wanted)


def read_lora_config(content: Mapping[str, Any]) -> tuple[LoraConfig, list[Problem]]:
    """Return the settings of an ``adapter_config.json``, and what is wrong with them.

    Where a setting is wrong, the default stands for it.
    """
    reader = _Reader(content)
    config = LoraConfig(
        r=reader.rank("r", content.get("r", 8)) or 8,
        lora_alpha=reader.alpha("lora_alpha", content.get("lora_alpha", 8)) or 8,
        use_rslora=reader.flag("use_rslora"),
        use_dora=reader.flag("use_dora"),
        lora_bias=reader.flag("lora_bias"),
        bias=reader.bias(),
        target_modules=reader.names_or_pattern("target_modules"),
        exclude_modules=reader.names_or_pattern("exclude_modules") or (),
        layers_to_transform=reader.layers(),
        layers_pattern=reader.names("layers_pattern", is_pattern=True),
        modules_to_save=reader.names("modules_to_save"),
        rank_pattern=reader.table("rank_pattern", reader.rank),
        alpha_pattern=reader.table("alpha_pattern", reader.alpha),
        ensure_weight_tying=reader.flag("ensure_weight_tying"),
        trained_tokens=reader.tokens(),
        has_own_alphas=not content.keys().isdisjoint(_SINCE_0_14),
        has_grouped_keys=not content.keys().isdisjoint(_SINCE_0_15),
    )
    reader.problems += _not_understood(content)
    if config.use_dora and config.lora_bias:
        reader.unsupported("lora_bias", "no deltas of biases with use_dora", "both")
    return config, reader.problems


# Settings by which a config tells the version of peft that wrote it.
_SINCE_0_15: Final = frozenset({"peft_version", "trainable_token_indices", "corda_config"})
_SINCE_0_14: Final = _SINCE_0_15 | {"exclude_modules", "lora_bias", "eva_config"}


def _not_understood(content: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what a merge would have to obey and cannot."""
    hint = "merge it with peft, as it was trained"
    peft_type = content.get("peft_type", "LORA")
    if peft_type != "LORA":
        yield Problem("lora-unsupported", "peft_type", "LORA", repr(peft_type), hint)
    initial = content.get("init_lora_weights", True)
    if initial is not None and type(initial) is not bool and initial not in _INITIAL:
        expected = f"true, false, {', '.join(_INITIAL)}"
        got = f"{initial!r}, which changes the base that the deltas are for"
        yield Problem("lora-unsupported", "init_lora_weights", expected, got, hint)
    for key, value in content.items():
        # What is not set is not there, whatever it would mean.
        if key not in _INERT | _READ and value not in (None, False, "", [], {}):
            expected = "no setting of this name, or none that is set"
            never = "no merge computes it: peft runs such deltas beside the base"
            yield Problem(
                "lora-unsupported",
                key,
                expected,
                repr(value),
                never if key in _UNMERGEABLE else hint,
            )


class _Reader:
    """Reads values of a config; what is wrong with one is a problem."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content
        self.problems: list[Problem] = []

    def flag(self, key: str) -> bool:
        value = self._content.get(key, False)
        if type(value) in (bool, NoneType):
            return value is True
        self._wrong(key, "true or false", value)
        return False

    def bias(self) -> str:
        value = self._content.get("bias", "none")
        if value in _BIASES:
            return str(value)
        self._wrong("bias", ", ".join(_BIASES), value)
        return "none"

    def rank(self, key: str, value: Any) -> int | None:
        if type(value) is int and 0 < value <= LARGEST_RANK:
            return value
        self.problems.append(Problem("lora-rank-mismatch", key, "a positive integer", repr(value)))
        return None

    def alpha(self, key: str, value: Any) -> float | None:
        # As a float it must be a number too: JSON's integers have no end.
        if type(value) in (int, float) and 0 < value < 1e300:
            return value  # type: ignore[no-any-return]
        self.problems.append(Problem("lora-alpha", key, "a positive number", repr(value)))
        return None

    def names(self, key: str, *, is_pattern: bool = False) -> tuple[str, ...]:
        value = self._content.get(key)
        listed = [value] if isinstance(value, str) and value and is_pattern else value or []
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            self._wrong(key, "a list of names", value)
            return ()
        if is_pattern and not all(self._is_pattern(key, name) for name in listed):
            return ()
        return tuple(listed)

    def names_or_pattern(self, key: str) -> str | tuple[str, ...] | None:
        value = self._content.get(key)
        if isinstance(value, str):
            if value.lower() == "all-linear" and key == "target_modules":
                self.unsupported(key, "names or a pattern", repr(value))
                return None
            return value if self._is_pattern(key, value) else None
        return self.names(key) if value is not None else None

    def layers(self) -> tuple[int, ...] | None:
        value = self._content.get("layers_to_transform")
        listed = [value] if type(value) is int else value
        if listed is None or listed == []:
            return None
        if not isinstance(listed, list) or not all(type(layer) is int for layer in listed):
            self._wrong("layers_to_transform", "numbers of layers", value)
            return None
        return tuple(listed)

    def tokens(self) -> dict[str, tuple[int, ...]]:
        key = "trainable_token_indices"
        value = self._content.get(key)
        tables = {"": value} if isinstance(value, list) else value or {}
        if not isinstance(tables, Mapping):
            self._wrong(key, "rows, or rows by the name of a module", value)
            return {}
        for rows in tables.values():
            is_listed = isinstance(rows, list) and all(type(row) is int for row in rows)
            if not is_listed or min(rows, default=0) < 0 or len(set(rows)) < len(rows):
                self._wrong(key, "each row once, counted from 0", rows)
                return {}
        return {end: tuple(rows) for end, rows in tables.items()}

    def table(self, key: str, read: Any) -> dict[str, Any]:
        value = self._content.get(key) or {}
        if not isinstance(value, Mapping):
            self._wrong(key, "an object", value)
            return {}
        found = {name: read(f"{key}: {name}", one) for name, one in value.items()}
        return {
            name: one
            for name, one in found.items()
            if one is not None and self._is_pattern(key, name)
        }

    def unsupported(self, key: str, expected: str, got: str) -> None:
        """Note a setting that cannot be obeyed."""
        self.problems.append(Problem("lora-unsupported", key, expected, got))

    def _is_pattern(self, key: str, text: str) -> bool:
        try:
            Pattern(text)
        except PatternError as error:
            self.unsupported(key, "a pattern of the kind that names of modules need", str(error))
            return False
        return True

    def _wrong(self, key: str, expected: str, value: Any) -> None:
        self.problems.append(Problem("lora-config-invalid", key, expected, repr(value)))
