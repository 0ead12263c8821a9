"""Read JSON files that hold an object, with limits on size and depth."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any, NoReturn

from vita_ckpt.core.checkpoint import File
from vita_ckpt.core.digest import digest
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.stores.base import Source

_LARGEST_JSON = 64 << 20
# No config is nested as deeply. A deeper value could overflow the stack when copied or written.
_DEEPEST_JSON = 100


def read_json_object(source: Source) -> tuple[dict[str, Any], File]:
    """Return the object in a JSON file, and the file's identity with its digest.

    Raises MalformedFileError if the file is too large, nested too deeply, or holds no JSON object.
    """
    file = source.file
    path = file.path
    if file.size > _LARGEST_JSON:
        raise MalformedFileError(
            "json-too-large",
            path,
            expected=f"at most {_LARGEST_JSON} bytes",
            got=str(file.size),
        )
    data = source.read(file.size, 0)
    if data.startswith(b"version https://git-lfs"):
        raise_lfs_pointer(path)
    try:
        # A name twice in an index: which file a tensor is in depends on the reader.
        pairs = _unique if path.endswith(".index.json") else None
        value = json.loads(data.decode("utf-8"), object_pairs_hook=pairs)
    except _TwiceError as error:
        raise MalformedFileError(
            "duplicate-key",
            f"{path}: {error}",
            expected="each key once",
            got="it stands there twice",
        ) from error
    except UnicodeDecodeError as error:
        raise MalformedFileError("invalid-json", path, expected="UTF-8", got=str(error)) from error
    except (ValueError, RecursionError) as error:
        got = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        hint = hint_of_web_page(data[:64])
        raise MalformedFileError(
            "invalid-json", path, expected="JSON", got="HTML" if hint else got, hint=hint
        ) from error
    if not isinstance(value, dict):
        raise MalformedFileError(
            "invalid-json", path, expected="a JSON object", got=f"a {type(value).__name__}"
        )
    if data.count(b"[") + data.count(b"{") > _DEEPEST_JSON and _is_deeper(value, _DEEPEST_JSON):
        raise MalformedFileError(
            "invalid-json",
            path,
            expected=f"at most {_DEEPEST_JSON} levels",
            got="nested too deeply",
        )
    return value, replace(file, digest=digest(data))


class _TwiceError(Exception):
    """A key that an object has twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _TwiceError(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return found


def _is_deeper(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for values in inner for v in values if isinstance(v, (dict, list))]
    return bool(level)


def hint_of_web_page(start: bytes, hint: str = "") -> str:
    """Return what to do about a web page in place of the file; ``hint`` if it is none."""
    if not start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return hint
    return (
        "a web page was saved in its place: download the file itself, with a token if the "
        "repository asks for one"
    )


def raise_lfs_pointer(path: str) -> NoReturn:
    """Raise InputError for a git-lfs pointer in place of the file."""
    raise InputError(
        "git-lfs-pointer",
        path,
        expected="the file itself",
        got="a git-lfs pointer to it",
        hint="run 'git lfs pull' in the repository",
    )
