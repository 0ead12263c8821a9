"""Read and encode safetensors headers, with the format's full validation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isfinite, prod
from typing import Any

from vita_ckpt.core.checkpoint import File, Shape, TensorRef
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.digest import digest
from vita_ckpt.core.dtype import BITS, nbytes
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.formats.json_file import hint_of_answer, raise_lfs_pointer
from vita_ckpt.storage.stores.base import Source
from vita_ckpt.storage.system.collection import paused_collection

# What most headers fit into: read at once from afar, it saves a request for the length.
_FIRST = 1 << 16
# The format's own limit on the header, and where the nesting of ignored values ends.
LARGEST_HEADER = 100_000_000
_DEEPEST_IGNORED = 64
_METADATA = "__metadata__"
_U64 = 1 << 64
_FIELDS = ("dtype", "shape", "data_offsets")
# A negative number or a truth value, or something like it in a text. To the format -0 is no
# integer, and to Python true is one.
_UNLIKE_SIZES = re.compile(rb"[\[:,\s](-|true|false)")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SafetensorsFile:
    """A safetensors file read down to its header."""

    file: File
    tensors: Mapping[str, TensorRef]
    metadata: Mapping[str, str]


def read_safetensors(source: Source) -> SafetensorsFile:
    """Return names, dtypes, shapes and byte ranges of a safetensors file.

    Raises MalformedFileError, with one code per rule of the format, where the file breaks it: what
    the safetensors library refuses is refused here, and so are duplicate names, which the format
    forbids and the library lets through.
    """
    path = source.file.path
    seen = source.file
    source.expect([(0, min(seen.size, _FIRST))])
    start = source.read(min(seen.size, 40), 0)
    if start.startswith(b"version https://git-lfs"):
        raise_lfs_pointer(path)
    if seen.size < 8:
        raise MalformedFileError(
            "header-too-small",
            path,
            expected="at least 8 bytes",
            got=f"{seen.size} bytes",
            hint="the file is empty or cut off: copy or download it again",
        )
    length = int.from_bytes(start[:8], "little")
    if length > LARGEST_HEADER:
        raise MalformedFileError(
            "header-too-large",
            path,
            expected=f"a header of at most {LARGEST_HEADER} bytes",
            got=f"{length} bytes",
            hint=hint_of_answer(start, "this is not a safetensors file"),
        )
    if 8 + length > seen.size:
        raise MalformedFileError(
            "invalid-header-length",
            path,
            expected=f"a header of {length} bytes",
            got=f"a file of {seen.size} bytes",
            hint="the file is cut off: copy it again",
        )
    raw = source.read(length, 8)
    file = replace(seen, digest=digest(raw))
    with paused_collection():
        plain = _read_plain(raw, file)
        if plain is not None:
            return plain
        header = _parse(raw, path)
        metadata = _metadata(header.pop(_METADATA, None), path)
        refs = {name: _entry(name, entry, file, 8 + length) for name, entry in header.items()}
        _check_coverage(refs, 8 + length, file)
        return SafetensorsFile(file, refs, metadata)


def encode_header(
    entries: Iterable[tuple[str, str, Shape]], metadata: Mapping[str, str], spaces: int = 0
) -> tuple[bytes, int]:
    """Header bytes for tensors stored one after another, and the bytes of their data.

    ``entries`` are (name, dtype, shape) in storage order. The header is padded with spaces so that
    the data starts at a multiple of 8, as the library writes it, and with as many ``spaces`` more.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape in entries:
        if name == _METADATA:
            raise InputError(
                "reserved-name",
                name,
                expected="a tensor name that the format can hold",
                hint="rename or remove this tensor",
            )
        end = offset + nbytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-len(raw) % 8 + spaces)
    return len(raw).to_bytes(8, "little") + raw, offset


def _read_plain(raw: bytes, file: File) -> SafetensorsFile | None:
    """Read a header as the library writes it: tensors in the order of their bytes, ASCII names.

    None for any other one, be it sound or not: the rules are those of the functions below, of which
    this takes a tenth of the time. Numbers that the format does not call integers are none here.
    """
    if not raw.startswith(b"{") or not raw.isascii() or b"\\" in raw:
        return None
    if any(word in raw for word in (b"-", b"true", b"false")) and _UNLIKE_SIZES.search(raw):
        return None
    try:
        # An object is a tuple of its pairs, which an array never is: no pair is lost.
        header = json.loads(raw.decode("ascii"), object_pairs_hook=tuple, parse_float=_no_size)
        metadata: tuple[tuple[str, Any], ...] = ()
        if header and header[0][0] == _METADATA:
            metadata, header = header[0][1], header[1:]
        refs: dict[str, TensorRef] = {}
        # A model has few dtypes and shapes. Those that are equal are the same object here.
        known: dict[tuple[Any, ...], tuple[str, Shape, int]] = {}
        start = position = 8 + len(raw)
        for name, entry in header:
            (first, dtype), (second, shape), (third, (begin, end)) = entry
            form = (dtype, *shape)
            if form not in known:
                known[form] = _known(dtype, shape)
            dtype, sizes, size = known[form]
            if (
                type(entry) is not tuple
                or type(shape) is not list
                or (first, second, third) != _FIELDS
                or start + begin != position
                or end - begin != size
            ):
                return None
            refs[name] = TensorRef(file, position, dtype, sizes)
            position += size
        is_plain = (
            position == file.size
            and len(refs) == len(header)
            and _METADATA not in refs
            and type(metadata) is tuple
            and all(type(text) is str for _, text in metadata)
            and len(dict(metadata)) == len(metadata)
        )
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return SafetensorsFile(file, refs, dict(metadata)) if is_plain else None


