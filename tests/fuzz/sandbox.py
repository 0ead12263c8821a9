"""Directories whose files are damaged one at a time, and what every reader has to hold."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tests.fuzz.files import rewrite
from vita_ckpt import Stores, VitaCkptError, diff, explain, inspect, open_checkpoint, validate
from vita_ckpt.core.report import has_errors
from vita_ckpt.storage.reading.file_listing import read_weight_files
from vita_ckpt.storage.reading.survey import survey

_NOT_IN_A_LINE = ("Cc", "Cs", "Zl", "Zp")

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


class Sandbox:
    """A directory and what its files hold while they are sound."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sound = {p.name: p.read_bytes() for p in sorted(root.iterdir()) if p.is_file()}

    @contextmanager
    def holding(self, name: str, data: bytes) -> Iterator[Path]:
        """The directory with other bytes in one of its files."""
        path = self.root / name
        rewrite(path, data)
        try:
            yield self.root
        finally:
            if name in self.sound:
                rewrite(path, self.sound[name])
            else:
                path.unlink()


def survives(path: Path) -> None:
    """Every reader either reads what is there or says in one line why not; so does its report."""
    readers: tuple[Callable[[Path], Any], ...] = (
        open_checkpoint,
        lambda p: survey(p, Stores()),
        validate,
        lambda p: json.dumps(inspect(p).to_dict(), allow_nan=False),
        lambda p: json.dumps(explain(p).to_dict(), allow_nan=False),
        lambda p: json.dumps(diff(p, p, values=True).to_dict()),
    )
    for read in readers:
        try:
            read(path)
        except VitaCkptError as error:
            assert is_one_line(str(error)), error


def is_one_line(text: str) -> bool:
    """Whether nothing in it moves a terminal's cursor, ends the line or cannot be encoded."""
    return not any(unicodedata.category(character) in _NOT_IN_A_LINE for character in text)


def library_reads(path: Path) -> Tensors | None:
    """Dtype and shape of every tensor, as the safetensors library reads them; None if refused."""
    try:
        with safe_open(path, "np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
    except (SafetensorError, OSError):
        return None


def believes_no_more_than_the_library(root: Path) -> None:
    """Nothing counts as sound that the safetensors library refuses."""
    theirs = {path.name: library_reads(path) for path in root.glob("*.safetensors")}
    try:
        opened = open_checkpoint(root)
    except VitaCkptError:
        pass
    else:
        assert all(theirs[shard.name] is not None for shard in opened.shards)
    if None in theirs.values():
        assert has_errors(validate(root).findings)
    read = read_weight_files(root, Stores()).files
    for name, tensors in theirs.items():
        if tensors is None:
            assert read[name].trouble is not None
        elif read[name].trouble is None:
            refs = read[name].tensors
            assert {n: (ref.dtype, ref.shape) for n, ref in refs.items()} == tensors
    for shard in survey(root, Stores()).checkpoint.shards:
        assert theirs[shard.name] is not None
