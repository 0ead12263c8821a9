"""Write the model card of a checkpoint for the hub's pages and searches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from vita_ckpt.core.address import SCHEME, looks_like_repository
from vita_ckpt.errors import printable

_KEYS: Final = ("model_type", "mm_vision_tower", "mm_projector_type")


def hub_card(title: str, config: Mapping[str, Any], operations: Sequence[Any]) -> str:
    """A card for a checkpoint without one: metadata, with what it was made of, and what it is.

    ``operations`` are those of ``vita_ckpt.json``.
    """
    bases = sorted({name for entry in operations for name in _repositories(entry)})
    metadata = ["library_name: transformers", "pipeline_tag: image-text-to-text", "tags:"]
    metadata += ["- vita", "- multimodal"]
    metadata += ["base_model:", *(f"- {base}" for base in bases)] if bases else []
    facts = [f"{key} `{_text(config[key])}`" for key in _KEYS if isinstance(config.get(key), str)]
    about = f"A VITA checkpoint: {', '.join(facts)}." if facts else "Weights for VITA."
    return "\n".join(["---", *metadata, "---", "", f"# {title}", "", about, ""])


def _repositories(entry: Any) -> Iterator[str]:
    """The repositories on the hub that an operation took its inputs from; whatever it says."""
    inputs = entry.get("inputs") if isinstance(entry, Mapping) else None
    for given in inputs.values() if isinstance(inputs, Mapping) else ():
        name = given.get("name") if isinstance(given, Mapping) else None
        if isinstance(name, str) and name.startswith(SCHEME):
            repository = name.removeprefix(SCHEME).partition("@")[0]
            if looks_like_repository(repository):
                yield repository


def _text(value: object) -> str:
    return printable(value).replace("`", "'")