def _known(dtype: str, shape: list[int]) -> tuple[str, Shape, int]:
    """Return the dtype, the shape and the bytes of a tensor. Raises ValueError for unusual ones."""
    bits = prod(shape) * BITS[dtype]
    if not 0 < bits < _U64 or bits % 8 or {*map(type, shape)} - {int}:
        raise ValueError(shape)
    return dtype, tuple(shape), bits // 8


def _no_size(number: str) -> int:
    raise ValueError(number)


class _BadHeaderError(ValueError):
    def __init__(self, code: str, got: str) -> None:
        super().__init__(got)
        self.code = code


def _parse(raw: bytes, path: str) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedFileError(
            "invalid-header-utf8", path, expected="a UTF-8 header", got=str(error)
        ) from error
    if not text.startswith("{"):
        raise MalformedFileError(
            "invalid-header-start",
            path,
            expected="a header that starts with {",
            got=repr(text[:8]),
            hint="this is not a safetensors file",
        )
    try:
        header = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_constant=_constant,
        )
    except _BadHeaderError as error:
        raise MalformedFileError(error.code, path, got=str(error)) from error
    except (ValueError, RecursionError) as error:
        got = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MalformedFileError("invalid-header-json", path, expected="JSON", got=got) from error
    assert isinstance(header, dict)  # noqa: S101 - it starts with {
    return header


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _BadHeaderError("duplicate-key", f"{key!r} twice in the header")
        result[key] = value
    return result


def _integer(text: str) -> int | float:
    """JSON integers as the format reads them: -0 and what exceeds 64 bits are not integers."""
    if text.startswith("-") or len(text) > 20:
        return float(text)
    return int(text)


def _constant(text: str) -> Any:
    raise _BadHeaderError("invalid-header-json", f"{text} is not JSON")


def _metadata(value: Any, path: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise MalformedFileError(
            "invalid-metadata", f"{path}: {_METADATA}", expected="a map of strings to strings"
        )
    _check_text((text for pair in value.items() for text in pair), path)
    return value


def _entry(name: str, entry: Any, file: File, data_start: int) -> TensorRef:
    subject = f"{file.path}: {name}"
    _check_text([name], file.path)
    if isinstance(entry, list) and len(entry) == 3:  # the library reads the fields in order too
        entry = dict(zip(("dtype", "shape", "data_offsets"), entry, strict=True))
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise MalformedFileError(
            "invalid-tensor-entry", subject, expected="dtype, shape and data_offsets"
        )
    _check_ignored(entry, subject)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise MalformedFileError(
            "unknown-dtype", subject, expected="a dtype of the format", got=repr(dtype)
        )
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape):
        raise MalformedFileError(
            "invalid-shape", subject, expected="a list of sizes", got=repr(shape)
        )
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(_is_size(offset) for offset in offsets)
        or offsets[0] > offsets[1]
    ):
        raise MalformedFileError(
            "invalid-offsets",
            subject,
            expected="[begin, end], begin at most end",
            got=repr(offsets),
        )
    try:
        needed = nbytes(dtype, shape)
    except OverflowError as error:
        raise MalformedFileError("shape-overflow", subject, got=str(error)) from error
    except ValueError as error:
        raise MalformedFileError("misaligned-tensor", subject, got=str(error)) from error
    if needed != offsets[1] - offsets[0]:
        raise MalformedFileError(
            "tensor-size-mismatch",
            subject,
            expected=f"{needed} bytes for {dtype} {shape}",
            got=f"{offsets[1] - offsets[0]} bytes at {offsets}",
        )
    return TensorRef(file, data_start + offsets[0], dtype, tuple(shape))


def _check_coverage(refs: Mapping[str, TensorRef], data_start: int, file: File) -> None:
    """The tensors lie end to end, without holes or overlaps, and fill the file."""
    position = data_start
    for name, ref in sorted(refs.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if ref.offset != position:
            raise MalformedFileError(
                "overlapping-tensors" if ref.offset < position else "hole-in-data",
                f"{file.path}: {name}",
                expected=f"data at {position - data_start}",
                got=f"data at {ref.offset - data_start}",
            )
        position += ref.nbytes
    if position != file.size:
        short = position > file.size
        raise MalformedFileError(
            "truncated-file" if short else "trailing-bytes",
            file.path,
            expected=f"{position} bytes",
            got=f"{file.size} bytes",
            hint="the file is cut off: copy or download it again"
            if short
            else "the header does not describe the end of the file",
        )


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < _U64


def _check_text(texts: Iterable[str], path: str) -> None:
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise MalformedFileError(
                "invalid-header-utf8", path, got=f"a lone surrogate in {text!r}"
            ) from error


def _check_ignored(entry: Mapping[str, Any], subject: str) -> None:
    """Fields that the format does not define are ignored, as the library does, if it can read them.

    It cannot where they nest deeply, or hold a number or a text that has no binary form.
    """
    ignored = {k: v for k, v in entry.items() if k not in ("dtype", "shape", "data_offsets")}
    level: list[Any] = [*ignored, *ignored.values()]
    for _ in range(_DEEPEST_IGNORED):
        if not level:
            return
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str):
                _check_text([value], subject)
            elif isinstance(value, float) and not isfinite(value):
                raise MalformedFileError("invalid-tensor-entry", subject, got="a number too large")
        level = inner
    raise MalformedFileError("invalid-tensor-entry", subject, got="a field nested too deeply")
