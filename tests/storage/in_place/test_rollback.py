"""Undo brings back what was there, or changes nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.in_place import files_of, kill, merge, other_type, set_key, stopped_in_the_middle
from vita_ckpt import (
    InputError,
    MalformedFileError,
    Options,
    apply_in_place,
    history,
    open_checkpoint,
    recover,
    undo,
)
from vita_ckpt.storage.in_place import rollback


def test_only_the_last_surgery_can_be_undone(base: Path, adapter: Path) -> None:
    states = [files_of(base)]
    for plan in (merge, other_type, set_key):
        apply_in_place(plan(base, adapter))
        states.append(files_of(base))
    assert os.listdir(base / ".vita-ckpt") == ["undo-3"]
    assert [o["operation"] for o in history(base).operations] == [
        "merge-projector",
        "merge-projector",
        "set",
    ]
    undo(base)
    assert files_of(base) == states[-2]
    with pytest.raises(InputError, match="nothing-to-undo"):
        undo(base)
    assert recover(base) is None


def test_what_has_changed_since_is_not_overwritten_unasked(base: Path, adapter: Path) -> None:
    before = files_of(base)
    for name in ("vita_ckpt.json", "model-00003-of-00003.safetensors"):
        plan = merge(base, adapter)
        apply_in_place(plan)
        ref = open_checkpoint(base).refs["model.mm_projector.0.bias"]
        path = Path(ref.source.path) if name.endswith(".safetensors") else base / name
        with open(path, "r+b") as file:
            file.seek(ref.offset if path.suffix == ".safetensors" else 5)
            file.write(b"\xfe")
        with pytest.raises(InputError, match=f"changed-since.*{path.name}"):
            undo(base)
        done = undo(base, force=True)
        # A file that was new is not removed once its bytes are not those that were written.
        assert done.kept == (("vita_ckpt.json",) if name == "vita_ckpt.json" else ())
        (base / "vita_ckpt.json").unlink(missing_ok=True)
        assert files_of(base) == before


@pytest.mark.parametrize("what", ["shorter", "gone"])
def test_an_undo_that_cannot_be_is_not_begun(base: Path, adapter: Path, what: str) -> None:
    apply_in_place(merge(base, adapter))
    shard = base / "model-00003-of-00003.safetensors"
    sound = shard.read_bytes()
    if what == "shorter":
        shard.write_bytes(sound[:-8])
    else:
        shard.unlink()
    with pytest.raises(InputError, match=rf"not-the-same-file.*{shard.name}.*remove its"):
        undo(base, force=True)
    assert os.listdir(base / ".vita-ckpt") == ["undo-1"]
    shard.write_bytes(sound)
    undo(base)


@pytest.mark.parametrize("torn", [False, True])
def test_what_got_another_name_since_is_put_back_in_a_copy(
    base: Path, adapter: Path, torn: bool
) -> None:
    """As a backup of hard links makes it: the backup keeps what it has."""
    before = files_of(base)
    if torn:
        with stopped_in_the_middle(base, adapter) as process:
            kill(process)
    else:
        apply_in_place(merge(base, adapter))
    shard = base / "model-00003-of-00003.safetensors"
    os.link(shard, base.parent / "backup")
    shard.chmod(0o444)
    backed_up = shard.read_bytes()
    assert (recover if torn else undo)(base) is not None
    assert files_of(base) == before
    assert (base.parent / "backup").read_bytes() == backed_up
    assert shard.stat().st_nlink == 1
    assert shard.stat().st_mode & 0o777 == 0o444


def test_an_undo_that_a_surgery_overtakes_gives_way(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The surgery ends after the undo has looked and before it takes the name."""
    apply_in_place(merge(base, adapter))
    real = rollback._check_fits

    def overtaken(*arguments: Any) -> None:
        real(*arguments)
        kept = base / ".vita-ckpt" / "undo-1"
        kept.rename(base / "aside")  # so that the surgery does not remove it, as if it were slow
        apply_in_place(set_key(base, adapter))
        (base / ".vita-ckpt" / "undo-1").rename(base / ".vita-ckpt" / "undo-2")
        (base / "aside").rename(kept)

    monkeypatch.setattr(rollback, "_check_fits", overtaken)
    with pytest.raises(InputError, match="surgery-under-way"):
        undo(base)
    monkeypatch.undo()
    assert [o["operation"] for o in history(base).operations] == ["merge-projector", "set"]
    assert undo(base).operation == "set"


def test_a_saved_file_that_is_gone_is_missed(base: Path, adapter: Path) -> None:
    apply_in_place(other_type(base, adapter))
    now = files_of(base)
    (base / ".vita-ckpt" / "undo-1" / "old" / "0").unlink()
    with pytest.raises(MalformedFileError, match=r"damaged-journal.*is gone"):
        undo(base)
    assert files_of(base) == now


def test_a_file_whose_digest_in_the_manifest_is_old_is_kept_as_it_is(
    base: Path, adapter: Path
) -> None:
    (base / "README.md").write_text("v1")
    card = Options(check=True, digest=True, model_card=True)
    apply_in_place(merge(base, adapter), options=card)
    readme = base / "README.md"
    readme.write_text(readme.read_text().replace("v1", "v2"))
    before = files_of(base)
    apply_in_place(set_key(base, adapter), options=card)
    undo(base)
    assert files_of(base) == before
