"""Read JSON files that hold an object, with limits on size and depth."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any, Final, NoReturn

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
            got="it twice",
        ) from error
    except UnicodeDecodeError as error:
        raise MalformedFileError(
            "invalid-json",
            path,
            expected="UTF-8",
            got=str(error),
            hint="an editor saved it as UTF-16: save it as UTF-8"
            if data.startswith((b"\xff\xfe", b"\xfe\xff"))
            else "",
        ) from error
    except (ValueError, RecursionError) as error:
        got = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        page = hint_of_answer(data[:64])
        raise MalformedFileError(
            "invalid-json",
            path,
            expected="JSON",
            got="the answer of a server" if page else got,
            hint=page or _hint_of_syntax(data),
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


# How a server's answer begins that was saved as if it were the file.
_PAGES: Final = (b"<!doctype html", b"<html")
_ANSWERS: Final = (
    *(b"<?xml", b'{"error', b"404", b"403", b"401", b"not found", b"entry not found"),
    *(b"access denied", b"access to model", b"invalid username", b"forbidden", b"unauthorized"),
)


def hint_of_answer(start: bytes, hint: str = "") -> str:
    """Return what to do about a server's answer in place of the file; ``hint`` if it is none."""
    text = start.lstrip().lower()
    if not text.startswith(_PAGES + _ANSWERS):
        return hint
    what = "a web page" if text.startswith(_PAGES) else "the error of a server"
    return (
        f"{what} was saved in its place: download the file itself, with a token if the "
        "repository asks for one"
    )


def _hint_of_syntax(data: bytes) -> str:
    if data.startswith(b"\xef\xbb\xbf"):
        return "an editor saved it with a byte order mark: save it as UTF-8 without one"
    return (
        "JSON has double quotes only, true, false and null, no comments, and no comma after a last "
        "entry"
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
