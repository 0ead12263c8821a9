"""Read sections of YAML files as plain values, with limits on size, depth and aliases."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Any, Final

import yaml

from vita_ckpt.errors import MalformedFileError
from vita_ckpt.storage.stores.base import Source

_LARGEST_YAML: Final = 4 << 20
# No settings are nested as deeply, and no text in them is as long.
_DEEPEST: Final = 32
_LONGEST: Final = 1 << 16

# libyaml's loader is several times faster, where PyYAML was built with it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# The first line of a section of a block mapping, and any line that begins at the margin but for
# comments and items of a sequence.
_KEY: Final = re.compile(r"([A-Za-z_][\w-]*):(?=[ \t\n]|$)")
_MARGIN: Final = re.compile(r"^[^ \t\n#-]", re.MULTILINE)
_OTHER_BREAKS: Final = ("\r", "\x85", "\u2028", "\u2029")


def read_yaml_sections(source: Source, names: Collection[str]) -> dict[str, Any]:
    """Return the values of some top-level keys of the mapping in a YAML file.

    Other sections are not parsed where the file is a plain block mapping. Values are those of a
    safe loader. Raises MalformedFileError for a file that is too large, is no YAML mapping, is
    nested too deeply, or has an alias: one could stand for more than memory holds.
    """
    path = source.file.path
    size = source.file.size
    if size > _LARGEST_YAML:
        raise MalformedFileError(
            "yaml-too-large", path, expected=f"at most {_LARGEST_YAML} bytes", got=str(size)
        )
    try:
        text = source.read(size, 0).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _invalid(path, "UTF-8", str(error)) from error
    try:
        needed = _needed(text.replace("\r\n", "\n"), names)
        _check(needed, path)
        value = yaml.load(needed, Loader=_LOADER)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, TypeError) as error:
        raise _invalid(path, "YAML", str(error).replace("\n", " ")) from error
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise _invalid(path, "a mapping", f"a {type(value).__name__}")
    return {name: value[name] for name in names if name in value}


def _needed(text: str, names: Collection[str]) -> str:
    """Return the sections of ``names``, or the whole text where it does not fall into sections."""
    if any(mark in text for mark in _OTHER_BREAKS):
        return text
    starts = [match.start() for match in _MARGIN.finditer(text)]
    keys = [_KEY.match(text, start) for start in starts]
    found = [match[1] for match in keys if match is not None]
    counts = Counter(found)
    if not found or len(found) < len(keys) or any(counts[name] > 1 for name in names):
        return text
    ends = [*starts, len(text)][1:]
    sections = zip(found, starts, ends, strict=True)
    return "".join(text[start:end] for name, start, end in sections if name in names)


def _check(text: str, path: str) -> None:
    """Raise MalformedFileError for what is not even to be composed."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise _invalid(path, "no aliases", f"*{event.anchor}")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > _LONGEST:
            raise _invalid(path, f"texts of up to {_LONGEST} characters", f"{len(event.value)}")
        if depth > _DEEPEST:
            raise _invalid(path, f"at most {_DEEPEST} levels", "nested too deeply")


def _invalid(path: str, expected: str, got: str) -> MalformedFileError:
    return MalformedFileError("invalid-yaml", path, expected=expected, got=got)
