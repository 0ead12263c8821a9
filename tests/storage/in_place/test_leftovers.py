"""What dead surgeries left is swept and is in nobody's way."""

from __future__ import annotations

import os
from pathlib import Path

from tests.in_place import files_of, kill, merge, owner_file, stopped_in_the_middle
from vita_ckpt import apply_in_place, recover


def test_a_dead_surgery_that_held_second_names_is_in_nobodys_way(base: Path, adapter: Path) -> None:
    before = files_of(base)
    with stopped_in_the_middle(base, adapter) as process:
        kill(process)
    dead = owner_file(base / ".vita-ckpt" / "active").name.removeprefix("owner-")
    for tag in (dead, "unknown"):
        left = base / ".vita-ckpt" / f"prepare-0123456789ab-{tag}" / "old"
        left.mkdir(parents=True)
        os.link(base / "model-00003-of-00003.safetensors", left / "0")
    assert recover(base) is not None
    assert files_of(base) == before


def test_what_a_dead_surgery_left_is_swept_by_the_next(base: Path, adapter: Path) -> None:
    with stopped_in_the_middle(base, adapter) as process:
        kill(process)
    active = base / ".vita-ckpt" / "active"
    dead = owner_file(active).name.removeprefix("owner-")
    recover(base)
    left = base / ".vita-ckpt" / f"prepare-0123456789ab-{dead}"
    foreign = base / ".vita-ckpt" / "prepare-0123456789ab-unknown"
    for path in (left, foreign):
        (path / "old").mkdir(parents=True)
    os.link(base / "model-00001-of-00003.safetensors", left / "old" / "0")
    apply_in_place(merge(base, adapter))
    assert not left.exists()
    assert foreign.exists()
