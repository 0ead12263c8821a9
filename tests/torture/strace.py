"""A trace by strace as typed operations: threads unravelled, every byte kept, none overlooked."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.torture.operations import (
    Allocate,
    Chdir,
    Clone,
    Close,
    Copy,
    Duplicate,
    Hint,
    Link,
    Mkdir,
    Open,
    OpenOther,
    Operation,
    Place,
    Read,
    Rename,
    Seek,
    Symlink,
    Sync,
    Traced,
    Truncate,
    UnknownCallError,
    Unlink,
    Write,
)

# Everything that names a file or a descriptor, and the few that change files without either.
OPTIONS: Final = (
    "-f",
    "-xx",
    "-s",
    str(1 << 20),
    "-e",
    "trace=file,desc,process,network,sync,io_uring_setup,io_uring_enter,mmap",
    "-e",
    "raw=read",
    "-e",
    "signal=none",
)

_LINE: Final = re.compile(r"(\d+) +(.*)")
_ENDED: Final = re.compile(r"(.*)\) += (-?\d+|0x[0-9a-f]+|\?)(?: ([A-Z][A-Z0-9_]*))?.*")
_RESUMED: Final = re.compile(r"<\.\.\. (\w+) resumed>(.*)")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Calls that change no file: those that look, wait, or concern this process alone.
_HARMLESS: Final = _words("""
    access faccessat faccessat2 stat lstat fstat newfstatat statx statfs fstatfs readlink readlinkat
    getcwd getdents getdents64 pread64 preadv preadv2 readv fadvise64 readahead flock poll ppoll
    select pselect6 epoll_ctl epoll_wait epoll_pwait execve exit exit_group wait4 waitid kill tkill
    tgkill pidfd_send_signal restart_syscall recvfrom recvmsg sendto sendmsg connect bind listen
    getsockname getpeername getsockopt setsockopt shutdown getxattr fgetxattr lgetxattr listxattr
    flistxattr llistxattr inotify_add_watch name_to_handle_at rt_sigreturn
""")
_METADATA: Final = _words("""
    utimensat utime utimes futimesat chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat
    setxattr fsetxattr lsetxattr removexattr fremovexattr lremovexattr sync_file_range
""")
_NEW_DESCRIPTOR: Final = _words("""
    socket accept accept4 epoll_create epoll_create1 eventfd eventfd2 timerfd_create signalfd
    signalfd4 inotify_init inotify_init1 memfd_create pidfd_open
""")
_HARMLESS_IOCTLS: Final = _words("""
    TCGETS TIOCGWINSZ TIOCGPGRP FIOCLEX FIONCLEX FIONREAD FIONBIO FS_IOC_GETFLAGS
