"""The journal: what is written there can be read, and what is damaged or made up is found."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.in_place import files_of, merge, other_type, owner_file, set_key
from vita_ckpt import (
    MalformedFileError,
    Options,
    apply_in_place,
    history,
    recover,
    undo,
    validate,
)
from vita_ckpt.core.checksummed_json import seal
from vita_ckpt.core.journal import Journal, PatchedFile, ReplacedFile, SavedRange
from vita_ckpt.core.manifest import FileDigest


@pytest.mark.parametrize("missing", [True, False])
def test_a_journal_without_an_owner_is_nobodys(base: Path, adapter: Path, missing: bool) -> None:
    before = files_of(base)
    apply_in_place(merge(base, adapter))
    kept = base / ".vita-ckpt" / "undo-1"
    assert (kept / "ranges").stat().st_mode & 0o777 == 0o600
    if missing:
        owner_file(kept).unlink()
    undo(base)
    assert files_of(base) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"size": ', '"size": 1e999, "x": '),
        ('"operation": "', '"operation": 3, "x": "'),
        ('"ranges": [', '"ranges": [[0, 8, 5, "", ""], '),
        ('"name": "', '"name": "../'),
        ('"name": "', '"name": ".vita-ckpt/'),
    ],
)
def test_a_journal_that_somebody_made_up(base: Path, adapter: Path, old: str, new: str) -> None:
    """Its digest of itself is right, and nothing else."""
    apply_in_place(merge(base, adapter))
    path = base / ".vita-ckpt" / "undo-1" / "journal.json"
    body = json.loads(path.read_text().replace(old, new))["body"]
    path.write_bytes(seal("vita-ckpt-journal", body))
    now = files_of(base)
    for read in (undo, history):
        with pytest.raises(MalformedFileError, match=r"damaged-journal|path-outside-checkpoint"):
            read(base)
    assert "undo-damaged" in {f.rule for f in validate(base, deep=True).findings}
    assert files_of(base) == now
    with pytest.raises(MalformedFileError):
        undo(base, force=True)
    assert os.listdir(base / ".vita-ckpt") == ["undo-1"]


def test_numbers_do_not_run_out_in_silence(base: Path, adapter: Path) -> None:
    apply_in_place(merge(base, adapter))
    (base / ".vita-ckpt" / "undo-1").rename(base / ".vita-ckpt" / "undo-999999999")
    before = files_of(base)
    with pytest.raises(MalformedFileError, match="damaged-journal"):
        apply_in_place(set_key(base, adapter))
    assert files_of(base) == before
    assert undo(base).operation == "merge-projector"


def test_names_that_lines_cannot_hold(base: Path, adapter: Path) -> None:
    """What can be written into a journal can be read from it."""
    index = base / "model.safetensors.index.json"
    text = index.read_text()
    for number in range(1, 4):
        old, new = f"model-0000{number}-of-00003.safetensors", f"a\n{number} é.safetensors"
        (base / old).rename(base / new)
        text = text.replace(json.dumps(old), json.dumps(new))
    index.write_text(text)
    before = files_of(base)
    apply_in_place(merge(base, adapter))
    assert files_of(base) != before
    undo(base)
    assert files_of(base) == before


def test_a_flipped_bit_of_what_was_saved_is_found(base: Path, adapter: Path) -> None:
    """Nothing is put back then: the present bytes are all that is left."""
    apply_in_place(merge(base, adapter))
    now = files_of(base)
    kept = base / ".vita-ckpt" / "undo-1"
    assert not [f for f in validate(base, deep=True).findings if f.rule == "undo-damaged"]
    random = np.random.default_rng(1)
    for path in (kept / "journal.json", kept / "ranges"):
        sound = path.read_bytes()
        for place in random.integers(0, len(sound), 40):
            torn = bytearray(sound)
            torn[place] ^= 1 << int(random.integers(0, 8))
            path.write_bytes(torn)
            with pytest.raises(MalformedFileError, match="damaged-journal"):
                undo(base)
            assert "undo-damaged" in {f.rule for f in validate(base, deep=True).findings}
        path.write_bytes(sound)
    assert files_of(base) == now
    undo(base)


def test_a_flipped_bit_of_a_file_that_was_replaced_is_found(base: Path, adapter: Path) -> None:
    """Of old weights the header is always known, the tensors where there is a manifest."""
    apply_in_place(set_key(base, adapter), options=Options(check=False, digest=True))
    apply_in_place(other_type(base, adapter))
    kept = base / ".vita-ckpt" / "undo-2"
    victims = [path for path in sorted((kept / "old").iterdir()) if path.stat().st_size]
    assert len(victims) >= 4
    for path in victims:
        sound = path.read_bytes()
        for place in (9, len(sound) // 2, len(sound) - 2):
            torn = bytearray(sound)
            torn[place] ^= 1
            path.write_bytes(torn)
            assert "undo-damaged" in {f.rule for f in validate(base, deep=True).findings}, path
        path.write_bytes(sound)
    assert not [f for f in validate(base, deep=True).findings if f.rule == "undo-damaged"]


def test_a_journal_does_not_lead_out_of_the_directory(torn: Path, tmp_path: Path) -> None:
    """One that was put there by somebody else can write into this checkpoint at most."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 8)
    active = torn / ".vita-ckpt" / "active"
    (active / "ranges").write_bytes(b"y" * 8)
    digest = hashlib.sha256(b"y" * 8).hexdigest()
    for name in ("../outside", str(outside), "a/../../outside"):
        for journal in (
            Journal("x", "", (PatchedFile(name, 8, (SavedRange(0, 8, 0, digest, digest),)),), ()),
            Journal("x", "", (), (ReplacedFile(name, None, FileDigest(1, "")),)),
        ):
            (active / "journal.json").write_bytes(journal.encode())
            with pytest.raises(MalformedFileError, match="path-outside-checkpoint"):
                recover(torn)
    assert outside.read_bytes() == b"x" * 8
    (active / "old").rename(tmp_path / "moved")
    (active / "old").symlink_to(tmp_path / "moved")
    with pytest.raises(MalformedFileError, match="damaged-journal"):
        recover(torn)
