"""The model of power cuts itself: it finds what careless programs lose, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.disk import Data, Disk, Move, Nodes
from tests.torture.operations import (
    Close,
    Mkdir,
    Open,
    Operation,
    Place,
    Rename,
    Sync,
    Traced,
    Unlink,
    Write,
)
from tests.torture.power import crashes, pending_at, unsynced_when_moved

_NEW = frozenset({"O_CREAT", "O_WRONLY"})
_DIRECTORY = frozenset({"O_DIRECTORY"})


def replayed(root: Path, *operations: Operation) -> Disk:
    """A disk on which these calls were made, one after the other."""
    trace = [Traced(1, "call", n + 1, n, operation) for n, operation in enumerate(operations)]
    return Disk(str(root), str(root)).replay(trace)


def outcomes(disk: Disk, *, last: bool = False) -> list[dict[str, bytes | str | None]]:
    return [crash.tree for crash in crashes(disk) if crash.last or not last]


def staged(
    *, sync_file: bool = True, sync_stage: bool = True, sync_parent: bool = True
) -> list[Operation]:
    """A directory made beside its name and renamed, with all of its syncs or not."""
    calls: list[Operation] = [
        Mkdir(Place(b"stage")),
        Open(Place(b"stage/file"), _NEW, 5),
        Write(5, b"first "),
        Write(5, b"second"),
    ]
    calls += [Sync(5)] if sync_file else []
    calls += [Close(5, 5), Open(Place(b"stage"), _DIRECTORY, 6)]
    calls += [Sync(6)] if sync_stage else []
    calls += [Rename(Place(b"stage"), Place(b"out"))]
    calls += [Open(Place(b""), _DIRECTORY, 7)] if sync_parent else []
    calls += [Sync(7)] if sync_parent else []
    return calls


WHOLE = {"out": None, "out/file": b"first second"}


def test_a_careful_program(tmp_path: Path) -> None:
    disk = replayed(tmp_path, *staged())
    assert disk.now.tree() == WHOLE
    assert unsynced_when_moved(disk) == []
    assert outcomes(disk, last=True) == [WHOLE]
    for tree in outcomes(disk):
        assert "out" not in tree or tree == WHOLE


@pytest.mark.parametrize(
    ("forgotten", "lost"),
    [
        ("sync_file", {"out": None, "out/file": b""}),
        ("sync_file", {"out": None, "out/file": b"first"[:3]}),
        ("sync_file", {"out": None, "out/file": bytes(6) + b"second"}),
        ("sync_stage", {"out": None}),
        ("sync_parent", {}),
    ],
)
def test_careless_ones(tmp_path: Path, forgotten: str, lost: dict[str, bytes | None]) -> None:
    disk = replayed(tmp_path, *staged(**{forgotten: False}))
    assert lost in outcomes(disk, last=True)
    if forgotten != "sync_parent":
        assert unsynced_when_moved(disk)


def test_an_entry_names_an_inode(tmp_path: Path) -> None:
    """The directory's creation may be lost and its rename kept; each is one step."""
    disk = replayed(tmp_path, Mkdir(Place(b"a")), Rename(Place(b"a"), Place(b"b")))
    trees = outcomes(disk)
    assert {frozenset(tree) for tree in trees} == {frozenset(), frozenset("a"), frozenset("b")}


def test_a_rename_over_a_file_leaves_one_of_both(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    calls: list[Operation] = [
        Open(Place(b"t"), _NEW, 5),
        Write(5, b"new"),
        Sync(5),
        Rename(Place(b"t"), Place(b"f")),
    ]
    for tree in outcomes(replayed(tmp_path, *calls)):
        assert tree["f"] in (b"old", b"new")
    calls.remove(Sync(5))
    assert any(tree["f"] == b"" for tree in outcomes(replayed(tmp_path, *calls)))


def test_a_write_in_place_may_be_torn(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    disk = replayed(tmp_path, Open(Place(b"f"), frozenset({"O_WRONLY"}), 5), Write(5, b"abcd", 2))
    found = {tree["f"] for tree in outcomes(disk)}
    assert found == {b"0123456789", b"01abcd6789", b"01ab456789", b"01\0\0\0\x006789"}


def test_a_sync_vouches_for_what_had_ended_before_it_began(tmp_path: Path) -> None:
    root, new = str(tmp_path), Open(Place(b"f"), _NEW, 5)
    for started, lasts in ((1, False), (2, True)):
        trace = [
            Traced(1, "openat", 1, 0, new),
            Traced(1, "write", 1, 1, Write(5, b"x")),
            Traced(2, "fsync", 1, started, Sync(5)),
        ]
        disk = Disk(root, root).replay(trace)
        left = [disk.effects[index] for index in pending_at(disk.effects, len(disk.effects))]
        assert any(isinstance(effect, Data) for effect in left) is not lasts


def test_a_move_lasts_once_both_directories_are_synced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "f").write_bytes(b"x")
    calls: list[Operation] = [
        Open(Place(b"a"), _DIRECTORY, 5),
        Open(Place(b"b"), _DIRECTORY, 6),
        Rename(Place(b"f", 5), Place(b"g", 6)),
        Sync(5),
    ]
    half = replayed(tmp_path, *calls)
    assert [half.effects[index] for index in pending_at(half.effects, 2)] == [half.effects[0]]
    assert isinstance(half.effects[0], Move)
    whole = replayed(tmp_path, *calls, Sync(6))
    assert pending_at(whole.effects, 3) == []
    for tree in outcomes(half):
        assert ("a/f" in tree) != ("b/g" in tree)


def test_what_is_replaced_and_removed(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    calls = (Unlink(Place(b"f")), Open(Place(b"f"), _NEW, 5), Write(5, b"new"))
    found = [tree.get("f") for tree in outcomes(replayed(tmp_path, *calls))]
    assert None in found and b"old" in found and b"new" in found and b"" in found


def test_states_are_written_as_they_are(tmp_path: Path) -> None:
    root, copy = tmp_path / "root", tmp_path / "copy"
    (root / "d").mkdir(parents=True)
    (root / "d" / "f").write_bytes(b"x")
    (root / "d" / "g").hardlink_to(root / "d" / "f")
    (root / "s").symlink_to("d/f")
    copy.mkdir()
    Nodes.load(str(root)).write(str(copy))
    assert Nodes.load(str(copy)).tree() == Nodes.load(str(root)).tree()
    assert (copy / "d" / "f").samefile(copy / "d" / "g")
    assert (copy / "d" / "f").stat().st_mtime_ns == (root / "d" / "f").stat().st_mtime_ns