""")
_CLONES: Final = frozenset({"FICLONE", "BTRFS_IOC_CLONE or FICLONE", "BTRFS_IOC_CLONE"})


@dataclass(slots=True)
class _Begun:
    """A call that was entered and has not ended."""

    name: str
    text: str
    number: int
    started: int


def parse(lines: Iterable[str]) -> list[Traced]:
    """The calls of a trace in the order in which they ended, a close when it began.

    A descriptor that one thread closes may be another's before the first is seen to be done.
    Calls that a death cut off are not there. Raises UnknownCallError for a call that is described
    nowhere, and ValueError for a line that is none of strace's.
    """
    return list(_Parser().calls(lines))


def run(command: Sequence[str], cwd: Path, trace: Path) -> subprocess.CompletedProcess[str]:
    """Run a program from its first instruction on under strace, into the file ``trace``."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}
    for more in (["--seccomp-bpf"], []):  # where the kernel allows it: no stop for other calls
        whole = ["strace", "-o", str(trace), *more, *OPTIONS, *command]
        done = subprocess.run(
            whole, cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        if trace.exists() and trace.stat().st_size:
            break
    return done


class _Parser:
    def __init__(self) -> None:
        self._begun: dict[int, _Begun] = {}
        self._numbers: Counter[tuple[int, str]] = Counter()
        self._ended = 0

    def calls(self, lines: Iterable[str]) -> Iterator[Traced]:
        for line in lines:
            match = _LINE.fullmatch(line.rstrip("\n"))
            if match is None:
                raise ValueError(f"not a line of strace: {line[:200]!r}")
            for traced in self._line(int(match.group(1)), match.group(2)):
                self._ended += 1
                yield traced

    def _line(self, thread: int, text: str) -> Iterator[Traced]:
        if text.startswith(("+++", "---")):
            return
        resumed = _RESUMED.fullmatch(text)
        if resumed is not None:
            begun = self._begun.pop(thread, None)
            if begun is None:  # it was waiting when strace attached
                return
            if begun.name != resumed.group(1):
                raise ValueError(f"{resumed.group(1)} ends what {begun.name} began")
            if begun.name != "close":
                yield from self._end(thread, begun, resumed.group(2))
            return
        name, bracket, rest = text.partition("(")
        if not bracket or not name.replace("_", "").isalnum():
            raise ValueError(f"not a call: {text[:200]!r}")
        self._numbers[thread, name] += 1
        begun = _Begun(name, "", self._numbers[thread, name], self._ended)
        unfinished = rest.removesuffix("<unfinished ...>")
        if unfinished == rest:
            yield from self._end(thread, begun, rest)
            return
        # Of a call that never returns strace says " <unfinished ...>) = ?" when the process ends.
        begun.text = unfinished.rstrip()
        self._begun[thread] = begun
        if name == "close":
            yield from self._end(thread, begun, ") = 0")

    def _end(self, thread: int, begun: _Begun, rest: str) -> Iterator[Traced]:
        match = _ENDED.fullmatch(begun.text + rest)
        if match is None:
            raise ValueError(f"not the end of {begun.name}: {rest[:200]!r}")
        arguments, result, error = match.groups()
        if result == "?":
            return
        operation = _operation(begun.name, _Arguments(arguments), int(result, 0), error or "")
        if operation is not None:
            yield Traced(thread, begun.name, begun.number, begun.started, operation, error or "")


class _Arguments:
    """What stands between the brackets of a call, split at its commas."""

    def __init__(self, text: str) -> None:
        self._parts = _split(text)

    def __len__(self) -> int:
        return len(self._parts)

    def text(self, index: int) -> str:
        """An argument as strace prints it."""
        return self._parts[index] if index < len(self._parts) else ""

    def number(self, index: int) -> int:
        """A number, or a pointer's ``[number]`` when the call began."""
        text = self.text(index).partition(" => ")[0]
        return int(text.strip("[]"), 0)

    def optional(self, index: int) -> int | None:
        """The same, None for NULL."""
        return None if self.text(index) == "NULL" else self.number(index)

    def data(self, index: int) -> bytes:
        """A string's bytes, all of them."""
        return _bytes(self.text(index))

    def vector(self, index: int) -> bytes:
        """The bytes of an array of iovecs, one behind the other."""
        return b"".join(
            _bytes(found) for found in re.findall(r'iov_base=("[^"]*"\.*)', self.text(index))
        )

    def flags(self, index: int) -> frozenset[str]:
        """The names of flags that are set."""
        return frozenset(self.text(index).split("|"))

    def place(self, index: int) -> Place:
        """A path alone."""
        return Place(self.data(index))

    def place_at(self, index: int) -> Place:
        """A directory's descriptor and a path."""
        at = self.text(index)
        return Place(self.data(index + 1), None if at == "AT_FDCWD" else int(at))


def _bytes(text: str) -> bytes:
    """``"\\x41\\x42"``: no other form of a string is complete."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        raise ValueError(f"a string that was cut off: {text[-80:]!r}")
    return bytes.fromhex(text[1:-1].replace("\\x", ""))


def _split(text: str) -> list[str]:
    """At the commas outside of brackets; strings are hexadecimal and hold none."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[\[\]{}(),]", text):
        mark = match.group()
        if mark in "[{(":
            depth += 1
        elif mark in "]})":
            depth -= 1
        elif depth == 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    last = text[start:].strip()
    return [*parts, last] if parts or last else []


def _operation(name: str, given: _Arguments, result: int, error: str) -> Operation | None:
    """What a call does, or would have done; None for one that concerns no file's content."""
    if name in _HARMLESS:
        return None
    if name in _METADATA:
        return Hint()
    if name in _NEW_DESCRIPTOR:
        return None if error else OpenOther((result,))
    make = _MAKERS.get(name)
    if make is None:
        raise UnknownCallError(
            f"{name}({', '.join(given.text(i)[:60] for i in range(len(given)))})"
        )
    return make(given, result)


def _open(place: Place, flags: frozenset[str], result: int) -> Operation:
    if flags & {"O_TMPFILE", "O_TMPFILE|O_DIRECTORY"}:
        raise UnknownCallError("open with O_TMPFILE")
    return Open(place, flags, result)


def _close_range(given: _Arguments, _result: int) -> Operation | None:
    if "CLOSE_RANGE_CLOEXEC" in given.flags(2):
        return None
    return Close(given.number(0), given.number(1))


def _fcntl(given: _Arguments, result: int) -> Operation | None:
    if given.text(1).startswith("F_DUPFD"):
        return Duplicate(given.number(0), result)
    return None


def _ioctl(given: _Arguments, _result: int) -> Operation | None:
    request = given.text(1)
    if request in _CLONES:
        return Clone(given.number(2), given.number(0))
    if request in _HARMLESS_IOCTLS:
        return None
    raise UnknownCallError(f"ioctl {request}")


def _mmap(given: _Arguments, _result: int) -> Operation | None:
    """A shared mapping that may be written to would change files without any call."""
    shared = given.flags(3) & {"MAP_SHARED", "MAP_SHARED_VALIDATE"}
    if shared and "PROT_WRITE" in given.flags(2) and given.text(4) != "-1":
        raise UnknownCallError("mmap: a shared mapping that may be written to")
    return None


