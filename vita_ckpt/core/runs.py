"""Say where the loaders of VITA's relatives stop over a run, and what they leave unfilled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.families import ModelFamily
from vita_ckpt.core.binding.result import Stop

_TABLES: Final = (parts.EMBED_TOKENS, parts.LM_HEAD)


def stop_of_run(
    config: Mapping[str, Any],
    names: Iterable[str],
    family: ModelFamily,
    *,
    is_lora: bool,
    rows: int | None = None,
) -> Stop | None:
    """Return where a family's loader raises over a run that it is given with a base.

    ``names`` are those of the run's tensors, ``rows`` those of the base's embeddings, None if they
    are not known.
    """
    if is_lora:
        return None
    refused = family.refused_run(config)
    if refused is not None:
        return Stop("run-not-loadable", refused)
    held = _tables_of(names)
    if held and _adds_rows(config, family, rows):
        detail = f"RuntimeError: {held[0]} has more rows than the base's; training alone takes it"
        return Stop("run-not-loadable", detail)
    return None


def unfilled_by_run(
    config: Mapping[str, Any],
    names: Iterable[str],
    family: ModelFamily,
    *,
    is_lora: bool,
    rows: int | None = None,
    base_is_whole: bool = False,
) -> tuple[str, ...]:
    """Return the tensors that a run needs, and that neither it nor its base fills.

    The loader makes them of uninitialised memory. ``base_is_whole`` is set where the base is a
    multimodal model itself, which may have a newline.
    """
    listed = tuple(names)
    unfilled: list[str] = []
    if is_lora and not _tables_of(listed) and _adds_rows(config, family, rows):
        unfilled += _TABLES
    has_newline = any(parts.part_of(name) == parts.IMAGE_NEWLINE for name in listed)
    if family.has_newline(config) and not has_newline and not base_is_whole:
        unfilled.append(parts.NEWLINE)
    return tuple(unfilled)


def _tables_of(names: Iterable[str]) -> list[str]:
    bare = {name.removeprefix(parts.PEFT_PREFIX) for name in names}
    return [table for table in _TABLES if table in bare]


def _adds_rows(config: Mapping[str, Any], family: ModelFamily, rows: int | None) -> bool:
    """Return whether a run has more rows than its base, by numbers or by its added tokens."""
    wanted = config.get("vocab_size")
    if rows is not None and type(wanted) is int:
        return wanted > rows
    return bool(family.added_tokens(config)) and bool(config.get("mm_use_im_start_end"))
