"""A scan summarises every byte of every tensor, once, whatever lies around them."""

from __future__ import annotations

import os
import random
import resource
import threading
from pathlib import Path

import pytest

from vita_ckpt.core.checkpoint import LocalFile, TensorRef
from vita_ckpt.errors import InputError, MalformedFileError, StaleInputError
from vita_ckpt.storage.stores.local import identify
from vita_ckpt.storage.tensors.scan import scan

BLOCK = 1 << 20
PORTION = 32 << 20


def file_of(path: Path, data: bytes) -> LocalFile:
    path.write_bytes(data)
    return identify(str(path))


def nothing(_tensor: TensorRef, _data: memoryview, _position: int) -> int:
    """A summary that says nothing."""
    return 0


def content(_tensor: TensorRef, data: memoryview, position: int) -> list[tuple[int, bytes]]:
    """A summary that says everything."""
    return [(position, bytes(data))]


def read_all(tensors: list[TensorRef], threads: int = 2) -> dict[TensorRef, bytes]:
    """What the scan read of each tensor; checks that it was in order and without overlap."""
    pieces = scan(tensors, content, threads=threads)
    width = {"U8": 1, "BF16": 2, "F32": 4, "C64": 8, "F64": 8}
    for tensor, found in pieces.items():
        at = 0
        for position, data in found:
            assert position == at
            assert len(data) % width[tensor.dtype] == 0
            at += len(data) // width[tensor.dtype]
    return {tensor: b"".join(data for _, data in found) for tensor, found in pieces.items()}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_byte_of_every_tensor(tmp_path: Path, threads: int) -> None:
    """Two files; sizes around that of a block, odd offsets, gaps, no gaps, overlaps, one twice."""
    random.seed(0)
    tensors: list[TensorRef] = []
    for name in "ab":
        data = random.randbytes(5 * BLOCK + 77)
        file = file_of(tmp_path / name, data)
        at = 3
        for size in (1, 7, 4096, BLOCK - 4, BLOCK, BLOCK + 4, 5, 5):
            at += random.choice([0, 0, 1, 4096, 4097])
            tensors.append(TensorRef(file, at, "U8", (size,)))
            at += size
        tensors.append(TensorRef(file, 1, "F32", (BLOCK, 1)))
        tensors.append(TensorRef(file, 1 + 4 * BLOCK, "BF16", (5,)))
        tensors.append(TensorRef(file, 6, "C64", (BLOCK // 8, 3)))
        tensors.append(TensorRef(file, len(data) - 8, "F64", ()))
    random.shuffle(tensors)
    found = read_all(tensors, threads)
    assert found.keys() == set(tensors)
    for tensor, data in found.items():
        whole = Path(tensor.source.path).read_bytes()
        assert data == whole[tensor.offset : tensor.offset + tensor.nbytes]


def test_a_strided_tensor_is_what_it_spans(tmp_path: Path) -> None:
    data = random.randbytes(1 << 20)
    file = file_of(tmp_path / "a", data)
    transposed = TensorRef(file, 4, "F32", (256, 512), (1, 256))
    sliced = TensorRef(file, 8, "F32", (10, 3), (1000, 2))
    repeated = TensorRef(file, 12, "F32", (1 << 40, 2), (0, 1))
    none = TensorRef(file, 12, "F32", (4, 0), (7, 7))
    found = read_all([transposed, sliced, repeated, none])
    assert found[transposed] == data[4 : 4 + 4 * 256 * 512]
    assert found[sliced] == data[8 : 8 + 4 * (9000 + 4 + 1)]
    assert found[repeated] == data[12:20]
    assert none not in found


def test_no_tensors_no_summaries(tmp_path: Path) -> None:
    file = file_of(tmp_path / "a", b"")
    assert read_all([]) == {}
    assert read_all([TensorRef(file, 0, "BF16", (3, 0))]) == {}


def test_gaps_are_not_read(tmp_path: Path) -> None:
    file = file_of(tmp_path / "a", b"\1" * (9 * BLOCK))
    tensors = [TensorRef(file, at * BLOCK, "U8", (10,)) for at in range(9)]
    steps: list[int] = []
    scan(tensors, nothing, progress=steps.append)
    assert sum(steps) == 90


def test_progress_is_told_of_the_bytes_of_each_portion(tmp_path: Path) -> None:
    with open(tmp_path / "a", "wb") as file:
        file.truncate(2 * PORTION + 10)
    steps: list[int] = []
    tensor = TensorRef(identify(str(tmp_path / "a")), 0, "U8", (2 * PORTION + 10,))
    scan([tensor], nothing, progress=steps.append)
    assert sorted(steps) == [10, PORTION, PORTION]


def test_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    files = [file_of(tmp_path / str(number), bytes([number])) for number in range(200)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
    try:
        found = read_all([TensorRef(file, 0, "U8", (1,)) for file in files])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(found) == 200


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_of_a_summary_ends_the_scan(
    tmp_path: Path, threads: int, error: type[BaseException]
) -> None:
    size = 200 * BLOCK
    with open(tmp_path / "a", "wb") as file:
        file.truncate(size)
    calls: list[int] = []

    def fail(_tensor: TensorRef, _data: memoryview, position: int) -> int:
        calls.append(position)
        raise error

    before = threading.active_count()
    tensor = TensorRef(identify(str(tmp_path / "a")), 0, "U8", (size,))
    with pytest.raises(error):
        scan([tensor], fail, threads=threads)
    assert threading.active_count() == before
    assert len(calls) <= threads


def test_a_file_that_changed_since_it_was_opened(tmp_path: Path) -> None:
    file = file_of(tmp_path / "a", b"\0" * 100)
    os.utime(file.path, ns=(0, 0))
    with pytest.raises(StaleInputError, match="input-changed") as caught:
        scan([TensorRef(file, 0, "U8", (100,))], nothing)
    assert file.path in str(caught.value)


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    file = file_of(tmp_path / "a", b"\0" * 100)

    def touch(_tensor: TensorRef, _data: memoryview, _position: int) -> int:
        os.utime(file.path, ns=(0, 0))
        return 0

    with pytest.raises(StaleInputError, match="input-changed"):
        scan([TensorRef(file, 0, "U8", (100,))], touch)


def test_a_file_that_is_cut_off_while_it_is_read(tmp_path: Path) -> None:
    file = file_of(tmp_path / "a", b"\0" * (40 * BLOCK))

    def cut(_tensor: TensorRef, _data: memoryview, _position: int) -> int:
        os.truncate(file.path, 1000)
        return 0

    with pytest.raises(MalformedFileError, match="truncated-file"):
        scan([TensorRef(file, 0, "U8", (40 * BLOCK,))], cut, threads=1)


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    file = file_of(tmp_path / "a", b"\0" * 100)
    os.unlink(file.path)
    with pytest.raises(InputError, match="unreadable-file"):
        scan([TensorRef(file, 0, "U8", (100,))], nothing)


def test_a_disk_that_fails_is_said_in_one_line() -> None:
    # A regular file whose first page is not to be read: the kernel answers EIO.
    file = identify("/proc/self/mem")
    with pytest.raises(InputError) as caught:
        scan([TensorRef(file, 0, "U8", (100,))], nothing)
    assert str(caught.value) == (
        f"unreadable-file: {file.path}: got input/output error (check the path and its permissions)"
    )


def test_large_contiguous_tensors_are_offered_to_a_glance(tmp_path: Path) -> None:
    """What it does not know is read, in order, as without it."""
    data = random.Random(0).randbytes(5 * BLOCK)
    file = file_of(tmp_path / "a", data)
    known = TensorRef(file, 5, "U8", (2 * BLOCK + 3,))
    unknown = TensorRef(file, known.offset + known.nbytes, "U8", (BLOCK + 9,))
    small = TensorRef(file, unknown.offset + unknown.nbytes, "U8", (BLOCK,))
    strided = TensorRef(file, 1, "U8", (2 * BLOCK, 1), (2, 1))
    offered = []

    def glance(
        tensor: TensorRef, descriptor: int, offset: int, nbytes: int
    ) -> list[tuple[int, bytes]] | None:
        offered.append((tensor, offset, nbytes))
        return [(0, os.pread(descriptor, nbytes, offset))] if tensor == known else None

    found = scan([small, known, strided, unknown], content, glance=glance, threads=1)
    assert offered == [(t, t.offset, t.nbytes) for t in (known, unknown)]
    assert found[known] == [(0, data[known.offset : unknown.offset])]
    for tensor in (unknown, small):
        whole = b"".join(piece for _, piece in found[tensor])
        assert whole == data[tensor.offset : tensor.offset + tensor.nbytes]
    assert [position for position, _ in found[unknown]] == [0, BLOCK]


def test_a_small_tensor_within_a_large_one_is_not_part_of_its_block(tmp_path: Path) -> None:
    """Views of one storage, as in a pickled file: each is read by itself."""
    data = random.Random(1).randbytes(3 * BLOCK)
    file = file_of(tmp_path / "a", data)
    large = TensorRef(file, 0, "U8", (3 * BLOCK,))
    small = TensorRef(file, 8, "U8", (100,))
    found = scan([large, small], content, glance=lambda *_: None, threads=1)
    assert b"".join(piece for _, piece in found[large]) == data
    assert found[small] == [(0, data[8:108])]