def _fallocate(given: _Arguments, _result: int) -> Operation:
    if given.text(1) != "0":
        raise UnknownCallError(f"fallocate {given.text(1)}")
    return Allocate(given.number(0), given.number(2) + given.number(3))


def _renameat2(given: _Arguments, _result: int) -> Operation:
    flags = given.flags(4)
    if flags - {"0", "RENAME_NOREPLACE", "RENAME_EXCHANGE"}:
        raise UnknownCallError(f"renameat2 {given.text(4)}")
    return Rename(given.place_at(0), given.place_at(2), "RENAME_EXCHANGE" in flags)


def _linkat(given: _Arguments, _result: int) -> Operation:
    if given.text(4) not in ("0", "AT_SYMLINK_FOLLOW"):
        raise UnknownCallError(f"linkat {given.text(4)}")
    return Link(given.place_at(0), given.place_at(2))


def _thread(given: _Arguments, result: int) -> Operation | None:
    """Threads share their descriptors; nothing here follows those of another process."""
    if result >= 0 and "CLONE_THREAD" not in "".join(given.text(i) for i in range(len(given))):
        raise UnknownCallError("a new process")
    return None


def _pair(index: int) -> Callable[[_Arguments, int], Operation | None]:
    """Two descriptors in an array."""

    def make(given: _Arguments, result: int) -> Operation | None:
        numbers = given.text(index).strip("[]").split(", ")
        return None if result < 0 else OpenOther(tuple(int(number) for number in numbers))

    return make


_MAKERS: Final[dict[str, Callable[[_Arguments, int], Operation | None]]] = {
    "open": lambda a, r: _open(a.place(0), a.flags(1), r),
    "openat": lambda a, r: _open(a.place_at(0), a.flags(2), r),
    "creat": lambda a, r: _open(a.place(0), frozenset({"O_CREAT", "O_WRONLY", "O_TRUNC"}), r),
    "close": lambda a, _: Close(a.number(0), a.number(0)),
    "close_range": _close_range,
    "dup": lambda a, r: Duplicate(a.number(0), r),
    "dup2": lambda a, r: Duplicate(a.number(0), r),
    "dup3": lambda a, r: Duplicate(a.number(0), r),
    "fcntl": _fcntl,
    "pipe": _pair(0),
    "pipe2": _pair(0),
    "socketpair": _pair(3),
    "lseek": lambda a, r: Seek(a.number(0), r),
    "read": lambda a, r: Read(a.number(0), r),
    "write": lambda a, r: Write(a.number(0), a.data(1)[: max(r, 0)]),
    "pwrite64": lambda a, r: Write(a.number(0), a.data(1)[: max(r, 0)], a.number(3)),
    "writev": lambda a, r: Write(a.number(0), a.vector(1)[: max(r, 0)]),
    "pwritev": lambda a, r: Write(a.number(0), a.vector(1)[: max(r, 0)], a.number(3)),
    "pwritev2": lambda a, r: Write(
        a.number(0), a.vector(1)[: max(r, 0)], None if a.number(3) == -1 else a.number(3)
    ),
    "copy_file_range": lambda a, r: Copy(a.number(0), a.optional(1), a.number(2), a.optional(3), r),
    "sendfile": lambda a, r: Copy(a.number(1), a.optional(2), a.number(0), None, r),
    "ioctl": _ioctl,
    "ftruncate": lambda a, _: Truncate(a.number(0), a.number(1)),
    "truncate": lambda a, _: Truncate(a.place(0), a.number(1)),
    "fallocate": _fallocate,
    "mkdir": lambda a, _: Mkdir(a.place(0)),
    "mkdirat": lambda a, _: Mkdir(a.place_at(0)),
    "rename": lambda a, _: Rename(a.place(0), a.place(1)),
    "renameat": lambda a, _: Rename(a.place_at(0), a.place_at(2)),
    "renameat2": _renameat2,
    "link": lambda a, _: Link(a.place(0), a.place(1)),
    "linkat": _linkat,
    "symlink": lambda a, _: Symlink(a.data(0), a.place(1)),
    "symlinkat": lambda a, _: Symlink(a.data(0), a.place_at(1)),
    "unlink": lambda a, _: Unlink(a.place(0)),
    "unlinkat": lambda a, _: Unlink(a.place_at(0)),
    "rmdir": lambda a, _: Unlink(a.place(0)),
    "fsync": lambda a, _: Sync(a.number(0)),
    "fdatasync": lambda a, _: Sync(a.number(0)),
    "sync": lambda _a, _r: Sync(None),
    "syncfs": lambda _a, _r: Sync(None),
    "chdir": lambda a, _: Chdir(a.place(0)),
    "fchdir": lambda a, _: Chdir(a.number(0)),
    "mmap": _mmap,
    "clone": _thread,
    "clone3": _thread,
    "fork": _thread,
    "vfork": _thread,
}
