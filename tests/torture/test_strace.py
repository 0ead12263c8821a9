"""Traces: every line becomes what it means, or is refused; a real one leads to the real files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.torture import strace
from tests.torture.disk import Disk, Nodes
from tests.torture.operations import (
    Clone,
    Close,
    Copy,
    Hint,
    Open,
    Place,
    Rename,
    Sync,
    Traced,
    UnknownCallError,
    Unlink,
    Write,
)


def text(data: str) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in data.encode()) + '"'


def one(line: str) -> Traced:
    (traced,) = strace.parse([f"7  {line}"])
    return traced


def test_calls() -> None:
    for line, operation in (
        (
            f"openat(AT_FDCWD, {text('a, (b')}, O_WRONLY|O_CREAT|O_EXCL, 0666) = 5",
            Open(Place(b"a, (b"), frozenset({"O_WRONLY", "O_CREAT", "O_EXCL"}), 5),
        ),
        (f"write(3, {text('hello')}, 5) = 3", Write(3, b"hel")),
        (f"pwrite64(3, {text('hello')}, 5, 4096) = 5", Write(3, b"hello", 4096)),
        (
            f"writev(3, [{{iov_base={text('a,')}, iov_len=2}}, {{iov_base={text('b')}, iov_len=1}}]"
            ", 2) = 3",
            Write(3, b"a,b"),
        ),
        ("copy_file_range(3, [1936], 7, NULL, 1024, 0) = 1000", Copy(3, 1936, 7, None, 1000)),
        ("sendfile(4, 3, [0] => [2], 2) = 2", Copy(3, 0, 4, None, 2)),
        ("ioctl(4, BTRFS_IOC_CLONE or FICLONE, 3) = 0", Clone(3, 4)),
        (
            f"renameat2(AT_FDCWD, {text('a')}, 9, {text('b')}, RENAME_EXCHANGE) = 0",
            Rename(Place(b"a"), Place(b"b", 9), exchange=True),
        ),
        (f"unlinkat(9, {text('d')}, AT_REMOVEDIR) = 0", Unlink(Place(b"d", 9))),
        ("sync_file_range(7, 0, 10, SYNC_FILE_RANGE_WRITE) = 0", Hint()),
        ("fsync(7) = 0", Sync(7)),
    ):
        assert one(line).operation == operation, line
    failed = one("fsync(7) = -1 EIO (Input/output error) (INJECTED)")
    assert (failed.error, failed.operation) == ("EIO", Sync(7))


def test_threads() -> None:
    """Calls come in the order in which they ended, but a close when it began."""
    lines = [
        f"1  write(3, {text('one')}, 3 <unfinished ...>",
        "2  fsync(3 <unfinished ...>",
        "1  <... write resumed>)             = 3",
        "1  close(4 <unfinished ...>",
        "2  <... fsync resumed>)             = 0",
        f"2  openat(AT_FDCWD, {text('f')}, O_RDONLY) = 4",
        "1  <... close resumed>)             = 0",
        "3  <... read resumed>) = 0",
        "2  write(4, <unfinished ...>) = ?",
        "1  +++ killed by SIGKILL +++",
    ]
    found = strace.parse(lines)
    assert [(t.thread, t.name, t.number, t.started) for t in found] == [
        (1, "write", 1, 0),
        (1, "close", 1, 1),
        (2, "fsync", 1, 0),
        (2, "openat", 1, 3),
    ]
    assert found[1].operation == Close(4, 4)


@pytest.mark.parametrize(
    "line",
    [
        "io_uring_setup(8, {flags=0}) = 3",
        f"openat2(AT_FDCWD, {text('a')}, {{flags=O_WRONLY}}, 24) = 3",
        "fallocate(4, FALLOC_FL_PUNCH_HOLE, 0, 100) = 0",
        "ioctl(4, FICLONERANGE, {src_fd=3}) = 0",
        "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 3, 0) = 0x7f0000000000",
        "splice(3, NULL, 4, NULL, 5, 0) = 5",
        "fork() = 99",
    ],
)
def test_what_nobody_described_is_refused(line: str) -> None:
    with pytest.raises(UnknownCallError):
        one(line)


@pytest.mark.parametrize(
    "line",
    [f"write(3, {text('hello')}..., 500) = 500", "nonsense", "<... write resumed>) = 0"],
)
def test_what_cannot_be_read_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"cut off|not a|ends what"):
        strace.parse(["1  fsync(3 <unfinished ...>", f"1  {line}"])


PROGRAM = r"""
import fcntl, os, threading
os.mkdir("d")
x = os.open("d/x", os.O_RDWR | os.O_CREAT, 0o644)
os.write(x, b'he"l\\lo, (world')
os.writev(x, [b"a", b"bc"])
os.pwrite(x, b"zz", 1)
os.pwritev(x, [b"q", b"r"], 40)
y = os.open("d/y", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
os.copy_file_range(x, y, 5, offset_src=3)
os.lseek(x, 2, os.SEEK_SET)
os.read(x, 3)
os.copy_file_range(x, y, 5, offset_dst=7)
os.sendfile(y, x, 0, 4)
copy = os.dup(y)
os.close(y)
os.write(copy, b"by a duplicate")
os.ftruncate(copy, 16)
os.truncate("d/x", 20)
os.posix_fallocate(copy, 0, 100)
with open("d/append", "ab") as file:
    file.write(b"1")
with open("d/append", "ab") as file:
    file.write(b"2")
os.link("d/x", "d/z")
os.symlink("x", "d/s")
with open("d/s", "r+b") as file:
    file.write(b"through a link")
os.rename("d/y", "d/w")
d = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
os.mkdir("sub", dir_fd=d)
os.rename("z", "sub/zz", src_dir_fd=d, dst_dir_fd=d)
os.rename("d/sub", "elsewhere")
os.symlink(os.path.abspath("elsewhere"), "absolute")
with open("absolute/new", "w") as file:
    file.write("through an absolute link")
os.mkdir("gone")
os.rmdir("gone")
os.unlink("w", dir_fd=d)
os.fsync(x)
os.fsync(d)
os.chdir("d")
with open("after", "w") as file:
    file.write("relative")
def work(name):
    for turn in range(100):
        one = os.open(f"{name}{turn}", os.O_WRONLY | os.O_CREAT)
        os.write(one, f"{name} {turn}".encode())
        os.fsync(one)
        os.close(one)
threads = [threading.Thread(target=work, args=(name,)) for name in "pq"]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.torture
def test_a_real_program_leads_to_the_real_files(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    disk = Disk(str(root), str(root))
    run = strace.run([sys.executable, "-c", PROGRAM], root, tmp_path / "trace")
    assert run.returncode == 0, run
    disk.replay(strace.parse((tmp_path / "trace").read_text().splitlines()))
    assert disk.now.tree() == Nodes.load(str(root)).tree()
    assert len(disk.now.tree()) > 200
