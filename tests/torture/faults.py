"""Faults without strace: the calls of this process that change a directory, counted and failed."""

from __future__ import annotations

import _pyio  # type: ignore[import-not-found]
import builtins
import ctypes
import fcntl
import os
import pickle
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tests.torture.operations import (
    Chdir,
    Clone,
    Close,
    Copy,
    Duplicate,
    Hint,
    Link,
    Mkdir,
    Open,
    Operation,
    Place,
    Read,
    Rename,
    Seek,
    Symlink,
    Sync,
    Traced,
    Truncate,
    Unlink,
    Write,
)
from vita_ckpt.storage.system import syscalls

_FLAGS: Final = ("O_CREAT", "O_TRUNC", "O_APPEND", "O_NOFOLLOW", "O_SYNC", "O_DSYNC")
_FICLONE: Final = 0x40049409


@dataclass(frozen=True)
class Fault:
    """What happens to the ``at``-th call, from 1, that changes what lies below ``root``.

    Without an ``error`` the process is killed before it; with one it fails, and with
    ``persistent`` every later call of that name does.
    """

    at: int
    error: int = 0
    persistent: bool = False


def install(root: str, fault: Fault | None, record: str | None) -> Callable[[], None]:
    """Wrap what changes files in this process.

    The function returned writes to ``record`` how many calls were counted, and what was done.
    """
    driver = _Driver(os.path.realpath(root), fault)
    driver.wrap()

    def save() -> None:
        if record is not None:
            with driver.open_file(record, "wb") as file:
                pickle.dump((driver.count, driver.traced), file)

    return save


