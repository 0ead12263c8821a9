"""Write the section of a model card that tells how a checkpoint was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from vita_ckpt.errors import printable

_BEGIN: Final = b"<!-- vita-ckpt: lineage -->\n"
_END: Final = b"<!-- vita-ckpt: end of lineage -->\n"


def with_lineage(card: bytes, lineage: Mapping[str, Any]) -> bytes:
    """A model card with the section on ``lineage``, the content of ``vita_ckpt.json``.

    The section that an earlier surgery wrote is replaced; all else stays as it is.
    """
    section = _BEGIN + "".join(f"{line}\n" for line in _lines(lineage)).encode() + _END
    before, begin, rest = card.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if begin and end:
        return before + section + after
    gap = b"" if not card or card.endswith(b"\n\n") else b"\n" if card.endswith(b"\n") else b"\n\n"
    return card + gap + section


def _lines(lineage: Mapping[str, Any]) -> Iterator[str]:
    yield "## Lineage"
    yield ""
    yield "Made with vita-ckpt; `vita_ckpt.json` says it in full."
    if lineage.get("needs_alignment") is True:
        yield ""
        yield "**The projector was drawn at random: it needs alignment training.**"
    yield ""
    yield "| time | operation | inputs | asked for |"
    yield "|---|---|---|---|"
    for entry in lineage["operations"]:
        if isinstance(entry, Mapping):
            yield f"| {' | '.join(_cells(entry))} |"


def _cells(entry: Mapping[str, Any]) -> Iterator[str]:
    yield _code(entry.get("time", ""))
    yield _code(entry.get("operation", ""))
    inputs = entry.get("inputs")
    named = inputs.items() if isinstance(inputs, Mapping) else ()
    yield ", ".join(
        f"{_code(role)}: {_code(given['name'])}"
        for role, given in named
        if isinstance(given, Mapping) and "name" in given
    )
    arguments = entry.get("arguments")
    asked = dict(arguments) if isinstance(arguments, Mapping) else {}
    if "seed" in entry:
        asked["seed"] = entry["seed"]
    yield ", ".join(_code(f"{key}={value}") for key, value in asked.items())


def _code(value: object) -> str:
    """Text that Markdown takes as it is, within a cell of a table."""
    text = printable(value).replace("`", "'").replace("|", "\\|")
    return f"`{text}`" if text else ""
