"""validate --deep: bytes that are not what they were when they were written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.builder import TowerSpec, mm_projector, write_adapter, write_checkpoint, write_tower
from tests.builders import as_bins, while_writing
from tests.conftest import Cli, assert_one_error
from vita_ckpt import (
    MalformedFileError,
    Options,
    OutputError,
    Plan,
    StaleInputError,
    Stores,
    apply,
    apply_in_place,
    open_checkpoint,
    plan_extract_projector,
    plan_merge_projector,
    plan_set,
    plan_swap_tower,
    undo,
    validate,
)
from vita_ckpt.core.manifest import decode, encode
from vita_ckpt.storage.writing.manifest import measure, read_manifest

MLP = mm_projector("mlp2x_gelu", 32, 16)
DIGEST = Options(digest=True)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    return write_checkpoint(tmp_path / "base", dtype="BF16", shards=2)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "a.safetensors", MLP, dtype="BF16", seed=9)


@pytest.fixture
def merged(base: Path, adapter: Path, tmp_path: Path) -> Path:
    plan = plan_merge_projector(base, adapter)
    return Path(apply(plan, tmp_path / "merged", options=DIGEST))


def rules(root: Path, *, deep: bool = True) -> set[str]:
    return {f.rule for f in validate(root, deep=deep).findings if f.severity == "error"}


def flips(root: Path) -> Iterator[tuple[Path, int, str]]:
    """A place in each tensor, header and file, with what should be named."""
    for path in sorted(p for p in root.iterdir() if p.is_file()):
        data = path.read_bytes()
        if path.suffix != ".safetensors":
            for place in {0, len(data) // 3, len(data) - 1}:
                yield path, place, path.name
            continue
        start = 8 + int.from_bytes(data[:8], "little")
        for place in (0, 9, start // 2):
            yield path, place, path.name
        for name, entry in json.loads(data[8:start]).items():
            if name != "__metadata__":
                yield path, start + entry["data_offsets"][1] - 1, name


@pytest.mark.parametrize("in_place", [False, True])
def test_with_a_manifest_every_flipped_bit_is_found(
    base: Path, adapter: Path, merged: Path, in_place: bool
) -> None:
    if in_place:
        merged = base
        apply_in_place(plan_merge_projector(base, adapter), options=DIGEST)
    assert not rules(merged)
    count = 0
    for path, place, name in flips(merged):
        sound = path.read_bytes()
        torn = bytearray(sound)
        torn[place] ^= 1 << (count % 8)
        path.write_bytes(torn)
        found = [f for f in validate(merged, deep=True).findings if f.severity == "error"]
        assert found, (path.name, place)
        if path.suffix == ".safetensors" and place > len(sound) // 2:
            assert name in {f.subject for f in found if f.rule == "digest-mismatch"}
        path.write_bytes(sound)
        count += 1
    assert count > 80
    assert not rules(merged)


def test_what_a_surgery_wrote_is_checked_without_a_manifest(base: Path, adapter: Path) -> None:
    apply_in_place(plan_merge_projector(base, adapter))
    apply_in_place(plan_set(base, {"image_aspect_ratio": "pad"}))
    assert not rules(base)
    ref = open_checkpoint(base).refs["model.mm_projector.0.bias"]
    path = Path(ref.source.path)
    sound = path.read_bytes()
    torn = bytearray(sound)
    torn[ref.offset] ^= 1
    path.write_bytes(torn)
    assert "digest-mismatch" in rules(base)
    assert "digest-mismatch" not in rules(base, deep=False)
    path.write_bytes(sound)
    config = base / "config.json"
    config.write_text(config.read_text().replace('"pad"', '"square"'))
    assert "digest-mismatch" in rules(base)


def test_of_what_was_written_twice_the_last_counts(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    apply_in_place(plan_merge_projector(base, adapter))
    other = write_adapter(tmp_path / "b.safetensors", MLP, dtype="BF16", seed=10)
    apply_in_place(plan_merge_projector(base, other))
    assert not rules(base)
    undo(base)
    assert not rules(base)


def test_digests_go_with_the_tensors(merged: Path, tmp_path: Path) -> None:
    """A surgery on a checkpoint with a manifest makes one, and does not whitewash damage."""
    ref = open_checkpoint(merged).refs["lm_head.weight"]
    with open(ref.source.path, "r+b") as file:
        file.seek(ref.offset)
        file.write(b"\x3f\x3f")
    clip = write_tower(tmp_path / "tower-clip", TowerSpec("clip"))
    plan = plan_swap_tower(merged, clip, projector="reinit")
    out = Path(apply(plan, tmp_path / "out"))
    wrong = [f for f in validate(out, deep=True).findings if f.rule == "digest-mismatch"]
    assert [f.subject for f in wrong] == ["lm_head.weight"]
    known = read_manifest(open_checkpoint(out), Stores())
    assert known is not None
    now = measure(open_checkpoint(out))
    different = {n for n in now.files if now.files[n] != known.files[n]}
    assert now.files.keys() == known.files.keys()
    assert different == {Path(ref.source.path).name}


@pytest.mark.parametrize("in_place", [False, True])
def test_a_manifest_is_what_is_there(base: Path, tmp_path: Path, in_place: bool) -> None:
    """Whatever the surgery: what it says it wrote is what can be read."""
    clip = write_tower(tmp_path / "tower-clip", TowerSpec("clip"))
    linear = write_adapter(tmp_path / "l.safetensors", mm_projector("linear", 8, 16))
    surgeries: tuple[Callable[[Path], Plan], ...] = (
        lambda root: plan_set(root, {"image_aspect_ratio": "pad"}),
        lambda root: plan_swap_tower(root, clip, projector="reinit"),
        lambda root: plan_merge_projector(root, linear),
    )
    for number, surgery in enumerate(surgeries):
        if in_place:
            apply_in_place(surgery(base), options=DIGEST)
        else:
            base = Path(apply(surgery(base), tmp_path / f"out{number}", options=DIGEST))
        checkpoint = open_checkpoint(base)
        assert read_manifest(checkpoint, Stores()) == measure(checkpoint)
        assert not rules(base)


def test_bins_have_digests_too(tmp_path: Path) -> None:
    base = as_bins(write_checkpoint(tmp_path / "base", dtype="BF16"), shards=2)
    out = Path(apply(plan_set(base, {"use_s2": False}), tmp_path / "out", options=DIGEST))
    assert not rules(out) - {"index-total-size"}
    ref = next(iter(open_checkpoint(out).refs.values()))
    path = Path(ref.source.path)
    torn = bytearray(path.read_bytes())
    torn[ref.offset] ^= 1
    path.write_bytes(torn)
    assert "digest-mismatch" in rules(out)


def test_files_that_came_or_went(merged: Path) -> None:
    (merged / "notes.md").write_text("later")
    (merged / "tokenizer.json").unlink()
    found = {(f.rule, f.severity, f.subject) for f in validate(merged, deep=True).findings}
    assert ("manifest-file-missing", "error", "tokenizer.json") in found
    assert ("not-in-manifest", "note", "notes.md") in found


def test_a_surgery_refuses_a_manifest_that_is_not_of_these_files(
    cli: Cli, merged: Path, tmp_path: Path
) -> None:
    pair = "image_aspect_ratio=pad"
    manifest = merged / "vita_ckpt.manifest.json"
    sound = manifest.read_bytes()
    (merged / "notes.md").write_text("what came later is no contradiction")
    assert cli("set", merged, pair, "--out", tmp_path / "fine").code == 0
    assert "notes.md" in json.loads((tmp_path / "fine" / manifest.name).read_text())["body"]
    config = merged / "config.json"
    config.write_text(config.read_text() + "\n")
    for extra in (("--in-place",), ("--out", tmp_path / "out")):
        assert_one_error(cli("set", merged, pair, *extra), 3, "stale-manifest", "config.json")
    manifest.write_bytes(sound.replace(b'"size"', b'"sizE"', 1))
    for extra in (("--in-place",), ("--out", tmp_path / "out")):
        assert_one_error(cli("set", merged, pair, *extra), 3, "invalid-manifest")
    manifest.unlink()
    assert cli("set", merged, pair, "--in-place", "--digest").code == 0
    assert not rules(merged)


def test_manifests_that_are_none(merged: Path) -> None:
    sound = (merged / "vita_ckpt.manifest.json").read_bytes()
    assert encode(decode(sound)) == sound
    deep = b"[" * 100_000
    for data in (b"", b"{}", b"[]", deep, sound + b"\n", sound[:-1], b'{"body": {}}', b"\xff"):
        with pytest.raises(ValueError, match=r"."):
            decode(data)
    path = merged / "vita_ckpt.manifest.json"
    path.write_bytes(b'{"body": {"a": []}}')
    with pytest.raises(MalformedFileError, match="invalid-manifest"):
        read_manifest(open_checkpoint(merged), Stores())
    assert "invalid-manifest" in rules(merged)


def test_check_compares_what_was_written(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Another program writes into the stage before it becomes the output."""

    def disturb(_count: int) -> None:
        for path in tmp_path.glob(".vita-ckpt-*/model-00001*"):
            if path.stat().st_size:
                with open(path, "r+b") as file:
                    file.seek(-1, 2)
                    file.write(b"\xfd")

    out = tmp_path / "out"
    with pytest.raises(OutputError, match="check-failed"):
        apply(
            plan_merge_projector(base, adapter),
            out,
            options=Options(check=True),
            on_progress=while_writing(disturb),
        )
    assert not out.exists()
    assert not list(tmp_path.glob(".vita-ckpt-*"))
    for suffix in (".safetensors", ".bin"):
        file = tmp_path / f"p{suffix}"
        apply(plan_extract_projector(base), file, options=Options(check=True))
        assert file.exists()


def test_a_stale_input_is_told_by_its_header(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Size and time may be what they were: a header that is not says that the file is another."""
    plan = plan_merge_projector(base, adapter)
    path = base / "model-00001-of-00002.safetensors"
    status, data = path.stat(), path.read_bytes()
    path.write_bytes(data.replace(b'"pt"', b'"np"', 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(StaleInputError, match=path.name):
        apply(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