class _Driver:
    def __init__(self, root: str, fault: Fault | None) -> None:
        self.traced: list[Traced] = []
        self.open_file = builtins.open
        self._root = root
        self._fault = fault
        self._failing = ""
        self.count = 0
        self._numbers: Counter[str] = Counter()
        # One call at a time: the record is then in the order of the effects.
        self._lock = threading.RLock()
        self._names: dict[str, Any] = {}

    def wrap(self) -> None:
        """Put the wrappers where callers look the functions up."""
        for name, operation in _OPERATIONS.items():
            if hasattr(os, name):
                setattr(os, name, self._wrapped(name, getattr(os, name), operation))
        fcntl.ioctl = self._wrapped("ioctl", fcntl.ioctl, _ioctl)
        find = syscalls._libc_function

        def libc_function(name: str) -> Callable[..., int] | None:
            function = find(name)
            return None if function is None else self._libc(name, function)

        syscalls._libc_function = libc_function  # type: ignore[assignment]

        def open_(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
            if set(mode) & set("wxa+"):
                return _pyio.open(file, mode, *more, **options)
            return self.open_file(file, mode, *more, **options)

        builtins.open = open_

    def _wrapped(
        self, name: str, function: Callable[..., Any], describe: _Describe
    ) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                place = _concerned(name, arguments, options)
                if place is not None and self._is_below(place, options.get("dir_fd")):
                    number = self._fail(name)
                    if number:
                        raise OSError(number, os.strerror(number))
                started = len(self.traced)
                result = function(*arguments, **options)
                self._note(name, started, describe(arguments, options, result))
                return result

        return wrapper

    def _libc(self, name: str, function: Callable[..., int]) -> Callable[..., int]:
        def wrapper(*arguments: Any) -> int:
            with self._lock:
                first = arguments[1] if name == "renameat2" else arguments[0]
                if self._is_below(first, None):
                    number = self._fail(name)
                    if number:
                        ctypes.set_errno(number)
                        return -1
                started = len(self.traced)
                result = function(*arguments)
                if result == 0:
                    self._note(name, started, _libc_operation(name, arguments))
                return result

        return wrapper

    def _fail(self, name: str) -> int:
        """Count a call; the errno it fails with, if it does."""
        self.count += 1
        fault = self._fault
        if fault is None:
            return 0
        if self.count == fault.at:
            if not fault.error:
                os.kill(os.getpid(), signal.SIGKILL)
            self._failing = name
            return fault.error
        return fault.error if fault.persistent and name == self._failing else 0

    def _note(self, name: str, started: int, operation: Operation | None) -> None:
        if operation is not None:
            self._numbers[name] += 1
            thread = threading.get_ident()
            self.traced.append(Traced(thread, name, self._numbers[name], started, operation))

    def _is_below(self, place: Any, at: int | None) -> bool:
        try:
            if isinstance(place, int):
                path = os.readlink(f"/proc/self/fd/{place}")
            elif at is not None:
                path = os.path.join(os.readlink(f"/proc/self/fd/{at}"), os.fsdecode(place))
            else:
                parent, name = os.path.split(os.path.abspath(os.fsdecode(place)))
                path = os.path.join(os.path.realpath(parent), name)
        except OSError:
            return False
        return path == self._root or path.startswith(f"{self._root}/")


_Describe = Callable[[tuple[Any, ...], dict[str, Any], Any], Operation | None]

# Calls that change something: which argument says what.
_CHANGING: Final = {
    "write": 0,
    "pwrite": 0,
    "writev": 0,
    "pwritev": 0,
    "fsync": 0,
    "fdatasync": 0,
    "ftruncate": 0,
    "posix_fallocate": 0,
    "truncate": 0,
    "copy_file_range": 1,
    "sendfile": 0,
    "rename": 1,
    "replace": 1,
    "mkdir": 0,
    "link": 1,
    "symlink": 1,
    "unlink": 0,
    "remove": 0,
    "rmdir": 0,
}


def _concerned(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The path or descriptor that a call changes; None where it only looks."""
    if name == "open":
        flags = arguments[1] if len(arguments) > 1 else options["flags"]
        return arguments[0] if flags & (os.O_CREAT | os.O_TRUNC) else None
    if name == "ioctl":
        return arguments[0] if arguments[1] == _FICLONE else None
    return arguments[_CHANGING[name]] if name in _CHANGING else None


def _place(path: Any, at: int | None = None) -> Place:
    return Place(os.fsencode(path), at)


def _open(arguments: tuple[Any, ...], options: dict[str, Any], result: Any) -> Operation:
    flags = arguments[1] if len(arguments) > 1 else options["flags"]
    names = frozenset(name for name in _FLAGS if flags & getattr(os, name) == getattr(os, name))
    return Open(_place(arguments[0], options.get("dir_fd")), names, result)


def _copy(arguments: tuple[Any, ...], options: dict[str, Any], result: Any) -> Operation:
    source, target, *_ = arguments
    return Copy(source, options.get("offset_src"), target, options.get("offset_dst"), result)


def _ioctl(arguments: tuple[Any, ...], _options: dict[str, Any], _result: Any) -> Operation | None:
    return Clone(arguments[2], arguments[0]) if arguments[1] == _FICLONE else None


def _moved(arguments: tuple[Any, ...], options: dict[str, Any], _result: Any) -> Operation:
    return Rename(
        _place(arguments[0], options.get("src_dir_fd")),
        _place(arguments[1], options.get("dst_dir_fd")),
    )


def _gone(arguments: tuple[Any, ...], options: dict[str, Any], _result: Any) -> Operation:
    return Unlink(_place(arguments[0], options.get("dir_fd")))


def _truncated(arguments: tuple[Any, ...], _options: dict[str, Any], _result: Any) -> Operation:
    file = arguments[0]
    return Truncate(file if isinstance(file, int) else _place(file), arguments[1])


def _libc_operation(name: str, arguments: tuple[Any, ...]) -> Operation:
    if name == "renameat2":
        return Rename(_place(arguments[1]), _place(arguments[3]), exchange=arguments[4] == 2)
    if name == "fsync":
        return Sync(arguments[0])
    if name == "sync_file_range":
        return Hint(arguments[0])
    raise NotImplementedError(name)


_OPERATIONS: Final[dict[str, _Describe]] = {
    "open": _open,
    "close": lambda a, _o, _r: Close(a[0], a[0]),
    "dup": lambda a, _o, r: Duplicate(a[0], r),
    "dup2": lambda a, _o, r: Duplicate(a[0], r),
    "lseek": lambda a, _o, r: Seek(a[0], r),
    "read": lambda a, _o, r: Read(a[0], len(r)),
    "readinto": lambda a, _o, r: Read(a[0], r),
    "write": lambda a, _o, r: Write(a[0], bytes(memoryview(a[1]).cast("B")[:r])),
    "pwrite": lambda a, _o, r: Write(a[0], bytes(memoryview(a[1]).cast("B")[:r]), a[2]),
    "writev": lambda a, _o, r: Write(a[0], b"".join(map(bytes, a[1]))[:r]),
    "pwritev": lambda a, _o, r: Write(a[0], b"".join(map(bytes, a[1]))[:r], a[2]),
    "fsync": lambda a, _o, _r: Sync(a[0]),
    "fdatasync": lambda a, _o, _r: Sync(a[0]),
    "ftruncate": _truncated,
    "truncate": _truncated,
    "copy_file_range": _copy,
    "sendfile": lambda a, _o, r: Copy(a[1], a[2], a[0], None, r),
    "rename": _moved,
    "replace": _moved,
    "mkdir": lambda a, o, _r: Mkdir(_place(a[0], o.get("dir_fd"))),
    "link": lambda a, o, _r: Link(
        _place(a[0], o.get("src_dir_fd")), _place(a[1], o.get("dst_dir_fd"))
    ),
    "symlink": lambda a, o, _r: Symlink(os.fsencode(a[0]), _place(a[1], o.get("dir_fd"))),
    "unlink": _gone,
    "remove": _gone,
    "rmdir": _gone,
    "chdir": lambda a, _o, _r: Chdir(a[0] if isinstance(a[0], int) else _place(a[0])),
}
