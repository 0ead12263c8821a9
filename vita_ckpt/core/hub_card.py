"""Write the model card of a checkpoint for the hub's pages and searches.

The hub reads the front matter of a card, which is YAML between two lines ``---``. An existing one
is edited line by line and never parsed as YAML: it is a stranger's, and all of it is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from vita_ckpt.core.address import SCHEME, looks_like_repository
from vita_ckpt.core.anatomy.families import VITA, family_of
from vita_ckpt.core.model_card import with_lineage
from vita_ckpt.errors import printable

_KEYS: Final = ("model_type", "mm_vision_tower", "mm_projector_type")
_SCALARS: Final = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
# A front matter that is longer is taken for text.
_LONGEST: Final = 1 << 16
_FRONT_MATTER: Final = re.compile(
    r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.S | re.M
)
_LINE: Final = re.compile(r"[^\n]*\n|[^\n]+")
_KEY: Final = re.compile(r"([A-Za-z_][\w-]*)[ \t]*:(?=[ \t\r\n]|\Z)")
_ITEM: Final = re.compile(r"[ \t]*-[ \t]+(.*)")
# A list on one line, of plain or quoted words.
_FLOW: Final = re.compile(r"\[[^\[\]{}&*!|>#]*\]")
_COMMENT: Final = re.compile(r"[ \t]+#.*")


class Base(NamedTuple):
    """A repository on the hub that a checkpoint was made of, and the commit, if it is known."""

    repository: str
    commit: str = ""


def hub_card(title: str, config: Mapping[str, Any], operations: Sequence[Any]) -> str:
    """Return a model card for a checkpoint that lacks one: metadata, base models and description.

    ``operations`` are those of ``vita_ckpt.json``.
    """
    family = family_of(config) or VITA
    facts = [f"{key} `{_text(config[key])}`" for key in _KEYS if isinstance(config.get(key), str)]
    about = f"Weights for {family.label}."
    if facts:
        about = f"A {family.label} checkpoint: {', '.join(facts)}."
    return with_metadata(f"# {title}\n\n{about}\n".encode(), operations, config).decode()


def with_lineage_and_metadata(
    card: bytes, lineage: Mapping[str, Any], config: Mapping[str, Any]
) -> bytes:
    """Return the card of a checkpoint that was made by surgery: its metadata, and its lineage.

    ``card`` may be empty; what it says is kept. ``lineage`` is the content of ``vita_ckpt.json``.
    """
    return with_lineage(with_metadata(card, lineage["operations"], config), lineage)


def with_metadata(
    card: bytes, operations: Sequence[Any], config: Mapping[str, Any] = MappingProxyType({})
) -> bytes:
    """Return a card whose front matter names library, task, tags and base models; all else is kept.

    What it says already stays as it is; lists get the items that they lack. ``operations`` are
    those of ``vita_ckpt.json``, which name the base models and their commits; ``config`` is that of
    the model, by which its family is told.
    """
    bases = sorted({base for entry in operations for base in _bases(entry)})
    text = card.decode("utf-8", "surrogateescape")
    tags = ((family_of(config) or VITA).name, "multimodal")
    return _with_front_matter(text, bases, tags).encode("utf-8", "surrogateescape")


def _with_front_matter(text: str, bases: Sequence[Base], tags: Sequence[str]) -> str:
    found = _FRONT_MATTER.match(text[:_LONGEST])
    newline = "\r\n" if found is not None and "\r\n" in found[0] else "\n"
    lines = [] if found is None else _LINE.findall(found[1])
    sections = _sections(lines)
    for key, value in _SCALARS.items():
        if key not in sections:
            lines.append(f"{key}: {value}{newline}")
    lines = _with_items(lines, "tags", dict.fromkeys(tags, ""), newline)
    commits = {base.repository: f" # commit {base.commit}" if base.commit else "" for base in bases}
    lines = _with_items(lines, "base_model", commits, newline)
    inner = "".join(lines)
    if found is None:
        return f"---\n{inner}---\n\n{text}"
    return text[: found.start(1)] + inner + text[found.end(1) :]


def _sections(lines: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the lines of each top-level key, the first where one is there twice."""
    starts = [(at, match[1]) for at, line in enumerate(lines) if (match := _KEY.match(line))]
    ends = [*(at for at, _ in starts), len(lines)][1:]
    sections: dict[str, tuple[int, int]] = {}
    for (start, key), end in zip(starts, ends, strict=True):
        sections.setdefault(key, (start, end))
    return sections


def _with_items(lines: list[str], key: str, wanted: Mapping[str, str], newline: str) -> list[str]:
    """Add the items that a list lacks, each with its comment; a value of another form is kept."""
    if not wanted:
        return lines
    place = _sections(lines).get(key)
    if place is None:
        return [*lines, f"{key}:{newline}", *(f"- {i}{c}{newline}" for i, c in wanted.items())]
    start, end = place
    head, *body = lines[start:end]
    value = _COMMENT.sub("", head.partition(":")[2]).strip()
    items = [match[1] for line in body if (match := _ITEM.match(line))]
    if _FLOW.fullmatch(value) and not any(line.strip() for line in body):
        items = [item for item in value[1:-1].split(",") if item.strip()]
    elif value and (body or (value[0] in "[{&*!|>'\"%@`" and not _is_quoted(value))):
        return lines
    elif value:
        items = [value]
    elif len(items) != sum(
        1 for line in body if line.strip() and not line.lstrip().startswith("#")
    ):
        return lines
    there = {_COMMENT.sub("", item).strip().strip("'\"") for item in items}
    missing = {item: comment for item, comment in wanted.items() if item not in there}
    if not missing:
        return lines
    indent = next((line[: line.index("-")] for line in body if _ITEM.match(line)), "")
    added = [f"{indent}- {item}{comment}{newline}" for item, comment in missing.items()]
    if value:  # of one line: its items get lines of their own
        body = [f"- {item.strip()}{newline}" for item in items]
        head = f"{key}:{newline}"
    elif body and not body[-1].endswith("\n"):
        body[-1] += newline
    return [*lines[:start], head, *body, *added, *lines[end:]]


def _is_blank(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _is_quoted(value: str) -> bool:
    quote = value[:1]
    return quote in ("'", '"') and value.count(quote) == 2 and value.endswith(quote)


def _bases(entry: Any) -> Iterator[Base]:
    """Yield the repositories on the hub that an operation took its inputs from.

    Entries that are not well-formed are skipped.
    """
    inputs = entry.get("inputs") if isinstance(entry, Mapping) else None
    for given in inputs.values() if isinstance(inputs, Mapping) else ():
        name = given.get("name") if isinstance(given, Mapping) else None
        if isinstance(name, str) and name.startswith(SCHEME):
            repository, _, rest = name.removeprefix(SCHEME).partition("@")
            commit = rest.partition("/")[0]
            if looks_like_repository(repository):
                yield Base(repository, commit if re.fullmatch(r"[0-9a-f]{40}", commit) else "")


def _text(value: object) -> str:
    return printable(value).replace("`", "'")
